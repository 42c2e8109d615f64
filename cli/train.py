"""``resnext-hub train``: train or fine-tune a network."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EXIT_OK, EXIT_USAGE, FetchError, ImageError
from ..training.loggers import LOGGERS
from .console import fail
from .options import add_reading_options, add_variant, reading_options

if TYPE_CHECKING:
    from ..models.manifest import Manifest

#: Options that stand for values of the recipe.
SHORT = {
    "--epochs": ("epochs", "passes over the images"),
    "--batch": ("batch_size", "images per step, all processes together"),
    "--patience": ("patience", "stop after N epochs without a better one on the validation images"),
    "--freeze": ("freeze", "do not train the first N stages, from 1 (the stem) to 5 (all but the head)"),
    "--image-size": ("image_size", "pixels of training and validation images (default: as the weights)"),
}


def add_to(commands: Any) -> None:
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
    add_reading_options(data, labelled=True)
    network = parser.add_argument_group("network and recipe")
    add_variant(network, note=": start from its weights, with a new head")
    recipe = "name of a recipe, or a TOML file (default with --variant: finetune)"
    network.add_argument("--recipe", metavar="RECIPE", help=recipe)
    change = "change a value of the recipe; repeat for several"
    network.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=change)
    for name, (key, text) in SHORT.items():
        network.add_argument(name, type=int, dest=key, metavar="N", help=f"short for --set {key}=N: {text}")
    balance = "short for --set balance=true: treat classes as equally frequent, however many images each has"
    network.add_argument("--balance", action="store_true", help=balance)
    weights = "start from these weights of an equal or smaller network"
    network.add_argument("--initial-weights", type=Path, metavar="FILE", help=weights)
    scores = "distil from these scores of a teacher, written by 'score'"
    network.add_argument("--teacher-scores", type=Path, metavar="DIR", help=scores)
    hub = "when the run is finished, upload it to this repository of the Hugging Face Hub, which is made public"
    data.add_argument("--push-to-hub", metavar="OWNER/NAME", help=hub)
    running = parser.add_argument_group("the run")
    micro = "images per forward pass, to save memory; gradients are accumulated over the batch"
    running.add_argument("--micro-batch", type=int, metavar="N", help=micro)
    minutes = "train for as many epochs of the recipe as fit into this time"
    running.add_argument("--minutes", type=float, metavar="M", help=minutes)
    workers = "processes that read images (default: number of cores, at most 8)"
    running.add_argument("--workers", type=int, metavar="N", help=workers)
    running.add_argument("--threads", type=int, metavar="N", help="CPU threads of PyTorch")
    seconds = "time between checkpoints (default: 120)"
    logs = f"where the figures of each epoch go: {', '.join(LOGGERS)} (default: tensorboard, if it is installed)"
    running.add_argument("--log", nargs="+", choices=LOGGERS, metavar="NAME", dest="loggers", help=logs)
    running.add_argument("--checkpoint-seconds", type=float, default=120.0, metavar="SECONDS", help=seconds)


def _run(arguments: argparse.Namespace, manifest: Manifest) -> int:
    from ..deploy.huggingface import check_upload, upload, write_repository
    from ..training.run import RunOptions, TrainingRun

    if any("=" not in entry for entry in arguments.set):
        return fail("--set must be KEY=VALUE.", EXIT_USAGE)
    changes = dict(entry.split("=", 1) for entry in arguments.set)
    given = {key: getattr(arguments, key) for key, _ in SHORT.values()} | {"balance": arguments.balance or None}
    changes |= {key: str(value).lower() for key, value in given.items() if value is not None}
    same = ("out", "variant", "recipe", "val", "label_table", "classes", "initial_weights", "teacher_scores")
    same += ("micro_batch", "minutes", "workers", "threads", "checkpoint_seconds", "loggers")
    options = RunOptions(
        data=tuple(arguments.data),
        changes=changes,
        reading=reading_options(arguments),
        **{name: getattr(arguments, name) for name in same},
    )
    if arguments.push_to_hub is not None:
        check_upload(arguments.push_to_hub)
    try:
        run = TrainingRun(options, say=_print)
        run.run()
    except (ImageError, FetchError) as error:  # the whole data set cannot be used
        return fail(str(error), EXIT_USAGE)
    if arguments.push_to_hub is not None and run.processes.first:
        folder = write_repository(arguments.out, arguments.out / "huggingface", overwrite=True)
        run.say(f"Uploaded {folder} to {upload(folder, arguments.push_to_hub)}")
    for line in _next_commands(arguments, tested=len(run.val_images) > 0):
        run.say(line)
    return EXIT_OK


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _next_commands(arguments: argparse.Namespace, tested: bool) -> list[str]:
    """What to do with a finished run. ``tested``: it has validation images, and `evaluate` knows them."""
    out, images = arguments.out, ["IMAGES"]
    if tested:
        images = [arguments.val] if arguments.val else arguments.data
        columns = {"--column": arguments.column, "--label-column": arguments.label_column}
        images = [*images, *(word for name, value in columns.items() if value for word in (name, value))]
    commands = {
        "Use it": ["classify", "PHOTO", "--variant", out],
        "Accuracy by class": ["evaluate", "--variant", out, "--data", *images, "--out", out / "evaluation"],
        "Deploy it": ["export", "--variant", out, "--to", "onnx", "--out", out / "onnx"],
    }
    return [f"{what}: resnext-hub {shlex.join(map(str, words))}" for what, words in commands.items()]
