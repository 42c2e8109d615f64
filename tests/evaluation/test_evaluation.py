"""Accuracy: a network whose accuracy is known, in every layout; and the one in the repository."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from resnext_hub import cli
from resnext_hub.errors import EngineError, OutputError, SourceError, UnknownVariantError
from resnext_hub.evaluation import evaluate as evaluating
from resnext_hub.evaluation import predict as predicting
from resnext_hub.evaluation.evaluate import Options, contenders_of, judge, parse_size
from resnext_hub.evaluation.label_files import find_labelled, read_label_file
from resnext_hub.evaluation.metrics import expected_calibration_error, measure, reliability
from resnext_hub.evaluation.predict import Contender
from resnext_hub.evaluation.targets import datasets, read_real, recognise, targets_of
from resnext_hub.inference import resumable
from resnext_hub.inference.engines import open_engine
from resnext_hub.models.manifest import Accuracy, default_manifest
from resnext_hub.processing_utils.calibration import wilson_interval
from resnext_hub.processing_utils.labels import Label, read_labels
from resnext_hub.processing_utils.preprocessing import load_pixels

from ..support.data_sets import table, tar, write
from ..support.known_accuracy import (
    CHECKPOINT,
    CLASSES,
    IMAGES,
    LABELS,
    PRESET,
    TOP1,
    TOP5,
    Double,
    class_folders,
    contender,
    encoded,
    ilsvrc,
    synset,
    table_of,
)

# ILSVRC's own numbers of the classes are in no order; here any other order than the labels' will do.
NUMBERS = {
    label.synset: int(i) + 1 for label, i in zip(LABELS, np.random.default_rng(5).permutation(1000), strict=True)
}
TRUTH = "".join(f"{NUMBERS[synset(i)]}\n" for i in range(IMAGES))


def meta() -> bytes:
    savemat = pytest.importorskip("scipy.io").savemat
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    # The devkit's table goes on with inner synsets, which are not classes.
    rows = [(number, name, "w", "g", 0) for name, number in NUMBERS.items()] + [(1001, "n00000001", "w", "g", 9)]
    file = io.BytesIO()
    savemat(file, {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})
    return file.getvalue()


def flat(folder: Path) -> str:
    for i in range(IMAGES):
        write(folder / ilsvrc(i), encoded(i))
    return str(folder)


def lines(line: Callable[[int], str]) -> str:
    return "".join(f"{line(i)}\n" for i in range(IMAGES))


def kaggle(top: Path) -> dict[str, Any]:
    text = lines(lambda i: f"{ilsvrc(i).removesuffix('.JPEG')},{synset(i)} 85 1 499 272 {synset(i)} 1 2 3 4")
    write(top / "LOC_val_solution.csv", "ImageId,PredictionString\n" + text)
    return {"data": flat(top / "ILSVRC" / "Data" / "CLS-LOC" / "val")}


def devkit_folder(top: Path) -> dict[str, Any]:
    write(top / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt", TRUTH)
    write(top / "ILSVRC2012_devkit_t12" / "data" / "meta.mat", meta())
    return {"data": flat(top / "val")}


def devkit_text(top: Path) -> dict[str, Any]:
    truth = write(top / "elsewhere" / "ILSVRC2015_clsloc_validation_ground_truth.txt", TRUTH)
    write(truth.with_name("map_clsloc.txt"), "".join(f"{name} {number} a_name\n" for name, number in NUMBERS.items()))
    return {"data": flat(top / "val"), "labels": truth}


def two_archives(top: Path) -> dict[str, Any]:
    """What image-net.org gives."""
    members = {"meta.mat": meta(), "ILSVRC2012_validation_ground_truth.txt": TRUTH.encode()}
    members = {f"ILSVRC2012_devkit_t12/data/{name}": content for name, content in members.items()}
    tar(top / "ILSVRC2012_devkit_t12.tar.gz", members, gzip.compress)
    return {"data": str(tar(top / "ILSVRC2012_img_val.tar", {ilsvrc(i): encoded(i) for i in range(IMAGES)}))}


def synset_lines(top: Path) -> dict[str, Any]:
    write(top / "imagenet_2012_validation_synset_labels.txt", lines(synset))
    return {"data": f"{flat(top / 'val')}/*.JPEG"}


def caffe(top: Path) -> dict[str, Any]:
    return {"labels": write(top / "val.txt", lines(lambda i: f"{ilsvrc(i)} {CLASSES[i]}")), "data": flat(top / "val")}


def tiny_original(top: Path) -> dict[str, Any]:
    write(top / "val" / "val_annotations.txt", lines(lambda i: f"{ilsvrc(i)}\t{synset(i)}\t0\t32\t44\t62"))
    return {"data": flat(top / "val" / "images")}


LAYOUTS = [kaggle, devkit_folder, devkit_text, two_archives, synset_lines, caffe, tiny_original]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_each_label_file_gives_each_image_its_class(layout: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    found = find_labelled(**layout(tmp_path))
    images = [Image.open(io.BytesIO(item.read())) for shard in found.kept() for item in shard.items()]
    numbers = [int(np.asarray(image)[0, 0, 0]) for image in images]
    assert sorted(numbers) == list(range(IMAGES))
    assert targets_of(found.labels, LABELS) == [{CLASSES[i]} for i in numbers]


def evaluate(
    entrants: Sequence[Any], data: str, out: Any = None, resume: bool = False, overwrite: bool = False, **options: Any
) -> Any:
    return evaluating.evaluate(entrants, data, out, Options(**options), resume=resume, overwrite=overwrite)


def evaluated(*contenders: Contender, **options: Any) -> Any:
    return evaluate(contenders, **options).results[0].metrics


@pytest.fixture
def folders(tmp_path: Path) -> str:
    return class_folders(tmp_path)["data"]


# One pass.


def test_several_networks_decode_once(folders: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened = []
    original = predicting.open_image
    monkeypatch.setattr(predicting, "open_image", lambda data, **limits: opened.append(1) or original(data))
    perfect = table_of(CLASSES, [0] * IMAGES)
    larger = dataclasses.replace(PRESET, resize_size=12, crop_size=10)
    entrants = [
        contender("one"),
        dataclasses.replace(contender("two", perfect), preset=larger),
        dataclasses.replace(contender("three", perfect), preset=dataclasses.replace(PRESET, mean=(0, 0, 0))),
    ]
    report = evaluate(entrants, folders, tmp_path / "out")
    assert [(r.metrics.top1.right, r.metrics.top5.right, r.metrics.top1.total) for r in report.results] == [
        (TOP1, TOP5, IMAGES),
        *[(IMAGES, IMAGES, IMAGES)] * 2,
    ]
    assert (report.images, report.classes, len(report.unreadable)) == (IMAGES, len(set(CLASSES)), 0)
    assert len(opened) == IMAGES
    assert evaluated(contender(table=np.roll(table_of(CLASSES), 1, 0)), data=folders).top5.right < 5  # one image off
    written = pq.read_table(tmp_path / "out" / "predictions.parquet")
    assert written.column_names == ["image", "index", "error", "target"] + [
        f"{name}.{column}" for name in ("one", "two", "three") for column in ("classes", "probabilities", "targets")
    ]
    assert written["target"].to_pylist() == [Path(name).parent.name for name in written["image"].to_pylist()]
    best, right = (written[f"one.{column}"].to_pylist() for column in ("classes", "targets"))
    assert sum(b[0] == r for b, (r,) in zip(best, right, strict=True)) == TOP1
    for entrant in entrants:  # alone each gets the same
        alone = evaluate([entrant], folders)
        assert alone.results[0].metrics == next(r.metrics for r in report.results if r.name == entrant.name)


@pytest.mark.parametrize("grade", ["reference", "close", "fast"])
def test_the_pixels_are_those_of_the_grade(grade: str, shared: Path) -> None:
    """Also where several geometries share a decoding."""
    photo = sorted((shared / "photos").iterdir())[3].read_bytes()
    presets = [CHECKPOINT.preprocessing, dataclasses.replace(CHECKPOINT.preprocessing, resize_size=320, crop_size=288)]
    entrants = [dataclasses.replace(contender(str(i)), preset=preset) for i, preset in enumerate(presets)]
    images: Any = None
    worker = predicting._Predictor(images, {}, entrants, [None, None], {"grade": grade}, {})
    for preset, pixels in zip(presets, worker._load(photo), strict=True):
        off = np.abs(pixels[0].astype(int) - load_pixels(photo, preset, grade).astype(int)).max()
        assert off <= (0 if grade in ("reference", "fast") else 2)


def test_views_are_averaged(tmp_path: Path) -> None:
    """An image of two halves; each mirror image alone is wrong, their mean probability is right."""
    image = Image.new("RGB", (8, 8), (0, 0, 0))
    image.paste((1, 0, 0), (4, 0, 8, 8))
    image.save(write(tmp_path / "d" / LABELS[2].synset / "a.png", b""))

    class Corner(Double):
        def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return self.table[pixels[:, 0, 0, 0]], np.zeros((len(pixels), 1), np.float32)

    logits = np.full((2, 1000), -30, np.float32)
    logits[0, [1, 2, 3]] = np.log([0.5, 0.4, 0.1])
    logits[1, [1, 2, 3]] = np.log([0.1, 0.4, 0.5])
    entrant = dataclasses.replace(contender(), engine=Corner(logits))
    assert evaluated(entrant, data=str(tmp_path / "d")).top1.right == 0
    flipped = evaluated(dataclasses.replace(entrant, views="flip"), data=str(tmp_path / "d"))
    assert flipped.top1.right == 1
    assert flipped.confidence == pytest.approx(0.4, abs=1e-6)


def test_restricted_classes(folders: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = table_of(CLASSES, [0] * IMAGES)
    outside = [c for c in range(1000) if c not in CLASSES]
    logits[:, outside[0]] = 99
    logits[: IMAGES // 2, outside[1:5]] = 98
    assert evaluated(contender(table=logits), data=folders).top1.right == 0
    assert evaluated(contender(table=logits), data=folders).top5.right == IMAGES - IMAGES // 2
    assert evaluated(contender(table=logits), data=folders, restrict=True).top1.right == IMAGES
    # A and R say so themselves
    assert datasets()["imagenet_r"].restrict
    report = evaluate([contender(table=logits)], folders, dataset="imagenet_a")
    assert report.restricted
    assert report.results[0].metrics.top1.right == IMAGES
    assert any("7,500" in note for note in report.notes)
    assert evaluated(contender(table=logits), data=folders, dataset="imagenet_a", restrict=False).top1.right == 0


def test_known_sets_are_recognised() -> None:
    def found(images: int, classes: int, source: str = "d") -> str | None:
        keys = [i % classes for i in range(images)]
        known = recognise(SimpleNamespace(specs=[source], labels=keys))  # type: ignore[arg-type]
        return known and known.name

    numbers = [(50000, 1000), (50889, 1000), (7500, 200), (30000, 200), (5000, 200), (10000, 1000), (49999, 1000)]
    names = ["imagenet", "sketch", "imagenet_a", "imagenet_r", "tiny-imagenet-200", None, None]
    assert [found(*both) for both in numbers] == names
    assert found(10000, 1000, "/data/imagenetv2-matched-frequency-format-val") == "imagenetv2_mf"
    assert found(10000, 1000, "/data/imagenetv2-top-images-format-val") == "imagenetv2_top"
    measured = {row.dataset for c in default_manifest().checkpoints.values() for row in (c.published, *c.measured)}
    clean = {"imagenet_a_clean", "imagenet_r_clean"}  # of other files than these layouts
    assert measured - clean <= set(datasets())


# Stopped, resumed, shared.


def test_a_stopped_evaluation_resumes(folders: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resumable, "COMMIT_SECONDS", 0.0)
    whole = evaluate([contender()], folders, tmp_path / "whole", batch=4)
    with pytest.raises(KeyboardInterrupt):
        evaluate([contender(stop_after=20)], folders, tmp_path / "out", batch=4, workers=1)
    with pytest.raises(OutputError, match="resume"):
        evaluate([contender()], folders, tmp_path / "out", batch=4)
    folder = next(Path(folders).iterdir())
    renamed = folder.rename(next(p for label in LABELS if not (p := folder.with_name(label.synset)).exists()))
    with pytest.raises(OutputError, match="image_labels"):
        evaluate([contender()], folders, tmp_path / "out", batch=4, resume=True)
    renamed.rename(folder)
    with pytest.raises(OutputError, match="classes"):
        evaluate([contender()], folders, tmp_path / "out", batch=4, resume=True, restrict=True)
    resumed = evaluate([contender()], folders, tmp_path / "out", batch=4, resume=True)
    assert 0 < resumed.computed < IMAGES
    assert resumed.results[0].metrics == whole.results[0].metrics
    tables = [(tmp_path / name / "predictions.parquet").read_bytes() for name in ("out", "whole")]
    assert tables[0] == tables[1]
    again = evaluate([contender(stop_after=0)], folders, tmp_path / "out", batch=4, resume=True)  # nothing left to do
    assert (again.computed, again.results) == (0, whole.results)
    with pytest.raises(OutputError, match=r"batch 4.* 5"):
        evaluate([contender()], folders, tmp_path / "out", batch=5, resume=True)
    with pytest.raises(OutputError, match="exists"):
        evaluate([contender()], folders, tmp_path / "out", batch=4)
    assert evaluate([contender()], folders, tmp_path / "out", batch=5, overwrite=True) is not None


RANK = """
import sys
from pathlib import Path
from types import SimpleNamespace
import resnext_hub.evaluation.label_files as label_files, resnext_hub.evaluation.predict as predict
label_files.SHARD_ROWS = predict.SHARD_ROWS = 6
from resnext_hub.tests.support.known_accuracy import contender
from resnext_hub.evaluation.evaluate import Options, evaluate
from resnext_hub.evaluation.report import write_report
report = evaluate([contender()], {data!r}, {out!r}, Options(batch=4))
if report is not None:
    write_report(report, {out!r})
