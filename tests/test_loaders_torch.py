"""Every kept sample reaches training once: whatever the ranks and workers, and wherever it was stopped."""

import io
import json
import math
import tarfile
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from curation.errors import AccessError, RequestError
from curation.manifests.loaders.torch import TorchSamples
from tests.kept import Archive, write_archive, write_header


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    return write_archive(tmp_path_factory.mktemp("torch"), shards=4, size=1500)


def dataset(archive: Archive, **options: Any) -> TorchSamples:
    return TorchSamples(str(archive.manifest), **{"rank": 0, "world_size": 1, **options})


def ids(batches: Any) -> list[list[str]]:
    return [batch["sample_id"] for batch in batches]


@pytest.mark.parametrize(
    ("ranks", "workers", "pad"),
    [(1, 0, True), (1, 2, True), (2, 0, True), (2, 2, True), (4, 0, True), (4, 2, True), (2, 2, False), (4, 0, False)],
)
def test_ranks_and_workers_share_the_kept_set_equally(archive, ranks, workers, pad):
    parts = []
    for rank in range(ranks):
        samples = dataset(archive, rank=rank, world_size=ranks, pad=pad, shuffle=16)
        parts.append(sum(ids(samples.loader(8, workers)), []))
        assert len(parts[-1]) == len(samples)
    total = len(archive.ids)
    each = math.ceil(total / ranks) if pad else total // ranks
    assert [len(part) for part in parts] == [each] * ranks
    given = Counter(sum(parts, []))
    if pad:
        assert sorted(given) == archive.ids
        assert given.total() - total < ranks
    else:
        assert given.keys() <= set(archive.ids)
        assert set(given.values()) == {1}
        assert total - given.total() < ranks


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("members", ["all", "image"])
def test_bytes_are_those_of_the_archive(archive, workers, members):
    loader = DataLoader(dataset(archive, members=members), batch_size=None, num_workers=workers)
    given = {sample["sample_id"]: sample["files"] for sample in loader}
    truth = archive.files
    if members == "image":
        truth = {name: {"png": files["png"]} for name, files in truth.items()}
    assert given == truth


def test_columns_come_along_and_nulls_collate(archive):
    samples = list(dataset(archive))
    assert {name["sample_id"]: name["rank"] for name in samples} == archive.ranks
    for sample in samples:
        assert sample["label"] == (f"class{sample['rank'] % 3}" if sample["rank"] % 4 else "")
        assert math.isnan(sample["weight"]) if sample["rank"] % 2 else sample["weight"] == 2.0
    batch = next(iter(dataset(archive).loader(8)))
    assert batch["rank"].dtype == torch.int64
    assert [set(files) <= {"png", "json", "cls"} for files in batch["files"]] == [True] * 8


def test_epochs_differ_and_come_back(archive):
    samples = dataset(archive, shuffle=50)
    orders = []
    for epoch in (0, 1, 0):
        samples.set_epoch(epoch)
        orders.append([sample["sample_id"] for sample in samples])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == archive.ids


def test_without_shuffling_it_is_the_manifests_order(archive):
    samples = dataset(archive, shuffle=0)
    assert [sample["sample_id"] for sample in samples] == samples.manifest.table()["sample_id"].to_pylist()


def test_a_budget_is_the_first_by_rank(archive):
    loader = dataset(archive, budget=23).loader(4, 2)
    assert len(loader) == 6
    assert {archive.ranks[name] for name in sum(ids(loader), [])} == set(range(23))


@pytest.mark.parametrize(("workers", "stop"), [(0, 4), (2, 1), (2, 4), (3, 7)])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_going_on_in_mid_epoch_is_as_if_never_stopped(archive, workers, stop):
    def start() -> Any:
        loader = dataset(archive, rank=1, world_size=2, shuffle=20).loader(4, workers)
        loader.set_epoch(2)
        return loader

    whole = list(start())
    first = start()
    before = list(islice(first, stop))
    state = json.loads(json.dumps(first.state_dict()))
    second = start()
    second.load_state_dict(state)
    second.set_epoch(2)
    after = list(second)
    assert ids(before + after) == ids(whole)
    assert [batch["files"] for batch in before + after] == [batch["files"] for batch in whole]
    assert len(ids(after)) == len(first) - stop
    second.set_epoch(3)
    assert sorted(sum(ids(second), [])) != []
    assert len(list(second)) == len(second)


