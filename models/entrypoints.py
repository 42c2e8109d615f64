"""Build a network and load its weights: the code behind the three signatures of hubconf.py."""

from __future__ import annotations

import dataclasses
import enum
import logging
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..mount import register
from .checkpoints import load_into, mapped_state_dict, read_state_dict
from .download import local_file
from .manifest import Architecture, Checkpoint, default_manifest
from .resnext import BasicBlock, Bottleneck, ResNeXt, SqueezeExcite, Stage
from .store import Store

log = logging.getLogger("resnext_hub")
register(ResNeXt, Stage, BasicBlock, Bottleneck, SqueezeExcite)

PYTHON_FLOOR, TORCH_FLOOR = (3, 11), (2, 10)
#: Arguments of `ResNeXt` that a caller may choose; the others define the variant.
NETWORK_OPTIONS = ("zero_init_residual", "replace_stride_with_dilation", "norm_layer", "in_chans", "conv_init")


def require(torch_version: str, python_version: tuple[int, ...]) -> None:
    """Raise ImportError on a Python too old, or a torch whose ``weights_only`` is not safe."""
    if python_version[:2] < PYTHON_FLOOR:
        have = ".".join(map(str, python_version[:3]))
        raise ImportError(f"resnext-hub needs Python 3.11 or newer; this is Python {have}.")
    if tuple(int(part) for part in re.findall(r"\d+", torch_version)[:2]) < TORCH_FLOOR:
        raise ImportError(
            f"resnext-hub needs torch {'.'.join(map(str, TORCH_FLOOR))} or newer, whose weights_only loading is safe "
            f"(CVE-2025-32434, CVE-2026-24747); this is torch {torch_version}: pip install --upgrade torch"
        )


require(torch.__version__, tuple(sys.version_info[:3]))


def build(architecture: Architecture, num_classes: int = 1000, **network_options: Any) -> ResNeXt:
    """A network with random weights, in training mode.

    Options of the architecture, such as ``groups``, may be passed if they have its own values. Raises TypeError for an
    option that no network has, or that would make it another variant.
    """
    own = dataclasses.asdict(architecture)
    options = {name: value for name, value in network_options.items() if name not in own or value != own[name]}
    if wrong := sorted(options.keys() - set(NETWORK_OPTIONS)):
        hints = [f" To change {name}, choose another variant." for name in wrong if name in own]
        allowed = f"Unexpected network options: {', '.join(wrong)}. Allowed: {', '.join(NETWORK_OPTIONS)}."
        raise TypeError(allowed + "".join(hints))
    block = {"BasicBlock": BasicBlock, "Bottleneck": Bottleneck}[own.pop("block")]
    return ResNeXt(block, own.pop("layers"), num_classes, **own, **options)


def _build_to_fill(architecture: Architecture, num_classes: int, options: Mapping[str, Any], head: bool) -> ResNeXt:
    """A network without random weights, since a checkpoint follows: saves 17 s on the 32x48d."""
    if options.get("norm_layer") is not None:  # may hold state that no checkpoint fills
        return build(architecture, num_classes, **options)
    device = torch.get_default_device()
    with torch.device("meta"):
        network = build(architecture, num_classes, **options)
    if not head and num_classes:
        with device:
            network.fc = torch.nn.Linear(network.num_features, num_classes)
    return network


def load(
    checkpoint: Checkpoint,
    num_classes: int | None = None,
    progress: bool = True,
    *,
    verify: bool = False,
    file: str | Path | None = None,
    key_map: Callable[[str], str] | None = None,
    **network_options: Any,
) -> ResNeXt:
    """A network with a checkpoint's weights, in training mode, on the default device and in the default dtype.

    Args:
        num_classes: None for the checkpoint's own. Another number puts a new, initialised head on the pretrained
            features (torchvision raises an error); 0 leaves the head out.
        progress: show a bar while the file is downloaded.
        verify: hash the cached file again, even if it has not changed since it was last hashed.
        file: take the weights from this file instead of the published one; its head must be ``num_classes`` wide.
        key_map: rename the file's keys first.
        network_options: see `NETWORK_OPTIONS`. With ``in_chans`` other than 3, the first convolution's weights are
            summed or repeated over the channels, as in timm (`checkpoints.load_into`).

    Raises:
        TypeError, ValueError: a wrong argument; found before anything is downloaded.
        FileNotFoundError: no ``file``.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
    """
    num_classes = checkpoint.num_classes if num_classes is None else num_classes
    head = num_classes != 0 and (file is not None or num_classes == checkpoint.num_classes)
    # First, so that a wrong argument is reported before a download of up to 3.3 GB.
    network = _build_to_fill(checkpoint.architecture, num_classes, network_options, head)
    if file is None:
        store = Store()
        path, digest = local_file(checkpoint, progress, again=verify, store=store)
        state = mapped_state_dict(path, digest, store, vouched=store.is_vouched(checkpoint, path))
    else:
        path, state = file, read_state_dict(file)
    load_into(network, state, head=head, key_map=key_map, origin=str(path))
    network.checkpoint = checkpoint if file is None else None
    return network


