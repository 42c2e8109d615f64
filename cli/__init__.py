"""The command ``resnext-hub``: one file per command, whose ``add_to`` adds it to argparse's subparsers.

Starts without torch: a command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import __version__
from ..errors import EXIT_USAGE
from ..models.manifest import default_manifest
from ..packages import needed
from . import cache, classify, demo, download, evaluate, export, hashtags, info, score, select, train
from . import list as listing
from .console import quiet, status_of

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are two lines, without the usage; its subparsers are of this class too."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\nAll options: {self.prog} --help\n")

    def parse_known_args(self, *args: Any, **settings: Any) -> Any:  # here, and not in the parser above a command's
        parsed, unknown = super().parse_known_args(*args, **settings)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="resnext-hub",
        description="Classify images with ResNeXt networks; evaluate, fine-tune and export the networks.",
        epilog="Exit status: 0 success; 1 an image could not be used; 2 wrong arguments; 3 weights not available; 4 an "
        "export or accuracy differs from what was expected; 5 a training diverged; 130 stopped; 143 terminated.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    for command in (listing, info, download, classify, train, evaluate, export, demo, hashtags, score, select, cache):
        command.add_to(commands)
    for name in ("download", "classify", "train", "evaluate", "export", "demo", "score"):
        commands.choices[name].add_argument("--quiet", action="store_true", help="print only results and errors")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions
        with needed("Completion", "completion"):
            import argcomplete
        argcomplete.autocomplete(parser)
    arguments = parser.parse_args(argv)
    if arguments.command is None:  # help, but no success: as click and clap (ruff, uv) do
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end a run
    out = getattr(arguments, "out", None)
    resumable = str(out) != "-" and out is not None and arguments.command in ("classify", "evaluate")
    with quiet() if vars(arguments).pop("quiet", False) else contextlib.nullcontext():
        return status_of(lambda: arguments.run(arguments, default_manifest()), out, resumable=resumable)
