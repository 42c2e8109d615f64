"""Scores become named predictions; logits are not taken for probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resnext_hub.models.manifest import default_manifest
from resnext_hub.processing_utils import Prediction, pick_n_best, plot_predictions, read_labels, top_predictions


def softmax(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).softmax(1)


def nvidias_pick_n_best(predictions: torch.Tensor, labels: list[str], n: int) -> list[list[tuple[str, str]]]:
    """What NVIDIA's function of this name returns, written from its documentation."""
    results = []
    for sample in predictions.float().numpy():
        best = sorted(range(len(sample)), key=lambda i: -sample[i])[:n]
        results.append([(labels[i], f"{100 * sample[i]:.1f}%") for i in best])
    return results


def test_labels_are_the_published_ones(shared: Path) -> None:
    rows = [line.split("\t") for line in (shared / "imagenet-1k-classes.tsv").read_text().splitlines()]
    assert [[str(label.index), label.synset, label.name] for label in read_labels()] == rows


def test_label_sets() -> None:
    for name, label_set in default_manifest().label_sets.items():
        labels = read_labels(name)
        assert labels == read_labels(label_set)
        assert len(labels) == label_set.classes
        assert [label.index for label in labels] == list(range(len(labels)))
        assert len({label.synset for label in labels}) == len(labels)
        assert all(label.synset.startswith("n") and label.name for label in labels)
    assert read_labels()[0].name == "tench, Tinca tinca"
    with pytest.raises(ValueError, match="label set 'cats'.* imagenet-1k, tiny-imagenet-200"):
        read_labels("cats")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [0, 1, 5, 1000, 2000])
def test_pick_n_best_is_nvidias(n: int, dtype: torch.dtype, capsys: Any) -> None:
    probabilities = softmax(3, 1000).to(dtype)
    got = pick_n_best(predictions=probabilities, n=n)
    assert got == nvidias_pick_n_best(probabilities, [label.name for label in read_labels()], n)
    assert capsys.readouterr() == ("", "")


def test_logits_are_not_taken_for_probabilities() -> None:
    logits = torch.randn(2, 1000) * 5
    with pytest.raises(ValueError, match="from_logits=True"):
        pick_n_best(logits)
    assert pick_n_best(logits, from_logits=True) == pick_n_best(logits.softmax(1))
    huge = top_predictions(torch.tensor([[1e4, -1e4]]), 1, from_logits=True, labels=["a", "b"])
    assert huge == [[Prediction(0, None, "a", 1.0)]]


@pytest.mark.parametrize(
    ("scores", "n", "labels", "message"),
    [
        (softmax(1, 10), 5, "imagenet-1k", "10.* 1000.*'imagenet-1k'"),
        (softmax(1, 3), 2, ["a", "b"], "labels .*3.* 2"),
        (softmax(1, 3), -1, ["a", "b", "c"], "n .*1 to 3.* -1"),
        (softmax(1, 3)[0], 1, ["a", "b", "c"], r"\(3,\)"),
        (torch.tensor([[float("nan"), 1.0]]), 1, ["a", "b"], "NaN"),
        (torch.tensor([[1.5, -0.5]]), 1, ["a", "b"], "not probabilities"),
    ],
)
def test_wrong_scores_are_refused(scores: torch.Tensor, n: int, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pick_n_best(scores, n, labels=labels)


def test_predictions_carry_index_synset_label_probability() -> None:
    scores = np.full((1, 1000), 1e-4, np.float32)
    scores[0, 652] = 1 - 999e-4
    (best,) = top_predictions(scores, 1)[0]
    assert (best.index, best.synset, best.label) == (652, "n03763968", "military uniform")
    assert best.probability == pytest.approx(1 - 999e-4)
    assert len(top_predictions(scores)[0]) == len(pick_n_best(scores)[0]) == 5
    assert top_predictions(np.zeros((0, 1000), np.float32)) == []


def test_a_prediction_in_python_and_in_a_notebook() -> None:
    (predictions,) = top_predictions([[0.75, 0.25]], 2, labels=["a", "<b>"])
    label, probability = predictions[0]
    assert (label, probability) == ("a", 0.75)
    assert predictions[0].to_dict() == {"index": 0, "synset": None, "label": "a", "probability": 0.75}
    assert len(repr(predictions)) < 60
    for shown in (predictions, predictions[1]):
        page = shown._repr_html_()
        assert "&lt;b&gt;" in page
        assert "width: 25.0%" in page


def test_equals_are_ordered_by_index_and_n_is_a_number() -> None:
    for function in (top_predictions, pick_n_best):
        with pytest.raises(TypeError, match="'3'"):
            function([[0.75, 0.25]], "3", labels=["a", "b"])
    assert [p.index for p in top_predictions([[0.25] * 4], 4, labels=list("abcd"))[0]] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("row", "taken"),
    [
        ([0.5, 0.5], True),
        ([0.9, 0.8], True),  # sigmoid
        ([1.005, 0.0], True),
        ([1.015, 0.0], False),
        ([0.0, 1.0], True),
        ([-0.01, 1.0], False),
    ],
)
def test_probabilities_are_known_by_their_range(row: list[float], taken: bool) -> None:
    scores = [[0.5, 0.5], row]  # every row counts
    if taken:
        assert len(top_predictions(scores, 1, labels=["a", "b"])) == 2
    else:
        with pytest.raises(ValueError, match="not probabilities"):
            top_predictions(scores, 1, labels=["a", "b"])


