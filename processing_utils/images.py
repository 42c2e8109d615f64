"""Whatever holds an image -> an RGB PIL image, or one sentence that says why not."""

# pyright: reportUnknownArgumentType=false
# An image may be Any, of which isinstance makes an array of unknown elements.

from __future__ import annotations

import io
import os
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeGuard, TypeVar

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from ..errors import FetchError, ImageError
from .uris import MAX_BYTES, SCHEMES, fetch, read_file, scheme_of

if TYPE_CHECKING:
    import torch

__all__ = [
    "MAX_PIXELS",
    "ImageSource",
    "Pixels",
    "SingleImage",
    "decode",
    "is_encoded",
    "is_tensor",
    "open_image",
    "orientation_of",
    "read_encoded",
    "to_rgb",
    "with_name",
]

T = TypeVar("T")


class BinaryFile(Protocol):
    """An open file: ``open(path, "rb")``, ``io.BytesIO``, an HTTP response."""

    def read(self, size: int, /) -> bytes: ...


#: Always one image: a path or URI, encoded bytes, an open file, a PIL image.
SingleImage: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image"
#: ... or pixels, which are one image or, with another dimension in front, a batch.
Pixels: TypeAlias = "np.ndarray | torch.Tensor"
ImageSource: TypeAlias = "SingleImage | Pixels"

MAX_PIXELS = 89_478_485  # Pillow's own threshold for a decompression bomb
# No format that runs a program (EPS), refers to other files or has no use for photographs.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

# What people take for a photo and is none of these, by how it begins (in lower case).
LOOKS = {
    rb"<!doctype|<html": "It looks like a web page.",
    rb"(?s).{4}ftyp(hei|hev|mif1|msf1)": "It looks like HEIC: save it as JPEG, or open it with pillow-heif.",
    rb"%pdf-": "It looks like a PDF: extract the image from it.",
    rb"%!ps|\xc5\xd0\xd3\xc6": "It looks like PostScript, which is a program: save it as PNG.",
    rb"<svg|<\?xml": "It looks like SVG: save it as PNG.",
    rb"(?s)8bps|.{4}jp  \r\n|\xffo\xffq|\x00\x00\x01\x00": "It looks like PSD, JPEG 2000 or ICO: save it as PNG.",
}

# The header of a scan is as long as its number of components says, or libjpeg refuses it.
SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")

# Work that a small file can ask for without bounds. Files of cameras and programs stay far below.
MAX_READS = 1_000_000  # of Pillow, a few bytes each: chunks, markers, runs of pixels that it takes one by one
MAX_SCANS = 100  # of a progressive JPEG, each a pass over all pixels; programs write ten or so

ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
    if is_tensor(source):
        import torch  # no cost: a tensor is here, so it is imported already

        if source.layout != torch.strided:
            raise ImageError(f"An image tensor must be dense, not {source.layout}.")
        source = source.detach().cpu()
        source = _channels_last((source.float() if source.is_floating_point() else source).numpy())
    if isinstance(source, np.ndarray):
        return to_rgb(_from_array(source))
    if not isinstance(source, Image.Image):
        return decode(read_encoded(source, **fetch_options), max_pixels, to_rgb)
    try:
        return to_rgb(source)
    except ImageError:
        raise
    except Exception as error:  # it may be of a file, and Pillow's decoders raise nearly anything on a broken one
        raise ImageError(f"The PIL image cannot be used: {error}.") from error


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """True for a tensor. Imports no torch: a tensor can only come from a torch that is imported already."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def with_name(name: str, error: object) -> str:
    """The error's message, preceded by the image's name unless the message contains it."""
    text = str(error)
    return text if name.removeprefix("./") in text else f"{name[:200]}: {text}"


def is_encoded(source: ImageSource) -> bool:
    """Whether it is a file's content, or says where one is; else its pixels are there already."""
    return not (isinstance(source, (np.ndarray, Image.Image)) or is_tensor(source))


