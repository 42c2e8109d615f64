"""Hashtags as labels: which classes an image's hashtags stand for, and how often it is shown.

Mahajan et al. 2018, "Exploring the limits of weakly supervised pretraining" (arXiv 1805.00932):

- Hashtags that name one WordNet synset are one label: #brownbear and #ursusarctos are the same class.
- An image with k labels has the target 1/k for each of them, under softmax cross-entropy (`batches.targets`, and
  ``torch.nn.functional.cross_entropy``, which takes probabilities).
- Hashtags are distributed as words are (Zipf), so images of rare ones are shown more often, by the square root of
  how rare they are. A hashtag that a fraction f of the images has gets r = max(1, sqrt(t / f)); an image gets the
  largest r of its hashtags. (The formula as Gupta et al. 2019, "LVIS", arXiv 1908.03195, write it, who took the idea
  from there.)

Three steps, each a table that the next one reads (``python -m resnext_hub.curation.hashtags STEP --help``):

1. ``mapping``: a label set's names -> which hashtag names which synset. A text file, to be read and corrected.
2. ``count``: images -> how many have each hashtag, and what the mapping makes of it: what to add to the mapping.
3. ``targets``: images -> their classes and repeat factors. What training reads; images without a class are left out.

Images are a Parquet table with the columns ``image`` (path, URI or name) and ``hashtags`` (a list of text).
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..cli.console import counted, status_of
from ..data.outputs import explained
from ..data.source import table_files
from ..data.stores import reason
from ..errors import OutputError, SourceError
from ..processing_utils.labels import Label, read_labels
from .tables import (
    BATCH,
    Limits,
    add_limits,
    check_columns,
    earlier_report,
    fingerprint,
    limits_from,
    open_table,
    workspace,
    write_table,
)

__all__ = [
    "Counted",
    "Targets",
    "canonical",
    "count_hashtags",
    "make_mapping",
    "make_targets",
    "read_mapping",
    "repeat_counts",
    "repeat_factors",
    "resampled_indices",
    "write_mapping",
]

Ambiguous = Literal["drop", "first", "all"]

#: What `count_hashtags` makes, most frequent first.
VOCABULARY = pa.schema(
    [
        pa.field("hashtag", pa.string(), nullable=False),
        pa.field("images", pa.int64(), nullable=False),
        pa.field("canonical", pa.string(), nullable=False),
        pa.field("classes", pa.list_(pa.int32())),  # null: the mapping does not know it
    ]
)

#: What `make_targets` makes, in the order of the images.
TARGETS = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),
        pa.field("index", pa.int64()),  # where the images' table has it
        pa.field("targets", pa.list_(pa.int32()), nullable=False),  # each class once, ascending
        pa.field("repeat_factor", pa.float32(), nullable=False),
    ]
)

STAGED = ["image", "index", "targets"]


# Hashtag -> classes.


@functools.lru_cache(maxsize=2**20)
def canonical(hashtag: str) -> str:
    """A hashtag, or a name, without what spelling leaves free: "#Golden_Retriever" and "golden retriever" are the same.

    Compatibility forms are resolved, case is folded, everything but letters, marks and digits goes.
    """
    if hashtag.isascii():  # most are, and this way is quicker
        return "".join(filter(str.isalnum, hashtag.lower()))
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", hashtag).casefold())
    kept = "".join(c for c in folded if unicodedata.category(c)[0] in "LMN")
    return unicodedata.normalize("NFKC", kept)  # what has come together may be one character


def make_mapping(
    labels: Iterable[Label], ambiguous: Ambiguous = "drop"
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Which classes a hashtag stands for, by the names of a label set: every one of a synset's names is a hashtag.

    Args:
        labels: their ``name`` is a list of names, as "tench, Tinca tinca".
        ambiguous: a name of several synsets ("crane": a bird, a machine) stands for none ("drop"), for the
            first of them ("first"), or for all ("all").

    Returns:
        Canonical hashtag -> classes; and of the names that are ambiguous -> all classes that they name.
    """
    if ambiguous not in ("drop", "first", "all"):
        raise ValueError(f"ambiguous must be 'drop', 'first' or 'all', not {ambiguous!r}.")
    named: dict[str, set[int]] = {}
    for label in labels:
        for name in label.name.split(","):
            if hashtag := canonical(name):
                named.setdefault(hashtag, set()).add(label.index)
    every = {hashtag: tuple(sorted(classes)) for hashtag, classes in sorted(named.items())}
    several = {hashtag: classes for hashtag, classes in every.items() if len(classes) > 1}
    taken = {"drop": 0, "first": 1, "all": None}[ambiguous]
    mapping = every | {hashtag: classes[:taken] for hashtag, classes in several.items()}
    return {hashtag: classes for hashtag, classes in mapping.items() if classes}, several


