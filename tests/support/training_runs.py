"""Training runs of seconds, over the fixture `colours`, and what they leave."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from resnext_hub.data.splits import LabelledImages, open_images
from resnext_hub.models.entrypoints import build
from resnext_hub.models.manifest import Architecture
from resnext_hub.processes import Processes
from resnext_hub.training.batches import FromFiles, InMemory, validation_batches
from resnext_hub.training.loop import Loop
from resnext_hub.training.pixels import PixelTable
from resnext_hub.training.recipe import Phase, Recipe

SMALL = Architecture("Bottleneck", (1, 1, 1, 1), 2, 16, None, 16, False)
RECIPE = Recipe(
    (Phase(2, 16), Phase(2, 24)), "resnext_tiny", batch_size=16, lr=0.05, ema_decay=0.9, crop_scale=(0.35, 1.0)
).resolved(None, None)


def network(group_norm: bool = False) -> torch.nn.Module:
    """A small network, always the same; with GroupNorm it does not matter how a batch is shared out."""
    torch.manual_seed(0)
    return build(SMALL, 3, **({"norm_layer": lambda channels: torch.nn.GroupNorm(4, channels)} if group_norm else {}))


def run(
    data: Path,
    out: Path,
    recipe: Recipe = RECIPE,
    scores: Any = None,
    images: LabelledImages | None = None,
    group_norm: bool = False,
    **options: Any,
) -> list[dict[str, float]]:
    """Train into a folder; return the curve."""
    made, held = network(group_norm), open_images(data / "val.parquet")
    images = images or open_images(data / "train.parquet")
    if recipe.in_memory:
        train_set = InMemory(recipe, PixelTable.read(images), scores, Processes.here().device)
    else:
        train_set = FromFiles(recipe, images)
    loop = Loop(made, recipe, train_set, lambda p: validation_batches(held, recipe, p.rank, p.world, 0), out, **options)
    return loop.run()[1]


def curve(out: Path) -> list[dict[str, str]]:
    with open(out / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "weights.pt", weights_only=True)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
