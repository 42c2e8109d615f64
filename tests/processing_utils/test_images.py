"""Anything that holds an image becomes an upright RGB image, or one clear sentence."""

from __future__ import annotations

import base64
import io
import pickle
import re
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from resnext_hub.errors import FetchError, ImageError, TruncatedImageError
from resnext_hub.models.manifest import Preprocessing, default_manifest
from resnext_hub.processing_utils import (
    images,
    open_image,
    prepare_input_from_uri,
    prepare_inputs,
    prepare_pixels,
    transforms,
)
from resnext_hub.processing_utils.images import is_encoded, read_encoded
from resnext_hub.processing_utils.inputs import WORKERS
from torchvision import transforms as T

from ..fuzz.seeds import chunk, encoded

IMAGENET = default_manifest().resolve("nvidia_resneXt").preprocessing
TINY = default_manifest().resolve("resnext_tiny").preprocessing
RED, GREEN = (255, 0, 0), (0, 255, 0)


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(ImageError) as error:
        open_image(source, **options)
    return str(error.value)


def documented(image: Image.Image, preset: Preprocessing = IMAGENET) -> torch.Tensor:
    cut = T.Compose([T.Resize(preset.resize_size), T.CenterCrop(preset.crop_size)])(image)
    return T.Normalize(preset.mean, preset.std)(T.ToTensor()(cut))


@pytest.fixture
def picture() -> Image.Image:
    """300 x 200, red above green, so that a rotation shows."""
    image = Image.new("RGB", (300, 200), RED)
    image.paste(GREEN, (0, 100, 300, 200))
    return image


