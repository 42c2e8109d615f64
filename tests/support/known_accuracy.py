"""Images whose colour is their number, and a network that answers from a table: the accuracy is known."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from resnext_hub.evaluation.predict import Contender
from resnext_hub.inference.engines import Engine
from resnext_hub.models.manifest import default_manifest
from resnext_hub.processing_utils.labels import read_labels

from .data_sets import write

LABELS = read_labels("imagenet-1k")
IMAGES = 41
CHECKPOINT = default_manifest().resolve("resnext50_32x4d_swsl")
PRESET = dataclasses.replace(CHECKPOINT.preprocessing, resize_size=8, crop_size=8)
# What the double answers, from its seat at the table: the target's place among its best, 0 for the first.
PLACES = [0] * 19 + [1, 2, 3, 4] * 3 + [5, 6] * 5
TOP1, TOP5 = 19, 31
CLASSES = [int(c) for c in np.random.default_rng(1).integers(0, 1000, IMAGES)]


def table_of(classes: Sequence[int], places: Sequence[int] = PLACES, num_classes: int = 1000) -> np.ndarray:
    """Logits (N, num_classes) that put each class at its place."""
    logits = np.random.default_rng(0).uniform(0, 1, (len(classes), num_classes)).astype(np.float32)
    for row, (target, place) in enumerate(zip(classes, places, strict=True)):
        others = [c for c in range(num_classes) if c != target][row : row + 8]
        order = [*others[:place], target, *others[place:]]
        logits[row, order[:8]] = np.arange(8, 0, -1) + 2
    return logits


class Double(Engine):
    """A network that answers from a table: an image is one colour, which is its number."""

    name = "double"
    concurrent = True

    def __init__(self, table: np.ndarray, stop_after: int | None = None) -> None:
        self.table, self.stop_after, self.seen = table, stop_after, 0

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.stop_after is not None and self.seen >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(pixels)
        numbers = pixels[:, 0, 0, 0].astype(int) + 256 * pixels[:, 0, 0, 1].astype(int)
        assert (pixels == pixels[:, :1, :1]).all()
        return self.table[numbers], np.zeros((len(pixels), 1), np.float32)


def contender(name: str = "double", table: np.ndarray | None = None, **options: Any) -> Contender:
    table = table_of(CLASSES) if table is None else table
    return Contender(name, CHECKPOINT, "0", PRESET, Double(table, **options))


def encoded(number: int, size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 7)).save(file, "PNG")
    return file.getvalue()


def synset(number: int) -> str:
    return LABELS[CLASSES[number]].synset


def ilsvrc(number: int) -> str:
    return f"ILSVRC2012_val_{number + 1:08d}.JPEG"


def class_folders(top: Path) -> dict[str, Any]:
    for i in range(IMAGES):
        write(top / "val" / synset(i) / ilsvrc(i), encoded(i))
    return {"data": str(top / "val")}
