"""The table of docs/data.md: one data set in every layout means the same to classify, evaluate, train and selection."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from resnext_hub.curation import selection
from resnext_hub.data import columns, file_names
from resnext_hub.data.file_names import Passed
from resnext_hub.data.labels import list_images
from resnext_hub.data.source import shards
from resnext_hub.data.splits import relabelled, train_and_val
from resnext_hub.errors import SourceError
from resnext_hub.evaluation.label_files import find_labelled
from resnext_hub.inference.bulk import classify_many

from ..support.data_sets import (
    CLASS_LABEL,
    FRUIT,
    NAMES,
    NUMBER,
    NUMBERS,
    fruit,
    images,
    members,
    picture,
    table,
    tar,
    write,
    zipped,
    zstd,
)

pytest.importorskip("duckdb")


def paths(top: Path) -> list[str]:
    fruit(top / "images")
    return [str(next((top / "images").rglob(f"{i}.png"))) for i in range(len(FRUIT))]


def listed(path: Path, top: Path, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    rows = [("image", "label"), *zip(paths(top), FRUIT, strict=True)]
    path.write_text("\r\n".join(delimiter.join(row) for row in rows), encoding, newline="")
    return path


def in_store(top: Path) -> str:
    store = fsspec.filesystem("memory")
    for name, data in members().items():
        store.pipe_file(f"/{top.name}/{name}", data)
    return f"memory://{top.name}"


def linked(top: Path) -> Path:
    fruit(top / "real")
    (top / "data").mkdir()
    for name in set(FRUIT):
        os.symlink(top / "real" / name, top / "data" / name)
    return top / "data"


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def rows(top: Path) -> list[dict[str, str]]:
    return [{"file_name": path, "label": name} for path, name in zip(paths(top), FRUIT, strict=True)]


def structs() -> list[dict[str, bytes | None]]:
    return [{"bytes": image, "path": None} for image in images()]


def encoded(values: Sequence[str]) -> pa.Array:
    return pa.array(values).dictionary_encode()


def columns_of(top: Path, metadata: dict[str, Any] | None = None, **columns: Any) -> Path:
    return table(top / "t.parquet", columns, metadata)


def two_tables(top: Path) -> Path:
    for i in (0, 3):
        table(top / f"part-{i}.parquet", {"image": images()[i : i + 3], "label": FRUIT[i : i + 3]})
    return top


def two_shards(top: Path) -> str:
    for k in (0, 1):
        tar(top / f"s-{k:02}.tar", {n: d for n, d in members(labels="cls").items() if int(n[0]) // 3 == k})
    return f"{top}/s-{{00..01}}.tar"


class Layout(NamedTuple):
    make: Callable[[Path], Any]
    order: str = "written"  #: of the images: as they are written, sorted by class folder, or as a folder is walked


SORTED, WALKED = "sorted", "walked"
LAYOUTS: dict[str, Layout] = {
    "class folders": Layout(lambda p: fruit(p / "d"), WALKED),
    "class folders in a hidden folder": Layout(lambda p: fruit(p / ".cache" / "d"), WALKED),
    "class folders in a folder with brackets": Layout(lambda p: fruit(p / "set [v2]*"), WALKED),
    "class folders one level too deep": Layout(lambda p: fruit(p / "d" / "d").parent, WALKED),
    "linked class folders": Layout(linked, WALKED),
    "a pattern of class folders": Layout(lambda p: f"{fruit(p / 'd')}/**/*.png", WALKED),
    "class folders in a store": Layout(in_store, SORTED),
    "csv": Layout(lambda p: listed(p / "l.csv", p)),
    "csv with a BOM": Layout(lambda p: listed(p / "l.csv", p, encoding="utf-8-sig")),
    "tsv in UTF-16": Layout(lambda p: listed(p / "l.tsv", p, "\t", "utf-16")),
    "jsonl": Layout(lambda p: write(p / "l.jsonl", "\n".join(map(json.dumps, rows(p))))),
    "a list of paths in class folders": Layout(lambda p: write(p / "l.txt", "\n".join(sorted_paths(p))), SORTED),
    "a list in UTF-16": Layout(lambda p: write(p / "l.txt", "\r\n".join(sorted_paths(p)).encode("utf-16")), SORTED),
    "a list with a BOM": Layout(lambda p: write(p / "l.txt", "\r\n".join(sorted_paths(p)).encode("utf-8-sig")), SORTED),
    "table of bytes": Layout(lambda p: table(p / "t.parquet", {"jpg": images(), "class": FRUIT})),
    "table of paths": Layout(lambda p: table(p / "t.parquet", {"path": paths(p), "wnid": FRUIT})),
    "table of paths in class folders": Layout(lambda p: table(p / "t.parquet", {"path": sorted_paths(p)}), SORTED),
    "string views": Layout(lambda p: columns_of(p, path=pa.array(paths(p), pa.string_view()), label=FRUIT)),
    "dictionaries": Layout(lambda p: columns_of(p, path=encoded(paths(p)), label=encoded(FRUIT))),
    "large binary": Layout(lambda p: columns_of(p, image=pa.array(images(), pa.large_binary()), labels=FRUIT)),
    "binary views": Layout(lambda p: columns_of(p, image=pa.array(images(), pa.binary_view()), target=FRUIT)),
    "Hugging Face": Layout(lambda p: columns_of(p, CLASS_LABEL, img=pa.array(structs(), STRUCT), label=NUMBERS)),
    "a folder of tables": Layout(lambda p: two_tables(p / "d")),
    "tar of class folders": Layout(lambda p: tar(p / "t.tar", members())),
    "tar with a folder around them": Layout(lambda p: tar(p / "t.tar", members("./fruit/"))),
    "tar.gz": Layout(lambda p: tar(p / "t.tar.gz", members(), gzip.compress)),
    "tar.bz2": Layout(lambda p: tar(p / "t.tar.bz2", members(), bz2.compress)),
    "tar.xz": Layout(lambda p: tar(p / "t.tar.xz", members(), lzma.compress)),
    "tar.zst": Layout(lambda p: tar(p / "t.tar.zst", members(), zstd)),
    "zip": Layout(lambda p: zipped(p / "t.zip", members("fruit/"))),
    "WebDataset, .cls": Layout(lambda p: tar(p / "t.tar", members(labels="cls"))),
    "WebDataset, .json": Layout(lambda p: tar(p / "t.tar", members(labels="json"))),
    "WebDataset shards": Layout(lambda p: two_shards(p)),
}


def sorted_paths(top: Path) -> list[str]:
    return sorted(paths(top), key=lambda p: p.replace("deep/er/", ""))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_command_means_the_same(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    data = str(layout.make(tmp_path))
    expected = list(range(6)) if layout.order == "written" else sorted(range(6), key=lambda i: (FRUIT[i], i))
    if layout.order == "walked":
        expected = [0, 3, 4, 1, 5, 2]  # the files of a folder before those of its folder "deep"

    # classify: the images that an engine sees, in order
    found = [NUMBER[item.read()] for shard in shards([data], 4) for item in shard.items()]
    assert found == expected
    done = classify_many(data, tmp_path / "p.parquet", "resnext_tiny", engine="torch", top=2, progress=False)
    assert (done.images, done.errors) == (6, 0)

    # evaluate: the same images, each with its class
    listing = find_labelled(data)
    assert [NUMBER[item.read()] for shard in listing.kept() for item in shard.items()] == expected
    told = [listing.classes[k] if isinstance(k, int) and listing.classes else k for k in listing.labels]
    assert told == [FRUIT[i] for i in expected]

    # train: the same classes, and every image read at random
    train, held, labels = train_and_val(data, share=0.01)
    classes = [label.synset for label in labels]
    assert classes == (NAMES if "Hugging" in name else sorted(set(FRUIT)))
    got = sorted((NUMBER[s.read(i)], classes[s.labels[i]]) for s in (train, held) for i in range(len(s)))
    assert got == sorted(enumerate(FRUIT))
    assert len(held) == 2  # of each class with two images or more

    # selection: numbers of the table are numbers of the source
    selection.select(str(tmp_path / "p.parquet"), tmp_path / "s.parquet", per_class=1, max_classes=1)
    chosen = pq.read_table(tmp_path / "s.parquet").to_pylist()
    again = relabelled(list_images([data], labelled=False), str(tmp_path / "s.parquet"), [str(i) for i in range(200)])
    names = pq.read_table(tmp_path / "p.parquet")["image"].to_pylist()
    for row, i in zip(chosen, range(len(again)), strict=True):
        assert NUMBER[again.read(i)] == expected[row["index"]]
        assert names[row["index"]] == row["image"]


def test_the_documentation_lists_these_layouts(root: Path) -> None:
    table = (root / "docs" / "data.md").read_text().split("<!-- layouts -->")[1]
    assert [line.split("|")[1].strip() for line in table.strip().splitlines()[2:]] == list(LAYOUTS)


def test_the_documentation_lists_these_names(root: Path) -> None:
    text = (root / "docs" / "data.md").read_text()
    for name in (*file_names.IMAGES, *columns.IMAGE_COLUMNS, *columns.LABEL_COLUMNS, *file_names.SPLITS):
        assert f"`{name}`" in text, name


# What was wrong, and what has two readings.


def classes_of(data: Path | str, **options: Any) -> list[str]:
    return [label.synset for label in train_and_val(str(data), **options)[2]]


def test_the_class_is_the_first_folder(tmp_path: Path) -> None:
    for name in ("apple/farm1", "apple/farm2", "pear/farm1"):
        write(tmp_path / name / "x.png", picture(0))
    assert find_labelled(str(tmp_path)).labels == ["apple", "apple", "pear"]
    assert classes_of(tmp_path) == ["apple", "pear"]


@pytest.mark.parametrize("names", [("Training", "Testing"), ("train", "test")])
def test_a_test_split_is_not_trained_on(names: tuple[str, str], tmp_path: Path) -> None:
    for name in names:
        fruit(tmp_path, name)
    said: list[str] = []
    train, held, labels = train_and_val(str(tmp_path), say=said.append)
    assert [label.synset for label in labels] == ["apple", "fig", "pear"]
    assert len(train) + len(held) == 6
    assert all(names[0] in s.name(i) for s in (train, held) for i in range(len(s)))
    assert any("2 of 6" in line and "held out" in line for line in said)
    with pytest.raises(SourceError, match="split="):
        find_labelled(str(tmp_path))
    tested = find_labelled(str(tmp_path), split="test")
    assert all(names[1] in (name or "") for name in tested.names)
    assert len(tested) == 6


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "VALID"])
def test_a_validation_split_by_any_name(name: str, tmp_path: Path) -> None:
    for split in ("train", name, "test"):
        fruit(tmp_path, split)
    train, held, _ = train_and_val(str(tmp_path))
    assert (len(train), len(held)) == (6, 6)
    assert all(f"/{name}/" in held.name(i) for i in range(6))
    assert all(f"/{name}/" in (n or "") for n in find_labelled(str(tmp_path)).names)


def test_splits_in_tables_and_archives(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        table(tmp_path / "t" / f"{split}-00000-of-00001.parquet", {"image": images(), "label": FRUIT})
        tar(tmp_path / "a" / split / "0000.tar", members())
    zipped(tmp_path / "z.zip", members("set/train/") | members("set/valid/"))
    for data in (tmp_path / "t", tmp_path / "a", tmp_path / "z.zip"):
        train, held, labels = train_and_val(str(data))
        assert (len(train), len(held), len(labels)) == (6, 6, 3)
        assert len(find_labelled(str(data))) == 6


@pytest.mark.parametrize("others", [("train", "bus"), ("train", "training"), ("val", "dev", "train")])
def test_two_readings_are_a_question(others: tuple[str, ...], tmp_path: Path) -> None:
    for name in others:
        fruit(tmp_path, name)
    for use in (find_labelled, train_and_val):
        with pytest.raises(SourceError, match="split='none'"):
            use(str(tmp_path))
        use(str(tmp_path), split="none")
    assert classes_of(tmp_path, split="none") == sorted(others)


def test_two_images_of_one_stem(tmp_path: Path) -> None:
    """classify counts images; a label by number must reach the same one in training."""
    content = {"a.json": b'{"label": "x"}', "b.png": picture(1), "a.png": picture(0), "b.json": b'{"label": "y"}'}
    content |= {"c.png": picture(2), "c.mask.png": picture(3), "c.cls": b"x", "d.png": picture(4), "d.cls": b"y"}
    data = str(tar(tmp_path / "t.tar", content))
    listing = list_images([data])
    assert [NUMBER[listing.images.read(i)] for i in range(5)] == [1, 0, 2, 3, 4]
    assert [NUMBER[item.read()] for item in next(shards([data], 9)).items()] == [1, 0, 2, 3, 4]
    assert listing.labels == ["y", "x", "x", "x", "y"]


def test_minus_one_is_no_class(tmp_path: Path) -> None:
    data = str(tar(tmp_path / "t.tar", members(labels="cls") | {"9.png": picture(0), "9.cls": b"-1\n"}))
    table(tmp_path / "t.parquet", {"image": [*images(), picture(0)], "label": [0, 1, 1, 0, 2, 1, -1]})
    for source in (data, str(tmp_path / "t.parquet")):
        listing = list_images([source])
        assert len(listing) == 6
        assert listing.passed == {"images without a class": 1}
        assert len(train_and_val(source)[2]) == 3


def test_hidden_only_below_the_root_and_what_machines_leave(tmp_path: Path) -> None:
    top = fruit(tmp_path / ".hidden" / "d")
    for name in (".x/1.png", "apple/._0.png", "__MACOSX/apple/0.png", "@eaDir/0.png", "apple/Thumbs.db", "desktop.ini"):
        write(top / name, picture(0))
    passed = Passed()
    assert sum(len(s) for s in shards([str(top)], 9, passed=passed)) == 6
    assert passed == {"hidden": 6}
    zipped(tmp_path / "m.zip", members() | {"__MACOSX/apple/._0.png": b"", "apple/._0.png": b"x"})
    assert len(list_images([str(tmp_path / "m.zip")])) == 6
    assert classes_of(tmp_path / "m.zip") == ["apple", "fig", "pear"]


def test_a_ring_of_links_ends(tmp_path: Path) -> None:
    fruit(tmp_path / "d")
    os.symlink(tmp_path / "d", tmp_path / "d" / "apple" / "round")
    passed = Passed()
    assert sum(len(s) for s in shards([str(tmp_path / "d")], 9, passed=passed)) == 6
    assert sum(passed.values()) == 1


def test_photos_that_cannot_be_read_are_rows(tmp_path: Path) -> None:
    """A class of .HEIC does not vanish; a thumbnail in a raw file is not taken for the photo."""
    fruit(tmp_path / "d")
    write(tmp_path / "d" / "dog" / "0.HEIC", b"\0\0\0\x18ftypheic")
    with Image.open(io.BytesIO(picture(0))) as image:
        image.save(tmp_path / "d" / "dog" / "raw.tif")
    (tmp_path / "d" / "dog" / "raw.tif").rename(tmp_path / "d" / "dog" / "1.NEF")
    done = classify_many(str(tmp_path / "d"), tmp_path / "o.csv", "resnext_tiny", engine="torch", progress=False)
    assert (done.images, done.errors) == (8, 2)
    with open(tmp_path / "o.csv", newline="") as file:
        assert [bool(row["error"]) for row in csv.DictReader(file) if "/dog/" in row["image"]] == [True, True]
    assert classes_of(tmp_path / "d") == ["apple", "dog", "fig", "pear"]


def test_passed_over_files_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from resnext_hub.cli import main

    fruit(tmp_path / "d")
    for name in ("a.mov", "apple/b.mov", "notes.txt"):
        write(tmp_path / "d" / name, "x")
    command = ["classify", str(tmp_path / "d"), "--variant", "resnext_tiny", "--out", str(tmp_path / "o.csv")]
    assert main(command) == 0
    assert "3 files passed over: 2 .mov, 1 .txt" in capsys.readouterr().err
    assert find_labelled(str(tmp_path / "d")).passed == {".mov": 2, ".txt": 1}
    said: list[str] = []
    train_and_val(str(tmp_path / "d"), say=said.append)
    assert any("3 files" in line for line in said)
    write(tmp_path / "e" / "a.mov", "x")
    with pytest.raises(SourceError, match=r"1 \.mov"):
        next(shards([str(tmp_path / "e")], 9))


def test_one_column_for_every_command(tmp_path: Path) -> None:
    """A table with class and wnid; Hugging Face's names; a column that no list has."""
    columns = {"image": images(), "class": list(range(6)), "wnid": FRUIT, "kind": ["a", "b"] * 3}
    data = str(table(tmp_path / "t.parquet", columns))
    assert find_labelled(data).labels == list(FRUIT)
    assert classes_of(data) == ["apple", "fig", "pear"]
    assert find_labelled(data, label_column="kind").labels == ["a", "b"] * 3
    assert classes_of(data, label_column="kind") == ["a", "b"]
    with pytest.raises(SourceError, match="no column 'x'"):
        find_labelled(data, column="x")


