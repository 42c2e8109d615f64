"""The pixels of a window are Pillow's, whatever the sizes; small arrays, so that every size can be tried."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from resnext_hub.processing_utils.resampling import FILTERS, Window, _even_runs, _on_means, _weights, resize_window

each_filter = pytest.mark.parametrize("interpolation", FILTERS)

WINDOWS = {
    "smaller": Window((60, 40), (30, 20), 5, 0, 20),
    "far smaller, at the left and the top": Window((200, 150), (16, 12), 0, 0, 12),
    "far smaller, at the right and the bottom": Window((200, 150), (16, 12), 4, 0, 12),
    "larger": Window((20, 30), (48, 72), 8, 20, 32),
    "hardly smaller": Window((101, 99), (97, 95), 1, 2, 93),
    "of an odd size": Window((83, 61), (31, 23), 3, 1, 21),
    "narrower and taller": Window((90, 20), (30, 40), 6, 12, 24),
    "tall": Window((30, 50), (15, 25), 0, 5, 15),
    "of one pixel": Window((50, 50), (7, 7), 3, 3, 1),
    "of an image of one row": Window((40, 1), (40, 8), 16, 0, 8),
    "of an image of one pixel": Window((1, 1), (8, 8), 0, 0, 8),
}


def pillows(pixels: np.ndarray, window: Window, interpolation: str) -> np.ndarray:
    image = Image.fromarray(pixels).resize(window.scaled, Image.Resampling[interpolation.upper()])
    right, bottom = window.left + window.crop, window.top + window.crop
    return np.asarray(image.crop((window.left, window.top, right, bottom)))


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Black, white and what is between: bicubic filters overshoot on it."""
    random = np.random.default_rng(seed)
    return random.choice(np.asarray([0, 255, 255, 0, 90, 181], np.uint8), (height, width, 3))


@each_filter
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS.keys())
def test_a_window_is_pillows(window: Window, interpolation: str) -> None:
    pixels = noise(*window.size)
    got = resize_window(pixels, window, interpolation)
    expected = pillows(pixels, window, interpolation)
    assert (got.shape, got.dtype) == (expected.shape, np.uint8)
    off = got.astype(int) - expected
    assert np.abs(off).max() <= 1
    assert abs(off.mean()) < 0.2, "rounded, not cut off"
    assert (off == 0).mean() > 0.7


