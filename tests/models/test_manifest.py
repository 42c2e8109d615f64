"""One source of truth: manifest, entrypoints, networks and README say the same."""

from __future__ import annotations

import builtins
import copy
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from resnext_hub import hubconf
from resnext_hub.errors import ManifestError, UnknownVariantError
from resnext_hub.models import manifest as manifest_module
from resnext_hub.models.entrypoints import build
from resnext_hub.models.manifest import default_manifest, load_manifest, write_digest
from resnext_hub.models.resnext import ResNeXt
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

MANIFEST = default_manifest()
CHECKPOINTS = list(MANIFEST.checkpoints.values())
UTILITIES = {"nvidia_convnets_processing_utils", "classifier", "transforms"}
each_checkpoint = pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda c: c.name)


def hub_functions() -> dict[str, Any]:
    return {n: f for n, f in vars(hubconf).items() if callable(f) and not n.startswith("_")}


def test_the_schema_is_kept(root: Path, manifest_json: dict[str, Any]) -> None:
    schema = json.loads((root / "weights_manifest.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(manifest_json, schema)


def test_the_schema_refuses_a_wrong_manifest(root: Path, manifest_json: dict[str, Any]) -> None:
    schema = json.loads((root / "weights_manifest.schema.json").read_text())
    for key, value in {"params": "25M", "license": 3, "gmacs": None, "surplus": 1}.items():
        wrong = copy.deepcopy(manifest_json)
        wrong["checkpoints"]["resnet18_ssl"][key] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_what_was_published_is_all_there() -> None:
    counts: dict[str, int] = {}
    for checkpoint in CHECKPOINTS:
        counts[checkpoint.system.title] = counts.get(checkpoint.system.title, 0) + 1
    assert counts == {
        "ResNeXt WSL": 4,
        "Semi-supervised ResNe(X)t": 6,
        "Semi-weakly supervised ResNe(X)t": 6,
        "torchvision ResNeXt": 5,
        "NVIDIA ResNeXt101-32x4d": 1,
        "NVIDIA SE-ResNeXt101-32x4d": 1,
        "resnext_tiny": 1,
    }


def test_entrypoints_and_manifest_name_the_same() -> None:
    assert set(hub_functions()) - UTILITIES == set(MANIFEST.entrypoints)


def test_readme_rows_and_manifest_name_the_same(root: Path) -> None:
    readme = (root / "README.md").read_text()
    table = readme.split("<!-- variants -->")[1]
    rows = re.findall(r"^\| `([^`]+)`(?: \(`([^`]+)`\))?", table, flags=re.MULTILINE)
    assert [name for name, _ in rows] == list(MANIFEST.checkpoints)
    assert {alias for _, alias in rows if alias} == set(MANIFEST.aliases)


@pytest.mark.parametrize("script", ["maintenance/write_hubconf.py", "maintenance/write_table.py"])
def test_generated_texts_are_current(root: Path, script: str) -> None:
    done = subprocess.run([sys.executable, root / script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@each_checkpoint
def test_help_says_what_the_manifest_says(checkpoint: Any) -> None:
    text = " ".join((inspect.getdoc(hub_functions()[checkpoint.entrypoint]) or "").split())
    assert f"{checkpoint.params:,} parameters" in text
    assert f"{checkpoint.gmacs:g} GMACs" in text
    for accuracy in filter(None, (checkpoint.published, checkpoint.measured_on("imagenet"))):
        assert f"{accuracy.top1} / {accuracy.top5} " in text
    assert checkpoint.system.training_data in text
    assert checkpoint.system.paper.url in text
    words = {
        "CC-BY-NC-4.0": "CC-BY-NC-4.0, no commercial use, https://",
        "BSD-3-Clause": "BSD-3-Clause, https://",
        "research-only": "research-only, no commercial use, https://",
        None: "not stated (",
    }
    assert f"Licence of the weights: {words[checkpoint.license_id]}" in text
    assert all(issue in text for issue in checkpoint.known_issues)


def test_documented_errors_exist() -> None:
    modules = [builtins, *(module for name, module in sys.modules.items() if name.startswith("resnext_hub"))]
    for name, function in hub_functions().items():
        section = re.search(r"Raises:\n(.*?)\n *\n", function.__doc__, re.DOTALL)
        assert section, name
        errors = re.findall(r"^ {8}(\w+): ", section[1], re.MULTILINE)
        assert errors, name
        for error in errors:
            found = [getattr(module, error) for module in modules if hasattr(module, error)]
            assert found, (name, error)
            assert issubclass(found[0], Exception), (name, error)


def test_a_known_defect_is_shown_where_it_matters() -> None:
    checkpoint = MANIFEST.checkpoints["resnext101_32x16d_swsl"]
    measured = checkpoint.measured_on("imagenet")
    assert measured is not None
    assert (checkpoint.published.top1, checkpoint.published.top5) == (84.8, 97.4)
    assert (measured.top1, measured.top5) == (83.34, 96.844)
    assert "83.34 / 96.84" in (hub_functions()[checkpoint.entrypoint].__doc__ or "")
    assert any("14M" in issue for issue in MANIFEST.checkpoints["resnet18_swsl"].known_issues)


@each_checkpoint
def test_the_built_network_is_what_its_name_says(checkpoint: Any) -> None:
    with torch.device("meta"):
        network = build(checkpoint.architecture, checkpoint.num_classes).eval()
    assert sum(p.numel() for p in network.parameters()) == checkpoint.params

    convolutions = [m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n]
    depth = len(convolutions) + 1  # and the head
    grouped = network.layer1[0].conv2
    squeezes = any(m.__class__.__name__ == "SqueezeExcite" for m in network.modules())
    named = re.search(r"(se_)?resnex?t(\d+)(?:_(\d+)x(\d+)d)?", checkpoint.entrypoint)
    assert named or checkpoint.entrypoint in ("nvidia_resneXt", "resnext_tiny")
    titled = re.match(r"(SE-)?ResNeX?t-(\d+)(?: (\d+)x(\d+)d)?", hub_functions()[checkpoint.entrypoint].__doc__)
    assert titled
    for match in filter(None, (named, titled)):
        assert (bool(match[1]), int(match[2])) == (squeezes, depth)
        if match[3]:
            assert (int(match[3]), int(match[4])) == (grouped.groups, grouped.out_channels // grouped.groups)
        else:
            assert grouped.groups == 1

    crop = checkpoint.preprocessing.crop_size
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        network(torch.empty(1, 3, crop, crop))
    assert round(counter.get_total_flops() / 2e9, 3) == checkpoint.gmacs


@each_checkpoint
def test_a_crop_fits_into_the_resized_image(checkpoint: Any) -> None:
    preset = checkpoint.preprocessing
    assert preset.crop_size <= preset.resize_size
    assert preset.antialias


@each_checkpoint
def test_a_hash_in_a_file_name_is_the_hash_in_the_manifest(checkpoint: Any) -> None:
    source = checkpoint.sources[0]
    match = re.search(r"-([0-9a-f]{8,})\.", source.filename)
    if source.url is None:
        assert match is not None
        assert source.hash.kind == "sha256"
        assert source.hash.value.startswith(match[1])
    elif match is not None:
        assert source.hash.value.startswith(match[1])


def test_names_resolve() -> None:
    assert MANIFEST.resolve("resnext50_32x4d").tag == "IMAGENET1K_V2"
    assert MANIFEST.resolve("resnext50_32x4d.IMAGENET1K_V1").tag == "IMAGENET1K_V1"
    assert MANIFEST.resolve("nvidia_resnext101_32x4d").name == "nvidia_resneXt"
    with pytest.raises(UnknownVariantError, match="Did you mean resnext50_32x4d_swsl"):
        MANIFEST.resolve("resnext50_32x4_swsl")
    with pytest.raises(UnknownVariantError, match="from resnext101_32x8d_wsl, "):
        MANIFEST.resolve("?")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: m["checkpoints"]["resnet18_ssl"].pop("params"), "resnet18_ssl.*params"),
        (lambda m: m["checkpoints"]["resnet18_ssl"].update(surplus=1), "resnet18_ssl.*surplus"),
        (lambda m: m["checkpoints"]["resnet18_ssl"].update(architecture="vgg"), "resnet18_ssl.*vgg"),
        (lambda m: m["checkpoints"]["resnet18_ssl"].update(labels="cats"), "resnet18_ssl.*cats"),
        (lambda m: m.pop("papers"), "top level.*papers"),
    ],
)
def test_a_damaged_manifest_is_refused_where_it_is_damaged(
    damage: Any, message: str, manifest_json: dict[str, Any], tmp_path: Path
) -> None:
    wrong = copy.deepcopy(manifest_json)
    damage(wrong)
    path = tmp_path / "weights_manifest.json"
    path.write_text(json.dumps(wrong))
    with pytest.raises(ManifestError, match=message):
        load_manifest(path)


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights_manifest.json"
    path.write_text("{")
    with pytest.raises(ManifestError, match="JSON"):
        load_manifest(path)


def test_a_manifest_that_was_changed_afterwards_is_refused(
    manifest_json: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_module, "ROOT", tmp_path)
    read = default_manifest.__wrapped__  # without its cache
    path = tmp_path / "weights_manifest.json"
    path.write_text(json.dumps(manifest_json))
    with pytest.raises(ManifestError, match="sha256"):  # no digest at all
        read()
    write_digest(tmp_path)
    assert list(read().checkpoints) == list(MANIFEST.checkpoints)
    manifest_json = copy.deepcopy(manifest_json)
    manifest_json["checkpoints"]["resnet18_ssl"]["sources"][0]["url"] = "http://127.0.0.1:9/other.pth"
    path.write_text(json.dumps(manifest_json))
    with pytest.raises(ManifestError, match="has been changed") as raised:
        read()
    match = re.search(r"`(sha256sum .*)`", str(raised.value))
    assert match is not None
    subprocess.run(match[1], shell=True, cwd=tmp_path, check=True)
    assert read().checkpoints["resnet18_ssl"].sources[0].filename == "other.pth"


def test_the_manifest_as_it_is_downloaded_has_its_digest(root: Path) -> None:
    assert root / "weights_manifest.json" == MANIFEST.path
    done = subprocess.run(["sha256sum", "--check", "weights_manifest.sha256"], cwd=root, check=False)
    assert done.returncode == 0


def test_manifest_and_preprocessing_need_no_torch(run_python: Any) -> None:
    run_python(
        "import sys\n"
        "sys.modules['torch'] = sys.modules['torchvision'] = None  # an import of either fails\n"
        "from resnext_hub.models.manifest import default_manifest\n"
        "from resnext_hub.processing_utils import open_image, preprocess, prepare_pixels\n"
        "from resnext_hub import cli\n"
        "import numpy as np\n"
        "preset = default_manifest().resolve('resnext50_32x4d').preprocessing\n"
        "image = np.zeros((300, 400, 3), np.uint8)\n"
        "assert preprocess(open_image(image), preset).shape == (3, 224, 224)\n"
        "assert prepare_pixels([image, image], preset).shape == (2, 224, 224, 3)\n"
        "assert cli.main(['list']) == 0\n"
    )


def test_resnext_module_needs_torch_alone(root: Path) -> None:
    source = (root / "models" / "resnext.py").read_text()
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, flags=re.MULTILINE))
    assert imported - sys.stdlib_module_names == {"torch"}
    assert inspect.signature(ResNeXt.forward).return_annotation is torch.Tensor
