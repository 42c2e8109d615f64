"""Learning from a teacher: small images in memory, its scores, growth of a network, calibrated scores."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from resnext_hub.data.splits import open_images
from resnext_hub.errors import EngineError, ImageError
from resnext_hub.maintenance.resnext_tiny.efficientnet import (
    _FeatureGrid,
    _in_pytorch,
    fit_head,
    load_teacher,
    write_features,
    write_scores,
)
from resnext_hub.models.entrypoints import build, load
from resnext_hub.models.manifest import Architecture, find_checkpoint
from resnext_hub.processing_utils.labels import read_labels
from resnext_hub.training.batches import FromFiles, InMemory
from resnext_hub.training.calibrate import fit_temperature, fold_temperature
from resnext_hub.training.grow import grow_into
from resnext_hub.training.optimisation import distillation_loss
from resnext_hub.training.pixels import PixelTable, box_means, random_boxes, resized_crops
from resnext_hub.training.recipe import Phase, Recipe
from resnext_hub.training.teacher_scores import read_scores, score_images
from torchvision.transforms.v2 import functional as TF

SMALL = Architecture("Bottleneck", (1, 1, 1, 1), 2, 16, None, 16, False)
PLAIN = Recipe((Phase(1, 16),), batch_size=16, in_memory=True).resolved(None, None)
DISTILLED = dataclasses.replace(PLAIN, distillation_weight=0.5, distillation_temperature=2.0)


@pytest.fixture
def table(colours: Path) -> PixelTable:
    return PixelTable.read(open_images(colours / "train.parquet"))


def test_crops_of_a_batch_are_those_of_torchvision() -> None:
    """At whole pixels, where torchvision can cut them; an image's own crop, mirrored where it should be."""
    images = torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    tops = [(0, 0, 64, 64), (8, 4, 40, 56), (20, 30, 24, 16)]
    crops = resized_crops(images, torch.tensor(tops) / 64, torch.tensor([False, True, False]), 32)
    for i, (y, x, height, width) in enumerate(tops):
        expected = TF.resized_crop(images[i], y, x, height, width, [32, 32], antialias=True)
        inner = (slice(None), slice(2, -2), slice(2, -2))  # torchvision's filter ends at the crop's edge
        torch.testing.assert_close(
            (crops[i].flip(2) if i == 1 else crops[i])[inner], expected[inner], rtol=0, atol=0.01
        )


def test_boxes_lie_in_the_image_and_have_the_areas_asked_for() -> None:
    boxes = random_boxes(2000, (0.3, 0.8), torch.Generator().manual_seed(0))
    y, x, height, width = boxes.unbind(1)
    assert boxes.min() >= 0
    assert (y + height).max() <= 1 + 1e-6
    assert (x + width).max() <= 1 + 1e-6
    assert 0.3 <= (height * width).quantile(0.01) + 0.02 < 0.35
    assert (width / height).min() >= 0.75 - 1e-5
    assert (width / height).max() <= 4 / 3 + 1e-5


def test_the_scores_of_a_crop_are_those_of_the_cells_it_shows() -> None:
    grids = torch.arange(9.0).reshape(1, 3, 3, 1).expand(4, 3, 3, 2)
    third = 1 / 3
    boxes = torch.tensor([[0, 0, 1, 1], [0, 0, third, third], [third, 2 * third, third, third], [0.5, 0, 0.5, third]])
    expected = torch.tensor([4.0, 0.0, 5.0, 5.0])  # the last: a third of cell 3 and two thirds of cell 6
    torch.testing.assert_close(box_means(grids, boxes), expected[:, None].expand(4, 2))


def test_distillation_loss_is_the_papers() -> None:
    scores, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, -2.0]])
    p, q = torch.softmax(teacher[0] / 2, 0), torch.softmax(scores[0] / 2, 0)
    divergence = 4 * (p * (p / q).log()).sum()
    labels = torch.tensor([1])
    cross_entropy = -torch.log_softmax(scores[0], 0)[1]
    torch.testing.assert_close(distillation_loss(scores, labels, teacher, 1.0, 2.0), divergence)
    torch.testing.assert_close(distillation_loss(scores, labels, teacher, 0.0, 2.0), cross_entropy)


def test_a_recipe_and_its_teacher_come_together(table: PixelTable, colours: Path) -> None:
    scores = torch.zeros(144, 1, 1, 3)
    with pytest.raises(ValueError, match="scores"):
        InMemory(DISTILLED, table)
    with pytest.raises(ValueError, match="without"):
        InMemory(PLAIN, table, scores)
    with pytest.raises(ValueError, match="in_memory = true"):
        FromFiles(DISTILLED, open_images(colours / "train.parquet"))
    with pytest.raises(ValueError, match="9 .*144"):
        InMemory(DISTILLED, table, scores[:9])
    with pytest.raises(ValueError, match="crops, flips, mixup and cutmix"):
        InMemory(dataclasses.replace(PLAIN, erasing=0.1), table)


