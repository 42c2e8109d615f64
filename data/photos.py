"""Photos to calibrate and to verify a network with: the user's, or crops of a photo that is always available."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import FetchError, ImageError, SourceError
from ..processing_utils.images import open_image, with_name
from .source import count, shards

log = logging.getLogger("resnext_hub")

SAMPLE = "crops of matplotlib's grace_hopper.jpg"
SHARD_ROWS = 4096
CALIBRATION = 512  # images to calibrate int8 with; more do not change the ranges


def read_photos(
    source: str | Sequence[str],
    limit: int,
    use: Callable[[Image.Image], np.ndarray] = np.asarray,
    **options: Any,
) -> list[np.ndarray]:
    """Read at most ``limit`` images of a source and return what ``use`` makes of them.

    They are spread evenly over the source if its length is known without reading it, because a folder often has one
    class after another. Otherwise they are the first ones. Unreadable images are skipped with a warning.

    Args:
        source: any source, see docs/data.md.
        options: column, label_column, private and anonymous; see `data.source.shards`.

    Raises SourceError if there is no such source, or if none of its images can be read.
    """
    specs = [source] if isinstance(source, str) else list(source)
    columns = {name: options[name] for name in ("column", "label_column") if name in options}
    step = max(1, (count(specs, **columns) or 0) // limit)
    items = itertools.chain.from_iterable(shard.items() for shard in shards(specs, SHARD_ROWS, **options))
    photos: list[np.ndarray] = []
    for item in itertools.islice(items, 0, None, step):
        try:
            photos.append(use(open_image(item.read())))
        except (ImageError, FetchError, OSError) as error:
            log.warning("Skipped: %s", with_name(item.name, error))
        if len(photos) == limit:
            break
    if not photos:
        raise SourceError(f"No image in {', '.join(specs)} could be read.")
    return photos


def sample_photos(number: int, use: Callable[[Image.Image], np.ndarray] = np.asarray) -> list[np.ndarray]:
    """Return crops, at most 30, of a real photo that every installation of matplotlib has."""
    return [use(crop) for crop in itertools.islice(_crops(), number)]


def _crops() -> Iterator[Image.Image]:
    import matplotlib

    photo = open_image(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    for share in (1.0, 0.6, 0.35):  # of the shorter side
        side = round(min(photo.size) * share)
        right, bottom = photo.width - side, photo.height - side
        for left, top in {(right // 2, bottom // 2): 0, (0, 0): 0, (right, 0): 0, (0, bottom): 0, (right, bottom): 0}:
            crop = photo.crop((left, top, left + side, top + side))
            yield crop
            yield ImageOps.mirror(crop)
