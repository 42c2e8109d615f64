"""The training loop: one process, checkpointed, resumable at any step."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from .data import EpochSampler, ParquetImages, eval_transform, to_input, train_transform
from .recipe import Recipe

__all__ = ["accuracy", "save_atomically", "train"]


def save_atomically(state: Any, path: Path) -> None:
    """``torch.save`` that leaves either the old file or the whole new one."""
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@torch.inference_mode()
def accuracy(network: nn.Module, loader: DataLoader[Any], prepare: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Top-1 and top-5 accuracy of a network over (images, labels), as shares in 0..1; ``prepare`` makes the input."""
    network.eval()
    top1 = top5 = seen = 0
    for images, labels in loader:
        scores = network(prepare(images))
        ranked = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
        top1 += int(ranked[:, 0].sum())
        top5 += int(ranked.any(1).sum())
        seen += len(labels)
    return top1 / seen, top5 / seen


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    decay = [p for p in network.parameters() if p.ndim > 1]
    no_decay = [p for p in network.parameters() if p.ndim <= 1]  # BatchNorm and biases
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]


def _ignore_sigterm(worker: int) -> None:
    """A scheduler signals the whole process group: the main process checkpoints, and only then may its workers go."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def train(
    network: nn.Module,
    recipe: Recipe,
    train_files: list[Path],
    val_files: list[Path],
    synsets: list[str],
    out: Path,
    *,
    checkpoint_seconds: float = 120.0,
    workers: int = 1,
    log: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train ``network`` by ``recipe``; resume from ``out/last.pt`` where it is; return the file of the final weights.

    Writes into ``out``: ``recipe.json``, ``log.csv`` (a row an epoch), ``last.pt`` (everything needed to go on, at
    most ``checkpoint_seconds`` old) and at the end ``weights.pt`` (the averaged weights, float32). SIGTERM checkpoints
    and exits.

    Raises:
        FloatingPointError: the loss is not finite; the message names the step.
        ValueError: ``out`` holds a run of another recipe, or the images do not fill a batch.
    """
    out.mkdir(parents=True, exist_ok=True)
    network = network.to(memory_format=torch.channels_last)
    train_set = ParquetImages(train_files, synsets, train_transform(recipe, recipe.image_size(0)))
    val_set = ParquetImages(val_files, synsets, eval_transform(recipe.image_size(0)))
    steps_per_epoch = len(train_set) // recipe.batch_size
    if steps_per_epoch == 0:
        raise ValueError(f"{len(train_set)} images do not fill one batch of {recipe.batch_size}.")
    total, warmup = recipe.epochs * steps_per_epoch, recipe.warmup_epochs * steps_per_epoch

    optimizer = torch.optim.SGD(
        _parameter_groups(network, recipe.weight_decay), recipe.lr, momentum=recipe.momentum, nesterov=True
    )
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=max(1, round(warmup))),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, total - round(warmup))),
        ],
        [max(1, round(warmup))],
    )
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay), use_buffers=True)
    prepare = to_input(recipe)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)

    parts = {"network": network, "average": average, "optimizer": optimizer, "scheduler": scheduler}
    last = out / "last.pt"
    step, seconds, running = 0, 0.0, 0.0
    if last.exists():
        state = torch.load(last, weights_only=True)
        if state["recipe"] != json.dumps(recipe.as_dict()):
            raise ValueError(f"{last} was made by another recipe; take another folder, or that recipe.")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        step, seconds, running = state["step"], state["seconds"], state["running"]
        log(f"resumed at step {step} of {total}")

    (out / "recipe.json").write_text(json.dumps(recipe.as_dict(), indent=1) + "\n")

    def checkpoint() -> None:
        progress = {"step": step, "seconds": seconds, "running": running, "recipe": json.dumps(recipe.as_dict())}
        save_atomically({name: part.state_dict() for name, part in parts.items()} | progress, last)

    stop = False

    def on_sigterm(signum: int, frame: object) -> None:
        nonlocal stop
        stop = True

    previous = signal.signal(signal.SIGTERM, on_sigterm)
    saved = time.monotonic()
    try:
        for epoch in range(step // steps_per_epoch, recipe.epochs):
            size = recipe.image_size(epoch)
            train_set.transform, train_set.seed = train_transform(recipe, size), recipe.seed * 1000 + epoch
            val_set.transform = eval_transform(size)
            sampler = EpochSampler(
                len(train_set), recipe.seed, epoch, start=(step - epoch * steps_per_epoch) * recipe.batch_size
            )
            loader = DataLoader(
                train_set,
                recipe.batch_size,
                sampler=sampler,
                num_workers=workers,
                drop_last=True,
                worker_init_fn=_ignore_sigterm,
            )
            network.train()
            mark = time.monotonic()
            for images, labels in loader:
                images = prepare(images).to(memory_format=torch.channels_last)
                with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
                    loss = loss_fn(network(images), labels)
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"loss is {loss.item()} at step {step}, epoch {epoch}; lower the lr.")
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                average.update_parameters(network)
                step += 1
                running += loss.item()
                now = time.monotonic()
                seconds, mark = seconds + now - mark, now
                done = step - epoch * steps_per_epoch
                # The epoch's last step is kept with its validation, below: resuming there would leave that out.
                if (stop or now - saved > checkpoint_seconds) and done < steps_per_epoch:
                    checkpoint()
                    saved = time.monotonic()
                    log(f"epoch {epoch} step {done}/{steps_per_epoch} loss {loss.item():.3f} {seconds:.0f} s")
                if stop and done < steps_per_epoch:
                    raise SystemExit(0)
            top1, top5 = accuracy(
                average.module, DataLoader(val_set, 250, num_workers=workers, worker_init_fn=_ignore_sigterm), prepare
            )
            with open(out / "log.csv", "a", newline="") as file:
                writer = csv.writer(file)
                if file.tell() == 0:
                    writer.writerow(["epoch", "image_size", "lr", "loss", "val_top1", "val_top5", "seconds"])
                lr = scheduler.get_last_lr()[0]
                row = [epoch, size, f"{lr:.5f}", f"{running / steps_per_epoch:.4f}", top1, top5, round(seconds)]
                writer.writerow(row)
            log(f"epoch {epoch} size {size} loss {running / steps_per_epoch:.3f} top-1 {top1:.4f} top-5 {top5:.4f}")
            running = 0.0
            checkpoint()
            saved = time.monotonic()
            if stop:
                raise SystemExit(0)
    finally:
        signal.signal(signal.SIGTERM, previous)
    weights = out / "weights.pt"
    save_atomically(average.module.state_dict(), weights)
    return weights
