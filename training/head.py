"""The head that fine-tuning starts from: logistic regression on the network's features, fitted in seconds.

It is multinomial or, for images with several classes, one for each class; the accuracy is then the mAP, not top-1.

A new head with random weights sends large, meaningless gradients through the network and distorts its features before
it has learned anything (Kumar et al. 2022, arXiv 2202.10054). So the head is fitted first, on fixed features, with a
penalty chosen by cross-validation. It is also the baseline that fine-tuning has to beat on the validation images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..processing_utils.ranking import mean_average_precision
from .batches import binary_cross_entropy, known
from .calibrate import calibration

PENALTIES = tuple(10.0 ** (e / 2) for e in range(1, -9, -1))  # of the squared weights; the strongest first
DEFAULT_PENALTY = 0.03  # without two images of a class there is nothing to choose it by
FOLDS = 5
SMALL = 10**8  # multiplications of a step
MIRROR_LOSS = 0.1  # of the accuracy: images that lose more when mirrored (digits) are not mirrored in training


@dataclass(frozen=True)
class Features:
    """Pooled features of images and, if wanted, of their mirror images.

    Attributes:
        plain, mirrored: (N, num_features) float32.
        labels: (N,) classes, or (N, classes) 0 and 1.
    """

    plain: Tensor
    labels: Tensor
    mirrored: Tensor | None = None

    def followed_by(self, more: Features) -> Features:
        both = zip(dataclasses.astuple(self), dataclasses.astuple(more), strict=True)
        return Features(*(None if a is None else torch.cat((a, b)) for a, b in both))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Head:
    """A linear head fitted on all images, one that has not seen the held-out ones, and what cross-validation says.

    Attributes:
        weight, bias: (classes, num_features) and (classes,) float32, of features as the network gives them.
        start_weight, start_bias: the same, fitted without the held-out images.
        penalty: the chosen one of `PENALTIES`.
        top1, mirrored_top1: accuracy on the images of the folds, in 0..1, and on their mirror images; NaN if unknown:
            each class has one image, or there are no mirror images.
        calibration: a `Calibration` on the images of the folds; None if unknown.
    """

    weight: Tensor
    bias: Tensor
    start_weight: Tensor
    start_bias: Tensor
    penalty: float
    top1: float
    mirrored_top1: float
    calibration: tuple[float, ...] | None

    @property
    def is_symmetric(self) -> bool:
        """True if mirror images are recognised as well, so that training may mirror images."""
        return not self.mirrored_top1 < self.top1 - MIRROR_LOSS


@torch.no_grad()
def features_of(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, mirrored: bool = False
) -> Features:
    """Run a network without its head over (input, labels); images with the label -1 are left out."""
    was_training, found = network.training, list[tuple[Tensor, ...]]()
    network.eval()

    def pooled(images: Tensor) -> Tensor:
        last = network.forward_features(images.to(device))  # pyright: ignore[reportCallIssue]
        return network.forward_head(last, pre_logits=True).float().cpu()  # pyright: ignore[reportCallIssue]

    for images, labels in batches:
        images, labels = images[known(labels)], labels[known(labels)]
        found.append((pooled(images), labels, *((pooled(images.flip(3)),) if mirrored else ())))
    network.train(was_training)
    return Features(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def fit_head(features: Features, classes: int, seed: int = 0, prior: Tensor | None = None, held_out: int = 0) -> Head:
    """Fit multinomial logistic regression: of all penalties and scales, the least cross-entropy in cross-validation.

    The penalty is of weights for features in units of their standard deviation: each feature's own, which suits images
    unlike those of the pretraining, or the mean of all.

    Args:
        prior: (classes,) logarithms of frequencies that the head shall not learn; each class counts as much as another.
        held_out: the number of images, the last ones, that the head at the start of fine-tuning must not have seen.
    """
    threads = torch.get_num_threads()
    if features.plain.numel() * classes < SMALL:  # then threads wait for each other longer than they calculate
        torch.set_num_threads(1)
    try:
        return _cross_validated(features, classes, seed, torch.zeros(classes) if prior is None else prior, held_out)
    finally:
        torch.set_num_threads(threads)


def _cross_validated(features: Features, classes: int, seed: int, prior: Tensor, held_out: int) -> Head:
    labels, folds = features.labels, _folds(features.labels, seed)
    plain, mirrored = features.plain.double(), features.mirrored
    centre, own = plain.mean(0), plain.std(0) + 1e-6
    least, best = math.inf, (own.mean().expand_as(own), DEFAULT_PENALTY, math.nan, math.nan, None)
    for scale in (own.mean().expand_as(own), own):
        x, mirror = (plain - centre) / scale, None if mirrored is None else (mirrored.double() - centre) / scale
        before, starts = float("inf"), {}
        for penalty in PENALTIES if folds.max() > 0 else ():
            scores, mirrored_scores = torch.zeros(2, len(x), classes, dtype=torch.float64)
            for fold in range(int(folds.max()) + 1):
                out = folds == fold
                starts[fold] = _fit(x[~out], labels[~out], classes, penalty, starts.get(fold))
                scores[out] = _scores(x[out], starts[fold])
                if mirror is not None:
                    mirrored_scores[out] = _scores(mirror[out], starts[fold])
            loss = _loss(scores, labels).item()
            if loss < least:
                found = [_accuracy(s - prior, labels, prior) for s in (scores, mirrored_scores)]
                calibrated = tuple(calibration(scores - prior, labels, bool(prior.any()))) if labels.ndim == 1 else None
                least, best = loss, (scale, penalty, found[0], math.nan if mirror is None else found[1], calibrated)
            if loss > before:
                break  # weaker penalties fit the training images only
            before = loss
    scale, penalty, top1, mirrored_top1, calibrated = best
    x, fitted = (plain - centre) / scale, list[tuple[Tensor, Tensor]]()
    for count in (len(x), len(x) - held_out) if held_out else (len(x),):
        weight = _fit(x[:count], labels[:count], classes, penalty)
        weights = weight[:, :-1] / scale
        fitted.append((weights.float(), (weight[:, -1] - weights @ centre - prior).float()))
    return Head(*fitted[0], *fitted[-1], penalty, top1, mirrored_top1, calibrated)


def _folds(labels: Tensor, seed: int) -> Tensor:
    """The number of each image's fold, with every class spread evenly; all 0 if no class has two images."""
    generator, folds = torch.Generator().manual_seed(seed), torch.zeros(len(labels), dtype=torch.long)
    if labels.ndim > 1:
        return torch.randperm(len(labels), generator=generator) % FOLDS
    for label in labels.unique():
        places = torch.where(labels == label)[0]
        places = places[torch.randperm(len(places), generator=generator)]
        folds[places] = torch.arange(len(places)) % FOLDS
    return folds


def _loss(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores, labels) if labels.ndim == 1 else binary_cross_entropy(scores, labels)


def _accuracy(scores: Tensor, labels: Tensor, prior: Tensor) -> float:
    if labels.ndim > 1:
        return mean_average_precision(scores.numpy(), labels.bool().numpy())
    share = prior.neg().exp()[labels].double()  # how much an image counts
    return ((scores.argmax(1) == labels) * share / share.sum()).sum().item()


def _scores(features: Tensor, weight: Tensor) -> Tensor:
    return features @ weight[:, :-1].T + weight[:, -1]


def _fit(features: Tensor, labels: Tensor, classes: int, penalty: float, start: Tensor | None = None) -> Tensor:
    """(classes, num_features + 1) weights and biases: the least mean cross-entropy + penalty / 2 * squared weights."""
    shape = classes, features.shape[1] + 1
    weight = (torch.zeros(shape, dtype=torch.float64) if start is None else start.clone()).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=300, tolerance_grad=1e-5, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _loss(_scores(features, weight), labels) + penalty / 2 * weight[:, :-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()
