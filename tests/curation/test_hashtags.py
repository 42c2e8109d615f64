"""Hashtags -> classes, targets and repeat factors."""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("duckdb", reason="the extra train")

from resnext_hub.benchmarks.simulation import simulate_hashtags
from resnext_hub.cli import main
from resnext_hub.curation import hashtags as module
from resnext_hub.curation.duckdb_tables import Limits
from resnext_hub.curation.hashtags import (
    TARGETS,
    VOCABULARY,
    Counted,
    canonical,
    count_hashtags,
    make_mapping,
    make_targets,
    read_mapping,
    repeat_counts,
    repeat_factors,
    resampled_indices,
    write_mapping,
)
from resnext_hub.data.labels import list_images
from resnext_hub.data.splits import relabelled
from resnext_hub.errors import OutputError, SourceError
from resnext_hub.processing_utils.labels import Label, read_labels
from resnext_hub.training import batches
from resnext_hub.training.recipe import Phase, Recipe

from ..support.data_sets import picture, tar

SMALL = Limits("200MB", threads=1)
LABELS = (
    Label(0, "n01", "tench, Tinca tinca"),
    Label(1, "n02", "crane"),
    Label(2, "n03", "crane, construction crane"),
    Label(3, "n04", "jack-o'-lantern"),
    Label(4, "n05", "brown bear, bruin, Ursus arctos"),
)
MAPPING = make_mapping(LABELS)[0]


def write(path: Path, lists: list[list[str | None] | None], **columns: Any) -> str:
    names = [f"{number}.jpg" for number in range(len(lists))]
    table = pa.table(
        {"image": pa.array(names, pa.string()), "hashtags": pa.array(lists, pa.list_(pa.string())), **columns}
    )
    pq.write_table(table, path, row_group_size=7)
    return str(path)


# Hashtag -> classes.


def test_spellings_of_one_hashtag() -> None:
    same = ("#JackOLantern", "jack-o'-lantern", "Jack O Lantern", "jack_o_lantern", "ＪＡＣＫ．Ｏ．ＬＡＮＴＥＲＮ")
    assert {canonical(hashtag) for hashtag in same} == {"jackolantern"}
    assert canonical("#Straße") == canonical("#STRASSE") == "strasse"
    assert canonical("#Café") == canonical("#cafe\u0301") != canonical("#cafe")
    assert canonical("#犬") == "犬"
    assert canonical("#!?") == ""


@given(st.text(max_size=20))
def test_a_canonical_form_is_its_own(text: str) -> None:
    assert canonical(canonical(text)) == canonical(text) == canonical(f"#{text} ")


def test_all_names_of_a_synset_are_its_hashtags() -> None:
    """The paper's example: #brownbear and #ursusarctos."""
    mapping, several = make_mapping(LABELS)
    assert mapping["brownbear"] == mapping["ursusarctos"] == mapping["bruin"] == (4,)
    assert several == {"crane": (1, 2)}


@pytest.mark.parametrize(("ambiguous", "expected"), [("drop", None), ("first", (1,)), ("all", (1, 2))])
def test_a_name_of_two_synsets(ambiguous: Any, expected: tuple[int, ...] | None) -> None:
    mapping, _ = make_mapping(LABELS, ambiguous)
    assert mapping.get("crane") == expected
    assert mapping["constructioncrane"] == (2,)
    with pytest.raises(ValueError, match="'drop'"):
        make_mapping(LABELS, "some")


@pytest.mark.parametrize("ambiguous", ["drop", "first", "all"])
def test_a_mapping_that_is_written_and_read(ambiguous: Any, tmp_path: Path) -> None:
    labels = read_labels("imagenet-1k")
    mapping, several = make_mapping(labels, ambiguous)
    write_mapping(tmp_path / "mapping.tsv", mapping, labels, several)
    assert read_mapping(tmp_path / "mapping.tsv", labels) == mapping
    assert several  # wagon, crane ...
    assert all((hashtag in mapping) == (ambiguous != "drop") for hashtag in several)


def test_choosing_among_ambiguous_names(tmp_path: Path) -> None:
    path = tmp_path / "mapping.tsv"
    write_mapping(path, *[MAPPING, LABELS, make_mapping(LABELS)[1]])
    path.write_text(path.read_text().replace("# crane\tn03", "crane\tn03"))
    assert read_mapping(path, LABELS) == MAPPING | {"crane": (2,)}


