"""Turn anything that holds an image into an RGB PIL image, or say in one sentence why that is not possible."""

# pyright: reportUnknownArgumentType=false
# An image may be Any, of which isinstance makes an array of unknown elements.

from __future__ import annotations

import ctypes
import importlib
import io
import os
import re
import struct
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeGuard, TypeVar

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from ..errors import FetchError, ImageError, TruncatedImageError
from .uris import MAX_BYTES, SCHEMES, fetch, read_file, scheme_of

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class BinaryFile(Protocol):
    """An open file: ``open(path, "rb")``, ``io.BytesIO``, an HTTP response."""

    def read(self, size: int, /) -> bytes: ...


#: Always one image: a path or URI, encoded bytes, an open file, a PIL image.
SingleImage: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image"
#: ... or pixels, which are one image or, with another dimension in front, a batch.
Pixels: TypeAlias = "np.ndarray | torch.Tensor"
ImageSource: TypeAlias = "SingleImage | Pixels"

MAX_MEMORY = 2 * 2**30  # bytes that decoding one image may take: JPEGs of 268 megapixels, others of 134
LARGE = 2**28  # bytes from which images are decoded one at a time, however many threads there are
TRUNCATED = ("refuse", "keep")
# No format that runs a program (EPS), refers to other files or has no use for photographs.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

HEIC = rb"(?s).{4}ftyp(hei|hev|mif1|msf1)"
# Files that people take for photos and that are none of these, by how they begin (in lower case).
LOOKS = {
    rb"<!doctype|<html": "It looks like a web page.",
    HEIC: "It looks like HEIC: run 'pip install pillow-heif', or save it as JPEG.",
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
MAX_HEADER = 8 * 2**20  # bytes before the pixels: Pillow's time for comments (before 13) and for EXIF is quadratic
MAX_RLE_WIDTH = 65_535  # of a run-length encoded BMP: Pillow before 13 adds up to 256 lines for 4 bytes of the file

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


def open_image(
    source: ImageSource, *, max_pixels: int | None = None, truncated: str = "refuse", **fetch_options: Any
) -> Image.Image:
    """An upright 8-bit RGB image.

    EXIF orientation is applied; transparent pixels are put on white; 16-bit gray is scaled to 8 bits; of an animation
    the first frame is taken; embedded colour profiles are ignored, as torchvision ignores them.

    Args:
        source: a path, an http(s), data or file URI, encoded bytes, a binary file object, a PIL image, a uint8 array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a tensor (1, H, W) or (3, H, W), uint8 or float in 0..1. The
            colours are RGB: of an array from OpenCV (BGR) pass ``array[:, :, ::-1]``.
        max_pixels: refuse a file with more than this before it is decoded. By default, memory decides: files that take
            more than 2 GiB to decode (`MAX_MEMORY`) are refused.
        truncated: "refuse" or "keep" a JPEG that is cut off. If it is kept, the missing part is gray.
        fetch_options: see `uris.fetch`.

    Raises:
        TruncatedImageError: a JPEG that is cut off, and that ``truncated="keep"`` reads.
        ImageError: not an image, broken, too big, or of a kind that has no plain RGB form.
        FileNotFoundError, FetchError: it cannot be read.
    """
    check_truncated(truncated)
    if is_tensor(source):
        import torch  # no cost: a tensor is here, so it is imported already

        if source.layout != torch.strided:
            raise ImageError(f"An image tensor must be dense, not {source.layout}.")
        if source.ndim != 3 or source.shape[0] not in (1, 3):
            raise ImageError(f"An image tensor must have the shape (1, H, W) or (3, H, W), got {tuple(source.shape)}.")
        source = source.detach().cpu().permute(1, 2, 0)
        source = (source.float() if source.is_floating_point() else source).numpy()
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    if not isinstance(source, Image.Image):
        return decode(read_encoded(source, **fetch_options), to_rgb, max_pixels, truncated)
    try:
        return to_rgb(source)
    except ImageError:
        raise
    except Exception as error:  # it may be of a file, and Pillow's decoders raise nearly anything on a broken one
        raise ImageError(f"The PIL image cannot be used: {error}.") from error


def check_truncated(truncated: str) -> None:
    if truncated not in TRUNCATED:
        raise ValueError(f"truncated must be one of {', '.join(TRUNCATED)}, got {truncated!r}.")


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """True for a tensor. Imports no torch: a tensor can only come from a torch that is imported already."""
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)  # None while another thread imports torch
    return tensor is not None and isinstance(value, tensor)


def with_name(name: str, error: object) -> str:
    """The error's message, preceded by the image's name unless the message contains it."""
    text = str(error)
    return text if name.removeprefix("./") in text else f"{name[:200]}: {text}"


