"""The training loop, in one process or in several under torchrun. A stopped run resumes at the step it had reached."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, DivergedError, OutputError, StoppedError
from ..processes import Processes
from ..processing_utils.ranking import mean_average_precision
from ..run_identity import differences
from . import checkpoint
from .batches import Broken, TrainingSet, binary_cross_entropy, known
from .optimisation import Optimisation
from .recipe import Recipe

BEST = "best.pt"  # the weights of the best epoch

AGREE_EVERY = 8  # steps between the exchanges of stop signals among the processes
COLUMNS = ("epoch", "image_size", "lr", "loss", "val_loss", "val_top1", "val_top5", "val_map", "seconds", "broken")


@torch.inference_mode()
def accuracy(
    network: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    processes: Processes,
    weights: Tensor | None = None,
    multi_label: bool = False,
) -> dict[str, float]:
    """The columns val_loss, val_top1, val_top5 and val_map over the (input, labels) of all processes; accuracies 0..1.

    A label of -1 counts as wrong. For an image with several labels, one of them is enough. ``weights``: (classes,), how
    much an image of each class counts. With ``multi_label``, the mAP is measured, else top-1 and top-5; NaN if not.
    """
    found: dict[str, float] = dict.fromkeys(("val_loss", "val_top1", "val_top5", "val_map"), math.nan)
    was_training = network.training
    network.eval()
    if multi_label:
        ours = [(network(images.to(processes.device)).float().cpu(), labels) for images, labels in batches]
        network.train(was_training)
        if not (every := list(itertools.chain(*processes.gather(ours)))):
            return found
        scores, labels = (torch.cat(x) for x in zip(*every, strict=True))
        scores, labels = scores[known(labels)], labels[known(labels)]
        found["val_loss"] = binary_cross_entropy(scores, labels).item()
        return found | {"val_map": mean_average_precision(scores.numpy(), labels.bool().numpy())}
    loss = top1 = top5 = seen = readable = 0.0
    for images, labels in batches:
        scores = network(images.to(processes.device)).float().cpu()
        several = labels if labels.ndim > 1 else labels[:, None]
        ranked = (scores.topk(min(5, scores.shape[1]), dim=1).indices[:, :, None] == several[:, None, :]).any(2)
        first = several[:, 0]
        share = torch.ones(len(first)) if weights is None else weights[first.clamp(min=0)]
        top1 += (share * ranked[:, 0]).sum().item()
        top5 += (share * ranked.any(1)).sum().item()
        seen += share.sum().item()
        readable += (share * (first >= 0)).sum().item()
        loss += (share * F.cross_entropy(scores, first, ignore_index=-1, reduction="none")).sum().item()
    network.train(was_training)
    loss, top1, top5, seen, readable = processes.total(loss, top1, top5, seen, readable)
    if not seen:
        return found
    return found | {"val_loss": loss / max(readable, 1.0), "val_top1": top1 / seen, "val_top5": top5 / seen}


@dataclasses.dataclass
class Progress:
    """The progress of a run. ``rows`` is the curve: a row for each epoch. ``epochs`` is how many there will be: fewer
    than the recipe's if a time limit or its patience ends the run. ``spent`` is in seconds, with everything."""

    epochs: int = 0
    step: int = 0
    spent: float = 0.0
    seconds: float = 0.0  # of training, without validation
    running: float = 0.0  # sum of this epoch's losses
    broken: int = 0
    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)


class Signals:
    """SIGINT (Ctrl-C) and SIGTERM while the block runs: remembered, so that a run stops after its step.

    A second Ctrl-C stops at once. In a thread, signals cannot be caught: there, nothing changes.
    """

    received = 0

    def __enter__(self) -> Signals:
        main = threading.current_thread() is threading.main_thread()
        wanted = (signal.SIGINT, signal.SIGTERM) if main else ()
        self.before = {s: signal.getsignal(s) for s in wanted if signal.getsignal(s) is not signal.SIG_IGN}
        for number in self.before:
            signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame: object) -> None:
        self.received = number
        signal.signal(number, self.before[signal.Signals(number)])

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _measured_convolutions() -> Iterator[None]:
    """On GPUs, let cuDNN try its algorithms for each size of a batch: in training, sizes repeat."""
    cudnn: Any = torch.backends.cudnn
    before, cudnn.benchmark = cudnn.benchmark, True
    try:
        yield
    finally:
        cudnn.benchmark = before


