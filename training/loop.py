"""The training loop: one process or, under torchrun, several; checkpointed, and resumed at any step to the same end."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import math
import os
import signal
import time
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..errors import CheckpointError, DivergedError, OutputError
from ..models.checkpoints import read_training_state
from .batches import Batch, Broken, TrainingSet, soft_cross_entropy
from .recipe import Recipe

__all__ = [
    "Place",
    "accuracy",
    "distillation_loss",
    "parameter_groups",
    "save_atomically",
    "train",
    "unreadable",
    "write_atomically",
]

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
AGREE_EVERY = 8  # steps between two answers to: was any process told to stop?


@dataclasses.dataclass(frozen=True)
class Place:
    """Where this process runs and which of how many it is; `here` finds out."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Place:
        """What torchrun and the machine say."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if torch.cuda.is_available():
            return cls(torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))), rank, world)
        return cls(torch.device("cpu"), rank, world)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process: all of them then do the same."""
        return bool(self.total(float(flag))[0])

    def total(self, *values: float) -> list[float]:
        """Each value's sum over the processes."""
        if self.world == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared)
        return shared.tolist()


@contextlib.contextmanager
def _replacing(path: Path, mode: str = "x", **options: Any) -> Iterator[IO[Any]]:
    """A file to write that gets its name when it is complete; a link with either name is replaced, not followed."""
    temporary = path.with_name(path.name + ".part")
    temporary.unlink(missing_ok=True)  # of a killed run
    try:
        with open(temporary, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_atomically(state: Any, path: Path) -> None:
    """``torch.save`` that leaves either the old file or the whole new one; equal states give equal bytes."""
    with _replacing(path, "xb") as file:
        # A file object with a name would put that name, which is a temporary one, into the archive.
        torch.save(state, types.SimpleNamespace(write=file.write, flush=file.flush))  # pyright: ignore[reportArgumentType]


def write_atomically(text: str, path: Path) -> None:
    """Write a text file that is either the old one or the whole new one."""
    with _replacing(path, encoding="utf-8", newline="\n") as file:
        file.write(text)


@torch.inference_mode()
def accuracy(network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], place: Place) -> tuple[float, float, float]:
    """(cross-entropy, top-1, top-5) of a network over (input, labels) of all processes; accuracies in 0..1.

    A label of -1 counts as wrong. Of images with several labels any will do.
    """
    was_training = network.training
    network.eval()
    loss = top1 = top5 = seen = known = 0.0
    for images, labels in batches:
        scores = network(images.to(place.device)).float().cpu()
        wanted = labels if labels.ndim > 1 else labels[:, None]
        ranked = (scores.topk(min(5, scores.shape[1]), dim=1).indices[:, :, None] == wanted[:, None, :]).any(2)
        top1 += ranked[:, 0].sum().item()
        top5 += ranked.any(1).sum().item()
        seen += len(labels)
        first = wanted[:, 0]
        known += (first >= 0).sum().item()
        loss += F.cross_entropy(scores, first, ignore_index=-1, reduction="sum").item()
    network.train(was_training)
    loss, top1, top5, seen, known = place.total(loss, top1, top5, seen, known)
    return loss / max(known, 1.0), top1 / max(seen, 1.0), top5 / max(seen, 1.0)


def distillation_loss(scores: Tensor, labels: Tensor, teacher: Tensor, weight: float, temperature: float) -> Tensor:
    """``weight`` * KL(teacher || network), both softened, and (1 - ``weight``) * cross-entropy with the labels.

    scores, teacher: (N, classes) logits. The divergence is scaled by the squared temperature, which keeps its gradient
    the size of the labels' (Hinton et al. 2015, section 2).
    """
    ours, theirs = (F.log_softmax(x.float() / temperature, 1) for x in (scores, teacher))
    divergence = F.kl_div(ours, theirs, log_target=True, reduction="batchmean") * temperature**2
    return weight * divergence + (1 - weight) * F.cross_entropy(scores.float(), labels)


