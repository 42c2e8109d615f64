"""Hashtags as labels: the classes of an image's hashtags, and how often training shows the image.

Mahajan et al. 2018, "Exploring the limits of weakly supervised pretraining" (arXiv 1805.00932):

- Hashtags that name the same WordNet synset are one label: #brownbear and #ursusarctos are the same class.
- An image with k labels has the target 1/k for each of them, under softmax cross-entropy (`batches.targets`, and
  ``torch.nn.functional.cross_entropy``, which takes probabilities).
- Hashtags are distributed like words (Zipf), so images of rare ones are shown more often. A hashtag of a fraction f of
  the images has the repeat factor r = max(1, sqrt(t / f)); an image has the largest r of its hashtags. (This is how
  Gupta et al. 2019, "LVIS", arXiv 1908.03195, write the formula.)

Three steps, each a command (``resnext-hub hashtags STEP``):

1. ``mapping``: the names of a label set -> the synset of each hashtag. A text file, to be read and corrected.
2. ``count``: images -> the number of images of each hashtag, and its classes: shows what the mapping lacks.
3. ``targets``: images -> their classes and repeat factors, for training. Images without a class are left out.

Images are a Parquet table with the columns ``image`` (path, URI or name) and ``hashtags`` (a list of strings).
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.outputs import explained
from ..data.stores import reason
from ..errors import SourceError
from ..files import write_atomically
from ..processing_utils.labels import Label, read_labels
from . import duckdb_tables as tables
from .duckdb_tables import BATCH, Limits, Reading

Ambiguous = Literal["drop", "first", "all"]

#: The table of `count_hashtags`, most frequent first.
VOCABULARY = pa.schema(
    [
        pa.field("hashtag", pa.string(), nullable=False),
        pa.field("images", pa.int64(), nullable=False),
        pa.field("canonical", pa.string(), nullable=False),
        pa.field("classes", pa.list_(pa.int32())),  # null: not in the mapping
    ]
)

#: The table of `make_targets`, in the order of the images.
TARGETS = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),
        pa.field("index", pa.int64()),  # null if the images' table has no such column
        pa.field("targets", pa.list_(pa.int32()), nullable=False),  # each class once, ascending
        pa.field("repeat_factor", pa.float32(), nullable=False),
    ]
)


@functools.lru_cache(maxsize=2**20)
def canonical(hashtag: str) -> str:
    """The canonical form of a hashtag or name: the same for "#Golden_Retriever" and "golden retriever".

    Compatibility forms are resolved, case is folded, and only letters, marks and digits are kept.
    """
    if hashtag.isascii():  # the common case, and faster
        return "".join(filter(str.isalnum, hashtag.lower()))
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", hashtag).casefold())
    kept = "".join(c for c in folded if unicodedata.category(c)[0] in "LMN")
    return unicodedata.normalize("NFKC", kept)  # neighbours may now combine


def make_mapping(
    labels: Iterable[Label], ambiguous: Ambiguous = "drop"
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """(canonical hashtag -> classes, ambiguous name -> all its classes): every name of a synset is a hashtag.

    Args:
        labels: their ``name`` is a list of names, such as "tench, Tinca tinca".
        ambiguous: a name of several synsets ("crane": a bird, a machine) belongs to none ("drop"), the first
            ("first"), or all of them ("all").
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
    """Write a mapping as a text file with a line ``hashtag TAB synset`` for each pair; ``#`` begins a comment.

    Names that were left out are comments: remove two characters to choose one.
    """
    synsets = {label.index: label for label in labels}
    lines = ["# hashtag\tsynset (a hashtag on several lines has all of their synsets)"]
    lines += [f"{tag}\t{synsets[number].synset}" for tag, classes in sorted(mapping.items()) for number in classes]
    for hashtag, classes in sorted((left_out or {}).items()):
        if hashtag not in mapping:
            lines.append(f"# {hashtag} is ambiguous:")
            lines += [f"# {hashtag}\t{synsets[number].synset}\t{synsets[number].name}" for number in classes]
    with explained():
        write_atomically(Path(path), "\n".join(lines) + "\n")


def read_mapping(path: str | Path, labels: Iterable[Label]) -> dict[str, tuple[int, ...]]:
    """Read a mapping in the format of `write_mapping`. Hashtags may be spelled in any way (`canonical`)."""
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


@dataclass(frozen=True)
class Counted:
    """The numbers of images (rows), of different hashtags, and of hashtags that are in the mapping."""

    images: int
    hashtags: int
    known: int


@dataclass(frozen=True)
class Targets:
    """The numbers of a table of targets."""

    images: int  #: rows of the input
    rows: int  #: of them, those with a class
    threshold: float  #: t, a fraction of ``rows``
    epoch: float  #: the sum of the repeat factors, the length of an epoch
    frequencies: dict[int, int] = field(default_factory=dict)  #: class -> its rows


def count_hashtags(
    images: str | Sequence[str],
    out: str | Path,
    mapping: Mapping[str, Sequence[int]] | None = None,
    *,
    least: int = 1,
    reading: Reading | None = None,
    limits: Limits | None = None,
    overwrite: bool = False,
) -> Counted:
    """Count the images of every hashtag, as it is spelled; write the counts to a Parquet table (`VOCABULARY`).

    The counting spills to disk: most hashtags occur only once.

    Args:
        images: Parquet files, patterns or folders of them, local or in an object store.
        mapping: canonical hashtag -> classes.
        least: leave out hashtags of fewer images.

    Raises:
        SourceError, OutputError: as `resnext_hub.curation.selection.select`.
    """
    reading, out, mapping = reading or Reading(), Path(out), dict(mapping or {})
    files = reading.files(images)
    job = {"step": "hashtags", "images": tables.fingerprint(files), "mapping": _digest(mapping), "least": least}
    job["columns"] = reading.columns
    if (report := tables.earlier_report(out, job, overwrite=overwrite)) is not None:
        return Counted(**report)
    with tables.workspace(out, limits or Limits()) as (connection, folder):
        columns = tables.open_table(connection, "images", files, hashtags=reading.label_column)
        tables.check_columns(files[0].uri, columns, {"hashtags": "VARCHAR[]"})
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

        tables.write_table(out, folder, batches(), VOCABULARY, job, lambda: asdict(Counted(total, hashtags, known)))
    return Counted(total, hashtags, known)