class Loop:
    """Trains a network; `run` does it all. A loop with the same folder and identity resumes the run there.

    In one process, a resumed run ends with the weights of an uninterrupted one, bit for bit.

    Args:
        recipe: resolved (`Recipe.resolved`).
        train_set, validation: the batches; the second is called after each epoch.
        out: gets ``last.pt`` and ``previous.pt`` (checkpoints), ``run.json``, ``log.csv``, ``broken.csv`` and, at the
            end, ``weights.pt`` (the averaged weights, if the recipe averages).
        identity: what decides the result beside the recipe, as JSON has it.
        about: what is recorded beside it, and decides nothing.
        micro_batch: images per forward pass, to save memory; the gradients of a step are accumulated.
        checkpoint_seconds: at most this much work is lost to SIGKILL.
        prior, weights: of the classes, in the loss (`Optimisation`) and in the accuracy (`accuracy`).
        multi_label: see `Optimisation` and `accuracy`.
        minutes: train for as many epochs as fit into this time; the learning rate falls over these.
        spent: seconds that were spent on a new run before it came here.
        watch: called with ("step" | "epoch", values), for progress bars and logs.

    Raises:
        ValueError: the images do not fill a batch, or the processes cannot share one evenly.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        train_set: TrainingSet,
        validation: Callable[[Processes], Iterator[tuple[Tensor, Tensor]]],
        out: Path,
        *,
        identity: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
        micro_batch: int | None = None,
        checkpoint_seconds: float = 120.0,
        prior: Tensor | None = None,
        weights: Tensor | None = None,
        multi_label: bool = False,
        minutes: float | None = None,
        spent: float = 0.0,
        watch: Callable[[str, dict[str, float]], None] = lambda event, values: None,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.processes = Processes.here()
        world = self.processes.world
        if recipe.batch_size % world:
            raise ValueError(f"A batch of {recipe.batch_size} images cannot be divided evenly among {world} processes.")
        self.length = len(train_set) // recipe.batch_size
        if self.length == 0:
            raise ValueError(
                f"The training images ({len(train_set)}) do not fill one batch of {recipe.batch_size}: set a smaller "
                "batch_size."
            )
        self.recipe, self.train_set, self.validation, self.out = recipe, train_set, validation, out
        self.identity: dict[str, Any] = json.loads(
            json.dumps({"recipe": recipe.as_dict(), "micro_batch": micro_batch, "minutes": minutes, **(identity or {})})
        )
        self.about, self.watch, self.minutes = about or {}, watch, minutes
        self.checkpoint_seconds = checkpoint_seconds
        self.say = say if self.processes.first else lambda line: None
        self.optimisation = Optimisation(network, recipe, self.processes, micro_batch, self.length, prior, multi_label)
        self.weights, self.multi_label = weights, multi_label
        self.progress, self.first_step, self.begun = Progress(recipe.epochs, spent=spent), 0, time.monotonic()
        self.pending: Tensor | None = None
        self.loss = math.nan  # of the last step that is known

    @property
    def steps(self) -> int:
        return self.progress.epochs * self.length

    def run(self) -> tuple[Path, list[dict[str, float]]]:
        """Train to the end; return ``weights.pt`` and the curve.

        Raises:
            DivergedError: the loss is not finite.
            StoppedError: SIGINT or SIGTERM; the checkpoint is that of the last step.
            OutputError: the folder has a run with another identity, or cannot be written.
            CheckpointError: the checkpoint in the folder is damaged, and so is the one before it.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        checkpoint.expect_plain_files(self.out)
        self._resume()
        if self.processes.first:
            checkpoint.write_file(self.out / "run.json", json.dumps({**self.identity, **self.about}, indent=1) + "\n")
        self.saved = self.mark = self.begun = time.monotonic()
        with Signals() as self.signals, _measured_convolutions():
            while (epoch := len(self.progress.rows)) < self.progress.epochs:
                self._train(epoch)
                self._validate(epoch)
                self._plan()
                self._checkpoint()
                self._stop_if_told(self.processes.any(self.signals.received > 0))
        if not self.recipe.epochs:  # a fitted head alone: the folder has an identity all the same
            self._checkpoint()
        return self._save_weights(), self.progress.rows

    def _plan(self) -> None:
        """Shorten the run to the epochs that fit into the time, or end it when the patience is exhausted."""
        progress, done, now = self.progress, len(self.progress.rows), time.monotonic()
        last, self.begun = now - self.begun, now
        progress.spent += last
        limits = {}
        if self.minutes is not None:
            left = 60 * self.minutes - progress.spent
            limits["minutes"] = done + max(0, int(left / max(last, progress.seconds / done)))
        patience = self.recipe.patience
        if patience is not None and not any(row is best_row(progress.rows) for row in progress.rows[-patience:]):
            limits["patience"] = done
        for name, fit in limits.items():
            if (epochs := min(self.processes.gather(fit))) < progress.epochs:
                self.say(f"{epochs} instead of {progress.epochs} epochs, because of {name}")
                progress.epochs = self.optimisation.epochs = epochs

    def _train(self, epoch: int) -> None:
        """Take the remaining steps of an epoch."""
        progress, before = self.progress, epoch * self.length
        self.optimisation.training_mode()
        if progress.step == before + self.length:  # stopped before the validation
            return
        rank, world = self.processes.rank, self.processes.world
        for batch in self.train_set.batches(epoch, progress.step - before, rank, world):
            loss = self.optimisation.take(batch, progress.step)
            self._settle()  # the step before, so that the GPU is not waited for
            self.pending = loss
            progress.step += 1
            progress.broken += len(batch.broken)
            _note_broken(batch.broken, epoch + 1, self.out)
            done = progress.step - before
            if world == 1 or done % AGREE_EVERY == 0:
                due = self.processes.any(time.monotonic() - self.saved > self.checkpoint_seconds)
                told = self.processes.any(self.signals.received > 0)
                if due or told:
                    self._settle()
                    self._count_seconds()
                    self._checkpoint()
                self._stop_if_told(told)
            self.watch("step", {"step": progress.step, "steps": self.steps, "loss": self.loss})
        self._settle()
        self._count_seconds()

    def _validate(self, epoch: int) -> None:
        """Measure the accuracy, and write the epoch's row of the curve."""
        progress, recipe = self.progress, self.recipe
        batches = self.validation(self.processes)
        found = accuracy(self._agreed(), batches, self.processes, self.weights, self.multi_label)
        self.mark = time.monotonic()  # validation does not count
        loss, broken = self.processes.total(progress.running / self.length, progress.broken)
        row = {
            "epoch": epoch + 1,
            "image_size": recipe.image_size(epoch),
            "lr": recipe.peak_lr * self.optimisation.lr_share(epoch + 1 - 1 / self.length),  # of the last step
            "loss": loss / self.processes.world,
            **found,
            "seconds": round(progress.seconds, 1),
            "broken": int(broken),
        }
        progress.rows.append({key: round(value, 6) for key, value in row.items()})
        progress.running = 0.0
        if recipe.keep_best and self.processes.first and best_row(progress.rows) is progress.rows[-1]:
            checkpoint.save(self.out / BEST, checkpoint.contiguous(self.optimisation.averaged.state_dict()))
        if self.processes.first:
            curve = io.StringIO(newline="")
            writer: csv.DictWriter[str] = csv.DictWriter(curve, COLUMNS)
            writer.writeheader()
            writer.writerows(progress.rows)
            checkpoint.write_file(self.out / "log.csv", curve.getvalue())
        self.watch("epoch", progress.rows[-1])
        names = {"val_top1": "top-1", "val_top5": "top-5", "val_map": "mAP"}
        measured = [f", {name} {100 * found[key]:.2f}%" for key, name in names.items() if not math.isnan(found[key])]
        self.say(f"epoch {epoch + 1} of {progress.epochs}: loss {row['loss']:.3f}{''.join(measured)}")

    def _agreed(self) -> nn.Module:
        """The network to validate or publish, with the first process's BatchNorm statistics: each has its own."""
        network = self.optimisation.averaged
        if self.processes.world > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)
        return network

    def _save_weights(self) -> Path:
        path, network = self.out / "weights.pt", self._agreed()
        if self.processes.first:
            checkpoint.save(path, checkpoint.contiguous(network.state_dict()))
        self.processes.gather(None)  # the others read it after this
        return path

    def _settle(self) -> None:
        """Add the loss of the last step to the epoch's.

        Raises:
            DivergedError: it is not finite.
        """
        if self.pending is None:
            return
        loss, self.pending = self.pending.item(), None
        if not math.isfinite(loss):
            step = self.progress.step
            raise DivergedError(
                f"The loss is {loss} at step {step} (epoch {(step - 1) // self.length + 1} of {self.progress.epochs}): "
                "use a lower lr, more warmup_epochs, or clip_grad. The last checkpoint was saved before this step."
            )
        self.progress.running += loss
        self.loss = loss

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.progress.seconds, self.mark = self.progress.seconds + now - self.mark, now

    def _stop_if_told(self, told: bool) -> None:
        if told:
            raise StoppedError(
                f"Stopped at step {self.progress.step} of {self.steps}. To continue, run the same command again.",
                self.signals.received or signal.SIGTERM,  # which another process received
            )

    def _checkpoint(self) -> None:
        if self.processes.first:
            state = {name: part.state_dict() for name, part in self.optimisation.parts().items()}
            state |= {"progress": dataclasses.asdict(self.progress), "identity": json.dumps(self.identity)}
            checkpoint.write(state, self.out)
        self.saved = time.monotonic()

    def _resume(self) -> None:
        """Load the checkpoint in the folder, if there is one of this run.

        Raises:
            OutputError: it is of a run with another identity.
            CheckpointError: it is damaged, or its structure differs from this run's.
        """
        state = checkpoint.read(self.out, self.say, first=self.processes.first)
        if state is None:
            return
        parts = self.optimisation.parts()
        identity, progress = _identity(state), _progress(state, self.length)
        if identity is not None:
            self._expect_same(identity, progress)
        known = progress is not None and progress.step <= self.steps and 0 <= progress.epochs <= self.recipe.epochs
        if identity is None or progress is None or not known or not _fits(state, parts, progress.step):
            raise CheckpointError(
                f"{self.out / checkpoint.LAST} is not a checkpoint of this kind of run. Delete it to start again."
            )
        for name, part in parts.items():
            part.load_state_dict(state[name])
        if identity != self.identity:  # it gets more epochs
            progress.epochs = self.recipe.epochs
        self.optimisation.epochs = progress.epochs
        self.optimisation.set_lr()
        self.progress, self.first_step = progress, progress.step
        self.say(f"Resuming at step {progress.step} of {self.steps}")

    def _expect_same(self, before: dict[str, Any], progress: Progress | None) -> None:
        """Raise OutputError if the run in the folder has another identity; a finished run may get more epochs."""
        epochs, done = self.recipe.epochs, len(progress.rows) if progress else 0
        longer, planned = _with_epochs_of(before, self.identity)
        found = differences(before, self.identity)
        if found and longer == self.identity and planned < epochs:
            if done == planned:
                self.say(
                    f"Adding epochs {done + 1} to {epochs} to a finished run. The learning rate is that of a run of "
                    f"{epochs} epochs, from {self.recipe.peak_lr * self.recipe.lr_share(done):.2g} on."
                )
                return
            found += "; only a finished run can get more epochs"
        if found:
            raise OutputError(
                f"{self.out} has a run with other settings: {found}. Pass another folder as out=FOLDER, or delete "
                "this one to start again."
            )


