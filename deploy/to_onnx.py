"""ONNX, written by PyTorch's exporter. ONNX Runtime, OpenVINO, TensorRT, OpenCV and others read it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..telemetry import import_quietly
from .conversion import Conversion, Format, Runner

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

OPSET = 20
OLDEST, OLDEST_INT8, NEWEST = 11, 13, 26  # scales per channel need opset 13; ONNX Runtime 1.31 ends at 26
EXPORTED = 18  # the oldest that PyTorch writes; from there `_lower` goes down
# A protobuf message is limited to 2 GiB. Below that, one file is easier to handle than two.
ONE_FILE = 1_900_000_000


class OnnxFormat(Format):
    """``model.onnx``; weights of 1.9 GB and more are beside it in ``model.onnx.data``."""

    name = "onnx"
    artefact = "model.onnx"
    precisions = ("fp32", "fp16", "int8")
    needs = ("torch", "onnx", "onnxscript", "onnxruntime")
    options: ClassVar = {
        "opset": (OPSET, {"type": int, "metavar": "N", "help": f"{OLDEST} to {NEWEST} (default: {OPSET})"}),
        "reduce_range": (
            False,
            {"action": "store_true", "help": "7-bit weights in int8, for x86 processors without VNNI"},
        ),
    }
    usage = (
        'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])\n'
        "outputs = session.run(None, {session.get_inputs()[0].name: batch})"
    )

    def check(self, precision: str, options: Mapping[str, Any]) -> None:
        oldest = OLDEST_INT8 if precision == "int8" else OLDEST
        if not oldest <= options["opset"] <= NEWEST:
            raise ValueError(f"opset must be from {oldest} to {NEWEST} for {precision}, got {options['opset']}.")

    def write(self, conversion: Conversion, folder: Path) -> Sequence[str]:
        path, opset = folder / self.artefact, conversion.options["opset"]
        if conversion.precision != "int8":
            write_onnx(conversion.module(), conversion, path, opset)
            return []
        from ..inference.engines.int8 import lanes_of, quantise

        assert conversion.calibration is not None
        module = conversion.module(lanes_of(conversion.network))
        with tempfile.TemporaryDirectory(dir=folder, prefix="fp32-") as temporary:
            exact = Path(temporary, "model.onnx")
            write_onnx(module, conversion, exact, opset)
            images = conversion.signature.inputs_of(conversion.calibration, conversion.checkpoint.preprocessing)
            quantise(exact, path, images, conversion.options["reduce_range"], external=_is_large(module))
        set_metadata(path, conversion.metadata)
        return [f"Images used for calibration: {len(conversion.calibration)}."]

    def open(self, conversion: Conversion, folder: Path) -> Runner:
        return open_in_onnxruntime(folder / self.artefact)


def write_onnx(module: nn.Module, conversion: Conversion, path: Path, opset: int) -> None:
    """Write a `DeployedNetwork` with a free batch size and its metadata, and check the file with ONNX's checker.

    Raises ValueError if the graph cannot be expressed in this opset.
    """
    import onnx
    import torch

    from ..inference.engines.export import exporters_silenced
    from .metadata import as_strings

    with torch.no_grad(), exporters_silenced():
        program: Any = torch.onnx.export(
            module,
            (conversion.example(),),
            dynamo=True,
            opset_version=max(opset, EXPORTED),
            dynamic_shapes=conversion.dynamic_shapes(),
            input_names=[conversion.signature.input.name],
            output_names=[output.name for output in conversion.signature.outputs],
            verbose=False,
        )
    for node in program.model.graph:
        node.metadata_props.clear()  # the Python stack where the node was traced, with the paths of this machine
    program.model.metadata_props.update(as_strings(conversion.metadata))
    program.save(path, external_data=_is_large(module))
    if opset < EXPORTED:
        _lower(path, opset)
    onnx.checker.check_model(path, full_check=True)


def _is_large(module: nn.Module) -> bool:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values()) > ONE_FILE


def _lower(path: Path, opset: int) -> None:
    """Rewrite a file in an older opset. ONNX's checker and the comparison of the outputs verify the result.

    Operators of these networks differ in two ways only: axes were an attribute before they became an input, and newer
    attributes are at their defaults. (ONNX's own converter stops at opset 14 here.)
    """
    import onnx
    from onnx.numpy_helper import to_array

    model = onnx.load(path, load_external_data=False)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        try:
            schema = onnx.defs.get_schema(node.op_type, opset)
        except onnx.defs.SchemaError as error:
            raise ValueError(f"The graph needs {node.op_type}, which opset {opset} does not have.") from error
        if len(node.input) == 2 and schema.max_input == 1:
            axes = to_array(constants[node.input.pop()])
            node.attribute.append(onnx.helper.make_attribute("axes", axes.ravel().tolist()))
        newer = onnx.defs.get_schema(node.op_type, EXPORTED).attributes
        for attribute in [a for a in node.attribute if a.name not in schema.attributes]:
            if attribute != newer[attribute.name].default_value:
                raise ValueError(f"The graph needs {node.op_type} with {attribute.name}, which opset {opset} lacks.")
            node.attribute.remove(attribute)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)  # axes: ONNX Runtime warns of what nothing uses
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", opset))
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    onnx.save(model, path)


def set_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Replace the metadata of a file; weights beside it are not touched."""
    import onnx

    from .metadata import as_strings

    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, as_strings(metadata))
    onnx.save(model, path)


def open_in_onnxruntime(path: Path) -> Runner:
    """Open a file on the CPU."""
    onnxruntime = import_quietly("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(batch: np.ndarray) -> Sequence[Any]:
        return session.run(None, {name: batch})

    return Runner(run, f"onnxruntime {onnxruntime.__version__}, CPU")