def read_encoded(source: ImageSource, **fetch_options: Any) -> bytes:
    """The bytes of an encoded image, of at most ``max_bytes``; the options and errors are those of `open_image`."""
    max_bytes = fetch_options.get("max_bytes", MAX_BYTES)
    if isinstance(source, str) and scheme_of(source) is not None:
        return fetch(source, **fetch_options)
    if isinstance(source, (str, os.PathLike)):
        if "file" not in fetch_options.get("schemes", SCHEMES):
            raise FetchError("Files on this machine may not be read here.")
        return read_file(Path(source), max_bytes)
    read = getattr(source, "read", None)
    data = source if read is None else read(max_bytes + 1)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ImageError(
            f"An image must be a path, URI, bytes, PIL image, numpy array or tensor, not {type(source).__name__}."
        )
    if len(data) > max_bytes:
        raise ImageError(f"The image has more than the {max_bytes:,} bytes allowed.")
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
        if data[:2] in (b"II", b"MM") and _strips(data) > MAX_READS:
            raise ImageError(f"The image consists of more than {MAX_READS:,} pieces: save it as PNG.")
        with Image.open(_Rationed(data), formats=[f for f in FORMATS if f in Image.OPEN]) as image:
            _check_size(image, data, max_pixels)
            return use(image)
    except UnidentifiedImageError as error:
        start = data[:64].lstrip().lower()
        # Nothing of the content is repeated: the URI may be a stranger's, and the file not for a stranger's eyes.
        hint = "".join(f" {look}" for pattern, look in LOOKS.items() if re.match(pattern, start))
        raise ImageError(f"Not an image in a supported format ({', '.join(FORMATS)}).{hint}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"The image has more pixels than Pillow accepts: {error}") from error
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        raise ImageError(f"The image is corrupt or incomplete: {kind}{error}.") from error


class _Rationed(io.BytesIO):
    """A file of which only so many pieces are read: Pillow takes some kinds of file apart byte by byte, in Python."""

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS:
            raise ImageError(f"The image consists of more than {MAX_READS:,} pieces: save it as PNG.")
        return super().read(size)


def _strips(data: bytes) -> int:
    """Of how many strips or tiles a TIFF is made. Pillow makes an object of each as it opens the file."""
    order, big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
    count, entry = order + ("Q" if big else "H"), struct.Struct(order + ("HHQ8x" if big else "HHL4x"))
    strips = 0
    try:
        (at,) = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)
        (entries,) = struct.unpack_from(count, data, at)
        for number in range(min(entries, len(data))):
            tag, _, values = entry.unpack_from(data, at + struct.calcsize(count) + number * entry.size)
            if tag in (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS):
                strips = max(strips, values)
    except (struct.error, OverflowError):  # it ends there; Pillow says so
        pass
    return strips


def _check_size(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Before anything is decoded."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"The image has {width} x {height} pixels, more than the {max_pixels:,} allowed.")
    if "progressive" in image.info and len(SCAN.findall(data)) > MAX_SCANS:
        raise ImageError(f"The JPEG has more than {MAX_SCANS} scans: save it as a baseline JPEG or PNG.")
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # a tile is decoded whole, however little of it is wanted
        across, down = (image.tag_v2.get(tag, 0) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH))
        if across * down > max_pixels:
            raise ImageError(f"The TIFF has tiles of {across} x {down} pixels, more than the {max_pixels:,} allowed.")


def orientation_of(image: Image.Image) -> int:
    """How EXIF (or XMP) says that the image is to be turned, 1 to 8; 1, upright, if it cannot be read.

    `ImageOps.exif_transpose` writes all of EXIF anew, and refuses photos whose other tags it cannot write.
    """
    if image.format == "PNG":
        image.load()  # getexif does it, as EXIF may stand behind the pixels; that they are broken is not to be missed
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
        return int(orientation) if orientation in TURNS else 1
    except Exception:  # Pillow's parser raises nearly anything; whoever shows photos shows such a one as it is
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright, on white, RGB; loaded, if it was not.

    Raises:
        ImageError: it has no plain RGB form.
    """
    image.load()
    if min(image.size) < 1:
        raise ImageError(f"The image has no pixels: {image.width} x {image.height}.")
    if (orientation := orientation_of(image)) in TURNS:
        image = image.transpose(TURNS[orientation])
    if image.mode.startswith("I"):
        image = _from_array(_sixteen_bits(np.asarray(image)))
    if image.mode == "F":
        raise ImageError("A floating-point image (mode F) has no defined white: convert it to 8 bits first.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    try:
        result = image.convert("RGB")  # a copy, if it was RGB
    except ValueError as error:
        raise ImageError(f"An image of mode {image.mode} cannot be converted to RGB: {error}") from error
    result.info = {}  # what is said there of turning and of transparency has been done
    return result


def _sixteen_bits(values: np.ndarray) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"Integer pixels from {values.min()} to {values.max()} are not 16-bit: convert them to 8 bits."
        )
    values = values.astype(np.uint32)  # not to float64, which takes four times a photo's memory
    values += 128
    values //= 257  # to the nearest of 255 steps; no value lies between two
    return values.astype(np.uint8)


def _channels_last(values: np.ndarray) -> np.ndarray:
    if values.ndim != 3 or values.shape[0] not in (1, 3):
        raise ImageError(f"An image tensor must have the shape (1, H, W) or (3, H, W), got {tuple(values.shape)}.")
    return values.transpose(1, 2, 0)


def _from_array(values: np.ndarray) -> Image.Image:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)) or values.size == 0:
        raise ImageError(
            f"An image array must have the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {values.shape}."
        )
    if np.issubdtype(values.dtype, np.floating):
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ImageError(
                "Floating-point pixels must be from 0 to 1. If the image is already normalised, call the network "
                "itself."
            )
        values = np.rint(values * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        raise ImageError(f"Pixels must be uint8 (0 to 255) or floating point (0 to 1), not {values.dtype}.")
    return Image.fromarray(np.ascontiguousarray(values))
