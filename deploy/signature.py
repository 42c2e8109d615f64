"""The inputs and outputs of an artefact. Imports no torch: clients and servers use it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..models.manifest import Preprocessing
from ..mount import register

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class TensorSpec:
    """The name, NumPy dtype and shape of a tensor. The shape excludes the batch; None is a free dimension."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Signature:
    """The tensors of an artefact. They are the same in every precision: smaller types stay inside.

    By default, normalised float32 images (N, 3, crop, crop) are the input, and logits the output.
    """

    crop_size: int  #: the checkpoint's
    num_classes: int
    preprocessing: bool = False  #: take uint8 pixels (N, crop, crop, 3), resized and cropped, and normalise inside
    resize: bool = False  #: take uint8 pixels (N, height, width, 3) of any size; also resize and crop inside
    softmax: bool = False  #: return probabilities instead of logits
    multi_label: bool = False  #: the probabilities are sigmoids, since an image may show several classes
    top: int | None = None  #: return so many scores, best first, and their classes (int64), instead of all scores

    def __post_init__(self) -> None:
        if self.top is not None and not 1 <= self.top <= self.num_classes:
            raise ValueError(f"top must be from 1 to {self.num_classes}, got {self.top}.")
        if self.resize and not self.preprocessing:
            raise ValueError("resize=True needs preprocessing=True.")

    @property
    def input(self) -> TensorSpec:
        crop = self.crop_size
        if self.preprocessing:
            return TensorSpec("pixels", "uint8", (None, None, 3) if self.resize else (crop, crop, 3))
        return TensorSpec("images", "float32", (3, crop, crop))

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        shape = (self.top or self.num_classes,)
        scores = TensorSpec("probabilities" if self.softmax else "logits", "float32", shape)
        return (scores, TensorSpec("classes", "int64", shape)) if self.top else (scores,)

    def inputs_of(self, pixels: np.ndarray, preset: Preprocessing) -> np.ndarray:
        """Convert uint8 pixels (N, height, width, 3) to the form of this signature's input."""
        from ..processing_utils.preprocessing import normalise

        return pixels if self.preprocessing else normalise(pixels, preset)


register(Signature, TensorSpec)
