"""A short form of tests/fuzz: the seeds, what fuzzing has found, and a fixed number of runs of each fuzzer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from .conftest import ROOT
from .fuzz import seeds, targets

pytestmark = pytest.mark.usefixtures("no_proxies")


def test_the_seeds_of_uris_end_as_they_should() -> None:
    with targets.quick_tls(), warnings.catch_warnings():
        fetched = {name: targets.fetch_uri(data) for name, data in seeds.uris()}
    got = {name for name, body in fetched.items() if body == b"image"}
    assert {"host0", "host1", "host7", "redirect0", "redirect1", "answer0", "answer1", "answer2", "data0"} <= got
    refused = {"host2", "host3", "host4", "host5", "host6", "host8", "private", "redirect2", "redirect9", "answer4"}
    assert not got & refused


@pytest.mark.parametrize(
    ("address", "public"),
    [("8.8.8.8", True), ("10.0.0.1", False), ("::ffff:8.8.8.8", True), ("::ffff:10.0.0.1", False),
     ("fe80::1%lo", False), ("2002:808:808::", True), ("2002:a00:1::", False), ("64:ff9b::a00:1", False),
     ("2606:2800:220:1::1", True)],
)  # fmt: skip
def test_the_judge_of_addresses(address: str, public: bool) -> None:
    assert targets.is_public(address) == public


def run(kind: str, *options: str, timeout: int) -> str:
    pytest.importorskip("atheris", reason="needs the extra 'fuzz'")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # Through a shell, which forks: libFuzzer counts the peak memory that a process inherits from its parent.
    done = subprocess.run(
        ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, str(ROOT / "tests" / "fuzz" / "fuzz.py"), kind, *options],
        env=environment, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


@pytest.mark.parametrize(("kind", "runs"), [("image", 1000), ("uri", 3000), ("data", 1000)])
def test_a_few_runs_of_each_fuzzer(kind: str, runs: int, tmp_path: Path) -> None:
    shown = run(kind, f"-runs={runs}", "-seed=1", f"-artifact_prefix={tmp_path}/", timeout=600)
    assert int(re.findall(r"cov: (\d+)", shown)[-1]) > 300, "it is not guided by coverage"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.soak
@pytest.mark.parametrize("kind", seeds.SEEDS)
def test_ten_minutes_of_each_fuzzer(kind: str, tmp_path: Path) -> None:
    run(kind, "-max_total_time=600", f"-artifact_prefix={tmp_path}/", timeout=1800)
    assert list(tmp_path.iterdir()) == []
