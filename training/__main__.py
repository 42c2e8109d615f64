"""``python -m resnext_hub.training resnext_tiny --data DIR --out DIR``: run a recipe, or go on with one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ..models.entrypoints import build
from ..models.manifest import default_manifest
from .data import read_classes
from .engine import train
from .publish import publish_half
from .recipe import load_recipe


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m resnext_hub.training", description=__doc__)
    parser.add_argument("recipe", help="a name in training/recipes, or a TOML file")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train*.parquet, val*.parquet, classes.tsv"
    )
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, log and weights; a run there goes on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=1, help="processes that decode images")
    arguments = parser.parse_args()

    named = Path(__file__).parent / "recipes" / f"{arguments.recipe}.toml"
    recipe = load_recipe(named if named.exists() else arguments.recipe)
    synsets = [synset for synset, _ in read_classes(arguments.data / "classes.tsv")]
    train_files, val_files = (sorted(arguments.data.glob(f"{part}*.parquet")) for part in ("train", "val"))
    if not train_files or not val_files:
        parser.error(f"{arguments.data} has no train*.parquet or no val*.parquet")

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(recipe.seed)
    network = build(default_manifest().architectures[recipe.architecture], len(synsets))
    weights = train(
        network, recipe, train_files, val_files, synsets, arguments.out,
        workers=arguments.workers, log=lambda line: print(line, flush=True),  # noqa: T201
    )  # fmt: skip
    published = publish_half(torch.load(weights, weights_only=True), arguments.out, recipe.architecture)
    print(published)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
