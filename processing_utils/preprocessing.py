"""An RGB image -> the numbers that a checkpoint was trained on. Pillow and numpy; no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ..models.manifest import Preprocessing
from .images import MAX_PIXELS, ImageError, open_image

__all__ = ["load_pixels", "preprocess"]


def preprocess(image: Image.Image, preset: Preprocessing) -> np.ndarray:
    """RGB image -> (3, crop, crop) float32: shorter side resized, centre cropped, scaled to 0..1, normalised.

    The same numbers as torchvision's Resize, CenterCrop, ToTensor and Normalize on a PIL image.

    Raises:
        ImageError: so long and thin that the resized image would be too big.
    """
    pixels = np.asarray(_resized(image, preset), dtype=np.float32) / np.float32(255)
    normalised = (pixels - np.asarray(preset.mean, np.float32)) / np.asarray(preset.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def _resized(image: Image.Image, preset: Preprocessing) -> Image.Image:
    width, height = image.size
    short, size = min(width, height), preset.resize_size
    scaled = (size, int(size * height / short)) if width <= height else (int(size * width / short), size)
    if scaled[0] * scaled[1] > MAX_PIXELS:
        raise ImageError(f"An image of {width} x {height} pixels is too long and thin to be resized to {size}.")
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling[preset.interpolation.upper()])
    crop = preset.crop_size
    left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
    return image.crop((left, top, left + crop, top + crop))


def load_pixels(source_bytes: bytes, preset: Preprocessing, grade: str = "close", **open_options: Any) -> np.ndarray:
    """Encoded bytes -> (crop, crop, 3) uint8: what `preprocess` normalises."""
    return np.asarray(_resized(open_image(source_bytes, **open_options), preset))
