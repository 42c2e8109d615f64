"""Many images -> one table of predictions, on one machine (`cluster` has the same on many).

The unit of work is a chunk: ``batch`` consecutive images of a shard. A worker thread takes a chunk through everything:
read, decode, one call of the engine, rows. Decoders and engines release the interpreter's lock, so N threads keep N
cores busy, and N engines of one thread each waste less than one engine of N threads. A window of chunks is in flight;
their rows come out in the order of the source and are committed as parts (`tables`). What a chunk holds depends on
the source and on ``batch`` alone, so the table is the same whatever the number of workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack

import numpy as np

from ..packages import needed

with needed("A table", "bulk"):
    import pyarrow as pa

from ..data.names import Passed
from ..data.shards import Item, Shard
from ..data.source import count, shards
from ..errors import EngineError, ImageError, UnknownOptionError
from ..models.manifest import Checkpoint, find_checkpoint
from ..processing_utils.labels import Label, read_labels
from ..processing_utils.predictions import top_predictions
from ..processing_utils.preprocessing import GRADES, load_pixels
from ..processing_utils.uris import scheme_of
from .engines import ENGINES, Engine, open_engine
from .engines.base import available_cores
from .tables import Part, Parts, schema

__all__ = [
    "Done",
    "Job",
    "Options",
    "SourceJob",
    "Work",
    "Worker",
    "check",
    "check_options",
    "classify_many",
    "commit_shards",
    "describe",
    "job_of",
    "prepare",
    "printable",
    "progress_bar",
    "run",
    "terminable",
    "work_of",
]

SHARD_ROWS = 4096
COMMIT_SECONDS = 30.0  # what a kill costs at most, beside the chunks in flight
COMMIT_ROWS = 4096  # what waits in memory at most
READERS = 16  # threads that read ahead where reading waits for a network


@dataclass(frozen=True, kw_only=True)
class SourceJob:
    """What decides a table's content, as far as its source goes. Two runs with equal jobs give equal tables;
    ``--resume`` insists on it."""

    source: list[str]
    grade: str
    batch: int
    shard_rows: int = SHARD_ROWS
    column: str | None = None
    label_column: str | None = None
    allow_private: bool = False
    anonymous: bool = False
    format: int = 2  #: of the parts, and of the order of a source's images

    def shards(self, passed: Passed | None = None) -> Iterator[Shard]:
        """The job's shards, in order."""
        options: dict[str, Any] = {"column": self.column, "label_column": self.label_column}
        options |= {"private": self.allow_private, "anonymous": self.anonymous}
        return shards(self.source, self.shard_rows, passed=passed, **options)


@dataclass(frozen=True, kw_only=True)
class Job(SourceJob):
    """The job of `classify_many`."""

    checkpoint: str
    sha256: str
    engine: str
    precision: str
    top: int
    features: bool


@dataclass(frozen=True)
class Done:
    """A finished run.

    Attributes:
        images, errors: rows in the table, and how many of them state an error.
        computed: how many this run computed.
        passed: what was left out of the source; an archive that an earlier run finished is not counted again.
    """

    out: Path
    images: int
    errors: int
    computed: int
    passed: Passed = field(default_factory=Passed)


@dataclass(frozen=True)
class Chunk:
    """Consecutive items of one shard; ``last`` where the shard ends with them."""

    shard: int
    start: int
    items: tuple[Item, ...]
    last: bool
    remote: bool
    fingerprint: str


class Worker(Protocol):
    """From items to rows, in order; several threads may call it at once."""

    @property
    def columns(self) -> pa.Schema: ...

    def __call__(self, items: Sequence[Item]) -> pa.RecordBatch: ...


