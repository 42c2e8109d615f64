"""The names of a checkpoint's classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from ..models.manifest import CONTROL, LabelSet, default_manifest
from ..mount import register


@dataclass(frozen=True)
class Label:
    """``synset``: WordNet id, e.g. "n01440764"; ``name``: WordNet's names, e.g. "tench, Tinca tinca"."""

    index: int
    synset: str
    name: str


register(Label)


@cache
def read_labels(label_set: str | LabelSet = "imagenet-1k") -> tuple[Label, ...]:
    """The labels of a set, given by its name or as a checkpoint has it, in the order of the logits; else ValueError."""
    if isinstance(label_set, str):
        sets = default_manifest().label_sets
        if label_set not in sets:
            raise ValueError(f"Unknown label set {label_set!r}; choose from {', '.join(sets)}.")
        label_set = sets[label_set]
    return tuple(Label(index, synset, name) for index, (synset, name) in enumerate(label_set.rows()))


def labels_table(labels: Sequence[Label]) -> str:
    """The content of a file of labels, as `read_labels` reads it; ValueError if a class's name would break it."""
    for label in labels:
        for text in (label.synset, label.name):
            if CONTROL.search(text) or len(text) > 2000:
                wrong = "has a tab, a line break or another control character, or more than 2,000 characters"
                raise ValueError(f"The class name {text[:100]!a} {wrong}: rename this class.")
    return "".join(f"{label.index}\t{label.synset}\t{label.name}\n" for label in labels)
