"""Engines: run a network on a batch of pixels, as fast as this machine allows."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from ...errors import EngineError
from ...models.manifest import Checkpoint
from .base import Engine
from .building import open_built
from .built import BuiltEngine
from .onnxruntime import OnnxRuntimeEngine
from .openvino import OpenVINOEngine
from .torch import TorchEngine, device_of

if TYPE_CHECKING:
    from torch import device as TorchDevice

__all__ = ["BUILT", "ENGINES", "Engine", "TorchEngine", "check_engine", "open_engine"]

log = logging.getLogger("resnext_hub")

BUILT: dict[str, type[BuiltEngine]] = {kind.name: kind for kind in (OnnxRuntimeEngine, OpenVINOEngine)}
ENGINES = ("auto", TorchEngine.name, *BUILT)


def check_engine(engine: str) -> None:
    """Raise EngineError if there is no engine of this name."""
    if engine not in ENGINES:
        raise EngineError(f"Unknown engine {engine!r}; choose from {', '.join(ENGINES)}.")


def open_engine(
    checkpoint: Checkpoint,
    engine: str = "auto",
    *,
    device: str | TorchDevice | None = None,
    threads: int | None = None,
    progress: bool = True,
    build: bool = True,
) -> Engine:
    """Open the engine of a checkpoint, and build it first if it has not been built on this machine.

    Args:
        engine: one of `ENGINES`; "auto" takes PyTorch on a GPU, and on a CPU ONNX Runtime if it is installed.
        device: where to run; by default the GPU if there is one. Engines other than "torch" run on the CPU.
        threads: processor cores for one call; all by default. With 1, several threads should call the engine.
        progress: show a bar while weights are downloaded.
        build: with False, "auto" uses an engine that was built before, or else PyTorch: for a few images, building
            takes longer than it saves.

    Raises:
        EngineError: no such engine or device; a package that it needs is missing, or it cannot be built.
        CheckpointError: the weights cannot be downloaded or verified.
    """
    check_engine(engine)
    if device is not None:
        device_of(device)
    on_cpu = not _has_gpu() if device is None else str(device).partition(":")[0] == "cpu"
    if engine not in ("auto", "torch") and not on_cpu and device is not None:
        raise EngineError(f"The engine {engine} runs on the CPU only: for {device} pass engine='torch'.")
    kind = BUILT.get(engine) or (OnnxRuntimeEngine if engine == "auto" and on_cpu else None)
    if kind is not None:
        try:
            if opened := open_built(checkpoint, kind, threads, progress, build or engine != "auto"):
                return opened
        except EngineError as error:
            if engine != "auto":
                raise
            log.info("%s", error)
    from ...models.entrypoints import load

    return TorchEngine(load(checkpoint, progress=progress), checkpoint.preprocessing, device, threads)


def _has_gpu() -> bool:
    """Return whether PyTorch has a GPU. On Linux without a GPU driver, torch is not imported to find out."""
    drivers = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, WSL's
    if sys.modules.get("torch") is None and sys.platform == "linux" and not any(map(os.path.exists, drivers)):
        return False
    import torch

    return torch.cuda.is_available()
