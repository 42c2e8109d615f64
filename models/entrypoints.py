"""A name -> a ready network: what the three signatures of hubconf.py have behind them."""

from __future__ import annotations

import enum
import logging
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..mount import register
from .cache import is_vouched
from .checkpoints import load_into, mapped_state_dict, read_state_dict
from .download import local_file
from .manifest import Architecture, Checkpoint, Manifest, default_manifest
from .resnext import BasicBlock, Bottleneck, ResNeXt, SqueezeExcite, Stage

__all__ = ["build", "facebook", "load", "nvidia", "require", "torchvision"]

log = logging.getLogger("resnext_hub")
register(ResNeXt, Stage, BasicBlock, Bottleneck, SqueezeExcite)

PYTHON_FLOOR, TORCH_FLOOR = (3, 11), (2, 10)
#: Arguments of `ResNeXt` that a caller may choose; the others are the variant.
NETWORK_OPTIONS = ("zero_init_residual", "replace_stride_with_dilation", "norm_layer")
VARIANT_OPTIONS = frozenset(Architecture.__dataclass_fields__)


def require(torch_version: str, python_version: tuple[int, ...]) -> None:
    """Raise ImportError on a Python too old, or a torch whose ``weights_only`` is not safe."""
    if python_version[:2] < PYTHON_FLOOR:
        raise ImportError(
            f"resnext-hub needs Python 3.11 or newer; this is Python {'.'.join(map(str, python_version[:3]))}."
        )
    if tuple(int(part) for part in re.findall(r"\d+", torch_version)[:2]) < TORCH_FLOOR:
        raise ImportError(
            f"resnext-hub needs torch {'.'.join(map(str, TORCH_FLOOR))} or newer, whose weights_only loading is safe "
            f"(CVE-2025-32434, CVE-2026-24747); this is torch {torch_version}: pip install --upgrade torch"
        )


require(torch.__version__, tuple(sys.version_info[:3]))


@cache
def _say_license(license_id: str, name: str, url: str) -> None:
    log.warning("Licence of these weights: %s (%s). No commercial use. See %s", license_id, name, url)


def build(architecture: Architecture, num_classes: int = 1000, **network_options: Any) -> ResNeXt:
    """A freshly initialised network, in training mode.

    Raises:
        TypeError: an option that no network has, or that would make it another variant.
    """
    if wrong := sorted(network_options.keys() - set(NETWORK_OPTIONS)):
        hints = [f"To change {name}, choose another variant." for name in wrong if name in VARIANT_OPTIONS]
        if "last_bn_0_init" in wrong:
            hints.append("For last_bn_0_init, pass zero_init_residual.")
        raise TypeError(
            " ".join(
                [f"Unexpected network options: {', '.join(wrong)}. Allowed: {', '.join(NETWORK_OPTIONS)}.", *hints]
            )
        )
    block = {"BasicBlock": BasicBlock, "Bottleneck": Bottleneck}[architecture.block]
    return ResNeXt(
        block,
        architecture.layers,
        num_classes,
        groups=architecture.groups,
        width_per_group=architecture.width_per_group,
        se_channels=architecture.se_channels,
        planes=architecture.planes,
        stem_pool=architecture.stem_pool,
        **network_options,
    )


def _build_to_fill(architecture: Architecture, num_classes: int, options: Mapping[str, Any], head: bool) -> ResNeXt:
    """A network whose weights are about to be overwritten: 17 s of random initialisation saved on the 32x48d."""
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
            features (torchvision raises there); 0 leaves the head out.
        progress: show a bar while the file is fetched.
        verify: hash the cached file again, though it is as it was when it was hashed before.
        file: take the weights from this file instead of the published one; its head must be ``num_classes`` wide.
        key_map: rename the file's keys first.

    Raises:
        TypeError, ValueError: a wrong argument; found before anything is downloaded.
        FileNotFoundError: no ``file``.
        CheckpointError: the weights cannot be fetched, verified or fitted.
    """
    num_classes = checkpoint.num_classes if num_classes is None else num_classes
    head = num_classes != 0 and (file is not None or num_classes == checkpoint.num_classes)
    # First: a wrong argument is found before a download of up to 3.3 GB.
    network = _build_to_fill(checkpoint.architecture, num_classes, network_options, head)
    if file is None:
        path, digest = local_file(checkpoint, progress, again=verify)
        state = mapped_state_dict(path, digest, vouched=is_vouched(checkpoint, path))
    else:
        path, state = file, read_state_dict(file)
    load_into(network, state, head=head, key_map=key_map, origin=str(path))
    if file is None and checkpoint.license is not None and not checkpoint.license.commercial_use:
        _say_license(checkpoint.license_id or "", checkpoint.license.name, checkpoint.license.url)
    return network


def facebook(
    name: str,
    progress: bool,
    pretrained: bool,
    num_classes: int,
    options: Mapping[str, Any],
    manifest: Manifest | None = None,
) -> ResNeXt:
    """The signature of WSL-Images and semi-supervised-ImageNet1K-models."""
    checkpoint = (manifest or default_manifest()).resolve(name)
    if not pretrained:
        return build(checkpoint.architecture, num_classes, **options)
    return load(checkpoint, num_classes, progress, **options)


def _torchvision_tag(name: str, weights: object, tags: list[str]) -> str:
    """The tag that ``weights=`` means: a tag or "DEFAULT", plain or qualified, or a member of torchvision's enum."""
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


def torchvision(
    name: str,
    pretrained: object,
    progress: bool,
    weights: object,
    num_classes: int,
    options: Mapping[str, Any],
    manifest: Manifest | None = None,
) -> ResNeXt:
    """torchvision's signature: no weights by default; ``pretrained=True`` means IMAGENET1K_V1, as it did there."""
    if not isinstance(pretrained, bool) and pretrained is not None:
        # torchvision's builders take ``weights`` as the first positional argument too.
        if weights is not None:
            raise ValueError(
                f"The weights were given twice, as {pretrained!r} and as weights={weights!r}: pass only weights=."
            )
        pretrained, weights = None, pretrained
    checkpoints = (manifest or default_manifest()).of_entrypoint(name)
    tags = list(checkpoints)
    tag = None if weights is None else _torchvision_tag(name, weights, tags)
    if pretrained is True:
        if tag not in (None, tags[0]):
            raise ValueError(f"pretrained=True means {tags[0]}, which contradicts weights={tag!r}: pass only weights=.")
        tag = tags[0]
    elif pretrained is False and tag is not None:
        raise ValueError(f"pretrained=False contradicts weights={tag!r}: pass only weights=.")
    if tag is None:
        return build(checkpoints[tags[0]].architecture, num_classes, **options)
    return load(checkpoints[tag], num_classes, progress, **options)


def nvidia(
    name: str,
    pretrained: bool,
    pretrained_from_file: str | None,
    state_dict_key_map_fn: Callable[[str], str] | None,
    options: Mapping[str, Any],
    manifest: Manifest | None = None,
) -> ResNeXt:
    """NVIDIA's signature: ``pretrained_from_file`` excludes ``pretrained``; a missing file is an error."""
    checkpoint = (manifest or default_manifest()).resolve(name)
    options = dict(options)
    num_classes = options.pop("num_classes", checkpoint.num_classes)
    if pretrained and pretrained_from_file is not None:
        raise ValueError("pretrained=True contradicts pretrained_from_file=: pass pretrained=False with it.")
    if not pretrained and pretrained_from_file is None:
        return build(checkpoint.architecture, num_classes, **options)
    return load(checkpoint, num_classes, file=pretrained_from_file, key_map=state_dict_key_map_fn, **options)
