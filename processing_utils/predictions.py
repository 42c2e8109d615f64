"""Turn the scores of a model into named predictions."""

from __future__ import annotations

import html
import operator
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..mount import register
from .labels import Label, read_labels


@dataclass(frozen=True, repr=False)
class Prediction:
    """One class and its probability (0..1): ``label, probability = prediction``.

    ``synset`` is None for a label set that has none.
    """

    index: int
    synset: str | None
    label: str
    probability: float

    def __iter__(self) -> Iterator[Any]:
        return iter((self.label, self.probability))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __repr__(self) -> str:
        return f"Prediction({self.label!r}, {self.probability:.1%})"

    def _repr_html_(self) -> str:
        return Predictions([self])._repr_html_()  # pyright: ignore[reportPrivateUsage]


class Predictions(list[Prediction]):
    """The predictions for one image, the most probable first: a list that notebooks show as bars."""

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><td>{html.escape(label)}</td><td>{probability:.1%}</td><td style='width: 12em'>"
            f"<div style='width: {probability:.1%}; height: 1em; background: #4c78a8'></div></td></tr>"
            for label, probability in self
        )
        return f"<table>{''.join(rows)}</table>"


register(Prediction, Predictions)


def check_count(name: str, value: Any, most: int) -> int:
    """``value`` if it is an integer from 1 to ``most``; else a TypeError or ValueError that begins with ``name``."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer from 1 to {most}, got {value!r}.") from None
    if not 1 <= count <= most:
        raise ValueError(f"{name} must be from 1 to {most}, got {value}.")
    return count


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


def _probabilities(values: np.ndarray, from_logits: bool, multi_label: bool) -> np.ndarray:
    if from_logits and multi_label:
        return 0.5 * (1 + np.tanh(0.5 * values))  # the sigmoid, without overflow
    if from_logits:
        exp = np.exp(values - values.max(axis=1, keepdims=True))
        return exp / exp.sum(axis=1, keepdims=True)
    # bfloat16 keeps 3 digits: the sum of a thousand rounded probabilities may be off by about a hundredth.
    # Rows of independent scores (sigmoid) have any sum. Columns with a sum of 1 come from softmax over the wrong axis.
    off = [np.abs(values.sum(axis=axis) - 1).max() > 0.02 for axis in (0, 1)]
    if values.min() < 0 or values.max() > 1.01 or off == [False, True]:
        wrong = "These are not probabilities (from 0 to 1, with a sum of 1 per row)"
        raise ValueError(f"{wrong}. If they are logits, pass from_logits=True, or apply softmax with dim=1.")
    return values


def top_predictions(
    scores: Any,
    n: int = 5,
    *,
    from_logits: bool = False,
    multi_label: bool = False,
    labels: str | Sequence[str] | Sequence[Label] = "imagenet-1k",
) -> list[list[Prediction]]:
    """The ``n`` most probable classes of each of N samples, the best first; of equals the lower index first.

    Args:
        scores: probabilities, or with ``from_logits`` logits: (N, classes).
        multi_label: the logits are of classes of which a sample may have several, or none: each has its own sigmoid.
        labels: a label set's name, or a name for every class.

    Raises:
        ValueError: not probabilities, not one label per class, or n not in 1..classes.
        TypeError: n is not an integer.
    """
    values = _as_array(scores)
    classes = values.shape[1]
    named = read_labels(labels) if isinstance(labels, str) else labels
    if len(named) != classes:
        where = f" in {labels!r}" if isinstance(labels, str) else ""
        raise ValueError(
            f"labels must have one entry per score: expected {classes}, got {len(named)}{where}. For scores of "
            "a network pass labels=network.labels."
        )
    n = check_count("n", n, classes)
    if len(values) == 0:
        return []
    values = _probabilities(values, from_logits, multi_label)

    def prediction(i: int, probability: float) -> Prediction:
        label = named[i]
        if isinstance(label, Label):
            return Prediction(i, label.synset, label.name, probability)
        return Prediction(i, None, label, probability)

    best = np.argsort(-values, axis=1, kind="stable")[:, :n]
    return [
        Predictions(prediction(int(i), float(row[i])) for i in order) for row, order in zip(values, best, strict=True)
    ]


def pick_n_best(
    predictions: Any, n: int = 5, *, from_logits: bool = False, labels: str | Sequence[str] = "imagenet-1k"
) -> list[list[tuple[str, str]]]:
    """`top_predictions` as NVIDIA's function of this name returns them: for each sample a list of (label, "97.1%").

    Prints nothing. As in NVIDIA's, ``n`` may be 0 or more than there are classes.
    """
    if n == 0:
        return [[] for _ in predictions]
    classes = len(read_labels(labels) if isinstance(labels, str) else labels)
    n = classes if isinstance(n, int) and n > classes else n  # pyright: ignore[reportUnnecessaryIsInstance]
    return [
        [(p.label, f"{100 * p.probability:.1f}%") for p in sample]
        for sample in top_predictions(predictions, n, from_logits=from_logits, labels=labels)
    ]
