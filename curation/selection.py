"""The images to train a student on: for each class the K that the teacher is surest of.

Yalniz et al. 2019, "Billion-scale semi-supervised learning for image classification" (arXiv 1905.00546), section 3:
every unlabelled image takes part in the rankings of the P classes that the teacher scores highest for it; of each
ranking the first K images are labelled with its class. An image may so serve up to P classes, and every class gets as
many images, which is the point of it: what is inferred is balanced.

``python -m resnext_hub.curation.selection SCORES --per-class K --out FILE.parquet``, where SCORES is what
``resnext-hub classify SOURCE --out SCORES --top P`` wrote.

Memory does not grow with the number of images. A window over all (image, class) pairs would sort billions of them, and
an aggregate that keeps the K best of each class (``max_by(.., K)``) cannot spill. So there are two passes. The first
counts scores by class in narrow buckets, with the lowest score of each: going down from the top, the bucket in which a
class's count reaches K gives a score that at least K of its pairs reach. The second reads again, keeps only the pairs
that reach their class's score, a few more than K a class, and sorts those.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..cli.console import counted, status_of
from ..data.source import TableFile, table_files
from ..errors import SourceError
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

if TYPE_CHECKING:
    import duckdb

__all__ = ["Selection", "select"]

#: The columns of what is made; rows are sorted by ``class`` and ``rank`` (1: the surest).
SCHEMA = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),
        pa.field("index", pa.int64()),  # the image's row in SCORES, where that has the column
        pa.field("class", pa.int32(), nullable=False),
        pa.field("synset", pa.string()),
        pa.field("rank", pa.int64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ]
)

# 32 buckets for a factor e of the odds p / (1 - p): narrow where classes of rare things have their scores (near 0) and
# where a sure teacher has them (near 1); some 3,000 buckets for a class at most.
BUCKET = "floor(32 * (ln(greatest(score, 1e-37)) - ln(greatest(1 - score::DOUBLE, 1e-8))))::INTEGER"


@dataclass(frozen=True)
class Selection:
    """What was selected from what.

    ``scored``, ``failed``: images in SCORES with and without scores. ``pairs``: (image, class) pairs that were ranked.
    ``rows``: pairs selected, of ``images`` images, ``several`` of which serve more than one class. ``counts``: class ->
    its rows.
    """

    scored: int
    failed: int
    pairs: int
    rows: int
    images: int
    several: int
    counts: dict[int, int] = field(default_factory=dict)

    def short(self, per_class: int) -> dict[int, int]:
        """The classes that have fewer than ``per_class`` images, and how many they have."""
        return {number: count for number, count in self.counts.items() if count < per_class}


def select(
    scores: str | Sequence[str],
    out: str | Path,
    *,
    per_class: int,
    max_classes: int = 10,
    hashtags: str | Sequence[str] | None = None,
    num_classes: int | None = None,
    limits: Limits | None = None,
    overwrite: bool = False,
) -> Selection:
    """Select each class's ``per_class`` highest-scored images; write them to a Parquet table (`SCHEMA`).

    Equal scores go by ``image``, then ``index``: the result does not depend on threads, memory or the order of files.

    Args:
        scores: Parquet files of predictions, patterns or folders of them, local or in an object store.
        per_class: K; the published SWSL students were trained on 64 million images for 1,000 classes.
        max_classes: P, how many of an image's best classes it stands for.
        hashtags: tables as ``resnext_hub.curation.hashtags targets`` writes (columns ``image``, ``targets``): a pair
            counts only if the class is among the image's targets, so that teacher and hashtag agree.
        num_classes: count classes from 0 that no image has, too.
        overwrite: replace OUT if something else made it.

    Returns:
        What was selected; also where OUT is there already, made of the same files by the same arguments.

    Raises:
        SourceError: a table is missing, broken, without a column, or has what is no score.
        OutputError: OUT cannot be written, is another's, or memory or disk do not suffice.
        ValueError: K, P or ``num_classes`` is not positive.
    """
    for name, number in (("per_class", per_class), ("max_classes", max_classes), ("num_classes", num_classes)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be 1 or more, got {number}.")
    out, limits = Path(out), limits or Limits()
    files = table_files([scores] if isinstance(scores, str) else scores)
    tagged = table_files([hashtags] if isinstance(hashtags, str) else hashtags) if hashtags is not None else None
    job = {
        "step": "selection",
        "scores": fingerprint(files),
        "hashtags": tagged and fingerprint(tagged),
        "per_class": per_class,
        "max_classes": max_classes,
        "num_classes": num_classes,
    }
    if (report := earlier_report(out, job, overwrite=overwrite)) is not None:
        return _selection_from(report)
    with workspace(out, limits) as (connection, folder):
        scored, failed = _open_scores(connection, files, max_classes)
        if tagged is not None:
            _keep_agreeing(connection, tagged, folder)
        _find_thresholds(connection, per_class)
        _rank(connection, per_class)
        selection = _count(connection, scored, failed, num_classes)
        rows = connection.sql('SELECT * FROM selected ORDER BY "class", rank').to_arrow_reader(BATCH)
        write_table(out, folder, rows, SCHEMA, job, lambda: asdict(selection))
    return selection


def _open_scores(
    connection: duckdb.DuckDBPyConnection, files: Sequence[TableFile], max_classes: int
) -> tuple[int, int]:
    """Make the view ``pairs``; return how many images have scores and how many have none."""
    where = files[0].uri
    columns = open_table(connection, "scores", files)
    integers, floats = "INTEGER[] BIGINT[] SMALLINT[]", "FLOAT[] DOUBLE[]"
    check_columns(where, columns, {"image": "VARCHAR", "classes": integers, "probabilities": floats})
    index = '"index"::BIGINT' if "index" in columns else "NULL::BIGINT"
    synset = f"unnest(synsets[:{max_classes}])" if "synsets" in columns else "NULL::VARCHAR"
    usable = "classes IS NOT NULL" + (" AND error IS NULL" if "error" in columns else "")
    # A pair's next score stands beside its own, so that lists that are not best first are found as they pass.
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
    """Make ``pairs`` those whose class is among their image's targets; on the disk, for they are read twice."""
    columns = open_table(connection, "tagged", files)
    check_columns(files[0].uri, columns, {"image": "VARCHAR", "targets": "INTEGER[] BIGINT[]"})
    path = folder / "pairs.parquet"
    connection.execute(
        """COPY (FROM pairs SEMI JOIN (SELECT image, unnest(targets) AS "class" FROM tagged) USING (image, "class"))
        TO $path (FORMAT parquet)""",
        {"path": str(path)},
    )
    connection.execute("DROP VIEW pairs")
    connection.read_parquet(str(path)).create_view("pairs")


