"""What is published says which samples and how they were made, not where they lie; it finds them elsewhere."""

import getpass
import json
import re
import shutil
import socket
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.archive.keys import Entry, read_keys
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import sample_id
from curation.archive.settings import ArchiveConfig
from curation.errors import RequestError
from curation.manifests.apply import FOUND, NONE, OTHER, SEVERAL, match
from curation.manifests.loaders.torch import TorchSamples
from curation.manifests.publication import _Guard, _Private, open_publication, publish
from curation.manifests.reading import ManifestReader
from curation.manifests.verify import verify
from jobs.apply import run as run_apply
from jobs.publish import run as run_publish
from tests.layouts import ground, keep
from tests.recipes import geotiff, write_tar
from tests.test_loaders_layouts import LAYOUTS, made

Sample = tuple[str, bytes, dict[str, Any]]  # key, image, what its sidecar says


def tiles(shard: int, number: int = 8) -> list[Sample]:
    """Samples of different bytes; of every fourth nobody says a licence, of every third no source."""
    found = []
    for i in range(number):
        said: dict[str, Any] = {"label": f"class{i % 3}", "caption": "our secret site"}
        if i % 4:
            said["license"] = "CC0-1.0" if i % 2 else "CC-BY-4.0"
        if i % 3:
            said["source_id"] = f"scene-{shard}-{i}"
        found.append((f"s{shard}_tile{i}", geotiff(ground(100 * shard + i, 3, 12, 12)), said))
    return found


