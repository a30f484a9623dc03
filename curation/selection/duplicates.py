"""Near-duplicates from catalog columns alone: no pixels are read here.

A pair is looked at if both rows lie in one cluster or in two clusters of which
one lists the other among its neighbours. The signature proposes, the patch
confirms; rows without a patch (vectors brought in from elsewhere) are compared
with each other by their embeddings, from a stricter threshold. Two tiles without
texture look alike wherever they lie: where both footprints are known, these must
show the same ground. Groups are stars:
every member was itself confirmed against its representative, so that no chain of
small steps joins different places.

Three steps, each a pure function whose result depends neither on how clusters are
spread over partitions nor on the order of rows:

1. `within_clusters(rows)`, for any set of whole clusters: greedy, best row first.
2. `across_clusters(rows, within, neighbours, first, stop)`, for a range of clusters,
   with the rows of `halo(neighbours, first, stop)` beside its own. A pair of clusters
   belongs to the range that holds its lower one.
3. `groups_from_pairs(pairs)`, once, over all that 1 and 2 gave.

`find_duplicates` is the three in one process.

Bounds: time grows with leaders x rows of a cluster (or pair of neighbours), in
single precision and at most `BLOCK` rows of each side at a time: what has more is cut in
halves at the median of the signature's widest coordinate, and pairs that a cut
separates are not seen. A row that a better one of its cluster has absorbed is
compared no further with its own cluster; across clusters one of a pair must be a
leader, so that pairs stay few where thousands of tiles are the same water.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curation.scoring import likeness
from curation.scoring.signature import NOISE, PATCH_BYTES
from curation.selection.footprints import boxes

THRESHOLD = 0.9  # similarity of two patches from which they are copies
EMBEDDING_THRESHOLD = 0.99  # cosine from which rows without patches are copies
BLOCK = 50_000  # rows compared with each other at most

RADIUS = 3.2  # distance of two signatures beyond which no patch is compared
FLAT_LEVEL = 4.0  # how far the mean levels of two tiles without texture may lie apart, of 255
LEVEL_PER_POWER = 80.0  # and how much more for each squared level of texture (its standard deviation)
MOST_LEVEL = 80.0  # and in all: gain and offset of 15 % each
SAME_GROUND = 1 / 8  # how far the centres of two flat tiles may lie apart, of their mean extent along that axis
FLAT_CONTRAST = 1.0  # levels of texture (standard deviation) above which no tile can be flat

STRIPE = 256  # rows whose distances are computed at once
CHUNK = 2048  # pairs confirmed at once
PATCHES = 512  # pairs of patches aligned at once

COLUMNS = (
    "sample_id",
    "valid_fraction",
    "cloud_fraction",
    "entropy",
    "source_id",
    "label",
    "caption",
    "time",
    "footprint",
    "license",
    "signature",
    "patch",
    "embedding",
)
"""Catalog columns that `rows` holds, beside ``cluster`` int32 and, if wanted, ``first`` bool: rows that go before all
others (required, or representatives already). ``embedding`` may be left out where every row has a patch."""

PAIR_SCHEMA = pa.schema(
    [
        pa.field("better", pa.string(), nullable=False),  # sample_id
        pa.field("worse", pa.string(), nullable=False),
        pa.field("better_quality", pa.int64(), nullable=False),  # see quality()
        pa.field("worse_quality", pa.int64(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),
        pa.field("by_embedding", pa.bool_(), nullable=False),  # there was no patch
        pa.field("inside", pa.bool_(), nullable=False),  # of one cluster: a leader and a member of its star
    ]
)
GROUP_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("duplicate_of", pa.string(), nullable=False),  # sample_id of the group's representative
        pa.field("similarity", pa.float32(), nullable=False),  # to the representative
        pa.field("by_embedding", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Limits:
    """From which similarity on two rows are copies."""

    patch: float = THRESHOLD
    embedding: float = EMBEDDING_THRESHOLD


def find_duplicates(rows: pa.Table, neighbours: NDArray[np.int32] | None = None, limits: Limits = Limits()) -> pa.Table:
    """All duplicates among ``rows``, in one process.

    Args:
        rows: `COLUMNS` and ``cluster``.
        neighbours: ``(clusters, n)`` the nearest other clusters of each; without, clusters are not compared.
        limits: similarities from which rows are copies.

    Returns:
        `GROUP_SCHEMA`: one row a duplicate, by sample_id; representatives and single rows are not listed.
    """
    pairs = within_clusters(rows, limits)
    if neighbours is not None:
        pairs = pa.concat_tables([pairs, across_clusters(rows, pairs, neighbours, 0, len(neighbours), limits)])
    return groups_from_pairs(pairs)


def similarities(
    a: pa.Table, i: NDArray[np.intp], b: pa.Table, j: NDArray[np.intp], limits: Limits = Limits()
) -> NDArray[np.float64]:
    """How alike the search would find the rows a[i] and b[j], were they to meet in it.

    Args:
        a: ``sample_id``, ``signature``, ``patch`` and ``footprint`` of `COLUMNS`; every row has a patch.
        i: ``(n,)`` rows of ``a``.
        b: as ``a``.
        j: ``(n,)`` rows of ``b``.
        limits: similarities from which rows are copies.

    Returns:
        ``(n,)`` float64; 0 where it would not have looked, and perhaps also below the limit.
    """
    one, other = (
        _with_patches(table.append_column("quality", pa.array(np.zeros(table.num_rows, np.int64))), limits)
        for table in (a, b)
    )
    return np.where(_same_ground(one.ground[i], other.ground[j]), _similarities(one, i, other, j), 0)


def halo(neighbours: NDArray[np.int32], first: int, stop: int) -> NDArray[np.int32]:
    """The clusters outside ``first <= c < stop`` whose rows `across_clusters` needs for that range, sorted."""
    upper = _cluster_pairs(neighbours, first, stop)[:, 1]
    return np.unique(upper[upper >= stop])


def within_clusters(rows: pa.Table, limits: Limits = Limits()) -> pa.Table:
    """Confirmed pairs (leader, absorbed row) of each cluster in ``rows``, whose clusters are whole.

    Best row first, each row that no better one has absorbed becomes a leader and
    absorbs its copies. Returns `PAIR_SCHEMA`.
    """
    found = []
    for _, group in _groups(rows):
        for kind in _kinds(group, limits):
            found += [_absorb(kind.take(part)) for part in _split(kind.vectors)]
    return pa.concat_tables([PAIR_SCHEMA.empty_table(), *found])


def across_clusters(
    rows: pa.Table, within: pa.Table, neighbours: NDArray[np.int32], first: int, stop: int, limits: Limits = Limits()
) -> pa.Table:
    """Confirmed pairs of neighbouring clusters of which the lower one is in ``first <= c < stop``.

    Args:
        rows: the whole clusters of the range and of its `halo` (more does no harm).
        within: what `within_clusters` gave for at least these clusters.
        neighbours: ``(clusters, n)`` the nearest other clusters of each.
        first: first cluster of the range.
        stop: the cluster after its last.
        limits: similarities from which rows are copies.

    Returns:
        `PAIR_SCHEMA`; at least one row of each pair is a leader of its own cluster.
    """
    absorbed = within["worse"]
    kinds = {
        cluster: [
            (kind, pc.invert(pc.is_in(kind.ids, absorbed)).to_numpy(zero_copy_only=False))
            for kind in _kinds(group, limits)
        ]
        for cluster, group in _groups(rows)
    }
    found = []
    for low, high in _cluster_pairs(neighbours, first, stop).tolist():
        for a, leads_a in kinds.get(low, []):
            for b, leads_b in kinds.get(high, []):
                if a.by_embedding == b.by_embedding:
                    found.append(_compare(a, leads_a, b, leads_b))
    return pa.concat_tables([PAIR_SCHEMA.empty_table(), *found])


def groups_from_pairs(pairs: pa.Table) -> pa.Table:
    """Star groups: best row first, each row not yet absorbed absorbs the copies confirmed against it.

    A leader of its own cluster falls to a row of another cluster only if that one was
    confirmed against all its members too: else they would be left without a representative.

    Args:
        pairs: `PAIR_SCHEMA`, all pairs of the archive, in any order.

    Returns:
        `GROUP_SCHEMA`, sorted by sample_id.
    """
    pairs = pairs.sort_by(
        [("better_quality", "descending"), ("better", "ascending"), ("worse_quality", "descending")]
        + [("worse", "ascending")]
    )
    better, worse, rows = _codes(pairs)
    pairs_left = np.flatnonzero(_members_follow(better, worse, pairs["inside"].to_numpy(), rows))
    absorbed = np.zeros(rows, dtype=bool)
    taken = []
    for pair, one, other in zip(
        pairs_left.tolist(), better[pairs_left].tolist(), worse[pairs_left].tolist(), strict=True
    ):
        if not absorbed[one] and not absorbed[other]:
            absorbed[other] = True
            taken.append(pair)
    found = pairs.take(pa.array(taken, pa.int64()))
    columns = [found["worse"], found["better"], found["similarity"], found["by_embedding"]]
    return pa.Table.from_arrays(columns, schema=GROUP_SCHEMA).sort_by("sample_id")


def _codes(pairs: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The rows of each pair as numbers, and how many rows there are."""
    ids = pa.chunked_array([*pairs["better"].chunks, *pairs["worse"].chunks], pa.string()).combine_chunks()
    coded = ids.dictionary_encode()
    codes = coded.indices.to_numpy().astype(np.int64)
    return codes[: pairs.num_rows], codes[pairs.num_rows :], len(coded.dictionary)


