"""Sources of every kind -> items: local, behind http, and in object stores."""

from __future__ import annotations

import gzip
import shutil
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import fsspec
import fsspec.core
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from resnext_hub.data import parquet
from resnext_hub.data import source as sources
from resnext_hub.data.shards import Item
from resnext_hub.errors import FetchError, MissingPackageError, PrivateAddressError, SourceError
from resnext_hub.inference.tables import write_table

from ..support.data_sets import ORDER, photo_folder, tar_of
from ..support.made_runs import jpeg


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photo_folder(tmp_path / "images")


def items(*specs: str, **options: Any) -> list[Item]:
    return [item for shard in sources.shards(specs, 3, **options) for item in shard.items()]


def names(*specs: str, **options: Any) -> list[str]:
    return [item.name for item in items(*specs, **options)]


def table_of(kind: str, folder: Path) -> pa.Table:
    content = [(folder / name).read_bytes() for name in ORDER]
    paths = [str(folder / name) for name in ORDER]
    if kind == "paths":
        return pa.table({"label": range(8), "path": paths})
    if kind == "bytes":
        return pa.table({"jpeg": content, "name": ORDER, "wnid": ["n0"] * 8})
    values = [{"bytes": b, "path": p} for b, p in zip(content, ORDER, strict=True)]
    values[1] = {"bytes": None, "path": paths[1]}  # Hugging Face allows that
    return pa.table({"image": values, "label": range(8)})


def store() -> Any:
    return fsspec.filesystem("memory")


@pytest.mark.parametrize("place", ["here", "store", "web"])
@pytest.mark.parametrize(
    "name", ["images", "list.txt", "s.tar", "s.tar.gz", "paths.parquet", "bytes.parquet", "structs.parquet"]
)
def test_items_in_order_from_any_start(name: str, place: str, folder: Path, tmp_path: Path, served: Any) -> None:
    """What is no image is left out; another shard's items need not be read for one's own."""
    path, kind = tmp_path / name, name.partition(".")[0]
    if name == "list.txt":
        path.write_text("\n".join(str(folder / name) for name in ORDER))
    elif kind == "s":
        tar_of(folder, path, "w:gz" if name.endswith("gz") else "w")
    elif name != "images":
        pq.write_table(table_of(kind, folder), path, row_group_size=3)
    source, options = str(path), {}
    if place == "web" and name == "images":
        pytest.skip("there is no listing a folder behind http")
    elif place == "store":
        store().put(str(path), f"/bucket/{name}", recursive=name == "images")
        source = f"memory://bucket/{name}"
    elif place == "web":
        shutil.copy(path, served.folder)
        source, options = f"{served.url}/{name}" + ("?token=1" if kind == "s" else ""), {"private": True}
    found = items(source, **options)
    assert [item.read() for item in found] == [(folder / name).read_bytes() for name in ORDER]
    for shown, expected in zip([item.name for item in found], ORDER, strict=True):
        assert shown.endswith(expected)
    for shard in sources.shards([source], 3, **options):
        every = [item.name for item in shard.items()]
        assert all([item.name for item in shard.items(i)] == every[i:] for i in range(len(every)))
    assert sources.count([source]) == (8 if place == "here" and kind != "s" else None)


def test_patterns_and_several_sources(folder: Path) -> None:
    for specs, expected in (
        (("b/*.jpg", "0.jpg"), "b/1 b/3 b/5 0"),
        (("{0,2,6}.jpg",), "0 2 6"),
        (("{4..6}.jpg",), "4 5 6"),
        (("**/3.jpg",), "b/3"),
    ):
        found = names(*(f"{folder}/{spec}" for spec in specs))
        assert found == [f"{folder}/{name}.jpg" for name in expected.split()]


