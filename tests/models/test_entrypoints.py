"""The three signatures: the originals' positions and defaults, and every way to ask for weights."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models as tv
from resnext_hub import hubconf
from resnext_hub.errors import CheckpointError, UnreachableError
from resnext_hub.models import entrypoints
from resnext_hub.models.checkpoints import load_into, normalise_keys, read_state_dict
from resnext_hub.models.entrypoints import build
from resnext_hub.models.manifest import Architecture, Manifest, default_manifest, load_manifest

from ..conftest import randomise

MANIFEST = default_manifest()
SMALL_SE = Architecture("Bottleneck", (1, 2, 1, 1), 4, 16, 8, 16, True)
SMALL = Architecture("Bottleneck", (1, 1, 1, 1), 4, 16, None, 16, True)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


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


def state_of(architecture: Architecture, seed: int = 0, num_classes: int = 1000) -> dict[str, torch.Tensor]:
    network = build(architecture, num_classes)
    randomise(network, seed)
    return network.state_dict()


def files(folder: Path) -> list[str]:
    """The published files in the cache; what is known of them lies in a folder of its own."""
    return [p.name for p in folder.iterdir() if p.is_file()] if folder.exists() else []


def kinds(function: Any) -> list[tuple[str, str, object]]:
    return [(n, p.kind.name, p.default) for n, p in inspect.signature(function).parameters.items()]


def test_signatures() -> None:
    empty = inspect.Parameter.empty
    rest = ("network_options", "VAR_KEYWORD", empty)
    for name in MANIFEST.entrypoints:
        parameters = kinds(getattr(hubconf, name))
        if name.endswith(("_wsl", "_ssl", "_swsl")) or name == "resnext_tiny":
            classes = 200 if name == "resnext_tiny" else 1000
            assert parameters == [
                ("progress", "POSITIONAL_OR_KEYWORD", True),
                ("pretrained", "KEYWORD_ONLY", True),
                ("num_classes", "KEYWORD_ONLY", classes),
                rest,
            ], name
        elif name.startswith("nvidia"):
            assert parameters == [
                ("pretrained", "POSITIONAL_OR_KEYWORD", True),
                ("pretrained_from_file", "POSITIONAL_OR_KEYWORD", None),
                ("state_dict_key_map_fn", "POSITIONAL_OR_KEYWORD", None),
                rest,
            ], name
        else:
            assert parameters == [
                ("pretrained", "POSITIONAL_OR_KEYWORD", None),
                ("progress", "POSITIONAL_OR_KEYWORD", True),
                ("weights", "KEYWORD_ONLY", None),
                ("num_classes", "KEYWORD_ONLY", 1000),
                rest,
            ], name
    assert kinds(hubconf.nvidia_convnets_processing_utils) == []


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
    network = entrypoints.facebook(name, False, True, 1000, {}, manifest)
    for key, value in network.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert files(home) == [manifest.resolve(name).sources[0].filename]
    assert all(p.requires_grad for p in network.parameters())

    other = entrypoints.facebook(name, False, True, 7, {}, manifest)
    assert other.fc.weight.shape[0] == 7
    assert other.fc.weight.abs().sum() > 0
    assert torch.equal(other.layer4[0].conv1.weight, expected["layer4.0.conv1.weight"])
    headless = entrypoints.facebook(name, False, True, 0, {}, manifest)
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
        ("IMAGENET1K_V1", None, 1),
    ],
    ids=str,
)
def test_torchvision_weights(pretrained: object, weights: object, seed: int, two_versions: Manifest) -> None:
    network = entrypoints.torchvision("resnext50_32x4d", pretrained, False, weights, 1000, {}, two_versions)
    assert torch.equal(network.fc.weight, state_of(SMALL, seed)["fc.weight"])


@pytest.mark.parametrize(
    ("pretrained", "weights", "error", "message"),
    [
        (
            None,
            "IMAGENET1K_V3",
            ValueError,
            "no weights 'IMAGENET1K_V3'.* IMAGENET1K_V1, IMAGENET1K_V2 and DEFAULT",
        ),
        (None, tv.ResNet50_Weights.IMAGENET1K_V2, ValueError, "belongs to another network"),
        (None, "ResNet50_Weights.IMAGENET1K_V2", ValueError, "belongs to another network"),
        (True, "IMAGENET1K_V2", ValueError, "pretrained=True means IMAGENET1K_V1"),
        (False, "IMAGENET1K_V2", ValueError, "pretrained=False contradicts"),
        (V2, "IMAGENET1K_V2", ValueError, "given twice"),
        (None, 3, TypeError, "not int"),
    ],
    ids=str,
)
def test_contradictions_raise(pretrained: object, weights: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        entrypoints.torchvision("resnext50_32x4d", pretrained, False, weights, 1000, {})


def test_64x4d_has_one_version() -> None:
    with pytest.raises(ValueError, match=" IMAGENET1K_V1 and DEFAULT"):
        hubconf.resnext101_64x4d(weights="IMAGENET1K_V2")


def test_torchvision_builds_without_weights_by_default() -> None:
    network = entrypoints.torchvision("resnext50_32x4d", None, True, None, 5, {})
    assert network.fc.out_features == 5


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


@pytest.mark.parametrize("form", ["plain", "module", "layers", "conv", "module layers conv"])
def test_nvidia_checkpoints_map_losslessly(form: str) -> None:
    state = state_of(SMALL_SE)
    mapped = normalise_keys(as_nvidia(state, form))
    assert mapped.keys() == state.keys()
    assert all(torch.equal(mapped[k], state[k]) for k in state)


@pytest.mark.parametrize("name", ["nvidia_resneXt", "nvidia_resnext101_32x4d", "nvidia_se_resnext101_32x4d"])
def test_nvidia_weights(name: str, small: Any, publish: Any, home: Path, tmp_path: Path, caplog: Any) -> None:
    checkpoint = parsed(small, tmp_path).resolve(name)
    state = state_of(checkpoint.architecture)
    manifest = parsed(publish(small, checkpoint.name, as_nvidia(state, "module layers conv")), tmp_path)
    network = entrypoints.nvidia(name, True, None, None, {}, manifest)
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    if checkpoint.sources[0].hash is None:
        assert "unverified" in caplog.text
    assert entrypoints.nvidia(name, True, None, None, {"num_classes": 3}, manifest).fc.out_features == 3


def test_nvidia_from_file(small: Any, tmp_path: Path) -> None:
    manifest = parsed(small, tmp_path)
    state = state_of(SMALL, num_classes=12)
    file = tmp_path / "mine.pth"
    torch.save({"state_dict": as_nvidia(state, "module layers"), "epoch": 90}, file)
    network = entrypoints.nvidia("nvidia_resneXt", False, str(file), None, {"num_classes": 12}, manifest)
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())

    torch.save({f"module.x_{k}": v for k, v in state.items()}, file)
    network = entrypoints.nvidia(
        "nvidia_resneXt", False, str(file), lambda key: key.removeprefix("x_"), {"num_classes": 12}, manifest
    )
    assert torch.equal(network.fc.bias, state["fc.bias"])


def test_a_file_from_before_batches_were_counted(small: Any, tmp_path: Path) -> None:
    """torch below 0.4.1 kept no num_batches_tracked."""
    state = {k: v for k, v in state_of(SMALL).items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    network = entrypoints.nvidia("nvidia_resneXt", False, str(tmp_path / "old.pth"), None, {}, parsed(small, tmp_path))
    assert network.bn1.num_batches_tracked == network.layer4[0].bn3.num_batches_tracked == 0
    network(torch.randn(2, 3, 64, 64))
    assert network.bn1.num_batches_tracked == 1


def test_nvidia_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.pth$"):
        hubconf.nvidia_resneXt(False, str(tmp_path / "missing.pth"))
    with pytest.raises(ValueError, match="pass pretrained=False"):
        hubconf.nvidia_resneXt(True, str(tmp_path / "missing.pth"))


def test_options_that_make_another_variant_are_refused() -> None:
    with pytest.raises(TypeError, match=r"groups.*To change groups, choose another variant"):
        hubconf.resnext50_32x4d(groups=16)
    with pytest.raises(TypeError, match=r"options: drop_rate\. Allowed: [^.]*\.$"):
        hubconf.resnext50_32x4d_swsl(pretrained=False, drop_rate=0.1)
    with pytest.raises(TypeError, match="zero_init_residual"):
        hubconf.resnext50_32x4d_swsl(pretrained=False, last_bn_0_init=True)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: hubconf.resnext101_32x48d_wsl(groups=4), TypeError),
        (lambda: hubconf.resnext50_32x4d_swsl(weights="DEFAULT"), TypeError),
        (lambda: hubconf.resnext50_32x4d_swsl(num_classes=-3), ValueError),
        (lambda: hubconf.resnext50_32x4d_swsl(num_classes="3"), TypeError),
        (lambda: hubconf.resnext50_32x4d_swsl(replace_stride_with_dilation=(True,)), ValueError),
        (lambda: hubconf.resnext50_32x4d(weights="DEFAULT", groups=4), TypeError),
        (lambda: hubconf.nvidia_resneXt(trt=True), TypeError),
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


# What is fetched is checked, and no half of it stays.


def test_a_wrong_file_is_refused_and_not_kept(small: Any, publish: Any, home: Path, tmp_path: Path) -> None:
    name = "resnext50_32x4d_swsl"
    small = publish(small, name, state_of(SMALL))
    source = small["checkpoints"][name]["sources"][0]
    served = tmp_path / "served" / source["url"].rsplit("/", 1)[1]
    good = served.read_bytes()
    served.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="is not the published file: its sha256 is"):
        entrypoints.facebook(name, False, True, 1000, {}, parsed(small, tmp_path))
    served.write_bytes(good[:1000])
    with pytest.raises(CheckpointError, match=r"has 1,000 bytes, expected [\d,]+"):
        entrypoints.facebook(name, False, True, 1000, {}, parsed(small, tmp_path))
    assert files(home) == []
    served.write_bytes(good)
    entrypoints.facebook(name, False, True, 1000, {}, parsed(small, tmp_path))


def test_a_bad_cached_file_is_found(small: Any, publish: Any, home: Path, tmp_path: Path) -> None:
    name = "resnext50_32x4d_swsl"
    manifest = parsed(publish(small, name, state_of(SMALL)), tmp_path)
    entrypoints.facebook(name, False, True, 1000, {}, manifest)
    cached = home / files(home)[0]
    data = bytearray(cached.read_bytes())
    data[len(data) // 2] ^= 1
    cached.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is not the published file.*Delete it and load again"):
        entrypoints.facebook(name, False, True, 1000, {}, manifest)


def test_a_file_that_the_originals_fetched_is_used(small: Any, publish: Any, home: Path, tmp_path: Path) -> None:
    name = "resnext50_32x4d_swsl"
    small = publish(small, name, state_of(SMALL))
    source = small["checkpoints"][name]["sources"][0]
    home.mkdir(parents=True)
    (tmp_path / "served" / source["url"].rsplit("/", 1)[1]).rename(home / source["url"].rsplit("/", 1)[1])
    network = entrypoints.facebook(name, False, True, 1000, {}, parsed(small, tmp_path))
    assert torch.equal(network.fc.bias, state_of(SMALL)["fc.bias"])


def test_unreachable_weights_say_what_was_tried(small: Any, home: Path, tmp_path: Path, served: Any) -> None:
    url = f"{served.url}/missing-12345678.pth"
    small["checkpoints"]["resnet18_ssl"]["sources"][0]["url"] = url
    with pytest.raises(UnreachableError, match=rf"Tried: {url} \(.*404.*resnext_tiny"):
        entrypoints.facebook("resnet18_ssl", False, True, 1000, {}, parsed(small, tmp_path))
    assert files(home) == []


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("evil"),))


@pytest.mark.parametrize("legacy", [True, False])
def test_no_code_in_a_checkpoint_runs(legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Evil()}, "evil.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CheckpointError, match=r"more than weights \([\w.]+ at byte \d+\), and nothing in a checkpoint is executed"
    ):
        read_state_dict("evil.pth")
    assert not Path("evil").exists()


@pytest.mark.parametrize(
    "content", [b"", b"<!doctype html>", b"PK\x03\x04 cut", b"\x80\x02}q", b"\xff\xd8\xff\xe0JFIF"]
)
def test_a_file_that_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pth is not a complete torch\.save file"):
        read_state_dict(tmp_path / "x.pth")


def test_a_file_that_holds_no_state_dict(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="holds a list, expected a state_dict"):
        read_state_dict(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), r"Missing key\(s\).*layer1\.0\.conv1\.weight"),
        (lambda s: s.update(surplus=torch.ones(1)), r"Unexpected key\(s\).*surplus"),
        (lambda s: s.update({"fc.bias": torch.ones(3)}), r"size mismatch for fc\.bias"),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_keys(change: Any, message: str) -> None:
    state = state_of(SMALL)
    change(state)
    with pytest.raises(CheckpointError, match=rf"mine\.pth does not fit the network: .*{message}"):
        load_into(build(SMALL), state, origin="mine.pth")
