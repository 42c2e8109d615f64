"""The names of the classes that a checkpoint tells apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from ..models.manifest import LabelSet, default_manifest
from ..mount import register

__all__ = ["Label", "read_labels"]


@dataclass(frozen=True)
class Label:
    """``synset``: WordNet id, e.g. "n01440764"; ``name``: WordNet's names, e.g. "tench, Tinca tinca"."""

    index: int
    synset: str
    name: str


register(Label)


@cache
def read_labels(label_set: str | LabelSet = "imagenet-1k") -> tuple[Label, ...]:
    """The labels of a set, by its name or as a checkpoint has it, in the order of the logits.

    Raises:
        ValueError: no such set.
    """
    if isinstance(label_set, str):
        sets = default_manifest().label_sets
        if label_set not in sets:
            raise ValueError(f"Unknown label set {label_set!r}; choose from {', '.join(sets)}.")
        label_set = sets[label_set]
    lines = label_set.file.read_text(encoding="utf-8").splitlines()
    return tuple(Label(int(index), synset, name) for index, synset, name in (line.split("\t") for line in lines))
