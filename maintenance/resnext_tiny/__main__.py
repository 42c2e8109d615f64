"""Make the weights of resnext_tiny from nothing but the data. A step that is finished or was stopped is resumed.

    python -m resnext_hub.maintenance.resnext_tiny --data tiny-imagenet-200 --out runs/resnext_tiny

1. start: train a smaller network on the labels (resnext_tiny_start.toml).
2. scores: a teacher scores the training images (efficientnet.py).
3. tiny: enlarge the network, train it on the labels and the scores (resnext_tiny.toml), and fit the temperature.
4. Compare test sizes, and write the weights in float16 as OUT/resnext_tiny-HASH.pth.

DATA has train*.parquet, val*.parquet (columns wnid and jpeg) and classes.tsv. The test size and the temperature are
measured on training images that are held out in all steps; val is only used to report the accuracy. Other options, such
as --threads 2, are passed on to each 'resnext-hub train'.

On a GPU, pass --set in_memory=true: both trainings then hold the decoded images in its memory and make the crops there,
and the teacher runs there too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from ...cli import main as command
from ...data.splits import hold_out, train_and_val
from ...models.checkpoints import read_state_dict
from ...models.entrypoints import load
from ...models.manifest import find_checkpoint
from ...training.pixels import PixelTable
from ...training.publish import publish_half
from ...training.recipe import load_recipe
from .efficientnet import score_data

HERE = Path(__file__).parent
SIZES = range(64, 113, 8)


@torch.inference_mode()
def accuracy_by_size(run: Path, data: Path) -> dict[int, tuple[float, float]]:
    """(top-1, cross-entropy) of a run at each test size, on the training images that its recipe holds out."""
    recipe = load_recipe(HERE / "resnext_tiny.toml", {})
    images, _, _ = train_and_val(str(data), seed=recipe.seed)
    held = PixelTable.read(images.subset(np.flatnonzero(hold_out(images, recipe.seed, count=recipe.held_out))))
    checkpoint = find_checkpoint(run)
    network, preset = load(checkpoint).eval(), checkpoint.preprocessing
    normalise = v2.Normalize(preset.mean, preset.std)
    found = {}
    for size in SIZES:
        resized = (v2.functional.resize(x, [size, size], antialias=True) for x in held.images.split(100))
        scores = torch.cat([network(normalise(x / 255)) for x in resized])
        right = (scores.argmax(1) == held.labels).double().mean().item()
        found[size] = right, F.cross_entropy(scores, held.labels).item()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments, more = parser.parse_known_args(argv)
    data, out = arguments.data, arguments.out

    def train(recipe: str, run: str, *options: str | Path) -> None:
        words = ["train", "--recipe", HERE / f"{recipe}.toml", "--data", data, "--out", out / run, *options, *more]
        if status := command([str(word) for word in words]):
            sys.exit(status)

    train("resnext_tiny_start", "start")
    if not any((out / "scores").glob("*.scores.npy")):
        score_data(data, out / "scores", torch.get_num_threads())
    scores = ("--teacher-scores", out / "scores")
    train("resnext_tiny", "tiny", "--initial-weights", out / "start" / "weights.pt", *scores)
    for size, (top1, loss) in accuracy_by_size(out / "tiny", data).items():
        print(f"{size} pixels: {100 * top1:.2f}% top-1, cross-entropy {loss:.4f} on held-out training images")
    weights = out / "tiny" / find_checkpoint(out / "tiny").sources[0].path
    print(f"Saved {publish_half(read_state_dict(weights), out, 'resnext_tiny')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
