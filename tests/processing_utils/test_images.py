"""Whatever holds an image becomes an upright RGB image, or one clear sentence."""

from __future__ import annotations

import base64
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from resnext_hub.errors import FetchError, ImageError
from resnext_hub.models.manifest import Preprocessing, default_manifest
from resnext_hub.processing_utils import open_image, prepare_input_from_uri, prepare_inputs, prepare_pixels, preprocess
from torchvision import transforms

IMAGENET = default_manifest().resolve("nvidia_resneXt").preprocessing
RED, GREEN = (255, 0, 0), (0, 255, 0)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def documented(image: Image.Image, preset: Preprocessing = IMAGENET) -> torch.Tensor:
    return transforms.Compose(
        [
            transforms.Resize(preset.resize_size),
            transforms.CenterCrop(preset.crop_size),
            transforms.ToTensor(),
            transforms.Normalize(preset.mean, preset.std),
        ]
    )(image)


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
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (224, 224), (100, 90), (517, 1031), (256, 301)])
def test_preprocessing_is_the_documented_pipeline(size: tuple[int, int], variant: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size)
    got = prepare_input_from_uri(image, variant=variant)
    expected = documented(image, default_manifest().resolve(variant).preprocessing)[None]
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_photos_are_prepared_as_documented(shared: Path) -> None:
    photos = sorted((shared / "photos").glob("*.jpg"))
    assert len(photos) == 100
    compared = 0
    for photo in photos:
        with Image.open(photo) as image:
            if image.mode == "RGB" and image.getexif().get(0x0112, 1) == 1:
                torch.testing.assert_close(prepare_input_from_uri(str(photo))[0], documented(image), rtol=0, atol=1e-6)
                compared += 1
    assert compared > 80


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


def test_transparent_pixels_lie_on_white() -> None:
    for mode, color in (("RGBA", (255, 0, 0, 0)), ("LA", (0, 0))):
        assert open_image(encoded(Image.new(mode, (4, 4), color))).getpixel((1, 1)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0])
    assert open_image(encoded(palette, transparency=0)).getpixel((1, 1)) == (255, 255, 255)
    half = open_image(Image.new("RGBA", (4, 4), (0, 0, 0, 128)))
    assert half.getpixel((1, 1)) == (127, 127, 127)


