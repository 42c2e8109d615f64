"""Rows of predictions -> parts on the disk -> one table.

A run writes parts, each a run of one shard's rows, into the folder ``OUT.parts``; a part appears under its name whole
or not at all. What is in the folder is therefore what is done, and a later run goes on from it. When every shard is
done the parts become OUT, row for row in the source's order, and the folder goes.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.outputs import explained
from ..errors import OutputError

__all__ = ["FORMATS", "Part", "Parts", "schema"]

FORMATS = (".parquet", ".csv", ".jsonl")
GROUP = 8192  # rows in a row group of OUT, so that OUT does not depend on how the parts were cut
TEXT_ROWS = 256  # rows that are Python objects at once


def schema(num_features: int | None) -> pa.Schema:
    """The columns of a part. ``error`` is null or says why the others are null; ``features`` only if asked for.

    OUT has a column more, ``index``: the image's number in the source, from 0.
    """
    columns = [
        pa.field("image", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("classes", pa.list_(pa.int32())),
        pa.field("labels", pa.list_(pa.string())),
        pa.field("synsets", pa.list_(pa.string())),
        pa.field("probabilities", pa.list_(pa.float32())),
    ]
    if num_features is not None:
        columns.append(pa.field("features", pa.list_(pa.float16(), num_features)))
    return pa.schema(columns)


@dataclass(frozen=True)
class Part:
    """A run of one shard's rows: its place, how many failed, and whether the shard ends with it."""

    shard: int
    start: int
    rows: int
    errors: int
    last: bool
    fingerprint: str

    @property
    def name(self) -> str:
        return _part_name(self.shard, self.start)


def _part_name(shard: int, start: int) -> str:
    return f"part-{shard:07d}-{start:08d}.parquet"


