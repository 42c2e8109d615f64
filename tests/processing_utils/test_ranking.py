"""Average precision against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from resnext_hub.processing_utils.ranking import average_precisions, mean_average_precision


def by_definition(scores: np.ndarray, truth: np.ndarray) -> float:
    """The precision among all images that score at least as much, averaged over the images of the class."""
    return float(np.mean([truth[scores >= s].mean() for s in scores[truth]]))


@pytest.mark.parametrize("levels", [1000, 4, 1])  # with 4, many scores are equal; with 1, all
def test_average_precision(levels: int) -> None:
    rng = np.random.default_rng(levels)
    scores, truth = rng.integers(levels, size=(50, 3)) / levels, rng.random((50, 3)) < 0.3
    truth[:, 1] = False
    found = average_precisions(scores, truth)
    assert found[[0, 2]] == pytest.approx([by_definition(scores[:, c], truth[:, c]) for c in (0, 2)])
    assert np.isnan(found[1])
    assert mean_average_precision(scores, truth) == pytest.approx(found[[0, 2]].mean())
    assert np.isnan(mean_average_precision(scores, truth & False))


def test_a_ranking_in_order_and_in_reverse() -> None:
    truth = np.arange(10)[:, None] >= 8
    assert average_precisions(np.arange(10.0)[:, None], truth) == [1.0]
    assert average_precisions(-np.arange(10.0)[:, None], truth) == [pytest.approx((1 / 9 + 2 / 10) / 2)]
