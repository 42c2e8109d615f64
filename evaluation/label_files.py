"""Find labelled images, and read the label files of ImageNet and related datasets."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..data.held_out import held_out_rows
from ..data.labels import Listing, list_images
from ..data.stores import reason
from ..data.table_cells import Label
from ..errors import SourceError
from ..packages import needed

SHARD_ROWS = 512  # small, so that processes finish at about the same time
# Looked for in the folder of the images and in four folders above it (Kaggle has ILSVRC/Data/CLS-LOC/val).
LABEL_FILES = (
    "LOC_val_solution.csv",
    "ILSVRC2012_validation_ground_truth.txt",
    "*devkit*/data/ILSVRC20*_validation_ground_truth.txt",
    "ILSVRC2012_devkit_t12.tar.gz",
    "imagenet_2012_validation_synset_labels.txt",
    "val_annotations.txt",
)
LEVELS = 5
HELD_OUT_BY = ", held out by "  # in the layout of such a listing
SYNSET = re.compile(r"n\d{8}")


def find_labelled(
    data: str | Sequence[str],
    *,
    labels: str | Path | None = None,
    split: str | None = None,
    runs: Sequence[Path] = (),
    column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    allow_private: bool = False,
    anonymous: bool = False,
) -> Listing:
    """List the labelled images of a source; see docs/data.md.

    Args:
        labels: the label file of a flat folder or archive; by default looked for near the images.
        split: the split to take; by default val, or the only one.
        runs: folders of training runs. If this is the data that one was trained on and it held out a part, and neither
            ``split`` nor ``labels`` says otherwise, only that part is taken.
        column, label_column: a table's columns of images and of classes, if their names do not tell.
        label_separator: see `data.labels.list_images`.

    Raises:
        SourceError: no images, an image without a class, a label file that cannot be read, several splits, or runs that
            held out different images.
    """
    specs = [data] if isinstance(data, str) else list(data)
    columns = {"column": column, "label_column": label_column, "label_separator": label_separator}
    reading: Any = columns | {"private": allow_private, "anonymous": anonymous}
    listing = list_images(specs, SHARD_ROWS, split=split, by_folder=labels is None, **reading)
    if split is None and labels is None and (held_out := _held_out(listing, runs)):
        return held_out
    if split is None and len(present := listing.present()) > 1:
        if "val" not in present:
            raise SourceError(f"{', '.join(specs)} has several splits ({', '.join(present)}): pass split=NAME.")
        listing = listing.of("val")
    if listing.explicit:
        if labels is not None:
            raise SourceError(f"The label file {labels} is not needed: the classes come from {listing.layout}.")
        return listing
    path = Path(labels) if labels is not None else None
    found = set(listing.labels)
    # One folder that is not named after a class: a flat folder, whose classes are in a file.
    if path is None and len(found) == 1 and not SYNSET.fullmatch(str(next(iter(found)) or "")):
        path = find_label_file(listing.names[0] or "")
    if path is None:
        if None in found:
            known = ", ".join(pattern.rpartition("/")[2] for pattern in LABEL_FILES)
            raise SourceError(
                f"{listing.names[0]} is not in a class folder, and there is no label file near it. Pass labels=FILE: "
                f"{known}, or lines with a file name and its class."
            )
        return listing
    table = read_label_file(path)
    named = [table.get(PurePosixPath(name or "").stem) for name in listing.names]
    if None in named:
        raise SourceError(f"The label file {path} has no class for {listing.names[named.index(None)]}.")
    return replace(listing, labels=named, layout=f"the label file {path.name}")


def _held_out(listing: Listing, runs: Sequence[Path]) -> Listing | None:
    """The images that training runs held out from this data; None if none did."""
    found = {tuple(rows): run for run in runs if (rows := held_out_rows(listing, run))}
    if len(found) > 1:
        both = " and ".join(map(str, found.values()))
        raise SourceError(f"{both} held out different images: evaluate one at a time.")
    for rows, run in found.items():
        return replace(listing.only(rows), layout=f"{listing.layout}{HELD_OUT_BY}{run}")
    return None


def ilsvrc_number(name: str) -> int | None:
    """The number, from 1, in a name such as ILSVRC2012_val_00000293.JPEG."""
    found = re.search(r"ILSVRC20\d\d_val_(\d{8})", name)
    return int(found[1]) if found else None


def find_label_file(name: str) -> Path | None:
    """The label file nearest to an image."""
    folder = Path(name).absolute().parent
    while not folder.is_dir() and folder != folder.parent:  # a member of an archive
        folder = folder.parent
    for _ in range(LEVELS):
        for pattern in LABEL_FILES:
            if found := sorted(folder.glob(pattern)):
                return found[0]
        folder = folder.parent
    return None


def read_label_file(path: str | Path) -> Mapping[str, Label]:
    """Read a label file; return the class for the stem of each file name.

    It may be

    - ``LOC_val_solution.csv`` (Kaggle), Tiny ImageNet's ``val_annotations.txt``, or any lines that begin with a file
      name and a class, separated by a comma, tab or space;
    - ``ILSVRC2012_validation_ground_truth.txt`` with one number per line, for image 1, 2, ...; ``meta.mat`` or
      ``map_clsloc.txt`` of the devkit, beside it, has the classes of the numbers;
    - ``ILSVRC2012_devkit_t12.tar.gz``, which contains both;
    - ``imagenet_2012_validation_synset_labels.txt`` with one synset per line.

    Raises SourceError if the file is missing or is none of these.
    """
    path = Path(path)
    try:
        if path.name.endswith((".tar.gz", ".tgz", ".tar")):
            return _from_devkit(path)
        return _from_lines(path, path.read_text("utf-8-sig"), lambda name: (path.parent / name).read_bytes())
    except (OSError, UnicodeDecodeError, tarfile.TarError) as error:
        raise SourceError(f"Cannot read the label file {path}: {reason(error)}") from error


def _from_devkit(path: Path) -> Mapping[str, Label]:
    with tarfile.open(path) as archive:
        members = {PurePosixPath(member.name).name: member for member in archive if member.isreg()}

        def content(name: str) -> bytes:
            file = archive.extractfile(members[name]) if name in members else None
            if file is None:
                raise FileNotFoundError(name)
            return file.read()

        truth = [name for name in members if name.endswith("validation_ground_truth.txt")]
        if not truth:
            raise SourceError(f"{path} is not the ILSVRC devkit: it has no ..._validation_ground_truth.txt.")
        return _from_lines(Path(truth[0]), content(truth[0]).decode(), content)


def _from_lines(path: Path, text: str, beside: Callable[[str], bytes]) -> Mapping[str, Label]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise SourceError(f"The label file {path} is empty.")
    if all(re.fullmatch(r"n\d{8}|\d+", line) for line in lines):
        keys: list[Label] = list(lines)
        if not SYNSET.fullmatch(lines[0]):
            if "ground_truth" not in path.name:
                raise SourceError(f"{path} has class numbers, but not their order. Write synsets instead.")
            synsets = _ilsvrc_synsets(path, beside)
            unknown = {line for line in lines if int(line) not in synsets}
            if unknown:
                raise SourceError(f"{path}: the devkit has no class {min(unknown)}.")
            keys = [synsets[int(line)] for line in lines]
        return {f"ILSVRC2012_val_{number:08d}": key for number, key in enumerate(keys, 1)}
    table: dict[str, Label] = {}
    for row in csv.reader(lines, delimiter="," if "," in lines[0] else "\t" if "\t" in lines[0] else " "):
        if len(row) < 2:
            raise SourceError(f"{path}: expected lines with a file name and its class, got {row[0]!r}.")
        words = row[1].split() if SYNSET.match(row[1].strip()) else [row[1].strip()]
        if row[:2] != ["ImageId", "PredictionString"]:
            table[PurePosixPath(row[0].strip()).stem] = words[0]
    return table


def _ilsvrc_synsets(path: Path, beside: Callable[[str], bytes]) -> Mapping[int, str]:
    """The synsets of ILSVRC's own class numbers, from the devkit's files beside the ground truth."""
    with contextlib.suppress(FileNotFoundError):
        lines = (line.split() for line in beside("map_clsloc.txt").decode().splitlines())
        return {int(line[1]): line[0] for line in lines if line}
    try:
        content = beside("meta.mat")
    except FileNotFoundError as error:
        missing = "the devkit's meta.mat or map_clsloc.txt: put it in the same folder"
        raise SourceError(f"The class numbers in {path} need {missing}.") from error
    with needed("Reading meta.mat", "evaluate"):
        from scipy.io import loadmat
    rows = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}
