"""Batches of labelled images for training and validation, the same on any number of processes and after any stop.

The order of the images, the crop and colours of each, and the mixing of each batch are functions of (seed, epoch,
position in the epoch) alone. So there is no random state to save: one number, the step, says how far a run has come.
"""

from __future__ import annotations

import itertools
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.splits import LabelledImages
from ..errors import ImageError
from ..models.manifest import Preprocessing
from ..packages import needed
from ..processing_utils.images import open_image, with_name
from ..processing_utils.preprocessing import load_pixels
from .pixels import PixelTable, box_means, random_boxes, resized_crops
from .recipe import Recipe

with needed("Training", "augmentation"):
    from torchvision.transforms import v2

log = logging.getLogger("resnext_hub")

MIX = 0x9E3779B1, 0x85EBCA77  # odd numbers that spread seeds over the 32 bits that torch's generator uses


@dataclass(frozen=True)
class Broken:
    """An image that could not be used: a row of broken.csv."""

    name: str
    error: str


@dataclass(frozen=True)
class Batch:
    """The images of a step, or one process's share of them.

    Attributes:
        images: (N, 3, H, W) float32, normalised.
        labels: (N,) classes, or (N, classes) shares of each, or 0 and 1.
        teacher: (N, classes) logits, or None.
        broken: images that were replaced by others of the batch.
    """

    images: Tensor
    labels: Tensor
    teacher: Tensor | None = None
    broken: tuple[Broken, ...] = ()


class TrainingSet(Protocol):
    """The source of the training loop's batches."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def batches(self, epoch: int, first: int, rank: int, world: int) -> Iterator[Batch]:
        """This process's share of the batches of an epoch, from the batch ``first`` on."""
        ...


def epoch_order(length: int, seed: int, epoch: int, repeats: int = 1, blocks: Sequence[int] = ()) -> np.ndarray:
    """The images of an epoch, in order: a permutation that depends on (seed, epoch) alone.

    With ``repeats``, each image comes that often in a row, and the epoch ends after ``length`` (Hoffer et al. 2019).
    Several ``blocks`` are shuffled first, then the images within every eight blocks: tables hold eight in memory.
    """
    rng = np.random.default_rng((seed, epoch))
    if len(blocks) > 1:
        first = [0, *itertools.accumulate(blocks)]
        drawn = rng.permutation(len(blocks))
        windows = [drawn[i : i + 8] for i in range(0, len(drawn), 8)]
        order = np.concatenate(
            [rng.permutation(np.concatenate([np.arange(first[b], first[b + 1]) for b in w])) for w in windows]
        )
    else:
        order = rng.permutation(length)
    return np.repeat(order, repeats)[:length]


def train_transform(recipe: Recipe, image_size: int) -> v2.Compose:
    """The augmentation of one image: uint8 (3, H, W) -> uint8 (3, image_size, image_size)."""
    lo, hi = recipe.crop_scale
    steps: list[torch.nn.Module] = []
    steps.append(v2.RandomResizedCrop(image_size, scale=(lo, hi), antialias=True))
    if recipe.flip:
        steps.append(v2.RandomHorizontalFlip())
    if recipe.auto_augment != "none":
        kind = {"rand": v2.RandAugment, "trivial": v2.TrivialAugmentWide}[recipe.auto_augment]
        steps.append(kind(interpolation=v2.InterpolationMode.BILINEAR))  # as torchvision's recipes
    if recipe.erasing:
        mean: Any = [round(255 * m) for m in recipe.preset.mean]
        steps.append(v2.RandomErasing(recipe.erasing, value=mean))
    return v2.Compose(steps)


def class_shares(labels: Tensor, classes: int) -> Tensor:
    """Class indices (N, K), -1 where there are fewer, -> shares (N, classes): 1/k for each of an image's k classes.

    Mahajan et al. 2018 (arXiv 1805.00932), section 2: "k-hot" divided by k, for the softmax's cross-entropy.
    """
    known = labels >= 0
    hot = (
        torch.zeros(len(labels), classes, device=labels.device)
        .scatter_add(1, labels.clamp(min=0), known.float())
        .clamp(max=1.0)
    )
    return hot / hot.sum(1, keepdim=True).clamp(min=1.0)


def _targets(labels: Tensor, classes: int) -> Tensor:
    """The targets of the loss: classes (N,), or (N, classes) shares or, of (N, classes) bool, 0 and 1."""
    if labels.dtype == torch.bool:
        return labels.float()
    return class_shares(labels, classes) if labels.ndim > 1 else labels