def _depth(name: str) -> int:
    """How many stages lie between a parameter and the head: 0 for the head, 1 for layer4, ..., 5 for the stem."""
    first = name.partition(".")[0]
    return {"fc": 0, "layer4": 1, "layer3": 2, "layer2": 3, "layer1": 4}.get(first, 5)


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The trained parameters of a network, by learning rate and weight decay."""
    norms = {f"{name}." for name, module in network.named_modules() if isinstance(module, NORMS)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        is_norm = f"{name.rpartition('.')[0]}." in norms
        is_bias = name.endswith("bias") and not is_norm
        undecayed = (is_norm and "norm" in recipe.undecayed) or (is_bias and "bias" in recipe.undecayed)
        depth = _depth(name)
        lr = recipe.peak_lr * recipe.layer_decay**depth * (recipe.head_lr if depth == 0 else 1.0)
        groups.setdefault((lr, 0.0 if undecayed else recipe.weight_decay), []).append(parameter)
    return [{"params": found, "lr": lr, "weight_decay": decay} for (lr, decay), found in groups.items()]


def freeze(network: nn.Module, recipe: Recipe) -> Callable[[], None]:
    """Freeze what the recipe does not train; return what puts the network into training mode."""
    if recipe.head_only:
        network.requires_grad_(False)
        network.get_submodule("fc").requires_grad_(True)
    norms = [module for module in network.modules() if isinstance(module, NORMS)]
    if recipe.freeze_norm:
        for norm in norms:
            norm.requires_grad_(False)

    def training() -> None:
        network.train(not recipe.head_only)  # a linear probe's features do not change
        if recipe.freeze_norm:
            for norm in norms:
                norm.eval()

    return training


class _Steps:
    """One optimiser step after another: forward and backward in micro-batches, scaled, clipped, averaged."""

    def __init__(self, network: nn.Module, recipe: Recipe, place: Place, micro_batch: int | None, length: int) -> None:
        self.recipe, self.place, self.micro_batch = recipe, place, micro_batch
        self.amp = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[recipe.amp]
        self.optimizer = torch.optim.SGD(
            parameter_groups(network, recipe),
            recipe.peak_lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov and recipe.momentum > 0,
            fused=True,
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: recipe.lr_share(step / length))
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=self.amp is torch.float16)
        self.average = None
        if recipe.ema_decay:
            self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay), use_buffers=True)
        self.network = network
        self.replica: Any = network
        if recipe.compile:
            self.replica = torch.compile(network)
        if place.world > 1:
            devices = [place.device] if place.device.type == "cuda" else None
            self.replica = DistributedDataParallel(self.replica, device_ids=devices)  # pyright: ignore[reportArgumentType]

    @property
    def averaged(self) -> nn.Module:
        """The network that is validated and published."""
        return self.network if self.average is None else self.average.module

    def parts(self) -> dict[str, Any]:
        """Everything with a state, by name."""
        found = {"network": self.network, "optimizer": self.optimizer, "scheduler": self.scheduler}
        found |= {"scaler": self.scaler} if self.scaler.is_enabled() else {}
        return found | ({} if self.average is None else {"average": self.average})

    def _loss(self, scores: Tensor, wanted: Tensor, teacher: Tensor | None) -> Tensor:
        recipe = self.recipe
        if teacher is None:
            return soft_cross_entropy(scores, wanted, recipe.label_smoothing)
        return distillation_loss(scores, wanted, teacher, recipe.distillation_weight, recipe.distillation_temperature)

    def take(self, batch: Batch, step: int) -> Tensor:
        """Train on a batch; its mean loss, not waited for."""
        recipe, device, count = self.recipe, self.place.device, len(batch.images)
        size = min(self.micro_batch or count, count)
        starts = range(0, count, size)
        total = torch.zeros((), device=device)
        for start in starts:
            part = slice(start, start + size)
            images = batch.images[part].to(device, non_blocking=True)
            if recipe.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            teacher = None if batch.teacher is None else batch.teacher[part].to(device, non_blocking=True)
            # Gradients are shared between the processes once a step, with its last micro-batch.
            apart = self.place.world > 1 and start != starts[-1]
            with self.replica.no_sync() if apart else contextlib.nullcontext():
                with torch.autocast(device.type, self.amp or torch.bfloat16, enabled=self.amp is not None):
                    scores = self.replica(images)
                loss = self._loss(scores, batch.targets[part].to(device, non_blocking=True), teacher)
                loss = loss * (len(images) / count)
                self.scaler.scale(loss).backward()
            total += loss.detach()
        if recipe.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.scheduler.step()
        if self.average is not None and (step + 1) % recipe.ema_every == 0:
            self.average.update_parameters(self.network)
        return total


@dataclasses.dataclass
class _Progress:
    """Where a run stands. ``rows`` is the curve so far."""

    step: int = 0
    seconds: float = 0.0
    running: float = 0.0
    broken: int = 0
    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)


COLUMNS = ("epoch", "image_size", "lr", "loss", "val_loss", "val_top1", "val_top5", "seconds", "broken")


def _resume(state: dict[str, Any], parts: Mapping[str, Any], length: int, path: Path) -> _Progress:
    """Put a training checkpoint into the parts of a run; return where it stands.

    The file may be from someone else: everything in it must have the form of what it replaces.

    Raises:
        CheckpointError: it has not.
    """
    progress = _Progress()
    expected = {name: part.state_dict() for name, part in parts.items()}
    theirs: dict[str, Any] = {name: state.get(name) for name in expected}
    optimizer, given = parts["optimizer"], theirs["optimizer"]
    momenta: Any = given.get("state") if type(given) is dict else None
    if type(momenta) is dict and momenta:  # empty in a new optimiser; by the parameters' numbers
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        expected["optimizer"]["state"] = {i: {"momentum_buffer": p.detach()} for i, p in enumerate(parameters)}
    row = dict.fromkeys(COLUMNS, 0.0)
    stand: Any = state.get("progress")
    rows: Any = stand.get("rows") if type(stand) is dict else None
    form = dataclasses.asdict(progress) | {"rows": [row] * len(rows) if type(rows) is list else []}
    if (
        not _is_alike(theirs, expected)
        or not _is_alike(stand, form)
        or type(stand["step"]) is not int
        or not 0 <= stand["step"] == theirs["scheduler"]["last_epoch"]
        or len(rows) != stand["step"] // length
    ):
        raise CheckpointError(f"{path} is not a checkpoint of this run. Delete it to start again.")
    for name, part in parts.items():
        part.load_state_dict(theirs[name])
    return _Progress(**stand)


def _is_alike(value: Any, form: Any) -> bool:
    """Whether two values are nested in the same way, with tensors of the same shape and dtype and other values of the
    same type, integers and floats being one."""
    if isinstance(form, Tensor):
        return isinstance(value, Tensor) and (value.shape, value.dtype) == (form.shape, form.dtype)
    if isinstance(form, dict):
        return type(value) is dict and value.keys() == form.keys() and all(_is_alike(value[k], form[k]) for k in form)
    if isinstance(form, list | tuple):
        return type(value) is type(form) and len(value) == len(form) and all(map(_is_alike, value, form))
    if type(form) in (int, float):
        return type(value) is float or (type(value) is int and abs(value) < 2**63)
    return type(value) is type(form)


def expect_plain_files(out: Path) -> None:
    """Raise OutputError if a folder, which someone else may have made, has anything but files and folders in it.

    A link would have training write or read outside the folder; a pipe would have it wait for ever.
    """
    for folder in (out, out / "tensorboard"):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise OutputError(f"{path} is a link or a special file: remove it, or choose another folder.")


def write_curve(rows: list[dict[str, float]], path: Path) -> None:
    """The curve as CSV."""
    with _replacing(path, newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def _agreed(network: nn.Module, place: Place) -> nn.Module:
    """The network with the first process's BatchNorm statistics: each process has counted its own."""
    if place.world > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)
    return network


