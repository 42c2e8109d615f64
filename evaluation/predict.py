"""Labelled images and several networks -> one table of what each network predicts; resumable.

Each image is read and decoded once, made into pixels once for each distinct geometry, and passes every network. The
table, ``predictions.parquet``, has the columns image, index, error, and for each contender ``NAME.classes`` (the five
best of the classes that it may choose from), ``NAME.probabilities`` and ``NAME.targets`` (the right classes); of a
network for several classes per image also ``NAME.scores`` (the probability of every class). The column ``target`` has
the right class as the data name it.

Under torchrun every rank takes each n-th shard and commits its parts into the one folder, which all must see; rank 0
makes the table of them. A part exists once, whoever wrote it, so an image is counted once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.labels import Listing
from ..data.shards import Item, Shard
from ..errors import ImageError, OutputError, SourceError
from ..inference.engines import Engine
from ..inference.engines.base import available_cores
from ..inference.resumable import identify, printable, process_shards, progress_bar, run, terminable
from ..inference.run_folder import Parts
from ..models.manifest import Checkpoint, LabelSet, Preprocessing
from ..processes import Processes
from ..processing_utils.images import open_image
from ..processing_utils.preprocessing import crop_pixels, load_pixels, view_pixels
from ..run_identity import differences
from .label_files import SHARD_ROWS
from .targets import Target, target_classes

TOP = 5
OTHERWISE = "Choose another folder, or pass overwrite=True."


@dataclass(frozen=True)
class Contender:
    """A network to evaluate, and the preprocessing of its images."""

    name: str  #: the prefix of its columns, unique
    checkpoint: Checkpoint
    sha256: str  #: of its weights
    preset: Preprocessing
    engine: Engine
    views: str = "centre"  #: see `preprocessing.view_pixels`; probabilities are averaged over them

    @property
    def geometry(self) -> tuple[Preprocessing, str]:
        """The values that determine the pixels. (Networks normalise them themselves.)"""
        return dataclasses.replace(self.preset, mean=(0, 0, 0), std=(1, 1, 1), source=""), self.views

    def identity(self) -> dict[str, Any]:
        """Everything that decides what it predicts."""
        return {"views": self.views} | identify(self.checkpoint, self.sha256, self.engine, self.preset)


@dataclass(frozen=True)
class Predictions:
    """The table, and the images that all processes of this run computed, in how many seconds."""

    table: pa.Table
    computed: int
    seconds: float
    engine_seconds: Mapping[str, float]  #: by contender, summed over the threads of this process

    def of(self, name: str, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """A contender's classes (N, 5), -1 for none, and the probability of the first (N,)."""
        classes = np.full((len(rows), TOP), -1)
        confidence = np.zeros(len(rows))
        found = self.table[f"{name}.classes"].to_pylist(), self.table[f"{name}.probabilities"].to_pylist()
        for at, row in enumerate(rows):
            if found[0][row]:
                classes[at, : len(found[0][row])] = found[0][row]
                confidence[at] = found[1][row][0]
        return classes, confidence

    def scores(self, name: str, rows: Sequence[int]) -> np.ndarray | None:
        """The probabilities (N, classes) of a network for several classes per image, 0 for NaN; None for others."""
        if f"{name}.scores" not in self.table.column_names:
            return None
        found = self.table[f"{name}.scores"].to_pylist()
        width = max((len(found[row]) for row in rows), default=0)
        return np.array([found[row] or [0.0] * width for row in rows]).reshape(len(rows), width)


@dataclass(frozen=True)
class _LabelledItem(Item):
    """An image and its place in the listing."""

    place: int = 0


@dataclass(frozen=True)
class _LabelledShard:
    """A shard whose items know their places; ``first`` is the place of its first one."""

    shard: Shard
    first: int

    @property
    def remote(self) -> bool:
        return self.shard.remote

    def __len__(self) -> int:
        return len(self.shard)

    def fingerprint(self) -> str:
        return self.shard.fingerprint()

    def items(self, start: int = 0) -> Iterator[Item]:
        for place, item in enumerate(self.shard.items(start), self.first + start):
            yield _LabelledItem(item.name, item.read, place)