def is_encoded(source: ImageSource) -> bool:
    """True if it is the content of a file or names one. Otherwise it has its pixels already."""
    return not (isinstance(source, (np.ndarray, Image.Image)) or is_tensor(source))


def read_encoded(source: ImageSource, **fetch_options: Any) -> bytes:
    """The bytes of an encoded image, at most ``max_bytes``. Options and errors are those of `open_image`."""
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
        kind = type(source).__name__
        raise ImageError(f"An image must be a path, URI, bytes, PIL image, numpy array or tensor, not {kind}.")
    if len(data) > max_bytes:
        raise ImageError(f"The image has more than the {max_bytes:,} bytes allowed.")
    return bytes(data)


def decode(data: bytes, use: Callable[[Image.Image], T], max_pixels: int | None = None, truncated: str = "refuse") -> T:
    """The result of ``use`` on the image, opened by Pillow and not loaded, of an acceptable format and size.

    Raises ImageError for whatever is wrong with the data, also if ``use`` finds it.
    """
    if not data:
        raise ImageError("The image is empty: 0 bytes.")
    is_jpeg = data[:2] == b"\xff\xd8"
    if is_jpeg and truncated == "keep":
        data += b"\xff\xd9"  # libjpeg then fills up what is missing
    try:
        image = _open(data)
        if "progressive" in image.info and len(SCAN.findall(data)) > MAX_SCANS:
            raise ImageError(f"The JPEG has more than {MAX_SCANS} scans: save it as a baseline JPEG or PNG.")
        with _check_size(image, max_pixels):
            return use(image)
    except UnidentifiedImageError as error:
        start = data[:64].lstrip().lower()
        # The message repeats nothing of the content: a stranger who chose the URI must not see the file.
        hint = "".join(f" {look}" for pattern, look in LOOKS.items() if re.match(pattern, start))
        raise ImageError(f"Not an image in a supported format ({', '.join(FORMATS)}).{hint}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # of a frame
        raise ImageError(f"The image has more pixels than Pillow accepts: {error}") from error
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        if is_jpeg and str(error).startswith("image file is truncated"):
            raise TruncatedImageError("The image is corrupt or incomplete: the end of the JPEG is missing.") from error
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        raise ImageError(f"The image is corrupt or incomplete: {kind}{error}.") from error


def _open(data: bytes) -> Image.Image:
    """Do what `Image.open` does, without its limit on pixels: programs may set it, and it warns before it refuses."""
    if (data[:2] in (b"II", b"MM") and _strips(data) > MAX_READS) or _rle_width(data) > MAX_RLE_WIDTH:
        raise ImageError(f"The image consists of more than {MAX_READS:,} pieces: save it as PNG.")
    Image.init()
    for factory, accept in [Image.OPEN[name] for name in FORMATS if name in Image.OPEN] + _heif(data):
        try:
            if accept is None or accept(data[:16]) is True:  # a string says that it was built without the format
                file = _Rationed(data)
                image = factory(file, "")
                file.opening = False
                return image
        except (SyntaxError, IndexError, TypeError, struct.error):
            pass
    raise UnidentifiedImageError


def _heif(data: bytes) -> list[Any]:
    """pillow-heif's opener for a HEIC file, if it is installed. (Registering it changes the user's Pillow.)"""
    if not re.match(HEIC, data[:16].lower()):
        return []
    try:
        return [(importlib.import_module("pillow_heif").HeifImageFile, None)]
    except ImportError:
        return []


class _Rationed(io.BytesIO):
    """A file of which only so many pieces are read, because Pillow parses some formats byte by byte, in Python.

    ``opening`` is true while Pillow reads what comes before the pixels.
    """

    opening = True
    _reads = _header = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self.opening:
            self._header += max(size or 0, 0)  # not of WebP and AVIF, which are read as a whole
        if self._reads > MAX_READS:
            raise ImageError(f"The image consists of more than {MAX_READS:,} pieces: save it as PNG.")
        if self._header > MAX_HEADER:
            raise ImageError(f"The image has a header of more than {MAX_HEADER >> 20} MiB: save it without metadata.")
        return super().read(size)


def _strips(data: bytes) -> int:
    """The number of strips or tiles of a TIFF. Pillow makes an object of each when it opens the file."""
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


def _rle_width(data: bytes) -> int:
    """The width that a run-length encoded BMP states; 0 for any other file."""
    if data[:2] != b"BM" or len(data) < 34 or data[30:34] not in (b"\1\0\0\0", b"\2\0\0\0"):
        return 0
    return abs(struct.unpack_from("<l", data, 18)[0])


def _check_size(image: Image.Image, max_pixels: int | None) -> AbstractContextManager[object]:
    """Refuse an image of too many pixels before it is decoded; return the lock to hold meanwhile if it is large."""
    width, height = image.size
    pixels = width * height
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # all of a tile is decoded, however little of it is needed
        across, down = (image.tag_v2.get(tag, 0) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH))
        if across * down > pixels:
            width, height, pixels = across, down, across * down
    # Pillow keeps 4 bytes per pixel. Turning makes another such image, transparency three; libjpeg keeps up to 6 bytes
    # of a progressive file.
    each = 16 if image.format not in ("JPEG", "MPO") else 14 if "progressive" in image.info else 8
    limit = MAX_MEMORY // each if max_pixels is None else max_pixels
    if pixels > limit:
        hint = "" if max_pixels is not None else " (for 2 GiB of memory)"
        raise ImageError(f"The image has {width} x {height} pixels, more than the {limit:,} allowed{hint}.")
    return _alone() if pixels * each > LARGE else nullcontext()


