"""What goes into an artefact and what comes out. Needs no torch: clients and servers read it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..models.manifest import Preprocessing
from ..mount import register

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Signature", "TensorSpec"]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor by name; ``dtype`` is numpy's name; ``shape`` is without the batch, which comes first and is free."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """Tensors of an artefact. They are the same in every precision: what is smaller than float32 stays inside.

    Args:
        crop_size, num_classes: the checkpoint's.
        preprocessing: take uint8 pixels (N, crop, crop, 3), resized and cropped, and normalise inside; otherwise
            normalised float32 images (N, 3, crop, crop).
        softmax: give probabilities instead of logits.
        top: give the best ``top`` scores, best first, and their classes (int64), instead of all.
    """

    crop_size: int
    num_classes: int
    preprocessing: bool = False
    softmax: bool = False
    top: int | None = None

    def __post_init__(self) -> None:
        if self.top is not None and not 1 <= self.top <= self.num_classes:
            raise ValueError(f"top must be from 1 to {self.num_classes}, got {self.top}.")

    @property
    def input(self) -> TensorSpec:
        crop = self.crop_size
        if self.preprocessing:
            return TensorSpec("pixels", "uint8", (crop, crop, 3))
        return TensorSpec("images", "float32", (3, crop, crop))

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        shape = (self.top or self.num_classes,)
        scores = TensorSpec("probabilities" if self.softmax else "logits", "float32", shape)
        return (scores, TensorSpec("classes", "int64", shape)) if self.top else (scores,)

    def input_of(self, pixels: np.ndarray, preset: Preprocessing) -> np.ndarray:
        """uint8 pixels (N, crop, crop, 3) -> what this signature's input takes."""
        from ..processing_utils.preprocessing import normalise

        return pixels if self.preprocessing else normalise(pixels, preset)


register(Signature, TensorSpec)
