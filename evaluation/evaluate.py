"""Measure the accuracy of variants on labelled images, and compare it with the published figures."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..packages import needed

with needed("An evaluation", "evaluate"):  # before the import of `resumable`, which asks for tables' packages only
    from .predict import Contender, Predictions, predict

from ..data.labels import Listing
from ..data.outputs import check_folder
from ..errors import OutputError, SourceError
from ..inference.engines import check_engine, open_engine
from ..inference.resumable import printable
from ..inference.run_folder import Parts
from ..models.download import local_file
from ..models.manifest import Accuracy, Checkpoint, LabelSet, Preprocessing, find_checkpoint
from ..processes import Processes
from ..processing_utils.images import check_truncated
from ..processing_utils.labels import read_labels
from ..processing_utils.preprocessing import GRADES, VIEWS
from .label_files import HELD_OUT_BY, find_labelled
from .metrics import Metrics, measure
from .targets import Dataset, Target, datasets, read_real, recognise, target_classes, targets_of

REAL_CLASSES = 1000
SAME_CROP = 0.006  # the largest difference of crop / resize between comparable figures, which have two or three digits
TABLE = "predictions.parquet"


@dataclass(frozen=True)
class Comparison:
    """Our accuracies compared with a known figure."""

    kind: str  #: "published" or "measured" (by third parties)
    source: str
    top1: float  #: the known figure, in percent
    top5: float
    off1: float  #: ours minus the known figure, in percentage points
    off5: float
    beyond: float  #: percentage points by which the figure is outside our intervals; 0 if it is inside both

    @property
    def reproduced(self) -> bool:
        """True if the figure is inside both intervals."""
        return self.beyond == 0

    @property
    def verdict(self) -> str:
        if self.reproduced:
            return f"reproduced ({self.off1:+.2f})"
        return f"not reproduced: {self.off1:+.2f} / {self.off5:+.2f}, {self.beyond:.2f} outside the 95 % interval"


@dataclass(frozen=True)
class Result:
    """The metrics of one contender on one dataset."""

    name: str
    variant: str
    dataset: str
    preset: Preprocessing
    views: str
    engine: str
    precision: str
    labels: LabelSet
    metrics: Metrics
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Report:
    """The result of an evaluation."""

    data: list[str]
    layout: str
    dataset: str | None  #: the name of the known dataset
    title: str
    images: int
    classes: int
    restricted: bool  #: True if the networks chose among the dataset's own classes only
    grade: str
    unreadable: tuple[tuple[str, str], ...]  #: (image, reason) if not counted; with any, no figure is reproduced
    computed: int  #: the images that this run computed; a resumed run computes fewer
    seconds: float  #: for these
    engine_seconds: Mapping[str, float]
    notes: tuple[str, ...]
    results: tuple[Result, ...]

    def fails(self, kind: str) -> list[str]:
        """The reasons why not all contenders reproduce their figure of a kind; empty if all do."""
        wrong = [f"unreadable images: {len(self.unreadable):,}"] if self.unreadable else []
        for result in (r for r in self.results if r.dataset == (self.dataset or self.title)):
            found = [c for c in result.comparisons if c.kind == kind]
            if not found:
                wrong.append(f"{result.name}: no {kind} accuracy for {self.title} at this size")
            elif not any(c.reproduced for c in found):
                wrong.append(f"{result.name}: {found[0].verdict} ({found[0].top1:.2f} / {found[0].top5:.2f} {kind})")
        return wrong


def parse_size(text: str) -> tuple[int | None, int]:
    """(resize, crop) of a size in pixels. Any other text is a ValueError.

    "320:288" resizes the shorter side to 320 and crops 288; "288" resizes in the checkpoint's proportion (None).
    """
    found = re.fullmatch(r"(?:(\d+):)?(\d+)", text)
    if not found or not int(found[2]) or (found[1] and int(found[1]) < int(found[2])):
        raise ValueError(f"A size must be CROP or RESIZE:CROP in pixels, such as 288 or 320:288; got {text!r}.")
    return int(found[1]) if found[1] else None, int(found[2])


def contenders_of(
    variants: Sequence[str | Path], options: Options, *, local_rank: int = 0, progress: bool = False
) -> list[Contender]:
    """Open the engine of every variant at every size; ``local_rank`` chooses the GPU if the options name no device."""
    asked = [parse_size(size) for size in options.sizes] or [(None, None)]
    checkpoints = list({c.variant: c for c in map(find_checkpoint, variants)}.values())
    device = options.device
    if device is None and local_rank:
        import torch

        device = f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else None
    how: dict[str, Any] = {"precision": options.precision, "calibration": options.calibration, "device": device}
    found: dict[str, Contender] = {}
    for checkpoint, (resize, crop) in itertools.product(checkpoints, asked):
        preset = checkpoint.preprocessing
        if crop is not None:
            resize = resize or max(crop, round(crop * preset.resize_size / preset.crop_size))
            preset = dataclasses.replace(preset, resize_size=resize, crop_size=crop)
        name = checkpoint.name + (f"@{preset.resize_size}:{preset.crop_size}" if crop else "")
        name += "" if options.views == "centre" else f"+{options.views}"
        if any(c.name == name and c.checkpoint != checkpoint for c in found.values()):
            name = f"{checkpoint.variant}{name.removeprefix(checkpoint.name)}"  # folders of two runs with the same name
        if name not in found:
            sized = dataclasses.replace(checkpoint, preprocessing=preset)
            opened = open_engine(sized, options.engine, threads=1, progress=progress, **how)
            found[name] = Contender(name, checkpoint, local_file(checkpoint)[1], preset, opened, options.views)
    return list(found.values())


def compare(metrics: Metrics, contender: Contender, dataset: str) -> tuple[Comparison, ...]:
    """Compare with the manifest's figures for the same images and the same preprocessing."""
    checkpoint, preset = contender.checkpoint, contender.preset
    if contender.views != "centre":
        return ()
    figures = [("published", checkpoint.published)] if preset == checkpoint.preprocessing else []
    figures += [("measured", row) for row in checkpoint.measured]
    share = preset.crop_size / preset.resize_size
    return tuple(
        judge(metrics, kind, figure)
        for kind, figure in figures
        if figure.top1 is not None
        and figure.dataset == dataset
        and figure.image_size in (None, preset.crop_size)
        and (figure.crop_pct is None or abs(figure.crop_pct - share) < SAME_CROP)
    )