def write_mapping(
    path: str | Path,
    mapping: Mapping[str, Sequence[int]],
    labels: Sequence[Label],
    left_out: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Write a mapping as a text file: ``hashtag TAB synset``, a line for each pair; ``#`` begins a comment.

    Names that were left out stand in it as comments, so that one can be chosen by removing two characters.
    """
    synsets = {label.index: label for label in labels}
    lines = ["# hashtag\tsynset (a hashtag with several lines stands for all of their synsets)"]
    lines += [f"{tag}\t{synsets[number].synset}" for tag, classes in sorted(mapping.items()) for number in classes]
    for hashtag, classes in sorted((left_out or {}).items()):
        if hashtag not in mapping:
            lines.append(f"# {hashtag} is ambiguous:")
            lines += [f"# {hashtag}\t{synsets[number].synset}\t{synsets[number].name}" for number in classes]
    path = Path(path)
    with explained():
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(path)


def read_mapping(path: str | Path, labels: Iterable[Label]) -> dict[str, tuple[int, ...]]:
    """Read what `write_mapping` writes, or a person. Hashtags may be spelled in any way (`canonical`).

    Raises:
        SourceError: the file cannot be read, a line has no two columns, or a synset is not in the label set.
    """
    numbers: dict[str, list[int]] = {}
    for label in labels:
        numbers.setdefault(label.synset, []).append(label.index)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"Cannot read the mapping {path}: {reason(error)}.") from error
    found: dict[str, set[int]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or re.match(r"#\s", line):  # "#tench<TAB>n01440764" is a hashtag
            continue
        columns = line.split("\t")
        if len(columns) < 2 or not (hashtag := canonical(columns[0])):
            raise SourceError(f"{path}, line {number}: expected a hashtag, a tab and a synset, got {line[:80]!r}.")
        if (synset := columns[1].strip()) not in numbers:
            raise SourceError(f"{path}, line {number}: the synset {synset!r} is not in the label set.")
        found.setdefault(hashtag, set()).update(numbers[synset])
    if not found:
        raise SourceError(f"The mapping {path} is empty.")
    return {hashtag: tuple(sorted(classes)) for hashtag, classes in found.items()}


# Many images' hashtags.


@dataclass(frozen=True)
class Counted:
    """``images``: rows; ``hashtags``: different ones; ``known``: of these, in the mapping."""

    images: int
    hashtags: int
    known: int


@dataclass(frozen=True)
class Targets:
    """What became of the images.

    ``images``: rows; ``rows``: those with a class. ``threshold``: t, a fraction of ``rows``. ``epoch``: the sum of the
    repeat factors, so an epoch's length. ``frequencies``: class -> rows that have it.
    """

    images: int
    rows: int
    threshold: float
    epoch: float
    frequencies: dict[int, int] = field(default_factory=dict)


def count_hashtags(
    images: str | Sequence[str],
    out: str | Path,
    mapping: Mapping[str, Sequence[int]] | None = None,
    *,
    least: int = 1,
    limits: Limits | None = None,
    overwrite: bool = False,
) -> Counted:
    """Count the images of every hashtag, as it is spelled; write them to a Parquet table (`VOCABULARY`).

    The counting is out of core: a long tail of hashtags that occur once is what there is most of.

    Args:
        images: Parquet files, patterns or folders of them, local or in an object store.
        mapping: canonical hashtag -> classes.
        least: leave out hashtags that fewer images have.

    Raises:
        SourceError, OutputError: as `resnext_hub.curation.selection.select`.
    """
    out, limits, mapping = Path(out), limits or Limits(), dict(mapping or {})
    files = table_files([images] if isinstance(images, str) else images)
    job = {"step": "hashtags", "images": fingerprint(files), "mapping": _digest(mapping), "least": least}
    if (report := earlier_report(out, job, overwrite=overwrite)) is not None:
        return Counted(**report)
    with workspace(out, limits) as (connection, folder):
        check_columns(files[0].uri, open_table(connection, "images", files), {"hashtags": "VARCHAR[]"})
        connection.execute(
            """CREATE TEMP TABLE counted AS SELECT hashtag, count(*) AS images
            FROM (SELECT unnest(list_distinct(hashtags)) AS hashtag FROM images)
            WHERE hashtag IS NOT NULL GROUP BY hashtag HAVING count(*) >= $least""",
            {"least": least},
        )
        ((total,),) = connection.execute("SELECT count(*) FROM images").fetchall()
        known = hashtags = 0

        def batches() -> Iterator[pa.RecordBatch]:
            nonlocal known, hashtags
            rows = connection.sql("SELECT hashtag, images FROM counted ORDER BY images DESC, hashtag")
            for batch in rows.to_arrow_reader(BATCH):
                forms = [canonical(hashtag) for hashtag in batch.column(0).to_pylist()]
                classes = [mapping.get(form) for form in forms]
                known += sum(found is not None for found in classes)
                hashtags += len(forms)
                columns = [*batch.columns, pa.array(forms, pa.string()), pa.array(classes, pa.list_(pa.int32()))]
                yield pa.RecordBatch.from_arrays(columns, schema=VOCABULARY)

        write_table(out, folder, batches(), VOCABULARY, job, lambda: asdict(Counted(total, hashtags, known)))
    return Counted(total, hashtags, known)


def make_targets(
    images: str | Sequence[str],
    out: str | Path,
    mapping: Mapping[str, Sequence[int]],
    *,
    threshold: float | None = None,
    limits: Limits | None = None,
    overwrite: bool = False,
) -> Targets:
    """Write the classes and the repeat factor of every image that has a class to a Parquet table (`TARGETS`).

    Args:
        images: as `count_hashtags` takes them.
        mapping: canonical hashtag -> classes, as `read_mapping` gives it.
        threshold: t, the fraction of images from which on a class is not repeated; default the classes' median, so that
            half of them are.

    Raises:
        SourceError, OutputError: as `resnext_hub.curation.selection.select`.
        ValueError: the threshold is not in (0, 1].
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}.")
    out, limits = Path(out), limits or Limits()
    files = table_files([images] if isinstance(images, str) else images)
    job = {"step": "targets", "images": fingerprint(files), "mapping": _digest(mapping), "threshold": threshold}
    if (report := earlier_report(out, job, overwrite=overwrite)) is not None:
        frequencies = {int(number): count for number, count in report["frequencies"].items()}
        return Targets(**{**report, "frequencies": frequencies})
    with workspace(out, limits) as (connection, folder):
        columns = open_table(connection, "images", files)
        check_columns(files[0].uri, columns, {"image": "VARCHAR", "hashtags": "VARCHAR[]"})
        index = '"index"::BIGINT' if "index" in columns else "NULL::BIGINT"
        rows = connection.sql(f'SELECT image, {index} AS "index", hashtags FROM images')
        known = _Known(mapping)
        total, counts = 0, np.zeros(known.num_classes, np.int64)
        # Frequencies are known at the end only, so the rows wait on the disk.
        staged = folder / "staged.parquet"
        with explained(), pq.ParquetWriter(staged, pa.schema([TARGETS.field(name) for name in STAGED])) as writer:
            for batch in rows.to_arrow_reader(BATCH):
                total += len(batch)
                lists = known.classes_of(batch.column("hashtags"))
                counts += np.bincount(lists.values.to_numpy(), minlength=len(counts))
                kept = pa.RecordBatch.from_arrays([batch.column("image"), batch.column("index"), lists], STAGED)
                kept = kept.filter(pa.array(lists.value_lengths().to_numpy() > 0))
                if missing := kept.column("image").null_count:
                    raise SourceError(f"{files[0].uri} …: rows with hashtags but without an image: {missing:,}.")
                writer.write_batch(kept.cast(writer.schema), BATCH)
        with pq.ParquetFile(staged) as file:
            length = file.metadata.num_rows
            frequencies = counts / max(length, 1)
            if threshold is None:
                threshold = float(np.median(frequencies[counts > 0])) if length else 1.0
            epoch = 0.0

            def batches() -> Iterator[pa.RecordBatch]:
                nonlocal epoch
                for batch in file.iter_batches(BATCH):
                    factors = repeat_factors(batch.column("targets"), frequencies, threshold).astype(np.float32)
                    epoch += float(factors.sum(dtype=np.float64))
                    yield pa.RecordBatch.from_arrays([*batch.columns, pa.array(factors)], TARGETS.names)

            def found() -> Targets:
                have = {number: int(count) for number, count in enumerate(counts) if count}
                return Targets(total, length, threshold, epoch, have)

            write_table(out, folder, batches(), TARGETS, job, lambda: asdict(found()))
    return found()


