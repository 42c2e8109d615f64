"""Plots of the results."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ..processing_utils.labels import read_labels
from .evaluate import Result

INK, BAR, GAP = "#1f2933", "#2f6f9f", "#d9822b"
COLUMNS = 4


def plot_reliability(results: Sequence[Result]) -> Figure:
    """Plot the accuracy against the confidence, for each contender. On the diagonal they are equal.

    A bar is as wide as its bin, and darker the more images are in it.
    """
    columns = min(COLUMNS, len(results))
    rows = math.ceil(len(results) / columns)
    figure = Figure(figsize=(3.7 * columns, 3.9 * rows), layout="constrained")
    for at, result in enumerate(results):
        axes = figure.add_subplot(rows, columns, at + 1)
        metrics = result.metrics
        most = max(1, *(b.images for b in metrics.bins))
        for b in metrics.bins:
            if b.images:
                shade = 0.25 + 0.75 * b.images / most
                axes.bar(b.low, b.accuracy, b.high - b.low, align="edge", color=BAR, alpha=shade, edgecolor="white")
                axes.plot([b.low, b.high], [b.confidence] * 2, color=GAP, linewidth=2)
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="confidence")
        if at % columns == 0:
            axes.set_ylabel("accuracy (bars), mean confidence (lines)")
        axes.set_title(f"{result.name}\n{result.dataset}, ECE {100 * metrics.ece:.1f} %", fontsize=9, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_confusion(result: Result) -> Figure:
    """Plot how many images of each class were predicted as each class."""
    metrics, labels = result.metrics, read_labels(result.labels)
    shown = {c.index for c in metrics.classes} | {c.prediction for c in metrics.confusions if c.prediction >= 0}
    place = {index: at for at, index in enumerate(sorted(shown))}
    counts = np.zeros((len(place), len(place)), int)
    for c in metrics.classes:
        counts[place[c.index], place[c.index]] = round(c.images * c.top1 / 100)
    for c in metrics.confusions:
        if c.prediction >= 0:
            counts[place[c.truth], place[c.prediction]] = c.images
    side = 2.5 + 0.3 * len(place)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts, cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            dark = count > counts.max() / 2
            axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color="white" if dark else INK)
    names = [labels[index].name.partition(",")[0] for index in place]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set(xlabel="prediction", ylabel="class")
    return figure


def plot_sizes(results: Sequence[Result]) -> Figure:
    """Plot top-1 with its 95 % interval against the size of the crop, a line for each variant and proportion."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda r: r.preset.crop_size):
        share = result.preset.crop_size / result.preset.resize_size
        lines.setdefault(f"{result.variant}, {result.dataset}, crop {share:.0%}", []).append(result)
    for name, found in lines.items():
        rates = [r.metrics.top1 for r in found]
        sizes = [r.preset.crop_size for r in found]
        (line,) = axes.plot(sizes, [r.percent for r in rates], marker="o", markersize=4, label=name)
        axes.fill_between(sizes, [r.low for r in rates], [r.high for r in rates], color=line.get_color(), alpha=0.15)
    axes.set(xlabel="crop, pixels", ylabel="top-1, %")
    axes.set_xticks(sorted({r.preset.crop_size for r in results}))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
