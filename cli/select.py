"""``resnext-hub select``: the best images of each class, by the scores of a teacher."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..models.manifest import Manifest
from .console import counted
from .options import add_reading_options, reading_options


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "select",
        help="select each class's best images from a table of predictions",
        description="Select each class's K highest-scored images from tables that 'resnext-hub classify --out' wrote, "
        "to train a student on them (arXiv 1905.00546).",
    )
    parser.add_argument("scores", nargs="+", metavar="SCORES", help="Parquet tables; also folders, patterns")
    parser.add_argument("--per-class", type=int, required=True, metavar="K", help="images to select per class")
    several = "classes that an image may be selected for (default: %(default)s)"
    parser.add_argument("--max-classes", type=int, default=10, metavar="P", help=several)
    hashtags = "select an image for a class only if it is among its targets in these tables"
    parser.add_argument("--hashtags", nargs="+", metavar="TABLE", help=hashtags)
    classes = "number of classes, to also report those without an image"
    parser.add_argument("--num-classes", type=int, metavar="N", help=classes)
    add_table_options(parser)
    parser.set_defaults(run=_select)


def add_table_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that makes a table from tables larger than memory."""
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="table to write (.parquet)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it was made with other options")
    add_reading_options(parser)
    parser.add_argument("--memory", default="2GB", metavar="SIZE", help="memory limit (default: %(default)s)")
    parser.add_argument("--spill", type=Path, metavar="DIR", help="folder for temporary files (default: next to FILE)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")


def table_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The values of `add_table_options`, by the names that the functions of `curation` have for them."""
    from ..curation.duckdb_tables import Limits, Reading

    reading = reading_options(arguments)
    del reading["split"], reading["label_separator"]  # a table of scores or hashtags has neither
    limits = Limits(arguments.memory, arguments.spill, arguments.threads)
    return {"reading": Reading(**reading), "limits": limits, "overwrite": arguments.overwrite}


def _select(arguments: argparse.Namespace, manifest: Manifest) -> None:
    from ..curation.selection import select

    own = {name: getattr(arguments, name) for name in ("per_class", "max_classes", "hashtags", "num_classes")}
    found = select(arguments.scores, arguments.out, **own, **table_options(arguments))
    short = found.short(arguments.per_class)
    pairs = counted(found.pairs, "pair")
    print(f"{counted(found.scored, 'image')} with scores, {found.failed:,} without; {pairs} ranked")
    images = f"{counted(found.images, 'image')}, {found.several:,} of them in several classes"
    print(f"Saved {arguments.out}: {counted(found.rows, 'row')}, {images}")
    complete = counted(len(found.counts) - len(short), "class")
    print(f"{complete} with {counted(arguments.per_class, 'image')}, {len(short):,} with fewer")
    for number, count in sorted(short.items(), key=lambda item: item[1])[:20]:
        print(f"  class {number}: {count:,}")
    if len(short) > 20:
        print(f"  … and {len(short) - 20:,} more")
