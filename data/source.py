"""Find the images that users name, as shards of numbered items in an order that depends on the content alone.

A source is one or more of these, of this machine, behind http(s), or in an object store (s3://, gs://, ...): a folder,
a pattern, a list, a Parquet table, an archive, or one image. `docs/data.md` has the rules.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import SourceError
from ..packages import needed
from . import columns, parquet
from .file_names import KINDS, Passed, kind_of
from .folders import Found, expand_braces, find_files, is_pattern
from .lists import read_list
from .shards import ArchiveShard, PathShard, TableShard
from .stores import Access, filesystem, is_remote, is_web, readable, version_of
from .table_cells import Label


class _Path(NamedTuple):
    path: str
    root: int
    label: Label | None = None


@dataclass(frozen=True)
class _Reader:
    rows: int
    column: str | None
    label_column: str | None
    access: Access
    passed: Passed

    def entries(self, spec: str) -> Iterator[_Path | Any]:
        found = find_files(spec, self.access, self.passed)
        entries = {"file": self._file, "folder": self._folder, "pattern": self._pattern}[found.how](spec, found)
        if (first := next(entries, None)) is None:
            left = f" {self.passed}." if self.passed else ""
            if ".arrow" in left:
                left += " Write a data set of save_to_disk as a table: load_from_disk(DIR).to_parquet('x.parquet')."
            raise SourceError(f"No images in {spec}.{left}")
        yield from itertools.chain([first], entries)

    def _file(self, spec: str, found: Found) -> Iterator[_Path | Any]:
        for path in found.paths:
            yield from self._one(path, found.root, "image", f"./{path[found.root :]}")

    def _pattern(self, spec: str, found: Found) -> Iterator[_Path | Any]:
        """Images; lists, tables and archives only where the pattern says so: 'DIR/*' takes no notes.txt for a list."""
        last = spec.rpartition("/")[2]
        wanted = kind_of(last) or ("image" if re.search(r"[*?\[]", last) else None)
        for path in found.paths:
            kind = kind_of(path) or (None if wanted else "image")
            if kind == "image" or (kind is not None and kind == wanted):
                yield from self._one(path, found.root, kind)
            else:
                self.passed.file(path)

    def _folder(self, spec: str, found: Found) -> Iterator[_Path | Any]:
        """Images; if there are none, the tables or archives."""
        others: dict[str, list[str]] = {"table": [], "archive": []}
        images = False
        for path in found.paths:
            kind = kind_of(path)
            if kind == "image":
                images = True
                yield _Path(path, found.root)
            elif kind in others and not images:
                others[kind].append(path)
            else:
                self.passed.file(path)
        present = [kind for kind, paths in others.items() if paths]
        if images:
            for path in itertools.chain(*others.values()):
                self.passed.file(path)
        elif len(present) > 1:
            raise SourceError(f"{spec} has tables and archives: pass one kind, as '{spec.rstrip('/')}/**/*.parquet'.")
        else:
            for path in itertools.chain(*others.values()):
                yield from self._one(path, found.root, present[0])

    def _one(self, path: str, root: int, otherwise: str, place: str = "") -> Iterator[_Path | Any]:
        place = place or path[root:]
        kind = kind_of(re.sub(r"[?#].*", "", path) if is_web(path) else path) or otherwise
        with readable(f"Cannot read {path}"):
            if kind == "archive":
                yield ArchiveShard(path, place, self.access, self.passed)
            elif kind == "table":
                yield from self._table(path, place)
            elif kind == "list":
                for row in read_list(path, self.access, self.column, self.label_column):
                    yield _Path(row.path, -1, row.label)
            else:
                yield _Path(path, root)

    def _table(self, uri: str, place: str) -> Iterator[TableShard]:
        with needed("A table", "bulk"):
            import pyarrow  # noqa: F401
        table = parquet.open_table(uri, self.access)
        column, name_column = columns.image_column(uri, table.schema, self.column, self.label_column)
        for first in range(0, table.rows, self.rows):
            length = min(self.rows, table.rows - first)
            yield TableShard(uri, place, self.access, column, name_column, first, length, table.rows, table.version)


def shards(
    specs: Sequence[str],
    rows: int,
    *,
    column: str | None = None,
    label_column: str | None = None,
    private: bool = False,
    anonymous: bool = False,
    passed: Passed | None = None,
) -> Iterator[Any]:
    """The shards of a source, in order, found as they are asked for.

    Args:
        specs: one or more sources; see docs/data.md.
        rows: images per shard of paths or of table rows. (An archive is one shard.)
        column, label_column: the columns of images and of labels in a table or list; None: found by their names.
        private: fetch URLs at private addresses too.
        anonymous: ask stores for public data, without an account.
        passed: counts what is left out.

    Raises:
        SourceError: there is no such source, or it has no images.
    """
    access = Access(private, anonymous)
    reader = _Reader(rows, column, label_column, access, Passed() if passed is None else passed)
    paths: list[_Path] = []
    for entry in (entry for spec in specs for one in expand_braces(spec) for entry in reader.entries(one)):
        if isinstance(entry, _Path):
            paths.append(entry)
        if paths and (len(paths) == rows or not isinstance(entry, _Path)):
            yield _path_shard(paths, access)
            paths = []
        if not isinstance(entry, _Path):
            yield entry
    if paths:
        yield _path_shard(paths, access)


def _path_shard(paths: list[_Path], access: Access) -> PathShard:
    return PathShard(tuple(p.path for p in paths), tuple(p.root for p in paths), tuple(p.label for p in paths), access)


def count(specs: Sequence[str], *, column: str | None = None, label_column: str | None = None) -> int | None:
    """The number of images; None if counting would mean reading everything or listing a remote store."""
    if any(is_remote(spec) for spec in specs):
        return None
    try:
        return sum(len(shard) for shard in shards(specs, 2**16, column=column, label_column=label_column))
    except TypeError:
        return None


def is_collection(spec: str) -> bool:
    """True if a spec names a folder, a pattern, a list, a table or an archive; False for one image."""
    return is_pattern(spec) or os.path.isdir(spec) or kind_of(spec) in ("list", "table", "archive")


@dataclass(frozen=True)
class TableFile:
    """A Parquet file. ``version`` changes when the file is replaced. ``filesystem``: fsspec's; None: local."""

    uri: str
    version: str
    filesystem: Any


def table_files(specs: Sequence[str], access: Access) -> list[TableFile]:
    """The Parquet files that specs name: files, patterns and folders; SourceError if there are none."""
    found: list[TableFile] = []
    for spec in itertools.chain.from_iterable(map(expand_braces, specs)):
        if is_web(spec):
            raise SourceError(f"{spec}: tables at http(s) URLs are not supported here: download the file.")
        files = find_files(spec, access, Passed())
        names = [path for path in files.paths if files.how == "file" or path.lower().endswith(KINDS["table"])]
        if not names:
            raise SourceError(f"No such Parquet file, folder of Parquet files, or pattern: {spec}")
        store = filesystem(spec, access)[0] if is_remote(spec) else None
        found += [TableFile(name, version_of(name, access), store) for name in names]
    return found
