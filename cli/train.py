"""``resnext-hub train``: train or fine-tune a network."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.options import add_reading_options, reading_options
from ..errors import EXIT_OK, EXIT_USAGE, FetchError, ImageError
from .console import fail

if TYPE_CHECKING:
    from ..models.manifest import Manifest

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
    tables = "table of classes by image number, from 'select' or 'hashtags targets'"
    data.add_argument("--label-table", metavar="TABLE", help=tables)
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
    scores = "distil from these scores of a teacher, written by 'score'"
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
    from ..training.run import RunOptions, TrainingRun

    if any("=" not in entry for entry in arguments.set):
        return fail("--set must be KEY=VALUE.", EXIT_USAGE)
    changes = dict(entry.split("=", 1) for entry in arguments.set)
    changes |= {"epochs": str(arguments.epochs)} if arguments.epochs is not None else {}
    changes |= {"batch_size": str(arguments.batch)} if arguments.batch is not None else {}
    same = ("out", "variant", "recipe", "val", "label_table", "classes", "initial_weights", "teacher_scores")
    same += ("micro_batch", "workers", "threads", "checkpoint_seconds")
    options = RunOptions(
        data=tuple(arguments.data),
        changes=changes,
        reading=reading_options(arguments),
        **{name: getattr(arguments, name) for name in same},
    )
    try:
        TrainingRun(options, say=_print).run()
    except (ImageError, FetchError) as error:  # the whole data set cannot be used
        return fail(str(error), EXIT_USAGE)
    return EXIT_OK


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
