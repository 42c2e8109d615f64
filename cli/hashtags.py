"""``resnext-hub hashtags``: turn hashtags into labels for training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..models.manifest import Manifest
from .console import counted
from .select import add_table_options, table_options


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "hashtags",
        help="turn hashtags into labels for training",
        description="Turn hashtags into labels for training (arXiv 1805.00932).",
    )
    steps = parser.add_subparsers(dest="step", required=True, title="steps", metavar="STEP")
    for name, run, text in (
        ("mapping", _mapping, "write a table of hashtags and their synsets (.tsv)"),
        ("count", _count, "count the images of each hashtag (.parquet)"),
        ("targets", _targets, "write the classes and repeat factors of images (.parquet)"),
    ):
        step = steps.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        labels = "name of a label set, or its file (default: %(default)s)"
        step.add_argument("--labels", default="imagenet-1k", metavar="SET", help=labels)
        step.set_defaults(run=run)
        if name == "mapping":
            ambiguous = "classes of a name that several synsets have: none, the first, or all (default: %(default)s)"
            step.add_argument("--ambiguous", choices=("drop", "first", "all"), default="drop", help=ambiguous)
            step.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
            step.add_argument("--overwrite", action="store_true", help="replace FILE")
            continue
        images = "Parquet tables with the columns image and hashtags; also folders, patterns"
        step.add_argument("images", nargs="+", metavar="IMAGES", help=images)
        mapping = "mapping to use (default: from the labels, without ambiguous names)"
        step.add_argument("--mapping", metavar="FILE", help=mapping)
        if name == "count":
            least = "leave out hashtags of fewer images (default: %(default)s)"
            step.add_argument("--least", type=int, default=1, metavar="N", help=least)
        else:
            threshold = "repeat images of classes with less than this fraction of the images (default: the median)"
            step.add_argument("--threshold", type=float, metavar="T", help=threshold)
        add_table_options(step)


def _mapping(arguments: argparse.Namespace, manifest: Manifest) -> None:
    from ..curation.hashtags import make_mapping, read_label_file, write_mapping

    labels = read_label_file(arguments.labels)
    mapping, several = make_mapping(labels, arguments.ambiguous)
    if arguments.out.exists() and not arguments.overwrite:  # a person may have corrected it
        raise OutputError(f"{arguments.out} exists. Choose another name, delete the file, or pass overwrite=True.")
    write_mapping(arguments.out, mapping, labels, several)
    print(f"Saved {arguments.out}: {counted(len(mapping), 'hashtag')} of {counted(len(labels), 'class')}")
    print(f"{counted(len(several), 'ambiguous name')} ({arguments.ambiguous}), also listed there")
    named = {number for classes in mapping.values() for number in classes}
    if unnamed := [label.synset for label in labels if label.index not in named]:
        print(f"Without any hashtag: {counted(len(unnamed), 'class')}: {', '.join(unnamed)}")


def _given_mapping(arguments: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    from ..curation.hashtags import make_mapping, read_label_file, read_mapping

    labels = read_label_file(arguments.labels)
    return read_mapping(arguments.mapping, labels) if arguments.mapping else make_mapping(labels)[0]


def _count(arguments: argparse.Namespace, manifest: Manifest) -> None:
    from ..curation.hashtags import count_hashtags

    mapping, options = _given_mapping(arguments), table_options(arguments)
    found = count_hashtags(arguments.images, arguments.out, mapping, least=arguments.least, **options)
    images = counted(found.images, "image")
    print(f"Saved {arguments.out}: {counted(found.hashtags, 'hashtag')} of {images}, {found.known:,} of them known")


def _targets(arguments: argparse.Namespace, manifest: Manifest) -> None:
    from ..curation.hashtags import make_targets

    mapping, options = _given_mapping(arguments), table_options(arguments)
    found = make_targets(arguments.images, arguments.out, mapping, threshold=arguments.threshold, **options)
    print(f"Saved {arguments.out}: {found.rows:,} of {counted(found.images, 'image')} with a class")
    epoch = f"{found.epoch:,.0f} images per epoch"
    print(f"{counted(len(found.frequencies), 'class')}, threshold {found.threshold:.3g}, {epoch}")
