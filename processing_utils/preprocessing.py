"""An image -> the numbers that a checkpoint was trained on, as exact as wanted. Pillow and numpy; no torch.

Three grades, in units of 1/255 from what torchvision's Resize and CenterCrop give on a PIL image:

- "reference": the same numbers.
- "close": at most 1 off. The crop alone is resized, and JPEG files are decoded by simplejpeg where that is installed.
- "fast": at most 2 off; at most 6 in photos so large that the JPEG decoder shrinks them on the way.

What a grade's own way cannot do goes the way of the grade before it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError
from ..models.manifest import Preprocessing
from .images import MAX_PIXELS, ImageSource, decode, is_encoded, open_image, orientation_of, read_encoded, to_rgb
from .jpeg import FACTORS, can_shrink, decode_jpeg
from .resampling import FILTERS, Window, resize_window

__all__ = ["GRADES", "VIEWS", "crop_pixels", "load_pixels", "normalise", "preprocess", "view_pixels"]

GRADES = ("reference", "close", "fast")
VIEWS = ("centre", "flip", "ten-crop")

# The decoder may shrink a photo as long as so many of its pixels are left for one of the result; otherwise what it
# averages away shows (docs/decisions.md). A photo of many pixels is not sharp to the pixel and may have fewer left.
LEFT_PER_PIXEL, LEFT_IF_LARGE, LARGE = 3.0, 2.5, 2048


def load_pixels(
    source: ImageSource,
    preset: Preprocessing,
    grade: str = "reference",
    *,
    max_pixels: int = MAX_PIXELS,
    **fetch_options: Any,
) -> np.ndarray:
    """An image of any kind -> (crop, crop, 3) uint8 RGB, C-contiguous: shorter side resized, centre cropped.

    Args:
        source, max_pixels, fetch_options: see `images.open_image`.
        preset: the checkpoint's.
        grade: one of `GRADES`.

    Raises:
        ImageError, FileNotFoundError, FetchError: as `images.open_image`.
        ValueError: no such grade.
    """
    _check(grade)
    if grade == "reference" or not is_encoded(source):
        return crop_pixels(open_image(source, max_pixels=max_pixels, **fetch_options), preset, grade)
    data = read_encoded(source, **fetch_options)
    return decode(data, max_pixels, partial(_crop_encoded, data, preset, grade))


def crop_pixels(image: Image.Image, preset: Preprocessing, grade: str = "reference") -> np.ndarray:
    """RGB image -> (crop, crop, 3) uint8, C-contiguous: shorter side resized, centre cropped.

    Raises:
        ImageError: so long and thin that the resized image would be too big.
        ValueError: no such grade, or an image that is not RGB.
    """
    _check(grade)
    if image.mode != "RGB":
        raise ValueError(f"The image must be RGB, not {image.mode}: open it with open_image.")
    window = _window(image.size, preset)
    if grade != "reference" and _is_resized_here(window, preset):
        return resize_window(np.asarray(image), window, preset.interpolation)
    if window.scaled != image.size:
        image = image.resize(window.scaled, Image.Resampling[preset.interpolation.upper()])
    right, bottom = window.left + window.crop, window.top + window.crop
    return np.array(image.crop((window.left, window.top, right, bottom)))


def view_pixels(image: Image.Image, preset: Preprocessing, views: str) -> np.ndarray:
    """RGB image -> (views, crop, crop, 3) uint8: several crops of one image, whose probabilities are to be averaged.

    Args:
        views: "centre", one; "flip", the centre and its mirror image; "ten-crop", the corners and the centre, and their
            mirror images (Krizhevsky et al. 2012; the pixels of torchvision's TenCrop after Resize).

    Raises:
        ImageError: so long and thin that the resized image would be too big; for "ten-crop" also smaller than the crop
            when resized.
        ValueError: no such views, or an image that is not RGB.
    """
    if views not in VIEWS:
        raise ValueError(f"Unknown views {views!r}; choose from {', '.join(VIEWS)}.")
    centre = crop_pixels(image, preset)
    if views == "centre":
        return centre[None]
    if views == "flip":
        return np.stack([centre, centre[:, ::-1]])
    window, crop = _window(image.size, preset), preset.crop_size
    right, bottom = window.scaled[0] - crop, window.scaled[1] - crop
    if min(right, bottom) < 0:
        raise ImageError(
            f"Resized to {window.scaled[0]} x {window.scaled[1]} pixels, the image is smaller than the crop of {crop}."
        )
    resized = np.asarray(image.resize(window.scaled, Image.Resampling[preset.interpolation.upper()]))
    places = [(0, 0), (right, 0), (0, bottom), (right, bottom), (window.left, window.top)]
    mirrored = (resized, resized[:, ::-1])
    return np.stack([side[top : top + crop, left : left + crop] for side in mirrored for left, top in places])


def normalise(pixels: np.ndarray, preset: Preprocessing) -> np.ndarray:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) float32: the numbers of torchvision's ToTensor and Normalize."""
    values = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C")
    values /= np.float32(255)
    values -= np.asarray(preset.mean, np.float32)[:, None, None]
    values /= np.asarray(preset.std, np.float32)[:, None, None]
    return values


def preprocess(image: Image.Image, preset: Preprocessing) -> np.ndarray:
    """RGB image -> (3, crop, crop) float32: shorter side resized, centre cropped, scaled to 0..1, normalised.

    The same numbers as torchvision's Resize, CenterCrop, ToTensor and Normalize on a PIL image.

    Raises:
        ImageError: so long and thin that the resized image would be too big.
    """
    return normalise(crop_pixels(image, preset), preset)


def _check(grade: str) -> None:
    if grade not in GRADES:
        raise ValueError(f"Unknown grade {grade!r}; choose from {', '.join(GRADES)}.")


def _window(size: tuple[int, int], preset: Preprocessing) -> Window:
    """Where torchvision's Resize and CenterCrop put the crop, roundings included."""
    width, height = size
    short, target, crop = min(width, height), preset.resize_size, preset.crop_size
    scaled = (target, int(target * height / short)) if width <= height else (int(target * width / short), target)
    if scaled[0] * scaled[1] > MAX_PIXELS:
        raise ImageError(f"The image ({width} x {height} pixels) is too long and narrow to be resized to {target}.")
    # torchvision rounds what it cuts off to the nearest number, and what it pads on the left down.
    left, top = (round((side - crop) / 2) if side >= crop else -((crop - side) // 2) for side in scaled)
    return Window(size, scaled, left, top, crop)


def _is_resized_here(window: Window, preset: Preprocessing) -> bool:
    return preset.interpolation in FILTERS and window.is_inside and window.scaled != window.size


def _crop_encoded(data: bytes, preset: Preprocessing, grade: str, image: Image.Image) -> np.ndarray:
    """The crop of a file that Pillow has opened and not loaded."""
    orientation = orientation_of(image)
    width, height = image.size
    window = _window((height, width) if orientation in (5, 6, 7, 8) else (width, height), preset)
    if not _is_resized_here(window, preset):
        return crop_pixels(to_rgb(image), preset)
    factor = _factor(window, orientation == 1) if grade == "fast" and can_shrink(image) else 1
    pixels = decode_jpeg(data, image, factor)
    if pixels is None:
        return crop_pixels(to_rgb(image), preset, grade)
    return resize_window(_upright(pixels, orientation), window, preset.interpolation, factor=factor)


def _factor(window: Window, upright: bool) -> int:
    """By how much the JPEG decoder may shrink the photo."""
    short = min(window.size)
    left = LEFT_IF_LARGE if short >= LARGE else LEFT_PER_PIXEL
    for factor in FACTORS:
        # A mirrored photo begins with the decoder's last square, which is cut off unless the sides divide.
        fits = upright or not (window.size[0] % factor or window.size[1] % factor)
        if fits and window.scale >= left * factor and short >= factor**2:
            return factor
    return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of the pixels, turned as EXIF says; as `ImageOps.exif_transpose`."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
