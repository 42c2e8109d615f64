"""The grades of preprocessing keep their bounds, and use Pillow for all that the faster libraries cannot do."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from resnext_hub.errors import ImageError
from resnext_hub.models.manifest import Preprocessing, default_manifest
from resnext_hub.processing_utils import jpeg, open_image, preprocess
from resnext_hub.processing_utils import preprocessing as module
from resnext_hub.processing_utils.preprocessing import GRADES, crop_pixels, load_pixels, normalise
from torchvision import transforms
from torchvision.transforms import InterpolationMode

IMAGENET = default_manifest().resolve("nvidia_resneXt").preprocessing
#: One preset of each kind in the manifest, by what decides about the pixels.
PRESETS = {
    (p.resize_size, p.crop_size, p.interpolation): p
    for p in (checkpoint.preprocessing for checkpoint in default_manifest().checkpoints.values())
}
BICUBIC = replace(IMAGENET, interpolation="bicubic")
BOUNDS = {"reference": 0, "close": 2, "fast": 2}


@pytest.fixture(params=["as installed", "no simplejpeg", "no torch"])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a test with both libraries, and without each."""
    if request.param == "no simplejpeg":
        monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)
    elif jpeg._simplejpeg() is None:
        pytest.skip("needs simplejpeg (the extra 'fast')")
    if request.param == "no torch":
        monkeypatch.setattr(module, "_torch", lambda: None)
    return request.param


@lru_cache(maxsize=32)
def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Shapes with sharp edges over soft colours under a little noise: what photos are made of."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32).copy()
    for _ in range(6):
        x, y = sorted(random.integers(0, width + 1, 2)), sorted(random.integers(0, height + 1, 2))
        pixels[y[0] : y[1], x[0] : x[1]] = random.integers(0, 256, 3)
    pixels += random.normal(0, 3, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **({"quality": 90} if format == "JPEG" else {}) | options)
    return file.getvalue()


def documented(image: Image.Image, preset: Preprocessing) -> np.ndarray:
    steps = [transforms.Resize(preset.resize_size, InterpolationMode(preset.interpolation))]
    return np.asarray(transforms.Compose([*steps, transforms.CenterCrop(preset.crop_size)])(image))


def off(pixels: np.ndarray, reference: np.ndarray) -> int:
    assert pixels.dtype == np.uint8
    assert pixels.shape == reference.shape
    assert pixels.flags.c_contiguous
    return int(np.abs(pixels.astype(int) - reference.astype(int)).max())