def make_targets(
    images: str | Sequence[str],
    out: str | Path,
    mapping: Mapping[str, Sequence[int]],
    *,
    threshold: float | None = None,
    reading: Reading | None = None,
    limits: Limits | None = None,
    overwrite: bool = False,
) -> Targets:
    """Write the classes and the repeat factor of every image that has a class to a Parquet table (`TARGETS`).

    Args:
        images: as `count_hashtags` takes them.
        mapping: canonical hashtag -> classes, from `read_mapping`.
        threshold: t; images of classes with less than this fraction of the images are repeated. Default: the median of
            the classes' fractions.

    Raises:
        SourceError, OutputError: as `resnext_hub.curation.selection.select`.
        ValueError: the threshold is not in (0, 1].
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}.")
    reading, out = reading or Reading(), Path(out)
    files = reading.files(images)
    job = {"step": "targets", "images": tables.fingerprint(files), "mapping": _digest(mapping), "threshold": threshold}
    job["columns"] = reading.columns
    if (report := tables.earlier_report(out, job, overwrite=overwrite)) is not None:
        return Targets(**report)
    with tables.workspace(out, limits or Limits()) as (connection, folder):
        columns = tables.open_table(connection, "images", files, image=reading.column, hashtags=reading.label_column)
        tables.check_columns(files[0].uri, columns, {"image": "VARCHAR", "hashtags": "VARCHAR[]"})
        index = '"index"::BIGINT' if "index" in columns else "NULL::BIGINT"
        rows = connection.sql(f'SELECT image, {index} AS "index", hashtags FROM images')
        known = _Known(mapping)
        total, counts = 0, np.zeros(known.num_classes, np.int64)
        # The frequencies are known only at the end, so the rows are kept on disk.
        staged = folder / "staged.parquet"
        with explained(), pq.ParquetWriter(staged, TARGETS.remove(TARGETS.get_field_index("repeat_factor"))) as writer:
            for batch in rows.to_arrow_reader(BATCH):
                total += len(batch)
                lists = known.classes_of(batch.column("hashtags"))
                counts += np.bincount(lists.values.to_numpy(), minlength=len(counts))
                kept = batch.set_column(batch.schema.get_field_index("hashtags"), "targets", lists)
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

            tables.write_table(out, folder, batches(), TARGETS, job, lambda: asdict(found()))
    return found()


def _digest(mapping: Mapping[str, Sequence[int]]) -> str:
    text = json.dumps({hashtag: list(mapping[hashtag]) for hashtag in sorted(mapping)})
    return f"{len(mapping)} hashtags, sha256 {hashlib.sha256(text.encode()).hexdigest()}"


class _Known:
    """A mapping as arrays, which turns a batch of lists of hashtags into lists of classes."""

    def __init__(self, mapping: Mapping[str, Sequence[int]]) -> None:
        self._rows = {hashtag: row for row, hashtag in enumerate(mapping, 1)}  # 0: unknown
        lengths = np.array([0, *(len(classes) for classes in mapping.values())])
        self._ends = np.cumsum(lengths)
        self._lengths = lengths
        self._classes = np.array([number for classes in mapping.values() for number in classes], np.int64)
        self.num_classes = int(self._classes.max(initial=-1)) + 1

    def classes_of(self, hashtags: pa.ListArray) -> pa.ListArray:
        """The classes of each list, each once, ascending; an empty list if there are none."""
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


def repeat_factors(targets: pa.ListArray, frequencies: np.ndarray, threshold: float) -> np.ndarray:
    """The mean number of times that an epoch shows each image, (N,): the largest max(1, sqrt(t / f)) of its classes.

    Args:
        targets: N lists of classes, none of them empty.
        frequencies: the fraction f of images of each class.
        threshold: t.
    """
    lengths = targets.value_lengths().to_numpy()
    if not len(lengths):
        return np.ones(0)
    if not lengths.min():
        raise ValueError("Expected at least one class per image.")
    of_class = np.sqrt(threshold / np.maximum(frequencies, np.finfo(float).tiny)).clip(min=1.0)
    return np.maximum.reduceat(of_class[targets.flatten().to_numpy()], np.cumsum(lengths) - lengths)


def repeat_counts(factors: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The number of times that this epoch shows each image: its factor (N,), rounded up or down at random.

    Depends on (seed, epoch) alone. The mean over epochs is ``factors``.
    """
    chance = np.random.Generator(np.random.Philox(key=[seed, epoch])).random(len(factors))
    whole = np.floor(factors)
    return (whole + (chance < factors - whole)).astype(np.int64)


def resampled_indices(factors: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The image numbers of an epoch, shuffled, each repeated by its `repeat_counts`: (M,) int64."""
    indices = np.repeat(np.arange(len(factors)), repeat_counts(factors, seed, epoch))
    np.random.Generator(np.random.Philox(key=[seed, epoch + 2**63])).shuffle(indices)
    return indices


def read_label_file(name: str) -> tuple[Label, ...]:
    """A label set by its name, or from a file with lines ``index TAB synset TAB names``."""
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
