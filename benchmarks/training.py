"""Compare training throughput with torchvision's reference loop: same network, images and CPU cores.

    python benchmarks/training.py [--rounds 5] [--steps 12] [--data ../shared/data/tiny-imagenet-200]

Trains resnext50_32x4d with 200 classes on 64x64 images, 32 images per step, SGD with momentum, random crops and flips,
from JPEG files in class folders. The reference is the loop of torchvision's references/classification/train.py without
options (with its metrics, without its GPU parts), with its presets for the data. Every run is a new process, and the
two alternate. Without --data the images are noise. "ours, bf16" uses autocast, which the reference has only for GPUs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

BATCH, SIZE, CLASSES, WARM = 32, 64, 200, 3
KINDS = ("torchvision", "ours", "ours, bf16")


def make_images(folder: Path, data: Path | None, count: int) -> None:
    """``count`` JPEG files in class folders."""
    import io

    import numpy as np
    from PIL import Image

    if data is not None:
        from resnext_hub.data.splits import open_images

        images = open_images(data / "train*.parquet")
        for i in range(0, len(images), max(1, len(images) // count)):
            where = folder / images.classes[images.labels[i]]
            where.mkdir(parents=True, exist_ok=True)
            (where / f"{i}.jpg").write_bytes(images.read(i))
        return
    rng = np.random.default_rng(0)
    for i in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(file, "JPEG")
        where = folder / f"class{i % CLASSES:03}"
        where.mkdir(parents=True, exist_ok=True)
        (where / f"{i}.jpg").write_bytes(file.getvalue())


def peer(folder: Path, steps: int, workers: int) -> list[float]:
    """Seconds of each step of torchvision's reference loop."""
    import torchvision
    from torchvision.transforms import v2

    # references/classification/presets.py, backend PIL
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            v2.ToPureTensor(),
        ]
    )
    data = torchvision.datasets.ImageFolder(str(folder), transform)
    loader = torch.utils.data.DataLoader(data, BATCH, sampler=torch.utils.data.RandomSampler(data), num_workers=workers)
    model = torchvision.models.resnext50_32x4d(num_classes=CLASSES)
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    model.train()
    taken: list[float] = []
    sums = [0.0, 0.0, 0.0]
    start = time.perf_counter()
    for image, target in loader:
        output = model(image)
        loss = criterion(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.inference_mode():  # utils.accuracy
            correct = output.topk(5, 1, True, True)[1].t().eq(target[None])
            acc1, acc5 = (correct[:k].flatten().sum(dtype=torch.float32) * (100.0 / len(target)) for k in (1, 5))
        for i, value in enumerate((loss, acc1, acc5)):
            sums[i] += value.item()
        taken.append(time.perf_counter() - start)
        start = time.perf_counter()
        if len(taken) == steps:
            break
    return taken


def ours(folder: Path, steps: int, workers: int, amp: str) -> list[float]:
    """Seconds of each step of this project's loop."""
    from resnext_hub.data.splits import open_images
    from resnext_hub.models.entrypoints import build
    from resnext_hub.models.manifest import default_manifest
    from resnext_hub.training.batches import FromFiles
    from resnext_hub.training.loop import Loop
    from resnext_hub.training.recipe import load_recipe

    overrides = {"architecture": "resnext50_32x4d", "epochs": 1, "batch_size": BATCH, "lr": 0.1, "weight_decay": 1e-4}
    overrides |= {
        "crop_scale": [0.08, 1.0],
        "freeze_norm": False,
        "layer_decay": 1.0,
        "head_lr": 1.0,
        "nesterov": False,
    }
    recipe = load_recipe("finetune", overrides | {"amp": amp, "undecayed": [], "label_smoothing": 0.0})
    recipe = recipe.resolved(None, None)
    recipe = type(recipe)(**{**recipe.as_dict(), "phases": (type(recipe.phases[0])(1, SIZE),)})
    images = open_images(folder)
    network = build(default_manifest().architectures["resnext50_32x4d"], len(images.classes))
    taken: list[float] = []
    start = time.perf_counter()

    class EnoughError(Exception):
        pass

    def watch(event: str, values: dict[str, float]) -> None:
        nonlocal start
        taken.append(time.perf_counter() - start)
        start = time.perf_counter()
        if len(taken) == steps:
            raise EnoughError

    with tempfile.TemporaryDirectory() as out:
        try:
            Loop(network, recipe, FromFiles(recipe, images, workers), lambda _: iter(()), Path(out), watch=watch).run()
        except EnoughError:
            pass
    return taken


def main() -> None:
    from resnext_hub.training.recipe import computes

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs per loop (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="measured steps per run (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that read images (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="folder of Tiny ImageNet's Parquet files (default: noise)")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    steps = options.steps + WARM
    if options.one:
        kind, folder = options.one
        torch.manual_seed(0)
        if kind == "torchvision":
            taken = peer(Path(folder), steps, options.workers)
        else:
            taken = ours(Path(folder), steps, options.workers, "bf16" if "bf16" in kind else "none")
        print(BATCH / statistics.median(taken[WARM:]))
        return
    # A processor without bf16 only emulates it, many times slower
    kinds = [kind for kind in KINDS if "bf16" not in kind or computes(torch.device("cpu"), "bf16")]
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder), options.data, max(400, (steps + 2) * BATCH))
        for _ in range(options.rounds):
            for kind in kinds:
                command = [sys.executable, __file__, "--one", kind, folder, "--steps", str(options.steps)]
                command += ["--workers", str(options.workers)]
                rates[kind].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    threads = torch.get_num_threads()
    print(f"resnext50_32x4d, {SIZE}x{SIZE}, {BATCH} images per step, {threads} threads, {options.rounds} rounds")
    print(f"{'loop':14}{'images/s':>10}{'ratio':>8}{'  ratios of the rounds'}")
    for kind in kinds:
        ratios = [a / b for a, b in zip(rates[kind], rates["torchvision"], strict=True)]
        shown = " ".join(f"{r:.2f}" for r in ratios)
        print(f"{kind:14}{statistics.median(rates[kind]):10.1f}{statistics.median(ratios):8.2f}  {shown}")


if __name__ == "__main__":
    main()
