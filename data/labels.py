"""The class of each image, and its split, by the same rules for every command, over all images of a source at once.

A label comes from a column of a table or list, from a ``.cls`` or ``.json`` in an archive, or from the first folder
below the data's root, after a folder that names a split. Ambiguous data is refused with a question.
"""

from __future__ import annotations

import functools
import hashlib
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import SourceError
from .file_names import Passed, split_of
from .shards import Facts, Place, Subset, TableShard
from .source import shards
from .table_cells import NO_CLASS, Label, parse_label

#: A value of ``split``: all folders are classes, even those named like a split.
NO_SPLIT = "none"


@dataclass(frozen=True)
class Listing:
    """The images of a source, each with a label; images without a class are left out."""

    specs: tuple[str, ...]  #: the source
    shards: tuple[Any, ...]  #: all of the source
    starts: list[int]  #: the number of each shard's first image, then the number of all images
    numbers: np.ndarray  #: (N,) the number of each of these images in the source
    labels: list[Label | None]  #: one for each image; all None if no labels were found
    names: list[str | None]  #: None for a name that is known only after reading
    splits: list[str | None]  #: the split of each image, or None
    classes: tuple[str, ...] | None  #: names of the labels that are numbers, in their order, if the tables have them
    layout: str  #: how the labels were found, in words
    explicit: bool  #: True if the labels come from columns or label files, False if from folders
    passed: Passed = field(default_factory=Passed)  #: counts the files that were left out

    def __len__(self) -> int:
        return len(self.numbers)

    def present(self) -> list[str]:
        """The splits that images have."""
        return sorted({split for split in self.splits if split is not None})

    def only(self, rows: Sequence[int]) -> Listing:
        """A listing of some of these images, by their position in this one."""
        return replace(
            self,
            numbers=self.numbers[np.asarray(rows, np.int64)],
            labels=[self.labels[i] for i in rows],
            names=[self.names[i] for i in rows],
            splits=[self.splits[i] for i in rows],
        )

    def of(self, split: str) -> Listing:
        """The images of one split."""
        return self.only([i for i, found in enumerate(self.splits) if found == split])

    def kept(self) -> Iterator[Any]:
        """The shards of these images, each cut to them."""
        for at, shard in enumerate(self.shards):
            first, last = np.searchsorted(self.numbers, self.starts[at : at + 2])
            rows = self.numbers[first:last] - self.starts[at]
            if len(rows) == self.starts[at + 1] - self.starts[at]:
                yield shard
            elif len(rows):
                yield Subset(shard, tuple(rows.tolist()))

    def sizes(self) -> list[int]:
        """The number of images in each shard that `kept` yields."""
        return [size for size in np.diff(np.searchsorted(self.numbers, self.starts)).tolist() if size]

    def fingerprint(self) -> str:
        """A value that changes when other images of the source are chosen."""
        digest = hashlib.sha256(self.numbers.astype("<i8").tobytes()).hexdigest()
        return f"{len(self)} of {self.starts[-1]}, sha256 {digest}"

    @property
    def images(self) -> Images:
        """All images of the source, to be read one by one."""
        return Images(self.shards, tuple(self.starts))


@dataclass(frozen=True)
class Images:
    """The images of some shards, by number. Picklable, so that a spawned worker can read them."""

    shards: tuple[Any, ...]
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return self.starts[-1]

    def _at(self, number: int) -> tuple[Any, int]:
        at = bisect_right(self.starts, number) - 1
        return self.shards[at], int(number) - self.starts[at]

    def name(self, number: int) -> str:
        shard, row = self._at(number)
        return shard.name(row)

    def read(self, number: int) -> bytes:
        """The encoded bytes of an image; raises FetchError or OSError."""
        shard, row = self._at(number)
        return shard.read(row)

    def key(self, number: int) -> str:
        """The path of an image below the data's root."""
        shard, row = self._at(number)
        return shard.key(row)


