"""PyTorch's eager mode: the engine that is always available. On a GPU, `gpu.GpuEngine` is faster."""

from __future__ import annotations

import contextlib
import logging
import sys
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ...errors import EngineError
from ...models.manifest import Preprocessing
from ...mount import register
from .base import Engine, Outputs, reopened_after_fork

if TYPE_CHECKING:
    import torch

log = logging.getLogger("resnext_hub")


class TorchEngine(Engine):
    """PyTorch's eager mode in channels last.

    In a process that was forked after the engine was made, PyTorch is set to one thread: its OpenMP threads do not
    exist there, and to wait for them would never end. If a GPU has too little memory for a call, this call and later
    ones are divided.

    Args:
        network: a `ResNeXt`, or any module from normalised images (N, 3, H, W) to logits, which has no features. Its
            weights are used where they are; a memory-mapped file stays mapped.
        preset: the preprocessing that the network was trained with.
        device: where to run; by default the GPU if there is one.
        threads: with 1, every calling thread uses one core, and several may call at once. It is PyTorch's setting for
            the whole process (`torch.set_num_threads`). None leaves that as it is.
    """

    name = library = "torch"
    precisions = ("fp32", "bf16", "fp16")
    most = sys.maxsize  #: images that pass the network together

    def __init__(
        self,
        network: torch.nn.Module,
        preset: Preprocessing,
        device: str | torch.device | None = None,
        threads: int | None = None,
    ) -> None:
        import torch

        from .graph import PixelNetwork

        _keep_freed_memory()
        if threads is not None:
            torch.set_num_threads(threads)
        where = device_of(device)
        self.device = str(where)
        self.threads = threads
        self.concurrent = threads == 1 and where.type == "cpu"
        # NHWC is the layout of GPU tensor cores and of oneDNN's grouped convolutions.
        network = network.eval().requires_grad_(False).to(where)
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.network = network
        self._pixels = PixelNetwork(network, preset).eval().to(where)
        dtype = next((p.dtype for p in network.parameters()), torch.float32)
        self.precision = str(dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp")
        reopened_after_fork(self)

    def __call__(self, pixels: np.ndarray) -> Outputs:
        import torch

        found: list[Outputs] = []
        start = 0
        while not found or start < len(pixels):
            part = pixels[start : start + self.most]
            try:
                found.append(self._run(part))
                start += len(part)
                continue
            except torch.OutOfMemoryError as error:
                if len(part) == 1:
                    raise EngineError(f"{self.device} has too little free memory for one image.") from error
            self._run_fewer_than(len(part))  # here, where the error with its tensors is gone
        logits, features = zip(*found, strict=True)
        return (np.concatenate(logits), np.concatenate(features)) if len(found) > 1 else found[0]

    def _run(self, pixels: np.ndarray) -> Outputs:
        import torch

        with torch.inference_mode():
            logits, features = self._pixels(torch.from_numpy(pixels).to(self.device))
        return logits.float().cpu().numpy(), features.float().cpu().numpy()

    def _run_fewer_than(self, images: int) -> None:
        """Let half as many images pass the network together from now on."""
        import torch

        if images // 2 < self.most:  # another thread may have done it
            self.most = images // 2
            log.warning("%s has too little free memory for %d images at once: now %d", self.device, images, self.most)
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def after_fork(self) -> None:
        import torch

        torch.set_num_threads(1)


def device_of(device: str | torch.device | None) -> torch.device:
    """Return a device of PyTorch; for None the GPU if there is one.

    Raises:
        EngineError: no such device, or no such GPU.
    """
    import torch

    try:
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, TypeError) as error:
        raise EngineError(f"No such device: {device!r}. Pass 'cpu', 'cuda' or 'cuda:1', for example.") from error
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise EngineError(f"The device {where} is not available. GPUs that PyTorch finds: {torch.cuda.device_count()}.")
    try:
        torch.zeros(1, device=where).item()  # a meta tensor has no items
    except (RuntimeError, AssertionError, ImportError) as error:  # mps, xpu: not in this build, or no such hardware
        raise EngineError(f"The device {where} is not available with this machine's PyTorch.") from error
    return where


@cache
def _keep_freed_memory() -> None:
    """Have glibc keep freed feature maps for the next call instead of returning them to the system."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc: macOS, musl, Windows
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, its largest value: smaller blocks come from the heap
        mallopt(-1, 512 << 20)  # M_TRIM_THRESHOLD: free bytes to keep at the heap's end


register(TorchEngine)
