"""``resnext-hub list``."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
from typing import Any

from ..errors import EXIT_OK, EXIT_USAGE
from ..models.manifest import Checkpoint, Manifest
from ..models.store import Store
from .console import fail


def add_to(commands: Any) -> None:
    about = "list the variants with size, accuracy and licence"
    parser: argparse.ArgumentParser = commands.add_parser("list", help=about, description=f"{about.capitalize()}.")
    names = "only names that contain PATTERN, or match it: swsl, '*101*'"
    parser.add_argument("pattern", nargs="?", default="", metavar="PATTERN", help=names)
    parser.add_argument("--cached", action="store_true", help="only variants whose weights are on this machine")
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.set_defaults(run=_list)


def row(checkpoint: Checkpoint) -> dict[str, Any]:
    """The facts about a variant that ``--json`` prints."""
    found = Store().find(checkpoint)
    return {
        "name": checkpoint.name,
        "entrypoint": checkpoint.entrypoint,
        "params": checkpoint.params,
        "gmacs": checkpoint.gmacs,
        "dataset": checkpoint.published.dataset,
        "top1": checkpoint.published.top1,
        "top5": checkpoint.published.top5,
        "measured": [dataclasses.asdict(figures) for figures in checkpoint.measured],
        "license": checkpoint.license_id,
        "known_issues": list(checkpoint.known_issues),
        "bytes": checkpoint.sources[0].bytes,
        "cached": str(found[0]) if found else None,
    }


def file_size(checkpoint: Checkpoint) -> str:
    """The length of the published file; "≈" where the publisher states none: four bytes for each parameter."""
    size = checkpoint.sources[0].bytes
    return f"≈ {4 * checkpoint.params / 1e6:,.0f} MB" if size is None else f"{size / 1e6:,.0f} MB"


def _list(arguments: argparse.Namespace, manifest: Manifest) -> int:
    pattern = arguments.pattern.lower()
    pattern = pattern if any(mark in pattern for mark in "*?[") else f"*{pattern}*"
    checkpoints = [c for c in manifest.checkpoints.values() if fnmatch.fnmatchcase(c.name.lower(), pattern)]
    if not checkpoints:
        return fail(f"No variant matches {arguments.pattern!r}; 'resnext-hub list' prints all names.", EXIT_USAGE)
    rows = [(c, row(c)) for c in checkpoints]
    rows = [(c, values) for c, values in rows if values["cached"] or not arguments.cached]
    if arguments.json:
        print(json.dumps([values for _, values in rows], indent=1))
        return EXIT_OK
    print(f"{'name':30}{'params':>7}{'file':>9}{'top-1':>6}{'measured':>10}  licence")
    for c, values in rows:
        measured = c.measured_on(c.published.dataset)
        print(
            f"{c.name:30}{c.params / 1e6:6.1f}M{file_size(c):>9}{c.published.top1:6.2f}"
            f"{' ' if c.published.dataset == 'imagenet' else '*'}{f'{measured.top1:.2f}' if measured else '-':>9}"
            f"  {c.license_id or 'not stated':12}{'  +' if values['cached'] else ''}".rstrip()
        )
    print(
        "\n+ The weights are on this machine. Top-1 accuracy in %, as published and as\n"
        "measured by third parties, on ImageNet (* Tiny ImageNet: 200 classes, 64x64).\n"
        "More about one variant: resnext-hub info NAME"
    )
    return EXIT_OK
