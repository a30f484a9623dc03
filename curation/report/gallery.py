"""Previews as data URIs, each with what is said of its tile."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from curation.report.data import Tile
from curation.report.words import number, short
from curation.scoring.signature import GRID, LEVELS

IMAGE_BYTES = 3_900_000  # of all previews, as text; what is shown last has to give way


@dataclass(frozen=True)
class Picture:
    """A tile ready to show."""

    uri: str
    alt: str
    title: str
    kept: bool
    small: bool  # the patch, where there is no thumbnail
    caption: str | None = None


@dataclass
class Gallery:
    """Turns previews into data URIs until the page is full."""

    room: int = IMAGE_BYTES
    omitted: int = 0

    def __call__(self, tiles: Iterable[Tile], caption: str | None = None) -> list[Picture]:
        """The tiles that can be shown; ``caption`` is one of their figures."""
        pictures = []
        for tile in tiles:
            image = tile.image or (patch_image(tile.patch) if tile.patch else None)
            if image is None:
                continue
            uri = f"data:{_media_type(image)};base64,{base64.b64encode(image).decode()}"
            if len(uri) > self.room:
                self.omitted += 1
                continue
            self.room -= len(uri)
            below = number(getattr(tile, caption)) if caption else None
            pictures.append(Picture(uri, _alt(tile), _title(tile), tile.kept, tile.image is None, below))
        return pictures


def patch_image(patch: bytes) -> bytes:
    """The small grey picture of ``scoring.signature``, tinted by its three levels, as a PNG."""
    *levels, step = np.frombuffer(patch, "<f4", LEVELS + 1)
    cells = np.frombuffer(patch, np.uint8, GRID * GRID, 4 * (LEVELS + 1)).reshape(GRID, GRID, 1)
    pixels = np.clip(np.array(levels, np.float32) + (cells.astype(np.float32) - 128) * step, 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(pixels).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _media_type(image: bytes) -> str:
    return {b"\x89P": "image/png", b"RI": "image/webp"}.get(image[:2], "image/jpeg")


def _alt(tile: Tile) -> str:
    return ", ".join(part for part in ("kept" if tile.kept else "dropped", tile.label, short(tile.key, 40)) if part)


def _title(tile: Tile) -> str:
    lines = [short(tile.key, 100)]
    if tile.label:
        lines.append(short(tile.label))
    lines.append(f"{'kept' if tile.kept else 'dropped'}: {tile.reason}")
    if tile.entropy is not None:
        lines.append(f"entropy {tile.entropy:.2f} bits")
    if tile.cluster is not None:
        lines.append(f"cluster {tile.cluster}, distance {number(tile.distance)}")
    return "\n".join(lines)
