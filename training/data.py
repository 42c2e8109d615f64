"""Labelled images, wherever they lie: an index of encoded images with a class each, read one by one.

Three layouts, on this machine or in an object store (fsspec): a folder for each class; parquet tables with a column of
images (or of their paths) and one of classes; tar archives, of class folders or WebDataset shards with ``.cls``. All of
them answer ``read(i)``, so that an epoch is a list of numbers, and where a run stands in it is one number more.
"""

from __future__ import annotations

import functools
import json
import os
import tarfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..inference.sources import (
    SUFFIXES,
    Item,
    PathShard,
    SourceError,
    TableShard,
    TarShard,
    filesystem,
    reason,
    shards,
)
from ..models.manifest import default_manifest
from ..packages import needed
from ..processing_utils.labels import Label, read_labels
from ..processing_utils.uris import read_file, scheme_of

__all__ = ["LabelledImages", "open_images", "read_classes", "relabelled", "split", "train_and_val", "unlabelled_images"]

HELD_IN_MEMORY = 4 * 2**30  # bytes of encoded images of a table; of a larger one, row groups are read as they come
GROUPS_HELD = 8
T = TypeVar("T")
LABEL_COLUMNS = ("label", "class", "class_index", "wnid", "synset", "cls", "targets")
IMAGE_COLUMNS = ("image", "jpeg", "jpg", "png", "webp", "path", "uri", "file_name", "name")


@dataclass(frozen=True)
class LabelledImages:
    """Images and their classes.

    Args:
        classes: the name of every class, in the order of the logits.
        labels: (N,) int64 class indices; or (N, K), several for an image, -1 where there are fewer.
        name: what image ``i`` is called.
        read: its encoded bytes; raises OSError or FetchError.
        repeat_factors: (N,) how often an epoch has each image, on average (`hashtags`); None: once.
        blocks: lengths of the runs of images that are best read together, in order; they add up to N.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    name: Callable[[int], str]
    read: Callable[[int], bytes]
    blocks: tuple[int, ...]
    repeat_factors: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray, labels: np.ndarray | None = None) -> LabelledImages:
        """Images by number, an image as often as its number comes; with other labels, if given."""
        rows = np.asarray(indices, np.int64)
        return LabelledImages(
            self.classes,
            self.labels[rows] if labels is None else labels,
            functools.partial(_through, rows, self.name),
            functools.partial(_through, rows, self.read),
            (len(rows),),
        )


def _through(rows: np.ndarray, of: Callable[[int], T], i: int) -> T:
    return of(int(rows[i]))


def read_classes(path: str | Path) -> list[tuple[str, str]]:
    """(synset, names) of every line of a two-column TSV; a class's index is its line."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [(synset, names) for synset, names in (line.split("\t", 1) for line in lines) if synset != "wnid"]


def _listing(spec: str, suffixes: tuple[str, ...]) -> tuple[Any, list[str]]:
    """(file system, sorted paths) of all files of these suffixes in a folder and its folders, or of a pattern."""
    fs, path = _opened(spec)
    if any(c in path for c in "*?["):
        found = fs.glob(path)
    elif fs.isfile(path):
        found = [path]
    elif fs.isdir(path):
        found = fs.find(path)
    else:
        raise SourceError(f"No such file, folder or pattern: {spec}")
    return fs, sorted(p for p in found if p.lower().endswith(suffixes) and "/." not in p)


def _opened(spec: str) -> tuple[Any, str]:
    """The file system that a path or URI is of, and the path in it."""
    return filesystem(f"file://{os.path.abspath(spec)}" if scheme_of(spec) is None else spec)


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


