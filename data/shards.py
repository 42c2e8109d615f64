"""Shards: runs of items that one worker reads, or one machine of a cluster; in order or one by one."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ..errors import FetchError, SourceError
from . import archives, columns, parquet
from .columns import LABEL_COLUMNS, named
from .file_names import Passed, kind_of
from .file_names import is_hidden as hidden
from .stores import Access, is_remote, is_web, read_image, read_range, readable, reason, version_of
from .table_cells import Label, as_label, cell, parse_label, text_of

LABEL_FILES = (".cls", ".json")
LABEL_BYTES = 2**20


@dataclass(frozen=True)
class Item:
    """One image: its name, and a function that returns its encoded bytes or raises FetchError or OSError."""

    name: str
    read: Callable[[], bytes]


class Place(NamedTuple):
    """The place of an image below the data's root."""

    container: str  #: the archive or table that has it; "" for none
    file: str  #: its path, in the container if there is one
    listed: bool = False  #: True if ``file`` is a path in a list, whose root is not known


class Facts(NamedTuple):
    """The facts about an image that are known without reading it. ``name``: as in `Item`, or None."""

    name: str | None
    place: Place
    label: Label | None


class Shard(Protocol):
    """A run of items. Picklable, so that another process or machine can read it.

    All shards of this module can also be read one by one, with ``name(number)``, ``read(number)`` and ``key(number)``:
    the item's path below the data's root, which stays the same when the data is moved. ``facts(label_column)`` yields
    the `Facts` of each item without reading the images, and ``places()`` the same without labels.
    """

    @property
    def remote(self) -> bool:
        """True if reading an item may wait for a network, so that reading ahead saves time."""
        ...

    def items(self, start: int = 0) -> Iterator[Item]:
        """The items from number ``start`` on, in order."""
        ...

    def fingerprint(self) -> str:
        """A value that changes when the content changes: names, rows or length."""
        ...

    def __len__(self) -> int:
        """The number of items; raises TypeError if it is known only after reading."""
        ...


def _raise(error: Exception) -> bytes:
    raise error


@dataclass(frozen=True)
class PathShard:
    """Paths and URIs. ``roots``: the length of each path's part above the data's root; -1 if the root is not known."""

    paths: tuple[str, ...]
    roots: tuple[int, ...]
    labels: tuple[Label | None, ...]
    access: Access

    @property
    def remote(self) -> bool:
        return any(is_remote(path) for path in self.paths)

    def items(self, start: int = 0) -> Iterator[Item]:
        for path in self.paths[start:]:
            yield Item(path, functools.partial(read_image, path, self.access))

    def facts(self, label_column: str | None = None) -> Iterator[Facts]:
        for path, root, label in zip(self.paths, self.roots, self.labels, strict=True):
            yield Facts(path, Place("", path[max(root, 0) :], root < 0), label)

    places = facts

    def name(self, number: int) -> str:
        return self.paths[number]

    def read(self, number: int) -> bytes:
        return read_image(self.paths[number], self.access)

    def key(self, number: int) -> str:
        return self.paths[number][max(self.roots[number], 0) :]

    def fingerprint(self) -> str:
        found = (path if is_remote(path) else f"{path} {version_of(path)}" for path in self.paths)
        return hashlib.sha256("\n".join(found).encode("utf-8", "surrogateescape")).hexdigest()

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class ArchiveShard:
    """The images in one archive, in its order. ``place``: the archive's path below the data's root."""

    uri: str
    place: str
    access: Access
    passed: Passed = field(default_factory=Passed, compare=False, repr=False)

    @property
    def remote(self) -> bool:
        return False  # an item is yielded with its bytes

    def _files(self) -> Iterator[tuple[archives.Member, archives.Read]]:
        """Images and label files; other files are counted as passed over."""
        for member, read in archives.members(self.uri, self.access):
            if any(map(hidden, member.name.split("/"))):
                self.passed["hidden"] += 1
            elif kind_of(member.name) == "image" or member.name.lower().endswith(LABEL_FILES):
                yield member, read
            else:
                self.passed.file(member.name)

    def items(self, start: int = 0) -> Iterator[Item]:
        number = 0
        try:
            for member, read in self._files():
                if kind_of(member.name) != "image":
                    continue
                number += 1
                if number > start:
                    try:
                        data = functools.partial(bytes, read())
                    except archives.ArchiveError:
                        raise
                    except FetchError as error:
                        data = functools.partial(_raise, error)
                    yield Item(f"{self.uri}/{member.name}", data)
            if not number and not start:
                raise archives.ArchiveError("it holds no images.")
        except SourceError:
            raise
        except Exception as error:  # each store has its own; the items before it stay valid
            broken = FetchError(f"{self.uri} is incomplete or corrupt: {reason(error)}")
            yield Item(self.uri, functools.partial(_raise, broken))

    def facts(self, label_column: str | None = None) -> Iterator[Facts]:
        """The facts about each image. Only the headers and the label files are read."""
        names: list[str] = []
        labels: dict[str, Label] = {}
        with readable(f"{self.uri} is incomplete or corrupt"):
            for member, read in self._files():
                if kind_of(member.name) == "image":
                    names.append(member.name)
                    continue
                if member.size > LABEL_BYTES:
                    raise archives.ArchiveError(f"{member.name} has {member.size:,} bytes, too many for a label.")
                stem = _stem(member.name)
                if (label := _label_in(f"{self.uri}/{member.name}", read(), label_column)) is not None and (
                    stem not in labels or member.name.lower().endswith(".cls")
                ):
                    labels[stem] = label
        if not names:
            raise SourceError(f"No images in {self.uri}. {self.passed}".strip())
        for name in names:
            yield Facts(f"{self.uri}/{name}", Place(self.place, name), labels.get(_stem(name)))

    places = facts

    @functools.cached_property
    def _index(self) -> tuple[str, list[archives.Member]]:
        """A file whose members can be read one by one, and its images."""
        with readable(f"{self.uri} is incomplete or corrupt"):
            local = archives.unpacked(self.uri, self.access, self.fingerprint())
            found = [member for member, _ in archives.members(local, self.access)]
        return local, [m for m in found if kind_of(m.name) == "image" and not any(map(hidden, m.name.split("/")))]

    def name(self, number: int) -> str:
        return f"{self.uri}/{self._index[1][number].name}"

    def read(self, number: int) -> bytes:
        local, members = self._index
        return archives.content(functools.partial(read_range, local, self.access), members[number])

    def key(self, number: int) -> str:
        return f"{self.place}/{self._index[1][number].name}"

    def fingerprint(self) -> str:
        if is_web(self.uri):
            return self.uri  # a real version would need a complete download
        return f"{self.uri} {version_of(self.uri, self.access)}"

    def __len__(self) -> int:
        raise TypeError(f"The number of images in {self.uri} is known only after reading it.")


