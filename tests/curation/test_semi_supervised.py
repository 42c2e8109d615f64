"""From a teacher to its student: train, classify, select, train, fine-tune, by the commands of docs/training.md."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from resnext_hub.cli import main
from resnext_hub.curation import hashtags
from resnext_hub.data.labels import list_images
from resnext_hub.data.splits import relabelled
from resnext_hub.models.manifest import find_checkpoint
from resnext_hub.training.batches import FromFiles
from resnext_hub.training.recipe import Phase, Recipe

from ..support.data_sets import tar, write

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("duckdb")
KINDS = ("red", "green", "blue")


def picture(kind: int, number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 90, (64, 64, 3), np.uint8)
    pixels[:, :, kind] += 150
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def collection(top: Path) -> str:
    """24 images without classes, each with a caption: number i is of kind i % 3."""
    members = {f"{i:02}{suffix}": b"a caption" if suffix == ".txt" else picture(i % 3, i)
               for i in range(24) for suffix in (".png", ".txt")}  # fmt: skip
    return str(tar(top / "u.tar", members))


def test_a_student_learns_from_what_its_teacher_chose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled, source = tmp_path / "labelled", collection(tmp_path)
    for kind, name in enumerate(KINDS):
        for i in range(10):
            write(labelled / ("val" if i < 2 else "train") / name / f"{i}.png", picture(kind, 100 + i))
    teacher, student, final = (tmp_path / name for name in ("teacher", "student", "final"))
    scores, chosen = str(tmp_path / "scores.parquet"), str(tmp_path / "selected.parquet")

    def train(out: Path, epochs: int, *more: str) -> None:
        common = ["--workers", "0", "--batch", "8", "--set", "amp=none", "--epochs", str(epochs), "--out", str(out)]
        assert main(["train", *common, *more]) == 0

    train(teacher, 4, "--variant", "resnext_tiny", "--data", str(labelled))
    assert main(["classify", source, "--variant", str(teacher), "--top", "2", "--out", scores]) == 0
    assert main(["select", scores, "--per-class", "6", "--max-classes", "2", "--out", chosen]) == 0
    rows = pq.read_table(chosen).to_pylist()
    assert len(rows) == 18
    assert sum(row["index"] % 3 == KINDS.index(row["synset"]) for row in rows) >= 16
    recipe = ["--recipe", "semi_pretrain", "--set", "architecture=resnext_tiny", "--set", "eval_size=64"]
    table = ["--label-table", chosen, "--classes", str(teacher / "labels.tsv"), "--val", str(labelled / "val")]
    train(student, 2, *recipe, "--data", source, *table)
    train(final, 2, "--variant", str(student), "--recipe", "wsl_finetune", "--data", str(labelled))
    assert "18 images for training" in capsys.readouterr().err
    assert find_checkpoint(final).num_classes == 3


def test_hashtags_are_trained_on(tmp_path: Path) -> None:
    source = collection(tmp_path)
    names = [f"x{i}" for i in range(24)]
    tags = [["#Red"] if i % 3 == 0 else ["green", "#red"] if i % 3 == 1 else ["#nothing"] for i in range(24)]
    pq.write_table(pa.table({"image": names, "index": range(24), "hashtags": tags}), tmp_path / "tags.parquet")
    hashtags.make_targets(str(tmp_path / "tags.parquet"), tmp_path / "t.parquet", {"red": (0,), "green": (1,)})
    images = relabelled(list_images([source], labelled=False), str(tmp_path / "t.parquet"), ["red", "green"])
    assert len(images) == 16
    assert images.repeat_factors is not None
    recipe = Recipe((Phase(2, 16),), batch_size=4).resolved(None, None)
    train_set = FromFiles(recipe, images)
    assert len(train_set) == int(images.repeat_factors.sum()) >= 16
    found = np.concatenate([batch.labels.numpy() for batch in train_set.batches(0, 0, 0, 1)])
    assert {tuple(row) for row in found.tolist()} == {(1.0, 0.0), (0.5, 0.5)}
