"""Parquet tables: rows of one column of images or of their paths, read in order or one by one.

Arrow gets paths and buffers: a file object of Python can end the process (apache/arrow#34314), and so can a memory map
of a file that another program makes shorter. Of a table in a store, only the footer and the parts of columns that are
needed are fetched.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import SourceError
from .columns import flag_columns
from .parquet_footer import Chunk, Footer, read_footer, with_footer
from .stores import Access, Spool, filesystem, is_remote, is_web, keep, read_range, readable, spooled, version_of
from .table_cells import NO_CLASS, Label, as_label, flags_label, is_bytes, is_text, text_of

BATCH_BYTES = 2**26  # of a column, decoded at a time
BATCH_ROWS = 4096
RATIO = 2000  # how much a column may grow when it is decompressed
HELD_BYTES = 4 * 2**30  # of decoded row groups that a training keeps in memory
GROUPS_HELD = 8


class Table:
    """An open Parquet file. ``begins``: the first row of each row group, and the number of rows at the end."""

    def __init__(self, uri: str, access: Access, version: str, footer: Footer, spool: Spool | None) -> None:
        self.uri, self.access, self.version, self.footer, self.spool = uri, access, version, footer, spool
        self.local = spool.path if spool else None if is_remote(uri) else uri
        self.schema = footer.schema
        self.groups = [rows for rows, _ in footer.groups]
        self.begins = [0, *itertools.accumulate(self.groups)]
        self.rows = self.begins[-1]

    def _chunks(self, group: int, columns: Sequence[str]) -> list[Chunk]:
        chunks = self.footer.groups[group][1]
        return [c for c in chunks if any(c.path == name or c.path.startswith(f"{name}.") for name in columns)]

    def size(self, group: int, columns: Sequence[str]) -> int:
        """Bytes of some columns of a row group, as the table states them; SourceError if they would grow too much."""
        chunks = self._chunks(group, columns)
        sizes = sum(c.packed for c in chunks), sum(c.unpacked for c in chunks)
        if sizes[1] > RATIO * max(sizes[0], 2**12):
            raise SourceError(f"{self.uri}: {sizes[0]:,} bytes would become {sizes[1]:,} when they are decompressed.")
        return sizes[1]

    def _path(self, group: int, columns: Sequence[str]) -> str:
        """A local file that has these columns of a row group at their places, and the footer."""
        if self.local is not None:
            return self.local
        files, path = filesystem(self.uri, self.access)

        def fill(target: Any) -> None:
            length = files.info(path)["size"]
            target.truncate(length)
            ranges = [(length - self.footer.size, self.footer.size)]
            ranges += [(chunk.start, chunk.packed) for chunk in self._chunks(group, columns)]
            for start, size in ranges:
                target.seek(start)
                target.write(files.cat_file(path, start=start, end=start + size))

        return keep((self.uri, self.version, group, tuple(columns)), lambda: Spool(fill)).path

    def batches(self, group: int, columns: Sequence[str]) -> Iterator[Any]:
        """A row group's record batches, in order, of bounded size."""
        import pyarrow.parquet as pq

        stated = self.size(group, columns)
        kinds = {name: self.schema.field(name).type for name in columns}
        # A dictionary's cells are in the file once and may be in every row. Text is read as a dictionary, and of images
        # so few at a time that each may be as large as the complete column.
        text = [name for name, kind in kinds.items() if is_text(kind)]
        rows = max(1, min(64, BATCH_BYTES // max(1, stated))) if any(map(is_bytes, kinds.values())) else BATCH_ROWS
        with pq.ParquetFile(self._path(group, columns), pre_buffer=False, read_dictionary=text) as file:
            # One thread: there are many workers, and an exception in one of Arrow's threads ends the process.
            yield from file.iter_batches(rows, [group], list(columns), use_threads=False)

    def _from(self, group: int, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """(first row, batch) of all batches from a row group on."""
        for number in range(group, len(self.groups)):
            at = self.begins[number]
            for batch in self.batches(number, columns):
                yield at, batch
                at += len(batch)

    def cells(self, columns: Sequence[str], first: int, length: int) -> Iterator[tuple[int, list[Any]]]:
        """(row, its cells in these columns as Arrow's scalars), in order; decodes the row groups that hold them.

        The next call resumes where this one ends, because a row group may have a million rows and a shard 4,096.
        """
        end, key = first + length, (self.uri, self.version, *columns)
        start, batches = _reading.pop(key, (first + 1, iter(())))
        if start > first:
            batches = self._from(bisect_right(self.begins, first) - 1, columns)
        for at, batch in batches:
            found = [batch.column(name) for name in columns]
            for i in range(max(0, first - at), min(len(batch), end - at)):
                yield at + i, [column[i] for column in found]
            if at + len(batch) >= end:
                _reading[key] = (at, itertools.chain([(at, batch)], batches))
                while len(_reading) > TABLES_READING:
                    _reading.popitem(last=False)
                return

    def cell(self, column: str, row: int) -> Any:
        """One cell. Its row group stays decoded for later calls."""
        group = bisect_right(self.begins, row) - 1
        key = (self.uri, self.version, column, group)
        held = _groups.pop(key, None)
        if held is None:
            held, size, most = [], 0, max(2**26, 2 * self.size(group, [column]))
            for batch in self.batches(group, [column]):
                held.append(batch.column(0))
                if (size := size + batch.nbytes) > most:
                    raise SourceError(f"{self.uri}: the cells of {column!r} are larger than the table states.")
            _sizes[key] = size
        _groups[key] = held
        while len(_groups) > GROUPS_HELD and sum(_sizes[k] for k in _groups) > HELD_BYTES:
            del _sizes[_groups.popitem(last=False)[0]]
        at = row - self.begins[group]
        for part in held:
            if at < len(part):
                return part[at]
            at -= len(part)
        raise SourceError(f"{self.uri} has fewer rows than it states.")


#: Table and columns -> the first row of the last batch that was read, and an iterator from that batch on.
_reading: OrderedDict[tuple[str, ...], tuple[int, Iterator[tuple[int, Any]]]] = OrderedDict()
TABLES_READING = 4
_groups: OrderedDict[tuple[str, str, str, int], list[Any]] = OrderedDict()
_sizes: dict[tuple[str, str, str, int], int] = {}
_tables: OrderedDict[tuple[str, str, Access], Table] = OrderedDict()
TABLES_HELD, SPOOLS_HELD = 64, 4


def open_table(uri: str, access: Access, version: str | None = None) -> Table:
    """Open a Parquet file. A file behind http(s) is fetched again, unless this ``version`` is already open."""
    import pyarrow as pa

    if version is not None and (known := _tables.get((uri, version, access))) is not None:
        return known
    spool = spooled(uri, access, version) if is_web(uri) else None
    found = spool.digest if spool else version_of(uri, access)
    if (known := _tables.get((uri, found, access))) is not None:
        return known
    tail = _tail(spool.path if spool else uri, access)
    try:
        footer = read_footer(tail)
    except (pa.ArrowException, ValueError) as error:
        raise SourceError(f"{uri} is not a Parquet table: {error}") from error
    table = _tables[uri, found, access] = Table(uri, access, found, footer, spool)
    for which, most in ((lambda t: t.spool, SPOOLS_HELD), (lambda t: True, TABLES_HELD)):
        for key in [key for key, table in _tables.items() if which(table)][:-most]:
            del _tables[key]
    return table


def _tail(uri: str, access: Access) -> bytes:
    """The end of a table of this machine or of a store, with the complete footer."""
    with readable(f"Cannot read {uri}"):
        if is_remote(uri):
            files, path = filesystem(uri, access)
            length = files.info(path)["size"]
        else:
            length = os.path.getsize(uri)
        return with_footer(length, lambda size: read_range(uri, access, length - size, size))


def class_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """The names of a column's numbers, from Hugging Face's metadata (ClassLabel)."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column].get("feature", features[column])["names"]  # "feature": of lists
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def labels_of(table: Table, column: str, first: int, length: int) -> Iterator[Label | None]:
    """The labels of some rows, each text held once."""
    if flags := flag_columns(table.schema.names, column):
        for _, cells in table.cells(flags, first, length):
            yield flags_label(table.uri, flags, [cell.as_py() for cell in cells])
        return
    known: dict[Any, Label | None] = {}
    for _, (cell,) in table.cells([column], first, length):
        if not cell.is_valid:
            yield NO_CLASS
            continue
        value = text_of(cell) if is_text(cell.type) else cell.as_py()
        if isinstance(value, (str, int)):
            yield known.setdefault(value, as_label(value))
        else:
            yield as_label(value)
