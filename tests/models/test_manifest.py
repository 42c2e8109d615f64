"""One source of truth: manifest, entrypoints, networks and README say the same."""

from __future__ import annotations

import builtins
import copy
import functools
import inspect
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from resnext_hub import hubconf
from resnext_hub.errors import ManifestError, UnknownVariantError
from resnext_hub.maintenance import write_hubconf, write_table
from resnext_hub.models import manifest as manifest_module
from resnext_hub.models.entrypoints import build
from resnext_hub.models.manifest import (
    Accuracy,
    Architecture,
    Hash,
    License,
    Paper,
    default_manifest,
    find_checkpoint,
    load_manifest,
    write_digest,
)
from resnext_hub.models.resnext import SqueezeExcite
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
    for key, value in {"params": "25M", "license": 3, "gmacs": None, "surplus": 1}.items():
        wrong = copy.deepcopy(manifest_json)
        wrong["checkpoints"]["resnet18_ssl"][key] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_what_was_published_is_all_there() -> None:
    assert Counter(checkpoint.system.title for checkpoint in CHECKPOINTS) == {
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


@pytest.mark.parametrize("script", [write_hubconf, write_table])
def test_generated_texts_are_current(script: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["script", "--check"])
    assert script.main() == 0, capsys.readouterr().err


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
        if name in MANIFEST.aliases:  # its docstring refers to the other name's
            continue
        section = re.search(r"Raises:\n((?: {8}.*\n)+)", function.__doc__)
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


@functools.cache
def measured(architecture: Architecture, num_classes: int, crop: int) -> tuple[int, int, nn.Conv2d, bool, float]:
    """Parameters, depth, the first grouped convolution, whether there is squeeze-excite, GMACs: checkpoints share
    architectures."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build(architecture, num_classes).eval()
        network(torch.empty(1, 3, crop, crop))
    convolutions = [m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n]
    squeezes = any(isinstance(module, SqueezeExcite) for module in network.modules())
    params = sum(p.numel() for p in network.parameters())
    gmacs = round(counter.get_total_flops() / 2e9, 3)
    return params, len(convolutions) + 1, network.layer1[0].conv2, squeezes, gmacs  # + 1: the head


@each_checkpoint
def test_the_built_network_is_what_its_name_says(checkpoint: Any) -> None:
    params, depth, grouped, squeezes, gmacs = measured(
        checkpoint.architecture, checkpoint.num_classes, checkpoint.preprocessing.crop_size
    )
    assert (params, gmacs) == (checkpoint.params, checkpoint.gmacs)
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
    with pytest.raises(ManifestError, match="weights_manifest.json") as raised:
        read()
    match = re.search(r"`(sha256sum .*)`", str(raised.value))
    assert match is not None
    subprocess.run(match[1], shell=True, cwd=tmp_path, check=True)
    assert read().checkpoints["resnet18_ssl"].sources[0].filename == "other.pth"


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


# From the file to typed values, and from what a user writes to a checkpoint.


def written(folder: Path, manifest: dict[str, Any], *names: str) -> Path:
    """A run's folder: the manifest, of these checkpoints alone."""
    folder.mkdir(exist_ok=True)
    manifest = manifest | {"checkpoints": {name: manifest["checkpoints"][name] for name in names}}
    (folder / "weights_manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", MANIFEST.checkpoints)
def test_every_fact_of_the_file_is_there(name: str, manifest_json: dict[str, Any]) -> None:
    data, checkpoint = manifest_json["checkpoints"][name], default_manifest().checkpoints[name]
    assert (checkpoint.name, checkpoint.variant, checkpoint.home) == (name, name, None)
    for key in ("entrypoint", "tag", "num_classes", "params", "gmacs", "license_source", "made_by"):
        assert getattr(checkpoint, key) == data[key]
    assert checkpoint.known_issues == tuple(data["known_issues"])
    assert checkpoint.architecture_name == data["architecture"]
    built = manifest_json["architectures"][data["architecture"]]
    assert checkpoint.architecture.__dict__ == built | {"layers": tuple(built["layers"])}
    system = manifest_json["systems"][data["system"]]
    assert checkpoint.system.paper == Paper(**manifest_json["papers"][system["paper"]])
    assert (checkpoint.system.title, checkpoint.system.training_data) == (system["title"], system["training_data"])
    assert checkpoint.system.repository == system["repository"]
    assert checkpoint.license_id == data["license"]
    expected = None if data["license"] is None else License(**manifest_json["licenses"][data["license"]])
    assert checkpoint.license == expected
    labels = manifest_json["label_sets"][data["labels"]]
    assert (checkpoint.labels.classes, checkpoint.labels.file.is_file()) == (labels["classes"], True)
    assert str(checkpoint.labels.file).endswith(labels["file"])
    assert checkpoint.published == Accuracy(**data["published"])
    assert checkpoint.measured == tuple(Accuracy(**row) for row in data["measured"])
    preset = checkpoint.preprocessing
    assert preset.__dict__ == data["preprocessing"] | {"mean": preset.mean, "std": preset.std}
    assert (list(preset.mean), list(preset.std)) == (data["preprocessing"]["mean"], data["preprocessing"]["std"])
    assert isinstance(preset.mean, tuple)
    assert preset.crop_size <= preset.resize_size
    assert preset.antialias
    for source, row in zip(checkpoint.sources, data["sources"], strict=True):
        assert (source.url, source.format, source.bytes) == (row["url"], row["format"], row["bytes"])
        assert source.hash == (row["hash"] and Hash(**row["hash"]))
        assert (source.path is None) == (row["path"] is None)
        assert source.path is None or source.path.is_file()


def test_entrypoints_are_each_named_once() -> None:
    assert len(set(MANIFEST.entrypoints)) == len(MANIFEST.entrypoints)
    assert set(MANIFEST.aliases) < set(MANIFEST.entrypoints)
    assert MANIFEST.entrypoints[-1] == list(MANIFEST.aliases)[-1], "aliases come last"


def test_the_checkpoints_of_an_entrypoint_oldest_first() -> None:
    assert list(MANIFEST.of_entrypoint("resnext50_32x4d")) == ["IMAGENET1K_V1", "IMAGENET1K_V2"]
    assert list(MANIFEST.of_entrypoint("resnet18_ssl")) == [""]
    alias, entrypoint = next(iter(MANIFEST.aliases.items()))
    assert MANIFEST.of_entrypoint(alias) == MANIFEST.of_entrypoint(entrypoint)
    assert MANIFEST.of_entrypoint("none") == {}


def test_near_names_are_suggested_in_any_case() -> None:
    for name, suggested in (
        ("RESNET18_SSLL", "resnet18_ssl or "),
        ("resnext50_32x4_swsl", "resnext50_32x4d_swsl"),
        ("tiny", "resnext_tiny?"),
        ("0000", "resnext-hub list"),
    ):
        with pytest.raises(UnknownVariantError) as error:
            MANIFEST.resolve(name)
        message = str(error.value)
        assert f"'{name}'" in message
        assert suggested in message
        assert message.count(" or ") <= 2, "three at most"


def test_a_published_checkpoint_is_found_by_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_checkpoint("resnet18_ssl") == MANIFEST.checkpoints["resnet18_ssl"]
    assert MANIFEST.resolve("resnext50_32x4d.IMAGENET1K_V1").tag == "IMAGENET1K_V1"
    assert MANIFEST.resolve("nvidia_resnext101_32x4d").name == "nvidia_resneXt"
    assert find_checkpoint("resnext50_32x4d").tag == "IMAGENET1K_V2"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18_ssl").mkdir()
    assert find_checkpoint("resnet18_ssl").home is None, "a folder of that name does not hide it"
    with pytest.raises(UnknownVariantError, match="variant: 'run'"):
        find_checkpoint("run")


def test_a_folder_that_is_no_run(tmp_path: Path, manifest_json: dict[str, Any]) -> None:
    with pytest.raises(UnknownVariantError, match=r"no weights_manifest\.json"):
        find_checkpoint(tmp_path)
    (tmp_path / "file.pth").touch()
    with pytest.raises(UnknownVariantError, match=r"file\.pth is a file"):
        find_checkpoint(str(tmp_path / "file.pth"))
    with pytest.raises(ManifestError, match="2 checkpoints"):
        find_checkpoint(written(tmp_path / "two", manifest_json, "resnet18_ssl", "resnext_tiny"))
    with pytest.raises(ManifestError, match="0 checkpoints"):
        find_checkpoint(written(tmp_path / "none", manifest_json))


def test_paths_start_at_the_folder_that_is_named(tmp_path: Path, manifest_json: dict[str, Any]) -> None:
    path = written(tmp_path, manifest_json, "resnext_tiny") / "weights_manifest.json"
    manifest = load_manifest(path, tmp_path / "elsewhere")
    assert manifest.path == path
    source = manifest.checkpoints["resnext_tiny"].sources[0]
    assert source.path == tmp_path / "elsewhere" / manifest_json["checkpoints"]["resnext_tiny"]["sources"][0]["path"]
    for name, labels in manifest.label_sets.items():
        assert labels.file == tmp_path / "elsewhere" / manifest_json["label_sets"][name]["file"]
        assert labels.classes == manifest_json["label_sets"][name]["classes"]
    assert manifest.architectures == MANIFEST.architectures
    assert manifest.aliases == MANIFEST.aliases
    assert list(manifest.checkpoints) == ["resnext_tiny"]


def test_errors_name_the_key(tmp_path: Path, manifest_json: dict[str, Any]) -> None:
    def refused(**parts: Any) -> str:
        path = written(tmp_path, copy.deepcopy(manifest_json) | parts, "resnet18_ssl") / "weights_manifest.json"
        with pytest.raises(ManifestError) as error:
            load_manifest(path)
        assert str(error.value).startswith(f"{path}: ")
        return str(error.value).removeprefix(f"{path}: ")

    assert refused(licenses={"MIT": {"name": "MIT"}}).startswith("licenses.MIT: ")
    assert refused(systems={"x": {"paper": "none"}}).startswith("systems.x: ")
    paper = MANIFEST.checkpoints["resnet18_ssl"].system.training_data
    system = {"title": "x", "repository": None, "training_data": paper, "paper": "none"}
    assert refused(systems={"x": system}) == "systems.x: 'none' is not defined."
    assert refused(label_sets=[]).startswith("label_sets: ")
    assert refused(aliases=[1]).startswith("aliases: ")
    assert refused(licenses={}) == "checkpoints.resnet18_ssl: 'CC-BY-NC-4.0' is not defined."
    basic = manifest_json["architectures"]["resnet18"]
    for wrong in (basic | {"groups": 32}, basic | {"width_per_group": 4}, basic | {"planes": 1, "width_per_group": 4}):
        assert refused(architectures=manifest_json["architectures"] | {"wrong": wrong}).startswith(
            "architectures.wrong"
        )
    for content, message in ((b"\xff", "UTF-8"), (b"{", "JSON")):
        (tmp_path / "broken.json").write_bytes(content)
        with pytest.raises(ManifestError, match=message):
            load_manifest(str(tmp_path / "broken.json"))
