"""A run that can be stopped and resumed: shards of items in, one table out. The caller decides what a row is.

The unit of work is a chunk: ``batch`` consecutive items of a shard. A worker thread takes a chunk through everything:
read, decode, one call of the engine, rows. Decoders and engines release the interpreter's lock, so N threads keep N
cores busy, and N engines of one thread each are faster than one engine of N threads. A bounded number of chunks is in
progress; their rows are committed in the order of the source (`parts`). The content of a chunk depends on the source
and on ``batch`` alone, so the table is the same whatever the number of workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..packages import needed

with needed("A table", "bulk"):
    import pyarrow as pa

from ..data.file_names import Passed
from ..data.shards import Item, Shard
from ..models.manifest import Checkpoint, Preprocessing
from ..processing_utils.labels import read_labels
from ..run_identity import versions
from .engines import Engine
from .run_folder import Part, Parts

COMMIT_SECONDS = 30.0  # what a kill costs at most, beside the chunks in progress
COMMIT_ROWS = 4096  # rows that wait in memory at most
READERS = 16  # threads that read ahead, if reading waits for a network

#: Commits the rows of the numbered shards that are not finished, calls the function that it is given with the number of
#: rows of each chunk, and returns how many rows it made. Usually `process_shards`.
Process = Callable[[Iterable[tuple[int, Shard]], Parts, Callable[[int], object]], int]


class RowMaker(Protocol):
    """Makes a row of each item, in order; several threads may call it at once."""

    @property
    def columns(self) -> pa.Schema:
        """The columns, of which the second is ``error``: null, or why there is no result."""
        ...

    def __call__(self, items: Sequence[Item]) -> pa.RecordBatch: ...


@dataclass(frozen=True)
class Summary:
    """The result of a finished run."""

    out: Path
    images: int  #: rows in the table
    errors: int  #: rows that state an error
    computed: int  #: rows that this run made; fewer than ``images`` if it resumed another
    #: What was left out of the source. Archives that an earlier run finished are not counted again.
    passed: Passed = field(default_factory=Passed)


@dataclass(frozen=True)
class Chunk:
    """Consecutive items of one shard; ``last`` is True if the shard ends with them."""

    shard: int
    start: int
    items: tuple[Item, ...]
    last: bool
    remote: bool
    fingerprint: str


def identify(
    checkpoint: Checkpoint, sha256: str, engine: Engine, preset: Preprocessing | None = None
) -> dict[str, Any]:
    """Everything but the options that decides what a network predicts for an image: a part of a run's identity.

    ``sha256`` is the digest of the weights, ``preset`` the preprocessing if it is not the checkpoint's.
    """
    names = [dataclasses.astuple(label) for label in read_labels(checkpoint.labels)]
    settings = dataclasses.asdict(preset or checkpoint.preprocessing)
    del settings["source"]
    return {
        "checkpoint": checkpoint.variant,
        "sha256": sha256,
        "architecture": dataclasses.asdict(checkpoint.architecture),
        "preprocessing": settings,
        "labels": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
        "engine": engine.name,
        "precision": engine.precision,
        "calibration": engine.calibration,
        "versions": versions("numpy", "pillow", "simplejpeg", engine.library),
    }


def run(
    out: str | Path,
    identity: dict[str, Any],
    shards: Iterable[Shard],
    process: Process,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    total: int | None = None,
    passed: Passed | None = None,
) -> Summary:
    """Make a table of shards, or resume the run that was stopped; OutputError as `Parts.opened`.

    Args:
        identity: everything that decides the table's content, as JSON.
        resume: continue a stopped run of the same identity.
        overwrite: replace ``out``, and drop the parts of a stopped run.
        progress: show a bar on stderr, of ``total`` images if that is known.
        passed: counts what is left out while shards are found; for the summary.
    """
    out = Path(out)
    parts = Parts(out, identity)
    count = 0

    def numbered() -> Iterator[tuple[int, Shard]]:
        nonlocal count
        for number, shard in enumerate(shards):
            count = number + 1
            yield number, shard

    with terminable(), parts.opened(resume=resume, overwrite=overwrite):
        with progress_bar(progress, total, parts.rows) as advance:
            computed = process(numbered(), parts, advance)
        parts.assemble(count)
    return Summary(out, parts.rows, parts.errors, computed, Passed() if passed is None else passed)


def process_shards(
    numbered: Iterable[tuple[int, Shard]],
    parts: Parts,
    advance: Callable[[int], object] = lambda rows: None,
    *,
    make_rows: RowMaker,
    batch: int,
    workers: int,
    commit_seconds: float | None = None,
) -> int:
    """Process the unfinished shards and commit their rows; return how many rows that were.

    Args:
        advance: called with the number of rows of each chunk.
        workers: threads.
        commit_seconds: commit at least this often, and when the run is stopped; by default `COMMIT_SECONDS`. With
            ``math.inf``, parts depend on numbers of rows alone.

    Raises OutputError if a shard has changed since its first rows were committed, or if a part cannot be written.
    """

    def pending() -> Iterator[Chunk]:
        for number, shard in numbered:
            if not parts.check_shard(number, shard.fingerprint):
                before = parts.done.get(number)
                yield from _chunks(number, shard, before.start + before.rows if before else 0, batch)

    often = COMMIT_SECONDS if commit_seconds is None else commit_seconds
    computed = 0
    waiting: list[tuple[Chunk, pa.RecordBatch]] = []
    since = time.monotonic()

    def commit() -> None:
        nonlocal since, waiting
        if waiting:
            first, last = waiting[0][0], waiting[-1][0]
            batches = [rows for _, rows in waiting]
            size, errors = sum(map(len, batches)), sum(len(rows) - rows["error"].null_count for rows in batches)
            part = Part(first.shard, first.start, size, errors, last.last, first.fingerprint)
            waiting = []  # before the attempt: what failed is not tried again when the run ends
            parts.commit(part, batches, make_rows.columns)
        since = time.monotonic()

    try:
        for chunk, rows in _in_order(pending(), make_rows, workers):
            # Without the items: those of archives and tables hold the images' encoded bytes.
            waiting.append((dataclasses.replace(chunk, items=()), rows))
            computed += len(rows)
            advance(len(rows))
            late = time.monotonic() - since >= often
            if chunk.last or late or sum(len(rows) for _, rows in waiting) >= COMMIT_ROWS:
                commit()
    finally:
        # Not if numbers of rows alone decide: then another process may have taken over this shard, and may have
        # committed more under this part's name.
        if math.isfinite(often):
            commit()
    return computed


def _chunks(number: int, shard: Shard, start: int, batch: int) -> Iterator[Chunk]:
    """A shard's chunks from item ``start`` on. There is always a last one, which is empty if the shard is."""
    items = shard.items(start)
    fingerprint, remote = shard.fingerprint(), shard.remote
    chunk = tuple(itertools.islice(items, batch))
    while True:
        following = tuple(itertools.islice(items, batch))
        yield Chunk(number, start, chunk, not following, remote, fingerprint)
        if not following:
            return
        start, chunk = start + len(chunk), following


