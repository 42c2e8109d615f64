"""Every command of docs/deploy.md that runs without Docker, a cluster and a GPU, with resnext_tiny and few photos."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from resnext_hub.cli import main
from resnext_hub.data.photos import sample_photos
from resnext_hub.packages import missing

from ..conftest import ROOT
from ..support.pages import blocks, shell_lines

pytestmark = pytest.mark.skipif(
    bool(missing(["onnxruntime", "onnx", "onnxscript"])), reason="needs pip install .[deploy]"
)

LINES = [words for line in shell_lines("docs/deploy.md") if (words := shlex.split(line, comments=True))]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for i, pixels in enumerate(sample_photos(12)):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i:02}.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_exports_run(here: Path) -> None:
    """Those in int8 and in an old opset take long, and are run by tests/deploy."""
    exports = [words[1:] for words in LINES if words[:2] == ["resnext-hub", "export"]]
    exports = [words for words in exports if not {"int8", "--opset"} & set(words)]
    assert {words[words.index("--to") + 1] for words in exports} == {"onnx", "torch-export", "triton"}
    for words in exports:
        variant = ["--name", Path(words[2]).name] if "triton" in words and "--name" not in words else []
        assert main(["export", "--variant", "resnext_tiny", *words[3:], *variant]) == 0, words
    folders = [words[words.index("--out") + 1] for words in exports if "triton" not in words]
    assert [folder for folder in folders if not (here / folder / "README.md").is_file()] == []
    assert {path.name for path in (here / "models" / "resnext50_32x4d_swsl_network").glob("[0-9]")} == {"1", "2"}


def test_the_calls_from_python_run(here: Path) -> None:
    """The call of `export` and of `add_to_repository`; the client is run by tests/deploy."""
    calls = [block for block in blocks("docs/deploy.md", "python") if "resnext_hub" in block]
    assert len(calls) == 2
    for block in calls:
        exec(block.replace("resnext50_32x4d_swsl", "resnext_tiny"), {})


@functools.cache
def help_of(script: str, *subcommand: str) -> str:
    command = [sys.executable, ROOT / script, *subcommand, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_files_and_options_of_the_other_commands_exist() -> None:
    for words in (words for words in LINES if words[0] != "resnext-hub"):
        for word in words:
            if re.fullmatch(r"(deploy|benchmarks)/\S+\.\w+", word):
                assert (ROOT / word).is_file(), word
        if words[:1] == ["python"] and words[1].startswith("benchmarks/"):
            known = help_of(words[1], *(word for word in words if word in ("accuracy", "speed")))
            assert [word for word in words if word.startswith("--") and word not in known] == []
