"""Resumable runs over made-up images with an engine that computes nothing, and small JPEG files."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from resnext_hub.data.shards import Item
from resnext_hub.inference.bulk import Predictor
from resnext_hub.inference.resumable import Summary, process_shards, run
from resnext_hub.processing_utils.labels import read_labels

TINY = "resnext_tiny"


def jpeg(seed: int, size: tuple[int, int] = (80, 64)) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).resize(size).save(file, "JPEG", quality=90)
    return file.getvalue()


class Double:
    """An engine whose answer is the image's mean colour; it can be told when to fail and counts who is inside."""

    name, precision, threads, device = "double", "fp32", 1, "cpu"
    pause = 0.002

    def __init__(self, concurrent: bool = True, fail_at: int = 10**9) -> None:
        self.concurrent, self.fail_at = concurrent, fail_at
        self.calls = self.inside = self.most = 0

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.inside += 1
        self.calls += 1
        self.most = max(self.most, self.inside)
        time.sleep(self.pause)
        self.inside -= 1
        if self.calls >= self.fail_at:
            raise RuntimeError("the engine is broken")
        logits = np.zeros((len(pixels), 200), np.float32)
        logits[:, :3] = pixels.mean(axis=(1, 2)) / 10
        if pixels.shape[1] == 2:  # see test_scores_that_are_no_numbers
            logits[pixels[:, 0, 0, 0] == 7] = np.nan
        return logits, logits[:, :4]


@dataclasses.dataclass(frozen=True)
class Made:
    """A shard of images that are made as they are read."""

    first: int
    size: int
    remote: bool = False

    def items(self, start: int = 0) -> Iterator[Item]:
        for i in range(self.first + start, self.first + self.size):
            yield Item(f"{i:07d}", lambda i=i: bytes([i % 251, i % 241, i % 239]))

    def fingerprint(self) -> str:
        return f"{self.first} {self.size}"

    def __len__(self) -> int:
        return self.size


def made_pixels(data: bytes) -> np.ndarray:
    return np.broadcast_to(np.frombuffer(data, np.uint8), (2, 2, 3))


def made_predictor(**options: Any) -> Predictor:
    return Predictor(Double(**options), made_pixels, read_labels("tiny-imagenet-200"), 2, None)


def made_run(
    out: Path,
    total: int = 300,
    size: int = 50,
    predictor: Predictor | None = None,
    seconds: float = 0.0,
    identity: dict[str, Any] | None = None,
    **options: Any,
) -> Summary:
    make_rows = predictor or made_predictor()
    process = partial(process_shards, make_rows=make_rows, batch=8, workers=3, commit_seconds=seconds)
    shards = (Made(i, min(size, total - i)) for i in range(0, total, size))
    return run(out, identity or {"top": 2, "grade": "close"}, shards, process, **options)
