"""The network: ResNet, ResNeXt and SE-ResNeXt in one class, and nothing else.

An image passes a stem (7x7 convolution, stride 2, then a 3x3 max pool, stride 2) and four stages of residual
blocks; each stage after the first halves the resolution and doubles the channels. A block adds a small network's
output to its own input (He et al. 2015, https://arxiv.org/abs/1512.03385). ResNeXt makes the 3x3 convolution of that
small network a grouped one: ``groups`` (the paper's *cardinality*) paths of ``width_per_group`` channels, aggregated by
the 1x1 convolution that follows (Xie et al. 2016, https://arxiv.org/abs/1611.05431). SE-ResNeXt rescales the channels
of that output by a gate computed from their means (Hu et al. 2017, https://arxiv.org/abs/1709.01507).

Parameter names, shapes and the order of operations are torchvision's: the same state_dict gives bit-identical fp32
logits on a CPU. This module imports nothing but torch.
"""

# pyright: reportPrivateUsage=false, reportUnknownVariableType=false
# torch's normalisations have no public base class, and its checkpoint() is annotated in part.
# No "from __future__ import annotations": torch.fx copies annotations into the code that it writes, and as strings they
# would stop torch.jit.script, GraphModule.to_folder and quantisation of a traced network.

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import index
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

NormLayer = Callable[[int], nn.Module]


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=False
    )


def _conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