def test_a_plain_iteration_goes_on_at_any_sample(archive):
    whole = [sample["sample_id"] for sample in dataset(archive)]
    for stop in (0, 1, 13, len(whole)):
        samples = dataset(archive)
        before = [sample["sample_id"] for sample in islice(samples, stop)]
        fresh = dataset(archive)
        fresh.load_state_dict(samples.state_dict())
        assert before + [sample["sample_id"] for sample in fresh] == whole
        assert [sample["sample_id"] for sample in fresh] == whole


def test_a_state_of_another_order_is_refused(archive):
    state = dataset(archive).loader(4, 2).state_dict()
    others = [
        ({"seed": 1}, 4, 2, "seed"),
        ({"budget": 5}, 4, 2, "budget"),
        ({}, 5, 2, "batch_size"),
        ({}, 4, 0, "work"),
    ]
    for options, batch, workers, name in others:
        with pytest.raises(RequestError, match=f"taken with {name}"):
            dataset(archive, **options).loader(batch, workers).load_state_dict(state)


def test_a_position_that_only_workers_know_is_not_made_up(archive):
    samples = dataset(archive)
    next(iter(DataLoader(samples, batch_size=4, num_workers=2)))
    with pytest.raises(RequestError, match="dataset.loader"):
        samples.state_dict()


def test_an_epoch_reaches_workers_that_stay(archive):
    loader = dataset(archive, shuffle=50).loader(8, 2, persistent_workers=True)
    first = ids(loader)
    loader.set_epoch(1)
    second = ids(loader)
    assert first != second
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == archive.ids


def test_rank_and_world_size_come_from_the_environment(archive, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    by_environment = [sample["sample_id"] for sample in TorchSamples(str(archive.manifest))]
    assert by_environment == [sample["sample_id"] for sample in dataset(archive, rank=1, world_size=2)]
    for wrong in ({"rank": 2, "world_size": 2}, {"rank": 0}):
        with pytest.raises(RequestError, match="rank"):
            TorchSamples(str(archive.manifest), **wrong)


def test_pixels_have_the_archives_bands_and_dtype(tmp_path):
    archive = write_archive(tmp_path, shards=1, samples=12, loose=0, catalog=False)
    write_header(archive.manifest, {"root0": str(archive.root)}, bands=["red", "green", "blue"], dtype="uint8")
    pixels = np.random.default_rng(0).integers(0, 255, (12, 8, 9, 3), np.uint8)
    pixels[::2] = pixels[::2, ..., :1]
    _overwrite_images(archive, [tile if i % 2 else tile[..., 0] for i, tile in enumerate(pixels)])  # half of them grey
    for batch in dataset(archive, decode=True, shuffle=0).loader(4):
        assert batch["pixels"].shape[1:] == (3, 8, 9)
        assert batch["pixels"].dtype == torch.uint8
        assert batch["mask"].all()
        for i, index in enumerate(batch["index"].tolist()):
            assert (batch["pixels"][i].numpy() == pixels[index].transpose(2, 0, 1)).all()


def test_an_image_that_no_longer_decodes_is_named(archive):
    with pytest.raises(AccessError, match="sample 's0.*has changed"):
        list(dataset(archive, decode=True))


def test_bands_in_several_files_need_all_of_them(tmp_path):
    archive = write_archive(tmp_path, shards=1, samples=3, share=1, loose=0)
    write_header(archive.manifest, {}, config={"archive": {"members": ["B02.tif", "B03.tif"]}})
    with pytest.raises(RequestError, match="needs members='all'"):
        dataset(archive, decode=True, members="image")


def _overwrite_images(archive: Archive, pixels: list[np.ndarray]) -> None:
    """Put real PNGs of the same length in the place of the invented ones."""
    (path,) = archive.root.rglob("*.tar")
    with tarfile.open(path) as tar:
        places = [(member.offset_data, member.size) for member in tar if member.name.endswith(".png")]
    content = bytearray(path.read_bytes())
    for (offset, size), tile in zip(places, pixels, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(tile).save(buffer, "PNG")
        content[offset : offset + size] = buffer.getvalue().ljust(size, b"\0")
    path.write_bytes(content)
