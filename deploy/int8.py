"""Post-training static quantisation: 8-bit weights and activations, calibrated on the user's images.

ONNX Runtime's QDQ form: signed weights with a scale for every channel, unsigned activations with a scale for every
tensor. A tensor's range is the mean, over batches of the calibration images, of the least and the greatest value in
each: one odd image does not make the steps of all others coarse. The stem and the first block stay float32: they are
narrow, everything passes them, and half of the error would be theirs. What was tried instead is in docs/decisions.md.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from ..models.manifest import Preprocessing
from ..telemetry import import_quietly
from .network import DeployedNetwork
from .signature import Signature
from .target import Job

__all__ = ["write_int8"]

quantization = import_quietly("onnxruntime.quantization")

BATCH = 16  # calibration images that pass together
# Convolutions, sums and the head; normalisation, softmax and the choice of the best stay float32.
QUANTISED = ["Conv", "Gemm", "Add", "Mul", "Relu", "MaxPool", "ReduceMean"]
# Kernels of integers like wide groups even more than those of float32 do (ResNeXt-50 32x4d: 2.3 times as fast as fp32,
# 1.5 times as it is): groups are merged up to this many channels, as long as the weights grow by a twentieth at most.
LANES, GROWTH = (64, 32, 16), 1.05
PRE_PROCESSED = {"onnx.quant.pre_process": "onnxruntime.quant"}  # it is: BatchNorm is folded, shapes are known


def write_int8(job: Job, path: Path) -> Sequence[str]:
    """Write the quantised network as ONNX."""
    from .to_onnx import ONE_FILE, set_metadata, write_onnx

    assert job.calibration is not None
    module = DeployedNetwork(job.network, job.checkpoint.preprocessing, job.signature, lanes=_lanes(job.network))
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="fp32-") as folder:
        exact = Path(folder) / "model.onnx"
        write_onnx(module, job, exact)
        set_metadata(exact, PRE_PROCESSED)
        quantization.quantize_static(
            exact,
            path,
            _Batches(job.calibration, job.signature, job.checkpoint.preprocessing),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            nodes_to_exclude=_to_the_first_sum(exact),
            per_channel=True,
            reduce_range=job.options["reduce_range"],
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=size > ONE_FILE,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={
                "CalibMovingAverage": True,
                "OpTypesToExcludeOutputQuantization": ["Gemm"],  # logits rounded to 256 values would tie
            },
        )
    set_metadata(path, job.metadata)
    onnx.checker.check_model(path, full_check=True)
    return [f"Images used for calibration: {len(job.calibration)}."]


def _to_the_first_sum(path: Path) -> list[str]:
    """The nodes of the stem and the first block; a graph's nodes are in the order of calculation."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    end = next(i for i, node in enumerate(nodes) if node.op_type == "Add")
    return [node.name for node in nodes[: end + 1]]


class _Batches(quantization.CalibrationDataReader):
    """The calibration images as ONNX Runtime asks for them."""

    def __init__(self, pixels: np.ndarray, signature: Signature, preset: Preprocessing) -> None:
        self._batches = self._iterate(pixels, signature, preset)

    @staticmethod
    def _iterate(pixels: np.ndarray, signature: Signature, preset: Preprocessing) -> Iterator[dict[str, Any]]:
        for i in range(0, len(pixels), BATCH):
            yield {signature.input.name: signature.input_of(pixels[i : i + BATCH], preset)}

    def get_next(self) -> dict[str, Any]:
        return next(self._batches, {})


def _lanes(network: nn.Module) -> int:
    """The widest groups that `fold` may make without the weights growing too much."""
    total = sum(p.numel() for p in network.parameters())
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]

    def growth(lanes: int) -> float:
        more = 0
        for conv in convolutions:
            deep = conv.in_channels // conv.groups
            more += conv.weight.numel() * (math.gcd(conv.groups, max(1, lanes // deep)) - 1)
        return 1 + more / total

    return next((lanes for lanes in LANES if growth(lanes) <= GROWTH), 1)
