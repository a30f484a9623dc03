"""Reads the decisions of a manifest, part by part, where it goes on from a parent and references the parent's files.

A part is then several files, oldest first: a row of a later one takes the place of that sample's row in an earlier.
``rank``, ``weight`` and ``threshold`` of a referenced row are of the manifest that wrote it.
"""

import posixpath
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.errors import RequestError
from curation.manifests.schema import DECISIONS, FILES_FILE
from curation.storage import Folder

PLACE = ("sample_id", "shard", "index")


def listed(manifest: Folder) -> list[str]:
    """Every file of a manifest, in the order of ``files.parquet``, relative to the folder that holds all manifests.

    Raises:
        FileNotFoundError: it has no list of files.
    """
    table = pq.read_table(pa.BufferReader(manifest.read(FILES_FILE)), columns=["path"])
    own = manifest.base.rpartition("/")[2]
    return [posixpath.normpath(f"{own}/{path}") for path in table["path"].to_pylist()]


def decision_parts(manifest: Folder) -> list[list[str]]:
    """The files of each part, oldest first, relative to the folder that holds all manifests.

    Raises:
        FileNotFoundError: the manifest has no list of files.
    """
    parts: dict[str, list[str]] = {}
    for path in listed(manifest):
        if path.split("/")[1] == DECISIONS:
            parts.setdefault(path.rpartition("/")[2], []).append(path)
    return [parts[name] for name in sorted(parts)]


def referenced(manifest: Folder) -> set[str]:
    """Ids of the other manifests whose files it needs."""
    return {path.split("/")[0] for path in listed(manifest)} - {manifest.base.rpartition("/")[2]}


def read_part(manifest: Folder, files: Sequence[str], columns: Sequence[str], encoded: bool = False) -> pa.Table:
    """The rows of a part that hold, sorted by shard and index; a column that a file lacks is null in its rows.

    Args:
        manifest: ``manifests/<id>``.
        files: of the part, as `decision_parts` gives them.
        columns: what is wanted.
        encoded: leave ``shard`` as a dictionary of its names.

    Raises:
        RequestError: a file is gone.
    """
    around = manifest.parent
    rows = _read(around, files[0], columns)
    for path in files[1:]:
        later = _read(around, path, columns)
        replaced = pc.is_in(rows["sample_id"], value_set=later["sample_id"].combine_chunks())
        rows = pa.concat_tables([rows.filter(pc.invert(replaced)), later], promote_options="permissive")
    if len(files) > 1:
        rows = _sorted(rows)
    if not encoded:
        rows = rows.set_column(rows.schema.get_field_index("shard"), "shard", rows["shard"].cast(pa.string()))
    return rows.select([name for name in dict.fromkeys(columns) if name in rows.column_names])


def _read(around: Folder, path: str, columns: Sequence[str]) -> pa.Table:
    wanted = list(dict.fromkeys([*PLACE, *columns]))
    try:
        file = pq.ParquetFile(pa.BufferReader(around.read(path)), read_dictionary=["shard"])
    except FileNotFoundError:
        raise RequestError(f"{around.public(path)} is gone, which a later manifest needs: restore it") from None
    return file.read([name for name in wanted if name in file.schema_arrow.names]).unify_dictionaries()


def _sorted(rows: pa.Table) -> pa.Table:
    shard = rows["shard"].unify_dictionaries().combine_chunks()
    place = np.argsort(np.argsort(np.array(shard.dictionary.to_pylist(), object)))
    return rows.take(pa.array(np.lexsort((rows["index"].to_numpy(), place[np.asarray(shard.indices)]))))