def test_every_kind_of_source_gives_the_same(picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a b.png"
    picture.save(path)
    data = path.read_bytes()
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    sources = [
        str(path), path, path.as_uri(), data, bytearray(data), memoryview(data), io.BytesIO(data), picture, array,
        tensor, tensor / 255, array / 255, "data:image/png;base64," + base64.b64encode(data).decode(),
    ]  # fmt: skip
    for source in sources:
        assert np.array_equal(np.asarray(open_image(source)), array), type(source)


@pytest.mark.parametrize("variant", ["nvidia_resneXt", "resnext50_32x4d", "resnext_tiny"])
def test_preprocessing_is_the_documented_pipeline(variant: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (258, 130, 3), np.uint8)).resize((517, 1031))
    got = prepare_input_from_uri(image, variant=variant)
    expected = documented(image, default_manifest().resolve(variant).preprocessing)[None]
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGBA", "LA", "PA"])
def test_modes(picture: Image.Image, mode: str) -> None:
    source = picture.convert("P").convert("PA") if mode == "PA" else picture.convert(mode)
    image = open_image(source)
    assert (image.mode, image.size) == ("RGB", picture.size)
    if mode in ("1", "L", "LA"):
        gray = open_image(picture.convert("L")).getpixel((5, 5))
        assert mode == "1" or image.getpixel((5, 5)) == gray == (76, 76, 76)
    else:
        top, bottom = image.getpixel((5, 5)), image.getpixel((5, 195))
        assert np.abs(np.subtract(top, RED)).max() < 5
        assert np.abs(np.subtract(bottom, GREEN)).max() < 5
    no_file = ["PA"] if int(PIL.__version__.split(".")[0]) >= 13 else ["PA", "YCbCr"]  # Pillow 13 reads its own YCbCr
    if mode not in no_file:
        again = open_image(encoded(source, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"))
        assert np.array_equal(np.asarray(again), np.asarray(image))


# Transparency. Every kind of file is written by hand, with pixels that are visible, hidden and half of both.


def png(kind: int, depth: int, samples: list[list[int]], key: bytes = b"", palette: bytes = b"") -> bytes:
    """A PNG of one row of pixels, each a list of samples."""
    bits = "".join(f"{sample:0{depth}b}" for pixel in samples for sample in pixel)
    bits += "0" * (-len(bits) % 8)
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    header = struct.pack(">LLBBBBB", len(samples), 1, depth, kind, 0, 0, 0)
    chunks = (
        chunk(b"IHDR", header) + (chunk(b"PLTE", palette) if palette else b"") + (chunk(b"tRNS", key) if key else b"")
    )
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_transparency_in_every_png(depth: int) -> None:
    """Gray, palette, RGB, gray and alpha, RGB and alpha: what PNG numbers 0, 3, 2, 4 and 6."""

    def shown(kind: int, samples: list[list[int]], *more: bytes) -> Any:
        return np.asarray(open_image(png(kind, depth, samples, *more)))[0].tolist()

    top, white = 2**depth - 1, [255] * 3
    grays = sorted({0, 1, top // 2, top})
    for key in grays:
        expected = [white if value == key else [round(value * 255 / top)] * 3 for value in grays]
        assert shown(0, [[value] for value in grays], struct.pack(">H", key)) == expected
    if depth < 16:
        palette = bytes([0, 0, 0, 200, 10, 10])
        assert shown(3, [[0], [1], [0]], b"\x80\xff", palette) == [[127] * 3, [200, 10, 10], [127] * 3]
    if depth >= 8:
        unit = top // 255
        colours = [[20 * unit, 30 * unit, 40 * unit], [0, 0, 0], [top, 0, 0]]
        of_8_bits = [[value // unit for value in colour] for colour in colours]
        for key in colours:
            expected = [white if a == key else b for a, b in zip(colours, of_8_bits, strict=True)]
            assert shown(2, colours, struct.pack(">HHH", *key)) == expected
        for alpha in (0, top):
            assert shown(4, [[c[0], alpha] for c in colours]) == [[c[0]] * 3 if alpha else white for c in of_8_bits]
            assert shown(6, [[*c, alpha] for c in colours]) == [c if alpha else white for c in of_8_bits]


# Of these modes Pillow writes the transparency into these formats.
WRITTEN = {"RGBA": ("PNG", "WEBP", "TIFF", "GIF", "AVIF"), "LA": ("PNG", "TIFF"), "PA": (), "P": ("PNG",)}


@pytest.mark.parametrize(("mode", "format"), [(mode, kind) for mode in WRITTEN for kind in (None, *WRITTEN[mode])])
def test_transparent_pixels_are_put_on_white(mode: str, format: str | None) -> None:
    if format and f".{format.lower()}" not in Image.registered_extensions():
        pytest.skip(f"needs Pillow with {format}")
    image = Image.new("RGBA", (32, 16), (10, 120, 200, 255))
    image.paste((10, 120, 200, 0), (0, 0, 16, 16))
    image = {"P": lambda: image.quantize(8), "PA": lambda: image.convert("P").convert("PA")}.get(
        mode, lambda: image.convert(mode)
    )()
    source = encoded(image, format, **({"lossless": True} if format == "WEBP" else {})) if format else image
    values = np.asarray(open_image(source)).astype(int)
    colour = np.asarray(image.convert("RGBA"))[0, 20, :3]
    bound = 12 if format == "AVIF" else 0
    assert np.abs(values[:, :16] - 255).max() <= bound
    assert np.abs(values[:, 16:] - colour).max() <= bound


def bmp(*pixels: tuple[int, int, int, int]) -> bytes:
    """A BMP of one row of 32-bit pixels, whose header has masks for red, green, blue and alpha."""
    rows = b"".join(bytes([blue, green, red, alpha]) for red, green, blue, alpha in pixels)
    masks = struct.pack("<4L", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<LllHHLLllLL", 108, len(pixels), 1, 1, 32, 3, len(rows), 0, 0, 0, 0) + masks + bytes(52)
    return b"BM" + struct.pack("<LLL", 14 + 108 + len(rows), 0, 14 + 108) + header + rows


def test_premultiplied_alpha() -> None:
    for mode, colour in (("RGBa", (0, 0, 0, 0)), ("La", (0, 0))):
        assert open_image(Image.new(mode, (2, 2), colour)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(Image.new("RGBa", (2, 2), (100, 50, 0, 128))).getpixel((0, 0)) == (227, 177, 127)


def test_an_alpha_that_is_not_used() -> None:
    """BMP files with an alpha mask and TIFF files with a fourth sample often have 0 everywhere; viewers show them."""
    assert np.asarray(open_image(bmp((200, 100, 50, 0), (9, 8, 7, 0)))).tolist() == [[[200, 100, 50], [9, 8, 7]]]
    assert np.asarray(open_image(bmp((200, 100, 50, 0), (9, 8, 7, 255)))).tolist() == [[[255] * 3, [9, 8, 7]]]
    data = encoded(Image.new("RGBA", (4, 4), (200, 100, 50, 0)), "TIFF")
    assert open_image(data).getpixel((1, 1)) == (255, 255, 255), "TIFF's ExtraSamples says that it is alpha"
    said = struct.pack("<HHL", 338, 3, 1)
    assert data.count(said) == 1
    assert open_image(data.replace(said, struct.pack("<HHL", 40000, 3, 1))).getpixel((1, 1)) == (200, 100, 50)


def test_integers_of_more_than_eight_bits() -> None:
    for value, gray in ((0, 0), (65535, 255), (128, 0), (129, 1), (32896, 128)):
        assert open_image(Image.new("I", (2, 1), value)).getpixel((0, 0)) == (gray,) * 3
        assert open_image(encoded(Image.fromarray(np.full((4, 4), value, np.uint16)))).getpixel((1, 1)) == (gray,) * 3
    for value in (-1, 65536):
        assert f"from {value} to {value}" in refusal(Image.new("I", (2, 1), value))
    assert "white" in refusal(Image.new("F", (2, 2)))


def test_an_animation_shows_its_first_frame(picture: Image.Image) -> None:
    blue = Image.new("RGB", picture.size, (0, 0, 255))
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(picture, kind, save_all=True, append_images=[blue])
        assert np.abs(np.subtract(open_image(data).getpixel((150, 20)), RED)).max() < 12


# Sizes. What is refused here by a small limit, `test_hostile_images` refuses by the real one.


def of_size(width: int, height: int, format: str = "JPEG", **options: Any) -> bytes:
    """A small file that states a size: for a JPEG, the size of a phone's photo."""
    data = bytearray(encoded(Image.new("RGB", (64, 64)), format, **options))
    at = data.index(b"\xff\xc2" if options else b"\xff\xc0") + 5 if format == "JPEG" else 16
    data[at : at + 4] = struct.pack(">HH", height, width)
    if format == "PNG":
        data[16:24] = struct.pack(">LL", width, height)
        data[29:33] = struct.pack(">L", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "taken"),
    [
        (of_size(16320, 12240), True),  # 200 megapixels
        (of_size(17000, 16000), False),
        (of_size(12000, 9000, progressive=True), True),
        (of_size(16320, 12240, progressive=True), False),
        (of_size(12000, 11000, "PNG"), True),
        (of_size(12000, 12000, "PNG"), False),
    ],
)
def test_memory_decides_how_many_pixels_are_taken(data: bytes, taken: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own limit is at 89 megapixels
        if taken:
            assert images.decode(data, lambda image: image.width * image.height) > 100e6
        else:
            with pytest.raises(ImageError, match="2 GiB"):
                images.decode(data, lambda image: None)
        with pytest.raises(ImageError, match="1,000,000"):
            images.decode(data, lambda image: None, max_pixels=1_000_000)


def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("RGB", (80, 80)))
    meeting = threading.Barrier(2)

    def meet(image: Image.Image) -> bool:
        try:
            return meeting.wait(0.3) >= 0
        except threading.BrokenBarrierError:
            return False

    def met() -> bool:
        meeting.reset()
        found: list[bool] = []
        threads = [threading.Thread(target=lambda: found.append(images.decode(data, meet))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return any(found)

    assert met()
    monkeypatch.setattr(images, "LARGE", 80 * 80 * 16 - 1)
    assert not met()


PEAK = """
import io, resource
from PIL import Image
from resnext_hub.models.manifest import default_manifest
from resnext_hub.processing_utils.inputs import prepare_pixels
file = io.BytesIO()
Image.new("RGBA", (5000, 5000)).save(file, "PNG")
for count in (1, 4):
    prepare_pixels([file.getvalue()] * count, default_manifest().resolve("resnext_tiny").preprocessing)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's memory")
def test_large_images_together_take_little_more_memory_than_one() -> None:
    """Eight PNG files of 343 kB took 10.2 GB: each thread's freed memory was kept for that thread."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    one, four = map(int, done.stdout.split())
    assert four < 1.5 * one


def test_limits_are_the_last_that_is_taken(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (40, 30)))
    assert open_image(data, max_pixels=1200).size == (40, 30)
    assert re.search("40 x 30 .*1,199", refusal(data, max_pixels=1199))
    assert open_image(data, max_bytes=len(data)).size == (40, 30)
    assert "1,000 bytes" in refusal(data * 20, max_bytes=1000)
    (tmp_path / "a.png").write_bytes(data)
    for source in (tmp_path / "a.png", (tmp_path / "a.png").as_uri()):
        with pytest.raises(FetchError, match=f"{len(data) - 1:,}|{len(data):,}"):
            open_image(source, max_bytes=len(data) - 1)


def directory(order: str, big: bool, *entries: tuple[int, int]) -> bytes:
    """A TIFF's header and its first directory, of (tag, count), a little way behind it."""
    mark, at = b"II" if order == "<" else b"MM", 40
    head = mark + struct.pack(f"{order}HHHQ" if big else f"{order}HL", *((43, 8, 0, at) if big else (42, at)))
    known = struct.pack(order + ("Q" if big else "H"), len(entries))
    for tag, count in entries:
        known += struct.pack(order + ("HHQ8x" if big else "HHL4x"), tag, 4, count)
    return head.ljust(at, b"\xff") + known


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_too_many_pieces(order: str, big: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for entries in ([(256, 900), (273, 700), (257, 800)], [(273, 2), (324, 700)], [(324, 700), (273, 2), (320, 900)]):
        data = directory(order, big, *entries)
        assert images._strips(data) == 700
        monkeypatch.setattr(images, "MAX_READS", 699)
        assert "699 pieces" in refusal(data)
        monkeypatch.setattr(images, "MAX_READS", 700)
        assert "pieces" not in refusal(data)


def test_a_jpeg_of_too_many_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, progressive = (encoded(Image.new("L", (40, 30)), "JPEG", progressive=kind) for kind in (False, True))
    scans = len(images.SCAN.findall(progressive))
    for limit, data in ((scans, progressive), (0, plain)):
        monkeypatch.setattr(images, "MAX_SCANS", limit)
        assert open_image(data).size == (40, 30)
    monkeypatch.setattr(images, "MAX_SCANS", scans - 1)
    assert f"{scans - 1} scans" in refusal(progressive)


# What is incomplete.


def test_a_jpeg_that_is_cut_off(picture: Image.Image) -> None:
    data = encoded(picture, "JPEG", quality=95)
    for grade in ("reference", "fast"):
        whole = prepare_pixels([data], TINY, grade=grade)[0]
        for cut in (data[:-2], data[: len(data) * 2 // 3]):
            with pytest.raises(TruncatedImageError):
                prepare_pixels([cut], TINY, grade=grade)
            kept = prepare_pixels([cut], TINY, grade=grade, truncated="keep")[0]
            assert np.array_equal(kept[:20], whole[:20])
            assert np.array_equal(kept, whole) == (cut == data[:-2])
        assert np.array_equal(prepare_pixels([data], TINY, grade=grade, truncated="keep")[0], whole)
    for bad in (data[:100], encoded(picture)[:-30]):
        with pytest.raises(ImageError) as error:
            open_image(bad, truncated="keep")
        assert type(error.value) is ImageError
    with pytest.raises(ValueError, match="refuse, keep"):
        open_image(data, truncated="maybe")


def test_heic_if_pillow_heif_is_installed(picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # an import of it fails
    assert "pillow-heif" in refusal(heic)

    class HeifImageFile(PngImageFile):
        def __init__(self, file: Any, name: str) -> None:
            assert file.read() == heic
            super().__init__(io.BytesIO(encoded(picture)))

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(HeifImageFile=HeifImageFile))
    assert np.array_equal(np.asarray(open_image(heic)), np.asarray(picture))
    assert "Not an image" in refusal(b"no HEIC")


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_refused(format: str) -> None:
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)), format)
    for share in (0.02, 0.5, 0.9):
        refusal(data[: int(len(data) * share)])


def test_pil_images_that_cannot_be_used(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "a.png")
    closed = Image.open(tmp_path / "a.png")
    closed.close()
    with pytest.raises(ImageError, match="PIL"):
        open_image(closed)
    cut = Image.open(io.BytesIO(encoded(picture, "JPEG")[:900]))
    with pytest.raises(ImageError, match="PIL"):
        open_image(cut)
    for size in ((0, 5), (5, 0)):
        assert "has no pixels" in refusal(Image.new("RGB", size))


def test_whatever_a_decoder_raises_is_an_image_error() -> None:
    data = encoded(Image.new("L", (2, 2)))
    for error, text in ((SyntaxError("odd"), "SyntaxError: odd"), (OSError("cut"), "cut")):

        def load(self: Any, *, error: Exception = error) -> None:
            raise error

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PngImageFile, "load", load)
            assert refusal(data) == f"The image is corrupt or incomplete: {text}."


def test_tensors() -> None:
    values = torch.tensor([[[0.0, 1.0], [0.5, 0.2]]])
    expected = [[[0, 0, 0], [255, 255, 255]], [[128, 128, 128], [51, 51, 51]]]
    for tensor in (values, values.double(), values.requires_grad_(), values.detach().expand(3, 2, 2)):
        assert np.asarray(open_image(tensor)).tolist() == expected
    assert np.asarray(open_image(values.detach().bfloat16())).tolist()[0] == expected[0]
    assert "not torch.sparse_coo" in refusal(values.detach().to_sparse())
    for shape in ((2, 4, 4), (4, 4, 4), (4, 4), (1, 3, 4, 4)):
        assert refusal(torch.zeros(shape)).endswith(f" (1, H, W) or (3, H, W), got {shape}.")


def test_arrays() -> None:
    ramp = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(np.asarray(open_image(ramp[:, ::-1])), ramp[:, ::-1])
    gray = ramp[:, :, :1]
    assert np.array_equal(np.asarray(open_image(gray)), np.repeat(gray, 3, 2))
    assert np.array_equal(np.asarray(open_image(gray[:, :, 0])), np.repeat(gray, 3, 2))
    assert open_image(np.full((1, 1, 4), 0, np.uint8)).getpixel((0, 0)) == (255, 255, 255)
    for shape in ((4,), (2, 2, 2), (2, 2, 5), (1, 2, 2, 3), (0, 2, 3), (2, 2, 0)):
        assert refusal(np.zeros(shape, np.uint8)).endswith(f" (H, W, 3) or (H, W, 4), got {shape}.")
    for values in (-0.001, 1.001, np.nan, np.inf):
        assert "from 0 to 1" in refusal(np.full((2, 2), values))
    assert np.asarray(open_image(np.asarray([[0.0, 1.0]], np.float16)))[0, :, 0].tolist() == [0, 255]
    assert re.search("uint8 .*floating point .*not int32", refusal(np.zeros((2, 2), np.int32)))
    assert refusal(np.zeros((2, 2), bool)).endswith("not bool.")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "0 bytes"),
        (b"GIF89a", "corrupt or incomplete|Not an image"),
        (b"<!DOCTYPE html><html>", "page"),
        (b"\n  <HTML lang=en>", "page"),
        (b"password = 1", r"Not an image .*JPEG, [A-Z, ]*\)\.$"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "Not an image"),
        (3, "not int"),
        (None, "not NoneType"),
        (["a.jpg"], "not list"),
        (io.StringIO("text"), "not StringIO"),
    ],
)
def test_what_is_no_image_is_refused_in_one_sentence(source: Any, message: str) -> None:
    assert re.search(message, refusal(source))


def test_a_server_reads_no_files(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").as_uri()):
        with pytest.raises(FetchError):
            open_image(source, schemes=("http", "https"))
    with pytest.raises(FetchError, match="A{50}"):
        open_image("A" * 10_000)


def test_a_stream_is_read_no_further_than_the_limit() -> None:
    class Endless(io.RawIOBase):
        asked = 0

        def read(self, size: int = -1) -> bytes:
            self.asked = size
            return b"x" * size

    stream = Endless()
    with pytest.raises(ImageError, match="1,000 bytes"):
        read_encoded(stream, max_bytes=1000)
    assert stream.asked == 1001


def test_what_is_encoded() -> None:
    for source in ("a.jpg", b"", Path("a"), io.BytesIO()):
        assert is_encoded(source)
    for source in (np.zeros((2, 2)), Image.new("L", (2, 2)), torch.zeros(1, 2, 2)):
        assert not is_encoded(source)


# Many images at once.


def shade(value: int) -> np.ndarray:
    return np.full((80, 80, 3), value, np.uint8)


def test_order_and_shape() -> None:
    pixels = prepare_pixels([shade(i) for i in range(20)], TINY)
    crop = TINY.crop_size
    assert (pixels.shape, pixels.dtype) == ((20, crop, crop, 3), np.uint8)
    assert pixels[:, 5, 5, 0].tolist() == list(range(20))
    none = prepare_pixels([], TINY)
    assert (none.shape, none.dtype) == ((0, crop, crop, 3), np.uint8)


def test_the_message_says_which(tmp_path: Path) -> None:
    def message(*images: Any, **options: Any) -> str:
        with pytest.raises((ImageError, FetchError, FileNotFoundError)) as error:
            prepare_pixels(images, TINY, **options)
        return str(error.value)

    missing = tmp_path / "none.jpg"
    assert message(shade(1), b"") == "Image 1: The image is empty: 0 bytes."
    assert message(b"", b"") == "Image 0: The image is empty: 0 bytes."
    assert message(shade(1), b"", first=100) == "Image 101: The image is empty: 0 bytes."
    assert message(shade(1), b"", first=None) == "The image is empty: 0 bytes."
    assert message(missing) == f"Image 0: No such file: {missing}"
    assert message(str(missing)) == f"Image 0: No such file: {missing}"
    assert message("x" * 300).startswith(f"Image 0: {'x' * 200}: ")
    assert "max_pixels" not in message(shade(1), encoded(Image.new("L", (9, 9))), max_pixels=80)
    with pytest.raises(FileNotFoundError):
        prepare_pixels([missing], TINY)
    with pytest.raises(FetchError):
        prepare_pixels(["ftp://example.org/a.jpg"], TINY)


def test_several_are_read_at_once_and_none_after_a_failure() -> None:
    together = threading.Barrier(WORKERS)

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            together.wait(timeout=60)
            return super().read(size)

    data = encoded(Image.new("RGB", (80, 80)))
    assert len(prepare_pixels([Slow(data) for _ in range(WORKERS)], TINY)) == WORKERS


def test_batches() -> None:
    batch = prepare_inputs(iter([shade(0), shade(255)]), variant="resnext_tiny")
    assert (batch.shape, batch.dtype) == ((2, 3, TINY.crop_size, TINY.crop_size), torch.float32)
    expected = (torch.tensor([0.0, 1.0])[:, None] - torch.tensor(TINY.mean)) / torch.tensor(TINY.std)
    torch.testing.assert_close(batch[:, :, 3, 3], expected)
    for one in ("a.jpg", b"abc", None, shade(0), torch.zeros(3, 9, 9)):
        with pytest.raises(TypeError, match="list of images.* prepare_input_from_uri"):
            prepare_inputs(one)
    assert prepare_input_from_uri(shade(7)).shape == (1, 3, 224, 224)
    with pytest.raises(ImageError, match="pixels"):
        prepare_input_from_uri(encoded(Image.new("L", (9, 9))), max_pixels=80)
    assert torch.equal(prepare_input_from_uri(shade(255), variant="resnext_tiny"), batch[1:])
    with pytest.raises(ImageError, match="0 bytes"):
        prepare_input_from_uri(b"")


def test_cuda_puts_the_batch_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: ("on the GPU", self.shape))
    assert prepare_inputs([shade(1)], cuda=True) == ("on the GPU", (1, 3, 224, 224))
    assert prepare_input_from_uri(shade(1), cuda=True) == ("on the GPU", (1, 3, 224, 224))
    assert prepare_input_from_uri(shade(1), True) == ("on the GPU", (1, 3, 224, 224))
    assert isinstance(prepare_inputs([shade(1)]), torch.Tensor)


# For data sets.


class Network(torch.nn.Module):
    preprocessing = TINY


def test_transforms(picture: Image.Image) -> None:
    for named in ("resnext_tiny", Network()):
        transform = transforms(named)
        assert torch.equal(transform(picture), prepare_input_from_uri(picture, variant=named)[0])
        assert transform(picture).shape == (3, TINY.crop_size, TINY.crop_size)
        assert pickle.loads(pickle.dumps(transform)) == transform
    assert torch.equal(transforms("nvidia_resneXt")(encoded(picture)), documented(picture))
    for wrong in (torch.nn.Linear(1, 1), None):
        with pytest.raises(TypeError, match=type(wrong).__name__):
            transforms(wrong)  # type: ignore[arg-type]


def test_transforms_for_training(picture: Image.Image) -> None:
    transform = transforms(Network(), train=True)
    torch.manual_seed(0)
    first = [transform(picture) for _ in range(8)]
    torch.manual_seed(0)
    assert all(torch.equal(a, transform(picture)) for a in first)
    assert {image.shape for image in first} == {(3, TINY.crop_size, TINY.crop_size)}
    assert len({image.numpy().tobytes() for image in first}) > 4
    gradient = Image.linear_gradient("L").rotate(90)
    rises = {bool((image := transform(gradient))[0, :, -1].mean() > image[0, :, 0].mean()) for _ in range(20)}
    assert rises == {True, False}, "mirrored half of the time"


def test_an_image_is_recognised_while_another_thread_imports_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))  # as far as it is at first
    assert is_encoded(b"\xff\xd8")
