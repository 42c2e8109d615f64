"""Labelled images in every layout; the order and the augmentation of an epoch."""

from __future__ import annotations

import dataclasses
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
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

from ..support.data_sets import tar

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
fsspec = pytest.importorskip("fsspec")

RECIPE = Recipe((Phase(2, 16),), "resnext_tiny", batch_size=8, crop_scale=(0.35, 1.0)).resolved(None, None)
NAMES = [f"{kind}{i}" for i in range(3) for kind in ("apple", "pear")]


def encoded(number: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (number * 20, 255 - number * 20, number)).save(file, kind)
    return file.getvalue()


def colour(images: LabelledImages, i: int) -> int:
    with Image.open(io.BytesIO(images.read(i))) as image:
        return image.convert("RGB").getpixel((0, 0))[0] // 20  # type: ignore[index, return-value]


def folder(path: Path) -> Path:
    for i, name in enumerate(NAMES):
        where = path / name[:-1] / ("deep" if i == 4 else "")
        where.mkdir(parents=True, exist_ok=True)
        (where / f"{name}.png").write_bytes(encoded(i))
    (path / "notes.png").write_bytes(encoded(0))  # not in a class
    (path / "apple" / "readme.txt").write_text("no image")
    return path


def table(path: Path, **more: object) -> Path:
    columns: dict[str, object] = {"image": [encoded(i) for i in range(6)], "label": [n[:-1] for n in NAMES]} | more
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_a_spawned_worker_reads_the_same_images(tmp_path: Path) -> None:
    images = open_images(folder(tmp_path / "data"))
    again = pickle.loads(pickle.dumps(images))
    assert [again.read(i) for i in range(6)] == [images.read(i) for i in range(6)]


def test_classes_are_found_and_sorted(tmp_path: Path) -> None:
    assert open_images(folder(tmp_path / "data")).classes == ("apple", "pear")
    assert open_images(table(tmp_path / "x.parquet", label=[4, 0, 1, 1, 0, 0])).classes == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: str(p / "none"), "No such file, folder or pattern"),
        (lambda p: str(folder(p / "d") / "apple" / "deep"), "has no class folders"),
        (lambda p: str(tar(p / "x.tar", {"a.png": encoded(1)})), "no class folders"),
        (lambda p: str(tar(p / "x.tar", {"a/readme": b""})), "No images in"),
        (lambda p: str(table(p / "x.parquet", label=["fig"] * 6)), "class 'fig' is not one of the 2"),
        (lambda p: str(table(p / "x.parquet", label=[7] * 6)), "class indices are from 7 to 7, expected 0 to 1"),
        (lambda p: str(p / "*.parquet"), "No such"),
    ],
)
def test_what_cannot_be_used_is_refused(make: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message):
        open_images(make(tmp_path), ["apple", "pear"])  # type: ignore[operator]


def test_large_tables_are_read_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resnext_hub.data.parquet.HELD_BYTES", 1)
    monkeypatch.setattr("resnext_hub.data.parquet.GROUPS_HELD", 2)
    images = open_images(table(tmp_path / "x.parquet"))
    assert images.blocks == (2, 2, 2)
    assert [colour(images, i) for i in (5, 0, 3, 1, 4, 2)] == [5, 0, 3, 1, 4, 2]
    assert len(parquet._groups) == 2


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
    images = open_images(colours / "train.parquet")

    def draw(epoch: int, workers: int = 0, world: int = 1) -> torch.Tensor:
        sets = [FromFiles(RECIPE, images, workers).batches(epoch, 0, rank, world) for rank in range(world)]
        return torch.cat(
            [torch.stack([b.images for b in batches], 2).flatten(1, 2) for batches in zip(*sets, strict=True)]
        )

    first = draw(0)
    assert first.shape[0] == 144
    assert torch.equal(first, draw(0))
    assert torch.equal(first, draw(0, workers=2))
    assert not torch.equal(first, draw(1))
    one = FromFiles(RECIPE, images)
    later = next(iter(one.batches(0, 3, 0, 1)))
    assert torch.equal(later.images, first[24:32])


def test_repeated_images_are_augmented_differently(colours: Path) -> None:
    images = open_images(colours / "train.parquet")
    batch = next(FromFiles(dataclasses.replace(RECIPE, repeats=4), images).batches(0, 0, 0, 1))
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
    images = open_images(colours / "train.parquet")
    recipe = dataclasses.replace(RECIPE, mixup=mixup, cutmix=cutmix)
    train_set = InMemory(recipe, PixelTable.read(images)) if in_memory else FromFiles(recipe, images)
    batch = next(iter(train_set.batches(0, 0, 0, 1)))
    assert batch.labels.shape == (8, 3)
    torch.testing.assert_close(batch.labels.sum(1), torch.ones(8))
    again = next(iter(train_set.batches(0, 0, 0, 1)))
    assert torch.equal(batch.images, again.images)


