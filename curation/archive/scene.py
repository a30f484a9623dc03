"""A scene as a shard: its bands, in one file or several, are cut into tiles by windowed reads.

GeoTIFFs are read by blocks (:mod:`~curation.archive.blocks`): each strip or
tile is fetched and decoded once however the windows overlap, and what is held
does not grow with the height of the scene. JPEG 2000 and the other formats are
decoded whole, and then cut.
"""

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from curation.archive.blocks import PIECE, BlockFile, Fault, Range, open_blocks
from curation.archive.decode import decode_file, names_in, valid_pixels
from curation.archive.grid import Span, resample_part, same_ground
from curation.archive.names import SIDECARS, extension, is_categorical, is_text, printable
from curation.archive.sample import Effort, Image, Member, RawSample, Rejection, Wanted, Window
from curation.archive.settings import ArchiveConfig
from curation.archive.shards import Shard, scene_key
from curation.archive.tables import Sieve, gathered
from curation.archive.tiling import windows
from curation.errors import AccessError, BadSample
from curation.storage import IN_FLIGHT, FileInfo, Folder

HEAD = 1 << 16  # bytes of an image's beginning that tell its size


def read_scene(
    folder: Folder,
    shard: Shard,
    settings: ArchiveConfig,
    only: Sequence[Wanted] | None = None,
    sieve: Sieve | None = None,
) -> Iterator[RawSample | Rejection]:
    """The tiles of a scene, row by row, numbered from 0; without ``archive.tile.size`` the scene as one sample.

    Each file is an image of the sample, by its band's name; those of other
    resolutions are brought to the grid (``archive.grid``, else the finest
    band's), masks by their nearest pixel. A scene whose bands are missing, are
    damaged in their header, or do not lie on the same ground is one rejection;
    so is all of it that lies behind the end of a truncated file. A damaged
    block spoils the tiles that touch it.

    Raises:
        AccessError: a file vanished, or is not of its listed size.
    """
    key = scene_key(shard.path)
    if not is_text(key):
        yield Rejection(printable(key), 0, "read", "BadName", f"the name {printable(key)} is not UTF-8")
        return
    if sieve is not None:
        data = {} if sieve.by_key else _sidecars(folder, shard)
        if not sieve.allowed([key], [gathered(data, shard.said)])[0]:
            return
    try:
        scene = _open_scene(folder, shard, settings, _decode_whole)
        chosen = scene.windows(settings, only)
    except BadSample as error:
        yield Rejection(key, 0, "read", error.kind, error.message)
        return
    data = _sidecars(folder, shard)
    members = [
        Member(f"{band.name}.{extension(band.file.path)}" if band.name else _base(band.file), None, *_place(band.file))
        for band in scene.bands
    ] + [Member(_base(file), None, *_place(file)) for file in shard.files if _is_sidecar(file)]
    index, rest = 0, None
    try:
        for window, found in _read_windows(folder, scene, chosen, settings.max_pixels):
            tile = window if settings.tile.size is not None else None
            if not isinstance(found, _Broken):
                yield RawSample(key, index, members, data, found, dict(shard.said), None, tile)
            elif found.fault.cut and only is None:
                rest = rest or ("TruncatedImage", f"{found.message}; from {window.suffix[1:]} on, tiles cannot be read")
                continue
            else:
                kind = "TruncatedImage" if found.fault.cut else "BadImage"
                yield Rejection(key + (tile.suffix if tile else ""), index, "read", kind, found.message)
            index += 1
    except BadSample as error:
        rest = error.kind, error.message
    if rest:
        yield Rejection(key, index, "read", *rest)


def survey_scene(folder: Folder, shard: Shard, settings: ArchiveConfig) -> Effort:
    """What reading a scene takes: its header, and the blocks that its tiles touch.

    Raises:
        BadSample: it makes no sample.
    """
    scene = _open_scene(folder, shard, settings, _measure_whole)
    chosen = scene.windows(settings, None)
    by_blocks = [band.raster for band in scene.bands if isinstance(band.raster, BlockFile)]
    spans = [
        span for _ in _planned(scene, chosen, settings.max_pixels) for raster in by_blocks for span in raster.skip()
    ]
    whole = [band.file.size for band in scene.bands if isinstance(band.raster, WholeFile)]
    whole += [min(band.file.size, PIECE) for band in scene.bands]  # what tells that it is a TIFF, or none
    whole += [file.size for file in shard.files if _is_sidecar(file)]
    size = sum(stop - start for start, stop in spans) + sum(whole)
    return Effort(len(chosen), size, len(spans) + len(whole) + len(shard.files), True)


