"""A callable from images to named predictions, with every choice made for the checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.entrypoints import load
from ..models.manifest import Preprocessing, default_manifest
from ..mount import register
from ..processing_utils.images import ImageSource
from ..processing_utils.inputs import prepare_batch
from ..processing_utils.labels import Label, read_labels
from ..processing_utils.predictions import Prediction, top_predictions

__all__ = ["Classifier", "classifier"]

IMAGE_OPTIONS = ("allow_private", "max_bytes", "max_pixels", "schemes", "timeout")


def _is_many(images: Any) -> bool:
    """A list, tuple or other iterable of images, or a batch (N, C, H, W), against one image of any kind."""
    if isinstance(images, Tensor) or hasattr(images, "__array_interface__"):
        return getattr(images, "ndim", 3) == 4
    single = isinstance(images, (str, bytes, bytearray, memoryview)) or hasattr(images, "read")
    return not single and isinstance(images, Iterable)


class Classifier:
    """A network, its preprocessing and its labels: images in, predictions out.

    Attributes:
        network: in evaluation mode, on ``device``.
        preset: how the images are made.
        labels: a name for every logit.
    """

    def __init__(
        self,
        network: nn.Module,
        preset: Preprocessing,
        labels: Sequence[Label] | Sequence[str],
        *,
        device: str | torch.device | None = None,
        **image_options: Any,
    ) -> None:
        if unknown := sorted(image_options.keys() - set(IMAGE_OPTIONS)):
            raise TypeError(f"Unexpected options {unknown}; there are device and {', '.join(IMAGE_OPTIONS)}.")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        # NHWC is what GPU tensor cores and oneDNN's grouped convolutions work in.
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.preset = preset
        self.labels = labels
        self._image_options = image_options

    def __call__(self, images: Any, top: int = 5, *, batch_size: int = 16) -> list[Any]:
        """The ``top`` predictions of one image, best first; of many (a list, an iterator, a 4-d batch) a list of those.

        Args:
            images: see `processing_utils.images.open_image`; fetched and decoded in parallel, a batch at a time.
            top: how many classes, 1..classes.
            batch_size: images that pass the network together.

        Raises:
            ImageError, FetchError, FileNotFoundError: an image cannot be used; the message says which.
            ValueError: ``top`` or ``batch_size`` out of range.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
        if not _is_many(images):
            return self._classify([images], top, first=None)[0]
        results: list[list[Prediction]] = []
        batch: list[ImageSource] = []
        for image in images:
            batch.append(image)
            if len(batch) == batch_size:
                results += self._classify(batch, top, first=len(results))
                batch = []
        return results + self._classify(batch, top, first=len(results)) if batch else results

    @torch.inference_mode()
    def _classify(self, images: Sequence[ImageSource], top: int, first: int | None) -> list[list[Prediction]]:
        batch = torch.from_numpy(prepare_batch(images, self.preset, first=first, **self._image_options))
        dtype = next(self.network.parameters()).dtype
        logits = self.network(batch.to(self.device, dtype, memory_format=torch.channels_last))
        return top_predictions(logits, top, from_logits=True, labels=self.labels)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.network).__name__}, {len(self.labels)} classes, on {self.device})"


register(Classifier)


def classifier(
    variant: str,
    *,
    device: str | torch.device | None = None,
    progress: bool = True,
    **image_options: Any,
) -> Classifier:
    """A `Classifier` with a published checkpoint.

    Args:
        variant: an entrypoint's name, or a checkpoint's, e.g. "resnext50_32x4d.IMAGENET1K_V1".
        device: where to run; the GPU if there is one.
        progress: show a bar while the weights are fetched.
        image_options: allow_private, schemes, max_bytes, max_pixels, timeout; see `processing_utils.images.open_image`.

    Raises:
        UnknownVariantError: no such variant; near names are suggested.
        CheckpointError: the weights cannot be fetched or verified.
    """
    checkpoint = default_manifest().resolve(variant)
    network = load(checkpoint, progress=progress)
    return Classifier(network, checkpoint.preprocessing, read_labels(checkpoint.labels), device=device, **image_options)
