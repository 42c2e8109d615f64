"""A JPEG file -> an array, the quickest way that is here: simplejpeg if it is installed, else Pillow."""

from __future__ import annotations

import importlib
import math
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin

__all__ = ["FACTORS", "can_shrink", "decode_jpeg"]

#: What the decoder can shrink by on the way: the means of squares of so many pixels (libjpeg's jidctred.c).
FACTORS = (4, 2)


def decode_jpeg(data: bytes, image: Image.Image, factor: int = 1) -> np.ndarray | None:
    """(ceil(H / factor), ceil(W / factor), 3) uint8, not turned by EXIF; None if it is not for here.

    Args:
        data: the file.
        image: the same, opened by Pillow and found to be of an acceptable size, not loaded.
        factor: 1, or one of `FACTORS` where `can_shrink`; both sides have factor² pixels or more.

    Raises:
        Exception: whatever Pillow raises on a broken file.
    """
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
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
    if factor > 1:
        image.draft(None, (width // factor, height // factor))
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return pixels if pixels.shape == size else None


def can_shrink(image: Image.Image) -> bool:
    """Whether the decoder makes the same means of the colours as of the brightness.

    It does where both are stored at one resolution (4:4:4, gray) or the colours at half of it in both directions
    (4:2:0). Otherwise it halves the colours once more and interpolates, and that shows (up to 28 of 255 at an edge).
    """
    return image.mode == "L" or (image.mode == "RGB" and JpegImagePlugin.get_sampling(image) in (0, 2))


@cache
def _simplejpeg() -> Any:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None
