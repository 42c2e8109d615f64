"""`evaluate`: variants and a labelled set in, a report out."""

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
from ..errors import EngineError, OutputError, SourceError
from ..inference.engines import ENGINES, open_engine
from ..inference.parts import Parts
from ..inference.resumable import printable
from ..models.download import local_file
from ..models.manifest import Accuracy, Checkpoint, LabelSet, Preprocessing, find_checkpoint
from ..processes import Processes
from ..processing_utils.labels import read_labels
from ..processing_utils.preprocessing import GRADES, VIEWS
from .label_files import find_labelled
from .metrics import Metrics, measure
from .targets import Dataset, Target, datasets, read_real, recognise, target_classes, targets_of

__all__ = ["Comparison", "Report", "Result", "compare", "contenders_of", "evaluate", "judge", "parse_size"]

REAL_CLASSES = 1000
SAME_CROP = 0.006  # crop / resize of figures that may be compared: they are given to two or three digits


@dataclass(frozen=True)
class Comparison:
    """Our figure beside another's: ``reproduced`` if theirs lies in both our intervals.

    Attributes:
        kind: "published" or "measured" (by others, independently).
        top1, top5: theirs, percent.
        off1, off5: ours less theirs, percentage points.
        beyond: how far theirs lies outside our intervals at most, percentage points; 0 if it is reproduced.
    """

    kind: str
    source: str
    top1: float
    top5: float
    off1: float
    off5: float
    beyond: float

    @property
    def reproduced(self) -> bool:
        return self.beyond == 0

    @property
    def verdict(self) -> str:
        if self.reproduced:
            return f"reproduced ({self.off1:+.2f})"
        return f"not reproduced: {self.off1:+.2f} / {self.off5:+.2f}, {self.beyond:.2f} outside the 95 % interval"


@dataclass(frozen=True)
class Result:
    """One contender on one set."""

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
    """What was measured. ``unreadable``: (image, why); they do not count, and an accuracy without them is no verdict.

    Attributes:
        dataset: the known set's name, or None.
        restricted: whether the networks chose among the set's own classes only.
        computed, seconds: images that this run did, and how long it took; a resumed run does fewer.
    """

    data: list[str]
    layout: str
    dataset: str | None
    title: str
    images: int
    classes: int
    restricted: bool
    grade: str
    unreadable: tuple[tuple[str, str], ...]
    computed: int
    seconds: float
    engine_seconds: Mapping[str, float]
    notes: tuple[str, ...]
    results: tuple[Result, ...]

    def fails(self, kind: str) -> list[str]:
        """Why not every contender reproduces its figure of a kind; empty where all do."""
        wrong = [f"unreadable images: {len(self.unreadable):,}"] if self.unreadable else []
        for result in (r for r in self.results if r.dataset == (self.dataset or self.title)):
            found = [c for c in result.comparisons if c.kind == kind]
            if not found:
                wrong.append(f"{result.name}: no {kind} accuracy for {self.title} at this size")
            elif not any(c.reproduced for c in found):
                wrong.append(f"{result.name}: {found[0].verdict} ({found[0].top1:.2f} / {found[0].top5:.2f} {kind})")
        return wrong


def parse_size(text: str) -> tuple[int | None, int]:
    """ "288" -> crop 288, resized in the checkpoint's own proportion; "320:288" -> shorter side 320, crop 288.

    Raises:
        ValueError: neither.
    """
    found = re.fullmatch(r"(?:(\d+):)?(\d+)", text)
    if not found or not int(found[2]) or (found[1] and int(found[1]) < int(found[2])):
        raise ValueError(f"A size must be CROP or RESIZE:CROP in pixels, such as 288 or 320:288; got {text!r}.")
    return int(found[1]) if found[1] else None, int(found[2])


def contenders_of(
    variants: Sequence[str | Path],
    *,
    sizes: Sequence[str] = (),
    views: str = "centre",
    engine: str = "auto",
    local_rank: int = 0,
    progress: bool = False,
) -> list[Contender]:
    """Every variant at every size, with its engine open.

    Args:
        sizes: see `parse_size`; each checkpoint's own by default.
        local_rank: which of the machine's GPUs, if it has any.

    Raises:
        UnknownVariantError, ManifestError, CheckpointError, EngineError, ValueError: as `classifier`.
    """
    if views not in VIEWS:
        raise ValueError(f"Unknown views {views!r}; choose from {', '.join(VIEWS)}.")
    if engine not in ENGINES:
        raise EngineError(f"Unknown engine {engine!r}; choose from {', '.join(ENGINES)}.")
    asked = [parse_size(size) for size in sizes] or [(None, None)]
    checkpoints = list({c.variant: c for c in map(find_checkpoint, variants)}.values())
    found: dict[str, Contender] = {}
    for checkpoint, (resize, crop) in itertools.product(checkpoints, asked):
        preset = _resized(checkpoint.preprocessing, resize, crop)
        name = checkpoint.name + (f"@{preset.resize_size}:{preset.crop_size}" if crop else "")
        name += "" if views == "centre" else f"+{views}"
        if any(c.name == name and c.checkpoint != checkpoint for c in found.values()):
            name = f"{checkpoint.variant}{name.removeprefix(checkpoint.name)}"  # two runs' folders of one name
        if name not in found:
            sized = dataclasses.replace(checkpoint, preprocessing=preset)
            opened = open_engine(sized, engine, device=_device(local_rank), threads=1, progress=progress)
            found[name] = Contender(name, checkpoint, local_file(checkpoint)[1], preset, opened, views)
    return list(found.values())


