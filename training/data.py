"""Labelled images: parquet of encoded images -> (image tensor, class index)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

from .recipe import Recipe

__all__ = ["EpochSampler", "ParquetImages", "eval_transform", "read_classes", "to_input", "train_transform"]


def read_classes(path: str | Path) -> list[tuple[str, str]]:
    """(synset, names) of every line of a two-column TSV; a class's index is its line."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [(synset, names) for synset, names in (line.split("\t", 1) for line in lines) if synset != "wnid"]


def train_transform(recipe: Recipe, image_size: int) -> v2.Compose:
    """Random crop and flip: PIL image -> uint8 (3, image_size, image_size)."""
    return v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(image_size, scale=recipe.crop_scale, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    )


def eval_transform(image_size: int) -> v2.Compose:
    """Resize and centre crop: PIL image -> uint8 (3, image_size, image_size)."""
    return v2.Compose([v2.PILToTensor(), v2.Resize(image_size, antialias=True), v2.CenterCrop(image_size)])


def to_input(recipe: Recipe) -> v2.Compose:
    """A batch of uint8 images (N, 3, H, W) -> normalised float32. Done a batch at a time: it is cheaper so."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(recipe.mean, recipe.std)])


class ParquetImages(Dataset[tuple[torch.Tensor, int]]):
    """Parquet files with columns ``wnid`` and ``jpeg`` -> (transformed image, index of its synset in ``synsets``).

    ``seed`` makes the augmentation a function of (seed, epoch, position): a resumed run sees what an unbroken one
    would, whatever the number of worker processes. None leaves the random state alone.
    """

    def __init__(
        self, files: Sequence[Path], synsets: Sequence[str], transform: v2.Compose, seed: int | None = None
    ) -> None:
        import pyarrow.parquet as pq  # optional: the "train" extra

        tables = [pq.read_table(file, columns=["wnid", "jpeg"]) for file in files]
        index = {synset: i for i, synset in enumerate(synsets)}
        self.labels = [index[wnid] for table in tables for wnid in table["wnid"].to_pylist()]
        self.images = [jpeg for table in tables for jpeg in table["jpeg"].to_pylist()]
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if self.seed is not None:
            # Mixed into 32 bits: torch's generator takes no more of a seed, and an epoch in the upper half of 64 bits
            # would give every image the same crop in every epoch.
            torch.default_generator.manual_seed((self.seed * 0x9E3779B1 + i * 0x85EBCA77) % 2**32)
        with Image.open(io.BytesIO(self.images[i])) as image:
            return self.transform(image.convert("RGB")), self.labels[i]


class EpochSampler(Sampler[int]):
    """A permutation of ``length`` items that depends on (seed, epoch) alone, from ``start`` on."""

    def __init__(self, length: int, seed: int, epoch: int, start: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed * 10_007 + epoch)
        self.order = torch.randperm(length, generator=generator).tolist()[start:]

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self):
        return iter(self.order)
