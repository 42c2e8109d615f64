"""Whatever holds an image -> an RGB PIL image, or one sentence that says why not."""

# pyright: reportUnknownArgumentType=false
# An image may be Any, of which isinstance makes an array of unknown elements.

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .uris import MAX_BYTES, SCHEMES, FetchError, fetch, read_file, scheme_of

__all__ = ["MAX_PIXELS", "ImageError", "ImageSource", "decode", "is_encoded", "open_image", "read_encoded", "to_rgb"]

T = TypeVar("T")

#: str (path or URI), PathLike, bytes, a binary file object, PIL image, numpy array or tensor.
ImageSource = Any

MAX_PIXELS = 89_478_485  # Pillow's own threshold for a decompression bomb
# No format that runs a program (EPS), refers to other files or has no use for photographs.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")


class ImageError(ValueError):
    """Not an image that can be used; the message says why."""


def open_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS, **fetch_options: Any) -> Image.Image:
    """An upright 8-bit RGB image.

    EXIF orientation is applied; transparent pixels come to lie on white; 16-bit gray is scaled to 8 bits; of an
    animation the first frame is taken; embedded colour profiles are ignored, as torchvision ignores them.

    Args:
        source: a path, an http(s), data or file URI, encoded bytes, a binary file object, a PIL image, a uint8 array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a tensor (1, H, W) or (3, H, W), uint8 or float in 0..1.
        max_pixels: refuse more than this before decoding. (Pillow has a limit of its own, twice the default here.)
        fetch_options: see `uris.fetch`.

    Raises:
        ImageError: not an image, broken, too big, or of a kind that has no plain RGB form.
        FileNotFoundError, FetchError: it cannot be read.
    """
    torch = sys.modules.get("torch")  # a tensor can only come from a torch that is already imported
    if torch is not None and isinstance(source, torch.Tensor):
        if source.layout != torch.strided:
            raise ImageError(f"An image tensor is dense, not {source.layout}.")
        source = source.detach().cpu()
        source = _channels_last((source.float() if source.is_floating_point() else source).numpy())
    if isinstance(source, np.ndarray):
        return to_rgb(_from_array(source))
    if not isinstance(source, Image.Image):
        return decode(read_encoded(source, **fetch_options), max_pixels, to_rgb)
    try:
        return to_rgb(source)
    except (ValueError, OSError) as error:
        raise (
            error if isinstance(error, ImageError) else ImageError(f"The PIL image cannot be used: {error}.")
        ) from error


def is_encoded(source: ImageSource) -> bool:
    """Whether it is a file's content, or says where one is; else its pixels are there already."""
    torch = sys.modules.get("torch")
    return not isinstance(
        source, (np.ndarray, Image.Image) if torch is None else (np.ndarray, Image.Image, torch.Tensor)
    )


def read_encoded(source: ImageSource, **fetch_options: Any) -> bytes:
    """The bytes of an encoded image, of at most ``max_bytes``; the options and errors are those of `open_image`."""
    max_bytes = fetch_options.get("max_bytes", MAX_BYTES)
    if isinstance(source, str) and scheme_of(source) is not None:
        return fetch(source, **fetch_options)
    if isinstance(source, (str, os.PathLike)):
        if "file" not in fetch_options.get("schemes", SCHEMES):
            raise FetchError("Files of this machine are not to be read here.")
        return read_file(Path(source), max_bytes)
    data = source.read(max_bytes + 1) if hasattr(source, "read") else source
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ImageError(
            f"An image is a path, URI, bytes, PIL image, numpy array or tensor, not {type(source).__name__}."
        )
    if len(data) > max_bytes:
        raise ImageError(f"The image has more than {max_bytes:,} bytes.")
    return bytes(data)


def decode(data: bytes, max_pixels: int, use: Callable[[Image.Image], T]) -> T:
    """What ``use`` makes of the image, opened by Pillow, of an acceptable format and size, and not loaded yet.

    Raises:
        ImageError: for whatever is wrong with the data, also where ``use`` finds it.
    """
    if not data:
        raise ImageError("The image is empty: 0 bytes.")
    Image.init()
    try:
        with Image.open(io.BytesIO(data), formats=[f for f in FORMATS if f in Image.OPEN]) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(f"The image has {width} x {height} pixels, more than {max_pixels:,}.")
            return use(image)
    except UnidentifiedImageError as error:
        start = data[:64].lstrip().lower()
        # Nothing of the content is repeated: the URI may be a stranger's, and the file not for a stranger's eyes.
        hint = " It looks like a web page." if start.startswith((b"<!doctype", b"<html")) else ""
        raise ImageError(f"Not an image in one of the formats {', '.join(FORMATS)}.{hint}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"The image has more pixels than Pillow takes: {error}") from error
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        raise ImageError(f"The image is broken or cut short: {kind}{error}.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright, on white, RGB; loaded, if it was not.

    Raises:
        ImageError: it has no plain RGB form.
    """
    image.load()
    if min(image.size) < 1:
        raise ImageError(f"The image has no pixels: {image.width} x {image.height}.")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = _from_array(_sixteen_bits(np.asarray(image)))
    if image.mode == "F":
        raise ImageError("A floating-point image has no defined white; convert it to 8 bits first.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    try:
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"An image of mode {image.mode} has no plain RGB form: {error}") from error


def _sixteen_bits(values: np.ndarray) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"Integer pixels of {values.min()} to {values.max()} are not 16-bit; convert them to 8 bits.")
    return np.rint(values / 257).astype(np.uint8)


def _channels_last(values: np.ndarray) -> np.ndarray:
    if values.ndim != 3 or values.shape[0] not in (1, 3):
        raise ImageError(f"An image tensor is (1, H, W) or (3, H, W), got {tuple(values.shape)}.")
    return values.transpose(1, 2, 0)


def _from_array(values: np.ndarray) -> Image.Image:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)) or values.size == 0:
        raise ImageError(f"An image array is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {values.shape}.")
    if np.issubdtype(values.dtype, np.floating):
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ImageError(
                "Floating-point pixels must be in 0..1, and these are not. Already normalised? Call the network itself."
            )
        values = np.rint(values * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        raise ImageError(f"Pixels are uint8 (0..255) or floating point (0..1), not {values.dtype}.")
    return Image.fromarray(np.ascontiguousarray(values))
