"""PyTorch on a GPU: the network is rewritten once, and batches have few sizes, which CUDA graphs replay.

No GPU was available where this was written. All but streams, pinned memory and graphs runs on a CPU too, and is tested
there; `pytest -m gpu` and benchmarks/gpu.py are for a machine with a GPU.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...models.manifest import Preprocessing
from .base import Outputs
from .graph import fold
from .torch import TorchEngine, device_of

if TYPE_CHECKING:
    from ...models.resnext import ResNeXt

log = logging.getLogger("resnext_hub")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST = 256  # images that pass the network together, if nothing else is asked for
SLOTS = 3  # batches between host and GPU at a time: one arrives, one is computed, one is collected


class GpuEngine(TorchEngine):
    """A `ResNeXt` with BatchNorm folded and weights cast once, for a GPU.

    A batch is padded to the next power of two (or to ``batch``), so that it has one of few sizes. On CUDA, the first
    batch of a size runs eagerly, and the second is captured as a CUDA graph, which later ones replay. Several threads
    may call the engine: pixels travel as uint8 through pinned memory while an earlier batch is computed.

    In fp32, convolutions do not use TF32, whose 10 bits are those of fp16.

    Args:
        network: is changed, and must not be used afterwards.
        preset, device, threads: see `TorchEngine`.
        precision: "fp32", "bf16" or "fp16".
        batch: images that pass the network together; longer calls are divided.
    """

    def __init__(
        self,
        network: ResNeXt,
        preset: Preprocessing,
        device: str | torch.device | None = None,
        threads: int | None = None,
        *,
        precision: str = "fp32",
        batch: int | None = None,
    ) -> None:
        where = device_of(device)
        super().__init__(fold(network.to(where)).to(DTYPES[precision]), preset, where, threads)
        self.most = batch or MOST
        # The weights' device has a number; what "cuda" means may differ between threads
        self._cuda = _Cuda(str(self._pixels.mean.device)) if where.type == "cuda" else None
        self.concurrent = self.concurrent or self._cuda is not None

    def _run(self, pixels: np.ndarray) -> Outputs:
        count, shape = len(pixels), (_bucket(len(pixels), self.most), *pixels.shape[1:])
        if self._cuda is not None:
            logits, features = self._cuda.run(self._pixels, pixels, shape)
        else:
            padded = np.zeros(shape, np.uint8)
            padded[:count] = pixels
            logits, features = super()._run(padded)
        return logits[:count], features[:count]

    def _run_fewer_than(self, images: int) -> None:
        if self._cuda is not None:
            self._cuda.forget()
        super()._run_fewer_than(images)


def _bucket(images: int, most: int) -> int:
    """Return the size that a batch is padded to: a power of two, or the largest size."""
    return max(images, min(most, 1 << max(0, images - 1).bit_length()))


@contextlib.contextmanager
def _cudnn_settings() -> Iterator[None]:
    """Have cuDNN take the fastest algorithm of each shape, without TF32, inside the block."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.conv.fp32_precision
    cudnn.benchmark, cudnn.conv.fp32_precision = True, "ieee"
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.conv.fp32_precision = before


def _pinned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.zeros(shape, dtype=dtype, pin_memory=True)


class _Slot:
    """The memory of a batch on its way to the GPU and back, for each shape."""

    def __init__(self) -> None:
        self.inputs: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self.outputs: dict[tuple[int, ...], list[Tensor]] = {}


class _Cuda:
    """The streams, the graphs and the slots of an engine."""

    capturing = True  # until capturing a graph fails

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.copying, self.computing = torch.cuda.Stream(self.device), torch.cuda.Stream(self.device)
        self.computing.wait_stream(torch.cuda.current_stream(self.device))  # the weights are ready
        self.turn = threading.Lock()
        self.slots: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for _ in range(SLOTS):
            self.slots.put(_Slot())
        self.forget()

    def __reduce__(self) -> Any:
        return _Cuda, (str(self.device),)

    def forget(self) -> None:
        """Drop the graphs, which hold most of the memory."""
        with self.turn:
            self.computing.synchronize()
            self.seen: set[tuple[int, ...]] = set()
            self.graphs: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]] = {}
            self.pool = torch.cuda.graph_pool_handle()

    def run(self, network: torch.nn.Module, pixels: np.ndarray, shape: tuple[int, ...]) -> Outputs:
        """Compute the outputs of a batch, with those of the padding."""
        slot = self.slots.get()
        try:
            with torch.cuda.device(self.device), torch.inference_mode():
                return self._run(network, pixels, shape, slot)
        finally:
            self.slots.put(slot)

    def _run(self, network: torch.nn.Module, pixels: np.ndarray, shape: tuple[int, ...], slot: _Slot) -> Outputs:
        if shape not in slot.inputs:
            arrived = torch.zeros(shape, dtype=torch.uint8, device=self.device)
            slot.inputs[shape] = _pinned(shape, torch.uint8), arrived
            torch.cuda.current_stream().synchronize()  # the zeros are written on another stream than the pixels
        pinned, arrived = slot.inputs[shape]
        count = len(pixels)
        pinned[:count] = torch.from_numpy(pixels)
        with torch.cuda.stream(self.copying):
            arrived[:count].copy_(pinned[:count], non_blocking=True)
            copied = self.copying.record_event()
        with self.turn, torch.cuda.stream(self.computing):
            self.computing.wait_event(copied)
            made = self._compute(network, arrived)
            if shape not in slot.outputs:
                slot.outputs[shape] = [_pinned(x.shape, x.dtype) for x in made]
            for kept, x in zip(slot.outputs[shape], made, strict=True):
                kept.copy_(x, non_blocking=True)
            done = self.computing.record_event()
        done.synchronize()
        logits, features = (kept.float().numpy().copy() for kept in slot.outputs[shape])
        return logits, features

    def _compute(self, network: torch.nn.Module, pixels: Tensor) -> tuple[Tensor, ...]:
        """Compute on the current stream; what is returned is overwritten by the next call."""
        shape = tuple(pixels.shape)
        if shape not in self.graphs:
            with _cudnn_settings():
                made = network(pixels)  # cuDNN tries its algorithms, which it cannot while a graph is captured
                if shape not in self.seen or not self.capturing:
                    self.seen.add(shape)
                    return made
                try:
                    self.graphs[shape] = self._captured(network, pixels.clone())
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError as error:
                    log.warning("No CUDA graph can be made, so small batches are slower: %s", error)
                    self.capturing = False
                    return made
        graph, static, made = self.graphs[shape]
        static.copy_(pixels)
        graph.replay()
        return made

    def _captured(
        self, network: torch.nn.Module, static: Tensor
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]:
        graph = torch.cuda.CUDAGraph()
        # "thread_local", because other threads copy meanwhile
        with torch.cuda.graph(graph, self.pool, self.computing, capture_error_mode="thread_local"):
            made = network(static)
        return graph, static, made
