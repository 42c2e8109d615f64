"""Every artefact of a variant: size, how exact it is, and its latency against PyTorch's eager mode.

    python benchmarks/export.py [--variants resnext_tiny resnext50_32x4d] [--photos SOURCE] [--batches 1 8] [--rounds 9]

A variant whose weights are not on this machine gets random ones (and says so): they serve for size and time, and show
the arithmetic's error, but no accuracy. The largest difference of a logit is a share of the logits' range, on the
photos (64 of the source at most); int8 is calibrated on every other one, and compared on the rest. Times are the
process's own on one core, in the quickest of the rounds: other work on the machine only ever adds to them. Eager and
all artefacts take turns on each batch and get what their input takes, ready made; above 1 is faster than eager. The
ONNX for TensorRT is run in ONNX Runtime (bf16: OpenVINO) where there is no GPU.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

FORMS = [
    ("onnx", "fp32", False),
    ("onnx", "fp16", False),
    ("onnx", "int8", False),
    ("onnx", "fp32", True),
    ("onnx", "int8", True),
    ("openvino", "fp32", False),
    ("openvino", "fp16", False),
    ("openvino", "int8", False),
    ("torch-export", "fp32", False),
    ("torch-export", "fp16", False),
    ("torch-export", "bf16", False),
    ("torchscript", "fp32", False),
    ("tensorrt", "fp32", False),
    ("tensorrt", "fp16", False),
    ("tensorrt", "bf16", False),
]

SLOW = 8  # times eager's: timed once


def network_of(checkpoint: Any) -> tuple[Any, bool]:
    """(the network, True if it has the checkpoint's weights)."""
    import torch
    from resnext_hub.models.entrypoints import build, load
    from resnext_hub.models.store import Store

    if Store().find(checkpoint):
        return load(checkpoint).eval(), True
    torch.manual_seed(0)
    network = build(checkpoint.architecture, checkpoint.num_classes).eval()
    for module in network.modules():  # statistics as of a trained network, so that nothing is folded away
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.get_buffer("running_mean"), 0, 0.1)
            torch.nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
    return network, False


def compare(variant: str, photos: str | None, batches: list[int], rounds: int, folder: Path) -> None:
    import torch
    from resnext_hub.data.photos import read_photos, sample_photos
    from resnext_hub.deploy.conversion import Conversion
    from resnext_hub.deploy.export import PHOTOS, export_network
    from resnext_hub.deploy.formats import FORMATS
    from resnext_hub.deploy.signature import Signature
    from resnext_hub.models.manifest import find_checkpoint
    from resnext_hub.processing_utils.preprocessing import crop_pixels, normalise

    checkpoint = find_checkpoint(variant)
    preset = checkpoint.preprocessing
    crop = functools.partial(crop_pixels, preset=preset)
    pixels = np.stack(sample_photos(30, crop) if photos is None else read_photos(photos, PHOTOS, crop))
    held_out = np.arange(len(pixels)) % 2 == 1
    eager, trained = network_of(checkpoint)
    eager.requires_grad_(False)
    images = {b: torch.from_numpy(normalise(np.resize(pixels, (b, *pixels.shape[1:])), preset)) for b in batches}
    ways: dict[str, Any] = {"eager": lambda b: eager(images[b])}
    rows: dict[str, list[str]] = {"eager": ["–", "–", "–"]}
    for to, precision, inside in FORMS:
        name = f"{to}, {precision}{', pixels in' if inside else ''}"
        calibration = pixels[~held_out] if precision == "int8" else None
        report = export_network(
            network_of(checkpoint)[0], checkpoint, to, folder / name.replace(", ", "-"), precision=precision,
            preprocessing=inside, calibration=calibration, photos=pixels[held_out] if precision == "int8" else pixels,
        )  # fmt: skip
        signature = Signature(preset.crop_size, checkpoint.num_classes, inside)
        conversion = Conversion(checkpoint, eager, signature, precision, {}, None, FORMATS[to].defaults)
        opened = FORMATS[to].open(conversion, report.folder)
        given = {b: signature.inputs_of(np.resize(pixels, (b, *pixels.shape[1:])), preset) for b in batches}
        ways[name] = lambda b, run=opened.run, given=given: run(given[b])
        agreement = report.agreement
        rows[name] = [f"{report.bytes / 2**20:.1f}", f"{agreement.difference:.0e}", f"{agreement.top1_agreement:.0%}"]
        print(f"{name}: {report.seconds:.0f} s, {report.runtime}", flush=True)
    seconds: dict[tuple[str, int], list[float]] = {(way, b): [] for way in ways for b in batches}
    for b in batches:
        for _ in range(rounds):
            for way, call in ways.items():
                if seconds[way, b] and seconds[way, b][0] > SLOW * min(seconds["eager", b]):
                    continue
                start = time.process_time()
                call(b)
                seconds[way, b].append(time.process_time() - start)
    title = variant if trained else f"{variant} (random weights)"
    each = f"ms per image, batch {' / '.join(map(str, batches))}"
    print(f"\n| {title} | MiB | largest difference | same top-1 | {each} | x eager |")
    print("|---|--:|--:|--:|--:|--:|")
    for way, row in rows.items():
        times = " / ".join(f"{1e3 * min(seconds[way, b]) / b:.1f}" for b in batches)
        ratio = " / ".join(f"{min(seconds['eager', b]) / min(seconds[way, b]):.2f}" for b in batches)
        print(f"| {way} | {' | '.join(row)} | {times} | {ratio} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure size, exactness and latency of exported networks.")
    parser.add_argument(
        "--variants",
        nargs="*",
        default=["resnext_tiny", "resnext50_32x4d"],
        help="variants to export (default: resnext_tiny resnext50_32x4d)",
    )
    parser.add_argument(
        "--photos",
        help="images to compare on: a folder, pattern, table or archive (default: crops of a photo of matplotlib)",
    )
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8], help="batch sizes (default: 1 8)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds per batch size (default: %(default)s)")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # before any library asks how many cores there are
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for variant in arguments.variants:
        with tempfile.TemporaryDirectory() as folder:
            compare(variant, arguments.photos, arguments.batches, arguments.rounds, Path(folder))


if __name__ == "__main__":
    main()
