"""Opens a manifest: its header, and its rows a shard at a time.

A training job opens the same manifest in every one of its worker processes; so
rows are read when they are wanted, and only counts a shard are held.
"""

import dataclasses
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from omegaconf import OmegaConf

from curation.archive.settings import ArchiveConfig
from curation.catalog.store import CatalogStore
from curation.errors import RequestError
from curation.manifests.latest import POINTER
from curation.manifests.schema import HEADER_FILE, MANIFEST_SCHEMA, ROWS_FILE, content_id
from curation.storage import Folder, check_storage_names, is_local, local_path

GROUPS_HELD = 4  # Parquet row groups that a reader keeps


@dataclass(frozen=True)
class ShardIndex:
    """Where each shard's rows lie in the manifest, in its order.

    Attributes:
        names: string (shards,), ``<root>/<path below it>``.
        first, stop: int64 (shards,), a shard's rows.
        counts: int64 (shards,), how many of them the budget takes.
    """

    names: pa.Array
    first: NDArray[np.int64]
    stop: NDArray[np.int64]
    counts: NDArray[np.int64]

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """A number a shard that depends on its name only, uint64 (shards,)."""
        digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in self.names.to_pylist())
        return np.frombuffer(digests, "<u8").astype(np.uint64)


class ManifestReader:
    """A pruned manifest, opened for reading.

    Args:
        url: of its ``manifest.json``, its ``manifest.parquet``, the folder of both, or of a pointer (``latest.json``,
            ``latest-<name>.json``).
        storage: fsspec options per protocol, root or place, as ``runtime.storage``.

    Attributes:
        header: ``manifest.json`` (``content`` and ``provenance``).
        id: of what is in it.
        num_rows: kept samples.
        schema: of the rows.

    Raises:
        RequestError: there is no manifest, or its files do not belong together.
        AccessError: it could not be read.
    """

    def __init__(self, url: str, storage: dict[str, dict[str, Any]] | None = None) -> None:
        self.storage = storage
        self.url = _folder_url(url, storage)  # not a pointer's: other processes must open the same manifest
        self.folder = Folder(self.url, storage, "workspace")
        self._process = -1
        self._opened: Any = None
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        try:
            self.header: dict[str, Any] = json.loads(self.folder.read(HEADER_FILE))
            self.id = content_id(self.header["content"])
            check_storage_names(storage, self.header.get("provenance", {}).get("roots", {}))
            file = self._file()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RequestError(
                f"no manifest at {self.folder.public()}: give the URL of a manifest.json, or of the folder it is in"
            ) from error
        except (ValueError, KeyError, TypeError, OSError) as error:  # a damaged footer is an OSError
            raise RequestError(f"{self.folder.public()} holds no readable manifest: {error}") from error
        self.schema: pa.Schema = file.schema_arrow
        self.num_rows: int = file.metadata.num_rows
        self._ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
        strange = [column.name for column in MANIFEST_SCHEMA if column not in list(self.schema)]
        if strange:
            raise RequestError(f"{self.folder.public(ROWS_FILE)}: column {strange[0]!r} is not that of a manifest")

    def __reduce__(self) -> tuple[Any, ...]:
        return ManifestReader, (self.url, self.storage)

    @property
    def archive(self) -> ArchiveConfig:
        """How the archive was read when the manifest was made; a model that looked for clouds does not look again."""
        return archive_settings(self.header.get("content", {}).get("config", {}).get("archive", {}))

    def table(self, columns: Sequence[str] | None = None, budget: int | None = None) -> pa.Table:
        """All rows at once, sorted by (shard, index).

        Args:
            columns: which; all without it.
            budget: only the first that many by ``rank``.

        Raises:
            RequestError: the manifest has no such column, or not that many samples.
        """
        self.check_budget(budget)
        unknown = [name for name in columns or () if name not in self.schema.names]
        if unknown:
            raise RequestError(f"the manifest has no column {unknown[0]!r}")
        if columns is None or budget is None:
            return _within(self._file().read(columns and list(columns)), budget)
        return _within(self._file().read(list({*columns, "rank"})), budget).select(list(columns))

    def shards(self, budget: int | None = None) -> ShardIndex:
        """Where each shard's rows are; reads one column (two with a budget), a row group at a time.

        Raises:
            RequestError: the rows are not sorted by shard, or there are fewer than ``budget``.
        """
        self.check_budget(budget)
        names: list[str] = []
        first: list[int] = []
        counts: list[int] = []
        row = 0
        for shard, taken in self._runs(budget):
            starts = _run_starts(shard)
            run_names = shard.take(pa.array(starts)).to_pylist()
            run_counts: Any = np.add.reduceat(taken, starts) if len(starts) else []
            for name, start, count in zip(run_names, starts, run_counts, strict=True):
                if names and names[-1] == name:
                    counts[-1] += int(count)
                else:
                    names.append(name)
                    first.append(row + int(start))
                    counts.append(int(count))
            row += len(shard)
        if len(set(names)) < len(names):
            raise RequestError(f"{self.folder.public(ROWS_FILE)} is not sorted by shard: build the manifest again")
        edges = np.array([*first, row], np.int64)
        return ShardIndex(pa.array(names, pa.string()), edges[:-1], edges[1:], np.array(counts, np.int64))

    def rows(self, first: int, stop: int, budget: int | None = None) -> pa.Table:
        """The rows from ``first`` up to ``stop``, without those beyond the budget."""
        begin, end = np.searchsorted(self._ends, [first, stop - 1], side="right")
        table = pa.concat_tables([self._group(i) for i in range(begin, end + 1)])
        before = int(self._ends[begin - 1]) if begin else 0
        return _within(table.slice(first - before, stop - first), budget)

    def check_budget(self, budget: int | None) -> None:
        """Refuse a budget that the manifest cannot serve.

        Raises:
            RequestError: it is below 1 or above the kept samples.
        """
        if budget is not None and not 1 <= budget <= self.num_rows:
            raise RequestError(f"budget={budget}: the manifest keeps {self.num_rows} samples; take 1 to that many")

    def _runs(self, budget: int | None) -> Iterator[tuple[pa.Array, NDArray[np.int64]]]:
        """Row group by row group: the shard column, and 1 where the budget takes the row."""
        columns = ["shard"] if budget is None else ["shard", "rank"]
        for i in range(self._file().num_row_groups):
            group = self._file().read_row_group(i, columns)
            shard = group["shard"].combine_chunks()
            if budget is None:
                yield shard, np.ones(len(shard), np.int64)
            else:
                yield shard, np.asarray(pc.less(group["rank"], budget)).astype(np.int64)

    def _group(self, number: int) -> pa.Table:
        if number not in self._groups:
            self._groups[number] = self._file().read_row_group(number)
            if len(self._groups) > GROUPS_HELD:
                self._groups.popitem(last=False)
        self._groups.move_to_end(number)
        return self._groups[number]

    def _file(self) -> pq.ParquetFile:
        """The open file of this process: a worker that was forked must not share its parent's connection."""
        if self._process != os.getpid():
            folder = Folder(self.folder.url, self.storage, "workspace")
            remote = not folder.local
            source: Any = folder.open(folder.info(ROWS_FILE), random=True) if remote else folder.full(ROWS_FILE)
            self._opened, self._process = pq.ParquetFile(source, pre_buffer=remote), os.getpid()
        return self._opened


