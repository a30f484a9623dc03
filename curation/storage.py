"""Folders under fsspec URLs: whole-file reads, atomic writes, sequential reads that never drop bytes.

All input and output of the pipeline goes through :class:`Folder`, so that a
local disk and an object store behave alike: a file is complete or absent.
"""

import hashlib
import io
import json
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem

from curation.errors import AccessError, RequestError

T = TypeVar("T")

CHUNK = 8 << 20  # bytes a sequential reader asks for at once
TRIES = 5  # attempts at a remote operation before it counts as an access error

_SECRET_NAMES = {"key", "username"}
_SECRET_PARTS = re.compile(
    "secret|password|passwd|token|credential|connection_string|access_key|account_key|sas|authorization"
)
_USER_INFO = re.compile(r"://[^/\s]*@")


@dataclass(frozen=True, slots=True, order=True)
class FileInfo:
    """A file below a folder: relative path, size in bytes, and what changes when its content does."""

    path: str
    size: int
    version: str

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Size and version (ETag or modification time) as they stand in a catalog file's footer."""
        return {"size": self.size, "version": self.version}


def listing_digest(files: Iterable[FileInfo]) -> str:
    """A hash over files' paths, sizes and versions."""
    listing = [[file.path, file.size, file.version] for file in files]
    return hashlib.blake2b(json.dumps(listing).encode(), digest_size=16).hexdigest()


