"""An RGB image -> the numbers that a checkpoint was trained on. Pillow and numpy; no torch."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..models.manifest import Preprocessing
from .images import MAX_PIXELS, ImageError

__all__ = ["preprocess"]


def preprocess(image: Image.Image, preset: Preprocessing) -> np.ndarray:
    """RGB image -> (3, crop, crop) float32: shorter side resized, centre cropped, scaled to 0..1, normalised.

    The same numbers as torchvision's Resize, CenterCrop, ToTensor and Normalize on a PIL image.

    Raises:
        ImageError: so long and thin that the resized image would be too big.
    """
    width, height = image.size
    short, size = min(width, height), preset.resize_size
    scaled = (size, int(size * height / short)) if width <= height else (int(size * width / short), size)
    if scaled[0] * scaled[1] > MAX_PIXELS:
        raise ImageError(f"An image of {width} x {height} pixels is too long and thin to be resized to {size}.")
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling[preset.interpolation.upper()])
    crop = preset.crop_size
    left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
    pixels = np.asarray(image.crop((left, top, left + crop, top + crop)), dtype=np.float32) / np.float32(255)
    normalised = (pixels - np.asarray(preset.mean, np.float32)) / np.asarray(preset.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))
