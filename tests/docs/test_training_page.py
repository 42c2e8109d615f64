"""Every command of docs/training.md, in order, on small stand-ins for the data that it names."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from resnext_hub.cli import main
from resnext_hub.models.manifest import find_checkpoint
from resnext_hub.processing_utils.labels import read_labels

from ..conftest import ROOT
from ..support.pages import shell_lines

pq = pytest.importorskip("pyarrow.parquet")
from ..support.data_sets import picture, table, tar, write  # noqa: E402  (needs pyarrow)

pytest.importorskip("duckdb", reason="the extra train")

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


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the page's commands read."""
    for folder in ("flowers", "imagenet/train", "imagenet/val", "val", "labelled/train", "labelled/val"):
        for number, name in enumerate(CLASSES):
            for i in range(2):
                write(tmp_path / folder / name / f"{i}.png", picture(number))
    write(tmp_path / "photo.jpg", picture(0))
    rows = [f"flowers/{name}/{i}.png,{name}|{CLASSES[i]}" for name in CLASSES for i in range(2)]
    write(tmp_path / "photos.csv", "\n".join(["image,label", *rows]))
    for shard in range(2):
        tar(tmp_path / "images" / f"shards-{shard:05}.tar", {f"{i}.png": picture(i) for i in range(10)})
    tags = {"image": [f"{i}.png" for i in range(20)], "index": range(20), "hashtags": [["#goldfish", "#Tench"]] * 20}
    table(tmp_path / "tags" / "part.parquet", tags)
    names = {"name": [f"{i}.jpg" for i in range(20)], "wnid": CLASSES * 2}
    table(tmp_path / "tiny-imagenet-200" / "train-0.parquet", names)
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
        words += ["--set", "amp=none", "--set", "phases=[{epochs=1,image_size=32}]"]
        words += [] if "--variant" in words else ["--set", "architecture=resnext_tiny", "--set", "eval_size=32"]
    if first == "resnext-hub":
        return main(words)
    words = [str(p) for word in words for p in (sorted(Path().glob(word)) if "*" in word else [word])]  # as a shell
    return subprocess.run([sys.executable, *words]).returncode


def test_each_command_runs(here: Path) -> None:
    lines = [line for line in shell_lines("docs/training.md") if not line.startswith("pip install")]
    assert len(lines) >= 14
    for line in lines:
        assert run(line) == 0, line
    for name in ("flowers", "photos", "nvidia", "weak-finetuned", "final", "distilled"):
        assert find_checkpoint(here / "runs" / name).num_classes == 10
    assert pq.read_table(here / "selected.parquet")["index"].null_count == 0
    assert pq.read_metadata(here / "simulated.parquet").num_rows > 0
