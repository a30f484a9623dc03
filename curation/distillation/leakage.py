"""How near synthetic images come to real ones: by embedding, and by SSIM to those that are nearest by it.

Nearness has a measure of its own: how near the real images come to each other.
An image that is nearer to a real one than all but the share
``distill.leakage.quantile`` of the real images are to theirs leaks, by either
measure. A membership test asks the other way about: do the synthetic images
tell which real images were learnt from.

What this shows is that no image is a near-copy of a real one by these two
measures. It is no differential privacy and no bound on what somebody can learn
from the set; and a prototype pulls its images towards one real image by design.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation.archive.sample import Member, Sample
from curation.encoders.base import Encoder
from curation.selection.sampling import mix, split_ids
from curation.storage import IN_FLIGHT

if TYPE_CHECKING:  # it imports Ray
    from curation.catalog.tiles import Tiles

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Pixels = NDArray[np.uint8]

NEAREST = 16  # real images, the nearest by cosine, that SSIM looks at (choice)
SPARE = 8  # more of them are taken from the float32 products, and ordered in float64
BLOCK = 1 << 14  # real vectors that are multiplied at once
SIDE = 128  # SSIM sees images of at most that many pixels a side, the mean of whole blocks (choice)
WINDOW, SIGMA = 11, 1.5  # of SSIM
K1, K2, LEVELS = 0.01, 0.03, 255
BASELINE = 1000  # real images whose nearness to others is the measure (choice)
TESTED = 1000  # images of each kind in the membership test, at most (choice)
CONFIDENCE = 0.95
BINS = 40  # of a histogram


# SSIM


def ssim(one: NDArray[Any], others: NDArray[Any]) -> Doubles:
    """Structural similarity (Wang, Bovik, Sheikh and Simoncelli 2004) of an image to some others.

    A Gaussian window of 11 x 11 and 1.5 pixels, only where it lies in the image whole; the mean over places and bands.

    Args:
        one: (bands, h, w), 0 to 255; 11 pixels a side or more.
        others: (n, bands, h, w).

    Returns:
        float64 (n,), at most 1.
    """
    found: Doubles = _ssim(_Moments(one[None].astype(np.float64)), _Moments(others.astype(np.float64)))[0]
    return found


class _Moments:
    """What SSIM needs to know of images (n, bands, h, w) alone."""

    def __init__(self, images: Doubles) -> None:
        self.images = images
        self.rows, self.columns = (_gauss(side) for side in images.shape[2:])
        self.mean = self.filtered(images)
        self.variance = self.filtered(images**2) - self.mean**2

    def filtered(self, images: Doubles) -> Doubles:
        """Under the window, at each place where that lies inside: a product with a banded matrix a side."""
        found: Doubles = self.rows @ images @ self.columns.T
        return found


def _ssim(ones: _Moments, others: _Moments) -> Doubles:
    """float64 (ones, others)."""
    c1, c2 = (K1 * LEVELS) ** 2, (K2 * LEVELS) ** 2
    rows = []
    for image, mean, variance in zip(ones.images, ones.mean, ones.variance, strict=True):
        covariance = others.filtered(image * others.images) - mean * others.mean
        places = (2 * mean * others.mean + c1) * (2 * covariance + c2)
        places /= (mean**2 + others.mean**2 + c1) * (variance + others.variance + c2)
        rows.append(places.mean(axis=(1, 2, 3)))
    return np.array(rows)


def _gauss(side: int) -> Doubles:
    """(side - 10, side): each row the window at one place."""
    weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / SIGMA) ** 2)
    band = np.zeros((side - WINDOW + 1, side))
    for place, row in enumerate(band):
        row[place : place + WINDOW] = weights / weights.sum()
    return band


def _reduced(images: NDArray[Any]) -> Doubles:
    """(n, bands, h, w) as float64, of at most `SIDE` pixels a side; what fills no block falls off."""
    step = -(-max(images.shape[2:]) // SIDE)
    n, bands, height, width = (*images.shape[:2], *(side // step for side in images.shape[2:]))
    whole = images[:, :, : height * step, : width * step].astype(np.float64)
    found: Doubles = whole.reshape(n, bands, height, step, width, step).mean(axis=(3, 5))
    return found


def views(image: Pixels) -> Pixels:
    """A square image (bands, s, s) turned and mirrored in the eight ways: (8, bands, s, s)."""
    turned = [np.rot90(image, quarter, axes=(1, 2)) for quarter in range(4)]
    return np.stack([*turned, *(view[:, :, ::-1] for view in turned)])


# images


@dataclass(frozen=True)
class Embed:
    """Embeds tiles as the catalog's own encoder embeds samples: real and synthetic ones alike, of one size.

    Attributes:
        encoder: with the catalog's artefact.
        bands: of the archive.
        dtype: of its numbers.
        ranges: float32 (bands, 2), what 0 and 255 stand for in archives that are not of 8 bits.
    """

    encoder: Encoder
    bands: tuple[str, ...]
    dtype: str
    ranges: Floats

    @classmethod
    def of(cls, encoder: Encoder, artefact: Any) -> Embed:
        """By an encoder and the artefact it was built with."""
        return cls(encoder, artefact.bands, artefact.dtype, np.asarray(artefact.arrays["range"], np.float32))

    def __call__(self, tiles: Pixels) -> Floats:
        """uint8 (n, bands, s, s) -> float32 (n, dim), unit length; a row does not depend on the others."""
        found = [np.empty((0, self.encoder.dim), np.float32)]
        for start in range(0, len(tiles), self.encoder.batch):
            batch = tiles[start : start + self.encoder.batch]
            found.append(self.encoder.encode(np.stack([self.encoder.prepare(self._sample(tile)) for tile in batch])))
        return np.concatenate(found)

    def _sample(self, tile: Pixels) -> Sample:
        pixels: NDArray[Any] = tile
        if self.dtype != "uint8":  # which the preparation scales to [0, 1] again
            low, high = self.ranges[:, 0, None, None], self.ranges[:, 1, None, None]
            pixels = low + tile.astype(np.float32) / 255 * (high - low)
        return Sample("", 0, pixels, np.ones(tile.shape[1:], bool), self.bands, Member("", None, 0))


@dataclass(frozen=True)
class Stored:
    """Reads images by their places among all, as numpy indexes an array; of each a range of bytes.

    Attributes:
        tiles: hold them.
        names: shards.
        shard, row: int32 (n,), position in ``names``, and in that shard's catalog file.
    """

    tiles: Tiles
    names: Sequence[str]
    shard: NDArray[np.int32]
    row: NDArray[np.int32]

    def __call__(self, places: Any) -> Pixels:
        """uint8 (n, bands, size, size); of a single place (bands, size, size)."""
        wanted = np.atleast_1d(places)
        found = np.empty((len(wanted), *self.tiles.shape), np.uint8)

        def fetch(number: int) -> None:
            own = np.flatnonzero(self.shard[wanted] == number)
            name, rows = self.names[number], self.row[wanted[own]].astype(np.int64)
            begins = (_first(self.tiles, name) + rows * self.tiles.nbytes).tolist()
            spans = [(begin, begin + self.tiles.nbytes) for begin in begins]
            data = b"".join(self.tiles.folder.read_ranges(self.tiles.path(name), spans))
            found[own] = np.frombuffer(data, np.uint8).reshape(-1, *self.tiles.shape)

        numbers = np.unique(self.shard[wanted]).tolist()
        if self.tiles.folder.local:
            for number in numbers:
                fetch(number)
        else:
            with ThreadPoolExecutor(IN_FLIGHT) as pool:
                list(pool.map(fetch, numbers))
        return found if np.ndim(places) else found[0]


@lru_cache(1 << 16)
def _first(tiles: Tiles, shard: str) -> int:
    """Where in a shard's file its tiles begin, in bytes."""
    return tiles.place(shard)[0]


