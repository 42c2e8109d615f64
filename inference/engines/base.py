"""The base class of engines, and their use in a forked process."""

from __future__ import annotations

import ctypes
import os
import weakref
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

Outputs = tuple[np.ndarray, np.ndarray]


class Engine(ABC):
    """A network, ready to run: uint8 pixels (N, crop, crop, 3) -> float32 logits (N, classes) and pooled features (N,
    num_features).

    Attributes:
        name: the engine's name in `ENGINES`.
        library: the package that computes, whose version decides the last bits of the results.
        device: the device it runs on.
        precision: the number format it computes in: "fp32", "bf16", "int8", or on a GPU "fp16".
        calibration: for int8, the sha256 of the pixels it was calibrated with and verified on.
        threads: processor cores that one call uses; None if torch decides.
        concurrent: True if several threads may call it at once, and gain by it.
        build_seconds: how long it took to build, for an engine that is built.
    """

    name: ClassVar[str]
    library: ClassVar[str] = "numpy"
    device: str = "cpu"
    precision: str = "fp32"
    calibration: str | None = None
    threads: int | None = None
    concurrent: bool = False
    build_seconds: float = 0.0

    @abstractmethod
    def __call__(self, pixels: np.ndarray) -> Outputs: ...

    def after_fork(self) -> None:  # noqa: B027  # most engines need nothing
        """Prepare for use in a forked child process, which has this engine's memory but none of its threads."""

    def __repr__(self) -> str:
        threads = f", {self.threads} threads" if self.threads else ""
        return f"{type(self).__name__}({self.precision} on {self.device}{threads})"


_open: weakref.WeakSet[Engine] = weakref.WeakSet()


def reopened_after_fork(engine: Engine) -> None:
    """Have `Engine.after_fork` called in the children of this process."""
    _open.add(engine)


def _after_fork() -> None:
    for engine in list(_open):
        engine.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def keep_for_ever(value: object) -> None:
    """Never destroy an object: the destructor of a library's session waits for threads that a forked child lacks."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
