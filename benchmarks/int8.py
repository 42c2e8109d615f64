"""int8 against fp32: accuracy of resnext_tiny as a paired difference, size, and time on this machine's CPU.

    python benchmarks/int8.py accuracy --train TRAIN.parquet --val VAL.parquet [--variant resnext_tiny]
    python benchmarks/int8.py speed [--networks resnext50_32x4d …] [--batches 1 8] [--rounds 9]
    python benchmarks/int8.py choices --train TRAIN.parquet --held-out OTHER_TRAIN.parquet [--variant resnext_tiny]

Accuracy: both artefacts (`resnext-hub export --to onnx --preprocessing`) name every image of VAL; each image counts
1, 0 or -1 for int8 losing, keeping or gaining it, and the interval is that of the mean of these (95 %, normal).
Calibration sees TRAIN only. Tables have the columns jpeg and wnid.

Speed: random weights, since they change no time; fp32 is this project's ONNX Runtime engine, int8 the exported artefact
in ONNX Runtime, one thread each, taking turns. Times are the process's own in the quickest of the rounds: other work on
the machine only ever adds to them.

Choices: what int8 could be instead, on images for training that it was not calibrated on, so that VAL stays unseen
until the choice is made. "divergence": of int8's probabilities from fp32's (Kullback-Leibler, nats, mean over images).
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from resnext_hub.telemetry import import_quietly


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


def measure_accuracy(variant: str, train: Path, val: Path, folder: Path, **options: Any) -> Accuracy:
    """Export a variant in fp32 and int8, and evaluate both on a table of labelled images."""
    from resnext_hub.deploy.export import export

    labels, pixels = read(variant, val)
    fp32 = export(variant, "onnx", folder / "fp32", preprocessing=True)
    int8 = export(
        variant, "onnx", folder / "int8", preprocessing=True, precision="int8", calibration=str(train), **options
    )
    return accuracy_of(
        logits_of(fp32.path, pixels).argmax(1), logits_of(int8.path, pixels).argmax(1), labels, int8.bytes / fp32.bytes
    )


def accuracy_of(fp32: np.ndarray, int8: np.ndarray, labels: np.ndarray, size: float) -> Accuracy:
    """Compare the classes predicted by both networks, (N,) each, with the labels."""
    right = fp32 == labels, int8 == labels
    change = right[1].astype(float) - right[0]
    loss, margin = -100 * change.mean(), 196 * change.std(ddof=1) / math.sqrt(len(change))
    return Accuracy(
        images=len(labels),
        fp32=100 * float(right[0].mean()),
        int8=100 * float(right[1].mean()),
        loss=float(loss),
        interval=(float(loss - margin), float(loss + margin)),
        same=float((fp32 == int8).mean()),
        size=size,
    )


def read(variant: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A table's classes (N,) and pixels (N, crop, crop, 3)."""
    import pyarrow.parquet as pq
    from resnext_hub.models.manifest import find_checkpoint
    from resnext_hub.processing_utils import load_pixels, read_labels

    checkpoint = find_checkpoint(variant)
    table = pq.read_table(path, columns=["jpeg", "wnid"])
    class_of = {label.synset: label.index for label in read_labels(checkpoint.labels)}
    labels = np.array([class_of[wnid] for wnid in table["wnid"].to_pylist()])
    return labels, np.stack([load_pixels(jpeg, checkpoint.preprocessing) for jpeg in table["jpeg"].to_pylist()])


def logits_of(model: Path, pixels: np.ndarray) -> np.ndarray:
    session = open_session(model)
    return np.concatenate([run(session, pixels[i : i + 50])[0] for i in range(0, len(pixels), 50)])


