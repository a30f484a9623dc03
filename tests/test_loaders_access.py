"""The cost model against a count by hand, and against its own promise: the choice is never dearer than a pass."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.manifests.access import HEADER, LOCAL, OBJECT_STORE, Store, plan_reads, ranges, reads_of_manifest
from curation.manifests.schema import MANIFEST_SCHEMA
from curation.storage import CHUNK

members = st.lists(st.tuples(st.integers(1, 5_000_000), st.booleans()), min_size=1, max_size=60)


def tar(sizes: list[int]) -> tuple[np.ndarray, int]:
    """Offsets of members of these sizes, and the size of their tar."""
    steps = HEADER + -(-np.array(sizes, np.int64) // HEADER) * HEADER
    return np.cumsum(steps) - steps + HEADER, int(steps.sum()) + 2 * HEADER


def plan(shards: list[list[tuple[int, bool]]], store: Store) -> dict:
    columns: dict[str, list] = {"shard": [], "offset": [], "size": [], "whole": []}
    for number, shard in enumerate(shards):
        offsets, whole = tar([size for size, _ in shard])
        for offset, (size, kept) in zip(offsets.tolist(), shard, strict=True):
            if kept:
                for name, value in zip(columns, (f"root0/{number}", offset, size, whole), strict=True):
                    columns[name].append(value)
    kinds = (pa.string(), pa.int64(), pa.int64(), pa.int64())
    arrays = [pa.array(values, kind) for values, kind in zip(columns.values(), kinds, strict=True)]
    return plan_reads(*arrays, store=store)


def by_hand(shard: list[tuple[int, bool]], gap: int) -> tuple[int, int]:
    """Bytes and requests of ranged reads, one sample after the other."""
    offsets, _ = tar([size for size, _ in shard])
    spans: list[list[int]] = []
    for offset, (size, kept) in zip(offsets.tolist(), shard, strict=True):
        if kept:
            piece = [offset - HEADER, offset + size]
            if spans and piece[0] - spans[-1][-1] <= gap:
                spans[-1] += piece
            else:
                spans.append(piece)
    size = requests = 0
    for span in spans:
        windows: dict[int, list[int]] = {}
        for start, stop in zip(span[::2], span[1::2], strict=True):
            windows.setdefault((start - span[0]) // CHUNK, []).extend((start, stop))
        requests += len(windows)
        size += sum(window[-1] - window[0] for window in windows.values())
    return size, requests


@settings(deadline=None)
@given(st.lists(members, min_size=1, max_size=4), st.sampled_from([LOCAL, OBJECT_STORE]))
def test_bytes_and_requests_are_those_counted_by_hand(shards, store):
    result = plan(shards, store)
    counted = [by_hand(shard, store.gap) for shard in shards]
    assert result["ranged"]["bytes"] == sum(size for size, _ in counted)
    assert result["ranged"]["requests"] == sum(requests for _, requests in counted)
    whole = [tar([size for size, _ in shard])[1] for shard in shards if any(kept for _, kept in shard)]
    assert result["sequential"]["bytes"] == sum(whole)
    assert result["sequential"]["requests"] == sum(-(-size // CHUNK) for size in whole)
    assert result["samples"] == sum(kept for shard in shards for _, kept in shard)
    assert result["kept_bytes"] == sum(size for shard in shards for size, kept in shard if kept)


@settings(deadline=None)
@given(st.lists(members, min_size=1, max_size=4), st.sampled_from([LOCAL, OBJECT_STORE]))
def test_the_choice_is_never_dearer(shards, store):
    result = plan(shards, store)
    best = min(result["ranged"]["seconds"], result["sequential"]["seconds"])
    assert result["chosen"]["seconds"] <= best + 1e-5
    assert result["chosen"]["shards_ranged"] + result["chosen"]["shards_sequential"] == result["shards"]


def test_the_order_of_the_rows_does_not_matter():
    offset = np.array([512, 4096, 900_000, 30_000_000, 512, 99_000])
    shard = np.array(["a", "a", "a", "a", "b", "b"])
    size, whole = np.full(6, 1000), np.where(shard == "a", 40_000_000, 200_000)
    mixed = np.array([3, 5, 0, 4, 2, 1])
    results = [
        plan_reads(*(pa.array(column[order]) for column in (shard, offset, size, whole)))
        for order in (np.arange(6), mixed)
    ]
    assert results[0] == results[1]


def test_small_tiles_are_read_through_and_large_ones_picked_out():
    draw = np.random.default_rng(0)
    small = plan([[(20_000, bool(k)) for k in draw.random(10_000) < 0.15]], OBJECT_STORE)
    large = plan([[(5_000_000, bool(k)) for k in draw.random(1000) < 0.15]], OBJECT_STORE)
    assert small["ranged"]["bytes"] > 0.8 * small["sequential"]["bytes"]
    assert large["chosen"]["bytes"] < 0.16 * large["sequential"]["bytes"]
    assert large["chosen"]["seconds"] < 0.2 * large["sequential"]["seconds"]


def test_materialising_pays_exactly_after_the_epochs_named():
    draw = np.random.default_rng(1)
    result = plan([[(50_000, bool(k)) for k in draw.random(10_000) < 0.15]], OBJECT_STORE)
    epochs, once = result["pays_after_epochs"], result["materialising_seconds"]
    each, after = result["chosen"]["seconds"], result["materialised"]["seconds"]
    assert epochs * each > once + epochs * after
    assert (epochs - 1) * each <= once + (epochs - 1) * after
    assert plan([[(3_000_000, True)] * 5], LOCAL)["pays_after_epochs"] is None or epochs < 10


def test_a_folder_costs_one_request_a_sample_either_way():
    nulls = pa.array([None, None], pa.int64())
    result = plan_reads(pa.array(["r/f", "r/f"]), nulls, pa.array([1000, 3000]), pa.array([9999, 9999]))
    for way in ("ranged", "sequential", "chosen"):
        assert (result[way]["bytes"], result[way]["requests"]) == (4000, 2)


def test_tiles_of_one_image_are_read_and_written_with_it_once():
    offset, size, whole = [512, 512, 512, 9_000_000, 9_000_000], [4000] * 5, [10_000_000] * 5
    image = ["a", "a", "a", "b", "b"]
    tiles = plan_reads(*map(pa.array, (["s"] * 5, offset, size, whole)), image=pa.array(image))
    images = plan_reads(*map(pa.array, (["s"] * 2, offset[2:4], size[2:4], whole[2:4])))
    assert tiles == {**images, "samples": 5}
    loose = pa.array([None] * 5, pa.int64())
    reads = plan_reads(pa.array(["s"] * 5), loose, pa.array(size), pa.array(whole), image=pa.array(image))
    assert (reads["ranged"]["requests"], reads["ranged"]["bytes"]) == (2, 8000)


def test_a_manifests_tiles_count_by_their_image_or_where_windows_are_read_by_their_pixels():
    def row(shard: str, key: str, offset: int | None, side: int | None = None) -> dict:
        window = side and {"row": 0, "column": int(key[-5:]), "height": side, "width": side}
        return {"shard": shard, "key": key, "offset": offset, "size": 5000, "window": window}

    def cost(scenes: bool, *rows: dict) -> tuple[int, int]:
        schema = pa.schema([MANIFEST_SCHEMA.field(n) for n in ("shard", "key", "offset", "size", "window")])
        table = pa.Table.from_pylist(list(rows), schema)
        ranged = reads_of_manifest(table, {row["shard"]: 90_000 for row in rows}, 6, scenes, OBJECT_STORE)["ranged"]
        return ranged["requests"], ranged["bytes"]

    tiles = ("k_r00000_c00000", "k_r00000_c00100", "k_r00000_c123456")
    assert cost(False, *(row("r/a.tar", key, 512, 100) for key in tiles)) == (1, 5000 + HEADER)
    assert cost(False, *(row("r/loose", key, None, 100) for key in tiles)) == (1, 5000)
    assert cost(False, *(row("r/a.parquet", key, None, 100) for key in tiles)) == (1, 5000)
    assert cost(True, *(row("r/scene", key, None, 100) for key in tiles)) == (3, 3 * 100 * 100 * 6)
    assert cost(False, *(row("r/a.zarr", key, None, 100) for key in tiles)) == (3, 3 * 100 * 100 * 6)
    assert cost(False, *(row("r/a.tar", key, 512 + i) for i, key in enumerate(tiles))) == (1, 5000 + HEADER + 2)


def test_seconds_follow_the_formula():
    store = Store(latency=0.2, bandwidth=1e6, parallel=4)
    result = plan([[(1_000_000, True), (10_000_000, False), (1_000_000, True)]], store)
    assert store.gap == 50_000
    assert result["ranged"]["requests"] == 2
    assert result["ranged"]["seconds"] == pytest.approx(2 * 0.2 / 4 + (2_000_000 + 2 * HEADER) / 1e6)


def test_a_request_is_bounded():
    start = np.arange(1000, dtype=np.int64) * 100_000
    first = ranges(start, start + 100_000, gap=10)
    sizes = np.diff(np.append(first, 1000)) * 100_000
    assert sizes.max() <= CHUNK + 100_000
    assert len(first) == -(-1000 * 100_000 // CHUNK)


def test_a_file_that_goes_back_begins_a_new_request():
    start = np.array([5000, 0, 1000, 900], np.int64)
    assert ranges(start, start + 800, gap=1000).tolist() == [0, 1, 3]


def test_nothing_kept_costs_nothing():
    empty = pa.array([], pa.int64())
    result = plan_reads(pa.array([], pa.string()), empty, empty, empty)
    assert result["samples"] == result["shards"] == result["ranged"]["requests"] == 0
    assert result["pays_after_epochs"] is None
