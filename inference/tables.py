"""Write a table of rows as Parquet, CSV or JSON lines."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

FORMATS = (".parquet", ".csv", ".jsonl")
TEXT_ROWS = 256  # rows that are Python objects at the same time


def write_table(path: Path, suffix: str, tables: Iterator[pa.Table], identity: dict[str, Any]) -> None:
    """Write tables of the same columns as one file; a Parquet file has the ``identity`` of the run in its metadata.

    In a .csv, lists are JSON in their cells, and text is written as it is, for programs (a spreadsheet may take it for
    a formula).
    """
    if suffix == ".parquet":
        first = next(tables)
        columns = first.schema.with_metadata({"resnext_hub": json.dumps(identity)})
        with pq.ParquetWriter(path, columns) as writer:
            for table in itertools.chain([first], tables):
                writer.write_table(table.replace_schema_metadata(columns.metadata))
        return
    with open(path, "w", encoding="utf-8", newline="") as file:
        for number, table in enumerate(tables):
            write_text(file, suffix, table, first=not number)


def write_text(file: TextIO, suffix: str, table: pa.Table, *, first: bool) -> None:
    """Write rows as ".csv" or ".jsonl"; the first rows of a .csv have a header."""
    if suffix == ".jsonl":
        for row in _rows(table):
            file.write(json.dumps(dict(zip(table.column_names, row, strict=True)), ensure_ascii=False) + "\n")
        return
    writer = csv.writer(file)
    if first:
        writer.writerow(table.column_names)
    for row in _rows(table):
        writer.writerow([json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for v in row])


def _rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Yield rows as Python values; floats have as few digits as distinguish them from their neighbours."""

    def values(column: pa.ChunkedArray) -> list[Any]:
        listed = hasattr(column.type, "value_type")
        digits = {pa.float32(): 9, pa.float16(): 5}.get(column.type.value_type if listed else column.type)
        if digits is None:
            return column.to_pylist()

        def short(value: Any) -> float:
            return float(f"{float(value):.{digits}g}")

        return [r if r is None else [short(v) for v in r] if listed else short(r) for r in column.to_pylist()]

    for first in range(0, len(table), TEXT_ROWS):
        yield from zip(*(values(column) for column in table.slice(first, TEXT_ROWS).columns), strict=True)
