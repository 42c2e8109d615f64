"""Select the images to train a student on: for each class the K images with the teacher's highest scores.

Yalniz et al. 2019, "Billion-scale semi-supervised learning for image classification" (arXiv 1905.00546), section 3: an
unlabelled image takes part in the rankings of its P highest-scored classes, and the first K images of each ranking are
labelled with its class. So an image can have up to P classes, and all classes have the same number of images.

The command is ``resnext-hub select SCORES --per-class K --out FILE.parquet``; ``resnext-hub classify SOURCE --out
SCORES --top P`` writes SCORES.

Memory does not grow with the number of images. A window over all (image, class) pairs would sort billions of them, and
an aggregate that keeps the K best of each class (``max_by(.., K)``) cannot spill. So there are two passes. The first
counts each class's scores in narrow buckets and notes the lowest score of each bucket. Counted from the top, the bucket
in which a class reaches K pairs gives a threshold that at least K pairs reach. The second pass keeps only the pairs
that reach the threshold of their class, a few more than K per class, and sorts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..data.source import TableFile
from ..errors import SourceError
from . import duckdb_tables as tables
from .duckdb_tables import BATCH, Limits, Reading

if TYPE_CHECKING:
    import duckdb

#: The columns of the selection; rows are sorted by ``class`` and ``rank`` (1: the highest score).
SCHEMA = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),
        pa.field("index", pa.int64()),  # the image's number in the data; null if SCORES has no such column
        pa.field("class", pa.int32(), nullable=False),
        pa.field("synset", pa.string()),
        pa.field("rank", pa.int64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ]
)

# 32 buckets for each factor e of the odds p / (1 - p): narrow near 0, where rare classes have their scores, and near 1,
# where a confident teacher has them; at most about 3,000 buckets per class.
BUCKET = "floor(32 * (ln(greatest(score, 1e-37)) - ln(greatest(1 - score::DOUBLE, 1e-8))))::INTEGER"


@dataclass(frozen=True)
class Selection:
    """The numbers of a selection."""

    scored: int  #: images in SCORES that have scores
    failed: int  #: images in SCORES without scores
    pairs: int  #: ranked (image, class) pairs
    rows: int  #: selected pairs
    images: int  #: selected images
    several: int  #: of them, those with more than one class
    counts: dict[int, int] = field(default_factory=dict)  #: class -> its rows

    def short(self, per_class: int) -> dict[int, int]:
        """The classes with fewer than ``per_class`` images, and their numbers of images."""
        return {number: count for number, count in self.counts.items() if count < per_class}


def select(
    scores: str | Sequence[str],
    out: str | Path,
    *,
    per_class: int,
    max_classes: int = 10,
    hashtags: str | Sequence[str] | None = None,
    num_classes: int | None = None,
    reading: Reading | None = None,
    limits: Limits | None = None,
    overwrite: bool = False,
) -> Selection:
    """Select each class's ``per_class`` highest-scored images; write them to a Parquet table (`SCHEMA`).

    Equal scores are sorted by ``image``, then ``index``: the result does not depend on threads, memory or the order of
    files.

    Args:
        scores: Parquet files of predictions, patterns or folders of them, local or in an object store.
        per_class: K; the published SWSL students were trained on 64 million images for 1,000 classes.
        max_classes: P, the number of classes that an image can be selected for.
        hashtags: tables of `hashtags.make_targets` (columns ``image``, ``targets``): a pair counts only if the class is
            among the image's targets.
        num_classes: also report the classes below this number that have no image.
        reading: how to read SCORES.
        overwrite: replace OUT if another job made it.

    Returns:
        The numbers of the selection, also if OUT exists and was made from the same files with the same arguments.

    Raises:
        SourceError: a table is missing or broken, lacks a column, or has an invalid score.
        OutputError: OUT cannot be written, another job made it, or the memory or the disk is too small.
        ValueError: K, P or ``num_classes`` is not positive.
    """
    for name, number in (("per_class", per_class), ("max_classes", max_classes), ("num_classes", num_classes)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be 1 or more, got {number}.")
    reading, out = reading or Reading(), Path(out)
    files = reading.files(scores)
    tagged = None if hashtags is None else reading.files(hashtags)
    job = {
        "step": "selection",
        "scores": tables.fingerprint(files),
        "hashtags": tagged and tables.fingerprint(tagged),
        "per_class": per_class,
        "max_classes": max_classes,
        "num_classes": num_classes,
        "columns": reading.columns,
    }
    if (report := tables.earlier_report(out, job, overwrite=overwrite)) is not None:
        return Selection(**report)
    with tables.workspace(out, limits or Limits()) as (connection, folder):
        scored, failed = _open_scores(connection, files, max_classes, reading)
        if tagged is not None:
            _keep_agreeing(connection, tagged, folder)
        _find_thresholds(connection, per_class)
        _rank(connection, per_class)
        selection = _count(connection, scored, failed, num_classes)
        rows = connection.sql('SELECT * FROM selected ORDER BY "class", rank').to_arrow_reader(BATCH)
        tables.write_table(out, folder, rows, SCHEMA, job, lambda: asdict(selection))
    return selection


def _open_scores(
    connection: duckdb.DuckDBPyConnection, files: Sequence[TableFile], max_classes: int, reading: Reading
) -> tuple[int, int]:
    """Make the view ``pairs``; return the numbers of images with and without scores."""
    where = files[0].uri
    columns = tables.open_table(connection, "scores", files, image=reading.column, classes=reading.label_column)
    integers, floats = "INTEGER[] BIGINT[] SMALLINT[]", "FLOAT[] DOUBLE[]"
    tables.check_columns(where, columns, {"image": "VARCHAR", "classes": integers, "probabilities": floats})
    index = '"index"::BIGINT' if "index" in columns else "NULL::BIGINT"
    synset = f"unnest(synsets[:{max_classes}])" if "synsets" in columns else "NULL::VARCHAR"
    usable = "classes IS NOT NULL" + (" AND error IS NULL" if "error" in columns else "")
    # Each pair has the next pair's score too, to find lists that are not sorted.
    connection.execute(f"""
        CREATE VIEW pairs AS
        SELECT image, {index} AS "index", {synset} AS synset, unnest(classes[:{max_classes}]) AS "class",
            unnest(probabilities[:{max_classes}])::FLOAT AS score,
            unnest(probabilities[2:{max_classes}])::FLOAT AS next_score
        FROM scores WHERE {usable}""")
    scored, rows, unnamed, longest = _row(
        connection,
        f"""SELECT count(*) FILTER ({usable}), count(*), count(*) FILTER (image IS NULL),
            max(len(classes)) FILTER ({usable}) FROM scores""",
    )
    if unnamed:
        raise SourceError(f"{where} …: rows without an image: {unnamed:,}.")
    if scored and longest < max_classes:
        raise SourceError(
            f"{where} has {longest} classes per image, fewer than max_classes={max_classes}: classify again with "
            f"top={max_classes}, or pass max_classes={longest}."
        )
    return scored, rows - scored


def _keep_agreeing(connection: duckdb.DuckDBPyConnection, files: Sequence[TableFile], folder: Path) -> None:
    """Keep the ``pairs`` whose class is among the image's targets; on disk, because they are read twice."""
    columns = tables.open_table(connection, "tagged", files)
    tables.check_columns(files[0].uri, columns, {"image": "VARCHAR", "targets": "INTEGER[] BIGINT[]"})
    path = folder / "pairs.parquet"
    connection.execute(
        """COPY (FROM pairs SEMI JOIN (SELECT image, unnest(targets) AS "class" FROM tagged) USING (image, "class"))
        TO $path (FORMAT parquet)""",
        {"path": str(path)},
    )
    connection.execute("DROP VIEW pairs")
    connection.read_parquet(str(path)).create_view("pairs")


