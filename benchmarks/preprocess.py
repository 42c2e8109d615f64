"""Compare ways from JPEG bytes to a network's normalised input: torchvision's, ours, other libraries. One thread.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 VIPS_CONCURRENCY=1 python benchmarks/preprocess.py [--runs 5] [--large 20]

Measures the photos at their own size, and the first ``--large`` of them scaled to 12 megapixels. All ways take turns on
each photo; the time of a way is the sum of its medians over the photos. "Documented" is PIL with torchvision's Resize,
CenterCrop, ToTensor and Normalize. Differences are to the documented uint8 pixels, in units of 1/255: the largest and
the mean. "Ours, uint8" stops before the normalisation, for engines that do it in their first layer. Ways whose library
is not installed are left out. Only ours promises a largest difference.
"""

from __future__ import annotations

import argparse
import importlib
import io
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from resnext_hub.models.manifest import ROOT, Preprocessing, default_manifest
from resnext_hub.processing_utils import jpeg
from resnext_hub.processing_utils.preprocessing import load_pixels, normalise
from torchvision import io as torchvision_io
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2

Way = Callable[[bytes], np.ndarray]
MEGAPIXELS = 12e6


def ours(data: bytes, preset: Preprocessing, grade: str) -> np.ndarray:
    return normalise(load_pixels(data, preset, grade), preset)


def pillow_alone(data: bytes, preset: Preprocessing, grade: str) -> np.ndarray:
    """Ours where simplejpeg is not installed."""
    found, jpeg._simplejpeg = jpeg._simplejpeg, lambda: None
    try:
        return ours(data, preset, grade)
    finally:
        jpeg._simplejpeg = found


def tensor_of(values: Any) -> np.ndarray:
    return values.numpy()


def peers(preset: Preprocessing) -> dict[str, Way]:
    mode = InterpolationMode(preset.interpolation)
    resize, crop = preset.resize_size, preset.crop_size
    last = transforms.Normalize(preset.mean, preset.std)
    steps = [transforms.Resize(resize, mode), transforms.CenterCrop(crop), transforms.ToTensor(), last]
    documented = transforms.Compose(steps)
    second = v2.Compose(
        [
            v2.Resize(resize, mode, antialias=True),
            v2.CenterCrop(crop),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(preset.mean, preset.std),
        ]
    )

    def with_gap(data: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(data))
        short = min(image.size)
        size = (int(resize * image.width / short), int(resize * image.height / short))
        image.draft("RGB", (2 * size[0], 2 * size[1]))
        image = image.convert("RGB").resize(size, Image.Resampling[preset.interpolation.upper()], reducing_gap=2.0)
        return tensor_of(documented(image))

    ways: dict[str, Way] = {
        "documented": lambda data: tensor_of(documented(Image.open(io.BytesIO(data)).convert("RGB"))),
        "Pillow, draft and reducing_gap": with_gap,
        "torchvision v2, its own decoder": lambda data: second(
            torchvision_io.decode_jpeg(
                torch.frombuffer(bytearray(data), dtype=torch.uint8), torchvision_io.ImageReadMode.RGB
            )
        ).numpy(),
    }
    if simplejpeg := optional("simplejpeg"):
        ways["simplejpeg, torchvision v2"] = lambda data: second(
            torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1)
        ).numpy()
    if cv2 := optional("cv2"):
        cv2.setNumThreads(1)

        def opencv(data: bytes) -> np.ndarray:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
            height, width = image.shape[:2]
            short = min(height, width)
            size = (int(resize * width / short), int(resize * height / short))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if short > resize else cv2.INTER_LINEAR)
            left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
            return normalise(image[top : top + crop, left : left + crop], preset)

        ways["OpenCV, INTER_AREA"] = opencv
    if pyvips := optional("pyvips"):

        def vips(data: bytes) -> np.ndarray:
            with Image.open(io.BytesIO(data)) as image:
                short = min(image.size)
                size = (int(resize * image.width / short), int(resize * image.height / short))
            image = pyvips.Image.thumbnail_buffer(data, size[0], height=size[1], size="force")
            image = image.colourspace("srgb")
            left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
            return normalise(image.crop(left, top, crop, crop).numpy(), preset)

        ways["libvips, thumbnail"] = vips
    return ways


def optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def enlarged(photo: Path, folder: Path) -> Path:
    with Image.open(photo) as image:
        ratio = math.sqrt(MEGAPIXELS / (image.width * image.height))
        size = round(image.width * ratio), round(image.height * ratio)
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(folder / photo.name, quality=90)
    return folder / photo.name


def compare(title: str, files: list[bytes], ways: dict[str, Way], preset: Preprocessing, runs: int) -> None:
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (preset.mean, preset.std))
    seconds = dict.fromkeys(ways, 0.0)
    largest, total = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    for data in files:
        reference = load_pixels(data, preset).transpose(2, 0, 1).astype(np.float32)
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for i in range(runs + 1):  # the first run is not counted
            for way, function in ways.items():
                start = time.perf_counter()
                result = function(data)
                if i:
                    taken[way].append(time.perf_counter() - start)
                else:
                    pixels = result.transpose(2, 0, 1) if result.dtype == np.uint8 else (result * std + mean) * 255
                    difference = np.abs(pixels - reference)
                    largest[way] = max(largest[way], float(difference.max()))
                    total[way] += float(difference.mean())
        for way in ways:
            seconds[way] += statistics.median(taken[way])
    print(f"\n| {title} | images/s | ratio | largest | mean |\n|---|--:|--:|--:|--:|")
    for way in ways:
        rate, ratio = len(files) / seconds[way], seconds["documented"] / seconds[way]
        print(f"| {way} | {rate:.0f} | {ratio:.2f} | {largest[way]:.0f} | {total[way] / len(files):.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--photos",
        type=Path,
        default=ROOT.parent / "shared" / "data" / "photos",
        help="folder of .jpg files (default: %(default)s)",
    )
    parser.add_argument(
        "--variant", default="nvidia_resneXt", help="variant with the preprocessing to use (default: %(default)s)"
    )
    parser.add_argument("--runs", type=int, default=5, help="runs per photo (default: %(default)s)")
    parser.add_argument("--large", type=int, default=20, help="photos to scale to 12 megapixels (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    preset = default_manifest().resolve(options.variant).preprocessing
    photos = sorted(options.photos.glob("*.jpg"))
    ways = peers(preset)
    for grade in ("reference", "close", "fast"):
        ways[f"ours, {grade}"] = partial(ours, preset=preset, grade=grade)
        if grade != "reference":
            ways[f"ours, {grade}, uint8"] = partial(load_pixels, preset=preset, grade=grade)
            ways[f"ours, {grade}, Pillow alone"] = partial(pillow_alone, preset=preset, grade=grade)
    compare(f"{len(photos)} photos", [photo.read_bytes() for photo in photos], ways, preset, options.runs)
    if options.large:
        with tempfile.TemporaryDirectory() as folder:
            large = [enlarged(photo, Path(folder)).read_bytes() for photo in photos[: options.large]]
        compare(f"{len(large)} at 12 megapixels", large, ways, preset, max(1, options.runs // 2))


if __name__ == "__main__":
    main()
