"""``resnext-hub train``: a recipe, some images, and a folder that is a checkpoint when it is done."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..data.options import add_reading_options, reading_options
from ..errors import EXIT_OK, EXIT_USAGE, FetchError, ImageError
from ..models.manifest import MANIFEST, ROOT, Manifest, find_checkpoint
from .console import counted, fail

if TYPE_CHECKING:
    from ..models.manifest import Checkpoint
    from ..training.recipe import Recipe

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "train",
        help="train or fine-tune a network on your own images",
        description="Train or fine-tune a network on your own images. FOLDER is then a variant for every other "
        "command. To continue a stopped run, run the same command again. To use several processes: torchrun -m "
        "resnext_hub.training ...",
    )
    parser.set_defaults(run=_run)
    data = parser.add_argument_group("input and output")
    images = "class folders, tables, lists or archives; also at s3:// and gs://"
    data.add_argument("--data", nargs="+", action="extend", required=True, metavar="DATA", help=images)
    out = "folder for checkpoints, curves and weights"
    data.add_argument("--out", required=True, type=Path, metavar="FOLDER", help=out)
    val = "validation images (default: the split val of DATA, or a tenth of DATA)"
    data.add_argument("--val", metavar="DIR", help=val)
    tables = "table of classes by image number, from curation.selection or curation.hashtags"
    data.add_argument("--labels", metavar="TABLE", help=tables)
    data.add_argument("--classes", metavar="FILE", help="order and names of the classes, such as a run's labels.tsv")
    add_reading_options(data, split=True)
    network = parser.add_argument_group("network and recipe")
    network.add_argument("--variant", metavar="VARIANT", help="start from these weights, with a new head")
    recipe = "name of a recipe, or a TOML file (default with --variant: finetune)"
    network.add_argument("--recipe", metavar="RECIPE", help=recipe)
    change = "change a value of the recipe; repeat for several"
    network.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=change)
    network.add_argument("--epochs", type=int, metavar="N", help="short for --set epochs=N")
    batch = "short for --set batch_size=N: images per step, all processes together"
    network.add_argument("--batch", type=int, metavar="N", help=batch)
    weights = "start from these weights of an equal or smaller network"
    network.add_argument("--initial-weights", type=Path, metavar="FILE", help=weights)
    scores = "distil from these scores of a teacher, written by training.teacher"
    network.add_argument("--teacher-scores", type=Path, metavar="DIR", help=scores)
    running = parser.add_argument_group("the run")
    micro = "images per forward pass, to save memory; gradients are accumulated over the batch"
    running.add_argument("--micro-batch", type=int, metavar="N", help=micro)
    workers = "processes that read images (default: number of cores, at most 8)"
    running.add_argument("--workers", type=int, metavar="N", help=workers)
    running.add_argument("--threads", type=int, metavar="N", help="CPU threads of PyTorch")
    seconds = "time between checkpoints (default: 120)"
    running.add_argument("--checkpoint-seconds", type=float, default=120.0, metavar="SECONDS", help=seconds)


def _run(arguments: argparse.Namespace, manifest: Manifest) -> int:
    from ..training.recipe import load_recipe

    if arguments.recipe is None and arguments.variant is None:
        return fail("Pass --variant to start from its weights, or --recipe to train from scratch.", EXIT_USAGE)
    try:
        overrides = dict(entry.split("=", 1) for entry in arguments.set)
    except ValueError:
        return fail("--set must be KEY=VALUE.", EXIT_USAGE)
    overrides |= {"epochs": str(arguments.epochs)} if arguments.epochs is not None else {}
    overrides |= {"batch_size": str(arguments.batch)} if arguments.batch is not None else {}
    base = find_checkpoint(arguments.variant) if arguments.variant else None
    recipe = load_recipe(arguments.recipe or "finetune", overrides)
    recipe = recipe.resolved(base and base.preprocessing, base and base.architecture_name)
    if recipe.architecture not in manifest.architectures:
        return fail(
            f"Unknown architecture {recipe.architecture!r} in the recipe: pass --variant, or --set architecture=NAME.",
            EXIT_USAGE,
        )
    if base is not None and recipe.architecture != base.architecture_name:
        return fail(
            f"{base.name} is a {base.architecture_name}, but the recipe is for {recipe.architecture}.", EXIT_USAGE
        )
    if base is not None and base.architecture != manifest.architectures[base.architecture_name]:
        return fail(f"{base.variant} describes another {base.architecture_name} than this version's.", EXIT_USAGE)
    try:
        return _train(arguments, recipe, base)
    except (ImageError, FetchError) as error:  # the whole data set cannot be used
        return fail(str(error), EXIT_USAGE)


def _train(arguments: argparse.Namespace, recipe: Recipe, base: Checkpoint | None) -> int:
    import numpy as np
    import torch

    from ..data.outputs import check_folder
    from ..data.splits import hold_out, train_and_val
    from ..models.checkpoints import read_state_dict
    from ..processing_utils.labels import labels_table
    from ..training.batches import FromFiles, InMemory, validation_batches
    from ..training.calibrate import fit_temperature, fold_temperature, held_out_scores
    from ..training.loop import Place, expect_plain_files, train, unreadable
    from ..training.network import starting_network
    from ..training.pixels import PixelTable
    from ..training.publish import publish_run
    from ..training.teacher import read_scores
    from ..training.watch import Watch, distributed

    with distributed():
        place = Place.here()
        if place.rank == 0:
            check_folder(arguments.out, ("run.json", "last.pt"), "choose another folder")
        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        train_images, val_images, labels = train_and_val(
            arguments.data,
            arguments.val,
            labels=arguments.labels,
            classes=arguments.classes,
            seed=recipe.seed,
            say=_print if place.rank == 0 else lambda line: None,
            **reading_options(arguments),
        )
        available = len(train_images) - recipe.held_out
        largest = available // place.world * place.world
        if 0 < largest < recipe.batch_size and train_images.repeat_factors is None:
            if place.rank == 0:
                _print(
                    f"The batch size is {largest} instead of {recipe.batch_size}: "
                    f"only {counted(available, 'image')} for training."
                )
            recipe = dataclasses.replace(recipe, batch_size=largest)
        labels_table(labels)  # raises now, not at the end, for a class name that no file of labels can have
        order = np.arange(len(train_images))
        if recipe.held_out:  # the last ones
            order = np.argsort(hold_out(train_images, recipe.seed, count=recipe.held_out), kind="stable")
            train_images = train_images.subset(order)
        workers = min(os.cpu_count() or 1, 8) if arguments.workers is None else arguments.workers
        torch.manual_seed(recipe.seed)
        network = starting_network(recipe, base, [label.synset for label in labels], arguments.initial_weights)
        if recipe.in_memory:
            scores = None if arguments.teacher_scores is None else read_scores(arguments.teacher_scores)[order]
            train_set = InMemory(recipe, PixelTable.read(train_images), scores)
        else:
            train_set = FromFiles(recipe, train_images, workers)
        if place.rank == 0:
            sizes = f"{counted(len(train_set), 'image')} for training, {len(val_images):,} for validation"
            where = f"{counted(recipe.epochs, 'epoch')} on {place.world} x {place.device.type}"
            _print(f"{counted(len(labels), 'class')}, {sizes}; {where}")
        expect_plain_files(arguments.out)
        finished = (arguments.out / MANIFEST).is_file() and (arguments.out / "last.pt").is_file()
        watch = Watch(arguments.out, place)
        weights, rows = train(
            network,
            recipe,
            train_set,
            lambda here: validation_batches(val_images, recipe, here.rank, here.world, workers),
            arguments.out,
            about={
                "data": " ".join(arguments.data),
                "val": arguments.val,
                "variant": base and base.name,
                "command": sys.argv,
                **versions(),
            },
            micro_batch=arguments.micro_batch,
            checkpoint_seconds=arguments.checkpoint_seconds,
            watch=watch,
            log=_print if place.rank == 0 else lambda line: None,
        )
        watch.close()
        if place.rank == 0 and (broken := unreadable(arguments.out)):
            _print(f"{counted(len(broken), 'training image')} could not be read: see {arguments.out / 'broken.csv'}")
        if place.rank == 0 and finished:  # with the same recipe, or `train` would have raised: nothing was trained
            _print(f"This run is complete: {find_checkpoint(arguments.out).sources[0].path}")
        elif place.rank == 0:
            state = read_state_dict(weights)
            if recipe.held_out:
                network.load_state_dict(state)
                fold_temperature(
                    network.get_submodule("fc"), fit_temperature(*held_out_scores(network.cpu(), recipe, train_images))
                )
                state = network.state_dict()
            published = publish_run(
                state, recipe, labels, rows[-1], arguments.out, data=" ".join(arguments.data), base=base
            )
            top1 = f"{100 * rows[-1]['val_top1']:.2f}% top-1 on {counted(len(val_images), 'image')}"
            _print(f"Saved {published}: {top1}")
            _print(f"To use it: resnext-hub classify PHOTO --variant {arguments.out}")
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


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