def test_a_mapping_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "mapping.tsv"
    path.write_text("# mine\n#\tn01\n#Crane\tn02\ncrane\tn03\tbird and machine\n\nGuitar Solo\tn01\n")
    assert read_mapping(path, LABELS) == {"crane": (1, 2), "guitarsolo": (0,)}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("tench n01\n", "line 1: .*'tench n01'"),
        ("!\tn01\n", "line 1: "),
        ("tench\tn01\nbear\tn99\n", "line 2: .*'n99'"),
        ("# nothing\n", "mapping.tsv"),
        (None, "mapping.tsv"),
    ],
)
def test_a_mapping_that_is_none(text: str | None, named: str, tmp_path: Path) -> None:
    path = tmp_path / "mapping.tsv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SourceError, match=named):
        read_mapping(path, LABELS)


# Targets.


def test_the_loss_is_the_mean_over_an_images_hashtags() -> None:
    """Softmax cross-entropy by hand: -(log p_a + log p_b) / 2."""
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    log_probabilities = [value - math.log(sum(map(math.exp, (1, 2, 3)))) for value in (1, 2, 3)]
    loss = F.cross_entropy(logits, batches.class_shares(torch.tensor([[0, 2]]), 3))
    assert loss.item() == pytest.approx(-(log_probabilities[0] + log_probabilities[2]) / 2, abs=1e-6)


# Resampling.


def test_repeat_factors_by_hand() -> None:
    """r = max(1, sqrt(t / f)), of an image the largest: f = 0.64, 0.16, 0.01 and t = 0.16 give 1 (0.5), 1, 4."""
    targets = pa.array([[0], [1], [2], [0, 1], [0, 2]], pa.list_(pa.int32()))
    factors = repeat_factors(targets, np.array([0.64, 0.16, 0.01]), 0.16)
    assert factors.tolist() == pytest.approx([1, 1, 4, 1, 4])
    assert repeat_factors(targets[:0], np.zeros(0), 0.16).shape == (0,)
    assert repeat_factors(targets[3:], np.array([0.64, 0.16, 0.01]), 0.16).tolist() == pytest.approx([1, 4])
    with pytest.raises(ValueError, match="one class per image"):
        repeat_factors(pa.array([[0], []], pa.list_(pa.int32())), np.ones(1), 0.5)


def test_the_distribution_becomes_that_of_square_roots() -> None:
    """With t at the most frequent class's f, images of single hashtags are shown in proportion to sqrt(f)."""
    frequencies = np.array([0.64, 0.32, 0.04])
    classes = np.repeat([0, 1, 2], (frequencies * 10_000).astype(int))
    factors = repeat_factors(pa.array(classes[:, None].tolist()), frequencies, 0.64)
    shown = np.bincount(classes[resampled_indices(factors, seed=0, epoch=0)])
    assert shown / shown.sum() == pytest.approx(np.sqrt(frequencies) / np.sqrt(frequencies).sum(), rel=0.02)


def test_counts_are_factors_on_average() -> None:
    factors = np.array([1.0, 1.25, 2.0, 3.7] * 500)
    counts = np.array([repeat_counts(factors, seed=3, epoch=epoch) for epoch in range(40)])
    assert ((counts == np.floor(factors)) | (counts == np.ceil(factors))).all()
    means = counts.mean(0).reshape(500, 4).mean(0)
    assert means[[0, 2]].tolist() == [1, 2]
    assert means == pytest.approx(factors[:4], abs=0.02)  # five standard errors: 5 * 0.46 / sqrt(20,000)


def test_an_epoch_depends_on_seed_and_epoch_alone() -> None:
    factors = np.linspace(1, 3, 500)
    one = resampled_indices(factors, seed=1, epoch=2)
    assert np.array_equal(one, resampled_indices(factors, seed=1, epoch=2))
    assert np.bincount(one).tolist() == repeat_counts(factors, seed=1, epoch=2).tolist()
    assert not np.array_equal(one, np.sort(one))
    for seed, epoch in ((1, 3), (2, 2), (2, 1)):
        other = resampled_indices(factors, seed, epoch)
        assert len(one) != len(other) or not np.array_equal(one, other)


# Tables.


def reference_targets(lists: list[Any], mapping: dict[str, tuple[int, ...]], threshold: float | None) -> list[Any]:
    found = []
    for number, hashtags in enumerate(lists):
        classes = {c for hashtag in hashtags or () if hashtag for c in mapping.get(canonical(hashtag), ())}
        if classes:
            found.append((f"{number}.jpg", sorted(classes)))
    counts = Counter(c for _, classes in found for c in classes)
    frequencies = {c: count / len(found) for c, count in counts.items()}
    if threshold is None:
        threshold = float(np.median(list(frequencies.values()))) if frequencies else 1.0
    return [
        (image, classes, max(max(1, math.sqrt(threshold / frequencies[c])) for c in classes))
        for image, classes in found
    ]


