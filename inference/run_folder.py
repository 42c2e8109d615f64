"""The folder of a run that has not ended: its identity, a lock, and the rows that are finished.

Rows are committed in parts: each holds consecutive rows of one shard, and is written completely or not at all. So the
parts in the folder ``OUT.parts`` are the finished work, and a later run resumes after them. When all shards are
finished, the parts become OUT, row for row in the order of the source, and the folder is removed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.outputs import explained, locked
from ..errors import OutputError
from ..files import remove_temporary, write_atomically
from ..run_identity import differences
from .tables import FORMATS, write_table

GROUP = 8192  # rows in a row group of OUT, so that OUT does not depend on the size of the parts
IDENTITY, LOCK, PARTS = "identity.json", "lock", "part-*.parquet"
AGAIN = "Pass overwrite=True to start again."


@dataclass(frozen=True)
class Part:
    """Consecutive rows of one shard."""

    shard: int
    start: int  #: the number in the shard of the first row
    rows: int
    errors: int  #: how many of the rows state an error
    last: bool  #: True if the shard ends with this part
    fingerprint: str  #: the shard's, see `data.shards.Shard`

    @property
    def name(self) -> str:
        return _part_name(self.shard, self.start)


def _part_name(shard: int, start: int) -> str:
    return f"part-{shard:07d}-{start:08d}.parquet"


@dataclass
class Parts:
    """The parts of a run, in the folder ``OUT.parts``."""

    out: Path  #: the table that they will become
    identity: dict[str, Any]  #: everything that decides the table's content: equal identities give equal tables
    done: dict[int, Part] = field(default_factory=dict)  #: the last committed part of every shard
    rows: int = 0
    errors: int = 0

    @property
    def folder(self) -> Path:
        return self.out.with_name(f"{self.out.name}.parts")

    def check_output(self, *, resume: bool, overwrite: bool) -> None:
        """Raise the errors of `opened` that concern OUT itself, before anything is downloaded or built for it."""
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
            raise OutputError(f"{self.out} exists, and there is no stopped run. Pass overwrite=True to replace it.")
        if made and not overwrite and not resume:
            raise OutputError(f"{self.out} exists. Choose another name, delete the file, or pass overwrite=True.")
        if kept and not resume and not overwrite:
            raise OutputError(f"An earlier run for {self.out} was stopped. Pass resume=True to continue it. {AGAIN}")

    def is_kept(self) -> bool:
        """True if there is a stopped run to resume: one that has committed rows."""
        if (self.folder / IDENTITY).exists():
            with os.scandir(self.folder) as entries:
                return any(fnmatch(entry.name, PARTS) for entry in entries)
        return False

    def sweep(self) -> None:
        """Remove the folder that a run left beside its finished table, because it was killed before the last step."""
        if self.out.exists() and self.folder.exists() and not self.is_kept():
            with self._locked(), explained():
                self._remove()

    @contextlib.contextmanager
    def opened(self, *, resume: bool = False, overwrite: bool = False) -> Iterator[None]:
        """Hold the folder inside the block: make it, or find the parts of a stopped run, and lock out other runs.

        A run that ends without a committed row leaves no folder. Raises OutputError if OUT has an unknown suffix or
        exists, if there are parts and ``resume`` was not passed, if the stopped run has another identity or its parts
        are corrupt, and if another run is writing OUT.
        """
        self.check_output(resume=resume, overwrite=overwrite)
        with self._locked():
            self.check_output(resume=resume, overwrite=overwrite)  # another run may have ended meanwhile
            with explained():
                if not (resume and self.is_kept()):
                    (self.folder / IDENTITY).unlink(missing_ok=True)  # first: without it, the parts are ignored
                    for path in self.folder.glob(PARTS):
                        path.unlink()
                    write_atomically(self.folder / IDENTITY, json.dumps(self.identity, indent=1))
                self.check_identity()
                remove_temporary(self.folder)
                self.refresh()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    if not self.is_kept():
                        self._remove()

    def _remove(self) -> None:
        """Remove the folder; on Windows, where an open file stays, its lock goes at the end of `_locked`."""
        for path in self.folder.iterdir():
            if path.name != LOCK:
                path.unlink()
        with contextlib.suppress(PermissionError):
            shutil.rmtree(self.folder)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with explained():
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.folder / LOCK, self.out):
                yield
        finally:
            with contextlib.suppress(OSError):  # gone, or not empty
                self.folder.rmdir()

    def refresh(self, shard: int | None = None) -> None:
        """List the parts of all shards, or of one, again: other processes commit to the same folder."""
        if shard is None:
            parts = [_part_in(path) for path in sorted(self.folder.glob(PARTS))]
        else:
            parts = list(self._parts_of(shard))
        self.done = {}
        for part in parts:
            before = self.done.get(part.shard)
            if part.start != (before.start + before.rows if before else 0) or (before and before.last):
                raise OutputError(f"{self.folder / part.name} does not continue the part before it. {AGAIN}")
            self.done[part.shard] = part
        self.rows, self.errors = sum(part.rows for part in parts), sum(part.errors for part in parts)

    def _parts_of(self, shard: int) -> Iterator[Part]:
        """One shard's parts by their names: listing a folder with a million others would be slow."""
        start = 0
        while (path := self.folder / _part_name(shard, start)).exists():
            yield (part := _part_in(path))
            if part.last or not part.rows:
                return
            start += part.rows

    def check_identity(self) -> None:
        """Raise OutputError if the folder's identity differs from this run's, or if there is no folder."""
        path = self.folder / IDENTITY
        if not path.exists():
            raise OutputError(f"{self.folder} is not visible on this machine: all machines must share it.")
        try:
            before = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise OutputError(f"{path} is corrupt: {error}. {AGAIN}") from error
        if different := differences(before, self.identity):
            raise OutputError(f"The stopped run had other options: {different}. Pass the same ones, or start again.")

    def check_shard(self, number: int, fingerprint: Callable[[], str]) -> bool:
        """True if a shard is finished; OutputError if its content has changed since its first rows were committed."""
        before = self.done.get(number)
        if before is not None and before.fingerprint != (now := fingerprint()):
            change = f"shard {number} was {before.fingerprint[:200]!r}, now {now[:200]!r}"
            raise OutputError(f"The source has changed since the run was stopped: {change}. {AGAIN}")
        return before is not None and before.last

    def commit(self, part: Part, batches: Sequence[pa.RecordBatch], columns: pa.Schema) -> None:
        """Write a part, completely or not at all; OutputError if that fails. Committed parts stay."""
        table = pa.Table.from_batches(batches, columns)
        table = table.replace_schema_metadata({"part": json.dumps(part.__dict__)})
        write = functools.partial(pq.write_table, table, write_page_checksum=True)
        with explained(f"The finished rows ({self.rows:,}) are kept in {self.folder}"):
            write_atomically(self.folder / part.name, write)
        self.done[part.shard] = part
        self.rows += part.rows
        self.errors += part.errors

    def assemble(self, shards: int) -> None:
        """Write OUT from the parts of so many shards, in the order of the source, and remove the folder."""
        missing = [i for i in range(shards) if i not in self.done or not self.done[i].last]
        if missing or len(self.done) > shards:
            changed = len(missing) or len(self.done) - shards
            raise OutputError(f"Some shards have changed ({changed}). Pass resume=True to process them again.")
        with explained(f"All rows are kept in {self.folder}"):
            write_atomically(
                self.out,
                lambda file: write_table(file, self.out.suffix, self._tables(), self.identity),
                folder=self.folder,
            )
            (self.folder / IDENTITY).unlink()
            self._remove()

    def _tables(self) -> Iterator[pa.Table]:
        """OUT's rows, up to `GROUP` at a time; one table without rows if there are none."""
        waiting: list[pa.RecordBatch] = []
        columns: pa.Schema | None = None
        count = index = 0

        def table(batches: list[pa.RecordBatch]) -> pa.Table:
            return numbered(pa.Table.from_batches(batches, columns).replace_schema_metadata(None), range(index, 2**63))

        for path in sorted(self.folder.glob(PARTS)):
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


def numbered(table: pa.Table, numbers: Iterable[int]) -> pa.Table:
    """Add the column ``index``, which a finished table has and its parts lack."""
    index = pa.array(itertools.islice(numbers, len(table)), pa.int64())
    return table.add_column(1, pa.field("index", pa.int64(), nullable=False), index)


def _part_in(path: Path) -> Part:
    with _readable(path):
        return Part(**json.loads((pq.read_schema(path).metadata or {})[b"part"]))


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise `OutputError` if the content of a part has changed since it was written."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno:  # Arrow's own have none
            raise
        raise OutputError(f"{path} is corrupt: {error}. {AGAIN}") from error