def facebook_network(
    name: str, progress: bool, pretrained: bool, num_classes: int, options: Mapping[str, Any]
) -> ResNeXt:
    """The signature of WSL-Images and semi-supervised-ImageNet1K-models."""
    checkpoint = default_manifest().resolve(name)
    if not pretrained:
        return build(checkpoint.architecture, num_classes, **options)
    return load(checkpoint, num_classes, progress, **options)


def _torchvision_tag(name: str, weights: object, tags: list[str]) -> str | None:
    """The tag that ``weights=`` or ``pretrained=`` means, None for random weights.

    It may be a tag or "DEFAULT", with or without the enum's name; a member of torchvision's enum; or, as in
    torchvision's older interface, true for IMAGENET1K_V1 and false for random weights.
    """
    if isinstance(weights, int):
        return tags[0] if weights else None
    text = f"{type(weights).__name__}.{weights.name}" if isinstance(weights, enum.Enum) else weights
    if not isinstance(text, str):
        raise TypeError(f"weights must be a string or a member of torchvision's enum, not {type(weights).__name__}.")
    owner, _, tag = text.rpartition(".")
    expected = f"ResNeXt{name.removeprefix('resnext').upper()}_Weights"  # torchvision's spelling
    if owner and owner.lower() != expected.lower():
        raise ValueError(f"{text} belongs to another network; {name} takes {expected}.")
    tag = tags[-1] if tag == "DEFAULT" else tag
    if tag not in tags:
        raise ValueError(f"{name} has no weights {tag!r}; choose from {', '.join(tags)} and DEFAULT.")
    return tag


def torchvision_network(
    name: str, pretrained: object, progress: bool, weights: object, num_classes: int, options: Mapping[str, Any]
) -> ResNeXt:
    """The signature of torchvision, with random weights by default.

    ``pretrained`` is the first argument, so it may also be a tag or a member of the enum.
    """
    checkpoints = default_manifest().of_entrypoint(name)
    tags = list(checkpoints)
    chosen = {_torchvision_tag(name, given, tags) for given in (pretrained, weights) if given is not None}
    if len(chosen) > 1:
        both = f"pretrained={pretrained!r} contradicts weights={weights!r}"
        raise ValueError(f"{both}; True means {tags[0]}. Pass only weights=.")
    tag = chosen.pop() if chosen else None
    if tag is None:
        return build(checkpoints[tags[0]].architecture, num_classes, **options)
    return load(checkpoints[tag], num_classes, progress, **options)


def nvidia_network(
    name: str,
    pretrained: bool,
    pretrained_from_file: str | None,
    state_dict_key_map_fn: Callable[[str], str] | None,
    options: Mapping[str, Any],
) -> ResNeXt:
    """The signature of NVIDIA; a missing ``pretrained_from_file`` is an error.

    NVIDIA's ``trt`` and ``fused_se`` choose among implementations of one formula, so they have no effect here.
    """
    checkpoint = default_manifest().resolve(name)
    names = {"last_bn_0_init": "zero_init_residual"}
    options = {names.get(key, key): value for key, value in options.items() if key not in ("trt", "fused_se")}
    options.setdefault("conv_init", "fan_in")
    num_classes = options.pop("num_classes", checkpoint.num_classes)
    if pretrained and pretrained_from_file is not None:
        raise ValueError("pretrained=True contradicts pretrained_from_file=: pass pretrained=False with it.")
    if not pretrained and pretrained_from_file is None:
        return build(checkpoint.architecture, num_classes, **options)
    return load(checkpoint, num_classes, file=pretrained_from_file, key_map=state_dict_key_map_fn, **options)
