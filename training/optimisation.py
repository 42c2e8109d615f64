"""The optimiser: parameter groups, frozen layers, and the training step."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..processes import Processes
from .batches import Batch, binary_cross_entropy, soft_cross_entropy
from .recipe import Recipe

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def distillation_loss(scores: Tensor, labels: Tensor, teacher: Tensor, weight: float, temperature: float) -> Tensor:
    """``weight`` * KL(teacher || network), both softened, plus (1 - ``weight``) * cross-entropy with the labels.

    scores, teacher: (N, classes) logits. The squared temperature keeps the gradient of the divergence as large as that
    of the labels (Hinton et al. 2015, section 2).
    """
    ours, theirs = (F.log_softmax(x.float() / temperature, 1) for x in (scores, teacher))
    divergence = F.kl_div(ours, theirs, log_target=True, reduction="batchmean") * temperature**2
    return weight * divergence + (1 - weight) * F.cross_entropy(scores.float(), labels)


def _depth(name: str) -> int:
    """The number of stages between a parameter and the head: 0 for the head, 1 for layer4, ..., 5 for the stem."""
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


class Optimisation:
    """Trains a network one step at a time: forward and backward in micro-batches, then scaled, clipped and averaged.

    Args:
        network: the layers that the recipe does not train are frozen here.
        micro_batch: images per forward pass; None: all of this process's batch.
        length: steps per epoch.
        prior: (classes,) added to the logits in the loss, see the recipe's ``balance``.
        multi_label: an image may show several classes, or none: the loss is the binary cross-entropy of each class.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        processes: Processes,
        micro_batch: int | None,
        length: int,
        prior: Tensor | None = None,
        multi_label: bool = False,
    ) -> None:
        network = network.to(processes.device)
        if recipe.channels_last:
            network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if recipe.sync_batchnorm and processes.world > 1 and processes.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        if recipe.grad_checkpointing:
            network.set_grad_checkpointing()  # pyright: ignore[reportCallIssue]
        self.network, self.recipe, self.processes = network, recipe, processes
        self.micro_batch, self.length, self.multi_label = micro_batch, length, multi_label
        self.prior = None if prior is None else prior.to(processes.device)
        self.epochs = recipe.epochs  #: over which the learning rate falls; a run with a time limit makes it fewer
        self.norms = [module for module in network.modules() if isinstance(module, NORMS)]
        self._freeze()
        self.amp = AMP[recipe.amp]
        groups = parameter_groups(network, recipe)
        if recipe.optimizer == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, recipe.peak_lr, fused=True)
        else:
            nesterov = recipe.nesterov and recipe.momentum > 0
            self.optimizer = torch.optim.SGD(
                groups, recipe.peak_lr, momentum=recipe.momentum, nesterov=nesterov, fused=True
            )
            if self.amp is torch.float16 and recipe.momentum:
                # A first step that overflows would leave the momentum uninitialised (torch.empty_like, torch 2.14)
                for parameter in network.parameters():
                    if parameter.requires_grad:
                        self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_share)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=self.amp is torch.float16)
        self.average = None
        if recipe.ema_decay:
            self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay), use_buffers=True)
        self.replica: Any = torch.compile(network) if recipe.compile else network
        if processes.world > 1:
            devices = [processes.device] if processes.device.type == "cuda" else None
            self.replica = DistributedDataParallel(self.replica, device_ids=devices)  # pyright: ignore[reportArgumentType]

    def _lr_share(self, step: int) -> float:
        return self.lr_share(step / self.length)

    def lr_share(self, epoch: float) -> float:
        """The learning rate as a share of its peak, for an epoch counted from 0; fractions are allowed."""
        return self.recipe.lr_share(epoch * (self.recipe.epochs / max(1, self.epochs)))

    def set_lr(self) -> None:
        """Set the learning rates of the step that the scheduler is at, after loading a state."""
        share = self._lr_share(self.scheduler.last_epoch)
        for group, base in zip(self.optimizer.param_groups, self.scheduler.base_lrs, strict=True):
            group["lr"] = base * share

    def _freeze(self) -> None:
        if self.recipe.head_only:
            self.network.requires_grad_(False)
            self.network.get_submodule("fc").requires_grad_(True)
        for name, parameter in self.network.named_parameters():
            if self._is_frozen(name):
                parameter.requires_grad_(False)
        if self.recipe.freeze_norm:
            for norm in self.norms:
                norm.requires_grad_(False)

    def _is_frozen(self, name: str) -> bool:
        return _depth(name) > 5 - self.recipe.freeze

    def training_mode(self) -> None:
        """Put the network into training mode, except what the recipe freezes."""
        self.network.train(not self.recipe.head_only)  # a linear probe's features do not change
        for name, module in self.network.named_modules():
            if isinstance(module, NORMS) and (self.recipe.freeze_norm or self._is_frozen(name)):
                module.eval()

    @property
    def averaged(self) -> nn.Module:
        """The network that is validated and published."""
        return self.network if self.average is None else self.average.module

    def parts(self) -> dict[str, Any]:
        """Everything with a state, by name."""
        found = {"network": self.network, "optimizer": self.optimizer, "scheduler": self.scheduler}
        found |= {"scaler": self.scaler} if self.scaler.is_enabled() else {}
        return found | ({} if self.average is None else {"average": self.average})

    def _loss(self, scores: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
        recipe = self.recipe
        if self.prior is not None:
            scores = scores.float() + self.prior
        if self.multi_label:
            return binary_cross_entropy(scores.float(), labels, recipe.label_smoothing)
        if teacher is None:
            return soft_cross_entropy(scores, labels, recipe.label_smoothing)
        return distillation_loss(scores, labels, teacher, recipe.distillation_weight, recipe.distillation_temperature)

    def take(self, batch: Batch, step: int) -> Tensor:
        """Train on a batch; return its mean loss without waiting for the GPU."""
        recipe, device, count = self.recipe, self.processes.device, len(batch.images)
        size = min(self.micro_batch or count, count)
        starts = range(0, count, size)
        total = torch.zeros((), device=device)
        for start in starts:
            part = slice(start, start + size)
            images = batch.images[part].to(device, non_blocking=True)
            if recipe.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            teacher = None if batch.teacher is None else batch.teacher[part].to(device, non_blocking=True)
            # The processes exchange gradients once per step, with its last micro-batch.
            apart = self.processes.world > 1 and start != starts[-1]
            with self.replica.no_sync() if apart else contextlib.nullcontext():
                with torch.autocast(device.type, self.amp or torch.bfloat16, enabled=self.amp is not None):
                    scores = self.replica(images)
                loss = self._loss(scores, batch.labels[part].to(device, non_blocking=True), teacher)
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
            if step < recipe.warmup_epochs * self.length:
                self.average.n_averaged.zero_()  # so that the next update copies
        return total
