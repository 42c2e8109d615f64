"""Simulate hashtags for labelled images, for experiments without images that have hashtags.

    python benchmarks/simulation.py tiny-imagenet-200/train-*.parquet --labels tiny-imagenet-200 --out tags.parquet

Every image gets a hashtag of its true class with probability ``true``, and on average ``noise`` others (Poisson). These
follow Zipf's law: the n-th most frequent is drawn in proportion to n ** -``zipf`` from the names of all classes and
``distractors`` that name no class, in random order. A class's hashtag is one of its names, in one of several spellings.
Real hashtags have other noise too (they name places, times and reasons, and their errors are correlated). So results
show that a method works, not how well it works on the web.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from resnext_hub.curation.hashtags import make_mapping, read_label_file
from resnext_hub.processing_utils.labels import Label


def _names(labels: Sequence[Label]) -> list[list[str]]:
    """The names of each label, without ambiguous ones if it has others."""
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
    """Simulate the hashtags of images of these classes; equal arguments give equal hashtags.

    Args:
        classes: N positions in ``labels``.
        true: the probability of a hashtag of the true class.
        noise: mean number of other hashtags per image.
        zipf: exponent of their distribution; 0 is uniform.
        distractors: number of hashtags that name no class.

    Returns:
        N lists, some of them empty; another hashtag may name the true class by chance.

    Raises:
        ValueError: an argument is out of its range, or a class is not a position in ``labels``.
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
    for number, tagged, more in zip(classes, has_true.tolist(), extra.tolist(), strict=True):
        numbers = [*([int(number)] if tagged else []), *(next(drawn) for _ in range(more))]
        random.shuffle(numbers)
        found.append([hashtag(one) for one in numbers])
    return found


def simulate_table(images: Sequence[Path], out: Path, labels: Sequence[Label], **options: Any) -> int:
    """Simulate hashtags of the labelled images of Parquet tables (columns name, wnid); return the number of images.

    OUT has the columns ``image`` (the name), ``index`` (the row number over all tables) and ``hashtags``. ``options``
    are those of `simulate_hashtags`.
    """
    table = pa.concat_tables(pq.read_table(path, columns=["name", "wnid"]) for path in images)
    position = {label.synset: number for number, label in enumerate(labels)}
    hashtags = simulate_hashtags([position[synset] for synset in table["wnid"].to_pylist()], labels, **options)
    columns = {
        "image": table["name"],
        "index": pa.array(range(len(table)), pa.int64()),
        "hashtags": pa.array(hashtags, pa.list_(pa.string())),
    }
    pq.write_table(pa.table(columns), out)
    return len(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+", help="Parquet tables of labelled images (columns name, wnid)")
    parser.add_argument("--labels", required=True, help="name of a label set, or its file")
    parser.add_argument("--out", type=Path, required=True, help="table to write (.parquet)")
    for name, default in (("seed", 0), ("true", 0.8), ("noise", 2.0), ("zipf", 1.0), ("distractors", 1000)):
        parser.add_argument(f"--{name}", type=type(default), default=default, help="default: %(default)s")
    options = vars(parser.parse_args())
    images, out, labels = options.pop("images"), options.pop("out"), read_label_file(options.pop("labels"))
    print(f"Saved {out}: simulated hashtags of {simulate_table(images, out, labels, **options):,} images")


if __name__ == "__main__":
    main()
