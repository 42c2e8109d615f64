"""``resnext-hub evaluate``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from ..errors import EXIT_DIFFERENT, EXIT_IMAGE, EXIT_OK
from ..models.manifest import Manifest
from .console import counted, fail
from .options import add_engine, add_grade, add_limits, add_precision, add_reading_options, add_variant, positive

LAYOUTS = """\
DATA is one or more of
  a folder of class folders, named by synset (ImageNet), number (ImageNet-V2) or
    class name (your own);
  a flat folder with a label file in it or near it: LOC_val_solution.csv,
    ILSVRC2012_validation_ground_truth.txt in its devkit,
    ILSVRC2012_devkit_t12.tar.gz, Tiny ImageNet's val_annotations.txt, or the
    FILE passed as --labels;
  Parquet tables with a column of images and one of classes;
  WebDataset shards; tar archives of class folders, or flat with a label file;
  patterns of these ('val-{00..13}.parquet', 'shards-*.tar'), or these at s3://,
    gs:// or https://.

Exit status: see resnext-hub --help; 4 means that --expect was not met."""


def add_to(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "evaluate",
        help="measure accuracy on labelled images, next to the published figures",
        description="Measure the accuracy of one or more variants in one pass over labelled images.",
        epilog=LAYOUTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_variant(parser, note="; repeat for several", action="append", required=True)
    parser.add_argument("--data", nargs="+", required=True, metavar="DATA", help="labelled images, see below")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for report, tables and pictures")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    expect = "exit with status 4 unless the accuracy agrees with this figure"
    parser.add_argument("--expect", choices=("published", "measured"), help=expect)
    images = parser.add_argument_group("images and classes")
    images.add_argument("--labels", metavar="FILE", help="label file of a flat folder or archive")
    add_reading_options(images, labelled=True)
    add_limits(images)
    images.add_argument("--dataset", metavar="NAME", help="name of the dataset, if it is not recognised")
    images.add_argument("--real", metavar="FILE", help="ImageNet-ReaL's real.json: also report accuracy on its labels")
    restrict = "predict only classes that the dataset has (default: only for ImageNet-A and ImageNet-R)"
    images.add_argument("--restrict", action=argparse.BooleanOptionalAction, help=restrict)
    made = parser.add_argument_group("preprocessing (default: the checkpoint's own)")
    sizes = "CROP or RESIZE:CROP in pixels; pass several to compare sizes"
    made.add_argument("--size", nargs="+", default=[], metavar="SIZE", help=sizes)
    views = "crops whose predictions are averaged (default: %(default)s)"
    made.add_argument("--views", choices=("centre", "flip", "ten-crop"), default="centre", help=views)
    add_grade(made, "reference", default="reference")
    run = parser.add_argument_group("the run (under torchrun, all processes must share DIR)")
    add_engine(run)
    add_precision(run)
    run.add_argument("--batch", type=positive, default=16, metavar="N", help="images per batch (default: %(default)s)")
    run.add_argument("--workers", type=positive, metavar="N", help="threads (default: all cores)")
    run.add_argument("--resume", action="store_true", help="continue a run that was stopped")
    run.add_argument("--overwrite", action="store_true", help="replace the evaluation in DIR")
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace, manifest: Manifest) -> int:
    from ..evaluation.evaluate import Options, evaluate
    from ..evaluation.report import as_json, as_text, speed_as_json, write_report

    given = vars(arguments) | {"sizes": arguments.size}
    report = evaluate(
        arguments.variant,
        arguments.data,
        arguments.out,
        Options(**{field.name: given[field.name] for field in dataclasses.fields(Options)}),
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        progress=sys.stderr.isatty(),
    )
    if report is None:  # rank 0 of a torchrun prints it
        return EXIT_OK
    if arguments.out is not None:
        write_report(report, arguments.out)
    if arguments.json:
        print(json.dumps(as_json(report) | speed_as_json(report), indent=1, default=str))
    else:
        print(as_text(report))
    if arguments.expect and (wrong := report.fails(arguments.expect)):
        return fail(f"--expect {arguments.expect}: {'; '.join(wrong)}", EXIT_DIFFERENT)
    if report.unreadable:
        where = ": see the column 'error' of predictions.parquet" if arguments.out else ""
        return fail(f"{counted(len(report.unreadable), 'image')} could not be read{where}.", EXIT_IMAGE)
    return EXIT_OK
