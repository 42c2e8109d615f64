"""Engines: run a network on a batch of pixels, as fast as this machine allows."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import EngineError
from ...models.manifest import Checkpoint
from ...packages import missing
from ...processing_utils.preprocessing import crop_pixels
from .base import Engine
from .built import BuiltEngine
from .engine_cache import open_built
from .onnxruntime import OnnxRuntimeEngine
from .openvino import OpenVINOEngine
from .precision import PRECISIONS, computes_bf16, computes_int8
from .torch import TorchEngine, device_of

if TYPE_CHECKING:
    from torch import device as TorchDevice

__all__ = ["BUILT", "ENGINES", "PRECISIONS", "Engine", "TorchEngine", "check_engine", "open_engine"]

log = logging.getLogger("resnext_hub")

BUILT: dict[str, type[BuiltEngine]] = {kind.name: kind for kind in (OnnxRuntimeEngine, OpenVINOEngine)}
ENGINES = ("auto", TorchEngine.name, *BUILT)


def check_engine(engine: str, precision: str = "fp32", calibrated: bool = False) -> None:
    """Raise EngineError if there is no such engine or precision, or if they do not fit.

    Args:
        calibrated: there are images for calibration.
    """
    if engine not in ENGINES:
        raise EngineError(f"Unknown engine {engine!r}; choose from {', '.join(ENGINES)}.")
    if precision not in PRECISIONS:
        raise EngineError(f"Unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}.")
    able = [name for name, kind in ({TorchEngine.name: TorchEngine} | BUILT).items() if precision in kind.precisions]
    if "auto" not in (engine, precision) and engine not in able:
        raise EngineError(f"The engine {engine} does not compute in {precision}; choose from auto, {', '.join(able)}.")
    if calibrated != (precision == "int8"):
        what = "calibration=SOURCE is for int8" if calibrated else "int8 needs images: pass calibration=SOURCE"
        raise EngineError(f"{what}.")


def open_engine(
    checkpoint: Checkpoint,
    engine: str = "auto",
    *,
    device: str | TorchDevice | None = None,
    threads: int | None = None,
    progress: bool = True,
    build: bool = True,
    precision: str = "fp32",
    calibration: str | Sequence[str] | None = None,
    batch: int | None = None,
    **reading: Any,
) -> Engine:
    """Open the engine of a checkpoint, and build it first if it has not been built on this machine.

    Args:
        engine: one of `ENGINES`; "auto" takes PyTorch on a GPU, and on a CPU ONNX Runtime or, for bf16 and int8,
            OpenVINO, if they are installed.
        device: where to run; by default the GPU if there is one. Engines other than "torch" run on the CPU.
        threads: processor cores for one call; all by default. With 1, several threads should call the engine.
        progress: show a bar while weights are downloaded.
        build: with False, "auto" uses an engine that was built before, or else PyTorch: for a few images, building
            takes longer than it saves.
        precision: one of `PRECISIONS`. "bf16" and "int8" are faster on processors with instructions for them. "auto"
            takes bf16 on a CPU that gains by it, fp16 on a GPU, and otherwise fp32. "fp16" is for GPUs only.
        calibration: images to calibrate int8 with, any source (docs/data.md). At most 512 are used, spread evenly;
            a quarter of them only measures how often int8 and fp32 have the same best class.
        batch: images that pass the network together, on a GPU; by default up to 256.
        reading: how to read these, see `data.photos.read_photos`.

    Raises:
        EngineError: no such engine, precision or device; a package that it needs is missing, or it cannot be built.
        SourceError: the images for calibration cannot be read.
        CheckpointError: the weights cannot be downloaded or verified.
    """
    check_engine(engine, precision, calibration is not None)
    on_cpu = not _has_gpu() if device is None else str(device).partition(":")[0] == "cpu"
    if engine not in ("auto", "torch") and not on_cpu and device is not None:
        raise EngineError(f"The engine {engine} runs on the CPU only: for {device} pass engine='torch'.")
    if device is not None:
        device_of(device)
    on_cpu = on_cpu or engine in BUILT
    if precision == "auto":
        precision = _fastest_precision(engine) if on_cpu else "fp16"
    elif precision == "fp16" and on_cpu:
        raise EngineError("fp16 runs on a GPU only: pass precision='bf16', or 'auto'.")
    elif precision == "bf16" and on_cpu and not computes_bf16():
        log.warning("This processor has no instructions for bf16: fp32 is faster.")
    kind = BUILT.get(engine) or (_fastest(precision) if engine == "auto" and on_cpu else None)
    if precision == "int8" and kind is None:
        raise EngineError("int8 runs on the CPU only: pass device='cpu'.")
    if kind is not None:
        only = engine != "auto" or precision == "int8"  # nothing else computes what was asked for
        pixels = None if calibration is None else _pixels(calibration, checkpoint, reading)
        try:
            if opened := open_built(checkpoint, kind, threads, progress, build or only, precision, pixels):
                return opened
        except EngineError as error:
            if only:
                raise
            log.info("%s", error)
    from ...models.entrypoints import load
    from .gpu import GpuEngine
    from .graph import fold

    network = load(checkpoint, progress=progress)
    if not on_cpu:
        return GpuEngine(network, checkpoint.preprocessing, device, threads, precision=precision, batch=batch)
    if precision == "bf16":
        network = fold(network).bfloat16()
    return TorchEngine(network, checkpoint.preprocessing, device, threads)


def _fastest(precision: str) -> type[BuiltEngine]:
    """Return the engine that "auto" takes on a CPU (docs/performance.md). If it is not installed, PyTorch computes.

    In int8, OpenVINO was measured only on processors with instructions for it.
    """
    openvino = precision == "bf16" or (precision == "int8" and computes_int8() and not missing(OpenVINOEngine.needs))
    return OpenVINOEngine if openvino else OnnxRuntimeEngine


def _fastest_precision(engine: str) -> str:
    """Return the precision that "auto" takes on a CPU."""
    able = not missing(OpenVINOEngine.needs) if engine == "auto" else engine in (TorchEngine.name, OpenVINOEngine.name)
    return "bf16" if able and computes_bf16() else "fp32"


def _pixels(source: str | Sequence[str], checkpoint: Checkpoint, reading: dict[str, Any]) -> np.ndarray:
    from ...data.photos import CALIBRATION, read_photos  # pyarrow

    crop = functools.partial(crop_pixels, preset=checkpoint.preprocessing)
    return np.stack(read_photos(source, CALIBRATION, crop, **reading))


def _has_gpu() -> bool:
    """Return whether PyTorch has a GPU. On Linux without a GPU driver, torch is not imported to find out."""
    drivers = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, WSL's
    if sys.modules.get("torch") is None and sys.platform == "linux" and not any(map(os.path.exists, drivers)):
        return False
    import torch

    return torch.cuda.is_available()