def write_shard(path: Path, samples: list[Sample]) -> None:
    members = [(f"{key}.json", json.dumps(said).encode()) for key, _, said in samples]
    images = [(f"{key}.tif", image) for key, image, _ in samples]
    write_tar(path, [member for pair in zip(members, images, strict=True) for member in pair])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of three tars, catalog and manifest (``manifest.txt`` has its URL)."""
    folder = tmp_path_factory.mktemp("ours")
    for shard in range(3):
        write_shard(folder / f"archive/north/part-{shard}.tar", tiles(shard))
    url, _ = keep(folder, {})
    (folder / "manifest.txt").write_text(url)
    return folder


@pytest.fixture(scope="module")
def published(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("world") / "set"
    run_publish([(original / "manifest.txt").read_text(), str(dest)])
    return dest


def samples_of(folder: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(folder / "samples.parquet").to_pylist())


def pixels(manifest: str, roots: dict[str, str] | None = None) -> dict[int, np.ndarray]:
    """What training reads, by rank."""
    samples = TorchSamples(manifest, decode=True, rank=0, world_size=1, shuffle=0, roots=roots or {})
    return {sample["rank"]: sample["pixels"].numpy() for sample in samples}


def same_pixels(one: dict[int, np.ndarray], other: dict[int, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[rank], other[rank]) for rank in one)


# publishing


def test_kept_samples_go_out_with_their_licences_and_how_they_were_made(original: Path, published: Path) -> None:
    kept = ManifestReader((original / "manifest.txt").read_text())
    rows = samples_of(published)
    said = {key: about for shard in range(3) for key, _, about in tiles(shard)}
    assert [row["sample_id"] for row in rows] == kept.table()["sample_id"].to_pylist()
    assert [row["license"] for row in rows] == [said[row["key"]].get("license") for row in rows]
    assert [row["source_id"] for row in rows] == [said[row["key"]].get("source_id") for row in rows]
    content = json.loads((published / "published.json").read_text())["content"]
    licenses = Counter(row["license"] for row in rows)
    assert {one["license"]: one["samples"] for one in content["licenses"]} == licenses
    assert content["manifest"] == kept.id
    assert content["counts"] == {"kept": len(rows), "published": len(rows), "left_out": []}
    readme = (published / "README.md").read_text()
    assert f"| none is stated | {licenses[None]} |" in readme


def every_text(folder: Path) -> str:
    """The bytes of all files, and every value of the tables, which lie compressed."""
    texts = []
    for path in folder.rglob("*"):
        if path.is_file():
            texts.append(path.read_bytes().decode("latin-1"))
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            texts += [json.dumps(table.to_pylist()), str(table.schema), str(table.schema.metadata)]
    return "\n".join(texts)


def test_nothing_of_ours_goes_out(original: Path, tmp_path: Path) -> None:
    url = (original / "manifest.txt").read_text()
    header = json.loads(Path(url, "manifest.json").read_text())
    header["provenance"] |= {
        "roots": {"root0": "s3://acme-bucket/deep/archive"},
        "references": "s3://acme-bank/bank",
        "catalog": "https://catalog.acme.example/shared",
        "runtime": {"address": "ray://head.acme.example:10001"},
    }
    workspace = tmp_path / "acme workspace"
    shutil.copytree(original / "workspace", workspace)
    manifest = workspace / "manifests" / Path(url).name
    (manifest / "manifest.json").write_text(json.dumps(header))
    storage = {"s3": {"endpoint_url": "https://minio.acme.example:9000", "profile": "acme-ops"}}
    publish(str(manifest), str(tmp_path / "out"), storage=storage)
    text = every_text(tmp_path / "out").lower()
    private = ["acme", "minio", "9000", "://", str(tmp_path), str(original), str(Path.home()) + "/"]
    assert [name for name in private if name.lower() in text] == []
    names = (socket.gethostname(), getpass.getuser())
    assert [name for name in names if re.search(rf"\b{re.escape(name.lower())}\b", text)] == []
    assert "secret site" not in text  # captions are left out unless they are asked for
    publish(str(manifest), str(tmp_path / "more"), columns=["caption"], storage=storage)
    assert "our secret site" in every_text(tmp_path / "more")


def test_a_private_name_in_a_key_or_path_is_refused_until_it_is_allowed(tmp_path: Path) -> None:
    write_shard(tmp_path / "archive/acme-tiles/part.tar", [(f"acme-tiles_{k}", i, s) for k, i, s in tiles(0)])
    url, _ = keep(tmp_path, {})
    header = json.loads(Path(url, "manifest.json").read_text())
    header["provenance"]["roots"] = {"root0": "s3://acme-tiles/x"}
    Path(url, "manifest.json").write_text(json.dumps(header))
    with pytest.raises(RequestError, match="column shard would publish 'acme-tiles'.*--allow acme-tiles"):
        publish(url, str(tmp_path / "out"))
    assert not (tmp_path / "out/published.json").exists()
    assert publish(url, str(tmp_path / "out"), allow=["acme-tiles"])["samples"]


def test_a_licence_that_is_left_out_is_looked_at_too(tmp_path: Path) -> None:
    ours = {"license": "internal, see s3://acme/terms"}
    write_shard(
        tmp_path / "archive/part.tar", [(k, i, s | (ours if n % 2 else {})) for n, (k, i, s) in enumerate(tiles(0))]
    )
    url, _ = keep(tmp_path, {})
    header = json.loads(Path(url, "manifest.json").read_text())
    header["provenance"]["roots"] = {"root0": "s3://acme/x"}
    Path(url, "manifest.json").write_text(json.dumps(header))
    with pytest.raises(RequestError, match="the header would publish 'acme'"):
        publish(url, str(tmp_path / "out"), licenses=["CC0-1.0", "CC-BY-4.0"])
    assert not (tmp_path / "out/published.json").exists()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("s3://acme/x", True),
        ("product of ACME, 2020", True),
        ("acmeville", False),
        ("/srv/data/tiles/a.tif", True),
        ("file:///srv/data/x", True),
        ("s2/srv/data/x", False),
        ("/srv/database", False),
    ],
)
def test_private_names_count_as_words_and_paths_from_their_beginning(text: str, found: bool) -> None:
    guard = _Guard(_Private(frozenset({"/srv/data"}), frozenset({"acme"})), [])
    for check in (
        lambda: guard.check_json({"a": [text]}),
        lambda: guard.check_column("key", pa.chunked_array([[text]])),
    ):
        if found:
            with pytest.raises(RequestError):
                check()
        else:
            check()


def test_only_licences_that_are_named_go_out_and_ranks_close_up(original: Path, tmp_path: Path) -> None:
    url = (original / "manifest.txt").read_text()
    result = run_publish([url, str(tmp_path / "out"), "--license", "CC0-1.0", "--attribution", "After Somebody"])
    rows, every = samples_of(tmp_path / "out"), samples_of_all(original, tmp_path)
    assert {row["license"] for row in rows} == {"CC0-1.0"}
    stays = sorted((row["rank"], row["sample_id"]) for row in every if row["license"] == "CC0-1.0")
    assert sorted((row["rank"], row["sample_id"]) for row in rows) == [(n, name) for n, (_, name) in enumerate(stays)]
    assert sum(result["left_out"].values()) == len(every) - len(rows)
    assert "After Somebody" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(RequestError, match="no sample may be published: their licences are none, CC-BY-4.0, CC0-1.0"):
        publish(url, str(tmp_path / "none"), licenses=["MIT"])


def samples_of_all(original: Path, folder: Path) -> list[dict[str, Any]]:
    publish((original / "manifest.txt").read_text(), str(folder / "every"))
    return samples_of(folder / "every")


def test_what_it_would_write_over_or_cannot_know_is_refused(original: Path, tmp_path: Path) -> None:
    url = (original / "manifest.txt").read_text()
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("mine")
    with pytest.raises(RequestError, match="thesis.tex"):
        publish(url, str(tmp_path / "home"))
    with pytest.raises(RequestError, match="--column pixels"):
        publish(url, str(tmp_path / "out"), columns=["pixels"])
    shutil.copytree(url, tmp_path / "alone")
    with pytest.raises(RequestError, match="licences are in the catalog"):
        publish(str(tmp_path / "alone"), str(tmp_path / "out"))
    with pytest.raises(RequestError, match="publish takes --license"):
        run_publish([url, "--licence", "x"])
    with pytest.raises(RequestError, match="config=nowhere.yaml"):  # an override, and no folder of that name
        run_publish([url, "config=nowhere.yaml"])


def test_damage_is_seen(published: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(published, copy)
    data = bytearray((copy / "samples.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "samples.parquet").write_bytes(bytes(data))
    with pytest.raises(RequestError, match="samples.parquet is not as it was published"):
        open_publication(str(copy))
    (copy / "samples.parquet").unlink()
    with pytest.raises(RequestError, match="no whole publication"):
        open_publication(str(copy))
    header = json.loads((published / "published.json").read_text())
    header["content"]["attribution"] = "somebody else"
    (copy / "published.json").write_text(json.dumps(header))
    with pytest.raises(RequestError, match="published.json is not as it was published"):
        open_publication(str(copy / "published.json"))
    with pytest.raises(RequestError, match="no whole publication"):
        open_publication(str(tmp_path / "nowhere"))


# keys without pixels


@pytest.mark.parametrize("layout", LAYOUTS)
def test_headers_tell_what_reading_all_of_it_would(tmp_path: Path, layout: str) -> None:
    write, settings = LAYOUTS[layout]
    write(tmp_path / "archive")
    config = ArchiveConfig(**{name: value for name, value in settings.items() if name != "tile"})
    (root,) = list_archive(str(tmp_path / "archive"), settings=config)
    for shard in root.shards:
        read = [(raw.key, raw.index, raw.position) for raw in read_shard(root.folder, shard, config)]
        entries = [entry for entry in read_keys(root.folder, shard, config) if isinstance(entry, Entry)]
        told = [(entry.key, entry.index, entry.position) for entry in entries]
        assert told == read


def test_a_truncated_image_is_lost_as_it_is_for_the_reader(tmp_path: Path) -> None:
    write_shard(tmp_path / "a/part.tar", tiles(0))
    with tarfile.open(tmp_path / "a/part.tar") as tar:
        last = tar.getmembers()[-1]
    data = (tmp_path / "a/part.tar").read_bytes()
    (tmp_path / "a/part.tar").write_bytes(data[: last.offset_data + 10])
    (root,) = list_archive(str(tmp_path / "a"))
    bare = list(read_keys(root.folder, root.shards[0], ArchiveConfig()))
    whole = list(read_shard(root.folder, root.shards[0], ArchiveConfig()))
    assert [item.key for item in bare] == [item.key for item in whole]
    assert bare[-1] == whole[-1]


# which is which


names = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.sampled_from([None, "p", "q"])), max_size=6
)


@given(names, names)
def test_matching_is_what_it_says(ours: list[tuple[Any, ...]], theirs: list[tuple[Any, ...]]) -> None:
    ours, theirs = ([*{one[:2]: one for one in some}.values()] if some else [] for some in (ours, theirs))
    own = {
        "image_id": [sample_id(*one[:2]) for one in ours],
        "image": [one[1] for one in ours],
        "source_id": [one[2] for one in ours],
    }
    samples = pa.table({name: pa.array(values, pa.string()) for name, values in own.items()})
    rows = [{"image_id": sample_id(s, k), "shard": s, "key": k, "source_id": p} for s, k, p in theirs]
    place, by = match(samples, pa.Table.from_pylist(rows, FOUND))
    told = {int(i): name for name, found in by.items() for i in found}
    assert sorted(told) == np.flatnonzero(place >= 0).tolist()
    assert len(set(place[place >= 0].tolist())) == (place >= 0).sum()  # no image is two samples
    for i, (shard, key, source) in enumerate(ours):
        exact = [j for j, other in enumerate(theirs) if other[:2] == (shard, key)]
        may = [j for j in exact if None in (source, theirs[j][2]) or source == theirs[j][2]]
        if may:
            assert place[i] == may[0]
            assert told[i] == "sample_id"
        elif place[i] >= 0:
            other = theirs[place[i]]
            if told[i] == "source_id":
                assert other[2] == source
                alike = [j for j, one in enumerate(theirs) if one[2] == source]
                assert len(alike) == 1 or [j for j in alike if theirs[j][1] == key] == [place[i]]
            else:
                assert other[1] == key
                assert None in (source, other[2]) or source == other[2]
                assert sum(one[1] == key for one in theirs) == sum(one[1] == key for one in ours) == 1
        else:
            near = [one for one in theirs if one[1] == key or (source is not None and one[2] == source)]
            assert place[i] in (SEVERAL, OTHER, NONE)
            assert (place[i] == NONE) or near


# applying


def applied(published: Path, copy: Path, workspace: Path, *more: str, root: str = "") -> dict[str, Any]:
    where = f"{{{root}: {copy}}}" if root else str(copy)
    return run_apply([str(published), f"archive.url={where}", f"workspace={workspace}", *more])


def manifest_of(result: dict[str, Any]) -> str:
    return str(result["manifest"].removeprefix("file://"))


def to_other_tars(original: Path, copy: Path) -> None:
    """The same samples in tars of other names and sizes, in another order."""
    every = [sample for shard in (2, 0, 1) for sample in tiles(shard)]
    for number, start in enumerate(range(0, len(every), 7)):
        write_shard(copy / f"{number}.tar", every[start : start + 7][::-1])


def to_parquet(original: Path, copy: Path) -> None:
    """As Hugging Face would have it: an image column, and the sidecars' fields as columns."""
    copy.mkdir()
    for part in range(2):
        own = [sample for shard in range(3) for sample in tiles(shard)][part::2]
        columns = {"id": [key for key, _, _ in own], "image": [{"bytes": image, "path": key} for key, image, _ in own]}
        said = {name: [about.get(name) for _, _, about in own] for name in ("label", "source_id", "license")}
        pq.write_table(pa.table({**columns, **said}), copy / f"train-{part:05d}.parquet", row_group_size=5)


