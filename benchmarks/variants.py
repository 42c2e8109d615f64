"""Measure every published architecture on one core of this machine, and write benchmarks/variants.csv.

    python benchmarks/variants.py [--only resnet18 ...] [--engine auto] [--out benchmarks/variants.csv]

Weights are random, which does not change the time. Each architecture runs in its own process. The time is the CPU time
(`time.process_time`) of the fastest of several calls with one thread: other processes on the machine hardly change it,
except through the shared caches and clock. Rows of architectures that are not measured again stay. Building the engine
of the largest takes 12 GB of memory.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS: tuple[str, ...] = (
    "architecture",
    "params",
    "gmacs",
    "engine",
    "precision",
    "size",
    "batch",
    "ms",
    "calls",
    "machine",
)
BATCH, SIZE = 4, 224  # what one core takes at a time: `engines.built.BuiltEngine.portion`
LEAST_CALLS, LEAST_SECONDS = 3, 8.0


def checkpoints() -> dict:
    """One checkpoint of every architecture."""
    from resnext_hub.models.manifest import default_manifest

    found: dict = {}
    for checkpoint in default_manifest().checkpoints.values():
        found.setdefault(checkpoint.architecture_name, checkpoint)
    return found


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def measure(architecture: str, engine: str) -> dict[str, str | int | float]:
    """Measure in a separate process with an empty TORCH_HOME."""
    import torch
    from resnext_hub.inference.engines import open_engine
    from resnext_hub.models.entrypoints import build
    from resnext_hub.models.manifest import Source

    checkpoint = checkpoints()[architecture]
    own = checkpoint.preprocessing.crop_size if checkpoint.architecture.stem_pool is False else SIZE
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build(checkpoint.architecture, checkpoint.num_classes)
    for module in network.modules():  # statistics as of a trained network, so that nothing is folded away
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.get_buffer("running_mean"), 0, 0.1)
            torch.nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
    cache = Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(network.state_dict(), cache / f"{architecture}.pth")
    del network
    source = Source(f"http://127.0.0.1/{architecture}.pth", None, None, None, None)
    preset = dataclasses.replace(checkpoint.preprocessing, resize_size=own, crop_size=own)
    opened = open_engine(dataclasses.replace(checkpoint, sources=(source,), preprocessing=preset), engine, threads=1)
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, own, own, 3), dtype=np.uint8)
    opened(pixels)
    spent: list[float] = []
    while len(spent) < LEAST_CALLS or sum(spent) < LEAST_SECONDS:
        start = time.process_time()
        opened(pixels)
        spent.append(time.process_time() - start)
    facts = {"architecture": architecture, "params": checkpoint.params, "gmacs": checkpoint.gmacs}
    way = {"engine": opened.name, "precision": opened.precision, "size": own, "batch": BATCH}
    return facts | way | {"ms": round(1000 * min(spent) / BATCH, 2), "calls": len(spent), "machine": processor()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="ARCHITECTURE", help="architectures to measure (default: all)")
    parser.add_argument("--engine", default="auto", help="engine to measure (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_name("variants.csv"),
        help="table to write (default: %(default)s)",
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.engine)))
        return 0
    order = list(checkpoints())
    if unknown := set(arguments.only or ()) - set(order):
        parser.error(f"unknown architecture {min(unknown)}; choose from {', '.join(order)}")
    rows: dict[str, dict[str, Any]] = {}
    if arguments.out.exists():
        with open(arguments.out, newline="") as file:
            rows = {row["architecture"]: row for row in csv.DictReader(file)}
    for architecture in arguments.only or order:
        with tempfile.TemporaryDirectory() as home:
            command = [sys.executable, __file__, "--child", architecture, "--engine", arguments.engine]
            environment = os.environ | {"TORCH_HOME": home, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        rows[architecture] = json.loads(done.stdout.splitlines()[-1])
        print(*(f"{name}={rows[architecture][name]}" for name in COLUMNS[:-1]), flush=True)
        with open(arguments.out, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows[name] for name in order if name in rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
