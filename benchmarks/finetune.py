"""Fine-tune resnext_tiny on small tasks, beside logistic regression on its features and plain fine-tuning.

    OMP_NUM_THREADS=1 python benchmarks/finetune.py --data DIR --out FILE.jsonl [--seeds 3] [--tasks NAME,...]
    python benchmarks/finetune.py --out FILE.jsonl --table [--methods ours,regression,adamw]

DIR has Tiny ImageNet as parquet files (train-*, val; columns wnid and jpeg). Each measurement is a line of FILE.jsonl;
the same command again makes only the missing ones. Accuracy is top-1 on test images that no training has seen: 100 per
class of scikit-learn's digits as pictures, 25 per class of Tiny ImageNet's val. (resnext_tiny was trained on the
training images of Tiny ImageNet.) The expected calibration error (ECE) is of all seeds' test images together, since
that of few images is large by chance. Seconds are CPU seconds of one thread. Baselines:

    regression   scikit-learn's LogisticRegression with its default penalty, on our features
    adamw, sgd   the whole network with a new head, 30 epochs, cosine; learning rates 1e-3 and 0.01 (momentum 0.9)
    reference    torchvision's references/classification/train.py by its defaults (SGD, learning rate 0.1 per 256
                 images, divided by 10 after each third of the epochs, crops of 8 to 100 %), for 30 epochs and not 90

Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from resnext_hub.data.splits import open_images
from resnext_hub.models.entrypoints import load
from resnext_hub.models.manifest import find_checkpoint
from resnext_hub.processing_utils.calibration import expected_calibration_error
from resnext_hub.training import finetune
from resnext_hub.training.batches import FromFiles, validation_batches
from resnext_hub.training.head import features_of
from resnext_hub.training.recipe import Recipe, load_recipe
from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]
from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

BASE = find_checkpoint("resnext_tiny")
EPOCHS = 30  # of plain fine-tuning
SAID: list[str] = []  # by our last run


@dataclass(frozen=True)
class Task:
    """A set of images: ``count`` per class, or from ``count`` to ``most``; a share of them with a wrong label.

    ``changes`` are those of our recipe.
    """

    kind: str
    classes: int
    count: int
    most: int | None = None
    wrong: float = 0.0
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def counts(self) -> list[int]:
        return np.geomspace(self.count, self.most or self.count, self.classes).round().astype(int).tolist()


TASKS = {
    "tiny-5": Task("tiny", 10, 5),
    "tiny-10": Task("tiny", 10, 10),
    "digits-10": Task("digits", 10, 10),
    "two-60": Task("tiny", 2, 60),
    "uneven-5-100": Task("tiny", 10, 5, most=100),
    "uneven-balance": Task("tiny", 10, 5, most=100, changes={"balance": True}),
    "digits-60": Task("digits", 10, 60),
    "tiny-60": Task("tiny", 10, 60),
    "wrong-60": Task("tiny", 10, 60, wrong=0.1),
    "hundred-20": Task("tiny", 100, 20),
    "tiny-250": Task("tiny", 10, 250),
}


def write(task: Task, folder: Path, seed: int, data: Path) -> None:
    """Write the images as folder/{train,test}/CLASS/NAME."""
    rng = np.random.default_rng(seed)
    found: list[tuple[str, str, list[bytes | np.ndarray]]] = []
    if task.kind == "digits":
        digits = load_digits()
        for digit, count in zip(range(10), task.counts(), strict=True):
            rows = rng.permutation(np.flatnonzero(digits.target == digit))
            found += [("train", str(digit), [*digits.images[rows[:count]]])]
            found += [("test", str(digit), [*digits.images[rows[count : count + 100]]])]
    else:
        names = np.unique(pq.read_table(data / "val.parquet", columns=["wnid"])["wnid"].to_pylist())
        chosen = rng.permutation(names)[: task.classes].tolist()
        for part, files in (("train", sorted(data.glob("train-*"))), ("test", [data / "val.parquet"])):
            table = pq.read_table(files, columns=["wnid", "jpeg"], filters=[("wnid", "in", chosen)])
            labels, images = np.array(table["wnid"].to_pylist()), table["jpeg"]
            for name, count in zip(chosen, task.counts(), strict=True):
                rows = rng.permutation(np.flatnonzero(labels == name))[: count if part == "train" else None]
                found += [(part, name, [images[row].as_py() for row in rows.tolist()])]
    classes = sorted({name for _, name, _ in found})
    for part, name, images in found:
        for i, image in enumerate(images):
            wrong = part == "train" and rng.random() < task.wrong
            label = rng.choice([c for c in classes if c != name]) if wrong else name
            path = folder / part / str(label) / f"{name}-{i}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(image, bytes):
                path.with_suffix(".jpg").write_bytes(image)
            else:
                picture = Image.fromarray((15.9 * image).astype(np.uint8)).resize((64, 64), Image.Resampling.BILINEAR)
                picture.convert("RGB").save(path.with_suffix(".png"))


def probabilities(network: nn.Module, recipe: Recipe, folder: Path) -> tuple[Tensor, Tensor]:
    batches = validation_batches(open_images(str(folder / "test")), recipe, 0, 1, 0)
    with torch.inference_mode():
        found = [(network.eval()(x).softmax(1), y) for x, y in batches]
    return torch.cat([p for p, _ in found]), torch.cat([y for _, y in found])


def ours(folder: Path, recipe: Recipe, changes: dict[str, Any]) -> tuple[Tensor, Tensor]:
    options = {"changes": changes, "workers": 0, "threads": 1}
    run = finetune("resnext_tiny", folder / "train", folder / "run", say=SAID.append, **options)
    return probabilities(load(find_checkpoint(run.folder)), recipe, folder)


def regression(folder: Path, recipe: Recipe) -> tuple[Tensor, Tensor]:
    network = load(BASE)
    train, test = (
        features_of(network, validation_batches(open_images(str(folder / p)), recipe, 0, 1, 0), torch.device("cpu"))
        for p in ("train", "test")
    )
    fitted = LogisticRegression(max_iter=3000).fit(train.plain.numpy(), train.labels.numpy())
    return torch.from_numpy(fitted.predict_proba(test.plain.numpy())), test.labels


def plain(
    folder: Path, recipe: Recipe, make: Callable[[Any], torch.optim.Optimizer], share: Callable[[float], float]
) -> tuple[Tensor, Tensor]:
    """The whole network with a new head; ``share`` is that of the learning rate at a part of the length."""
    images, network = open_images(str(folder / "train")), load(BASE).to(memory_format=torch.channels_last)
    network.reset_classifier(len(images.classes))  # pyright: ignore[reportCallIssue]
    batches = FromFiles(recipe, images)
    steps = EPOCHS * (len(batches) // recipe.batch_size)
    optimizer = make(network.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step / steps))
    for epoch in range(EPOCHS):
        network.train()
        for batch in batches.batches(epoch, 0, 0, 1):
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.amp == "bf16"):
                scores = network(batch.images.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(scores.float(), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return probabilities(network, recipe, folder)


def cosine(part: float) -> float:
    return (1 + np.cos(np.pi * part)) / 2


def adamw(folder: Path, recipe: Recipe) -> tuple[Tensor, Tensor]:
    return plain(folder, recipe, lambda p: torch.optim.AdamW(p, 1e-3), cosine)


def sgd(folder: Path, recipe: Recipe) -> tuple[Tensor, Tensor]:
    return plain(folder, recipe, lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=1e-4), cosine)


def reference(folder: Path, recipe: Recipe) -> tuple[Tensor, Tensor]:
    recipe, lr = dataclasses.replace(recipe, crop_scale=(0.08, 1.0)), 0.1 * recipe.batch_size / 256
    made = lambda p: torch.optim.SGD(p, lr, momentum=0.9, weight_decay=1e-4)  # noqa: E731
    return plain(folder, recipe, made, lambda part: 0.1 ** int(3 * part))


METHODS = {method.__name__: method for method in (ours, regression, adamw, sgd, reference)}


def measure(task: Task, method: str, seed: int, data: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(task, folder, seed, data)
        size = {"batch_size": min(64, sum(task.counts())), "epochs": EPOCHS}
        recipe = load_recipe("finetune", size).resolved(BASE.preprocessing, BASE.architecture_name)
        torch.manual_seed(seed)
        start = time.process_time()
        more = [task.changes] if method == "ours" else []
        found, labels = METHODS[method](folder, recipe.on(torch.device("cpu")), *more)
        seconds = time.process_time() - start
    confidence, best = found.max(1)
    said = [line for line in SAID if not line.startswith("epoch")]
    SAID.clear()
    return {"said": said, "seconds": seconds, "right": (best == labels).tolist(), "confidence": confidence.tolist()}


def print_table(path: Path, methods: list[str]) -> None:
    """Print means over the seeds that ours has; in brackets the number of seeds, where a baseline has fewer."""
    rows: dict[tuple[str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in map(json.loads, path.read_text().splitlines()):
        rows[row["task"], row["method"]][row["seed"]] = row
    print(f"| task | seeds | ECE of ours | {' | CPU s | '.join(methods)} | CPU s |")
    print("|---|--:|--:|" + "--:|--:|" * len(methods))
    for task in TASKS:
        ours, cells = rows[task, "ours"], []
        for method in methods if ours else ():
            found = [row for seed, row in rows[task, method].items() if seed in ours]
            mean = np.mean([value for row in found for value in row["right"]]) if found else np.nan
            few = f" ({len(found)})" if 0 < len(found) < len(ours) else ""
            cells += (
                [f"{100 * mean:.1f}{few}", f"{np.mean([row['seconds'] for row in found]):.0f}"] if found else [""] * 2
            )
        if ours:
            right, confidence = ([v for row in ours.values() for v in row[key]] for key in ("right", "confidence"))
            ece = expected_calibration_error(np.array(confidence), np.array(right))
            print(f"| {task} | {len(ours)} | {100 * ece:.1f} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare fine-tuning with its baselines.")
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print the table of the measurements in FILE")
    arguments = parser.parse_args()
    if arguments.table:
        print_table(arguments.out, arguments.methods.split(","))
        return
    torch.set_num_threads(1)
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    done = {(row["task"], row["method"], row["seed"]) for row in map(json.loads, lines)}
    chosen = [task for task in TASKS if task in arguments.tasks.split(",")]
    for method, seed, task in itertools.product(arguments.methods.split(","), range(arguments.seeds), chosen):
        if (task, method, seed) not in done:
            row = {"task": task, "method": method, "seed": seed, **measure(TASKS[task], method, seed, arguments.data)}
            with open(arguments.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