"""


def test_ranks_share_the_images(folders: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = write(tmp_path / "rank.py", RANK.format(data=folders, out=str(tmp_path / "out")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, f"--master-port={port}", str(script)], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["results"][0]["top1"]["right"] == TOP1
    assert report["results"][0]["top5"]["total"] == IMAGES
    assert json.loads((tmp_path / "out" / "speed.json").read_text())["computed"] == IMAGES
    for module in (predicting, sys.modules["resnext_hub.evaluation.label_files"]):
        monkeypatch.setattr(module, "SHARD_ROWS", 6)
    evaluate([contender()], folders, tmp_path / "alone", batch=4)
    tables = [(tmp_path / name / "predictions.parquet").read_bytes() for name in ("out", "alone")]
    assert tables[0] == tables[1]


# Metrics.


def test_wilsons_interval() -> None:
    # Brown, Cai and DasGupta's formula worked by hand for 0, 5 and 10 of 10, and 1 of 3
    for right, total, low, high in (
        (0, 10, 0, 0.27753),
        (5, 10, 0.23659, 0.76341),
        (10, 10, 0.72247, 1),
        (1, 3, 0.06149, 0.79234),
    ):
        assert wilson_interval(right, total) == pytest.approx((low, high), abs=1e-4)
    assert wilson_interval(0, 0) == (0, 1)
    assert wilson_interval(0, 7)[0] == 0
    assert wilson_interval(7, 7)[1] == 1


def test_calibration_is_guos() -> None:
    generator = torch.Generator().manual_seed(0)
    probs = (3 * torch.randn(500, 20, generator=generator)).softmax(1)
    labels = torch.randint(20, (500,), generator=generator)
    labels[:250] = probs[:250].argmax(1)
    confidence, best = probs.max(1)
    right = best == labels
    gaps = torch.zeros(15, dtype=torch.float64)
    gaps.index_add_(0, (confidence * 15).long().clamp(max=14), right.double() - confidence.double())
    expected = (gaps.abs().sum() / 500).item()
    assert expected_calibration_error(confidence.numpy(), right.numpy()) == pytest.approx(expected, abs=1e-9)
    bins = reliability(np.array([0.05, 0.5, 1.0]), np.array([True, False, True]), 10)
    assert [(b.images, b.accuracy) for b in bins if b.images] == [(1, 1), (1, 0), (1, 1)]
    assert bins[9].confidence == 1
    assert expected_calibration_error(np.array([]), np.array([])) == 0


def test_classes_and_confusions() -> None:
    best = np.array([[3, 1], [4, 3], [4, 5], [3, 4], [-1, -1], [0, 9]])
    targets = [frozenset(t) for t in ({3}, {3}, {3}, {4}, {4}, set())]
    metrics = measure(best, np.full(6, 0.5), targets)
    assert (metrics.top1.right, metrics.top5.right, metrics.top1.total, metrics.not_counted) == (1, 3, 5, 1)
    assert [(c.index, c.images, round(c.top1, 1), round(c.top5, 1), c.taken_for) for c in metrics.classes] == [
        (3, 3, 33.3, 66.7, 4),
        (4, 2, 0.0, 50.0, 3),
    ]
    assert [(c.precision, c.f1) for c in metrics.classes] == [(50.0, 40.0), (0.0, 0.0)]
    assert [(c.truth, c.prediction, c.images) for c in metrics.confusions] == [(3, 4, 2), (4, 3, 1), (4, -1, 1)]


def test_real_labels(folders: str, tmp_path: Path) -> None:
    """None, one or several right classes; predictions are right if they are any of them."""
    logits = table_of(CLASSES)
    first = logits.argmax(1).tolist()
    real = [[] if i < 5 else [first[i], 998] if i < 20 else [999] for i in range(IMAGES)]
    path = write(tmp_path / "real.json", json.dumps(real))
    report = evaluate([contender(table=logits)], folders, real=path, dataset="imagenet")
    plain, on_real = report.results
    assert (plain.dataset, plain.metrics.top1.right) == ("imagenet", TOP1)
    assert on_real.dataset == "imagenet_real"
    assert (on_real.metrics.top1.right, on_real.metrics.top1.total, on_real.metrics.not_counted) == (15, IMAGES - 5, 5)
    with pytest.raises(SourceError, match=r"a\.jpg"):
        read_real(path, ["a.jpg"])
    with pytest.raises(SourceError, match="Cannot read"):
        read_real(folders, [])
    with pytest.raises(ValueError, match="1000"):
        evaluate(["resnext_tiny"], folders, real=path)


def test_images_that_cannot_be_read_and_scores_that_are_no_numbers(tmp_path: Path, capsys: Any) -> None:
    data = class_folders(tmp_path)["data"]
    next(iter(sorted(Path(data).glob(f"*/{ilsvrc(0)}")))).write_bytes(b"broken")  # right otherwise
    logits = table_of(CLASSES)
    logits[1] = np.nan  # right otherwise, and wrong like this
    report = evaluate([contender(table=logits)], data)
    assert report.results[0].metrics.top1.right == TOP1 - 2
    assert report.results[0].metrics.top1.total == IMAGES - 1
    assert [Path(name).name for name, _ in report.unreadable] == [ilsvrc(0)]
    assert "Not an image" in report.unreadable[0][1]


# Verdicts.


def test_verdicts() -> None:
    metrics = measure(np.array([[1], [1]] * 500), np.ones(1000), [frozenset([1])] * 800 + [frozenset([2])] * 200)
    assert metrics.top1.percent == 80
    low, high = metrics.top1.low, metrics.top1.high
    figure = Accuracy("imagenet", 80.0, 80.0, None, None, "s")

    def verdict(top1: float, top5: float = 80.0) -> Any:
        return judge(metrics, "published", dataclasses.replace(figure, top1=top1, top5=top5))

    figures = [(80,), (low + 0.001,), (low - 0.1,), (80, high + 1)]
    assert [verdict(*both).reproduced for both in figures] == [True, True, False, False]
    assert verdict(low - 0.1).beyond == pytest.approx(0.1)
    assert verdict(high + 0.25).off1 == pytest.approx(80 - high - 0.25)
    assert f"{80 - high - 0.25:+.2f}" in verdict(high + 0.25).verdict
    assert "0.25 outside" in verdict(high + 0.25).verdict


def test_only_comparable_figures_are_compared(folders: str) -> None:
    checkpoint = default_manifest().resolve("resnext50_32x4d.IMAGENET1K_V2")
    entrant = Contender("v2", checkpoint, "0", checkpoint.preprocessing, Double(table_of(CLASSES)))

    def compared(entrant: Contender, dataset: str) -> list[tuple[str, float]]:
        metrics = measure(np.array([[1]]), np.ones(1), [frozenset([1])])
        return [(c.kind, c.top1) for c in evaluating.compare(metrics, entrant, dataset)]

    rows = {(row.dataset, row.image_size): row.top1 for row in checkpoint.measured}
    smaller = dataclasses.replace(checkpoint.preprocessing, resize_size=201, crop_size=176)
    other = dataclasses.replace(checkpoint.preprocessing, resize_size=256, crop_size=224)
    measured, published = ("measured", rows["imagenet", 224]), ("published", checkpoint.published.top1)
    for change, dataset, expected in (
        ({}, "imagenet", [published, measured]),
        ({"preset": smaller}, "imagenet_a", [("measured", rows["imagenet_a", 176])]),
        ({"preset": other}, "imagenet", []),
        ({"views": "flip"}, "imagenet", []),
        ({}, "these images", []),
    ):
        assert compared(dataclasses.replace(entrant, **change), dataset) == expected


# The command.


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, folders: str, tmp_path: Path) -> Callable[..., int]:
    """The command with the double in the place of every variant's engine, on a set that is called ImageNet."""

    def entrants(variants: Sequence[str], *_: Any, **__: Any) -> list[Contender]:
        published = Accuracy("imagenet", 100 * TOP1 / IMAGES, 100 * TOP5 / IMAGES, None, None, "the table")
        checkpoint = dataclasses.replace(CHECKPOINT, published=published, measured=(), preprocessing=PRESET)
        worse = dataclasses.replace(checkpoint, published=dataclasses.replace(published, top1=99.0))
        both = {"good": checkpoint, "bad": worse}
        return [dataclasses.replace(contender(v), checkpoint=both[v]) for v in variants]

    monkeypatch.setattr(evaluating, "contenders_of", entrants)
    monkeypatch.setattr(evaluating, "find_checkpoint", lambda variant: CHECKPOINT)

    def run(*arguments: str) -> int:
        return cli.main(["evaluate", "--data", folders, "--dataset", "imagenet", *arguments])

    return run