def judge(metrics: Metrics, kind: str, figure: Accuracy) -> Comparison:
    """Compare our accuracy with one figure."""
    assert figure.top1 is not None
    assert figure.top5 is not None
    pairs = [(metrics.top1, figure.top1), (metrics.top5, figure.top5)]
    # Rounded so that floating-point noise at the end of an interval does not count.
    beyond = [max(0.0, round(ours.low - theirs, 6), round(theirs - ours.high, 6)) for ours, theirs in pairs]
    off = [ours.percent - theirs for ours, theirs in pairs]
    return Comparison(kind, figure.source, figure.top1, figure.top5, off[0], off[1], max(beyond))


@dataclass(frozen=True, kw_only=True)
class Options:
    """How an evaluation is made. ValueError or EngineError if a value is unknown or out of range."""

    labels: str | Path | None = None  #: see `label_files.find_labelled`, as for the next six
    split: str | None = None
    column: str | None = None
    label_column: str | None = None
    label_separator: str | None = None
    allow_private: bool = False
    anonymous: bool = False
    dataset: str | None = None  #: the name of a known dataset (`targets.datasets`); None: recognised by its size
    real: str | Path | None = None  #: ImageNet-ReaL's real.json, to report accuracy on its labels too
    restrict: bool | None = None  #: choose among the dataset's own classes only; None: if the known dataset does
    sizes: Sequence[str] = ()  #: see `parse_size`; by default each checkpoint's own
    views: str = "centre"  #: see `preprocessing.view_pixels`
    engine: str = "auto"  #: see `inference.engines.open_engine`, as for the next three
    device: str | None = None
    precision: str = "fp32"
    calibration: str | Sequence[str] | None = None
    grade: str = "reference"  #: see `preprocessing.load_pixels`, as for the next two
    max_pixels: int | None = None
    truncated: str = "refuse"
    batch: int = 16  #: images that pass a network together
    workers: int | None = None  #: threads; None: all cores

    def __post_init__(self) -> None:
        for name, values in {"views": VIEWS, "grade": GRADES, "dataset": datasets()}.items():
            if (value := getattr(self, name)) is not None and value not in values:
                raise ValueError(f"Unknown {name} {value!r}; choose from {', '.join(values)}.")
        check_truncated(self.truncated)
        check_engine(self.engine, self.precision, self.calibration is not None)
        if self.batch < 1 or (self.workers is not None and self.workers < 1):
            raise ValueError(f"batch and workers must be 1 or more, got {self.batch} and {self.workers}.")
        for size in self.sizes:
            parse_size(size)

    @property
    def source(self) -> dict[str, Any]:
        """The options that say how the images are found."""
        names = ("column", "label_column", "label_separator", "allow_private", "anonymous")
        return {name: getattr(self, name) for name in names}