def _digest(mapping: Mapping[str, Sequence[int]]) -> str:
    text = json.dumps({hashtag: list(mapping[hashtag]) for hashtag in sorted(mapping)})
    return f"{len(mapping)} hashtags, sha256 {hashlib.sha256(text.encode()).hexdigest()}"


class _Known:
    """A mapping as arrays, so that a batch of lists of hashtags becomes one of lists of classes at once."""

    def __init__(self, mapping: Mapping[str, Sequence[int]]) -> None:
        self._rows = {hashtag: row for row, hashtag in enumerate(mapping, 1)}  # 0: one that is not known
        lengths = np.array([0, *(len(classes) for classes in mapping.values())])
        self._ends = np.cumsum(lengths)
        self._lengths = lengths
        self._classes = np.array([number for classes in mapping.values() for number in classes], np.int64)
        self.num_classes = int(self._classes.max(initial=-1)) + 1

    def classes_of(self, hashtags: pa.ListArray) -> pa.ListArray:
        """The classes of every list, each once, ascending; an empty list where there is none."""
        of_row = hashtags.value_parent_indices().to_numpy()
        spelled = hashtags.flatten().dictionary_encode("encode")
        row_of = np.array([self._rows.get(canonical(tag or ""), 0) for tag in spelled.dictionary.to_pylist()], np.int64)
        rows = row_of[spelled.indices.to_numpy()]
        lengths = self._lengths[rows]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        classes = self._classes[np.repeat(self._ends[rows] - lengths, lengths) + within]
        pairs = np.sort(np.repeat(of_row, lengths) * (self.num_classes or 1) + classes)
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        of_row, classes = np.divmod(pairs, self.num_classes or 1)
        offsets = np.searchsorted(of_row, np.arange(len(hashtags) + 1))
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(classes, pa.int32()))


