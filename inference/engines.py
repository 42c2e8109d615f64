"""Pixels -> logits and features. A plain engine: torch eager."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..models.manifest import Checkpoint

__all__ = ["Engine", "EngineError", "open_engine"]


class EngineError(RuntimeError):
    """An engine that cannot be had here; the message says what is missing."""


class Engine(Protocol):
    """``concurrent``: may be called from several threads at once."""

    name: str
    precision: str
    threads: int
    device: str
    concurrent: bool

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, H, W, 3) uint8 -> (N, classes) float32 logits, (N, num_features) float32 pooled features."""
        ...


class _TorchEngine:
    name, precision, device, concurrent = "torch", "fp32", "cpu", True

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        import torch

        from ..models.entrypoints import load

        torch.set_num_threads(threads)
        self.threads = threads
        self._network = load(checkpoint).eval().requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._mean = torch.tensor(checkpoint.preprocessing.mean)
        self._std = torch.tensor(checkpoint.preprocessing.std)

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        with torch.inference_mode():
            images = torch.from_numpy(pixels).float().div_(255).sub_(self._mean).div_(self._std).permute(0, 3, 1, 2)
            features = self._network.forward_head(self._network.forward_features(images), pre_logits=True)
            return self._network.fc(features).numpy(), features.numpy()


def open_engine(checkpoint: Checkpoint, engine: str = "auto", *, threads: int = 1) -> Engine:
    """An engine with a checkpoint's weights."""
    if engine not in ("auto", "torch"):
        raise ValueError(f"There is no engine {engine!r}.")
    return _TorchEngine(checkpoint, threads)
