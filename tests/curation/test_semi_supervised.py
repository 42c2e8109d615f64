"""From a teacher to its student: train, classify, select, train, fine-tune, by the commands of docs/training.md."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from resnext_hub.cli import main
from resnext_hub.curation import hashtags
from resnext_hub.data.labels import list_images
from resnext_hub.data.splits import relabelled
from resnext_hub.inference.bulk import classify_many
from resnext_hub.models.manifest import find_checkpoint
from resnext_hub.training.batches import FromFiles
from resnext_hub.training.recipe import Phase, Recipe

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


def collection(layout: str, path: Path) -> str:
    """24 images without classes: number i is of kind i % 3."""
    images = [picture(i % 3, i) for i in range(24)]
    if layout == "table":
        pq.write_table(
            pa.table({"name": [f"{i}" for i in range(24)], "image": images}), path / "u.parquet", row_group_size=5
        )
        return str(path / "u.parquet")
    if layout == "archive":
        with tarfile.open(path / "u.tar", "w") as tar:
            for i, image in enumerate(images):
                for name, data in ((f"{i:02}.png", image), (f"{i:02}.txt", b"a caption")):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        return str(path / "u.tar")
    for i, image in enumerate(images):
        where = path / "u" / ("a" if i < 9 else "b.c" if i < 12 else "b")
        where.mkdir(parents=True, exist_ok=True)
        (where / f"{i:02}.png").write_bytes(image)
    return str(path / "u")


@pytest.mark.parametrize("layout", ["folder", "archive", "table"])
def test_numbers_mean_the_same_to_classify_and_to_training(layout: str, tmp_path: Path) -> None:
    source = collection(layout, tmp_path)
    classify_many(source, tmp_path / "scores.parquet", "resnext_tiny", engine="torch", top=1)
    table = pq.read_table(tmp_path / "scores.parquet")
    images = list_images([source], labelled=False).images
    assert table["index"].to_pylist() == list(range(24)) == list(range(len(images)))
    if layout != "table":
        assert [Path(n.rpartition(":")[2]).name for n in table["image"].to_pylist()] == [
            Path(images.name(i).rpartition(":")[2]).name for i in range(24)
        ]
    made = [picture(i % 3, i) for i in range(24)]
    expected = made if layout != "folder" else [*made[:9], *made[12:], *made[9:12]]  # b before b.c
    assert [images.read(i) for i in range(24)] == expected


def test_a_student_learns_from_what_its_teacher_chose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled, source = tmp_path / "labelled", collection("archive", tmp_path)
    for kind, name in enumerate(KINDS):
        for i in range(10):
            where = labelled / ("val" if i < 2 else "train") / name
            where.mkdir(parents=True, exist_ok=True)
            (where / f"{i}.png").write_bytes(picture(kind, 100 + i))
    teacher, student, final = (tmp_path / name for name in ("teacher", "student", "final"))
    common = ["--workers", "0", "--batch", "8"]
    run = ["train", "--variant", "resnext_tiny", "--data", str(labelled), "--out", str(teacher), "--epochs", "4"]
    assert main([*run, *common]) == 0
    scores, chosen = str(tmp_path / "scores.parquet"), str(tmp_path / "selected.parquet")
    assert main(["classify", source, "--variant", str(teacher), "--top", "2", "--out", scores]) == 0
    assert main(["select", scores, "--per-class", "6", "--max-classes", "2", "--out", chosen]) == 0
    table = pq.read_table(chosen)
    assert len(table) == 18
    right = sum(
        i % 3 == KINDS.index(s) for i, s in zip(*(table[c].to_pylist() for c in ("index", "synset")), strict=True)
    )
    assert right >= 16
    run = [
        "train",
        "--recipe",
        "semi_pretrain",
        "--set",
        "architecture=resnext_tiny",
        "--set",
        "amp=none",
        "--data",
        source,
    ]
    run += ["--label-table", chosen, "--classes", str(teacher / "labels.tsv"), "--val", str(labelled / "val")]
    assert main([*run, "--out", str(student), "--epochs", "2", *common, "--set", "eval_size=64"]) == 0
    run = ["train", "--variant", str(student), "--recipe", "wsl_finetune", "--data", str(labelled), "--out", str(final)]
    assert main([*run, "--epochs", "2", "--set", "amp=none", *common]) == 0
    assert "18 images for training" in capsys.readouterr().err
    assert find_checkpoint(final).num_classes == 3


def test_hashtags_are_trained_on(tmp_path: Path) -> None:
    source = collection("archive", tmp_path)
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
