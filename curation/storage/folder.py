"""Folders under fsspec URLs: atomic writes, and reads of files, streams and ranges that never drop or mix bytes."""

import bisect
import fcntl
import hashlib
import io
import json
import os
import stat
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from curation.errors import AccessError, ChangedError, RequestError
from curation.storage.options import Options, options_for
from curation.storage.ranges import RandomReader, SequentialReader, coalesce
from curation.storage.retries import TRIES, retry
from curation.storage.urls import is_local, local_path, public_url

GAP = 1 << 16  # ranges that lie closer are fetched together: some ms of a request; in money it is worth only 5 kB
IN_FLIGHT = 8  # requests at once of one call

_clients: dict[tuple[Any, ...], Any] = {}  # one a process, protocol and options: its connections are kept open


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

    def is_empty(self) -> bool:
        """Whether no file lies below it, but for those that were being written.

        Raises:
            AccessError: the store does not answer.
        """
        self._forget()
        if self.local:
            return next(self._walk_local("", True), None) is None
        return retry(lambda: next(self._walk_remote("", True), None) is None, self.public())

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
            return cast(BinaryIO, RandomReader(self, file, ahead))
        return io.BufferedReader(SequentialReader(self, file), buffer_size=1 << 16)

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
        return retry(lambda: sorted(self._walk_remote(path, recursive)), self.public(path))

    def _walk_remote(self, path: str, recursive: bool) -> Iterator[FileInfo]:
        full, skipped = self.full(path), len(self.base) + 1
        if hasattr(self.fs, "pages"):
            skipped -= len(self.base.partition("/")[0]) + 1  # an object's key is without its bucket
            for page in self.fs.pages(full, recursive):
                for one in page:
                    if not one["Key"].endswith("/") and not _temporary(one["Key"]):  # a console's mark of a folder
                        yield _file_info(one["Key"][skipped:], one)
            return
        for name, info in self.fs.find(full, maxdepth=None if recursive else 1, detail=True).items():
            if info["type"] == "file" and not _temporary(name):
                yield _file_info(name[skipped:], info)

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

    # compare-and-swap

    def versioned(self, path: str) -> tuple[bytes, str] | None:
        """A small file's bytes, and the token of them that :meth:`swap` compares; None where there is no file."""
        try:
            if self.local:
                data = self.read(path)
                return data, _content_token(data)
            return retry(lambda: self._fetch(path), self.public(path))
        except FileNotFoundError:
            return None

    def swap(self, path: str, data: bytes, version: str | None) -> bool:
        """Replace a small file whole if it still has the content that was read; whether it was replaced.

        Of several writers that read the same, one wins; a killed one leaves nothing that the next must wait for.
        A local file is swapped under a lock that the kernel frees with its process, one in S3 by a conditional PUT.
        Where a remote store's answer was lost, the file is read: one with these very bytes counts as ours.

        Args:
            path: of the file.
            data: the new bytes.
            version: as :meth:`versioned` gave it; None: there was no file.

        Raises:
            RequestError: this store cannot swap.
        """
        if not self.local:
            self.check_swaps()
            return self._swap_remote(path, data, version)
        with self._lock(path):
            now = self.versioned(path)
            if (now and now[1]) != version:
                return False
            self.publish(path, data)
        return True

    def check_swaps(self) -> None:
        """See that the store compares before it swaps, by a small file of our own; once a process and bucket.

        Raises:
            RequestError: it does not, or says nothing of it.
        """
        if self.local:
            return
        if not hasattr(self.fs, "put_if"):
            raise RequestError(
                f"{self.public()}: no compare-and-swap is known of this store: put the workspace on a disk or S3"
            )
        bucket = self.base.partition("/")[0]
        if bucket in self.fs.swaps:
            return
        probe = f".probe-{uuid.uuid4().hex}.tmp"
        try:
            compares = (
                self._swap_remote(probe, b"1", None)
                and not self._swap_remote(probe, b"2", None)
                and not self._swap_remote(probe, b"3", hashlib.md5(probe.encode(), usedforsecurity=False).hexdigest())
                and self._swap_remote(probe, b"4", self.info(probe).version)
            )
        finally:
            self.remove(probe)
        if not compares:
            raise RequestError(
                f"s3://{bucket}: this store ignores If-Match or If-None-Match of a PUT, so that two runs at once would "
                "undo each other: update it, or put the workspace elsewhere"
            )
        self.fs.swaps.add(bucket)

    def _swap_remote(self, path: str, data: bytes, version: str | None) -> bool:
        if retry(lambda: self.fs.put_if(self.full(path), data, version), self.public(path)):
            return True
        now = self.versioned(path)
        return now is not None and now[0] == data

    @contextmanager
    def _lock(self, path: str) -> Iterator[None]:
        """Hold the lock of a local file; the lock's own file stays, for whoever waits for it has it open.

        Raises:
            RequestError: the file system has no locks, or this user may not write there.
        """
        folder, _, name = self.full(path).rpartition("/")
        os.makedirs(folder, exist_ok=True)
        with ExitStack() as held:
            try:
                file = held.enter_context(open(f"{folder}/.{name}.lock", "ab"))
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                raise RequestError(
                    f"cannot lock {self.public(path)}: {error.strerror}: put the workspace where locks work"
                ) from error
            yield

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
            raise RequestError(f"cannot write to {self.public()}: {reason}") from error

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


def _client(protocol: str, options: dict[str, Any]) -> Any:
    """The file system for these options; of S3 one a process, for all threads."""
    if protocol not in ("s3", "s3a"):
        return fsspec.filesystem(protocol, **options)
    from curation.s3 import S3  # takes half a second, and not everybody needs it

    key = os.getpid(), json.dumps(options, sort_keys=True, default=repr)
    return _clients.get(key) or _clients.setdefault(key, S3(**options, skip_instance_cache=True))


def _file_info(path: str, info: dict[str, Any]) -> FileInfo:
    version = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime") or ""
    return FileInfo(path, int(info["Size"] if "Size" in info else info["size"]), str(version).strip('"'))


def _temporary(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.startswith(".") and base.endswith((".tmp", ".lock"))


def _content_token(data: bytes) -> str:
    """What changes when a local file's bytes do: its time of modification may not."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
