"""Members of archives, from front to back or one by one: tar in all its compressions, and zip.

The headers are read here and not by ``tarfile``: an archive may come from a stranger, and ``tarfile`` seeks forever
with a negative size, holds records of any length in memory, keeps every member that it met, and takes a damaged header
for the end of the archive. Here each of these is an error.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ..errors import FetchError
from ..processing_utils.uris import MAX_BYTES
from .stores import Access, Spool, check_free, is_web, open_binary

BLOCK = 512
RECORD_BYTES = 2**20  # of a long name or a pax header
SKIPPED_BYTES = 2**34  # of one member of a compressed archive: it must be decompressed to be skipped
DIRECTORY_BYTES = 2**28  # of a zip
XZ_MEMORY = 2**28
CHUNK = 2**20

COMPRESSIONS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lambda file: _Xz(file),
    b"\x28\xb5\x2f\xfd": lambda file: _zstd(file),
}


class ArchiveError(FetchError):
    """An archive that is damaged, or that asks for more than an archive of images needs."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive."""

    name: str
    offset: int  #: of its content in a tar; of its header in a zip
    size: int  #: of its content, once it is decompressed
    packed: tuple[int, int, int] | None = None  #: (compressed size, method, checksum) in a zip


Read = Callable[[], bytes]


def members(uri: str, access: Access) -> Iterator[tuple[Member, Read]]:
    """Each file in an archive, with a function that reads its content, to be called before the next file is requested.

    Raises ArchiveError where it is damaged; OSError, SourceError or a store's own error if it cannot be opened.
    """
    with contextlib.closing(open_binary(uri, access)) as file:
        start, unpack = _start(file)
        if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            for member in _zip_members(file):
                yield member, lambda member=member: content(lambda at, n: _part(file, at, n), member)
        elif unpack is None:
            yield from _tar_members(_Input(file, None))
        else:
            with contextlib.closing(unpack(file)) as stream:
                yield from _tar_members(_Input(stream, SKIPPED_BYTES))


def _start(file: Any) -> tuple[bytes, Callable[[Any], Any] | None]:
    """The first bytes of a file, and what decompresses it: None if it is not compressed."""
    start = file.read(8)
    file.seek(0)
    return start, next((unpack for mark, unpack in COMPRESSIONS.items() if start.startswith(mark)), None)


