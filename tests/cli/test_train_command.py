"""``resnext-hub train``: from a folder of classes to a folder that every other command takes as a variant."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from resnext_hub.cli import main
from resnext_hub.inference.classifier import classifier
from resnext_hub.models.entrypoints import load
from resnext_hub.models.manifest import default_manifest, find_checkpoint
from resnext_hub.processing_utils.labels import read_labels
from resnext_hub.training.publish import gmacs
from resnext_hub.training.run import RunOptions, TrainingRun

pytest.importorskip("fsspec")
TINY = default_manifest().resolve("resnext_tiny")


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """Two classes of plain pictures, in folders."""
    for name, colour in (("daisy", (230, 230, 40)), ("rose", (200, 20, 60))):
        (tmp_path / "flowers" / name).mkdir(parents=True)
        for i in range(12):
            picture = Image.new("RGB", (80, 70), colour)
            picture.paste((10 * i, 255 - 10 * i, 90), (i, i, i + 20, i + 20))
            picture.save(tmp_path / "flowers" / name / f"{i}.jpg")
    return tmp_path / "flowers"


def train(data: Path, out: Path, *more: str) -> int:
    command = ["train", "--variant", "resnext_tiny", "--data", str(data), "--out", str(out), "--workers", "0"]
    return main([*command, "--epochs", "3", "--batch", "10", *more])


def test_a_fine_tuned_network_is_a_variant(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs" / "my flowers"
    assert train(flowers, out, "--val", str(flowers)) == 0
    said = capsys.readouterr()
    assert all(fact in said.err for fact in ("2 classes", "24 images", "24 for", "3 epochs", "1 x cpu"))
    assert said.out == ""
    assert {path.name for path in out.iterdir()} >= {
        "weights_manifest.json", "labels.tsv", "run.json", "log.csv", "curves.png", "last.pt",
    }  # fmt: skip
    with Image.open(out / "curves.png") as picture:
        assert picture.size[0] > 500
    jsonschema = pytest.importorskip("jsonschema")
    manifest = json.loads((out / "weights_manifest.json").read_text())
    schema = json.loads((default_manifest().path.parent / "weights_manifest.schema.json").read_text())
    jsonschema.validate(manifest, schema)

    checkpoint = find_checkpoint(out)
    assert (checkpoint.name, checkpoint.num_classes, checkpoint.license_id) == ("my_flowers", 2, TINY.license_id)
    assert [label.name for label in read_labels(checkpoint.labels)] == ["daisy", "rose"]
    assert checkpoint.preprocessing.crop_size == TINY.preprocessing.crop_size
    network = load(checkpoint)
    assert checkpoint.params == sum(p.numel() for p in network.parameters())
    assert checkpoint.published.top1 == 100

    photo = str(flowers / "rose" / "3.jpg")
    assert main(["classify", photo, "--variant", str(out), "--top", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    assert [p["label"] for p in found] == ["rose", "daisy"]
    assert main(["classify", str(flowers), "--variant", str(out), "--out", str(tmp_path / "t.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert {len(json.loads(row["labels"])) for row in rows} == {2}  # as many as there are classes
    assert [row["label"] for row in rows if "rose" in row["image"]].count("rose") >= 12
    assert classifier(str(out), engine="torch")(photo, 1)[0].label == "rose"


def test_few_images_train_the_head_only(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert train(flowers, out) == 0
    assert "cross-validation" in capsys.readouterr().err
    state, start = load(find_checkpoint(out)).state_dict(), load(TINY).state_dict()
    assert {key for key in state if not torch.equal(state[key], start[key])} == {"fc.weight", "fc.bias"}
    assert not (out / "held_out.tsv").exists()
    published = (out / "weights_manifest.json").read_bytes()
    assert train(flowers, out) == 0
    assert (out / "weights_manifest.json").read_bytes() == published
    capsys.readouterr()
    assert main(["evaluate", "--variant", str(out), "--data", str(flowers)]) == 0
    assert "run was trained on these images" in capsys.readouterr().out
    (flowers / "rose" / "0.jpg").unlink()
    assert train(flowers, out) == 2  # another run than the one in the folder
    assert "training_images" in capsys.readouterr().err


def test_the_better_of_head_and_fine_tuning_is_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    random, data, out = np.random.default_rng(0), tmp_path / "data", tmp_path / "run"
    for name, low in (("dark", 0), ("light", 40)):
        (data / name).mkdir(parents=True)
        for i in range(30):
            pixels = random.integers(low, low + 150, (80, 80, 3), np.uint8)
            Image.fromarray(pixels).save(data / name / f"{i}.png")
    destroyed = ["--set", "lr=1.0", "--epochs", "1"]  # such steps destroy the features
    assert train(data, tmp_path / "few", *destroyed) == 0
    assert "No image is held out" in capsys.readouterr().err
    monkeypatch.setattr("resnext_hub.training.run.LEAST_VALIDATION", 6)
    assert train(data, out, *destroyed) == 0
    said = capsys.readouterr().err
    assert "6 of 60 images" in said
    assert "the head is" in said
    assert "features of 60 images" in said  # the published head has seen all
    assert f"--data {data}" not in said  # no image is left to evaluate it
    assert not (out / "held_out.tsv").exists()
    state, start, few = (
        load(at).state_dict() for at in (find_checkpoint(out), TINY, find_checkpoint(tmp_path / "few"))
    )
    assert {key for key in state if not torch.equal(state[key], start[key])} == {"fc.weight", "fc.bias"}
    cosine = torch.nn.functional.cosine_similarity(state["fc.weight"].flatten(), few["fc.weight"].flatten(), 0)
    assert cosine > 0.99  # as that of a run that held out none
    head = (out / "head.pt").read_bytes()
    assert train(data, out, *destroyed) == 0
    assert "This run is complete" in capsys.readouterr().err
    assert (out / "head.pt").read_bytes() == head

    gentle = ["--set", "lr=1e-9", "--epochs", "1"]
    assert train(data, tmp_path / "gentle", *gentle) == 0
    assert "Only the head is trained" in capsys.readouterr().err  # no better, so the simpler one
    measure = TrainingRun._measure
    monkeypatch.setattr(TrainingRun, "_measure", lambda run: measure(run) | {"val_top1": 0.1})
    assert train(data, tmp_path / "fine", *gentle) == 0
    said = capsys.readouterr().err
    assert "Fine-tuned" in said
    assert f"--data {data}" in said
    assert len((tmp_path / "fine" / "held_out.tsv").read_text().splitlines()) == 7


def test_epochs_that_are_set_are_those_of_the_run(flowers: Path, tmp_path: Path) -> None:
    data = str(flowers)
    for changes, epochs in (({}, 100), ({"epochs": "3"}, 3), ({"phases": "[{epochs = 2}]"}, 2)):
        run = TrainingRun(RunOptions(data=(data,), out=tmp_path, variant="resnext_tiny", val=data, changes=changes))
        run.open_data()
        assert run.recipe.epochs == epochs  # of 1 step each


def test_a_folder_of_other_files_is_refused(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert train(flowers, flowers) == 2
    assert "folder" in capsys.readouterr().err
    photo = flowers / "rose" / "3.jpg"
    assert train(flowers, photo) == 2
    assert str(photo) in capsys.readouterr().err
    for out in (flowers, photo):
        command = ["evaluate", "--variant", "resnext_tiny", "--data", str(flowers), "--out", str(out)]
        assert main(command) == 2
        assert str(out) in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    assert train(tmp_path / "none", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


def test_few_and_broken_images(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (flowers / "rose" / "0.jpg").write_text("no image")
    (flowers / "rose" / "1.jpg").write_text("no image")
    out = tmp_path / "run"
    assert train(flowers, out, "--epochs", "2", "--batch", "64", "--val", str(flowers)) == 0
    said = capsys.readouterr().err
    assert "24 instead of 64" in said
    assert json.loads((out / "run.json").read_text())["recipe"]["batch_size"] == 24
    assert "2 training images" in said
    assert "epoch 1 of 2" in said
    assert "epoch 2 of 2" in said


def curve(out: Path) -> list[dict[str, str]]:
    with open(out / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_patience_ends_a_run(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, options = tmp_path / "run", ["--val", str(flowers), "--set", "lr=0.0", "--patience", "1"]
    assert train(flowers, out, *options) == 0  # nothing changes, so no epoch is better than the first
    assert "2 instead of 3 epochs" in capsys.readouterr().err
    assert [row["epoch"] for row in curve(out)] == ["1", "2"]
    assert train(flowers, out, *options) == 0
    assert "This run is complete" in capsys.readouterr().err
    assert len(curve(out)) == 2


def test_a_time_limit_shortens_a_run(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, options = tmp_path / "run", ["--val", str(flowers)]
    assert train(flowers, out, *options, "--minutes", "0") == 0
    assert "1 instead of 3 epochs" in capsys.readouterr().err
    weights = (out / "weights.pt").read_bytes()
    assert train(flowers, out, *options, "--minutes", "0") == 0
    assert (out / "weights.pt").read_bytes() == weights
    assert train(flowers, out, *options, "--minutes", "5") == 2
    assert "minutes 0.0, now 5.0" in capsys.readouterr().err
    assert train(flowers, tmp_path / "long", *options, "--minutes", "5") == 0
    assert len(curve(tmp_path / "long")) == 3


def test_balanced_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of brightnesses that both classes have, the rare class gets a larger part."""
    random = np.random.default_rng(0)
    for part, counts in (("train", (60, 6)), ("val", (30, 30))):
        for name, low, count in zip(("dark", "light"), (0, 12), counts, strict=True):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                level = low + 40 * random.random()
                pixels = (level + 20 * random.random((8, 8, 3))).astype(np.uint8)
                Image.fromarray(pixels).resize((80, 80)).save(tmp_path / part / name / f"{i}.png")
    rare = {}
    for out, options in (("plain", []), ("balanced", ["--balance"])):
        options = [*options, "--val", str(tmp_path / "val"), "--epochs", "1", "--set", "keep_best=false"]
        assert train(tmp_path / "train", tmp_path / out, *options) == 0
        said = capsys.readouterr().err
        assert ("classes are uneven, 6 to 60" in said) is (out == "plain")
        classify = classifier(str(tmp_path / out), engine="torch")
        photos = sorted((tmp_path / "val").glob("*/*.png"))
        rare[out] = sum(found[0].label == "light" for found in classify(photos, 1))
    assert rare["balanced"] > rare["plain"] + 3


