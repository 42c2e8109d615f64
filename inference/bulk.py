"""Classify many images: one table with a row for each, on one machine (`cluster` does the same on several)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypedDict, Unpack

import numpy as np

from ..packages import needed

with needed("A table", "bulk"):
    import pyarrow as pa
    import pyarrow.parquet as pq

from ..data.file_names import Passed
from ..data.outputs import explained
from ..data.shards import Item, Shard
from ..data.source import count, shards
from ..errors import ImageError, OutputError, TruncatedImageError, UnknownOptionError
from ..models.download import local_file
from ..models.manifest import Checkpoint, find_checkpoint
from ..processing_utils.images import check_truncated
from ..processing_utils.labels import Label, read_labels
from ..processing_utils.predictions import top_predictions
from ..processing_utils.preprocessing import check_grade, load_pixels
from ..processing_utils.uris import scheme_of
from ..run_identity import differences
from .engines import Engine, check_engine, open_engine
from .engines.base import available_cores
from .resumable import Process, Summary, identify, import_tqdm, printable, process_shards, progress_bar, run, terminable
from .run_folder import Part, Parts, numbered
from .tables import write_text

SHARD_ROWS = 4096


class Options(TypedDict, total=False):
    """The options that decide a table's content; see `classify_many`."""

    top: int
    batch: int
    features: bool
    engine: str
    device: str | None
    precision: str
    calibration: str | Sequence[str] | None
    grade: str
    max_pixels: int | None
    truncated: str
    column: str | None
    label_column: str | None
    allow_private: bool
    anonymous: bool


DEFAULTS: dict[str, Any] = {"top": None, "batch": 16, "features": False, "engine": "auto", "grade": "close"}
DEFAULTS |= {"device": None, "precision": "fp32", "calibration": None, "max_pixels": None, "truncated": "refuse"}
DEFAULTS |= {"column": None, "label_column": None, "allow_private": False, "anonymous": False}


class Request:
    """The validated arguments of `classify_many`, with its errors. Picklable, for the nodes of a cluster."""

    def __init__(self, source: str | Sequence[str], variant: str, **options: Unpack[Options]) -> None:
        self.source = [source] if isinstance(source, str) else list(source)
        self.variant = variant
        if unknown := set(options) - set(DEFAULTS):
            raise UnknownOptionError(f"Unknown option {min(unknown)!r}; choose from {', '.join(DEFAULTS)}.")
        self.options: dict[str, Any] = DEFAULTS | options
        classes, top, batch = self.checkpoint.num_classes, self.options["top"], self.options["batch"]
        if top is None:
            self.options["top"] = top = min(5, classes)
        if not 1 <= top <= classes:
            raise ValueError(f"top must be from 1 to {classes}, got {top}.")
        if batch < 1:
            raise ValueError(f"batch must be 1 or more, got {batch}.")
        check_grade(self.options["grade"])
        check_truncated(self.options["truncated"])
        precision, images = self.options["precision"], self.options["calibration"]
        check_engine(self.options["engine"], precision, images is not None or precision == "int8")

    @property
    def checkpoint(self) -> Checkpoint:
        return find_checkpoint(self.variant)

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of a table or list that the user has named."""
        return {name: self.options[name] for name in ("column", "label_column")}

    @property
    def access(self) -> dict[str, Any]:
        """The permissions for URLs and stores, as `data.stores.Access` has them."""
        return {"private": self.options["allow_private"], "anonymous": self.options["anonymous"]}

    def check(self, out: str | Path, *, workers: int | None, resume: bool, overwrite: bool, progress: bool) -> None:
        """Raise the errors of the run, and of sources on this machine, before an engine is built."""
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be 1 or more, got {workers}.")
        if progress:
            import_tqdm()
        Parts(Path(out), {}).check_output(resume=resume, overwrite=overwrite)
        if all(scheme_of(spec) is None for spec in self.source):
            for spec in self.source:
                next(shards([spec], 1, **self.columns))

    def open_engine(self) -> Engine:
        how: dict[str, Any] = {name: self.options[name] for name in ("device", "precision", "batch")}
        if how["precision"] == "int8":
            how |= {"calibration": self.options["calibration"] or self.source} | self.columns | self.access
        return open_engine(self.checkpoint, self.options["engine"], threads=1, **how)

    def identity(self, engine: Engine) -> dict[str, Any]:
        """Everything that decides the table's content."""
        by_engine = ("engine", "device", "precision", "calibration")  # their effect is in the engine's identity
        options = {name: value for name, value in self.options.items() if name not in by_engine}
        network = identify(self.checkpoint, local_file(self.checkpoint)[1], engine)
        return {"source": self.source, "shard_rows": SHARD_ROWS} | options | network

    def predictor(self, engine: Engine) -> Predictor:
        checkpoint = self.checkpoint
        reading = {name: self.options[name] for name in ("grade", "max_pixels")}
        load = functools.partial(load_pixels, preset=checkpoint.preprocessing, **reading)
        width = checkpoint.architecture.num_features if self.options["features"] else None
        keep = self.options["truncated"] == "keep"
        labels = read_labels(checkpoint.labels)
        return Predictor(engine, load, labels, self.options["top"], width, keep, checkpoint.multi_label)

    def shards(self, passed: Passed) -> Iterator[Shard]:
        """Find the shards of the source, in order; ``passed`` counts what is left out."""
        return shards(self.source, SHARD_ROWS, passed=passed, **self.columns, **self.access)

    def count(self) -> int | None:
        """The number of images, if that is known without reading everything."""
        return count(self.source, **self.columns)

    def run(self, out: str | Path, identity: dict[str, Any], process: Process, passed: Passed, **how: bool) -> Summary:
        """Make the table with `resumable.run`; ``how``: resume, overwrite and progress."""
        total = self.count() if how["progress"] else None
        return run(out, identity, self.shards(passed), process, total=total, passed=passed, **how)


