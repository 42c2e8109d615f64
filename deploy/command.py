"""``resnext-hub export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..console import EXIT_INEXACT, EXIT_OK, EXIT_USAGE, EXIT_WEIGHTS, fail
from ..models.manifest import Manifest, ManifestError, UnknownVariantError
from .targets import TARGETS

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the subcommand to argparse's subparsers."""
    names = ", ".join(TARGETS)
    parser = commands.add_parser("export", help=f"a network for production: {names}", description=(
        "Write a variant as an artefact, hold its answers against the fp32 network's, and only then give the folder "
        "its name. What goes in and comes out, labels, preset, licence and the weights' hash are in metadata.json and "
        "in the artefact itself; how exact it is, is in report.json."
    ))  # fmt: skip
    parser.add_argument("variant", metavar="VARIANT", help="a name (resnext-hub list), or a folder that train wrote")
    parser.add_argument("--to", required=True, choices=list(TARGETS), metavar="TARGET", help=names)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder to write")
    precisions = list(dict.fromkeys(p for target in TARGETS.values() for p in target.precisions))
    parser.add_argument("--precision", choices=precisions, default="fp32", help="default fp32")
    parser.add_argument("--preprocessing", action="store_true", help="uint8 pixels go in, normalised in the graph")
    parser.add_argument("--softmax", action="store_true", help="probabilities come out instead of logits")
    parser.add_argument("--top", type=int, metavar="K", help="only the best K come out, and their classes")
    sources = "a folder, pattern, LIST.txt, TABLE.parquet, archive or image"
    parser.add_argument("--calibration", metavar="SOURCE", help=f"images for int8: {sources}")
    parser.add_argument("--photos", metavar="SOURCE", help="images to prove the export with (default: one at hand)")
    parser.add_argument("--column", metavar="NAME", help="the column of TABLE.parquet that holds the images")
    parser.add_argument("--allow-private", action="store_true", help="fetch URLs at private addresses too")
    parser.add_argument("--overwrite", action="store_true", help="replace DIR if it is an export")
    for name, target in TARGETS.items():
        for option, (_, settings) in target.options.items():
            settings = dict(settings) | {"help": f"{name}: {settings['help']}", "default": argparse.SUPPRESS}
            parser.add_argument(f"--{option.replace('_', '-')}", **settings)
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace, manifest: Manifest) -> int:
    from ..inference.sources import SourceError
    from ..models.cache import CheckpointError
    from .export import ExportError, InexactError, export

    said = {k: v for k, v in vars(arguments).items() if k not in ("command", "run", "variant", "to", "out")}
    try:
        report = export(arguments.variant, arguments.to, arguments.out, **said)
    except InexactError as error:
        return fail(str(error), EXIT_INEXACT)
    except (ExportError, SourceError, UnknownVariantError, ManifestError, ValueError, TypeError) as error:
        return fail(str(error), EXIT_USAGE)
    except CheckpointError as error:
        return fail(f"{error}\nTry resnext_tiny.", EXIT_WEIGHTS)
    except OSError as error:  # the file system: no right to write, no room
        return fail(f"{arguments.out}: {error}", EXIT_USAGE)
    agreement = report.agreement
    print(f"{report.path}  {report.bytes / 2**20:,.1f} MiB, {report.precision}")
    print(
        f"  largest difference of a logit {agreement.max_logit_difference:.2g} ({agreement.difference:.1e} of their "
        f"range, {agreement.tolerance:.0e} allowed)\n  top-1 as the network's on {agreement.top1_agreement:.0%} of "
        f"{agreement.images} images ({report.photos})\n  in {report.runtime}"
    )
    for note in report.notes:
        print(f"  {note}")
    return EXIT_OK
