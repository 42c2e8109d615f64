"""Calibrate probabilities: fit a temperature for the logits on images that were held out of training.

One number divides all logits (Guo et al. 2017, arXiv 1706.04599). It changes no ranking, and a division of the logits
is one of the head's weight and bias, so the calibrated network is an ordinary one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def calibration_error(scores: Tensor, labels: Tensor) -> float:
    """The expected calibration error, 0..1, of the most likely classes of logits (N, classes)."""
    confidence, found = scores.softmax(1).max(1)
    return expected_calibration_error(confidence.numpy(), (found == labels).numpy())


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """The temperature that gives logits (N, classes) the least cross-entropy with labels (N,)."""
    log_temperature = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(scores / log_temperature.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return log_temperature.exp().item()


@torch.no_grad()
def fold_temperature(head: nn.Module, temperature: float) -> None:
    """Divide a linear head's weight and bias by the temperature, in place."""
    for parameter in head.parameters():
        parameter.div_(temperature)
