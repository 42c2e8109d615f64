"""Grad-CAM: the heat lies on what speaks for the class."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from resnext_hub import hubconf
from resnext_hub.errors import ImageError
from resnext_hub.evaluation.explain import Explanation, explain
from resnext_hub.inference.classifier import Classifier, classifier
from resnext_hub.models.manifest import default_manifest
from resnext_hub.processing_utils import preprocess
from torch import Tensor, nn

TINY = default_manifest().resolve("resnext_tiny").preprocessing
PRESET = dataclasses.replace(TINY, resize_size=64, crop_size=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Colours(nn.Module):
    """Tells red from green from blue: a channel for each colour, seen in squares of 8 pixels, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Conv2d(3, 3, 8, 8, bias=False)
        self.fc = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            # a colour less the two others, which leaves nothing of gray
            self.stage.weight.copy_((torch.eye(3) * 3 - 1)[:, :, None, None].expand(3, 3, 8, 8) / 64)
            self.fc.weight.copy_(torch.eye(3) * 20 - 5)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stage(x).relu()

    def forward_head(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@pytest.fixture
def scene() -> Image.Image:
    """A red square on the upper left, a smaller green one on the lower right, on gray."""
    image = Image.new("RGB", (64, 64), (120, 120, 120))
    image.paste((255, 0, 0), (8, 8, 32, 32))
    image.paste((0, 255, 0), (40, 40, 56, 56))
    return image


def share(found: Explanation, box: tuple[int, int, int, int]) -> float:
    left, top, right, bottom = box
    return float(found.heat[top:bottom, left:right].sum() / found.heat.sum())


def test_the_heat_lies_on_the_object(scene: Image.Image) -> None:
    red, green = (4, 4, 36, 36), (36, 36, 60, 60)  # with half a square around, which is how coarse the map is
    network = Colours().eval()
    first = explain(network, scene, preset=PRESET)
    assert first.index == 0
    assert share(first, red) > 0.99
    second = explain(network, scene, "green", preset=PRESET, labels=["red", "green", "blue"])
    assert (second.index, second.label) == (1, "green")
    assert share(second, green) > 0.99
    for heat in (first.heat, second.heat):
        assert (heat.shape, heat.dtype, heat.min(), heat.max()) == ((64, 64), np.float32, 0, 1)
    assert first._repr_png_().startswith(b"\x89PNG")
    assert len(repr(second)) < 60
    # Nothing is blue, and nothing is made of nothing.
    assert explain(network, scene, 2, preset=PRESET).heat.max() == 0
    assert first.probability > second.probability


def test_it_is_the_papers_formula() -> None:
    """With pooling and one linear layer, Grad-CAM is CAM (Zhou et al. 2016): the head's weights over the maps."""
    network = hubconf.resnext_tiny().eval()
    values = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    image = Image.fromarray(values).resize((90, 80))
    found = explain(network, image, 17, preset=TINY)
    with torch.no_grad():
        images = torch.from_numpy(preprocess(image, TINY))[None]
        maps = network.forward_features(images)
        cam = torch.einsum("c,chw->hw", network.fc.weight[17], maps[0]).relu()
        expected = nn.functional.interpolate(cam[None, None], images.shape[2:], mode="bilinear")[0, 0]
        assert found.probability == pytest.approx(float(network(images).softmax(1)[0, 17]), abs=1e-6)
    np.testing.assert_allclose(found.heat, (expected / expected.max()).numpy(), atol=1e-5)


def test_every_way_to_name_a_network_gives_the_same(photo: Path) -> None:
    named = explain("resnext_tiny", photo)
    assert named.label
    network = hubconf.resnext_tiny().eval()
    before = [p.requires_grad for p in network.parameters()]
    others = [
        explain(classifier("resnext_tiny", engine="torch"), photo),
        explain(classifier("resnext_tiny"), photo),
        explain(network, photo),
        explain(network, photo, layer="layer4"),
    ]
    for other in others:
        assert (other.index, other.label) == (named.index, named.label)
        np.testing.assert_allclose(other.heat, named.heat, atol=1e-4)
    # the network is as it was
    assert [p.requires_grad for p in network.parameters()] == before
    assert all(p.grad is None for p in network.parameters())
    assert not network.layer4._forward_hooks
    finer = explain(network, photo, layer="layer3")
    assert not np.allclose(finer.heat, named.heat, atol=1e-2)


def test_another_network_with_a_layer(scene: Image.Image) -> None:
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=4).eval()
    found = explain(network, scene, 3, preset=PRESET, layer="layer4")
    assert found.heat.shape == (64, 64)
    for layer, message in ((None, "layer="), ("layer9", "layer9"), ("fc", "fc")):
        with pytest.raises(ValueError, match=message):
            explain(network, scene, 3, preset=PRESET, layer=layer)


def test_pictures(scene: Image.Image, tmp_path: Path) -> None:
    found = explain(Colours().eval(), scene, preset=PRESET, labels=["red, scarlet", "green", "blue"])
    assert found.overlay.shape == (64, 64, 3)
    assert found.overlay.dtype == np.uint8
    off = np.abs(found.overlay.astype(int) - np.asarray(scene)).sum(2)
    assert off[20, 20] > 0
    figure = found.plot()
    assert "red, 100" in figure.get_suptitle() or "red, 9" in figure.get_suptitle()
    figure.savefig(tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_wrong_arguments(scene: Image.Image) -> None:
    network = Colours().eval()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"preset": None}, "preset="),
        ({"target": 3}, "0 to 2"),
        ({"target": "red"}, "labels="),
        ({"target": "yellow", "labels": ["red", "green", "blue"]}, "'yellow'((?!labels=).)*$"),  # as of a set of images
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            explain(network, scene, **{"preset": PRESET} | options)
    with pytest.raises(ImageError):
        explain(network, b"nothing", preset=PRESET)

    class Foreign:
        name = "foreign"

    without = Classifier.__new__(Classifier)
    without.engine, without.preset, without.labels, without.checkpoint = Foreign(), PRESET, [], None
    with pytest.raises(ValueError, match="foreign"):
        explain(without, scene)
