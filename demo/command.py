"""``resnext-hub demo``: the web page, on this machine."""

from __future__ import annotations

import argparse
from typing import Any

from ..console import EXIT_OK, EXIT_USAGE, EXIT_WEIGHTS, fail
from ..models.manifest import Manifest, ManifestError, UnknownVariantError
from ..packages import needed

__all__ = ["add_to"]

LOOPBACK = "127.0.0.1"


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="a web page: what is in a photo, where, and of many a table",
        description="Serve the web page on this machine until Ctrl-C. Photos and answers stay on it; only weights and "
        "addresses that a visitor chooses are fetched.",
    )
    parser.add_argument(
        "--variant",
        action="append",
        metavar="V",
        help="offer this name or training's folder; repeat for several (default: resnext_tiny, and on 127.0.0.1 all "
        "others too, fetched when they are chosen)",
    )
    parser.add_argument("--engine", default="auto", metavar="E", help="what runs the networks, as of classify")
    parser.add_argument("--host", default=LOOPBACK, metavar="H", help=f"where to listen (default {LOOPBACK})")
    parser.add_argument("--port", type=int, default=7860, metavar="P", help="(default 7860; 0: any that is free)")
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace, manifest: Manifest) -> int:
    with needed("The page", "demo"):
        from .page import serve
    from ..inference.engines import ENGINES
    from .logic import Models, PageError

    if arguments.engine not in ENGINES:
        return fail(f"--engine {arguments.engine}: there are {', '.join(ENGINES)}.", EXIT_USAGE)
    variants = arguments.variant or ["resnext_tiny"]
    if arguments.variant is None and arguments.host == LOOPBACK:
        variants += [name for name in manifest.checkpoints if name not in variants]
    try:
        models = Models(variants, arguments.engine)
        models[next(iter(models.checkpoints))]  # the first visitor need not wait, and what is wrong shows now
    except (UnknownVariantError, ManifestError, ValueError) as error:
        return fail(str(error), EXIT_USAGE)
    except PageError as error:
        return fail(str(error.__cause__ or error), EXIT_WEIGHTS)
    try:
        serve(models, arguments.host, arguments.port, open_browser=arguments.open)
    except OSError as error:
        return fail(f"{arguments.host}:{arguments.port}: {error}", EXIT_USAGE)
    return EXIT_OK