#: Columns that a `Predictor` always fills. ``error`` is null, or says why the columns after it are null. ``label``,
#: ``synset`` and ``probability`` are those of the most probable class.
COLUMNS = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),
        ("error", pa.string()),
        ("label", pa.string()),
        ("synset", pa.string()),
        ("probability", pa.float32()),
        ("classes", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.string())),
        ("synsets", pa.list_(pa.string())),
        ("probabilities", pa.list_(pa.float32())),
    ]
)


@dataclass
class Predictor:
    """Makes rows of predictions; a `resumable.RowMaker`."""

    engine: Engine
    load: Callable[..., np.ndarray]  #: `load_pixels`, with all arguments but the image and ``truncated``
    labels: Sequence[Label]  #: one for each logit
    top: int
    num_features: int | None  #: width of the column of features; None for no such column
    keep: bool = False  #: take images that are cut off too, and mark their rows
    multi_label: bool = False  #: see `models.manifest.Checkpoint`
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def columns(self) -> pa.Schema:
        columns = COLUMNS
        if self.num_features is not None:
            columns = columns.append(pa.field("features", pa.list_(pa.float16(), self.num_features)))
        return columns.append(pa.field("truncated", pa.bool_(), nullable=False)) if self.keep else columns

    def __call__(self, items: Sequence[Item]) -> pa.RecordBatch:
        """Make a row of each item. An image that cannot be used takes no part in the engine's batch."""
        errors: list[str | None] = []
        pixels: list[np.ndarray] = []
        truncated = [False] * len(items)
        for i, item in enumerate(items):
            try:
                data = item.read()
                try:
                    pixels.append(self.load(data))
                except TruncatedImageError:
                    if not self.keep:
                        raise
                    pixels.append(self.load(data, truncated="keep"))
                    truncated[i] = True
                errors.append(None)
            except (ImageError, OSError) as error:
                errors.append(str(error) or type(error).__name__)
        logits, features = self._scores(np.stack(pixels)) if pixels else (np.empty((0, len(self.labels))), None)
        good = [i for i, error in enumerate(errors) if error is None]
        finite = np.isfinite(logits).all(axis=1)
        for i in np.flatnonzero(~finite):
            errors[good[i]] = "The network's scores for this image hold NaN or infinity."
        how: Any = {"from_logits": True, "multi_label": self.multi_label, "labels": self.labels}
        predictions = top_predictions(logits[finite], self.top, **how)
        rows: list[Any] = [None] * len(items)
        vectors: list[Any] = [None] * len(items)
        for row, i in enumerate(np.flatnonzero(finite)):
            rows[good[i]] = predictions[row]
            vectors[good[i]] = features[i] if features is not None else None
        columns = [
            pa.array([printable(item.name) for item in items], pa.string()),
            pa.array([error and printable(error) for error in errors], pa.string()),
        ]
        columns += [
            pa.array([row and getattr(row[0], name) for row in rows], COLUMNS.field(name).type)
            for name in ("label", "synset", "probability")
        ]
        for name, kind in zip(("index", "label", "synset", "probability"), COLUMNS.types[5:], strict=True):
            columns.append(pa.array([row and [getattr(p, name) for p in row] for row in rows], kind))
        if self.num_features is not None:
            columns.append(_halves(vectors, self.num_features))
        if self.keep:
            columns.append(pa.array(truncated))
        return pa.RecordBatch.from_arrays(columns, schema=self.columns)

    def _scores(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with contextlib.nullcontext() if self.engine.concurrent else self._turn:
            return self.engine(pixels)


def _halves(vectors: Sequence[np.ndarray | None], width: int) -> pa.Array:
    """Feature vectors -> a fixed-size list of float16; None becomes null."""
    missing = np.array([v is None for v in vectors], bool)
    limit = np.finfo(np.float16).max
    values = np.zeros((len(vectors), width), np.float16)
    for row, vector in enumerate(vectors):
        if vector is not None:
            values[row] = np.clip(vector, -limit, limit)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width, mask=pa.array(missing))