@dataclass(frozen=True)
class Images:
    """Images that others are held against; arrays, so that processes can share them.

    Attributes:
        ids: bytes S32 (n,), their sample_ids.
        vectors: float16 or float32 (n, dim), unit length.
        read: gives the pixels of some, uint8 (n, bands, s, s), by their places; of a single one (bands, s, s).
    """

    ids: NDArray[np.bytes_]
    vectors: NDArray[Any]
    read: Callable[[Any], Pixels]

    @classmethod
    def held(cls, ids: Sequence[str], pixels: Pixels, embed: Embed) -> Images:
        """Of images that fit the memory, uint8 (n, bands, s, s)."""
        return cls(np.array(ids, "S32"), embed(pixels), pixels.__getitem__)

    def __len__(self) -> int:
        return len(self.ids)


def embed_rows(tiles: Tiles, shard: str, rows: NDArray[Any], embed: Embed, chunk: int = 256) -> NDArray[np.float16]:
    """Vectors of some rows (ascending) of a shard's tiles, float16 (rows, dim), a few tiles at a time."""
    found = []
    for start in range(0, len(rows), chunk):
        some = np.asarray(rows[start : start + chunk])
        first = int(some[0])
        found.append(embed(tiles.read(shard, slice(first, int(some[-1]) + 1))[some - first]).astype(np.float16))
    return np.concatenate(found) if found else np.empty((0, embed.encoder.dim), np.float16)