@dataclass
class Parts:
    """The folder of a job's parts.

    Args:
        out: the table that they will become.
        job: what the job is, as JSON: two runs with the same job give the same table.
    """

    out: Path
    job: dict[str, Any]
    done: dict[int, Part] = field(default_factory=dict)  #: the last committed part of every shard
    rows: int = 0
    errors: int = 0

    @property
    def folder(self) -> Path:
        return self.out.with_name(f"{self.out.name}.parts")

    def check_output(self, *, resume: bool, overwrite: bool) -> None:
        """What `opened` would refuse, before anything is fetched or built for it.

        Raises:
            OutputError: as `opened`.
        """
        if self.out.suffix not in FORMATS:
            raise OutputError(f"{self.out}: the name of a table must end in one of {', '.join(FORMATS)}.")
        if resume and overwrite:
            raise OutputError("Pass either resume=True or overwrite=True, not both.")
        if self.out.is_dir():
            raise OutputError(f"{self.out} is a folder: pass the name of a file.")
        with explained():
            kept, made = self.is_kept(), self.out.exists()
        if made and resume and not kept:
            self.sweep()
            raise OutputError(
                f"{self.out} exists, and there is no stopped run to resume. Pass overwrite=True to replace it."
            )
        if made and not overwrite and not resume:
            raise OutputError(f"{self.out} exists. Choose another name, delete the file, or pass overwrite=True.")
        if kept and not resume and not overwrite:
            raise OutputError(
                f"An earlier run for {self.out} was stopped. Pass resume=True to continue it, or overwrite=True to "
                "start again."
            )

    def is_kept(self) -> bool:
        """Whether a stopped run can go on. Without job.json a folder holds nothing that counts."""
        return (self.folder / "job.json").exists()

    def sweep(self) -> None:
        """Remove what a run left beside its table that died while it cleaned up.

        Raises:
            OutputError: another run is writing it; it cannot be removed.
        """
        if self.out.exists() and self.folder.exists() and not self.is_kept():
            with self._locked(), explained():
                shutil.rmtree(self.folder)

    @contextlib.contextmanager
    def opened(self, *, resume: bool = False, overwrite: bool = False) -> Iterator[None]:
        """Make the folder, or find what an earlier run of the same job left in it; keep other runs out.

        Raises:
            OutputError: OUT has no known suffix or is there already; parts are there and ``resume`` was not asked for,
                or they are of another job, or broken; another run is writing it.
        """
        self.check_output(resume=resume, overwrite=overwrite)
        with self._locked():
            self.check_output(resume=resume, overwrite=overwrite)  # another run may have ended meanwhile
            with explained():
                if not (self.is_kept() and resume):
                    _clear_folder(self.folder)
                if not self.is_kept():
                    text = json.dumps(self.job, indent=1)
                    _replace(self.folder / "job.json", lambda temporary: temporary.write_text(text, "utf-8"))
                self.check_job()
                for path in self.folder.glob("*.tmp"):
                    path.unlink()
                self.refresh()
            yield

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with explained():
            self.folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.folder / "lock")
        with explained():
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout as error:
                raise OutputError(
                    f"Another process is writing {self.out}: wait for it, or choose another name."
                ) from error
        try:
            yield
        finally:
            lock.release()

    def refresh(self, shard: int | None = None) -> None:
        """Look at what is committed, of all shards or of one; a cluster's nodes commit beside this process.

        Raises:
            OutputError: a part is missing between others.
        """
        if shard is None:
            parts = [_part_in(path) for path in sorted(self.folder.glob("part-*.parquet"))]
        else:
            parts = list(self._parts_of(shard))
        self.done = {}
        for part in parts:
            before = self.done.get(part.shard)
            if part.start != (before.start + before.rows if before else 0) or (before and before.last):
                raise OutputError(
                    f"{self.folder / part.name} does not continue the part before it. Pass overwrite=True to start "
                    "again."
                )
            self.done[part.shard] = part
        self.rows, self.errors = sum(part.rows for part in parts), sum(part.errors for part in parts)

    def _parts_of(self, shard: int) -> Iterator[Part]:
        """One shard's parts, from name to name: the folder may hold a million of others, on a slow file system."""
        start = 0
        while (path := self.folder / _part_name(shard, start)).exists():
            yield (part := _part_in(path))
            if part.last or not part.rows:
                return
            start += part.rows

    def check_job(self) -> None:
        """Make sure that the folder is this job's.

        Raises:
            OutputError: it is another's, or there is none.
        """
        path = self.folder / "job.json"
        if not path.exists():
            raise OutputError(
                f"{self.folder} is not visible on this machine: it must be on a file system that all machines share."
            )
        try:
            found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise OutputError(f"{path} is corrupt: {error}. Pass overwrite=True to start again.") from error
        different = [key for key in {**found, **self.job} if found.get(key) != self.job.get(key)]
        if different:
            lines = "; ".join(f"{key} {found.get(key)!r}, now {self.job.get(key)!r}" for key in different)
            raise OutputError(
                f"The stopped run used other options: {lines}. Pass the same again, or overwrite=True to start again."
            )

    def check_shard(self, number: int, fingerprint: Callable[[], str]) -> bool:
        """Whether a shard is done.

        Raises:
            OutputError: it is not what it was when its first rows were committed.
        """
        before = self.done.get(number)
        if before is not None and before.fingerprint != (now := fingerprint()):
            raise OutputError(
                f"The source has changed since the run was stopped: shard {number} was "
                f"{before.fingerprint[:200]!r}, now {now[:200]!r}. Pass overwrite=True to start again."
            )
        return before is not None and before.last

    def commit(self, part: Part, batches: Sequence[pa.RecordBatch], columns: pa.Schema) -> None:
        """Write a part, whole or not at all.

        Raises:
            OutputError: the disk is full, or the folder cannot be written; what was committed stays.
        """
        marked = columns.with_metadata({"part": json.dumps(part.__dict__)})

        def write(temporary: Path) -> None:
            table = pa.Table.from_batches(batches, columns).replace_schema_metadata(marked.metadata)
            pq.write_table(table, temporary, write_page_checksum=True)

        with explained(f"The finished rows ({self.rows:,}) are kept in {self.folder}"):
            _replace(self.folder / part.name, write)
        self.done[part.shard] = part
        self.rows += part.rows
        self.errors += part.errors

    def assemble(self, shards: int) -> None:
        """Make OUT of the parts, in the source's order, and remove them.

        Raises:
            OutputError: a shard of ``shards`` is not done, or the disk is full; the parts stay.
        """
        missing = [i for i in range(shards) if i not in self.done or not self.done[i].last]
        if missing or len(self.done) > shards:
            raise OutputError(
                f"Some shards have changed ({len(missing) or len(self.done) - shards}). Pass resume=True to process "
                "them again."
            )
        write = {".parquet": self._write_parquet, ".csv": self._write_csv, ".jsonl": self._write_jsonl}[self.out.suffix]
        with explained(f"All rows are kept in {self.folder}"):
            _replace(self.out, write, self.folder)
            (self.folder / "job.json").unlink()
            shutil.rmtree(self.folder)

    def _tables(self) -> Iterator[pa.Table]:
        """OUT's rows, up to GROUP at a time; one table without rows if there are none."""
        waiting: list[pa.RecordBatch] = []
        columns: pa.Schema | None = None
        count = index = 0

        def table(batches: list[pa.RecordBatch]) -> pa.Table:
            merged = pa.Table.from_batches(batches, columns).replace_schema_metadata(None)
            numbers = pa.array(range(index, index + len(merged)), pa.int64())
            return merged.add_column(1, pa.field("index", pa.int64(), nullable=False), numbers)

        for path in sorted(self.folder.glob("part-*.parquet")):
            with _readable(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
                columns = columns or file.schema_arrow.remove_metadata()
                for batch in file.iter_batches(GROUP):
                    while count + len(batch) >= GROUP:
                        head = batch.slice(0, GROUP - count)
                        yield table([*waiting, head])
                        batch, waiting, count, index = batch.slice(len(head)), [], 0, index + GROUP
                    if len(batch):
                        waiting.append(batch)
                        count += len(batch)
        if waiting or (not index and columns):
            yield table(waiting)

    def _write_parquet(self, path: Path) -> None:
        writer = None
        try:
            for table in self._tables():
                if writer is None:
                    columns = table.schema.with_metadata({"resnext_hub": json.dumps(self.job)})
                    writer = pq.ParquetWriter(path, columns)
                writer.write_table(table.replace_schema_metadata(writer.schema.metadata), GROUP)
        finally:
            if writer is not None:
                writer.close()

    def _write_csv(self, path: Path) -> None:
        """Lists as JSON in their cells; text as it is, for programs (a spreadsheet may take it for a formula)."""
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = None
            for table in self._tables():
                if writer is None:
                    writer = csv.writer(file)
                    writer.writerow(table.column_names)
                for row in _rows(table):
                    writer.writerow([json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for v in row])

    def _write_jsonl(self, path: Path) -> None:
        with open(path, "w", encoding="utf-8") as file:
            for table in self._tables():
                for row in _rows(table):
                    values = dict(zip(table.column_names, row, strict=True))
                    file.write(json.dumps(values, ensure_ascii=False) + "\n")


def _part_in(path: Path) -> Part:
    with _readable(path):
        return Part(**json.loads((pq.read_schema(path).metadata or {})[b"part"]))


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """A part whose bytes are no longer what was written (its disk, another program) is an `OutputError`."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno:  # Arrow's own have none
            raise
        raise OutputError(f"{path} is corrupt: {error}. Pass overwrite=True to start again.") from error


def _rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """The rows as Python values; every float with as many digits as tell it from its neighbours."""

    def values(column: pa.ChunkedArray) -> list[Any]:
        kind = column.type.value_type if hasattr(column.type, "value_type") else None
        digits = {pa.float32(): 9, pa.float16(): 5}.get(kind)
        if digits is None:
            return column.to_pylist()
        return [row and [float(f"{float(v):.{digits}g}") for v in row] for row in column.to_pylist()]

    for first in range(0, len(table), TEXT_ROWS):
        yield from zip(*(values(column) for column in table.slice(first, TEXT_ROWS).columns), strict=True)


def _replace(path: Path, write: Callable[[Path], object], folder: Path | None = None) -> None:
    """Write a file under another name, in its own folder or a given one, bring it to the disk, and give it its name."""
    # Unique: in a cluster a node that was given up for dead may still be writing.
    temporary = (folder or path.parent) / f"{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The name too: what comes later must not outlive it where the power goes. Not every system has that for folders.
    with contextlib.suppress(OSError):
        folder_itself = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder_itself)
        finally:
            os.close(folder_itself)


def _clear_folder(folder: Path) -> None:
    (folder / "job.json").unlink(missing_ok=True)  # first: what is left without it counts for nothing
    for path in folder.iterdir():
        if re.fullmatch(r"part-.*|.*\.tmp", path.name):
            path.unlink()