def evaluate(
    variants: Sequence[str | Path] | Sequence[Contender],
    data: str | Sequence[str],
    out: str | Path | None = None,
    options: Options | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Report | None:
    """Measure the accuracy of one or several variants in one pass over labelled images.

    Args:
        variants: names, folders that training wrote, or contenders of your own.
        data: one or more sources; see `label_files.find_labelled`. If it is the data that a variant was trained on, the
            images are those that the training held out.
        out: a folder for the table of predictions, and for the parts of an interrupted run; None for no folder.
        options: all defaults if None.
        resume, overwrite, progress: see `predict.predict`.

    Returns:
        The report; None in the processes of a torchrun other than the first.

    Raises:
        SourceError, OutputError, ValueError: the labelled images, the folder or an option cannot be used.
        UnknownVariantError, ManifestError, CheckpointError, EngineError: a variant is not available.
    """
    options = options or Options()
    if not variants:
        raise ValueError("Expected at least one variant.")
    processes = Processes.here()
    _check_output(out, processes, resume, overwrite)
    checkpoints = [v.checkpoint if isinstance(v, Contender) else find_checkpoint(v) for v in variants]
    if options.real is not None and any(c.num_classes != REAL_CLASSES for c in checkpoints):
        raise ValueError(f"ImageNet-ReaL needs networks with {REAL_CLASSES} classes.")
    runs = [path.parent for c in checkpoints if (path := c.sources[0].path) is not None]
    images = find_labelled(data, labels=options.labels, split=options.split, runs=runs, **options.source)
    targets, notes = _targets(images, checkpoints)
    notes += _seen_in_training(images, checkpoints, data)
    known = datasets()[options.dataset] if options.dataset else recognise(images)
    restricted = (known is not None and known.restrict) if options.restrict is None else options.restrict
    if options.real is not None:
        read_real(options.real, [name for name in images.names if name is not None])  # shows errors before the run
    contenders = [v for v in variants if isinstance(v, Contender)] or contenders_of(
        [v for v in variants if not isinstance(v, Contender)], options, local_rank=processes.local, progress=progress
    )
    how: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "progress": progress, "restricted": restricted}
    how |= {name: getattr(options, name) for name in ("batch", "workers")} | options.source
    how["reading"] = {name: getattr(options, name) for name in ("grade", "max_pixels", "truncated")}
    # One process may have larger shards than the others, so they wait for each other for long.
    with processes.joined(datetime.timedelta(days=7)), tempfile.TemporaryDirectory() as temporary:
        table = Path(out or temporary) / TABLE
        predictions = predict(images, contenders, table, targets=targets, processes=processes, **how)
    if predictions is None:
        return None
    return _report(images, targets, contenders, predictions, known, restricted, options, notes)


def _check_output(out: str | Path | None, processes: Processes, resume: bool, overwrite: bool) -> None:
    """Raise OutputError for a folder that cannot be used, before anything is computed for it."""
    if out is None:
        if processes.world > 1 or resume:
            raise OutputError("Resuming a run and running under torchrun need a folder: pass out=DIR.")
    elif processes.first:
        table = Parts(Path(out) / TABLE, {})
        own = (table.out.name, table.folder.name)
        if not overwrite or Path(out).is_file():
            check_folder(Path(out), own, "choose another folder, or pass overwrite=True to write into it")
        if not resume:
            table.check_output(resume=resume, overwrite=overwrite)


