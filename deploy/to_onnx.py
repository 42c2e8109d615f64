"""ONNX, by torch's dynamo exporter; what ONNX Runtime, OpenVINO and TensorRT read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..telemetry import import_quietly
from .target import Job, Runner, Target
from .to_torch import example

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

__all__ = ["OPSET", "OnnxTarget", "open_in_onnxruntime", "write_onnx"]

OPSET = 20
# A protobuf message ends at 2 GiB. Below that one file is handier than two.
ONE_FILE = 1_900_000_000


class OnnxTarget(Target):
    """``model.onnx``; of the largest networks with its weights beside it in ``model.onnx.data``."""

    name = "onnx"
    artefact = "model.onnx"
    precisions = ("fp32", "fp16", "int8")
    needs = ("torch", "onnx", "onnxscript", "onnxruntime")
    options: ClassVar = {
        "reduce_range": (
            False,
            {"action": "store_true", "help": "7-bit weights in int8, for x86 processors without VNNI"},
        )
    }

    def write(self, job: Job, folder: Path) -> Sequence[str]:
        from .network import DTYPES, DeployedNetwork

        if job.precision == "int8":
            from .int8 import write_int8

            return write_int8(job, folder / self.artefact)
        module = DeployedNetwork(job.network, job.checkpoint.preprocessing, job.signature, DTYPES[job.precision])
        write_onnx(module, job, folder / self.artefact)
        return []

    def open(self, job: Job, folder: Path) -> Runner:
        return open_in_onnxruntime(folder / self.artefact)


def write_onnx(module: nn.Module, job: Job, path: Path, opset: int = OPSET) -> None:
    """Write a `DeployedNetwork` with a free batch size and its metadata; have onnx's checker look at the file."""
    import onnx
    import torch

    from ..inference.engines.export import exporters_silenced
    from .metadata import as_strings

    with torch.no_grad(), exporters_silenced():
        program: Any = torch.onnx.export(
            module,
            (example(job),),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=({0: torch.export.Dim("images")},),
            input_names=[job.signature.input.name],
            output_names=[output.name for output in job.signature.outputs],
            verbose=False,
        )
    for node in program.model.graph:
        node.metadata_props.clear()  # Python's stack where the node was traced: this machine's paths, and a lot of it
    program.model.metadata_props.update(as_strings(job.metadata))
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    program.save(path, external_data=size > ONE_FILE)
    onnx.checker.check_model(path, full_check=True)


def set_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Put metadata into a written file; weights beside it stay as they are."""
    import onnx

    from .metadata import as_strings

    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, as_strings(metadata))
    onnx.save(model, path)


def open_in_onnxruntime(path: Path) -> Runner:
    onnxruntime = import_quietly("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(batch: np.ndarray) -> Sequence[Any]:
        return session.run(None, {name: batch})

    return Runner(run, f"onnxruntime {onnxruntime.__version__}, CPU")
