"""Whether an artefact answers as the fp32 network does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..models.manifest import Preprocessing
from ..mount import register
from .signature import Signature

__all__ = ["TOLERANCES", "Agreement", "compare"]

# How far a logit may be off, as a share of the range of all logits on the same images.
# - fp32: the same sums in another order; 1e-6 is usual, and a swapped channel or a lost bias gives 1e-2 and more.
# - fp16, bf16: half a unit in the last place is 2**-11 and 2**-8 of a number. Errors of L layers add up like a random
#   walk, to sqrt(L) times that at most: 5e-3 and 4e-2 at 101 layers.
# - int8: a tensor's largest value is 255 steps, most values are a few dozen. The worst logit of resnext_tiny on 4,000
#   images is 0.14 of the range off, at no cost of accuracy (benchmarks/int8.py); this only tells what is broken.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2, "int8": 0.4}
SMALLEST = 1e-37  # probabilities below are not normal float32 numbers, and are taken for equal


@dataclass(frozen=True)
class Agreement:
    """An artefact's answers against the fp32 network's on the same images.

    Attributes:
        images: how many.
        batches: in what numbers they passed; the batch size is free.
        max_logit_difference: the largest, in units of the logits.
        logit_range: from the least to the greatest of the fp32 network's.
        difference: the first as a share of the second.
        rms_difference: root of the mean square, as a share of the same range.
        top1_agreement: share of the images with the same best class.
        tolerance: what ``difference`` may be.
    """

    images: int
    batches: tuple[int, ...]
    max_logit_difference: float
    logit_range: float
    difference: float
    rms_difference: float
    top1_agreement: float
    tolerance: float

    @property
    def is_exact(self) -> bool:
        return self.difference <= self.tolerance  # not a number is not exact either


register(Agreement)


def batches_of(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """In batches of 1, 3, and then 4, so that a batch size that is not free shows."""
    start = 0
    while start < len(pixels):
        size = {0: 1, 1: 3}.get(start, 4)
        yield pixels[start : start + size]
        start += size


def compare(
    run: Callable[[np.ndarray], Sequence[np.ndarray]],
    pixels: np.ndarray,
    expected: np.ndarray,
    signature: Signature,
    preset: Preprocessing,
    tolerance: float,
) -> Agreement:
    """Run an artefact on images whose fp32 logits are known.

    Args:
        run: a batch of the signature's input -> its outputs.
        pixels: (N, crop, crop, 3) uint8.
        expected: (N, classes) logits.

    Raises:
        ValueError: outputs of other number, type or shape than the signature's.
    """
    parts = []
    sizes = []
    for batch in batches_of(pixels):
        outputs = run(signature.input_of(batch, preset))
        _check(outputs, len(batch), signature)
        parts.append(outputs)
        sizes.append(len(batch))
    got = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    off, same = _differences(got, expected.astype(np.float64), signature)
    reach = float(np.ptp(expected))
    worst = float(off.max())
    rms = float(np.sqrt((off**2).mean()))
    share = float(same.mean())
    return Agreement(len(pixels), tuple(sizes), worst, reach, worst / reach, rms / reach, share, tolerance)


def _check(outputs: Sequence[np.ndarray], count: int, signature: Signature) -> None:
    found = [(str(output.dtype), output.shape) for output in outputs]
    wanted = [(spec.dtype, (count, *spec.shape)) for spec in signature.outputs]
    if found != wanted:
        raise ValueError(f"The artefact's outputs are {found}, expected {wanted}.")


def _differences(
    got: Sequence[np.ndarray], expected: np.ndarray, signature: Signature
) -> tuple[np.ndarray, np.ndarray]:
    """How far logits are off, and for every image whether its best class is the same.

    Probabilities are taken back to logits less a number for each image (log-softmax). Of the best k, each is compared
    with the network's logit of that class, and with the network's own k best.
    """
    scores = got[0].astype(np.float64)
    best = expected.argmax(1)
    if signature.softmax:
        shifted = expected - expected.max(1, keepdims=True)
        expected = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        expected = np.maximum(expected, np.log(SMALLEST))
        scores = np.log(np.maximum(scores, SMALLEST))
    if signature.top is None:
        return np.abs(scores - expected), got[0].argmax(1) == best
    of_class = np.take_along_axis(expected, got[1], 1)
    of_rank = -np.sort(-expected, 1)[:, : signature.top]
    return np.maximum(np.abs(scores - of_class), np.abs(scores - of_rank)), got[1][:, 0] == best
