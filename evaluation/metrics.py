"""Accuracies, intervals and calibration, computed from predictions and targets with numpy."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..processing_utils.calibration import Bin, expected_calibration_error, reliability, wilson_interval
from ..processing_utils.ranking import average_precisions
from .targets import Target


@dataclass(frozen=True)
class Rate:
    """``right`` of ``total``, in percent, with the 95 % interval."""

    right: int
    total: int
    percent: float
    low: float
    high: float

    @classmethod
    def of(cls, right: int, total: int) -> Rate:
        low, high = wilson_interval(right, total)
        return cls(right, total, 100 * right / total if total else math.nan, 100 * low, 100 * high)


@dataclass(frozen=True)
class ClassAccuracy:
    """A class in percent. ``top1`` is its recall; ``precision`` is NaN if it was never predicted.

    Of a network for several classes per image, a class is predicted if its probability is at least a half; ``ap`` is
    its average precision, and there is no ``top5``.
    """

    index: int
    images: int
    top1: float
    top5: float
    precision: float
    f1: float
    taken_for: int | None  #: the class that it is most often confused with
    ap: float | None = None


@dataclass(frozen=True)
class Confusion:
    """The number of ``images`` of class ``truth`` with the prediction ``prediction``."""

    truth: int
    prediction: int
    images: int


@dataclass(frozen=True)
class Metrics:
    """The metrics of a network on a dataset."""

    top1: Rate
    top5: Rate
    not_counted: int  #: images without a target
    ece: float  #: the expected calibration error, 0..1
    confidence: float  #: the mean, 0..1
    bins: tuple[Bin, ...]
    classes: tuple[ClassAccuracy, ...]  #: of the images with exactly one right class
    confusions: tuple[Confusion, ...]  #: of the same images
    #: The mean of the classes' average precisions in percent, of a network for several classes per image. Then ``ece``
    #: and ``bins`` are of the probabilities of all classes, and ``classes`` of all images.
    mean_ap: float | None = None


def measure(
    classes: np.ndarray, confidence: np.ndarray, targets: Sequence[Target], scores: np.ndarray | None = None
) -> Metrics:
    """Compare the predicted classes (N, K), best first, -1 for none, with the right classes of N images.

    ``confidence`` (N,) is the probability of the first, 0..1. Top-1 counts if the first prediction is one of the
    targets, top-5 if one of the first five is (as in Beyer et al. 2020). ``scores`` (N, all classes) are the
    probabilities of a network for several classes per image.
    """
    counted = [i for i, target in enumerate(targets) if target]
    best = classes[counted]
    hits = np.array([[c in targets[i] for c in row] for i, row in zip(counted, best.tolist(), strict=True)], bool)
    hits = hits.reshape(len(counted), classes.shape[1])
    first, any5 = hits[:, 0], np.asarray(hits[:, :5].any(1))
    sure = np.asarray(confidence, np.float64)[counted]
    total = len(counted)
    by_class, confusions = _by_class(best[:, 0], first, any5, [targets[i] for i in counted])
    found = Metrics(
        top1=Rate.of(int(first.sum()), total),
        top5=Rate.of(int(any5.sum()), total),
        not_counted=len(targets) - total,
        ece=expected_calibration_error(sure, first),
        confidence=float(sure.mean()) if total else math.nan,
        bins=reliability(sure, first),
        classes=by_class,
        confusions=confusions,
    )
    return found if scores is None else _with_scores(found, scores, targets)


def _with_scores(metrics: Metrics, scores: np.ndarray, targets: Sequence[Target]) -> Metrics:
    truth = np.zeros(scores.shape, bool)
    for row, target in zip(truth, targets, strict=True):
        row[list(target)] = True
    precisions, predicted = 100 * average_precisions(scores, truth), scores >= 0.5
    classes = []
    for index in np.flatnonzero(truth.any(0)).tolist():
        right = int((truth & predicted)[:, index].sum())
        images, many = int(truth[:, index].sum()), int(predicted[:, index].sum())
        shares = 100 * right / images, math.nan, 100 * right / many if many else math.nan, 200 * right / (images + many)
        classes.append(ClassAccuracy(index, images, *shares, None, float(precisions[index])))
    return dataclasses.replace(
        metrics,
        ece=expected_calibration_error(scores.ravel(), truth.ravel()),
        confidence=float(scores.mean()) if scores.size else math.nan,
        bins=reliability(scores.ravel(), truth.ravel()),
        classes=tuple(classes),
        confusions=(),
        mean_ap=float(np.nanmean(precisions)) if classes else math.nan,
    )


def _by_class(
    best: np.ndarray, first: np.ndarray, any5: np.ndarray, targets: Sequence[Target]
) -> tuple[tuple[ClassAccuracy, ...], tuple[Confusion, ...]]:
    single = [i for i, target in enumerate(targets) if len(target) == 1]
    truth = np.array([next(iter(targets[i])) for i in single], int)
    best, first, any5 = best[single], first[single], any5[single]
    wrong = Counter(zip(truth[~first].tolist(), best[~first].tolist(), strict=True))
    confusions = sorted((Confusion(t, p, n) for (t, p), n in wrong.items()), key=lambda c: (-c.images, c.truth))
    taken_for: dict[int, int] = {}
    for confusion in confusions:
        if confusion.prediction >= 0:
            taken_for.setdefault(confusion.truth, confusion.prediction)
    classes = []
    for index in sorted(set(truth.tolist())):
        of = truth == index
        right, images, predicted = int(first[of].sum()), int(of.sum()), int((best == index).sum())
        precision = 100 * right / predicted if predicted else math.nan
        shares = 100 * right / images, 100 * float(any5[of].mean()), precision, 200 * right / (images + predicted)
        classes.append(ClassAccuracy(index, images, *shares, taken_for.get(index)))
    return tuple(classes), tuple(confusions)