def list_images(
    specs: Sequence[str],
    rows: int = 4096,
    *,
    split: str | None = None,
    column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    private: bool = False,
    anonymous: bool = False,
    labelled: bool = True,
    by_folder: bool = True,
) -> Listing:
    """List the images of a source and their labels.

    Args:
        specs, rows, column, label_column, private, anonymous: see `data.source.shards`.
        split: train, val or test: list this one only; "none": no folder's name is a split; None: list all splits.
        label_separator: what separates several classes in one text of a column; "none": each text is one class.
        labelled: False to read no labels.
        by_folder: False if the classes come from elsewhere: folders are no labels, and nothing is left out.

    Raises:
        SourceError: no images; labels are missing or ambiguous.
    """
    passed, what = Passed(), ", ".join(specs)
    options: dict[str, Any] = {"column": column, "label_column": label_column, "private": private}
    found = tuple(shards(specs, rows, anonymous=anonymous, passed=passed, **options))
    facts: list[Facts] = []
    starts = [0]
    for shard in found:
        facts += shard.facts(label_column) if labelled else shard.places()
        starts.append(len(facts))
    places = [one.place for one in facts]
    splits, folders = _splits(places, _folders(places), split, what)
    numbers = [i for i, own in enumerate(splits) if split in (None, NO_SPLIT, own)]
    if not numbers:
        there = ", ".join(sorted(set(filter(None, splits)))) or "no splits"
        raise SourceError(f"{what} has no split {split!r}; it has {there}.")
    labels: list[Label | None] = [None for _ in facts]
    layout, explicit, names = "", False, set[tuple[str, ...] | None]()
    if labelled:
        kept = [facts[i] for i in numbers]
        found_labels, layout, explicit = _labels(kept, [folders[i] if by_folder else () for i in numbers], what)
        if explicit:
            found_labels = _several(found_labels, label_separator, what)
        for i, label in zip(numbers, found_labels, strict=True):
            labels[i] = label
        names = {shard.class_names(label_column) for shard in found if isinstance(shard, TableShard)}
        numbers = _with_labels(numbers, labels, explicit, passed)
    if len(names) > 1:
        raise SourceError(f"The tables of {what} name their classes differently.")
    all_names = [one.name for one in facts]
    everything = np.arange(len(facts)), labels, all_names, splits, next(iter(names), None), layout, explicit, passed
    return Listing(tuple(specs), found, starts, *everything).only(numbers)


def _several(labels: Sequence[Label | None], separator: str | None, what: str) -> list[Label | None]:
    """Labels in which texts with several classes are split. If one label has several classes, all are tuples."""
    texts = {label for label in labels if isinstance(label, str)}
    if separator is None:
        found = [mark for mark in ("|", ";") if any(mark in text for text in texts)]
        separator = found[0] if len(found) == 1 else None
        unclear = found[:1] or [mark for mark in (",", " ") if _recombines(texts, mark)]
        if separator is None and unclear:
            example = next(text for text in sorted(texts) if unclear[0] in text)
            raise SourceError(
                f"Is {example[:80]!r} of {what} one class, or several? Pass label_separator='none' if it is one, else "
                f"label_separator='{unclear[0]}'."
            )
    split = None if separator in (None, NO_SPLIT) else separator
    if split is None and not any(isinstance(label, tuple) for label in labels):
        return list(labels)

    def several(label: Label | None) -> Label | None:
        if isinstance(label, str):
            parts = map(parse_label, label.split(split) if split else [label])
            return tuple(part for part in parts if isinstance(part, str | int) and part != NO_CLASS)
        return (label,) if isinstance(label, int) and label != NO_CLASS else label

    return [several(label) for label in labels]


def _recombines(texts: set[str], mark: str) -> bool:
    """True if fewer parts than texts make all texts, as several classes do and the words of a name do not."""
    return len({part.strip() for text in texts for part in text.split(mark)}) < len(texts)


def _with_labels(numbers: list[int], labels: list[Label | None], explicit: bool, passed: Passed) -> list[int]:
    """The images that have a class, or all if none has one. The others are counted as passed over."""
    missing = NO_CLASS if explicit else None
    kept = [i for i in numbers if labels[i] != missing]
    if not kept:
        return numbers
    if len(kept) < len(numbers):
        what = "images without a class" if explicit else "images beside the class folders"
        passed[what] += len(numbers) - len(kept)
    return kept


