"""A training recipe: typed, read from TOML, recorded beside every checkpoint."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["Phase", "Recipe", "load_recipe"]


@dataclasses.dataclass(frozen=True)
class Phase:
    """A run of epochs at one image size (progressive resizing: small, cheap images first)."""

    epochs: int
    image_size: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, given the data.

    ``lr`` is the peak learning rate for ``batch_size`` images; it rises linearly for ``warmup_epochs`` and falls to
    zero on a cosine (Loshchilov & Hutter 2016, arXiv 1608.03983). ``weight_decay`` is not applied to BatchNorm and
    biases. ``ema_decay`` is per step (0: no average).
    """

    architecture: str
    phases: tuple[Phase, ...]
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-5
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    crop_scale: tuple[float, float] = (0.35, 1.0)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    bf16: bool = False
    seed: int = 0

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    def image_size(self, epoch: int) -> int:
        """Image size, in pixels, of an epoch counted from 0."""
        for phase in self.phases:
            if epoch < phase.epochs:
                return phase.image_size
            epoch -= phase.epochs
        raise IndexError(f"the recipe has {self.epochs} epochs")

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a TOML file, with ``overrides`` on top.

    Raises:
        ValueError: a key that no recipe has, or one that is missing.
    """
    with open(path, "rb") as file:
        values: dict[str, Any] = tomllib.load(file) | dict(overrides or {})
    known = {field.name for field in dataclasses.fields(Recipe)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"{path}: unknown recipe keys {unknown}; known are {sorted(known)}.")
    try:
        values["phases"] = tuple(Phase(**phase) for phase in values["phases"])
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Recipe(**arguments)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a recipe: {error}.") from error
