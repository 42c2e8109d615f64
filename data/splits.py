"""Make training and validation sets: classes as indices, from the data's own splits or with a part held out."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SourceError
from ..models.manifest import default_manifest
from ..processing_utils.labels import Label, read_labels
from . import parquet
from .labels import Images, Listing, list_images
from .shards import TableShard
from .stores import Access, ask, filesystem, is_remote


@dataclass(frozen=True)
class LabelledImages:
    """Images and their classes."""

    classes: tuple[str, ...]  #: the name of every class, in the order of the logits
    #: (N,) int64 class indices; or (N, classes) bool if an image may show several classes, or none; or, of a
    #: `relabelled` source, (N, K) indices that share the target, -1 where there are fewer
    labels: np.ndarray
    images: Images  #: reads them, by number in the source
    rows: np.ndarray  #: (N,) the number of each image in the source
    blocks: tuple[int, ...]  #: sizes of groups of consecutive images that are read fastest together; they add up to N
    #: (N,) how often an epoch has each image, on average (`curation.hashtags.repeat_factors`); None: once.
    repeat_factors: np.ndarray | None = None
    held_out: bool = False  #: they were taken from the training images

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        return self.images.name(int(self.rows[i]))

    def read(self, i: int) -> bytes:
        """The encoded bytes of image ``i``; raises FetchError or OSError."""
        return self.images.read(int(self.rows[i]))

    def subset(self, indices: np.ndarray, labels: np.ndarray | None = None) -> LabelledImages:
        """The images at these indices, which may repeat; with other labels, if given."""
        chosen = np.asarray(indices, np.int64)
        labels = self.labels[chosen] if labels is None else labels
        return replace(self, labels=labels, rows=self.rows[chosen], blocks=(len(chosen),), repeat_factors=None)


def indexed(
    listing: Listing, classes: Sequence[str] | None = None, several: bool = False
) -> tuple[tuple[str, ...], np.ndarray]:
    """(classes, the index of each image's label in them), or with several labels (N, classes) bool.

    Labels that are numbers are used as indices. Labels that are names are indexed in ``classes``, or sorted. Raises
    SourceError for an image without a class, or with one that is not among ``classes``. ``several``: the second form,
    even if each image has one label.
    """
    what, found = ", ".join(listing.specs), listing.labels
    if any(label is None for label in found):
        raise SourceError(f"{what} has no class folders with images (DIR/<class>/<image>), and no labels.")
    if several or any(isinstance(label, tuple) for label in found):
        lists = [label if isinstance(label, tuple) else (label,) for label in found]
        flat = list(itertools.chain(*lists))
        if not flat:
            raise SourceError(f"No image of {what} has a class.")
        names, columns = indexed(replace(listing, labels=flat), classes)
        hot = np.zeros((len(lists), len(names)), bool)
        hot[np.repeat(np.arange(len(lists)), [len(one) for one in lists]), columns] = True
        return names, hot
    if all(isinstance(label, int) for label in found):
        labels = np.asarray(found, np.int64)
        count = int(labels.max()) + 1
        known = listing.classes or (tuple(classes) if classes is not None else None)
        if known is not None and count > len(known):
            raise SourceError(
                f"{what}: the class indices are from {labels.min()} to {count - 1}, expected 0 to {len(known) - 1}."
            )
        if listing.classes is None or classes is None:
            return known or tuple(map(str, range(count))), labels
        found = [listing.classes[i] for i in labels]
    names = tuple(classes) if classes is not None else tuple(sorted(set(map(str, found))))
    index = {name: i for i, name in enumerate(names)}
    if unknown := next((str(label) for label in found if str(label) not in index), None):
        raise SourceError(f"{what}: the class {unknown!r} is not one of the {len(names)} known classes.")
    return names, np.asarray([index[str(label)] for label in found], np.int64)


def _several(lists: Sequence[Sequence[Any]]) -> np.ndarray:
    """Lists of class indices as one array (N, K), -1 where there are fewer."""
    width = max(map(len, lists))
    return np.asarray([[*row, *[-1] * (width - len(row))] for row in lists], np.int64)


def _blocks(listing: Listing) -> tuple[int, ...]:
    """One block; for tables too large to keep decoded, one block per row group."""
    if not all(isinstance(shard, TableShard) for shard in listing.shards):
        return (len(listing),)
    opened = [parquet.open_table(s.uri, s.access, s.version) for s in listing.shards if s.first == 0]
    columns = [listing.shards[0].column]
    size = sum(table.size(group, columns) for table in opened for group in range(len(table.groups)))
    if size <= parquet.HELD_BYTES:
        return (len(listing),)
    begins = np.cumsum([0, *(rows for table in opened for rows in table.groups)])
    return tuple(n for n in np.diff(np.searchsorted(listing.numbers, begins)).tolist() if n)


def _labelled(listing: Listing, classes: Sequence[str] | None, several: bool = False) -> LabelledImages:
    names, labels = indexed(listing, classes, several)
    return LabelledImages(names, labels, listing.images, listing.numbers, _blocks(listing))


def open_images(spec: str | Path, classes: Sequence[str] | None = None, **options: Any) -> LabelledImages:
    """The labelled images of one source; ``options`` are those of `list_images`, ``classes`` as in `indexed`."""
    return _labelled(list_images([str(spec)], **options), classes)


def relabelled(listing: Listing, table: str, classes: Sequence[str] | None = None) -> LabelledImages:
    """The images that a table lists by their number, with the table's classes; repeated as often as in the table.

    Args:
        listing: the source that was classified or tagged; the table has its image numbers.
        table: parquet with a column ``index`` and one of ``class`` (`selection`) or ``targets`` (lists; `hashtags`).
        classes: names in the order of the table's numbers.

    Raises:
        SourceError: the columns are missing, or a number is out of range.
    """
    opened = parquet.open_table(table, Access())
    column = next((c for c in ("class", "targets") if c in opened.schema.names), None)
    names = [c for c in ("index", column, "repeat_factor") if c is not None and c in opened.schema.names]
    if column is None or "index" not in names or not opened.rows:
        raise SourceError(
            f"{table} must have the column index and one of class and targets; it has {', '.join(opened.schema.names)}."
        )
    cells = [[cell.as_py() for cell in row] for _, row in opened.cells(names, 0, opened.rows)]
    if any(row[0] is None or row[1] is None for row in cells):
        raise SourceError(f"{table} has rows without an index, or without a class.")
    rows = np.asarray([row[0] for row in cells], np.int64)
    found = [row[1] for row in cells]
    labels = _several(found) if column == "targets" else np.asarray(found, np.int64)
    count = int(labels.max()) + 1
    known = tuple(classes or map(str, range(count)))
    if rows.min() < 0 or rows.max() >= len(listing):
        raise SourceError(
            f"{table} has image {rows.max()}, but the data has {len(listing)} images: was it made from other data?"
        )
    if count > len(known):
        raise SourceError(f"{table} has class {count - 1}, but only {len(known)} classes are known.")
    factors = np.asarray([row[2] for row in cells]) if len(names) > 2 else None
    return LabelledImages(known, labels, listing.images, listing.numbers[rows], (len(rows),), factors)


def hold_out(images: LabelledImages, seed: int, *, share: float | None = None, count: int | None = None) -> np.ndarray:
    """Choose the images to hold out, (N,) bool: the same share of every class, and never a complete class.

    An image with several classes counts for the rarest.

    Images are chosen by a digest of their paths below the data's root. So the choice stays the same when the data is
    moved, and changes little when other images are added. ``share`` is the part of each class to hold out; ``count``
    is the number of images instead.
    """
    keys = (images.images.key(int(row)) for row in images.rows)
    digests = [hashlib.sha256(f"{seed} {key}".encode("utf-8", "surrogateescape")).digest() for key in keys]
    first = images.labels if images.labels.ndim == 1 else images.labels[:, 0]
    if images.labels.dtype == bool:  # the rarest class of each image; -1 for none
        counts = np.where(images.labels, images.labels.sum(0), len(images) + 1)
        first = np.where(images.labels.any(1), counts.argmin(1), -1)
    ranks: list[tuple[float, bytes, int]] = []
    taken = np.zeros(len(images), bool)
    for label in np.unique(first):
        rows = sorted(np.flatnonzero(first == label).tolist(), key=digests.__getitem__)
        ranks += [((place + 0.5) / len(rows), digests[row], row) for place, row in enumerate(rows[:-1])]
        if count is None and len(rows) > 1:
            taken[rows[: max(1, round((share or 0) * len(rows)))]] = True
    if count is not None:
        taken[[row for _, _, row in sorted(ranks)[:count]]] = True
    return taken


def own_names(data: str, access: Access) -> dict[str, str]:
    """Read ``classes.tsv`` in the data's folder: class -> name, in the order of the classes."""
    path = f"{data.rstrip('/')}/classes.tsv"
    if is_remote(data):
        files, inside = filesystem(path, access)
        text = ask(path, files.cat_file, inside).decode() if ask(path, files.isfile, inside) else ""
    else:
        text = Path(path).read_text("utf-8-sig") if Path(path).is_file() else ""
    return dict(line.split("\t", 1) for line in text.splitlines() if "\t" in line and not line.startswith("wnid\t"))


def train_and_val(
    data: str | Sequence[str],
    val: str | None = None,
    *,
    label_table: str | None = None,
    classes: str | None = None,
    seed: int = 0,
    share: float = 0.1,
    few: int = 0,
    least: int = 0,
    say: Callable[[str], object] = lambda line: None,
    **options: Any,
) -> tuple[LabelledImages, LabelledImages, tuple[Label, ...]]:
    """(training images, validation images, labels) of a data set.

    Args:
        data: one or several sources, see `docs/data.md`; its splits train and val are used if it has them.
        val: the validation images; None: the split val of ``data``, or ``share`` of each class of it, held out.
        label_table: classes for the images of ``data`` by number (`relabelled`); needs ``val``.
        few, least: images per class, on average, and in all, below which none is held out.
        classes: a file of (index, class, name) as a trained folder's labels.tsv, for order and names. Without it
            ``data``'s ``classes.tsv`` has them (class, name); else they are sorted, and synsets of ImageNet are named.
        say: gets a line about what was left out and what was held out.
        options: column, label_column, label_separator, split, private, anonymous; see `list_images`.

    Raises:
        SourceError: as `list_images`, `indexed` and `relabelled`; no training or validation images.
    """
    specs = [data] if isinstance(data, str) else list(data)
    data = ", ".join(specs)
    access = Access(options.get("private", False), options.get("anonymous", False))
    by_table = label_table is not None
    listing = list_images(specs, labelled=not by_table, **(_unsplit(options) if by_table else options))
    if classes is not None:
        lines = Path(classes).read_text(encoding="utf-8").splitlines()
        names = {name: text for _, name, text in (line.split("\t") for line in lines)}
    else:
        names = own_names(specs[0], access) if len(specs) == 1 else {}
    order = tuple(names) or None
    present = listing.present()
    if label_table is not None:
        train = relabelled(listing, label_table, order)
    elif options.get("split") not in (None, "none") or not present:
        train = _labelled(listing, order)
    elif "train" in present:
        train = _labelled(listing.of("train"), order)
    else:
        raise SourceError(f"{data} has {' and '.join(present)}, and no train: pass split=NAME to train on one of them.")
    if listing.passed:
        say(f"{data}: {listing.passed}")
    if val is not None:
        found = list_images([val], **_unsplit(options))
        if len(found.present()) > 1:
            raise SourceError(f"{val} has {', '.join(found.present())}: pass the folder of one as val=DIR.")
        if found.passed:
            say(f"{val}: {found.passed}")
        held = _labelled(found, train.classes, train.labels.dtype == bool)
    elif label_table is None and "val" in present and options.get("split") is None:
        held = _labelled(listing.of("val"), train.classes)
    elif label_table is not None:
        raise SourceError(f"{data} has no validation images with known classes: pass val=DIR.")
    else:
        too_few = len(train) < max(least, few * len(train.classes))
        taken = np.zeros(len(train), bool) if too_few else hold_out(train, seed, share=share)
        why = f", and {data} has no validation split" if present else ""
        if too_few:
            say(f"No image is held out: {data} has fewer than {few} per class, or than {least} in all")
        else:
            say(f"{taken.sum():,} of {len(taken):,} images are held out for validation{why}")
        held = replace(train.subset(np.flatnonzero(taken)), held_out=not too_few)
        train = train.subset(np.flatnonzero(~taken))
    synsets = {label.synset: label.name for name in default_manifest().label_sets for label in read_labels(name)}
    return train, held, tuple(Label(i, c, names.get(c) or synsets.get(c, c)) for i, c in enumerate(train.classes))


def _unsplit(options: dict[str, Any]) -> dict[str, Any]:
    """The options without ``split``, for a source that is one split or whose numbers count all images."""
    return {key: value for key, value in options.items() if key != "split"}