def _folders(places: Sequence[Place]) -> list[tuple[str, ...]]:
    """The folders of each image below the data's root. Where all lie in one folder that holds only folders, that is the
    root: archives and Kaggle's downloads have such a folder.

    The root of a list is the deepest folder that all its paths share.
    """
    found = [_parts(place.file.rpartition("/")[0]) for place in places]
    listed = [i for i, place in enumerate(places) if place.listed]
    packed = [i for i, place in enumerate(places) if place.container and place.file]
    plain = [i for i, place in enumerate(places) if not (place.container or place.listed)]
    for some in (packed, plain):
        while all(len(found[i]) > 1 for i in some) and len(tops := {found[i][0] for i in some}) == 1:
            if split_of(*tops):
                break
            for i in some:
                found[i] = found[i][1:]
    ends = (min(found[i] for i in listed), max(found[i] for i in listed)) if listed else ((), ())
    common = next((n for n, (a, b) in enumerate(zip(*ends, strict=False)) if a != b), min(map(len, ends)))
    for i in listed:
        found[i] = found[i][common:]
    return found


@functools.lru_cache(4096)
def _parts(folder: str) -> tuple[str, ...]:
    return tuple(part for part in folder.split("/") if part not in ("", "."))


def _splits(
    places: Sequence[Place], folders: list[tuple[str, ...]], wanted: str | None, what: str
) -> tuple[list[str | None], list[tuple[str, ...]]]:
    """The split of each image, and its folders after that of the split. What is ambiguous is refused."""
    if wanted == NO_SPLIT:
        return [None] * len(places), folders
    tops = {f[0] for f in folders if f}
    meant = {top: split_of(top) for top in tops}
    some = sorted(top for top, split in meant.items() if split)
    if len(some) < len(tops) and some and wanted is None:
        others = sorted(tops - set(some))
        raise SourceError(
            f"{what} has {_few(some)}, which name{'s' * (len(some) == 1)} a split, beside {_few(others)}. Are all of "
            f"them classes? Then pass split='none'. Else pass split='{meant[some[0]]}', or name one folder."
        )
    twice = [split for split, count in Counter(filter(None, meant.values())).items() if count > 1]
    if twice:
        both = " and ".join(top for top in some if meant[top] == twice[0])
        raise SourceError(f"{what} has {both}, which are the same split. Name one folder, or pass split='none'.")
    splits: list[str | None] = []
    for i, own in enumerate(folders):
        inner = meant.get(own[0]) if own else None
        splits.append(inner or _container_split(places[i].container))
        folders[i] = own[1:] if inner else own
    odd = {p.container for p, found in zip(places, splits, strict=True) if p.container and found is None}
    if odd and any(splits) and wanted is None:
        raise SourceError(f"{what} has splits, and {_few(sorted(odd))} is of none. Name the files, or pass split=NAME.")
    return splits, folders


@functools.lru_cache(4096)
def _container_split(container: str) -> str | None:
    """The split that the path of an archive or table names: by a folder, or by the first word of its own name.

    A file that the user named itself is not part of a split.
    """
    if container.startswith("./"):
        return None
    *above, name = container.split("/")
    words = [*above, re.split(r"[-_.\d]", name)[0]]
    return next((split for word in words if (split := split_of(word))), None)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _labels(
    facts: Sequence[Facts], folders: Sequence[tuple[str, ...]], what: str
) -> tuple[list[Label | None], str, bool]:
    """(labels, layout, explicit), as in `Listing`. All labels are None if there are none; a mixture is refused."""
    labels: list[Label | None] = [one.label for one in facts]
    if any(label is not None for label in labels):
        if None in labels:
            missing = labels.index(None)
            name = facts[missing].name or f"Image {missing:,} of {what}"
            raise SourceError(f"{name} has no class, and others have: every image needs a label, or -1 for no class.")
        if set(labels) == {NO_CLASS}:
            raise SourceError(f"No image of {what} has a class: each has no label, or the label -1.")
        in_archives = any(one.place.file and one.place.container for one in facts)
        return labels, "labels in archives (WebDataset)" if in_archives else "a column of labels", True
    listed = [own for one, own in zip(facts, folders, strict=True) if one.place.listed]
    if listed and all(len(own) > 1 for own in listed):
        raise SourceError(f"Which folder of the paths in {what} is the class? Write a list with a column for it: .csv.")
    return [own[0] if own else None for own in folders], "class folders", False
