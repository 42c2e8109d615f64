"""ONNX Runtime on the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...models.manifest import Preprocessing
from ...mount import register
from ...telemetry import import_quietly
from .base import Outputs
from .built import BuiltEngine
from .export import export_onnx

if TYPE_CHECKING:
    from ...models.resnext import ResNeXt


class OnnxRuntimeEngine(BuiltEngine):
    """ONNX Runtime on the CPU. The optimised graph is kept; its weights are memory-mapped from one file."""

    name = library = "onnxruntime"
    needs = ("onnxruntime",)
    extra = "fast"
    precisions = ("fp32", "int8")

    def _run_with(self, threads: int) -> Callable[[np.ndarray], Outputs]:
        onnxruntime = import_quietly("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # already optimised
        options.intra_op_num_threads = threads
        session = _session(self.folder / "model.onnx", options)

        def run(pixels: np.ndarray) -> Outputs:
            logits, features = session.run(None, {"pixels": pixels})
            return logits, features

        return run

    @classmethod
    def build(
        cls, network: ResNeXt, preset: Preprocessing, folder: Path, precision: str, calibration: np.ndarray | None
    ) -> None:
        lanes = None
        if calibration is not None:
            from .int8 import lanes_of

            lanes = lanes_of(network)
        exported = export_onnx(network, preset, folder / "exported", lanes, calibration)
        options = import_quietly("onnxruntime").SessionOptions()
        options.optimized_model_filepath = str(folder / "model.onnx")
        for key, value in (("file_name", "model.data"), ("min_size_in_bytes", "1024")):
            options.add_session_config_entry(f"session.optimized_model_external_initializers_{key}", value)
        _session(exported, options)
        shutil.rmtree(exported.parent)


def _session(model: Path, options: Any) -> Any:
    options.log_severity_level = 3
    return import_quietly("onnxruntime").InferenceSession(model, options, providers=["CPUExecutionProvider"])


register(OnnxRuntimeEngine)
