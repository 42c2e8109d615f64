"""TensorRT: the ONNX that it takes, what builds the engine from it, and the engine where there is a GPU."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ExportError
from ..packages import install, missing
from . import tensorrt_engine
from .target import Job, Runner, Target
from .to_onnx import OPSET, open_in_onnxruntime, write_onnx

if TYPE_CHECKING:
    import numpy as np

__all__ = ["TensorRTTarget", "trtexec"]

PLAN = "model.plan"
BF16_OPSET = 22  # the first in which a convolution takes bfloat16


class TensorRTTarget(Target):
    """``model.onnx``, ``build_engine.sh`` (trtexec), ``build_engine.py``, and ``model.plan`` where it can be built.

    Precision is in the graph ("strongly typed", the only way in TensorRT 11): weights and activations are of that type,
    normalisation and what comes out are float32. An engine is for one model of GPU and one version of TensorRT.
    """

    name = "tensorrt"
    artefact = "model.onnx"
    precisions = ("fp32", "fp16", "bf16")
    needs = ("torch", "onnx", "onnxscript", "onnxruntime")
    options: ClassVar = {
        "batches": (
            (1, 8, 32),
            {"type": int, "nargs": 3, "metavar": ("MIN", "OPT", "MAX"), "help": "batch sizes (default: 1 8 32)"},
        )
    }

    def check(self, precision: str, options: Mapping[str, Any]) -> None:
        least, usual, most = options["batches"]
        if not 1 <= least <= usual <= most:
            raise ValueError(f"batches must be MIN <= OPT <= MAX, each 1 or more; got {least} {usual} {most}.")
        # ONNX Runtime's CPU has no bfloat16.
        if precision == "bf16" and _why_no_engine() and missing(["openvino"]):
            raise ExportError(
                "bf16 must be verified on a GPU with TensorRT, or in OpenVINO, and neither is available: "
                f"{install('openvino')}"
            )

    def write(self, job: Job, folder: Path) -> Sequence[str]:
        from .network import DTYPES, DeployedNetwork

        module = DeployedNetwork(job.network, job.checkpoint.preprocessing, job.signature, DTYPES[job.precision])
        write_onnx(module, job, folder / self.artefact, BF16_OPSET if job.precision == "bf16" else OPSET)
        settings = _settings(job)
        (folder / "build_engine.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        shutil.copy(tensorrt_engine.__file__, folder / "build_engine.py")
        script = f'#!/bin/sh\ncd "$(dirname "$0")" && {trtexec(settings)}\n'
        (folder / "build_engine.sh").write_text(script, encoding="utf-8")
        if reason := _why_no_engine():
            return [f"The engine was not built: {reason}. To build it on the target machine: sh build_engine.sh"]
        tensorrt_engine.build(folder / self.artefact, folder / PLAN, settings["profile"], settings["tf32"])
        return []

    def open(self, job: Job, folder: Path) -> Runner:
        if (folder / PLAN).is_file():
            import tensorrt  # pyright: ignore[reportMissingImports]
            import torch

            call = tensorrt_engine.run(folder / PLAN)
            return Runner(call, f"tensorrt {tensorrt.__version__}, {torch.cuda.get_device_name()}")
        if job.precision != "bf16":
            return open_in_onnxruntime(folder / self.artefact)
        return _open_in_openvino(folder / self.artefact)


def trtexec(settings: dict[str, Any]) -> str:
    """The command that builds the engine; of TensorRT 10 and newer."""
    profile = settings["profile"]
    shapes = [f"--{key}Shapes={profile['input']}:{'x'.join(map(str, profile[key]))}" for key in ("min", "opt", "max")]
    # --stronglyTyped is TensorRT 11's only way and accepted there; TensorRT 10 has to be told.
    typed = ["--stronglyTyped", *([] if settings["tf32"] else ["--noTF32"]), "--skipInference"]
    return shlex.join(["trtexec", f"--onnx={settings['onnx']}", f"--saveEngine={settings['plan']}", *shapes, *typed])


def _settings(job: Job) -> dict[str, Any]:
    spec = job.signature.input
    shapes = [(count, *spec.shape) for count in job.options["batches"]]
    return {
        "onnx": TensorRTTarget.artefact,
        "plan": PLAN,
        "profile": {"input": spec.name, **dict(zip(("min", "opt", "max"), shapes, strict=True))},
        "tf32": False,  # fp32 is fp32
    }


def _why_no_engine() -> str | None:
    import torch

    if missing(["tensorrt"]):
        return "TensorRT is not installed"
    if not torch.cuda.is_available():
        return "this machine has no NVIDIA GPU"
    return None


def _open_in_openvino(path: Path) -> Runner:
    """bfloat16 weights as they are, with float32 activations."""
    from importlib.metadata import version

    from ..inference.engines.openvino import openvino_core

    compiled = openvino_core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(batch: np.ndarray) -> Sequence[np.ndarray]:
        return list(compiled(batch).to_tuple())

    return Runner(run, f"openvino {version('openvino')}, CPU")
