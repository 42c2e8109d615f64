"""Lists of images: a path or URI a line (.txt), or columns with a header (.csv, .tsv) or with names (.jsonl)."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..errors import SourceError
from .columns import flag_columns, list_columns
from .stores import Access, is_remote, open_binary
from .table_cells import Label, as_label, flags_label, parse_label

LINE = 2**20  # characters
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class Row(NamedTuple):
    path: str
    label: Label | None


def read_list(uri: str, access: Access, column: str | None = None, label_column: str | None = None) -> Iterator[Row]:
    """The images of a list and their labels, where it has any, one after another.

    A relative path starts at the working directory or, if the first one is not there, at the list's own folder. Raises
    SourceError if it is not a list, or if its columns are not known.
    """
    with open_binary(uri, access) as file:
        start = file.read(4)
        file.seek(0)
        encoding = next((name for mark, name in MARKS if start.startswith(mark)), "utf-8")
        # File names are bytes: those that are not UTF-8 are kept as they are.
        errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
        read = {".jsonl": _from_json, ".csv": _from_columns, ".tsv": _from_columns}.get(_suffix(uri), _from_lines)
        try:
            with io.TextIOWrapper(file, encoding, errors, newline=None) as text:
                yield from _resolved(uri, read(uri, _lines(uri, text), column, label_column))
        except (UnicodeError, csv.Error) as error:
            raise SourceError(f"Cannot read {uri} as a list: {error}") from error


def _suffix(uri: str) -> str:
    return os.path.splitext(uri.lower().partition("?")[0])[1]


def _lines(uri: str, text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(LINE):
        if len(line) == LINE:
            raise SourceError(f"{uri} is not a list: one of its lines is longer than {LINE:,} characters.")
        yield line


def _from_lines(uri: str, lines: Iterator[str], column: str | None, label_column: str | None) -> Iterator[Row]:
    for line in lines:
        if name := line.strip():
            yield Row(name, None)


def _from_columns(uri: str, lines: Iterator[str], column: str | None, label_column: str | None) -> Iterator[Row]:
    rows = csv.reader(lines, delimiter="\t" if _suffix(uri) == ".tsv" else ",")
    header = [name.strip() for name in next(rows, [])]
    image, label = list_columns(uri, header, column, label_column)
    flags = flag_columns(header, label)
    at, label_at = header.index(image), [header.index(name) for name in flags or [label] if name is not None]
    for row in rows:
        if len(row) > at and row[at].strip():
            cells = [row[i] for i in label_at if i < len(row)]
            whole = len(cells) == len(label_at) > 0
            found = None if not whole else flags_label(uri, flags, cells) if flags else parse_label(cells[0])
            yield Row(row[at].strip(), found)


def _from_json(uri: str, lines: Iterator[str], column: str | None, label_column: str | None) -> Iterator[Row]:
    columns: tuple[str, str | None] | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{uri}, line {number:,}, is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise SourceError(f"{uri}, line {number:,}, is not a JSON object.")
        columns = columns or list_columns(uri, list(record), column, label_column)
        image, label = columns
        if not isinstance(path := record.get(image), str) or not path:
            raise SourceError(f"{uri}, line {number:,}, has no path in {image!r}.")
        flags = flag_columns(list(record), label)
        found = flags_label(uri, flags, map(record.get, flags)) if flags else label and as_label(record.get(label))
        yield Row(path, found)


def _resolved(uri: str, rows: Iterator[Row]) -> Iterator[Row]:
    """Rows whose relative paths are resolved from the list's folder, if the first one exists there."""
    folder: str | None = None
    for row in rows:
        if is_remote(row.path) or os.path.isabs(row.path):
            yield row
            continue
        if folder is None:
            own = "" if is_remote(uri) else os.path.dirname(uri)
            folder = own if not os.path.exists(row.path) and os.path.exists(os.path.join(own, row.path)) else ""
        yield Row(os.path.join(folder, row.path), row.label)
