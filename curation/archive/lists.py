"""Lists of scenes: a text file of paths, STAC items, or stac-geoparquet.

A list is read once, before the run. Its root is the longest folder that holds
everything it names, so that the names of shards do not depend on where the
list lies.
"""

import json
import math
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.archive.names import IMAGES, extension, is_categorical, is_text, is_unsafe, printable
from curation.archive.settings import ArchiveConfig
from curation.archive.shards import Shard, group_scenes, shards_of
from curation.errors import RequestError
from curation.storage import FileInfo, Folder, Options, is_local, local_path, public_url

THREADS = 32  # files that are asked for at once
CHECKSUM = "checksum:"  # how the version of a file begins that a list vouches for
GONE = -1  # size of a file that is listed but not there

_IMAGE_TYPES = ("image/tiff", "image/geotiff", "image/vnd.stac.geotiff", "image/jp2", "application/x-geotiff")
_OTHER_ROLES = frozenset({"thumbnail", "overview", "visual", "metadata"})
# Of an item, what are no properties, and properties that speak of the item and not of the scene.
_NO_PROPERTIES = frozenset(
    {"created", "updated", "type", "stac_version", "stac_extensions", "id", "assets", "links", "collection", "bbox"}
)


@dataclass(frozen=True, slots=True)
class _Asset:
    band: str
    url: str
    size: int | None
    version: str


@dataclass(frozen=True, slots=True)
class _Item:
    id: str
    assets: tuple[_Asset, ...]
    said: dict[str, Any]


def read_list(
    root: str, folder: Folder, name: str, settings: ArchiveConfig | None
) -> tuple[Folder, list[Shard]] | None:
    """The shards that a file lists; ``None`` where it is no list.

    Args:
        root: the root's name.
        folder: where the list lies.
        name: its own name there.
        settings: how files make shards, and which assets count (``archive.bands``, ``archive.members``).

    Returns:
        The root's folder, and the shards below it: of a text file what its files make; of STAC a scene an item.

    Raises:
        RequestError: the list cannot be read, or names things in several stores, twice or by signed URLs.
    """
    kind, where = extension(name), folder.public(name)
    if kind == "txt":
        return _from_text(root, folder, name, settings)
    if kind in ("json", "geojson"):
        features = _features(folder.read(name), where)
    elif kind == "parquet":
        with folder.open(folder.info(name)) as file:
            try:
                table = pq.ParquetFile(file)
            except (pa.ArrowException, OSError):
                return None  # its reader says what is wrong with it
            if "assets" not in table.schema_arrow.names or "id" not in table.schema_arrow.names:
                return None
            features = [row for batch in table.iter_batches(1024) for row in batch.to_pylist()]
    else:
        return None
    items = [_item(feature, folder, where, settings) for feature in features]
    return _from_items(root, items, folder, where)


