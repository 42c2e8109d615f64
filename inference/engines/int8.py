"""Post-training static quantisation: 8-bit weights and activations, calibrated with the user's images.

The result is in ONNX Runtime's QDQ form: signed weights with one scale per output channel, unsigned activations with
one scale per tensor. The range of an activation is the mean of the smallest and of the largest values in each batch of
calibration images, so that one unusual image does not coarsen the steps of all others. In exports, the stem and the
first block are not quantised: they are narrow, and half of the error would come from them. Engines quantise them too,
after `equalise`. docs/decisions.md lists the alternatives that were measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from ...models.resnext import Bottleneck
from ...telemetry import import_quietly
from .graph import PixelNetwork

quantization = import_quietly("onnxruntime.quantization")

BATCH = 16  # calibration images per batch
EQUALISED = 128  # images that the ranges of channels are taken from, at most
SMALLEST = 0.05  # of a channel's factor: a channel that is always 0 has no range
# Convolutions, sums and the head; normalisation, softmax and top-k stay float32.
QUANTISED = ["Conv", "Gemm", "Add", "Mul", "Relu", "MaxPool", "ReduceMean"]
# ONNX Runtime's integer kernels gain even more from wide groups than float32 ones (ResNeXt-50 32x4d: 2.3 times as fast
# as fp32; 1.5 times without merging); OpenVINO's lose. Groups are merged up to this many channels while the weights
# grow by a twentieth at most.
LANES, GROWTH = (64, 32, 16), 1.05
PRE_PROCESSED = {"onnx.quant.pre_process": "onnxruntime.quant"}  # true: BatchNorm is folded and shapes are known


def quantise(
    exact: Path, path: Path, inputs: np.ndarray, reduce_range: bool, *, external: bool, everything: bool = False
) -> None:
    """Quantise the ONNX file ``exact`` and write it to ``path``.

    Args:
        inputs: calibration images in the form of the graph's input.
        reduce_range: use 7-bit weights.
        external: store the weights beside the file.
        everything: quantise the stem and the first block too.
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
        nodes_to_exclude=[] if everything else [node.name for node in nodes[: block_end + 1]],
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


@torch.no_grad()
def equalise(module: PixelNetwork, pixels: np.ndarray) -> None:
    """Bring the channels between two convolutions nearer to one range, since they share one scale in int8.

    A channel's factor is taken from the weights that read it and given to those that write it, which changes nothing
    in real arithmetic: ReLU and pooling keep positive factors (Nagel et al. 2019, arXiv 1906.04721). Changes the
    folded network itself.

    Args:
        pixels: (N, crop, crop, 3) uint8, images for calibration.
    """
    network: Any = module.network
    blocks = [block for stage in (network.layer1, network.layer2, network.layer3, network.layer4) for block in stage]
    readers: dict[nn.Conv2d, list[nn.Conv2d]] = {}
    if blocks[0].downsample is not None:
        readers[network.conv1] = [blocks[0].conv1, blocks[0].downsample]
    for block in blocks:
        path = [block.conv1, block.conv2, block.conv3] if isinstance(block, Bottleneck) else [block.conv1, block.conv2]
        readers |= {conv: [reader] for conv, reader in itertools.pairwise(path)}
    largest: dict[nn.Conv2d, torch.Tensor] = {}

    def note(conv: Any, inputs: tuple[Any, ...]) -> None:
        found = inputs[0].amax((0, 2, 3))
        largest[conv] = torch.maximum(found, largest[conv]) if conv in largest else found

    hooks = [convs[0].register_forward_pre_hook(note) for convs in readers.values()]
    for images in torch.from_numpy(pixels[:: -(-len(pixels) // EQUALISED)]).split(BATCH):
        module(images)
    for hook in hooks:
        hook.remove()
    for writer, convs in readers.items():
        ranges = largest[convs[0]]
        factors = (ranges / ranges.max().clamp(min=1e-12)).sqrt().clamp(min=SMALLEST)
        writer.weight /= factors.view(-1, 1, 1, 1)
        assert writer.bias is not None
        writer.bias /= factors
        for conv in convs:
            conv.weight.view(conv.groups, -1, *conv.weight.shape[1:]).mul_(factors.view(conv.groups, 1, -1, 1, 1))


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
