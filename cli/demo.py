"""``resnext-hub demo``: the web page, on this machine."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import EXIT_OK, EXIT_USAGE
from ..models.manifest import Manifest
from ..packages import needed
from .console import fail
from .options import add_engine, add_variant

LOOPBACK = "127.0.0.1"


def add_to(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="serve a web page that classifies photos",
        description="Serve a web page on this machine until Ctrl-C. Photos and answers stay on this machine; only "
        "weights and the URLs that a visitor enters are downloaded.",
    )
    several = "; repeat for several (default: resnext_tiny; on 127.0.0.1 all published ones, downloaded when they are "
    add_variant(parser, note=f"{several}first chosen)", action="append")
    add_engine(parser)
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on (default: %(default)s)")
    port = "port to listen on; 0 for any free port (default: %(default)s)"
    parser.add_argument("--port", type=_port, default=7860, help=port)
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.set_defaults(run=_demo)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, got {text!r}")
    return int(text)


def _demo(arguments: argparse.Namespace, manifest: Manifest) -> int:
    with needed("The page", "demo"):
        from ..demo.page import serve
    from ..demo.logic import Models, PageError
    from ..inference.engines import check_engine

    check_engine(arguments.engine)
    variants = arguments.variant or ["resnext_tiny"]
    if arguments.variant is None and arguments.host == LOOPBACK:
        variants += [name for name in manifest.checkpoints if name not in variants]
    models = Models(variants, arguments.engine, device=arguments.device)
    try:
        models[next(iter(models.checkpoints))]  # the first visitor need not wait, and errors appear now
    except PageError as error:  # its cause is logged
        return getattr(error.__cause__, "exit_code", error.exit_code)
    try:
        serve(models, arguments.host, arguments.port, open_browser=arguments.open)
    except OSError as error:
        where = f"{arguments.host}:{arguments.port}"
        # Gradio's own message gives advice that is not for this command.
        why = "it is in use, or not yours to use. Pass another --port (0: any free one)"
        return fail(f"Cannot listen on {where}: {error.strerror or why}.", EXIT_USAGE)
    return EXIT_OK