def classify_many(
    source: str | Sequence[str],
    out: str | Path,
    variant: str,
    *,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    redo_errors: bool = False,
    progress: bool = True,
    **options: Unpack[Options],
) -> Summary:
    """Write a table with a row for each of many images, in the order of the source.

    Its columns: image (name), index (0...), error (null, or why there is no prediction), label, synset and probability
    of the most probable class, classes, labels, synsets and probabilities (lists of ``top``, best first; all null with
    an error), and features if asked for.

    Args:
        source: one or more folders, patterns, lists, tables, archives or images; see docs/data.md.
        out: the table; .parquet, .csv or .jsonl. (A .csv is for programs: lists are JSON in its cells, and a name may
            begin with = + - or @, which a spreadsheet takes for a formula.)
        workers: threads, each with an engine of one thread; all cores by default.
        resume: continue a run that was stopped or killed. It must have the same identity: source, options, weights,
            engine, and versions of packages.
        overwrite: replace ``out``, and drop the finished rows of a stopped run.
        redo_errors: make ``out`` again, which must be a .parquet of the same options; read it into memory, and compute
            only the rows that have an error in it, or that it lacks.
        progress: show a bar on stderr.
        options: top (5, or all classes if there are fewer); batch (16), images that pass the network together (the last
            bits of a score may depend on it); features (False), add the pooled features as float16; engine ("auto"),
            precision ("fp32"), calibration (for int8; by default images of the source) and device (by default the GPU
            if there is one), see `engines.open_engine`; grade ("close"), see `preprocessing.load_pixels`; max_pixels
            and truncated ("refuse"), see `images.open_image`: with "keep", a column ``truncated`` marks images that are
            cut off; column, the column of a table or list with the images or their paths, if its name does not say so;
            label_column, a column that holds no images; allow_private (False), fetch URLs at private addresses too;
            anonymous (False), ask stores for public data, without an account.

    Raises:
        SourceError: there are no images in the source.
        OutputError: ``out`` cannot be written or must not be replaced; the stopped run has another identity, or its
            source has changed.
        UnknownVariantError, CheckpointError: no such variant; its weights cannot be downloaded or verified.
        EngineError: no such engine, or it is not available here.
        ValueError, UnknownOptionError: an option is out of range, or there is no such option.
    """
    request, overwrite = Request(source, variant, **options), overwrite or redo_errors
    request.check(out, workers=workers, resume=resume, overwrite=overwrite, progress=progress)
    engine, passed = request.open_engine(), Passed()
    identity, make_rows = request.identity(engine), request.predictor(engine)
    redo = _Redo(make_rows, Path(out), identity) if redo_errors else None
    process = functools.partial(
        process_shards,
        make_rows=redo or make_rows,
        batch=request.options["batch"],
        workers=workers or available_cores(),
    )
    how = {"resume": resume, "overwrite": overwrite, "progress": progress}
    done = request.run(out, identity, process, passed, **how)
    return dataclasses.replace(done, computed=sum(redo.computed)) if redo else done


