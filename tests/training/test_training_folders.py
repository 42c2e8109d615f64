"""``train --out FOLDER`` where FOLDER is from someone else: nothing outside it is touched, its checkpoint is data."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from resnext_hub.errors import CheckpointError, OutputError
from resnext_hub.models.checkpoints import read_training_state
from resnext_hub.training.checkpoint import digest
from resnext_hub.training.recipe import Phase

from ..support import hostile
from ..support.training_runs import RECIPE, run

SHORT = dataclasses.replace(RECIPE, phases=(Phase(1, 16),))


@pytest.fixture(scope="module")
def finished(colours: Path, tmp_path_factory: Any) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    run(colours, out, SHORT)
    return out


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> Path:
    """A finished run's folder."""
    return shutil.copytree(finished, tmp_path / "out")


def test_a_training_checkpoint_is_read_completely(done: Path) -> None:
    ours, theirs = read_training_state(done / "last.pt"), torch.load(done / "last.pt", weights_only=True)

    def compare(a: Any, b: Any) -> None:
        if isinstance(b, dict):
            assert list(a) == list(b)
            for key in b:
                compare(a[key], b[key])
        elif isinstance(b, list | tuple):
            assert type(a) is type(b)
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                compare(x, y)
        elif isinstance(b, torch.Tensor):
            assert torch.equal(a, b)
            assert (a.dtype, a.stride()) == (b.dtype, b.stride())
        else:
            assert (type(a), repr(a)) == (type(b), repr(b))  # NaN equals nothing

    compare(ours, theirs)


def rewritten(path: Path, pickled: bytes) -> None:
    """The same archive with another pickle."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, pickled if name.endswith("/data.pkl") else content)
    path.write_bytes(made.getvalue())


def nested(times: int) -> bytes:
    return b")" + b"\x85" * times


TERABYTE = hostile.call(hostile.name("builtins", "bytearray"), hostile.number(2**40))
PICKLES: dict[str, bytes] = {
    "a nested key": hostile.PROTO + b"}" + nested(2_000_000) + b"Ns.",
    "a nested value": hostile.PROTO + b"}" + hostile.text("recipe") + nested(2_000_000) + b"s.",
    "a doubled value": hostile.PROTO + b"}" + hostile.text("recipe") + hostile.doubled() + b"s.",
    "a doubled key": hostile.PROTO + b"}" + hostile.doubled() + b"Ns.",
    "a terabyte": hostile.PROTO + b"}" + hostile.text("recipe") + TERABYTE + b"s.",
    "code": pickle.dumps(print, 2),
    "a list": b"\x80\x02].",
    "nothing": b"",
}  # fmt: skip
# Resumes the run in each folder in a process of its own, within bounds, and prints what it raised.
TRAIN = """
import os, resource, sys
from pathlib import Path
from resnext_hub.tests.training.test_training_folders import SHORT, run
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
for folder in sys.argv[2:]:
    if not os.fork():
        resource.setrlimit(resource.RLIMIT_AS, (size + (4 << 30), size + (4 << 30)))
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        try:
            run(Path(sys.argv[1]), Path(folder), SHORT)
        except Exception as error:
            print(type(error).__name__, flush=True)
        os._exit(0)
    print(folder, os.wait()[1], flush=True)
"""


def test_a_hostile_checkpoint_is_an_error_and_no_crash(finished: Path, colours: Path, tmp_path: Path) -> None:
    folders = [shutil.copytree(finished, tmp_path / case) for case in PICKLES]
    for folder, pickled in zip(folders, PICKLES.values(), strict=True):
        rewritten(folder / "last.pt", pickled)
    command = [sys.executable, "-c", TRAIN, colours, *folders]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    expected = [line for folder in folders for line in ("CheckpointError", f"{folder} 0")]
    assert ran.stdout.splitlines() == expected, ran.stderr[-2000:]


STATES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no network": lambda s: s.pop("network"),
    "another shape": lambda s: s["network"].update({"fc.bias": torch.zeros(7)}),
    "a number as a weight": lambda s: s["network"].update({"fc.bias": 1.0}),
    "text as a learning rate": lambda s: s["optimizer"]["param_groups"][0].update(lr="x"),
    "one group less": lambda s: s["optimizer"]["param_groups"].pop(),
    "an option more": lambda s: s["optimizer"]["param_groups"][0].update(capturable=[]),
    "momenta by name": lambda s: s["optimizer"].update(state={"x": {}}),
    "momenta of another shape": lambda s: s["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(1)),
    "a step below zero": lambda s: s["progress"].update(step=-1),
    "a step far away": lambda s: s["progress"].update(step=10**18),
    "a fraction of a step": lambda s: s["progress"].update(step=0.5),
    "no rows": lambda s: s["progress"].update(rows=None),
    "a row of text": lambda s: s["progress"]["rows"][0].update(val_top1="x"),
    "a row without columns": lambda s: s["progress"].update(rows=[{}]),
    "more progress": lambda s: s["progress"].update(more=1),
    "no progress": lambda s: s.pop("progress"),
    "a number as its identity": lambda s: s.update(identity=1),
    "an identity nested too deep": lambda s: s.update(identity="[" * 100_000),
    "a schedule elsewhere": lambda s: s["scheduler"].update(last_epoch=10**9),
    "a schedule of text": lambda s: s["scheduler"].update(base_lrs="x"),
    "no average": lambda s: s.update(average={}),
}  # fmt: skip


def test_a_checkpoint_of_another_form_is_a_sentence(done: Path, colours: Path) -> None:
    good = (done / "last.pt").read_bytes()
    for case, change in STATES.items():
        state = torch.load(io.BytesIO(good), weights_only=True)
        del state["sha256"]
        change(state)
        state["sha256"] = digest(state)
        torch.save(state, done / "last.pt")
        with pytest.raises(CheckpointError) as error:
            run(colours, done, SHORT)
        assert len(str(error.value)) < 1000, case
        assert "last.pt" in str(error.value), case
    (done / "last.pt").write_bytes(good)
    assert run(colours, done, SHORT)[0]["epoch"] == 1
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    (done / "last.pt").write_bytes(flipped)
    with pytest.raises(CheckpointError):
        run(colours, done, SHORT)


WRITTEN = ["last.pt", "weights.pt", "run.json", "log.csv", "broken.csv", "previous.pt", ".lock", "labels.tsv",
           "weights_manifest.json", "curves.png", "tensorboard"]  # fmt: skip


@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe"])
def test_links_out_of_the_folder_and_pipes_are_refused(kind: str, done: Path, colours: Path, tmp_path: Path) -> None:
    for name in WRITTEN:
        out = tmp_path / "theirs"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(done, out)
        (out / name).unlink(missing_ok=True)
        outside = tmp_path / "outside"
        outside.write_bytes(b"precious")
        if kind == "pipe":
            os.mkfifo(out / name)
        else:
            (out / name).symlink_to(outside if kind == "link" else tmp_path / "new")
        with pytest.raises(OutputError, match=name):
            run(colours, out, SHORT)
        assert outside.read_bytes() == b"precious"
        assert not (tmp_path / "new").exists()