def test_several_classes_share_a_target(tmp_path: Path) -> None:
    shares = class_shares(torch.tensor([[0, 2, -1], [1, -1, -1], [0, 1, 2]]), 4)
    expected = torch.tensor([[0.5, 0, 0.5, 0], [0, 1, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0]])
    torch.testing.assert_close(shares, expected)
    images = open_images(table(tmp_path / "x.parquet", label=[[0, 2], [1], [0], [2], [1, 2], [0]]))
    assert images.classes == ("0", "1", "2")
    assert images.labels.tolist()[:2] == [[0, 2], [1, -1]]


def test_tables_of_labels_by_number(tmp_path: Path) -> None:
    images = list_images([str(folder(tmp_path / "data"))])
    names = [images.names[i] for i in (5, 0, 0)]
    pq.write_table(pa.table({"index": [5, 0, 0], "class": pa.array([1, 0, 1], pa.int32())}), tmp_path / "s.parquet")
    chosen = relabelled(images, str(tmp_path / "s.parquet"), ["apple", "pear"])
    assert [chosen.name(i) for i in range(3)] == names
    assert chosen.labels.tolist() == [1, 0, 1]
    pq.write_table(pa.table({"index": [1, 2], "targets": [[0, 1], [2]]}), tmp_path / "t.parquet")
    assert relabelled(images, str(tmp_path / "t.parquet"), ["a", "b", "c"]).labels.tolist() == [[0, 1], [2, -1]]
    with pytest.raises(SourceError, match="class 2, but only 2 classes"):
        relabelled(images, str(tmp_path / "t.parquet"), ["apple", "pear"])
    pq.write_table(pa.table({"index": [99], "class": [0]}), tmp_path / "u.parquet")
    with pytest.raises(SourceError, match="image 99, .* 6 images"):
        relabelled(images, str(tmp_path / "u.parquet"))
    with pytest.raises(SourceError, match="column index"):
        relabelled(images, str(table(tmp_path / "v.parquet")))


def test_a_tenth_of_each_class_is_held_out(tmp_path: Path) -> None:
    for name, count in (("a", 20), ("b", 5), ("c", 1)):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "d" / name / f"{i:02}.png").write_bytes(encoded(0))
    images = open_images(tmp_path / "d")
    taken = hold_out(images, 0, share=0.1)
    assert np.bincount(images.labels[~taken]).tolist() == [18, 4, 1]
    assert np.bincount(images.labels[taken], minlength=3).tolist() == [2, 1, 0]
    (tmp_path / "d").rename(tmp_path / "moved")
    assert (hold_out(open_images(tmp_path / "moved"), 0, share=0.1) == taken).all()
    assert (hold_out(images, 1, share=0.1) != taken).any()
    some = hold_out(images, 0, count=13)
    assert np.bincount(images.labels[some], minlength=3).tolist() == [10, 3, 0]  # half of each, never the last ones


def test_parts_and_names_of_a_data_set(colours: Path, tmp_path: Path) -> None:
    train, held, labels = train_and_val(str(colours))
    assert (len(train), len(held)) == (144, 48)
    assert [(i.index, i.synset, i.name) for i in labels] == [(n, f"n{n + 1}", f"name of n{n + 1}") for n in range(3)]
    (tmp_path / "d" / "n01440764").mkdir(parents=True)
    for i in range(4):
        (tmp_path / "d" / "n01440764" / f"{i}.png").write_bytes(encoded(i))
    train, held, labels = train_and_val(str(tmp_path / "d"))
    assert (len(train), len(held)) == (3, 1)
    assert labels[0].name == "tench, Tinca tinca"
    (tmp_path / "order.tsv").write_text("0\tpear\ta pear\n1\tapple\tan apple\n")
    *_, labels = train_and_val(str(folder(tmp_path / "fruit")), classes=str(tmp_path / "order.tsv"))
    assert [label.name for label in labels] == ["a pear", "an apple"]


def test_validation_sees_what_the_network_will_get(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = open_images(folder(tmp_path / "data"))
    (tmp_path / "data" / "pear" / "pear1.png").write_bytes(b"broken")
    got = list(validation_batches(images, RECIPE, rank=1, world=2, workers=0, size=2))
    assert [x.shape for x, _ in got] == [(2, 3, 16, 16), (1, 3, 16, 16)]
    assert torch.cat([y for _, y in got]).tolist() == [0, 1, 1] or -1 in torch.cat([y for _, y in got]).tolist()
    everything = torch.cat([y for _, y in validation_batches(images, RECIPE, rank=0, world=1, workers=0)])
    assert sorted(everything.tolist()) == [-1, 0, 0, 0, 1, 1]
    assert "Counted as wrong" in caplog.text