def _from_text(root: str, folder: Folder, name: str, settings: ArchiveConfig | None) -> tuple[Folder, list[Shard]]:
    try:
        lines = [line.strip() for line in folder.read(name).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise RequestError(f"{folder.public(name)} is not UTF-8 text: list one path or URL a line") from None
    urls = [_absolute(line, folder) for line in lines if line and not line.startswith("#")]
    top, paths = _common_root(root, urls, folder.options, folder.public(name))
    if twice := sorted(path for path, count in Counter(paths).items() if count > 1):
        raise RequestError(f"{folder.public(name)} lists {twice[0]} twice: remove one")
    files = _ask(top, [(path, None, "") for path in paths])
    for file in files:
        if file.size == GONE and extension(file.path) not in IMAGES:
            raise RequestError(f"{folder.public(name)} lists {top.public(file.path)}, which is not there")
    if settings is None or settings.scene is None:
        return top, list(shards_of(root, files, settings))
    return top, [
        Shard(root, scene, "scene", files=tuple(file for _, file in own), bands=tuple(band for band, _ in own))
        for scene, own in group_scenes(files, settings.scene).items()
    ]


# where things lie


def _absolute(href: str, folder: Folder) -> str:
    """A path or URL; relative ones begin at the list's folder."""
    if href.startswith("file://") or href.startswith("/"):
        return local_path(href)
    if "://" in href:
        return href
    if folder.local:
        return local_path(f"{folder.base}/{href}")
    scheme, _, rest = folder.url.partition("://")
    return f"{scheme}://{posixpath.normpath(f'{rest}/{href}')}"


def _common_root(root: str, urls: Sequence[str], options: Options, where: str) -> tuple[Folder, list[str]]:
    """The longest folder above all of some files, opened with the root's options, and their paths below it."""
    if not urls:
        raise RequestError(f"{where} lists nothing")
    stores = {"" if is_local(url) else "/".join(url.split("/", 3)[:3]) for url in urls}
    if len(stores) > 1:
        shown = ", ".join(sorted(public_url(store) if store else "local files" for store in stores)[:3])
        raise RequestError(
            f"{where} lists files of several stores ({shown}): give a list for each as a root of its own"
        )
    for url in urls:
        if url.startswith(("http://", "https://")) and ("?" in url or "#" in url):
            raise RequestError(
                f"{where} lists {public_url(url)} with a query: signed URLs would end up in files; list plain ones"
            )
    parts = [url.split("/") for url in urls]
    depth = 0
    while all(len(part) > depth + 1 for part in parts) and len({part[depth] for part in parts}) == 1:
        depth += 1
    return Folder("/".join(parts[0][:depth]) or "/", options, root), ["/".join(part[depth:]) for part in parts]


def _ask(folder: Folder, files: Sequence[tuple[str, int | None, str]]) -> list[FileInfo]:
    """Sizes and versions, asked for where the list does not say; of what is not there the size is ``GONE``."""

    def ask(file: tuple[str, int | None, str]) -> FileInfo:
        path, size, version = file
        if size is not None:
            return FileInfo(path, size, version)
        try:
            return folder.info(path)
        except FileNotFoundError:
            return FileInfo(path, GONE, "")

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(ask, files))


# STAC


def _features(content: bytes, where: str) -> list[Any]:
    try:
        said = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where} is no JSON: {error}") from None
    kind = said.get("type") if isinstance(said, dict) else None
    if kind == "Feature":
        return [said]
    if kind == "FeatureCollection" and isinstance(said.get("features"), list):
        return list(said["features"])
    raise RequestError(f"{where} is neither a STAC item nor a FeatureCollection of items")


def _item(feature: Any, folder: Folder, where: str, settings: ArchiveConfig | None) -> _Item:
    """An item of a list, with the assets that hold pixels."""
    if not isinstance(feature, dict) or not isinstance(feature.get("assets"), dict):
        raise RequestError(f"{where} has something in it that is no STAC item: it has no assets")
    name = feature.get("id")
    if not isinstance(name, str) or not name or is_unsafe(name) or not is_text(name) or name.startswith("."):
        raise RequestError(f"{where}: {printable(str(name))!r:.100} cannot be the id of an item")
    assets = {key: asset for key, asset in feature["assets"].items() if isinstance(asset, dict) and asset.get("href")}
    chosen = [
        _Asset(band, _absolute(str(asset["href"]), folder), *_vouched(asset))
        for band, asset in _bands(assets, settings)
    ]
    return _Item(name, tuple(sorted(chosen, key=lambda asset: asset.band)), {"source_id": name, **_said(feature)})


def _bands(assets: Mapping[str, dict[str, Any]], settings: ArchiveConfig | None) -> list[tuple[str, dict[str, Any]]]:
    """The assets to read, by their bands' names: those that were chosen, else all that hold pixels.

    Of an asset and a JPEG 2000 of the same band the former counts.
    """
    names = {key: _band_name(key, asset) for key, asset in assets.items()}
    members = settings.members if settings else None
    if members is not None:
        keys = {member: next((k for k in assets if member in (k, names[k])), None) for member in members}
        return [(member, assets[key]) for member, key in keys.items() if key is not None]
    found: dict[str, str] = {}  # band to key
    for key in sorted(filter(lambda key: _holds_pixels(assets[key]), assets), key=lambda key: _is_jp2(assets[key])):
        taken = found.get(names[key])
        if taken is None:
            found[names[key]] = key
        elif _is_jp2(assets[key]) == _is_jp2(assets[taken]):  # two bands that are called the same
            found[key] = key
    wanted = settings.bands if settings and settings.band_names is None else None
    if wanted:
        called = {band: band if band in wanted else key if key in wanted else None for band, key in found.items()}
        if any(called.values()):
            found = {called[b] or b: key for b, key in found.items() if called[b] or is_categorical(b)}
    if len(found) == 1 and not _one_band(assets[next(iter(found.values()))]):
        return [("", assets[key]) for key in found.values()]
    return [(band, assets[key]) for band, key in found.items()]