def _find_thresholds(connection: duckdb.DuckDBPyConnection, per_class: int) -> None:
    """Make ``thresholds``: for each class a score that at least K of its pairs reach, or all if there are fewer."""
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
    # Right whatever the buckets are: those taken hold at least K pairs, and all of these reach the lowest among them.
    connection.execute(f"""
        CREATE TEMP TABLE thresholds AS
        SELECT "class", min(lowest) AS lowest FROM (
            SELECT *, sum(pairs) OVER (PARTITION BY "class" ORDER BY bucket DESC) - pairs AS above FROM (
                SELECT "class", bucket, sum(pairs) AS pairs, min(lowest) AS lowest FROM buckets GROUP BY ALL))
        WHERE above < {per_class} GROUP BY ALL""")


def _rank(connection: duckdb.DuckDBPyConnection, per_class: int) -> None:
    """Make ``selected``, of the pairs that reach their class's threshold."""
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
    (row,) = connection.execute(query).fetchall()  # fetched whole: a result that is not blocks the connection
    return row


def _selection_from(report: dict[str, Any]) -> Selection:
    values: dict[str, Any] = {**report, "counts": {int(number): count for number, count in report["counts"].items()}}
    return Selection(**values)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m resnext_hub.curation.selection``; return 0, or 2 and a line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m resnext_hub.curation.selection",
        description="Select each class's K highest-scored images from a table of predictions (arXiv 1905.00546).",
    )
    parser.add_argument(
        "scores", nargs="+", metavar="SCORES", help="tables from 'resnext-hub classify --out'; also folders, patterns"
    )
    parser.add_argument("--per-class", type=int, required=True, metavar="K", help="images to select per class")
    parser.add_argument(
        "--max-classes",
        type=int,
        default=10,
        metavar="P",
        help="classes that an image may be selected for (default: %(default)s)",
    )
    parser.add_argument(
        "--hashtags",
        nargs="+",
        metavar="TABLE",
        help="select an image for a class only if it is among its targets in these tables",
    )
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="number of classes, to also report those without an image"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="table to write (.parquet)")
    add_limits(parser)
    arguments = parser.parse_args(argv)
    return status_of(lambda: _select(arguments), arguments.out)


def _select(arguments: argparse.Namespace) -> None:
    found = select(
        arguments.scores,
        arguments.out,
        per_class=arguments.per_class,
        max_classes=arguments.max_classes,
        hashtags=arguments.hashtags,
        num_classes=arguments.num_classes,
        limits=limits_from(arguments),
        overwrite=arguments.overwrite,
    )
    short = found.short(arguments.per_class)
    lines = [
        f"{counted(found.scored, 'image')} with scores, {found.failed:,} without; {counted(found.pairs, 'pair')} "
        "ranked",
        f"Saved {arguments.out}: {counted(found.rows, 'row')}, {counted(found.images, 'image')}, "
        f"{found.several:,} of them in several classes",
        f"{counted(len(found.counts) - len(short), 'class')} with {counted(arguments.per_class, 'image')}, "
        f"{len(short):,} with fewer",
        *(f"  class {number}: {count:,}" for number, count in sorted(short.items(), key=lambda item: item[1])[:20]),
        *([f"  … and {len(short) - 20:,} more"] if len(short) > 20 else []),
    ]
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