def _resized(own: Preprocessing, resize: int | None, crop: int | None) -> Preprocessing:
    if crop is None:
        return own
    resize = resize or max(crop, round(crop * own.resize_size / own.crop_size))
    return dataclasses.replace(own, resize_size=resize, crop_size=crop)


def _device(local_rank: int) -> str | None:
    if not local_rank:
        return None
    import torch

    return f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else None


def compare(metrics: Metrics, contender: Contender, dataset: str) -> tuple[Comparison, ...]:
    """The figures that the manifest has for the same images made the same way, each with its verdict."""
    checkpoint, preset = contender.checkpoint, contender.preset
    if contender.views != "centre":
        return ()
    figures = [("published", checkpoint.published)] if preset == checkpoint.preprocessing else []
    figures += [("measured", row) for row in checkpoint.measured]
    return tuple(
        judge(metrics, kind, figure)
        for kind, figure in figures
        if figure.top1 is not None and figure.dataset == dataset and _is_made_so(figure, preset)
    )


def _is_made_so(figure: Accuracy, preset: Preprocessing) -> bool:
    """Whether a figure is of this size and crop, as far as it says."""
    same_crop = figure.crop_pct is None or abs(figure.crop_pct - preset.crop_size / preset.resize_size) < SAME_CROP
    return figure.image_size in (None, preset.crop_size) and same_crop


def judge(metrics: Metrics, kind: str, figure: Accuracy) -> Comparison:
    """Compare our accuracy with one figure."""
    assert figure.top1 is not None
    assert figure.top5 is not None
    pairs = [(metrics.top1, figure.top1), (metrics.top5, figure.top5)]
    # A figure of two digits may be half a hundredth off: that alone is no difference.
    beyond = [max(0.0, round(ours.low - theirs, 6), round(theirs - ours.high, 6)) for ours, theirs in pairs]
    off = [ours.percent - theirs for ours, theirs in pairs]
    return Comparison(kind, figure.source, figure.top1, figure.top5, off[0], off[1], max(beyond))


def evaluate(
    variants: Sequence[str | Path] | Sequence[Contender],
    data: str | Sequence[str],
    out: str | Path | None = None,
    *,
    labels: str | Path | None = None,
    column: str | None = None,
    label_column: str | None = None,
    dataset: str | None = None,
    real: str | Path | None = None,
    restrict: bool | None = None,
    sizes: Sequence[str] = (),
    views: str = "centre",
    engine: str = "auto",
    grade: str = "reference",
    batch: int = 16,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    allow_private: bool = False,
    anonymous: bool = False,
    split: str | None = None,
) -> Report | None:
    """Measure the accuracy of one or several variants in one pass; None on the ranks of a torchrun other than 0.

    Args:
        variants: names, folders that training wrote, or contenders of your own.
        data, labels, split, column, label_column, allow_private, anonymous: see `label_files.find_labelled`.
        out: a folder for the table of predictions (and what an interrupted run needs), none for none.
        dataset: which known set it is (`targets.datasets`), where it is not recognised by its size.
        real: ImageNet-ReaL's real.json: report on its labels too.
        restrict: choose among the set's own classes only; by default as the known set has it, else not.
        sizes, views, engine: see `contenders_of`.
        grade: see `preprocessing.load_pixels`.
        batch, workers, resume, overwrite, progress: see `predict.predict`.

    Raises:
        SourceError, OutputError, ValueError: the labelled set, the folder or an option cannot be used.
        UnknownVariantError, ManifestError, CheckpointError, EngineError: a variant cannot be had.
    """
    if grade not in GRADES:
        raise ValueError(f"Unknown grade {grade!r}; choose from {', '.join(GRADES)}.")
    if dataset is not None and dataset not in datasets():
        raise ValueError(f"Unknown dataset {dataset!r}; choose from {', '.join(datasets())}.")
    if batch < 1 or (workers is not None and workers < 1):
        raise ValueError(f"batch and workers must be 1 or more, got {batch} and {workers}.")
    if not variants:
        raise ValueError("Expected at least one variant.")
    processes = Processes.here()
    if out is None and (processes.world > 1 or resume):
        raise OutputError("Resuming a run and running under torchrun need a folder: pass out=DIR.")
    if out is not None and processes.first:
        table = Parts(Path(out) / "predictions.parquet", {})
        own = (table.out.name, table.folder.name)
        if not overwrite or Path(out).is_file():
            check_folder(Path(out), own, "choose another folder, or pass overwrite=True to write into it")
        if not resume:
            table.check_output(resume=resume, overwrite=overwrite)
    checkpoints = [v.checkpoint if isinstance(v, Contender) else find_checkpoint(v) for v in variants]
    if real is not None and any(c.num_classes != REAL_CLASSES for c in checkpoints):
        raise ValueError(f"ImageNet-ReaL needs networks with {REAL_CLASSES} classes.")
    source: dict[str, Any] = {"column": column, "label_column": label_column}
    source |= {"allow_private": allow_private, "anonymous": anonymous}
    images = find_labelled(data, labels=labels, split=split, **source)
    targets, notes = _targets(images, checkpoints)
    known = datasets()[dataset] if dataset else recognise(images)
    chosen = (known is not None and known.restrict) if restrict is None else restrict
    if real is not None:
        read_real(real, [name for name in images.names if name is not None])  # what is wrong shows now
    contenders = [v for v in variants if isinstance(v, Contender)] or contenders_of(
        [v for v in variants if not isinstance(v, Contender)],
        sizes=sizes,
        views=views,
        engine=engine,
        local_rank=processes.local,
        progress=progress,
    )
    # A week: one process may have the larger shards
    with processes.joined(datetime.timedelta(days=7)), tempfile.TemporaryDirectory() as temporary:
        predictions = predict(
            images,
            contenders,
            Path(out or temporary) / "predictions.parquet",
            processes=processes,
            classes={of: target_classes(found) for of, found in targets.items()} if chosen else None,
            grade=grade,
            batch=batch,
            workers=workers,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            **source,
        )
    if predictions is None:
        return None
    return _report(images, targets, contenders, predictions, known, chosen, grade, notes, real)


