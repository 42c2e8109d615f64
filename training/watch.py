"""What a person sees of a run: a bar, a curve, TensorBoard; and the processes it runs in."""

from __future__ import annotations

import contextlib
import csv
import datetime
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from .loop import Place

__all__ = ["Watch", "distributed", "plot_curves"]


@contextlib.contextmanager
def distributed() -> Iterator[None]:
    """The process group of torchrun, where torchrun started this process."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    # Generous: one process may be held up by a slow store, and the others wait for it.
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=datetime.timedelta(hours=2))
    try:
        yield
    finally:
        dist.destroy_process_group()


def plot_curves(rows: list[dict[str, float]], path: Path) -> None:
    """Loss and accuracy by epoch, as a picture."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] + 1 for row in rows]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for key, label in (("loss", "training"), ("val_loss", "validation")):
        losses.plot(epochs, [row[key] for row in rows], marker=".", label=label)
    for key, label in (("val_top1", "top-1"), ("val_top5", "top-5")):
        accuracies.plot(epochs, [100 * row[key] for row in rows], marker=".", label=label)
    losses.set(xlabel="epoch", ylabel="cross-entropy")
    accuracies.set(xlabel="epoch", ylabel="validation accuracy (%)", ylim=(0, 100))
    for axes in (losses, accuracies):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    temporary = path.with_name(f"{path.name}.part")
    figure.savefig(temporary, dpi=110, format="png")
    os.replace(temporary, path)


class Watch:
    """Shows the first process's run: tqdm where stderr is a terminal, TensorBoard where it is installed, curves.png."""

    def __init__(self, out: Path, place: Place) -> None:
        self.out, self.bar, self.board = out, None, None
        self.shown = place.rank == 0

    def __call__(self, event: str, values: dict[str, float]) -> None:
        """What `engine.train` tells."""
        if self.shown:
            (self._step if event == "step" else self._epoch)(values)

    def _step(self, values: dict[str, float]) -> None:
        if not sys.stderr.isatty() or importlib.util.find_spec("tqdm") is None:
            return
        if self.bar is None:
            from tqdm import tqdm

            first = int(values["done"]) - 1
            title = f"epoch {values['epoch'] + 1:.0f}"
            self.bar = tqdm(total=int(values["length"]), initial=first, desc=title, unit=" steps", dynamic_ncols=True)
        self.bar.update()

    def _epoch(self, row: dict[str, float]) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        with open(self.out / "log.csv", newline="", encoding="utf-8") as file:
            rows = [{key: float(value) for key, value in line.items()} for line in csv.DictReader(file)]
        plot_curves(rows, self.out / "curves.png")
        if self.board is None and importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.out / "tensorboard"))  # now: a run that cannot start leaves nothing
        if self.board is not None:
            for key, value in row.items():
                if key != "epoch":
                    self.board.add_scalar(key, value, int(row["epoch"]))
            self.board.flush()

    def close(self) -> None:
        """End the bar and TensorBoard's file."""
        if self.bar is not None:
            self.bar.close()
        if self.board is not None:
            self.board.close()
