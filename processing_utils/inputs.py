"""Images from anywhere -> a batch for a network, and the transform of one image for a data set."""

# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false
# An image may be Any, of which isinstance makes an unknown PathLike; torch.from_numpy's argument has no type.

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FetchError, ImageError
from ..models.manifest import Preprocessing, find_checkpoint
from ..mount import register
from ..packages import needed
from .images import ImageSource, open_image, with_name
from .preprocessing import load_pixels, normalise, preprocess

if TYPE_CHECKING:
    import torch

WORKERS = 8  # fetching waits for the network, decoding and resizing release the interpreter's lock


def prepare_pixels(
    images: Sequence[ImageSource], preset: Preprocessing, *, first: int | None = 0, **options: Any
) -> np.ndarray:
    """N images -> (N, crop, crop, 3) uint8, resized and cropped; fetched and decoded in parallel.

    Args:
        first: the first image's number in messages, None for no number.
        options: grade, and the options of `images.open_image`.

    Raises:
        ImageError, FetchError, FileNotFoundError: an image cannot be used; the message says which.
    """
    arrays = [np.empty((0, preset.crop_size, preset.crop_size, 3), np.uint8)]
    for prepared in prepare_each(images, preset, first=first, **options):
        if isinstance(prepared, Exception):
            raise prepared
        arrays.append(prepared[None])
    return np.concatenate(arrays)


def prepare_each(
    images: Sequence[ImageSource], preset: Preprocessing, *, first: int | None = 0, **options: Any
) -> Iterator[np.ndarray | Exception]:
    """(crop, crop, 3) uint8 for each image, or the error that `prepare_pixels` would raise for it."""
    pool = ThreadPoolExecutor(max_workers=max(1, min(WORKERS, len(images))))
    try:
        futures = [pool.submit(load_pixels, image, preset, **options) for image in images]
        for i, (image, future) in enumerate(zip(images, futures, strict=True)):
            try:
                yield future.result()
            except (ImageError, FetchError, FileNotFoundError) as error:
                text = with_name(str(image), error) if isinstance(image, (str, os.PathLike)) else str(error)
                named = type(error)(text if first is None else f"Image {first + i}: {text}")
                named.__cause__ = error
                yield error if text == str(named) == str(error) else named
    finally:
        pool.shutdown(cancel_futures=True)


def prepare_inputs(
    images: Iterable[ImageSource],
    *,
    variant: str | Path | torch.nn.Module = "nvidia_resneXt",
    cuda: bool = False,
    **options: Any,
) -> torch.Tensor:
    """N images -> (N, 3, crop, crop) float32 tensor, as a network takes them.

    Args:
        images: paths, URIs, bytes, PIL images, arrays or tensors; see `images.open_image`.
        variant: a network that was loaded from here, or the name of a variant.
        cuda: put the batch on the GPU.
        options: grade, allow_private, schemes, max_bytes, max_pixels, timeout, truncated.

    Raises:
        ImageError: an image cannot be used; the message says which.
        UnknownVariantError: no such variant.
        TypeError: a network that does not state its preprocessing.
    """
    import torch

    if not hasattr(images, "__iter__") or isinstance(images, (str, bytes)) or getattr(images, "ndim", 4) in (2, 3):
        raise TypeError("prepare_inputs takes a list of images; for 1 image call prepare_input_from_uri.")
    preset = _preset_of(variant)
    batch = torch.from_numpy(normalise(prepare_pixels(list(images), preset, **options), preset))
    return batch.cuda() if cuda else batch


def prepare_input_from_uri(
    uri: ImageSource, cuda: bool = False, *, variant: str | Path | torch.nn.Module = "nvidia_resneXt", **options: Any
) -> torch.Tensor:
    """One image -> (1, 3, crop, crop) float32 tensor, like NVIDIA's function of this name; see `prepare_inputs`."""
    return prepare_inputs([uri], variant=variant, cuda=cuda, first=None, **options)


@dataclasses.dataclass(frozen=True)
class Transform:
    """One image of any kind -> (3, crop, crop) float32 tensor, as a network takes it. `transforms` makes one.

    Args:
        preset: the preprocessing of the network's checkpoint.
        train: a random part of the image, mirrored or not, instead of the centre. Random numbers are torch's.
    """

    preset: Preprocessing
    train: bool = False

    def __call__(self, image: ImageSource) -> torch.Tensor:
        import torch

        opened = open_image(image)
        if not self.train:
            return torch.from_numpy(preprocess(opened, self.preset))
        with needed("A random crop", "augmentation"):
            from torchvision.transforms import (  # pyright: ignore[reportMissingTypeStubs]
                InterpolationMode,
                RandomResizedCrop,
            )

        interpolation = InterpolationMode(self.preset.interpolation)
        pixels = np.asarray(RandomResizedCrop(self.preset.crop_size, interpolation=interpolation)(opened))
        if torch.rand(()) < 0.5:
            pixels = pixels[:, ::-1]
        return torch.from_numpy(normalise(pixels, self.preset))


register(Transform)


def transforms(network: str | Path | torch.nn.Module, train: bool = False) -> Transform:
    """The transform of a network's images, for ``Dataset(transform=...)``: see `Transform`.

    Args:
        network: a network that was loaded from here, or the name of a variant.
        train: for training: torchvision's RandomResizedCrop and RandomHorizontalFlip instead of the centre crop.

    Raises:
        UnknownVariantError: no such variant.
        TypeError: a network that does not state its preprocessing.
    """
    return Transform(_preset_of(network), train)


def _preset_of(network: Any) -> Preprocessing:
    if isinstance(network, (str, Path)):
        return find_checkpoint(network).preprocessing
    preset: Any = getattr(network, "preprocessing", None)
    if not hasattr(preset, "crop_size"):
        kind = type(network).__name__
        raise TypeError(f"Expected a network that was loaded from here, or the name of a variant, got {kind}.")
    return preset