@dataclass
class Work:
    """From items to rows: what a worker does with a chunk. Several threads may call it at once.

    Args:
        engine: see `engines.open_engine`.
        load: encoded bytes -> (crop, crop, 3) uint8; raises ImageError.
        labels: a label for every logit.
        num_features: width of the column of features, None for no such column.
    """

    engine: Engine
    load: Callable[[bytes], np.ndarray]
    labels: Sequence[Label]
    top: int
    num_features: int | None
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def columns(self) -> pa.Schema:
        return schema(self.num_features)

    def __call__(self, items: Sequence[Item]) -> pa.RecordBatch:
        """A row for every item, in order; what cannot be used does not take part in the engine's batch."""
        errors: list[str | None] = []
        pixels: list[np.ndarray] = []
        for item in items:
            try:
                pixels.append(self.load(item.read()))
                errors.append(None)
            except (ImageError, OSError) as error:
                errors.append(str(error) or type(error).__name__)
        logits, features = self._scores(np.stack(pixels)) if pixels else (np.empty((0, len(self.labels))), None)
        good = [i for i, error in enumerate(errors) if error is None]
        finite = np.isfinite(logits).all(axis=1)
        for i in np.flatnonzero(~finite):
            errors[good[i]] = "The network's scores for this image hold NaN or infinity."
        found = top_predictions(logits[finite], self.top, from_logits=True, labels=self.labels)
        rows: list[Any] = [None] * len(items)
        vectors: list[Any] = [None] * len(items)
        for row, i in enumerate(np.flatnonzero(finite)):
            rows[good[i]] = found[row]
            vectors[good[i]] = features[i] if features is not None else None
        columns = [
            pa.array([printable(item.name) for item in items], pa.string()),
            pa.array([error and printable(error) for error in errors], pa.string()),
            *(
                pa.array([row and [getattr(p, name) for p in row] for row in rows], pa.list_(kind))
                for name, kind in (
                    ("index", pa.int32()),
                    ("label", pa.string()),
                    ("synset", pa.string()),
                    ("probability", pa.float32()),
                )
            ),
        ]
        if self.num_features is not None:
            columns.append(_halves(vectors, self.num_features))
        return pa.RecordBatch.from_arrays(columns, schema=self.columns)

    def _scores(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with contextlib.nullcontext() if self.engine.concurrent else self._turn:
            return self.engine(pixels)


def _halves(vectors: Sequence[np.ndarray | None], width: int) -> pa.Array:
    """Feature vectors as a fixed-size list of float16; None becomes null."""
    missing = np.array([v is None for v in vectors], bool)
    limit = np.finfo(np.float16).max
    values = np.zeros((len(vectors), width), np.float16)
    for row, vector in enumerate(vectors):
        if vector is not None:
            values[row] = np.clip(vector, -limit, limit)
    flat = pa.array(values.ravel())
    return pa.FixedSizeListArray.from_arrays(flat, width, mask=pa.array(missing))


def printable(text: str) -> str:
    """File names are bytes; a table's text is UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def chunks_of(number: int, shard: Shard, start: int, batch: int) -> Iterator[Chunk]:
    """A shard's chunks from item ``start`` on; the last one says so, and is empty if the shard is."""
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
    chunks: Iterable[Chunk], work: Callable[[Sequence[Item]], pa.RecordBatch], workers: int
) -> Iterator[tuple[Chunk, pa.RecordBatch]]:
    """Every chunk and its rows, in order, with a bounded number of them in flight."""
    flight: deque[tuple[Chunk, Future[pa.RecordBatch]]] = deque()
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(workers, "resnext-bulk")
        stack.callback(pool.shutdown, cancel_futures=True)
        readers = ThreadPoolExecutor(READERS, "resnext-read")  # starts no thread before it is used
        stack.callback(readers.shutdown, cancel_futures=True)
        for chunk in chunks:
            items: Sequence[Item] = chunk.items
            if chunk.remote:
                items = [Item(item.name, readers.submit(item.read).result) for item in items]
            flight.append((chunk, pool.submit(work, items)))
            # Two more than the workers hold: one ready for the next that is free, one for an uneven neighbour.
            while len(flight) >= workers + 2 or (flight and flight[0][1].done()):
                done, rows = flight.popleft()
                yield done, rows.result()
        while flight:
            done, rows = flight.popleft()
            yield done, rows.result()


