"""Measure how time and memory grow with the number of images: 1 k to 1 M rows, each size in a fresh process.

    python benchmarks/scale.py [--sizes 1000 10000 100000 1000000] [--picture docs/pictures/scale.png]

Images, decoding and the network are doubles that cost next to nothing, so what is measured is this project's own part:
shards, chunks, rows, parts, the table and its bar. Time is from the first shard to the finished .parquet; memory is the
process's peak (VmHWM), and what it was before the run.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from resnext_hub.data.shards import Item
from resnext_hub.inference.bulk import SHARD_ROWS, Predictor
from resnext_hub.inference.engines import Engine
from resnext_hub.inference.resumable import process_shards, run
from resnext_hub.processing_utils.labels import read_labels

BATCH, WORKERS = 16, 2


class Double(Engine):
    """A fake network: 1,000 logits per image, computed from one pixel."""

    name, threads, concurrent = "double", 1, True

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = np.zeros((len(pixels), 1000), np.float32)
        logits[:, :3] = pixels[:, 0, 0]
        return logits, logits[:, :1]


@dataclasses.dataclass(frozen=True)
class Shard:
    first: int
    size: int
    remote: bool = False

    def items(self, start: int = 0) -> Iterator[Item]:
        for i in range(self.first + start, self.first + self.size):
            yield Item(f"s3://bucket/images/{i:010d}.jpg", lambda i=i: bytes([i % 251, i % 241, i % 239]))

    def fingerprint(self) -> str:
        return f"{self.first} {self.size}"

    def __len__(self) -> int:
        return self.size


def memory(key: str) -> float:
    """MiB, of this process: VmHWM is the peak, VmRSS is now."""
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def doubles() -> Predictor:
    """Images, decoding and a network that cost next to nothing."""
    return Predictor(Double(), lambda data: np.frombuffer(data, np.uint8).reshape(1, 1, 3), read_labels(), 5, None)


def shards_of(total: int) -> Iterator[Shard]:
    return (Shard(i, min(SHARD_ROWS, total - i)) for i in range(0, total, SHARD_ROWS))


def measure(total: int) -> dict[str, float]:
    process = functools.partial(process_shards, make_rows=doubles(), batch=BATCH, workers=WORKERS)
    before = memory("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "o.parquet"
        start = time.perf_counter()
        done = run(out, {}, shards_of(total), process)
        seconds = time.perf_counter() - start
        assert done.images == total
        return {
            "images": total,
            "seconds": seconds,
            "before": before,
            "peak": memory("VmHWM"),
            "out": out.stat().st_size,
        }


def plot(rows: list[dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((6.4, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    images = [row["images"] for row in rows]
    left.loglog(images, [row["seconds"] for row in rows], "o-")
    left.set(xlabel="images", ylabel="seconds", title="Time")
    right.semilogx(images, [row["peak"] for row in rows], "o-", label="peak")
    right.semilogx(images, [row["before"] for row in rows], "o--", label="before the run")
    right.set(xlabel="images", ylabel="MiB", title="Memory", ylim=(0, None))
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure time and memory from 1,000 to 1,000,000 images.")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="*",
        default=[1000, 10_000, 100_000, 1_000_000],
        help="numbers of images (default: 1000 10000 100000 1000000)",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="file for a plot")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    rows = []
    print("| images | seconds | µs per image | memory before, MiB | at its peak, MiB | table, bytes per image |")
    print("|--:|--:|--:|--:|--:|--:|")
    for size in arguments.sizes:
        command = [sys.executable, __file__, "--one", str(size)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append(row)
        each, table = 1e6 * row["seconds"] / size, row["out"] / size
        print(
            f"| {size:,} | {row['seconds']:.2f} | {each:.0f} | {row['before']:.0f} | {row['peak']:.0f} | {table:.0f} |"
        )
    if arguments.picture:
        plot(rows, arguments.picture)


if __name__ == "__main__":
    main()