def to_folders(original: Path, copy: Path) -> None:
    for shard in range(3):
        for key, image, said in tiles(shard):
            (copy / f"{shard % 2}").mkdir(parents=True, exist_ok=True)
            (copy / f"{shard % 2}/{key}.tif").write_bytes(image)
            (copy / f"{shard % 2}/{key}.json").write_text(json.dumps(said))


def with_other_keys(original: Path, copy: Path) -> None:
    """Keys made anew; the sources stay."""
    for shard in range(3):
        write_shard(copy / f"part-{shard}.tar", [(f"{n:06d}", i, s) for n, (_, i, s) in enumerate(tiles(shard))])


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("make", [to_other_tars, to_parquet, to_folders])
def test_another_copy_gives_training_the_same_pixels(
    original: Path, published: Path, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    make(original, tmp_path / "copy")
    result = applied(published, tmp_path / "copy", tmp_path / "workspace", root="mirror")
    rows = samples_of(published)
    assert result["found"] == result["samples"] == len(rows)
    assert result["published"] == open_publication(str(published)).id
    assert result["missing_list"] is None
    assert result["by"] == {
        "sample_id": 0,
        "source_id": sum(row["source_id"] is not None for row in rows),
        "key": sum(row["source_id"] is None for row in rows),
    }
    assert result["differs"] == {"size": 0, "label": 0}
    checked = verify(manifest_of(result), deep=True)
    assert checked["problems"] == []
    assert checked["read"] == len(rows)
    assert same_pixels(pixels(manifest_of(result)), pixels((original / "manifest.txt").read_text()))
    assert not (tmp_path / "workspace/manifests/latest.json").exists()


@pytest.mark.usefixtures("ray_local")
def test_the_same_copy_elsewhere_publishes_the_same_samples_again(
    original: Path, published: Path, tmp_path: Path
) -> None:
    shutil.copytree(original / "archive", tmp_path / "moved")
    result = applied(published, tmp_path / "moved", tmp_path / "workspace")
    assert result["by"] == {"sample_id": result["samples"], "source_id": 0, "key": 0}
    kept = ManifestReader((original / "manifest.txt").read_text()).table()
    assert ManifestReader(manifest_of(result)).table().select(kept.column_names).equals(kept)
    publish(manifest_of(result), str(tmp_path / "again"))
    assert samples_of(tmp_path / "again") == samples_of(published)
    again = applied(published, tmp_path / "moved", tmp_path / "workspace")
    assert again == result


@pytest.mark.usefixtures("ray_local")
def test_a_catalog_of_the_copy_that_is_current_is_gone_by(original: Path, published: Path, tmp_path: Path) -> None:
    result = applied(published, original / "archive", original / "workspace")
    header = ManifestReader(manifest_of(result)).header
    assert header["content"]["catalog"] == "feed"
    assert verify(manifest_of(result), deep=True)["ok"]
    (original / "archive/north/part-0.tar").touch()  # as if it had been written again
    other = applied(published, original / "archive", original / "workspace")
    assert ManifestReader(manifest_of(other)).header["content"]["catalog"] is None
    assert pixels(manifest_of(other)).keys() == pixels(manifest_of(result)).keys()
    with pytest.raises(RequestError, match="applied to a copy of the archive that had no catalog"):
        publish(manifest_of(other), str(tmp_path / "out"), columns=["caption"])


@pytest.mark.usefixtures("ray_local")
def test_what_is_missing_is_listed_and_what_is_there_is_a_whole_manifest(
    original: Path, published: Path, tmp_path: Path
) -> None:
    shutil.copytree(original / "archive", tmp_path / "moved")
    (tmp_path / "moved/north/part-1.tar").unlink()
    result = applied(published, tmp_path / "moved", tmp_path / "workspace")
    rows = samples_of(published)
    gone = [row for row in rows if row["shard"].endswith("part-1.tar")]
    assert result["missing"] == len(gone) > 0
    assert result["reasons"] == {"not_found": len(gone)}
    listed = pq.read_table(result["missing_list"].removeprefix("file://")).to_pylist()
    assert [(row["sample_id"], row["rank"]) for row in listed] == [
        (row["sample_id"], row["rank"]) for row in sorted(gone, key=lambda row: row["rank"])
    ]
    assert verify(manifest_of(result), deep=True)["problems"] == []
    left = sorted((row for row in rows if row not in gone), key=lambda row: row["rank"])
    table = ManifestReader(manifest_of(result)).table().sort_by("rank")
    assert table["sample_id"].to_pylist() == [row["sample_id"] for row in left]


@pytest.mark.usefixtures("ray_local")
def test_samples_without_a_source_are_lost_with_their_keys_and_the_others_are_not(
    published: Path, tmp_path: Path, original: Path
) -> None:
    with_other_keys(original, tmp_path / "copy")
    result = applied(published, tmp_path / "copy", tmp_path / "workspace")
    rows = samples_of(published)
    assert result["by"] == {"sample_id": 0, "source_id": sum(row["source_id"] is not None for row in rows), "key": 0}
    assert result["missing"] == sum(row["source_id"] is None for row in rows)


@pytest.mark.usefixtures("ray_local")
def test_keys_that_several_have_and_samples_that_are_there_twice_are_told(
    original: Path, published: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):  # the same shard under two names
        write_shard(tmp_path / f"copy/{name}.tar", tiles(0))
    write_shard(tmp_path / "copy/c.tar", tiles(1))
    result = applied(published, tmp_path / "copy", tmp_path / "workspace")
    shards = Counter(row["shard"][-5] for row in samples_of(published))
    assert result["reasons"] == {"ambiguous": shards["0"], "not_found": shards["2"]}
    assert result["found"] == shards["1"]


@pytest.mark.usefixtures("ray_local")
def test_another_dataset_is_refused_and_other_images_of_the_same_names_are_told(
    published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shard(tmp_path / "other/part.tar", [(f"other{k}", i, {}) for k, i, _ in tiles(7)])
    with pytest.raises(RequestError, match="none of the .* published samples is there .*not_found"):
        applied(published, tmp_path / "other", tmp_path / "workspace")
    assert not list((tmp_path / "workspace").rglob("*.parquet"))
    for shard in range(3):
        alike = [(key, geotiff(ground(900 + i, 3, 8, 8)), {"label": "x"}) for i, (key, _, _) in enumerate(tiles(shard))]
        write_shard(tmp_path / f"alike/north/part-{shard}.tar", alike)
    result = applied(published, tmp_path / "alike", tmp_path / "workspace")
    assert result["differs"] == {"size": result["found"], "label": result["found"]}
    assert "have another size" in caplog.text


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_found_elsewhere(tmp_path: Path, layout: str) -> None:
    url, truth = made(tmp_path, layout)
    publish(url, str(tmp_path / "published"))
    here = applied(
        tmp_path / "published", tmp_path / "archive", tmp_path / "workspace"
    )  # with its catalog, tiles counted
    before, after = (ManifestReader(one).table() for one in (url, manifest_of(here)))
    assert after.select(before.column_names).equals(before)
    assert verify(manifest_of(here), deep=True)["problems"] == []
    (tmp_path / "archive").rename(tmp_path / "moved")
    result = applied(tmp_path / "published", tmp_path / "moved", tmp_path / "workspace", root="other")
    assert result["found"] == len(truth)
    assert verify(manifest_of(result), deep=True)["problems"] == []
    assert same_pixels(pixels(manifest_of(result)), pixels(url, {"root0": str(tmp_path / "moved")}))


@pytest.mark.usefixtures("ray_local")
def test_keys_of_the_command_line_say_how_the_copy_is_stored(published: Path, tmp_path: Path) -> None:
    own = [sample for shard in range(3) for sample in tiles(shard)]
    overview = geotiff(ground(5, 1, 6, 6))
    columns = {
        "id": [f"{number}" for number in range(len(own))],
        "product": [said.get("source_id") for _, _, said in own],
        "image": [image for _, image, _ in own],
        "overview": [overview for _ in own],  # read as a fourth band, unless members are named
    }
    (tmp_path / "copy").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "copy/part.parquet")
    more = ("archive.members=[image]", "archive.fields={source_id: product}")
    result = applied(published, tmp_path / "copy", tmp_path / "workspace", *more)
    assert result["by"]["source_id"] == result["found"] > 0
    assert verify(manifest_of(result), deep=True)["problems"] == []
    config = ManifestReader(manifest_of(result)).header["content"]["config"]["archive"]
    assert (config["members"], config["fields"]) == (["image"], {"source_id": "product"})
