"""benchmarks/gpu.py, rehearsed on the CPU with the smallest sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from resnext_hub.packages import missing


@pytest.fixture(scope="module")
def benchmark(root: Path) -> Any:
    spec = spec_from_file_location("benchmarks_gpu", root / "benchmarks" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.soak
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and kills groups of processes")
def test_every_section_gives_its_rows(benchmark: Any, tmp_path: Path) -> None:
    command = [sys.executable, benchmark.__file__, "--rehearse", "--networks", "resnet18", "--batches", "1"]
    command += ["--photos", str(tmp_path), "--val", "none"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=480)
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("|")][2:]
    assert {row[0] for row in rows} == set(benchmark.SECTIONS)
    if missing(["timm"]):
        rows = [row for row in rows if "timm" not in row[1]]
    assert not [row for row in rows if "failed" in row[-1]]
    assert "- nothing\n" in done.stdout
    rates = [row for row in rows if row[0] in ("speed", "tables", "training", "compile")]
    assert all(float(row[3]) > 0 for row in rates)


def test_a_section_ends_when_its_time_is_over(benchmark: Any) -> None:
    assert list(benchmark.rows_of(["parity"], benchmark.REHEARSED, {}, 0.05, dict(os.environ))) == []
    assert sum(benchmark.SECTIONS.values()) < 8 * 60
    assert min(benchmark.SECTIONS.values()) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_how_to_rehearse(benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setitem(benchmark.SECTIONS, "card", 300)
    assert benchmark.main() == 2
    assert "--rehearse" in capsys.readouterr().err
