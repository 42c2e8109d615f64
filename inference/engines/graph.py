"""Rewrite a network for inference: the same outputs from fewer operations, of shapes that processors run faster."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...models.manifest import Preprocessing
from ...models.resnext import Bottleneck, ResNeXt


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu").view(1, -1, 1, 1)


class PixelNetwork(nn.Module):
    """uint8 pixels (N, H, W, 3), 0..255 -> logits (N, classes) and pooled features (N, num_features).

    A network that is not a `ResNeXt` has no features: (N, 0).

    Args:
        folded: the network's first convolution already divides by 255 and by the preset's std. The mean is always
            subtracted here, because the convolution pads with zeros, which stand for the mean.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preset: Preprocessing, *, folded: bool = False) -> None:
        super().__init__()
        self.network = network
        self.folded = folded
        self.register_buffer("mean", _per_channel(preset.mean) * (255 if folded else 1))
        self.register_buffer("std", _per_channel(preset.std))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = pixels.permute(0, 3, 1, 2).float()  # NHWC memory is what channels_last means: nothing is copied
        x = x - self.mean if self.folded else (x / 255 - self.mean) / self.std
        network = self.network
        x = x.to(next(network.parameters()).dtype)
        if not isinstance(network, ResNeXt):
            logits = network(x)
            return logits, logits[:, :0]
        features = network.forward_head(network.forward_features(x), pre_logits=True)
        return network.fc(features), features


class _Mean(nn.Module):
    """Global pooling without a flatten, which would query the batch size of the input. TensorRT refuses any operation
    on uint8 inputs but a cast, and torch's exporter writes a gather by computed indices."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def fold(network: ResNeXt, lanes: int = 1) -> ResNeXt:
    """Fold BatchNorm into the convolutions, merge groups narrower than ``lanes``, and pool with one operation.

    Changes the network itself, and returns it. Exact in real arithmetic; in float32 the logits change by about 1e-6 of
    their range.

    Args:
        lanes: float32 values in a vector register: 8 with AVX2, 16 with AVX-512. Kernels that store channels in blocks
            of that many cannot run a grouped convolution with narrower groups (4 channels in ResNeXt-50 32x4d's first
            stage) and fall back to a slow form. Such groups are merged into one of ``lanes`` channels, padded with
            zeros: more multiplications in less time.
    """
    network.eval().requires_grad_(False)
    network.register_module("avgpool", _Mean())
    for module in list(network.modules()):
        for i in (1, 2, 3):
            conv, norm = getattr(module, f"conv{i}", None), getattr(module, f"bn{i}", None)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, f"conv{i}", fuse_conv_bn_eval(conv, norm))
                setattr(module, f"bn{i}", nn.Identity())
        shortcut = getattr(module, "downsample", None)
        if isinstance(shortcut, nn.Sequential):
            conv, norm = shortcut
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            module.downsample = fuse_conv_bn_eval(conv, norm)
        if isinstance(module, Bottleneck):
            module.conv2 = _merge_groups(module.conv2, lanes)
    return network


def rewrite(network: ResNeXt, preset: Preprocessing, lanes: int) -> PixelNetwork:
    """`fold` a network, and the scale of its pixels into the first convolution too. Changes the network itself."""
    fold(network, lanes)
    network.conv1.weight = nn.Parameter(network.conv1.weight / (255 * _per_channel(preset.std)), requires_grad=False)
    return PixelNetwork(network, preset, folded=True).eval()


def _merge_groups(conv: nn.Conv2d, lanes: int) -> nn.Conv2d:
    wide, deep = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    together = math.gcd(conv.groups, max(1, lanes // deep))
    if conv.groups == 1 or together == 1:
        return conv
    groups = conv.groups // together
    narrow = conv.weight.unflatten(0, (groups, together, wide))
    weight = narrow.new_zeros(groups, together, wide, together, deep, *conv.kernel_size)
    for i in range(together):
        weight[:, i, :, i] = narrow[:, i]
    merged = copy.copy(conv)
    merged.groups = groups
    merged._parameters = dict(conv._parameters)
    merged.weight = nn.Parameter(weight.flatten(0, 2).flatten(1, 2), requires_grad=False)
    return merged
