"""The options that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from ..models.manifest import default_manifest


def add_variant(parser: Any, name: str = "--variant", note: str = "", trained: bool = True, **settings: Any) -> None:
    """Add an argument for a variant, which shells complete; a folder of a training is possible if ``trained``.

    ``note`` is added to the help, ``settings`` are for argparse.
    """
    text = "a name from 'resnext-hub list'" + ", or a folder that 'train' wrote" * trained + note
    parser.add_argument(name, metavar="VARIANT", help=text, **settings).completer = _variants


def _variants(prefix: str, **_: Any) -> Iterable[str]:
    from argcomplete.completers import DirectoriesCompleter

    manifest = default_manifest()
    return [*dict.fromkeys([*manifest.entrypoints, *manifest.checkpoints]), *DirectoriesCompleter()(prefix)]


def add_engine(parser: Any) -> None:
    engines = (
        "what runs the network: auto, torch, onnxruntime or openvino; auto: torch on a GPU, else ONNX Runtime if it is "
        "installed (default: %(default)s)"
    )
    parser.add_argument("--engine", default="auto", metavar="ENGINE", help=engines)
    add_device(parser)


def add_device(parser: Any) -> None:
    device = "where torch runs the network: cpu, cuda, cuda:1, mps, xpu (default: the NVIDIA GPU if there is one)"
    parser.add_argument("--device", metavar="DEVICE", help=device)


def add_precision(parser: Any, note: str = "") -> None:
    """Add --precision and --calibration; ``note`` is what the help adds about the images for calibration."""
    formats = "fp32, bf16, fp16 (GPU), int8, or auto for the fastest that needs no images (default: %(default)s)"
    parser.add_argument("--precision", default="fp32", metavar="PRECISION", help=formats)
    parser.add_argument("--calibration", metavar="SOURCE", help=f"images to calibrate int8 with, any source{note}")


def add_grade(parser: Any, usual: str, **settings: Any) -> None:
    """Add --grade; ``usual`` is the default that the help states, ``settings`` are for argparse."""
    grades = (
        "how images are resized. reference: as documented, and the slowest; close: faster, at most 2 of 255 off; fast: "
        "as close, but JPEG files of 5 times the target size or more are decoded at half their size (default: "
        f"{usual})"
    )
    parser.add_argument("--grade", choices=("reference", "close", "fast"), help=grades, **settings)


def add_limits(parser: Any) -> None:
    """Add --max-pixels and --truncated."""
    pixels = "refuse images with more pixels; by default, memory decides: those that take more than 2 GiB to decode"
    parser.add_argument("--max-pixels", type=positive, metavar="N", help=pixels)
    cut = "a JPEG that is cut off: refuse it, or keep it with the missing part in gray (default: %(default)s)"
    parser.add_argument("--truncated", choices=("refuse", "keep"), default="refuse", help=cut)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1, got {text!r}")
    return int(text)


def add_reading_options(parser: Any, *, labelled: bool = False) -> None:
    """Add the options of every command that reads images, and of those that read classes too."""
    add = parser.add_argument
    add("--column", metavar="NAME", help="column of a table or list with the images or their paths")
    classes = "column of a table or list with the classes; or NAME,NAME,...: a column of 0 and 1 for each class"
    add("--label-column", metavar="NAME", help=classes)
    add("--allow-private", action="store_true", help="also load URLs at private addresses")
    add("--anonymous", action="store_true", help="read public data in object stores without an account")
    if labelled:
        text = "what separates several classes in one text (default: | or ;); none: each text is one class"
        add("--label-separator", metavar="TEXT", help=text)
        which = "split of the data to use; none: folders named train, val or test are classes"
        add("--split", metavar="NAME", choices=("train", "val", "test", "none"), help=which)


def reading_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were passed, as keyword arguments of `data.labels.list_images`."""
    options = {name: getattr(arguments, name, None) for name in ("column", "label_column", "label_separator", "split")}
    return options | {"private": arguments.allow_private, "anonymous": arguments.anonymous}
