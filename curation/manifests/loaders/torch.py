"""The kept samples as a torch ``IterableDataset``, and a DataLoader that can say where it is."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

from curation.errors import RequestError
from curation.manifests.loaders.decoded import Decoder
from curation.manifests.loaders.kept import Kept
from curation.manifests.loaders.stream import SampleStream, changed, check_same

_PLACES = ("offset", "size", "position")  # of no use to a training loop


class TorchSamples(SampleStream, IterableDataset[dict[str, Any]]):
    """Dicts of the manifest's columns, ``url``, and either ``files`` or ``pixels`` and ``mask``.

    Torch's collation takes no None: a null is NaN, -1 (``window``: four of them) or an empty string. Nor does it take
    dicts of different files: without ``decode`` give a DataLoader of your own :func:`collate`.

    Args:
        manifest: an open manifest, or the URL of one.
        decode: ``pixels``, a tensor (bands, height, width) with the bands, dtype and units of the archive, and
            ``mask``, bool (height, width), in place of ``files``, the bytes by suffix (of a tile those of its image).
        options: see :class:`SampleStream`.

    Raises:
        RequestError: something asked for cannot be.
    """

    def __init__(self, manifest: Any, *, decode: bool = False, **options: Any) -> None:
        super().__init__(manifest, **options)
        self.decode, self.settings = decode, self.manifest.archive
        several = len(self.settings.members or ()) > 1 or self.settings.modalities
        if decode and self.members == "image" and several:
            raise RequestError("the archive keeps a sample's bands in several files: decode=True needs members='all'")
        content = self.manifest.header["content"]
        self.bands, self.dtype = content.get("bands"), content.get("dtype")
        self.nulls = {field.name: _null(field.type) for field in self.manifest.schema if field.name not in _PLACES}

    def decoder(self) -> Decoder:
        """Pixels of the archive's bands and dtype."""
        return Decoder(self.settings, self.bands, self.dtype)

    def arrive(self, kept: Kept, decoder: Decoder) -> Kept:
        """A tile is decoded with its neighbours of the same image, and held in its place."""
        if self.decode and kept.row["window"] is not None:
            with changed(kept):
                kept.sample = decoder.sample(kept)
            kept.raw = replace(kept.raw, data={}, images={})
        return kept

    def convert(self, kept: Kept, decoder: Decoder) -> dict[str, Any]:
        """A sample in a form that torch's default collation takes."""
        columns = {name: null if kept.row[name] is None else kept.row[name] for name, null in self.nulls.items()}
        columns["url"] = kept.url
        if not self.decode:
            return {**columns, "files": decoder.files(kept)}
        sample = kept.sample or decoder.sample(kept)
        return {**columns, "pixels": _tensor(sample.pixels), "mask": _tensor(sample.mask)}

    def loader(self, batch_size: int, num_workers: int = 0, **options: Any) -> "BatchLoader":
        """A DataLoader over this dataset that can stop and go on in mid-epoch, with workers too.

        Args:
            batch_size: samples a batch.
            num_workers: processes.
            options: what else ``torch.utils.data.DataLoader`` takes.
        """
        return BatchLoader(self, batch_size, num_workers, **options)


class BatchLoader:
    """A DataLoader that counts: the batches and their order are known, so a position is a number of samples.

    Args:
        dataset: what to read.
        batch_size, num_workers, options: as of ``torch.utils.data.DataLoader``.
    """

    def __init__(self, dataset: TorchSamples, batch_size: int, num_workers: int, **options: Any) -> None:
        if not options.get("in_order", True):
            raise RequestError("in_order=False gives batches in no order that one could go on in")
        self.dataset, self.batch_size, self.workers = dataset, batch_size, num_workers
        dataset.batch_size = batch_size
        self.drop_last = bool(options.get("drop_last", False))
        self.epoch = self.seen = self._start = 0
        options.setdefault("collate_fn", collate)
        self._loader: DataLoader[Any] = DataLoader(dataset, batch_size, num_workers=num_workers, **options)

    def __len__(self) -> int:
        """Batches of an epoch."""
        batches = self.dataset.samples / self.batch_size
        return math.floor(batches) if self.drop_last else math.ceil(batches)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, before iterating; the position that was loaded stays if it is of this epoch."""
        if epoch != self.epoch:
            self.epoch, self.seen, self._start = epoch, 0, 0

    def __iter__(self) -> Iterator[Any]:
        """What is left of the epoch, in batches."""
        self.seen, self._start = self._start, 0
        self.dataset.move(self.epoch, self.seen)
        for batch in self._loader:
            self.seen = min(self.seen + self.batch_size, self.dataset.samples)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the batches given so far end, as plain values; the same on every rank."""
        return {**self._identity(), "epoch": self.epoch, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            RequestError: it was taken from another loader: the batches would not be the same.
        """
        check_same(self._identity(), state)
        self.epoch, self.seen, self._start = state["epoch"], state["seen"], state["seen"]

    def _identity(self) -> dict[str, Any]:
        return {**self.dataset.identity(), "batch_size": self.batch_size, "workers": self.workers}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples as a batch: tensors where there are numbers, lists of texts, a list of each sample's files."""
    files = [sample["files"] for sample in samples if "files" in sample]
    batch = default_collate([{name: sample[name] for name in sample if name != "files"} for sample in samples])
    return {**batch, "files": files} if files else dict(batch)


def _null(kind: pa.DataType) -> Any:
    if pa.types.is_struct(kind):
        return {field.name: _null(field.type) for field in kind}
    if pa.types.is_floating(kind):
        return math.nan
    return -1 if pa.types.is_integer(kind) else ""


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
