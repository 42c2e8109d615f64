"""Images with several classes: every form of a table or list means the same, and what is unclear is a question."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from resnext_hub.cli.console import as_options
from resnext_hub.data.labels import list_images
from resnext_hub.data.splits import LabelledImages, hold_out, open_images, train_and_val
from resnext_hub.errors import SourceError
from resnext_hub.evaluation.label_files import find_labelled

from ..support.data_sets import images, picture, table, tar, write

#: Of the six images; the fourth has none of the classes.
LABELS = [["apple", "big pear"], ["apple"], ["fig"], [], ["apple", "fig"], ["big pear", "fig"]]
HOT = [[True, True, False], [True, False, False], [False, False, True], [False] * 3, [True, False, True]]
HOT += [[False, True, True]]
CLASSES = ("apple", "big pear", "fig")
FLAGS = {name: [int(name in one) for one in LABELS] for name in CLASSES}
NUMBERS = [[CLASSES.index(name) for name in one] for one in LABELS]
SEQUENCE = {"info": {"features": {"label": {"_type": "List", "feature": {"_type": "ClassLabel", "names": CLASSES}}}}}


def lines(path: Path, header: str, *columns: list[Any]) -> str:
    for i, content in enumerate(images()):
        write(path.parent / f"{i}.png", content)
    rows = [",".join(map(str, row)) for row in zip([f"{i}.png" for i in range(6)], *columns, strict=True)]
    return str(write(path, "\n".join([header, *rows])))


def json_lines(path: Path) -> str:
    lines(path, "")
    rows = [{"image": f"{i}.png", "label": one} for i, one in enumerate(LABELS)]
    return str(write(path, "\n".join(map(json.dumps, rows))))


def shard(path: Path) -> str:
    parts = {f"{i}.{end}": data for i, one in enumerate(LABELS) for end, data in
             (("png", images()[i]), ("json", json.dumps({"label": one}).encode()))}  # fmt: skip
    return str(tar(path, parts))


def joined(mark: str) -> list[str]:
    return [mark.join(one) or "[]" for one in LABELS]


FORMS: dict[str, tuple[Callable[[Path], Any], dict[str, str]]] = {
    "names in a table": (lambda p: table(p / "t.parquet", {"image": images(), "label": LABELS}), {}),
    "numbers of names": (lambda p: table(p / "t.parquet", {"image": images(), "label": NUMBERS}, SEQUENCE), {}),
    "jsonl": (lambda p: json_lines(p / "l.jsonl"), {}),
    "WebDataset": (lambda p: shard(p / "s.tar"), {}),
    "csv with |": (lambda p: lines(p / "l.csv", "image,label", joined("|")), {}),
    "csv with ;": (lambda p: lines(p / "l.csv", "image,label", joined(" ; ")), {}),
    "csv with another mark": (lambda p: lines(p / "l.csv", "image,label", joined("+")), {"label_separator": "+"}),
    "csv of 0 and 1": (
        lambda p: lines(p / "l.csv", f"image,{','.join(CLASSES)}", *FLAGS.values()),
        {"label_column": "apple,big pear,fig"},
    ),
    "table of 0 and 1": (
        lambda p: table(p / "t.parquet", {"image": images()} | FLAGS),
        {"label_column": "apple,big pear,fig"},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_means_the_same(form: str, tmp_path: Path) -> None:
    make, options = FORMS[form]
    found = open_images(make(tmp_path), **options)
    assert found.classes == CLASSES
    assert found.labels.tolist() == HOT


def test_what_is_not_known_is_left_out_and_none_of_the_classes_is_not(tmp_path: Path) -> None:
    listing = list_images([lines(tmp_path / "l.csv", "image,label", ["a|b", "", "-1", "[]", "b", "3"])])
    assert listing.labels == [("a", "b"), (), ("b",), (3,)]
    assert "2 images without a class" in str(listing.passed)
    flags = lines(tmp_path / "f.csv", "image,a,b", [1, "", 0, "True", 0, 1], [0, "", 0, "1.0", 1, 0])
    assert list_images([flags], label_column="a,b").labels == [("a",), (), ("a", "b"), ("b",), ("a",)]


@pytest.mark.parametrize(
    ("cells", "answer"),
    [
        (["red car", "red", "car", "car bus", "bus", "red bus"], " "),
        (['"a,b"', "a", "b", "c", '"b,c"', '"a,c"'], ","),
        (["a|b;c", "a", "b", "c", "a", "a"], "|"),
    ],
)
def test_one_class_or_several_is_a_question_with_an_answer(cells: list[str], answer: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "l.csv", "image,label", cells)
    with pytest.raises(SourceError, match="label_separator") as raised:
        find_labelled(path)
    quoted = "'|'" if answer == "|" else "','" if answer == "," else "' '"
    assert f"--label-separator {quoted.strip(chr(39)) if answer == ',' else quoted}" in as_options(str(raised.value))
    several = list_images([path], label_separator=answer).labels
    assert all(isinstance(label, tuple) for label in several)
    assert max(len(label) for label in several) == 2  # type: ignore[arg-type]
    one = list_images([path], label_separator="none").labels
    assert one[0] == cells[0].strip('"')


def test_names_of_several_words_are_no_question(tmp_path: Path) -> None:
    names = ["golden retriever", "labrador retriever", "tench, Tinca tinca", "cup", "cup", "cup"]
    path = lines(tmp_path / "l.csv", "image,label", [f'"{name}"' for name in names])
    assert list_images([path]).labels == names


def test_flags_that_cannot_be_used(tmp_path: Path) -> None:
    path = lines(tmp_path / "l.csv", "image,a,b", [1, 0, 1, 0, 1, 0], [0, -1, 1, 0, 1, 0])
    with pytest.raises(SourceError, match="'-1' in the column 'b'"):
        list_images([path], label_column="a,b")
    with pytest.raises(SourceError, match="no column 'c'"):
        list_images([path], label_column="a,c")
    with pytest.raises(SourceError, match="No image"):
        train_and_val(lines(tmp_path / "n.csv", "image,a,b", [0] * 6, [0] * 6), label_column="a,b")


def several(tmp_path: Path, counts: dict[str, int]) -> LabelledImages:
    labels = [key for key, count in counts.items() for _ in range(count)]
    for i in range(len(labels)):
        write(tmp_path / f"{i:03}.png", picture(0))
    rows = [f"{i:03}.png,{label}" for i, label in enumerate(labels)]
    return open_images(write(tmp_path / "l.csv", "\n".join(["image,label", *rows])))


def test_images_are_held_out_by_their_rarest_class(tmp_path: Path) -> None:
    found = several(tmp_path, {"common|rare": 10, "common": 40, "[]": 10})
    taken = hold_out(found, 0, share=0.1)
    assert taken.sum() == 1 + 4 + 1
    assert found.labels[taken].sum(0).tolist() == [5, 1]
    assert found.labels[~taken].any(0).all()
    assert np.array_equal(taken, hold_out(found, 0, share=0.1))


def test_validation_images_with_one_label_each(tmp_path: Path) -> None:
    data = lines(tmp_path / "l.csv", "image,label", joined("|"))
    val = lines(tmp_path / "v.csv", "image,label", ["fig"] * 6)
    train, held, labels = train_and_val(data, val)
    assert train.labels.dtype == held.labels.dtype == bool
    assert held.labels.tolist() == [[False, False, True]] * 6
    assert [label.name for label in labels] == list(CLASSES)