# Showing them.


def repeat_factors(targets: pa.ListArray, frequencies: np.ndarray, threshold: float) -> np.ndarray:
    """How often an image is shown in an epoch, on average: the largest max(1, sqrt(t / f)) of its classes.

    Args:
        targets: N lists of classes, none of them empty.
        frequencies: for each class the fraction f of the images that have it.
        threshold: t.

    Returns:
        (N,) float64, at least 1.
    """
    lengths = targets.value_lengths().to_numpy()
    if not len(lengths):
        return np.ones(0)
    if not lengths.min():
        raise ValueError("Expected at least one class per image.")
    of_class = np.sqrt(threshold / np.maximum(frequencies, np.finfo(float).tiny)).clip(min=1.0)
    of_target = of_class[targets.flatten().to_numpy()]
    return np.maximum.reduceat(of_target, np.cumsum(lengths) - lengths)


def repeat_counts(factors: np.ndarray, seed: int, epoch: int, start: int = 0) -> np.ndarray:
    """How often each image is shown in this epoch: its factor, rounded up as often as the fraction says.

    The count of an image depends on (seed, epoch) and its number alone, so a table can be gone through in pieces.

    Args:
        factors: (N,) repeat factors, of the images from number ``start`` on.

    Returns:
        (N,) int64, whose mean over epochs is ``factors``.
    """
    bits = np.random.Philox(key=[seed, epoch])
    bits.advance(start // 4)  # a step of this counter gives four numbers
    chance = np.random.Generator(bits).random(start % 4 + len(factors))[start % 4 :]
    whole = np.floor(factors)
    return (whole + (chance < factors - whole)).astype(np.int64)


def resampled_indices(factors: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """An epoch: the numbers of its images, each as often as `repeat_counts` says, shuffled. (M,) int64."""
    indices = np.repeat(np.arange(len(factors)), repeat_counts(factors, seed, epoch))
    np.random.Generator(np.random.Philox(key=[seed, epoch + 2**63])).shuffle(indices)
    return indices


def read_label_file(name: str) -> tuple[Label, ...]:
    """A label set by its name, or from a file of lines ``index TAB synset TAB names``.

    Raises:
        SourceError: there is neither, or the file is no label file.
    """
    if not Path(name).is_file():
        try:
            return read_labels(name)
        except ValueError as error:
            raise SourceError(f"No such file or label set: {name}. {error}") from error
    try:
        lines = [line.split("\t") for line in Path(name).read_text(encoding="utf-8").splitlines()]
        return tuple(Label(int(index), synset, names) for index, synset, names in lines)
    except (OSError, ValueError) as error:
        raise SourceError(f"{name}: expected lines of index, synset and names, separated by tabs: {error}.") from error


def _mapping(arguments: argparse.Namespace) -> Iterator[str]:
    labels = read_label_file(arguments.labels)
    mapping, several = make_mapping(labels, arguments.ambiguous)
    if arguments.out.exists() and not arguments.overwrite:  # somebody may have corrected it
        raise OutputError(f"{arguments.out} exists. Choose another name, delete the file, or pass --overwrite.")
    write_mapping(arguments.out, mapping, labels, several)
    yield f"Saved {arguments.out}: {counted(len(mapping), 'hashtag')} of {counted(len(labels), 'class')}"
    yield f"{counted(len(several), 'ambiguous name')} ({arguments.ambiguous}), also listed there"
    named = {number for classes in mapping.values() for number in classes}
    if unnamed := [label.synset for label in labels if label.index not in named]:
        yield f"Without any hashtag: {counted(len(unnamed), 'class')}: {', '.join(unnamed)}"


def _given_mapping(arguments: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    labels = read_label_file(arguments.labels)
    return read_mapping(arguments.mapping, labels) if arguments.mapping else make_mapping(labels)[0]


def _count(arguments: argparse.Namespace) -> Iterator[str]:
    options = {"least": arguments.least, "limits": limits_from(arguments), "overwrite": arguments.overwrite}
    found = count_hashtags(arguments.images, arguments.out, _given_mapping(arguments), **options)
    many = f"{counted(found.hashtags, 'hashtag')} of {counted(found.images, 'image')}, {found.known:,} of them known"
    yield f"Saved {arguments.out}: {many}"


def _targets(arguments: argparse.Namespace) -> Iterator[str]:
    options = {
        "threshold": arguments.threshold,
        "limits": limits_from(arguments),
        "overwrite": arguments.overwrite,
    }
    found = make_targets(arguments.images, arguments.out, _given_mapping(arguments), **options)
    yield f"Saved {arguments.out}: {found.rows:,} of {counted(found.images, 'image')} with a class"
    epoch = f"{found.epoch:,.0f} images per epoch"
    yield f"{counted(len(found.frequencies), 'class')}, threshold {found.threshold:.3g}, {epoch}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m resnext_hub.curation.hashtags``; return 0, or 2 and a line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m resnext_hub.curation.hashtags",
        description="Turn hashtags into labels for training (arXiv 1805.00932).",
    )
    steps = parser.add_subparsers(required=True, title="steps", metavar="STEP")
    for name, run, text in (
        ("mapping", _mapping, "write a table of hashtags and the synsets they stand for (.tsv)"),
        ("count", _count, "count the images of each hashtag (.parquet)"),
        ("targets", _targets, "write the classes and repeat factors of images for training (.parquet)"),
    ):
        step = steps.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        step.add_argument(
            "--labels",
            default="imagenet-1k",
            metavar="SET",
            help="name of a label set, or its file (default: %(default)s)",
        )
        step.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
        step.set_defaults(run=run)
        if name == "mapping":
            ambiguous = "classes of a name that several synsets have: none, the first, or all (default: %(default)s)"
            step.add_argument("--ambiguous", choices=("drop", "first", "all"), default="drop", help=ambiguous)
            step.add_argument("--overwrite", action="store_true", help="replace FILE")
            continue
        step.add_argument(
            "images",
            nargs="+",
            metavar="IMAGES",
            help="Parquet files with the columns image and hashtags; also folders, patterns",
        )
        step.add_argument(
            "--mapping", metavar="FILE", help="mapping to use (default: from the labels, without ambiguous names)"
        )
        add_limits(step)
        if name == "count":
            least = "leave out hashtags of fewer images (default: %(default)s)"
            step.add_argument("--least", type=int, default=1, metavar="N", help=least)
        else:
            threshold = "repeat images of classes with less than this fraction of the images (default: the median)"
            step.add_argument("--threshold", type=float, metavar="T", help=threshold)
    arguments = parser.parse_args(argv)
    return status_of(lambda: print(*arguments.run(arguments), sep="\n"))  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
