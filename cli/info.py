"""``resnext-hub info``."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any

from ..errors import EXIT_OK
from ..models.manifest import Accuracy, Manifest, find_checkpoint
from .list import file_size, row
from .options import add_variant


def add_to(commands: Any) -> None:
    about = "describe a variant: size, accuracy, preprocessing, licence, file"
    parser: argparse.ArgumentParser = commands.add_parser("info", help=about, description=f"{about.capitalize()}.")
    add_variant(parser, "variant")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace, manifest: Manifest) -> int:
    c = find_checkpoint(arguments.variant)
    values = row(c)
    if arguments.json:
        print(json.dumps(values, indent=1))
        return EXIT_OK
    p, size = c.preprocessing, file_size(c)
    by = "published" if c.home is None else "measured by its training"
    figures = [(by, c.published), *((f"measured by {m.source.split()[0]}", m) for m in c.measured)]
    use = {None: "", True: ", commercial use allowed", False: ", no commercial use"}[
        c.license and c.license.commercial_use
    ]

    def at(figure: Accuracy) -> str:
        return f" at {figure.image_size} pixels" if figure.image_size else ""

    lines = [
        ("trained on", c.system.training_data),
        ("size", f"{c.params / 1e6:.1f} M parameters, {c.gmacs:.2f} GMACs, file of {size}"),
        ("classes", f"{c.num_classes:,}"),
        *(("top-1/5 in %", f"{a.top1:.2f} / {a.top5:.2f} on {a.dataset}{at(a)}, {by}") for by, a in figures if a.top5),
        *(("mAP in %", f"{a.mean_ap:.2f} on {a.dataset}{at(a)}, {by}") for by, a in figures if a.mean_ap),
        ("images", f"resized to {p.resize_size}, cropped to {p.crop_size} pixels; {p.interpolation}"),
        ("normalise", f"mean {list(p.mean)}, std {list(p.std)}"),
        ("licence", f"{c.license_id or 'not stated'}{use}"),
        ("paper", c.system.paper.title),
        ("", c.system.paper.url),
        *(("source", source.url) for source in c.sources if source.url),
        ("file", values["cached"] or f"not on this machine: resnext-hub download {c.name}"),
        *(("known issue", issue) for issue in c.known_issues),
    ]
    print(c.variant)
    wrap = textwrap.TextWrapper(80, subsequent_indent=" " * 16, break_long_words=False, break_on_hyphens=False)
    for name, text in lines:
        wrap.initial_indent = f"  {name:14}"
        print(wrap.fill(text))
    return EXIT_OK
