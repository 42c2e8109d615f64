"""Make one table from tables larger than memory: DuckDB reads and spills to disk, pyarrow writes.

A table is written completely or not at all. Its metadata record the inputs and options, so the same step over the same
inputs does nothing. A step that was killed leaves a folder ``OUT.work``, which the next run deletes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.outputs import explained, locked
from ..data.source import TableFile, table_files
from ..data.stores import Access
from ..errors import OutputError, SourceError
from ..files import write_atomically
from ..packages import needed

if TYPE_CHECKING:
    import duckdb

METADATA = b"resnext_hub"
BATCH = 100_000  # rows that leave DuckDB together, and a row group of what is written


@dataclass(frozen=True)
class Limits:
    """Limits of DuckDB."""

    memory: str = "2GB"  #: for sorting, grouping and joining; the process needs 200 to 300 MB more
    spill: Path | None = None  #: the folder for data that does not fit in memory; None: next to the output
    threads: int | None = None  #: None: all cores


@dataclass(frozen=True)
class Reading:
    """How to read the images' tables."""

    column: str | None = None  #: of the images; None: image
    label_column: str | None = None  #: of the hashtags or classes
    private: bool = False  #: as in `data.stores.Access`
    anonymous: bool = False

    def files(self, specs: str | Sequence[str]) -> list[TableFile]:
        """The Parquet files that specs name: files, patterns or folders, on this machine or in an object store."""
        return table_files([specs] if isinstance(specs, str) else specs, Access(self.private, self.anonymous))

    @property
    def columns(self) -> list[str | None]:
        """The named columns: a part of a job."""
        return [self.column, self.label_column]


def fingerprint(files: Sequence[TableFile]) -> str:
    """A value that changes with the files' names, lengths, dates and ETags; their contents are not read."""
    lines = "\n".join(f"{file.uri} {file.version}" for file in files)
    return f"{len(files)} files, sha256 {hashlib.sha256(lines.encode('utf-8', 'surrogateescape')).hexdigest()}"


def earlier_report(out: Path, job: dict[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """The report that `write_table` stored in OUT if the same job made it; None if OUT must be made.

    Raises OutputError if another job made OUT and ``overwrite`` is False, or if the name does not end in .parquet.
    """
    if out.suffix != ".parquet":
        raise OutputError(f"{out}: the name of the table must end in .parquet.")
    if out.is_dir():
        raise OutputError(f"{out} is a folder: pass the name of a file.")
    if not out.exists():
        return None
    try:
        noted = json.loads((pq.read_metadata(out).metadata or {})[METADATA], object_hook=_numbered)
        before, report = noted["job"], noted["report"]
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError):
        before, report = {}, {}
    if before == job:
        return report
    if overwrite:
        return None
    keys = sorted(key for key in {**before, **job} if before.get(key) != job.get(key)) if before else []
    why = f"was made with other options ({', '.join(keys)})" if keys else "was not made by this step"
    raise OutputError(f"{out} exists and {why}. Choose another name, delete the file, or pass overwrite=True.")


@contextlib.contextmanager
def workspace(out: Path, limits: Limits) -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
    """Yield DuckDB within its limits and an empty folder next to OUT, deleted afterwards; lock out other runs.

    Raises OutputError if another run is writing OUT, or if the memory or the disk is too small; SourceError if DuckDB
    cannot read an input.
    """
    with needed("This step", "train"):
        import duckdb

    work = out.with_name(f"{out.name}.work")
    folder = work / "files"  # the lock stays when this is cleared
    spill = limits.spill / f"{out.name}.spill" if limits.spill else folder / "spill"
    options: dict[str, Any] = {
        "memory_limit": limits.memory,
        "temp_directory": str(spill),
        # Extensions are neither downloaded nor loaded.
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    if limits.threads is not None:
        options["threads"] = limits.threads
    with explained():
        work.mkdir(parents=True, exist_ok=True)
    with locked(work / "lock", out):
        try:
            with explained():
                for left in (folder, spill):  # of a killed run
                    if left.exists():
                        shutil.rmtree(left)
                folder.mkdir()
                spill.mkdir(parents=True)
            with contextlib.closing(duckdb.connect(config=options)) as connection:
                yield connection, folder
        except duckdb.OutOfMemoryException as error:
            full = f"The disk is full ({spill}): pass spill=DIR on another disk"
            what = full if "temp_directory" in str(error) else "Pass a higher limit, memory=SIZE"
            raise OutputError(f"{what}. DuckDB says: {_first_line(error)}") from error
        except duckdb.Error as error:
            raise SourceError(f"DuckDB says: {_first_line(error)}") from error
        finally:
            shutil.rmtree(spill, ignore_errors=True)
            shutil.rmtree(work, ignore_errors=True)
    with contextlib.suppress(OSError):
        work.rmdir()  # Windows: the lock was open before


def _numbered(values: dict[str, Any]) -> dict[Any, Any]:
    """A JSON object with its keys that are numbers as such: those of classes."""
    return {int(key) if key.isdigit() else key: value for key, value in values.items()}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def open_table(
    connection: duckdb.DuckDBPyConnection, name: str, files: Sequence[TableFile], **columns: str | None
) -> dict[str, str]:
    """Make a view of Parquet files as one table; return its columns and their DuckDB types.

    ``columns`` names those that have another name in the files: ``image="photo"``.
    """
    import duckdb

    for filesystem in {id(file.filesystem): file.filesystem for file in files if file.filesystem is not None}.values():
        protocols = [filesystem.protocol] if isinstance(filesystem.protocol, str) else filesystem.protocol
        if not any(connection.filesystem_is_registered(protocol) for protocol in protocols):
            connection.register_filesystem(filesystem)
    try:
        table = connection.read_parquet([file.uri for file in files])
    except duckdb.Error as error:
        raise SourceError(f"{files[0].uri} is not a Parquet table: {_first_line(error)}") from error
    known = {column: str(kind) for column, kind in zip(table.columns, table.types, strict=True)}
    named = {column: column for column in known} | {ours: theirs for ours, theirs in columns.items() if theirs}
    check_columns(files[0].uri, known, dict.fromkeys(named.values(), ""))
    table.select(*(duckdb.ColumnExpression(theirs).alias(ours) for ours, theirs in named.items())).create_view(name)
    return {ours: known[theirs] for ours, theirs in named.items()}


def check_columns(where: str, columns: dict[str, str], wanted: dict[str, str]) -> None:
    """Check that columns exist and have one of the types in their value, such as ``FLOAT[] DOUBLE[]``; "": any type."""
    for name, kinds in wanted.items():
        if name not in columns:
            raise SourceError(f"{where} has no column {name!r}; it has the columns {', '.join(columns)}.")
        if kinds and columns[name] not in kinds.split():
            kinds = " or ".join(kinds.split())
            raise SourceError(f"{where}: the column {name!r} has the type {columns[name]}, expected {kinds}.")


def write_table(
    out: Path,
    folder: Path,
    batches: Iterable[pa.RecordBatch],
    columns: pa.Schema,
    job: dict[str, Any],
    report: Callable[[], dict[str, Any]],
) -> None:
    """Write OUT from batches, completely or not at all, with the job and its report in the metadata."""

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, columns) as writer:
            for batch in batches:
                writer.write_batch(batch.cast(columns), BATCH)
            writer.add_key_value_metadata({METADATA: json.dumps({"job": job, "report": report()}).encode()})

    with explained():
        write_atomically(out, write, folder=folder)