def test_sixteen_bits_are_scaled() -> None:
    for value, gray in ((0, 0), (65535, 255), (32896, 128)):
        image = Image.fromarray(np.full((4, 4), value, np.uint16))
        assert open_image(encoded(image)).getpixel((1, 1)) == (gray, gray, gray)
    with pytest.raises(ImageError, match="not 16-bit"):
        open_image(Image.new("I", (4, 4), 70000))
    with pytest.raises(ImageError, match="no defined white"):
        open_image(Image.new("F", (4, 4)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(picture: Image.Image, orientation: int) -> None:
    stored = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    rotated = picture if stored is None else picture.transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_image(encoded(rotated, "JPEG", exif=exif, quality=95))
    assert image.size == (300, 200)
    assert np.abs(np.subtract(image.getpixel((150, 20)), RED)).max() < 10


def test_an_animation_shows_its_first_frame(picture: Image.Image) -> None:
    blue = Image.new("RGB", picture.size, (0, 0, 255))
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(picture, kind, save_all=True, append_images=[blue])
        assert np.abs(np.subtract(open_image(data).getpixel((150, 20)), RED)).max() < 12


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "0 bytes"),
        (b"GIF89a", "corrupt or incomplete|Not an image"),
        (b"<!DOCTYPE html><html>", "looks like a web page"),
        (b"password = 1", r"Not an image .*JPEG, [A-Z, ]*\)\.$"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "Not an image"),
        (3, "not int"),
        (None, "not NoneType"),
        (np.zeros((4, 4, 2), np.uint8), r"got \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"got \(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.int64), "not int64"),
        (np.full((4, 4, 3), 2.0), "lready normalised"),
        (np.full((4, 4, 3), np.nan), "from 0 to 1"),
        (torch.zeros(3, 4, 4).to_sparse(), "dense"),
        (torch.zeros(4, 4, 3), r"got \(4, 4, 3\)"),
        (-torch.ones(3, 8, 8), "lready normalised"),
    ],
)
def test_what_is_no_image_is_refused_in_one_sentence(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        open_image(source)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_refused(picture: Image.Image, format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    data = encoded(noise, format)
    for share in (0.02, 0.5, 0.9):
        with pytest.raises(ImageError):
            open_image(data[: int(len(data) * share)])


def test_too_many_pixels_are_refused_before_decoding(picture: Image.Image) -> None:
    with pytest.raises(ImageError, match=r"300 x 200 pixels, more than the 1,000"):
        open_image(encoded(picture), max_pixels=1000)
    bomb = encoded(Image.new("1", (20000, 20000)))
    with pytest.raises(ImageError, match="pixels"):
        open_image(bomb)


def test_too_many_bytes_are_refused(picture: Image.Image, tmp_path: Path) -> None:
    data = encoded(picture)
    (tmp_path / "a.png").write_bytes(data)
    for source in (data, io.BytesIO(data), tmp_path / "a.png"):
        with pytest.raises((ImageError, OSError), match="more than the 100"):
            open_image(source, max_bytes=100)


def test_a_long_thin_image_is_refused_not_blown_up() -> None:
    with pytest.raises(ImageError, match="too long and narrow"):
        preprocess(Image.new("RGB", (1, 100_000)), IMAGENET)
    assert preprocess(Image.new("RGB", (1, 1)), IMAGENET).shape == (3, 224, 224)
    assert preprocess(Image.new("RGB", (2000, 10)), IMAGENET).shape == (3, 224, 224)


def test_missing_files_say_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No such file: .*none\.jpg"):
        open_image(tmp_path / "none.jpg")
    with pytest.raises(OSError, match="not a file"):
        open_image(tmp_path)


def test_many_at_once_keep_their_order(tmp_path: Path) -> None:
    colors = [(i * 20, 255 - i * 20, 7) for i in range(12)]
    batch = prepare_inputs([Image.new("RGB", (50, 40 + i), c) for i, c in enumerate(colors)])
    assert batch.shape == (12, 3, 224, 224)
    back = batch[:, :, 100, 100] * torch.tensor(IMAGENET.std) + torch.tensor(IMAGENET.mean)
    torch.testing.assert_close(back * 255, torch.tensor(colors, dtype=torch.float32), rtol=0, atol=1e-3)
    assert prepare_pixels([], IMAGENET).shape == (0, 224, 224, 3)


def test_a_bad_one_among_many_is_named(picture: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"Image 1: Not an image"):
        prepare_inputs([picture, b"no image", picture])
    with pytest.raises(FileNotFoundError, match=r"^Image 2: No such file: .*none\.jpg$"):
        prepare_inputs([picture, picture, str(tmp_path / "none.jpg")])
    with pytest.raises(TypeError, match="takes a list of images"):
        prepare_inputs("photo.jpg")


def test_many_are_read_at_the_same_time(picture: Image.Image) -> None:
    together = threading.Barrier(4, timeout=30)

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            together.wait()  # passes only when four are reading
            return super().read(size)

    assert len(prepare_inputs([Slow(encoded(picture)) for _ in range(4)])) == 4


def test_pil_images_and_tensors_of_any_kind(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "a.png")
    closed = Image.open(tmp_path / "a.png")
    closed.close()
    with pytest.raises(ImageError, match="The PIL image cannot be used"):
        open_image(closed)
    cut = Image.open(io.BytesIO(encoded(picture, "JPEG")[:900]))
    with pytest.raises(ImageError, match="cannot be used"):
        open_image(cut)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert open_image(torch.ones(3, 4, 4, dtype=dtype)).getpixel((0, 0)) == (255, 255, 255)


def test_a_server_reads_no_files(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").as_uri()):
        with pytest.raises(FetchError):
            open_image(source, schemes=("http", "https"))
    with pytest.raises(FetchError, match="is not a valid path"):
        open_image("A" * 10_000)


@settings(max_examples=200)
@given(st.binary(max_size=300), st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "WEBP", "PPM"]), st.integers(0, 200))
def test_any_bytes_give_an_image_or_an_image_error(noise: bytes, format: str, at: int) -> None:
    data = encoded(Image.new("RGB", (9, 7), RED), format)
    for candidate in (noise, data[:at] + noise + data[at + len(noise) :]):
        try:
            assert open_image(candidate, max_pixels=100_000).mode == "RGB"
        except ImageError:
            pass
