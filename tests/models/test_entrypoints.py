"""The three signatures: the originals' positions and defaults, and every way to ask for weights.

What happens to a file that is damaged, hostile or unreachable is in test_download*.py and test_*checkpoints.py.
"""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models as tv
from resnext_hub import hubconf
from resnext_hub.models import entrypoints
from resnext_hub.models.entrypoints import build
from resnext_hub.models.manifest import Architecture, Manifest, default_manifest, load_manifest
from resnext_hub.processing_utils import read_labels

from ..conftest import randomise
from ..support.downloads import SMALL, left

MANIFEST = default_manifest()
SMALL_SE = Architecture("Bottleneck", (1, 2, 1, 1), 4, 16, 8, 16, True)


@pytest.fixture
def small(manifest_json: dict[str, Any]) -> dict[str, Any]:
    """The manifest with every network made small, so that many can be loaded."""
    manifest = copy.deepcopy(manifest_json)
    for name, architecture in manifest["architectures"].items():
        if architecture["block"] == "Bottleneck":
            tiny = SMALL_SE if name.startswith("se_") else SMALL
            manifest["architectures"][name] = {**tiny.__dict__, "layers": list(tiny.layers)}
    return manifest


def parsed(manifest: dict[str, Any], tmp_path: Path) -> Manifest:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest))
    return load_manifest(path)