def test_a_grown_network_computes_the_same() -> None:
    torch.manual_seed(0)
    small, large = build(dataclasses.replace(SMALL, groups=4), 3), build(Architecture(
        "Bottleneck", (1, 2, 1, 2), 2, 32, None, 16, False
    ), 3)  # fmt: skip
    grow_into(large, small.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(large.eval()(images), small.eval()(images))
    with pytest.raises(ValueError, match="too small"):
        grow_into(small, large.state_dict())
    wide = build(dataclasses.replace(SMALL, planes=32), 3)
    with pytest.raises(ValueError, match="grow"):
        grow_into(wide, small.state_dict())


def test_a_batch_is_made_on_the_device(table: PixelTable) -> None:
    """Nothing of it is on the CPU: the device "meta" refuses to mix."""
    (batch, *_) = InMemory(DISTILLED, table, torch.zeros(144, 3, 3, 3).half(), "meta").batches(0, 0, 0, 1)
    assert batch.teacher is not None
    assert {x.device.type for x in (batch.images, batch.labels, batch.teacher)} == {"meta"}
    assert (batch.images.shape, batch.teacher.shape) == ((16, 3, 16, 16), (16, 3))
    several = PixelTable(table.images, torch.stack([table.labels, -torch.ones(144).long()], 1), table.classes)
    mixed = dataclasses.replace(PLAIN, mixup=0.2)
    assert next(InMemory(mixed, several, device="meta").batches(0, 0, 0, 1)).labels.device.type == "meta"


def test_a_teacher_in_pytorch_gives_the_cells() -> None:
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grid = _FeatureGrid(SimpleNamespace(extract_features=lambda x: x))
    expected = torch.nn.functional.adaptive_avg_pool2d((images.float() - 127) / 128, 3).permute(0, 2, 3, 1)
    torch.testing.assert_close(_in_pytorch(grid, "cpu")(images), expected, rtol=0, atol=0.02)


def test_a_teachers_head_is_fitted_and_its_scores_kept(table: PixelTable, tmp_path: Path) -> None:
    """Features are the mean colours of each cell; a head that knows nothing learns to tell the classes by them."""
    calls = 0

    def teacher(images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 3).permute(0, 2, 3, 1)

    path = tmp_path / "scores" / "train.features.npy"
    features = write_features(teacher, table.images, path)
    first, again = calls, write_features(teacher, table.images, path)
    assert calls == first
    assert torch.equal(features, again)
    assert features.shape == (144, 3, 3, 3)
    head = fit_head(torch.nn.Linear(3, 3), [features], [table.labels], epochs=200, lr=0.03)
    write_scores(head, features, tmp_path / "scores" / "train.scores.npy")
    scores = read_scores(tmp_path / "scores")
    assert scores.dtype == torch.float16
    assert (scores.float().mean((1, 2)).argmax(1) == table.labels).float().mean() > 0.9


def test_a_missing_teacher_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModuleNotFoundError, match="pip install efficientnet_lite_pytorch"):
        load_teacher(1)


def test_a_temperature_undoes_too_much_confidence() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial(scores.softmax(1), 1, generator=generator)[:, 0]
    temperature, _ = fit_temperature(3 * scores, labels)
    assert temperature == pytest.approx(3, rel=0.1)
    head, x = torch.nn.Linear(4, 5), torch.randn(2, 4)
    expected = head(x) / temperature
    fold_temperature(head, temperature)
    torch.testing.assert_close(head(x), expected)


def test_images_in_memory_have_one_size_and_are_complete(tmp_path: Path, photo: Path) -> None:
    from PIL import Image

    for name, size in (("a", 20), ("b", 24)):
        (tmp_path / "two" / name).mkdir(parents=True)
        Image.new("RGB", (size, 20)).save(tmp_path / "two" / name / "x.png")
    with pytest.raises(ValueError, match=r"x.png has 24 x 20 pixels, .* 20 x 20"):
        PixelTable.read(open_images(tmp_path / "two"))
    (tmp_path / "two" / "b" / "x.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"x.png: Not an image"):
        PixelTable.read(open_images(tmp_path / "two"))


def test_a_variant_scores_the_training_images(table: PixelTable, tmp_path: Path) -> None:
    """The mean over the cells is the network's own answer, for the columns of the table's classes."""
    teacher = find_checkpoint("resnext_tiny")
    preset = dataclasses.replace(teacher.preprocessing, crop_size=96)  # the last map has 6x6 cells
    teacher = dataclasses.replace(teacher, preprocessing=preset)
    synsets = [label.synset for label in read_labels(teacher.labels)]
    named = PixelTable(table.images[:20], table.labels[:20] % 2, [synsets[7], synsets[3]])
    scores = score_images(teacher, named)
    assert scores.shape == (20, 3, 3, 2)
    pixels = TF.normalize(TF.resize(named.images, [96, 96], antialias=True) / 255, preset.mean, preset.std)
    with torch.inference_mode():
        expected = load(teacher).eval()(pixels)[:, [7, 3]]
    torch.testing.assert_close(scores.float().mean((1, 2)), expected, rtol=0, atol=0.02)  # float16
    with pytest.raises(EngineError, match="cuda:99"):
        score_images(teacher, named, device="cuda:99")
    with pytest.raises(ValueError, match="nothing"):
        score_images(teacher, PixelTable(table.images, table.labels, ["nothing"]))
