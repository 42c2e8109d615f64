"""An RGB image -> the numbers that a checkpoint was trained on. Pillow and numpy; no torch."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..models.manifest import Preprocessing
from .images import MAX_PIXELS, ImageError, open_image

__all__ = ["preprocess"]


def crop_pixels(image: Image.Image, preset: Preprocessing) -> np.ndarray:
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
    return np.array(image.crop((left, top, left + crop, top + crop)))


def load_pixels(source, preset, grade="reference", **options):
    return crop_pixels(open_image(source, **options), preset)


def preprocess(image, preset):
    return normalise(crop_pixels(image, preset), preset)


def normalise(pixels: np.ndarray, preset: Preprocessing) -> np.ndarray:
    values = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C")
    values /= np.float32(255)
    values -= np.asarray(preset.mean, np.float32)[:, None, None]
    values /= np.asarray(preset.std, np.float32)[:, None, None]
    return values