def _members_follow(
    better: NDArray[np.int64], worse: NDArray[np.int64], inside: NDArray[np.bool_], rows: int
) -> NDArray[np.bool_]:
    """Which pairs stay: those in a cluster, and those across whose better row covers all members of the worse one."""
    leader = np.full(rows, -1)
    leader[worse[inside]] = better[inside]
    members = np.bincount(better[inside], minlength=rows)
    ends = np.concatenate([better[~inside], worse[~inside]]), np.concatenate([worse[~inside], better[~inside]])
    led = leader[ends[1]] >= 0
    keys, counts = np.unique(ends[0][led] * rows + leader[ends[1][led]], return_counts=True)
    wanted = better * rows + worse
    place = np.searchsorted(keys, wanted)
    there = np.append(keys, -1)[place] == wanted
    covered = np.where(there, np.append(counts, 0)[place], 0)
    return np.asarray(inside | (covered == members[worse]))


def quality(rows: pa.Table) -> NDArray[np.int64]:
    """What makes a row the better one of two copies, as one number (the higher the better; ties go by sample_id).

    In this order: ``first``; valid fraction; share of clear sky (unknown counts as
    none); how many metadata columns are filled; entropy.
    """
    filled = sum(
        np.asarray(rows[name].is_valid(), dtype=np.int64)
        for name in ("source_id", "label", "caption", "time", "footprint", "license")
    )
    first = np.asarray(rows["first"], dtype=np.int64) if "first" in rows.column_names else np.int64(0)
    clear = 1 - _floats(rows["cloud_fraction"], 1)
    parts = [
        (_steps(_floats(rows["valid_fraction"], 0), 16), 16),
        (_steps(clear, 16), 16),
        (filled, 3),
        (_steps(_floats(rows["entropy"], 0) / 8, 20), 20),
    ]
    total = first
    for part, bits in parts:
        total = (total << bits) | part
    return np.asarray(total, dtype=np.int64)