def commit_shards(
    numbered: Iterable[tuple[int, Shard]],
    parts: Parts,
    work: Worker,
    *,
    batch: int,
    workers: int,
    commit_seconds: float = math.inf,
    advance: Callable[[int], object] = lambda rows: None,
) -> int:
    """Do what is not done of the shards, and commit it; return how many rows that was.

    Args:
        commit_seconds: commit at least so often, and on the way out; by default the number of rows alone decides.
        advance: told of every chunk's rows.

    Raises:
        OutputError: a shard is not what it was when its first rows were committed; the table cannot be written.
    """

    def pending() -> Iterator[Chunk]:
        for number, shard in numbered:
            if not parts.check_shard(number, shard.fingerprint):
                before = parts.done.get(number)
                yield from chunks_of(number, shard, before.start + before.rows if before else 0, batch)

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
            waiting = []  # before the attempt: what failed is not tried again on the way out
            parts.commit(part, batches, work.columns)
        since = time.monotonic()

    try:
        for chunk, rows in _in_order(pending(), work, workers):
            # Without the items: those of archives and tables hold the images' encoded bytes.
            waiting.append((dataclasses.replace(chunk, items=()), rows))
            computed += len(rows)
            advance(len(rows))
            late = time.monotonic() - since >= commit_seconds
            if chunk.last or late or sum(len(rows) for _, rows in waiting) >= COMMIT_ROWS:
                commit()
    finally:
        # Not where numbers of rows alone decide: there another may do this shard by now, and may have committed more
        # under this part's name.
        if math.isfinite(commit_seconds):
            commit()
    return computed


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM stops a run as Ctrl-C does: what is ready is committed, and nothing is left half-written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check(
    source: str | Sequence[str],
    out: str | Path,
    variant: str,
    *,
    workers: int | None,
    resume: bool,
    overwrite: bool,
    progress: bool,
    **options: Unpack[Options],
) -> None:
    """Find out what is wrong with arguments, or a source of this machine, before an engine is built for them.

    Raises:
        SourceError, OutputError, ValueError, EngineError, UnknownVariantError: as `classify_many`.
        MissingPackageError: tqdm is not installed, which the progress bar needs.
    """
    check_options(variant, **options)
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be 1 or more, got {workers}.")
    if progress:
        _import_tqdm()
    Parts(Path(out), {}).check_output(resume=resume, overwrite=overwrite)
    specs = [source] if isinstance(source, str) else source
    if all(scheme_of(spec) is None for spec in specs):
        for spec in specs:
            next(shards([spec], 1, column=options.get("column"), label_column=options.get("label_column")))


class Options(TypedDict, total=False):
    """What decides a table's content beside source and variant; see `classify_many`."""

    top: int
    batch: int
    features: bool
    engine: str
    grade: str
    column: str | None
    label_column: str | None
    allow_private: bool
    anonymous: bool


def check_options(variant: str, **options: Unpack[Options]) -> None:
    """Find out what is wrong with options before anything is opened for them.

    Raises:
        ValueError, UnknownOptionError: a value that is out of range; no such option.
        UnknownVariantError, EngineError: no such variant, or engine.
    """
    classes = find_checkpoint(variant).num_classes
    if unknown := set(options) - set(Options.__annotations__):
        raise UnknownOptionError(f"Unknown option {min(unknown)!r}; choose from {', '.join(Options.__annotations__)}.")
    top, batch = options.get("top", 5), options.get("batch", 16)
    if not 1 <= top <= classes:
        raise ValueError(f"top must be from 1 to {classes}, got {top}.")
    if batch < 1:
        raise ValueError(f"batch must be 1 or more, got {batch}.")
    if (grade := options.get("grade", "close")) not in GRADES:
        raise ValueError(f"Unknown grade {grade!r}; choose from {', '.join(GRADES)}.")
    if (engine := options.get("engine", "auto")) not in ENGINES:
        raise EngineError(f"Unknown engine {engine!r}; choose from {', '.join(ENGINES)}.")


def job_of(source: str | Sequence[str], checkpoint: Checkpoint, opened: Engine, **options: Unpack[Options]) -> Job:
    """The job that the arguments of `classify_many` describe, with the engine that was opened for it."""
    from ..models.download import local_file

    return Job(
        source=[source] if isinstance(source, str) else list(source),
        checkpoint=checkpoint.variant,
        sha256=local_file(checkpoint)[1],
        engine=opened.name,
        precision=opened.precision,
        grade=options.get("grade", "close"),
        top=options.get("top", 5),
        features=options.get("features", False),
        batch=options.get("batch", 16),
        column=options.get("column"),
        label_column=options.get("label_column"),
        allow_private=options.get("allow_private", False),
        anonymous=options.get("anonymous", False),
    )


def work_of(job: Job, engine: Engine) -> Work:
    """What does a job's chunks."""
    checkpoint = find_checkpoint(job.checkpoint)
    load = functools.partial(load_pixels, preset=checkpoint.preprocessing, grade=job.grade)
    width = checkpoint.architecture.num_features if job.features else None
    return Work(engine, load, read_labels(checkpoint.labels), job.top, width)


