"""Where many images come from -> shards of named items, in an order that does not change.

A source is one or more of these, of this machine, behind http(s), or in an object store (`STORES`: s3://, gs:// ...):

- ``DIR/``: the images in a folder and its folders, sorted within each; links to folders are not followed;
- ``"GLOB*.jpg"``, ``"shards-{000..099}.tar"``: patterns, for images, shards or tables, sorted;
- ``LIST.txt``: one path or URI a line;
- ``TABLE.parquet``: a column of paths or URIs, of encoded images, or of structs of ``bytes`` and ``path``
  (as Hugging Face's datasets have them);
- ``SHARDS.tar``, ``.tar.gz``: a plain archive, or a WebDataset shard;
- a path or URI of one image.

A shard is what one worker, or one machine of a cluster, reads from front to back: a run of paths, of a table's rows,
or one archive. Nothing is held but the shard at hand: the names of one folder at most, or of one pattern.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import io
import itertools
import os
import re
import shutil
import tarfile
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tarfile import (
    InvalidHeaderError,  # pyright: ignore[reportAttributeAccessIssue]
    ReadError,
    TruncatedHeaderError,  # pyright: ignore[reportAttributeAccessIssue]
)
from typing import Any, Protocol

from ..errors import SourceError
from ..packages import needed
from ..processing_utils.uris import MAX_BYTES, FetchError, fetch, read_file, scheme_of
from ..telemetry import silence

__all__ = [
    "TARS",
    "Item",
    "PathShard",
    "Shard",
    "TableFile",
    "TableShard",
    "TarShard",
    "count",
    "filesystem",
    "is_collection",
    "reason",
    "shards",
    "table_files",
]

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".mpo", ".avif")
TARS = (".tar", ".tar.gz", ".tgz")
LISTS = (".txt", ".lst")
TABLES = (".parquet",)
# What fsspec is asked for. It knows many more (ftp, ssh, github, chains such as simplecache::http://), some of which
# connect to any address that is written in the URI, or open any file. A list or table may be a stranger's.
STORES = ("s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "abfss", "oci", "oss", "memory")
# Bytes and seconds for a list, table or archive behind http(s): it is fetched whole, through the same checks as images.
WEB_BYTES, WEB_SECONDS = 2 * 2**30, 1800.0
# Columns that hold names or images where a table has several that could.
NAME_COLUMNS = ("name", "path", "file_name", "__key__")
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "path", "file", "file_name", "uri", "url")


@dataclass(frozen=True)
class Item:
    """One image: its name, and a way to its encoded bytes that raises FetchError or OSError."""

    name: str
    read: Callable[[], bytes]


class Shard(Protocol):
    """A run of items, read in order. Picklable, so that another machine can read it."""

    @property
    def remote(self) -> bool:
        """Whether reading an item waits for a network, so that reading ahead pays."""
        ...

    def items(self, start: int = 0) -> Iterator[Item]:
        """The items from number ``start`` on."""
        ...

    def fingerprint(self) -> str:
        """Another value if the shard has become another since: names, rows or length."""
        ...

    def __len__(self) -> int:
        """How many items; TypeError where only reading would tell."""
        ...


def shards(specs: Sequence[str], rows: int, *, column: str | None = None, private: bool = False) -> Iterator[Shard]:
    """The shards of a source, in order, found as they are asked for.

    Args:
        specs: what the module's documentation lists.
        rows: images in a shard of paths or of table rows. (An archive is one shard.)
        column: a table's column of images, where it is not plain which it is.
        private: fetch URLs at private addresses too.

    Raises:
        SourceError: there is no such source, or it has no images.
    """
    empty = True
    paths: list[str] = []
    for entry in _entries(specs, rows, column, private):
        empty = False
        if isinstance(entry, str):
            paths.append(entry)
        if paths and (len(paths) == rows or not isinstance(entry, str)):
            yield PathShard(tuple(paths), private)
            paths = []
        if not isinstance(entry, str):
            yield entry
    if paths:
        yield PathShard(tuple(paths), private)
    if empty:
        raise SourceError(f"No images in {', '.join(specs)} (for shards in a folder, pass 'FOLDER/*.tar').")


def count(specs: Sequence[str], *, column: str | None = None) -> int | None:
    """How many images, None where only reading everything, or listing a remote store, would tell."""
    if any(_is_remote(spec) for spec in specs):
        return None
    total = 0
    try:
        for entry in _entries(specs, 2**30, column, False):
            total += 1 if isinstance(entry, str) else len(entry)
    except TypeError:
        return None
    return total


@dataclass(frozen=True)
class TableFile:
    """A Parquet file, and what tells it from another that takes its place. ``filesystem``: fsspec's; None: local."""

    uri: str
    version: str
    filesystem: Any