def _stem(name: str) -> str:
    """The name of a WebDataset sample: the path up to the first dot of the file's name."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _label_in(name: str, content: bytes, column: str | None) -> Label | None:
    """The label in a .cls or .json file, None where it has none."""
    try:
        text = content.decode()
        if name.lower().endswith(".cls"):
            return parse_label(text)
        record: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"Cannot read a class from {name}: {error}") from error
    if not isinstance(record, dict):
        return as_label(record)
    key = column or named(list(record), LABEL_COLUMNS)
    return as_label(record[key]) if key in record else None


@dataclass(frozen=True)
class TableShard:
    """``length`` rows of a Parquet table from row ``first`` on. ``version``: when the shards were found."""

    uri: str
    place: str
    access: Access
    column: str
    name_column: str | None
    first: int
    length: int
    total: int
    version: str

    @property
    def remote(self) -> bool:
        return True  # the column may hold URLs

    def _table(self) -> parquet.Table:
        return parquet.open_table(self.uri, self.access, self.version)

    def items(self, start: int = 0) -> Iterator[Item]:
        row, end = self.first + start, self.first + self.length
        columns = [self.column, *([self.name_column] if self.name_column else [])]
        try:
            for at, found in self._table().cells(columns, row, end - row):
                yield self._item(at, *found)
                row = at + 1
        except SourceError as error:
            broken: Exception = FetchError(str(error))
        except Exception as error:  # each store has its own
            broken = FetchError(f"{self.uri} is corrupt: {reason(error)}")
        else:
            broken = FetchError(f"{self.uri} has fewer rows than it states.")
        for at in range(row, end):  # every row gets an item, so that numbers do not shift
            yield Item(f"{self.uri}[{at}]", functools.partial(_raise, broken))

    def _item(self, row: int, value: Any, name: Any = None) -> Item:
        label = f"{self.uri}[{row}]"
        try:
            path, content = cell(value)
            label = path or (text_of(name) if name is not None else None) or label
        except FetchError as error:
            return Item(label, functools.partial(_raise, error))
        if content is None:
            return Item(label, functools.partial(_raise, FetchError(f"Row {row:,} of {self.uri} has no image.")))
        if isinstance(content, str):
            return Item(content, functools.partial(read_image, content, self.access))
        return Item(label, functools.partial(bytes, content))

    def facts(self, label_column: str | None = None) -> Iterator[Facts]:
        with readable(f"Cannot read {self.uri}"):
            table = self._table()
            column = columns.label_column(self.uri, table.schema, self.column, label_column)
            if column is None:
                for _, (value,) in table.cells([self.column], self.first, self.length):
                    path = text_of(value) or ""
                    yield Facts(path, Place("", path, listed=True), None)
                return
            for label in parquet.labels_of(table, column, self.first, self.length):
                yield Facts(None, Place(self.place, ""), label)

    def places(self) -> Iterator[Facts]:
        """As `facts`, without the labels, which the table need not have."""
        return itertools.repeat(Facts(None, Place(self.place, ""), None), self.length)

    def class_names(self, label_column: str | None) -> tuple[str, ...] | None:
        """The names of the numbers in the column of labels, where the table has them."""
        schema = self._table().schema
        column = columns.label_column(self.uri, schema, self.column, label_column)
        return None if column is None else parquet.class_names(schema, column)

    def name(self, number: int) -> str:
        return f"{self.uri}[{self.first + number}]"

    def read(self, number: int) -> bytes:
        try:
            return self._item(self.first + number, self._table().cell(self.column, self.first + number)).read()
        except OSError:
            raise
        except Exception as error:  # each store has its own
            raise FetchError(f"{self.uri} is corrupt: {reason(error)}") from error

    def key(self, number: int) -> str:
        return f"{self.place}[{self.first + number}]"

    def fingerprint(self) -> str:
        return f"{self.uri} {self.column} {self.first} {self.length} {self.total} {self.version}"

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True)
class Subset:
    """Some items of a shard, by number, ascending."""

    shard: Any
    rows: tuple[int, ...]

    @property
    def remote(self) -> bool:
        return self.shard.remote

    def items(self, start: int = 0) -> Iterator[Item]:
        wanted = iter(self.rows[start:])
        at = next(wanted, None)
        for number, item in enumerate(self.shard.items()):
            if number == at:
                yield item
                if (at := next(wanted, None)) is None:
                    return

    def fingerprint(self) -> str:
        rows = hashlib.sha256(",".join(map(str, self.rows)).encode()).hexdigest()
        return f"{self.shard.fingerprint()} {rows}"

    def __len__(self) -> int:
        return len(self.rows)
