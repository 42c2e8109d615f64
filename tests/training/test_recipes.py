"""Recipes: those that come along say what their sources say; wrong ones are refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from resnext_hub.errors import RecipeError
from resnext_hub.models.manifest import default_manifest
from resnext_hub.training.recipe import RECIPES, Phase, Recipe, load_recipe

NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))


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


def test_nvidias_recipe() -> None:
    for name, epochs, mixup in (("nvidia_resnext101_32x4d", 250, 0.2), ("nvidia_resnext101_32x4d_90", 90, 0.0)):
        r = load_recipe(name, {"batch_size": "512"})
        assert (r.epochs, r.mixup, r.momentum, r.nesterov, r.label_smoothing) == (epochs, mixup, 0.875, False, 0.1)
        assert (r.weight_decay, r.undecayed, r.amp, r.channels_last) == (6.103515625e-05, ("norm",), "fp16", True)
        assert r.peak_lr == pytest.approx(0.512)
        assert r.lr_share(4) == pytest.approx(0.5)
        assert r.lr_share(8 + (epochs - 8) / 2) == pytest.approx(0.5)


def test_torchvisions_recipe() -> None:
    r = load_recipe("torchvision_v2").resolved(None, None)
    assert (r.epochs, r.image_size(0), r.preset.crop_size, r.preset.resize_size) == (600, 176, 224, 232)
    assert (r.auto_augment, r.erasing, r.mixup, r.cutmix, r.repeats) == ("trivial", 0.1, 0.2, 1.0, 4)
    assert (r.peak_lr, r.weight_decay, r.label_smoothing, r.ema_every) == (0.5, 2e-5, 0.1, 32)


def test_the_learning_rate() -> None:
    recipe = Recipe((Phase(4, 16),), warmup_epochs=1, decay_epochs=2)
    assert [recipe.lr_share(e) for e in (0.5, 1, 2, 3, 4)] == pytest.approx([0.5, 1, 1, 0.5, 0])
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
        ("epochs = 1\nflip = 1", "flip .*bool, not 1"),
        ('epochs = 1\namp = "fp8"', "amp .* 'none', 'bf16', 'fp16', not 'fp8'"),
        ("epochs = 1\nema_decay = 2", "ema_decay must be from 0 to 1"),
        ("epochs = 1\nbatch_size = 0", "batch_size must be 1 or more"),
        ("epochs = 1\ncrop_scale = [0.5]", "crop_scale must be two"),
        ("epochs = 1\nmean = [0.5]", "mean must have three"),
        ('epochs = 1\nundecayed = ["head"]', "undecayed may have norm and bias"),
        ("epochs = 1\nundecayed = 3", "undecayed must be a list"),
        ("epochs = 2\n[[phases]]\nepochs = 1\n[[phases]]\nepochs = 1", "one phase; this one has 2"),
        ("epochs = ", "Cannot read the recipe"),
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


def test_no_such_recipe() -> None:
    with pytest.raises(RecipeError, match="from finetune, linear_probe"):
        load_recipe("fine-tune")


def test_warmup_never_starts_at_zero() -> None:
    assert math.isclose(load_recipe("finetune").lr_share(0), 1e-3)