def test_a_pattern_takes_no_notes_for_a_list(tmp_path: Path) -> None:
    fruit(tmp_path / "d")
    write(tmp_path / "d" / "apple" / "notes.txt", "some words")
    passed = Passed()
    found = [p for s in shards([f"{tmp_path}/d/apple/*"], 9, passed=passed) for p in s.paths]
    assert [Path(p).name for p in found] == ["0.png", "3.png"]
    assert passed == {".txt": 1}


def test_relative_paths_of_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d" / "l.csv", "file,label\nx/0.png,a\n")
    write(tmp_path / "d" / "x" / "0.png", picture(0))
    monkeypatch.chdir(tmp_path)
    (item,) = next(shards(["d/l.csv"], 9)).items()
    assert item.read() == picture(0)
    write(tmp_path / "x" / "0.png", picture(1))
    (item,) = next(shards(["d/l.csv"], 9)).items()
    assert item.read() == picture(1)


def test_a_test_split_without_labels(tmp_path: Path) -> None:
    """As the Hugging Face Hub keeps ImageNet: each label of the test split is -1."""
    write(tmp_path / "README.md", "about it")
    for split, labels in (("train", list(range(6))), ("validation", list(range(6))), ("test", [-1] * 6)):
        table(tmp_path / "data" / f"{split}-00000-of-00001.parquet", {"image": images(), "label": labels})
    assert find_labelled(str(tmp_path)).labels == list(range(6))
    train, held, _ = train_and_val(str(tmp_path))
    assert (len(train), len(held)) == (6, 6)
    with pytest.raises(SourceError, match="label -1"):
        find_labelled(str(tmp_path), split="test")
    with pytest.raises(SourceError, match="no split 'val'"):
        find_labelled(str(tmp_path / "data" / "train-00000-of-00001.parquet"), split="val")
    write(tmp_path / "saved" / "data-00000-of-00001.arrow", "as save_to_disk writes it")
    with pytest.raises(SourceError, match="to_parquet"):
        find_labelled(str(tmp_path / "saved"))
