"""A manifest is opened, counted and read a shard at a time, however it is named and cut into row groups."""

import json
import pickle
import shutil

import pyarrow.parquet as pq
import pytest

from curation.errors import RequestError
from curation.manifests.reading import ManifestReader
from tests.kept import Archive, write_archive


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    return write_archive(tmp_path_factory.mktemp("a b, [c]=d%20"), group=11)


def test_it_is_found_by_file_by_folder_and_by_printed_url(archive):
    json_file = archive.manifest / "manifest.json"
    urls = [archive.manifest, json_file, archive.manifest / "manifest.parquet", json_file.as_uri(), f"{json_file}"]
    assert {ManifestReader(str(url)).num_rows for url in urls} == {len(archive.ids)}


@pytest.mark.parametrize("budget", [None, 1, 20, 40])
def test_shards_and_their_rows_are_those_of_the_table(archive, budget):
    reader = ManifestReader(str(archive.manifest))
    table = pq.read_table(archive.manifest / "manifest.parquet")
    index = reader.shards(budget)
    assert index.names.to_pylist() == sorted(set(table["shard"].to_pylist()))
    rows = []
    for name, first, stop, count in zip(index.names.to_pylist(), index.first, index.stop, index.counts, strict=True):
        part = reader.rows(int(first), int(stop), budget)
        assert set(part["shard"].to_pylist()) <= {name}
        assert part.num_rows == count
        rows += part.to_pylist()
    assert rows == [row for row in table.to_pylist() if budget is None or row["rank"] < budget]


def test_a_budget_takes_the_first_ranks(archive):
    table = ManifestReader(str(archive.manifest)).table(["sample_id"], budget=17)
    assert table.column_names == ["sample_id"]
    assert {archive.ranks[name] for name in table["sample_id"].to_pylist()} == set(range(17))


@pytest.mark.parametrize("budget", [0, -1, 10_000])
def test_a_budget_that_cannot_be_is_refused(archive, budget):
    reader = ManifestReader(str(archive.manifest))
    for call in (reader.shards, lambda number: reader.table(budget=number)):
        with pytest.raises(RequestError, match=f"the manifest keeps {len(archive.ids)} samples"):
            call(budget)


def test_a_reader_goes_to_another_process_by_its_url(archive):
    reader = pickle.loads(pickle.dumps(ManifestReader(str(archive.manifest))))
    assert reader.table().num_rows == len(archive.ids)


def test_what_is_no_manifest_is_refused_in_one_line(archive, tmp_path):
    for place in ("nowhere", "nowhere/manifest.json"):
        with pytest.raises(RequestError, match="no manifest at"):
            ManifestReader(str(tmp_path / place))
    shutil.copytree(archive.manifest, tmp_path / "damaged")
    (tmp_path / "damaged" / "manifest.json").write_text("{")
    with pytest.raises(RequestError, match="no readable manifest"):
        ManifestReader(str(tmp_path / "damaged"))
    (tmp_path / "damaged" / "manifest.json").write_text(json.dumps({"content": {}}))
    table = pq.read_table(archive.manifest / "manifest.parquet")
    pq.write_table(table.drop_columns(["rank"]), tmp_path / "damaged" / "manifest.parquet")
    with pytest.raises(RequestError, match="column 'rank'"):
        ManifestReader(str(tmp_path / "damaged"))


def test_rows_out_of_order_are_refused(archive, tmp_path):
    shutil.copytree(archive.manifest, tmp_path / "mixed")
    table = pq.read_table(archive.manifest / "manifest.parquet")
    pq.write_table(table.sort_by("sample_id"), tmp_path / "mixed" / "manifest.parquet")
    with pytest.raises(RequestError, match="not sorted by shard"):
        ManifestReader(str(tmp_path / "mixed")).shards()


def test_an_unknown_column_is_named(archive):
    with pytest.raises(RequestError, match="no column 'colour'"):
        ManifestReader(str(archive.manifest)).table(["colour"])
