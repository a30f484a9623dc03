"""The files of a Zarr store, by their path in it: of a folder, of a zip, of the bytes of a zip."""

import errno
import json
import lzma
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from threading import Lock
from typing import Any

from curation.archive.image import bad_image
from curation.errors import ChangedError
from curation.storage import GAP, IN_FLIGHT, FileInfo, Folder, coalesce

METADATA = (".zarray", ".zgroup", "zarr.json", ".zmetadata")
MAX_METADATA = 1 << 26  # bytes of one JSON file


class Files:
    """The files of a store by their path in it.

    Attributes:
        sizes: bytes of each, as they are handed out.
        waits: for a disk or a store, so that others can be read at the same time.
        far: in a store where each request takes its time.
    """

    sizes: dict[str, int]
    waits: bool
    far = False

    def ahead(self, keys: Iterable[str]) -> None:
        """Fetch files that are read next, where they are far, in the place of those that were fetched before."""

    def spans(self, keys: Iterable[str]) -> list[int]:
        """The bytes of each request by which an object store would give these files."""
        return [self.sizes[key] for key in dict.fromkeys(keys) if key in self.sizes]

    def read(self, key: str, start: int, stop: int) -> bytes:
        """Some bytes of a file."""
        raise NotImplementedError

    def json(self, key: str) -> dict[str, Any]:
        """A file of metadata.

        Raises:
            BadSample: it is no JSON object, or larger than any should be.
        """
        if self.sizes[key] > MAX_METADATA:
            raise bad_image(f"zarr: {key} is of {self.sizes[key]} bytes", "TooLarge")
        try:
            found = json.loads(self.read(key, 0, self.sizes[key]))
        except (ValueError, RecursionError) as error:
            raise bad_image(f"zarr: {key}: {error}") from None
        if not isinstance(found, dict):
            raise bad_image(f"zarr: {key} is no object")
        return found

    @property
    def metadata(self) -> list[str]:
        """The files that say what the arrays of the store are."""
        return [key for key in self.sizes if key.rpartition("/")[2] in (*METADATA, ".zattrs")]


class FolderFiles(Files):
    """The listed files of a folder."""

    waits = True

    def __init__(self, folder: Folder, path: str, files: Iterable[FileInfo]) -> None:
        prefix = "" if path == "." else path + "/"
        self.folder, self.files = folder, {file.path.removeprefix(prefix): file for file in files}
        self.sizes = {key: file.size for key, file in self.files.items()}
        self.far, self.held = not folder.local, dict[str, bytes]()

    def ahead(self, keys: Iterable[str]) -> None:
        """Fetch files that are read next, ``IN_FLIGHT`` at once."""
        there = [key for key in dict.fromkeys(keys) if key in self.files]
        if self.far and there:
            with ThreadPoolExecutor(min(IN_FLIGHT, len(there))) as pool:
                whole = pool.map(lambda key: self._fetch(key, 0, self.sizes[key]), there)
                self.held = dict(zip(there, whole, strict=True))

    def read(self, key: str, start: int, stop: int) -> bytes:
        """Some bytes of a file; fewer than were listed are an access error."""
        return self.held[key][start:stop] if key in self.held else self._fetch(key, start, stop)

    def _fetch(self, key: str, start: int, stop: int) -> bytes:
        file = self.files[key]
        try:
            return self.folder.read_range(file.path, start, stop, file.version)
        except FileNotFoundError as error:
            raise ChangedError(f"{self.folder.public(file.path)}: it vanished after it was listed") from error


class ZipFiles(Files):
    """The files of a zip.

    Args:
        file: the zip, seekable.

    Raises:
        BadSample: it is none, is cut short or damaged.
    """

    waits = False

    def __init__(self, file: Any) -> None:
        with _zip_faults("it"):
            self.zip, self.lock = zipfile.ZipFile(file), Lock()
        infos = {info.filename: info for info in self.zip.infolist()}  # of several of one name the last counts
        tops = [name.rpartition("/")[0] for name in infos if name.rpartition("/")[2] in METADATA]
        top = min(tops, key=len, default="")
        prefix = f"{top}/" if top and not infos.keys() & set(METADATA) else ""
        self.infos = {name.removeprefix(prefix): info for name, info in infos.items() if name.startswith(prefix)}
        self.sizes = {key: info.file_size for key, info in self.infos.items()}

    @cached_property
    def _ends(self) -> dict[int, int]:
        """Where what begins at an offset ends: a header, the file, at times more."""
        return dict(pairwise(sorted({*(info.header_offset for info in self.zip.infolist()), self.zip.start_dir})))

    def ranges(self, keys: Iterable[str]) -> list[tuple[int, int]]:
        """Where files lie in the zip, with their headers."""
        starts = dict.fromkeys(self.infos[key].header_offset for key in keys if key in self.infos)
        return [(start, self._ends[start]) for start in starts if start in self._ends]

    def spans(self, keys: Iterable[str]) -> list[int]:
        """The bytes of each request by which an object store would give these files."""
        return [stop - start for start, stop in coalesce(self.ranges(keys), GAP)]

    def read(self, key: str, start: int, stop: int) -> bytes:
        """Some bytes of a file."""
        with self.lock, _zip_faults(key), self.zip.open(self.infos[key]) as file:
            if start:
                file.seek(start)
            return file.read(stop - start)


class RemoteZipFiles(ZipFiles):
    """The files of a zip in an object store: those that are read next come by few requests."""

    far = True

    def __init__(self, folder: Folder, file: FileInfo) -> None:
        super().__init__(folder.open(file, random=True))
        self.folder, self.file = folder, file

    def ahead(self, keys: Iterable[str]) -> None:
        """Fetch files that are read next, near ones together."""
        with self.lock:
            self.zip.fp = self.folder.open(self.file, random=True, ahead=self.ranges(keys))


@contextmanager
def _zip_faults(name: str) -> Iterator[None]:
    """What ``zipfile`` raises on damaged files, as a bad sample; what the disk or the store raises passes."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError) as error:
        kind = "TruncatedImage" if "not a zip" in str(error) else "BadImage"
        raise bad_image(f"zip: {name}: {error}", kind) from error
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # a seek to where no file reaches
            raise
        raise bad_image(f"zip: {name}: {error.strerror or error}") from error