class _Files:
    """Reads files of one file system, whole or a part. Picklable: a worker opens its own connections."""

    def __init__(self, spec: str, local: bool) -> None:
        self.spec, self.local = spec, local

    @functools.cached_property
    def fs(self) -> Any:
        return _opened(self.spec)[0]

    def __getstate__(self) -> dict[str, Any]:
        return {"spec": self.spec, "local": self.local}

    def whole(self, path: str) -> bytes:
        return read_file(Path(path)) if self.local else self.fs.cat_file(path)

    def part(self, path: str, start: int, length: int) -> bytes:
        if not self.local:
            return self.fs.cat_file(path, start=start, end=start + length)
        with open(path, "rb") as file:
            return os.pread(file.fileno(), length, start)


def _read_whole(files: _Files, paths: list[str], i: int) -> bytes:
    return files.whole(paths[i])


def _item_name(items: list[Item], i: int) -> str:
    return items[i].name


def _item(items: list[Item], i: int) -> bytes:
    return items[i].read()


def _indexed(
    found: Sequence[str | int], classes: Sequence[str] | None, what: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """(classes, index of each label in them). Whole numbers are indices as they are."""
    if found and isinstance(found[0], int | np.integer):
        labels = np.asarray(found, np.int64)
        count = int(labels.max()) + 1
        if labels.min() < 0 or (classes is not None and count > len(classes)):
            raise SourceError(
                f"{what}: the class indices are from {labels.min()} to {count - 1}, expected 0 to "
                f"{len(classes or ()) - 1}."
            )
        return tuple(classes) if classes is not None else tuple(str(i) for i in range(count)), labels
    names = tuple(classes) if classes is not None else tuple(sorted(set(map(str, found))))
    index = {name: i for i, name in enumerate(names)}
    if unknown := next((str(label) for label in found if str(label) not in index), None):
        raise SourceError(f"{what}: the class {unknown!r} is not one of the {len(names)} known classes.")
    return names, np.asarray([index[str(label)] for label in found], np.int64)


def _folder(spec: str, classes: Sequence[str] | None) -> LabelledImages:
    fs, paths = _listing(spec, SUFFIXES)
    root = _opened(spec)[1].rstrip("/")
    kept = [p for p in paths if "/" in p[len(root) + 1 :]]  # an image beside the class folders has no class
    if not kept:
        raise SourceError(f"{spec} has no class folders with images (DIR/<class>/<image>).")
    names, labels = _indexed([p[len(root) + 1 :].split("/", 1)[0] for p in kept], classes, spec)
    files = _Files(spec, _is_local(fs))
    return LabelledImages(names, labels, kept.__getitem__, functools.partial(_read_whole, files, kept), (len(kept),))


def _tars(spec: str, classes: Sequence[str] | None, labelled: bool = True) -> LabelledImages:
    fs, archives = _listing(spec, (".tar",))
    if not archives:
        raise SourceError(
            f"{spec} has no .tar file. Compressed archives are not supported for training: decompress them first."
        )
    members: list[tuple[str, str, int, int]] = []  # archive, name, offset, length
    found: list[str | int] = []
    for archive in archives:
        try:
            with fs.open(archive, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                infos = [info for info in tar if info.isfile()]
                stems: dict[str, dict[str, tarfile.TarInfo]] = defaultdict(dict)
                for (
                    info
                ) in infos:  # a WebDataset sample is all members of one name up to the first dot of its last part
                    folder, _, last = info.name.removeprefix("./").rpartition("/")
                    stem, _, suffix = last.partition(".")
                    stems[f"{folder}/{stem}"][f".{suffix.lower()}"] = info
                for stem, parts in stems.items():
                    image = next((parts[s] for s in parts if s.endswith(SUFFIXES)), None)
                    if image is not None:
                        members.append((archive, image.name, image.offset_data, image.size))
                        what = f"{archive}: {image.name}"
                        found.append(_member_class(tar, stem, parts, what) if labelled else "")
        except (tarfile.TarError, OSError) as error:
            raise SourceError(f"Cannot read {archive}: {reason(error)}") from error
    if not members:
        raise SourceError(f"No images in the archives {spec}.")
    names, labels = _indexed(found, classes, spec)
    files = _Files(spec, _is_local(fs))

    name, read = functools.partial(_member_name, members), functools.partial(_read_member, files, members)
    return LabelledImages(names, labels, name, read, (len(members),))


def _member_name(members: list[tuple[str, str, int, int]], i: int) -> str:
    return ":".join(members[i][:2])


def _read_member(files: _Files, members: list[tuple[str, str, int, int]], i: int) -> bytes:
    archive, _, start, length = members[i]
    return files.part(archive, start, length)


def _member_class(tar: tarfile.TarFile, stem: str, parts: dict[str, tarfile.TarInfo], what: str) -> str | int:
    def text(info: tarfile.TarInfo) -> str:
        file = tar.extractfile(info)
        return file.read().decode().strip() if file else ""

    if ".cls" in parts:
        value = text(parts[".cls"])
        return int(value) if value.isdigit() else value
    if ".json" in parts:
        record = json.loads(text(parts[".json"]))
        value = next((record[key] for key in LABEL_COLUMNS if key in record), None)
        if isinstance(value, str | int):
            return value
    folder = stem.strip("/").rpartition("/")[0].rpartition("/")[2]
    if not folder:
        raise SourceError(f"{what} has no class: it has no .cls or .json file, and is not in a class folder.")
    return folder


class _Table:
    """The image column of parquet files: held, or read a row group at a time."""

    def __init__(
        self, spec: str, paths: list[str], column: str, groups: list[tuple[int, int, int]], held: bool
    ) -> None:
        self.spec, self.paths, self.column, self.groups = spec, paths, column, groups
        self.first = np.cumsum([0, *(rows for _, _, rows in groups)])
        self.cells: dict[int, Any] = {}
        self.held = len(groups) if held else GROUPS_HELD

    def _group(self, number: int) -> Any:
        if number not in self.cells:
            import pyarrow.parquet as pq

            fs = _opened(self.spec)[0]
            path, group, _ = self.groups[number]
            with fs.open(self.paths[path], "rb") as file:
                cells = pq.ParquetFile(file).read_row_group(group, columns=[self.column]).column(0)
            while len(self.cells) >= self.held:
                self.cells.pop(next(iter(self.cells)))
            self.cells[number] = cells
        return self.cells[number]

    def name(self, i: int) -> str:
        number = int(np.searchsorted(self.first, i, "right")) - 1
        path, group, _ = self.groups[number]
        return f"{self.paths[path]}: row {i - int(self.first[number])} of row group {group}"

    def read(self, i: int) -> bytes:
        number = int(np.searchsorted(self.first, i, "right")) - 1
        value = self._group(number)[i - int(self.first[number])].as_py()
        if isinstance(value, dict):  # as Hugging Face's datasets have images
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            fs, path = _opened(value)
            return fs.cat_file(path)
        if value is None:
            raise OSError("the row has no image")
        return value


def _columns(path: str, names: Sequence[str], image: str | None, label: str | None) -> tuple[str, str]:
    """The columns of images and of classes."""
    image = image or next((c for c in IMAGE_COLUMNS if c in names), None)
    label = label or next((c for c in LABEL_COLUMNS if c in names), None)
    if image not in names or label not in names or image is None or label is None:
        raise SourceError(
            f"{path} needs a column of images ({', '.join(IMAGE_COLUMNS)}) and one of classes "
            f"({', '.join(LABEL_COLUMNS)}); it has {', '.join(names)}."
        )
    return image, label


def _parquet(
    spec: str, classes: Sequence[str] | None, image: str | None, label: str | None, labelled: bool = True
) -> LabelledImages:
    with needed("A table", "train"):
        import pyarrow.parquet as pq
    fs, paths = _listing(spec, (".parquet",))
    if not paths:
        raise SourceError(f"{spec} has no .parquet file.")
    found: list[Any] = []
    groups: list[tuple[int, int, int]] = []
    columns, size = ("", ""), 0
    for number, path in enumerate(paths):
        with fs.open(path, "rb") as file:
            table = pq.ParquetFile(file)
            columns = (image or "", "") if not labelled else _columns(path, table.schema_arrow.names, image, label)
            found += (
                table.read(columns=[columns[1]]).column(0).to_pylist() if labelled else [-1] * table.metadata.num_rows
            )
            for group in range(table.num_row_groups):
                about = table.metadata.row_group(group)
                groups.append((number, group, about.num_rows))
                size += about.total_byte_size
    if not labelled:
        known, labels = (), np.asarray(found, np.int64)
    elif found and isinstance(found[0], list):
        labels = _several(found)
        known = tuple(classes) if classes is not None else tuple(str(i) for i in range(int(labels.max()) + 1))
    else:
        known, labels = _indexed(found, classes, spec)
    cells = _Table(spec, paths, columns[0], groups, held=size <= HELD_IN_MEMORY)

    blocks = (len(labels),) if size <= HELD_IN_MEMORY else tuple(rows for _, _, rows in groups)
    return LabelledImages(known, labels, cells.name, cells.read, blocks)


def open_images(
    spec: str | Path, classes: Sequence[str] | None = None, *, image: str | None = None, label: str | None = None
) -> LabelledImages:
    """The labelled images of a folder of class folders, of parquet tables or of tar archives.

    Args:
        spec: a folder or pattern, local or of a store (s3://, gs://, ...).
        classes: names in the order of the logits; None: those found, sorted.
        image, label: a table's columns, where their names do not say it.

    Raises:
        SourceError: nothing there that can be used; an unknown class.
    """
    spec = str(spec)
    for suffix, layout in ((".parquet", functools.partial(_parquet, image=image, label=label)), (".tar", _tars)):
        if spec.lower().endswith(suffix):
            return layout(spec, classes)
        if "*" not in spec and _listing(f"{spec.rstrip('/')}/*{suffix}", (suffix,))[1]:
            return layout(f"{spec.rstrip('/')}/*{suffix}", classes)
    return _folder(spec, classes)


def relabelled(images: LabelledImages, table: str, classes: Sequence[str] | None = None) -> LabelledImages:
    """Images with the classes that a table gives them by their number; only those, and as often as the table has them.

    Args:
        images: what the table's numbers count: the collection that was classified or tagged (`unlabelled_images`).
        table: parquet with a column ``index`` and one of ``class`` (`selection`) or ``targets`` (lists; `hashtags`).
        classes: names in the order of the table's numbers; None: those of ``images``.

    Raises:
        SourceError: other columns, or numbers that the images or classes have not.
    """
    import pyarrow.parquet as pq

    fs, path = _opened(table)
    try:
        with fs.open(path, "rb") as file:
            found = pq.read_table(file)
    except OSError as error:
        raise SourceError(f"Cannot read {table}: {reason(error)}") from error
    column = next((c for c in ("class", "targets") if c in found.column_names), None)
    if column is None or "index" not in found.column_names or found["index"].null_count or not len(found):
        raise SourceError(
            f"{table} must have the column index and one of class and targets; it has {', '.join(found.column_names)}."
        )
    rows = found["index"].to_numpy()
    labels = _several(found[column].to_pylist()) if column == "targets" else found[column].to_numpy().astype(np.int64)
    count = int(labels.max()) + 1
    known = tuple(classes or images.classes or map(str, range(count)))
    if rows.min() < 0 or rows.max() >= len(images):
        raise SourceError(
            f"{table} has image {rows.max()}, but the data has {len(images)} images: was it made from other data?"
        )
    if count > len(known):
        raise SourceError(f"{table} has class {count - 1}, but only {len(known)} classes are known.")
    factors = found["repeat_factor"].to_numpy() if "repeat_factor" in found.column_names else None
    return replace(images.subset(rows, labels), classes=known, repeat_factors=factors)


def _several(lists: Sequence[Sequence[int]]) -> np.ndarray:
    """Lists of class indices as one array (N, K), -1 where there are fewer."""
    width = max(map(len, lists))
    return np.asarray([[*row, *[-1] * (width - len(row))] for row in lists], np.int64)


def unlabelled_images(spec: str) -> LabelledImages:
    """The images of a collection that ``resnext-hub classify`` takes, in its order; none has a class.

    Raises:
        SourceError: nothing there that can be used; a pattern that names tables or archives and images.
    """
    found = list(shards([spec], 2**30))
    if all(isinstance(shard, PathShard) for shard in found):
        items = [item for shard in found for item in shard.items()]
        none = np.full(len(items), -1, np.int64)
        return LabelledImages(
            (), none, functools.partial(_item_name, items), functools.partial(_item, items), (len(items),)
        )
    if (tables := [shard for shard in found if isinstance(shard, TableShard)]) and len(tables) == len(found):
        return _parquet(spec, None, tables[0].column, None, labelled=False)
    if all(isinstance(shard, TarShard) for shard in found):
        return _tars(spec, None, labelled=False)
    raise SourceError(f"{spec} mixes images, tables and archives: pass only one kind.")


def split(images: LabelledImages, share: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """(most, the rest): ``share`` of each class, at least one image of a class of two or more, drawn by ``seed``."""
    rng = np.random.default_rng(seed)
    taken = np.zeros(len(images), bool)
    for c in range(len(images.classes)):
        rows = rng.permutation(np.flatnonzero(images.labels == c))
        if len(rows) > 1:
            taken[rows[: max(1, round(share * len(rows)))]] = True
    return images.subset(np.flatnonzero(~taken)), images.subset(np.flatnonzero(taken))


def train_and_val(
    data: str,
    val: str | None = None,
    *,
    labels: str | None = None,
    classes: str | None = None,
    seed: int = 0,
    share: float = 0.1,
) -> tuple[LabelledImages, LabelledImages, tuple[Label, ...]]:
    """(training images, validation images, labels) of a data set.

    Args:
        data: a folder with parts train and val (folders, ``train*.parquet`` or ``train*.tar``), or without such parts.
        val: the validation images; None: the part val of ``data``, or ``share`` of each class of it, held out.
        labels: a table of classes for the images of ``data`` by number (`relabelled`); takes ``val``.
        classes: a file of (index, class, name) as a trained folder's labels.tsv, for order and names. Without it
            ``data``'s ``classes.tsv`` has them (class, name); else they are sorted, and synsets of ImageNet are named.

    Raises:
        SourceError: what `open_images` and `relabelled` raise; no validation images.
    """
    fs, root = _opened(data)
    names: dict[str, str] = {}
    if classes is not None:
        lines = Path(classes).read_text(encoding="utf-8").splitlines()
        names = {name: text for _, name, text in (line.split("\t") for line in lines)}
    elif fs.isfile(f"{root}/classes.tsv"):
        lines = fs.cat_file(f"{root}/classes.tsv").decode().splitlines()
        names = dict(line.split("\t", 1) for line in lines if "\t" in line and not line.startswith("wnid\t"))
    parts = {part: _part(fs, root, data, part) for part in ("train", "val")}
    if labels is not None:
        train = relabelled(unlabelled_images(data), labels, tuple(names) or None)
    else:
        train = open_images(parts["train"] or data, tuple(names) or None)
    found = val or parts["val"]
    if found is not None:
        held = open_images(found, train.classes)
    elif labels is not None or train.labels.ndim > 1:
        raise SourceError(f"{data} has no validation images with known classes: pass val=DIR.")
    else:
        train, held = split(train, share, seed)
    synsets = {label.synset: label.name for name in default_manifest().label_sets for label in read_labels(name)}
    return train, held, tuple(Label(i, c, names.get(c) or synsets.get(c, c)) for i, c in enumerate(train.classes))


def _part(fs: Any, root: str, data: str, part: str) -> str | None:
    base = data.rstrip("/")
    if fs.isdir(f"{root}/{part}"):
        return f"{base}/{part}"
    for suffix in ("parquet", "tar"):
        if fs.glob(f"{root}/{part}*.{suffix}"):
            return f"{base}/{part}*.{suffix}"
    return None
