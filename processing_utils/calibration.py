"""The confidence interval of an accuracy, and the calibration of a network's own confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

BINS = 15
Z = 1.959963984540054  # of 95 %


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """The 95 % confidence interval, 0..1, of the share ``right`` of ``total``.

    Wilson 1927. Unlike the usual interval it is also valid near 0 and 1 (Brown et al. 2001, doi 10.1214/ss/1009213286).
    """
    if total == 0:
        return 0.0, 1.0
    share, square = right / total, Z * Z
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = Z / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    # Exact at the ends, where the sum has a rounding error.
    return (0.0 if right == 0 else middle - half), (1.0 if right == total else middle + half)


@dataclass(frozen=True)
class Bin:
    """The images with a confidence from ``low`` to ``high``; ``confidence`` and ``accuracy`` are means, 0..1."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> tuple[Bin, ...]:
    """The accuracy in bins of equal width of the confidence (Guo et al. 2017, arXiv 1706.04599).

    ``confidence`` (N,) is the probability of the predicted class, 0..1; ``right`` (N,) is True if that was right.
    """
    confidence = np.asarray(confidence, np.float64)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    sums = np.bincount(place, confidence, bins), np.bincount(place, np.asarray(right, np.float64), bins)
    mean, share = (np.divide(s, count, out=np.zeros(bins), where=count > 0) for s in sums)
    return tuple(Bin(i / bins, (i + 1) / bins, int(count[i]), float(mean[i]), float(share[i])) for i in range(bins))


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The mean gap between confidence and accuracy, 0..1, over the bins of `reliability` (Guo et al., eq. 3)."""
    found = reliability(confidence, right)
    return sum(b.images * abs(b.accuracy - b.confidence) for b in found) / max(1, sum(b.images for b in found))
