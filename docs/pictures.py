"""Draw the figures in docs/pictures/ from weights_manifest.json and benchmarks/variants.csv.

    python docs/pictures.py [accuracy.png demo.jpg grad_cam.png resnext_tiny.png]

accuracy.png: top-1 against multiply-adds, parameters and measured speed. demo.jpg: what `make demo` writes.
grad_cam.png: where resnext_tiny sees a class. resnext_tiny.png: its training, from
maintenance/resnext_tiny/resnext_tiny.csv. docs/screenshots.py makes the pictures of the web page.
"""

from __future__ import annotations

import csv
import itertools
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
from matplotlib.figure import Figure
from resnext_hub.models.manifest import Checkpoint, default_manifest

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
PHOTO = ROOT / "demo" / "coffee.jpg"
SPEEDS = ROOT / "benchmarks" / "variants.csv"
INK, GRID = "#1f2933", "#d8dee4"
# One colour a family, apart for eyes that tell few colours too (Okabe and Ito), and one mark.
LOOKS = {
    "wsl": ("WSL, 940M hashtag photos", "#0072b2", "o"),
    "swsl": ("semi-weakly supervised", "#d55e00", "s"),
    "ssl": ("semi-supervised", "#e69f00", "D"),
    "V2": ("torchvision, new recipe", "#009e73", "^"),
    "V1": ("torchvision", "#56b4e9", "v"),
    "nvidia": ("NVIDIA", "#cc79a7", "P"),
}


def family(checkpoint: Checkpoint) -> str:
    name = checkpoint.name
    if name.startswith("nvidia"):
        return "nvidia"
    if checkpoint.tag:
        # resnext101_64x4d's V1 is of the new recipe, though it is the first of its name
        return "V1" if checkpoint.tag.endswith("V1") and "64x4d" not in name else "V2"
    return name.rpartition("_")[2]


def top1(checkpoint: Checkpoint) -> float:
    """Top-1 as measured by timm's authors at 224 pixels, otherwise as published."""
    found = (row for row in checkpoint.measured if row.dataset == "imagenet" and row.image_size == 224)
    top1 = next(found, checkpoint.published).top1
    assert top1 is not None
    return top1


def short(checkpoint: Checkpoint) -> str:
    """ "resnext101_32x8d_wsl" -> "101 32x8d"."""
    return (
        checkpoint.architecture_name.removeprefix("se_").replace("resnext", "").replace("resnet", "R").replace("_", " ")
    )


def draw_accuracy() -> Figure:
    checkpoints = [c for c in default_manifest().checkpoints.values() if c.published.dataset == "imagenet"]
    with open(SPEEDS, newline="") as file:
        rows = {row["architecture"]: row for row in csv.DictReader(file)}
    engines = sorted({f"{row['engine']} {row['precision']}" for row in rows.values()})
    machine = next(iter(rows.values()))["machine"]
    panels: list[tuple[str, Any]] = [
        ("multiply-adds an image, G", lambda c: c.gmacs),
        ("parameters, M", lambda c: c.params / 1e6),
        (f"one core's milliseconds an image\n({', '.join(engines)}; {machine})", lambda c: _speed(c, rows)),
    ]
    figure = Figure(figsize=(14, 5.6), layout="constrained")
    for axes, (title, of) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        points: dict[str, list[tuple[float, float, Checkpoint]]] = defaultdict(list)
        for checkpoint in checkpoints:
            if (x := of(checkpoint)) is not None:
                points[family(checkpoint)].append((x, top1(checkpoint), checkpoint))
        for kind, (text, colour, mark) in LOOKS.items():
            found = sorted(points[kind], key=lambda p: p[0])
            xs, ys = [p[0] for p in found], [p[1] for p in found]
            axes.plot(xs, ys, color=colour, marker=mark, markersize=7, linewidth=0.7, label=text)
            if kind in ("wsl", "V1"):
                for x, y, checkpoint in found:
                    side = (0, 8) if kind == "wsl" else (0, -14)
                    axes.annotate(
                        short(checkpoint),
                        (x, y),
                        side,
                        textcoords="offset points",
                        fontsize=7.5,
                        color=INK,
                        ha="center",
                    )
        if missing := list(dict.fromkeys(short(c) for c in checkpoints if of(c) is None)):
            text = f"not measured: {', '.join(missing)}"
            axes.text(0.98, 0.02, text, transform=axes.transAxes, ha="right", fontsize=8, color=INK)
        axes.set_xscale("log")
        axes.margins(x=0.12, y=0.07)
        axes.set_xlabel(title, color=INK)
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes.grid(color=GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("top-1 on ImageNet, %, at 224 pixels", color=INK)
            axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def _speed(checkpoint: Checkpoint, rows: dict[str, Any]) -> float | None:
    row = rows.get(checkpoint.architecture_name)
    return float(row["ms"]) if row else None


def draw_demo() -> Figure:
    from resnext_hub.inference.classifier import classifier
    from resnext_hub.processing_utils import plot_predictions

    classify = classifier("resnext_tiny", engine="torch")
    return plot_predictions(PHOTO, classify(PHOTO), title=f"resnext_tiny, {len(classify.labels)} classes")


def draw_grad_cam() -> Figure:
    from resnext_hub.evaluation.explain import explain

    return explain("resnext_tiny", PHOTO, "espresso").plot()


def draw_training() -> Figure:
    with open(ROOT / "maintenance" / "resnext_tiny" / "resnext_tiny.csv", newline="", encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    epochs = [row["epoch"] + 1 for row in rows]
    losses.plot(epochs, [row["loss"] for row in rows], color="#0072b2", marker=".")
    losses.set(xlabel="epoch", ylabel="loss, labels and teacher")
    for key, label, colour in (("val_top5", "top-5", "#e69f00"), ("val_top1", "top-1", "#d55e00")):
        accuracies.plot(epochs, [100 * row[key] for row in rows], color=colour, marker=".", label=label)
    accuracies.axhline(50, color=INK, linewidth=0.8, linestyle=":")
    accuracies.set(xlabel="epoch", ylabel="validation accuracy at 64 pixels (%)", ylim=(0, 100))
    accuracies.legend(loc="lower right")
    for axes in (losses, accuracies):
        axes.grid(color=GRID)
        for before, after in itertools.pairwise(rows):  # where the images grow
            if after["image_size"] != before["image_size"]:
                axes.axvline(after["epoch"] + 0.5, color=GRID, linewidth=2)
        for size in sorted({row["image_size"] for row in rows}):
            first = next(row["epoch"] for row in rows if row["image_size"] == size)
            axes.text(first + 0.7, axes.get_ylim()[1], f"{size:.0f} px", va="top", fontsize=8, color=INK)
    return figure


DRAWN = {
    "accuracy.png": draw_accuracy,
    "demo.jpg": draw_demo,
    "grad_cam.png": draw_grad_cam,
    "resnext_tiny.png": draw_training,
}


def main() -> int:
    for name in sys.argv[1:] or DRAWN:
        DRAWN[name]().savefig(PICTURES / name, dpi=110)
        print(PICTURES / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