_one_large = threading.Lock()


@contextmanager
def _alone() -> Generator[None]:
    """Wait until no other large image is being decoded, and have glibc return the memory of the last one.

    glibc keeps what a thread has freed for that thread: eight threads that decode in turn keep eight images' memory.
    """
    with _one_large:
        with suppress(AttributeError, OSError, TypeError):  # another C library, or Windows
            ctypes.CDLL(None).malloc_trim(0)
        yield


def orientation_of(image: Image.Image) -> int:
    """The turn that EXIF (or XMP) asks for, from 1 to 8; 1, upright, if it cannot be read.

    `ImageOps.exif_transpose` writes all of EXIF again, and refuses photos whose other tags it cannot write.
    """
    if image.format == "PNG":
        image.load()  # as getexif does, since EXIF may follow the pixels; here errors are raised
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
        return int(orientation) if orientation in TURNS else 1
    except Exception:  # Pillow's parser raises nearly anything; viewers show such a photo as it is
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy of the image, upright, on white, RGB; ImageError if it has no such form. It is loaded if it was not."""
    key, opened = _transparent_colour(image), image
    image.load()
    if min(image.size) < 1:
        raise ImageError(f"The image has no pixels: {image.width} x {image.height}.")
    if (orientation := orientation_of(image)) in TURNS:
        image = image.transpose(TURNS[orientation])
    if image.mode.startswith("I"):
        values = np.asarray(image)
        image = _from_array(_sixteen_bits(values))
        if isinstance(key, int):
            image.putalpha(_from_array(np.where(values == key, 0, 255).astype(np.uint8)))
    if image.mode == "F":
        raise ImageError("A floating-point image (mode F) has no defined white: convert it to 8 bits first.")
    if key != image.info.get("transparency") and image.mode in ("1", "L", "RGB"):
        image = image.copy()
        image.info["transparency"] = key
    if image.has_transparency_data and not _has_unused_alpha(opened):
        image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    try:
        result = image if image.mode == "RGB" and image is not opened else image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"An image of mode {image.mode} cannot be converted to RGB: {error}") from error
    result.info = {}  # its turn and its transparency have been applied
    return result


def _transparent_colour(image: Image.Image) -> Any:
    """The transparent colour of a PNG (chunk tRNS), as large as Pillow makes its pixels; else what Pillow has.

    Pillow scales pixels to 8 bits, and leaves this colour as it is in the file. To be called before the image is
    loaded: how many bits there are is not known afterwards.
    """
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or not (tile := getattr(image, "tile", None)):
        return key
    raw = tile[0][3]
    if raw == "RGB;16B":
        return tuple(value >> 8 for value in key)
    if raw == "1":
        return 255 if key else 0
    return key * {"L;2": 85, "L;4": 17}.get(raw, 1)


def _has_unused_alpha(image: Image.Image) -> bool:
    """True if alpha is 0 everywhere in a format whose writers often leave it so, meaning nothing."""
    unsaid = image.format == "BMP" or (isinstance(image, TiffImagePlugin.TiffImageFile) and 338 not in image.tag_v2)
    return unsaid and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)


def _sixteen_bits(values: np.ndarray) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        found = f"Integer pixels from {values.min()} to {values.max()}"
        raise ImageError(f"{found} are not 16-bit: convert them to 8 bits.")
    values = values.astype(np.uint32)  # not to float64, which takes four times a photo's memory
    values += 128
    values //= 257  # to the nearest of 255 steps; no value lies between two
    return values.astype(np.uint8)


def _from_array(values: np.ndarray) -> Image.Image:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)) or values.size == 0:
        allowed = "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        raise ImageError(f"An image array must have the shape {allowed}, got {values.shape}.")
    if np.issubdtype(values.dtype, np.floating):
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ImageError(
                "Floating-point pixels must be from 0 to 1. Pass a normalised image to the network itself."
            )
        values = np.rint(values * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        raise ImageError(f"Pixels must be uint8 (0 to 255) or floating point (0 to 1), not {values.dtype}.")
    return Image.fromarray(np.ascontiguousarray(values))
