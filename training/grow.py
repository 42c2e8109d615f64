"""Copy a trained network's weights into a larger network that computes the same, and can then be trained.

Function-preserving growth (Net2Net: Chen et al. 2015, arXiv 1511.05641), for the two ways in which a ResNeXt grows
without touching the width of its shortcuts: fewer, wider groups (a grouped convolution is one with fewer groups whose
weights across the old groups are zero), and more blocks in a stage (a residual branch whose last BatchNorm has weight
zero adds nothing; Goyal et al. 2017, arXiv 1706.02677, start every branch so).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..models.resnext import BasicBlock, Bottleneck


@torch.no_grad()
def grow_into(network: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights of a smaller or equal network of the same widths. The remaining blocks contribute nothing at first.

    Raises:
        ValueError: a tensor's shape does not fit, or the network has no such tensor.
    """
    own = network.state_dict()
    if surplus := sorted(state_dict.keys() - own.keys()):
        raise ValueError(
            f"The network is too small for these weights: it has no {surplus[0]} (missing in all: {len(surplus)})."
        )
    for name, block in network.named_modules():
        if isinstance(block, BasicBlock | Bottleneck) and f"{name}.conv1.weight" not in state_dict:
            last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            nn.init.zeros_(last.get_parameter("weight"))
    for name, value in state_dict.items():
        if value.shape == own[name].shape:
            own[name].copy_(value)
        else:
            module = network.get_submodule(name.rpartition(".")[0])
            if not (isinstance(module, nn.Conv2d) and value.shape[0] == module.out_channels):
                raise ValueError(
                    f"{name} has the shape {tuple(value.shape)} and cannot grow into {tuple(own[name].shape)}."
                )
            own[name].copy_(_regrouped(value, module))


def _regrouped(value: Tensor, conv: nn.Conv2d) -> Tensor:
    """Convert a weight of more groups to the shape of ``conv``'s: new connections get zeros."""
    old_groups = conv.in_channels // value.shape[1]
    if conv.in_channels % value.shape[1] or old_groups % conv.groups:
        raise ValueError(f"{old_groups} groups cannot be merged into {conv.groups}.")
    merged = old_groups // conv.groups
    grown = torch.zeros_like(conv.weight)
    for group, rows in enumerate(torch.arange(conv.out_channels).chunk(old_groups)):
        start = group % merged * value.shape[1]
        grown[rows, start : start + value.shape[1]] = value[rows].to(grown.dtype)
    return grown