def table_files(specs: Sequence[str]) -> list[TableFile]:
    """The Parquet files that specs name, sorted within each: files, patterns, and folders (their own files only).

    Raises:
        SourceError: there is no such file, the scheme is refused, or a folder or pattern has none.
    """
    found: list[TableFile] = []
    for spec in specs:
        there = not _is_remote(spec) and os.path.exists(spec)
        for one in [spec] if there else _expand_braces(spec):
            found += _table_files_of(one)
    return found


def _table_files_of(spec: str) -> list[TableFile]:
    files = None
    if not _is_remote(spec):
        if os.path.isdir(spec):
            names = [entry.path for entry in os.scandir(spec) if entry.is_file()]
        elif os.path.exists(spec):
            names = [spec]
        else:
            names = glob.glob(spec, recursive=True)
    elif _is_web(spec):
        raise SourceError(
            f"{spec}: tables at http(s) URLs are not supported here: download the file and pass its path."
        )
    else:
        files, path = filesystem(spec)
        if re.search(r"[*?\[]", path):
            names = _ask(spec, files.glob, path)
        elif spec.lower().endswith(TABLES) and not _ask(spec, files.isdir, path):
            names = [_ask(spec, files.info, path)["name"]]  # so that one that is missing is missed here
        else:
            names = [i["name"] for i in _ask(spec, files.ls, path, detail=True) if i["type"] != "directory"]
        names = [files.unstrip_protocol(name) for name in names]
    if [spec] != names:
        names = sorted(name for name in names if name.lower().endswith(TABLES))
    if not names:
        raise SourceError(f"No such Parquet file, folder of Parquet files, or pattern: {spec}")
    return [TableFile(name, _version(name), files) for name in names]


def is_collection(spec: str) -> bool:
    """Whether a spec names a folder, a pattern, a list, a table or an archive, and not one image."""
    is_pattern = any(c in spec for c in "*?{") and not _is_remote(spec) and not os.path.exists(spec)
    return is_pattern or os.path.isdir(spec) or spec.lower().endswith((*TARS, *LISTS, *TABLES))


def _is_remote(spec: str) -> bool:
    return scheme_of(spec) is not None


def _is_web(spec: str) -> bool:
    return scheme_of(spec) in ("http", "https")


def _check_store(uri: str, schemes: Sequence[str]) -> None:
    scheme = scheme_of(uri) or ""
    if "::" in uri:
        raise SourceError(
            f"Chained URLs ('::') are not allowed: {uri[:200]!r}. For a file with this name, write ./ before it."
        )
    if scheme not in schemes:
        taken = ", ".join(("http", "https", "file", *STORES))
        raise SourceError(
            f"Unknown scheme {scheme!r} in {uri[:200]!r}; expected {taken}. For a file with this name, write ./ "
            "before it."
        )
    if not uri[len(scheme) :].startswith("://"):  # to fsspec it would be a path of this machine
        raise SourceError(f"{uri[:200]!r} is not a URL: expected {scheme}://.")


def filesystem(uri: str, schemes: Sequence[str] = ("file", *STORES)) -> tuple[Any, str]:
    """fsspec's file system for a URI of a store, and the path in it.

    Raises:
        SourceError: refused; or what it needs is not installed.
    """
    _check_store(uri, schemes)
    if scheme_of(uri) == "hf":
        silence("huggingface_hub")  # fsspec imports it
    with needed(f"Reading {uri}", "bulk"):
        import fsspec.core

    try:
        # Listings would be kept for the life of the process: a folder of a million names, and an old one on a resume.
        return fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except Exception as error:  # s3fs is not installed, no credentials: each store has its own
        raise SourceError(f"{uri}: {type(error).__name__}: {error}") from error


def _open(uri: str, private: bool) -> Any:
    """A binary file object that can seek."""
    if _is_web(uri):
        return io.BytesIO(_fetch_whole(uri, private))
    if not _is_remote(uri):
        return open(uri, "rb")
    files, path = filesystem(uri)
    return files.open(path, "rb")


def _version(uri: str) -> str:
    """Length and date (or ETag) of a file of this machine or of a store: another value if it was replaced."""
    try:
        if not _is_remote(uri):
            status = os.stat(uri)
            return f"{status.st_size} {status.st_mtime}"
        files, path = filesystem(uri)
        info = files.info(path)
    except SourceError:
        raise
    except Exception as error:  # each store has its own
        return type(error).__name__
    dates = (info.get(key) for key in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created"))
    return f"{info.get('size')} {next(filter(None, dates), None)}"


class _Spool:
    """What was fetched from the web, in a temporary file that goes with the object or the process."""

    def __init__(self, content: bytes) -> None:
        self.digest = hashlib.sha256(content).hexdigest()
        folder = tempfile.mkdtemp(prefix="resnext-hub-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._path = Path(folder) / "content"
        self._path.write_bytes(content)

    def open(self) -> Any:
        return open(self._path, "rb")


# (URI, digest) -> its content, of the last few tables: each is read shard by shard, and fetched once.
_spools: OrderedDict[tuple[str, str], _Spool] = OrderedDict()
SPOOLS = 2


def _spool(uri: str, private: bool) -> _Spool:
    spool = _Spool(_fetch_whole(uri, private))
    _spools[uri, spool.digest] = spool
    while len(_spools) > SPOOLS:
        _spools.popitem(last=False)
    return spool


def _open_table(uri: str, private: bool, version: str | None = None) -> tuple[Any, str]:
    """A table and its version; one from the web is fetched anew unless the version that is asked for is here.

    Raises:
        FetchError: behind http(s) there is another version by now.
    """
    if not _is_web(uri):
        return _open(uri, private), _version(uri)
    spool = _spools.get((uri, version or "")) or _spool(uri, private)
    if version is not None and spool.digest != version:
        raise FetchError(f"{uri} has changed since the run started.")
    return spool.open(), spool.digest


def _fetch_whole(uri: str, private: bool) -> bytes:
    return fetch(uri, schemes=("http", "https"), allow_private=private, max_bytes=WEB_BYTES, timeout=WEB_SECONDS)


# What a spec names.


def _expand_braces(spec: str) -> list[str]:
    """``a-{08..10}.tar`` -> a-08.tar, a-09.tar, a-10.tar; ``{a,b}`` too; as shells and WebDataset have it."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", spec)
    if not found:
        return [spec]
    first, last, words = found.groups()
    if words is not None:
        middle = words.split(",")
    else:
        middle = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
    return [spec[: found.start()] + m + end for m in middle for end in _expand_braces(spec[found.end() :])]


def _entries(specs: Sequence[str], rows: int, column: str | None, private: bool) -> Iterator[str | Shard]:
    for spec in specs:
        there = not _is_remote(spec) and os.path.exists(spec)  # a folder may have braces in its name
        for one in [spec] if there else _expand_braces(spec):
            yield from _entries_of(one, rows, column, private)


def _entries_of(spec: str, rows: int, column: str | None, private: bool) -> Iterator[str | Shard]:
    if _is_web(spec):
        yield from _by_suffix(spec, rows, column, private)
    elif _is_remote(spec):
        files, path = filesystem(spec)
        if re.search(r"[*?\[]", path):
            found = sorted(_ask(spec, files.glob, path))
        elif not spec.lower().endswith((*SUFFIXES, *TARS, *LISTS, *TABLES)) and _ask(spec, files.isdir, path):
            yield from (files.unstrip_protocol(name) for name in _walk_remote(files, path))
            return
        else:
            found = [path]
        for name in found:
            yield from _by_suffix(files.unstrip_protocol(name), rows, column, private)
    elif os.path.isdir(spec):
        yield from _walk(spec)
    elif os.path.exists(spec):
        yield from _by_suffix(spec, rows, column, private)
    elif found := sorted(glob.iglob(spec, recursive=True)):
        for name in found:
            if not os.path.isdir(name):
                yield from _by_suffix(name, rows, column, private)
    else:
        raise SourceError(f"No such file, folder or pattern: {spec}")


def _walk(folder: str) -> Iterator[str]:
    """The images in a folder and its folders, sorted within each: what is held is one folder's names.

    Links to folders are passed over (they may form a ring), links to images are not.
    """
    try:
        with os.scandir(folder) as found:
            entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise SourceError(f"Cannot read the folder {folder}: {error.strerror}.") from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        elif entry.name.lower().endswith(SUFFIXES):
            yield entry.path


def _walk_remote(files: Any, folder: str) -> Iterator[str]:
    for info in sorted(_ask(folder, files.ls, folder, detail=True), key=lambda i: i["name"]):
        name = info["name"]
        if name.rstrip("/") == folder.rstrip("/"):  # a store may list a folder's own marker in it
            continue
        if info["type"] == "directory":
            yield from _walk_remote(files, name)
        elif name.lower().endswith(SUFFIXES):
            yield name


def _by_suffix(spec: str, rows: int, column: str | None, private: bool) -> Iterator[str | Shard]:
    lower = (re.sub(r"[?#].*", "", spec) if _is_web(spec) else spec).lower()
    try:
        if lower.endswith(TARS):
            yield TarShard(spec, private)
        elif lower.endswith(TABLES):
            yield from _table_shards(spec, rows, column, private)
        elif lower.endswith(LISTS):
            yield from _lines(spec, private)
        else:
            yield spec
    except SourceError:
        raise
    except Exception as error:  # each store has its own
        raise SourceError(f"Cannot read {spec}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """An error's message without what the caller names: of the system's errors neither number nor file name."""
    return error.strerror or str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


def _ask(uri: str, question: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a store answers. Its errors, of which each has its own, become a SourceError."""
    try:
        return question(*arguments, **options)
    except Exception as error:
        raise SourceError(f"Cannot read {uri}: {reason(error)}") from error


def _lines(uri: str, private: bool) -> Iterator[str]:
    with _open(uri, private) as file:
        for line in file:
            if name := line.decode("utf-8", "surrogateescape").strip():
                yield name


# Paths.


@dataclass(frozen=True)
class PathShard:
    """Paths and URIs."""

    paths: tuple[str, ...]
    private: bool

    @property
    def remote(self) -> bool:
        return any(_is_remote(path) for path in self.paths)

    def items(self, start: int = 0) -> Iterator[Item]:
        for path in self.paths[start:]:
            yield Item(path, functools.partial(_read, path, self.private))

    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(self.paths).encode("utf-8", "surrogateescape")).hexdigest()

    def __len__(self) -> int:
        return len(self.paths)


def _read(location: str, private: bool) -> bytes:
    """The bytes of one image. Schemes, and addresses of http(s) URLs, are checked: a list may be a stranger's."""
    scheme = scheme_of(location)
    if scheme in ("http", "https", "data", "file"):
        return fetch(location, allow_private=private)
    if scheme is None:
        return read_file(Path(location))
    try:
        files, path = filesystem(location, STORES)
        data = files.cat_file(path, start=0, end=MAX_BYTES + 1)
    except SourceError as error:
        raise FetchError(str(error)) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"No such file: {location}") from error
    except Exception as error:  # each store has its own
        raise FetchError(f"{location} could not be downloaded: {type(error).__name__}: {error}") from error
    if len(data) > MAX_BYTES:
        raise FetchError(f"{location} has more than the {MAX_BYTES:,} bytes allowed.")
    return data


