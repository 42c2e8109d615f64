"""The head fitted on features: its penalty, its accuracy by cross-validation, and what mirror images show."""

from __future__ import annotations

import math

import pytest
import torch
from resnext_hub.training.calibrate import calibration
from resnext_hub.training.head import PENALTIES, Features, Head, fit_head


def made(images: int, noise: float = 1.0) -> Features:
    """Features around one centre per class of four, and mirror images with the same features."""
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(4, 12, generator=generator)
    labels = torch.arange(images) % 4
    plain = centres[labels] + noise * torch.randn(images, 12, generator=generator)
    return Features(plain, labels, plain.clone())


def part(features: Features, images: slice) -> Features:
    assert features.mirrored is not None
    return Features(features.plain[images], features.labels[images], features.mirrored[images])


def accuracy(head: Head, features: Features) -> float:
    return ((features.plain @ head.weight.T + head.bias).argmax(1) == features.labels).float().mean().item()


def test_cross_validation_estimates_the_accuracy_on_other_images() -> None:
    everything = made(2200, noise=3.5)
    head = fit_head(part(everything, slice(200)), 4)
    assert head.top1 == pytest.approx(accuracy(head, part(everything, slice(200, None))), abs=0.06)
    assert torch.equal(fit_head(part(everything, slice(200)), 4).weight, head.weight)


def test_the_unit_of_the_features_does_not_matter() -> None:
    features = made(80, noise=3.0)
    one = fit_head(features, 4)
    other = fit_head(Features(1000 * features.plain + 7, features.labels, 1000 * features.mirrored + 7), 4)
    assert one.penalty == other.penalty
    assert torch.allclose(one.weight, 1000 * other.weight, rtol=0.02, atol=1e-3)


def test_noisy_features_get_a_stronger_penalty() -> None:
    assert fit_head(made(80, noise=8.0), 4).penalty > fit_head(made(80, noise=0.5), 4).penalty


def test_a_prior_is_not_learned() -> None:
    features, rare = made(400, noise=8.0), torch.arange(400) % 4 == 3
    kept = ~rare | (torch.arange(400) < 40)
    uneven = Features(features.plain[kept], features.labels[kept])
    prior = torch.log(torch.bincount(uneven.labels) / kept.sum() * 4)
    plain, balanced = fit_head(uneven, 4), fit_head(uneven, 4, prior=prior)
    assert torch.allclose(balanced.bias, plain.bias - prior, atol=1e-4)
    assert torch.equal(balanced.weight, plain.weight)
    assert accuracy(balanced, part(features, slice(200, None))) > accuracy(plain, part(features, slice(200, None)))


def test_the_head_at_the_start_has_not_seen_the_images_held_out() -> None:
    features = made(90, noise=5.0)
    head = fit_head(features, 4, held_out=10)
    assert torch.equal(fit_head(features, 4).weight, head.weight)
    assert not torch.allclose(head.start_weight, head.weight, rtol=0.01)
    alone, own = Features(features.plain[:80], features.labels[:80]), PENALTIES.index(head.penalty)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnext_hub.training.head.PENALTIES", PENALTIES[own : own + 1])
        without = fit_head(alone, 4)
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(without.weight.flatten(), head.start_weight.flatten(), 0) > 0.999


def test_wrong_labels_do_not_make_probabilities_too_small() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(3000, 5, generator=generator)
    labels = torch.multinomial(scores.softmax(1), 1, generator=generator)[:, 0]
    clean = calibration(scores, labels)
    assert clean.temperature == pytest.approx(1, abs=0.08)
    assert clean.wrong < 0.02
    chance = torch.rand(3000, generator=generator) < 0.2
    labels[chance] = torch.randint(5, (3000,), generator=generator)[chance]
    noisy = calibration(scores, labels)
    assert noisy.temperature == pytest.approx(1, abs=0.1)
    assert noisy.wrong == pytest.approx(0.2, abs=0.04)
    assert noisy.after < 0.03 < noisy.before
    assert calibration(scores, labels, noisy=False).temperature > 1.5
    assert calibration(scores, scores.argmax(1))[:2] == (1.0, 0.0)  # all are right: no temperature can be told


def test_mirror_images_that_are_not_recognised() -> None:
    features = made(80)
    assert fit_head(features, 4).is_symmetric
    assert not fit_head(Features(features.plain, features.labels, features.plain.roll(1, 0)), 4).is_symmetric


def test_one_image_per_class_gives_a_head_and_no_claim() -> None:
    features = made(4)
    head = fit_head(features, 4)
    assert math.isnan(head.top1)
    assert head.is_symmetric
    assert accuracy(head, features) == 1
