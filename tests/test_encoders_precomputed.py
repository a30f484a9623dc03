"""Vectors that somebody else has computed: found by key, in Parquet or npy, or refused with a reason."""

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.archive.sample import Member, RawSample, Rejection, Window
from curation.archive.settings import ArchiveConfig
from curation.catalog.rows import Row, RowMaker
from curation.encoders import build_encoder, fit_artefact
from curation.encoders.precomputed import versions
from curation.errors import BadSample, RequestError

KEYS = [f"tile {i}=ü,{i}" for i in range(20)]
VECTORS = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
UNIT = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)


def config(path, **change) -> dict:
    return {
        "name": "precomputed", "path": str(path), "keys": None, "key_column": "key", "vector_column": "embedding",
        "batch": 8, "threads": 1, "several": "refuse", "window_column": "pixel_bbox", **change,
    }  # fmt: skip


def made(settings: dict):
    return build_encoder(settings, fit_artefact(settings, [], (), None, 0), (), "", "cpu", 1)


def one(encoder, shard: str, key: str) -> np.ndarray:
    ((window, vector),) = encoder.lookup(shard, key)
    assert window is None
    return vector


def table(keys=KEYS, vectors=VECTORS, kind=None, **columns) -> pa.Table:
    return pa.table({"key": keys, "embedding": pa.array(list(vectors), kind or pa.list_(pa.float32())), **columns})


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.list_(pa.float64()), pa.list_(pa.float16(), 6), pa.large_list(pa.float32())]
)
def test_vectors_from_parquet_have_unit_length(tmp_path, kind):
    vectors = VECTORS.astype(np.float16 if "half" in str(kind) else np.float32)
    pq.write_table(table(vectors=vectors, kind=kind), tmp_path / "vectors.parquet")
    encoder = made(config(tmp_path / "vectors.parquet"))
    assert (encoder.dim, encoder.batch, encoder.needs_pixels) == (6, 8, False)
    found = np.stack([one(encoder, "root/any", key) for key in KEYS])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, UNIT, atol=1e-3)


def test_vectors_from_a_folder_of_parquet_files(tmp_path):
    for part in range(2):
        rows = slice(part * 10, part * 10 + 10)
        pq.write_table(table(KEYS[rows], VECTORS[rows]), tmp_path / f"part-{part}.parquet")
    encoder = made(config(tmp_path))
    np.testing.assert_allclose(np.stack([one(encoder, "a", key) for key in KEYS]), UNIT, atol=1e-6)


def test_other_column_names(tmp_path):
    pq.write_table(table().rename_columns(["name", "v"]), tmp_path / "a.parquet")
    encoder = made(config(tmp_path / "a.parquet", key_column="name", vector_column="v"))
    np.testing.assert_allclose(one(encoder, "a", KEYS[3]), UNIT[3], atol=1e-6)
    with pytest.raises(RequestError, match="no column 'key', but name, v"):
        made(config(tmp_path / "a.parquet"))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_vectors_from_npy(tmp_path, dtype):
    np.save(tmp_path / "vectors.npy", VECTORS.astype(dtype))
    (tmp_path / "keys.txt").write_text("\n".join(KEYS), encoding="utf-8")
    encoder = made(config(tmp_path / "vectors.npy", keys=str(tmp_path / "keys.txt")))
    np.testing.assert_allclose(np.stack([one(encoder, "a", key) for key in KEYS]), UNIT, atol=1e-3)


@pytest.mark.parametrize("nested", [False, True])
def test_a_shard_column_tells_equal_keys_apart(tmp_path, nested):
    shards = ["root/a.tar"] * 10 + ["root/b.tar"] * 10
    made_of = table(KEYS[:10] * 2, shard=shards)
    if nested:  # a column of several leaves before the others
        made_of = made_of.add_column(0, "bbox", pa.array([{"xmin": 0.0, "ymin": 1.0}] * 20))
    pq.write_table(made_of, tmp_path / "a.parquet", row_group_size=3)
    encoder = made(config(tmp_path / "a.parquet"))
    for shard, row in (("root/a.tar", 4), ("root/b.tar", 14), ("root/a.tar", 2)):
        np.testing.assert_allclose(one(encoder, shard, KEYS[row % 10]), UNIT[row], atol=1e-6)
    with pytest.raises(BadSample):
        one(encoder, "root/c.tar", KEYS[0])


@pytest.mark.parametrize("key", ["missing", KEYS[0], KEYS[1], KEYS[2]])
def test_a_missing_or_useless_vector_is_a_bad_sample(tmp_path, key):
    vectors: list = list(VECTORS.copy())
    vectors[0], vectors[1], vectors[2] = None, vectors[1] * 0, vectors[2] * np.nan
    pq.write_table(table(vectors=vectors), tmp_path / "a.parquet")
    encoder = made(config(tmp_path / "a.parquet"))
    with pytest.raises(BadSample) as error:
        one(encoder, "a", key)
    assert error.value.kind == "NoVector" and repr(key) in error.value.message