@dataclass
class _Predictor:
    """Makes rows of what every contender predicts; a `resumable.RowMaker`."""

    images: Listing
    targets: Mapping[LabelSet, Sequence[Target]]
    contenders: Sequence[Contender]
    classes: Sequence[Sequence[int] | None]
    reading: Mapping[str, Any]
    seconds: dict[str, float]
    _turns: dict[str, threading.Lock] = field(default_factory=dict)
    _count: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.geometries = list(dict.fromkeys(c.geometry for c in self.contenders))
        self._turns = {c.name: threading.Lock() for c in self.contenders if not c.engine.concurrent}

    @property
    def columns(self) -> pa.Schema:
        fields: list[Any] = [pa.field("image", pa.string(), nullable=False)]
        fields += [("error", pa.string()), ("target", pa.string())]
        for contender in self.contenders:
            for column, kind in (("classes", pa.int32()), ("probabilities", pa.float32()), ("targets", pa.int32())):
                fields.append((f"{contender.name}.{column}", pa.list_(kind)))
            if contender.checkpoint.multi_label:
                fields.append((f"{contender.name}.scores", pa.list_(pa.float64())))
        return pa.schema(fields)

    def __call__(self, items: Sequence[Item]) -> pa.RecordBatch:
        errors: list[str | None] = []
        loaded: list[list[np.ndarray]] = []
        for item in items:
            try:
                loaded.append(self._load(item.read()))
                errors.append(None)
            except (ImageError, OSError) as error:
                errors.append(printable(str(error) or type(error).__name__))
        good = [i for i, error in enumerate(errors) if error is None]
        names = [printable(item.name) for item in items]
        places = [item.place for item in items if isinstance(item, _LabelledItem)]
        labels = [printable(_label_text(self.images, place)) for place in places]
        columns: list[pa.Array] = [pa.array(column, pa.string()) for column in (names, errors, labels)]
        for contender, classes in zip(self.contenders, self.classes, strict=True):
            at = self.geometries.index(contender.geometry)
            found = self._best(contender, classes, np.stack([image[at] for image in loaded])) if loaded else []
            best, sure, scores = ([None] * len(items) for _ in range(3))
            for i, one in zip(good, found, strict=True):
                best[i], sure[i], scores[i] = one
            columns += [pa.array(best, pa.list_(pa.int32())), pa.array(sure, pa.list_(pa.float32()))]
            right = self.targets[contender.checkpoint.labels]
            columns.append(pa.array([sorted(right[place]) for place in places], pa.list_(pa.int32())))
            columns += [pa.array(scores, pa.list_(pa.float64()))] if contender.checkpoint.multi_label else []
        return pa.RecordBatch.from_arrays(columns, schema=self.columns)

    def _load(self, data: bytes) -> list[np.ndarray]:
        """Pixels (views, crop, crop, 3) for each geometry. Decodes once, unless the decoder may shrink."""
        limits = dict(self.reading)
        grade, plain = limits.pop("grade"), all(views == "centre" for _, views in self.geometries)
        if plain and (grade == "fast" or len(self.geometries) == 1):
            return [load_pixels(data, preset, grade, **limits)[None] for preset, _ in self.geometries]
        image = open_image(data, **limits)
        return [
            crop_pixels(image, preset, grade)[None] if views == "centre" else view_pixels(image, preset, views)
            for preset, views in self.geometries
        ]

    def _best(
        self, contender: Contender, classes: Sequence[int] | None, pixels: np.ndarray
    ) -> list[tuple[Any, Any, Any]]:
        """The best classes, their probabilities and those of all for pixels (N, views, crop, crop, 3); none for NaN."""
        start = time.perf_counter()
        with self._turns.get(contender.name, contextlib.nullcontext()):
            logits = [contender.engine(np.ascontiguousarray(view))[0] for view in pixels.swapaxes(0, 1)]
        with self._count:
            self.seconds[contender.name] += time.perf_counter() - start
        choice = np.arange(logits[0].shape[1]) if classes is None else np.asarray(classes)
        activation = _sigmoid if contender.checkpoint.multi_label else _softmax
        probabilities = np.mean([activation(view[:, choice]) for view in logits], axis=0)
        every = np.zeros(logits[0].shape)
        every[:, choice] = probabilities
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
        return [
            (choice[best].tolist(), row[best].tolist(), all_.tolist()) if np.isfinite(row).all() else ([], [], [])
            for best, row, all_ in zip(order, probabilities, every, strict=True)
        ]