def test_softmax_is_over_the_classes_of_each_sample() -> None:
    logits = np.asarray([[0.0, 1.0, 3.0], [1000.0, 999.0, 0.0]])
    (first, second) = top_predictions(logits, 3, from_logits=True, labels=list("abc"))
    assert [p.label for p in first] == ["c", "b", "a"]
    assert [p.probability for p in first] == pytest.approx([0.843795, 0.114195, 0.042010], abs=1e-6)
    assert [p.probability for p in second] == pytest.approx([0.731059, 0.268941, 0], abs=1e-6)


def test_scores_come_as_tensors_that_need_a_gradient_and_as_lists() -> None:
    rows = [[0.25, 0.75]]
    for scores in (rows, torch.tensor(rows, requires_grad=True), np.asarray(rows), torch.tensor(rows).half()):
        assert top_predictions(scores, 1, labels=["a", "b"]) == [[Prediction(1, None, "b", 0.75)]]


def test_labels_keep_their_synsets() -> None:
    labels = read_labels("tiny-imagenet-200")[:2]
    (best,) = top_predictions([[0.25, 0.75]], 1, labels=labels)[0]
    assert best == Prediction(1, labels[1].synset, labels[1].name, 0.75)
    assert pick_n_best([[0.25, 0.75]], 2, labels=["a", "b"]) == [[("b", "75.0%"), ("a", "25.0%")]]


def test_the_picture_can_be_read(photo: Path, tmp_path: Path) -> None:
    predictions = [Prediction(i, None, f"class {i}, or so", p) for i, p in enumerate((0.7, 0.2, 0.05))]
    image = np.zeros((40, 60, 3), np.uint8)
    figure = plot_predictions(photo, predictions, "from resnext_tiny")
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    left, right = figure.axes
    assert left.images[0].get_array().shape == (600, 512, 3)  # type: ignore[union-attr]
    assert [t.get_text() for t in right.get_yticklabels()] == ["class 0", "class 1", "class 2"]
    assert [round(p.get_width()) for p in right.patches] == [70, 20, 5]  # type: ignore[attr-defined]
    assert right.get_xlim() == (0, 112), "the whole bar is certainty"
    assert type(figure.get_layout_engine()).__name__ == "ConstrainedLayoutEngine"
    assert right.get_position().width > left.get_position().width
    assert not left.axison
    assert right.get_title(loc="left") == "from resnext_tiny"
    assert [t.get_text().strip() for t in right.texts] == ["70.0%", "20.0%", "5.0%"]
    assert [t.get_position()[1] for t in right.texts] == [0, 1, 2], "each beside its bar"
    assert [t.get_position()[0] for t in right.texts] == pytest.approx([70, 20, 5])
    low, high = right.get_ylim()
    assert low > high, "the best is on top"
    assert not right.xaxis.get_visible()
    assert not any(spine.get_visible() for spine in right.spines.values())
    best, *others = [bar.get_facecolor() for bar in right.patches]  # type: ignore[attr-defined]
    assert all(color != best for color in others)
    assert len(set(others)) == 1
    assert plot_predictions(image, predictions).axes[1].get_title(loc="left") == ""
    many = [Prediction(i, None, "x", 0.01) for i in range(30)]
    assert plot_predictions(image, many).get_figheight() > plot_predictions(image, predictions).get_figheight()
    with pytest.raises(ValueError, match="more than the 10"):
        plot_predictions(image.tobytes(), predictions, max_bytes=10)
