"""A training run of seconds, over the fixture `colours`."""

from __future__ import annotations

from pathlib import Path

import torch
from resnext_hub.data.splits import open_images
from resnext_hub.models.entrypoints import build
from resnext_hub.models.manifest import Architecture
from resnext_hub.training.batches import FromFiles, validation_batches
from resnext_hub.training.loop import Loop
from resnext_hub.training.recipe import Phase, Recipe

SMALL = Architecture("Bottleneck", (1, 1, 1, 1), 2, 16, None, 16, False)
RECIPE = Recipe((Phase(1, 16),), "resnext_tiny", batch_size=16, lr=0.05, ema_decay=0.9).resolved(None, None)


def run(data: Path, out: Path) -> list[dict[str, float]]:
    torch.manual_seed(0)
    images, held = (open_images(data / f"{part}.parquet") for part in ("train", "val"))
    return Loop(
        build(SMALL, 3), RECIPE, FromFiles(RECIPE, images), lambda p: validation_batches(held, RECIPE, 0, 1, 0), out
    ).run()[1]