class _Redo:
    """Takes the rows without an error from a finished table, and makes the others; a `resumable.RowMaker`.

    Raises OutputError if the table is not of `classify_many`, or was made with other options.
    """

    def __init__(self, make_rows: Predictor, out: Path, identity: Mapping[str, Any]) -> None:
        if out.suffix != ".parquet" or not out.is_file():
            raise OutputError(f"{out} is not a Parquet table: only such a table says how it was made.")
        self.make_rows, self.columns = make_rows, make_rows.columns
        with explained():
            table = pq.read_table(out)
        before = json.loads((table.schema.metadata or {}).get(b"resnext_hub", b"{}"))
        if different := differences(before, identity):
            raise OutputError(f"{out} was made with other options: {different}. Pass the same ones.")
        kept = table.filter(table["error"].is_null()).select(self.columns.names)
        self.kept = kept.cast(self.columns).combine_chunks()  # `take` copies a column of several chunks
        self.places = {name: place for place, name in enumerate(self.kept["image"].to_pylist())}
        self.computed: list[int] = []

    def __call__(self, items: Sequence[Item]) -> pa.RecordBatch:
        if not items:
            return self.make_rows(items)
        places = [self.places.get(printable(item.name)) for item in items]
        missing = [item for item, place in zip(items, places, strict=True) if place is None]
        made = pa.Table.from_batches([self.make_rows(missing)])
        self.computed.append(len(missing))
        found = self.kept.take(pa.array([place for place in places if place is not None], pa.int64()))
        old, new = itertools.count(), itertools.count(len(found))
        order = [next(new if place is None else old) for place in places]
        return pa.concat_tables([found, made]).take(pa.array(order, pa.int64())).combine_chunks().to_batches()[0]


@dataclass
class _Stream(Parts):
    """Rows that are written as soon as they are made, instead of kept as parts; ``out`` is "-.csv" or "-.jsonl"."""

    file: TextIO | None = None

    def commit(self, part: Part, batches: Sequence[pa.RecordBatch], columns: pa.Schema) -> None:
        assert self.file is not None
        table = numbered(pa.Table.from_batches(batches, columns), itertools.count(self.rows))
        write_text(self.file, self.out.suffix, table, first=not self.rows)
        self.file.flush()
        self.rows += part.rows
        self.errors += part.errors


def stream_predictions(
    source: str | Sequence[str],
    file: TextIO,
    suffix: str,
    variant: str,
    *,
    workers: int | None = None,
    progress: bool = True,
    **options: Unpack[Options],
) -> Summary:
    """Write the rows of `classify_many` to an open file as they are made, such as stdout. They cannot be resumed.

    Args:
        suffix: ".csv" or ".jsonl".
        source, variant, workers, progress, options: see `classify_many`, as for the errors.
    """
    request, passed = Request(source, variant, **options), Passed()
    stream = _Stream(Path(f"-{suffix}"), {}, file=file)
    request.check(stream.out, workers=workers, resume=False, overwrite=True, progress=progress)
    how = {"make_rows": request.predictor(request.open_engine()), "batch": request.options["batch"]}
    how |= {"workers": workers or available_cores(), "commit_seconds": -1.0}
    with terminable(), progress_bar(progress, request.count() if progress else None, 0) as advance:
        process_shards(enumerate(request.shards(passed)), stream, advance, **how)
    return Summary(stream.out, stream.rows, stream.errors, stream.rows, passed)
