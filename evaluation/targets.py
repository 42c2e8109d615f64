"""The right classes of labelled images as class indices, and the known datasets."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..data.labels import Listing
from ..data.stores import reason
from ..data.table_cells import Label as Key
from ..errors import SourceError
from ..processing_utils.labels import Label
from .label_files import ilsvrc_number

# Advice for images in other layouts.
LAYOUTS = " For a flat folder, pass labels=FILE; of train and val, pass split=NAME."

#: The right classes of an image. An image without any is not counted.
Target = frozenset[int]


@dataclass(frozen=True)
class Dataset:
    """A dataset that the manifest has accuracies for. It is recognised by its number of images and classes."""

    name: str
    title: str
    images: int | None = None
    classes: int | None = None
    path: str | None = None  #: a regular expression for its path
    restrict: bool = False  #: True if the network chooses among the dataset's classes only


@cache
def datasets() -> dict[str, Dataset]:
    """The known datasets, by the manifest's names."""
    content = (Path(__file__).parent / "datasets.toml").read_text(encoding="utf-8")
    return {name: Dataset(name, **values) for name, values in tomllib.loads(content).items()}


def recognise(images: Listing) -> Dataset | None:
    """The known dataset that these images are, or None."""
    present, where = len(set(images.labels)), " ".join(images.specs).lower()
    for known in datasets().values():
        same = (known.images, known.classes) == (len(images.labels), present)
        if same and (known.path is None or re.search(known.path, where)):
            return known
    return None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _index(labels: Sequence[Label]) -> dict[str, set[int]]:
    """The classes that each name may mean.

    A class's first name takes precedence: "crayfish" means the class of that name, not the spiny lobster, which is
    also called crayfish.
    """
    proper: dict[str, set[int]] = {}
    others: dict[str, set[int]] = {}
    for label in labels:
        first, *synonyms = label.name.split(",")
        for way in filter(None, map(_plain, {label.synset, label.name, first})):
            proper.setdefault(way, set()).add(label.index)
        for way in filter(None, map(_plain, synonyms)):
            others.setdefault(way, set()).add(label.index)
    return others | proper


def targets_of(keys: Iterable[Key | None], labels: Sequence[Label], *, advice: str = LAYOUTS) -> list[Target]:
    """The right classes of every image as indices of a network's classes.

    A key is a synset, a name or one of its synonyms (case, spaces, _ and - do not matter), the number of a class, or
    several of these. Raises SourceError if there is no such class, or if two classes have the name.
    """
    by_name = _index(labels)
    wrong: list[str] = []

    @cache
    def target(key: Key | None) -> Target:
        if isinstance(key, tuple):  # several classes
            return frozenset().union(*map(target, key))
        numbers = by_name.get(_plain(key), set()) if isinstance(key, str) else set()
        if not numbers and re.fullmatch(r"\d+", text := str(key)) and int(text) < len(labels):
            numbers = {int(text)}
        if len(numbers) > 1:
            synsets = " and ".join(labels[i].synset or str(i) for i in sorted(numbers))
            raise SourceError(f"{key!r} may mean {synsets}: use the synset or the class number instead.")
        if not numbers:
            wrong.append(repr(key))
        return frozenset(numbers)

    found = [target(key) for key in keys]
    if wrong:
        many = f"{', '.join(wrong[:3])}{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}"
        first, last = labels[0], len(labels) - 1
        raise SourceError(
            f"The network of {len(labels):,} classes has no class {many}. Classes must be synsets "
            f"({first.synset or first.name}), names ({first.name.split(',')[0]}) or numbers (from 0 to {last}).{advice}"
        )
    return found


def target_classes(targets: Iterable[Target]) -> list[int]:
    """All classes that occur, sorted."""
    return sorted(set().union(*targets))


def read_real(path: str | Path, names: Sequence[str]) -> list[Target]:
    """Read ImageNet-ReaL's labels (Beyer et al. 2020, arXiv 2006.07159): none, one or several per validation image.

    ``path`` is ``real.json``, a list of lists of classes for image 1, 2, ... of 50,000; the names have these numbers.
    """
    try:
        targets = [frozenset(int(c) for c in one) for one in json.loads(Path(path).read_text("utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise SourceError(f"Cannot read the ImageNet-ReaL labels {path}: {reason(error)}") from error
    numbers = [ilsvrc_number(name) for name in names]
    if bad := [name for name, number in zip(names, numbers, strict=True) if not number or number > len(targets)]:
        raise SourceError(f"{path} has labels for ILSVRC2012_val_00000001 to {len(targets):08d}, not for {bad[0]}.")
    return [targets[number - 1] for number in numbers if number]