def archive_settings(config: dict[str, Any]) -> ArchiveConfig:
    """How an archive is read, by ``config.archive`` of a header; keys that this version does not know count nothing."""
    known = {field.name for field in dataclasses.fields(ArchiveConfig)}
    said = {name: value for name, value in config.items() if name in known}
    found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ArchiveConfig), said))
    assert isinstance(found, ArchiveConfig)
    found.clouds.detector = None
    return found


def open_workspace(manifest: ManifestReader, storage: dict[str, Any] | None) -> Folder:
    """The workspace that a manifest lies in; the manifest's own folder where it was copied elsewhere."""
    around, found, _ = manifest.folder.url.rpartition("/manifests/")
    return Folder(around or "/" if found else manifest.folder.url, storage, "workspace")


def open_catalog(manifest: ManifestReader, storage: dict[str, Any] | None) -> CatalogStore:
    """The catalog that a manifest was drawn from: in its workspace, or shared.

    Raises:
        RequestError: it was applied to a copy that has none, or is of a distilled set.
    """
    if "distilled" in manifest.header["content"]:
        raise RequestError(
            f"{manifest.folder.public()} is a distilled set, whose images are in no catalog: curate verify, explain "
            "and materialize take it as it is, and its folder of shards is an archive like any other for the rest"
        )
    shared = manifest.header.get("provenance", {}).get("catalog")
    catalog_id = manifest.header["content"]["catalog"]
    if catalog_id is None:
        raise RequestError(
            f"{manifest.folder.public()} was applied to a copy of the archive that had no catalog: run curate catalog "
            "over that copy with the published config, then curate apply again"
        )
    return CatalogStore(
        open_workspace(manifest, storage),
        catalog_id,
        Folder(shared, storage, "catalog") if shared else None,
    )


def _folder_url(url: str, storage: dict[str, dict[str, Any]] | None) -> str:
    """The folder of the manifest that ``url`` names."""
    head, _, tail = (local_path(url) if is_local(url) else url.rstrip("/")).rpartition("/")
    if tail in (HEADER_FILE, ROWS_FILE):
        return head
    if not POINTER.fullmatch(tail):
        return f"{head}/{tail}"
    try:
        return f"{head}/{json.loads(Folder(head, storage, 'workspace').read(tail))['id']}"
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"there is no latest manifest at {url}") from error


def _within(table: pa.Table, budget: int | None) -> pa.Table:
    return table if budget is None else table.filter(pc.less(table["rank"], budget))


def _run_starts(column: pa.Array) -> NDArray[np.int64]:
    """Where a value differs from the one before it."""
    if len(column) == 0:
        return np.empty(0, np.int64)
    changed = np.asarray(pc.not_equal(column.slice(1), column.slice(0, len(column) - 1)))
    return np.concatenate(([0], np.flatnonzero(changed) + 1)).astype(np.int64)
