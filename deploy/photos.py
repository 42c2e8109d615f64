"""Photos to prove an export with, and to calibrate with: the user's, or crops of one that is always at hand."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.source import count, shards
from ..errors import FetchError, ImageError, SourceError
from ..models.manifest import Preprocessing
from ..processing_utils.images import open_image, with_name
from ..processing_utils.preprocessing import crop_pixels, load_pixels

__all__ = ["SAMPLE", "read_photos", "sample_photos"]

log = logging.getLogger("resnext_hub")

SAMPLE = "crops of matplotlib's grace_hopper.jpg"
SHARD_ROWS = 4096


def read_photos(
    source: str | Sequence[str],
    preset: Preprocessing,
    limit: int,
    *,
    column: str | None = None,
    label_column: str | None = None,
    private: bool = False,
    anonymous: bool = False,
) -> np.ndarray:
    """At most ``limit`` images of a source -> (N, crop, crop, 3) uint8, as the preset says.

    Taken evenly from all of it where its length is known without reading it, else from its beginning: a folder often
    has one class after another. Images that cannot be read are passed over, with a warning.

    Args:
        source: any source, see docs/data.md.
        column, label_column, private, anonymous: see `data.source.shards`.

    Raises:
        SourceError: no such source, or no image in it can be read.
    """
    specs = [source] if isinstance(source, str) else list(source)
    options: dict[str, Any] = {"column": column, "label_column": label_column}
    total = count(specs, **options)
    step = max(1, (total or 0) // limit)
    found = shards(specs, SHARD_ROWS, private=private, anonymous=anonymous, **options)
    items = itertools.chain.from_iterable(shard.items() for shard in found)
    pixels: list[np.ndarray] = []
    for item in itertools.islice(items, 0, None, step):
        try:
            pixels.append(load_pixels(item.read(), preset))
        except (ImageError, FetchError, OSError) as error:
            log.warning("Skipped: %s", with_name(item.name, error))
        if len(pixels) == limit:
            break
    if not pixels:
        raise SourceError(f"No image in {', '.join(specs)} could be read.")
    return np.stack(pixels)


def sample_photos(preset: Preprocessing, number: int) -> np.ndarray:
    """Crops of a real photo that every installation of matplotlib has -> (N, crop, crop, 3) uint8."""
    return np.stack([pixels for pixels, _ in zip(_crops(preset), range(number), strict=False)])


def _crops(preset: Preprocessing) -> Iterator[np.ndarray]:
    import matplotlib
    from PIL import ImageOps

    photo = open_image(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    for share in (1.0, 0.6, 0.35):  # of the shorter side
        side = round(min(photo.size) * share)
        right, bottom = photo.width - side, photo.height - side
        for left, top in {(right // 2, bottom // 2): 0, (0, 0): 0, (right, 0): 0, (0, bottom): 0, (right, bottom): 0}:
            crop = photo.crop((left, top, left + side, top + side))
            yield crop_pixels(crop, preset)
            yield crop_pixels(ImageOps.mirror(crop), preset)
