"""A callable from images to named predictions, with every choice made for the checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..models.manifest import Checkpoint, Preprocessing, find_checkpoint
from ..mount import register
from ..processing_utils.images import ImageSource
from ..processing_utils.inputs import prepare_pixels
from ..processing_utils.labels import Label, read_labels
from ..processing_utils.predictions import Prediction, top_predictions
from .engines import Engine, TorchEngine, open_engine

if TYPE_CHECKING:
    import torch

__all__ = ["Classifier", "classifier"]

IMAGE_OPTIONS = ("allow_private", "max_bytes", "max_pixels", "schemes", "timeout")


def _is_many(images: Any) -> bool:
    """A list, tuple or other iterable of images, or a batch (N, C, H, W), against one image of any kind."""
    torch = sys.modules.get("torch")  # a tensor can only come from a torch that is already imported
    if (torch is not None and isinstance(images, torch.Tensor)) or hasattr(images, "__array_interface__"):
        return getattr(images, "ndim", 3) == 4
    single = isinstance(images, (str, bytes, bytearray, memoryview)) or hasattr(images, "read")
    return not single and isinstance(images, Iterable)


class Classifier:
    """An engine, its preprocessing and its labels: images in, predictions out.

    Args:
        engine: an `Engine`, or a network of your own, which `TorchEngine` then runs.
        preset: how the images are made.
        labels: a name for every logit.
        device: where to run a network; the GPU if there is one.
        checkpoint: what the engine runs, if it is one.
    """

    def __init__(
        self,
        engine: Engine | torch.nn.Module,
        preset: Preprocessing,
        labels: Sequence[Label] | Sequence[str],
        *,
        device: str | torch.device | None = None,
        checkpoint: Checkpoint | None = None,
        **image_options: Any,
    ) -> None:
        _check(image_options)
        self.engine = engine if isinstance(engine, Engine) else TorchEngine(engine, preset, device)
        self.preset = preset
        self.labels = labels
        self.checkpoint = checkpoint
        self._image_options = image_options

    def __call__(self, images: Any, top: int | None = None, *, batch_size: int = 16) -> list[Any]:
        """The ``top`` predictions of one image, best first; of many (a list, an iterator, a 4-d batch) a list of those.

        Args:
            images: see `processing_utils.images.open_image`; fetched and decoded in parallel, a batch at a time.
            top: how many classes, 1..classes; by default 5, or all where there are fewer.
            batch_size: images that pass the network together.

        Raises:
            ImageError, FetchError, FileNotFoundError: an image cannot be used; the message says which.
            ValueError: ``top`` or ``batch_size`` out of range.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
        top = min(5, len(self.labels)) if top is None else top
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

    def _classify(self, images: Sequence[ImageSource], top: int, first: int | None) -> list[list[Prediction]]:
        logits, _ = self.engine(prepare_pixels(images, self.preset, first=first, **self._image_options))
        return top_predictions(logits, top, from_logits=True, labels=self.labels)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.engine!r}, {len(self.labels)} classes)"


def _check(image_options: dict[str, Any]) -> None:
    if unknown := sorted(image_options.keys() - set(IMAGE_OPTIONS)):
        raise TypeError(f"Unexpected options {unknown}; there are engine, device and {', '.join(IMAGE_OPTIONS)}.")


register(Classifier)


def classifier(
    variant: str,
    *,
    engine: str = "auto",
    device: str | torch.device | None = None,
    progress: bool = True,
    build: bool = True,
    **image_options: Any,
) -> Classifier:
    """A `Classifier` with a checkpoint.

    Args:
        variant: an entrypoint's name, or a checkpoint's, e.g. "resnext50_32x4d.IMAGENET1K_V1"; or a folder that
            training wrote.
        engine: what runs the network, see `inference.engines.open_engine`. The first use of an engine builds it.
        build: False for a few images: "auto" then takes PyTorch where no engine has been built.
        device: where to run; the GPU if there is one.
        progress: show a bar while the weights are fetched.
        image_options: allow_private, schemes, max_bytes, max_pixels, timeout; see `processing_utils.images.open_image`.

    Raises:
        UnknownVariantError: no such variant; near names are suggested.
        CheckpointError: the weights cannot be fetched or verified.
        EngineError: a package that the engine needs is missing.
    """
    _check(image_options)
    checkpoint = find_checkpoint(variant)
    opened = open_engine(checkpoint, engine, device=device, progress=progress, build=build)
    labels = read_labels(checkpoint.labels)
    return Classifier(opened, checkpoint.preprocessing, labels, checkpoint=checkpoint, **image_options)
