"""``resnext-hub download``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import EXIT_OK
from ..models.manifest import Manifest

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    about = "download and verify weights, for a machine without a network for example"
    parser: argparse.ArgumentParser = commands.add_parser("download", help=about, description=f"{about.capitalize()}.")
    parser.add_argument("variants", nargs="+", metavar="VARIANT", help="a name as resnext-hub list prints it")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="folder for the files; copy it to the other machine and set TORCH_HOME to it there (default: torch.hub's)",
    )
    parser.set_defaults(run=_download)


def _download(arguments: argparse.Namespace, manifest: Manifest) -> int:
    from ..models.download import local_file
    from ..models.store import Store

    store = Store(arguments.to / "hub" / "checkpoints") if arguments.to else Store()
    for checkpoint in [manifest.resolve(variant) for variant in arguments.variants]:
        path, digest = local_file(checkpoint, store=store)
        print(f"{path}  sha256 {digest}", flush=True)
    return EXIT_OK
