"""Where people's labelled images lie -> a class for every image, in the order in which `sources` gives the images.

What the images are is `sources`' business; here it is found out what is in them. A class is told by

- the folder an image lies in, on the disk or in an archive (ImageNet: synsets, ImageNet-V2: numbers, your own: names);
- a label file beside a flat folder or archive, see `read_label_file`;
- a column of a Parquet table;
- the ``.cls`` or ``.json`` of a WebDataset sample.

All labels are read before the first image is: what is wrong with them shows before hours have passed.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..inference.sources import TARS, PathShard, Shard, SourceError, TableShard, TarShard, reason, shards
from ..packages import needed

__all__ = ["Key", "LabelledSource", "find_labelled", "ilsvrc_number", "read_label_file"]

#: What tells a class: a synset, a name, or its number.
Key = str | int

SHARD_ROWS = 512  # small, so that ranks end together
LABEL_NAMES = ("label", "wnid", "synset", "cls", "class", "target", "labels", "fine_label")
# Looked for in the folder of the images and up to four above it (Kaggle has ILSVRC/Data/CLS-LOC/val).
LABEL_FILES = (
    "LOC_val_solution.csv",
    "ILSVRC2012_validation_ground_truth.txt",
    "*devkit*/data/ILSVRC20*_validation_ground_truth.txt",
    "ILSVRC2012_devkit_t12.tar.gz",
    "imagenet_2012_validation_synset_labels.txt",
    "val_annotations.txt",
)
LEVELS = 5
SYNSET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class LabelledSource:
    """A source and the class of every image in it.

    Attributes:
        source: what `sources.shards` takes.
        layout: how the classes were found, in words.
        names: the images' names as the table of predictions has them; None where only reading would tell.
        keys: a class for every image, in the source's order.
        sizes: images in every shard.
    """

    source: list[str]
    layout: str
    names: list[str | None]
    keys: list[Key]
    sizes: list[int]
    column: str | None = None
    allow_private: bool = False


def find_labelled(
    data: str | Sequence[str],
    *,
    labels: str | Path | None = None,
    column: str | None = None,
    label_column: str | None = None,
    allow_private: bool = False,
) -> LabelledSource:
    """The labelled images in folders, archives, tables or patterns of them.

    Args:
        data: see `sources`; also a folder of Parquet tables or tar archives.
        labels: the label file of a flat folder or archive; by default looked for near the images.
        column, label_column: a table's columns of images and of classes, where it is not plain which they are.

    Raises:
        SourceError: no images, an image without a class, a label file that cannot be read.
    """
    specs = [spec for entry in ([data] if isinstance(data, str) else data) for spec in _specs(entry)]
    names: list[str | None] = []
    keys: list[Key | None] = []
    sizes: list[int] = []
    how: set[str] = set()
    for shard in shards(specs, SHARD_ROWS, column=column, private=allow_private):
        if isinstance(shard, TableShard):
            found = _column_of(shard, label_column)
            how.add(f"a table, column {found}")
            of_shard = [(None, _key(value)) for value in shard.values(found)]
        else:
            of_shard = list(_beside(shard, how))
        names += [name for name, _ in of_shard]
        keys += [key for _, key in of_shard]
        sizes.append(len(of_shard))
    if not keys:
        raise SourceError(f"No images in {', '.join(specs)}.")
    missing = [i for i, key in enumerate(keys) if key is None]
    if missing:
        named = [name for i in missing if (name := names[i]) is not None]
        if len(named) < len(missing):
            raise SourceError(f"Image {missing[0]:,} of {', '.join(specs)} has no label, or the label -1.")
        of_name, told = _by_name(named, specs, labels)
        how.add(told)
        for i, name in zip(missing, named, strict=True):
            keys[i] = of_name(name)
    elif labels is not None:
        raise SourceError(f"The label file {labels} is not needed: the classes come from {' and '.join(sorted(how))}.")
    return LabelledSource(
        specs, ", ".join(sorted(how)), names, [key for key in keys if key is not None], sizes, column, allow_private
    )


def ilsvrc_number(name: str) -> int | None:
    """The number in a name such as ILSVRC2012_val_00000293.JPEG, from 1."""
    found = re.search(r"ILSVRC20\d\d_val_(\d{8})", name)
    return int(found[1]) if found else None


# Which images.


def _specs(spec: str) -> list[str]:
    """The spec itself; a folder's tables or archives if it has them and no image."""
    if not os.path.isdir(spec):
        return [spec]
    try:
        next(shards([spec], 1))
        return [spec]
    except SourceError:
        for suffix in (".parquet", *TARS):
            if found := sorted(p for p in os.listdir(spec) if p.endswith(suffix) and not p.startswith(".")):
                return [str(Path(spec) / name) for name in _one_split(spec, found)]
        raise


