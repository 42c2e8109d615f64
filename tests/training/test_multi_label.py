"""Images with several classes: from the training to the commands that use its folder."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from resnext_hub import classifier
from resnext_hub.cli import main
from resnext_hub.deploy.export import export
from resnext_hub.errors import SourceError
from resnext_hub.evaluation.evaluate import evaluate
from resnext_hub.evaluation.explain import explain
from resnext_hub.models.entrypoints import load
from resnext_hub.models.manifest import find_checkpoint
from resnext_hub.processing_utils import prepare_inputs
from resnext_hub.processing_utils.ranking import mean_average_precision
from resnext_hub.training import finetune
from resnext_hub.training.batches import binary_cross_entropy
from resnext_hub.training.head import Features, fit_head

from ..support.training_runs import curve

COLOURS = {"blue": (40, 40, 220), "green": (40, 200, 40), "red": (220, 40, 40)}


def made(top: Path, count: int) -> Path:
    """Grey images with squares of none to three colours, and their list."""
    rng, rows = np.random.default_rng(0), ["image,label"]
    top.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        names = [name for name in COLOURS if rng.random() < 0.4]
        pixels = rng.integers(90, 150, (40, 40, 3)).astype(np.uint8)
        for name in names:
            x, y = rng.integers(0, 24, 2)
            pixels[y : y + 16, x : x + 16] = COLOURS[name]
        Image.fromarray(pixels).save(top / f"{i:03}.png")
        rows.append(f"{i:03}.png,{'|'.join(names) or '[]'}")
    (top / "list.csv").write_text("\n".join(rows))
    return top / "list.csv"


@pytest.fixture(scope="module")
def data(tmp_path_factory: Any) -> Path:
    return made(tmp_path_factory.mktemp("data"), 80)


@pytest.fixture(scope="module")
def folder(data: Path) -> Path:
    """A finished run with validation images."""
    val = made(data.parent / "val", 20)
    arguments = ["train", "--variant", "resnext_tiny", "--data", str(data), "--val", str(val)]
    arguments += ["--out", str(data.parent / "run")]
    assert main([*arguments, "--epochs", "2", "--image-size", "40", "--workers", "0", "--threads", "1"]) == 0
    return data.parent / "run"


def test_the_map_is_the_figure_of_the_run(folder: Path, data: Path) -> None:
    checkpoint = find_checkpoint(folder)
    assert checkpoint.multi_label
    assert checkpoint.published.top1 is checkpoint.published.top5 is None
    rows = curve(folder)
    assert [row["val_top1"] for row in rows] == ["nan", "nan"]
    assert checkpoint.published.mean_ap is not None
    assert checkpoint.published.mean_ap >= max(100 * float(row["val_map"]) for row in rows) - 0.01
    assert checkpoint.published.mean_ap > 80
    assert main(["info", str(folder)]) == 0


def test_each_class_has_a_probability_of_its_own(folder: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    photo, checkpoint = data.parent / "000.png", find_checkpoint(folder)
    images = prepare_inputs([photo], variant=str(folder))
    with torch.inference_mode():
        sigmoids = load(checkpoint).eval()(images)[0].sigmoid().tolist()
    found = {p.label: p.probability for p in classifier(str(folder), engine="torch")(photo)}
    assert found == pytest.approx(dict(zip(COLOURS, sigmoids, strict=True)), abs=1e-4)
    assert main(["classify", str(photo), "--variant", str(folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["predictions"]
    assert {p["label"]: p["probability"] for p in shown} == pytest.approx(found, abs=1e-4)
    table = tmp_path / "t.parquet"
    assert main(["classify", str(photo), "--variant", str(folder), "--out", str(table)]) == 0
    row = pq.read_table(table).to_pylist()[0]
    assert dict(zip(row["labels"], row["probabilities"], strict=True)) == pytest.approx(found, abs=0.02)
    assert explain(str(folder), photo, target="red").probability == pytest.approx(found["red"], abs=1e-3)


def test_evaluate_measures_the_same_map(folder: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert main(["evaluate", "--variant", str(folder), "--data", str(data), "--out", str(out)]) == 0
    assert "mAP %" in capsys.readouterr().out
    (result,) = json.loads((out / "report.json").read_text())["results"]
    assert result["mean_ap"] == pytest.approx(find_checkpoint(folder).published.mean_ap, abs=1.0)
    table = pq.read_table(out / "predictions.parquet").to_pylist()
    scores = np.array([row["run.scores"] for row in table])
    truth = np.array([[c in row["run.targets"] for c in range(3)] for row in table])
    assert result["mean_ap"] == pytest.approx(100 * mean_average_precision(scores, truth))
    with open(out / "classes.csv", newline="") as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    assert rows.keys() == COLOURS.keys()
    assert np.mean([float(row["ap"]) for row in rows.values()]) == pytest.approx(result["mean_ap"], abs=0.01)
    right = ((scores >= 0.5) & truth).sum(0)
    assert float(rows["blue"]["top1"]) == pytest.approx(100 * right[0] / truth[:, 0].sum(), abs=0.01)
    assert not (out / "confusion.png").exists()


def test_of_a_network_for_one_class_any_of_them_is_right(data: Path, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(f"image,label\n{data.parent}/000.png,tench|cup\n{data.parent}/001.png,[]\n")
    with pytest.raises(SourceError, match="tench"):
        evaluate(["resnext_tiny"], str(tmp_path / "l.csv"))
    (tmp_path / "l.csv").write_text(f"image,label\n{data.parent}/000.png,0|1|2\n{data.parent}/001.png,[]\n")
    report = evaluate(["resnext_tiny"], str(tmp_path / "l.csv"))
    assert report is not None
    metrics = report.results[0].metrics
    assert (metrics.top1.total, metrics.not_counted, metrics.mean_ap) == (1, 1, None)


@pytest.mark.parametrize("options", [{"softmax": True}, {"softmax": True, "top": 2}])
def test_exported_probabilities_are_sigmoids(folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    report = export(folder, "torch-export", tmp_path / "out", photos=str(folder.parent / "000.png"), **options)
    assert report.agreement.is_exact
    network = torch.export.load(report.path).module()
    image = torch.randn(1, 3, 40, 40)
    found = network(image)
    expected = load(find_checkpoint(folder)).eval()(image).sigmoid()
    found, expected = (found[0], expected.topk(2).values) if "top" in options else (found, expected)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_what_is_for_one_class_is_refused(folder: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    def refused(*words: object) -> str:
        assert main([*map(str, words), "--out", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    start = ("train", "--variant", "resnext_tiny", "--data", data, "--workers", "0")
    assert "balance" in refused(*start, "--balance")
    assert "held_out" in refused(*start, "--set", "held_out=8")
    assert "several" in refused("export", "--variant", folder, "--to", "triton")
    assert "several" in refused("score", "--variant", folder, "--data", data)
    assert not (tmp_path / "out").exists()


def test_few_images_have_the_map_of_the_cross_validation(tmp_path: Path) -> None:
    said: list[str] = []
    run = finetune("resnext_tiny", made(tmp_path / "d", 30), tmp_path / "out", workers=0, say=said.append)
    assert run.top1 is None
    assert run.mean_ap is not None
    assert run.mean_ap > 0.5
    assert find_checkpoint(run.folder).published.mean_ap == pytest.approx(100 * run.mean_ap, abs=0.01)


def test_the_loss_and_the_head_are_those_of_independent_classes() -> None:
    scores, labels = torch.tensor([[2.0, -1.0], [0.0, 3.0]]), torch.tensor([[1, 0], [0, 0]])
    right = torch.where(labels > 0, scores.sigmoid(), (-scores).sigmoid())
    assert binary_cross_entropy(scores, labels).item() == pytest.approx(-right.log().sum().item() / 2)
    torch.testing.assert_close(binary_cross_entropy(scores, labels, 1.0), binary_cross_entropy(scores, 1 - labels, 1.0))
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(200, 8, generator=generator)
    hot = (plain[:, :3] + 0.3 * torch.randn(200, 3, generator=generator) > 0.5).to(torch.int8)
    head = fit_head(Features(plain[:150], hot[:150]), 3)
    other = mean_average_precision((plain[150:] @ head.weight.T + head.bias).numpy(), hot[150:].bool().numpy())
    assert head.top1 == pytest.approx(other, abs=0.1)
    assert head.top1 > 0.8
    assert math.isnan(head.mirrored_top1)