def under(manifest: Manifest, function: Any, *arguments: Any) -> Any:
    """Call a function as if this manifest were the repository's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entrypoints, "default_manifest", lambda: manifest)
        return function(*arguments)


def state_of(architecture: Architecture, seed: int = 0, num_classes: int = 1000) -> dict[str, torch.Tensor]:
    network = build(architecture, num_classes)
    randomise(network, seed)
    return network.state_dict()


def signature(function: Any) -> str:
    """A signature without annotations."""
    found = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def test_signatures() -> None:
    for name in MANIFEST.entrypoints:
        if name.endswith(("_wsl", "_ssl", "_swsl")) or name == "resnext_tiny":
            classes = 200 if name == "resnext_tiny" else 1000
            expected = f"(progress=True, *, pretrained=True, num_classes={classes}, **network_options)"
        elif name.startswith("nvidia"):
            expected = "(pretrained=True, pretrained_from_file=None, state_dict_key_map_fn=None, **network_options)"
        else:
            expected = "(pretrained=None, progress=True, *, weights=None, num_classes=1000, **network_options)"
        assert signature(getattr(hubconf, name)) == expected, name
    assert signature(hubconf.nvidia_convnets_processing_utils) == "()"


@pytest.mark.parametrize("name", MANIFEST.entrypoints)
def test_every_entrypoint_builds_without_weights(name: str) -> None:
    with torch.device("meta"):
        network = getattr(hubconf, name)(pretrained=False, num_classes=7, zero_init_residual=True)
    assert network.fc.out_features == 7
    assert network.training


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "zip"])
@pytest.mark.parametrize("name", ["resnext101_32x48d_wsl", "resnet18_ssl", "resnext50_32x4d_swsl"])
def test_facebook_weights(name: str, legacy: bool, small: Any, publish: Any, home: Path, tmp_path: Path) -> None:
    small = publish(small, name, state_of(parsed(small, tmp_path).resolve(name).architecture), legacy)
    manifest = parsed(small, tmp_path)
    expected = state_of(manifest.resolve(name).architecture)
    network = under(manifest, entrypoints.facebook_network, name, False, True, 1000, {})
    for key, value in network.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert manifest.resolve(name).sources[0].filename in left(home)
    assert all(p.requires_grad for p in network.parameters())

    other = under(manifest, entrypoints.facebook_network, name, False, True, 7, {})
    assert other.fc.weight.shape[0] == 7
    assert other.fc.weight.abs().sum() > 0
    assert torch.equal(other.layer4[0].conv1.weight, expected["layer4.0.conv1.weight"])
    headless = under(manifest, entrypoints.facebook_network, name, False, True, 0, {})
    assert "fc.weight" not in headless.state_dict()


@pytest.fixture
def two_versions(small: Any, publish: Any, home: Path, tmp_path: Path) -> Manifest:
    for seed, tag in enumerate(("V1", "V2"), start=1):
        small = publish(small, f"resnext50_32x4d.IMAGENET1K_{tag}", state_of(SMALL, seed), tag == "V1")
    return parsed(small, tmp_path)


V1, V2 = tv.ResNeXt50_32X4D_Weights.IMAGENET1K_V1, tv.ResNeXt50_32X4D_Weights.IMAGENET1K_V2


@pytest.mark.parametrize(
    ("pretrained", "weights", "seed"),
    [
        (True, None, 1),
        (True, "IMAGENET1K_V1", 1),
        (None, "IMAGENET1K_V1", 1),
        (None, "IMAGENET1K_V2", 2),
        (None, "DEFAULT", 2),
        (None, "ResNeXt50_32X4D_Weights.IMAGENET1K_V2", 2),
        (None, "ResNeXt50_32X4D_Weights.DEFAULT", 2),
        (None, V1, 1),
        (None, V2, 2),
        (None, tv.ResNeXt50_32X4D_Weights.DEFAULT, 2),
        (V2, None, 2),
        (V2, "IMAGENET1K_V2", 2),
        ("IMAGENET1K_V1", None, 1),
        (1, None, 1),
        (None, True, 1),
        (None, 1, 1),
    ],
    ids=str,
)
def test_torchvision_weights(pretrained: object, weights: object, seed: int, two_versions: Manifest) -> None:
    network = under(
        two_versions, entrypoints.torchvision_network, "resnext50_32x4d", pretrained, False, weights, 1000, {}
    )
    assert torch.equal(network.fc.weight, state_of(SMALL, seed)["fc.weight"])


@pytest.mark.parametrize(
    ("pretrained", "weights", "error"),
    [
        (None, "IMAGENET1K_V3", ValueError),
        (None, tv.ResNet50_Weights.IMAGENET1K_V2, ValueError),
        (None, "ResNet50_Weights.IMAGENET1K_V2", ValueError),
        (True, "IMAGENET1K_V2", ValueError),
        (False, "IMAGENET1K_V2", ValueError),
        (V1, "IMAGENET1K_V2", ValueError),
        (None, 3.5, TypeError),
    ],
    ids=str,
)
def test_contradictions_raise(pretrained: object, weights: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"IMAGENET1K|ResNeXt50_32X4D_Weights|float"):
        entrypoints.torchvision_network("resnext50_32x4d", pretrained, False, weights, 1000, {})


def test_64x4d_has_one_version() -> None:
    with pytest.raises(ValueError, match=" IMAGENET1K_V1 and DEFAULT"):
        hubconf.resnext101_64x4d(weights="IMAGENET1K_V2")


@pytest.mark.parametrize(
    "none", [{}, {"weights": False}, {"weights": 0}, {"pretrained": 0}, {"pretrained": None}], ids=str
)
def test_torchvisions_ways_to_random_weights(none: dict[str, Any]) -> None:
    with torch.device("meta"):
        network = hubconf.resnext50_32x4d(**none, num_classes=np.int64(5))
    assert network.fc.out_features == 5
    assert (network.checkpoint, network.preprocessing, network.labels) == (None, None, None)


def test_a_network_knows_its_checkpoint(two_versions: Manifest) -> None:
    network = under(two_versions, entrypoints.torchvision_network, "resnext50_32x4d", None, False, "DEFAULT", 1000, {})
    assert network.checkpoint is two_versions.resolve("resnext50_32x4d.IMAGENET1K_V2")
    assert network.preprocessing.resize_size == 232
    assert network.labels == tuple(label.name for label in read_labels())
    assert copy.deepcopy(network).preprocessing == network.preprocessing
    network.fc = torch.nn.Linear(network.num_features, 7)
    assert network.labels is None
    assert network.preprocessing is not None


def as_nvidia(state: dict[str, torch.Tensor], form: str) -> dict[str, torch.Tensor]:
    """A state_dict under the names and shapes that NVIDIA's files and training scripts have."""
    result = {}
    for key, value in state.items():
        if "layers" in form and key.startswith("layer"):
            number, rest = key.removeprefix("layer").split(".", 1)
            key = f"layers.{int(number) - 1}.{rest}"
        if "conv" in form and key.endswith(("squeeze.squeeze.weight", "squeeze.expand.weight")):
            value = value[:, :, None, None]
        result[f"module.{key}" if "module" in form else key] = value
    return result


