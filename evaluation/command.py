"""``resnext-hub evaluate``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..console import EXIT_DIFFERENT, EXIT_IMAGE, EXIT_OK, EXIT_STOPPED, EXIT_USAGE, EXIT_WEIGHTS, fail
from ..models.manifest import Manifest, ManifestError, UnknownVariantError

__all__ = ["add_to"]

LAYOUTS = """\
DATA is any of
  a folder of class folders, named by synset (ImageNet), number (ImageNet-V2) or name (your own);
  a flat folder with a label file in it or near it: LOC_val_solution.csv, ILSVRC2012_validation_ground_truth.txt in its
    devkit, ILSVRC2012_devkit_t12.tar.gz, Tiny ImageNet's val_annotations.txt, or the FILE of --labels;
  Parquet tables with a column of images and one of classes; WebDataset shards; tar archives of class folders or flat;
  patterns of these ('val-{00..13}.parquet', 'shards-*.tar'), or these at s3://, gs://, https://.

Exit status: 0 all well; 1 an image could not be read; 2 wrong arguments; 3 no weights; 4 --expect was not met; 130
stopped."""


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "evaluate",
        help="measure accuracy on labelled images, next to the published figures",
        description="Measure the accuracy of one or several variants in one pass over labelled images.",
        epilog=LAYOUTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--variant",
        action="append",
        required=True,
        metavar="V",
        help="a name or a training's folder; repeat for several",
    )
    parser.add_argument("--data", nargs="+", required=True, metavar="DATA", help="labelled images, see below")
    parser.add_argument("--out", type=Path, metavar="DIR", help="report, tables, pictures, and what a stopped run left")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--expect", choices=("published", "measured"), help="exit 4 unless that figure is reproduced")
    images = parser.add_argument_group("the images and their classes")
    images.add_argument("--labels", metavar="FILE", help="the label file of a flat folder or archive")
    images.add_argument("--column", metavar="NAME", help="a table's column of images")
    images.add_argument("--label-column", metavar="NAME", help="a table's column of classes")
    images.add_argument("--dataset", metavar="NAME", help="which known set it is, where that is not recognised")
    images.add_argument("--real", metavar="FILE", help="ImageNet-ReaL's real.json: report on its labels too")
    images.add_argument(
        "--restrict", action=argparse.BooleanOptionalAction, help="choose among the set's classes only (A and R: yes)"
    )
    images.add_argument("--allow-private", action="store_true", help="fetch URLs at private addresses too")
    made = parser.add_argument_group("how the images are made (default: as the checkpoint was measured)")
    made.add_argument(
        "--size", nargs="+", default=[], metavar="S", help="CROP or RESIZE:CROP, pixels; several: a sweep"
    )
    made.add_argument("--views", choices=("centre", "flip", "ten-crop"), default="centre", help="averaged over")
    made.add_argument("--grade", choices=("reference", "close", "fast"), default="reference", help="how exactly")
    run = parser.add_argument_group("how it runs (or under torchrun, with a folder that all ranks see)")
    run.add_argument("--engine", default="auto", metavar="E", help="as of classify")
    run.add_argument("--batch", type=int, default=16, metavar="N", help="images that pass together (default 16)")
    run.add_argument("--workers", type=int, metavar="N", help="threads (default: all cores)")
    run.add_argument("--resume", action="store_true", help="go on where a run was stopped or killed")
    run.add_argument("--overwrite", action="store_true", help="replace what is in DIR")
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace, manifest: Manifest) -> int:
    from ..inference.bulk import OutputError, SourceError  # says what to install where pyarrow is missing
    from ..models.cache import CheckpointError
    from .evaluate import EngineError, evaluate
    from .report import as_json, as_text, speed_as_json, write_report

    options = dict(vars(arguments))
    for name in ("command", "run", "variant", "size", "json", "expect"):
        options.pop(name, None)
    try:
        options["progress"] = sys.stderr.isatty()
        report = evaluate(arguments.variant, sizes=arguments.size, **options)
        if report is None:  # rank 0 of a torchrun says it
            return EXIT_OK
        if arguments.out is not None:
            write_report(report, arguments.out)
    except (SourceError, OutputError, EngineError, UnknownVariantError, ManifestError) as error:
        return fail(str(error), EXIT_USAGE)
    except CheckpointError as error:
        return fail(str(error), EXIT_WEIGHTS)
    except ValueError as error:
        return fail(str(error), EXIT_USAGE)
    except OSError as error:
        return fail(f"{arguments.out or arguments.data[0]}: {error}", EXIT_USAGE)
    except KeyboardInterrupt:
        more = f" The same command with --resume goes on to {arguments.out}." if arguments.out else ""
        return fail(f"stopped.{more}", EXIT_STOPPED)
    if arguments.json:
        print(json.dumps(as_json(report) | speed_as_json(report), indent=1, default=str))
    else:
        print(as_text(report))
    if arguments.expect and (wrong := report.fails(arguments.expect)):
        return fail(f"--expect {arguments.expect}: {'; '.join(wrong)}", EXIT_DIFFERENT)
    if report.unreadable:
        return fail(f"{len(report.unreadable):,} images could not be read; see the table's column error.", EXIT_IMAGE)
    return EXIT_OK