TAGS = ["#Tench", "tinca_tinca", "bruin", "#BrownBear", "crane", "#instagood", "ConstructionCrane", "", "#!", None]


@settings(max_examples=25)
@given(
    lists=st.lists(st.one_of(st.none(), st.lists(st.sampled_from(TAGS), max_size=5)), max_size=30),
    threshold=st.sampled_from([None, 0.001, 0.3, 1.0]),
    ambiguous=st.sampled_from(["drop", "all"]),
)
def test_targets_as_a_plain_reference(lists: list[Any], threshold: float | None, ambiguous: Any) -> None:
    mapping = make_mapping(LABELS, ambiguous)[0]
    expected = reference_targets(lists, mapping, threshold)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "targets.parquet"
        images = write(Path(name) / "images.parquet", lists)
        found = make_targets(images, out, mapping, threshold=threshold, limits=SMALL)
        table = pq.read_table(out)
        assert table.schema.remove_metadata() == TARGETS
        rows = table.to_pylist()
    assert [(row["image"], row["targets"]) for row in rows] == [(image, classes) for image, classes, _ in expected]
    assert [row["repeat_factor"] for row in rows] == pytest.approx([factor for *_, factor in expected], rel=1e-6)
    assert (found.images, found.rows) == (len(lists), len(expected))
    assert found.epoch == pytest.approx(sum(factor for *_, factor in expected), rel=1e-6)
    assert found.frequencies == dict(sorted(Counter(c for _, classes, _ in expected for c in classes).items()))


def test_batches_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = read_labels("tiny-imagenet-200")
    lists = simulate_hashtags([number % 200 for number in range(3000)], labels, seed=0)
    images = write(tmp_path / "images.parquet", lists, index=list(range(3000)))
    mapping = make_mapping(labels)[0]
    make_targets(images, tmp_path / "one.parquet", mapping, limits=SMALL)
    monkeypatch.setattr(module, "BATCH", 64)
    make_targets(images, tmp_path / "other.parquet", mapping, limits=SMALL)
    one, other = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("one", "other"))
    assert one.equals(other)
    assert one["index"].to_pylist() == [int(image.split(".")[0]) for image in one["image"].to_pylist()]


def test_counting_hashtags(tmp_path: Path) -> None:
    lists = [["#Tench", "#Tench", "#sun"], ["#tench", None], None, ["#sun", "#bruin"], ["#sun"], []]
    out = tmp_path / "vocabulary.parquet"
    images = write(tmp_path / "images.parquet", lists)
    assert count_hashtags(images, out, MAPPING, limits=SMALL) == Counted(images=6, hashtags=4, known=3)
    table = pq.read_table(out)
    assert table.schema.remove_metadata() == VOCABULARY
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("#sun", 3, "sun", None),
        ("#Tench", 1, "tench", [0]),  # once an image
        ("#bruin", 1, "bruin", [4]),
        ("#tench", 1, "tench", [0]),
    ]
    assert count_hashtags(images, out, MAPPING, least=2, limits=SMALL, overwrite=True) == Counted(6, 1, 0)


