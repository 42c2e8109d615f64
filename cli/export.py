"""``resnext-hub export``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from ..deploy.formats import FORMATS
from ..deploy.triton_config import BACKENDS, Serving
from ..errors import EXIT_OK, ExportError
from ..models.manifest import Manifest
from .console import counted
from .options import add_reading_options, add_variant

HUGGINGFACE = "huggingface"  # a training run as a folder for the Hugging Face Hub
TRITON = "triton"  # not a format of its own: a model repository with files of the other formats


def add_to(commands: Any) -> None:
    names = ", ".join([*FORMATS, TRITON, HUGGINGFACE])
    parser: argparse.ArgumentParser = commands.add_parser(
        "export",
        help=f"write a network for production: {names}",
        description="Write a network for production, and keep it only if its outputs agree with the fp32 network's. "
        "metadata.json describes inputs, outputs, labels, preprocessing, licence and the weights' hash; "
        "report.json has the measured differences.",
    )
    add_variant(parser, required=True)
    parser.add_argument("--to", required=True, choices=[*FORMATS, TRITON, HUGGINGFACE], metavar="FORMAT", help=names)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    precisions = list(dict.fromkeys(p for kind in FORMATS.values() for p in kind.precisions))
    numbers = "number format in which the network computes (default: %(default)s)"
    parser.add_argument("--precision", choices=precisions, default="fp32", help=numbers)
    parser.add_argument("--overwrite", action="store_true", help="replace DIR if it is an export")
    graph = parser.add_argument_group("inputs and outputs")
    graph.add_argument("--preprocessing", action="store_true", help="take uint8 pixels, and normalise in the network")
    resize = "take uint8 pixels of any size; also resize and crop in the network"
    graph.add_argument("--resize", action="store_true", help=resize)
    graph.add_argument("--softmax", action="store_true", help="return probabilities instead of logits")
    graph.add_argument("--top", type=int, metavar="K", help="return only the K best classes")
    images = parser.add_argument_group(
        "images", "SOURCE is a folder, pattern, LIST.txt, TABLE.parquet, archive or image."
    )
    images.add_argument("--calibration", metavar="SOURCE", help="images to calibrate int8 with")
    photos = "images to verify the export with (default: crops of a photo of matplotlib)"
    images.add_argument("--photos", metavar="SOURCE", help=photos)
    add_reading_options(images)
    own = parser.add_argument_group("options of one format")
    for option in dict.fromkeys(option for kind in FORMATS.values() for option in kind.options):
        kinds = [kind for kind in FORMATS.values() if option in kind.options]
        settings, names = kinds[0].options[option][1], ", ".join(kind.name for kind in kinds)
        shown: dict[str, Any] = {**settings, "help": f"{names}: {settings['help']}", "default": argparse.SUPPRESS}
        own.add_argument(f"--{option.replace('_', '-')}", **shown)
    _add_triton_arguments(parser)
    parser.set_defaults(run=_export)


def _add_triton_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "options of --to triton",
        "DIR is a model repository to which the variant is added: JPEG bytes in, the --top labels (default: 5) and "
        "their probabilities out. Other models in DIR stay as they are. How to serve it: docs/deploy.md.",
    )
    default = Serving()
    devices = list(dict.fromkeys(kind for backend in BACKENDS.values() for kind in backend.kinds))
    options: list[tuple[str, dict[str, Any]]] = [
        ("name", {"metavar": "NAME", "help": "model name for clients (default: the variant's name)"}),
        ("model-version", {"type": int, "metavar": "N", "dest": "version", "help": "version to add"}),
        ("backend", {"choices": list(BACKENDS), "help": "what runs the network; python: ONNX Runtime on a CPU"}),
        ("device", {"choices": devices, "help": "auto: a GPU if the server has one"}),
        ("max-batch", {"type": int, "metavar": "N", "help": "largest batch"}),
        (
            "preferred-batch",
            {"type": int, "nargs": "*", "metavar": "N", "help": "batch sizes to run at once (default: half, all)"},
        ),
        ("queue-delay", {"type": int, "metavar": "US", "help": "microseconds to wait for more requests"}),
        ("queue-size", {"type": int, "metavar": "N", "help": "requests that may wait; more are rejected"}),
        ("queue-timeout", {"type": int, "metavar": "US", "help": "microseconds until a waiting request is rejected"}),
        ("instances", {"type": int, "metavar": "N", "help": "copies of the network per GPU"}),
        ("threads", {"type": int, "metavar": "N", "help": "threads of a network on a CPU: the container's CPU limit"}),
        ("decoders", {"type": int, "metavar": "N", "help": "processes that decode and resize images"}),
        ("grade", {"choices": ("reference", "close", "fast"), "help": "how exactly images are resized"}),
        ("response-cache", {"action": "store_true", "help": "answer repeated images from a cache"}),
    ]
    for name, settings in options:
        known = getattr(default, settings.get("dest", name.replace("-", "_")), None)
        if known is not None and known is not False:
            settings["help"] += f" (default: {known})"
        group.add_argument(f"--{name}", default=argparse.SUPPRESS, **settings)


def _to_triton(variant: str, out: Path, said: dict[str, Any]) -> Any:
    from ..deploy.triton import add_to_repository

    if said.pop("overwrite"):
        raise ExportError(
            "A model repository is extended, not replaced: pass --model-version or --name instead of --overwrite."
        )
    fields = {field.name for field in dataclasses.fields(Serving)}
    serving = {key: value for key, value in said.items() if key in fields and value is not None}
    if "preferred_batch" in serving:
        serving["preferred_batch"] = tuple(serving["preferred_batch"])
    implied = {"preprocessing", "resize", "softmax"}
    others = {key: value for key, value in said.items() if key not in fields | implied}
    return add_to_repository(variant, out, serving=Serving(**serving), **others)


def _export(arguments: argparse.Namespace, manifest: Manifest) -> int:
    from ..deploy.export import export

    said = {k: v for k, v in vars(arguments).items() if k not in ("command", "run", "variant", "to", "out")}
    if arguments.to == HUGGINGFACE:
        from ..deploy.huggingface import write_repository

        overwrite = said.pop("overwrite")
        if given := [name for name, value in said.items() if value not in (None, False, "fp32")]:
            raise ExportError(f"--{given[0].replace('_', '-')} is not for --to {HUGGINGFACE}.")
        print(f"Saved {write_repository(arguments.variant, arguments.out, overwrite=overwrite)}")
        return EXIT_OK
    print("Converting and verifying (seconds, or minutes for the largest variants)", file=sys.stderr, flush=True)
    if arguments.to == TRITON:
        report = _to_triton(arguments.variant, arguments.out, said)
    else:
        report = export(arguments.variant, arguments.to, arguments.out, **said)
    agreement = report.agreement
    print(f"Saved {report.path}: {report.bytes / 2**20:,.1f} MiB, {report.precision}")
    print(
        f"  largest difference of a logit: {agreement.max_logit_difference:.2g} ({agreement.difference:.1e} of their "
        f"range, {agreement.tolerance:.0e} allowed)\n  same top-1 class: {agreement.top1_agreement:.0%} of "
        f"{counted(agreement.images, 'image')} ({report.photos})\n  verified with: {report.runtime}"
    )
    for note in report.notes:
        print(f"  {note}")
    return EXIT_OK
