"""Vectors that somebody else has computed: found by key, in Parquet or npy, or refused with a reason."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.encoders import build_encoder, fit_artefact
from curation.encoders.precomputed import versions
from curation.errors import BadSample, RequestError

KEYS = [f"tile {i}=ü,{i}" for i in range(20)]
VECTORS = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
UNIT = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)


def config(path, **change) -> dict:
    return {
        "name": "precomputed", "path": str(path), "keys": None, "key_column": "key", "vector_column": "embedding",
        "batch": 8, "threads": 1, **change,
    }  # fmt: skip


def made(settings: dict):
    return build_encoder(settings, fit_artefact(settings, [], (), "", None, 0), (), "", "cpu", 1)


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
    found = np.stack([encoder.lookup("root/any", key) for key in KEYS])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, UNIT, atol=1e-3)


def test_vectors_from_a_folder_of_parquet_files(tmp_path):
    for part in range(2):
        rows = slice(part * 10, part * 10 + 10)
        pq.write_table(table(KEYS[rows], VECTORS[rows]), tmp_path / f"part-{part}.parquet")
    encoder = made(config(tmp_path))
    np.testing.assert_allclose(np.stack([encoder.lookup("a", key) for key in KEYS]), UNIT, atol=1e-6)


def test_other_column_names(tmp_path):
    pq.write_table(table().rename_columns(["name", "v"]), tmp_path / "a.parquet")
    encoder = made(config(tmp_path / "a.parquet", key_column="name", vector_column="v"))
    np.testing.assert_allclose(encoder.lookup("a", KEYS[3]), UNIT[3], atol=1e-6)
    with pytest.raises(RequestError, match="no column 'key', but name, v"):
        made(config(tmp_path / "a.parquet"))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_vectors_from_npy(tmp_path, dtype):
    np.save(tmp_path / "vectors.npy", VECTORS.astype(dtype))
    (tmp_path / "keys.txt").write_text("\n".join(KEYS), encoding="utf-8")
    encoder = made(config(tmp_path / "vectors.npy", keys=str(tmp_path / "keys.txt")))
    np.testing.assert_allclose(np.stack([encoder.lookup("a", key) for key in KEYS]), UNIT, atol=1e-3)


def test_a_shard_column_tells_equal_keys_apart(tmp_path):
    shards = ["root/a.tar"] * 10 + ["root/b.tar"] * 10
    pq.write_table(table(KEYS[:10] * 2, shard=shards), tmp_path / "a.parquet", row_group_size=3)
    encoder = made(config(tmp_path / "a.parquet"))
    for shard, row in (("root/a.tar", 4), ("root/b.tar", 14), ("root/a.tar", 2)):
        np.testing.assert_allclose(encoder.lookup(shard, KEYS[row % 10]), UNIT[row], atol=1e-6)
    with pytest.raises(BadSample):
        encoder.lookup("root/c.tar", KEYS[0])


@pytest.mark.parametrize("key", ["missing", KEYS[0], KEYS[1], KEYS[2]])
def test_a_missing_or_useless_vector_is_a_bad_sample(tmp_path, key):
    vectors: list = list(VECTORS.copy())
    vectors[0], vectors[1], vectors[2] = None, vectors[1] * 0, vectors[2] * np.nan
    pq.write_table(table(vectors=vectors), tmp_path / "a.parquet")
    encoder = made(config(tmp_path / "a.parquet"))
    with pytest.raises(BadSample) as error:
        encoder.lookup("a", key)
    assert error.value.kind == "NoVector" and repr(key) in error.value.message


def test_a_shards_version_is_that_of_the_files_that_hold_its_vectors(tmp_path):
    for shard in ("a", "b"):
        one = table().append_column("shard", pa.array([shard] * len(KEYS)))
        pq.write_table(one, tmp_path / f"{shard}.parquet")
    before = versions(config(tmp_path))
    pq.write_table(pq.read_table(tmp_path / "b.parquet").slice(1), tmp_path / "b.parquet")
    after = versions(config(tmp_path))
    assert before("a") == after("a") and before("b") != after("b")


def test_vectors_of_another_length_are_refused(tmp_path):
    pq.write_table(table(), tmp_path / "a.parquet")
    artefact = fit_artefact(config(tmp_path / "a.parquet"), [], (), "", None, 0)
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
