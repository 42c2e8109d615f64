"""Measure a long run: memory, open descriptors and threads against finished rows.

    python benchmarks/long_run.py --rows 1000000 --photos TABLE.parquet --times 20 --trace docs/results/long_run.csv
    python benchmarks/long_run.py --trace docs/results/long_run.csv --picture docs/pictures/long_run_memory.png

The first line runs and measures, the second draws what was measured. Two runs, each in a fresh process: rows of
`scale.py`'s doubles (this project's own part: shards, chunks, parts, the table), and resnext_tiny over real photos, a
table of them as a source many times over (files, decoders, the engine). A sample is taken at every hundredth of a run;
its last row is after the table has been made.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
from resnext_hub.benchmarks.scale import BATCH, WORKERS, doubles, shards_of
from resnext_hub.data.file_names import Passed
from resnext_hub.inference.bulk import Predictor, Request
from resnext_hub.inference.resumable import process_shards, run

SAMPLES = 100
COLUMNS = ("run", "rows", "seconds", "rss_mib", "descriptors", "threads")
LOOKS = (("rss_mib", "memory, MiB"), ("descriptors", "open descriptors"), ("threads", "threads"))


def watched(name: str, total: int, predictor: Predictor, shards: Iterable[Any]) -> list[list[Any]]:
    """Make a table, and return a row of COLUMNS for every sample."""
    process, samples, seen = psutil.Process(), [], 0
    start = time.perf_counter()

    def sample() -> None:
        rss = process.memory_info().rss / 2**20
        seconds = time.perf_counter() - start
        samples.append([name, seen, f"{seconds:.2f}", f"{rss:.1f}", process.num_fds(), process.num_threads()])

    def look(rows: int) -> None:
        nonlocal seen
        seen += rows
        if seen * SAMPLES // total > (seen - rows) * SAMPLES // total:
            sample()

    def commit(numbered: Any, parts: Any, advance: Any) -> int:
        return process_shards(numbered, parts, look, make_rows=predictor, batch=BATCH, workers=WORKERS)

    sample()
    with tempfile.TemporaryDirectory() as folder:
        done = run(Path(folder) / "o.parquet", {}, shards, commit)
        assert (done.images, done.errors) == (total, 0)
        sample()
    return samples


def measure_doubles(total: int) -> list[list[Any]]:
    return watched("doubles", total, doubles(), shards_of(total))


def measure_photos(table: str, times: int) -> list[list[Any]]:
    import pyarrow.parquet as pq

    request = Request([table] * times, "resnext_tiny")
    predictor = request.predictor(request.open_engine())
    return watched("resnext_tiny", pq.read_metadata(table).num_rows * times, predictor, request.shards(Passed()))


def plot(rows: list[dict[str, str]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((9.6, 2.6), layout="constrained")
    for axes, (column, title) in zip(figure.subplots(1, 3), LOOKS, strict=True):
        for name, style in (("doubles", "-"), ("resnext_tiny", "--")):
            own = [row for row in rows if row["run"] == name]
            if own:
                label = f"{name}, {int(own[-1]['rows']):,} rows"
                last = int(own[-1]["rows"])
                axes.plot(
                    [100 * int(r["rows"]) / last for r in own], [float(r[column]) for r in own], style, label=label
                )
        axes.set(xlabel="% of the rows done", title=title, ylim=(0, 1.15 * max(float(row[column]) for row in rows)))
        axes.grid(alpha=0.3)
        if column == "rss_mib":
            axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sample memory, open files and threads during a long run.")
    parser.add_argument("--rows", type=int, help="rows of a source without decoding and network")
    parser.add_argument("--photos", metavar="TABLE", help="Parquet table of images for resnext_tiny")
    parser.add_argument("--times", type=int, default=1, help="how often the table is read (default: %(default)s)")
    parser.add_argument("--trace", type=Path, required=True, metavar="FILE", help="file of the samples (.csv)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="file for a plot of the samples")
    parser.add_argument("--only", choices=("doubles", "photos"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        measure = measure_doubles(arguments.rows) if arguments.only == "doubles" else None
        rows = measure or measure_photos(arguments.photos, arguments.times)
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
        return
    if arguments.rows or arguments.photos:
        with open(arguments.trace, "w") as file:
            file.write(",".join(COLUMNS) + "\n")
            for name in [name for name, asked in (("doubles", arguments.rows), ("photos", arguments.photos)) if asked]:
                file.flush()
                subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", name], check=True, stdout=file)
    with open(arguments.trace, newline="") as file:
        rows = list(csv.DictReader(file))
    for name in dict.fromkeys(row["run"] for row in rows):
        own = [row for row in rows if row["run"] == name]
        # The first tenth fills caches and pools.
        for column, title in LOOKS:
            values = [float(row[column]) for row in own]
            late = values[len(values) // 10 :]
            print(f"{name}: {title}: {values[0]:g} before; from a tenth on {min(late):g} to {max(late):g}")
    if arguments.picture:
        plot(rows, arguments.picture)


if __name__ == "__main__":
    main()
