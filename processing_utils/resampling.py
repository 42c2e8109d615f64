"""Only the pixels of a crop, resized as Pillow does it, as products with banded matrices. numpy; no torch.

Every output column is a weighted mean of a few input columns, then every output row one of a few rows. Pillow computes
both passes pixel by pixel. Here eight outputs at a time are one small matrix product, which BLAS does with the
processor's widest vectors; the weights are Pillow's own, in its own fixed point, and only what the crop needs is
computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

__all__ = ["FILTERS", "Window", "resize_window"]

FILTERS = ("bilinear", "bicubic")

PRECISION = 2**22  # Pillow's weights are integers in units of 1/2**22 (Resample.c: PRECISION_BITS)
# OpenBLAS splits a product of more than this many multiplications over threads (65536 * GEMM_MULTITHREAD_THRESHOLD);
# images are decoded in many threads already.
ONE_THREAD = 262_144
SLACK = 2  # inputs more than a block needs, so that blocks at uneven distances can be taken at even ones


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

    @property
    def is_inside(self) -> bool:
        """Whether all of the crop lies in the resized image."""
        (width, height), crop = self.scaled, self.crop
        return 0 <= self.left <= width - crop and 0 <= self.top <= height - crop

    @property
    def scale(self) -> float:
        """How many pixels of the image one pixel of the result spans, on the axis where they are fewer."""
        return min(self.size[0] / self.scaled[0], self.size[1] / self.scaled[1])


@dataclass(frozen=True)
class _Run:
    """Neighbouring blocks of outputs whose inputs begin at even distances: numpy multiplies them in one call."""

    matrices: np.ndarray
    block: int  # the number of the first
    at: int  # where the inputs of the first begin
    step: int  # ... and how much later those of each further one


@dataclass(frozen=True)
class _Axis:
    """The weights of one axis, of the inputs from ``start`` to ``stop``."""

    start: int
    stop: int
    runs: tuple[_Run, ...]


def resize_window(pixels: np.ndarray, window: Window, interpolation: str, *, factor: int = 1) -> np.ndarray:
    """(H, W, 3) uint8 -> (crop, crop, 3) uint8: the window of the resized image, at most 1 off Pillow's.

    Pillow rounds to 8 bits between the passes, which moves a result by half a unit at most (bicubic: 0.63). Here
    nothing is rounded before the end, so no value is off by more than 1. To round as Pillow does would be nearer on the
    average and not so sure: where many sums end in .5, float32 and Pillow's integers round them differently, twice.

    Args:
        pixels: the image of ``window.size``, any strides; or, with a factor, the means of its squares of factor x
            factor pixels, ceil(H / factor) x ceil(W / factor), as JPEG decoders and `Image.reduce` give them.
        interpolation: one of `FILTERS`.
    """
    crop = window.crop
    columns = _axis(window.size[0], window.scaled[0], window.left, crop, interpolation, factor, channels=3)
    rows = _axis(window.size[1], window.scaled[1], window.top, crop, interpolation, factor, channels=1)
    needed = pixels[rows.start : rows.stop, columns.start : columns.stop]
    height, width = needed.shape[0], needed.shape[1] * 3
    between = np.empty((height, crop * 3), np.float32)
    # A strip of the image at a time: a large one as float32 would fill the memory.
    strip = np.empty((min(height, max(1, ONE_THREAD // columns.runs[0].matrices[0].size)), width), np.float32)
    for top in range(0, height, len(strip)):
        values = strip[: height - top]
        values.reshape(len(values), -1, 3)[...] = needed[top : top + len(values)]
        for run in columns.runs:
            count, reach, outputs = run.matrices.shape
            inputs = _windows(values, run.at, (count, len(values), reach), (run.step, width, 1))
            target = between[top : top + len(values)]
            to = _windows(target, run.block * outputs, (count, len(values), outputs), (outputs, crop * 3, 1))
            np.matmul(inputs, run.matrices, out=to)
    if interpolation == "bicubic":  # overshoots, and Pillow cuts that off between the passes too
        np.clip(between, 0, 255, out=between)
    result = np.empty((crop, crop * 3), np.uint8)
    for run in rows.runs:
        count, outputs, reach = run.matrices.shape
        inputs = _windows(between, run.at * crop * 3, (count, reach, crop * 3), (run.step * crop * 3, crop * 3, 1))
        values = np.matmul(run.matrices, inputs).reshape(-1, crop * 3)
        values += np.float32(0.5)
        if interpolation == "bicubic" or factor > 1:
            np.clip(values, 0, 255, out=values)
        result[run.block * outputs :][: len(values)] = values
    return result.reshape(crop, crop, 3)


def _windows(values: np.ndarray, at: int, shape: tuple[int, int, int], strides: tuple[int, int, int]) -> np.ndarray:
    """A view of float32 values; numpy's `as_strided` in a tenth of its time, and checked. Strides count values."""
    return np.ndarray(shape, np.float32, values, 4 * at, tuple(4 * stride for stride in strides))


