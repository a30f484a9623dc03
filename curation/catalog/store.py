"""Reads and writes catalog files: one Parquet file a shard, complete or absent.

The file is the checkpoint. Its footer says which source it was made from, with
which encoder artefact, on which numeric profile, and how many samples were
read, kept and quarantined.
"""

import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.catalog.schema import FOOTER, QUARANTINE_SCHEMA
from curation.errors import AccessError
from curation.storage import Folder


def parquet_bytes(table: pa.Table, metadata: dict[str, Any] | None = None) -> bytes:
    """A table as a Parquet file, byte for byte the same for the same rows; ``metadata`` goes to the footer."""
    if metadata is not None:
        footer = {FOOTER: json.dumps(metadata, sort_keys=True).encode()}
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **footer})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


class CatalogStore:
    """The catalog of one catalog-id: this workspace's own files, and those of a shared, read-only catalog.

    Args:
        workspace: where new files go (``catalog/<catalog-id>/…`` below it).
        catalog_id: see ``catalog.artefact.catalog_id``.
        shared: a folder laid out like ``<workspace>/catalog``, for shards that the workspace lacks; never written.
    """

    def __init__(self, workspace: Folder, catalog_id: str, shared: Folder | None = None) -> None:
        self.workspace, self.catalog_id = workspace, catalog_id
        self.own = workspace.child(f"catalog/{catalog_id}")
        self.folders = [(self.own, workspace)]  # catalog files, and the workspace that their quarantine lies in
        if shared:
            self.folders.append((shared.child(catalog_id), shared.parent))

    def path(self, shard: str) -> str:
        """Where a shard's catalog file lies, below the catalog's folder."""
        return f"{shard}.parquet"

    def quarantine_path(self, shard: str) -> str:
        """Where a shard's quarantine lies, below the workspace."""
        return f"quarantine/{self.catalog_id}/{shard}.parquet"

    def footer(self, shard: str) -> dict[str, Any] | None:
        """What the file's footer says, or ``None`` where the shard has no (readable) catalog file."""
        for folder, _ in self.folders:
            try:
                with self._open(folder, self.path(shard)) as source:
                    metadata = pq.read_metadata(source).metadata
                return dict(json.loads(metadata[FOOTER]))
            except FileNotFoundError:
                continue
            except (pa.ArrowInvalid, KeyError, TypeError):
                return None
            except OSError as error:
                if error.errno is not None:
                    raise
                return None  # what pyarrow raises on a damaged footer
        return None

    def is_current(self, shard: str, fingerprint: dict[str, Any], artefact: str) -> bool:
        """Whether the shard's catalog file was made from this source with this artefact."""
        footer = self.footer(shard)
        return footer is not None and (footer["fingerprint"], footer["artefact"]) == (fingerprint, artefact)

    def read(self, shard: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A shard's rows, in the order of ``index``.

        Raises:
            AccessError: there is no catalog file, or it could not be read.
        """
        for folder, _ in self.folders:
            try:
                with self._open(folder, self.path(shard)) as source:
                    return pq.read_table(source, columns=None if columns is None else list(columns))
            except FileNotFoundError:
                continue
        raise AccessError(f"{shard} has no catalog file in {self.own.public()}: run the catalog job")

    def quarantine(self, shard: str) -> pa.Table:
        """A shard's quarantined samples (no rows where there are none)."""
        home = self.workspace
        if len(self.folders) > 1:
            home = next((home for folder, home in self.folders if folder.exists(self.path(shard))), home)
        try:
            with self._open(home, self.quarantine_path(shard)) as source:
                return pq.read_table(source)
        except FileNotFoundError:
            return QUARANTINE_SCHEMA.empty_table()

    def publish(self, shard: str, rows: pa.Table, quarantined: pa.Table, footer: dict[str, Any]) -> None:
        """Write a finished shard: the quarantine first, then the file whose presence means done."""
        if quarantined.num_rows:
            self.workspace.publish(self.quarantine_path(shard), parquet_bytes(quarantined))
        else:
            self.workspace.remove(self.quarantine_path(shard))
        self.own.publish(self.path(shard), parquet_bytes(rows, footer))

    def _open(self, folder: Folder, path: str) -> Any:
        return folder.open(folder.info(path), random=True)


def chunks(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    """``items`` in runs of ``size``."""
    return (items[start : start + size] for start in range(0, len(items), size))