def figure_of(row: Mapping[str, float]) -> float:
    """The accuracy in a row of the curve: top-1 or, of images with several classes, the mAP."""
    return row["val_top1"] if math.isnan(row["val_map"]) else row["val_map"]


def best_row(rows: list[dict[str, float]]) -> dict[str, float]:
    """The row of the highest accuracy; of several, that of the least loss. Without validation images, the last."""
    measured = [row for row in rows if not math.isnan(figure_of(row))]
    return max(measured, key=lambda row: (figure_of(row), -row["val_loss"])) if measured else rows[-1]


def _identity(state: dict[str, Any]) -> dict[str, Any] | None:
    """The identity in a state, which may be untrusted; None if it has none."""
    try:
        found = json.loads(state["identity"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("recipe"), dict) else None


def _with_epochs_of(before: dict[str, Any], now: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """(an identity with its last phase as long as that of another, the epochs that it has without)."""
    try:
        *first, last = before["recipe"]["phases"]
        phases = [*first, last | {"epochs": now["recipe"]["phases"][-1]["epochs"]}]
        planned = sum(phase["epochs"] for phase in (*first, last))
    except (KeyError, TypeError, ValueError):
        return before, 0
    return before | {"recipe": before["recipe"] | {"phases": phases}}, planned


def _progress(state: dict[str, Any], length: int) -> Progress | None:
    """The progress in a state, which may be untrusted; None if it is invalid."""
    found: Any = state.get("progress")
    rows: Any = found.get("rows") if type(found) is dict else None
    form = dataclasses.asdict(Progress()) | {"rows": [dict.fromkeys(COLUMNS, 0.0)] * len(rows or ())}
    if type(rows) is not list or not _is_alike(found, form) or found["step"] < 0:
        return None
    if type(found["step"]) is not int or type(found["epochs"]) is not int:
        return None
    epochs, steps = divmod(found["step"], length)
    # At the end of an epoch, a run may have stopped before its validation.
    return Progress(**found) if len(rows) in ({epochs} if steps else {epochs, epochs - 1}) else None


def _fits(state: dict[str, Any], parts: Mapping[str, Any], step: int) -> bool:
    """True if everything in a state, which may be untrusted, has the structure of the value that it replaces."""
    expected = {name: part.state_dict() for name, part in parts.items()}
    theirs = {name: state.get(name) for name in expected}
    optimizer, given = parts["optimizer"], theirs["optimizer"]
    momenta: Any = given.get("state") if type(given) is dict else None
    if type(momenta) is dict and momenta:  # empty in a new optimiser; the keys are the parameters' numbers
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        adam = isinstance(optimizer, torch.optim.AdamW)
        names = ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",)
        count = {"step": torch.zeros((), dtype=torch.float32)} if adam else {}
        expected["optimizer"]["state"] = {i: count | dict.fromkeys(names, p.detach()) for i, p in enumerate(parameters)}
    scheduler: Any = theirs["scheduler"]
    return _is_alike(theirs, expected) and scheduler["last_epoch"] == step


def _is_alike(value: Any, form: Any) -> bool:
    """True if two values are nested in the same way, with tensors of the same shape and dtype, and other values of the
    same type; integers and floats count as one type."""
    if isinstance(form, Tensor):
        return isinstance(value, Tensor) and (value.shape, value.dtype) == (form.shape, form.dtype)
    if isinstance(form, dict):
        return type(value) is dict and value.keys() == form.keys() and all(_is_alike(value[k], form[k]) for k in form)
    if isinstance(form, list | tuple):
        return type(value) is type(form) and len(value) == len(form) and all(map(_is_alike, value, form))
    if type(form) in (int, float):
        return type(value) is float or (type(value) is int and abs(value) < 2**63)
    return type(value) is type(form)


def _note_broken(broken: tuple[Broken, ...], epoch: int, out: Path) -> None:
    """Add one row for each broken image and epoch, even if a resumed run reads it again."""
    if not broken:
        return
    path = out / "broken.csv"
    with open(path, "a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        known = {tuple(row[:2]) for row in csv.reader(file)}
        writer = csv.writer(file)
        if not known:
            writer.writerow(("epoch", "image", "error"))
        writer.writerows((epoch, b.name, b.error) for b in broken if (str(epoch), b.name) not in known)


def unreadable(out: Path) -> set[str]:
    """The training images that a run could not read: the names in its ``broken.csv``."""
    path = out / "broken.csv"
    if not path.exists():
        return set()
    with open(path, newline="", encoding="utf-8") as file:
        return {row[1] for row in [*csv.reader(file)][1:] if len(row) == 3}
