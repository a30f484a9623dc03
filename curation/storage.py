"""Folders under fsspec URLs: atomic writes, and reads of files, streams and ranges that never drop or mix bytes.

All input and output of the pipeline goes through :class:`Folder`, so that a
local disk and an object store behave alike: a file is complete or absent.
"""

import bisect
import hashlib
import io
import json
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem

from curation.errors import AccessError, ChangedError, CurationError, RequestError

T = TypeVar("T")
Options = dict[str, dict[str, Any]]

CHUNK = 8 << 20  # bytes a sequential reader asks for at once
BLOCK = 1 << 16  # bytes that a random reader asks for at least; as many as pyarrow wants of a file's end
GAP = 1 << 16  # ranges that lie closer are fetched together: some ms of a request; in money it is worth only 5 kB
IN_FLIGHT = 8  # requests at once of one call
AHEAD = 4 * CHUNK  # bytes that a reader of a file's parts fetches at once
TRIES = 8  # attempts at a remote operation before it counts as an access error
PLACES = ("workspace", "references", "catalog")  # what storage options are given for by name, besides roots

_clients: dict[tuple[Any, ...], Any] = {}  # one a process, protocol and options: its connections are kept open

_SECRET_NAMES = {"key", "username"}
_SECRET_PARTS = re.compile(
    "secret|password|passwd|token|credential|connection_string|access_key|account_key|sas|authorization"
)
_USER_INFO = re.compile(r"://[^/\s]*@")
_QUERY = re.compile(r"(https?://[^\s'\"?#]*)[?#][^\s'\"]*")


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


def file_name(url: str) -> str:
    """The last part of a path or URL, without a query (which may be a signature)."""
    name = url.rstrip("/").rpartition("/")[2]
    return name if is_local(url) else name.partition("?")[0]


def without_secrets(text: str) -> str:
    """What a library's error says, in one line; of URLs in it neither the user nor the query, which may be signed."""
    return _QUERY.sub(r"\1", _USER_INFO.sub("://", " ".join(text.split())))


def check_storage_options(options: dict[str, Any]) -> None:
    """Refuse secrets in the config, at any depth: they would end up in files and logs.

    Raises:
        RequestError: an option looks like a credential, or what a protocol or root is given is no mapping.
    """
    for name, values in options.items():
        if not isinstance(values, dict):
            raise RequestError(
                f"runtime.storage.{name} is no mapping: write runtime.storage={{{name}: {{option: value}}}}"
            )
        _refuse_secrets(f"runtime.storage.{name}", values)


def check_storage_names(options: Mapping[str, Any] | None, roots: Iterable[str]) -> None:
    """Refuse options that would never be used.

    Args:
        options: per protocol, root or place of :data:`PLACES`.
        roots: what the roots of the archive are called.

    Raises:
        RequestError: a name is none of these; the message has the choices.
    """
    names = [*roots, *PLACES]
    for name in options or {}:
        if name not in names and name.split("::")[0] not in fsspec.available_protocols():
            raise RequestError(
                f"storage options are given for {name!r}, which is no protocol (s3, gs, …) and no root: "
                f"choose a protocol, or one of {', '.join(names)}"
            )


