"""Files made to break a decoder: refused in one sentence, in bounded time and memory, by every grade alike."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image
from resnext_hub.errors import ImageError
from resnext_hub.models.manifest import default_manifest
from resnext_hub.processing_utils import images, open_image
from resnext_hub.processing_utils.preprocessing import GRADES, load_pixels

from ..conftest import ROOT
from ..fuzz.seeds import chunk, encoded, picture
from ..fuzz.seeds import images as seeds
from ..fuzz.targets import prepare_image, repair

IMAGENET = default_manifest().resolve("nvidia_resneXt").preprocessing
SEEDS = dict(seeds())


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Pillow warns of what is odd in a file; no program makes errors of warnings, and these tests are of programs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def png_with(*chunks: bytes, size: tuple[int, int] = (8, 8)) -> bytes:
    data = encoded(Image.new("L", size), "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


@cache
def zeros(megabytes: int) -> bytes:
    """So many MiB of zeros, deflated to a thousandth."""
    deflate = zlib.compressobj(9)
    return b"".join(deflate.compress(bytes(2**20)) for _ in range(megabytes)) + deflate.flush()


def resized(name: str, mark: bytes, at: int, form: str, *sides: int) -> bytes:
    """A seed whose header gives other sides."""
    data = SEEDS[name]
    start = data.index(mark) + at
    return data[:start] + struct.pack(form, *sides) + data[start + struct.calcsize(form) :]


def tiff(*entries: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    """Little-endian, gray, the data at 8 and the entries (tag, type, count, value) behind it."""
    known = [(258, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1), *entries]
    header = b"II*\0" + struct.pack("<L", 8 + len(data)) + data + struct.pack("<H", len(known))
    return header + b"".join(struct.pack("<HHLL", *entry) for entry in sorted(known)) + bytes(4)


def bmp_rle(width: int, height: int, runs: bytes, bits: int = 8) -> bytes:
    method = {8: 1, 4: 2}[bits]
    header = struct.pack("<LllHHLLllLL", 40, width, height, 1, bits, method, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<LLL", 0, 0, 14 + 40 + 1024) + header + bytes(1024) + runs


def scans(count: int) -> bytes:
    """A progressive JPEG with more scans than anybody writes, each a header and nothing."""
    data = encoded(Image.new("L", (64, 64), 100), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last : last + 10] * count + b"\xff\xd9"


def markers(count: int) -> bytes:
    data = SEEDS["RGB.jpg"]
    return data[:2] + b"\xff\xe5\0\2" * count + data[2:]


def segments(count: int) -> bytes:
    data = SEEDS["RGB.jpg"]
    return data[:2] + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65527)) * count + data[2:]


def overlapping_exif() -> bytes:
    """2 000 tags of 20 kB each, all of them the same 20 kB."""
    entries = b"".join(struct.pack("<HHLL", tag, 1, 20_000, 0) for tag in range(1, 2001))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 2000) + entries + bytes(4)


@cache
def lying_avif() -> bytes:
    data = encoded(Image.new("RGB", (2500, 2500)), "AVIF", speed=10)
    start = data.index(b"ispe") + 8
    return data[:start] + struct.pack(">LL", 16, 16) + data[start + 8 :]


# What it is -> (the file, what is said of it). None: it is taken, and that costs no more than another image.
BOMBS: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "PNG of 65000 x 65000": (lambda: repair(resized("RGB.png", b"IHDR", 4, ">LL", 65000, 65000)), "pixels"),
    "PNG, 200 MB in zTXt": (lambda: png_with(chunk(b"zTXt", b"a\0\0" + zeros(200))), ""),
    "PNG, 200 MB in iTXt": (lambda: png_with(chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(200))), ""),
    "PNG, 200 MB in iCCP": (lambda: png_with(chunk(b"iCCP", b"a\0\0" + zeros(200))), "corrupt"),
    "PNG, 200 MB in IDAT": (lambda: png_with(chunk(b"IDAT", zeros(200))), None),
    "PNG, EXIF of 40 MB from 24 kB": (lambda: png_with(chunk(b"eXIf", overlapping_exif())), None),
    "APNG, a frame of 65000 x 65000": (
        lambda: png_with(chunk(b"acTL", bytes([0, 0, 0, 9, 0, 0, 0, 0])))
        + chunk(b"fcTL", struct.pack(">LLLLLHHBB", 1, 65000, 65000, 0, 0, 1, 1, 0, 0)),
        None,
    ),
    "JPEG of 65535 x 65535": (lambda: resized("RGB.jpg", b"\xff\xc0", 5, ">HH", 65535, 65535), "pixels"),
    "JPEG, progressive, 65535 x 65535": (
        lambda: resized("RGB.progressive.jpg", b"\xff\xc2", 5, ">HH", 65535, 65535),
        "pixels",
    ),
    "JPEG of 5000 x 5000 without data": (lambda: resized("L.jpg", b"\xff\xc0", 5, ">HH", 5000, 5000), None),
    "JPEG, 5 000 scans": (lambda: scans(5000), "more than 100 scans"),
    "JPEG, 400 000 markers": (lambda: markers(400_000), "more than 1,000,000 pieces"),
    "JPEG, 400 segments of EXIF": (lambda: segments(400), "header"),
    "MPO of 65535 x 65535": (lambda: resized("two.mpo", b"\xff\xc0", 5, ">HH", 65535, 65535), "pixels"),
    "GIF, screen of 65535 x 65535": (lambda: resized("P.gif", b"GIF", 6, "<HH", 65535, 65535), "pixels"),
    "GIF, frame of 65535 x 65535": (lambda: resized("P.gif", b"\x2c\0\0\0\0", 5, "<HH", 65535, 65535), "pixels"),
    "GIF, 600 000 extensions": (
        lambda: SEEDS["L.gif"][:13] + bytes(768) + b"!\1\0" * 600_000,
        "pieces|corrupt|Not an image",
    ),
    "GIF, 16 MB of comment": (
        lambda: SEEDS["L.gif"][:13] + bytes(768) + b"!\xfe" + (b"\xff" + bytes(255)) * 65536 + SEEDS["L.gif"][781:],
        "header",
    ),
    "WebP, lossless, 16384 x 16384": (
        lambda: resized("lossless.webp", b"VP8L", 9, "<L", 16383 | 16383 << 14),
        "pixels|corrupt|Not an image",
    ),
    "WebP, lossy, 16383 x 16383": (
        lambda: resized("lossy.webp", b"\x9d\x01\x2a", 3, "<HH", 16383, 16383),
        "pixels|corrupt|Not an image",
    ),
    "TIFF of 60000 x 60000, deflated": (
        lambda: tiff(
            *[(256, 4, 1, 60000), (257, 4, 1, 60000), (259, 3, 1, 8), (273, 4, 1, 8), (279, 4, 1, 99)], data=zeros(1)
        ),
        "pixels",
    ),
    "TIFF of 16 x 16 in a tile of 20000 x 20000": (
        lambda: tiff(
            *[(256, 4, 1, 16), (257, 4, 1, 16), (259, 3, 1, 8), (322, 4, 1, 20000), (323, 4, 1, 20000)],
            *[(324, 4, 1, 8), (325, 4, 1, 99)],
            data=zeros(1),
        ),
        "20000 x 20000 pixels",
    ),
    "TIFF, a tag of 4 GB": (
        lambda: tiff((256, 4, 1, 9), (257, 4, 1, 9), (259, 3, 1, 1), (273, 4, 1, 8), (270, 2, 2**32 - 1, 8)),
        "",
    ),
    "TIFF, 300 000 strips of one pixel": (
        lambda: tiff(
            *[(256, 4, 1, 9), (257, 4, 1, 9), (259, 3, 1, 1), (273, 1, 300_000, 8), (278, 4, 1, 1), (279, 4, 1, 1)],
            data=bytes([8]) * 300_000,
        ),
        "",
    ),
    "TIFF, 2 000 000 strips": (
        lambda: tiff(
            *[(256, 4, 1, 9), (257, 4, 1, 9), (259, 3, 1, 1), (273, 1, 2_000_000, 8), (278, 4, 1, 1), (279, 4, 1, 1)],
            data=bytes(2_000_000),
        ),
        "more than 1,000,000 pieces",
    ),
    "BMP of 65000 x 65000": (lambda: resized("RGB.bmp", b"BM", 18, "<ll", 65000, 65000), "pixels"),
    "BMP, a run that goes up 255 lines of 80 000 000": (lambda: bmp_rle(80_000_000, 1, b"\0\2\xff\xff"), "pieces"),
    "BMP, the same of 65 536, in 4 bits": (lambda: bmp_rle(65_536, 1, b"\0\2\xff\xff", bits=4), "pieces"),
    "BMP, the same of lines that are taken": (lambda: bmp_rle(65_535, 100, b"\0\2\xff\xff" * 99), ""),
    "BMP, 600 000 runs": (lambda: bmp_rle(5000, 5000, b"\1\1" * 600_000), "pieces"),
    "PPM of 99999 x 99999": (lambda: b"P6 99999 99999 255\n", "pixels"),
    "PPM, 600 000 pixels one by one": (lambda: b"P5 2000 600 254\n" + bytes(1_200_000), "pieces"),
    "PPM, a number of 100 000 digits": (lambda: b"P2 2 2 255\n" + b"1" * 100_000, "corrupt"),
}  # fmt: skip
if ".avif" in Image.registered_extensions():
    BOMBS |= {
        "AVIF, 2500 x 2500 said to be 16 x 16": (lambda: lying_avif(), ""),
        "AVIF of 65536 x 65536": (lambda: resized("RGB.avif", b"ispe", 8, ">LL", 65536, 65536), "corrupt|Not|pixels"),
    }


def test_decompression_bombs_stay_within_bounds() -> None:
    """In a process that may grow by 2 GiB of addresses, and has 120 seconds of processor."""
    script = """
