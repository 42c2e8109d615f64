"""Fine-tune resnext_tiny on small tasks, beside logistic regression on its features and plain fine-tuning.

    python benchmarks/finetune.py --data DIR [--tasks digits-10,digits-60,tiny-10,tiny-60] [--seeds 1]

DIR has Tiny ImageNet as parquet files (train-*, val; columns wnid and jpeg). A task is a set and its images per class:
"digits" are scikit-learn's digits as pictures, "tiny" ten random classes of Tiny ImageNet. Prints top-1 on test images
that no training has seen. Baselines: scikit-learn's LogisticRegression with its default penalty on our features, and
AdamW on the whole network with a new head for 30 epochs (learning rate 1e-3, cosine, mirrored and cropped images).
Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from resnext_hub.data.splits import open_images
from resnext_hub.models.entrypoints import load
from resnext_hub.models.manifest import find_checkpoint
from resnext_hub.training import finetune
from resnext_hub.training.batches import FromFiles, validation_batches
from resnext_hub.training.head import features_of
from resnext_hub.training.recipe import Recipe, load_recipe
from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]
from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingImports]

BASE = find_checkpoint("resnext_tiny")
TEST = 40  # images per class
EPOCHS = 30  # of plain fine-tuning


def write_digits(folder: Path, count: int, seed: int) -> None:
    digits, rng = load_digits(), np.random.default_rng(seed)
    for digit in range(10):
        chosen = rng.permutation(np.flatnonzero(digits.target == digit))[: count + TEST]
        for place, i in enumerate(chosen):
            path = folder / ("train" if place < count else "test") / str(digit) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = (15.9 * digits.images[i]).astype(np.uint8)
            Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR).convert("RGB").save(path)


def write_tiny(folder: Path, count: int, seed: int, data: Path) -> None:
    rng = np.random.default_rng(seed)
    tables = {
        "train": pq.read_table(next(iter(sorted(data.glob("train-*"))))),
        "test": pq.read_table(data / "val.parquet"),
    }
    classes = rng.permutation(np.unique(tables["test"]["wnid"].to_pylist()))[:10]
    for part, most in (("train", count), ("test", TEST)):
        names = np.array(tables[part]["wnid"].to_pylist())
        for name in classes:
            rows = rng.permutation(np.flatnonzero(names == name))[:most]
            (folder / part / name).mkdir(parents=True)
            for row in rows.tolist():
                (folder / part / name / f"{row}.jpg").write_bytes(tables[part]["jpeg"][row].as_py())


def test_accuracy(network: torch.nn.Module, recipe: Recipe, folder: Path) -> float:
    images, _ = open_images(str(folder / "test")), network.eval()
    with torch.inference_mode():
        found = [(network(x).argmax(1) == y).float() for x, y in validation_batches(images, recipe, 0, 1, 0)]
    return 100 * torch.cat(found).mean().item()


def logistic_regression(folder: Path, recipe: Recipe) -> float:
    network = load(BASE)
    parts = [
        features_of(network, validation_batches(open_images(str(folder / p)), recipe, 0, 1, 0), torch.device("cpu"))
        for p in ("train", "test")
    ]
    fitted = LogisticRegression(max_iter=3000).fit(parts[0].plain.numpy(), parts[0].labels.numpy())
    return 100 * float(fitted.score(parts[1].plain.numpy(), parts[1].labels.numpy()))


def plain_adamw(folder: Path, recipe: Recipe) -> float:
    images, network = open_images(str(folder / "train")), load(BASE)
    network.reset_classifier(len(images.classes))  # pyright: ignore[reportCallIssue]
    batches = FromFiles(recipe, images)
    steps = EPOCHS * (len(batches) // recipe.batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(EPOCHS):
        network.train()
        for batch in batches.batches(epoch, 0, 0, 1):
            loss = F.cross_entropy(network(batch.images), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return test_accuracy(network, recipe, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare fine-tuning with its baselines.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tasks", default="digits-10,digits-60,tiny-10,tiny-60")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    print("| task | seed | resnext-hub train | seconds | logistic regression | AdamW, 30 epochs | seconds |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for task in arguments.tasks.split(","):
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory() as name:
                folder, (kind, count) = Path(name), task.split("-")
                if kind == "digits":
                    write_digits(folder, int(count), seed)
                else:
                    write_tiny(folder, int(count), seed, arguments.data)
                changes = {"batch_size": min(64, 10 * int(count)), "epochs": EPOCHS}
                plain = load_recipe("finetune", changes).resolved(BASE.preprocessing, BASE.architecture_name)
                start = time.monotonic()
                run = finetune("resnext_tiny", folder / "train", folder / "run", workers=0)
                ours, between = test_accuracy(load(find_checkpoint(run.folder)), plain, folder), time.monotonic()
                regression, before = logistic_regression(folder, plain), time.monotonic()
                adamw, end = plain_adamw(folder, plain), time.monotonic()
            seconds = f"{between - start:.0f}", f"{end - before:.0f}"
            print(
                f"| {task} | {seed} | {ours:.1f} | {seconds[0]} | {regression:.1f} | {adamw:.1f} | {seconds[1]} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