def train(
    network: nn.Module,
    recipe: Recipe,
    train_set: TrainingSet,
    validation: Callable[[Place], Iterator[tuple[Tensor, Tensor]]],
    out: Path,
    *,
    about: dict[str, Any] | None = None,
    micro_batch: int | None = None,
    checkpoint_seconds: float = 120.0,
    validate_every: int = 1,
    watch: Callable[[str, dict[str, float]], None] = lambda event, values: None,
    log: Callable[[str], None] = lambda line: None,
) -> tuple[Path, list[dict[str, float]]]:
    """Train ``network``; a run in ``out`` goes on to the weights of an unbroken one, bit for bit in one process.

    Args:
        recipe: resolved (`Recipe.resolved`).
        train_set, validation: where batches come from; the second is asked after each epoch.
        out: gets ``last.pt`` (the checkpoint), ``run.json`` (recipe and ``about``), ``log.csv``, ``broken.csv`` and
            ``weights.pt`` (averaged, at the end), each written whole or not at all.
        about: versions and the like, recorded beside the checkpoint.
        micro_batch: images that pass the network together; a step's gradients are accumulated over as many as it takes.
        checkpoint_seconds: at most this much is lost to SIGKILL. SIGTERM writes a checkpoint and raises SystemExit(0).
        validate_every: epochs from one validation to the next; the last epoch always has one.
        watch: called with ("step" | "epoch", values), for progress bars and logs.

    Returns:
        ``weights.pt`` and the curve, a row an epoch.

    Raises:
        DivergedError: the loss is not finite; the message names the step.
        ValueError: ``out`` holds a run of another recipe, the images do not fill a batch, or the processes cannot share
            one evenly.
    """
    place = Place.here()
    if recipe.batch_size % place.world:
        raise ValueError(
            f"A batch of {recipe.batch_size} images cannot be divided evenly among {place.world} processes."
        )
    length = len(train_set) // recipe.batch_size
    if length == 0:
        raise ValueError(
            f"The training images ({len(train_set)}) do not fill one batch of {recipe.batch_size}: set a smaller "
            "batch_size."
        )
    out.mkdir(parents=True, exist_ok=True)
    expect_plain_files(out)
    network = network.to(place.device)
    if recipe.channels_last:
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if recipe.sync_batchnorm and place.world > 1 and place.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if recipe.grad_checkpointing:
        network.set_grad_checkpointing()  # pyright: ignore[reportCallIssue]
    training_mode = freeze(network, recipe)
    steps = _Steps(network, recipe, place, micro_batch, length)
    progress, last = _Progress(), out / "last.pt"
    described = json.dumps(recipe.as_dict())
    if last.exists():
        state = read_training_state(last)
        if type(state) is not dict or not isinstance(state.get("recipe"), str):
            raise CheckpointError(f"{last} is not a training checkpoint. Delete it to start again.")
        if state["recipe"] != described:
            raise ValueError(
                f"{last} was made with another recipe: choose another folder, or use the same recipe again."
            )
        progress = _resume(state, steps.parts(), length, last)
        log(f"Resuming at step {progress.step} of {recipe.epochs * length}")
    if place.rank == 0:
        write_atomically(json.dumps({"recipe": recipe.as_dict(), **(about or {})}, indent=1) + "\n", out / "run.json")

    def checkpoint() -> None:
        if place.rank == 0:
            state = {name: part.state_dict() for name, part in steps.parts().items()}
            state |= {"progress": dataclasses.asdict(progress), "recipe": described, "about": json.dumps(about or {})}
            save_atomically(state, last)

    stop = False

    def on_sigterm(signum: int, frame: object) -> None:
        nonlocal stop
        stop = True

    def finite(loss: Tensor, step: int) -> float:
        """The value of a loss. It is asked for a step late: a GPU then need not be waited for."""
        if not torch.isfinite(loss):
            raise DivergedError(
                f"The loss is {loss.item()} at step {step} (epoch {step // length + 1} of {recipe.epochs}): use a "
                "lower lr, more warmup_epochs, or clip_grad. The last checkpoint was saved before this step."
            )
        return loss.item()

    previous = signal.signal(signal.SIGTERM, on_sigterm)
    saved = mark = time.monotonic()
    try:
        for epoch in range(progress.step // length, recipe.epochs):
            training_mode()
            pending: Tensor | None = None
            for batch in train_set.batches(epoch, progress.step - epoch * length, place.rank, place.world):
                loss = steps.take(batch, progress.step)
                if pending is not None:
                    progress.running += finite(pending, progress.step - 1)
                pending = loss
                progress.step += 1
                progress.broken += len(batch.broken)
                _note_broken(batch.broken, epoch, out)
                done = progress.step - epoch * length
                if place.world == 1 or done % AGREE_EVERY == 0:
                    due = time.monotonic() - saved > checkpoint_seconds
                    stopping, due = place.any(stop), place.any(due)
                    # The epoch's last step is kept with its validation, below: resuming there would leave that out.
                    if (stopping or due) and done < length:
                        progress.running += finite(pending, progress.step - 1)
                        pending = None
                        now = time.monotonic()
                        progress.seconds, mark = progress.seconds + now - mark, now
                        checkpoint()
                        saved = time.monotonic()
                        if stopping:
                            raise SystemExit(0)
                watch("step", {"epoch": epoch, "done": done, "length": length, "step": progress.step})
            if pending is not None:
                progress.running += finite(pending, progress.step - 1)
            now = time.monotonic()
            progress.seconds, mark = progress.seconds + now - mark, now
            val_loss = top1 = top5 = float("nan")
            if (epoch + 1) % validate_every == 0 or epoch + 1 == recipe.epochs:
                val_loss, top1, top5 = accuracy(_agreed(steps.averaged, place), validation(place), place)
            mark = time.monotonic()  # validation does not count
            row = {
                "epoch": epoch,
                "image_size": recipe.image_size(epoch),
                "lr": steps.scheduler.get_last_lr()[-1],
                "loss": place.total(progress.running / length)[0] / place.world,
                "val_loss": val_loss,
                "val_top1": top1,
                "val_top5": top5,
                "seconds": round(progress.seconds, 1),
                "broken": int(place.total(progress.broken)[0]),
            }
            progress.rows.append({k: round(v, 6) for k, v in row.items()})
            progress.running = 0.0
            if place.rank == 0:
                write_curve(progress.rows, out / "log.csv")
            watch("epoch", progress.rows[-1])
            measured = "" if math.isnan(top1) else f", top-1 {100 * top1:.2f}%, top-5 {100 * top5:.2f}%"
            log(f"epoch {epoch + 1} of {recipe.epochs}: loss {row['loss']:.3f}{measured}")
            checkpoint()
            saved = time.monotonic()
            if place.any(stop):
                raise SystemExit(0)
    finally:
        signal.signal(signal.SIGTERM, previous)
    weights = out / "weights.pt"
    if place.rank == 0:
        save_atomically(_agreed(steps.averaged, place).state_dict(), weights)
    elif place.world > 1:
        _agreed(steps.averaged, place)
    return weights, progress.rows


def _note_broken(broken: tuple[Broken, ...], epoch: int, out: Path) -> None:
    """A row for each broken image and epoch, once, though a run that goes on meets it again."""
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
        return {row["image"] for row in csv.DictReader(file)}
