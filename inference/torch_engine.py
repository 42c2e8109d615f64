"""What an engine is, and the one that is always there: PyTorch's eager mode."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..models.manifest import Preprocessing
from ..mount import register

if TYPE_CHECKING:
    import torch

__all__ = ["Engine", "Outputs", "TorchEngine", "keep_freed_memory"]

Outputs = tuple[np.ndarray, np.ndarray]


class Engine(ABC):
    """uint8 pixels (N, crop, crop, 3) -> float32 logits (N, classes) and pooled features (N, num_features).

    Attributes:
        name: the engine's.
        device: where it runs.
        precision: what it calculates in.
        threads: processor cores that one call uses; None where that is torch's own affair.
        concurrent: whether several threads may call it at once, and gain by it.
        build_seconds: what building it took, when it was built.
    """

    name: ClassVar[str]
    device: str = "cpu"
    precision: str = "fp32"
    threads: int | None = None
    concurrent: bool = False
    build_seconds: float = 0.0

    @abstractmethod
    def __call__(self, pixels: np.ndarray) -> Outputs: ...

    def __repr__(self) -> str:
        threads = f", {self.threads} threads" if self.threads else ""
        return f"{type(self).__name__}({self.precision} on {self.device}{threads})"


class TorchEngine(Engine):
    """PyTorch's eager mode, channels last; on a GPU under float16 autocast. Its weights stay where they are mapped.

    Args:
        network: any module from normalised images (N, 3, H, W) to logits (features are then empty), or a `ResNeXt`.
        device: where to run; the GPU if there is one.
        threads: 1 has every thread that calls it use one core, and lets several call it at once; the setting is
            torch's own, for the whole process (`torch.set_num_threads`). None leaves it as it is.
    """

    name = "torch"

    def __init__(
        self,
        network: torch.nn.Module,
        preset: Preprocessing,
        device: str | torch.device | None = None,
        threads: int | None = None,
    ) -> None:
        import torch

        from .graph import PixelNetwork

        keep_freed_memory()
        if threads is not None:
            torch.set_num_threads(threads)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.device = str(where)
        self.threads = threads
        self.concurrent = threads == 1 and where.type == "cpu"
        # NHWC is what GPU tensor cores and oneDNN's grouped convolutions work in.
        network = network.eval().requires_grad_(False).to(where)
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.network = network
        self._pixels = PixelNetwork(network, preset).eval().to(where)
        dtype = next((p.dtype for p in network.parameters()), torch.float32)
        self.autocast = where.type == "cuda" and dtype == torch.float32
        name = str(dtype).removeprefix("torch.")
        self.precision = "fp16" if self.autocast else {"float32": "fp32", "float64": "fp64"}.get(name, name)

    def __call__(self, pixels: np.ndarray) -> Outputs:
        import torch

        where = torch.device(self.device)
        with torch.inference_mode(), torch.autocast(where.type, torch.float16, enabled=self.autocast):
            logits, features = self._pixels(torch.from_numpy(pixels).to(where))
        return logits.float().cpu().numpy(), features.float().cpu().numpy()


@cache
def keep_freed_memory() -> None:
    """Have glibc keep freed feature maps for the next call instead of giving them back and faulting them in again."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, its largest value: what is smaller comes from the heap
        mallopt(-1, 512 << 20)  # M_TRIM_THRESHOLD: free bytes at the heap's end that are kept


register(TorchEngine)
