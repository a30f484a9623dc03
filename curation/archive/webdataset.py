"""WebDataset tars, read once from front to back: memory holds one sample, whatever the size of the shard.

The parser is our own for two reasons: ``tarfile`` says nothing when a tar is
cut at a member's edge, and it keeps every header that it has seen. Formats:
POSIX.1-2001 ``ustar`` and ``pax``, and GNU's long names and binary numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from curation.archive.names import SIDECARS, extension, is_hidden, is_text, is_unsafe, matters, printable, split_name
from curation.archive.sample import Member, RawSample, Rejection, Wanted
from curation.archive.settings import ArchiveConfig
from curation.archive.shards import Shard
from curation.archive.tables import Sieve
from curation.archive.zarr.member import by_time
from curation.errors import AccessError
from curation.storage import FileInfo, Folder

BLOCK = 512
MAX_MEMBER = 1 << 31  # bytes of one member
MAX_EXTENDED = 1 << 20  # bytes of a pax header or a long name
TOLD = SIDECARS | {"zip"}  # what is read of a bare tar: a zipped Zarr may be several samples
_ZEROS = bytes(BLOCK)
_REGULAR = b"0\0" + b"7"
_LINKS = b"12"
_NO_DATA = b"123456"  # links, devices, folders, pipes
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def read_tar(
    folder: Folder,
    shard: Shard,
    settings: ArchiveConfig,
    only: Sequence[Wanted] | None = None,
    sieve: Sieve | None = None,
    bare: bool = False,
) -> Iterator[RawSample | Rejection]:
    """The samples of a tar in their order; members of a key must follow each other.

    A zipped Zarr of several times is as many samples. ``bare``: images are passed over, and come as no bytes.

    What comes is numbered from 0 without gaps. A break (cut short, a damaged
    header) ends the shard with one rejection for all that is lost.

    Raises:
        AccessError: fewer bytes came than the listing said.
    """
    assert shard.file is not None
    if only is not None:
        keys = {wanted.key for wanted in only}
        yield from (item for item in read_tar(folder, shard, settings) if item.key in keys)
        return
    yield from by_time(_read(folder, shard.file, settings, bare))


def _read(folder: Folder, listed: FileInfo, settings: ArchiveConfig, bare: bool) -> Iterator[RawSample | Rejection]:
    with folder.open(listed) as file:
        stream = _Stream(file, listed.size, folder.public(listed.path))
        assembly = _Assembly(settings.members, bare)
        try:
            for entry in _entries(stream):
                yield from assembly.add(entry, stream)
            yield from assembly.finish()
            if stream.rest_is_data():
                message = "data follow the end-of-archive blocks (tars joined by cat?); join them by tar --concatenate"
                yield assembly.reject("TrailingData", message)
        except _Break as broken:
            yield from assembly.finish_broken(broken)


class _Break(Exception):
    """The archive cannot be read on from here."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(slots=True)
class _Entry:
    """A member's header: ``type`` is the tar type flag, ``offset`` where its data begin."""

    name: str
    type: bytes
    offset: int
    size: int
    sparse: bool


class _Stream:
    """Reads forward and tells a file that ends too early (a break) from bytes that did not come (access)."""

    def __init__(self, file: BinaryIO, size: int, url: str) -> None:
        self.file, self.size, self.url = file, size, url
        self.position = 0

    def take(self, count: int, what: str) -> bytes:
        """The next ``count`` bytes."""
        self.check(count, what)
        data = self.file.read(count)
        if len(data) != count:
            got = self.position + len(data)
            raise AccessError(f"{self.url}: {got} bytes came where the listing said {self.size}")
        self.position += count
        return data

    def skip(self, count: int, what: str) -> None:
        """Pass over ``count`` bytes."""
        self.check(count, what)
        if count <= 1 << 16:
            self.take(count, what)
        else:
            self.file.seek(count, 1)
            self.position += count

    def rest_is_data(self) -> bool:
        """Whether anything but zeros is left."""
        while self.position < self.size:
            if self.take(min(1 << 20, self.size - self.position), "padding").strip(b"\0"):
                return True
        return False

    def check(self, count: int, what: str) -> None:
        """See that so many bytes are left."""
        if self.position + count > self.size:
            raise _Break("TruncatedShard", f"the tar ends at byte {self.size}, in the middle of {printable(what)}")


