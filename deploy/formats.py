"""All export formats by name. To add a format, add it here."""

from __future__ import annotations

from .conversion import Format
from .to_onnx import OnnxFormat
from .to_openvino import OpenVINOFormat
from .to_tensorrt import TensorRTFormat
from .to_torch import TorchExportFormat, TorchScriptFormat

FORMATS: dict[str, Format] = {
    kind.name: kind
    for kind in (OnnxFormat(), OpenVINOFormat(), TorchExportFormat(), TorchScriptFormat(), TensorRTFormat())
}