import re, resource, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
from resnext_hub.tests.processing_utils import test_hostile_images as tests
def status(key):  # MiB
    return int(open("/proc/self/status").read().split(key + ":")[1].split()[0]) // 1024
tests.load_pixels(tests.SEEDS["RGB.jpg"], tests.IMAGENET, "close")  # imports all that is needed
resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") * 2**20 + 2**31,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (120,) * 2)
for name, (make, expected) in tests.BOMBS.items():
    data = make()
    start = status("VmHWM")
    for grade in tests.GRADES if "JPEG" in name else ("reference", "fast"):  # of other formats, "close" is "fast"
        try:
            shape = tests.load_pixels(data, tests.IMAGENET, grade).shape
            print("FOUND" if expected else "", name, grade, shape)
        except tests.ImageError as error:
            wrong = expected is None or not re.search(expected, str(error)) or "MemoryError" in str(error)
            print("FOUND" if wrong else "", name, grade, error)
        if (more := status("VmHWM") - start) > 1000:
            print("FOUND", name, grade, more, "MiB")
print("DONE")
"""
    command = [sys.executable, "-c", script, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.stdout.endswith("DONE\n"), done.stdout + done.stderr
    assert "FOUND" not in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0\0\0\x18ftyphevc\0\0\0\0msf1hevc", "HEIC"),
        (b"%PDF-1.7\n", "PDF"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a "aaaa">]><svg>&a;</svg>', "SVG"),
        (b"8BPS\0\1\0\0\0\0\0\0\0\3", "PSD"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51\0\x2f", "JPEG 2000"),
        (encoded(Image.new("RGB", (16, 16)), "ICO"), "ICO"),
        (b"\xc5\xd0\xd3\xc6", "PostScript"),
        (b"\0\0\0\0", r"Not an image .*[A-Z, ]*\)\.$"),
    ],
)
def test_other_formats_are_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        open_image(data)


def test_postscript_is_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's plugin for EPS starts Ghostscript, with the file as its program."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", never)
    monkeypatch.setattr(subprocess, "Popen", never)
    eps = encoded(picture(), "EPS")
    with Image.open(io.BytesIO(eps)) as image:  # Pillow alone would
        assert image.format == "EPS"
        with pytest.raises(AssertionError):
            image.load()
    for data in (eps, b"\xff\xd8" + eps, SEEDS["RGB.jpg"][:20] + eps):
        for grade in GRADES:
            with pytest.raises(ImageError):
                load_pixels(data, IMAGENET, grade)


def test_formats_are_those_that_are_named() -> None:
    Image.init()
    for name in sorted(set(Image.SAVE) - set(images.FORMATS)):
        for mode in ("RGB", "L", "1", "P"):
            try:
                data = encoded(picture(32, 32).convert(mode), name)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, SystemError):
                continue
            if name != "DIB":  # no file: a BMP without its header
                with pytest.raises(ImageError, match="Not an image"):
                    open_image(data)
            break


# Sides and kinds.


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (7, 1), (1, 400)])
def test_tiny_images(format: str, size: tuple[int, int]) -> None:
    prepared = [load_pixels(encoded(picture(*size), format), IMAGENET, grade) for grade in GRADES]
    assert all(np.abs(pixels.astype(int) - prepared[0]).max() <= 2 for pixels in prepared)


def test_every_seed_is_prepared_alike_by_every_grade() -> None:
    """1, 8 and 16 bits, palettes with and without transparency, LA, CMYK, YCbCr, Lab, progressive, animated, …"""
    assert len(SEEDS) > 60
    refused = [name for name, data in SEEDS.items() if not prepare_image(data)]
    assert refused == []
    shapes = {name: np.asarray(open_image(data)).shape for name, data in SEEDS.items() if len(data) > 90}
    assert {name for name, shape in shapes.items() if shape != (18, 24, 3)} == {
        name for name in shapes if "turned" in name
    }


TURNED = {
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", TURNED)
def test_all_eight_orientations_in_every_format_that_has_them(format: str, orientation: int) -> None:
    if f".{format.lower()}" not in Image.registered_extensions():
        pytest.skip(f"needs Pillow with {format}")
    image = picture(300, 260)
    turn = TURNED[orientation]
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    data = encoded(image if turn is None else image.transpose(turn), format, exif=exif, quality=95)
    got = np.asarray(open_image(data)).astype(int)
    assert got.shape == (260, 300, 3)
    assert np.abs(got - np.asarray(image)).mean() < 6
    for grade in ("close", "fast"):
        reference = load_pixels(data, IMAGENET).astype(int)
        assert np.abs(load_pixels(data, IMAGENET, grade) - reference).max() <= 2


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_what_was_turned_is_not_turned_again(format: str) -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    once = open_image(encoded(picture(), format, exif=exif, **({"lossless": True} if format == "WEBP" else {})))
    assert once.size == (18, 24)
    assert np.array_equal(np.asarray(open_image(once)), np.asarray(once))


def exif_of(*entries: bytes) -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


SIDEWAYS = struct.pack("<HHLL", images.ORIENTATION, 3, 1, 6)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (b"Exif\0\0no TIFF at all", False),
        (b"Exif\0\0II*\0\x08\0", False),
        (b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01", False),
        (exif_of(struct.pack("<HHL4s", images.ORIENTATION, 2, 3, b"ab\0")), False),
        (exif_of(struct.pack("<HHLL", images.ORIENTATION, 3, 1, 99)), False),
        (exif_of(SIDEWAYS, struct.pack("<HHLL", 0x8769, 4, 1, 8)), True),  # a directory that is inside itself
        (exif_of(SIDEWAYS, struct.pack("<HHL4s", 0x9286, 12, 0, b"aaaa")), True),  # Pillow reads it and cannot write it
    ],
)
def test_odd_exif_spoils_no_photo(format: str, exif: bytes, turned: bool) -> None:
    """What cannot be read says nothing of how the photo is turned; browsers show such a one as it is."""
    data = encoded(picture(300, 260), format, exif=exif)
    assert open_image(data).size == ((260, 300) if turned else (300, 260))
    reference = load_pixels(data, IMAGENET).astype(int)
    for grade in ("close", "fast"):
        assert np.abs(load_pixels(data, IMAGENET, grade) - reference).max() <= 2


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("profile", [b"no profile at all", bytes(128), b"\xff" * 3000])
def test_a_colour_profile_changes_nothing_even_if_broken(format: str, profile: bytes) -> None:
    image = picture(300, 260)
    plain, profiled = (encoded(image, format, **options) for options in ({}, {"icc_profile": profile}))
    assert profile in profiled or format == "PNG"  # deflated there
    for grade in GRADES:
        assert np.array_equal(load_pixels(plain, IMAGENET, grade), load_pixels(profiled, IMAGENET, grade))


def test_cmyk_of_adobe_is_inverted_and_ycck_is_converted() -> None:
    """Photoshop stores CMYK upside down, and says so in a segment of its own; Pillow writes it so, too."""
    image = picture(300, 260)
    data = encoded(image.convert("CMYK"), "JPEG", quality=98, subsampling=0)
    mark = data.index(b"Adobe")
    assert np.abs(np.asarray(open_image(data)).astype(int) - np.asarray(image)).mean() < 4
    ycck = data[: mark + 11] + b"\2" + data[mark + 12 :]  # the same numbers, said to be YCbCr and K
    for kind in (data, ycck):
        reference = load_pixels(kind, IMAGENET).astype(int)
        for grade in ("close", "fast"):
            assert np.abs(load_pixels(kind, IMAGENET, grade) - reference).max() <= 1
    assert not np.array_equal(np.asarray(open_image(ycck)), np.asarray(open_image(data)))


@pytest.mark.parametrize(("name", "sof", "arithmetic"), [("RGB.jpg", 0xC0, 0xC9), ("RGB.progressive.jpg", 0xC2, 0xCA)])
def test_arithmetic_coding_is_taken_alike(name: str, sof: int, arithmetic: int) -> None:
    """Pillow cannot write it. Of Huffman codes called arithmetic any decoder makes noise, and must make the same."""
    prepare_image(SEEDS[name].replace(bytes([0xFF, sof]), bytes([0xFF, arithmetic]), 1))


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_every_seed_cut_short_anywhere(name: str) -> None:
    data = SEEDS[name]
    for length in range(0, len(data), max(1, len(data) // 25)):
        prepare_image(data[:length])


# Structure-aware: a whole file, some of its bytes changed and its checksums corrected, often where the header is.
edits = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 60), st.integers(0, 2000)),
        st.one_of(st.binary(max_size=8), st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff", b"\0\1"])),
        st.sampled_from(["replace", "insert", "delete"]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150)
@given(st.sampled_from(["", *sorted(SEEDS)]), edits)
def test_any_mutation_of_any_format_is_prepared_alike_or_refused(
    name: str, edits: list[tuple[int, bytes, str]]
) -> None:
    data = SEEDS.get(name, b"")
    for at, value, how in edits:
        at %= len(data) + 1
        data = data[:at] + (b"" if how == "delete" else value) + data[at + (0 if how == "insert" else len(value)) :]
    prepare_image(repair(data))


# Files that fuzzing has found, and what they showed.
FOUND = {
    "a PNG that Pillow loads, halved, when asked for it the second time": (
        "89504e470d0a1a0a0000000d4948445200000018000000120403000000b3c203ad00000018504c5445b4cd8d35cd1eb48601"
        "000000000000000ec835466b350e266b3101810000005c49444154789c4d8dc10d8050372084000005a21fc3393e79c5e24e"
        "9fb144ae426e9060171400008200"
    )
}


@pytest.mark.parametrize("data", FOUND.values(), ids=FOUND)
def test_what_fuzzing_found(data: str) -> None:
    assert not prepare_image(bytes.fromhex(data))


def test_sixteen_bits_are_rounded_to_the_nearest() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257).astype(np.uint8)
    assert np.array_equal(np.asarray(open_image(encoded(Image.fromarray(values), "PNG")))[:, :, 0], expected)