def _targets(images: Listing, checkpoints: Sequence[Checkpoint]) -> tuple[dict[LabelSet, list[Target]], list[str]]:
    """The targets in every label set that there is among the checkpoints, and what should be said of them."""
    sets = list(dict.fromkeys(c.labels for c in checkpoints))
    if images.classes is not None:  # the tables name their numbers
        names = [images.classes[label] if isinstance(label, int) else label for label in images.labels]
        try:
            return {of: targets_of(names, read_labels(of)) for of in sets}, []
        except SourceError:  # two classes have one name; a network with as many classes has them in the same order
            if any(of.classes != len(images.classes) for of in sets):
                raise
    keys = images.labels
    named = {tuple(label.name for label in read_labels(of)) for of in sets}
    numbered = any(not isinstance(key, str) or key.isdigit() for key in set(keys))
    if numbered and len(named) > 1:
        raise ValueError(
            "The images' classes are numbers, and the variants number them differently: evaluate one variant at a time."
        )
    targets = {of: targets_of(keys, read_labels(of)) for of in sets}
    notes = []
    if numbered and len(target_classes(targets[sets[0]])) < sets[0].classes:
        notes.append(
            f"The classes are numbers, {len(set(keys))} of the network's {sets[0].classes}: the result is right only "
            "if the network numbers them in the same order."
        )
    return targets, notes


def _report(
    images: Listing,
    targets: Mapping[LabelSet, Sequence[Target]],
    contenders: Sequence[Contender],
    predictions: Predictions,
    known: Dataset | None,
    restricted: bool,
    grade: str,
    notes: Sequence[str],
    real: str | Path | None,
) -> Report:
    names, errors = (predictions.table[column].to_pylist() for column in ("image", "error"))
    rows = [i for i, error in enumerate(errors) if error is None]
    present = len(set(images.labels))
    notes = list(notes) + ([f"{images.passed}."] if images.passed else [])
    if known and known.images and (known.images, known.classes) != (len(rows), present):
        notes.append(
            f"{known.title} has {known.images:,} images in {known.classes} classes; "
            f"this source has {len(rows):,} in {present}."
        )
    title = known.title if known else "these images"
    sets: list[tuple[str, Mapping[LabelSet, Sequence[Target]]]] = [(known.name if known else title, targets)]
    if real is not None:
        found = read_real(real, names)
        sets.append(("imagenet_real", dict.fromkeys(targets, found)))
    results = []
    for dataset, right in sets:
        for contender in contenders:
            classes, confidence = predictions.of(contender.name, rows)
            metrics = measure(classes, confidence, [right[contender.checkpoint.labels][i] for i in rows])
            results.append(
                Result(
                    name=contender.name,
                    variant=contender.checkpoint.variant,
                    dataset=dataset,
                    preset=contender.preset,
                    views=contender.views,
                    engine=contender.engine.name,
                    precision=contender.engine.precision,
                    labels=contender.checkpoint.labels,
                    metrics=metrics,
                    comparisons=compare(metrics, contender, dataset),
                )
            )
    return Report(
        data=list(images.specs),
        layout=images.layout,
        dataset=known.name if known else None,
        title=title,
        images=len(errors),
        classes=present,
        restricted=restricted,
        grade=grade,
        unreadable=tuple((printable(names[i]), e) for i, e in enumerate(errors) if e is not None),
        computed=predictions.computed,
        seconds=predictions.seconds,
        engine_seconds=predictions.engine_seconds,
        notes=tuple(notes),
        results=tuple(results),
    )
