"""Compare training in one process and in two (DDP over gloo) with the same global batch.

    python benchmarks/processes.py --data ../shared/data/tiny-imagenet-200 [--epochs 4] [--out FILE.csv]

Trains a small ResNeXt on 20 classes of Tiny ImageNet at 32x32 and prints the loss curves. BatchNorm uses each process's
own part of a batch, so the two curves are similar, not equal; three seeds of the one-process run show the variation by
chance alone.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CLASSES = 20


def child(data: Path, out: Path, seed: int, epochs: int) -> None:
    """One run, in one process or as one of torchrun's."""
    import torch
    from resnext_hub.data.splits import open_images
    from resnext_hub.models.entrypoints import build
    from resnext_hub.models.manifest import Architecture
    from resnext_hub.processes import Processes
    from resnext_hub.training.batches import FromFiles, validation_batches
    from resnext_hub.training.loop import Loop
    from resnext_hub.training.recipe import Phase, Recipe

    torch.set_num_threads(1)
    with Processes.here().joined(datetime.timedelta(minutes=30)):
        torch.manual_seed(seed)
        network = build(Architecture("Bottleneck", (1, 1, 1, 1), 8, 16, None, 16, False), CLASSES)
        recipe = Recipe(
            (Phase(epochs, 32),), "resnext_tiny", batch_size=128, lr=0.1, crop_scale=(0.35, 1.0), amp="bf16", seed=seed
        ).resolved(None, None)
        parts = []
        for part in ("train", "val"):
            images = open_images(data / f"{part}*.parquet")
            rows = (images.labels < CLASSES).nonzero()[0]
            parts.append(images.subset(rows))
        images, held = parts
        Loop(
            network,
            recipe,
            FromFiles(recipe, images),
            lambda p: validation_batches(held, recipe, p.rank, p.world, 0),
            out,
        ).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of Tiny ImageNet's Parquet files")
    parser.add_argument("--epochs", type=int, default=4, help="epochs per run (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="file for the curves (.csv)")
    parser.add_argument("--one", nargs=2, metavar=("OUT", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        child(options.data, Path(options.one[0]), int(options.one[1]), options.epochs)
        return
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, seed, launcher in (("1", 0, []), ("2", 0, torchrun), ("1", 1, []), ("1", 2, [])):
            out = Path(folder) / f"{name}-{seed}"
            command = [sys.executable, *launcher, __file__, "--one", str(out), str(seed)]
            command += ["--data", str(options.data), "--epochs", str(options.epochs)]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            with open(out / "log.csv", newline="", encoding="utf-8") as file:
                rows += [
                    {"processes": name, "seed": seed} | {k: row[k] for k in ("epoch", "loss", "val_loss", "val_top1")}
                    for row in csv.DictReader(file)
                ]
    print(f"{'processes':>9}{'seed':>5}{'epoch':>6}{'loss':>9}{'val loss':>10}{'top-1 %':>9}")
    for row in rows:
        loss, val, top1 = (float(str(row[key])) for key in ("loss", "val_loss", "val_top1"))
        print(f"{row['processes']:>9}{row['seed']:>5}{row['epoch']:>6}{loss:9.3f}{val:10.3f}{100 * top1:9.2f}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with open(options.out, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
