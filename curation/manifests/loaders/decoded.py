"""Turns kept samples into pixels, or into bytes where their shard has no files to hand on."""

import io
from dataclasses import replace

import numpy as np

from curation.archive.decode import conform, decode
from curation.archive.sample import RawSample, Sample
from curation.archive.settings import ArchiveConfig
from curation.archive.tiling import cut
from curation.errors import BadSample
from curation.manifests.loaders.kept import Kept, window_of


class Decoder:
    """Decodes kept samples; an image once for all of its tiles that follow each other.

    Args:
        settings: how the archive was read.
        bands, dtype: what every sample must come to; as stored where they are not given.
    """

    def __init__(self, settings: ArchiveConfig, bands: list[str] | None = None, dtype: str | None = None) -> None:
        self.settings, self.bands, self.dtype = settings, bands, dtype
        self._raw: RawSample | None = None
        self._image: Sample | None = None

    def sample(self, kept: Kept) -> Sample:
        """The pixels of a kept sample; a tile shares no memory with its image.

        Raises:
            BadSample: it can no longer be decoded, or comes out in other units, or its image is smaller than it was.
        """
        window = window_of(kept.row)
        if kept.raw is not self._raw or self._image is None:
            image = decode(kept.raw, self.settings)
            if self.bands and self.dtype:
                image = conform(image, tuple(self.bands), self.dtype)
            if image.radiometry != (kept.row["radiometry"] or image.radiometry):
                message = f"its numbers are {image.radiometry}, the manifest says {kept.row['radiometry']}"
                raise BadSample("decode", "WrongRadiometry", f"{message} (it may take the sidecars: members='all')")
            self._raw, self._image = kept.raw, image
        if window is None or kept.raw.window is not None:
            return self._image
        height, width = self._image.mask.shape
        if window.row + window.height > height or window.column + window.width > width:
            raise BadSample("decode", "BadShape", f"its image is of {width} x {height} pixels, {window} is not in it")
        tile = cut(self._image, window)
        return replace(tile, pixels=tile.pixels.copy(), mask=tile.mask.copy())

    def files(self, kept: Kept) -> dict[str, bytes]:
        """The files of a kept sample by suffix; ``npy``, (bands, height, width), of a shard that has none.

        Raises:
            BadSample: see :meth:`sample`.
        """
        if not kept.raw.images:
            return kept.raw.data
        buffer = io.BytesIO()
        np.save(buffer, self.sample(kept).pixels, allow_pickle=False)
        return {**kept.raw.data, kept.image: buffer.getvalue()}