def _part(file: Any, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def content(read: Callable[[int, int], bytes], member: Member) -> bytes:
    """The content of one member by ``read(offset, length)``; FetchError if it is damaged, or larger than images are."""
    if member.size > MAX_BYTES:
        raise FetchError(f"{member.name} has {member.size:,} bytes, more than {MAX_BYTES:,}.")
    if member.packed is None:
        data = read(member.offset, member.size)
    else:
        length, method, checksum = member.packed
        if length > 2 * MAX_BYTES or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise FetchError(f"{member.name} is compressed in a way that is not read here: use deflate.")
        header = read(member.offset, 30)
        if len(header) != 30 or header[:4] != b"PK\x03\x04":
            raise FetchError(f"{member.name}: the archive is damaged.")
        data = read(member.offset + 30 + sum(struct.unpack("<HH", header[26:30])), length)
        try:
            data = zlib.decompressobj(-15).decompress(data, member.size + 1) if method else data
        except zlib.error as error:
            raise FetchError(f"{member.name} is damaged: {error}.") from error
        if zlib.crc32(data) != checksum:
            raise FetchError(f"{member.name} is damaged: its checksum is wrong.")
    if len(data) != member.size:
        raise FetchError(f"{member.name} is damaged: it has {len(data):,} of {member.size:,} bytes.")
    return data


def unpacked(uri: str, access: Access, version: str) -> str:
    """The path of a file whose members can be read one by one: the archive, or a temporary uncompressed copy."""
    with contextlib.closing(open_binary(uri, access)) as file:
        _, unpack = _start(file)
        if unpack is None and not is_web(uri):
            return uri

        def fill(target: Any) -> None:
            with contextlib.nullcontext(file) if unpack is None else contextlib.closing(unpack(file)) as source:
                while chunk := source.read(CHUNK):
                    check_free(target.name, uri)
                    target.write(chunk)

        return _copies.setdefault((uri, version), Spool(fill)).path


# Kept until the process ends: a training reads each archive in every epoch.
_copies: dict[tuple[str, str], Spool] = {}


class _Input:
    """A file that is read forwards. ``limit``: the most bytes to skip at once, if skipping means reading."""

    def __init__(self, file: Any, limit: int | None) -> None:
        self.file, self.limit, self.at = file, limit, 0
        self.end = None if limit is not None else file.seek(0, 2)
        if self.end is not None:
            file.seek(0)

    def read(self, length: int) -> bytes:
        pieces: list[bytes] = []
        while length > 0 and (piece := self.file.read(length)):
            pieces.append(piece)
            length -= len(piece)
        data = b"".join(pieces)
        self.at += len(data)
        return data

    def check(self, size: int) -> None:
        """Refuse an impossible size before anything is read for it."""
        if self.end is not None and self.at + size > self.end:
            raise ArchiveError("it breaks off.")
        if self.limit is not None and size > self.limit:
            raise ArchiveError(f"a member has {size:,} bytes, more than {self.limit:,}.")

    def skip_to(self, at: int) -> None:
        if self.end is not None:
            self.file.seek(at)
            self.at = min(at, self.end)
        while self.at < at:
            if not self.read(min(CHUNK, at - self.at)):
                if self.end is None:
                    raise ArchiveError("it breaks off.")
                return


def _number(field: bytes) -> int:
    """A number in a header: octal, or binary if its first bit is set (GNU)."""
    if field[0] & 0x80:
        number = int.from_bytes(field, "big", signed=True) + (0 if field[0] == 0xFF else 1 << (8 * len(field) - 1))
    else:
        text = field.partition(b"\0")[0].strip()
        if text.strip(b"01234567"):
            raise ArchiveError("a number in a header is damaged.")
        number = int(text or b"0", 8)
    if number < 0:
        raise ArchiveError("a size is negative.")
    return number


def _tar_members(source: _Input) -> Iterator[tuple[Member, Read]]:
    long_name: str | None = None
    pax: dict[str, str] = {}
    while header := source.read(BLOCK):
        if not header.strip(b"\0"):
            return  # the end
        if len(header) < BLOCK:
            raise ArchiveError("it breaks off in a header.")
        if sum(header) - sum(header[148:156]) + 8 * 32 != _number(header[148:156]):
            raise ArchiveError("a header is damaged.")
        kind, size = chr(header[156]), _number(header[124:136])
        if kind in "xXgLK":  # a long name, or a pax header
            if size > RECORD_BYTES:
                raise ArchiveError(f"a name or record has {size:,} bytes, more than {RECORD_BYTES:,}.")
            source.check(size)
            data = source.read(size)
            source.skip_to(source.at + -size % BLOCK)
            if kind in "xX":
                pax = _pax(data)
            elif kind == "L":
                long_name = data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
            continue
        name = pax.get("path") or long_name or _name(header)
        if kind == "S" or any(key.startswith("GNU.sparse") for key in pax):
            raise ArchiveError(f"{name[:200]} is stored as a sparse file: make the archive without --sparse.")
        if "size" in pax:
            if not pax["size"].isascii() or not pax["size"].isdigit() or len(pax["size"]) > 19:
                raise ArchiveError("a size is damaged.")
            size = int(pax["size"])
        long_name, pax = None, {}
        if kind in "123456":  # links, devices, folders, pipes: without content
            continue
        source.check(size)
        start = source.at
        if kind in "\x007\x30" and not name.endswith("/"):
            member = Member(name.removeprefix("./"), start, size)

            def read(member: Member = member) -> bytes:
                return content(lambda at, n: source.read(n), member)

            yield member, read
        source.skip_to(start + size + -size % BLOCK)


def _name(header: bytes) -> str:
    name, prefix = (
        part.partition(b"\0")[0].decode("utf-8", "surrogateescape") for part in (header[:100], header[345:500])
    )
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _pax(data: bytes) -> dict[str, str]:
    """The records of a pax header: "LENGTH KEY=VALUE" and a newline, each."""
    found: dict[str, str] = {}
    while data.strip(b"\0"):
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 5 <= int(length[:9]) <= len(data):
            raise ArchiveError("a pax header is damaged.")
        key, _, value = data[len(length) + 1 : int(length) - 1].decode("utf-8", "surrogateescape").partition("=")
        found[key] = value
        data = data[int(length) :]
    return found


class _Xz:
    """An .xz file, decompressed in bounded memory; several streams one after another count as one."""

    def __init__(self, file: Any) -> None:
        self.file, self.one = file, lzma.LZMADecompressor(memlimit=XZ_MEMORY)

    def close(self) -> None:
        """Do nothing: the caller closes the file."""

    def read(self, length: int) -> bytes:
        while True:
            data = b""
            if self.one.eof:
                data = self.one.unused_data or self.file.read(CHUNK)
                if not data.strip(b"\0"):
                    return b""
                self.one = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
            elif self.one.needs_input and not (data := self.file.read(CHUNK)):
                raise ArchiveError("it breaks off.")
            if data := self.one.decompress(data, length):
                return data


def _zstd(file: Any) -> Any:
    """A .zst file, decompressed by Arrow, which takes a path: a store's file is copied first."""
    import pyarrow as pa

    path = file.name if isinstance(file, io.BufferedReader) else None
    spool = None if path else Spool(lambda target: shutil.copyfileobj(file, target, CHUNK))
    source = pa.OSFile(spool.path if spool else path)
    stream = pa.CompressedInputStream(source, "zstd")

    def close() -> None:
        stream.close()
        source.close()

    def read(length: int) -> bytes:
        return stream.read_buffer(length).to_pybytes()  # read() of Arrow 26 leaks `length` bytes if it fails

    return SimpleNamespace(read=read, close=close, spool=spool)


def _zip_members(file: Any) -> Iterator[Member]:
    end = file.seek(0, 2)
    tail = _part(file, max(0, end - 2**16 - 22), 2**16 + 22)
    record = tail[tail.rfind(b"PK\x05\x06") :][:22]
    if len(record) < 22:
        raise ArchiveError("it breaks off.")
    larger = tail[tail.rfind(b"PK\x06\x06") :][40:48] if b"PK\x06\x06" in tail else b""  # zip64
    size = struct.unpack("<Q", larger)[0] if len(larger) == 8 else struct.unpack("<L", record[12:16])[0]
    if size > DIRECTORY_BYTES:
        raise ArchiveError(f"its directory has {size:,} bytes, more than {DIRECTORY_BYTES:,}.")
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise ArchiveError(f"{error}") from error
    for info in infos:
        if info.is_dir():
            continue
        if info.flag_bits & 1:
            raise ArchiveError(f"{info.filename[:200]} is encrypted.")
        yield Member(
            info.filename, info.header_offset, info.file_size, (info.compress_size, info.compress_type, info.CRC)
        )
