"""Scores -> named predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..mount import register
from .labels import Label, read_labels

__all__ = ["Prediction", "pick_n_best", "top_predictions"]


@dataclass(frozen=True)
class Prediction:
    """One class and its probability (0..1). ``synset`` is None for a label set that has none."""

    index: int
    synset: str | None
    label: str
    probability: float


register(Prediction)


def _as_array(scores: Any) -> np.ndarray:
    """(N, C) float32 from a tensor on any device, or from anything numpy takes."""
    if hasattr(scores, "detach"):
        scores = scores.detach().float().cpu().numpy()
    values = np.asarray(scores, dtype=np.float32)
    if values.ndim != 2:
        raise ValueError(f"The scores must have the shape (N, classes), one row per sample; got {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError("The scores contain NaN or infinity.")
    return values


def _probabilities(values: np.ndarray, from_logits: bool) -> np.ndarray:
    if from_logits:
        exp = np.exp(values - values.max(axis=1, keepdims=True))
        return exp / exp.sum(axis=1, keepdims=True)
    # bfloat16 keeps 3 digits: the sum of a thousand rounded probabilities may be off by about a hundredth.
    if values.min() < 0 or values.max() > 1.01 or np.abs(values.sum(axis=1) - 1).max() > 0.02:
        raise ValueError(
            "These are not probabilities (from 0 to 1, with a sum of 1 per row). If they are logits, pass "
            "from_logits=True, or torch.nn.functional.softmax(output, dim=1)."
        )
    return values


def top_predictions(
    scores: Any,
    n: int = 5,
    *,
    from_logits: bool = False,
    labels: str | Sequence[str] | Sequence[Label] = "imagenet-1k",
) -> list[list[Prediction]]:
    """For each of N samples its ``n`` most probable classes, best first; of equals the lower index first.

    Args:
        scores: probabilities, or with ``from_logits`` logits: (N, classes).
        labels: a label set's name, or a name for every class.

    Raises:
        ValueError: not probabilities, not one label a class, or n not in 1..classes.
    """
    values = _as_array(scores)
    classes = values.shape[1]
    named = read_labels(labels) if isinstance(labels, str) else labels
    if len(named) != classes:
        raise ValueError(
            f"labels must have one entry per score: expected {classes}, got {len(named)}"
            f"{f' in {labels!r}' if isinstance(labels, str) else ''}."
        )
    if not 1 <= n <= classes:
        raise ValueError(f"n must be from 1 to {classes}, got {n}.")
    if len(values) == 0:
        return []
    values = _probabilities(values, from_logits)

    def prediction(i: int, probability: float) -> Prediction:
        label = named[i]
        if isinstance(label, Label):
            return Prediction(i, label.synset, label.name, probability)
        return Prediction(i, None, label, probability)

    best = np.argsort(-values, axis=1, kind="stable")[:, :n]
    return [[prediction(int(i), float(row[i])) for i in order] for row, order in zip(values, best, strict=True)]


def pick_n_best(
    predictions: Any,
    n: int = 5,
    *,
    from_logits: bool = False,
    labels: str | Sequence[str] = "imagenet-1k",
) -> list[list[tuple[str, str]]]:
    """NVIDIA's form of `top_predictions`: for each sample a list of (label, "97.1%"). Prints nothing."""
    return [
        [(p.label, f"{100 * p.probability:.1f}%") for p in sample]
        for sample in top_predictions(predictions, n, from_logits=from_logits, labels=labels)
    ]
