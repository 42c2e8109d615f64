"""Decode a JPEG file to an array: with simplejpeg if it is installed, else with Pillow. Both use libjpeg-turbo."""

from __future__ import annotations

import importlib
import math
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin


def decode_jpeg(data: bytes, image: Image.Image, *, half: bool = False) -> np.ndarray | None:
    """Decode to (H, W, 3) uint8, not turned by EXIF; None if this is not an RGB or gray JPEG. Raises as Pillow.

    Args:
        data: the file.
        image: the same file, opened by Pillow and not loaded, its size checked.
        half: decode to (ceil(H / 2), ceil(W / 2), 3), the means of squares of 2 x 2 pixels (libjpeg's jidctred.c). Only
            where `can_halve`.
    """
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    factor = 2 if half else 1
    width, height = image.size
    size = (math.ceil(height / factor), math.ceil(width / factor), 3)
    if (simplejpeg := _simplejpeg()) is not None:
        try:
            pixels = simplejpeg.decode_jpeg(
                data, "RGB", min_height=height // factor, min_width=width // factor, min_factor=factor, strict=True
            )
        except ValueError:
            pass  # Pillow decides what is broken, and what only looks odd
        else:
            if pixels.shape == size:
                return pixels
    if half:
        image.draft(None, (width // 2, height // 2))
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return pixels if pixels.shape == size else None


def can_halve(image: Image.Image) -> bool:
    """True if the decoder halves colours as it halves the brightness.

    It does if both are stored at one resolution (4:4:4, gray), or the colours at half of it in both directions (4:2:0).
    Otherwise it halves the colours again and interpolates, which shows at edges (up to 28 of 255).
    """
    return image.mode == "L" or (image.mode == "RGB" and JpegImagePlugin.get_sampling(image) in (0, 2))


@cache
def _simplejpeg() -> Any:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None