def test_targets_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write(tmp_path / "images.parquet", [["#tench"], ["#bruin", "#sun"]])
    targets, vocabulary = tmp_path / "targets.parquet", tmp_path / "vocabulary.parquet"
    made = make_targets(images, targets, MAPPING, limits=SMALL), count_hashtags(images, vocabulary, limits=SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(module.tables, "workspace", lambda *_: pytest.fail("done again"))
        assert (make_targets(images, targets, MAPPING), count_hashtags(images, vocabulary)) == made
    with pytest.raises(OutputError, match=r"\(mapping\)"):
        make_targets(images, targets, {"sun": (1,)})
    with pytest.raises(OutputError, match=r"\(least, mapping, step\)"):
        count_hashtags(images, targets, limits=SMALL)
    with pytest.raises(OutputError, match=r"\(threshold\)"):
        make_targets(images, targets, MAPPING, threshold=0.5)


def test_a_killed_run_leaves_no_table(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    images, out = write(tmp_path / "images.parquet", [["#tench"], ["#bruin"]]), tmp_path / "targets.parquet"
    script = f"""
import os, signal
from resnext_hub import files
from resnext_hub.curation import hashtags

files.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
hashtags.make_targets({images!r}, {str(out)!r}, {{"tench": (0,)}})
"""
    done = run_python(script, check=False, PYTHONPATH=os.environ.get("PYTHONPATH", ""))
    assert done.returncode == -9, done.stderr
    assert not out.exists()
    make_targets(images, out, {"tench": (0,)})
    assert pq.read_table(out)["image"].to_pylist() == ["0.jpg"]
    assert sorted(path.name for path in tmp_path.glob("*.parquet*")) == ["images.parquet", "targets.parquet"]


def test_tables_that_are_none(tmp_path: Path) -> None:
    path, out = tmp_path / "t.parquet", tmp_path / "targets.parquet"
    for columns, named in (
        ({"image": ["a"], "tags": [["b"]]}, "'hashtags'; .* image, tags"),
        ({"image": ["a"], "hashtags": ["b"]}, r"'hashtags' .* VARCHAR, expected VARCHAR\[\]"),
        ({"image": [None, "a"], "hashtags": [["tench"]] * 2}, "image: 1"),
    ):
        pq.write_table(pa.table(columns), path)
        with pytest.raises(SourceError, match=named):
            make_targets(str(path), out, MAPPING)
    with pytest.raises(ValueError, match="threshold .* 2"):
        make_targets(str(path), out, MAPPING, threshold=2)
    assert not out.exists()


def test_other_columns(tmp_path: Path) -> None:
    """A table with a column "image" of something else, and the columns that --column and --label-column name."""
    table = {"image": [b"pixels"] * 2, 'my "photo"': ["a.jpg", "b.jpg"], "tags": [["#tench"], ["#sun"]]}
    pq.write_table(pa.table(table), tmp_path / "images.parquet")
    (tmp_path / "labels.tsv").write_text("0\tn01\ttench\n")
    out = tmp_path / "targets.parquet"
    command = ["hashtags", "targets", str(tmp_path / "images.parquet"), "--labels", str(tmp_path / "labels.tsv")]
    command += ["--out", str(out), "--label-column", "tags", "--column"]
    assert main([*command, "photos"]) == 2
    assert main([*command, 'my "photo"']) == 0
    assert pq.read_table(out)["image"].to_pylist() == ["a.jpg"]


def test_they_are_trained_on(tmp_path: Path) -> None:
    members = {f"{i:02}.png": picture(i) for i in range(24)} | {"00.txt": b"a caption"}
    source = str(tar(tmp_path / "u.tar", members))
    tags = [["#Red"] if i % 3 == 0 else ["green", "#red"] if i % 3 == 1 else ["#nothing"] for i in range(24)]
    tagged, targets = write(tmp_path / "tags.parquet", tags, index=range(24)), tmp_path / "t.parquet"
    make_targets(tagged, targets, {"red": (0,), "green": (1,)})
    images = relabelled(list_images([source], labelled=False), str(targets), ["red", "green"])
    assert len(images) == 16
    assert images.repeat_factors is not None
    train_set = batches.FromFiles(Recipe((Phase(2, 16),), batch_size=4).resolved(None, None), images)
    assert len(train_set) == int(images.repeat_factors.sum()) >= 16
    found = np.concatenate([batch.labels.numpy() for batch in train_set.batches(0, 0, 0, 1)])
    assert {tuple(row) for row in found.tolist()} == {(1.0, 0.0), (0.5, 0.5)}


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, mapping, table = (str(tmp_path / name) for name in ("labels.tsv", "mapping.tsv", "t.parquet"))
    Path(labels).write_text("".join(f"{label.index}\t{label.synset}\t{label.name}\n" for label in LABELS))
    images = write(tmp_path / "images.parquet", [["#Tench"], ["#sun"], ["#crane"]])
    made, used = ["mapping", "--labels", labels, "--out", mapping], ["--labels", labels, "--mapping", mapping]
    for arguments, status, facts in (
        (made, 0, ("7 hashtags of 5 classes", "1 class: n02")),
        (made, 2, ("--overwrite",)),
        (["count", images, *used, "--out", table], 0, ("3 hashtags of 3 images",)),
        (["targets", images, *used, "--out", table + ".parquet", "--threshold", "0.5"], 0, ("1 of 3 images",)),
        (["targets", images, "--labels", "nothing", "--out", table], 2, ("label set: nothing",)),
        (["targets", images, "--labels", mapping, "--out", table], 2, ("mapping.tsv", "index, synset")),
    ):
        assert main(["hashtags", *arguments]) == status
        told = capsys.readouterr()
        assert all(fact in (told.err if status else told.out) for fact in facts), told
