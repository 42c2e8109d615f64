"""Intel's OpenVINO on the CPU."""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...models.manifest import Preprocessing
from ...mount import register
from ...telemetry import import_quietly
from .base import Outputs, available_cores, keep_for_ever
from .built import BuiltEngine
from .export import export_onnx
from .precision import computes_bf16

if TYPE_CHECKING:
    from ...models.resnext import ResNeXt


@cache
def openvino_core() -> Any:
    """Return the only ``openvino.Core`` of this process. It is never destroyed.

    Every Core lends the thread that makes it a stack for signals (sigaltstack) and takes it away when it goes. If two
    go in the order in which they came, the thread is left with a stack that is no longer mapped, and the next signal
    ends the process: a SIGCHLD, when a DataLoader's workers end (OpenVINO 2026.4).
    """
    core = import_quietly("openvino").Core()
    keep_for_ever(core)
    return core


class OpenVINOEngine(BuiltEngine):
    """Intel's OpenVINO on the CPU. Its own default would be bfloat16 if the processor has it."""

    name = library = "openvino"
    needs = ("openvino",)
    extra = "openvino"
    portion = 1  # of four, the feature maps leave the cache: 8 % slower in bf16, 20 % in int8
    precisions = ("fp32", "bf16", "int8")

    def _run_with(self, threads: int) -> Callable[[np.ndarray], Outputs]:
        blob = (self.folder / f"model.{threads > 1}.blob").read_bytes()
        settings = self._settings(threads, max(self._cores, available_cores()), self.precision)
        compiled = openvino_core().import_model(io.BytesIO(blob), "CPU", settings)
        local = threading.local()

        def run(pixels: np.ndarray) -> Outputs:
            if not hasattr(local, "request"):
                local.request = compiled.create_infer_request()
            results = local.request.infer({0: pixels})
            return results[0].copy(), results[1].copy()

        # In one thread first: two threads in OpenVINO's very first call of a process can wait for each other for ever.
        crop = compiled.input(0).partial_shape[1].get_length()
        run(np.zeros((1, crop, crop, 3), np.uint8))
        return run

    def after_fork(self) -> None:
        openvino_core.cache_clear()
        super().after_fork()

    @staticmethod
    def _settings(threads: int, callers: int, precision: str) -> dict[str, Any]:
        """One stream of many threads, or a stream of one thread for each simultaneous caller."""
        streams, cores = (1, threads) if threads > 1 else (callers, callers)
        bf16 = precision == "bf16" or (precision == "int8" and computes_bf16())  # in int8: what stays floating-point
        return {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": cores,
        }

    @classmethod
    def build(
        cls, network: ResNeXt, preset: Preprocessing, folder: Path, precision: str, calibration: np.ndarray | None
    ) -> None:
        # Merging narrow groups gains nothing in bf16, and costs time in int8.
        lanes = None if precision == "fp32" else 1
        exported = export_onnx(network, preset, folder / "exported", lanes, calibration)
        core, cores = openvino_core(), available_cores()
        model = core.read_model(exported)
        for many in (True, False):
            settings = cls._settings(max(2, cores) if many else 1, cores, precision)
            compiled = core.compile_model(model, "CPU", settings)
            (folder / f"model.{many}.blob").write_bytes(compiled.export_model().getvalue())
        shutil.rmtree(exported.parent)


register(OpenVINOEngine)