def _entries(stream: _Stream) -> Iterator[_Entry]:
    """Every member's header up to the end-of-archive blocks; its data may be taken before the next is asked for."""
    common: dict[str, str] = {}
    extra: dict[str, str] = {}
    while True:
        start = stream.position
        header = _next_header(stream)
        if header == _ZEROS:
            return
        name, kind, size = _parse(header, start)
        if kind in b"xgLK":
            if size > MAX_EXTENDED:
                raise _Break("TruncatedShard", f"the extended header at byte {start} is of {size} bytes")
            data = stream.take(size, "an extended header")
            stream.skip(-size % BLOCK, "an extended header")
            if kind == b"g":
                common |= _records(data, start)
            elif kind == b"x":
                extra |= _records(data, start)
            elif kind == b"L":
                extra["path"] = _text(data)
            continue
        records = common | extra if common or extra else extra
        entry = _Entry(records.get("path", name), kind, stream.position, size, kind == b"S")
        if records:
            entry.size = _pax_size(records, size, start)
            entry.sparse = entry.sparse or any(record.startswith("GNU.sparse") for record in records)
        end = entry.offset if kind in _NO_DATA else entry.offset + entry.size + -entry.size % BLOCK
        extra = {}
        yield entry
        stream.skip(end - stream.position, "member " + entry.name)


def _next_header(stream: _Stream) -> bytes:
    if stream.position == stream.size:
        raise _Break("TruncatedShard", f"the tar ends at byte {stream.size} without its end-of-archive blocks")
    if stream.position == 0:
        _refuse_compressed(stream)
    return stream.take(BLOCK, "a header")


def _refuse_compressed(stream: _Stream) -> None:
    magic = stream.file.read(6)
    stream.file.seek(0)
    for start, name in _COMPRESSED.items():
        if magic.startswith(start):
            raise _Break("NotATar", f"the file is compressed ({name}): decompress it, images hardly shrink")


def _parse(header: bytes, start: int) -> tuple[str, bytes, int]:
    """Name, type flag and size of a header block whose checksum is right."""
    try:
        told = _number(header[148:156])
        right = sum(header) - sum(header[148:156]) + 8 * 32 == told or _signed_sum(header) == told
        size = _number(header[124:136])
        if not right or size < 0:
            raise ValueError
    except ValueError:
        kind = "TruncatedShard" if start else "NotATar"
        raise _Break(kind, f"there is no valid tar header at byte {start}") from None
    name = _text(header[:100])
    kind_flag = header[156:157]
    if header[257:263] == b"ustar\0" and header[345]:
        name = f"{_text(header[345:500])}/{name}"
    if kind_flag == b"\0" and name.endswith("/"):
        kind_flag = b"5"
    return name, kind_flag, size


def _number(digits: bytes) -> int:
    """An octal number, or GNU's binary one where the first bit is set."""
    if digits[0] & 0x80:
        return int.from_bytes(bytes([digits[0] & 0x7F]) + digits[1:], "big") if digits[0] == 0x80 else -1
    return int(digits.partition(b"\0")[0].strip() or b"0", 8)