def _targets(images: Listing, checkpoints: Sequence[Checkpoint]) -> tuple[dict[LabelSet, list[Target]], list[str]]:
    """The targets in each label set of the checkpoints, and notes about them."""
    sets = list(dict.fromkeys(c.labels for c in checkpoints))
    if images.classes is not None:  # the tables have names for their numbers
        known = images.classes

        def named(label: Any) -> Any:
            if isinstance(label, tuple):
                return tuple(map(named, label))
            return known[label] if isinstance(label, int) else label

        names = list(map(named, images.labels))
        try:
            return {of: targets_of(names, read_labels(of)) for of in sets}, []
        except SourceError:  # two classes have the same name; a network with as many classes has the same order
            if any(of.classes != len(images.classes) for of in sets):
                raise
    keys = images.labels
    present = _present(images)
    numbered = any(not isinstance(key, str) or key.isdigit() for key in present)
    if numbered and len({tuple(label.name for label in read_labels(of)) for of in sets}) > 1:
        raise ValueError("The classes are numbers, which mean different classes to these variants: pass one variant.")
    targets = {of: targets_of(keys, read_labels(of)) for of in sets}
    if not numbered or len(target_classes(targets[sets[0]])) == sets[0].classes:
        return targets, []
    some = f"The classes are numbers, {len(present)} of the network's {sets[0].classes}"
    return targets, [f"{some}: the result is right only if the network numbers them in the same order."]


def _seen_in_training(images: Listing, checkpoints: Sequence[Checkpoint], data: str | Sequence[str]) -> list[str]:
    """A note for each run that was trained on all of these images, as far as the name of its data tells."""
    specs = data if isinstance(data, str) else " ".join(data)
    if images.present() == ["val"] or HELD_OUT_BY in images.layout:
        return []
    seen = [c.name for c in checkpoints if c.sources[0].path is not None and c.published.dataset == specs]
    return [f"{name} was trained on these images: this accuracy says nothing of others." for name in seen]


def _present(images: Listing) -> set[str | int | None]:
    """The classes that images have."""
    return set(itertools.chain(*(label if isinstance(label, tuple) else (label,) for label in set(images.labels))))


def _report(
    images: Listing,
    targets: Mapping[LabelSet, Sequence[Target]],
    contenders: Sequence[Contender],
    predictions: Predictions,
    known: Dataset | None,
    restricted: bool,
    options: Options,
    notes: Sequence[str],
) -> Report:
    names, errors = (predictions.table[column].to_pylist() for column in ("image", "error"))
    rows = [i for i, error in enumerate(errors) if error is None]
    present = len(_present(images))
    notes = list(notes) + ([f"{images.passed}."] if images.passed else [])
    if known and known.images and (known.images, known.classes) != (len(rows), present):
        expected = f"{known.title} has {known.images:,} images in {known.classes} classes"
        notes.append(f"{expected}; this source has {len(rows):,} in {present}.")
    title = known.title if known else "these images"
    sets: list[tuple[str, Mapping[LabelSet, Sequence[Target]]]] = [(known.name if known else title, targets)]
    if options.real is not None:
        sets.append(("imagenet_real", dict.fromkeys(targets, read_real(options.real, names))))
    results = []
    for (dataset, right), one in itertools.product(sets, contenders):
        wanted = [right[one.checkpoint.labels][i] for i in rows]
        metrics = measure(*predictions.of(one.name, rows), wanted, predictions.scores(one.name, rows))
        network = (one.preset, one.views, one.engine.name, one.engine.precision, one.checkpoint.labels)
        compared = compare(metrics, one, dataset)
        results.append(Result(one.name, one.checkpoint.variant, dataset, *network, metrics, compared))
    return Report(
        data=list(images.specs),
        layout=images.layout,
        dataset=known.name if known else None,
        title=title,
        images=len(errors),
        classes=present,
        restricted=restricted,
        grade=options.grade,
        unreadable=tuple((printable(names[i]), e) for i, e in enumerate(errors) if e is not None),
        computed=predictions.computed,
        seconds=predictions.seconds,
        engine_seconds=predictions.engine_seconds,
        notes=tuple(notes),
        results=tuple(results),
    )
