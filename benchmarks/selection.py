"""Measure time, peak memory and disk of selection and hashtags against the number of images.

    python benchmarks/selection.py --images 20000000 --per-class 16000 --memory 1GB

Makes tables of predictions for the given number of images (1,000 classes, early ones more frequent than late ones;
0.1 % failed) and of their hashtags, measures each step in its own process, and removes everything.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import duckdb
import psutil

CLASSES = 1000
NAME = "'s3://bucket/shard-' || lpad((i // 10000)::VARCHAR, 6, '0') || '.tar/' || lpad(i::VARCHAR, 12, '0') || '.jpg'"


def make_scores(folder: Path, images: int, top: int, rows: int = 5_000_000) -> None:
    """``images`` rows of predictions, ``rows`` to a file; the same every time."""
    folder.mkdir()
    ranks = list(range(top))
    with duckdb.connect(config={"memory_limit": "1500MB", "threads": 1}) as connection:
        for first in range(0, images, rows):
            connection.execute(f"""
                COPY (
                    SELECT {NAME} AS image, i::BIGINT AS "index", CASE WHEN i % 1000 = 7 THEN 'broken' END AS error,
                        CASE WHEN i % 1000 <> 7 THEN [((base + rank * 13) % {CLASSES})::INTEGER FOR rank IN {ranks}] END
                            AS classes,
                        CASE WHEN i % 1000 <> 7 THEN ['n' || lpad(((base + rank * 13) % {CLASSES})::VARCHAR, 8, '0')
                            FOR rank IN {ranks}] END AS synsets,
                        CASE WHEN i % 1000 <> 7 THEN [sure * power(0.5, rank) FOR rank IN {ranks}]::FLOAT[] END
                            AS probabilities
                    FROM (
                        SELECT i, (power(hash(i) / 18446744073709551616.0, 1.5) * {CLASSES})::INTEGER AS base,
                            hash(i + {2 * images}) / 18446744073709551616.0 AS sure
                        FROM range({first}, {min(first + rows, images)}) AS t(i)))
                TO '{folder}/part-{first // rows:04d}.parquet' (FORMAT parquet, ROW_GROUP_SIZE 100000)""")


def make_hashtags(folder: Path, images: int, rows: int = 5_000_000) -> None:
    """Three hashtags per image: names of classes, by Zipf's law, and a long tail that maps to no class."""
    folder.mkdir()
    with duckdb.connect(config={"memory_limit": "1500MB", "threads": 1}) as connection:
        for first in range(0, images, rows):
            connection.execute(f"""
                COPY (
                    SELECT {NAME} AS image,
                        ['#Class' || (power({CLASSES}, hash(i) / 18446744073709551616.0))::INTEGER - 1,
                         '#Class' || (power({CLASSES}, hash(i, 1) / 18446744073709551616.0))::INTEGER - 1,
                         '#tail' || (hash(i, 2) % {images // 2})] AS hashtags
                    FROM range({first}, {min(first + rows, images)}) AS t(i))
                TO '{folder}/part-{first // rows:04d}.parquet' (FORMAT parquet, ROW_GROUP_SIZE 100000)""")


def measured(command: list[str], folder: Path) -> tuple[float, float, float, float]:
    """Run a command: (seconds, processor seconds, peak memory in MiB, peak growth of the folder in MiB)."""
    before, spent = _size(folder), _processor_seconds()
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    memory, disk, done = 0, 0, threading.Event()

    def watch() -> None:
        nonlocal memory, disk
        probe = psutil.Process(process.pid)
        while not done.wait(0.1):
            try:
                memory = max(memory, probe.memory_info().rss)
            except psutil.Error:
                return
            disk = max(disk, _size(folder) - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {process.returncode}\n{output}")
    print("".join(f"  {line}\n" for line in output.splitlines()[:3]), end="")
    return seconds, _processor_seconds() - spent, memory / 2**20, disk / 2**20


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            pass
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2_000_000, help="images in the tables (default: %(default)s)")
    parser.add_argument("--top", type=int, default=5, help="classes per image (default: %(default)s)")
    parser.add_argument(
        "--per-class", type=int, default=16_000, help="images to select per class (default: %(default)s)"
    )
    parser.add_argument("--memory", default="1GB", help="memory limit of DuckDB (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="folder for the tables (default: the system's temporary folder)")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        limits = ["--memory", arguments.memory, "--threads", str(arguments.threads)]

        def report(step: str, *options: str) -> None:
            command = [sys.executable, "-m", "resnext_hub", *options, *limits]
            seconds, processor, memory, disk = measured(command, folder)
            rate = arguments.images / processor
            print(f"{step}: {seconds:.1f} s, {processor:.1f} s of CPU time ({rate:,.0f} images per second)", end=", ")
            print(f"{memory:,.0f} MiB of memory and {disk:,.0f} MiB of disk at the peak", flush=True)

        make_scores(folder / "scores", arguments.images, arguments.top)
        print(f"scores: {_size(folder) / 2**20:,.0f} MiB")
        chosen = ["--per-class", str(arguments.per_class), "--max-classes", str(arguments.top)]
        report("selection", "select", str(folder / "scores"), *chosen, "--out", str(folder / "selected.parquet"))

        make_hashtags(folder / "tags", arguments.images)
        print(f"hashtags: {_size(folder / 'tags') / 2**20:,.0f} MiB")
        labels, mapping = folder / "labels.tsv", folder / "mapping.tsv"
        labels.write_text("".join(f"{i}\tn{i:08d}\tclass {i}\n" for i in range(CLASSES)))
        command = [sys.executable, "-m", "resnext_hub", "hashtags", "mapping", "--labels", labels, "--out", mapping]
        subprocess.run(command, check=True)
        known = ["--labels", str(labels), "--mapping", str(mapping)]
        report("count", "hashtags", "count", str(folder / "tags"), *known, "--out", str(folder / "vocabulary.parquet"))
        report("targets", "hashtags", "targets", str(folder / "tags"), *known, "--out", str(folder / "targets.parquet"))
        agree = ["--hashtags", str(folder / "targets.parquet"), "--out", str(folder / "agreeing.parquet")]
        report("selection, where hashtags agree", "select", str(folder / "scores"), *chosen, *agree)


if __name__ == "__main__":
    main()
