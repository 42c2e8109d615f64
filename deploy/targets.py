"""The targets by name; a new one is a row here."""

from __future__ import annotations

from .target import Target
from .to_onnx import OnnxTarget
from .to_tensorrt import TensorRTTarget
from .to_torch import TorchExportTarget, TorchScriptTarget

__all__ = ["TARGETS"]

TARGETS: dict[str, Target] = {
    target.name: target for target in (OnnxTarget(), TorchExportTarget(), TorchScriptTarget(), TensorRTTarget())
}
