"""``resnext-hub list``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from ..errors import EXIT_OK
from ..models.manifest import Manifest

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    about = "list the variants with size, accuracy and licence"
    parser: argparse.ArgumentParser = commands.add_parser("list", help=about, description=f"{about.capitalize()}.")
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.set_defaults(run=_list)


def _list(arguments: argparse.Namespace, manifest: Manifest) -> int:
    checkpoints = manifest.checkpoints.values()
    if arguments.json:
        rows = [
            {
                "name": c.name,
                "entrypoint": c.entrypoint,
                "params": c.params,
                "gmacs": c.gmacs,
                "dataset": c.published.dataset,
                "top1": c.published.top1,
                "top5": c.published.top5,
                "measured": [dataclasses.asdict(row) for row in c.measured],
                "license": c.license_id,
                "known_issues": list(c.known_issues),
            }
            for c in checkpoints
        ]
        print(json.dumps(rows, indent=1))
        return EXIT_OK
    print(f"{'name':31}{'params':>8}{'GMACs':>8}{'top-1':>8}{'measured':>10}  licence")
    for c in checkpoints:
        measured = c.measured_on(c.published.dataset)
        print(
            f"{c.name:31}{c.params / 1e6:7.1f}M{c.gmacs:8.2f}{c.published.top1:7.2f}"
            f"{' ' if c.published.dataset == 'imagenet' else '*'}"
            f"{f'{measured.top1:.2f}' if measured else '-':>10}  {c.license_id or 'not stated'}"
        )
    print(
        "\nTop-1 accuracy in %, as published and as measured by third parties, on ImageNet\n"
        "(* on Tiny ImageNet: 200 classes, 64x64). --json adds top-5 and known issues."
    )
    return EXIT_OK