def _find_thresholds(connection: duckdb.DuckDBPyConnection, per_class: int) -> None:
    """Make ``thresholds``: for each class a score that K of its pairs reach, or all if there are fewer."""
    connection.execute(f"""
        CREATE TEMP TABLE buckets AS
        SELECT "class", CASE WHEN score BETWEEN 0 AND 1 THEN {BUCKET} END AS bucket, coalesce(next_score > score, false)
            AS unsorted, count(*) AS pairs, min(score) AS lowest
        FROM pairs GROUP BY ALL""")
    bad, unsorted = _row(
        connection,
        """SELECT sum(pairs) FILTER ("class" IS NULL OR "class" < 0 OR bucket IS NULL), sum(pairs) FILTER (unsorted)
        FROM buckets""",
    )
    if bad:
        raise SourceError(f"Pairs without a class or a score from 0 to 1, or from lists of different lengths: {bad:,}.")
    if unsorted:
        raise SourceError(
            f"The scores of an image must be sorted, best first; pairs followed by a higher score: {unsorted:,}."
        )
    # Correct for any buckets: those taken have at least K pairs, which all reach the lowest score among them.
    connection.execute(f"""
        CREATE TEMP TABLE thresholds AS
        SELECT "class", min(lowest) AS lowest FROM (
            SELECT *, sum(pairs) OVER (PARTITION BY "class" ORDER BY bucket DESC) - pairs AS above FROM (
                SELECT "class", bucket, sum(pairs) AS pairs, min(lowest) AS lowest FROM buckets GROUP BY ALL))
        WHERE above < {per_class} GROUP BY ALL""")


def _rank(connection: duckdb.DuckDBPyConnection, per_class: int) -> None:
    """Make ``selected`` from the pairs that reach their class's threshold."""
    connection.execute(f"""
        CREATE TEMP TABLE selected AS
        SELECT image, "index", "class", synset, rank, score FROM (
            SELECT *, row_number() OVER (PARTITION BY "class" ORDER BY score DESC, image, "index") AS rank
            FROM pairs JOIN thresholds USING ("class") WHERE score >= lowest)
        WHERE rank <= {per_class}""")


def _count(connection: duckdb.DuckDBPyConnection, scored: int, failed: int, num_classes: int | None) -> Selection:
    counts = dict.fromkeys(range(num_classes or 0), 0)
    counts |= dict(connection.execute('SELECT "class", count(*) FROM selected GROUP BY "class" ORDER BY 1').fetchall())
    (pairs,) = _row(connection, "SELECT sum(pairs)::BIGINT FROM buckets")
    images, several = _row(
        connection,
        'SELECT count(*), count(*) FILTER (n > 1) FROM (SELECT count(*) AS n FROM selected GROUP BY image, "index")',
    )
    return Selection(scored, failed, pairs or 0, sum(counts.values()), images, several, counts)


def _row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    (row,) = connection.execute(query).fetchall()  # an unread rest would block the connection
    return row