class _Mixing:
    """Mixup or CutMix, drawn for a batch."""

    def __init__(self, recipe: Recipe, classes: int) -> None:
        kinds = [(v2.MixUp, recipe.mixup), (v2.CutMix, recipe.cutmix)]
        ways = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
        self.way = v2.RandomChoice(ways) if ways else None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return (images, labels) if self.way is None else self.way(images, labels)


def _step_seed(recipe: Recipe, epoch: int, step: int) -> int:
    return ((recipe.seed * 1000 + epoch) * MIX[0] + step * MIX[1]) % 2**32


class _Augmented(Dataset[Any]):
    """(image number, position in the epoch) -> an augmented image and its label, or the reason why there is none."""

    def __init__(self, images: LabelledImages, transform: v2.Compose, recipe: Recipe, epoch: int) -> None:
        self.images, self.transform, self.recipe, self.epoch = images, transform, recipe, epoch

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor] | Broken:
        number, place = key
        torch.default_generator.manual_seed(_step_seed(self.recipe, self.epoch, place))
        try:
            image = open_image(self.images.read(number))
        except (ImageError, OSError, ValueError) as error:
            return Broken(self.images.name(number), str(error))
        return self.transform(v2.functional.pil_to_tensor(image)), torch.as_tensor(self.images.labels[number])


def _collate(
    samples: list[tuple[Tensor, Tensor] | Broken],
) -> tuple[Tensor, Tensor, tuple[Broken, ...]] | tuple[Broken, ...]:
    """A batch of the requested size, with other images for broken ones; the broken ones alone if all of them are."""
    good = [sample for sample in samples if not isinstance(sample, Broken)]
    broken = tuple(sample for sample in samples if isinstance(sample, Broken))
    if not good:
        return broken
    good = [good[i % len(good)] for i in range(len(samples))]
    return torch.stack([image for image, _ in good]), torch.stack([label for _, label in good]), broken