@pytest.mark.parametrize("name", ["nvidia_resneXt", "nvidia_resnext101_32x4d", "nvidia_se_resnext101_32x4d"])
def test_nvidia_weights(name: str, small: Any, publish: Any, home: Path, tmp_path: Path, caplog: Any) -> None:
    checkpoint = parsed(small, tmp_path).resolve(name)
    state = state_of(checkpoint.architecture)
    manifest = parsed(publish(small, checkpoint.name, as_nvidia(state, "module layers conv")), tmp_path)
    network = under(manifest, entrypoints.nvidia_network, name, True, None, None, {})
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    if checkpoint.sources[0].hash is None:
        assert "unverified" in caplog.text
    assert under(manifest, entrypoints.nvidia_network, name, True, None, None, {"num_classes": 3}).fc.out_features == 3


@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model._orig_mod.", "module.model."])
def test_nvidia_from_file(container: str | None, prefix: str, small: Any, tmp_path: Path) -> None:
    """What training scripts of NVIDIA, torchvision, Lightning and others write."""
    state = state_of(SMALL, num_classes=12)
    saved = {prefix + key: value for key, value in as_nvidia(state, "layers").items()}
    file = tmp_path / "mine.pth"
    torch.save({container: saved, "epoch": 90} if container else saved, file)
    manifest = parsed(small, tmp_path)
    network = under(manifest, entrypoints.nvidia_network, "nvidia_resneXt", False, str(file), None, {"num_classes": 12})
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    assert network.checkpoint is None


def test_nvidias_key_map(small: Any, tmp_path: Path) -> None:
    state = state_of(SMALL, num_classes=12)
    file = tmp_path / "mine.pth"
    torch.save({f"module.x_{k}": v for k, v in state.items()}, file)
    network = under(
        parsed(small, tmp_path), entrypoints.nvidia_network, "nvidia_resneXt", False, str(file),
        lambda key: key.removeprefix("x_"), {"num_classes": 12},
    )  # fmt: skip
    assert torch.equal(network.fc.bias, state["fc.bias"])


def test_nvidias_options() -> None:
    def spread(**options: Any) -> float:
        network = hubconf.nvidia_resneXt(False, trt=False, fused_se=True, **options)
        assert bool(network.layer4[2].bn3.weight.any()) != options.get("last_bn_0_init", False)
        return network.layer1[0].conv2.weight.detach().std().item()  # 3x3, 4 channels in and out of each of 32 groups

    assert spread(last_bn_0_init=True) == pytest.approx((2 / (9 * 4)) ** 0.5, rel=0.05)
    assert spread(conv_init="fan_out") == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.05)