def _label_text(images: Listing, place: int) -> str:
    """The class of an image as the data name it."""
    label = images.labels[place]
    if isinstance(label, tuple):
        return "|".join(map(str, label))
    return images.classes[label] if isinstance(label, int) and images.classes else str(label)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Compute in float64, so that different logits never become equal probabilities."""
    with np.errstate(invalid="ignore"):  # the caller handles values that are not finite
        values = logits.astype(np.float64)
        values -= values.max(axis=1, keepdims=True)
        np.exp(values, out=values)
        return values / values.sum(axis=1, keepdims=True)


def gathered(processes: Processes, value: Any) -> list[Any]:
    """The values of all processes; OutputError if another process has ended."""
    try:
        return processes.gather(value)
    except RuntimeError as error:
        raise OutputError(f"Another process has ended. Start all of them again with resume=True. ({error})") from error


def predict(
    images: Listing,
    contenders: Sequence[Contender],
    out: Path,
    *,
    targets: Mapping[LabelSet, Sequence[Target]],
    processes: Processes,
    restricted: bool = False,
    reading: Mapping[str, Any],
    batch: int = 16,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    **source: Any,
) -> Predictions | None:
    """Have every contender predict every image; return None on ranks other than 0.

    Args:
        out: the table, a .parquet file.
        targets: the right classes of the images, for each label set of the contenders.
        restricted: let the networks choose only among the classes that occur in ``targets``.
        reading: grade, max_pixels and truncated, see `preprocessing.load_pixels`.
        workers: threads, each with an engine of one thread; by default the cores, shared by the ranks of a machine.
        resume: continue a stopped run of the same identity; read its table if it has ended.
        source: how the images were found (column, label_column, allow_private, anonymous), for the identity.

    Raises OutputError and SourceError, as `evaluate`.
    """
    choices = [target_classes(targets[c.checkpoint.labels]) if restricted else None for c in contenders]
    identity = {"source": list(images.specs), "images": images.fingerprint(), "batch": batch}
    labels = "\n".join(_label_text(images, place) for place in range(len(images)))
    identity["image_labels"] = hashlib.sha256(labels.encode("utf-8", "surrogateescape")).hexdigest()
    identity |= {"shard_rows": SHARD_ROWS, "classes": choices, **source, **reading}
    identity["contenders"] = {c.name: c.identity() for c in contenders}
    seconds = {c.name: 0.0 for c in contenders}
    predictor = _Predictor(images, targets, contenders, choices, reading, seconds)
    firsts = itertools.accumulate(images.sizes(), initial=0)
    shards = [_LabelledShard(shard, first) for shard, first in zip(images.kept(), firsts, strict=False)]
    many = workers or max(1, available_cores() // processes.local_world)
    done: list[tuple[int, float]] = []  # of each process: images and seconds

    def process(numbered: Iterable[tuple[int, Shard]], parts: Parts, _: Callable[[int], object]) -> int:
        gathered(processes, None)  # rank 0 has made the folder
        parts.check_identity()
        parts.refresh()
        gathered(processes, None)  # no process writes while another lists the folder
        start = time.perf_counter()
        own = ((number, shard) for number, shard in numbered if processes.has(number))
        before = sum(part.start + part.rows for number, part in parts.done.items() if processes.has(number))
        total = sum(size for number, size in enumerate(images.sizes()) if processes.has(number))
        with progress_bar(progress and processes.first, total, before) as advance:
            computed = process_shards(own, parts, advance, make_rows=predictor, batch=batch, workers=many)
        done.extend(gathered(processes, (computed, time.perf_counter() - start)))
        if processes.first:  # only rank 0: it soon removes the folder
            parts.refresh()
        return computed

    if not gathered(processes, processes.first and resume and _is_made(out, identity))[0]:
        if processes.first:
            run(out, identity, shards, process, resume=resume, overwrite=overwrite)
        else:
            with terminable():
                process(enumerate(shards), Parts(out, identity), lambda rows: None)
    if not processes.first:
        return None
    table = pq.read_table(out)
    _check_names(table, images)
    return Predictions(table, sum(n for n, _ in done), max((s for _, s in done), default=0.0), seconds)


def _is_made(out: Path, identity: dict[str, Any]) -> bool:
    """True if a run of this identity has made the table; remove what it left if it was killed after that."""
    parts = Parts(out, {})
    if not out.exists() or parts.is_kept():  # the stopped run is to replace it
        return False
    parts.sweep()
    try:
        made = json.loads((pq.read_schema(out).metadata or {})[b"resnext_hub"])
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise OutputError(f"{out} was not written by an evaluation. {OTHERWISE}") from error
    if different := differences(made, identity):
        raise OutputError(f"{out} was made with other options: {different}. {OTHERWISE}")
    return True


def _check_names(table: pa.Table, images: Listing) -> None:
    names = table["image"].to_pylist()
    if len(names) != len(images):
        raise SourceError(
            f"The source has {len(images):,} labels but {len(names):,} readable images: it is incomplete or corrupt."
        )
    for name, expected in zip(names, images.names, strict=True):
        if expected is not None and name != printable(expected):
            raise SourceError(f"The source has changed since it was listed: expected the image {expected}, got {name}.")
