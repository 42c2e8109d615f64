"""A file of weights -> a state_dict with the network's own keys -> a network that has them."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .download import CheckpointError

__all__ = ["load_into", "normalise_keys", "read_state_dict"]


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The state_dict in a file of ``torch.save``, legacy or zip; a training checkpoint's ``state_dict`` entry too.

    Nothing in the file is executed (``weights_only=True``).

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it is not a file of weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    try:
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than weights, and nothing in a checkpoint is executed: {str(error).splitlines()[0]}"
        ) from error
    except Exception as error:  # the unpickler raises nearly anything on a broken file
        raise CheckpointError(f"{path} is not a whole file of torch.save: {error}") from error
    if isinstance(data, dict) and isinstance(data.get("state_dict"), dict):
        data = data["state_dict"]
    if not isinstance(data, dict) or not all(isinstance(v, Tensor) for v in data.values()):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, expected a state_dict (name -> tensor).")
    return dict(data)


def normalise_keys(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state_dict under our names and shapes; lossless.

    ``module.`` (DataParallel) is dropped; NVIDIA's ``layers.N.`` becomes ``layerN+1.``; squeeze-and-excitation weights
    saved as 1x1 convolutions (C_out, C_in, 1, 1) become those of linear layers (C_out, C_in).
    """

    def rename(key: str) -> str:
        key = key.removeprefix("module.")
        return re.sub(r"^layers\.(\d+)\.", lambda match: f"layer{int(match[1]) + 1}.", key)

    def reshape(key: str, tensor: Tensor) -> Tensor:
        gate = re.search(r"\.squeeze\.(squeeze|expand)\.weight$", key)
        return tensor.flatten(1) if gate and tensor.ndim == 4 else tensor

    return {rename(key): reshape(key, tensor) for key, tensor in state_dict.items()}


def load_into(
    network: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    head: bool = True,
    key_map: Callable[[str], str] | None = None,
    origin: str = "the checkpoint",
) -> None:
    """Copy a state_dict into a network: every key must have its place; ``head=False`` leaves ``fc`` as it is.

    Raises:
        CheckpointError: keys are missing or too many, or shapes differ; the message names the first few.
    """
    if key_map is not None:
        state_dict = {key_map(key.removeprefix("module.")): tensor for key, tensor in state_dict.items()}
    state = normalise_keys(state_dict)
    if not head:
        own = network.state_dict()
        state = {k: v for k, v in state.items() if not k.startswith("fc.")}
        state |= {k: v for k, v in own.items() if k.startswith("fc.")}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        shown = " ".join(line if len(line) < 300 else line[:300] + "…" for line in lines[:3])
        raise CheckpointError(f"{origin} does not fit the network: {shown}") from error