def drawn(ids: Sequence[str] | NDArray[np.bytes_], seed: int, most: int) -> NDArray[np.int64]:
    """Places of at most so many of some images, ascending: those of the smallest hash of seed and sample_id."""
    texts = np.asarray(ids, "S32").astype("U32")
    upper, lower = split_ids(pa.array(texts.tolist(), pa.string()))
    keys = mix(upper ^ mix(lower ^ mix(np.array([seed % 2**64], np.uint64))))
    return np.sort(np.argsort(keys, kind="stable")[:most])


# nearness


@dataclass(frozen=True)
class Seen:
    """The nearest of some images to one.

    Attributes:
        similarity, nearest: the largest cosine, and whose.
        ssim, ssim_nearest: the largest SSIM among the `NEAREST` by cosine, over the eight ways to turn it, and whose.
    """

    similarity: float
    nearest: str
    ssim: float
    ssim_nearest: str


@dataclass(frozen=True)
class Limits:
    """From where on an image is too near, by either measure; ``None``: never."""

    similarity: float | None
    ssim: float | None

    def leaks(self, seen: Seen) -> bool:
        """Whether it is as near as that."""
        return any(
            limit is not None and value >= limit
            for value, limit in ((seen.similarity, self.similarity), (seen.ssim, self.ssim))
        )

    def as_dict(self) -> dict[str, float] | None:
        """As the manifest's header has them."""
        if self.similarity is None or self.ssim is None:
            return None
        return {"similarity": self.similarity, "ssim": self.ssim}


