"""A WebDataset stream without what the keep-index leaves out: a stage of its pipeline, needs no webdataset itself."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from curation.archive.sample import sample_id
from curation.errors import RequestError
from curation.storage import Folder
from curation.training.index import KeepIndex, read_index
from curation.training.ranks import agreed

log = logging.getLogger("curation")


class KeptStream:
    """Passes the kept samples on, with ``__weight__`` (NaN where there is none); each is known by key and URL.

    Put it behind the stage that reads the tars, and before any that decodes::

        wds.WebDataset(urls).compose(KeptStream(index, {"root0": "s3://bucket/archive"})).decode()

    Each stream of a rank or worker is filtered alone, so their counts differ as their shards do: use
    ``with_epoch``, or :class:`curation.training.sampler.KeptSampler`.

    Args:
        index: what is kept, with sample ids; or the folder of a keep-index's versions, of which each pass takes the
            newest that rank 0 sees.
        roots: each root's name in the manifest to where it lies, as the stream's URLs begin.
        cache: a local folder for copies of a remote folder's files.

    Raises:
        RequestError: the index has no sample ids; while iterating: a URL lies below no root.
        CurationError: the ranks of ``torch.distributed`` see different indexes.
    """

    def __init__(self, index: KeepIndex | Folder, roots: Mapping[str, str], cache: Path | None = None) -> None:
        self.roots = {name: root.removeprefix("file://").rstrip("/") + "/" for name, root in roots.items()}
        self.folder = index if isinstance(index, Folder) else None
        self.cache = cache
        version: Any = torch.zeros((), dtype=torch.int64)
        self._version = version.share_memory_()  # seen by workers that stay, too
        self.set_pass(index if isinstance(index, KeepIndex) else None)

    def set_pass(self, index: KeepIndex | None = None) -> None:
        """Before each pass: take the folder's newest version, or another index.

        An index that is given reaches the workers that start after that, those of ``persistent_workers`` only where
        it is a version of the folder.

        Raises:
            CurationError: the ranks see different indexes.
        """
        if index is None and self.folder is None:
            return
        if dist.is_available() and dist.is_initialized():
            index = agreed(index, self._read)
        self.index = index or self._read(None)
        if "ids" not in self.index.arrays:
            raise RequestError("the keep-index has no sample ids, by which a stream is filtered: make it with ids")
        self._version.fill_(self.index.version)

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """As a pipeline calls a stage, once a pass."""
        version = int(self._version)
        if self.folder is not None and version != self.index.version:
            self.index = self._read(version)
        seen = kept = 0
        for sample in samples:
            seen += 1
            weight = self.index.weight_of_id(self._id(sample["__url__"], sample["__key__"]))
            if weight is not None:
                kept += 1
                yield {**sample, "__weight__": weight}
        if seen and not kept:
            log.warning("of a stream's %d samples none is kept by version %d of the keep-index", seen, version)

    def _id(self, url: str, key: str) -> bytes:
        """The catalog's id of a sample; its shard is named by the URL, or within a ``pipe:``."""
        words = url.removeprefix("pipe:").split() if url.startswith("pipe:") else [url]
        for word in words:
            for name, root in self.roots.items():
                shard = word.strip("'\"").removeprefix("file://").removeprefix("file:")
                if shard.startswith(root):
                    return bytes.fromhex(sample_id(f"{name}/{shard.removeprefix(root)}", key))
        raise RequestError(f"{url} lies below no root of {list(self.roots.values())}: give roots as the stream's URLs")

    def _read(self, version: int | None) -> KeepIndex:
        assert self.folder is not None
        return read_index(self.folder, version, self.cache)
