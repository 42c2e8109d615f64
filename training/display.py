"""Show a run while it trains: a progress bar, learning curves and loggers."""

from __future__ import annotations

import csv
import importlib.util
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.hub import tqdm  # pyright: ignore[reportPrivateImportUsage]  # without tqdm, torch's plain bar

from ..files import write_atomically
from .loggers import LOGGERS, Logger

Batch = tuple[Tensor, Tensor]
log = logging.getLogger("resnext_hub")
DRAW_EVERY = 60  # seconds: drawing takes as long as training on a hundred small images


def watched(batches: Iterable[Batch], images: int, what: str) -> Iterator[Batch]:
    """Pass on (input, labels) under a bar on a terminal, which goes when they end."""
    options: dict[str, Any] = {"desc": what, "unit": " images", "leave": False, "dynamic_ncols": True}
    with tqdm(total=images, disable=not sys.stderr.isatty(), **options) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch[1]))


def plot_curves(rows: list[dict[str, float]], path: Path) -> None:
    """Draw loss and accuracy by epoch."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for key, label in (("loss", "training"), ("val_loss", "validation")):
        losses.plot(epochs, [row[key] for row in rows], marker=".", label=label)
    several = any(not math.isnan(row["val_map"]) for row in rows)
    for key, label in [("val_map", "mAP")] if several else [("val_top1", "top-1"), ("val_top5", "top-5")]:
        accuracies.plot(epochs, [100 * row[key] for row in rows], marker=".", label=label)
    losses.set(xlabel="epoch", ylabel="cross-entropy")
    accuracies.set(xlabel="epoch", ylabel="validation accuracy (%)", ylim=(0, 100))
    for axes, corner in ((losses, "upper right"), (accuracies, "lower right")):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(loc=corner)  # the search for the "best" corner can take so long that matplotlib warns
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))


class Display:
    """Shows a `Loop`: a progress bar on a terminal, curves.png, and the loggers.

    Args:
        batch: images per step.
        loggers: names in `loggers.LOGGERS`.
        recipe: the values of the recipe, for the loggers.
    """

    def __init__(
        self,
        out: Path,
        batch: int,
        *,
        shown: bool,
        loggers: Iterable[str] = (),
        recipe: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.out, self.batch, self.shown, self.recipe = out, batch, shown, recipe
        self.wanted = list(loggers)
        self.loggers: dict[str, Logger] = {}
        self.rows: list[dict[str, float]] = []  # of the learning curves that were not drawn yet
        self.drawn = 0.0
        self.bar: Any = None

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        self._draw()
        if self.bar is not None:
            self.bar.close()
        for name, logger in self.loggers.items():
            try:
                logger.close(failed=error[0] is not None)
            except Exception as failure:
                log.warning("%s: %s", name, failure)

    def __call__(self, event: str, values: dict[str, float]) -> None:
        """Show a step or an epoch."""
        if self.shown:
            (self._step if event == "step" else self._epoch)(values)

    def _step(self, values: dict[str, float]) -> None:
        if not sys.stderr.isatty() or importlib.util.find_spec("tqdm") is None:
            return
        images, total = (int(values[key]) * self.batch for key in ("step", "steps"))
        if self.bar is None:
            self.bar = tqdm(initial=images - self.batch, unit=" images", dynamic_ncols=True)
        self.bar.total = total  # a time limit changes it
        self.bar.set_postfix_str(f"loss {values['loss']:.3f}", refresh=False)
        self.bar.update(images - self.bar.n)

    def _draw(self) -> None:
        if self.rows:
            plot_curves(self.rows, self.out / "curves.png")
            self.rows, self.drawn = [], time.monotonic()

    def _epoch(self, row: dict[str, float]) -> None:
        if self.bar is not None:
            self.bar.clear()  # a line is printed now
        with open(self.out / "log.csv", newline="", encoding="utf-8") as file:
            rows = self.rows = [{key: float(value) for key, value in line.items()} for line in csv.DictReader(file)]
        if time.monotonic() - self.drawn > DRAW_EVERY:
            self._draw()
        for name in list(self.wanted):
            try:
                new = rows[-1:]
                if name not in self.loggers:  # only now: a run that cannot start leaves no files
                    self.loggers[name], new = LOGGERS[name](self.out, self.recipe), rows  # of a resumed run, all
                for each in new:
                    values = {key: value for key, value in each.items() if key != "epoch" and not math.isnan(value)}
                    self.loggers[name].log(values, int(each["epoch"]))
            except Exception as error:  # training continues without it
                log.warning("%s gets no more epochs: %s", name, error)
                self.wanted.remove(name)
