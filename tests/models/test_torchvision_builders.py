"""What torchvision, torch.fx and others' code build on a ResNet, built on ours: the same outputs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from resnext_hub.models.resnext import Bottleneck, ResNeXt
from torch import nn
from torchvision.models import ResNet
from torchvision.models import resnet as theirs
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.segmentation.deeplabv3 import _deeplabv3_resnet
from torchvision.models.segmentation.fcn import _fcn_resnet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from ..conftest import randomise

LAYERS, SHAPE = (1, 1, 1, 1), {"groups": 2, "width_per_group": 32}
DETECTOR = {"num_classes": 3, "min_size": 64, "max_size": 64}


def with_pyramid(make: Callable[..., nn.Module], **options: Any) -> Callable[[Any], nn.Module]:
    return lambda network: make(_resnet_fpn_extractor(network, 5, **options), **DETECTOR)


LEVELS = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
BUILDERS: dict[str, Callable[[Any], nn.Module]] = {
    "Faster R-CNN": with_pyramid(FasterRCNN),
    "Mask R-CNN": with_pyramid(MaskRCNN),
    "RetinaNet": with_pyramid(RetinaNet, **LEVELS),
    "FCOS": with_pyramid(FCOS, **LEVELS),
    "DeepLabV3": lambda network: _deeplabv3_resnet(network, 3, True),
    "FCN": lambda network: _fcn_resnet(network, 3, True),
}


def flat(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    return [tensor for part in (output.values() if isinstance(output, dict) else output) for tensor in flat(part)]


@pytest.mark.parametrize("name", BUILDERS)
def test_detectors_and_segmenters_give_what_they_give_on_torchvisions_network(name: str) -> None:
    dilated = [False, True, True] if name in ("DeepLabV3", "FCN") else None
    models = []
    for network in (
        ResNeXt(Bottleneck, LAYERS, replace_stride_with_dilation=dilated, **SHAPE),
        ResNet(theirs.Bottleneck, list(LAYERS), replace_stride_with_dilation=dilated, **SHAPE),
    ):
        model = BUILDERS[name](network).eval()
        randomise(model)
        models.append(model)
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, other = (flat(model(image[None] if dilated else [image])) for model in models)
    assert ours
    assert all(map(torch.equal, ours, other))


@pytest.fixture
def network() -> ResNeXt:
    network = ResNeXt(Bottleneck, LAYERS, 5, **SHAPE).eval()
    randomise(network)
    return network


def scripted(network: nn.Module, folder: Path) -> nn.Module:
    return torch.jit.script(torch.fx.symbolic_trace(network))


def written(network: nn.Module, folder: Path) -> nn.Module:
    torch.fx.symbolic_trace(network).to_folder(folder / "written_by_fx", "Written")
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("written_by_fx").Written().eval()
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("written_by_fx", None)


def fused(network: nn.Module, folder: Path) -> nn.Module:
    from torch.fx.experimental.optimization import fuse

    return fuse(network)


def extractor(network: nn.Module, folder: Path) -> nn.Module:
    extracted = create_feature_extractor(network, {"fc": "logits"})
    return torch.jit.script(extracted)


@pytest.mark.filterwarnings("ignore")  # of torch.jit and to_folder, of their own
@pytest.mark.parametrize("make", [scripted, written, fused, extractor], ids=lambda f: f.__name__)
def test_what_is_built_on_a_traced_network_computes_the_same(make: Any, network: ResNeXt, tmp_path: Path) -> None:
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        got = make(network, tmp_path)(images)
        torch.testing.assert_close(got["logits"] if isinstance(got, dict) else got, network(images))


def test_attributes_are_named_as_in_torchvision(network: ResNeXt) -> None:
    other = ResNet(theirs.Bottleneck, list(LAYERS), 5, **SHAPE)
    for name in ("inplanes", "groups", "base_width", "dilation", "_norm_layer"):
        assert getattr(network, name) == getattr(other, name)
    more = [n._make_layer(b, 64, 2, stride=2) for n, b in ((network, Bottleneck), (other, theirs.Bottleneck))]
    assert [p.shape for p in more[0].parameters()] == [p.shape for p in more[1].parameters()]
