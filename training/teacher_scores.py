"""The scores of a teacher for distillation: for each training image a grid of class scores.

A random crop of an image gets the mean scores of the cells that it shows, at the price of one pass per image (ReLabel:
Yun et al. 2021, arXiv 2101.05022).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from ..files import write_atomically
from ..inference.engines.torch import device_of
from ..models.entrypoints import load
from ..models.manifest import Checkpoint
from ..processing_utils.labels import read_labels
from .pixels import PixelTable

GRID = 3


def save_array(array: np.ndarray, path: Path) -> Path:
    """Write a .npy file atomically; create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.save(file, array)

    write_atomically(path, write)
    return path


def read_scores(folder: Path) -> Tensor:
    """The scores of the training images, in the order of their files: float16 (N, rows, columns, classes)."""
    return torch.cat([torch.from_numpy(np.load(file)) for file in sorted(folder.glob("train*.scores.npy"))])


@torch.inference_mode()
def score_images(teacher: Checkpoint, table: PixelTable, batch: int = 16, device: str | None = None) -> Tensor:
    """The teacher's scores of every cell and class of the table: float16 (N, GRID, GRID, classes).

    Images are resized to the teacher's crop, without cropping. ``device`` is by default the GPU if there is one.

    Raises:
        EngineError: no such device.
        ValueError: the teacher does not know a class of the table.
        CheckpointError: its weights cannot be used.
    """
    if teacher.multi_label:
        raise ValueError(f"{teacher.name} is for several classes per image: a teacher has one class per image.")
    synsets = [label.synset for label in read_labels(teacher.labels)]
    if unknown := sorted(set(table.classes) - set(synsets)):
        raise ValueError(f"{teacher.name} does not know the class {unknown[0]} (in all: {len(unknown)}).")
    columns = torch.tensor([synsets.index(name) for name in table.classes])
    where, preset = device_of(device), teacher.preprocessing
    network = load(teacher).eval().to(where)
    normalise, size = v2.Normalize(preset.mean, preset.std), [preset.crop_size] * 2
    found = []
    for images in table.images.split(batch):
        pixels = v2.functional.resize(images.to(where), size, antialias=True)
        maps = network.forward_intermediates(normalise(pixels / 255))[-1]  # pyright: ignore[reportCallIssue]
        cells = F.adaptive_avg_pool2d(maps, GRID).permute(0, 2, 3, 1)
        found.append(network.get_submodule("fc")(cells)[..., columns.to(where)].half().cpu())
    return torch.cat(found)
