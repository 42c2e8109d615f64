"""The code of docs/scale.md that finds near duplicates."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from resnext_hub.cli import main

from ..conftest import ROOT

pytest.importorskip("pandas")
pytest.importorskip("pyarrow")


def test_near_duplicates(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    section = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8").split("## Find near duplicates")[1]
    command, code = (re.findall(rf"^```{kind}\n(.*?)^```$", section, re.M | re.S)[0] for kind in ("sh", "python"))
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    with Image.open(photo) as image:
        image.save("photos/a.jpg")
        image.resize((image.width // 2, image.height // 2)).save("photos/c.jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)).save("photos/b.png")
    Path("photos/broken.jpg").write_bytes(b"")
    words = shlex.split(command.replace("resnext50_32x4d_swsl", "resnext_tiny"))
    assert main(words[1:]) == 1  # the broken one
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out.split()[:2] == ["photos/a.jpg", "photos/c.jpg"]