def open_session(model: Path) -> Any:
    onnxruntime = import_quietly("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def choices() -> dict[str, Mapping[str, Any]]:
    """The alternatives for int8: convolutions in float32 (by number, of a `Bottleneck`), images in a batch, and other
    arguments and extra options of ONNX Runtime's `quantize_static`."""
    quantization = import_quietly("onnxruntime.quantization")

    def percentile(percent: float) -> Mapping[str, Any]:  # needs complete batches
        extra = {"CalibMovingAverage": False, "CalibPercentile": percent}
        return {
            "batch": 8,
            "arguments": {"calibrate_method": quantization.CalibrationMethod.Percentile},
            "extra": extra,
        }

    signed = {"arguments": {"activation_type": quantization.QuantType.QInt8}, "extra": {"ActivationSymmetric": True}}
    return {
        "as it is": {},
        "nothing in float32": {"float32": []},
        "the first convolution in float32": {"float32": [0]},
        "that, and the two that read it": {"float32": [0, 1, 4]},
        "least and greatest of all images": {"extra": {"CalibMovingAverage": False}},
        "means over batches of 4": {"batch": 4},
        "means over batches of 64": {"batch": 64},
        "99.99th percentile": percentile(99.99),
        "99.999th percentile": percentile(99.999),
        "activations signed and symmetric": signed,
        "weights of 7 bits (`--reduce-range`)": {"arguments": {"reduce_range": True}},
    }


def compare_choices(variant: str, train: Path, held_out: Path, folder: Path) -> None:
    """Print how far from fp32 each choice is."""
    import onnx
    from resnext_hub.deploy.export import export
    from resnext_hub.inference.engines import int8

    quantize_static = int8.quantization.quantize_static
    labels, pixels = read(variant, held_out)
    exact = export(variant, "onnx", folder / "fp32", preprocessing=True)
    logits = logits_of(exact.path, pixels)
    print(f"| {variant}, {len(labels):,} images | divergence | same class | lost, points | size |")
    print("|---|--:|--:|--:|--:|")
    for name, change in choices().items():

        def quantise(model: Path, *given: Any, extra_options: Any, change: Any = change, **arguments: Any) -> None:
            if "float32" in change:
                convolutions = [node.name for node in onnx.load(model).graph.node if node.op_type == "Conv"]
                arguments["nodes_to_exclude"] = [convolutions[i] for i in change["float32"]]
            arguments |= change.get("arguments", {})
            quantize_static(model, *given, extra_options=extra_options | change.get("extra", {}), **arguments)

        batch = change.get("batch", int8.BATCH)
        with patch.object(int8.quantization, "quantize_static", quantise), patch.object(int8, "BATCH", batch):
            out = folder / name.replace(" ", "-")
            report = export(variant, "onnx", out, preprocessing=True, precision="int8", calibration=str(train))
        got = logits_of(report.path, pixels)
        found = accuracy_of(logits.argmax(1), got.argmax(1), labels, report.bytes / exact.bytes)
        lost = f"{found.loss:.2f} ({found.interval[0]:.2f} to {found.interval[1]:.2f})"
        print(
            f"| {name} | {divergence(logits, got):.4f} | {100 * found.same:.1f} % | {lost} | {found.size:.3f} |",
            flush=True,
        )


def divergence(expected: np.ndarray, got: np.ndarray) -> float:
    """Kullback-Leibler, in nats, mean over images; of logits (N, classes)."""
    p, q = (z - z.max(1, keepdims=True) for z in (expected.astype(float), got.astype(float)))
    p, q = (z - np.log(np.exp(z).sum(1, keepdims=True)) for z in (p, q))
    return float((np.exp(p) * (p - q)).sum(1).mean())


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
    from resnext_hub.inference.engines.onnxruntime import OnnxRuntimeEngine

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        network, checkpoint = random_network(name)
        crop = checkpoint.preprocessing.crop_size
        pixels = np.random.default_rng(0).integers(0, 256, (max(batches), crop, crop, 3), dtype=np.uint8)
        (folder / "engine").mkdir()
        OnnxRuntimeEngine.build(network, checkpoint.preprocessing, folder / "engine", "fp32", None)
        (folder / "engine" / "engine.json").write_text(
            json.dumps({"build_seconds": 0, "precision": "fp32", "calibration": None})
        )
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
            for _ in range(rounds):
                for way, call in ways.items():
                    start = time.process_time()
                    call()
                    seconds[way].append(time.process_time() - start)
            fast = {way: 1e3 * min(times) / batch for way, times in seconds.items()}
            row = [name, str(batch), f"{fast['fp32']:.1f}", f"{fast['int8']:.1f}", f"{fast['fp32'] / fast['int8']:.2f}"]
            print(f"| {' | '.join(row)} | {size} |", flush=True)


def run(session: Any, pixels: np.ndarray) -> Any:
    return session.run(None, {"pixels": pixels})


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare int8 with fp32.")
    commands = parser.add_subparsers(dest="what", required=True)
    accuracy = commands.add_parser("accuracy", help="accuracy and size")
    accuracy.add_argument("--train", type=Path, required=True, help="Parquet file of images to calibrate on")
    accuracy.add_argument("--val", type=Path, required=True, help="Parquet file of images to measure accuracy on")
    accuracy.add_argument("--variant", default="resnext_tiny", help="variant to export (default: %(default)s)")
    accuracy.add_argument("--reduce-range", action="store_true", help="7-bit weights")
    other = commands.add_parser("choices", help="other ways to quantise")
    other.add_argument("--train", type=Path, required=True, help="Parquet file of images to calibrate on")
    other.add_argument("--held-out", type=Path, required=True, help="Parquet file of training images to compare on")
    other.add_argument("--variant", default="resnext_tiny", help="variant to export (default: %(default)s)")
    speed = commands.add_parser("speed", help="time per image")
    speed.add_argument(
        "--networks",
        nargs="*",
        default=["resnext50_32x4d", "resnext101_32x8d"],
        help="networks to measure (default: resnext50_32x4d resnext101_32x8d)",
    )
    speed.add_argument("--batches", nargs="*", type=int, default=[1, 8], help="batch sizes (default: 1 8)")
    speed.add_argument("--rounds", type=int, default=9, help="rounds per batch size (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.what == "speed":
        print("| network | batch | fp32 engine, ms per image | int8 | times as fast | size |")
        print("|---|--:|--:|--:|--:|---|")
        for name in arguments.networks:
            measure_speed(name, arguments.batches, arguments.rounds)
        return
    if arguments.what == "choices":
        with tempfile.TemporaryDirectory() as folder:
            compare_choices(arguments.variant, arguments.train, arguments.held_out, Path(folder))
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
