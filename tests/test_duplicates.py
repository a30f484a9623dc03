"""Near-duplicates: copies are found, look-alikes are not, and neither order nor partitioning changes a group."""

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.selection import duplicates
from curation.selection.duplicates import (
    GROUP_SCHEMA,
    PAIR_SCHEMA,
    Limits,
    across_clusters,
    find_duplicates,
    groups_from_pairs,
    halo,
    within_clusters,
)
from tests.duplicate_recipes import SIDE, catalog, described, ground, recoded, relit, rows, turned, window

CHAIN = np.array([[1], [0], [1]], np.int32)  # three clusters in a row: 0 - 1 - 2


def groups(found: pa.Table) -> dict[str, str]:
    return dict(zip(found["sample_id"].to_pylist(), found["duplicate_of"].to_pylist(), strict=True))


def copies(scene: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Five copies of a scene's middle window: recoded, shifted, relit, turned, and all of it."""
    tile = window(scene)
    shift = rng.integers(-4, 5, (2, 2))
    mixed = relit(turned(window(scene, *shift[1]), int(rng.integers(8))), rng.uniform(0.87, 1.15), rng.uniform(-15, 15))
    return [
        recoded(tile, 60),
        window(scene, *shift[0]),
        relit(tile, rng.uniform(0.85, 1.15), rng.uniform(-20, 20)),
        turned(tile, int(rng.integers(1, 8))),
        recoded(mixed, int(rng.integers(60, 96))),
    ]


@pytest.fixture(scope="module")
def archive() -> pa.Table:
    """80 places, half of them with five copies, spread over three clusters."""
    rng = np.random.default_rng(0)
    names, tiles, entropy, cluster = [], [], [], []
    for place in range(80):
        scene = ground(place)
        for k, tile in enumerate([window(scene), *(copies(scene, rng) if place % 2 else [])]):
            names.append(f"{place:02d}.{k}")
            tiles.append(tile)
            entropy.append(8.0 - k)  # the original is the best
            cluster.append(int(rng.choice([0, 1] if place % 3 else [1, 2])))
    return catalog(tiles, names, entropy=entropy, cluster=cluster)


def test_all_copies_are_found_and_nothing_else(archive: pa.Table) -> None:
    expected = {name: name[:3] + "0" for name in archive["sample_id"].to_pylist() if not name.endswith(".0")}
    assert groups(find_duplicates(archive, CHAIN)) == expected


def test_order_of_rows_changes_nothing(archive: pa.Table) -> None:
    expected = find_duplicates(archive, CHAIN)
    for seed in range(3):
        shuffled = archive.take(pa.array(np.random.default_rng(seed).permutation(archive.num_rows)))
        assert find_duplicates(shuffled, CHAIN).equals(expected)


@pytest.mark.parametrize("edges", [[0, 3], [0, 1, 3], [0, 2, 3], [0, 1, 2, 3]])
def test_partitions_of_clusters_change_nothing(archive: pa.Table, edges: list[int]) -> None:
    clusters = archive["cluster"].to_numpy()

    def part(wanted: Sequence[int]) -> pa.Table:
        return archive.filter(pa.array(np.isin(clusters, wanted)))

    ranges = list(zip(edges, edges[1:], strict=False))
    within = pa.concat_tables([within_clusters(part(range(*limits))) for limits in ranges])
    across = [
        across_clusters(part([*range(*limits), *halo(CHAIN, *limits)]), within, CHAIN, *limits) for limits in ranges
    ]
    assert groups_from_pairs(pa.concat_tables([within, *across])).equals(find_duplicates(archive, CHAIN))


def test_only_neighbouring_clusters_are_compared() -> None:
    tile = window(ground(1))
    table = catalog([tile] * 2, ["a", "b"], cluster=[0, 2])
    assert groups(find_duplicates(table, CHAIN)) == {}
    assert groups(find_duplicates(table, np.array([[1], [0], [0]], np.int32))) == {"b": "a"}  # 2 lists 0, 0 does not 2
    assert halo(CHAIN, 0, 1).tolist() == [1]
    assert halo(CHAIN, 1, 3).tolist() == []


def test_tiles_that_overlap_by_half_are_no_copies() -> None:
    scene = ground(2, side=3 * SIDE)
    tiles = [scene[:, i : i + SIDE, j : j + SIDE] for i in range(0, 193, SIDE // 2) for j in range(0, 193, SIDE // 2)]
    assert groups(find_duplicates(catalog(tiles, [f"{i:02d}" for i in range(len(tiles))]))) == {}


def test_flat_tiles_are_copies_only_at_the_same_level() -> None:
    levels = {"dark a": 40, "dark b": 41, "bright a": 60, "bright b": 61}
    tiles = [np.full((3, SIDE, SIDE), level, np.uint8) for level in levels.values()]
    tiles.append(np.concatenate([tiles[0][:2], tiles[0][2:] + np.uint8(20)]))  # another colour
    found = groups(find_duplicates(catalog(tiles, [*levels, "bluer"])))
    assert found == {"dark b": "dark a", "bright b": "bright a"}


def box(west: float, south: float = 10.0, side: float = 0.01) -> dict[str, float]:
    return {"west": west, "south": south, "east": west + side - 360 * (west + side > 180), "north": south + side}


@pytest.mark.parametrize("clusters", [[0, 0], [0, 1]])
@pytest.mark.parametrize(
    ("one", "other", "copies"),
    [
        (box(5.0), box(5.0), True),
        (box(5.0), box(5.001), True),  # shifted by less than a patch can follow
        (box(5.0), box(5.005), False),  # half of each is the other's
        (box(5.0), box(5.0, 10.005), False),
        (box(5.0), box(60.0), False),
        (box(179.995), box(-179.996 - 0.009), True),  # on the antimeridian, as both sides of it would write it
        (box(179.995), box(-179.9), False),
        (box(5.0), None, True),  # nobody knows
        (None, None, True),
        (box(5.0, side=0), box(5.0, side=0), True),  # points
        (box(5.0, side=0), box(5.1, side=0), False),
    ],
)
def test_flat_tiles_of_different_ground_are_no_copies(
    one: dict[str, float] | None, other: dict[str, float] | None, copies: bool, clusters: list[int]
) -> None:
    tiles = [np.full((1, SIDE, SIDE), 50, np.uint8)] * 2
    table = catalog(tiles, ["a", "b"], footprint=[one, other], cluster=clusters)
    assert groups(find_duplicates(table, CHAIN)) == ({"b": "a"} if copies else {})


def test_texture_counts_more_than_a_footprint() -> None:
    table = catalog([window(ground(9))] * 2, ["a", "b"], footprint=[box(5.0), box(60.0)])
    assert groups(find_duplicates(table)) == {"b": "a"}


def speckle(rng: np.random.Generator, side: int, looks: int, level: float, texture: float) -> np.ndarray:
    """Amplitudes of a radar's speckle (Goodman 1976) over even ground, or over hills of one kind."""
    hills = np.repeat(np.repeat(rng.normal(0, texture, (side // 8, side // 8)), 8, 0), 8, 1)
    power = np.exp(hills) * rng.gamma(looks, 1 / looks, (side, side))
    return (level * np.sqrt(power)).round().clip(0, 255).astype(np.uint8)[None]


@pytest.mark.parametrize(
    ("side", "looks", "level", "texture"),
    [
        (64, 1, 60, 0.0),
        (128, 4, 30, 0.0),
        (256, 1, 90, 0.5),
        (256, 1, 20, 0.0),
        (256, 16, 40, 0.0),  # calm water: a fifth of a level in the patch
        (512, 4, 20, 0.0),  # a tenth
    ],
)
def test_speckle_is_told_from_other_speckle_in_all_orientations(
    side: int, looks: int, level: float, texture: float
) -> None:
    rng = np.random.default_rng(side)
    tiles = [speckle(rng, side, looks, level, texture) for _ in range(20)]
    names = [f"{place:02d}.{symmetry}" for place in range(20) for symmetry in range(8)]
    found = groups(find_duplicates(catalog([turned(t, s) for t in tiles for s in range(8)], names)))
    group = np.array([found.get(name, name) for name in names])
    place = np.array([name[:2] for name in names])
    i, j = np.triu_indices(len(names), 1)
    same, merged = place[i] == place[j], group[i] == group[j]
    assert (same & merged).sum() / merged.sum() >= 0.98  # precision
    assert (same & merged).sum() / same.sum() >= 0.98  # recall


def test_a_chain_of_small_steps_does_not_join_its_ends() -> None:
    scene = ground(4, side=2 * SIDE)
    steps = {f"{4 * k:02d}": scene[:, 20 + 4 * k : 20 + 4 * k + SIDE, 20 : 20 + SIDE] for k in range(12)}
    table = catalog(list(steps.values()), list(steps))
    found = groups(find_duplicates(table))
    assert 3 < len(found) < len(steps)
    assert not set(found) & set(found.values())  # who stands for others stands for himself
    assert all(abs(int(one) - int(other)) <= 8 for one, other in found.items())
    for one, other in found.items():  # each was confirmed against its representative itself
        pair = table.filter(pa.array(np.isin(table["sample_id"].to_pylist(), [one, other])))
        assert len(groups(find_duplicates(pair))) == 1


@pytest.mark.parametrize(
    "columns",
    [
        {"first": [False, True], "valid_fraction": [1.0, 0.5]},
        {"valid_fraction": [0.9, 1.0], "cloud_fraction": [0.0, 0.5]},
        {"cloud_fraction": [0.4, 0.1], "label": ["forest", None]},
        {"cloud_fraction": [None, 0.9]},
        {"label": [None, "forest"], "entropy": [6.0, 5.0]},
        {"entropy": [4.0, 5.0]},
        {"entropy": [None, 0.1]},
    ],
)
def test_the_best_of_a_group_stays(columns: dict[str, list[object]]) -> None:
    tiles = [window(ground(5))] * 2
    assert groups(find_duplicates(catalog(tiles, ["a", "b"], **columns))) == {"a": "b"}
    assert groups(find_duplicates(catalog(tiles, ["a", "b"]))) == {"b": "a"}  # equals: the lower id


def test_without_patches_the_embedding_decides_and_says_so() -> None:
    rng = np.random.default_rng(6)
    vectors = rng.normal(size=(3, 64))
    near = vectors[0] + rng.normal(size=64) * 0.05  # cosine 0.999
    less = vectors[1] + rng.normal(size=64) * 0.3  # cosine 0.96
    embedding = [list((v / np.linalg.norm(v)).astype(np.float16)) for v in [*vectors, near, less]]
    found = find_duplicates(rows(list("abcde"), embedding=embedding))
    assert groups(found) == {"d": "a"}
    assert found["by_embedding"].to_pylist() == [True]
    assert groups(find_duplicates(rows(list("abcde"), embedding=embedding), limits=Limits(embedding=0.9))) == {
        "d": "a",
        "e": "b",
    }


def test_rows_with_and_without_patches_stand_side_by_side() -> None:
    made, data = described(window(ground(7)))
    vector = [0.6, 0.8]
    table = rows(
        list("abcd"), signature=[list(made)] * 2 + [None] * 2, patch=[data] * 2 + [None] * 2, embedding=[vector] * 4
    )
    found = find_duplicates(table)
    assert groups(found) == {"b": "a", "d": "c"}
    assert found["by_embedding"].to_pylist() == [False, True]


def test_a_cluster_that_is_cut_still_shows_its_exact_copies(archive: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", 30)
    names = archive["sample_id"].to_pylist()
    again = archive.set_column(0, "sample_id", pa.array([name + "again" for name in names]))
    found = groups(find_duplicates(pa.concat_tables([archive, again]), CHAIN))
    assert all(name + "again" in found for name in names)


def test_thousands_of_tiles_of_one_water_are_one_group_and_soon_found() -> None:
    made, data = described(np.full((1, SIDE, SIDE), 50, np.uint8))
    names = [f"{i:05d}" for i in range(6000)]
    table = rows(names, signature=[list(made)] * len(names), patch=[data] * len(names))
    table = table.set_column(table.schema.get_field_index("cluster"), "cluster", pa.array([0, 1] * 3000, pa.int32()))
    start = time.process_time()
    found = groups(find_duplicates(table, CHAIN))
    assert time.process_time() - start < 20
    assert set(found.values()) == {"00000"}
    assert len(found) == len(names) - 1


def test_thousands_of_tiles_of_one_water_at_known_places_are_soon_passed() -> None:
    made, data = described(np.full((1, SIDE, SIDE), 50, np.uint8))
    names, places = [f"{i:05d}" for i in range(6000)], [box(i / 100 - 30, (i % 7) * 0.005) for i in range(6000)]
    table = rows(names, signature=[list(made)] * len(names), patch=[data] * len(names), footprint=places)
    start = time.process_time()
    assert groups(find_duplicates(table)) == {}
    assert time.process_time() - start < 20


def stars(names: list[str], leader: dict[str, str], across: set[frozenset[str]]) -> dict[str, str]:
    """The definition of star groups, the slow way; names stand best first."""
    found: dict[str, str] = {}
    for one in names:
        if one in found:
            continue
        for other in names[names.index(one) + 1 :]:
            members = [member for member, by in leader.items() if by == other]
            confirmed = frozenset((one, other)) in across
            if other not in found and (
                leader.get(other) == one
                or (confirmed and all(frozenset((one, member)) in across for member in members))
            ):
                found[other] = one
    return found


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_groups_are_the_stars_that_the_definition_gives(data: st.DataObject) -> None:
    quality = sorted(data.draw(st.lists(st.integers(0, 3), min_size=2, max_size=12)), reverse=True)
    names = [f"{i:02d}" for i in range(len(quality))]  # best first: equals by id
    cluster = {name: data.draw(st.integers(0, 2)) for name in names}
    leader: dict[str, str] = {}
    for k, name in enumerate(names):
        able = [other for other in names[:k] if other not in leader and cluster[other] == cluster[name]]
        if able and data.draw(st.booleans()):
            leader[name] = data.draw(st.sampled_from(able))
    able_pairs = [(a, b) for k, a in enumerate(names) for b in names[k + 1 :] if cluster[a] != cluster[b]]
    across = data.draw(st.sets(st.sampled_from(able_pairs))) if able_pairs else set()
    inside = {(by, member) for member, by in leader.items()}
    listed = data.draw(st.permutations(sorted(across | inside)))
    table = pa.table(
        [
            pa.array([a for a, _ in listed], pa.string()),
            pa.array([b for _, b in listed], pa.string()),
            pa.array([quality[int(a)] for a, _ in listed], pa.int64()),
            pa.array([quality[int(b)] for _, b in listed], pa.int64()),
            pa.array([0.95] * len(listed), pa.float32()),
            pa.array([False] * len(listed), pa.bool_()),
            pa.array([pair in inside for pair in listed], pa.bool_()),
        ],
        schema=PAIR_SCHEMA,
    )
    found = groups_from_pairs(table)
    assert found.schema == GROUP_SCHEMA
    assert found["sample_id"].to_pylist() == sorted(found["sample_id"].to_pylist())
    assert groups(found) == stars(names, leader, {frozenset(pair) for pair in across})
    assert set(leader) <= set(groups(found))  # nobody is left without a representative


def test_nothing_in_nothing_out() -> None:
    assert find_duplicates(rows([]), CHAIN).num_rows == 0
    assert find_duplicates(catalog([window(ground(8))], ["a"]), CHAIN).equals(GROUP_SCHEMA.empty_table())