def test_expect_is_an_exit_status(command: Callable[..., int], capsys: Any) -> None:
    assert command("--variant", "good", "--expect", "published") == 0
    out, err = capsys.readouterr()
    assert "reproduced (+0.00)" in out
    assert err == ""
    assert command("--variant", "bad") == 0
    assert command("--variant", "good", "--variant", "bad", "--expect", "published") == 4
    _, err = capsys.readouterr()
    assert "bad: not reproduced" in err
    assert "good" not in err
    assert command("--variant", "good", "--expect", "measured") == 4
    assert "measured" in capsys.readouterr().err


def test_what_is_written(command: Callable[..., int], capsys: Any, tmp_path: Path) -> None:
    out = tmp_path / "o" / "p"
    assert command("--variant", "good", "--variant", "bad", "--out", str(out), "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    report, speed = (json.loads((out / f"{name}.json").read_text()) for name in ("report", "speed"))
    assert printed == report | speed
    found = printed["results"][0]
    assert found["top1"]["right"] == TOP1
    assert found["top1"]["low"] < found["top1"]["percent"] < found["top1"]["high"]
    assert found["comparisons"][0]["reproduced"] is True
    assert sum(b["images"] for b in found["bins"]) == IMAGES
    assert printed["images_per_second"] > 0
    assert "| good |" in (out / "report.md").read_text()
    with open(out / "classes.csv", newline="") as file:
        classes = [row for row in csv.DictReader(file) if row["contender"] == "good"]
    assert sum(int(row["images"]) for row in classes) == IMAGES
    right = sum(int(row["images"]) * float(row["top1"]) / 100 for row in classes)
    assert right == pytest.approx(TOP1, abs=0.01)
    with open(out / "confusions.csv", newline="") as file:
        confusions = [row for row in csv.DictReader(file) if row["contender"] == "good"]
    assert sum(int(row["images"]) for row in confusions) == IMAGES - TOP1
    assert (out / "reliability.png").read_bytes().startswith(b"\x89PNG")
    names = ["classes.csv", "confusion.png", "confusions.csv", "predictions.parquet", "reliability.png"]
    assert sorted(p.name for p in out.iterdir()) == [*names, "report.json", "report.md", "speed.json"]
    # A line of the table that is printed for each, and what it holds can be taken up again.
    assert command("--variant", "good", "--variant", "bad", "--out", str(out), "--resume") == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if re.match("(good|bad) ", line)]) == 2


