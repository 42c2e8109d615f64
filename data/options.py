"""The options of every command that reads images."""

from __future__ import annotations

import argparse
from typing import Any

OPTIONS: dict[str, dict[str, Any]] = {
    "--column": {"metavar": "NAME", "help": "column of a table or list with the images or their paths"},
    "--label-column": {"metavar": "NAME", "help": "column of a table or list with the classes"},
    "--allow-private": {"action": "store_true", "help": "also load URLs at private addresses"},
    "--anonymous": {"action": "store_true", "help": "read public data in object stores without an account"},
}
SPLIT: dict[str, dict[str, Any]] = {
    "--split": {
        "metavar": "NAME",
        "choices": ("train", "val", "test", "none"),
        "help": "split of the data to use; none: folders named train, val or test are classes",
    },
}


def add_reading_options(parser: Any, *, split: bool = False, **defaults: Any) -> None:
    """Add the options to a parser or to a group; ``defaults`` go to argparse."""
    for name, settings in (OPTIONS | (SPLIT if split else {})).items():
        parser.add_argument(name, **settings, **defaults)


def reading_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were passed, as keyword arguments of `labels.list_images`."""
    options = {name: getattr(arguments, name, None) for name in ("column", "label_column", "split")}
    return options | {"private": arguments.allow_private, "anonymous": arguments.anonymous}