def test_a_list_of_paths_and_uris(folder: Path, tmp_path: Path, served: Any) -> None:
    (served.folder / "x.jpg").write_bytes(jpeg(50))
    path = tmp_path / "list.txt"
    lines = [str(folder / "0.jpg"), f"{served.url}/x.jpg", (folder / "2.jpg").as_uri(), "", "missing.jpg"]
    path.write_text("\r\n".join(lines))
    found = items(str(path), private=True)
    assert [item.name for item in found] == [line for line in lines if line]
    assert found[0].read() == (folder / "0.jpg").read_bytes()
    assert found[1].read() == jpeg(50)
    assert found[2].read() == (folder / "2.jpg").read_bytes()
    with pytest.raises(FileNotFoundError):
        found[3].read()
    with pytest.raises(PrivateAddressError):
        items(str(path))[1].read()


def test_a_table_whose_column_is_not_plain(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"left": [str(folder / "0.jpg")], "right": [str(folder / "2.jpg")]}), path)
    assert names(str(path), column="right") == [str(folder / "2.jpg")]
    (tmp_path / "no.parquet").write_bytes(b"PAR0")
    for source, column, named in (
        (path, None, "left, right"),
        (path, "middle", "'middle'"),
        ("no.parquet", None, "no"),
    ):
        with pytest.raises(SourceError, match=named):
            names(str(tmp_path / source), column=column)


def test_shards_by_pattern_and_one_that_is_cut_short(folder: Path, tmp_path: Path) -> None:
    whole = tar_of(folder, tmp_path / "s-00.tar")
    with tarfile.open(whole) as archive:
        inside = archive.getmember(ORDER[2]).offset_data + 100
    (tmp_path / "s-01.tar").write_bytes(whole.read_bytes()[:inside])
    (tmp_path / "s-02.tar").write_bytes(whole.read_bytes())
    assert names(f"{tmp_path}/s-{{00,02}}.tar") == names(str(whole), str(tmp_path / "s-02.tar"))
    found = items(f"{tmp_path}/s-*.tar")
    assert len(found) == 8 + 3 + 8
    assert found[10].name == str(tmp_path / "s-01.tar")
    with pytest.raises(FetchError, match=r"s[-01]*\.tar"):
        found[10].read()


@pytest.mark.parametrize("damage", ["flipped", "cut"])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_with_a_damaged_header_says_so(damage: str, mode: str, folder: Path, tmp_path: Path) -> None:
    """What comes after it cannot be found, and must not vanish without a word."""
    whole = tar_of(folder, tmp_path / "whole.tar")
    with tarfile.open(whole) as archive:
        header = archive.getmember(ORDER[4]).offset
    content = bytearray(whole.read_bytes())
    content[header + 3] ^= 1
    damaged = bytes(content) if damage == "flipped" else whole.read_bytes()[: header + 300]
    path = tmp_path / "s.tar"
    path.write_bytes(gzip.compress(damaged) if mode == "w:gz" else damaged)
    found = items(str(path))
    assert [item.name for item in found] == [*(f"{path}/{name}" for name in ORDER[:4]), str(path)]
    with pytest.raises(FetchError, match=r"s[-01]*\.tar"):
        found[-1].read()


REFUSED = [
    "ftp://10.0.0.5/x.jpg",
    "webhdfs://10.0.0.5/x.jpg",
    "github://org:repo@main/x.jpg",
    "simplecache::http://169.254.169.254/x.jpg",
    "memory::http://169.254.169.254/x.jpg",
    "zip://x.jpg::http://169.254.169.254/x.zip",
    "reference://x.jpg",
    "local:///dev/zero",
    "s3:../../dev/zero",
    "memory:/dev/zero",
]