def _band_list(asset: Mapping[str, Any]) -> list[Any]:
    found = asset.get("bands") or asset.get("eo:bands")
    return list(found) if isinstance(found, list | tuple) else []


def _one_band(asset: Mapping[str, Any]) -> bool:
    return len(_band_list(asset)) == 1


def _band_name(key: str, asset: Mapping[str, Any]) -> str:
    """The name of an asset's one band, where the item gives it; else the asset's key."""
    bands = _band_list(asset)
    name = bands[0].get("name") if len(bands) == 1 and isinstance(bands[0], dict) else None
    return str(name) if name else key


def _holds_pixels(asset: Mapping[str, Any]) -> bool:
    kind, roles = str(asset.get("type") or "").lower(), set(asset.get("roles") or ())
    if roles & _OTHER_ROLES:
        return False
    image = extension(str(asset["href"]).partition("?")[0]) in IMAGES
    return kind.startswith(_IMAGE_TYPES) or (image and (not kind or "data" in roles))


def _is_jp2(asset: Mapping[str, Any]) -> bool:
    return "jp2" in str(asset.get("type") or "") or extension(str(asset["href"])) == "jp2"


def _vouched(asset: Mapping[str, Any]) -> tuple[int | None, str]:
    """Size and version of an asset, where the item has both its size and its checksum."""
    size, checksum = asset.get("file:size"), asset.get("file:checksum")
    if isinstance(size, int) and size >= 0 and checksum:
        return size, f"{CHECKSUM}{checksum}"
    return None, ""


def _said(feature: Mapping[str, Any]) -> dict[str, Any]:
    """What an item says of its scene: its properties that are text or numbers, and its place."""
    inner = feature.get("properties")
    said = inner if isinstance(inner, dict) else feature  # in stac-geoparquet they are columns
    plain = {key: value.isoformat() if isinstance(value, datetime) else value for key, value in said.items()}
    found = {key: value for key, value in plain.items() if _is_plain(value) and key not in _NO_PROPERTIES}
    bbox = feature.get("bbox")
    if isinstance(bbox, dict):  # of stac-geoparquet
        bbox = [bbox.get(side) for side in ("xmin", "ymin", "xmax", "ymax")]
    if isinstance(bbox, list | tuple) and bbox and all(isinstance(side, int | float) for side in bbox):
        found["bbox"] = [float(side) for side in bbox]
    elif isinstance(feature.get("geometry"), dict):
        found["geometry"] = feature["geometry"]
    return found


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def _from_items(root: str, items: Sequence[_Item], folder: Folder, where: str) -> tuple[Folder, list[Shard]]:
    """A scene an item."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise RequestError(f"{where} has two items {item.id}: remove one, or rename it")
        seen.add(item.id)
    assets = [asset for item in items for asset in item.assets]
    if not assets:
        raise RequestError(f"{where}: no item has an asset that holds pixels; name assets in archive.members")
    top, paths = _common_root(root, [asset.url for asset in assets], folder.options, where)
    files = iter(_ask(top, [(path, asset.size, asset.version) for path, asset in zip(paths, assets, strict=True)]))
    return top, list(_shards(root, items, files))


def _shards(root: str, items: Iterable[_Item], files: Iterator[FileInfo]) -> Iterator[Shard]:
    for item in items:
        own = tuple(next(files) for _ in item.assets)
        bands = tuple(asset.band for asset in item.assets)
        yield Shard(root, item.id, "scene", files=own, bands=bands, said=item.said)
