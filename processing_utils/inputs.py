"""Images from anywhere -> a batch for a network."""

# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false
# An image may be Any, of which isinstance makes an unknown PathLike; torch.from_numpy's argument has no type.

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FetchError, ImageError
from ..models.manifest import Preprocessing, find_checkpoint
from .images import ImageSource, with_name
from .preprocessing import load_pixels, normalise

if TYPE_CHECKING:
    import torch

__all__ = ["prepare_input_from_uri", "prepare_inputs", "prepare_pixels"]

WORKERS = 8  # fetching waits for the network, decoding and resizing release the interpreter's lock


def prepare_pixels(
    images: Sequence[ImageSource], preset: Preprocessing, *, first: int | None = 0, **options: Any
) -> np.ndarray:
    """N images -> (N, crop, crop, 3) uint8, resized and cropped; fetched and decoded in parallel. No torch.

    ``options`` are those of `images.open_image`; ``first`` is the first image's number in messages, None for no number.

    Raises:
        ImageError, FetchError, FileNotFoundError: an image cannot be used; the message says which.
    """

    def one(image: ImageSource) -> np.ndarray:
        return load_pixels(image, preset, **options)

    with ThreadPoolExecutor(max_workers=max(1, min(WORKERS, len(images)))) as pool:
        futures = [pool.submit(one, image) for image in images]
        arrays: list[np.ndarray] = []
        for i, (image, future) in enumerate(zip(images, futures, strict=True)):
            try:
                arrays.append(future.result())
            except (ImageError, FetchError, FileNotFoundError) as error:
                for later in futures[i + 1 :]:
                    later.cancel()
                text = with_name(str(image), error) if isinstance(image, (str, os.PathLike)) else str(error)
                if first is None and text == str(error):
                    raise
                raise type(error)(text if first is None else f"Image {first + i}: {text}") from error
    crop = preset.crop_size
    return np.stack(arrays) if arrays else np.empty((0, crop, crop, 3), np.uint8)


def prepare_inputs(
    images: Iterable[ImageSource], *, variant: str = "nvidia_resneXt", cuda: bool = False, **options: Any
) -> torch.Tensor:
    """N images -> (N, 3, crop, crop) float32 tensor, as the checkpoint ``variant`` takes them.

    Args:
        images: paths, URIs, bytes, PIL images, arrays or tensors; see `images.open_image`.
        cuda: put the batch on the GPU.
        options: allow_private, schemes, max_bytes, max_pixels, timeout.

    Raises:
        ImageError: an image cannot be used; the message says which.
        UnknownVariantError: no such variant.
    """
    import torch

    if isinstance(images, (str, bytes)):
        raise TypeError("prepare_inputs takes a list of images; for 1 image call prepare_input_from_uri.")
    preset = find_checkpoint(variant).preprocessing
    batch = torch.from_numpy(normalise(prepare_pixels(list(images), preset, **options), preset))
    return batch.cuda() if cuda else batch


def prepare_input_from_uri(
    uri: ImageSource, cuda: bool = False, *, variant: str = "nvidia_resneXt", **options: Any
) -> torch.Tensor:
    """One image -> (1, 3, 224, 224) float32 tensor, as NVIDIA's function of this name; see `prepare_inputs`."""
    return prepare_inputs([uri], variant=variant, cuda=cuda, first=None, **options)
