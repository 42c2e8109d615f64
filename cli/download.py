"""``resnext-hub download``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..errors import EXIT_OK
from ..models.manifest import Manifest
from .options import add_variant


def add_to(commands: Any) -> None:
    about = "download and verify weights, for a machine without a network for example"
    parser: argparse.ArgumentParser = commands.add_parser("download", help=about, description=f"{about.capitalize()}.")
    add_variant(parser, "variants", trained=False, nargs="+")
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
    checkpoints = [manifest.resolve(variant) for variant in arguments.variants]
    store.folder.mkdir(parents=True, exist_ok=True)
    for checkpoint in checkpoints:
        path, digest = local_file(checkpoint, progress=sys.stderr.isatty(), store=store)
        print(f"{path}  sha256 {digest}", flush=True)
        if checkpoint.sources[0].path:
            print(f"{checkpoint.name} is part of this package: there is nothing to download or copy.", file=sys.stderr)
    return EXIT_OK