def _one_split(folder: str, names: list[str]) -> list[str]:
    """Hugging Face keeps train, validation and test in one folder."""
    splits = {re.split(r"[-_.\d]", name)[0] for name in names}
    if len(splits) == 1:
        return names
    if len(chosen := {split for split in splits if split.startswith("val")}) == 1:
        return [name for name in names if name.startswith(next(iter(chosen)))]
    raise SourceError(
        f"{folder} has several splits ({', '.join(sorted(splits))}): pass one of them, e.g. '{folder}/{min(splits)}*'."
    )


# Labels that lie beside each image.


def _column_of(shard: TableShard, wanted: str | None) -> str:
    names = shard.schema().names
    if wanted is not None and wanted not in names:
        raise SourceError(f"{shard.uri} has no column {wanted!r}; choose from {', '.join(names)}.")
    found = wanted or next((name for name in LABEL_NAMES if name in names), None)
    if found is None:
        raise SourceError(
            f"Which column of {shard.uri} holds the classes? Pass label_column=NAME, one of {', '.join(names)}."
        )
    return found


def _key(value: Any) -> Key | None:
    """A label as tables and JSON have it; -1 is what is not told (ImageNet's test set)."""
    if isinstance(value, bool) or value is None or (isinstance(value, int) and value < 0):
        return None
    return value if isinstance(value, (str, int)) else None


def _beside(shard: Shard, how: set[str]) -> Iterator[tuple[str, Key | None]]:
    """Names of a shard's images, and their classes where a sample of theirs says it."""
    if isinstance(shard, PathShard):
        yield from ((path, None) for path in shard.paths)
        return
    assert isinstance(shard, TarShard)
    images: list[str] = []
    told: dict[str, Key] = {}
    for name, content in shard.notes((".cls", ".json")):
        if content is None:
            images.append(name)
        elif (key := _sample_key(name, content)) is not None and (name.endswith(".cls") or _sample(name) not in told):
            told[_sample(name)] = key
    if told:
        how.add("WebDataset")
    for name in images:
        key = told.get(_sample(name))
        if told and key is None:
            raise SourceError(f"{name} has no class: in WebDataset every sample has a .cls or .json file.")
        yield name, key


def _sample(name: str) -> str:
    """A WebDataset sample's key: the path up to the first dot of the file's name."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _sample_key(name: str, content: bytes) -> Key | None:
    try:
        text = content.decode().strip()
        if name.endswith(".cls"):
            return _key(int(text) if re.fullmatch(r"-?\d+", text) else text or None)
        record = json.loads(text)
    except ValueError as error:
        raise SourceError(f"Cannot read a class from {name}: {error}") from error
    if not isinstance(record, dict):
        return None
    return next((key for label in LABEL_NAMES if (key := _key(record.get(label))) is not None), None)


# Labels that the name tells.


def _by_name(names: Sequence[str], specs: Sequence[str], labels: str | Path | None) -> tuple[Callable[[str], Key], str]:
    """What gives the class of an image's name; and that in words."""
    folders = {_folder(name, specs) for name in names}
    # One folder that is no class's: images in a row, whose classes a file tells.
    flat = "" in folders or (len(folders) == 1 and not SYNSET.fullmatch(next(iter(folders))))
    path = Path(labels) if labels is not None else (_find_label_file(names[0], specs) if flat else None)
    if path is None:
        if "" in folders:
            raise SourceError(
                f"{names[0]} is not in a class folder, and there is no label file near it. Pass labels=FILE: "
                f"{', '.join(pattern.rpartition('/')[2] for pattern in LABEL_FILES)}, or lines with a file name "
                "and its class."
            )
        return lambda name: _folder(name, specs), "class folders"
    table = read_label_file(path)

    def of_name(name: str) -> Key:
        found = table.get(PurePosixPath(name).stem)
        if found is None:
            raise SourceError(f"The label file {path} has no class for {name}.")
        return found

    return of_name, f"the label file {path.name}"


