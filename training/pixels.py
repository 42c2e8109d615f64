"""Small images, decoded once, held in memory and augmented a batch at a time.

A network for 64x64 images takes about a millisecond per image. Decoding a JPEG and cropping it takes as long. Decoded
once and cropped with two matrix products for the batch, an image takes a tenth of that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.splits import LabelledImages
from ..errors import ImageError
from ..processing_utils.images import open_image, with_name


class PixelTable:
    """Decoded images of one size and their classes.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64 class indices; or (N, K), several for an image, padded with -1.
        classes: the name of every class.
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        self.images, self.labels, self.classes = images, labels, tuple(classes)

    @classmethod
    def read(cls, images: LabelledImages) -> PixelTable:
        """Decode all images.

        Raises:
            ImageError: one is broken.
            ValueError: they are not all of one size.
        """
        pixels: np.ndarray | None = None
        for i in range(len(images)):
            try:
                image = open_image(images.read(i))
            except ImageError as error:
                raise ImageError(with_name(images.name(i), error)) from error
            if pixels is None:
                pixels = np.empty((len(images), image.height, image.width, 3), np.uint8)
            if (image.height, image.width) != pixels.shape[1:3]:
                raise ValueError(
                    f"{images.name(i)} has {image.width} x {image.height} pixels, the first image has "
                    f"{pixels.shape[2]} x {pixels.shape[1]}; a recipe with in_memory = true needs images of equal size."
                )
            pixels[i] = np.asarray(image)
        if pixels is None:
            raise ValueError("Expected at least one image.")
        planes = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        return cls(planes, torch.from_numpy(images.labels), images.classes)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> PixelTable:
        """The table in the memory of a device, where its crops are then made."""
        return PixelTable(self.images.to(device), self.labels.to(device), self.classes)

    def subset(self, rows: Tensor, labels: Tensor | None = None) -> PixelTable:
        """Some of the images, by number; with other labels if they are given."""
        return PixelTable(self.images[rows], self.labels[rows] if labels is None else labels, self.classes)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels), in order, ``size`` at a time."""
        return zip(self.images.split(size), self.labels.split(size), strict=True)


def random_boxes(count: int, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Boxes (count, 4) of y, x, height, width in 0..1, drawn as by torchvision's RandomResizedCrop.

    ``scale`` bounds the area, and 3/4..4/3 the aspect. Larger boxes are cut; torchvision draws again.
    """
    area = torch.empty(count).uniform_(*scale, generator=generator)
    half_aspect = torch.empty(count).uniform_(-0.5, 0.5, generator=generator).mul(math.log(4 / 3)).exp()
    sides = (area.sqrt()[:, None] * torch.stack([1 / half_aspect, half_aspect], 1)).clamp(max=1.0)
    return torch.cat([torch.rand(count, 2, generator=generator) * (1 - sides), sides], 1)


def _resize_matrices(start: Tensor, length: Tensor, source: int, target: int) -> Tensor:
    """Matrices (B, target, source) that resample ``length`` pixels from ``start`` on to ``target`` (triangle filter).

    The filter is wider for larger steps, as in antialiased bilinear resizing (Pillow, torchvision).
    """
    step = (length / target)[:, None, None]
    pixels, rows = (torch.arange(n, device=start.device) + 0.5 for n in (source, target))
    centre = start[:, None, None] + rows[None, :, None] * step
    weights = (1 - (pixels - centre).abs() / step.clamp(min=1.0)).clamp(min=0.0)
    return weights / weights.sum(2, keepdim=True)


def resized_crops(images: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Crops of images (B, C, H, W), resized to (B, C, size, size) float32 in the images' own range.

    ``boxes`` (B, 4) as `random_boxes` makes them; ``mirrored`` (B,) bool flips left and right.
    """
    height, width = images.shape[2:]
    rows = _resize_matrices(boxes[:, 0] * height, boxes[:, 2] * height, height, size)
    columns = _resize_matrices(boxes[:, 1] * width, boxes[:, 3] * width, width, size)
    columns = torch.where(mirrored[:, None, None], columns.flip(1), columns)
    return rows[:, None] @ images.float() @ columns[:, None].mT


def box_means(grids: Tensor, boxes: Tensor) -> Tensor:
    """The mean of each grid (B, rows, columns, C) over its box (B, 4; as in `random_boxes`): (B, C)."""

    def shares(start: Tensor, length: Tensor, cells: int) -> Tensor:
        edges = torch.arange(cells + 1, device=start.device) / cells
        inside = torch.minimum(edges[1:], (start + length)[:, None]) - torch.maximum(edges[:-1], start[:, None])
        return inside.clamp(min=0.0) / length[:, None]

    rows = shares(boxes[:, 0], boxes[:, 2], grids.shape[1])
    columns = shares(boxes[:, 1], boxes[:, 3], grids.shape[2])
    weights = (rows[:, :, None] * columns[:, None, :]).flatten(1)
    return torch.bmm(weights[:, None], grids.float().flatten(1, 2))[:, 0]