def _raise(error: Exception) -> bytes:
    raise error


# Archives.


class _Member(tarfile.TarInfo):
    """A member whose header is damaged is an error. To tarfile it is the archive's end, and the rest would be lost."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tarfile)
        except (InvalidHeaderError, TruncatedHeaderError) as error:
            raise ReadError(str(error)) from error


@dataclass(frozen=True)
class TarShard:
    """The images in one tar archive, read from front to back; other members (labels, captions) are passed over."""

    uri: str
    private: bool

    @property
    def remote(self) -> bool:
        return False  # an item's bytes are there when the item is

    def items(self, start: int = 0) -> Iterator[Item]:
        number = 0
        try:
            with (
                _open(self.uri, self.private) as file,
                tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as archive,
            ):
                while (member := archive.next()) is not None:
                    # tarfile keeps every member it has met, for a lookup by name that is not needed here.
                    archive.members = []  # pyright: ignore[reportAttributeAccessIssue]
                    if not member.isreg() or not member.name.lower().endswith(SUFFIXES):
                        continue
                    number += 1
                    if number > start:
                        yield Item(f"{self.uri}/{member.name}", self._content(archive, member))
        except SourceError:
            raise
        except Exception as error:  # each store has its own; what came before it stands
            yield Item(self.uri, functools.partial(_raise, FetchError(f"{self.uri} is incomplete or corrupt: {error}")))

    def notes(self, suffixes: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        """Every image's name, as an item has it, with None; and every file's that ends in ``suffixes``, with its bytes.

        Of an uncompressed archive of this machine only the headers are read.

        Raises:
            SourceError: the archive breaks off or is broken.
        """
        try:
            with (
                _open(self.uri, self.private) as file,
                tarfile.open(fileobj=file, mode="r:*", tarinfo=_Member) as archive,
            ):
                while (member := archive.next()) is not None:
                    archive.members = []  # pyright: ignore[reportAttributeAccessIssue]
                    name, lower = f"{self.uri}/{member.name}", member.name.lower()
                    if member.isreg() and lower.endswith(SUFFIXES):
                        yield name, None
                    elif member.isreg() and lower.endswith(tuple(suffixes)):
                        yield name, self._content(archive, member)()
        except SourceError:
            raise
        except Exception as error:  # each store has its own
            raise SourceError(f"{self.uri} is incomplete or corrupt: {reason(error)}") from error

    def _content(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
        if member.size > MAX_BYTES:
            return functools.partial(
                _raise, FetchError(f"{member.name} has {member.size:,} bytes, more than the {MAX_BYTES:,} allowed.")
            )
        file = archive.extractfile(member)
        data = file.read() if file else b""
        return lambda: data

    def fingerprint(self) -> str:
        if _is_web(self.uri):
            return self.uri  # to know more it would have to be fetched whole
        return f"{self.uri} {_version(self.uri)}"

    def __len__(self) -> int:
        raise TypeError(f"The number of images in {self.uri} is known only after reading it.")


# Tables.


@dataclass(frozen=True)
class TableShard:
    """``length`` rows of a Parquet table from row ``first`` on."""

    uri: str
    private: bool
    column: str
    name_column: str | None
    first: int
    length: int
    total: int
    version: str  #: the table's, when its shards were found

    @property
    def remote(self) -> bool:
        return True  # the column may hold URLs

    def items(self, start: int = 0) -> Iterator[Item]:
        row, end = self.first + start, self.first + self.length
        try:
            for at, value, name in self._values(row, end):
                yield self._item(at, value, name)
                row = at + 1
        except SourceError:
            raise
        except Exception as error:  # each store has its own; every row gets its row, so that no number shifts
            broken = FetchError(f"{self.uri} is corrupt: {error}")
            for at in range(row, end):
                yield Item(f"{self.uri}[{at}]", functools.partial(_raise, broken))

    def _values(self, row: int, end: int) -> Iterator[tuple[int, Any, str | None]]:
        """(number, value, name) of the rows from ``row`` to ``end``; decodes the row groups that hold them."""
        import pyarrow.parquet as pq

        with _open_table(self.uri, self.private, self.version)[0] as file:
            table = pq.ParquetFile(file, pre_buffer=False)
            sizes = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
            begins = [0, *itertools.accumulate(sizes)]
            groups = [i for i in range(len(sizes)) if begins[i] < end and begins[i + 1] > row]
            at = begins[groups[0]] if groups else end
            columns = [self.column, *([self.name_column] if self.name_column else [])]
            for batch in table.iter_batches(batch_size=64, row_groups=groups, columns=columns):
                if at + len(batch) > row:
                    for i in range(max(0, row - at), min(len(batch), end - at)):
                        value = batch.column(self.column)[i].as_py()
                        name = batch.column(self.name_column)[i].as_py() if self.name_column else None
                        yield at + i, value, name
                at += len(batch)
                if at >= end:
                    return

    def schema(self) -> Any:
        """The table's columns, a pyarrow.Schema."""
        import pyarrow.parquet as pq

        with _open_table(self.uri, self.private, self.version)[0] as file:
            return pq.ParquetFile(file).schema_arrow

    def values(self, column: str) -> list[Any]:
        """Another column of the shard's rows; nothing else of them is read.

        Raises:
            SourceError: the table is broken.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        found: list[Any] = []
        try:
            with _open_table(self.uri, self.private, self.version)[0] as file:
                table = pq.ParquetFile(file, pre_buffer=False)
                at = 0
                for group in range(table.num_row_groups):
                    rows = table.metadata.row_group(group).num_rows
                    if at < self.first + self.length and at + rows > self.first:
                        start = max(0, self.first - at)
                        part = table.read_row_group(group, columns=[column]).column(0)
                        found += part.slice(start, self.first + self.length - at - start).to_pylist()
                    at += rows
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"Cannot read {self.uri}: {reason(error)}") from error
        return found

    def _item(self, row: int, value: Any, name: str | None) -> Item:
        if isinstance(value, dict):
            name = value.get("path") or name
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if isinstance(value, str):
            return Item(value, functools.partial(_read, value, self.private))
        name = name or f"{self.uri}[{row}]"
        if value is None:
            return Item(name, functools.partial(_raise, FetchError(f"Row {row:,} of {self.uri} has no image.")))
        return Item(name, lambda: value)

    def fingerprint(self) -> str:
        return f"{self.uri} {self.column} {self.first} {self.length} {self.total} {self.version}"

    def __len__(self) -> int:
        return self.length


def _table_shards(uri: str, rows: int, column: str | None, private: bool) -> Iterator[Shard]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    opened, version = _open_table(uri, private)
    with opened as file:
        try:
            table = pq.ParquetFile(file)
        except pa.ArrowException as error:
            raise SourceError(f"{uri} is not a Parquet table: {error}") from error
        total = table.metadata.num_rows
        column, name_column = _image_column(uri, table.schema_arrow, column)
    for first in range(0, total, rows):
        yield TableShard(uri, private, column, name_column, first, min(rows, total - first), total, version)


def _image_column(uri: str, schema: Any, wanted: str | None) -> tuple[str, str | None]:
    """The column of images, and the column of their names if they are bytes and there is one."""
    from pyarrow import types

    def is_text(kind: Any) -> bool:
        return types.is_string(kind) or types.is_large_string(kind)

    def is_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return types.is_binary(kind) or types.is_large_binary(kind)

    content = [f.name for f in schema if is_bytes(f.type)]
    text = [f.name for f in schema if is_text(f.type)]
    if wanted is not None:
        if wanted not in (*content, *text):
            raise SourceError(
                f"{uri} has no column {wanted!r} of images or paths; choose from {', '.join(schema.names)}."
            )
        chosen = wanted
    else:
        candidates = content or text
        named = [name for name in IMAGE_COLUMNS if name in candidates]
        if len(candidates) != 1 and not named:
            there = ", ".join(schema.names)
            raise SourceError(f"Which column of {uri} holds the images? Pass column=NAME, one of {there}.")
        chosen = candidates[0] if len(candidates) == 1 else named[0]
    names = [name for name in NAME_COLUMNS if name in text]
    return chosen, names[0] if chosen in content and names else None
