"""At the edges of what `open_image` and `prepare_pixels` take, and the words in which they refuse the rest."""

from __future__ import annotations

import io
import re
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from resnext_hub.errors import FetchError, ImageError
from resnext_hub.models.manifest import default_manifest
from resnext_hub.processing_utils import images, open_image, prepare_input_from_uri, prepare_inputs, prepare_pixels
from resnext_hub.processing_utils.images import MAX_PIXELS, is_encoded, read_encoded
from resnext_hub.processing_utils.inputs import WORKERS

PRESET = default_manifest().resolve("resnext_tiny").preprocessing


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(ImageError) as error:
        open_image(source, **options)
    return str(error.value)


# The limits of `test_hostile_images`, made small.


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
        assert "more than 699 pieces" in refusal(data)
        monkeypatch.setattr(images, "MAX_READS", 700)
        assert "pieces" not in refusal(data)


def test_a_file_of_too_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    file = images._Rationed(b"abcdef")
    monkeypatch.setattr(images, "MAX_READS", 3)
    assert [file.read(2) for _ in range(3)] == [b"ab", b"cd", b"ef"]
    with pytest.raises(ImageError, match="more than 3 pieces"):
        file.read(2)


def test_a_jpeg_of_too_many_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    def jpeg(progressive: bool) -> bytes:
        Image.new("L", (40, 30)).save(file := io.BytesIO(), "JPEG", progressive=progressive)
        return file.getvalue()

    scans = len(images.SCAN.findall(jpeg(True)))
    monkeypatch.setattr(images, "MAX_SCANS", scans)
    assert open_image(jpeg(True)).size == (40, 30)
    monkeypatch.setattr(images, "MAX_SCANS", scans - 1)
    assert f"more than {scans - 1} scans" in refusal(jpeg(True))
    monkeypatch.setattr(images, "MAX_SCANS", 0)
    assert open_image(jpeg(False)).size == (40, 30)


def test_a_tile_larger_than_its_image() -> None:
    entries = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 277: 1, 322: 32, 323: 48, 324: 8, 325: 32 * 48}
    known = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in entries.items())
    data = (
        b"II*\0" + struct.pack("<L", 8 + 32 * 48) + bytes(32 * 48) + struct.pack("<H", len(entries)) + known + bytes(4)
    )
    assert open_image(data, max_pixels=1536).size == (16, 16)
    assert re.search(r"tiles of 32 x 48 .* 1,535", refusal(data, max_pixels=1535))


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


def test_integers_of_more_than_eight_bits() -> None:
    for value, gray in ((0, 0), (65535, 255), (128, 0), (129, 1)):
        assert open_image(Image.new("I", (2, 1), value)).getpixel((0, 0)) == (gray,) * 3
    for value in (-1, 65536):
        assert f"from {value} to {value} are not 16-bit" in refusal(Image.new("I", (2, 1), value))
    assert "has no defined white" in refusal(Image.new("F", (2, 2)))