def _folder(name: str, specs: Sequence[str]) -> str:
    """The name of the folder that an image lies in; "" for the top of what was named."""
    parent = os.path.normpath(os.path.dirname(name))
    top = parent.endswith(TARS) or parent in {os.path.normpath(spec) for spec in specs}
    return "" if top else os.path.basename(parent)


def _find_label_file(name: str, specs: Sequence[str]) -> Path | None:
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


def read_label_file(path: str | Path) -> Mapping[str, Key]:
    """The stem of an image's file name -> its class, from a file such as these:

    - ``LOC_val_solution.csv`` (Kaggle), Tiny ImageNet's ``val_annotations.txt``, and any lines that begin with a file's
      name and its class, parted by a comma, tab or blank;
    - ``ILSVRC2012_validation_ground_truth.txt``: a number a line, for image 1, 2, ...; what the numbers mean is in the
      devkit's ``meta.mat`` or ``map_clsloc.txt`` beside it;
    - ``ILSVRC2012_devkit_t12.tar.gz``, which holds both;
    - ``imagenet_2012_validation_synset_labels.txt``: a synset a line.

    Raises:
        SourceError: the file is missing or is none of these.
    """
    path = Path(path)
    try:
        if path.name.endswith((".tar.gz", ".tgz", ".tar")):
            return _from_devkit(path)
        return _from_lines(path, path.read_text("utf-8-sig"), lambda name: (path.parent / name).read_bytes())
    except (OSError, UnicodeDecodeError, tarfile.TarError) as error:
        raise SourceError(f"Cannot read the label file {path}: {reason(error)}") from error


def _from_devkit(path: Path) -> Mapping[str, Key]:
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


def _from_lines(path: Path, text: str, beside: Callable[[str], bytes]) -> Mapping[str, Key]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise SourceError(f"The label file {path} is empty.")
    if all(re.fullmatch(r"n\d{8}|\d+", line) for line in lines):
        keys: list[Key] = list(lines)
        if not SYNSET.fullmatch(lines[0]):
            if "ground_truth" not in path.name:
                raise SourceError(f"{path} has class numbers, but not their order. Write synsets instead.")
            synsets = _ilsvrc_synsets(path, beside)
            unknown = {line for line in lines if int(line) not in synsets}
            if unknown:
                raise SourceError(f"{path}: the devkit has no class {min(unknown)}.")
            keys = [synsets[int(line)] for line in lines]
        return {f"ILSVRC2012_val_{number:08d}": key for number, key in enumerate(keys, 1)}
    table: dict[str, Key] = {}
    for row in csv.reader(lines, delimiter="," if "," in lines[0] else "\t" if "\t" in lines[0] else " "):
        if len(row) < 2:
            raise SourceError(f"{path}: expected lines with a file name and its class, got {row[0]!r}.")
        words = row[1].split() if SYNSET.match(row[1].strip()) else [row[1].strip()]
        if row[:2] != ["ImageId", "PredictionString"]:
            table[PurePosixPath(row[0].strip()).stem] = words[0]
    return table


def _ilsvrc_synsets(path: Path, beside: Callable[[str], bytes]) -> Mapping[int, str]:
    """ILSVRC's numbers, which are in no order of names: from what the devkit has beside the ground truth."""
    try:
        lines = (line.split() for line in beside("map_clsloc.txt").decode().splitlines())
        return {int(line[1]): line[0] for line in lines if line}
    except FileNotFoundError:
        pass
    try:
        content = beside("meta.mat")
    except FileNotFoundError as error:
        raise SourceError(
            f"The class numbers in {path} need the devkit's meta.mat or map_clsloc.txt: put it in the same folder."
        ) from error
    with needed("Reading meta.mat", "evaluate"):
        from scipy.io import loadmat
    rows = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}
