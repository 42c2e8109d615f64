"""``resnext-hub train``: a recipe, some images, and a folder that is a checkpoint when it is done."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..console import EXIT_OK, EXIT_USAGE, EXIT_WEIGHTS, fail
from ..models.manifest import ROOT, Manifest, ManifestError, UnknownVariantError, find_checkpoint

if TYPE_CHECKING:
    from ..models.manifest import Checkpoint
    from .recipe import Recipe

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "train",
        help="train or fine-tune on your images",
        description="Train or fine-tune on your own images. FOLDER is then a variant for every other command. The same "
        "command goes on with a run that was stopped. Several processes: torchrun -m resnext_hub.training ...",
    )
    add_arguments(parser)
    parser.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="class folders, parquet or tars; also s3:// and more"
    )
    parser.add_argument("--val", metavar="DIR", help="validation images (default: DIR's part val, or a tenth of DIR)")
    parser.add_argument("--labels", metavar="TABLE", help="classes by image number: of training.selection or .hashtags")
    parser.add_argument(
        "--classes", metavar="FILE", help="order and names of the classes (a trained folder's labels.tsv)"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="checkpoint, curves and weights")
    parser.add_argument("--variant", metavar="V", help="start from its weights, with a new head")
    parser.add_argument("--recipe", metavar="R", help="a recipe's name or TOML file (default with --variant: finetune)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe")
    parser.add_argument("--epochs", type=int, metavar="N", help="short for --set epochs=N")
    parser.add_argument("--batch", type=int, metavar="N", help="short for --set batch_size=N: images in a step, in all")
    parser.add_argument("--micro-batch", type=int, metavar="N", help="images that pass together; gradients accumulate")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that read images (default: cores, at most 8)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="processor cores for the arithmetic")
    parser.add_argument("--checkpoint-seconds", type=float, default=120.0, metavar="S", help="(default 120)")
    parser.add_argument("--initial-weights", type=Path, metavar="FILE", help="start from these, grown if need be")
    parser.add_argument("--teacher-scores", type=Path, metavar="DIR", help="what training.teacher wrote; to distil")


def run(arguments: argparse.Namespace, manifest: Manifest) -> int:
    """Train; return the exit status."""
    from ..inference.sources import SourceError
    from ..models.cache import CheckpointError
    from ..processing_utils.images import ImageError
    from .recipe import RecipeError, load_recipe

    if arguments.recipe is None and arguments.variant is None:
        return fail("say --variant, whose weights to start from, or --recipe.", EXIT_USAGE)
    try:
        overrides = dict(entry.split("=", 1) for entry in arguments.set)
    except ValueError:
        return fail("--set takes KEY=VALUE.", EXIT_USAGE)
    overrides |= {"epochs": str(arguments.epochs)} if arguments.epochs is not None else {}
    overrides |= {"batch_size": str(arguments.batch)} if arguments.batch is not None else {}
    try:
        base = find_checkpoint(arguments.variant) if arguments.variant else None
        recipe = load_recipe(arguments.recipe or "finetune", overrides)
        recipe = recipe.resolved(base and base.preprocessing, base and base.architecture_name)
        if recipe.architecture not in manifest.architectures:
            return fail(f"the recipe's architecture is {recipe.architecture!r}; say --variant.", EXIT_USAGE)
        if base is not None and recipe.architecture != base.architecture_name:
            return fail(f"{base.name} is a {base.architecture_name}, the recipe a {recipe.architecture}.", EXIT_USAGE)
        return _train(arguments, recipe, base)
    except (UnknownVariantError, ManifestError, RecipeError, SourceError, ModuleNotFoundError) as error:
        return fail(str(error), EXIT_USAGE)
    except CheckpointError as error:
        return fail(str(error), EXIT_WEIGHTS)
    except (ImageError, ValueError, FloatingPointError, OSError) as error:
        return fail(str(error), EXIT_USAGE)


def _train(arguments: argparse.Namespace, recipe: Recipe, base: Checkpoint | None) -> int:
    import torch

    from .batches import FromFiles, InMemory, validation_batches
    from .calibrate import fit_temperature, fold_temperature, held_out_scores
    from .data import train_and_val
    from .engine import Place, train
    from .network import starting_network
    from .pixels import PixelTable
    from .publish import publish_run
    from .teacher import read_scores
    from .watch import Watch, distributed

    with distributed():
        place = Place.here()
        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        train_images, val_images, labels = train_and_val(
            arguments.data, arguments.val, labels=arguments.labels, classes=arguments.classes, seed=recipe.seed
        )
        workers = min(os.cpu_count() or 1, 8) if arguments.workers is None else arguments.workers
        torch.manual_seed(recipe.seed)
        network = starting_network(recipe, base, [label.synset for label in labels], arguments.initial_weights)
        if recipe.in_memory:
            scores = None if arguments.teacher_scores is None else read_scores(arguments.teacher_scores)
            train_set = InMemory(recipe, PixelTable.read(train_images), scores)
        else:
            train_set = FromFiles(recipe, train_images, workers)
        if place.rank == 0:
            sizes = f"{len(train_set):,} images for training, {len(val_images):,} for validation"
            _say(f"{len(labels)} classes, {sizes}; {recipe.epochs} epochs on {place.world} x {place.device.type}")
        watch = Watch(arguments.out, place)
        weights, rows = train(
            network,
            recipe,
            train_set,
            lambda here: validation_batches(val_images, recipe, here.rank, here.world, workers),
            arguments.out,
            about={
                "data": arguments.data,
                "val": arguments.val,
                "variant": base and base.name,
                "command": sys.argv,
                **versions(),
            },
            micro_batch=arguments.micro_batch,
            checkpoint_seconds=arguments.checkpoint_seconds,
            watch=watch,
            log=_say if place.rank == 0 else lambda line: None,
        )
        watch.close()
        if place.rank == 0:
            state = torch.load(weights, weights_only=True, map_location="cpu")
            if recipe.held_out:
                network.load_state_dict(state)
                fold_temperature(
                    network.get_submodule("fc"), fit_temperature(*held_out_scores(network.cpu(), recipe, train_images))
                )
                state = network.state_dict()
            published = publish_run(state, recipe, labels, rows[-1], arguments.out, data=arguments.data, base=base)
            _say(f"{published}: {100 * rows[-1]['val_top1']:.2f}% top-1 on {len(val_images):,} images")
            _say(f"resnext-hub classify PHOTO --variant {arguments.out}")
    return EXIT_OK


def versions() -> dict[str, str | None]:
    """What ran: versions, and the revision of this checkout where it is one."""
    import importlib.metadata

    found: dict[str, str | None] = {"python": platform.python_version(), "resnext-hub": __version__}
    for name in ("torch", "torchvision", "numpy", "pillow"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        found["git"] = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        found["git"] = None
    return found


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
