"""The names of the classes that a checkpoint tells apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from ..models.manifest import ROOT, default_manifest
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
def read_labels(label_set: str = "imagenet-1k") -> tuple[Label, ...]:
    """The labels of a set, in the order of the logits.

    Raises:
        ValueError: no such set.
    """
    sets = default_manifest().label_sets
    if label_set not in sets:
        raise ValueError(f"There is no label set {label_set!r}; there are {', '.join(sets)}.")
    lines = (ROOT / sets[label_set].file).read_text(encoding="utf-8").splitlines()
    return tuple(Label(int(index), synset, name) for index, synset, name in (line.split("\t") for line in lines))
