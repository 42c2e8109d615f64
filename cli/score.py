"""``resnext-hub score``: the scores of a teacher, to distil from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..models.manifest import Manifest, find_checkpoint
from .console import counted
from .options import add_device, add_reading_options, add_variant, reading_options


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "score",
        help="score training images with a teacher, to distil from it",
        description="Score training images with a teacher network, for 'train --teacher-scores' with a recipe that "
        "has distillation_weight and in_memory (small images of one size). Pass the same data to both commands.",
    )
    add_variant(parser, note=": the teacher", required=True)
    parser.add_argument("--data", nargs="+", required=True, metavar="DATA", help="labelled images, as for 'train'")
    parser.add_argument("--val", metavar="DIR", help="validation images, as for 'train'")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for train.scores.npy")
    add_reading_options(parser, labelled=True)
    add_device(parser)
    parser.set_defaults(run=_score)


def _score(arguments: argparse.Namespace, manifest: Manifest) -> None:
    from ..data.splits import train_and_val
    from ..training.pixels import PixelTable
    from ..training.teacher_scores import save_array, score_images

    teacher, options = find_checkpoint(arguments.variant), reading_options(arguments)
    options["say"] = lambda line: print(line, file=sys.stderr)
    images, _, _ = train_and_val(arguments.data, arguments.val, **options)
    scores = score_images(teacher, PixelTable.read(images), device=arguments.device)
    path = save_array(scores.numpy(), arguments.out / "train.scores.npy")
    print(f"Saved {path}: {counted(len(images), 'image')}, {counted(len(images.classes), 'class')}")