def test_an_image_that_cannot_be_read_is_an_exit_status(command: Callable[..., int], folders: str, capsys: Any) -> None:
    sorted(Path(folders).glob("*/*"))[0].write_bytes(b"")
    assert command("--variant", "good") == 1
    assert "1 image" in capsys.readouterr().err
    assert command("--variant", "good", "--expect", "published") == 4


def test_images_that_are_cut_off_or_too_large(photo: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "d" / str(read_labels("tiny-imagenet-200")[0].synset)
    write(folder / "a.png", encoded(1))
    write(folder / "b.jpg", photo.read_bytes()[:20_000])
    command = ["evaluate", "--variant", "resnext_tiny", "--engine", "torch", "--data", str(tmp_path / "d")]
    assert cli.main(command) == 1
    assert cli.main([*command, "--truncated", "keep"]) == 0
    assert cli.main([*command, "--truncated", "keep", "--max-pixels", "100000"]) == 1  # the photo alone has more
    assert capsys.readouterr().err.count("1 image could not be read") == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--variant resnext50", "resnext50_32x4d"),
        ("--variant resnext_tiny --size x", "RESIZE:CROP"),
        ("--variant resnext_tiny --resume", "--out"),
        ("--variant resnext_tiny --labels none.txt", "none.txt"),
    ],
)
def test_wrong_arguments(arguments: str, named: str, tmp_path: Path, capsys: Any) -> None:
    write(tmp_path / "d" / read_labels("tiny-imagenet-200")[0].synset / "a.png", encoded(1))
    assert cli.main(["evaluate", "--data", str(tmp_path / "d"), *arguments.split()]) == 2
    assert named in capsys.readouterr().err


