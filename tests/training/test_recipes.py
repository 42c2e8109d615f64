"""Recipes: those that come along say what their sources say; wrong ones are refused."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from pathlib import Path

import pytest
import torch
from resnext_hub.errors import RecipeError
from resnext_hub.models.manifest import default_manifest
from resnext_hub.training.recipe import RANGES, RECIPES, Phase, Recipe, load_recipe

from ..conftest import ROOT

NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))
OURS = {"finetune", "linear_probe"}


@pytest.mark.parametrize("name", NAMES)
def test_recipes_that_come_along(name: str) -> None:
    recipe = load_recipe(name)
    preset = default_manifest().resolve("resnext50_32x4d").preprocessing
    whole = recipe.resolved(preset, "resnext50_32x4d")
    assert whole.architecture in default_manifest().architectures
    assert whole.lr_share(0) <= 0.5 or not whole.warmup_epochs
    assert all(whole.lr_share(e / 4) >= 0 for e in range(4 * whole.epochs))
    assert whole.image_size(whole.epochs - 1) <= whole.preset.crop_size <= whole.preset.resize_size
    with pytest.raises(IndexError):
        whole.image_size(whole.epochs)


def published() -> list[tuple[str, str, object]]:
    """(recipe, key, value) of every value in the tables of docs/training.md."""
    found: list[tuple[str, str, object]] = []
    name = ""
    for line in (ROOT / "docs" / "training.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells[:1] == ["Published"]:
            name = cells[1].strip("`")
        elif name and len(cells) == 3:
            for text in re.findall(r"`([^`]+ = [^`]+)`", cells[1]):
                found += [(name, key, value) for key, value in tomllib.loads(text).items()]
    return found


def test_the_recipes_have_the_published_values() -> None:
    rows = published()
    assert {name for name, *_ in rows} == {name for name in NAMES if not name.endswith("_90")} - OURS
    for name, key, value in rows:
        recipe = load_recipe(name)
        ours = recipe.phases[0].image_size if key == "image_size" else getattr(recipe, key)
        assert (list(ours) if isinstance(ours, tuple) else ours) == value, (name, key)
    # No value of these recipes is without its source.
    for name in {name for name, *_ in rows}:
        values = tomllib.loads((RECIPES / f"{name}.toml").read_text())
        keys = {key for key in values if key != "phases"} - {"architecture", "grad_checkpointing"}
        keys -= {"eval_resize", "eval_size", "amp"} if "pretrain" in name or "finetune" in name else set()
        assert keys <= {key for row, key, _ in rows if row == name}, name


def test_nvidias_learning_rate_is_that_of_its_optimizers_py() -> None:
    for name, epochs in (("nvidia_resnext101_32x4d", 250), ("nvidia_resnext101_32x4d_90", 90)):
        recipe = load_recipe(name, {"batch_size": "512"})
        assert (recipe.epochs, recipe.peak_lr) == (epochs, pytest.approx(0.512))
        for epoch in range(epochs):
            e, es = epoch - 8, epochs - 8
            share = (epoch + 1) / 8 if epoch < 8 else 0.5 * (1 + math.cos(math.pi * e / es))
            assert recipe.lr_share(epoch + 0.7) == pytest.approx(share), epoch
    short, long = load_recipe("nvidia_resnext101_32x4d_90"), load_recipe("nvidia_resnext101_32x4d")
    same = dataclasses.replace(short, phases=long.phases, mixup=0.2, decay_epochs=242.0)
    assert same == long


def test_torchvisions_learning_rate_is_that_of_its_schedulers() -> None:
    recipe = load_recipe("torchvision_v2")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], recipe.peak_lr)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 595)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [5])
    for epoch in range(600):
        theirs = optimizer.param_groups[0]["lr"]
        assert recipe.peak_lr * recipe.lr_share(epoch) == pytest.approx(theirs, abs=1e-9), epoch
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("amp", "flags", "kept"), [("bf16", {"avx512_bf16"}, True), ("bf16", set(), False),
                                                     ("bf16", {"amx_tile"}, True), ("fp16", {"avx512_bf16"}, False),
                                                     ("none", set(), True)])  # fmt: skip
def test_mixed_precision_needs_hardware(amp: str, flags: set[str], kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for flag in ("avx512_bf16", "amx_tile", "amx_fp16"):
        monkeypatch.setattr(torch.cpu, f"_is_{flag}_supported", lambda flag=flag: flag in flags)
    recipe = dataclasses.replace(load_recipe("finetune"), amp=amp)
    assert recipe.on(torch.device("cpu")).amp == (amp if kept else "none")


def test_the_learning_rate() -> None:
    recipe = Recipe((Phase(4, 16),), warmup_epochs=1, decay_epochs=2)
    assert [recipe.lr_share(e) for e in (0, 0.5, 1, 2, 3, 4)] == pytest.approx([0.001, 0.5005, 1, 1, 0.5, 0])
    assert Recipe((Phase(4, 16),)).lr_share(2.5) == pytest.approx(0.5)  # a cosine from the warm-up on
    halved = Recipe((Phase(14, 16),), warmup_epochs=0, schedule="halving", halvings=13)
    assert [halved.lr_share(e) for e in range(14)] == [0.5**e for e in range(14)]


def test_what_a_recipe_leaves_open_the_weights_say() -> None:
    preset = default_manifest().resolve("resnext50_32x4d.IMAGENET1K_V2").preprocessing
    recipe = load_recipe("finetune").resolved(preset, "resnext50_32x4d")
    assert (recipe.image_size(0), recipe.preset.crop_size, recipe.preset.resize_size) == (224, 224, 232)
    assert recipe.preset.mean == preset.mean
    plain = Recipe((Phase(1, 64),)).resolved(None, None)
    assert (plain.preset.crop_size, plain.preset.resize_size) == (64, 73)
    with pytest.raises(RecipeError, match=r"resolved\(\)"):
        _ = Recipe((Phase(1),)).preset


def test_overrides() -> None:
    phases = load_recipe("finetune", {"phases": "[{epochs = 3, image_size = 16}, {epochs = 1}]"}).phases
    assert phases == (Phase(3, 16), Phase(1))
    recipe = load_recipe("finetune", {"epochs": "3", "lr": "1", "amp": "bf16", "crop_scale": "[0.5, 1]", "seed": 4})
    assert (recipe.epochs, recipe.lr, recipe.amp, recipe.crop_scale, recipe.seed) == (3, 1.0, "bf16", (0.5, 1), 4)
    assert isinstance(recipe.lr, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 1\nlearning_rate = 1", "r.toml: Unknown keys: learning_rate. .* epochs"),
        ('architecture = "x"', "phases or epochs"),
        ("[[phases]]\nepoch = 1", "epoch"),
        ("epochs = 0", "epochs must be 1 or more"),
        ('epochs = "x"', "epochs .*, not 'x'"),
        ('epochs = 1\nlr = "high"', "lr .*float, not 'high'"),
        ("epochs = 1\nseed = 1.5", "seed .*int, not 1.5"),
        ("epochs = 1\nflip = 1", "flip.* bool.* 1"),
        ('epochs = 1\namp = "fp8"', "amp .* 'none', 'bf16', 'fp16', not 'fp8'"),
        ("epochs = 1\nema_decay = 2", "ema_decay .*0 .*1"),
        ("epochs = 1\nbatch_size = 0", "batch_size .*1"),
        ("epochs = 1\ncrop_scale = [0.5]", "crop_scale"),
        ("epochs = 1\nmean = [0.5]", "mean"),
        ("epochs = 1\nmean = [0.5, 0.5, 2]", "mean .*0 .*1"),
        ("epochs = 1\nstd = [0, 1, 1]", "std .*0.001"),
        ("epochs = 1\neval_size = 5000", "eval_size .*1 .*4096"),
        ("epochs = 1\nlr = nan", "lr .*0"),
        ("epochs = 1\nmomentum = 2", "momentum .*0 .*1"),
        ('epochs = 1\nundecayed = ["head"]', "undecayed .*norm.*bias"),
        ("epochs = 1\nundecayed = 3", "undecayed .*list"),
        ("epochs = 2\n[[phases]]\nepochs = 1\n[[phases]]\nepochs = 1", "phase.* 2"),
        ("epochs = ", "r.toml"),
    ],
)
def test_wrong_recipes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize("wrong", [{"lerning": "3"}, {"epochs": "x"}, {"epochs": "0"}, {"batch_size": "0"}])
def test_a_wrong_override_does_not_blame_the_file(wrong: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))) as caught:
        load_recipe("finetune", wrong)
    assert ".toml" not in str(caught.value)


def test_what_a_recipe_allows_the_manifest_of_its_run_allows() -> None:
    schema = json.loads((ROOT / "weights_manifest.schema.json").read_text())["$defs"]["preprocessing"]["properties"]
    for key, name in (("eval_size", "crop_size"), ("eval_resize", "resize_size"), ("mean", "mean"), ("std", "std")):
        allowed = schema[name].get("items", schema[name])
        assert RANGES[key] == (allowed["minimum"], allowed["maximum"]), key


def test_a_recipe_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(RecipeError, match="finetune, linear_probe"):
        load_recipe("fine-tune")
