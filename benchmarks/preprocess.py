"""Compare ways from JPEG bytes to a network's normalised input: torchvision's, ours, other libraries. One thread.

    OMP_NUM_THREADS=1 VIPS_CONCURRENCY=1 python benchmarks/preprocess.py [--runs 5] [--large 20] [--search SECONDS]

Measures the photos at their own size, and the first ``--large`` of them scaled to 3 and to 12 megapixels. All ways take
turns on each photo. The time of a way is the sum of its medians over the photos, in time of the processor, which other
processes disturb less. "Documented" is PIL with torchvision's Resize, CenterCrop, ToTensor and Normalize. Differences
are from the documented uint8 pixels, in units of 1/255: the largest and the mean. "Ours, uint8" stops before the
normalisation, for engines that do it in their first layer. Ways whose library is not installed are left out.
``--search`` draws random pictures for so long, and prints the largest differences that it found.
"""

from __future__ import annotations

import argparse
import importlib
import io
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from resnext_hub.models.manifest import ROOT, Preprocessing, default_manifest
from resnext_hub.processing_utils import jpeg, preprocessing
from resnext_hub.processing_utils.preprocessing import load_pixels, normalise
from torchvision import io as torchvision_io
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2

Way = Callable[[bytes], np.ndarray]
MEGAPIXELS = (3, 12)


def ours(data: bytes, preset: Preprocessing, grade: str) -> np.ndarray:
    return normalise(load_pixels(data, preset, grade), preset)


def ours_without(data: bytes, preset: Preprocessing, module: Any, name: str) -> np.ndarray:
    """Our grade "close", as if a package were not installed."""
    found = getattr(module, name)
    setattr(module, name, lambda: None)
    try:
        return ours(data, preset, "close")
    finally:
        setattr(module, name, found)


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


def enlarged(photo: Path, megapixels: int) -> bytes:
    file = io.BytesIO()
    with Image.open(photo) as image:
        ratio = math.sqrt(megapixels * 1e6 / (image.width * image.height))
        size = round(image.width * ratio), round(image.height * ratio)
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def compare(title: str, files: list[bytes], ways: dict[str, Way], preset: Preprocessing, runs: int) -> None:
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (preset.mean, preset.std))
    seconds = dict.fromkeys(ways, 0.0)
    largest, total = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    for data in files:
        reference = load_pixels(data, preset).transpose(2, 0, 1).astype(np.float32)
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for i in range(runs + 1):  # the first run is not counted
            for way, function in ways.items():
                start = time.process_time()
                result = function(data)
                if i:
                    taken[way].append(time.process_time() - start)
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


def drawn(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Coloured squares, down to single pixels, or stripes: more contrast than a photo has."""
    side, colours = int(random.integers(1, 24)), random.choice([2, 256])
    if random.random() < 0.7:
        few = random.integers(0, colours, (height // side + 1, width // side + 1, 3)) * (255 // (colours - 1))
        return few.repeat(side, 0).repeat(side, 1)[:height, :width].astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    bands = (x * random.uniform(-1, 1) + y * random.uniform(-1, 1)) % 2 < 1
    return np.where(bands[..., None], *random.integers(0, 256, (2, 3))).astype(np.uint8)


def search(preset: Preprocessing, seconds: float) -> None:
    """Print the largest differences of drawn pictures, by how many pixels one pixel of the result spans."""
    random, end = np.random.default_rng(), time.monotonic() + seconds
    small = replace(preset, resize_size=40, crop_size=40)
    found: dict[int, tuple[int, int]] = {}
    while time.monotonic() < end:
        ratio = random.uniform(1, 16)
        height, file = int(40 * ratio) + 1, io.BytesIO()
        image = Image.fromarray(drawn(random, height, height + int(random.integers(0, 20))))
        image.save(file, "JPEG", quality=int(random.integers(50, 101)), subsampling=int(random.choice([0, 2])))
        reference = load_pixels(file.getvalue(), small).astype(int)
        off = (int(np.abs(load_pixels(file.getvalue(), small, g) - reference).max()) for g in ("close", "fast"))
        pairs = zip(found.get(int(ratio), (0, 0)), off, strict=True)
        close, fast = (max(pair) for pair in pairs)
        found[int(ratio)] = close, fast
    print("\n| Drawn pictures: ratio | close | fast |\n|--:|--:|--:|")
    for ratio, (close, fast) in sorted(found.items()):
        print(f"| {ratio} to {ratio + 1} | {close} | {fast} |")


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
    parser.add_argument("--large", type=int, default=20, help="photos to scale up (default: %(default)s)")
    parser.add_argument("--search", type=float, default=0, metavar="SECONDS", help="search for large differences")
    options = parser.parse_args()
    torch.set_num_threads(1)
    preset = default_manifest().resolve(options.variant).preprocessing
    photos = sorted(options.photos.glob("*.jpg"))
    ways = peers(preset)
    for grade in ("reference", "close", "fast"):
        ways[f"ours, {grade}"] = partial(ours, preset=preset, grade=grade)
        if grade != "reference":
            ways[f"ours, {grade}, uint8"] = partial(load_pixels, preset=preset, grade=grade)
    ways["ours, close, no simplejpeg"] = partial(ours_without, preset=preset, module=jpeg, name="_simplejpeg")
    ways["ours, close, no torch"] = partial(ours_without, preset=preset, module=preprocessing, name="_torch")
    compare(f"{len(photos)} photos", [photo.read_bytes() for photo in photos], ways, preset, options.runs)
    for megapixels in MEGAPIXELS if options.large else ():
        large = [enlarged(photo, megapixels) for photo in photos[: options.large]]
        compare(f"{len(large)} at {megapixels} megapixels", large, ways, preset, max(1, options.runs // 2))
    if options.search:
        search(preset, options.search)


if __name__ == "__main__":
    main()