# What is wrong with labels shows before anything is computed.


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    write(tmp_path / "flat" / "a.png", encoded(1))
    other = write(tmp_path / "labels.txt", "b.png n01440764\n")
    for name in ("train-0.parquet", "test-0.parquet"):
        table(tmp_path / "both" / name, {"image": [encoded(1)], "label": [1]})
    for name, labels, fact in (
        ("none", None, "none"),
        ("flat", None, "LOC_val_solution"),
        ("flat", other, r"a\.png"),
        ("both", None, "test, train"),
    ):
        with pytest.raises(SourceError, match=fact):
            find_labelled(str(tmp_path / name), labels=labels)
    for name, content, fact in (
        ("bad.txt", "", r"bad\.txt"),
        ("bad.txt", "1\n2\n", "synsets"),
        ("bad.txt", "lonely.png\n", r"'lonely\.png'"),
        ("ILSVRC2012_validation_ground_truth.txt", "1\n2\n", r"meta\.mat"),
        ("x.tar.gz", tar(tmp_path / "x.tar", {"a": b""}, gzip.compress).read_bytes(), r"x\.tar\.gz"),
        ("y.tar.gz", "no archive", r"y\.tar\.gz"),
    ):
        with pytest.raises(SourceError, match=fact):
            read_label_file(write(tmp_path / name, content))


def test_names_of_classes() -> None:
    def index(key: str | int) -> set[int]:
        return set(targets_of([key], LABELS)[0])

    assert index("n01440764") == index("tench") == index("Tinca_tinca") == index("tench, Tinca tinca") == {0}
    assert index(0) == index("0") == {0}
    assert index("Great-White Shark") == {2}
    names = [label.name.split(",")[0].replace(" ", "_").upper() for label in LABELS]
    once = {name: i for i, name in enumerate(names) if names.count(name) == 1}
    assert targets_of(once, LABELS) == [{i} for i in once.values()]
    with pytest.raises(SourceError, match=r"'crane'.* n\d+.* n\d+"):
        targets_of(["crane"], LABELS)
    with pytest.raises(SourceError, match="'val', 'train'"):
        targets_of(["val", "train", "val", "tench"], LABELS)
    with pytest.raises(SourceError, match="1000"):
        targets_of([1000], LABELS)
    own = [Label(0, "", "cat"), Label(1, "", "7")]
    assert [set(t) for t in targets_of(["cat", "7", 0, 1], own)] == [{0}, {1}, {0}, {1}]


def test_a_source_that_changes_is_noticed(folders: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_labelled(folders)
    shuffled = dataclasses.replace(found, names=[*found.names[1:], found.names[0]])
    monkeypatch.setattr(evaluating, "find_labelled", lambda *a, **k: shuffled)
    with pytest.raises(SourceError, match="ILSVRC"):
        evaluate([contender()], folders)


def test_each_network_has_its_own_numbers_for_the_same_classes(tmp_path: Path) -> None:
    """A network of 200 classes and one of 1,000, on images of classes that both have."""
    tiny = default_manifest().resolve("resnext_tiny")
    few = read_labels("tiny-imagenet-200")
    thousand = {label.synset: label.index for label in LABELS}
    shared_classes = [label for label in few if label.synset in thousand][5 : 5 + IMAGES]
    for i, label in enumerate(shared_classes):
        write(tmp_path / "d" / label.synset / f"{i}.png", encoded(i))
    entrants = [
        contender("large", table_of([thousand[label.synset] for label in shared_classes])),
        dataclasses.replace(
            contender("small", table_of([label.index for label in shared_classes], num_classes=200)), checkpoint=tiny
        ),
    ]
    report = evaluate(entrants, str(tmp_path / "d"))
    assert [(r.metrics.top1.right, r.metrics.top5.right) for r in report.results] == [(TOP1, TOP5)] * 2


def test_class_numbers_need_one_label_set(tmp_path: Path) -> None:
    write(tmp_path / "7" / "a.png", encoded(1))
    tiny = default_manifest().resolve("resnext_tiny")
    entrants = [contender(), dataclasses.replace(contender("tiny"), checkpoint=tiny)]
    with pytest.raises(ValueError, match="variant"):
        evaluate(entrants, str(tmp_path))


# The network in the repository.


def test_resnext_tiny_on_tiny_imagenet(shared: Path, tmp_path: Path) -> None:
    """200 images; against the network, called with what the documented pipeline makes of them."""
    rows = pq.read_table(shared / "tiny-imagenet-200" / "val.parquet").slice(100, 200)
    pq.write_table(rows, tmp_path / "val.parquet")
    tiny = default_manifest().resolve("resnext_tiny")
    report = evaluate(["resnext_tiny"], str(tmp_path / "val.parquet"), batch=8, engine="torch")
    pixels = np.stack([load_pixels(row, tiny.preprocessing) for row in rows["jpeg"].to_pylist()])
    logits = open_engine(tiny, "torch", threads=1)(pixels)[0]
    classes = {label.synset: label.index for label in read_labels("tiny-imagenet-200")}
    right = np.argsort(-logits, 1) == np.array([classes[w] for w in rows["wnid"].to_pylist()])[:, None]
    metrics = report.results[0].metrics
    assert (metrics.top1.right, metrics.top5.right) == (right[:, 0].sum(), right[:, :5].sum())
    assert metrics.top1.total == 200
    assert 0 < metrics.top1.right < 200


@pytest.mark.soak
def test_resnext_tinys_published_figure_is_reproduced(shared: Path, tmp_path: Path) -> None:
    data = str(shared / "tiny-imagenet-200" / "val.parquet")
    command = ["evaluate", "--variant", "resnext_tiny", "--data", data, "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--expect", "published"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    published = default_manifest().resolve("resnext_tiny").published
    assert report["dataset"] == published.dataset
    (found,) = report["results"]
    for share in ("top1", "top5"):  # two of 5,000 images may fall otherwise where a processor rounds otherwise
        assert abs(found[share]["percent"] - getattr(published, share)) < 0.05
    assert found["ece"] <= 0.03


@pytest.mark.parametrize(
    "wrong",
    [{"views": "x"}, {"grade": "x"}, {"dataset": "x"}, {"engine": "x"}, {"batch": 0}, {"workers": 0}, {"sizes": ["x"]}],
)
def test_options_are_validated_once(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, EngineError), match=f"{next(iter(wrong))}|x"):
        Options(**wrong)


def test_contenders_with_sizes_and_views() -> None:
    (one,) = contenders_of(["resnext_tiny", "resnext_tiny"], Options(engine="torch"))
    assert (one.name, one.preset) == ("resnext_tiny", default_manifest().resolve("resnext_tiny").preprocessing)
    with pytest.raises(UnknownVariantError):
        contenders_of(["none"], Options())
    assert [parse_size(text) for text in ("288", "320:288")] == [(None, 288), (320, 288)]
    for wrong in ("", "0", "a", "200:288", "1:2:3", "-5"):
        with pytest.raises(ValueError, match="CROP"):
            parse_size(wrong)
    found = contenders_of(["resnext_tiny"], Options(engine="torch", sizes=["48", "72:64"], views="flip"))
    own = default_manifest().resolve("resnext_tiny").preprocessing
    resized = round(48 * own.resize_size / own.crop_size)  # in the checkpoint's proportion
    assert [c.name for c in found] == [f"resnext_tiny@{size}+flip" for size in (f"{resized}:48", "72:64")]
    assert [(c.preset.resize_size, c.preset.crop_size) for c in found] == [(resized, 48), (72, 64)]


def test_a_run_is_evaluated_on_the_images_that_it_held_out(folders: str, tmp_path: Path) -> None:
    """And on no other, unless a split or label file is passed."""
    listing = find_labelled(folders)
    held = [3, 17, 30]
    lines = [
        f"{listing.images.key(i)}\t{listing.labels[i]}\t{hashlib.sha256(listing.images.read(i)).hexdigest()}\n"
        for i in held
    ]
    for run in ("run", "same"):
        write(tmp_path / run / "held_out.tsv", "image\tclass\tsha256\n" + "".join(lines))
    write(tmp_path / "other" / "held_out.tsv", "image\tclass\tsha256\n" + lines[0])

    def trained(run: str) -> Contender:
        (source,) = CHECKPOINT.sources[:1]
        weights = dataclasses.replace(source, path=tmp_path / run / "weights.safetensors")
        return dataclasses.replace(contender(run), checkpoint=dataclasses.replace(CHECKPOINT, sources=(weights,)))

    report = evaluate([trained("run"), trained("same"), contender()], folders, tmp_path / "out")
    names = pq.read_table(tmp_path / "out" / "predictions.parquet")["image"].to_pylist()
    assert names == [listing.names[i] for i in held]
    assert str(tmp_path / "run") in report.layout or str(tmp_path / "same") in report.layout
    assert evaluate([trained("run")], folders, split="none").images == IMAGES
    with pytest.raises(SourceError, match="other"):
        evaluate([trained("run"), trained("other")], folders)
