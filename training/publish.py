"""Trained weights -> the small file that a repository can carry."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["publish_half"]


def publish_half(state_dict: Mapping[str, Tensor], folder: Path, name: str) -> Path:
    """Write a state_dict in float16 as ``folder/name-<first 8 hex digits of its sha256>.pth``; return that path.

    The name's hash is torch.hub's convention. Loading copies into a float32 network, so float16 costs a rounding and
    no speed.
    """
    half = {k: v.half() if v.is_floating_point() else v for k, v in state_dict.items()}
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{name}.{os.getpid()}.part"
    torch.save(half, temporary)
    digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
    path = folder / f"{name}-{digest[:8]}.pth"
    os.replace(temporary, path)
    return path