@dataclass(frozen=True)
class _Rows:
    """Rows that can be compared with each other, best first."""

    ids: pa.Array
    quality: NDArray[np.int64]
    vectors: NDArray[np.float32]  # signatures, or embeddings of unit length
    patches: likeness.Patches | None
    ground: NDArray[np.float64]  # (n, 4) of flat tiles, see _flat_ground; NaN where it does not count
    radius: float
    threshold: float

    @property
    def by_embedding(self) -> bool:
        return self.patches is None

    def take(self, part: NDArray[np.intp]) -> "_Rows":
        """The rows ``part``, in that order; the spectra of their patches are not taken along."""
        patches = None if self.patches is None else likeness.Patches(self.patches.data[part])
        ids, ground = self.ids.take(pa.array(part)), self.ground[part]
        return _Rows(ids, self.quality[part], self.vectors[part], patches, ground, self.radius, self.threshold)


def _groups(rows: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each cluster, best first."""
    rows = rows.append_column("quality", pa.array(quality(rows)))
    rows = rows.sort_by([("cluster", "ascending"), ("quality", "descending"), ("sample_id", "ascending")])
    clusters = rows["cluster"].to_numpy()
    edges = [0, *(np.flatnonzero(np.diff(clusters)) + 1).tolist(), len(clusters)]
    for start, stop in pairwise(edges if len(clusters) else []):
        yield int(clusters[start]), rows.slice(start, stop - start)


def _kinds(group: pa.Table, limits: Limits) -> list[_Rows]:
    """A cluster's rows with a patch, and those without; either may be missing."""
    with_patch = pc.and_(group["patch"].is_valid(), group["signature"].is_valid())
    kinds = []
    some = group.filter(with_patch)
    if some.num_rows:
        kinds.append(_with_patches(some, limits))
    some = group.filter(pc.invert(with_patch))
    if some.num_rows:
        vectors = _matrix(some["embedding"])
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        radius = float(np.sqrt(max(2 - 2 * limits.embedding, 0)))
        kinds.append(_rows(some, vectors, None, radius, limits.embedding))
    return kinds


def _with_patches(table: pa.Table, limits: Limits) -> _Rows:
    patches = np.frombuffer(b"".join(table["patch"].to_pylist()), np.uint8).reshape(-1, PATCH_BYTES)
    return _rows(table, _matrix(table["signature"]), likeness.Patches(patches), RADIUS, limits.patch)


def _rows(
    table: pa.Table, vectors: NDArray[np.float32], patches: likeness.Patches | None, radius: float, threshold: float
) -> _Rows:
    ids = table["sample_id"].combine_chunks()
    ground = _flat_ground(table["footprint"], vectors, patches)
    return _Rows(ids, table["quality"].to_numpy(), vectors, patches, ground, radius, threshold)


def _flat_ground(
    footprint: pa.ChunkedArray, vectors: NDArray[np.float32], patches: likeness.Patches | None
) -> NDArray[np.float64]:
    """Longitude and latitude of the centre, and how far from it either is still the same ``(n, 4)``, in degrees.

    NaN if the tile has texture, or where nobody knows.
    """
    ground = np.full((len(vectors), 4), np.nan)
    if patches is None:
        return ground
    faint = np.flatnonzero(vectors[:, -1] < np.log(FLAT_CONTRAST + 2 * NOISE))
    flat = faint[patches.flat(faint)]
    place = footprint.combine_chunks().take(pa.array(flat))
    west, south, east, north = boxes(place).T
    width = east - west
    reach = SAME_GROUND / 2  # the other tile's is added; the shifts that a patch follows lie well within
    ground[flat] = np.stack([west + width / 2, (south + north) / 2, reach * width, reach * (north - south)], axis=1)
    return ground


def _absorb(rows: _Rows) -> pa.Table:
    """Greedy stars of rows that stand best first: each row still free absorbs the free copies after it."""
    n = len(rows.vectors)
    leader = np.full(n, -1)
    similarity = np.zeros(n)

    def settle(waiting: list[tuple[int, NDArray[np.intp]]]) -> None:
        counts = [len(after) for _, after in waiting]
        first = np.repeat(np.array([i for i, _ in waiting], dtype=np.intp), counts)
        second = np.concatenate([np.empty(0, np.intp), *(after for _, after in waiting)])
        alike = _similarities(rows, first, rows, second)
        for (i, after), stop in zip(waiting, np.cumsum(counts).tolist(), strict=True):
            each = alike[stop - len(after) : stop]
            copies = (each >= rows.threshold) & (leader[after] < 0)
            if leader[i] < 0:
                leader[after[copies]], similarity[after[copies]] = i, each[copies]

    for start in range(0, n, STRIPE):
        near = _near(rows.vectors[start : start + STRIPE], rows.vectors[start:], rows.radius)
        _keep_same_ground(near, rows.ground[start : start + STRIPE], rows.ground[start:])
        waiting: list[tuple[int, NDArray[np.intp]]] = []
        pairs = 0
        for i in (start + np.flatnonzero(near.sum(axis=1) > 1)).tolist():  # each is near itself
            after = np.flatnonzero(near[i - start, i - start + 1 :]) + i + 1
            after = after[leader[after] < 0]
            if leader[i] < 0 and len(after):
                waiting.append((i, after))
                pairs += len(after)
            if pairs >= CHUNK:
                settle(waiting)
                waiting, pairs = [], 0
        settle(waiting)
    worse = np.flatnonzero(leader >= 0)
    return _pairs(rows, leader[worse], rows, worse, similarity[worse], inside=True)


def _compare(a: _Rows, leads_a: NDArray[np.bool_], b: _Rows, leads_b: NDArray[np.bool_]) -> pa.Table:
    """Confirmed pairs of two clusters' rows of which at least one is a leader."""
    found = [PAIR_SCHEMA.empty_table()]
    for part in _split(np.concatenate([a.vectors, b.vectors]), 2 * BLOCK):
        in_a, in_b = part[part < len(a.vectors)], part[part >= len(a.vectors)] - len(a.vectors)
        some_a, some_b, leads = a.take(in_a), b.take(in_b), leads_b[in_b]
        for start in range(0, len(in_a), STRIPE):
            near = _near(some_a.vectors[start : start + STRIPE], some_b.vectors, a.radius)
            near &= leads_a[in_a[start : start + STRIPE], None] | leads
            _keep_same_ground(near, some_a.ground[start : start + STRIPE], some_b.ground)
            i, j = np.nonzero(near)
            i += start
            alike = _similarities(some_a, i, some_b, j)
            good = alike >= a.threshold
            if good.any():
                found.append(_pairs(some_a, i[good], some_b, j[good], alike[good], inside=False))
    return pa.concat_tables(found)


def _pairs(
    a: _Rows, i: NDArray[np.intp], b: _Rows, j: NDArray[np.intp], similarity: NDArray[np.float64], inside: bool
) -> pa.Table:
    """`PAIR_SCHEMA` of the pairs (a[i], b[j]), the better row first."""
    ids = [a.ids.take(pa.array(i)), b.ids.take(pa.array(j))]
    qualities = [a.quality[i], b.quality[j]]
    swap = (qualities[1] > qualities[0]) | (
        (qualities[1] == qualities[0]) & pc.less(ids[1], ids[0]).to_numpy(zero_copy_only=False)
    )
    turned = pa.array(swap)
    return pa.table(
        [
            pc.if_else(turned, ids[1], ids[0]),
            pc.if_else(turned, ids[0], ids[1]),
            np.where(swap, qualities[1], qualities[0]),
            np.where(swap, qualities[0], qualities[1]),
            similarity.astype(np.float32),
            np.full(len(i), a.by_embedding),
            np.full(len(i), inside),
        ],
        schema=PAIR_SCHEMA,
    )


def _near(x: NDArray[np.float32], y: NDArray[np.float32], radius: float) -> NDArray[np.bool_]:
    """``(len(x), len(y))``: which vectors may lie within the radius of each other.

    In single precision, with room for its rounding: `_similarities` looks again.
    """
    squares = np.einsum("ij,ij->i", y, y)
    distance = (-2 * x) @ y.T
    distance += squares
    limit = radius**2 + 1e-5 * float(squares.max(initial=0) + 1) - np.einsum("ij,ij->i", x, x)
    return np.asarray(distance <= limit[:, None])


def _keep_same_ground(near: NDArray[np.bool_], a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    """Unmark the pairs of flat tiles that show different ground."""
    i, j = np.flatnonzero(~np.isnan(a[:, 0])), np.flatnonzero(~np.isnan(b[:, 0]))
    if len(i) and len(j):
        near[np.ix_(i, j)] &= _same_ground(a[i, None], b[j])


def _same_ground(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether what `_flat_ground` gave is of one place, or may be."""
    lon = np.abs(a[..., 0] - b[..., 0])
    lon = np.minimum(lon, np.abs(360 - lon))  # across the antimeridian
    lat = np.abs(a[..., 1] - b[..., 1])
    return np.asarray(~((lon > a[..., 2] + b[..., 2]) | (lat > a[..., 3] + b[..., 3])))


def _similarities(a: _Rows, i: NDArray[np.intp], b: _Rows, j: NDArray[np.intp]) -> NDArray[np.float64]:
    """How alike the rows a[i] and b[j] are: 1 the same, 0 beyond the radius, or of other levels."""
    out = np.zeros(len(i))
    for start in range(0, len(i), CHUNK):
        part = slice(start, start + CHUNK)
        out[part] = _cosines(a, i[part], b, j[part]) if a.by_embedding else _likeness(a, i[part], b, j[part])
    return out


def _cosines(a: _Rows, i: NDArray[np.intp], b: _Rows, j: NDArray[np.intp]) -> NDArray[np.float64]:
    return np.asarray((a.vectors[i].astype(np.float64) * b.vectors[j]).sum(axis=1))


def _likeness(a: _Rows, i: NDArray[np.intp], b: _Rows, j: NDArray[np.intp]) -> NDArray[np.float64]:
    """Likeness of the patches where signatures and levels allow it, else 0."""
    assert a.patches is not None and b.patches is not None
    out = np.zeros(len(i))
    contrast = np.exp(np.minimum(a.vectors[i, -1], b.vectors[j, -1]).astype(np.float64)) - 2 * NOISE
    apart = np.abs(a.patches.levels[i] - b.patches.levels[j]).max(axis=1)
    allowed = np.minimum(FLAT_LEVEL + LEVEL_PER_POWER * contrast**2, MOST_LEVEL)
    some = np.flatnonzero(apart <= allowed)
    distance = ((a.vectors[i[some]].astype(np.float64) - b.vectors[j[some]]) ** 2).sum(axis=1)
    some = some[distance <= a.radius**2]
    for start in range(0, len(some), PATCHES):
        part = some[start : start + PATCHES]
        out[part] = likeness.likeness(a.patches, i[part], b.patches, j[part], a.threshold)
    return out


def _split(vectors: NDArray[np.float32], limit: int = BLOCK) -> list[NDArray[np.intp]]:
    """Rows in parts of at most ``limit``, by halving at the median of the coordinate that varies most."""
    parts, done = [np.arange(len(vectors))], []
    while parts:
        part = parts.pop()
        if len(part) <= limit:
            done.append(part)
            continue
        widest = int(vectors[part].astype(np.float64).var(axis=0).argmax())
        order = part[np.argsort(vectors[part, widest], kind="stable")]
        parts += [np.sort(order[len(order) // 2 :]), np.sort(order[: len(order) // 2])]
    return done


def _cluster_pairs(neighbours: NDArray[np.int32], first: int, stop: int) -> NDArray[np.int32]:
    """``(m, 2)`` pairs of neighbouring clusters, the lower one first and in ``first <= c < stop``, sorted."""
    count, n = neighbours.shape
    pairs = np.stack([np.repeat(np.arange(count, dtype=np.int32), n), neighbours.ravel()], axis=1)
    pairs = np.sort(pairs[pairs[:, 1] >= 0], axis=1)
    pairs = pairs[(pairs[:, 0] >= first) & (pairs[:, 0] < stop) & (pairs[:, 0] != pairs[:, 1])]
    return np.unique(pairs, axis=0)


def _matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A column of lists of one length as ``(n, length)`` float32."""
    flat = pc.list_flatten(column).combine_chunks()
    return np.asarray(flat.to_numpy(zero_copy_only=False), dtype=np.float32).reshape(len(column), -1)


def _floats(column: pa.ChunkedArray | pa.Array, missing: float) -> NDArray[np.float64]:
    return np.asarray(pc.fill_null(column.cast(pa.float64()), missing).to_numpy())


def _steps(share: NDArray[np.float64], bits: int) -> NDArray[np.int64]:
    """A share of 1 in whole steps of ``bits`` bits."""
    return np.rint(np.clip(share, 0, 1) * ((1 << bits) - 1)).astype(np.int64)