def test_pil_images_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(Image.new("RGB", (0, 5))) == "The image has no pixels: 0 x 5."
    assert refusal(Image.new("RGB", (5, 0))) == "The image has no pixels: 5 x 0."
    assert open_image(Image.new("RGB", (1, 1))).size == (1, 1)
    data = png(Image.effect_noise((64, 64), 50))
    with Image.open(io.BytesIO(data[: len(data) // 2])) as cut:
        assert refusal(cut).startswith("The PIL image cannot be used: ")

    def no_form(self: Image.Image, mode: str) -> Image.Image:
        raise ValueError("conversion not supported")

    monkeypatch.setattr(Image.Image, "convert", no_form)
    assert re.search("mode LAB .*conversion not supported", refusal(Image.new("LAB", (2, 2))))


def test_limits_are_the_last_that_is_taken(tmp_path: Path) -> None:
    data = png(Image.new("RGB", (40, 30)))
    assert open_image(data, max_pixels=1200).size == (40, 30)
    assert re.search("40 x 30 pixels.* 1,199", refusal(data, max_pixels=1199))
    assert open_image(data, max_bytes=len(data)).size == (40, 30)
    assert "1,000 bytes" in refusal(data * 20, max_bytes=1000)
    assert refusal(io.BytesIO(data), max_bytes=len(data) - 1).startswith("The image has more than")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(FetchError, match="bytes, more than the"):
        open_image(path, max_bytes=len(data) - 1)
    with pytest.raises(FetchError, match="bytes, more than the"):
        open_image(path.as_uri(), max_bytes=len(data) - 1)


def test_a_stream_is_read_no_further_than_the_limit() -> None:
    class Endless(io.RawIOBase):
        asked = 0

        def read(self, size: int = -1) -> bytes:
            self.asked = size
            return b"x" * size

    stream = Endless()
    with pytest.raises(ImageError, match="more than the 1,000 bytes"):
        read_encoded(stream, max_bytes=1000)
    assert stream.asked == 1001


def test_files_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(Image.new("RGB", (4, 4))))
    for source in (path, str(path)):
        assert open_image(source, schemes=("file",)).size == (4, 4)
        with pytest.raises(FetchError, match="Files on this machine"):
            open_image(source, schemes=("http", "https"))


@pytest.mark.parametrize("source", [None, 3, ["a.jpg"], {"bytes": b""}, io.StringIO("text")])
def test_what_is_no_image(source: Any) -> None:
    assert refusal(source).endswith(f" numpy array or tensor, not {type(source).__name__}.")


def test_what_is_encoded() -> None:
    for source in ("a.jpg", b"", Path("a"), io.BytesIO()):
        assert is_encoded(source)
    for source in (np.zeros((2, 2)), Image.new("L", (2, 2)), torch.zeros(1, 2, 2)):
        assert not is_encoded(source)


def test_bytes_that_are_no_image() -> None:
    assert refusal(b"") == "The image is empty: 0 bytes."
    plain = refusal(b"something else")
    assert re.search("Not an image .*JPEG, MPO, PNG, ", plain)
    assert "something else" not in plain, "a stranger is told nothing of the content"
    for page in (b"\n  <!DOCTYPE html>", b"<HTML lang=en>"):
        assert refusal(page) == f"{plain} It looks like a web page."
    data = png(Image.effect_noise((64, 64), 50))
    assert refusal(data[: len(data) // 2]).startswith("The image is corrupt or incomplete: ")


def test_pillows_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert refusal(png(Image.new("1", (50, 50)))).startswith(
        "The image has more pixels than Pillow accepts: Image size"
    )
    assert MAX_PIXELS == 1024**3 // 4 // 3, "the number that Pillow warns at"


def test_whatever_a_decoder_raises_is_an_image_error() -> None:
    data = png(Image.new("L", (2, 2)))
    for error, text in ((SyntaxError("odd"), "SyntaxError: odd"), (OSError("cut"), "cut")):

        def load(self: Any, *, error: Exception = error) -> None:
            raise error

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PngImageFile, "load", load)
            assert refusal(data) == f"The image is corrupt or incomplete: {text}."


# Many images at once.


def shade(value: int) -> np.ndarray:
    return np.full((80, 80, 3), value, np.uint8)


def test_order_and_shape() -> None:
    pixels = prepare_pixels([shade(i) for i in range(20)], PRESET)
    crop = PRESET.crop_size
    assert (pixels.shape, pixels.dtype) == ((20, crop, crop, 3), np.uint8)
    assert pixels[:, 5, 5, 0].tolist() == list(range(20))
    none = prepare_pixels([], PRESET)
    assert (none.shape, none.dtype) == ((0, crop, crop, 3), np.uint8)


def test_the_message_says_which(tmp_path: Path) -> None:
    def message(*images: Any, **options: Any) -> str:
        with pytest.raises((ImageError, FetchError, FileNotFoundError)) as error:
            prepare_pixels(images, PRESET, **options)
        return str(error.value)

    missing = tmp_path / "none.jpg"
    assert message(shade(1), b"") == "Image 1: The image is empty: 0 bytes."
    assert message(b"", b"") == "Image 0: The image is empty: 0 bytes."
    assert message(shade(1), b"", first=100) == "Image 101: The image is empty: 0 bytes."
    assert message(shade(1), b"", first=None) == "The image is empty: 0 bytes."
    assert message(missing) == f"Image 0: No such file: {missing}"
    assert message(str(missing)) == f"Image 0: No such file: {missing}"
    assert message("x" * 300).startswith(f"Image 0: {'x' * 200}: ")
    assert "max_pixels" not in message(shade(1), png(Image.new("L", (9, 9))), max_pixels=80)
    with pytest.raises(FileNotFoundError):
        prepare_pixels([missing], PRESET)
    with pytest.raises(FetchError):
        prepare_pixels(["ftp://example.org/a.jpg"], PRESET)


def test_several_are_read_at_once_and_none_after_a_failure() -> None:
    together = threading.Barrier(WORKERS)

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            together.wait(timeout=60)
            return super().read(size)

    data = png(Image.new("RGB", (80, 80)))
    assert len(prepare_pixels([Slow(data) for _ in range(WORKERS)], PRESET)) == WORKERS


def test_batches() -> None:
    batch = prepare_inputs(iter([shade(0), shade(255)]), variant="resnext_tiny")
    assert (batch.shape, batch.dtype) == ((2, 3, PRESET.crop_size, PRESET.crop_size), torch.float32)
    expected = (torch.tensor([0.0, 1.0])[:, None] - torch.tensor(PRESET.mean)) / torch.tensor(PRESET.std)
    torch.testing.assert_close(batch[:, :, 3, 3], expected)
    for one in ("a.jpg", b"abc"):
        with pytest.raises(TypeError, match="list of images.* prepare_input_from_uri"):
            prepare_inputs(one)
    assert prepare_input_from_uri(shade(7)).shape == (1, 3, 224, 224)
    with pytest.raises(ImageError, match="pixels"):
        prepare_input_from_uri(png(Image.new("L", (9, 9))), max_pixels=80)
    assert torch.equal(prepare_input_from_uri(shade(255), variant="resnext_tiny"), batch[1:])
    with pytest.raises(ImageError, match=r"^The image is empty"):
        prepare_input_from_uri(b"")


def test_cuda_puts_the_batch_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: ("on the GPU", self.shape))
    assert prepare_inputs([shade(1)], cuda=True) == ("on the GPU", (1, 3, 224, 224))
    assert prepare_input_from_uri(shade(1), cuda=True) == ("on the GPU", (1, 3, 224, 224))
    assert prepare_input_from_uri(shade(1), True) == ("on the GPU", (1, 3, 224, 224))
    assert isinstance(prepare_inputs([shade(1)]), torch.Tensor)