class SqueezeExcite(nn.Module):
    """Channel gate: ``x * sigmoid(expand(relu(squeeze(mean(x)))))``, (N, C, H, W) -> (N, C, H, W).

    Formula: Hu et al. 2017, https://arxiv.org/abs/1709.01507, eq. 2-4. ``squeeze_channels`` is an absolute number, not
    a share of ``channels``: NVIDIA's SE-ResNeXt101-32x4d squeezes to 16 in every stage. The submodules' names and types
    (``Linear``) are those of NVIDIA's checkpoints.
    """

    def __init__(self, channels: int, squeeze_channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, squeeze_channels)
        self.relu = nn.ReLU(inplace=True)
        self.expand = nn.Linear(squeeze_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.expand(self.relu(self.squeeze(x.mean((2, 3))))))
        return x * gate.unsqueeze(-1).unsqueeze(-1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut: (N, C_in, H, W) -> (N, planes, H/stride, W/stride).

    The block of ResNet-18 and ResNet-34. No grouped or dilated form was ever published, so it refuses ``groups``,
    ``width_per_group`` and ``dilation`` other than the default.
    """

    expansion: int = 1

    def __init__(
        self,
        in_channels: int,
        planes: int,
        *,
        stride: int = 1,
        groups: int = 1,
        width_per_group: int = 64,
        dilation: int = 1,
        se_channels: int | None = None,
        downsample: nn.Module | None = None,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        if (groups, width_per_group) != (1, 64):
            given = f"groups={groups}, width_per_group={width_per_group}"
            raise ValueError(f"BasicBlock has no grouped convolution: {given}; expected 1 and 64. Use Bottleneck.")
        if dilation != 1:
            raise ValueError("BasicBlock cannot be dilated; use Bottleneck with replace_stride_with_dilation.")
        self.conv1 = _conv3x3(in_channels, planes, stride)
        self.bn1 = norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(planes, planes)
        self.bn2 = norm_layer(planes)
        self.squeeze = nn.Identity() if se_channels is None else SqueezeExcite(planes, se_channels)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.squeeze(self.bn2(self.conv2(out)))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1 reduce, grouped 3x3, 1x1 expand, and the shortcut: (N, C_in, H, W) -> (N, 4*planes, H/stride, W/stride).

    The grouped convolution has ``groups * int(planes * width_per_group / 64)`` channels (Xie et al. 2016, table 1).
    The stride is on the 3x3, not on the first 1x1 as in the original paper: "ResNet v1.5", which all published
    checkpoints of this family use and which is worth about half a point of top-1 (NVIDIA DeepLearningExamples,
    ConvNets/resnet50v1.5).
    """

    expansion: int = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        *,
        stride: int = 1,
        groups: int = 1,
        width_per_group: int = 64,
        dilation: int = 1,
        se_channels: int | None = None,
        downsample: nn.Module | None = None,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        width = int(planes * (width_per_group / 64.0)) * groups
        out_channels = planes * self.expansion
        self.conv1 = _conv1x1(in_channels, width)
        self.bn1 = norm_layer(width)
        self.conv2 = _conv3x3(width, width, stride, groups, dilation)
        self.bn2 = norm_layer(width)
        self.conv3 = _conv1x1(width, out_channels)
        self.bn3 = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.squeeze = nn.Identity() if se_channels is None else SqueezeExcite(out_channels, se_channels)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.squeeze(self.bn3(self.conv3(out)))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def _integer(name: str, value: object) -> int:
    """An integer of any kind, such as NumPy's."""
    try:
        if not isinstance(value, bool):
            return index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        pass
    raise TypeError(f"{name} must be an integer; got {value!r}.")


@contextmanager
def _frozen_statistics(module: nn.Module) -> Generator[None]:
    """Keep BatchNorm from counting a batch a second time while checkpointing recomputes it."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # new statistics = old ones; what autograd saves stays the same
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(1)


@torch.jit.unused
def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """``block(x)`` whose activations are recomputed in the backward pass (Chen et al. 2016, arXiv 1604.06174)."""
    if torch.compiler.is_compiling():  # the compiler decides itself what to recompute
        return block(x)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _frozen_statistics(block)

    out = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
    assert isinstance(out, Tensor)
    return out


class Stage(nn.Sequential):
    """A run of blocks at one resolution; optionally each one recomputed in the backward pass."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__(*blocks)
        self.grad_checkpointing = False

    def forward(self, input: Tensor) -> Tensor:
        x = input
        if self.grad_checkpointing and not torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            for block in self:
                x = _checkpointed(block, x)
        else:
            for block in self:
                x = block(x)
        return x


class ResNeXt(nn.Module):
    """ResNet, ResNeXt or SE-ResNeXt: images (N, in_chans, H, W), normalised as `preprocessing` says -> logits.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        layers: blocks in each of the four stages, e.g. (3, 4, 23, 3) for the 101-layer networks.
        num_classes: width of the head; 0 makes no head, and the network returns pooled features (N, num_features).
        groups: paths of the grouped 3x3 convolution (the paper's cardinality).
        width_per_group: channels of each path in the first stage, for ``planes=64``.
        se_channels: width that squeeze-and-excitation squeezes to; None for none.
        planes: base width of the first stage; it doubles with every stage.
        stem_pool: False drops the 3x3 max pool after the first convolution, for small images: strides are then
            2, 4, 8, 16 instead of 4, 8, 16, 32. The stem is `planes` wide.
        zero_init_residual: start each residual branch at zero (Goyal et al. 2017, arXiv 1706.02677: +0.2-0.3 points).
        replace_stride_with_dilation: for stages 2, 3 and 4, dilate instead of striding (segmentation).
        norm_layer: makes a normalisation from a channel count; default `torch.nn.BatchNorm2d`.
        in_chans: channels of the images.
        conv_init: "fan_out" (torchvision) or "fan_in" (NVIDIA): what the random convolutions' variance is scaled by.

    Raises:
        ValueError: an argument that has no meaning for this block, or of the wrong length.

    Attributes:
        checkpoint: the manifest's entry of the weights, from which `preprocessing` and `labels` come; None if the
            weights are random.

    With the same state_dict, fp32 logits on a CPU are bit-identical to ``torchvision.models.ResNet``.
    """

    __jit_unused_properties__: ClassVar = ["labels", "preprocessing"]

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        num_classes: int = 1000,
        *,
        groups: int = 1,
        width_per_group: int = 64,
        se_channels: int | None = None,
        planes: int = 64,
        stem_pool: bool = True,
        zero_init_residual: bool = False,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: NormLayer | None = None,
        in_chans: int = 3,
        conv_init: str = "fan_out",
    ) -> None:
        super().__init__()
        if len(layers) != 4:
            raise ValueError(f"layers must have 4 numbers, one per stage; got {tuple(layers)}.")
        if (num_classes := _integer("num_classes", num_classes)) < 0:
            raise ValueError(f"num_classes must be 0 (no head) or more; got {num_classes}.")
        if _integer("in_chans", in_chans) < 1:
            raise ValueError(f"in_chans must be 1 or more; got {in_chans}.")
        if conv_init not in ("fan_in", "fan_out"):
            raise ValueError(f"conv_init must be 'fan_in' or 'fan_out'; got {conv_init!r}.")
        dilate = (False, False, False) if replace_stride_with_dilation is None else tuple(replace_stride_with_dilation)
        if len(dilate) != 3:
            raise ValueError(f"replace_stride_with_dilation must be None or 3 booleans (stages 2, 3, 4); got {dilate}.")
        # torchvision leaves these on the module; its builders (feature pyramids, detectors) and others' code read them.
        self._norm_layer: NormLayer = nn.BatchNorm2d if norm_layer is None else norm_layer
        self.inplanes, self.dilation = planes, 1  #: channels of the last map so far; dilation so far
        self.groups, self.base_width, self.se_channels = groups, width_per_group, se_channels

        self.conv1 = nn.Conv2d(in_chans, planes, 7, 2, padding=3, bias=False)
        self.bn1 = self._norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem_pool else nn.Identity()

        stages: list[Stage] = []
        feature_info: list[tuple[int, int]] = []
        reduction = 4 if stem_pool else 2
        for i, (depth, stride, dilated) in enumerate(zip(layers, (1, 2, 2, 2), (False, *dilate), strict=True)):
            stages.append(self._make_layer(block, planes * 2**i, depth, stride, dilated))
            reduction *= 1 if dilated else stride
            feature_info.append((self.inplanes, reduction))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.num_classes, self.num_features = num_classes, self.inplanes
        self.fc: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        #: (channels, stride) of each map that `forward_intermediates` returns.
        self.feature_info = tuple(feature_info)
        self.checkpoint: Any = None
        self._init_weights(zero_init_residual, conv_init)

    def _make_layer(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        planes: int,
        blocks: int,
        stride: int = 1,
        dilate: bool = False,
    ) -> Stage:
        """The next stage: ``blocks`` blocks, of which the first has the stride. Called as in torchvision."""
        # The first block of a dilated stage still has its predecessor's dilation, as in torchvision.
        dilation = self.dilation
        if dilate:
            self.dilation, stride = self.dilation * stride, 1
        made: list[nn.Module] = []
        for _ in range(blocks):
            out_channels = planes * block.expansion
            downsample = None
            if not made and (stride != 1 or self.inplanes != out_channels):
                downsample = nn.Sequential(
                    _conv1x1(self.inplanes, out_channels, stride), self._norm_layer(out_channels)
                )
            how: dict[str, Any] = {"stride": 1 if made else stride, "dilation": self.dilation if made else dilation}
            how |= {"groups": self.groups, "width_per_group": self.base_width, "se_channels": self.se_channels}
            made.append(block(self.inplanes, planes, downsample=downsample, norm_layer=self._norm_layer, **how))
            self.inplanes = out_channels
        return Stage(*made)

    @property
    def preprocessing(self) -> Any:
        """How the checkpoint's images were resized, cropped and normalised: a `Preprocessing`.

        None if the weights are random, or if ``in_chans`` is not 3.
        """
        return self.checkpoint.preprocessing if self.checkpoint and self.conv1.in_channels == 3 else None

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The names of the checkpoint's classes, in the order of the logits; None if the head has another number."""
        checkpoint = self.checkpoint
        if checkpoint is None or getattr(self.fc, "out_features", 0) != checkpoint.num_classes:
            return None
        return tuple(name for _, name in checkpoint.labels.rows())

    def _init_weights(self, zero_init_residual: bool, conv_init: str) -> None:
        if self.conv1.weight.is_meta:
            return  # nothing to initialise, and torch would import its compiler, which takes seconds
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # He et al. 2015, https://arxiv.org/abs/1502.01852: keeps the variance of the gradient through ReLUs.
                nn.init.kaiming_normal_(module.weight, mode=conv_init, nonlinearity="relu")  # pyright: ignore[reportArgumentType]
            elif isinstance(module, (_BatchNorm, nn.GroupNorm)) and module.affine:
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.modules() if zero_init_residual else ():
            if isinstance(module, (BasicBlock, Bottleneck)):
                last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                if isinstance(last.weight, Tensor):
                    nn.init.zeros_(last.weight)

    def _forward_stem(self, x: Tensor) -> Tensor:
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> the last feature map (N, num_features, H/32, W/32)."""
        return self.layer4(self.layer3(self.layer2(self.layer1(self._forward_stem(x)))))

    def forward_intermediates(self, x: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) -> the maps of the four stages, finest first; `feature_info` has channels and strides."""
        x1 = self.layer1(self._forward_stem(x))
        x2 = self.layer2(x1)
        x3 = self.layer3(x2)
        return [x1, x2, x3, self.layer4(x3)]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """A last feature map -> logits (N, num_classes), or with ``pre_logits`` pooled features (N, num_features)."""
        x = torch.flatten(self.avgpool(x), 1)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    _forward_impl = forward  # torchvision's name

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a new, initialised one of ``num_classes`` outputs (0: none), in place."""
        weight = self.conv1.weight
        self.num_classes = num_classes
        self.fc = (
            nn.Linear(self.num_features, num_classes, device=weight.device, dtype=weight.dtype)
            if num_classes
            else nn.Identity()
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass: less memory, about a third more time.

        BatchNorm statistics are updated once per step, as without it. TorchScript and torch.compile ignore it.
        """
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable
