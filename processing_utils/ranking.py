"""How well scores rank the images of a class before the others: average precision."""

from __future__ import annotations

import numpy as np


def average_precisions(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The average precision of each class, 0..1: the precision at each image of the class, averaged over these images.

    Without interpolation; images with the same score count as one step, as in scikit-learn.

    Args:
        scores: (N, classes).
        truth: (N, classes) bool.

    Returns:
        (classes,); NaN for a class without images. The mean of the others is the mAP.
    """
    found = np.full(scores.shape[1], np.nan)
    for c in np.flatnonzero(truth.any(0)):
        order = np.argsort(-scores[:, c], kind="stable")
        ranked, hits = scores[order, c], truth[order, c].cumsum()
        last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of each group with the same score
        found[c] = (np.diff(hits[last], prepend=0) * hits[last] / (last + 1)).sum() / hits[-1]
    return found


def mean_average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """The mean of `average_precisions` over the classes that have images, 0..1; NaN if none has."""
    found = average_precisions(scores, truth)
    return float(np.nanmean(found)) if truth.any() else float("nan")