def test_another_image_size(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(flowers, tmp_path / "run", "--image-size", "40") == 0
    said = capsys.readouterr().err
    assert "40 x 40" in said
    assert "80 x 80" in said
    own, preset = TINY.preprocessing, find_checkpoint(tmp_path / "run").preprocessing
    assert (preset.crop_size, preset.resize_size) == (40, own.resize_size * 40 // own.crop_size)


def test_the_commands_that_follow_run(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "my run"
    assert train(flowers, out, "--val", str(flowers), "--epochs", "1") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if ": resnext-hub " in line]
    commands = [shlex.split(line.partition(": resnext-hub ")[2]) for line in lines]
    assert [words[0] for words in commands] == ["classify", "evaluate", "export"]
    for words in commands:
        assert main([word.replace("PHOTO", str(flowers / "rose" / "3.jpg")) for word in words]) == 0, words
    with open(out / "evaluation" / "classes.csv", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["daisy", "rose"]
    assert train(flowers, tmp_path / "few") == 0
    assert "--data IMAGES" in capsys.readouterr().err  # it has no validation images


def test_a_single_class_is_refused(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(flowers / "rose")
    assert train(flowers, tmp_path / "run") == 2
    assert "1 class, daisy" in capsys.readouterr().err


def test_a_linear_probe_from_ones_own_weights(flowers: Path, tmp_path: Path) -> None:
    assert train(flowers, tmp_path / "a") == 0
    assert train(flowers, tmp_path / "b", "--variant", str(tmp_path / "a"), "--recipe", "linear_probe") == 0
    before, after = (load(find_checkpoint(tmp_path / name)).state_dict() for name in "ab")
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert {"fc.weight"} <= moved <= {"fc.weight", "fc.bias"}
    assert find_checkpoint(tmp_path / "b").license_source.endswith("started from, a")


def test_the_head_stays_if_the_classes_are_the_checkpoints(tmp_path: Path) -> None:
    run = TrainingRun(RunOptions(data=("x",), out=tmp_path, variant="resnext_tiny"))
    run.labels = read_labels(TINY.labels)
    run.start_network()
    kept = run.network.state_dict()
    assert torch.equal(kept["fc.weight"], load(TINY).state_dict()["fc.weight"])
    run.labels = run.labels[::-1]
    run.start_network()
    other = run.network.state_dict()
    assert not torch.equal(other["fc.weight"], kept["fc.weight"])
    assert torch.equal(other["conv1.weight"], kept["conv1.weight"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--data x", "variant"),
        ("--data x --variant resnext_tin", "resnext_tiny"),
        ("--data /no/such --variant resnext_tiny", "/no/such"),
        ("--data x --variant resnext_tiny --recipe no", "the recipe no "),
        ("--data x --variant resnext_tiny --set lr", "KEY=VALUE"),
        ("--data x --recipe finetune", "architecture"),
        ("--data x --variant resnext_tiny --recipe torchvision_v2", "is a resnext_tiny"),
    ],
)
def test_wrong_arguments(arguments: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--out", str(tmp_path / "out"), *arguments.split()]) == 2
    said = capsys.readouterr().err
    assert named in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize("name", ["resnet18_ssl", "resnext50_32x4d", "resnext_tiny"])
def test_multiply_accumulates_are_those_of_the_manifest(name: str) -> None:
    checkpoint = default_manifest().resolve(name)
    counted = gmacs(checkpoint.architecture_name, checkpoint.num_classes, checkpoint.preprocessing.crop_size)
    assert counted == pytest.approx(checkpoint.gmacs, rel=0.02)
