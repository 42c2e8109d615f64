"""The classifier: images in, named predictions out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ..errors import UnknownOptionError
from ..models.manifest import Checkpoint, Preprocessing, find_checkpoint
from ..mount import register
from ..processing_utils.images import ImageSource, Pixels, SingleImage, is_tensor
from ..processing_utils.inputs import prepare_each
from ..processing_utils.labels import Label, read_labels
from ..processing_utils.predictions import Prediction, check_count, top_predictions
from ..processing_utils.preprocessing import check_grade
from .engines import Engine, TorchEngine, open_engine
from .engines.base import Outputs

if TYPE_CHECKING:
    import torch

IMAGE_OPTIONS = ("allow_private", "grade", "max_bytes", "max_pixels", "schemes", "timeout", "truncated")


def _is_many(images: Any) -> bool:
    """True for a batch of pixels (4 dimensions) and for an iterable of images; False for one image of any kind."""
    if is_tensor(images) or isinstance(images, np.ndarray):
        return images.ndim == 4
    single = isinstance(images, (str, bytes, bytearray, memoryview)) or hasattr(images, "read")
    return not single and isinstance(images, Iterable)


class Classifier:
    """Classifies images: call it with one image or many. `classifier` makes one for a published checkpoint.

    Args:
        engine: an `Engine`, or a network of your own from normalised images (N, 3, H, W) float32 to logits
            (N, classes); `TorchEngine` runs it.
        preset: the preprocessing that the network was trained with.
        labels: a name for each class, in the order of the logits.
        device: where to run the network; by default the GPU if there is one. Ignored for an `Engine`.
        checkpoint: the checkpoint that the engine runs, if any. It says if an image may show several classes.
        image_options: grade ("reference", "close" or "fast", see `processing_utils.preprocessing`), allow_private,
            schemes, max_bytes, max_pixels, timeout, truncated; see `processing_utils.images.open_image`.

    Raises:
        UnknownOptionError: no such image option.
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

    @overload
    def __call__(self, images: SingleImage, top: int | None = None, *, batch_size: int = 16) -> list[Prediction]: ...
    @overload
    def __call__(
        self, images: Pixels, top: int | None = None, *, batch_size: int = 16, errors: str = "raise"
    ) -> list[Any]: ...
    @overload
    def __call__(
        self, images: Iterable[ImageSource], top: int | None = None, *, batch_size: int = 16
    ) -> list[list[Prediction]]: ...
    @overload
    def __call__(
        self, images: Iterable[ImageSource], top: int | None = None, *, batch_size: int = 16, errors: str
    ) -> list[list[Prediction] | Exception]: ...
    def __call__(
        self, images: Any, top: int | None = None, *, batch_size: int = 16, errors: str = "raise"
    ) -> list[Any]:
        """Classify one image or many.

        Args:
            images: one image: a path, URL, bytes, open file, PIL image, uint8 RGB array (H, W, 3) (of an array
                from OpenCV pass ``array[:, :, ::-1]``), or tensor (3, H, W), uint8 or float in 0..1
                (`processing_utils.images.open_image` takes the same). Or many: a list, tuple or iterator of these, an
                array (N, H, W, 3), or a tensor (N, 3, H, W). Images are fetched and decoded in parallel, one batch at a
                time.
            top: number of classes to return, from 1 to all; by default 5, or all if there are fewer.
            batch_size: number of images that the network takes at once.
            errors: "raise", or "return": the result of one of many images that cannot be used is then the exception.

        Returns:
            For one image a list of `Prediction`, the most probable first; for many a list of such lists, in the order
            of the images. An array's or a tensor's type does not say which of the two it is, so for a type checker
            the result is then ``list[Any]``: pass ``[image]`` or ``list(batch)`` for an exact type.

        Raises:
            ImageError, FetchError, FileNotFoundError: an image cannot be used; the message says which.
            MissingPackageError: a URL is to be fetched, and validators is not installed.
            ValueError: ``top``, ``batch_size`` or ``errors`` is out of range.
        """
        if errors not in ("raise", "return"):
            raise ValueError(f"errors must be 'raise' or 'return', got {errors!r}.")
        top = min(5, len(self.labels)) if top is None else check_count("top", top, len(self.labels))
        many, results = _is_many(images), list[Any]()
        for (logits, _), failed in self._outputs(images, batch_size, many and errors == "return"):
            found = iter(self.predictions_of(logits, top))
            results += [next(found) if error is None else error for error in failed]
        return results if many else results[0]

    def predictions_of(self, logits: np.ndarray, top: int) -> list[list[Prediction]]:
        """The ``top`` predictions of each of N images with logits (N, classes)."""
        return top_predictions(logits, top, from_logits=True, multi_label=self.multi_label, labels=self.labels)

    @property
    def multi_label(self) -> bool:
        """True if an image may show several classes: their probabilities are then independent."""
        return self.checkpoint is not None and self.checkpoint.multi_label

    def features(self, images: Any, *, batch_size: int = 16) -> np.ndarray:
        """Compute the pooled features, from which the last layer computes the logits.

        Arguments and errors are those of `__call__`. Also raises ValueError if the network is not a `ResNeXt`.

        Returns:
            (num_features,) float32 for one image, (N, num_features) for many.
        """
        many = _is_many(images)
        found = [features for (_, features), _ in self._outputs(images, batch_size, return_errors=False)]
        features = np.concatenate(found) if found else np.empty((0, 0), np.float32)
        if found and not features.shape[1]:
            raise ValueError("Only a ResNeXt has features.")
        return features if many else features[0]

    def _outputs(
        self, images: Any, batch_size: int, return_errors: bool
    ) -> Iterator[tuple[Outputs, list[Exception | None]]]:
        """The logits and features of each batch, and for each of its images None or why it has none."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
        many, first = _is_many(images), 0
        rest = iter(images if many else [images])
        while batch := list(itertools.islice(rest, batch_size)):
            pixels: list[np.ndarray] = []
            failed: list[Exception | None] = []
            for prepared in prepare_each(batch, self.preset, first=first if many else None, **self._image_options):
                if not isinstance(prepared, Exception):
                    pixels.append(prepared)
                elif not return_errors:
                    raise prepared
                failed.append(prepared if isinstance(prepared, Exception) else None)
            nothing = np.empty((0, len(self.labels)), np.float32)
            yield self.engine(np.stack(pixels)) if pixels else (nothing, nothing[:, :0]), failed
            first += len(batch)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.engine!r}, {len(self.labels)} classes)"


def _check(image_options: dict[str, Any]) -> None:
    if unknown := sorted(image_options.keys() - set(IMAGE_OPTIONS)):
        names = ("engine", "precision", "calibration", "device", *IMAGE_OPTIONS)
        raise UnknownOptionError(f"Unknown options {unknown}; choose from {', '.join(names)}.")
    check_grade(image_options.get("grade", "reference"))


register(Classifier)


def classifier(
    variant: str,
    *,
    engine: str = "auto",
    device: str | torch.device | None = None,
    progress: bool = True,
    build: bool = True,
    precision: str = "fp32",
    calibration: str | Sequence[str] | None = None,
    **image_options: Any,
) -> Classifier:
    """Make a `Classifier` for a published checkpoint, or for one that training wrote.

    Args:
        variant: the name of an entrypoint ("resnext50_32x4d_swsl") or of a checkpoint
            ("resnext50_32x4d.IMAGENET1K_V1"), or the folder that training wrote.
        engine: the library that runs the network: "auto", "torch", "onnxruntime" or "openvino"; see
            `inference.engines.open_engine`. Engines other than "torch" are built once, at their first use.
        device: where to run the network; by default the GPU if there is one.
        progress: show a bar while the weights are downloaded.
        build: False if you have only a few images: "auto" then uses PyTorch unless the engine was built before.
        precision, calibration: the number format ("fp32", "bf16", "int8" or "auto"), and images to calibrate int8 with;
            see `inference.engines.open_engine`.
        image_options: see `Classifier`.

    Raises:
        UnknownVariantError: no such variant; the message suggests similar names.
        CheckpointError: the weights cannot be downloaded or verified.
        EngineError: a package that the engine needs is missing, or the engine cannot be built.
        UnknownOptionError: no such image option.
    """
    _check(image_options)
    checkpoint = find_checkpoint(variant)
    how: dict[str, Any] = {"device": device, "progress": progress, "build": build}
    opened = open_engine(checkpoint, engine, precision=precision, calibration=calibration, **how)
    labels = read_labels(checkpoint.labels)
    return Classifier(opened, checkpoint.preprocessing, labels, checkpoint=checkpoint, **image_options)
