"""Hashtags that nobody wrote: a simulation, for experiments with labelled images where no hashtagged ones are at hand.

Every image gets a hashtag of its true class with probability ``true``, and ``noise`` further ones on average (Poisson).
These are drawn by Zipf's law, the n-th most frequent in proportion to n ** -``zipf``, from the names of all classes and
from ``distractors`` that name no class, in one random order. A class's hashtag is one of its names at random, in one of
several spellings. What people really write is noisy in other ways too (a hashtag says where, when and why; errors go
together), so results with it show that a method works as told, not how well it works on the web.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..cli.console import counted, status_of
from ..curation.hashtags import make_mapping, read_label_file
from ..curation.tables import Limits, check_columns, earlier_report, fingerprint, open_table, workspace, write_table
from ..data.source import table_files
from ..errors import SourceError
from ..processing_utils.labels import Label

__all__ = ["simulate_hashtags", "simulate_table"]

SCHEMA = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("hashtags", pa.list_(pa.string()), nullable=False),
    ]
)


def _names(labels: Sequence[Label]) -> list[list[str]]:
    """For each label its names, without those that name another class too where there is another name."""
    ambiguous = set(make_mapping(labels)[1])
    every = [[name.strip() for name in label.name.split(",")] for label in labels]
    plain = [[name for name in names if "".join(name.lower().split()) not in ambiguous] for names in every]
    return [some or names for some, names in zip(plain, every, strict=True)]


def _spelled(name: str, style: int) -> str:
    words = name.replace("-", " ").replace("'", "").split()
    return "#" + ("".join(words).lower(), "".join(word.title() for word in words), "_".join(words).lower())[style]


def simulate_hashtags(
    classes: Sequence[int],
    labels: Sequence[Label],
    *,
    seed: int,
    true: float = 0.8,
    noise: float = 2.0,
    zipf: float = 1.0,
    distractors: int = 1000,
) -> list[list[str]]:
    """Hashtags for images of these classes: the module says which. The same for the same arguments.

    Args:
        classes: N positions in ``labels``.
        true: the probability of a hashtag of the true class.
        noise: further hashtags an image, on average.
        zipf: exponent of their distribution; 0 is uniform.
        distractors: how many hashtags there are that name no class.

    Returns:
        N lists, some of which may be empty; a hashtag may stand for the true class by chance, too.

    Raises:
        ValueError: a probability or a mean that is none, or a class that is no position in ``labels``.
    """
    if not 0 <= true <= 1 or noise < 0 or zipf < 0 or distractors < 0:
        raise ValueError("true must be from 0 to 1, and noise, zipf and distractors 0 or more.")
    if len(classes) and not 0 <= min(classes) <= max(classes) < len(labels):
        raise ValueError(f"classes must be from 0 to {len(labels) - 1}.")
    random = np.random.default_rng(seed)
    names = _names(labels)
    vocabulary = [*range(len(labels)), *(-1 - number for number in range(distractors))]
    random.shuffle(vocabulary)
    weights = np.arange(1, len(vocabulary) + 1, dtype=float) ** -zipf
    has_true = random.random(len(classes)) < true
    extra = random.poisson(noise, len(classes))
    drawn = iter(random.choice(vocabulary, size=int(extra.sum()), p=weights / weights.sum()).tolist())

    def hashtag(number: int) -> str:
        if number < 0:
            return f"#distractor{-number}"
        some = names[number]
        return _spelled(some[int(random.integers(len(some)))], int(random.integers(3)))

    found = []
    for number, told, more in zip(classes, has_true.tolist(), extra.tolist(), strict=True):
        numbers = [*([int(number)] if told else []), *(next(drawn) for _ in range(more))]
        random.shuffle(numbers)
        found.append([hashtag(one) for one in numbers])
    return found


def simulate_table(
    images: str | Sequence[str],
    out: str | Path,
    labels: Sequence[Label],
    *,
    seed: int,
    image_column: str = "name",
    synset_column: str = "wnid",
    overwrite: bool = False,
    **options: Any,
) -> int:
    """Simulate hashtags of labelled images in Parquet tables; write ``image``, ``index`` (row number), ``hashtags``.

    Args:
        options: of `simulate_hashtags`.

    Returns:
        How many images.

    Raises:
        SourceError: no such table or column, or a synset that the labels do not have.
        OutputError: as `resnext_hub.curation.selection.select`.
    """
    out, files = Path(out), table_files([images] if isinstance(images, str) else images)
    job = {
        "step": "simulation",
        "images": fingerprint(files),
        "synsets": [label.synset for label in labels],
        "columns": [image_column, synset_column],
        "seed": seed,
        "options": dict(sorted(options.items())),
    }
    if (report := earlier_report(out, job, overwrite=overwrite)) is not None:
        return report["rows"]
    position = {label.synset: number for number, label in enumerate(labels)}
    with workspace(out, Limits()) as (connection, folder):
        columns = open_table(connection, "images", files)
        check_columns(files[0].uri, columns, {image_column: "VARCHAR", synset_column: "VARCHAR"})
        quoted = (name.replace('"', '""') for name in (image_column, synset_column))
        rows = connection.sql('SELECT "{}" AS image, "{}" AS synset FROM images'.format(*quoted)).to_arrow_table()
        synsets = rows["synset"].to_pylist()
        if unknown := sorted({str(synset) for synset in synsets} - position.keys()):
            raise SourceError(f"These synsets of the images are not in the label set: {', '.join(unknown[:5])}.")
        lists = simulate_hashtags([position[synset] for synset in synsets], labels, seed=seed, **options)
        columns = [rows["image"], pa.array(range(len(rows)), pa.int64()), pa.array(lists, pa.list_(pa.string()))]
        batches = pa.table(columns, SCHEMA.names).to_batches()
        write_table(out, folder, batches, SCHEMA, job, lambda: {"rows": len(rows)})
    return len(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m resnext_hub.training.simulation``; return 0, or 2 and a line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m resnext_hub.training.simulation", description="Simulate hashtags for labelled images."
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGES", help="Parquet files of labelled images; also folders, patterns"
    )
    parser.add_argument("--labels", required=True, metavar="SET", help="name of a label set, or its file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="table to write (.parquet)")
    parser.add_argument(
        "--image-column", default="name", metavar="NAME", help="column of images (default: %(default)s)"
    )
    parser.add_argument(
        "--synset-column", default="wnid", metavar="NAME", help="column of synsets (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: %(default)s)")
    true = "probability of a hashtag of the true class (default: %(default)s)"
    parser.add_argument("--true", type=float, default=0.8, metavar="P", help=true)
    noise = "mean number of other hashtags per image (default: %(default)s)"
    parser.add_argument("--noise", type=float, default=2.0, metavar="N", help=noise)
    zipf = "Zipf exponent of their frequencies; 0 is uniform (default: %(default)s)"
    parser.add_argument("--zipf", type=float, default=1.0, metavar="A", help=zipf)
    distractors = "number of hashtags that name no class (default: %(default)s)"
    parser.add_argument("--distractors", type=int, default=1000, metavar="N", help=distractors)
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it was made with other options")
    options = vars(parser.parse_args(argv))
    return status_of(lambda: _simulate(**options))


def _simulate(labels: str, images: list[str], out: Path, **options: Any) -> None:
    rows = simulate_table(images, out, read_label_file(labels), **options)
    print(f"Saved {out}: simulated hashtags of {counted(rows, 'image')}")  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
