"""Post-training static quantisation: 8-bit weights and activations, calibrated with the user's images.

The result is in ONNX Runtime's QDQ form: signed weights with one scale per output channel, unsigned activations with
one scale per tensor. The range of an activation is the mean of the smallest and of the largest values in each batch of
calibration images, so that one unusual image does not coarsen the steps of all others. The stem and the first block
are not quantised: they are narrow, half of the error would come from them, and OpenVINO 2026.4 computes wrong logits
if the stem is quantised. docs/decisions.md lists the alternatives that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from ...telemetry import import_quietly

quantization = import_quietly("onnxruntime.quantization")

BATCH = 16  # calibration images per batch
# Convolutions, sums and the head; normalisation, softmax and top-k stay float32.
QUANTISED = ["Conv", "Gemm", "Add", "Mul", "Relu", "MaxPool", "ReduceMean"]
# ONNX Runtime's integer kernels gain even more from wide groups than float32 ones (ResNeXt-50 32x4d: 2.3 times as fast
# as fp32; 1.5 times without merging); OpenVINO's lose. Groups are merged up to this many channels while the weights
# grow by a twentieth at most.
LANES, GROWTH = (64, 32, 16), 1.05
PRE_PROCESSED = {"onnx.quant.pre_process": "onnxruntime.quant"}  # true: BatchNorm is folded and shapes are known


def quantise(exact: Path, path: Path, inputs: np.ndarray, reduce_range: bool, *, external: bool) -> None:
    """Quantise the ONNX file ``exact`` and write it to ``path``.

    Args:
        inputs: calibration images in the form of the graph's input.
        reduce_range: use 7-bit weights.
        external: store the weights beside the file.
    """
    model = onnx.load(exact, load_external_data=False)
    onnx.helper.set_model_props(model, PRE_PROCESSED)
    onnx.save(model, exact)
    nodes = model.graph.node  # in the order of computation
    convolution = next(i for i, node in enumerate(nodes) if node.op_type == "Conv")
    block_end = next(i for i, node in enumerate(nodes) if node.op_type == "Add" and i > convolution)
    quantization.quantize_static(
        exact,
        path,
        _Batches(model.graph.input[0].name, inputs),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=QUANTISED,
        nodes_to_exclude=[node.name for node in nodes[: block_end + 1]],  # the stem and the first block
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        use_external_data_format=external,
        calibrate_method=quantization.CalibrationMethod.MinMax,
        extra_options={
            "CalibMovingAverage": True,
            "OpTypesToExcludeOutputQuantization": ["Gemm"],  # logits rounded to 256 values would tie
        },
    )
    onnx.checker.check_model(path, full_check=True)


class _Batches(quantization.CalibrationDataReader):
    """The calibration images, in batches, as ONNX Runtime asks for them."""

    def __init__(self, name: str, inputs: np.ndarray) -> None:
        self._batches: Iterator[dict[str, Any]] = ({name: inputs[i : i + BATCH]} for i in range(0, len(inputs), BATCH))

    def get_next(self) -> dict[str, Any]:
        return next(self._batches, {})


def lanes_of(network: nn.Module) -> int:
    """Return the widest groups that `fold` may make without the weights growing too much."""
    total = sum(p.numel() for p in network.parameters())
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]

    def growth(lanes: int) -> float:
        more = 0
        for conv in convolutions:
            deep = conv.in_channels // conv.groups
            more += conv.weight.numel() * (math.gcd(conv.groups, max(1, lanes // deep)) - 1)
        return 1 + more / total

    return next((lanes for lanes in LANES if growth(lanes) <= GROWTH), 1)