def options_for(options: Options | None, name: str, url: str) -> Options:
    """The options to open ``url`` with, as :class:`Folder` takes them.

    Args:
        options: per protocol, root or place.
        name: of the root or place that lies at ``url``; its own options go over its protocol's.
        url: where it lies.
    """
    options = options or {}
    if is_local(url) or name not in options:
        return options
    protocol = url.split("://", 1)[0]
    return {**options, protocol: _merge(options.get(protocol, {}), options[name])}


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both mappings; where both have a mapping at a key, these are merged as well."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _merge(below[key], value) if both else value
    return merged


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
        options: per protocol, what its fsspec file system is made with (``{"s3": {"endpoint_url": …}}``);
            also per root or place, for ``name``.
        name: of the root or place that lies there; its own options go over its protocol's.

    Pickled are URL and options: whoever unpickles it finds credentials of its own.
    """

    def __init__(self, url: str, options: Options | None = None, name: str = "") -> None:
        self.options = options_for(options, name, url)
        self.local = is_local(url)
        if self.local:
            self.base = local_path(url)
            self.fs: Any = LocalFileSystem()
            self.url = self.base
        else:
            protocol = url.split("://", 1)[0]
            try:
                self.fs = _client(protocol, self.options.get(protocol, {}))
            except (ValueError, TypeError, ImportError) as error:
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

    def kind(self) -> str | None:
        """What lies at this URL itself: ``directory``, ``file``, or ``None`` where there is nothing.

        Raises:
            AccessError: the store does not answer.
        """
        self._forget()
        if self.local:
            return "directory" if os.path.isdir(self.base) else "file" if os.path.isfile(self.base) else None
        try:
            return str(retry(lambda: self.fs.info(self.base), self.public())["type"])
        except FileNotFoundError:
            return None

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
        return retry(lambda: self._fetch(path)[0], self.public(path))

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

    def open(self, file: FileInfo, random: bool = False, ahead: Sequence[tuple[int, int]] = ()) -> BinaryIO:
        """A seekable reader of a listed file that gives all its listed bytes or raises :class:`AccessError`.

        Args:
            file: as it was listed; bytes of another version are refused.
            random: it is read here and there (Parquet, TIFF): what is asked for is fetched, and not
                ``CHUNK`` bytes ahead.
            ahead: ranges that a random reader will be asked for (the column chunks of some row groups):
                a remote file's are fetched now, as by :meth:`read_ranges`, and held.
        """
        if self.local:
            try:
                return open(self.full(file.path), "rb")
            except OSError as error:
                raise AccessError(f"{self.public(file.path)}: {error.strerror}") from error
        if random:
            return cast(BinaryIO, _RandomReader(self, file, ahead))
        return io.BufferedReader(_SequentialReader(self, file), buffer_size=1 << 16)

    def read_range(self, path: str, start: int, stop: int, version: str = "") -> bytes:
        """The bytes from ``start`` up to ``stop``.

        Args:
            path: of the file.
            start: first byte.
            stop: the byte after the last.
            version: of the file as it was listed, to be held against that of the bytes.

        Raises:
            FileNotFoundError: there is no such file.
            AccessError: fewer came, every time; ChangedError: the file is not of that version.
        """
        return self._read_range(path, start, stop, version)[0]

    def read_ranges(
        self, path: str, ranges: Sequence[tuple[int, int]], version: str = "", gap: int | None = None
    ) -> list[bytes]:
        """The bytes of several ranges ``(start, stop)`` of one file, in the order asked for.

        Remote ranges that lie no farther apart than ``gap`` (``GAP``) are fetched by one request of ``CHUNK`` bytes
        or little more, ``IN_FLIGHT`` at once; each is checked for its length and retried alone.

        Raises:
            FileNotFoundError: there is no such file.
            AccessError: as :meth:`read_range`; also if the file is replaced between two requests.
        """
        spans = coalesce(ranges, 0 if self.local else GAP if gap is None else gap)

        def read(span: tuple[int, int]) -> tuple[bytes, str]:
            return self._read_range(path, *span, version)

        if self.local or len(spans) < 2:
            parts = [read(span) for span in spans]
        else:
            with ThreadPoolExecutor(min(IN_FLIGHT, len(spans))) as pool:
                parts = list(pool.map(read, spans))
        if len({found for data, found in parts if data}) > 1:
            raise self._changed(path)
        starts = [start for start, _ in spans]
        given = []
        for start, stop in ranges:
            i = bisect.bisect_right(starts, start) - 1
            given.append(parts[i][0][start - starts[i] : stop - starts[i]])
        return given

    def _read_range(self, path: str, start: int, stop: int, version: str) -> tuple[bytes, str]:
        """A range's bytes, checked, and the version that they are of."""
        if start == stop:
            return b"", version

        def read() -> tuple[bytes, str]:
            data, found = self._fetch(path, start, stop)
            if version and found and found != version:
                raise self._changed(path)
            if len(data) != stop - start:
                raise OSError(f"{len(data)} bytes came where {stop - start} were asked for")
            return data, found

        return retry(read, self.public(path), tries=self._tries)

    def _fetch(self, path: str, start: int | None = None, stop: int | None = None) -> tuple[bytes, str]:
        """Ask once for a file's bytes, all or a range; also their version, empty where the store does not tell."""
        if self.local:
            with open(self.full(path), "rb") as file:
                file.seek(start or 0)
                return file.read(-1 if stop is None else stop - (start or 0)), str(os.fstat(file.fileno()).st_mtime_ns)
        if not hasattr(self.fs, "fetch"):
            return bytes(self.fs.cat_file(self.full(path), start=start, end=stop)), ""
        try:
            data, version = self.fs.fetch(self.full(path), start, stop)
        except EOFError as error:
            raise self._changed(path) from error
        return data, version

    def _changed(self, path: str) -> ChangedError:
        return ChangedError(f"{self.public(path)}: it changed after it was listed; run again")

    @property
    def _tries(self) -> int:
        return 1 if self.local else TRIES

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
        """Write a file whole unless there is one; whether it was written.

        Where a remote store's answer was lost, a file of ours may pass for another's.
        """
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
            self._finish(upload, path)

    def _finish(self, upload: Any, path: str) -> None:
        size = upload.tell()
        try:
            retry(upload.close, self.public(path), tries=1)  # its requests are retried one by one
        except FileNotFoundError as error:  # the last request was repeated, for its first answer was lost
            if self.info(path).size != size:
                raise AccessError(f"{self.public(path)}: its upload was lost") from error
        except AccessError:
            upload.discard()
            raise
        finally:
            upload.closed = True

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
            retry(lambda: self.fs.rm_file(self.full(path)), self.public(path), tries=self._tries)
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