def _signed_sum(header: bytes) -> int:
    """The checksum as some old writers made it, of signed bytes."""
    return sum(byte - 256 if byte > 127 else byte for byte in header[:148] + header[156:]) + 8 * 32


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _records(data: bytes, start: int) -> dict[str, str]:
    r"""The records of a pax header: ``<length> <keyword>=<value>\n``, the length counting itself."""
    found = {}
    position = 0
    try:
        while position < len(data) and data[position]:
            length = int(data[position : data.index(b" ", position)])
            record = data[position : position + length]
            keyword, equals, value = record.partition(b" ")[2].partition(b"=")
            if len(record) != length or not equals or record[-1:] != b"\n":
                raise ValueError
            found[keyword.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
            position += length
    except ValueError:
        raise _Break("TruncatedShard", f"the pax header at byte {start} is damaged") from None
    return found


def _pax_size(records: dict[str, str], size: int, start: int) -> int:
    text = records.get("size", str(size))
    if not text.isdecimal():
        raise _Break("TruncatedShard", f"the pax header at byte {start} is damaged")
    return int(text)


@dataclass(slots=True)
class _Group:
    """The members of one key that came so far."""

    key: str
    members: list[Member] = field(default_factory=list)
    data: dict[str, bytes] = field(default_factory=dict)
    suffixes: set[str] = field(default_factory=set)
    fault: tuple[str, str] | None = None
    repeats: list[str] = field(default_factory=list)


class _Assembly:
    """Puts members that follow each other together to samples, and numbers what comes out."""

    def __init__(self, pixels: list[str] | None, bare: bool) -> None:
        self.pixels = pixels  # the suffixes that hold pixels, or None for every image
        self.bare = bare
        self.group: _Group | None = None
        self.usual: set[str] | None = None  # the suffixes of the last whole sample
        self.pending = ""  # the member whose data are being read
        self.keys: set[str] = set()
        self.index = 0

    def add(self, entry: _Entry, stream: _Stream) -> Iterator[RawSample | Rejection]:
        """Take one member; gives the sample before it once that is complete."""
        if entry.type == b"5" or is_hidden(entry.name):
            return
        key, suffix = split_name(entry.name)
        if self.group is None or key != self.group.key:
            yield from self.finish()
            self.group = _Group(key)
            if key in self.keys:
                self.group.fault = "DuplicateKey", "the key came before; the members of a key must follow each other"
            self.keys.add(key)
        group = self.group
        if suffix in group.suffixes:
            group.repeats.append(entry.name)
            return
        group.suffixes.add(suffix)
        group.members.append(Member(entry.name, entry.offset, entry.size))
        fault = _fault(entry, matters(suffix, self.pixels), suffix)
        if fault is not None:
            group.fault = group.fault or fault
        elif group.fault is None:
            self.pending = entry.name
            what = "member " + entry.name
            if self.bare and extension(f".{suffix}") not in TOLD:
                stream.check(entry.size, what)
                group.data[suffix] = b""
            else:
                group.data[suffix] = stream.take(entry.size, what)
            self.pending = ""

    def finish(self) -> Iterator[RawSample | Rejection]:
        """The sample that the members so far make, and a rejection for each member that came twice."""
        group, self.group = self.group, None
        if group is None:
            return
        self.usual = group.suffixes
        if group.fault is None:
            yield RawSample(group.key, self._next(), group.members, group.data)
        else:
            yield self.reject(*group.fault, key=group.key)
        for name in group.repeats:
            message = f"{printable(name)} came twice; the first stays"
            yield self.reject("DuplicateMember", message, key=group.key)

    def finish_broken(self, broken: _Break) -> Iterator[RawSample | Rejection]:
        """What is whole before a break, then one rejection for the rest.

        The last sample counts as whole if it has all the suffixes of the one
        before it: else its sidecar may lie behind the break.
        """
        message = str(broken)
        group = self.group
        if group is not None and (self.pending or not group.suffixes >= (self.usual or set())):
            message += f"; its sample {printable(group.key)} is incomplete and lost with the rest"
            self.group = None
        yield from self.finish()
        yield self.reject(broken.kind, message)

    def reject(self, kind: str, message: str, key: str = "") -> Rejection:
        """A rejection with the next number."""
        return Rejection(printable(key), self._next(), "read", kind, message)

    def _next(self) -> int:
        self.index += 1
        return self.index - 1


def _fault(entry: _Entry, used: bool, suffix: str) -> tuple[str, str] | None:
    """Why a member spoils its sample, if it does."""
    name = entry.name
    if not is_text(name):
        return "BadName", f"the name {printable(name)} is not UTF-8"
    if is_unsafe(name):
        return "UnsafeName", f"the name {name} leads out of the archive"
    if entry.type in _LINKS:
        return "LinkMember", f"{name} is a link; pack the file itself (tar --dereference --hard-dereference)"
    if entry.sparse or entry.type not in _REGULAR:
        return "NotAFile", f"{name} is a sparse or special file"
    if used and entry.size == 0 and suffix.lower() != "txt":  # an empty caption says nothing, and is none
        return "EmptyMember", f"{name} has no bytes"
    if entry.size > MAX_MEMBER:
        return "TooLarge", f"{name} is of {entry.size} bytes, the limit is {MAX_MEMBER}"
    return None
