"""Calibrate probabilities: fit a temperature for the logits on images that were held out of training.

One number divides all logits (Guo et al. 2017, arXiv 1706.04599). It changes no ranking, and a division of the logits
is one of the head's weight and bias, so the calibrated network is an ordinary one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.splits import LabelledImages
from ..processing_utils.calibration import expected_calibration_error
from .batches import validation_batches
from .recipe import Recipe


@torch.no_grad()
def scores_of(network: nn.Module, recipe: Recipe, images: LabelledImages) -> tuple[Tensor, Tensor]:
    """(logits, labels) of held-out images, preprocessed as the published network's."""
    network.eval()
    found = [(network(x), y) for x, y in validation_batches(images, recipe, rank=0, world=1, workers=0)]
    scores, labels = torch.cat([s for s, _ in found]), torch.cat([y for _, y in found])
    return scores[labels >= 0], labels[labels >= 0]


class Calibration(NamedTuple):
    """The temperature that the logits are divided by, and the expected calibration error before and after, 0..1.

    ``wrong``: the share of the images whose label seems to be drawn by chance; the error afterwards allows for it.
    """

    temperature: float
    wrong: float
    before: float
    after: float


def calibration(scores: Tensor, labels: Tensor, balanced: bool = False, noisy: bool = True) -> Calibration:
    """Fit a temperature for logits (N, classes). It is 1 if all are right: they cannot show how sure one should be.

    Args:
        balanced: images of rare classes count as much as those of others.
        noisy: some labels may be wrong, see `fit_temperature`.
    """
    if balanced:
        counts = torch.bincount(labels)
        again = (counts.max() / counts.clamp(min=1)).round().long()[labels]
        scores, labels = scores.repeat_interleave(again, 0), labels.repeat_interleave(again)
    right = scores.argmax(1) == labels
    temperature, wrong = (1.0, 0.0) if right.all() else fit_temperature(scores, labels, noisy)
    before, after = scores.softmax(1).amax(1), _by_chance((scores / temperature).softmax(1).amax(1), wrong, scores)
    return Calibration(
        temperature, wrong, *(expected_calibration_error(c.numpy(), right.numpy()) for c in (before, after))
    )


def _by_chance(probabilities: Tensor, wrong: Any, scores: Tensor) -> Tensor:
    return (1 - wrong) * probabilities + wrong / scores.shape[1]


def fit_temperature(scores: Tensor, labels: Tensor, noisy: bool = False) -> tuple[float, float]:
    """The temperature that gives logits (N, classes) the least cross-entropy with labels (N,), and the wrong share.

    With ``noisy``, the share of the labels that are drawn by chance is fitted as well, 0 without. Such labels would
    otherwise make the temperature too high: the few images that are surely right and labelled wrong decide it.
    """
    values = torch.tensor([0.0, -3.0], dtype=torch.float64, requires_grad=True)  # log temperature, logit of the share
    optimizer = torch.optim.LBFGS([values], max_iter=100, line_search_fn="strong_wolfe")

    def fitted() -> tuple[Tensor, Tensor]:
        return values[0].exp(), values[1].sigmoid() * noisy

    def closure() -> Tensor:
        optimizer.zero_grad()
        temperature, wrong = fitted()
        of_labels = (scores.double() / temperature).softmax(1).gather(1, labels[:, None])
        loss = -_by_chance(of_labels, wrong, scores).clamp(min=1e-300).log().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    temperature, wrong = fitted()
    return temperature.item(), wrong.item()


@torch.no_grad()
def fold_temperature(head: nn.Module, temperature: float) -> None:
    """Divide a linear head's weight and bias by the temperature, in place."""
    for parameter in head.parameters():
        parameter.div_(temperature)