@each_filter
def test_many_sizes(interpolation: str) -> None:
    random = np.random.default_rng(1)
    for _ in range(60):
        width, height, wide, high = (int(n) for n in random.integers(1, 70, 4))
        if interpolation == "bicubic":  # Pillow 13 begins with the columns where that costs less: overshoots differ
            height, high = min(width, height), max(1, wide * min(width, height) // width)
        crop = int(random.integers(1, min(wide, high) + 1))
        left, top = int(random.integers(0, wide - crop + 1)), int(random.integers(0, high - crop + 1))
        window = Window((width, height), (wide, high), left, top, crop)
        off = resize_window(noise(width, height), window, interpolation).astype(int)
        assert np.abs(off - pillows(noise(width, height), window, interpolation)).max() <= 1, window


@each_filter
def test_large_images_are_taken_in_strips(interpolation: str) -> None:
    window = Window((3000, 700), (43, 10), 16, 0, 10)
    pixels = noise(*window.size)
    off = resize_window(pixels, window, interpolation).astype(int) - pillows(pixels, window, interpolation)
    assert np.abs(off).max() <= 1


def test_any_strides_are_taken() -> None:
    window = WINDOWS["smaller"]
    pixels = noise(*window.size)
    expected = resize_window(pixels, window, "bilinear")
    mirrored = np.ascontiguousarray(pixels[::-1, ::-1])[::-1, ::-1]
    assert np.array_equal(resize_window(mirrored, window, "bilinear"), expected)


@each_filter
@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("size", [(160, 120), (161, 123)])
def test_means_of_squares_stand_for_smooth_pictures(size: tuple[int, int], factor: int, interpolation: str) -> None:
    width, height = size
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    picture = np.stack([255 * (x + 1) / 2, 128 + 100 * np.sin(3 * y), 250 * np.exp(-2 * (x**2 + y**2))], -1)
    pixels = np.rint(picture).astype(np.uint8)
    window = Window(size, (16, 12), 2, 0, 12)
    means = np.asarray(Image.fromarray(pixels).reduce(factor))
    off = resize_window(means, window, interpolation, factor=factor).astype(int) - pillows(
        pixels, window, interpolation
    )
    assert np.abs(off).max() <= 2
    assert abs(off.mean()) < 0.3


@each_filter
@pytest.mark.parametrize("factor", [2, 4])
def test_means_of_a_parabola_give_what_its_pixels_give(factor: int, interpolation: str) -> None:
    length, cells = 96, 96 // factor
    x = np.arange(length)
    for values in (np.ones(length), 3.0 * x, 0.01 * (x - 40.0) ** 2 + x):
        starts, weights = _weights(length, 12, 0, 12, interpolation)
        expected = [(values[s : s + len(w)] * w[: length - s]).sum() for s, w in zip(starts, weights, strict=True)]
        low, spread = _on_means(starts, weights, factor, cells)
        means = np.append(values.reshape(-1, factor).mean(1), np.zeros(spread.shape[1]))
        got = [(means[at : at + len(w)] * w).sum() for at, w in zip(low, spread, strict=True)]
        inner = slice(None) if values[0] == values[-1] else slice(2, -2)  # at the edge a neighbour is missing
        np.testing.assert_allclose(got[inner], expected[inner], atol=1e-4)


@each_filter
def test_weights_are_the_filters(interpolation: str) -> None:
    starts, weights = _weights(100, 25, 5, 10, interpolation)
    reach = {"bilinear": 4, "bicubic": 8}[interpolation]  # pixels to either side of a centre, every fourth a result
    assert np.array_equal(starts, 4 * np.arange(5, 15) + 2 - reach)
    assert weights.shape == (10, 2 * reach)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(weights * 2**22, np.rint(weights * 2**22)), "Pillow's fixed point"
    np.testing.assert_allclose(weights, weights[:, ::-1], atol=1e-6)
    assert (weights.min() < 0) == (interpolation == "bicubic")


def test_runs_hold_what_their_blocks_need() -> None:
    random = np.random.default_rng(2)
    for _ in range(300):
        blocks, length = int(random.integers(1, 12)), int(random.integers(8, 90))
        needed = int(random.integers(1, min(8, length)))
        reach = min(needed + int(random.integers(0, 3)), length)
        firsts = sorted(int(n) for n in random.integers(0, length - needed + 1, blocks))
        runs, step = _even_runs(firsts, needed, reach, length)
        begins = [at + step * k for at, count in runs for k in range(count)]
        assert len(begins) == blocks
        for begin, first in zip(begins, firsts, strict=True):
            assert 0 <= begin <= min(first, length - reach)
            assert begin + reach >= first + needed


def test_even_distances_are_one_run() -> None:
    assert _even_runs([0, 4, 8, 12], 5, 7, 40) == ([(0, 4)], 4)
    assert _even_runs([3, 7, 11, 14], 5, 7, 40) == ([(1, 4)], 4), "the slack makes them even"
    assert _even_runs([0, 4, 8, 30, 34], 5, 7, 40)[0] != [(0, 5)]
    assert _even_runs([6], 5, 7, 40) == ([(4, 1)], 0)


def test_where_a_window_lies() -> None:
    inside = Window((60, 40), (30, 20), 0, 0, 20)
    assert inside.is_inside
    assert Window((60, 40), (30, 20), 10, 0, 20).is_inside
    for left, top in ((-1, 0), (0, -1), (11, 0), (0, 1)):
        assert not Window((60, 40), (30, 20), left, top, 20).is_inside
    assert inside.scale == 2
    assert Window((90, 40), (30, 20), 0, 0, 20).scale == 2, "the smaller of both"
    assert Window((60, 80), (30, 20), 0, 0, 20).scale == 2
