"""Runs from the command line: what they refuse, how they stop and resume, and what they leave in their folder."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch
from PIL import Image
from resnext_hub.cli import main
from resnext_hub.data.held_out import held_out_rows
from resnext_hub.data.labels import list_images
from resnext_hub.errors import SourceError
from resnext_hub.models.manifest import find_checkpoint
from resnext_hub.training.display import Display, watched

from ..support.training_runs import curve, same, weights

RECIPE = """
architecture = "resnext_tiny"
batch_size = 8
lr = 0.01
warmup_epochs = 0.0
weight_decay = 0.0
eval_size = 32
eval_resize = 32
[[phases]]
epochs = 2
image_size = 16
"""


def pictures(folder: Path, colour: tuple[int, int, int], count: int, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        noise = np.random.default_rng(i).integers(-40, 40, (32, 32, 3))
        Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(folder / f"{i:03}.png")


def made(top: Path) -> Path:
    """Two classes that colour tells apart, 20 images each, and the recipe."""
    pictures(top / "data" / "green", (60, 200, 60), 20)
    pictures(top / "data" / "red", (200, 60, 60), 20)
    (top / "recipe.toml").write_text(RECIPE)
    return top / "data"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return made(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: Any) -> Path:
    """A finished run's folder, to be copied."""
    top = tmp_path_factory.mktemp("finished")
    assert train(made(top), top / "out") == 0
    return top / "out"


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A finished run over ``data``, which lies elsewhere now."""
    return shutil.copytree(finished, tmp_path / "out")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: Any) -> Path:
    """The folder of a run that was stopped after its third step, to be copied."""
    top = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        assert train(made(top), top / "out", "--checkpoint-seconds", "0") == 130
    return top / "out"


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    start = [] if "--variant" in more else ["--recipe", str(data.parent / "recipe.toml")]
    return ["train", *start, "--data", str(data), "--out", str(out), "--workers", "0", "--threads", "1", *more]


def train(data: Path, out: Path, *more: str) -> int:
    return main(arguments(data, out, *more))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def stop_after(monkeypatch: pytest.MonkeyPatch, checkpoints: int) -> None:
    """Raise KeyboardInterrupt, as a second Ctrl-C does, after that many checkpoints."""
    from resnext_hub.training import checkpoint

    write, count = checkpoint.write, 0

    def counted(*args: object) -> None:
        nonlocal count
        write(*args)  # type: ignore[arg-type]
        count += 1
        if count == checkpoints:
            monkeypatch.setattr(checkpoint, "write", write)
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write", counted)


CHANGES: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "a renamed class": (lambda data: (data / "red").rename(data / "crimson"), [], "classes"),
    "a class more": (lambda data: pictures(data / "zinc", (90, 90, 90), 20), [], "classes"),
    "more photos": (lambda data: pictures(data / "red", (200, 60, 60), 30, 20), [], "training_images"),
    "other labels": (lambda data: (data / "red" / "000.png").rename(data / "green" / "100.png"), [], "_images"),
    "another recipe": (Path.exists, ["--set", "lr=0.5"], "recipe.lr 0.01, now 0.5"),
    "weights": (Path.exists, ["--variant", "resnext_tiny", "--recipe", "recipe.toml"], "start"),
    "micro-batches": (Path.exists, ["--micro-batch", "4"], "micro_batch"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_identity_is_not_resumed(
    change: str, data: Path, out: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before, (do, more, named) = contents(out), CHANGES[change]
    do(data)
    assert train(data, out, *more) == 2
    said = capsys.readouterr().err
    assert named in said
    assert "--out" in said
    assert contents(out) == before


def test_the_same_data_elsewhere_is_the_same_run(data: Path, out: Path, capsys: Any) -> None:
    (weights_file,) = out.glob("out-*.pth")
    written = weights_file.stat().st_mtime_ns
    assert train(data, out) == 0
    assert f"complete: {weights_file}" in capsys.readouterr().err
    assert weights_file.stat().st_mtime_ns == written


def test_a_finished_run_gets_more_epochs(data: Path, out: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    broken = shutil.copytree(out, tmp_path / "broken" / "out")
    assert train(data, out, "--epochs", "4") == 0
    said = capsys.readouterr().err
    assert "epochs 3 to 4" in said
    assert "0.005" in said  # half of the peak, where a cosine of four epochs is after two
    rows = curve(out)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[:2] == curve(broken)
    assert len(list(out.glob("out-*.pth"))) == 1

    stop_after(monkeypatch, 2)
    assert train(data, broken, "--epochs", "4", "--checkpoint-seconds", "0") == 130
    assert train(data, broken, "--epochs", "4") == 0
    assert same(weights(out), weights(broken))
    assert train(data, out) == 2
    assert "epochs" in capsys.readouterr().err


def test_an_unfinished_run_does_not_get_more_epochs(stopped: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    out = shutil.copytree(stopped, tmp_path / "out")
    assert train(data, out, "--epochs", "4") == 2
    assert "finished" in capsys.readouterr().err


def test_one_trainer_at_a_time(data: Path, out: Path, capsys: Any) -> None:
    before = contents(out)
    with filelock.FileLock(out / ".lock"):
        assert train(data, out, "--epochs", "3") == 2
    assert "Another process" in capsys.readouterr().err
    assert contents(out) == before


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def _end(pattern: bytes, content: bytes) -> int:
    found = re.search(pattern, content, re.DOTALL)
    assert found is not None
    return found.end()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "empty": lambda path: path.write_bytes(b""),
    "a bit of a weight": lambda path: _flip(path, path.stat().st_size // 2),
    # The pickle has no CRC that is checked: only the digest notices.
    "a bit of the step": lambda path: _flip(path, _end(rb"\x04\x00\x00\x00step(q.|r....)K", path.read_bytes())),
    "a digit of the identity": lambda path: path.write_bytes(path.read_bytes().replace(b'"lr": 0.01', b'"lr": 0.02')),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint(
    damage: str, finished: Path, stopped: Path, data: Path, tmp_path: Path, capsys: Any
) -> None:
    out = shutil.copytree(stopped, tmp_path / "out")
    DAMAGE[damage](out / "last.pt")
    damaged = (out / "last.pt").read_bytes()
    assert train(data, out) == 0
    said = capsys.readouterr().err
    assert all(fact in said for fact in ("last.pt", "previous.pt", "step 2 of 8"))
    assert (out / "damaged.pt").read_bytes() == damaged
    assert same(weights(finished), weights(out))
    assert curve(finished) == curve(out)


def test_two_damaged_checkpoints_are_an_error(data: Path, out: Path, capsys: Any) -> None:
    for name in ("last.pt", "previous.pt"):
        (out / name).write_bytes(b"damaged")
    assert train(data, out) == 3
    said = capsys.readouterr().err
    assert "last.pt" in said
    assert "Traceback" not in said


def test_a_full_disk(data: Path, finished: Path, small_disk: Callable[[int], Path], capsys: Any) -> None:
    disk = small_disk(24_000_000)  # one checkpoint of 15 MB
    assert train(data, disk / "out", "--checkpoint-seconds", "0") == 2
    said = capsys.readouterr().err
    assert "No space left" in said
    assert "last.pt" in said
    assert not list((disk / "out").glob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=200000000", str(disk)], check=True)
    assert train(data, disk / "out") == 0
    assert "step" in capsys.readouterr().err
    assert same(weights(finished), weights(disk / "out"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_and_a_status(number: int, status: int, data: Path, tmp_path: Path) -> None:
    """To the whole process group, with a worker, as a terminal or a scheduler sends it."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "resnext_hub", *arguments(data, out, "--epochs", "2000"), "--workers", "1"]
    # A shell lets what it starts in the background ignore Ctrl-C; this test may be such a thing.
    handled = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True, preexec_fn=handled)
    deadline = time.monotonic() + 120
    while not (out / "log.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status, said
    step = torch.load(out / "last.pt", weights_only=True)["progress"]["step"]
    assert f"step {step} of 8000" in said
    assert "Traceback" not in said
    assert not list(out.glob("*.pth"))


def test_a_loss_that_is_not_finite_has_a_status_of_its_own(data: Path, tmp_path: Path, capsys: Any) -> None:
    assert train(data, tmp_path / "out", "--set", "lr=1e30") == 5
    assert "step" in capsys.readouterr().err


def test_emulated_mixed_precision_is_left_out(data: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("resnext_hub.training.recipe.computes", lambda device, amp: False)
    assert train(data, tmp_path / "out", "--set", "amp=bf16") == 0
    assert "amp is none" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr("resnext_hub.training.recipe.computes", lambda device, amp: True)
    assert train(data, tmp_path / "out", "--set", "amp=bf16") == 2  # on another machine it is another run
    assert "recipe.amp 'none', now 'bf16'" in capsys.readouterr().err


def test_without_validation_images_no_accuracy_is_claimed(data: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    for path in data.glob("*/*.png"):
        if path.name != "000.png":
            path.unlink()
    assert train(data, out) == 0
    assert "0.00%" not in capsys.readouterr().err
    checkpoint = find_checkpoint(out)
    assert checkpoint.published.top1 is checkpoint.published.top5 is None
    assert [row["val_top1"] for row in curve(out)] == ["nan", "nan"]
    assert not (out / "held_out.tsv").exists()
    picture = str(data / "red" / "000.png")
    assert main(["classify", picture, "--variant", str(out)]) == 0
    assert main(["evaluate", "--variant", str(out), "--data", str(data)]) == 0


def test_several_sources_are_all_used(data: Path, tmp_path: Path, capsys: Any) -> None:
    pictures(tmp_path / "more" / "red", (200, 60, 60), 10)
    pictures(tmp_path / "more" / "grey", (90, 90, 90), 10)
    assert train(data, tmp_path / "out", "--data", str(tmp_path / "more")) == 0
    assert re.search("3 classes.* 54 .* 6 ", capsys.readouterr().err)


def test_the_images_held_out_are_recorded(data: Path, out: Path, tmp_path: Path) -> None:
    with open(out / "held_out.tsv", newline="") as file:
        held = list(csv.DictReader(file, dialect="excel-tab"))
    assert sorted(row["class"] for row in held) == ["green", "green", "red", "red"]

    def names(source: Path) -> set[str] | None:
        listing = list_images([str(source)])
        rows = held_out_rows(listing, out)
        return None if rows is None else {listing.images.key(int(listing.numbers[i])) for i in rows}

    expected = {row["image"] for row in held}
    assert names(data) == expected
    pictures(data / "red", (200, 60, 60), 30, 20)
    assert names(data) == expected
    shutil.rmtree(data / "green")  # a part of the data
    assert names(data) == {name for name in expected if name.startswith("red")}
    pictures(tmp_path / "other" / "red", (10, 60, 60), 20)  # the same names
    assert names(tmp_path / "other") is None
    for damaged in ("nothing\n1\n", f"image\tclass\tsha256\n{'x' * 200_000}\n"):
        (out / "held_out.tsv").write_text(damaged)
        with pytest.raises(SourceError, match="held_out.tsv"):
            names(data)
    (out / "held_out.tsv").unlink()
    assert names(data) is None


def test_a_call_from_python(data: Path, tmp_path: Path) -> None:
    from resnext_hub.training import finetune

    said: list[str] = []
    recipe = tmp_path / "recipe.toml"
    changes = {"epochs": 1}
    run = finetune("resnext_tiny", data, tmp_path / "out", recipe=recipe, changes=changes, workers=0, say=said.append)
    assert run.folder == tmp_path / "out"
    assert run.weights == find_checkpoint(run.folder).sources[0].path
    assert [label.name for label in run.labels] == ["green", "red"]
    assert [row["epoch"] for row in run.curve] == [1]
    assert run.top1 == find_checkpoint(run.folder).published.top1 / 100  # type: ignore[operator]
    assert "epoch 1 of 1" in "\n".join(said)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("terminal", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_a_bar_over_batches(terminal: type[io.StringIO], shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "stderr", terminal())
    batches = [(torch.zeros(n, 3), torch.zeros(n)) for n in (4, 2)]
    assert list(watched(iter(batches), 6, "validation")) == batches
    assert ("validation:" in sys.stderr.getvalue()) == shown  # type: ignore[attr-defined]


def test_the_progress_bar_is_of_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Display(tmp_path, 16, shown=True) as display:
        for step, steps in ((1, 8), (2, 8), (4, 4)):  # a time limit halves it
            display("step", {"step": step, "steps": steps, "loss": 0.25})
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "64/64" in shown
    assert "images/s" in shown
    assert "loss 0.250" in shown
