"""The training loop: it learns, and a run that was broken off ends as an unbroken one."""

from __future__ import annotations

import contextlib
import copy
import csv
import dataclasses
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from resnext_hub.cli import main
from resnext_hub.data.splits import open_images
from resnext_hub.models.checkpoints import load_into, read_state_dict
from resnext_hub.models.entrypoints import build
from resnext_hub.processes import Processes
from resnext_hub.training.batches import Batch
from resnext_hub.training.checkpoint import save
from resnext_hub.training.optimisation import Optimisation, parameter_groups
from resnext_hub.training.publish import publish_half
from resnext_hub.training.recipe import Phase, Recipe

from ..support.training_runs import RECIPE, SMALL, curve, network, run, same, weights

EVERYTHING = dataclasses.replace(
    RECIPE, auto_augment="rand", erasing=0.5, mixup=0.2, cutmix=1.0, repeats=2, label_smoothing=0.1, clip_grad=1.0
)
GENTLE = dataclasses.replace(RECIPE, phases=(Phase(2, 16),), lr=0.002)
DISTILLED = dataclasses.replace(RECIPE, in_memory=True, distillation_weight=0.5, distillation_temperature=2.0)


def test_it_learns_and_keeps_a_record(colours: Path, tmp_path: Path) -> None:
    measured = set[bool]()  # whether cuDNN may try its algorithms
    watch = lambda *_: measured.add(torch.backends.cudnn.benchmark)  # noqa: E731
    run(colours, tmp_path / "out", about={"torch": torch.__version__}, watch=watch)
    assert (measured, torch.backends.cudnn.benchmark) == ({True}, False)
    rows = curve(tmp_path / "out")
    assert [row["image_size"] for row in rows] == ["16", "16", "24", "24"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert float(rows[-1]["val_top1"]) > 0.8
    recorded = json.loads((tmp_path / "out" / "run.json").read_text())
    assert recorded["recipe"]["lr"] == 0.05
    assert recorded["torch"] == torch.__version__
    assert not list((tmp_path / "out").glob("*.tmp"))


@pytest.mark.parametrize("recipe", [RECIPE, EVERYTHING, DISTILLED], ids=["plain", "everything", "with a teacher"])
def test_a_resumed_run_equals_an_unbroken_one(recipe: Recipe, colours: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Broken off at every step in turn, in the middle of an epoch and at its end, by the power cord."""
    recipe = dataclasses.replace(recipe, batch_size=48)  # three steps an epoch
    scores = torch.randn(144, 3, 3, 3).half() if recipe.distillation_weight else None
    run(colours, tmp_path / "unbroken", recipe, scores)

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
            run(colours, tmp_path / "broken", recipe, scores, checkpoint_seconds=0)
            break
        except Unplugged:
            broken += 1
    assert broken >= 12
    assert curve(tmp_path / "broken") == curve(tmp_path / "unbroken")
    assert same(weights(tmp_path / "broken"), weights(tmp_path / "unbroken"))


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_a_run_on_a_gpu_is_finite_and_resumes(amp: Any, colours: Path, tmp_path: Path) -> None:
    recipe, scores = dataclasses.replace(DISTILLED, amp=amp), torch.randn(144, 3, 3, 3).half()
    said = list[str]()

    class Unplugged(BaseException):
        pass

    def unplug(event: str, values: dict[str, float]) -> None:
        if event == "step" and values["step"] == 14:
            raise Unplugged

    for watch in (unplug, lambda event, values: None):
        with contextlib.suppress(Unplugged):
            run(colours, tmp_path, recipe, scores, checkpoint_seconds=0, watch=watch, say=said.append)
    assert "Resuming at step 14 of 36" in said
    rows = curve(tmp_path)
    assert len(rows) == 4
    assert all(math.isfinite(float(row["loss"])) for row in rows)
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())


def command(recipe: Path, data: Path, out: Path, **values: object) -> list[str]:
    """Write a recipe; return the command of a run with it."""
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in {"architecture": "resnext_tiny", **values}.items()]
    recipe.write_text("".join([*lines, "batch_size = 16\n[[phases]]\nepochs = 2\nimage_size = 32\n"]))
    return ["--recipe", str(recipe), "--data", str(data), "--out", str(out), "--threads", "1"]


def test_a_killed_run_resumes_to_the_same_weights(colours: Path, tmp_path: Path) -> None:
    """SIGKILL in a fresh process, at a moment that nobody chose, with a worker; then the same command again."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    runs = [command(tmp_path / "recipe.toml", colours, out, lr=0.05) for out in (whole, killed)]
    runs = [[*run, "--workers", "1", "--checkpoint-seconds", "0"] for run in runs]
    assert main(["train", *runs[0]]) == 0
    started = [sys.executable, "-m", "resnext_hub.training", *runs[1]]
    with subprocess.Popen(started, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as run:
        deadline = time.monotonic() + 120
        while not (killed / "last.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(run.pid, signal.SIGKILL)
    assert not (killed / "weights.pt").exists()
    assert main(["train", *runs[1]]) == 0
    assert same(weights(whole), weights(killed))
    assert curve(whole) == curve(killed)


def test_a_loss_that_is_not_finite_stops_the_run(colours: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, lr=1e30, warmup_epochs=0.1)
    with pytest.raises(FloatingPointError, match=r"(nan|inf) at step \d+ .epoch \d+ of \d+"):
        run(colours, tmp_path / "out", recipe, checkpoint_seconds=0)
    for value in torch.load(tmp_path / "out" / "last.pt", weights_only=True)["network"].values():
        assert not value.is_floating_point() or torch.isfinite(value).all()  # kept from before


def test_too_few_images_for_a_batch(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"144.* 1000"):
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


def test_broken_images_are_listed(colours: Path, tmp_path: Path) -> None:
    images = open_images(colours / "train.parquet")
    read = images.read

    def sick(i: int) -> bytes:
        if i == 7:
            raise OSError("the disk is tired")
        return b"no image" if i == 11 else read(i)

    recipe = dataclasses.replace(RECIPE, phases=(Phase(2, 16),))
    source: Any = SimpleNamespace(read=sick, name=images.images.name)
    for _ in range(2):  # the second run meets them again, and does not write them again
        rows = run(colours, tmp_path / "out", recipe, images=dataclasses.replace(images, images=source))
        assert rows[-1]["broken"] == 4
        (tmp_path / "out" / "last.pt").unlink()
    with open(tmp_path / "out" / "broken.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["error"][:12] for row in rows) == ["Not an image"] * 2 + ["the disk is "] * 2
    assert {row["epoch"] for row in rows} == {"1", "2"}
    assert "train.parquet[7]" in {row["image"].rpartition("/")[2] for row in rows}


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_micro_batches_add_up_to_a_step(amp: str) -> None:
    """Without BatchNorm, whose statistics are a batch's own, the gradient of a step does not depend on its parts."""
    whole, images = network(group_norm=True), torch.randn(16, 3, 32, 32)
    parts = copy.deepcopy(whole)
    recipe = dataclasses.replace(RECIPE, amp=amp, lr=0.1, warmup_epochs=0.0, ema_decay=0.0)
    batch = Batch(images, torch.arange(16) % 3)
    losses = [
        Optimisation(which, recipe, Processes(), size, 9).take(batch, 0) for which, size in ((whole, None), (parts, 5))
    ]
    tolerance = {"none": 1e-5, "bf16": 2e-2, "fp16": 2e-3}[amp]
    torch.testing.assert_close(losses[0], losses[1], rtol=tolerance, atol=tolerance)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def test_a_scaler_leaves_out_a_step_that_overflows() -> None:
    recipe = dataclasses.replace(RECIPE, amp="fp16", lr=0.1, warmup_epochs=0.0)
    made = network()
    before = copy.deepcopy(made.state_dict())
    steps = Optimisation(made, recipe, Processes(), None, 9)
    assert "scaler" in steps.parts()
    made.fc.weight.register_hook(lambda gradient: gradient * torch.inf)
    steps.take(Batch(torch.randn(4, 3, 32, 32), torch.arange(4) % 3), 0)
    assert torch.equal(made.fc.weight, before["fc.weight"])
    assert steps.scaler.get_scale() < 65536
    momenta = [state["momentum_buffer"] for state in steps.optimizer.state.values()]
    assert len(momenta) == len([*made.parameters()])
    assert not any(momentum.any() for momentum in momenta)  # and not what was in memory


def test_the_average_begins_after_the_warmup() -> None:
    """As torchvision's: until then it is a copy."""
    recipe = dataclasses.replace(RECIPE, warmup_epochs=0.5, ema_decay=0.9)
    steps = Optimisation(network(), recipe, Processes(), None, 4)
    equal = []
    for step in range(4):
        steps.take(Batch(torch.randn(4, 3, 32, 32), torch.arange(4) % 3), step)
        equal.append(torch.equal(steps.averaged.fc.weight, steps.network.fc.weight))
    assert equal == [True, True, True, False]


@pytest.mark.parametrize("option", ["grad_checkpointing", "channels_last"])
def test_options_that_change_no_result(option: str) -> None:
    one, images = network(), torch.randn(16, 3, 32, 32)
    other = copy.deepcopy(one)
    if option == "grad_checkpointing":
        other.set_grad_checkpointing()
    recipe = dataclasses.replace(RECIPE, warmup_epochs=0.0, ema_decay=0.0, channels_last=False)
    for which, chosen in ((one, recipe), (other, dataclasses.replace(recipe, channels_last=option[0] == "c"))):
        Optimisation(which, chosen, Processes(), None, 9).take(Batch(images, torch.arange(16) % 3), 0)
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_learning_rate_of_a_shortened_run_falls_to_zero() -> None:
    steps = Optimisation(network(), RECIPE, Processes(), None, 9)
    assert steps.lr_share(2) == RECIPE.lr_share(2)
    steps.epochs = 2
    assert [steps.lr_share(epoch) for epoch in (1, 2)] == [RECIPE.lr_share(2), RECIPE.lr_share(4)]


def test_groups_of_parameters() -> None:
    made = network()
    recipe = dataclasses.replace(RECIPE, lr=0.1, lr_batch=8, layer_decay=0.5, head_lr=4.0, weight_decay=0.01)
    groups = {id(p): (g["lr"], g["weight_decay"]) for g in parameter_groups(made, recipe) for p in g["params"]}
    assert len(groups) == len(list(made.parameters()))
    assert groups[id(made.fc.weight)] == (0.8, 0.01)
    assert groups[id(made.fc.bias)] == (0.8, 0.0)
    assert groups[id(made.layer4[0].conv1.weight)] == (0.1, 0.01)
    assert groups[id(made.layer4[0].bn1.weight)] == (0.1, 0.0)
    assert groups[id(made.conv1.weight)] == pytest.approx((0.2 / 32, 0.01))  # 0.1 for 8 images is 0.2 for 16
    decayed = parameter_groups(made, dataclasses.replace(recipe, undecayed=("norm",)))
    assert next(g for g in decayed if any(p is made.fc.bias for p in g["params"]))["weight_decay"] == 0.01


def test_what_is_frozen_does_not_move(colours: Path, tmp_path: Path) -> None:
    start = network().state_dict()
    short = dataclasses.replace(RECIPE, phases=(Phase(1, 16),), ema_decay=0.0, warmup_epochs=0.0)
    free = {key for key in start if "conv" in key or "downsample.0" in key or key.startswith("fc")}
    for option, expected in (("head_only", {"fc.weight", "fc.bias"}), ("freeze_norm", free)):
        run(colours, tmp_path / option, dataclasses.replace(short, **{option: True}))
        found = weights(tmp_path / option)
        assert {key for key, value in found.items() if not torch.equal(value, start[key])} == expected
    run(colours, tmp_path / "stages", dataclasses.replace(short, freeze=3))
    found = weights(tmp_path / "stages")
    moved = {key.partition(".")[0] for key, value in found.items() if not torch.equal(value, start[key])}
    assert moved == {"layer3", "layer4", "fc"}
    made = network()
    Optimisation(made, short, Processes(), None, 9).training_mode()
    assert all(module.training for module in made.modules())


def torchrun(*arguments: str | Path) -> str:
    """Run something in two processes; return what they printed as errors."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_two_processes_share_the_work(colours: Path, tmp_path: Path) -> None:
    """As torchrun starts them: one log, one checkpoint, and both end."""
    out = tmp_path / "out"
    arguments = command(tmp_path / "recipe.toml", colours, out, in_memory=True, held_out=16, lr=0.02)
    said = torchrun("-m", "resnext_hub.training", *arguments, "--workers", "0", "--micro-batch", "4")
    assert [row["epoch"] for row in curve(out)] == ["1", "2"]
    assert torch.load(out / "last.pt", weights_only=True)["progress"]["step"] == 16  # 128 images, 8 batches an epoch
    assert said.count("epoch 2 of 2: loss") == 1
    assert len(list(out.glob("out-*.pth"))) == 1


def test_two_processes_start_from_the_same_fitted_head(colours: Path, tmp_path: Path) -> None:
    words = ["train", "--variant", "resnext_tiny", "--data", str(colours), "--threads", "1", "--workers", "0"]
    words += ["--epochs", "1", "--out"]
    assert main([*words, str(tmp_path / "one")]) == 0
    said = torchrun("-m", "resnext_hub.training", *words[1:], tmp_path / "two")
    assert said.count("head was fitted") == said.count("epoch 1 of 1") == 1
    one, two = (torch.load(tmp_path / name / "head.pt", weights_only=True) for name in ("one", "two"))
    assert torch.equal(one["weight"], two["weight"])
    assert len(list((tmp_path / "two").glob("two-*.pth"))) == 1
    a, b = (float(curve(tmp_path / name)[0]["loss"]) for name in ("one", "two"))
    assert a == pytest.approx(b, rel=0.02, abs=1e-3)


RANK = """
import datetime
from pathlib import Path
from resnext_hub.processes import Processes
from resnext_hub.tests.support.training_runs import run
from resnext_hub.tests.training.test_training import GENTLE
with Processes.here().joined(datetime.timedelta(minutes=5)):
    run(Path({data!r}), Path({out!r}), GENTLE, group_norm=True)
"""


def test_two_processes_train_as_one_does(colours: Path, tmp_path: Path) -> None:
    """The same images in the same steps; with GroupNorm the gradients, and so the weights, are the same to rounding."""
    run(colours, tmp_path / "1", GENTLE, group_norm=True)
    (tmp_path / "rank.py").write_text(RANK.format(data=str(colours), out=str(tmp_path / "2")))
    torchrun(tmp_path / "rank.py")
    one, two = (curve(tmp_path / n) for n in "12")
    assert float(one[0]["val_loss"]) > 0.1  # not learned by heart yet: there is something to compare
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "val_loss", "val_top1"):
            assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-4, abs=1e-4), key


def test_publishing_keeps_the_values_to_half_precision(tmp_path: Path) -> None:
    made = network()
    path = publish_half(made.state_dict(), tmp_path, "small")
    assert path.name == f"small-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    again = build(SMALL, 3)
    load_into(again, read_state_dict(path))
    for a, b in zip(made.parameters(), again.parameters(), strict=True):
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
