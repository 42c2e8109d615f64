"""Every command of docs/training.md, in order, on small stand-ins for the data that it names."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from resnext_hub.cli import main
from resnext_hub.models.manifest import find_checkpoint
from resnext_hub.processing_utils.labels import read_labels

from ..conftest import ROOT

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("duckdb", reason="the extra train")

LINES = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / "training.md").read_text(), re.M | re.S)
    for line in block.replace("\\\n", " ").splitlines()
]
#: What stands for what a test does not have: published weights, a bucket, a teacher, hours.
STAND_INS = (
    ("--variant resnext50_32x4d_swsl", "--variant resnext_tiny"),
    ("s3://bucket/", "images/"),
    ("{00000..99999}", "{00000..00001}"),
    ("--variant resnet18_swsl", "--variant resnext_tiny"),
    ("TEACHER", "runs/flowers"),
    ("torchrun --nproc-per-node 8 -m resnext_hub.training", "resnext-hub train"),  # torchrun: tests/training
    ("--workers 8", ""),
    ("--images 20000000", "--images 2000"),
)
CLASSES = [label.synset for label in read_labels("tiny-imagenet-200")][:10]  # --top 10


def photo(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the page's commands read."""
    for folder in ("flowers", "imagenet/train", "imagenet/val", "val", "labelled/train", "labelled/val"):
        for number, name in enumerate(CLASSES):
            (tmp_path / folder / name).mkdir(parents=True)
            for i in range(2):
                (tmp_path / folder / name / f"{i}.png").write_bytes(photo(number))
    (tmp_path / "photo.jpg").write_bytes(photo(0))
    (tmp_path / "images").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "images" / f"shards-{shard:05}.tar", "w") as tar:
            for i in range(10):
                info = tarfile.TarInfo(f"{i}.png")
                info.size = len(photo(i))
                tar.addfile(info, io.BytesIO(photo(i)))
    (tmp_path / "tags").mkdir()
    tags = {"image": [f"{i}.png" for i in range(20)], "index": range(20), "hashtags": [["#goldfish", "#Tench"]] * 20}
    pq.write_table(pa.table(tags), tmp_path / "tags" / "part.parquet")
    (tmp_path / "tiny-imagenet-200").mkdir()
    names = {"name": [f"{i}.jpg" for i in range(20)], "wnid": CLASSES * 2}
    pq.write_table(pa.table(names), tmp_path / "tiny-imagenet-200" / "train-0.parquet")
    for name in ("processing_utils", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str) -> int:
    for text, stand_in in STAND_INS:
        line = line.replace(text, stand_in)
    first, *words = shlex.split(line, comments=True)
    if "train" in words:
        words += ["--epochs", "1", "--batch", "4", "--workers", "0", "--threads", "1"]
        words += ["--set", "amp=none"]
        words += [] if "--variant" in words else ["--set", "architecture=resnext_tiny"]
    if first == "resnext-hub":
        return main(words)
    words = [str(p) for word in words for p in (sorted(Path().glob(word)) if "*" in word else [word])]  # as a shell
    return subprocess.run([sys.executable, *words]).returncode


def test_each_command_runs(here: Path) -> None:
    lines = [line for line in LINES if not line.startswith("pip install")]
    assert len(lines) >= 14
    for line in lines:
        assert run(line) == 0, line
    for name in ("flowers", "nvidia", "weak-finetuned", "final", "distilled"):
        assert find_checkpoint(here / "runs" / name).num_classes == 10
    assert pq.read_table(here / "selected.parquet")["index"].null_count == 0
    assert pq.read_metadata(here / "simulated.parquet").num_rows > 0
