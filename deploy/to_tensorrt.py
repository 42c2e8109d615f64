"""TensorRT: the ONNX file, the scripts that build an engine from it, and the engine itself if there is a GPU."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..errors import ExportError
from ..packages import install, missing
from . import tensorrt_engine
from .conversion import Conversion, Format, Runner
from .to_onnx import OPSET, OnnxFormat, open_in_onnxruntime, write_onnx
from .to_openvino import open_in_openvino

PLAN = "model.plan"
BF16_OPSET = 22  # the first in which a convolution accepts bfloat16


class TensorRTFormat(Format):
    """``model.onnx``, ``build_engine.sh`` (trtexec), ``build_engine.py``, and with a GPU ``model.plan``.

    The precision is part of the graph ("strongly typed", the only way in TensorRT 11): weights and activations have
    that type, normalisation and outputs are float32. An engine works on one model of GPU and one version of TensorRT.
    """

    name = "tensorrt"
    artefact = "model.onnx"
    precisions = ("fp32", "fp16", "bf16")
    needs = OnnxFormat.needs
    resizes = False  # no operation but a cast may read a uint8 input, and resizing reads its height and width
    options: ClassVar = {
        "batches": (
            (1, 8, 32),
            {"type": int, "nargs": 3, "metavar": ("MIN", "OPT", "MAX"), "help": "batch sizes (default: 1 8 32)"},
        )
    }
    usage = 'outputs = build_engine.run("model.plan")(batch)  # build_engine.sh writes model.plan'

    def check(self, precision: str, options: Mapping[str, Any]) -> None:
        least, usual, most = options["batches"]
        if not 1 <= least <= usual <= most:
            raise ValueError(f"batches must be MIN <= OPT <= MAX, each 1 or more; got {least} {usual} {most}.")
        # ONNX Runtime has no bfloat16 convolution for CPUs.
        if precision == "bf16" and _why_no_engine() and missing(["openvino"]):
            raise ExportError(
                "bf16 must be verified on a GPU with TensorRT, or in OpenVINO, and neither is available: "
                f"{install('openvino')}"
            )

    def write(self, conversion: Conversion, folder: Path) -> Sequence[str]:
        opset = BF16_OPSET if conversion.precision == "bf16" else OPSET
        write_onnx(conversion.module(), conversion, folder / self.artefact, opset)
        settings = _settings(conversion)
        (folder / "build_engine.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        shutil.copy(tensorrt_engine.__file__, folder / "build_engine.py")
        script = f'#!/bin/sh\ncd "$(dirname "$0")" && {trtexec(settings)}\n'
        (folder / "build_engine.sh").write_text(script, encoding="utf-8")
        if reason := _why_no_engine():
            return [f"The engine was not built: {reason}. To build it on the target machine: sh build_engine.sh"]
        tensorrt_engine.build(folder / self.artefact, folder / PLAN, settings["profile"], settings["tf32"])
        return []

    def open(self, conversion: Conversion, folder: Path) -> Runner:
        if (folder / PLAN).is_file():
            import tensorrt  # pyright: ignore[reportMissingImports]
            import torch

            call = tensorrt_engine.run(folder / PLAN)
            return Runner(call, f"tensorrt {tensorrt.__version__}, {torch.cuda.get_device_name()}")
        return (open_in_openvino if conversion.precision == "bf16" else open_in_onnxruntime)(folder / self.artefact)


def trtexec(settings: dict[str, Any]) -> str:
    """Return the command that builds the engine with TensorRT 10 or newer."""
    profile = settings["profile"]
    shapes = [f"--{key}Shapes={profile['input']}:{'x'.join(map(str, profile[key]))}" for key in ("min", "opt", "max")]
    # TensorRT 11 accepts --stronglyTyped and always works so; TensorRT 10 needs it.
    typed = ["--stronglyTyped", *([] if settings["tf32"] else ["--noTF32"]), "--skipInference"]
    return shlex.join(["trtexec", f"--onnx={settings['onnx']}", f"--saveEngine={settings['plan']}", *shapes, *typed])


def _settings(conversion: Conversion) -> dict[str, Any]:
    spec = conversion.signature.input
    shapes = [(count, *spec.shape) for count in conversion.options["batches"]]
    return {
        "onnx": TensorRTFormat.artefact,
        "plan": PLAN,
        "profile": {"input": spec.name, **dict(zip(("min", "opt", "max"), shapes, strict=True))},
        "tf32": False,  # fp32 means full float32
    }


def _why_no_engine() -> str | None:
    import torch

    if missing(["tensorrt"]):
        return "TensorRT is not installed"
    if not torch.cuda.is_available():
        return "this machine has no NVIDIA GPU"
    return None
