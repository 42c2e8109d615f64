"""An image -> the pixels that a checkpoint was trained on. Pillow and numpy; torch if it is installed.

There are three grades. They are compared with torchvision's Resize and CenterCrop on a PIL image, in units of 1/255:

- "reference": equal.
- "close": at most 2 off, on average 0.002. simplejpeg decodes JPEG files and torch resizes, where they are installed.
- "fast": as "close", but JPEG files of five times the target size or more are decoded to half their size, as Pillow's
  `Image.draft` does. At most 2 off from the same resize of that half. docs/decisions.md has the differences from the
  full size.

An image that a faster grade cannot handle is processed as in the grade before it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError
from ..models.manifest import Preprocessing
from .images import ImageSource, decode, is_encoded, open_image, orientation_of, read_encoded, to_rgb
from .jpeg import can_halve, decode_jpeg

GRADES = ("reference", "close", "fast")
VIEWS = ("centre", "flip", "ten-crop")

HALVED = 5.0  # pixels of the image per pixel of the result, from which "fast" decodes to half the size
MAX_RESIZED = 89_478_485  # pixels of the resized image, before the crop


@dataclass(frozen=True)
class Window:
    """A square of ``crop`` pixels at (left, top) of an image of ``size``, once it is resized to ``scaled``.

    ``size`` and ``scaled`` are (width, height), as in Pillow.
    """

    size: tuple[int, int]
    scaled: tuple[int, int]
    left: int
    top: int
    crop: int

    def of(self, resized: np.ndarray) -> np.ndarray:
        """The crop of a resized image (H, W, 3), C-contiguous."""
        return np.array(resized[self.top : self.top + self.crop, self.left : self.left + self.crop], order="C")


def load_pixels(
    source: ImageSource,
    preset: Preprocessing,
    grade: str = "reference",
    *,
    max_pixels: int | None = None,
    truncated: str = "refuse",
    **fetch_options: Any,
) -> np.ndarray:
    """An image of any kind -> (crop, crop, 3) uint8 RGB, C-contiguous: shorter side resized, centre cropped.

    Args:
        source, max_pixels, truncated, fetch_options: see `images.open_image`.
        preset: the checkpoint's.
        grade: one of `GRADES`.

    Raises:
        ImageError, FileNotFoundError, FetchError: as `images.open_image`.
        ValueError: no such grade.
    """
    check_grade(grade)
    if grade == "reference" or not is_encoded(source):
        return crop_pixels(
            open_image(source, max_pixels=max_pixels, truncated=truncated, **fetch_options), preset, grade
        )
    data = read_encoded(source, **fetch_options)
    return decode(data, partial(_crop_encoded, data, preset, grade), max_pixels, truncated)


def crop_pixels(image: Image.Image, preset: Preprocessing, grade: str = "reference") -> np.ndarray:
    """RGB image -> (crop, crop, 3) uint8, C-contiguous: shorter side resized, centre cropped.

    Raises:
        ImageError: it is so long and thin that the resized image would be too big.
        ValueError: no such grade, or an image that is not RGB.
    """
    check_grade(grade)
    if image.mode != "RGB":
        raise ValueError(f"The image must be RGB, not {image.mode}: open it with open_image.")
    window = _window(image.size, preset)
    if grade != "reference" and _is_bilinear(window, preset):
        return window.of(_resize(np.asarray(image), window.scaled, image.size))
    if window.scaled != image.size:
        image = image.resize(window.scaled, Image.Resampling[preset.interpolation.upper()])
    right, bottom = window.left + window.crop, window.top + window.crop
    return np.array(image.crop((window.left, window.top, right, bottom)))


def view_pixels(image: Image.Image, preset: Preprocessing, views: str) -> np.ndarray:
    """RGB image -> (views, crop, crop, 3) uint8: several crops of one image, whose probabilities are to be averaged.

    Args:
        views: "centre", one; "flip", the centre and its mirror image; "ten-crop", the corners and the centre, and their
            mirror images (Krizhevsky et al. 2012; the pixels of torchvision's TenCrop after Resize).

    Raises as `crop_pixels`; for "ten-crop" also ImageError if the resized image is smaller than the crop.
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
        resized = f"Resized to {window.scaled[0]} x {window.scaled[1]} pixels"
        raise ImageError(f"{resized}, the image is smaller than the crop of {crop}.")
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

    The same numbers as torchvision's Resize, CenterCrop, ToTensor and Normalize. Raises as `crop_pixels`.
    """
    return normalise(crop_pixels(image, preset), preset)


def check_grade(grade: str) -> None:
    if grade not in GRADES:
        raise ValueError(f"Unknown grade {grade!r}; choose from {', '.join(GRADES)}.")


def _window(size: tuple[int, int], preset: Preprocessing) -> Window:
    """The place of the crop by torchvision's Resize and CenterCrop, with their rounding."""
    width, height = size
    short, target, crop = min(width, height), preset.resize_size, preset.crop_size
    scaled = (target, int(target * height / short)) if width <= height else (int(target * width / short), target)
    if scaled[0] * scaled[1] > MAX_RESIZED:
        raise ImageError(f"The image ({width} x {height} pixels) is too long and narrow to be resized to {target}.")
    # torchvision rounds what it cuts off to the nearest number, and what it pads on the left down.
    left, top = (round((side - crop) / 2) if side >= crop else -((crop - side) // 2) for side in scaled)
    return Window(size, scaled, left, top, crop)


def _is_bilinear(window: Window, preset: Preprocessing) -> bool:
    """True if `_resize` can do it: it has no other filter, and adds nothing around an image."""
    return preset.interpolation == "bilinear" and min(window.left, window.top) >= 0 and window.scaled != window.size


@cache
def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError:  # in Triton's Python, for example
        return None


def _resize(pixels: np.ndarray, scaled: tuple[int, int], size: tuple[float, float]) -> np.ndarray:
    """(H, W, 3) uint8 -> ``scaled``, by torch's antialiased kernel for bytes, or by Pillow if torch is not installed.

    Both round to bytes between their two passes, so each is at most 1.03 off the exact sum of the inputs, and one is at
    most 2 off the other. The pixels stand for ``size`` (width, height): less than the array's if a decoder rounded up.
    """
    if (torch := _torch()) is None:
        return np.asarray(Image.fromarray(pixels).resize(scaled, Image.Resampling.BILINEAR, box=(0, 0, *size)))
    # reshape gives the batch its own stride, by which torch sees that the channels come last, and is twice as fast.
    batch = (pixels if pixels.flags.writeable else pixels.copy()).reshape(1, *pixels.shape)
    images = torch.from_numpy(batch).permute(0, 3, 1, 2)
    resize = torch.ops.aten._upsample_bilinear2d_aa.default  # torch's interpolate takes a size or scales, not both
    resized = resize(images, scaled[::-1], False, scaled[1] / size[1], scaled[0] / size[0])
    return resized[0].permute(1, 2, 0).numpy()


def _crop_encoded(data: bytes, preset: Preprocessing, grade: str, image: Image.Image) -> np.ndarray:
    """The crop of a file that Pillow has opened and not loaded."""
    orientation = orientation_of(image)
    width, height = image.size
    turned = orientation in (5, 6, 7, 8)
    window = _window((height, width) if turned else (width, height), preset)
    if not _is_bilinear(window, preset):
        return crop_pixels(to_rgb(image), preset)
    half = grade == "fast" and _ratio(window) >= HALVED and can_halve(image)
    pixels = decode_jpeg(data, image, half=half)
    if pixels is None:
        return crop_pixels(to_rgb(image), preset, grade)
    size = (width / 2, height / 2) if half else (width, height)
    across, down = window.scaled
    return window.of(_upright(_resize(pixels, (down, across) if turned else (across, down), size), orientation))


def _ratio(window: Window) -> float:
    """Pixels of the image per pixel of the result, on the axis where they are fewer."""
    return min(window.size[0] / window.scaled[0], window.size[1] / window.scaled[1])


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of the pixels, turned as EXIF says, like `ImageOps.exif_transpose`."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
