"""The kept samples as a Ray Data set: exactly those, in one order however they are read, from any position."""

import pytest

from curation.manifests.loaders.ray_data import ray_dataset
from tests.kept import Archive, write_archive


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    return write_archive(tmp_path_factory.mktemp("ray"), shards=5)


def rows(archive: Archive, **options) -> list[dict]:
    return ray_dataset(str(archive.manifest), **options).take_all()


@pytest.mark.usefixtures("ray_local")
def test_each_kept_sample_comes_once_with_its_files(archive):
    given = rows(archive)
    assert sorted(row["sample_id"] for row in given) == archive.ids
    for row in given:
        files = {row["suffix"]: row["image"]} | {other["suffix"]: other["data"] for other in row["others"]}
        assert files == archive.files[row["sample_id"]]
        assert row["rank"] == archive.ranks[row["sample_id"]]


@pytest.mark.usefixtures("ray_local")
def test_the_order_is_the_epochs_and_goes_on_at_any_sample(archive):
    whole = [row["sample_id"] for row in rows(archive, members="image")]
    assert [row["sample_id"] for row in rows(archive, members="image")] == whole
    assert [row["sample_id"] for row in rows(archive, members="image", epoch=1)] != whole
    for seen in (17, len(whole)):
        assert [row["sample_id"] for row in rows(archive, members="image", seen=seen)] == whole[seen:]


@pytest.mark.usefixtures("ray_local")
def test_ranks_share_a_budget_equally(archive):
    parts = [rows(archive, budget=31, members="image", rank=rank, world_size=4) for rank in range(4)]
    assert [len(part) for part in parts] == [8] * 4
    assert {row["rank"] for part in parts for row in part} == set(range(31))