class RangeReader(io.RawIOBase):
    """A listed file as a seekable stream; how bytes are fetched is the subclass's."""

    def __init__(self, folder: Folder, file: FileInfo) -> None:
        self.folder, self.file = folder, file
        self.position = 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read from anywhere."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go on from another place."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.file.size}[whence]
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        """The place that is read next."""
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the file goes."""
        stop = min(self.position + len(buffer), self.file.size)
        if self.position >= stop:
            return 0
        data = self.get(self.position, stop)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def get(self, start: int, stop: int) -> bytes:
        """The bytes from ``start``, some of them at least."""
        raise NotImplementedError

    def fetch(self, start: int, stop: int) -> bytes:
        """All bytes from ``start`` up to ``stop``, of the listed version."""
        return self.folder._read_range(self.file.path, start, stop, self.file.version)[0]


class _SequentialReader(RangeReader):
    """Fetches ``CHUNK`` bytes from wherever it is read, and gives what follows out of them."""

    def __init__(self, folder: Folder, file: FileInfo) -> None:
        super().__init__(folder, file)
        self.start, self.chunk = 0, b""

    def get(self, start: int, stop: int) -> bytes:
        if not self.start <= start < self.start + len(self.chunk):
            self.start, self.chunk = start, self.fetch(start, min(self.file.size, start + CHUNK))
        return self.chunk[start - self.start : stop - self.start]


class _RandomReader(RangeReader):
    """Fetches exactly what it is asked for, but the last ``BLOCK`` bytes and short reads by blocks, which it keeps."""

    HELD = 16  # blocks

    def __init__(self, folder: Folder, file: FileInfo, ahead: Sequence[tuple[int, int]]) -> None:
        super().__init__(folder, file)
        self.ahead = dict(zip(ahead, folder.read_ranges(file.path, ahead, file.version), strict=True))
        self.tail = max(0, file.size - BLOCK)
        self.blocks: dict[int, bytes] = {}

    def readall(self) -> bytes:
        start, self.position = min(self.position, self.file.size), self.file.size
        return self.get(start, self.file.size)

    def get(self, start: int, stop: int) -> bytes:
        for (first, last), data in self.ahead.items():
            if first <= start and stop <= last:
                return data[start - first : stop - first]
        if stop - start >= BLOCK and start != self.tail:
            return self.fetch(start, stop)
        data = b""
        while start < stop:
            begin = self.tail if start >= self.tail else start // BLOCK * BLOCK
            end = self.file.size if begin == self.tail else min(begin + BLOCK, self.tail)
            data += self._block(begin, end)[start - begin : stop - begin]
            start = end
        return data

    def _block(self, begin: int, end: int) -> bytes:
        if begin not in self.blocks:
            if len(self.blocks) == self.HELD:
                del self.blocks[min(self.blocks, key=lambda start: start == self.tail)]  # the oldest, never the tail
            self.blocks[begin] = self.fetch(begin, end)
        return self.blocks[begin]


def bundled(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Runs of items, each run of ``AHEAD`` bytes or little more by ``size``: what is worth fetching together."""
    run: list[T] = []
    total = 0
    for item in items:
        run.append(item)
        total += size(item)
        if total >= AHEAD:
            yield run
            run, total = [], 0
    if run:
        yield run


def coalesce(ranges: Sequence[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """What to fetch for ``ranges``, sorted and disjoint; a span grows to ``CHUNK`` bytes at most by joining."""
    spans: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if spans:
            first, last = spans[-1]
            together = max(last, stop)
            if start < last or (start - last <= gap and together - first <= CHUNK):
                spans[-1] = first, together
                continue
        spans.append((start, stop))
    return spans


def _client(protocol: str, options: dict[str, Any]) -> Any:
    """The file system for these options; of S3 one a process, for all threads."""
    if protocol not in ("s3", "s3a"):
        return fsspec.filesystem(protocol, **options)
    from curation.s3 import S3  # takes half a second, and not everybody needs it

    key = os.getpid(), json.dumps(options, sort_keys=True, default=repr)
    return _clients.get(key) or _clients.setdefault(key, S3(**options, skip_instance_cache=True))


def pause(attempt: int) -> float:
    """Seconds to wait after a failed attempt (0, 1, …): 0.2, 0.4, …, 10 at most; the same every time."""
    return min(0.2 * 2.0**attempt, 10.0)


def retry(call: Callable[[], T], name: str, tries: int = TRIES) -> T:
    """Call until it works, with growing pauses; a missing or an existing file is an answer, not a failure.

    Raises:
        AccessError: it failed every time, or for want of permission.
        RequestError: the profile that was asked for is not there.
    """
    for attempt in range(tries):
        try:
            return call()
        except (FileNotFoundError, FileExistsError, CurationError):
            raise
        except Exception as error:  # noqa: BLE001 - every client library has its own network errors
            denied = isinstance(error, PermissionError) or "Credentials" in type(error).__name__
            said = without_secrets(str(error))
            if type(error).__name__ == "ProfileNotFound":
                raise RequestError(f"{name}: {said}: write it to the AWS config file, or name another") from error
            if denied or attempt == tries - 1:
                why = "no credentials, or no permission" if denied else f"{type(error).__name__}: {said}"
                raise AccessError(f"{name}: {why}") from error
            time.sleep(pause(attempt))
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
