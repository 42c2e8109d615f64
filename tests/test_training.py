"""The training loop: it learns, and a run that was broken off ends as an unbroken one."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from resnext_hub.models.checkpoints import load_into, read_state_dict
from resnext_hub.models.entrypoints import build
from resnext_hub.models.manifest import Architecture
from resnext_hub.training.data import ParquetImages, train_transform
from resnext_hub.training.engine import save_atomically, train
from resnext_hub.training.publish import publish_half
from resnext_hub.training.recipe import Phase, Recipe, load_recipe

pa = pytest.importorskip("pyarrow")
SYNSETS = ["n1", "n2", "n3"]
SMALL = Architecture("Bottleneck", (1, 1, 1, 1), 2, 16, None, 16, False)
RECIPE = Recipe("resnext_tiny", (Phase(2, 16), Phase(2, 24)), batch_size=16, lr=0.05, ema_decay=0.9, bf16=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three classes told apart by colour, noisy, as parquet."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for part, count in (("train", 144), ("val", 48)):
        rows: dict[str, list[object]] = {"name": [], "wnid": [], "jpeg": []}
        for i in range(count):
            pixels = rng.integers(0, 120, (32, 32, 3))
            pixels[:, :, i % 3] += 100
            file = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG")
            rows["name"].append(str(i))
            rows["wnid"].append(SYNSETS[i % 3])
            rows["jpeg"].append(file.getvalue())
        import pyarrow.parquet as pq

        pq.write_table(pa.table(rows), folder / f"{part}.parquet")
    (folder / "classes.tsv").write_text("".join(f"{s}\tname of {s}\n" for s in SYNSETS))
    return folder


def run(data: Path, out: Path, recipe: Recipe = RECIPE, **options: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = build(SMALL, 3)
    weights = train(
        network, recipe, [data / "train.parquet"], [data / "val.parquet"], SYNSETS, out, workers=0, **options
    )  # type: ignore[arg-type]
    return torch.load(weights, weights_only=True)


def test_it_learns_and_keeps_a_record(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "out")
    with open(tmp_path / "out" / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["image_size"]) for row in rows] == [16, 16, 24, 24]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert float(rows[-1]["val_top1"]) > 0.8
    assert '"lr": 0.05' in (tmp_path / "out" / "recipe.json").read_text()
    assert not list((tmp_path / "out").glob("*.part"))


def test_a_resumed_run_ends_as_an_unbroken_one(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off in the middle of an epoch, at every step in turn, by the power cord."""
    expected = run(data, tmp_path / "unbroken")

    def record(out: str) -> list[list[str]]:
        with open(tmp_path / out / "log.csv") as file:
            return [row[:-1] for row in csv.reader(file)]  # all but the seconds

    class Unplugged(BaseException):
        pass

    steps = 0

    def save_then_die(state: object, path: Path) -> None:
        nonlocal steps
        save_atomically(state, path)
        if path.name == "last.pt":
            steps += 1
            raise Unplugged

    monkeypatch.setattr(f"{train.__module__}.save_atomically", save_then_die)
    broken = 0
    while True:
        try:
            got = run(data, tmp_path / "broken", checkpoint_seconds=0)
            break
        except Unplugged:
            broken += 1
    assert broken >= 32
    assert record("broken") == record("unbroken")
    for key, value in expected.items():
        assert torch.equal(got[key], value), key


def test_sigterm_checkpoints_and_exits_cleanly(data: Path, tmp_path: Path) -> None:
    """In a fresh process, with a worker, the signal going to the whole process group, as a scheduler sends it."""
    (tmp_path / "recipe.toml").write_text(
        'architecture = "resnext_tiny"\nbatch_size = 16\n[[phases]]\nepochs = 500\nimage_size = 32\n'
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "resnext_hub.training", str(tmp_path / "recipe.toml")]
    process = subprocess.Popen(
        [*command, "--data", str(data), "--out", str(out), "--threads", "1"],
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (out / "log.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    state = torch.load(out / "last.pt", weights_only=True)
    assert state["step"] >= 9
    assert not list(out.glob("*.part"))


def test_a_loss_that_is_not_finite_stops_the_run(data: Path, tmp_path: Path) -> None:
    recipe = Recipe("resnext_tiny", (Phase(3, 16),), batch_size=16, lr=1e30, warmup_epochs=0.1)
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at step \d+"):
        run(data, tmp_path / "out", recipe)


def test_augmentation_differs_between_epochs_and_not_between_runs(data: Path) -> None:
    def draw(seed: int) -> torch.Tensor:
        images = ParquetImages([data / "train.parquet"], SYNSETS, train_transform(RECIPE, 16), seed)
        return torch.stack([images[i][0] for i in range(20)])

    first = draw(0)
    assert torch.equal(first, draw(0))
    for other in (1, 2, 1000):
        same = (first == draw(other)).flatten(1).all(1)
        assert same.sum() <= 1


def test_another_recipe_does_not_go_on_with_this_run(data: Path, tmp_path: Path) -> None:
    import dataclasses

    run(data, tmp_path / "out")
    with pytest.raises(ValueError, match="was made by another recipe"):
        run(data, tmp_path / "out", dataclasses.replace(RECIPE, lr=5.0))
    assert '"lr": 0.05' in (tmp_path / "out" / "recipe.json").read_text()
    with pytest.raises(ValueError, match="144 images do not fill one batch of 1000"):
        run(data, tmp_path / "other", dataclasses.replace(RECIPE, batch_size=1000))


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path) -> None:
    save_atomically({"a": torch.ones(1)}, tmp_path / "x.pt")

    class Unpicklable:
        def __reduce__(self) -> str:
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        save_atomically({"a": Unpicklable()}, tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", weights_only=True)["a"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_the_recipe_of_the_weights_in_the_repository(root: Path) -> None:
    recipe = load_recipe(root / "training" / "recipes" / "resnext_tiny.toml", {"seed": 3})
    assert recipe.seed == 3
    sizes = [recipe.image_size(epoch) for epoch in range(recipe.epochs)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 64
    with pytest.raises(IndexError):
        recipe.image_size(recipe.epochs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('architecture = "x"\nlearning_rate = 1\nphases = []', "unknown recipe keys .'learning_rate'.; known are"),
        ('architecture = "x"', "not a recipe: 'phases'"),
        ("phases = []", "not a recipe: .*architecture"),
        ('architecture = "x"\n[[phases]]\nepoch = 1', "not a recipe: .*epoch"),
    ],
)
def test_wrong_recipes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(tmp_path / "r.toml")


def test_publishing_keeps_the_values_to_half_precision(tmp_path: Path) -> None:
    network = build(SMALL, 3)
    path = publish_half(network.state_dict(), tmp_path, "small")
    import hashlib

    assert path.name == f"small-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    again = build(SMALL, 3)
    load_into(again, read_state_dict(path))
    for a, b in zip(network.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
