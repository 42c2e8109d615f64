"""docs/differences.md: its code runs, and code that people write around the originals gives the same numbers here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from resnext_hub import hubconf
from resnext_hub.models.checkpoints import normalise_keys
from resnext_hub.models.resnext import Bottleneck, ResNeXt
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck as TheirBottleneck

from ..conftest import randomise
from ..support.pages import blocks

BLOCKS = blocks("docs/differences.md", "python")
SETUP = next(block for block in BLOCKS if "weights =" in block)


def load(repository: str, name: str, *, trust_repo: bool, **options: Any) -> nn.Module:
    """torch.hub.load, but with random weights."""
    assert trust_repo
    network = getattr(hubconf, name)(pretrained=False, **options).eval()
    randomise(network)
    return network


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Run the page's code up to the block that contains a text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "load", load)

    def run(text: str) -> dict[str, Any]:
        (block,) = (block for block in BLOCKS if text in block)
        names: dict[str, Any] = {}
        exec(SETUP + block, names)
        return names

    return run


@pytest.mark.parametrize("library", ["torchvision", "timm", "segmentation_models_pytorch"])
@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_weights_move_to_another_library_and_back(library: str, run: Callable[[str], dict[str, Any]]) -> None:
    pytest.importorskip(library)
    names = run(f"import {library}\n")
    network, theirs, images = names["network"], names["theirs"].eval(), torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        if library == "segmentation_models_pytorch":
            assert torch.equal(theirs.encoder(images)[-1], network.forward_features(images))
        else:
            assert torch.equal(theirs(images), network(images))


def test_weights_move_to_nvidias_code_and_back(run: Callable[[str], dict[str, Any]]) -> None:
    names = run("layers.{")
    assert "layers.3.2.conv3.weight" in names["theirs"]
    assert normalise_keys(names["theirs"]).keys() == names["weights"].keys()


def test_gray_images_and_own_files(run: Callable[[str], dict[str, Any]]) -> None:
    torch.save({"model": {f"module.{k}": v for k, v in run("weights =")["weights"].items()}}, "mine.pth")
    run("load_into(")
    assert run("in_chans=1")["network"].conv1.in_channels == 1


def test_a_detector_on_top_of_the_network(run: Callable[[str], dict[str, Any]]) -> None:
    with torch.inference_mode():
        (found,) = run("FasterRCNN(")["detector"].eval()([torch.rand(3, 64, 64)])
    assert found.keys() == {"boxes", "labels", "scores"}


# What public code does with the originals' networks: models that search engines for code find.


def children(network: Any) -> nn.Module:
    features = list(network.children())[-1].in_features
    return nn.Sequential(*list(network.children())[:-2], nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(features, 3))


def identity(network: Any) -> nn.Module:
    network.fc = nn.Identity()
    return network


def less_stride(network: Any) -> nn.Module:
    backbone = nn.Sequential(*list(network.children())[0:8])
    backbone[7][0].conv2.stride = backbone[7][0].downsample[0].stride = (1, 1)
    return backbone


def gray(network: Any) -> nn.Module:
    weight = network.conv1.weight.mean(dim=1, keepdim=True)
    network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    network.conv1.weight = nn.Parameter(weight)
    return nn.Sequential(nn.Conv2d(3, 1, 1), network)


def parallel(network: Any) -> nn.Module:
    return nn.DataParallel(network)


def frozen(network: Any) -> nn.Module:
    for name, parameter in network.named_parameters():
        parameter.requires_grad = name.startswith(("layer4", "fc"))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return network


@pytest.mark.parametrize("change", [children, identity, less_stride, gray, parallel, frozen], ids=lambda f: f.__name__)
def test_code_around_a_network_gives_the_same_numbers(change: Callable[[Any], nn.Module]) -> None:
    layers, shape = (1, 1, 1, 1), {"groups": 2, "width_per_group": 32}
    networks: list[Any] = []
    for network, block in ((ResNeXt, Bottleneck), (ResNet, TheirBottleneck)):
        torch.manual_seed(0)
        networks.append(network(block, list(layers), 5, zero_init_residual=True, **shape))
    assert all(map(torch.equal, networks[0].parameters(), networks[1].parameters()))
    assert set(dir(networks[0])) >= set(dir(networks[1]))
    randomise(networks[0])
    networks[1].load_state_dict(networks[0].state_dict())
    images, results = torch.rand(2, 3, 64, 64), []
    for network in networks:
        torch.manual_seed(0)
        changed = change(network)
        output = changed(images)
        output.square().sum().backward()
        results.append([output, *(p.grad for p in changed.parameters() if p.grad is not None), *changed.buffers()])
    assert len(results[0]) == len(results[1]) > 5
    assert all(map(torch.equal, *results))