@dataclass(frozen=True)
class Checker:
    """Finds the nearest of some images to others; the same whatever it is asked at once.

    Attributes:
        images: that are looked through; at least one.
        embed: how others are embedded; None where only these are asked for, by :meth:`among`.
    """

    images: Images
    embed: Embed | None = None

    def look(self, pixels: Pixels) -> list[Seen]:
        """The nearest to each of some images, uint8 (n, bands, s, s), of one size with those looked through."""
        assert self.embed is not None
        return self._find(self.embed(pixels), pixels.__getitem__, np.full(len(pixels), -1))

    def among(self, places: NDArray[np.int64]) -> list[Seen]:
        """The nearest other one to each of these images."""
        vectors = self.images.vectors[places].astype(np.float32)
        return self._find(vectors, lambda i: self.images.read(places[i]), places)

    def _find(self, vectors: Floats, read: Callable[[int], Pixels], own: NDArray[np.int64]) -> list[Seen]:
        """``own``: the place of each one among the images, which does not count; -1: it is none of them."""
        found = []
        for i, near in enumerate(self._nearest(vectors, own)):
            cosine = self._cosines(vectors[i], near)
            order = np.lexsort((near, -cosine))[:NEAREST]
            near, cosine = near[order], cosine[order]
            alike = self._ssim(read(i), near)
            best = int(np.argmax(alike))
            names = [self.images.ids[place].decode() for place in (near[0], near[best])]
            found.append(Seen(float(min(cosine[0], 1.0)), names[0], float(min(alike[best], 1.0)), names[1]))
        return found

    def _nearest(self, vectors: Floats, own: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Places of somewhat more than `NEAREST` images for each vector; memory holds a block of theirs."""
        wanted = NEAREST + SPARE
        places = np.empty((len(vectors), 0), np.int64)
        values = np.empty((len(vectors), 0), np.float32)
        for start in range(0, len(self.images), BLOCK):
            block = self.images.vectors[start : start + BLOCK].astype(np.float32)
            cosine = vectors @ block.T
            here = np.broadcast_to(np.arange(start, start + len(block)), cosine.shape)
            cosine[here == own[:, None]] = -np.inf
            places, values = np.hstack([places, here]), np.hstack([values, cosine])
            best = np.argsort(-values, axis=1, kind="stable")[:, :wanted]
            places, values = np.take_along_axis(places, best, 1), np.take_along_axis(values, best, 1)
        for row, value in zip(places, values, strict=True):
            yield row[np.isfinite(value)]

    def _cosines(self, vector: Floats, places: NDArray[np.int64]) -> Doubles:
        found: Doubles = self.images.vectors[places].astype(np.float64) @ vector.astype(np.float64)
        return found

    def _ssim(self, image: Pixels, places: NDArray[np.int64]) -> Doubles:
        """Of each of these images the largest over the ways to turn ``image``."""
        others = _Moments(_reduced(self.images.read(places)))
        found: Doubles = _ssim(_Moments(_reduced(views(image))), others).max(axis=0)
        return found


# the measure


@dataclass(frozen=True)
class Baseline:
    """How near real images come to each other.

    Attributes:
        similarity, ssim: float64 (n,), of a hashed sample of them.
    """

    similarity: Doubles
    ssim: Doubles

    @classmethod
    def of(cls, seen: Sequence[Seen]) -> Baseline:
        """By what `Checker.among` found."""
        return cls(np.array([one.similarity for one in seen]), np.array([one.ssim for one in seen]))

    def limits(self, quantile: float | None) -> Limits:
        """What the nearest share ``quantile`` of them reach, by each measure alone."""
        if quantile is None or not len(self.ssim):
            return Limits(None, None)
        at = [float(np.quantile(values, 1 - quantile, method="higher")) for values in (self.similarity, self.ssim)]
        return Limits(*at)

    def warnings(self, limits: Limits) -> list[str]:
        """One line where the archive has so many near-copies of its own that copies cannot be told."""
        if limits.ssim is None or limits.ssim < 0.99:
            return []
        return [
            f"so many real images have a near-copy among the others that only an SSIM of {limits.ssim:.4f} or more "
            "counts as too near: near-copies of real images may pass (select.duplicates would thin the archive first)"
        ]


# membership


@dataclass(frozen=True)
class Area:
    """The area under the ROC curve: how often a member scores above another (ties count half).

    Attributes:
        auc, low, high: with its 95 % interval.
        members, others: how many.
    """

    auc: float
    low: float
    high: float
    members: int
    others: int

    @property
    def telling(self) -> bool:
        """Whether the interval leaves out 0.5, what guessing would give."""
        return not self.low <= 0.5 <= self.high


def area(members: Sequence[float] | Doubles, others: Sequence[float] | Doubles) -> Area | None:
    """With the interval of DeLong, DeLong and Clarke-Pearson (1988), by midranks (Sun and Xu 2014).

    Returns:
        ``None`` where either side has fewer than two. Where no member and other overlap the interval has no width.
    """
    x, y = np.asarray(members, np.float64), np.asarray(others, np.float64)
    m, n = len(x), len(y)
    if min(m, n) < 2:
        return None
    both = np.concatenate([x, y])
    among = _midranks(both)
    of_members, of_others = (among[:m] - _midranks(x)) / n, 1 - (among[m:] - _midranks(y)) / m
    auc = float(of_members.mean())
    spread = float(np.sqrt(of_members.var(ddof=1) / m + of_others.var(ddof=1) / n))
    reach = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * spread
    return Area(auc, max(auc - reach, 0.0), min(auc + reach, 1.0), m, n)


def _midranks(values: Doubles) -> Doubles:
    """Ranks from 1, equals sharing their mean."""
    ordered = np.sort(values)
    low, high = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return (low + 1 + high) / 2


@dataclass(frozen=True)
class Membership:
    """Whether nearness to the synthetic images tells real images that were learnt from; each by cosine and by SSIM.

    Attributes:
        training: images that were learnt from against those held out; ``None`` without held-out ones.
        prototypes: prototypes against others that were learnt from.
    """

    training: dict[str, Area] | None
    prototypes: dict[str, Area] | None

    @classmethod
    def of(cls, training: Sequence[Seen], held_out: Sequence[Seen], prototypes: Sequence[Seen]) -> Membership:
        """By what a `Checker` of the synthetic images sees of real ones; no prototype is among ``training``."""
        return cls(_areas(training, held_out), _areas(prototypes, training))


def _areas(members: Sequence[Seen], others: Sequence[Seen]) -> dict[str, Area] | None:
    found = {
        name: area([getattr(one, name) for one in members], [getattr(one, name) for one in others])
        for name in ("similarity", "ssim")
    }
    return {name: one for name, one in found.items() if one is not None} or None


# the account


def account(
    kept: Sequence[Seen], baseline: Baseline, limits: Limits, membership: Membership, dropped: int, lost: int
) -> dict[str, Any]:
    """``leakage.json``: counts, quantiles and histograms, nothing that grows with the images.

    Args:
        kept: of each image that was kept.
        baseline: of the real images.
        limits: that it gave.
        membership: as tested.
        dropped: candidates that were too near.
        lost: prototypes that were left without an image.
    """
    own = Baseline.of(kept)
    measures = {}
    for name in ("similarity", "ssim"):
        synthetic, real = getattr(own, name), getattr(baseline, name)
        both = np.concatenate([synthetic, real])
        low, high = (float(both.min()), float(both.max())) if len(both) else (0.0, 1.0)
        edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
        measures[name] = {
            "limit": getattr(limits, name),
            "edges": edges.tolist(),
            "synthetic": np.histogram(synthetic, edges)[0].tolist(),
            "real": np.histogram(real, edges)[0].tolist(),
            "quantiles": {who: _quantiles(values) for who, values in (("synthetic", synthetic), ("real", real))},
        }
    return {
        "images": len(kept),
        "baseline": len(baseline.ssim),
        "nearest": NEAREST,
        "dropped": dropped,
        "lost": lost,
        "measures": measures,
        "membership": {
            name: found and {measure: vars(one) | {"telling": one.telling} for measure, one in found.items()}
            for name, found in vars(membership).items()
        },
    }


def _quantiles(values: Doubles) -> dict[str, float]:
    if not len(values):
        return {}
    shares = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
    return {f"{share:g}": float(np.quantile(values, share)) for share in shares}
