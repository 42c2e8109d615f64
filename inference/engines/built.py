"""Engines that are built once and kept in a folder."""

from __future__ import annotations

import json
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...models.manifest import Preprocessing
from .base import Engine, Outputs, available_cores, keep_for_ever, reopened_after_fork

if TYPE_CHECKING:
    from ...models.resnext import ResNeXt


class BuiltEngine(Engine):
    """An engine whose built form is a folder, described by the file engine.json in it.

    A batch is divided among the cores: each runs one thread over a few images at a time, which keeps the feature maps
    in its cache and lets no core wait for another. A single image is run by all cores together.

    Attributes:
        extra: the extra of this project that installs what it needs.
        portion: the number of images that one core takes at a time.
        precisions: the precisions it can be built in.
        needs, builds_with: the packages to open and to build it.
    """

    extra: ClassVar[str]
    precisions: ClassVar[Sequence[str]]
    portion: ClassVar[int] = 4
    needs: ClassVar[Sequence[str]]
    builds_with: ClassVar[Sequence[str]] = ("torch", "onnx", "onnxscript")

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.folder = folder
        self._cores = self.threads = threads or available_cores()
        self.concurrent = self.threads == 1
        record = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
        self.build_seconds, self.precision = record["build_seconds"], record["precision"]
        self.calibration = record["calibration"]
        self._open()

    def _open(self) -> None:
        self._start()
        self._runner(self._cores)
        reopened_after_fork(self)

    def _start(self) -> None:
        self._guard = threading.Lock()
        self._runners: dict[int, Callable[[np.ndarray], Outputs]] = {}
        self._pool = ThreadPoolExecutor(self._cores) if self._cores > 1 else None

    def after_fork(self) -> None:
        for runner in self._runners.values():
            keep_for_ever(runner)
        self._start()

    def _runner(self, threads: int) -> Callable[[np.ndarray], Outputs]:
        with self._guard:
            if threads not in self._runners:
                self._runners[threads] = self._run_with(threads)
            return self._runners[threads]

    @abstractmethod
    def _run_with(self, threads: int) -> Callable[[np.ndarray], Outputs]:
        """Return a function that runs a few images on so many cores."""

    @classmethod
    @abstractmethod
    def build(
        cls, network: ResNeXt, preset: Preprocessing, folder: Path, precision: str, calibration: np.ndarray | None
    ) -> None:
        """Write the built form into a folder. The network is changed and must not be used afterwards.

        Args:
            calibration: uint8 pixels (N, crop, crop, 3) for int8.
        """

    def __call__(self, pixels: np.ndarray) -> Outputs:
        count = len(pixels)
        if count < max(2, self._cores):
            return self._runner(self._cores)(pixels)
        portion = min(self.portion, -(-count // self._cores))
        parts = [pixels[i : i + portion] for i in range(0, count, portion)]
        apply = map if self._pool is None else self._pool.map
        results = list(apply(self._runner(1), parts))
        return np.concatenate([logits for logits, _ in results]), np.concatenate([features for _, features in results])

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_guard", "_runners", "_pool")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()
