"""The validation images that a training run took from its data, kept in its folder for later evaluations."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
from collections.abc import Callable
from pathlib import Path

from ..errors import FetchError, SourceError
from ..files import write_atomically
from .labels import Listing
from .splits import LabelledImages

HELD_OUT = "held_out.tsv"
MOST_BYTES = 500_000_000
CHECKED = 1000  # images whose content is recorded, to notice other data with the same names


def _sha256(read: Callable[[int], bytes], number: int) -> str:
    try:
        return hashlib.sha256(read(number)).hexdigest()
    except (FetchError, OSError):
        return ""


def write_held_out(images: LabelledImages, folder: Path) -> None:
    """Write ``held_out.tsv``: each image's name below the data's root, its class, and a digest of the first 1,000."""
    table = io.StringIO(newline="")
    rows = csv.writer(table, "excel-tab")
    rows.writerow(("image", "class", "sha256"))
    for i, (row, label) in enumerate(zip(images.rows.tolist(), images.labels.tolist(), strict=True)):
        digest = _sha256(images.read, i) if i < CHECKED else ""
        names = [images.classes[label]] if isinstance(label, int) else itertools.compress(images.classes, label)
        rows.writerow((images.images.key(row), "|".join(names), digest))
    write_atomically(folder / HELD_OUT, table.getvalue().encode("utf-8", "surrogateescape"))


def held_out_rows(listing: Listing, folder: Path) -> list[int] | None:
    """The images of a listing that the run in ``folder`` held out, by their place in the listing.

    None if the run held out none, or if the listing is of other data than the run's, or of a part without such images.
    The folder may be someone else's: SourceError if its list is damaged.
    """
    path = folder / HELD_OUT
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MOST_BYTES:
            raise SourceError(f"{path} is too large to be a list of held-out images.")
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            held = {row["image"]: row["sha256"] for row in csv.DictReader(file, dialect="excel-tab")}
    except (KeyError, csv.Error) as error:
        raise SourceError(f"{path} is not a list of held-out images, as training writes it.") from error
    images = listing.images
    found = [(i, int(n), held[key]) for i, n in enumerate(listing.numbers) if (key := images.key(int(n))) in held]
    same = {i for i, number, digest in found if digest and _sha256(images.read, number) == digest}
    return [i for i, _, digest in found if i in same or not digest] if same else None