def halved(data: bytes, preset: Preprocessing) -> np.ndarray:
    """What "fast" is near to if it halves: the resize of Pillow's draft, turned after it."""
    with Image.open(io.BytesIO(data)) as image:
        orientation = image.getexif().get(0x0112, 1)
        size, turned = image.size, orientation > 4
        window = module._window(size[::-1] if turned else size, preset)
        scaled = window.scaled[::-1] if turned else window.scaled
        image.draft(None, (size[0] // 2, size[1] // 2))
        assert image.size == (-(-size[0] // 2), -(-size[1] // 2))
        bilinear = Image.Resampling.BILINEAR
        resized = image.convert("RGB").resize(scaled, bilinear, box=(0, 0, size[0] / 2, size[1] / 2))
    return window.of(module._upright(np.asarray(resized), orientation))


def check(source: Any, preset: Preprocessing) -> None:
    reference = documented(open_image(source), preset)
    for grade in GRADES:
        assert off(load_pixels(source, preset, grade), reference) <= BOUNDS[grade], grade


@pytest.mark.parametrize("preset", PRESETS.values(), ids=map(str, PRESETS))
def test_photos_keep_the_bounds(shared: Path, preset: Preprocessing, installed: str) -> None:
    photos = sorted((shared / "photos").glob("*.jpg"))
    assert len(photos) == 100
    means = []
    for photo in photos[:: 1 if installed == "as installed" and preset is IMAGENET else 10]:
        reference = documented(open_image(photo), preset)
        for grade in GRADES:
            pixels = load_pixels(photo, preset, grade)
            fast = grade == "fast" and module._ratio(module._window(open_image(photo).size, preset)) >= module.HALVED
            assert off(pixels, halved(photo.read_bytes(), preset) if fast else reference) <= BOUNDS[grade], photo
            means += [np.abs(pixels - reference.astype(float)).mean()] if grade == "close" else []
    assert np.mean(means) < 0.005


@pytest.mark.parametrize("size", [(1537, 1600), (1701, 2111)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_large_pictures_are_halved_by_the_decoder(size: tuple[int, int], subsampling: int, installed: str) -> None:
    data = encoded(picture(*size, seed=size[0]), subsampling=subsampling)
    for preset in (*PRESETS.values(), BICUBIC):
        reference = documented(open_image(data), preset)
        assert off(load_pixels(data, preset, "close"), reference) <= 2
        halves = subsampling != 1 and preset.interpolation == "bilinear"  # the colours of 4:2:2 would suffer
        fast = load_pixels(data, preset, "fast")
        assert off(fast, halved(data, preset) if halves else reference) <= 2
        assert np.abs(fast - reference.astype(float)).mean() < 0.5, "the same picture"


def test_from_which_size_on_images_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    preset, seen = replace(IMAGENET, resize_size=40, crop_size=35), []
    monkeypatch.setattr(module, "decode_jpeg", lambda data, image, half: seen.append(half))
    for size in ((200, 200), (199, 199), (200, 300), (300, 199)):
        load_pixels(encoded(picture(*size)), preset, "fast")
        load_pixels(encoded(picture(*size)), preset, "close")
    assert seen == [True, False, False, False, True, False, False, False]


@pytest.mark.parametrize("size", [(431, 380), (1700, 1620)])
def test_the_filter_is_the_presets(size: tuple[int, int]) -> None:
    image = picture(*size)
    for source in (image, encoded(image)):
        bilinear, bicubic = (documented(open_image(source), preset) for preset in (IMAGENET, BICUBIC))
        for grade in ("close", "fast"):
            assert off(load_pixels(source, BICUBIC, grade), bicubic) == 0
            assert off(load_pixels(source, BICUBIC, grade), bilinear) > 12


@settings(max_examples=50)
@given(
    st.integers(1, 620),
    st.integers(1, 620),
    st.sampled_from([*PRESETS.values(), BICUBIC, replace(IMAGENET, resize_size=40, crop_size=35)]),
    st.integers(0, 3),
)
def test_any_size_keeps_the_bounds(width: int, height: int, preset: Preprocessing, seed: int) -> None:
    random = np.random.default_rng(seed)
    noise = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    for image in (noise, picture(width, height, seed)):
        check(image, preset)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(401, 300), (1541, 1603)])
def test_turned_photos_keep_the_bounds(size: tuple[int, int], orientation: int, installed: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(*size), exif=exif)
    reference = documented(open_image(data), IMAGENET)
    assert off(load_pixels(data, IMAGENET, "close"), reference) <= 2
    fast = halved(data, IMAGENET) if min(size) > 1000 else reference
    assert off(load_pixels(data, IMAGENET, "fast"), fast) <= 2


@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {"subsampling": 0, "quality": 100}),
        ("RGB", "JPEG", {"subsampling": 1}),
        ("RGB", "JPEG", {"keep_rgb": True}),
        ("RGB", "JPEG", {"restart_marker_blocks": 4}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("I;16", "PNG", {}),
        ("RGB", "WEBP", {}),
        ("RGB", "TIFF", {}),
        ("RGB", "BMP", {}),
        ("L", "GIF", {}),
    ],
)
@pytest.mark.parametrize("size", [(333, 500), (90, 120)])
def test_every_kind_of_file_keeps_the_bounds(
    size: tuple[int, int], mode: str, format: str, options: dict[str, Any], installed: str
) -> None:
    image = picture(*size)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    check(encoded(image, format, **options), IMAGENET)


def test_rare_presets() -> None:
    """An interpolation that has no weights, and a crop larger than the image, which is padded."""
    for rare in (replace(IMAGENET, interpolation="nearest"), replace(IMAGENET, resize_size=100, crop_size=128)):
        check(encoded(picture(300, 290)), rare)
        check(picture(300, 200), rare)


@pytest.mark.parametrize("grade", GRADES)
def test_broken_and_oversized_files_are_refused_in_the_same_words(grade: str, installed: str, tmp_path: Path) -> None:
    data = encoded(picture(1500, 1400))
    for bad in (b"", b"no image", data[:-2], data[: len(data) // 2], data[:700], encoded(picture(99, 99), "PNG")[:-40]):
        with pytest.raises(ImageError) as expected:
            open_image(bad)
        with pytest.raises(ImageError) as got:
            load_pixels(bad, IMAGENET, grade)
        assert str(got.value) == str(expected.value)
    with pytest.raises(ImageError, match="1500 x 1400 .* 1,000"):
        load_pixels(data, IMAGENET, grade, max_pixels=1000)
    with pytest.raises(ImageError, match="100 bytes"):
        load_pixels(data, IMAGENET, grade, max_bytes=100)
    with pytest.raises(ImageError, match="60000|60,000"):
        load_pixels(encoded(Image.new("RGB", (1, 60_000))), IMAGENET, grade)
    with pytest.raises(FileNotFoundError, match="none.jpg"):
        load_pixels(tmp_path / "none.jpg", IMAGENET, grade)


def test_limits_hold_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(module, "decode_jpeg", never)
    with pytest.raises(ImageError, match="1,000"):
        load_pixels(encoded(picture(300, 290)), IMAGENET, "fast", max_pixels=1000)


def test_what_only_looks_odd_is_left_to_pillow(installed: str) -> None:
    data = encoded(picture(400, 300))
    check(data + b"something behind", IMAGENET)
    scan = data.index(b"\xff\xda")
    check(data[:scan] + b"\x00\x00" + data[scan:], IMAGENET)  # libjpeg: "extraneous bytes before marker"


def test_preprocess_is_the_reference_normalised() -> None:
    image = picture(500, 375)
    expected = transforms.Normalize(IMAGENET.mean, IMAGENET.std)(
        transforms.ToTensor()(Image.fromarray(documented(image, IMAGENET)))
    )
    assert np.array_equal(preprocess(image, IMAGENET), expected.numpy())
    assert np.array_equal(preprocess(image, IMAGENET), normalise(crop_pixels(image, IMAGENET), IMAGENET))


def test_normalise_takes_batches() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 9, 8, 3), dtype=np.uint8)
    values = normalise(pixels, IMAGENET)
    assert (values.shape, values.dtype) == ((2, 5, 3, 9, 8), np.float32)
    assert values.flags.c_contiguous
    assert np.array_equal(values[1, 4], normalise(pixels[1, 4], IMAGENET))


def test_a_wrong_grade_or_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="grade 'exact'.* reference, close, fast"):
        load_pixels(b"", IMAGENET, "exact")
    with pytest.raises(ValueError, match="RGB, not L"):
        crop_pixels(Image.new("L", (300, 300)), IMAGENET)


def test_views_are_torchvisions() -> None:
    image, crop = picture(500, 375), IMAGENET.crop_size
    resized = transforms.Resize(IMAGENET.resize_size)(image)
    ten = np.stack([np.asarray(view) for view in transforms.TenCrop(crop)(resized)])
    assert np.array_equal(module.view_pixels(image, IMAGENET, "ten-crop"), ten)
    centre = documented(image, IMAGENET)
    assert np.array_equal(module.view_pixels(image, IMAGENET, "centre"), centre[None])
    assert np.array_equal(module.view_pixels(image, IMAGENET, "flip"), [centre, centre[:, ::-1]])


def test_views_that_are_refused() -> None:
    with pytest.raises(ValueError, match="views 'all'.* centre, flip, ten-crop"):
        module.view_pixels(picture(300, 300), IMAGENET, "all")
    small = replace(IMAGENET, resize_size=100, crop_size=128)
    with pytest.raises(ImageError, match="100 x 133 .* 128"):
        module.view_pixels(picture(300, 400), small, "ten-crop")
    with pytest.raises(ImageError, match="133 x 100 .* 128"):
        module.view_pixels(picture(400, 300), small, "ten-crop")
    exact = replace(IMAGENET, resize_size=128, crop_size=128)
    assert module.view_pixels(picture(128, 128), exact, "ten-crop").shape == (10, 128, 128, 3)


def test_what_is_already_of_the_size_is_not_resized() -> None:
    preset = replace(IMAGENET, resize_size=40, crop_size=30)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    for grade in GRADES:
        assert np.array_equal(crop_pixels(image, preset, grade), np.asarray(image)[5:35, 10:40])
        assert np.array_equal(load_pixels(encoded(image, "PNG"), preset, grade), np.asarray(image)[5:35, 10:40])


@pytest.mark.parametrize("size", [(50, 50), (51, 50), (50, 51), (99, 40), (40, 99), (41, 77)])
@pytest.mark.parametrize("crop", [30, 31, 40, 47])
def test_where_the_crop_lies(size: tuple[int, int], crop: int) -> None:
    preset = replace(IMAGENET, resize_size=40, crop_size=crop)
    image = picture(*size)
    assert np.array_equal(crop_pixels(image, preset), documented(image, preset))


def test_how_long_and_thin_an_image_may_be() -> None:
    longest = module.MAX_RESIZED // IMAGENET.resize_size**2
    assert module._window((1, longest), IMAGENET).scaled == (256, 256 * longest)
    for size in ((1, longest + 1), (longest + 1, 1)):
        with pytest.raises(ImageError, match=rf"{size[0]} x {size[1]} .* 256"):
            module._window(size, IMAGENET)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("size", [(64, 48), (61, 50), (16, 17)])
def test_decoded_jpegs(size: tuple[int, int], half: bool, installed: str) -> None:
    data = encoded(picture(*size), subsampling=0)
    factor = 2 if half else 1
    with Image.open(io.BytesIO(data)) as image:
        pixels = jpeg.decode_jpeg(data, image, half=half)
    assert pixels is not None
    assert (pixels.dtype, pixels.shape) == (np.uint8, (-(-size[1] // factor), -(-size[0] // factor), 3))
    whole = np.asarray(Image.open(io.BytesIO(data)).reduce(factor)).astype(int)
    assert np.abs(pixels - whole).mean() < 3


def test_what_is_not_decoded_here(installed: str) -> None:
    for image, kind in ((picture(16, 16), "PNG"), (picture(16, 16).convert("CMYK"), "JPEG")):
        data = encoded(image, kind)
        with Image.open(io.BytesIO(data)) as opened:
            assert jpeg.decode_jpeg(data, opened) is None
    data = encoded(picture(16, 16).convert("L"))
    with Image.open(io.BytesIO(data)) as opened:
        pixels = jpeg.decode_jpeg(data, opened)
    assert pixels is not None
    assert pixels.shape == (16, 16, 3)


def test_simplejpeg_need_not_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)  # an import of it fails
    jpeg._simplejpeg.cache_clear()
    assert jpeg._simplejpeg() is None
    data = encoded(picture(16, 16))
    with Image.open(io.BytesIO(data)) as opened:
        assert jpeg.decode_jpeg(data, opened) is not None
    jpeg._simplejpeg.cache_clear()