def test_a_file_from_before_batches_were_counted(small: Any, tmp_path: Path) -> None:
    """torch below 0.4.1 kept no num_batches_tracked."""
    state = {k: v for k, v in state_of(SMALL).items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old = str(tmp_path / "old.pth")
    network = under(parsed(small, tmp_path), entrypoints.nvidia_network, "nvidia_resneXt", False, old, None, {})
    assert network.bn1.num_batches_tracked == network.layer4[0].bn3.num_batches_tracked == 0
    network(torch.randn(2, 3, 64, 64))
    assert network.bn1.num_batches_tracked == 1


def test_nvidia_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.pth$"):
        hubconf.nvidia_resneXt(False, str(tmp_path / "missing.pth"))
    with pytest.raises(ValueError, match="pretrained=False"):
        hubconf.nvidia_resneXt(True, str(tmp_path / "missing.pth"))


def test_options_of_the_variant_itself_may_be_passed() -> None:
    with torch.device("meta"):
        network = hubconf.resnext50_32x4d(groups=32, width_per_group=4, zero_init_residual=True)
    assert network.groups == 32


@pytest.mark.parametrize(("channels", "rgb"), [(1, [0, 0, 0]), (4, [0, 1, 2, 0]), (6, [0, 1, 2, 0, 1, 2])])
def test_other_channels_follow_timms_rule(channels: int, rgb: list[int]) -> None:
    network = hubconf.resnext_tiny(in_chans=channels).eval()
    original = hubconf.resnext_tiny().eval()
    weight = original.conv1.weight
    expected = weight.sum(1, keepdim=True) if channels == 1 else weight[:, rgb] * (3 / channels)
    assert torch.equal(network.conv1.weight, expected)
    assert network.preprocessing is None
    if channels == 1:
        gray = torch.rand(2, 1, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(network(gray), original(gray.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"num_classes": 7}, {"pretrained": False}], ids=str)
def test_default_dtype_and_device_are_obeyed(options: dict[str, Any]) -> None:
    plain = hubconf.resnext_tiny()
    try:
        torch.set_default_dtype(torch.float64)
        network = hubconf.resnext_tiny(**options)
        assert {p.dtype for p in network.parameters()} == {torch.float64}
        assert torch.equal(network.conv1.weight, plain.conv1.weight.double()) != ("pretrained" in options)
        torch.set_default_dtype(torch.float32)
        with torch.device("meta"):
            assert all(t.is_meta for t in hubconf.resnext_tiny(**options).state_dict().values())
        torch.set_default_device("meta")
        assert all(t.is_meta for t in hubconf.resnext_tiny(**options).state_dict().values())
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def test_a_pretrained_load_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    hubconf.resnext_tiny()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: hubconf.resnext101_32x48d_wsl(groups=4), TypeError),
        (lambda: hubconf.resnext50_32x4d_swsl(weights="DEFAULT"), TypeError),
        (lambda: hubconf.resnext50_32x4d_swsl(num_classes=-3), ValueError),
        (lambda: hubconf.resnext50_32x4d_swsl(num_classes="3"), TypeError),
        (lambda: hubconf.resnext50_32x4d_swsl(replace_stride_with_dilation=(True,)), ValueError),
        (lambda: hubconf.resnext50_32x4d(weights="DEFAULT", groups=4), TypeError),
        (lambda: hubconf.resnext50_32x4d_swsl(drop_rate=0.1), TypeError),
        (lambda: hubconf.resnext50_32x4d_swsl(in_chans=0), ValueError),
        (lambda: hubconf.nvidia_resneXt(conv_init="fan"), ValueError),
    ],
)
def test_wrong_arguments_are_found_before_a_download(
    call: Any, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*arguments: object, **options: object) -> None:
        pytest.fail("a download was started")

    monkeypatch.setattr(entrypoints, "local_file", download)
    with pytest.raises(error):
        call()


def test_network_options_reach_a_pretrained_network() -> None:
    network = hubconf.resnext_tiny(replace_stride_with_dilation=(False, True, True))
    assert network.feature_info[-1][1] == 4
    frozen = hubconf.resnext_tiny(norm_layer=lambda c: torch.nn.BatchNorm2d(c, momentum=0.01))
    assert frozen.bn1.momentum == 0.01
    assert torch.equal(frozen.bn1.running_mean, hubconf.resnext_tiny().bn1.running_mean)