@lru_cache(maxsize=128)  # 150 kB each for photos near the target size
def _axis(length: int, scaled: int, first: int, count: int, interpolation: str, factor: int, channels: int) -> _Axis:
    starts, weights = _weights(length, scaled, first, count, interpolation)
    if factor > 1:
        starts, weights = _on_means(starts, weights, factor, -(-length // factor))
        length = -(-length // factor)
    taps = weights.shape[1]
    block = math.gcd(count, 8 if taps <= 8 else 4 if taps <= 16 else 2)
    firsts = starts[::block]
    needed = min(int((starts[block - 1 :: block] - firsts).max()) + taps, length)
    reach = min(needed + SLACK, length)
    runs, step = _even_runs(np.minimum(firsts, length - needed).tolist(), needed, reach, length)
    origins = np.concatenate([at + step * np.arange(blocks) for at, blocks in runs])
    banded = np.zeros((count, reach), np.float32)
    row, tap = np.nonzero(weights)
    banded[row, (starts - np.repeat(origins, block))[row] + tap] = weights[row, tap]
    matrices = banded.reshape(-1, block, reach)
    if channels > 1:  # columns: the pixels' channels lie side by side, and the matrix is on the right
        apart = np.zeros((len(origins), reach, channels, block, channels), np.float32)
        for channel in range(channels):
            apart[:, :, channel, :, channel] = matrices.transpose(0, 2, 1)
        matrices = apart.reshape(len(origins), reach * channels, block * channels)
    start, stop = int(origins.min()), int(origins.max()) + reach
    parts: list[_Run] = []
    done = 0
    for at, blocks in runs:
        parts.append(_Run(matrices[done : done + blocks], done, (at - start) * channels, step * channels))
        done += blocks
    return _Axis(start, stop, tuple(parts))


def _even_runs(firsts: list[int], needed: int, reach: int, length: int) -> tuple[list[tuple[int, int]], int]:
    """[(where its first window begins, how many)], and the distance of windows of ``reach`` inputs.

    The windows of each run begin at even distances, lie within the ``length`` inputs, and each holds the ``needed``
    inputs from its block's first.
    """
    step = round((firsts[-1] - firsts[0]) / max(1, len(firsts) - 1))
    runs: list[tuple[int, int]] = []
    low, high, blocks = 0, length, 0
    for first in firsts:
        moved = step * blocks
        least = max(low, first + needed - reach - moved, -moved)
        most = min(high, first - moved, length - reach - moved)
        if blocks and least > most:
            runs.append((low, blocks))
            blocks = 0
            least, most = max(0, first + needed - reach), min(first, length - reach)
        low, high, blocks = least, most, blocks + 1
    return [*runs, (low, blocks)], step


def _weights(length: int, scaled: int, first: int, count: int, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """(count,) first inputs and (count, taps) weights of the outputs from ``first``: Pillow's precompute_coeffs."""
    scale = length / scaled
    stretch = max(scale, 1.0)
    support = stretch * (2.0 if interpolation == "bicubic" else 1.0)
    centers = (np.arange(first, first + count) + 0.5) * scale
    starts = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    stops = np.minimum((centers + support + 0.5).astype(np.int64), length)
    inputs = starts[:, None] + np.arange(int((stops - starts).max()))
    distances = np.abs((inputs - centers[:, None] + 0.5) / stretch)
    if interpolation == "bicubic":  # Keys' cubic with a = -0.5, as Pillow's
        near = (1.5 * distances - 2.5) * distances * distances + 1
        far = ((-0.5 * distances + 2.5) * distances - 4) * distances + 2
        values = np.where(distances < 1, near, np.where(distances < 2, far, 0.0))
    else:
        values = np.maximum(0.0, 1.0 - distances)
    values[inputs >= stops[:, None]] = 0.0
    values /= values.sum(axis=1, keepdims=True)
    return starts, np.rint(values * PRECISION) / PRECISION


def _on_means(starts: np.ndarray, weights: np.ndarray, factor: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """The same filter for an image of which only the means of ``factor`` neighbours are known.

    Resizing the means with a narrower filter would ignore how the pixels run within a cell. Here they are first thought
    back, as the parabola that has the means of the cell and of its two neighbours, and the filter is applied to that;
    all of it is linear, so it is again a matter of weights. Exact where the image is a parabola at this size.
    """
    taps: int = weights.shape[1]
    inputs = starts[:, None] + np.arange(taps)
    inside = (inputs % factor + 0.5) / factor - 0.5  # the place within a cell, -0.5..0.5
    bend = inside**2 - (1 - factor**-2) / 12  # of mean zero over the cell
    cell = inputs // factor
    low = np.maximum(cell[:, 0] - 1, 0)
    spread = np.zeros((len(starts), taps // factor + 4))
    row = np.broadcast_to(np.arange(len(starts))[:, None], cell.shape)
    for step, share in ((-1, (bend - inside) / 2), (0, 1 - bend), (1, (bend + inside) / 2)):
        np.add.at(spread, (row, np.clip(cell + step, 0, cells - 1) - low[:, None]), weights * share)
    return low, spread