def test_a_shards_version_is_that_of_the_files_that_hold_its_vectors(tmp_path):
    for shard in ("a", "b"):
        one = table().append_column("shard", pa.array([shard] * len(KEYS)))
        pq.write_table(one, tmp_path / f"{shard}.parquet")
    before = versions(config(tmp_path))
    pq.write_table(pq.read_table(tmp_path / "b.parquet").slice(1), tmp_path / "b.parquet")
    after = versions(config(tmp_path))
    assert before("a") == after("a") and before("b") != after("b")


def test_a_message_has_no_credentials_of_the_files_url(tmp_path):
    store = "memory://user:hunter2@vectors/"
    for name in ("vectors.npy", "a.parquet"):
        with fsspec.open(store + name, "wb") as file:
            np.save(file, VECTORS)
    for path, keys in (("none", None), ("a.parquet", None), ("vectors.npy", None), ("vectors.npy", "none")):
        with pytest.raises(RequestError, match="memory://vectors/") as error:
            made(config(store + path, keys=keys and store + keys))
        assert "hunter2" not in str(error.value)


def test_vectors_of_another_length_are_refused(tmp_path):
    pq.write_table(table(), tmp_path / "a.parquet")
    artefact = fit_artefact(config(tmp_path / "a.parquet"), [], (), None, 0)
    pq.write_table(table(vectors=VECTORS[:, :2]), tmp_path / "a.parquet")
    with pytest.raises(RequestError, match="fresh workspace"):
        build_encoder(config(tmp_path / "a.parquet"), artefact, (), "", "cpu", 1)


def test_what_cannot_be_used_is_refused_in_one_line(tmp_path):
    np.save(tmp_path / "v.npy", VECTORS)
    np.save(tmp_path / "objects.npy", np.array([{}, None], object), allow_pickle=True)
    (tmp_path / "keys.txt").write_text("\n".join(KEYS))
    (tmp_path / "few.txt").write_text("a\nb")
    (tmp_path / "text.parquet").write_text("nothing")
    pq.write_table(table(KEYS[:10] * 2), tmp_path / "twice.parquet")
    pq.write_table(table(vectors=[*VECTORS[:-1], VECTORS[0, :3]]), tmp_path / "ragged.parquet")
    pq.write_table(table(vectors=VECTORS.astype(str), kind=pa.list_(pa.string())), tmp_path / "words.parquet")
    keys = str(tmp_path / "keys.txt")
    for settings in (
        config(tmp_path / "none.parquet"),
        {**config(""), "path": None},
        config(tmp_path / "text.parquet"),
        config(tmp_path / "twice.parquet"),
        config(tmp_path / "ragged.parquet"),
        config(tmp_path / "words.parquet"),
        config(tmp_path / "v.npy"),
        config(tmp_path / "v.npy", keys=str(tmp_path / "few.txt")),
        config(tmp_path / "v.npy", keys=str(tmp_path / "none.txt")),
        config(tmp_path / "objects.npy", keys=keys),
    ):
        with pytest.raises(RequestError) as error:
            made(settings)
        assert "\n" not in str(error.value)


# several vectors of a key, in the layout in which Major TOM publishes its embeddings

CELLS = [("433U_12R", "S2B_A"), ("433U_12R", "S2B_B"), ("434U_13R", "S2B_A")]  # two products of one cell
STARTS = (0, 342, 684)  # of 384-pixel windows in a patch of 1068, a tenth of overlap asked for
MAJOR_TOM = {"key_column": ["grid_cell", "product_id"], "several": "tiles"}


def major_tom(**change) -> pa.Table:
    """Nine windows a patch."""
    rows = [(cell, product, r, c) for cell, product in CELLS for r in STARTS for c in STARTS]
    embedding = np.random.default_rng(1).normal(size=(len(rows), 5)).astype(np.float32)
    columns = {
        "unique_id": [f"{i:064x}" for i in range(len(rows))],
        "embedding": list(embedding),
        "timestamp": ["20200101T101010"] * len(rows),
        "product_id": [product for _, product, _, _ in rows],
        "grid_cell": [cell for cell, _, _, _ in rows],
        "utm_crs": ["EPSG:32632"] * len(rows),
        "pixel_bbox": [[r, c, r + 384, c + 384] for _, _, r, c in rows],
    }
    return pa.table({**columns, **change}).take(np.random.default_rng(2).permutation(len(rows)))