def describe(source: str | Sequence[str], variant: str, **options: Unpack[Options]) -> tuple[Job, Engine]:
    """The job that the arguments of `classify_many` describe, and its engine, open."""
    check_options(variant, **options)
    checkpoint = find_checkpoint(variant)
    engine = open_engine(checkpoint, options.get("engine", "auto"), threads=1)
    return job_of(source, checkpoint, engine, **options), engine


def prepare(source: str | Sequence[str], variant: str, **options: Unpack[Options]) -> tuple[Job, Work]:
    """The job that the arguments of `classify_many` describe, and what does it, with its engine open."""
    job, engine = describe(source, variant, **options)
    return job, work_of(job, engine)


def run(
    job: SourceJob,
    out: str | Path,
    do: Callable[[Iterator[tuple[int, Shard]], Parts, Callable[[int], object]], int],
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    found: Callable[[], Iterator[Shard]] | None = None,
) -> Done:
    """Have a job's shards done by ``do`` and make the table; see `classify_many`."""
    out = Path(out)
    parts = Parts(out, dataclasses.asdict(job))
    seen, passed = 0, Passed()

    def numbered() -> Iterator[tuple[int, Shard]]:
        nonlocal seen
        for number, shard in enumerate(found() if found else job.shards(passed)):
            seen = number + 1
            yield number, shard

    with terminable(), parts.opened(resume=resume, overwrite=overwrite):
        before = parts.rows
        total = count(job.source, column=job.column, label_column=job.label_column) if progress else None
        with progress_bar(progress, total, before) as advance:
            computed = do(numbered(), parts, advance)
        parts.assemble(seen)
    return Done(out, parts.rows, parts.errors, computed, passed)


def _import_tqdm() -> Any:
    with needed("A progress bar", "bulk"):
        from tqdm import tqdm
    return tqdm


@contextlib.contextmanager
def progress_bar(shown: bool, total: int | None, initial: int) -> Iterator[Callable[[int], object]]:
    """A bar on stderr, or none; gives what is to be told of every chunk's rows."""
    if not shown:
        yield lambda rows: None
        return
    with _import_tqdm()(total=total, initial=initial, unit=" images", smoothing=0.05, dynamic_ncols=True) as bar:
        yield bar.update


def classify_many(
    source: str | Sequence[str],
    out: str | Path,
    variant: str,
    *,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Unpack[Options],
) -> Done:
    """Name what is in many images: a table with a row for every one, in the source's order.

    Its columns: image (name), index (0...), error (null, or why there is no prediction), classes, labels, synsets and
    probabilities (lists of ``top``, best first; null with an error), and features if asked for.

    Args:
        source: one or more folders, patterns, lists, tables, archives or images; see docs/data.md.
        out: the table; .parquet, .csv or .jsonl. (A .csv is for programs: lists are JSON in its cells, and a name may
            begin with = + - or @, which a spreadsheet takes for a formula.)
        workers: threads, each with an engine of one thread; all cores by default.
        resume: go on where a run of the same job was stopped or killed.
        overwrite: replace ``out``, and drop what a stopped run left.
        progress: show a bar on stderr.
        options: top (5); batch (16), images that pass the network together (the last bits of a score may depend on
            it); features (False), add the pooled features as float16; engine ("auto"), see `engines.open_engine`;
            grade ("close"), see `preprocessing.load_pixels`; column, the column of images or paths in a table or list,
            where its name does not say it; label_column, a column that holds no images; allow_private (False), fetch
            URLs at private addresses too; anonymous (False), ask stores for public data, without an account.

    Raises:
        SourceError: there are no images in the source.
        OutputError: ``out`` cannot be written or must not be replaced; a resumed job or its source is not the same.
        UnknownVariantError, CheckpointError: no such variant; its weights cannot be had.
        EngineError: no such engine, or not here.
        ValueError, UnknownOptionError: an option that is out of range, or none.
    """
    check(source, out, variant, workers=workers, resume=resume, overwrite=overwrite, progress=progress, **options)
    job, work = prepare(source, variant, **options)

    def do(numbered: Iterator[tuple[int, Shard]], parts: Parts, advance: Callable[[int], object]) -> int:
        many = workers or available_cores()
        return commit_shards(
            numbered, parts, work, batch=job.batch, workers=many, commit_seconds=COMMIT_SECONDS, advance=advance
        )

    return run(job, out, do, resume=resume, overwrite=overwrite, progress=progress)
