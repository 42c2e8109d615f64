"""Labelled images in every layout; the order and the augmentation of an epoch."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from resnext_hub.data import parquet
from resnext_hub.data.labels import list_images
from resnext_hub.data.splits import LabelledImages, hold_out, open_images, relabelled, train_and_val
from resnext_hub.errors import SourceError
from resnext_hub.training.batches import (
    FromFiles,
    InMemory,
    class_shares,
    epoch_order,
    train_transform,
    validation_batches,
)
from resnext_hub.training.pixels import PixelTable
from resnext_hub.training.recipe import Phase, Recipe

from ..support.data_sets import FRUIT, NUMBER, fruit, images, picture, table, tar, write

RECIPE = Recipe((Phase(2, 16),), "resnext_tiny", batch_size=8, crop_scale=(0.35, 1.0)).resolved(None, None)


def test_a_spawned_worker_reads_the_same_images(tmp_path: Path) -> None:
    listed = open_images(fruit(tmp_path / "data"))
    again = pickle.loads(pickle.dumps(listed))
    assert [again.read(i) for i in range(6)] == [listed.read(i) for i in range(6)]


def test_numbers_without_names_are_classes_up_to_the_largest(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", {"image": images(), "label": [4, 0, 1, 1, 0, 0]})
    assert open_images(path).classes == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: str(fruit(p / "d") / "apple"), "apple"),
        (lambda p: str(tar(p / "x.tar", {"a.png": picture(1)})), "x.tar"),
        (lambda p: str(tar(p / "x.tar", {"a/readme": b""})), "x.tar"),
        (lambda p: str(table(p / "x.parquet", {"image": images(), "label": ["fig"] * 6})), "'fig'"),
        (lambda p: str(table(p / "x.parquet", {"image": images(), "label": [7] * 6})), "7.* 0 to 1"),
    ],
)
def test_what_cannot_be_used_is_refused(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message):
        open_images(make(tmp_path), ["apple", "pear"])


def test_large_tables_are_read_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "HELD_BYTES", 1)
    monkeypatch.setattr(parquet, "GROUPS_HELD", 1)
    found = open_images(table(tmp_path / "x.parquet", {"image": images(), "label": FRUIT}))
    assert found.blocks == (4, 2)
    assert [NUMBER[found.read(i)] for i in (5, 0, 3, 1, 4, 2)] == [5, 0, 3, 1, 4, 2]
    assert len(parquet._groups) == 1


def test_an_epoch_is_a_permutation_of_its_seed() -> None:
    first = epoch_order(100, 0, 0)
    assert sorted(first) == list(range(100))
    assert (first == epoch_order(100, 0, 0)).all()
    assert (first != epoch_order(100, 0, 1)).any()
    assert (first != epoch_order(100, 1, 0)).any()
    blocks = [10] * 10
    order = epoch_order(100, 0, 0, blocks=blocks)
    assert sorted(order) == list(range(100))
    assert len({i // 10 for i in order[:80]}) == 8  # eight blocks, mixed, and then the others
    assert len({i // 10 for i in order[:20]}) > 2
    repeated = epoch_order(100, 0, 0, repeats=4)
    assert len(repeated) == 100
    assert len(set(repeated)) == 25


def test_augmentation_differs_between_draws_and_not_between_runs(colours: Path) -> None:
    found = open_images(colours / "train.parquet")

    def draw(epoch: int, workers: int = 0, world: int = 1) -> torch.Tensor:
        sets = [FromFiles(RECIPE, found, workers).batches(epoch, 0, rank, world) for rank in range(world)]
        return torch.cat(
            [torch.stack([b.images for b in batches], 2).flatten(1, 2) for batches in zip(*sets, strict=True)]
        )

    first = draw(0)
    assert first.shape[0] == 144
    assert torch.equal(first, draw(0))
    assert torch.equal(first, draw(0, workers=2))
    assert not torch.equal(first, draw(1))
    one = FromFiles(RECIPE, found)
    later = next(iter(one.batches(0, 3, 0, 1)))
    assert torch.equal(later.images, first[24:32])


def test_repeated_images_are_augmented_differently(colours: Path) -> None:
    found = open_images(colours / "train.parquet")
    batch = next(FromFiles(dataclasses.replace(RECIPE, repeats=4), found).batches(0, 0, 0, 1))
    assert (batch.labels[:4] == batch.labels[0]).all()
    assert not torch.equal(batch.images[0], batch.images[1])


@pytest.mark.parametrize(
    "change", [{"auto_augment": "rand"}, {"auto_augment": "trivial"}, {"erasing": 1.0}, {"flip": False}]
)
def test_transforms_give_pixels(change: dict[str, object]) -> None:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 40, 30), dtype=torch.uint8)
    out = train_transform(dataclasses.replace(RECIPE, **change), 16)(image)  # type: ignore[arg-type]
    assert out.shape == (3, 16, 16)
    assert out.dtype == torch.uint8


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_mixing_shares_the_targets(mixup: float, cutmix: float, in_memory: bool, colours: Path) -> None:
    found = open_images(colours / "train.parquet")
    recipe = dataclasses.replace(RECIPE, mixup=mixup, cutmix=cutmix)
    train_set = InMemory(recipe, PixelTable.read(found)) if in_memory else FromFiles(recipe, found)
    batch = next(iter(train_set.batches(0, 0, 0, 1)))
    assert batch.labels.shape == (8, 3)
    torch.testing.assert_close(batch.labels.sum(1), torch.ones(8))
    again = next(iter(train_set.batches(0, 0, 0, 1)))
    assert torch.equal(batch.images, again.images)


def test_several_classes_share_a_target() -> None:
    shares = class_shares(torch.tensor([[0, 2, -1], [1, -1, -1], [0, 1, 2]]), 4)
    expected = torch.tensor([[0.5, 0, 0.5, 0], [0, 1, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0]])
    torch.testing.assert_close(shares, expected)


def test_tables_of_labels_by_number(tmp_path: Path) -> None:
    found = list_images([str(fruit(tmp_path / "data"))])

    def chosen(columns: dict[str, Any], *classes: str) -> LabelledImages:
        return relabelled(found, str(table(tmp_path / "t.parquet", columns)), classes or None)

    by_class = chosen({"index": [5, 0, 0], "class": pa.array([1, 0, 1], pa.int32())}, "apple", "pear")
    assert [by_class.name(i) for i in range(3)] == [found.names[i] for i in (5, 0, 0)]
    assert by_class.labels.tolist() == [1, 0, 1]
    several = {"index": [1, 2], "targets": [[0, 1], [2]]}
    assert chosen(several, "a", "b", "c").labels.tolist() == [[0, 1], [2, -1]]
    with pytest.raises(SourceError, match="class 2.* 2 classes"):
        chosen(several, "apple", "pear")
    with pytest.raises(SourceError, match="image 99.* 6 images"):
        chosen({"index": [99], "class": [0]})
    with pytest.raises(SourceError, match="column index"):
        chosen({"image": images(), "label": FRUIT})


def test_a_tenth_of_each_class_is_held_out(tmp_path: Path) -> None:
    for name, count in (("a", 20), ("b", 5), ("c", 1)):
        for i in range(count):
            write(tmp_path / "d" / name / f"{i:02}.png", picture(0))
    found = open_images(tmp_path / "d")
    taken = hold_out(found, 0, share=0.1)
    assert np.bincount(found.labels[~taken]).tolist() == [18, 4, 1]
    assert np.bincount(found.labels[taken], minlength=3).tolist() == [2, 1, 0]
    (tmp_path / "d").rename(tmp_path / "moved")
    assert (hold_out(open_images(tmp_path / "moved"), 0, share=0.1) == taken).all()
    assert (hold_out(found, 1, share=0.1) != taken).any()
    some = hold_out(found, 0, count=13)
    assert np.bincount(found.labels[some], minlength=3).tolist() == [10, 3, 0]  # half of each, never the last ones


def test_parts_and_names_of_a_data_set(colours: Path, tmp_path: Path) -> None:
    train, held, labels = train_and_val(str(colours))
    assert (len(train), len(held)) == (144, 48)
    assert [(i.index, i.synset, i.name) for i in labels] == [(n, f"n{n + 1}", f"name of n{n + 1}") for n in range(3)]
    for i in range(4):
        write(tmp_path / "d" / "n01440764" / f"{i}.png", picture(i))
    train, held, labels = train_and_val(str(tmp_path / "d"))
    assert (len(train), len(held)) == (3, 1)
    assert labels[0].name == "tench, Tinca tinca"
    order = write(tmp_path / "order.tsv", "0\tpear\ta pear\n1\tapple\tan apple\n2\tfig\ta fig\n")
    *_, labels = train_and_val(str(fruit(tmp_path / "fruit")), classes=str(order))
    assert [label.name for label in labels] == ["a pear", "an apple", "a fig"]


def test_validation_sees_what_the_network_will_get(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = open_images(fruit(tmp_path / "data"))  # images 0, 3, 4, 1, 5, 2
    write(tmp_path / "data" / "pear" / "1.png", b"broken")
    got = list(validation_batches(found, RECIPE, rank=1, world=2, workers=0, size=2))
    assert [(list(x.shape), y.tolist()) for x, y in got] == [([2, 3, 16, 16], [0, -1]), ([1, 3, 16, 16], [2])]
    everything = torch.cat([y for _, y in validation_batches(found, RECIPE, rank=0, world=1, workers=0)])
    assert everything.tolist() == [0, 0, 1, -1, 2, 2]
    assert "1.png" in caplog.text