@pytest.mark.parametrize("shard", [None, "root/part.parquet"])
def test_each_window_of_a_patch_is_a_tile_of_its_own(tmp_path, shard):
    published = major_tom(**({"shard": [shard] * 27} if shard else {}))
    pq.write_table(published, tmp_path / "part.parquet", row_group_size=10)
    encoder = made(config(tmp_path / "part.parquet", **MAJOR_TOM))
    truth = {
        (row["grid_cell"], row["product_id"], *row["pixel_bbox"][:2]): np.float32(row["embedding"])
        for row in published.to_pylist()
    }
    for cell, product in CELLS:
        found = encoder.lookup("root/part.parquet", f"{cell}_{product}")
        assert [window for window, _ in found] == [Window(r, c, 384, 384) for r in STARTS for c in STARTS]
        for window, vector in found:
            expected = truth[cell, product, window.row, window.column]
            np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)
        (alone,) = encoder.lookup("root/part.parquet", f"{cell}_{product}", Window(342, 684, 384, 384))
        assert (alone[1] == found[5][1]).all()
    for key, window in (("435U_1R_S2B_A", None), ("434U_13R_S2B_A", Window(0, 1, 384, 384))):
        with pytest.raises(BadSample, match="no vector"):
            encoder.lookup("root/part.parquet", key, window)


def test_windows_are_averaged_by_their_directions(tmp_path):
    published = major_tom()
    pq.write_table(published, tmp_path / "part.parquet")
    encoder = made(config(tmp_path / "part.parquet", **{**MAJOR_TOM, "several": "mean"}))
    own = np.float32([row["embedding"] for row in published.to_pylist() if row["grid_cell"] == "434U_13R"])
    mean = (own / np.linalg.norm(own, axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(one(encoder, "a", "434U_13R_S2B_A"), mean / np.linalg.norm(mean), atol=1e-6)


def test_windows_become_rows_with_their_tiles_keys_and_no_pixels_are_read(tmp_path):
    embedding = list(np.ones((27, 5), np.float32))
    embedding[4] = np.zeros(5, np.float32)  # the middle window of the first patch
    pq.write_table(major_tom(embedding=embedding), tmp_path / "part.parquet")
    encoder = made(config(tmp_path / "part.parquet", **MAJOR_TOM))
    maker = RowMaker(ArchiveConfig(), (), "", "", np.zeros((0, 2)), lambda sample: sample, 0.1, encoder.lookup)
    members = [Member("B02", None, 11), Member("B03", None, 12)]
    data = {"B02": b"not read", "json": b'{"bbox": [1, 2, 3, 4], "label": "sea"}'}
    raws = [RawSample(f"{c}_{p}", i, members, data, position=(i, 0)) for i, (c, p) in enumerate(CELLS)]
    rows = [result for results in maker.rows("root/part.parquet", raws) for result in results]
    (bad,) = (row for row in rows if isinstance(row, Rejection))
    assert (bad.key, bad.kind) == ("433U_12R_S2B_A_r00342_c00342", "NoVector")
    good = [row.columns for row in rows if isinstance(row, Row)]
    assert len(good) == len({row["sample_id"] for row in good}) == 26
    assert good[1]["key"] == "433U_12R_S2B_A_r00000_c00342"
    assert good[1]["window"] == {"row": 0, "column": 342, "height": 384, "width": 384}
    assert (good[1]["position"], good[1]["label"], good[1]["footprint"]) == ([0, 0], "sea", None)


def test_what_is_no_window_or_tells_too_little_apart_is_refused(tmp_path):
    pq.write_table(major_tom(), tmp_path / "a.parquet")
    pq.write_table(major_tom(pixel_bbox=[[0, 0, 384]] * 27), tmp_path / "three.parquet")
    pq.write_table(major_tom(pixel_bbox=[[0, 0, 384, 0]] * 27), tmp_path / "flat.parquet")
    pq.write_table(major_tom(pixel_bbox=["0 0 384 384"] * 27), tmp_path / "text.parquet")
    for path, change in (
        ("a", {"several": "refuse"}),
        ("a", {"several": "some"}),
        ("a", {"window_column": "bbox"}),
        ("three", {}),
        ("flat", {}),
        ("text", {}),
    ):
        with pytest.raises(RequestError) as error:
            made(config(tmp_path / f"{path}.parquet", **{**MAJOR_TOM, **change}))
        assert "\n" not in str(error.value)
    encoder = made(config(tmp_path / "a.parquet", key_column="grid_cell", several="tiles"))
    with pytest.raises(BadSample, match="two vectors for one window of key '433U_12R'"):
        encoder.lookup("a", "433U_12R")
    assert len(encoder.lookup("a", "434U_13R")) == 9