@pytest.mark.parametrize("uri", REFUSED)
def test_schemes_that_lead_anywhere_are_refused(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a list, in a table, and as a source; before anything is opened or connected to."""
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda *a, **k: pytest.fail("too late"))
    (tmp_path / "list.txt").write_text(uri)
    pq.write_table(pa.table({"path": [uri]}), tmp_path / "table.parquet")
    for source in ("list.txt", "table.parquet"):
        (item,) = items(str(tmp_path / source))
        with pytest.raises(FetchError):
            item.read()
    for spec in (uri, uri.replace(".jpg", ".tar"), uri.replace("x.jpg", "*.jpg"), uri.replace("x.jpg", "list.txt")):
        with pytest.raises(SourceError):
            names(spec)


def test_a_file_may_have_colons_in_its_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tar_of(folder, tmp_path / "zip::a.tar")
    assert len(names("./zip::a.tar")) == 8


def test_a_table_from_the_web_is_fetched_once(folder: Path, served: Any) -> None:
    pq.write_table(table_of("bytes", folder), served.folder / "t.parquet")
    found = list(sources.shards([f"{served.url}/t.parquet"], 3, private=True))
    assert [len(list(shard.items())) for shard in found] == [3, 3, 2]
    assert sum("t.parquet" in line for line in served.log) == 1
    pq.write_table(table_of("paths", folder), served.folder / "t.parquet")
    again = list(sources.shards([f"{served.url}/t.parquet"], 3, private=True))
    assert again[0].fingerprint() != found[0].fingerprint()
    parquet._tables.clear()  # as on another machine
    with pytest.raises(FetchError):
        next(iter(found[0].items())).read()


@pytest.mark.parametrize("where", ["here", "store"])
def test_a_file_that_was_replaced_has_another_fingerprint(where: str, folder: Path, tmp_path: Path) -> None:
    """With as many rows and bytes as before."""
    for name in ("t.parquet", "s.tar", *(["x.jpg"] if where == "here" else [])):
        path = tmp_path / name
        uri = str(path) if where == "here" else f"memory://replaced/{name}"
        found = []
        for value in ("a", "b"):
            if name == "x.jpg":
                path.write_bytes(value.encode())
            elif name == "s.tar":
                tar_of(folder, path)
            else:
                pq.write_table(pa.table({"path": [value] * 4}), path)
            store().pipe_file(f"/replaced/{name}", path.read_bytes())
            (shard,) = sources.shards([uri], 10)
            assert shard.fingerprint() == shard.fingerprint()
            found.append(shard.fingerprint())
            time.sleep(0.02)
        assert found[0] != found[1]


class Sick(fsspec.get_filesystem_class("memory")):
    """A store whose errors are its own."""

    protocol = "memory"
    cachable = False

    def _fail(self, *arguments: Any, **options: Any) -> Any:
        raise LookupError("the store is ill")

    glob = isdir = ls = info = open = cat_file = _fail


def test_errors_of_a_store_name_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda uri, **k: (Sick(), uri.partition("://")[2]))
    for spec in ("b/*.jpg", "b/folder", "b/list.txt", "b/t.parquet"):
        with pytest.raises(SourceError, match="the store is ill"):
            names(f"memory://{spec}")
    for spec in ("b/s.tar", "b/0.jpg"):
        (item,) = items(f"memory://{spec}")
        with pytest.raises(FetchError, match="the store is ill"):
            item.read()
    assert "LookupError" in next(iter(sources.shards(["memory://b/s.tar"], 1))).fingerprint()


def test_without_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(MissingPackageError, match="fsspec"):
        names("s3://bucket/s.tar")


def test_sources_that_are_refused(tmp_path: Path) -> None:
    for source in (str(tmp_path / "none"), str(tmp_path), "nosuch://x"):
        with pytest.raises(SourceError, match=source):
            names(source)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predictions_are_not_taken_for_labels(suffix: str, folder: Path, tmp_path: Path) -> None:
    table, classified = tmp_path / f"t{suffix}", {"error": [""], "label": ["cat"], "probabilities": [[0.5]]}
    for columns, expected in (({"label": ["cat"]}, True), (classified, False)):
        rows = pa.table({"image": [str(folder / "0.jpg")], **columns})
        write_table(table, suffix, iter([rows]), {})
        (shard,) = sources.shards([str(table)], 16)
        assert [facts.label is not None for facts in shard.facts()] == [expected]
