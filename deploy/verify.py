"""Compare the outputs of an artefact with those of the fp32 network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..mount import register
from .signature import Signature

SMALLEST = 1e-37  # smaller probabilities are not normal float32 numbers, and count as equal


@dataclass(frozen=True)
class Agreement:
    """The differences between an artefact's outputs and those of the fp32 network on the same images."""

    images: int
    batches: tuple[int, ...]  #: the batch sizes that were run
    max_logit_difference: float
    logit_range: float  #: of the fp32 network
    difference: float  #: the largest difference of a logit, as a fraction of the range
    rms_difference: float  #: root mean square of the differences, as a fraction of the range
    top1_agreement: float  #: fraction of the images for which both predict the same class
    tolerance: float  #: the largest ``difference`` allowed

    @property
    def is_exact(self) -> bool:
        return self.difference <= self.tolerance  # False for NaN


register(Agreement)


def compare(
    run: Callable[[np.ndarray], Sequence[np.ndarray]],
    batches: Iterable[np.ndarray],
    expected: np.ndarray,
    signature: Signature,
    tolerance: float,
) -> Agreement:
    """Run an artefact on batches whose fp32 logits, (N, classes) in all, are known.

    Raises ValueError if the outputs differ in number, type or shape from the signature's.
    """
    parts = []
    sizes = []
    for batch in batches:
        parts.append(run(batch))
        sizes.append(len(batch))
        found = [(str(output.dtype), output.shape) for output in parts[-1]]
        wanted = [(spec.dtype, (len(batch), *spec.shape)) for spec in signature.outputs]
        if found != wanted:
            raise ValueError(f"The artefact's outputs are {found}, expected {wanted}.")
    got = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    off, same = _differences(got, expected.astype(np.float64), signature)
    reach, worst, rms = float(np.ptp(expected)), float(off.max()), float(np.sqrt((off**2).mean()))
    share = float(same.mean())
    return Agreement(len(expected), tuple(sizes), worst, reach, worst / reach, rms / reach, share, tolerance)


def _differences(
    got: Sequence[np.ndarray], expected: np.ndarray, signature: Signature
) -> tuple[np.ndarray, np.ndarray]:
    """Return the differences of the logits, and for every image whether the best class is the same.

    Probabilities are compared by their logarithms: those of the softmax differ from logits by a constant per image.
    Each of the best k is compared with the network's logit of that class, and with the network's own k best.
    """
    scores = got[0].astype(np.float64)
    if signature.softmax:
        if signature.multi_label:
            expected = -np.logaddexp(0, -expected)
        else:
            shifted = expected - expected.max(1, keepdims=True)
            expected = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        expected = np.maximum(expected, np.log(SMALLEST))
        scores = np.log(np.maximum(scores, SMALLEST))
    if signature.top is None:
        return np.abs(scores - expected), _same(expected, got[0].argmax(1))
    of_class = np.take_along_axis(expected, got[1], 1)
    of_rank = -np.sort(-expected, 1)[:, : signature.top]
    return np.maximum(np.abs(scores - of_class), np.abs(scores - of_rank)), _same(expected, got[1][:, 0])


def _same(expected: np.ndarray, first: np.ndarray) -> np.ndarray:
    """True where ``first`` is the best class; of sigmoids, several may be 1 in float32."""
    return expected.max(1) - expected[np.arange(len(first)), first] < 1e-7