def is_local(url: str) -> bool:
    """Whether ``url`` is a path or a ``file:`` URL."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> str:
    """The path that ``url`` names, absolute; a ``file:`` URL may be percent-encoded."""
    path = url.removeprefix("file://")
    if path != url and not os.path.exists(path):
        path = unquote(path)
    return os.path.abspath(os.path.expanduser(path))


def public_url(url: str) -> str:
    """``url`` as it may be printed: a ``file:`` URL for a path, and never with credentials.

    Only over http do ``?`` and ``#`` end a path (and may bring a signature); elsewhere they belong to names.
    """
    if is_local(url):
        return Path(local_path(url)).as_uri()
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    shown = host.rpartition("@")[2] + slash + path
    if scheme.lower().endswith(("http", "https")):
        shown = re.split("[?#]", shown, maxsplit=1)[0]
    return f"{scheme}://{shown}"


def check_storage_options(options: dict[str, Any]) -> None:
    """Refuse secrets in the config, at any depth: they would end up in files and logs.

    Raises:
        RequestError: an option looks like a credential, or a protocol's options are no mapping.
    """
    for protocol, values in options.items():
        if not isinstance(values, dict):
            raise RequestError(
                f"runtime.storage.{protocol} is no mapping: write runtime.storage={{{protocol}: {{option: value}}}}"
            )
        _refuse_secrets(f"runtime.storage.{protocol}", values)


def _refuse_secrets(where: str, value: Any) -> None:
    advice = "does not belong in a config; give credentials by environment, profile or instance role"
    if isinstance(value, dict):
        for name, below in value.items():
            if _names_secret(str(name)):
                raise RequestError(f"{where}.{name} is a secret and {advice}")
            _refuse_secrets(f"{where}.{name}", below)
    elif isinstance(value, list):
        for below in value:
            _refuse_secrets(where, below)
    elif isinstance(value, str) and _USER_INFO.search(value):
        raise RequestError(f"{where} is a URL with a user in it, which {advice}")


def _names_secret(name: str) -> bool:
    plain = name.lower().replace("-", "_")
    return plain in _SECRET_NAMES or _SECRET_PARTS.search(plain) is not None


class Folder:
    """A folder under an fsspec URL; paths below it are relative, with ``/`` between the parts.

    Args:
        url: a path, ``file://…``, ``s3://…`` or whatever fsspec knows.
        options: per protocol, what its fsspec file system is made with (``{"s3": {"endpoint_url": …}}``).
    """

    def __init__(self, url: str, options: dict[str, dict[str, Any]] | None = None) -> None:
        self.options = options or {}
        self.local = is_local(url)
        if self.local:
            self.base = local_path(url)
            self.fs: Any = LocalFileSystem()
            self.url = self.base
        else:
            protocol = url.split("://", 1)[0]
            try:
                self.fs = fsspec.filesystem(protocol, **self.options.get(protocol, {}))
            except (ValueError, ImportError) as error:
                raise RequestError(f"cannot open {public_url(url)}: {error}") from error
            self.url = url.rstrip("/")
            self.base = self.fs._strip_protocol(self.url).rstrip("/")

    def __repr__(self) -> str:
        return f"Folder({public_url(self.url)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Folder, (self.url, self.options)

    @property
    def parent(self) -> "Folder":
        """The folder that this one lies in."""
        return Folder(self.url.rpartition("/")[0] or "/", self.options)

    def child(self, path: str) -> "Folder":
        """The folder at ``path`` below this one."""
        return Folder(f"{self.url}/{path}", self.options)

    def full(self, path: str) -> str:
        """The path that the file system itself uses."""
        return f"{self.base}/{path}" if path else self.base

    def public(self, path: str = "") -> str:
        """The URL of a file below this folder, as it may be printed."""
        return public_url(f"{self.url}/{path}" if path else self.url)

    # reading

    def exists(self, path: str = "") -> bool:
        """Whether there is a file or folder at ``path``."""
        self._forget()
        return bool(retry(lambda: self.fs.exists(self.full(path)), self.public(path)))

    def read(self, path: str) -> bytes:
        """All bytes of a file.

        Raises:
            FileNotFoundError: there is none.
            AccessError: it could not be read.
        """
        if self.local:
            return Path(self.full(path)).read_bytes()
        return bytes(retry(lambda: self.fs.cat_file(self.full(path)), self.public(path)))

    def info(self, path: str) -> FileInfo:
        """Size and version of one file, asked afresh.

        Raises:
            FileNotFoundError: there is none.
        """
        if self.local:
            info = os.stat(self.full(path))
            return FileInfo(path, info.st_size, str(info.st_mtime_ns))
        self._forget()
        return _file_info(path, retry(lambda: self.fs.info(self.full(path)), self.public(path)))

    def open(self, file: FileInfo) -> BinaryIO:
        """A seekable reader of a listed file that gives all its listed bytes or raises :class:`AccessError`."""
        if self.local:
            try:
                return open(self.full(file.path), "rb")
            except OSError as error:
                raise AccessError(f"{self.public(file.path)}: {error.strerror}") from error
        return io.BufferedReader(_RangeReader(self, file), buffer_size=1 << 16)

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """The bytes from ``start`` up to ``stop``; fewer than that many is an access error."""

        def fetch() -> bytes:
            if self.local:
                with open(self.full(path), "rb") as file:
                    file.seek(start)
                    data = file.read(stop - start)
            else:
                data = bytes(self.fs.cat_file(self.full(path), start=start, end=stop))
            if len(data) != stop - start:
                raise OSError(f"{len(data)} bytes came where {stop - start} were asked for")
            return data

        return retry(fetch, self.public(path), tries=1 if self.local else TRIES)

    def list(self, path: str = "", recursive: bool = True) -> list[FileInfo]:
        """Every file below ``path`` (or directly in it), links followed, sorted; paths are relative to this folder.

        Raises:
            AccessError: a folder or an entry of it could not be read; a link leads nowhere.
        """
        self._forget()
        if self.local:
            return sorted(self._walk_local(path, recursive))
        depth = None if recursive else 1
        found = retry(lambda: self.fs.find(self.full(path), maxdepth=depth, detail=True), self.public(path))
        prefix = self.base + "/"
        return sorted(
            _file_info(name.removeprefix(prefix), info)
            for name, info in found.items()
            if info["type"] == "file" and not _temporary(name)
        )

    def _walk_local(self, path: str, recursive: bool) -> Iterator[FileInfo]:
        pending: list[tuple[str, frozenset[str]]] = [(path, frozenset())]
        while pending:
            folder, above = pending.pop()
            real = os.path.realpath(self.full(folder))
            if real in above:  # a link to a folder above
                continue
            try:
                entries = list(os.scandir(self.full(folder)))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise AccessError(f"{self.public(folder)}: {error.strerror}") from error
            for entry in entries:
                below = f"{folder}/{entry.name}" if folder else entry.name
                info = self._stat_entry(below)
                if info is None:
                    continue
                if stat.S_ISDIR(info.st_mode) and recursive:
                    pending.append((below, above | {real}))
                elif stat.S_ISREG(info.st_mode) and not _temporary(entry.name):
                    yield FileInfo(below, info.st_size, str(info.st_mtime_ns))

    def _stat_entry(self, path: str) -> os.stat_result | None:
        """What a directory entry leads to; nothing if it is gone by now."""
        try:
            return os.stat(self.full(path))
        except FileNotFoundError as error:
            if not os.path.islink(self.full(path)) or os.path.basename(path).startswith("."):  # editors' locks
                return None
            raise AccessError(f"{self.public(path)} links to nothing: restore or remove it") from error
        except OSError as error:
            raise AccessError(f"{self.public(path)}: {error.strerror}: mend or remove it") from error

    def _forget(self) -> None:
        """Drop the file system's listing cache: other processes write here too."""
        if not self.local:
            self.fs.invalidate_cache()

    # writing

    def publish(self, path: str, data: bytes) -> None:
        """Write a file whole, in the place of an older one: by one PUT, or by fsync and rename."""
        if self.local:
            temporary = self._write_temporary(path, data)
            os.replace(temporary, self.full(path))
            _sync_folder(os.path.dirname(self.full(path)))
        else:
            retry(lambda: self.fs.pipe_file(self.full(path), data), self.public(path))

    def create(self, path: str, data: bytes) -> bool:
        """Write a file whole unless there is one; whether it was written."""
        if self.local:
            temporary = self._write_temporary(path, data)
            try:
                os.link(temporary, self.full(path))
            except FileExistsError:
                return False
            finally:
                os.unlink(temporary)
            _sync_folder(os.path.dirname(self.full(path)))
            return True
        try:
            retry(lambda: self.fs.pipe_file(self.full(path), data, mode="create"), self.public(path))
        except FileExistsError:
            return False
        return True

    @contextmanager
    def writer(self, path: str) -> Iterator[BinaryIO]:
        """Write a file piece by piece; it is there, whole, once the block has ended without an error."""
        if self.local:
            temporary = self._temporary_beside(path)
            try:
                with open(temporary, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.full(path))
            finally:
                Path(temporary).unlink(missing_ok=True)
            _sync_folder(os.path.dirname(temporary))
        else:
            upload = self.fs.open(self.full(path), "wb")
            try:
                yield upload
            except BaseException:
                upload.discard()
                upload.closed = True  # nothing may finish it any more
                raise
            retry(upload.close, self.public(path), tries=1)

    def move(self, path: str, target: str) -> None:
        """Give a file another path, in the place of what was there."""
        if self.local:
            os.makedirs(os.path.dirname(self.full(target)), exist_ok=True)
            os.replace(self.full(path), self.full(target))
            _sync_folder(os.path.dirname(self.full(target)))
        else:
            retry(lambda: self.fs.cp_file(self.full(path), self.full(target)), self.public(target))
            self.remove(path)

    def discard(self, path: str) -> None:
        """Remove a folder and all that is below it; none there is no error.

        Raises:
            AccessError: a remote file could not be removed.
        """
        if self.local:
            if self.exists(path):
                self.fs.rm(self.full(path), recursive=True)
            return
        self._forget()
        for name in retry(lambda: self.fs.find(self.full(path)), self.public(path)):  # rm would expand patterns
            self.remove(name.removeprefix(f"{self.base}/"))

    def remove(self, path: str) -> None:
        """Remove a file; none there is no error.

        Raises:
            AccessError: it could not be removed.
        """
        try:
            retry(lambda: self.fs.rm_file(self.full(path)), self.public(path), tries=1 if self.local else TRIES)
        except FileNotFoundError:
            pass

    def check_writable(self) -> None:
        """Try a small write.

        Raises:
            RequestError: this folder cannot be written.
        """
        probe = f".probe-{uuid.uuid4().hex}.tmp"
        try:
            self.publish(probe, b"")
            self.remove(probe)
        except (OSError, AccessError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise RequestError(f"cannot write to the workspace {self.public()}: {reason}") from error

    def _write_temporary(self, path: str, data: bytes) -> str:
        temporary = self._temporary_beside(path)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return temporary

    def _temporary_beside(self, path: str) -> str:
        """A new name in the folder of a local file, which is made."""
        folder = os.path.dirname(self.full(path))
        os.makedirs(folder, exist_ok=True)
        return os.path.join(folder, f".{uuid.uuid4().hex}.tmp")


class _RangeReader(io.RawIOBase):
    """Sequential reads of a remote file in large ranges, each checked for its length."""

    def __init__(self, folder: Folder, file: FileInfo) -> None:
        self.folder, self.file = folder, file
        self.position = 0
        self.start, self.chunk = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.file.size}[whence]
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any) -> int:
        if self.position >= self.file.size:
            return 0
        if not self.start <= self.position < self.start + len(self.chunk):
            stop = min(self.file.size, self.position + CHUNK)
            self.start, self.chunk = self.position, self.folder.read_range(self.file.path, self.position, stop)
        begin = self.position - self.start
        data = self.chunk[begin : begin + len(buffer)]
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def retry(call: Callable[[], T], name: str, tries: int = TRIES) -> T:
    """Call until it works, with growing pauses; a missing or an existing file is an answer, not a failure.

    Raises:
        AccessError: it failed every time, or for want of permission.
    """
    for attempt in range(tries):
        try:
            return call()
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:  # noqa: BLE001 - every client library has its own network errors
            denied = isinstance(error, PermissionError) or "Credentials" in type(error).__name__
            if denied or attempt == tries - 1:
                said = " ".join(str(error).split())  # one line
                why = "no credentials, or no permission" if denied else f"{type(error).__name__}: {said}"
                raise AccessError(f"{name}: {why}") from error
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("tries is at least 1")


def _file_info(path: str, info: dict[str, Any]) -> FileInfo:
    version = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime") or ""
    return FileInfo(path, int(info["size"]), str(version).strip('"'))


def _temporary(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.startswith(".") and base.endswith(".tmp")


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
