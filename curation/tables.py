"""Tables larger than memory -> one table, whole or not at all: DuckDB out of core, pyarrow for the writing.

What a step makes says in its own metadata of what and how it was made. The same step over the same inputs finds it and
does nothing; a step that was killed leaves a folder ``OUT.work``, which counts for nothing; the next run clears it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.outputs import explained
from ..data.source import TableFile
from ..errors import OutputError, SourceError
from ..packages import needed

if TYPE_CHECKING:
    import duckdb

__all__ = [
    "Limits",
    "add_limits",
    "check_columns",
    "earlier_report",
    "fingerprint",
    "limits_from",
    "open_table",
    "workspace",
    "write_table",
]

METADATA = b"resnext_hub"
BATCH = 100_000  # rows that leave DuckDB together, and a row group of what is written


@dataclass(frozen=True)
class Limits:
    """What DuckDB may take.

    ``memory``: as DuckDB writes it ("2GB"), for sorting, grouping and joining; the process took 200 to 300 MB beside it
    where it was measured. ``spill``: the folder for what does not fit (default: beside the output). ``threads``:
    default all cores.
    """

    memory: str = "2GB"
    spill: Path | None = None
    threads: int | None = None


def fingerprint(files: Sequence[TableFile]) -> str:
    """Another value if there are other files, or one was replaced (length, date, ETag; contents are not read)."""
    lines = "\n".join(f"{file.uri} {file.version}" for file in files)
    return f"{len(files)} files, sha256 {hashlib.sha256(lines.encode('utf-8', 'surrogateescape')).hexdigest()}"


def earlier_report(out: Path, job: dict[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """What `write_table` noted in OUT if the same job made it; None if OUT is still to be made.

    Raises:
        OutputError: OUT is there and another job's, and ``overwrite`` was not asked for; or its name is no table's.
    """
    if out.suffix != ".parquet":
        raise OutputError(f"{out}: the name of the table must end in .parquet.")
    if out.is_dir():
        raise OutputError(f"{out} is a folder: pass the name of a file.")
    if not out.exists():
        return None
    try:
        noted = json.loads((pq.read_metadata(out).metadata or {})[METADATA])
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
    """DuckDB within its limits, and an empty folder beside OUT that goes afterwards; keeps other runs out.

    Raises:
        OutputError: another run is making OUT; memory or disk did not suffice.
        SourceError: DuckDB could not read an input.
        MissingPackageError: DuckDB is not installed.
    """
    with needed("This step", "train"):
        import duckdb

    work = out.with_name(f"{out.name}.work")
    folder = work / "files"  # all that is ours to clear
    spill = limits.spill / f"{out.name}.spill" if limits.spill else folder / "spill"
    with explained():
        work.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(work / "lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise OutputError(f"Another process is writing {out}: wait for it, or choose another name.") from error
    try:
        with explained():
            for left in (folder, spill):  # by a run that was killed
                if left.exists():
                    shutil.rmtree(left)
            folder.mkdir()
            spill.mkdir(parents=True)
        options: dict[str, Any] = {
            "memory_limit": limits.memory,
            "temp_directory": str(spill),
            # Nothing is fetched and nothing is loaded that did not come with DuckDB.
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        if limits.threads is not None:
            options["threads"] = limits.threads
        try:
            with contextlib.closing(duckdb.connect(config=options)) as connection:
                yield connection, folder
        except duckdb.OutOfMemoryException as error:
            full = "temp_directory" in str(error)
            what = (
                f"The disk is full ({spill}): pass spill=DIR on another disk"
                if full
                else "Pass a higher limit, memory=SIZE"
            )
            raise OutputError(f"{what}. DuckDB says: {_first_line(error)}") from error
        except duckdb.Error as error:
            raise SourceError(f"DuckDB says: {_first_line(error)}") from error
    finally:
        shutil.rmtree(spill, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)
        lock.release()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def open_table(connection: duckdb.DuckDBPyConnection, name: str, files: Sequence[TableFile]) -> dict[str, str]:
    """Make Parquet files, as one table, a view of this name; return its columns and their types in DuckDB's words."""
    import duckdb

    for filesystem in {id(file.filesystem): file.filesystem for file in files if file.filesystem is not None}.values():
        protocols = [filesystem.protocol] if isinstance(filesystem.protocol, str) else filesystem.protocol
        if not any(connection.filesystem_is_registered(protocol) for protocol in protocols):
            connection.register_filesystem(filesystem)
    try:
        table = connection.read_parquet([file.uri for file in files])
    except duckdb.Error as error:
        raise SourceError(f"{files[0].uri} is not a Parquet table: {_first_line(error)}") from error
    table.create_view(name)
    return {column: str(kind) for column, kind in zip(table.columns, table.types, strict=True)}


def check_columns(where: str, columns: dict[str, str], wanted: dict[str, str]) -> None:
    """Make sure that columns are there, of the types that each value names, as ``VARCHAR`` or ``FLOAT[] DOUBLE[]``.

    Raises:
        SourceError: one is missing or of another type.
    """
    for name, kinds in wanted.items():
        if name not in columns:
            raise SourceError(f"{where} has no column {name!r}; it has the columns {', '.join(columns)}.")
        if columns[name] not in kinds.split():
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
    """Write OUT from batches, whole or not at all, with its job in its metadata, and what was found on the way.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    temporary = folder / "table.parquet"
    with explained():
        with pq.ParquetWriter(temporary, columns) as writer:
            for batch in batches:
                writer.write_batch(batch.cast(columns), BATCH)
            writer.add_key_value_metadata({METADATA: json.dumps({"job": job, "report": report()}).encode()})
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, out)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """The options of what DuckDB may take, and ``--overwrite``."""
    default = Limits()
    parser.add_argument("--memory", default=default.memory, metavar="SIZE", help="memory limit (default: %(default)s)")
    parser.add_argument("--spill", type=Path, metavar="DIR", help="folder for temporary files (default: next to FILE)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it was made with other options")


def limits_from(arguments: argparse.Namespace) -> Limits:
    """What `add_limits` was told."""
    return Limits(arguments.memory, arguments.spill, arguments.threads)