@dataclass(slots=True)
class _Broken:
    """Why a window cannot be read."""

    file: FileInfo
    fault: Fault

    @property
    def message(self) -> str:
        """For the quarantine."""
        return f"{_base(self.file)}: {self.fault.message}"


def _base(file: FileInfo) -> str:
    return file.path.rpartition("/")[2]


def _place(file: FileInfo) -> tuple[int, str]:
    return file.size, file.path


def _sidecars(folder: Folder, shard: Shard) -> dict[str, bytes]:
    return {extension(file.path): folder.read(file.path) for file in shard.files if _is_sidecar(file)}


def _is_sidecar(file: FileInfo) -> bool:
    return extension(file.path) in SIDECARS


# the scene


class WholeFile:
    """An image that is decoded whole; looks like a :class:`~curation.archive.blocks.BlockFile`."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.bands, self.nodata, self.place = image.bands, image.nodata, image.place
        self.shape: tuple[int, int] = image.pixels.shape[1], image.pixels.shape[2]
        self.dtype, self.samples = image.pixels.dtype, len(image.pixels)

    def plan(self, rows: Range, columns: Sequence[Range], max_pixels: int) -> None:
        """Nothing is to be fetched."""

    def fetch(self) -> None:
        """Nothing is to be fetched."""

    def part(self, rows: Range, columns: Range, into: NDArray[Any] | None = None) -> Image | Fault:
        """A part, in memory of its own or where it is to go."""
        mask = self.image.mask
        if into is not None:
            into[...] = self.image.pixels[:, slice(*rows), slice(*columns)]
        return replace(
            self.image,
            pixels=self.image.pixels[:, slice(*rows), slice(*columns)].copy() if into is None else into,
            mask=None if mask is None else mask[slice(*rows), slice(*columns)],
        )


Opener = Callable[[Folder, FileInfo, ArchiveConfig], WholeFile]


@dataclass(slots=True, eq=False)
class _Band:
    """One file of a scene."""

    name: str
    file: FileInfo
    raster: BlockFile | WholeFile
    method: str


@dataclass(slots=True)
class _Scene:
    """The files to read, the one whose grid counts, and those that are a band each of one shape, dtype and nodata."""

    bands: list[_Band]
    grid: _Band
    alike: list[_Band]

    def windows(self, settings: ArchiveConfig, only: Sequence[Wanted] | None) -> list[Window]:
        """The windows to read, from the top down."""
        height, width = self.grid.raster.shape
        size = settings.tile.size
        if size is None:
            return [Window(0, 0, height, width)]
        if only is None:
            return list(windows(height, width, size, settings.tile.stride or size))
        wanted = [one.window for one in only if one.window is not None]
        for w in wanted:
            if w.row + w.height > height or w.column + w.width > width:
                raise BadSample("read", "BadShape", f"{w.suffix[1:]} lies outside of {width} x {height} pixels")
        return sorted(wanted, key=lambda w: (w.row, w.column))


def _open_scene(folder: Folder, shard: Shard, settings: ArchiveConfig, whole: Opener) -> _Scene:
    """Open the files of a scene, those that are not read by blocks by ``whole``.

    Raises:
        BadSample: they make no sample.
    """
    pairs = [(name, file) for name, file in zip(shard.bands, shard.files, strict=True) if not _is_sidecar(file)]
    chosen = _chosen(pairs, settings)
    gone = next((file for _, file in chosen if file.size < 0), None)
    if gone:
        raise BadSample("read", "MissingAsset", f"{folder.public(gone.path)} is listed but not there")
    if not chosen:
        raise BadSample("read", "NoImage", "it has no asset that holds pixels")
    bands = [_open_band(folder, name, file, settings, whole) for name, file in chosen]
    grid = _grid(bands, settings.grid)
    if grid is None:
        found = next(((n, f) for n, f in pairs if settings.grid in (n, f"{n}.{extension(f.path)}")), None)
        if found is None or found[1].size < 0:
            raise BadSample("read", "WrongBands", f"it has no band {settings.grid} (archive.grid)")
        grid = _open_band(folder, *found, settings, whole)
    for band in bands:
        if not same_ground(band.raster.shape, band.raster.place, grid.raster.shape, grid.raster.place):
            raise BadSample("read", "BandMismatch", _mismatch(band, grid))
    if settings.bands is not None and settings.band_names is None:
        _check_bands(bands, settings.bands)
    plain = [band for band in bands if not is_categorical(band.name)]
    kinds = {(band.raster.shape, band.raster.dtype, band.raster.nodata, band.raster.samples) for band in plain}
    alike = kinds == {(grid.raster.shape, grid.raster.dtype, grid.raster.nodata, 1)} and len(plain) > 1
    return _Scene(bands, grid, plain if alike and settings.members is None else [])


def _chosen(pairs: Sequence[tuple[str, FileInfo]], settings: ArchiveConfig) -> list[tuple[str, FileInfo]]:
    """The files to read, by ``archive.members`` or ``archive.bands``, under the names that these use; and masks.

    Raises:
        BadSample: ``MissingMember``, one is not there.
    """
    if settings.members is not None:
        files = {f"{name}.{extension(file.path)}" if name else extension(file.path): file for name, file in pairs}
        files |= {name: file for name, file in pairs if name}
        missing = [member for member in settings.members if member not in files]
        if missing:
            raise BadSample("read", "MissingMember", f"it has no file {missing[0]} (archive.members)")
        return [(member, files[member]) for member in settings.members]
    named = [(name or extension(file.path), file) for name, file in pairs]
    if settings.bands is None or settings.band_names is not None:
        return named
    wanted = {name for name, _ in named for band in settings.bands if band == name or band.startswith(f"{name}.")}
    if len(wanted) < len({band.partition(".")[0] for band in settings.bands}):
        return named  # names that only the files tell
    return [pair for pair in named if pair[0] in wanted or is_categorical(pair[0])]


def _check_bands(bands: Sequence[_Band], wanted: Sequence[str]) -> None:
    """See that the chosen bands are there, so that where one is missing this is said once, and not of each tile."""
    have = bands[0].raster.bands
    if len(bands) > 1:
        have = tuple(name for band in bands for name in names_in(band.name, band.raster.bands))
    elif have == ("gray",):  # it may stand for three
        return
    missing = [band for band in wanted if band not in have]
    if missing:
        raise BadSample("read", "WrongBands", f"it has no band {missing[0]}; it has {', '.join(have)}"[:200])


def _decode_whole(folder: Folder, file: FileInfo, settings: ArchiveConfig) -> WholeFile:
    data = folder.read(file.path)
    if len(data) != file.size:
        text = f"{len(data)} bytes came where the listing said {file.size}"
        raise AccessError(f"{folder.public(file.path)}: {text}")
    return WholeFile(decode_file(_base(file), data, settings))


def _measure_whole(folder: Folder, file: FileInfo, settings: ArchiveConfig) -> WholeFile:
    """An image of the right size, by its header where that tells, without pixels."""
    try:
        with PIL.Image.open(io.BytesIO(folder.read_range(file.path, 0, min(file.size, HEAD)))) as image:
            width, height = image.size
    except (OSError, ValueError, PIL.Image.DecompressionBombError):
        return _decode_whole(folder, file, settings)
    return WholeFile(Image(np.broadcast_to(np.uint8(0), (1, height, width)), ("",)))


def _open_band(folder: Folder, name: str, file: FileInfo, settings: ArchiveConfig, whole: Opener) -> _Band:
    """Open a file.

    Raises:
        BadSample: it is damaged, too large, or none that is read.
    """
    base = _base(file)
    try:
        raster = open_blocks(folder, file, settings.max_pixels) or whole(folder, file, settings)
    except BadSample as error:
        message = error.message if error.message.startswith(base) else f"{base}: {error.message}"
        raise BadSample("read", error.kind, message) from error
    stem = name.rpartition(".")[0] or ("" if f".{name}".lower() == f".{extension(base)}" else name)
    if stem and len(raster.bands) == 1:
        raster.bands = (stem,)
    return _Band(name, file, raster, "nearest" if is_categorical(stem) else settings.resampling)


def _grid(bands: Sequence[_Band], name: str | None) -> _Band | None:
    """The band whose grid counts: the one of that name, else the finest; a mask only where there is nothing else."""
    if name is None:
        return max(bands, key=lambda b: (not is_categorical(b.name), b.raster.shape[0] * b.raster.shape[1]))
    return next((b for b in bands if name in (b.name, b.name.rpartition(".")[0], *b.raster.bands)), None)


def _mismatch(band: _Band, grid: _Band) -> str:
    def said(one: _Band) -> str:
        (height, width), place = one.raster.shape, one.raster.place
        return f"{width} x {height} pixels" + (f", {place.crs[:40]}, {place.bounds(height, width)}" if place else "")

    return f"{band.name} ({said(band)}) does not cover the same ground as {grid.name} ({said(grid)})"[:500]


# the windows


def _read_windows(
    folder: Folder, scene: _Scene, chosen: Sequence[Window], max_pixels: int
) -> Iterator[tuple[Window, dict[str, Image] | _Broken]]:
    """Each window with its images; those of one row are fetched and decoded together."""
    for group in _planned(scene, chosen, max_pixels):
        _fetch(folder, scene.bands)
        for window in group:
            yield window, _cut(scene, window)


def _planned(scene: _Scene, chosen: Sequence[Window], max_pixels: int) -> Iterator[list[Window]]:
    """The windows of a row, of which all files have planned what to fetch."""
    for _, row in itertools.groupby(chosen, key=lambda w: w.row):
        group = list(row)
        for band in scene.bands:
            parts = [_source(band, scene, window) for window in group]
            band.raster.plan((parts[0][0][0], max(rows[1] for rows, _ in parts)), [c for _, c in parts], max_pixels)
        yield group


def _fetch(folder: Folder, bands: Sequence[_Band]) -> None:
    """Fetch what the files have planned; of a remote store several files at once."""
    if folder.local or len(bands) == 1:
        for band in bands:
            band.raster.fetch()
        return
    with ThreadPoolExecutor(min(IN_FLIGHT, len(bands))) as pool:
        list(pool.map(lambda band: band.raster.fetch(), bands))


def _spans(band: _Band, scene: _Scene, window: Window) -> tuple[Span, Span]:
    """A window of the grid in the pixels of a band, along either axis."""
    (have_rows, have_columns), (rows, columns) = band.raster.shape, scene.grid.raster.shape
    return (
        Span(have_rows, rows, window.row, window.row + window.height),
        Span(have_columns, columns, window.column, window.column + window.width),
    )


def _source(band: _Band, scene: _Scene, window: Window) -> tuple[Range, Range]:
    """The pixels of a band that a window is made of."""
    if band.raster.shape == scene.grid.raster.shape:
        return (window.row, window.row + window.height), (window.column, window.column + window.width)
    down, right = _spans(band, scene, window)
    return down.source(band.method), right.source(band.method)


def _cut(scene: _Scene, window: Window) -> dict[str, Image] | _Broken:
    """The images of a window by their names; bands that are alike are one."""
    made: dict[str, Image] = {}
    if scene.alike:
        stack = _stack(scene, window)
        if isinstance(stack, _Broken):
            return stack
        made[extension(scene.alike[0].file.path)] = stack
    for band in scene.bands:
        if band in scene.alike:
            continue
        image = band.raster.part(*_source(band, scene, window))
        if isinstance(image, Fault):
            return _Broken(band.file, image)
        made[band.name] = _on_grid(band, image, scene, window)
    return made


def _stack(scene: _Scene, window: Window) -> Image | _Broken:
    """A window of the bands that are alike."""
    first, masks = scene.alike[0].raster, []
    pixels = np.empty((len(scene.alike), window.height, window.width), first.dtype)
    for i, band in enumerate(scene.alike):
        image = band.raster.part(*_source(band, scene, window), pixels[i : i + 1])
        if isinstance(image, Fault):
            return _Broken(band.file, image)
        if image.mask is not None:
            masks.append(image.mask)
    place = scene.grid.raster.place
    return Image(
        pixels,
        tuple(band.raster.bands[0] for band in scene.alike),
        np.logical_and.reduce(masks) if masks else None,
        first.nodata,
        place and place.window(window.row, window.column),
    )


def _on_grid(band: _Band, image: Image, scene: _Scene, window: Window) -> Image:
    """A window's part of a band, on the grid."""
    raster, (rows, columns) = band.raster, scene.grid.raster.shape
    place = raster.place
    if raster.shape != (rows, columns):
        mask = valid_pixels(image.pixels, image.mask, image.nodata)
        pixels, mask = resample_part(image.pixels, mask, *_spans(band, scene, window), band.method)
        place = place and place.scaled(raster.shape[0] / rows, raster.shape[1] / columns)
        image = Image(pixels, image.bands, mask)
    place = scene.grid.raster.place or place
    return replace(image, bands=raster.bands, place=place and place.window(window.row, window.column))