def _ignore_signals(worker: int) -> None:
    """Ignore signals in a worker: they reach all processes, and the main one writes a checkpoint first."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class FromFiles:
    """Training batches whose images are read, decoded and augmented one by one, in ``workers`` processes."""

    def __init__(self, recipe: Recipe, images: LabelledImages, workers: int = 0) -> None:
        if recipe.distillation_weight:
            raise ValueError(
                "Distillation needs a recipe with in_memory = true: only there do the teacher's scores match the crops."
            )
        self.recipe, self.images, self.workers, self.classes = recipe, images, workers, images.classes
        self.prepare = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(recipe.preset.mean, recipe.preset.std)]
        )
        self.mix = _Mixing(recipe, len(images.classes))

    def __len__(self) -> int:
        if self.images.repeat_factors is not None:
            return int(self.images.repeat_factors.sum(dtype=np.float64))
        return len(self.images) - self.recipe.held_out

    def _order(self, epoch: int) -> np.ndarray:
        recipe = self.recipe
        if self.images.repeat_factors is not None:  # the number of images varies a little between epochs
            from ..curation.hashtags import resampled_indices  # needs pyarrow

            return np.resize(resampled_indices(self.images.repeat_factors, recipe.seed, epoch), len(self))
        blocks = () if recipe.held_out else self.images.blocks
        return epoch_order(len(self), recipe.seed, epoch, recipe.repeats, blocks)

    def batches(self, epoch: int, first: int, rank: int, world: int) -> Iterator[Batch]:
        """As `TrainingSet.batches`."""
        recipe, size = self.recipe, self.recipe.batch_size
        order = self._order(epoch)
        share = [(int(order[i]), i) for i in range(first * size, len(order) // size * size) if i % world == rank]
        transform = train_transform(recipe, recipe.image_size(epoch))
        loader = DataLoader(
            _Augmented(self.images, transform, recipe, epoch),
            size // world,
            sampler=share,  # pyright: ignore[reportArgumentType]  # any sized iterable of keys
            num_workers=self.workers,
            collate_fn=_collate,
            worker_init_fn=_ignore_signals,
            pin_memory=torch.cuda.is_available(),
        )
        for step, found in enumerate(loader, first):
            if isinstance(found[0], Broken):
                raise ImageError(
                    f"No image of a batch could be used. The first: {with_name(found[0].name, found[0].error)}"
                )
            images, labels, broken = found
            torch.manual_seed(_step_seed(recipe, epoch, -1 - step))
            images, wanted = self.mix(self.prepare(images), _targets(labels, len(self.classes)))
            yield Batch(images, wanted, broken=tuple(broken))


class InMemory:
    """Training batches cut from a `PixelTable`, with the teacher's scores of each crop if there is a teacher.

    Args:
        scores: (N, rows, columns, classes), see `teacher_scores`.
        device: holds everything, and makes the crops.
    """

    def __init__(
        self,
        recipe: Recipe,
        table: PixelTable,
        scores: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if recipe.auto_augment != "none" or recipe.erasing or recipe.repeats > 1:
            raise ValueError("A recipe with in_memory = true takes only crops, flips, mixup and cutmix.")
        if (scores is not None) != (recipe.distillation_weight > 0):
            raise ValueError(
                "A recipe with distillation_weight needs a teacher's scores, and one without must not have them."
            )
        if scores is not None and len(scores) != len(table):
            raise ValueError(f"The teacher's scores are for {len(scores)} images, expected {len(table)}.")
        self.recipe, self.table, self.classes, self.device = recipe, table.to(device), table.classes, device
        self.scores = None if scores is None else scores.to(device)
        self.normalise = v2.Normalize(recipe.preset.mean, recipe.preset.std)
        self.mix = _Mixing(recipe, len(table.classes))

    def __len__(self) -> int:
        return len(self.table) - self.recipe.held_out

    def batches(self, epoch: int, first: int, rank: int, world: int) -> Iterator[Batch]:
        """As `TrainingSet.batches`."""
        recipe, size = self.recipe, self.recipe.batch_size
        order = torch.from_numpy(epoch_order(len(self), recipe.seed, epoch))
        for step in range(first, len(order) // size):
            # Drawn for the global batch, then divided: the crops are the same on any number of processes.
            generator = torch.Generator().manual_seed(_step_seed(recipe, epoch, step))
            lo, hi = recipe.crop_scale
            drawn = random_boxes(size, (lo, hi), generator), (torch.rand(size, generator=generator) < 0.5) & recipe.flip
            rows = order[step * size : (step + 1) * size]
            boxes, mirrored, chosen = (x[rank::world].to(self.device) for x in (*drawn, rows))
            crops = resized_crops(self.table.images[chosen], boxes, mirrored, recipe.image_size(epoch))
            wanted = _targets(self.table.labels[chosen], len(self.classes))
            teacher = None if self.scores is None else box_means(self.scores[chosen], boxes)
            torch.manual_seed(_step_seed(recipe, epoch, -1 - step))
            images, wanted = self.mix(self.normalise(crops / 255), wanted)
            yield Batch(images, wanted, teacher)


class _Validation(Dataset[tuple[Tensor, Tensor]]):
    """Images as the published network will see them: uint8 (crop, crop, 3), and their class, or 0 and 1 for each."""

    def __init__(self, images: LabelledImages, preset: Preprocessing) -> None:
        self.images, self.preset = images, preset

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        label = torch.as_tensor(self.images.labels[i])
        label = label.to(torch.int8) if label.dtype == torch.bool else label
        try:
            pixels = load_pixels(self.images.read(i), self.preset, "close")
        except (ImageError, OSError, ValueError) as error:
            clear = "\r\033[K" * sys.stderr.isatty()  # a bar of `display.watched`, perhaps of another process
            log.warning("%sCannot read %s", clear, with_name(self.images.name(i), error))
            crop = self.preset.crop_size
            return torch.zeros(crop, crop, 3, dtype=torch.uint8), torch.full_like(label, -1)
        return torch.from_numpy(pixels), label


def validation_batches(
    images: LabelledImages, recipe: Recipe, rank: int, world: int, workers: int, size: int = 100
) -> Iterator[tuple[Tensor, Tensor]]:
    """(input, labels) of this process's share of the validation images; the label of a broken image is -1."""
    normalise = v2.Normalize(recipe.preset.mean, recipe.preset.std)
    loader = DataLoader(
        _Validation(images, recipe.preset),
        size,
        sampler=range(rank, len(images), world),
        num_workers=workers,
        worker_init_fn=_ignore_signals,
    )
    for pixels, labels in loader:
        yield normalise(pixels.permute(0, 3, 1, 2).float() / 255), labels


def known(labels: Tensor) -> Tensor:
    """(N,) bool: False for the validation images that could not be read."""
    return (labels if labels.ndim == 1 else labels[:, 0]) >= 0


def binary_cross_entropy(scores: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Each class for itself, for images with several: the sum over the classes, averaged over the images.

    The sum gives scores gradients as large as those of the softmax's cross-entropy. ``labels``: (N, classes), 0..1.
    """
    wanted = labels.to(scores.dtype) * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum") / max(1, len(scores))


def soft_cross_entropy(scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """torch's cross-entropy in float32; ``labels`` are (N,) classes or (N, classes) shares."""
    return F.cross_entropy(scores.float(), labels, label_smoothing=label_smoothing)
