"""Stores under fsspec URLs.

All input and output of the pipeline goes through :class:`Folder`, so that a
local disk and an object store behave alike: a file is complete or absent.
"""

from curation.storage.copies import local_copy
from curation.storage.folder import GAP, IN_FLIGHT, FileInfo, Folder, listing_digest
from curation.storage.options import (
    HIDDEN,
    Options,
    check_storage_names,
    check_storage_options,
    hidden_parts,
    options_for,
    public_arguments,
)
from curation.storage.ranges import AHEAD, BLOCK, CHUNK, RangeReader, bundled, coalesce
from curation.storage.retries import TRIES, pause, retry
from curation.storage.urls import (
    PLAIN_NAME,
    file_name,
    is_local,
    local_path,
    path_below,
    public_url,
    without_credentials,
    without_secrets,
)

__all__ = [
    "AHEAD",
    "BLOCK",
    "CHUNK",
    "GAP",
    "HIDDEN",
    "IN_FLIGHT",
    "PLAIN_NAME",
    "TRIES",
    "FileInfo",
    "Folder",
    "Options",
    "RangeReader",
    "bundled",
    "check_storage_names",
    "check_storage_options",
    "coalesce",
    "file_name",
    "hidden_parts",
    "is_local",
    "listing_digest",
    "local_copy",
    "local_path",
    "options_for",
    "path_below",
    "pause",
    "public_arguments",
    "public_url",
    "retry",
    "without_credentials",
    "without_secrets",
]
