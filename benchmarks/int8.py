"""int8 against fp32: accuracy of resnext_tiny as a paired difference, size, and time on this machine's CPU.

    python benchmarks/int8.py accuracy --train TRAIN.parquet --val VAL.parquet [--variant resnext_tiny]
    python benchmarks/int8.py speed [--networks resnext50_32x4d …] [--batches 1 8] [--rounds 9]

Accuracy: both artefacts (`resnext-hub export --to onnx --preprocessing`) name every image of VAL; each image counts
1, 0 or -1 for int8 losing, keeping or gaining it, and the interval is that of the mean of these (95 %, normal).
Calibration sees TRAIN only. Tables have the columns jpeg and wnid.

Speed: random weights, since they change no time; fp32 is this project's ONNX Runtime engine, int8 the exported artefact
in ONNX Runtime, one thread each, taking turns; ratio of medians.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in percent; ``loss`` and its 95 % interval in points; ``same``: share of images that both call the same;
    ``size`` of int8 as a share of fp32's."""

    images: int
    fp32: float
    int8: float
    loss: float
    interval: tuple[float, float]
    same: float
    size: float


def measure_accuracy(variant: str, train: Path, val: Path, folder: Path, every: int = 1, **options: Any) -> Accuracy:
    """Export a variant in fp32 and int8 and have both name a table of labelled images, or every 2nd, 3rd ... of it."""
    import pyarrow.parquet as pq
    from resnext_hub.deploy.export import export
    from resnext_hub.models.manifest import find_checkpoint
    from resnext_hub.processing_utils import load_pixels, read_labels

    checkpoint = find_checkpoint(variant)
    table = pq.read_table(val, columns=["jpeg", "wnid"])
    table = table.take(list(range(0, len(table), every)))
    class_of = {label.synset: label.index for label in read_labels(checkpoint.labels)}
    labels = np.array([class_of[wnid] for wnid in table["wnid"].to_pylist()])
    pixels = np.stack([load_pixels(jpeg, checkpoint.preprocessing) for jpeg in table["jpeg"].to_pylist()])
    fp32 = export(variant, "onnx", folder / "fp32", preprocessing=True)
    int8 = export(
        variant, "onnx", folder / "int8", preprocessing=True, precision="int8", calibration=str(train), **options
    )
    said = [classes_of(report.path, pixels) for report in (fp32, int8)]
    right = [classes == labels for classes in said]
    change = right[1].astype(float) - right[0]
    loss, margin = -100 * change.mean(), 196 * change.std(ddof=1) / math.sqrt(len(change))
    return Accuracy(
        images=len(labels),
        fp32=100 * float(right[0].mean()),
        int8=100 * float(right[1].mean()),
        loss=float(loss),
        interval=(float(loss - margin), float(loss + margin)),
        same=float((said[0] == said[1]).mean()),
        size=int8.bytes / fp32.bytes,
    )


def classes_of(model: Path, pixels: np.ndarray) -> np.ndarray:
    session = open_session(model)
    return np.concatenate(
        [session.run(None, {"pixels": pixels[i : i + 50]})[0].argmax(1) for i in range(0, len(pixels), 50)]
    )


def open_session(model: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def random_network(name: str) -> Any:
    """Untrained, with statistics as of a trained network, so that nothing is folded away."""
    import torch
    from resnext_hub.models.entrypoints import build
    from resnext_hub.models.manifest import default_manifest

    torch.manual_seed(0)
    checkpoint = default_manifest().resolve(name)
    network = build(checkpoint.architecture, checkpoint.num_classes).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.get_buffer("running_mean"), 0, 0.1)
            torch.nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
    return network, checkpoint


def measure_speed(name: str, batches: Sequence[int], rounds: int) -> None:
    """Print a network's times and size in fp32 and int8."""
    from resnext_hub.deploy.export import export_network
    from resnext_hub.inference.built_engines import OnnxRuntimeEngine

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        network, checkpoint = random_network(name)
        crop = checkpoint.preprocessing.crop_size
        pixels = np.random.default_rng(0).integers(0, 256, (max(batches), crop, crop, 3), dtype=np.uint8)
        (folder / "engine").mkdir()
        OnnxRuntimeEngine.build(network, checkpoint.preprocessing, folder / "engine")
        (folder / "engine" / "engine.json").write_text(json.dumps({"build_seconds": 0}))
        engine = OnnxRuntimeEngine(folder / "engine", threads=1)
        fp32 = export_network(random_network(name)[0], checkpoint, "onnx", folder / "fp32", preprocessing=True)
        int8 = export_network(
            random_network(name)[0], checkpoint, "onnx", folder / "int8", preprocessing=True, precision="int8",
            calibration=pixels[:1],
        )  # fmt: skip
        session = open_session(int8.path)
        size = f"{int8.bytes / 2**20:.1f} MiB, {int8.bytes / fp32.bytes:.3f} of fp32's"
        for batch in batches:
            ways = {"fp32": lambda b=batch: engine(pixels[:b]), "int8": lambda b=batch: run(session, pixels[:b])}
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds + 1):  # the first is for warming up
                for way, call in ways.items():
                    start = time.perf_counter()
                    call()
                    seconds[way].append(time.perf_counter() - start)
            fast = {way: 1e3 * statistics.median(times[1:]) / batch for way, times in seconds.items()}
            row = [name, str(batch), f"{fast['fp32']:.1f}", f"{fast['int8']:.1f}", f"{fast['fp32'] / fast['int8']:.2f}"]
            print(f"| {' | '.join(row)} | {size} |", flush=True)


def run(session: Any, pixels: np.ndarray) -> Any:
    return session.run(None, {"pixels": pixels})


def main() -> None:
    parser = argparse.ArgumentParser(description="int8 against fp32")
    commands = parser.add_subparsers(dest="what", required=True)
    accuracy = commands.add_parser("accuracy")
    accuracy.add_argument("--train", type=Path, required=True)
    accuracy.add_argument("--val", type=Path, required=True)
    accuracy.add_argument("--variant", default="resnext_tiny")
    accuracy.add_argument("--reduce-range", action="store_true")
    speed = commands.add_parser("speed")
    speed.add_argument("--networks", nargs="*", default=["resnext50_32x4d", "resnext101_32x8d"])
    speed.add_argument("--batches", nargs="*", type=int, default=[1, 8])
    speed.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    if arguments.what == "speed":
        print("| network | batch | fp32 engine, ms an image | int8 | times as fast | size |")
        print("|---|--:|--:|--:|--:|---|")
        for name in arguments.networks:
            measure_speed(name, arguments.batches, arguments.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        how = {"reduce_range": arguments.reduce_range}
        found = measure_accuracy(arguments.variant, arguments.train, arguments.val, Path(folder), **how)
    print(
        f"{arguments.variant}: {found.fp32:.2f} % in fp32, {found.int8:.2f} % in int8 on {found.images:,} images; lost "
        f"{found.loss:.2f} points ({found.interval[0]:.2f} to {found.interval[1]:.2f}), the same class for "
        f"{100 * found.same:.1f} %; {found.size:.3f} of the size"
    )


if __name__ == "__main__":
    main()
