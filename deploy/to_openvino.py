"""OpenVINO IR, converted from the ONNX file. OpenVINO runs it on Intel's CPUs, GPUs and NPUs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ExportError
from ..packages import install, library_version, missing
from ..telemetry import import_quietly
from .conversion import Conversion, Format, Runner
from .to_onnx import OnnxFormat

if TYPE_CHECKING:
    import numpy as np


class OpenVINOFormat(Format):
    """``model.xml`` and its weights, ``model.bin``. Metadata is in the section ``rt_info`` of the XML."""

    name = "openvino"
    artefact = "model.xml"
    precisions = OnnxFormat.precisions
    needs = ("torch", "onnx", "onnxscript", "openvino")
    extra = "openvino"
    options: ClassVar = {"reduce_range": OnnxFormat.options["reduce_range"]}
    usage = (  # without the hint, OpenVINO computes in bfloat16 on processors that have it
        'compiled = openvino.Core().compile_model("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})\n'
        "outputs = list(compiled(batch).to_tuple())"
    )

    def check(self, precision: str, options: Mapping[str, Any]) -> None:
        if precision == "int8" and missing(["onnxruntime"]):
            raise ExportError(f"int8 needs onnxruntime: {install('deploy')}")

    def write(self, conversion: Conversion, folder: Path) -> Sequence[str]:
        from ..inference.engines.openvino import openvino_core
        from .metadata import as_strings

        onnx = OnnxFormat()
        with tempfile.TemporaryDirectory(dir=folder, prefix="onnx-") as temporary:
            notes = onnx.write(replace(conversion, options=onnx.defaults | dict(conversion.options)), Path(temporary))
            model = openvino_core().read_model(str(Path(temporary, onnx.artefact)))
            for key, value in as_strings(conversion.metadata).items():
                model.set_rt_info(value, ["resnext_hub", key])
            import_quietly("openvino").save_model(model, str(folder / self.artefact), compress_to_fp16=False)
            del model  # has the weights of a large ONNX file open
        return notes

    def open(self, conversion: Conversion, folder: Path) -> Runner:
        return open_in_openvino(folder / self.artefact)


def open_in_openvino(path: Path) -> Runner:
    """Open a file on the CPU. Activations are float32, whatever the type of the weights."""
    from ..inference.engines.openvino import openvino_core

    compiled = openvino_core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(batch: np.ndarray) -> Sequence[np.ndarray]:
        return list(compiled(batch).to_tuple())

    return Runner(run, f"openvino {library_version('openvino')}, CPU")