def _in_order(
    chunks: Iterable[Chunk], make_rows: Callable[[Sequence[Item]], pa.RecordBatch], workers: int
) -> Iterator[tuple[Chunk, pa.RecordBatch]]:
    """Each chunk and its rows, in order, with a bounded number of chunks in progress."""
    started: deque[tuple[Chunk, Future[pa.RecordBatch]]] = deque()
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(workers, "resnext-bulk")
        stack.callback(pool.shutdown, cancel_futures=True)
        readers = ThreadPoolExecutor(READERS, "resnext-read")  # starts no thread before it is used
        stack.callback(readers.shutdown, cancel_futures=True)
        for chunk in chunks:
            items: Sequence[Item] = chunk.items
            if chunk.remote:
                items = [dataclasses.replace(item, read=readers.submit(item.read).result) for item in items]
            started.append((chunk, pool.submit(make_rows, items)))
            # Two more than the workers hold: one ready for the next free worker, one for an uneven neighbour.
            while len(started) >= workers + 2 or (started and started[0][1].done()):
                done, rows = started.popleft()
                yield done, rows.result()
        while started:
            done, rows = started.popleft()
            yield done, rows.result()


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Have SIGTERM stop a run as Ctrl-C does: finished rows are committed, and nothing is left half-written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def import_tqdm() -> Any:
    """Import tqdm; raise MissingPackageError if it is not installed."""
    with needed("A progress bar", "bulk"):
        from tqdm import tqdm
    return tqdm


@contextlib.contextmanager
def progress_bar(shown: bool, total: int | None, initial: int) -> Iterator[Callable[[int], object]]:
    """Show a bar on stderr if wanted; yield a function to be called with the number of rows of each chunk."""
    if not shown:
        yield lambda rows: None
        return
    with import_tqdm()(total=total, initial=initial, unit=" images", smoothing=0.05, dynamic_ncols=True) as bar:
        yield bar.update


def printable(text: str) -> str:
    """A file's name as UTF-8 text, as a table needs it: file names are bytes."""
    return text.encode("utf-8", "backslashreplace").decode()
