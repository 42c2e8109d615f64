"""The training loop: it learns, and a run that was broken off ends as an unbroken one."""

from __future__ import annotations

import copy
import csv
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from resnext_hub.data.splits import open_images
from resnext_hub.models.checkpoints import load_into, read_state_dict
from resnext_hub.models.entrypoints import build
from resnext_hub.models.manifest import Architecture
from resnext_hub.processes import Processes
from resnext_hub.training.batches import Batch, FromFiles, InMemory, validation_batches
from resnext_hub.training.checkpoint import save
from resnext_hub.training.loop import Loop
from resnext_hub.training.optimisation import Optimisation, parameter_groups
from resnext_hub.training.pixels import PixelTable
from resnext_hub.training.publish import publish_half
from resnext_hub.training.recipe import Phase, Recipe

SMALL = Architecture("Bottleneck", (1, 1, 1, 1), 2, 16, None, 16, False)
RECIPE = Recipe(
    (Phase(2, 16), Phase(2, 24)), "resnext_tiny", batch_size=16, lr=0.05, ema_decay=0.9, crop_scale=(0.35, 1.0)
).resolved(None, None)
EVERYTHING = dataclasses.replace(
    RECIPE, auto_augment="rand", erasing=0.5, mixup=0.2, cutmix=1.0, repeats=2, label_smoothing=0.1, clip_grad=1.0
)
DISTILLED = dataclasses.replace(RECIPE, in_memory=True, distillation_weight=0.5, distillation_temperature=2.0)


def run(data: Path, out: Path, recipe: Recipe = RECIPE, scores: Any = None, **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = build(SMALL, 3)
    images, held = (open_images(data / f"{part}.parquet") for part in ("train", "val"))
    train_set = InMemory(recipe, PixelTable.read(images), scores) if recipe.in_memory else FromFiles(recipe, images)
    loop = Loop(network, recipe, train_set, lambda p: validation_batches(held, recipe, 0, 1, 0), out, **options)
    weights, _ = loop.run()
    return torch.load(weights, weights_only=True)


def curve(out: Path, but: tuple[str, ...] = ("seconds",)) -> list[dict[str, str]]:
    with open(out / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in but} for row in csv.DictReader(file)]


