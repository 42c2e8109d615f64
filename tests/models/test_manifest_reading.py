"""From the file to typed values, and from what a user writes to a checkpoint."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from resnext_hub.errors import ManifestError, UnknownVariantError
from resnext_hub.models.entrypoints import build
from resnext_hub.models.manifest import (
    Accuracy,
    Hash,
    License,
    Paper,
    Source,
    default_manifest,
    find_checkpoint,
    load_manifest,
)

MANIFEST = default_manifest()


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
    assert isinstance(preset.std, tuple)
    for source, row in zip(checkpoint.sources, data["sources"], strict=True):
        assert (source.url, source.format, source.bytes) == (row["url"], row["format"], row["bytes"])
        assert source.hash == (row["hash"] and Hash(**row["hash"]))
        assert (source.path is None) == (row["path"] is None)
        assert source.path is None or source.path.is_file()


@pytest.mark.parametrize("name", MANIFEST.architectures)
def test_num_features_is_the_networks(name: str) -> None:
    architecture = MANIFEST.architectures[name]
    with torch.device("meta"):
        assert architecture.num_features == build(architecture, 0).num_features


def test_the_name_of_a_file() -> None:
    assert Source("https://example.org/a/b-12345678.pth", None, None, None, None).filename == "b-12345678.pth"
    assert Source(None, Path("x/y/own.pth"), None, None, None).filename == "own.pth"
    assert Source(None, None, None, None, None).filename == ""


def test_measurements_are_found_by_data_set() -> None:
    checkpoint = MANIFEST.checkpoints["resnext101_32x16d_swsl"]
    for row in checkpoint.measured:
        found = checkpoint.measured_on(row.dataset)
        assert found is not None
        assert found.dataset == row.dataset
    assert checkpoint.measured_on("cats") is None


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
    with pytest.raises(UnknownVariantError) as error:
        MANIFEST.resolve("RESNET18_SSLL")
    message = str(error.value)
    assert "'RESNET18_SSLL'" in message
    assert "Did you mean resnet18_ssl or " in message
    assert message.count(" or ") == 2, "three at most"
    with pytest.raises(UnknownVariantError, match=r"Did you mean resnext_tiny\?"):
        MANIFEST.resolve("tiny")
    with pytest.raises(UnknownVariantError) as error:
        MANIFEST.resolve("0000")
    message = str(error.value)
    assert "'0000'" in message
    assert f"{', '.join(MANIFEST.entrypoints)}." in message


def test_a_published_checkpoint_is_found_by_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_checkpoint("resnet18_ssl") == MANIFEST.checkpoints["resnet18_ssl"]
    assert find_checkpoint("resnext50_32x4d").tag == "IMAGENET1K_V2"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18_ssl").mkdir()
    assert find_checkpoint("resnet18_ssl").home is None, "a folder of that name does not hide it"
    with pytest.raises(UnknownVariantError, match="variant: 'run'"):
        find_checkpoint("run")


@pytest.mark.parametrize("kind", [str, Path])
def test_ones_own_checkpoint_is_found_by_its_folder(
    kind: Any, tmp_path: Path, manifest_json: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = copy.deepcopy(manifest_json)
    manifest["checkpoints"]["resnext_tiny"]["sources"][0]["path"] = "weights.pth"
    manifest["label_sets"]["tiny-imagenet-200"]["file"] = "labels.tsv"
    written(tmp_path / "run", manifest, "resnext_tiny")
    labels = MANIFEST.label_sets["tiny-imagenet-200"].file.read_text(encoding="utf-8")
    (tmp_path / "run" / "labels.tsv").write_text(labels, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for folder in (kind("run"), kind(tmp_path / "run")):
        checkpoint = find_checkpoint(folder)
        assert checkpoint.home == (tmp_path / "run").resolve()
        assert checkpoint.variant == str((tmp_path / "run").resolve())
        assert checkpoint.sources[0].path == (tmp_path / "run").resolve() / "weights.pth"
        assert checkpoint.labels.file == (tmp_path / "run").resolve() / "labels.tsv"


def test_a_folder_that_is_no_run(tmp_path: Path, manifest_json: dict[str, Any]) -> None:
    with pytest.raises(UnknownVariantError, match=r"no weights_manifest\.json"):
        find_checkpoint(tmp_path)
    with pytest.raises(ManifestError, match="describes 2 checkpoints"):
        find_checkpoint(written(tmp_path / "two", manifest_json, "resnet18_ssl", "resnext_tiny"))
    with pytest.raises(ManifestError, match="describes 0 checkpoints"):
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
    broken = tmp_path / "broken.json"
    broken.write_bytes(b"\xff")
    with pytest.raises(ManifestError, match="UTF-8"):
        load_manifest(str(broken))
