"""benchmarks/simulation.py: the hashtags have the rates that were asked for, and name their classes."""

from __future__ import annotations

import string
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("duckdb", reason="the extra train")

from resnext_hub.benchmarks.simulation import simulate_hashtags
from resnext_hub.curation.hashtags import canonical, make_mapping
from resnext_hub.processing_utils.labels import read_labels

from ..conftest import ROOT

LABELS = read_labels("tiny-imagenet-200")


def test_simulated_hashtags_are_what_was_asked_for() -> None:
    classes = [number % 200 for number in range(8000)]
    lists = simulate_hashtags(classes, LABELS, seed=5, true=0.7, noise=1.5, zipf=1.0, distractors=300)
    assert lists == simulate_hashtags(classes, LABELS, seed=5, true=0.7, noise=1.5, distractors=300)
    assert lists != simulate_hashtags(classes, LABELS, seed=6, true=0.7, noise=1.5, distractors=300)
    assert sum(map(len, lists)) / 8000 == pytest.approx(0.7 + 1.5, abs=0.08)
    mapping = make_mapping(LABELS)[0]
    told = [{number for tag in tags for number in mapping.get(canonical(tag), ())} for tags in lists]
    right = sum(number in numbers for number, numbers in zip(classes, told, strict=True))
    assert right / 8000 == pytest.approx(0.7, abs=0.03)
    counts = Counter(canonical(tag) for tags in lists for tag in tags if "distractor" in tag).most_common()
    assert counts[0][1] > 20 * counts[len(counts) // 2][1]  # Zipf
    spellings = {tag for tags in lists for tag in tags if canonical(tag) in ("goldfish", "carassiusauratus")}
    assert {"#goldfish", "#Goldfish", "#carassius_auratus", "#CarassiusAuratus"} <= spellings


def test_the_command_writes_a_table(tmp_path: Path) -> None:
    table = pa.table({"name": list(string.ascii_lowercase), "wnid": ["n01443537", "n01641577"] * 13})
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path, part in zip(paths, (table.slice(0, 10), table.slice(10)), strict=True):
        pq.write_table(part, path)
    out = tmp_path / "tags.parquet"
    options = ["--labels", "tiny-imagenet-200", "--out", str(out), "--seed", "4", "--zipf", "1.5"]
    command = [sys.executable, str(ROOT / "benchmarks" / "simulation.py"), *map(str, paths), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "26 images" in done.stdout
    assert pq.read_table(out).to_pydict() == {
        "image": list(string.ascii_lowercase),
        "index": list(range(26)),
        "hashtags": simulate_hashtags([0, 2] * 13, LABELS, seed=4, zipf=1.5),
    }