def test_it_learns_and_keeps_a_record(colours: Path, tmp_path: Path) -> None:
    run(colours, tmp_path / "out", about={"torch": torch.__version__})
    rows = curve(tmp_path / "out")
    assert [row["image_size"] for row in rows] == ["16", "16", "24", "24"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert float(rows[-1]["val_top1"]) > 0.8
    recorded = json.loads((tmp_path / "out" / "run.json").read_text())
    assert recorded["recipe"]["lr"] == 0.05
    assert recorded["torch"] == torch.__version__
    assert not list((tmp_path / "out").glob("*.tmp"))


@pytest.mark.parametrize("recipe", [RECIPE, EVERYTHING, DISTILLED], ids=["plain", "everything", "with a teacher"])
def test_a_resumed_run_ends_as_an_unbroken_one(
    recipe: Recipe, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off in the middle of an epoch, at every step in turn, by the power cord."""
    scores = torch.randn(144, 3, 3, 3).half() if recipe.distillation_weight else None
    expected = run(colours, tmp_path / "unbroken", recipe, scores)

    class Unplugged(BaseException):
        pass

    def save_then_die(path: Path, state: object) -> None:
        save(path, state)
        if path.name == "last.pt":
            raise Unplugged

    monkeypatch.setattr(f"{save.__module__}.save", save_then_die)
    broken = 0
    while True:
        try:
            got = run(colours, tmp_path / "broken", recipe, scores, checkpoint_seconds=0)
            break
        except Unplugged:
            broken += 1
    assert broken >= 32
    assert curve(tmp_path / "broken") == curve(tmp_path / "unbroken")
    for key, value in expected.items():
        assert torch.equal(got[key], value), key


COMMAND = [sys.executable, "-m", "resnext_hub.training", "--recipe"]


def _recipe(path: Path, epochs: int = 500, **more: object) -> Path:
    lines = [f"{key} = {json.dumps(value)}" for key, value in more.items()]
    path.write_text(
        "\n".join(['architecture = "resnext_tiny"', "batch_size = 16", *lines])
        + f"\n[[phases]]\nepochs = {epochs}\nimage_size = 32\n"
    )
    return path


def test_killed_anywhere_it_goes_on_to_the_same_weights(colours: Path, tmp_path: Path) -> None:
    """SIGKILL in a fresh process, at a moment that nobody chose, with a worker; then the same command again."""
    recipe = _recipe(tmp_path / "recipe.toml", 2, lr=0.05)

    def start(out: Path) -> subprocess.Popen[str]:
        command = [*COMMAND, str(recipe), "--data", str(colours), "--out", str(out), "--threads", "1"]
        command += ["--workers", "1", "--checkpoint-seconds", "0"]
        return subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finished(process: subprocess.Popen[str]) -> None:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output

    finished(start(tmp_path / "whole"))
    process = start(tmp_path / "killed")
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (tmp_path / "killed" / "weights.pt").exists()
    finished(start(tmp_path / "killed"))
    whole, killed = (torch.load(tmp_path / out / "weights.pt", weights_only=True) for out in ("whole", "killed"))
    assert all(torch.equal(whole[key], killed[key]) for key in whole)
    assert curve(tmp_path / "whole") == curve(tmp_path / "killed")


def test_a_loss_that_is_not_finite_stops_the_run(colours: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, lr=1e30, warmup_epochs=0.1)
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at step \d+ .epoch \d+ of \d+.: .* lr"):
        run(colours, tmp_path / "out", recipe, checkpoint_seconds=0)
    for value in torch.load(tmp_path / "out" / "last.pt", weights_only=True)["network"].values():
        assert not value.is_floating_point() or torch.isfinite(value).all()  # kept from before


def test_too_few_images_for_a_batch(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(144\) do not fill one batch of 1000"):
        run(colours, tmp_path / "out", dataclasses.replace(RECIPE, batch_size=1000))


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path) -> None:
    save(tmp_path / "x.pt", {"a": torch.ones(1)})

    class Unpicklable:
        def __reduce__(self) -> str:
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        save(tmp_path / "x.pt", {"a": Unpicklable()})
    assert torch.load(tmp_path / "x.pt", weights_only=True)["a"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_a_broken_image_costs_a_row(colours: Path, tmp_path: Path) -> None:
    images = open_images(colours / "train.parquet")
    read, held = images.read, open_images(colours / "val.parquet")

    def sick(i: int) -> bytes:
        if i == 7:
            raise OSError("the disk is tired")
        return b"no image" if i == 11 else read(i)

    recipe = dataclasses.replace(RECIPE, phases=(Phase(2, 16),)).resolved(None, None)
    source: Any = SimpleNamespace(read=sick, name=images.images.name)
    train_set = FromFiles(recipe, dataclasses.replace(images, images=source))

    def once() -> dict[str, Any]:
        torch.manual_seed(0)
        validation: Callable[[Processes], Any] = lambda p: validation_batches(held, recipe, 0, 1, 0)  # noqa: E731
        weights, rows = Loop(build(SMALL, 3), recipe, train_set, validation, tmp_path / "out").run()
        assert rows[-1]["broken"] == 4
        return torch.load(weights, weights_only=True)

    once()
    (tmp_path / "out" / "last.pt").unlink()
    once()  # meets them again, and does not write them again
    with open(tmp_path / "out" / "broken.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["error"][:12] for row in rows) == ["Not an image"] * 2 + ["the disk is "] * 2
    assert {row["epoch"] for row in rows} == {"1", "2"}
    assert "train.parquet[7]" in {row["image"].rpartition("/")[2] for row in rows}


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_micro_batches_add_up_to_a_step(amp: str) -> None:
    """Without BatchNorm, whose statistics are a batch's own, the gradient of a step does not depend on its parts."""
    norm = {"norm_layer": lambda channels: torch.nn.GroupNorm(4, channels)}
    torch.manual_seed(0)
    whole, images = build(SMALL, 3, **norm), torch.randn(16, 3, 32, 32)
    parts = copy.deepcopy(whole)
    recipe = dataclasses.replace(RECIPE, amp=amp, lr=0.1, warmup_epochs=0.0, ema_decay=0.0)
    batch = Batch(images, torch.arange(16) % 3)
    losses = [
        Optimisation(network, recipe, Processes(), size, 9).take(batch, 0)
        for network, size in ((whole, None), (parts, 5))
    ]
    tolerance = {"none": 1e-5, "bf16": 2e-2, "fp16": 2e-3}[amp]
    torch.testing.assert_close(losses[0], losses[1], rtol=tolerance, atol=tolerance)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def test_a_scaler_leaves_out_a_step_that_overflows() -> None:
    recipe = dataclasses.replace(RECIPE, amp="fp16", lr=0.1, warmup_epochs=0.0)
    network = build(SMALL, 3)
    before = copy.deepcopy(network.state_dict())
    steps = Optimisation(network, recipe, Processes(), None, 9)
    assert "scaler" in steps.parts()
    network.fc.weight.register_hook(lambda gradient: gradient * torch.inf)
    steps.take(Batch(torch.randn(4, 3, 32, 32), torch.arange(4) % 3), 0)
    assert torch.equal(network.fc.weight, before["fc.weight"])
    assert steps.scaler.get_scale() < 65536


def test_the_average_begins_after_the_warmup() -> None:
    """As torchvision's: until then it is a copy."""
    recipe = dataclasses.replace(RECIPE, warmup_epochs=0.5, ema_decay=0.9)
    steps = Optimisation(build(SMALL, 3), recipe, Processes(), None, 4)
    equal = []
    for step in range(4):
        steps.take(Batch(torch.randn(4, 3, 32, 32), torch.arange(4) % 3), step)
        equal.append(torch.equal(steps.averaged.fc.weight, steps.network.fc.weight))
    assert equal == [True, True, True, False]


@pytest.mark.parametrize("option", ["grad_checkpointing", "channels_last"])
def test_options_that_change_no_result(option: str) -> None:
    torch.manual_seed(0)
    network, images = build(SMALL, 3), torch.randn(16, 3, 32, 32)
    other = copy.deepcopy(network)
    if option == "grad_checkpointing":
        other.set_grad_checkpointing()
    recipe = dataclasses.replace(RECIPE, warmup_epochs=0.0, ema_decay=0.0, channels_last=False)
    for which, chosen in ((network, recipe), (other, dataclasses.replace(recipe, channels_last=option[0] == "c"))):
        Optimisation(which, chosen, Processes(), None, 9).take(Batch(images, torch.arange(16) % 3), 0)
    for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_groups_of_parameters() -> None:
    network = build(SMALL, 3)
    recipe = dataclasses.replace(RECIPE, lr=0.1, lr_batch=8, layer_decay=0.5, head_lr=4.0, weight_decay=0.01)
    groups = {
        id(p): (g["lr"], g["weight_decay"]) for g in parameter_groups(network, recipe) for p in g["params"]
    }  # lr: 0.1 for 8 images is 0.2 for 16
    assert len(groups) == len(list(network.parameters()))
    assert groups[id(network.fc.weight)] == (0.8, 0.01)
    assert groups[id(network.fc.bias)] == (0.8, 0.0)
    assert groups[id(network.layer4[0].conv1.weight)] == (0.1, 0.01)
    assert groups[id(network.layer4[0].bn1.weight)] == (0.1, 0.0)
    assert groups[id(network.conv1.weight)] == pytest.approx((0.2 / 32, 0.01))
    decayed = parameter_groups(network, dataclasses.replace(recipe, undecayed=("norm",)))
    assert next(g for g in decayed if any(p is network.fc.bias for p in g["params"]))["weight_decay"] == 0.01


def test_what_is_frozen_does_not_move(colours: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = copy.deepcopy(build(SMALL, 3).state_dict())
    short = dataclasses.replace(RECIPE, phases=(Phase(1, 16),), ema_decay=0.0, warmup_epochs=0.0)
    probe = run(colours, tmp_path / "probe", dataclasses.replace(short, head_only=True))
    moved = {key for key, value in probe.items() if not torch.equal(value, start[key])}
    assert moved == {"fc.weight", "fc.bias"}
    frozen = run(colours, tmp_path / "frozen", dataclasses.replace(short, freeze_norm=True))
    moved = {key for key, value in frozen.items() if not torch.equal(value, start[key])}
    assert moved == {key for key in start if "conv" in key or "downsample.0" in key or key.startswith("fc")}
    network = build(SMALL, 3)
    Optimisation(network, short, Processes(), None, 9).training_mode()
    assert all(module.training for module in network.modules())


def test_two_processes_share_the_work(colours: Path, tmp_path: Path) -> None:
    """As torchrun starts them: one log, one checkpoint, and both end."""
    recipe = _recipe(tmp_path / "recipe.toml", 2, in_memory=True, held_out=16, lr=0.02)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "resnext_hub.training", "--recipe", str(recipe), "--data", str(colours), "--out", str(out)]
    done = subprocess.run(
        [*command, "--threads", "1", "--workers", "0", "--micro-batch", "4"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in curve(out)] == ["1", "2"]
    assert torch.load(out / "last.pt", weights_only=True)["progress"]["step"] == 16  # 128 images, 8 batches an epoch
    assert done.stderr.count("epoch 2 of 2: loss") == 1
    assert len(list(out.glob("out-*.pth"))) == 1


def test_two_processes_train_as_one_does(colours: Path, tmp_path: Path) -> None:
    """The same images in the same steps; with GroupNorm the gradients, and so the weights, are the same to rounding."""
    script = f"""
import datetime
import torch
import torch.distributed as dist
from pathlib import Path
from types import SimpleNamespace
from resnext_hub.models.entrypoints import build
from resnext_hub.models.manifest import Architecture
from resnext_hub.training.batches import FromFiles, validation_batches
from resnext_hub.data.splits import open_images
from resnext_hub.training.loop import Loop
from resnext_hub.training.recipe import Phase, Recipe
from resnext_hub.processes import Processes
with Processes.here().joined(datetime.timedelta(minutes=5)):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build(Architecture("Bottleneck", (1, 1, 1, 1), 2, 16, None, 16, False), 3,
                    norm_layer=lambda channels: torch.nn.GroupNorm(4, channels))
    recipe = Recipe((Phase(2, 16),), "resnext_tiny", batch_size=16, lr=0.002).resolved(None, None)
    images, held = (open_images(Path({str(colours)!r}) / (part + ".parquet")) for part in ("train", "val"))
    world = dist.get_world_size() if dist.is_initialized() else 1
    Loop(network, recipe, FromFiles(recipe, images),
         lambda p: validation_batches(held, recipe, p.rank, p.world, 0), Path({str(tmp_path)!r}) / str(world)).run()
"""
    (tmp_path / "run.py").write_text(script)
    for command in (
        [sys.executable],
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    ):
        done = subprocess.run([*command, str(tmp_path / "run.py")], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    one, two = (curve(tmp_path / n) for n in "12")
    assert float(one[0]["val_loss"]) > 0.1  # not learned by heart yet: there is something to compare
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "val_loss", "val_top1"):
            assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-4, abs=1e-4), key


def test_publishing_keeps_the_values_to_half_precision(tmp_path: Path) -> None:
    network = build(SMALL, 3)
    path = publish_half(network.state_dict(), tmp_path, "small")
    assert path.name == f"small-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    again = build(SMALL, 3)
    load_into(again, read_state_dict(path))
    for a, b in zip(network.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_equal_weights_give_equal_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever process writes them: the archive holds no process id and no temporary name."""
    state = {"conv1.weight": torch.arange(12.0).reshape(3, 4)}
    first = publish_half(state, tmp_path / "a", "flowers")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    second = publish_half({name: value.clone() for name, value in state.items()}, tmp_path / "b", "flowers")
    assert (first.name, first.read_bytes()) == (second.name, second.read_bytes())
    save(tmp_path / "c.pt", state)
    save(tmp_path / "other.pt", state)
    assert (tmp_path / "c.pt").read_bytes() == (tmp_path / "other.pt").read_bytes()
