"""Compare `classify_many` with common hand-written loops, and with its own upper bound.

    python benchmarks/bulk.py [--photos FOLDER] [--images 1000] [--runs 3] [--engine auto] [--variants NAME ...]
        [--precisions fp32 bf16 int8] [--loops documented DataLoader]

The photos are repeated to so many files in a temporary folder. Compared, from files to the five best classes of each:

- documented: PIL, torchvision's Compose (Resize, CenterCrop, ToTensor, Normalize), its network, one image at a time;
- DataLoader: the same in 2 worker processes, batches of 16;
- ours: `classify_many`'s pipeline, a table committed at the end.

All have the same random weights (of a torchvision network of the same architecture), and what is counted begins when
the network is ready. "Limit" is the rate that follows from adding up, per image, the core-seconds of the engine alone
and of decoding alone, with every core at work; its ratio is the share of it that is reached. The loops are compared
with ours in the first precision. Runs of all alternate: quote the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from resnext_hub.data.file_names import Passed
from resnext_hub.data.source import shards
from resnext_hub.files import sha256
from resnext_hub.inference.bulk import SHARD_ROWS, Request
from resnext_hub.inference.engines.base import available_cores
from resnext_hub.inference.resumable import process_shards, run
from resnext_hub.models.manifest import ROOT, Hash, Source, default_manifest
from resnext_hub.processing_utils.preprocessing import load_pixels
from torchvision import transforms

# Our variant, and torchvision's network of the same architecture.
NETWORKS = {"resnet18_ssl": "resnet18", "resnext50_32x4d": "resnext50_32x4d"}
THREADS = torch.get_num_threads()  # torch's own default, before anything changes it
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def documented_transform() -> Callable[[Image.Image], torch.Tensor]:
    return transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def documented(network: torch.nn.Module, files: list[Path]) -> None:
    transform = documented_transform()
    for file in files:
        batch = transform(Image.open(file).convert("RGB")).unsqueeze(0)
        with torch.no_grad():
            torch.topk(torch.nn.functional.softmax(network(batch)[0], dim=0), 5)


class Photos(torch.utils.data.Dataset):
    def __init__(self, files: list[Path]) -> None:
        self.files, self.transform = files, documented_transform()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(Image.open(self.files[i]).convert("RGB"))


def with_loader(network: torch.nn.Module, files: list[Path]) -> None:
    for batch in torch.utils.data.DataLoader(Photos(files), batch_size=16, num_workers=2):
        with torch.no_grad():
            torch.topk(torch.nn.functional.softmax(network(batch), dim=1), 5)


def core_seconds(work: Callable[[int], None], images: int) -> float:
    """Core-seconds per image with all cores busy: two busy cores are not twice as fast as one."""
    cores = available_cores()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(cores)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - start) / images


def give_weights(variant: str, network: torch.nn.Module, folder: Path) -> None:
    """Put the network's weights into the cache, and change the loaded manifest so that they are the variant's."""
    manifest = default_manifest()
    checkpoint = manifest.resolve(variant)
    path = folder / "hub" / "checkpoints" / f"{checkpoint.name}.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    source = Source(f"http://127.0.0.1/{path.name}", None, None, None, Hash("sha256", sha256(path)))
    assert isinstance(manifest.checkpoints, dict)
    manifest.checkpoints[checkpoint.name] = dataclasses.replace(checkpoint, sources=(source,))


class Ours:
    """The pipeline in one precision. int8 is calibrated with the photos themselves."""

    def __init__(self, variant: str, files: list[Path], folder: Path, precision: str, arguments: argparse.Namespace):
        how = {"batch": arguments.batch, "engine": arguments.engine, "grade": arguments.grade, "precision": precision}
        self.request = Request(str(files[0].parent), variant, **how)
        self.predictor = self.request.predictor(self.request.open_engine())
        settings = {"make_rows": self.predictor, "batch": arguments.batch, "workers": available_cores()}
        self.process = functools.partial(process_shards, **settings, commit_seconds=math.inf)
        self.files, self.out, self.grade = files, folder / "out.parquet", arguments.grade
        self.preset = self.request.checkpoint.preprocessing
        crop = self.preset.crop_size
        self.pixels = np.random.default_rng(0).integers(0, 256, (arguments.batch, crop, crop, 3), np.uint8)
        self.contents = [file.read_bytes() for file in files[: arguments.sample]]
        self.name = f"{self.predictor.engine.name}, {precision}"
        self.alone()  # warm

    def run(self) -> None:
        done = run(self.out, {}, self.request.shards(Passed()), self.process, overwrite=True)
        assert (done.images, done.errors) == (len(self.files), 0)

    def alone(self) -> tuple[float, float]:
        """Seconds per image of the engine and of decoding, each with all cores to itself."""
        calls = max(1, len(self.contents) // len(self.pixels))

        def compute(i: int) -> None:
            for _ in range(calls):
                self.predictor.engine(self.pixels)

        def decode(i: int) -> None:
            for content in self.contents:
                load_pixels(content, self.preset, self.grade)

        engine, decoding = core_seconds(compute, calls * len(self.pixels)), core_seconds(decode, len(self.contents))
        return engine / available_cores(), decoding / available_cores()


def compare(variant: str, files: list[Path], folder: Path, arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    network = getattr(torchvision.models, NETWORKS[variant])().eval()
    give_weights(variant, network, folder)
    pipelines = [Ours(variant, files, folder, precision, arguments) for precision in arguments.precisions]
    loops = {"documented": lambda: documented(network, files), "DataLoader": lambda: with_loader(network, files)}
    seconds: dict[tuple[str, str], list[float]] = {}  # (row, the pipeline it is compared with)
    for _ in range(arguments.runs):
        torch.set_num_threads(THREADS)  # theirs
        for loop in arguments.loops:
            seconds.setdefault((loop, pipelines[0].name), []).append(timed(loops[loop]) / len(files))
        for ours in pipelines:
            torch.set_num_threads(ours.predictor.engine.threads or THREADS)
            before = ours.alone()  # on both sides: a machine that is shared changes its speed within a minute
            took = timed(ours.run) / len(files)
            engine, decoding = np.mean([before, ours.alone()], 0).tolist()
            figures = {"ours": took, "limit": engine + decoding, "engine alone": engine, "decoding alone": decoding}
            for row, value in figures.items():
                seconds.setdefault((row, ours.name), []).append(value)
    print(f"\n| {variant} | images/s | ours / this, median of the runs | of each run |")
    print("|---|--:|--:|---|")
    for (row, name), values in seconds.items():
        ratios = [value / our for value, our in zip(values, seconds["ours", name], strict=True)]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        title = row if row in loops else f"{row} ({name})"
        print(
            f"| {title} | {1 / statistics.median(values):.1f} | {statistics.median(ratios):.2f} | {each} |", flush=True
        )


def timed(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare many images to one table with the usual loops.")
    parser.add_argument(
        "--photos",
        type=Path,
        default=ROOT.parent / "shared" / "data" / "photos",
        help="folder of .jpg files (default: %(default)s)",
    )
    parser.add_argument(
        "--images", type=int, default=1000, help="files in the source, repeated from the photos (default: %(default)s)"
    )
    parser.add_argument("--runs", type=int, default=3, help="runs per way (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="images per batch (default: %(default)s)")
    parser.add_argument(
        "--sample", type=int, default=128, help="images used to measure the limit (default: %(default)s)"
    )
    parser.add_argument("--engine", default="auto", help="engine of ours (default: %(default)s)")
    parser.add_argument("--grade", default="close", help="how exactly images are resized (default: %(default)s)")
    parser.add_argument(
        "--variants",
        nargs="*",
        default=list(NETWORKS),
        choices=list(NETWORKS),
        help="networks to measure (default: all)",
    )
    loops = ["documented", "DataLoader"]
    parser.add_argument("--loops", nargs="*", default=loops, choices=loops, help="loops to compare with (default: all)")
    parser.add_argument("--precisions", nargs="*", default=["fp32"], help="of ours (default: %(default)s)")
    arguments = parser.parse_args()
    photos = sorted(arguments.photos.glob("*.jpg"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TORCH_HOME"] = name
        (folder / "images").mkdir()
        files = [folder / "images" / f"{i:06d}.jpg" for i in range(arguments.images)]
        for i, file in enumerate(files):
            shutil.copyfile(photos[i % len(photos)], file)
        assert sum(len(s) for s in shards([str(folder / "images")], SHARD_ROWS)) == len(files)
        print(f"{len(files)} photos, {available_cores()} cores, batches of {arguments.batch}, {arguments.runs} runs")
        for variant in arguments.variants:
            compare(variant, files, folder, arguments)


if __name__ == "__main__":
    main()
