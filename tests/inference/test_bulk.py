"""Many images -> one table: every source, the same table whatever happens on the way."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import filelock
import fsspec
import fsspec.core
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from resnext_hub import cli
from resnext_hub.data import source as sources
from resnext_hub.data import tables
from resnext_hub.data.shards import Item
from resnext_hub.errors import EngineError, FetchError, MissingPackageError, OutputError, SourceError
from resnext_hub.inference import bulk
from resnext_hub.inference.bulk import classify_many, commit_shards
from resnext_hub.inference.classifier import classifier
from resnext_hub.inference.tables import Parts

from ..support import made_runs
from ..support.made_runs import JOB, TINY, Made, jpeg, made_run, made_work


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images and one that is broken, in two folders, among files that are no images."""
    path = tmp_path / "images"
    (path / "b").mkdir(parents=True)
    for i in range(7):
        (path / ("b" if i % 2 else "") / f"{i}.jpg").write_bytes(jpeg(i))
    (path / "5.jpg").write_bytes(jpeg(5)[:200])
    (path / "notes.txt").write_text("nothing")
    (path / ".hidden.jpg").write_bytes(b"")
    return path


ORDER = ["0.jpg", "2.jpg", "4.jpg", "5.jpg", "6.jpg", "b/1.jpg", "b/3.jpg", "b/5.jpg"]


def items(*specs: str, **options: Any) -> list[Item]:
    return [item for shard in sources.shards(specs, 3, **options) for item in shard.items()]


def names(*specs: str, **options: Any) -> list[str]:
    return [item.name for item in items(*specs, **options)]


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


# Sources.


def test_a_folder_is_walked_in_order_without_what_is_no_image(folder: Path) -> None:
    assert names(str(folder)) == [str(folder / name) for name in ORDER]
    assert sources.count([str(folder)]) == len(ORDER)


def test_patterns_and_several_sources(folder: Path) -> None:
    assert names(f"{folder}/b/*.jpg", f"{folder}/0.jpg") == [
        *(str(folder / f"b/{i}.jpg") for i in (1, 3, 5)),
        str(folder / "0.jpg"),
    ]
    assert names(f"{folder}/{{0,2..4,6}}.jpg".replace("2..4", "2")) == [str(folder / f"{i}.jpg") for i in (0, 2, 6)]
    assert names(f"{folder}/{{4..6}}.jpg") == [str(folder / f"{i}.jpg") for i in (4, 5, 6)]
    assert names(f"{folder}/**/3.jpg") == [str(folder / "b/3.jpg")]


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
    with pytest.raises(FetchError, match="refused"):
        items(str(path))[1].read()


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


@pytest.mark.parametrize("kind", ["paths", "bytes", "structs"])
def test_a_table_of(kind: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(table_of(kind, folder), path, row_group_size=3)
    found = items(str(path))
    assert [item.name for item in found][2:] == ([str(folder / n) for n in ORDER] if kind == "paths" else ORDER)[2:]
    assert [item.read() for item in found] == [(folder / name).read_bytes() for name in ORDER]
    assert sources.count([str(path)]) == 8
    shard = list(sources.shards([str(path)], 5))[1]
    assert [item.name for item in shard.items(2)] == [found[7].name]


def test_a_table_whose_column_is_not_plain(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"left": [str(folder / "0.jpg")], "right": [str(folder / "2.jpg")]}), path)
    with pytest.raises(SourceError, match="column=NAME, one of left, right"):
        names(str(path))
    assert names(str(path), column="right") == [str(folder / "2.jpg")]
    with pytest.raises(SourceError, match="has no column 'middle'"):
        names(str(path), column="middle")
    (tmp_path / "no.parquet").write_bytes(b"PAR0")
    with pytest.raises(SourceError, match=r"no.parquet is not a Parquet table"):
        names(str(tmp_path / "no.parquet"))


def make_tar(path: Path, folder: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name in ORDER:
            archive.add(folder / name, name)
            archive.add(folder / "notes.txt", name.replace("jpg", "cls"))
    return path


@pytest.mark.parametrize(("name", "mode"), [("s.tar", "w"), ("s.tar.gz", "w:gz")])
def test_an_archive(name: str, mode: str, folder: Path, tmp_path: Path) -> None:
    path = make_tar(tmp_path / name, folder, mode)
    found = items(str(path))
    assert [item.name for item in found] == [f"{path}/{name}" for name in ORDER]
    assert [item.read() for item in found] == [(folder / name).read_bytes() for name in ORDER]
    (shard,) = sources.shards([str(path)], 3)
    assert [item.name for item in shard.items(6)] == [f"{path}/{name}" for name in ORDER[6:]]
    assert sources.count([str(path)]) is None


def test_shards_by_pattern_and_one_that_is_cut_short(folder: Path, tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "s-00.tar", folder)
    with tarfile.open(whole) as archive:
        inside = archive.getmember(ORDER[2]).offset_data + 100
    (tmp_path / "s-01.tar").write_bytes(whole.read_bytes()[:inside])
    (tmp_path / "s-02.tar").write_bytes(whole.read_bytes())
    assert names(f"{tmp_path}/s-{{00,02}}.tar") == names(str(whole), str(tmp_path / "s-02.tar"))
    found = items(f"{tmp_path}/s-*.tar")
    assert len(found) == 8 + 3 + 8
    assert found[10].name == str(tmp_path / "s-01.tar")
    with pytest.raises(FetchError, match="is incomplete or corrupt"):
        found[10].read()


@pytest.mark.parametrize("damage", ["flipped", "cut"])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_with_a_damaged_header_says_so(damage: str, mode: str, folder: Path, tmp_path: Path) -> None:
    """What comes after it cannot be found, and must not vanish without a word."""
    whole = make_tar(tmp_path / "whole.tar", folder)
    with tarfile.open(whole) as archive:
        header = archive.getmember(ORDER[4]).offset
    content = bytearray(whole.read_bytes())
    content[header + 3] ^= 1
    damaged = bytes(content) if damage == "flipped" else whole.read_bytes()[: header + 300]
    path = tmp_path / "s.tar"
    path.write_bytes(gzip.compress(damaged) if mode == "w:gz" else damaged)
    found = items(str(path))
    assert [item.name for item in found] == [*(f"{path}/{name}" for name in ORDER[:4]), str(path)]
    with pytest.raises(FetchError, match="is incomplete or corrupt"):
        found[-1].read()


def test_object_storage(folder: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.rm("/bucket", recursive=True) if store.exists("/bucket") else None
    for name in ORDER:
        store.pipe_file(f"/bucket/images/{name}", (folder / name).read_bytes())
    store.pipe_file("/bucket/shard.tar", make_tar(tmp_path / "s.tar", folder).read_bytes())
    uris = [f"memory:///bucket/images/{name}" for name in ORDER]
    store.pipe_file("/bucket/list.txt", "\n".join([*uris, "memory://bucket/none.jpg"]).encode())
    found = items("memory://bucket/images")
    assert [item.name for item in found] == [uri.replace(":///", "://") for uri in uris] or [
        item.name for item in found
    ] == uris
    content = [(folder / name).read_bytes() for name in ORDER]
    assert [item.read() for item in found] == content
    assert [item.read() for item in items("memory://bucket/shard.tar")] == content
    assert [item.read() for item in items("memory://bucket/images/*.jpg")] == content[:5]
    listed = items("memory://bucket/list.txt")
    assert [item.read() for item in listed[:-1]] == content
    with pytest.raises(FileNotFoundError):
        listed[-1].read()
    assert sources.count(["memory://bucket/images"]) is None


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
        with pytest.raises(FetchError, match="Unknown scheme|are not allowed|expected [a-z0-9]+://"):
            item.read()
    for spec in (uri, uri.replace(".jpg", ".tar"), uri.replace("x.jpg", "*.jpg"), uri.replace("x.jpg", "list.txt")):
        with pytest.raises(SourceError, match="Unknown scheme|are not allowed|expected [a-z0-9]+://"):
            names(spec)


def test_a_file_may_have_colons_in_its_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_tar(tmp_path / "zip::a.tar", folder)
    assert len(names("./zip::a.tar")) == 8


def test_the_web(folder: Path, tmp_path: Path, served: Any) -> None:
    make_tar(served.folder / "s.tar", folder)
    pq.write_table(table_of("bytes", folder), served.folder / "t.parquet")
    (served.folder / "0.jpg").write_bytes(jpeg(0))
    (served.folder / "list.txt").write_text(f"{served.url}/0.jpg\n")
    content = [(folder / name).read_bytes() for name in ORDER]
    assert [item.read() for item in items(f"{served.url}/s.tar?token=1", private=True)] == content
    assert [item.read() for item in items(f"{served.url}/t.parquet", private=True)] == content
    assert [item.read() for item in items(f"{served.url}/0.jpg", private=True)] == [jpeg(0)]
    assert [item.read() for item in items(f"{served.url}/list.txt", private=True)] == [jpeg(0)]
    with pytest.raises(SourceError, match="refused"):
        items(f"{served.url}/list.txt")


def test_a_table_from_the_web_is_fetched_once(folder: Path, served: Any) -> None:
    pq.write_table(table_of("bytes", folder), served.folder / "t.parquet")
    found = list(sources.shards([f"{served.url}/t.parquet"], 3, private=True))
    assert [len(list(shard.items())) for shard in found] == [3, 3, 2]
    assert sum("t.parquet" in line for line in served.log) == 1
    pq.write_table(table_of("paths", folder), served.folder / "t.parquet")
    again = list(sources.shards([f"{served.url}/t.parquet"], 3, private=True))
    assert again[0].fingerprint() != found[0].fingerprint()
    tables._tables.clear()  # as on another machine
    with pytest.raises(FetchError, match="has changed since"):
        next(iter(found[0].items())).read()


@pytest.mark.parametrize("where", ["here", "store"])
def test_a_table_or_archive_that_was_replaced_has_another_fingerprint(where: str, folder: Path, tmp_path: Path) -> None:
    """With as many rows and bytes as before."""
    store = fsspec.filesystem("memory")
    for name in ("t.parquet", "s.tar"):
        path = tmp_path / name
        uri = str(path) if where == "here" else f"memory://replaced/{name}"
        found = []
        for value in ("a", "b"):
            if name == "s.tar":
                make_tar(path, folder)
            else:
                pq.write_table(pa.table({"path": [value] * 4}), path)
            store.pipe_file(f"/replaced/{name}", path.read_bytes())
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
    with pytest.raises(MissingPackageError, match="fsspec: pip install pyarrow fsspec tqdm"):
        names("s3://bucket/s.tar")


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file, folder or pattern"):
        names(str(tmp_path / "none"))
    with pytest.raises(SourceError, match="No images in"):
        names(str(tmp_path))
    with pytest.raises(SourceError, match="nosuch://x"):
        names("nosuch://x")


# Tables.


def test_rows_are_what_the_classifier_says(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.parquet"
    done = classify_many(str(folder), out, TINY, top=3, batch=4, grade="reference", features=True, progress=False)
    assert (done.images, done.errors, done.computed) == (8, 1, 8)
    assert os.listdir(out.parent) == [out.name]
    found = rows(out)
    assert [row["index"] for row in found] == list(range(8))
    classify = classifier(TINY, device="cpu")
    for row in found:
        if row["image"].endswith("images/5.jpg"):
            assert "corrupt or incomplete" in row["error"]
            assert [row[key] for key in ("classes", "labels", "synsets", "probabilities", "features")] == [None] * 5
            continue
        expected = classify(row["image"], top=3)
        assert row["error"] is None
        assert row["classes"] == [p.index for p in expected]
        assert row["labels"] == [p.label for p in expected]
        assert row["synsets"] == [p.synset for p in expected]
        assert row["probabilities"] == pytest.approx([p.probability for p in expected], abs=1e-5)
        assert len(row["features"]) == 512
        assert max(row["features"]) > 0
    kind = pq.read_schema(out)
    assert kind.field("features").type == pa.list_(pa.float16(), 512)
    assert kind.names[:3] == ["image", "index", "error"]
    assert json.loads(kind.metadata[b"resnext_hub"])["checkpoint"] == TINY


def test_an_archive_without_images_is_an_error(folder: Path, tmp_path: Path) -> None:
    make_tar(tmp_path / "b.tar", folder)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder / "notes.txt", "notes.txt")
    source = [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    done = classify_many(source, tmp_path / "o.parquet", TINY, features=True, progress=False)
    assert (done.images, done.errors, done.passed) == (9, 2, {".txt": 1})
    assert "no images" in rows(tmp_path / "o.parquet")[0]["error"]
    done = classify_many(source[:1], tmp_path / "p.parquet", TINY, features=True, progress=False)
    assert (done.images, done.errors) == (1, 1)


def test_the_formats_hold_the_same(folder: Path, tmp_path: Path) -> None:
    for suffix in ("parquet", "csv", "jsonl"):
        classify_many(str(folder), tmp_path / f"o.{suffix}", TINY, features=True, progress=False)
    expected = rows(tmp_path / "o.parquet")
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    with open(tmp_path / "o.csv", newline="") as file:
        cells = list(csv.DictReader(file))
    for row, line, cell in zip(expected, lines, cells, strict=True):
        for key, value in row.items():
            read = cell[key] or None
            read = json.loads(read) if read and key in ("index", "classes", "labels", "synsets") else read
            if key in ("probabilities", "features"):
                kind = np.float32 if key == "probabilities" else np.float16
                assert value is None or np.array_equal(np.array(line[key], kind), np.array(value, kind))
                assert (read and json.loads(read)) == line[key]
            else:
                assert line[key] == value
                assert read == value


def test_the_same_bytes_whatever_the_workers_and_the_parts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(7, 60):
        (folder / f"{i}.jpg").write_bytes(jpeg(i))
    written = []
    for workers, seconds in ((1, 30.0), (3, 30.0), (4, 0.0)):
        monkeypatch.setattr(bulk, "COMMIT_SECONDS", seconds)
        out = tmp_path / f"{workers}.parquet"
        classify_many(str(folder), out, TINY, batch=4, workers=workers, progress=False)
        written.append(out.read_bytes())
    assert written[0] == written[1] == written[2]


def test_an_engine_that_is_not_concurrent_is_called_by_one_at_a_time(tmp_path: Path) -> None:
    work = made_work(concurrent=False)
    made_run(tmp_path / "o.parquet", work=work)
    assert work.engine.most == 1
    work = made_work(concurrent=True)
    made_run(tmp_path / "p.parquet", work=work)
    assert work.engine.most > 1
    assert (tmp_path / "o.parquet").read_bytes() == (tmp_path / "p.parquet").read_bytes()


def test_scores_that_are_no_numbers_give_a_row(tmp_path: Path) -> None:
    made_run(tmp_path / "o.parquet", total=20)
    found = rows(tmp_path / "o.parquet")
    assert [i for i, row in enumerate(found) if row["error"]] == [7]
    assert "NaN" in found[7]["error"]
    assert found[8]["classes"] == [0, 1]


def test_the_window_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However slow the engine, no more than a window of chunks is read ahead."""
    taken = finished = 0
    ahead = 0

    def endless() -> Iterator[bulk.Chunk]:
        nonlocal taken, ahead
        for i in range(60):
            taken += 1
            ahead = max(ahead, taken - finished)
            yield bulk.Chunk(0, i, (), i == 59, False, "")

    def slow(items: Any) -> Any:
        nonlocal finished
        time.sleep(0.005)
        finished += 1

    assert len(list(bulk._in_order(endless(), slow, 2))) == 60
    assert ahead <= 2 + 3


class Held:
    """A way to an image that keeps its bytes, as an archive's does; it counts how many there are."""

    alive: ClassVar[weakref.WeakSet[Held]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)

    def __call__(self) -> bytes:
        return b"abc"


class HeldShard(Made):
    def items(self, start: int = 0) -> Iterator[Item]:
        for i in range(start, self.size):
            yield Item(str(i), Held())


def test_images_are_let_go_with_their_chunk(tmp_path: Path) -> None:
    """Rows wait for their part to be committed; the encoded images that they came from do not."""
    most = 0

    def look(rows: int) -> None:
        nonlocal most
        most = max(most, len(Held.alive))

    parts = Parts(tmp_path / "o.parquet", {})
    with parts.opened():
        commit_shards([(0, HeldShard(0, 800))], parts, made_work(), batch=8, workers=2, advance=look)
    assert parts.rows == 800
    assert 0 < most <= 8 * (2 + 2 + 4)  # the window, and what the loops' variables hold


def test_reading_is_ahead_where_it_waits(tmp_path: Path) -> None:
    """Eight items that take 0.1 s each to read are read in the time of one or two."""

    def wait() -> bytes:
        time.sleep(0.1)
        return b"abc"

    chunk = bulk.Chunk(0, 0, tuple(Item(str(i), wait) for i in range(8)), True, True, "")
    start = time.monotonic()
    list(bulk._in_order([chunk], made_work(), 1))
    assert time.monotonic() - start < 0.5


# Stopped and resumed.


def test_an_engine_that_fails_keeps_what_was_done_and_the_run_goes_on(tmp_path: Path) -> None:
    made_run(tmp_path / "whole.parquet")
    out = tmp_path / "o.parquet"
    with pytest.raises(RuntimeError, match="the engine is broken"):
        made_run(out, work=made_work(fail_at=12))
    assert not out.exists()
    with pytest.raises(OutputError, match="resume=True"):
        made_run(out)
    done = made_run(out, resume=True)
    assert 0 < done.computed < 300
    assert done.images == 300
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["o.parquet", "whole.parquet"]


def test_one_that_was_given_up_leaves_the_parts_of_its_successor_alone(tmp_path: Path) -> None:
    """In a cluster. A shorter part in the place of a longer one would leave a hole behind it."""
    ours, theirs = Parts(tmp_path / "o.parquet", {}), Parts(tmp_path / "o.parquet", {})
    with ours.opened():
        commit_shards([(0, Made(0, 5000))], theirs, made_work(), batch=512, workers=2)
        with pytest.raises(RuntimeError, match="the engine is broken"):
            commit_shards([(0, Made(0, 5000))], ours, made_work(fail_at=5), batch=512, workers=2)
        ours.refresh()
        assert ours.rows == 5000


def test_a_table_that_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    out = tmp_path / "o.parquet"
    made_run(out)
    for options in ({}, {"resume": True}):
        with pytest.raises(OutputError, match="exists"):
            made_run(out, **options)
    assert made_run(out, total=10, overwrite=True).images == 10
    assert len(rows(out)) == 10


def test_resuming_another_job_or_a_changed_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "o.parquet"
    with pytest.raises(RuntimeError):
        made_run(out, work=made_work(fail_at=12))
    with pytest.raises(OutputError, match="shard 0 was '0 50', now '0 40'"):
        made_run(out, size=40, resume=True)
    monkeypatch.setattr(made_runs, "JOB", dataclasses.replace(JOB, top=3, grade="fast"))
    with pytest.raises(OutputError, match="grade 'close', now 'fast'; top 2, now 3"):
        made_run(out, resume=True)
    assert made_run(out, overwrite=True).computed == 300


def test_a_complete_table_is_not_resumed(tmp_path: Path) -> None:
    """Whether it is the table of this command cannot be told: a .csv says nothing of how it was made."""
    out, photo = tmp_path / "o.csv", tmp_path / "a.jpg"
    Image.new("RGB", (64, 64)).save(photo)
    command = ["classify", str(photo), "--variant", "resnext_tiny", "--engine", "torch", "--out", str(out)]
    assert cli.main(command) == 0
    made = out.stat().st_mtime_ns
    assert cli.main([*command, "--resume"]) == cli.main(command) == 2
    assert out.stat().st_mtime_ns == made


def test_a_source_that_has_lost_its_last_shards_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "o.parquet"
    with pytest.raises(RuntimeError):
        made_run(out, work=made_work(fail_at=25))
    with pytest.raises(OutputError, match="shards have changed"):
        made_run(out, total=50, resume=True)


def test_two_runs_for_one_table_exclude_each_other(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "o.parquet", {})
    with parts.opened(), pytest.raises(OutputError, match="Another process is writing"):
        made_run(tmp_path / "o.parquet", overwrite=True)


def test_a_full_disk(small_disk: Callable[[int], Path], tmp_path: Path) -> None:
    disk = small_disk(120_000)
    out = disk / "o.jsonl"
    with pytest.raises(OutputError, match=r"the disk is full. .*\([\d,]+\) are kept in .*resume=True"):
        made_run(out, total=5000)
    assert not out.exists()
    assert not list(disk.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=8000000", disk], check=True)
    done = made_run(out, total=5000, resume=True)
    assert done.computed < 5000
    made_run(tmp_path / "whole.jsonl", total=5000)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


COMMAND = [sys.executable, "-m", "resnext_hub", "classify"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_killed_and_resumed(number: signal.Signals, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(160):
        (folder / f"{i:03d}.jpg").write_bytes(jpeg(i) if i % 20 else b"broken")
    out = tmp_path / "o.parquet"
    command = [*COMMAND, str(folder), "--variant", TINY, "--out", str(out), "--batch", "4", "--workers", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    script = (
        "import signal, sys, time\nfrom resnext_hub import cli\nfrom resnext_hub.inference import bulk\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells let what they start aside ignore it
        "bulk.COMMIT_SECONDS = 0.0\n"
        "score = bulk.Work._scores\n"
        "def slow(self, pixels):\n    time.sleep(0.2)\n    return score(self, pixels)\n"
        "bulk.Work._scores = slow\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    parts = tmp_path / "o.parquet.parts"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *command[3:]], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while len(list(parts.glob("part-*.parquet"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert output == b""
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert b"--resume" in errors
        assert b"Traceback" not in errors
        assert not list(parts.glob("*.tmp"))
    assert not out.exists()
    assert len(list(parts.glob("part-*.parquet"))) >= 3
    again = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "160 images" in again.stderr
    assert "8 images could not be used" in again.stderr
    assert again.stdout == ""
    assert not parts.exists()
    whole = tmp_path / "whole.parquet"
    assert cli.main([*command[3:], "--out", str(whole)]) == 1
    assert whole.read_bytes() == out.read_bytes()
    assert [row["image"] for row in rows(out)] == [str(folder / f"{i:03d}.jpg") for i in range(160)]


# The command line.


def test_the_command(folder: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "o.jsonl"
    command = ["classify", str(folder), "--variant", TINY, "--out", str(out), "--top", "2", "--batch", "3"]
    assert cli.main(command) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "8 images" in captured.err
    assert "1 image could not be used" in captured.err
    assert [len(json.loads(line)["classes"] or "") for line in out.read_text().splitlines()] == [2, 2, 2, 0, 2, 2, 2, 2]
    assert cli.main(command) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    (folder / "5.jpg").unlink()
    assert cli.main([*command, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--resume"], "pass --out FILE"),
        (["x", "--out", "o.csv", "--gpus", "1"], "pass --cluster ray"),
        (["x", "--out", "o.csv", "--json"], "--json and --picture cannot be used with --out"),
        (["x", "--out", "o.xls"], "must end in one of .parquet, .csv, .jsonl"),
        (["/no/such", "--out", "{tmp}/o.csv"], "No such file, folder or pattern: /no/such"),
        (["x", "--out", "o.csv", "--resume", "--overwrite"], "either --resume or --overwrite"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: Any, tmp_path: Path) -> None:
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    assert cli.main(["classify", "--variant", TINY, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_is_wrong_is_said_before_an_engine_is_built(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "open_engine", lambda *a, **k: pytest.fail("too early"))
    (tmp_path / "there.csv").write_text("")
    for source, out in ((folder, "there.csv"), (folder, "o.xls"), (tmp_path / "none", "o.csv")):
        with pytest.raises((SourceError, OutputError)):
            classify_many(str(source), tmp_path / out, TINY)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"grade": "x"}, ValueError, "grade 'x'.* reference, close, fast"),
        ({"top": 0}, ValueError, "top must be from 1 to 200"),
        ({"top": 201}, ValueError, "top must be from 1 to 200"),
        ({"batch": 0}, ValueError, "batch must be 1"),
        ({"workers": 0}, ValueError, "workers must be 1"),
        ({"engine": "x"}, EngineError, "engine 'x'"),
        ({"nonsense": 1}, TypeError, "option 'nonsense'"),
    ],
)
def test_wrong_options_leave_nothing_behind(
    options: dict[str, Any], error: type[Exception], message: str, folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(bulk, "open_engine", lambda *a, **k: pytest.fail("too early"))
    with pytest.raises(error, match=message):
        classify_many(str(folder), tmp_path / "o.csv", TINY, progress=False, **options)
    assert os.listdir(tmp_path) == ["images"]


def test_a_folder_as_the_table_is_refused_before_the_run(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "o.csv").mkdir()
    with pytest.raises(OutputError, match=r"o.csv is a folder"):
        made_run(tmp_path / "o.csv", overwrite=True)
    assert not (tmp_path / "o.csv.parts").exists()


@pytest.mark.parametrize("where", ["exists", "acquire", "run"])
def test_a_folder_that_may_not_be_written_is_a_sentence(
    where: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    owner = {"exists": Path, "acquire": filelock.FileLock, "run": bulk}[where]
    out = tmp_path / "o.csv"
    with monkeypatch.context() as patched:
        if where == "exists":
            real = Path.exists
            patched.setattr(Path, "exists", lambda path: refuse() if path.name == "job.json" else real(path))
        else:
            patched.setattr(owner, where, refuse)
        assert cli.main(["classify", str(folder), "--variant", TINY, "--out", str(out)]) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_without_tqdm(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(MissingPackageError, match="tqdm: pip install pyarrow fsspec tqdm"):
        classify_many(str(folder), tmp_path / "o.csv", TINY, progress=True)
    assert os.listdir(tmp_path) == ["images"]


def test_one_shard_is_looked_up_by_the_names_of_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by listing the folder: there may be a million others in it."""
    parts = Parts(tmp_path / "o.parquet", {})
    with parts.opened():
        numbered = [(0, Made(0, 40)), (1, Made(40, 40)), (2, Made(0, 0))]
        commit_shards(numbered, parts, made_work(), batch=8, workers=2, commit_seconds=0)
        whole = dict(parts.done)
        monkeypatch.setattr(Path, "glob", lambda *a: pytest.fail("listed"))
        for number, last in whole.items():
            parts.refresh(number)
            assert parts.done == {number: last}
            assert parts.rows == (40 if number < 2 else 0)
        parts.refresh(3)
        assert (parts.done, parts.rows) == ({}, 0)


def test_without_pyarrow(run_python: Any) -> None:
    done = run_python(
        "import sys\nsys.modules['pyarrow'] = None\nfrom resnext_hub import cli\n"
        "sys.exit(cli.main(['classify', 'x', '--out', 'o.csv', '--variant', 'resnext_tiny']))",
        check=False,
        PYTHONPATH=os.environ.get("PYTHONPATH", ""),
    )
    assert done.returncode == 2
    assert "pip install pyarrow fsspec tqdm" in done.stderr


def test_the_bar_counts_to_the_end(folder: Path, tmp_path: Path, capsys: Any) -> None:
    classify_many(str(folder), tmp_path / "o.csv", TINY, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "8/8" in captured.err


@pytest.mark.parametrize(
    ("few", "many"),
    [(5_000, 50_000), pytest.param(50_000, 1_000_000, marks=pytest.mark.soak)],
    ids=["short", "million"],
)
def test_memory_does_not_grow_with_the_images(few: int, many: int, run_python: Any, tmp_path: Path) -> None:
    """Ten or twenty times the images take at most a few MiB more."""
    script = (
        "import resource\nfrom pathlib import Path\nfrom resnext_hub.tests.support import made_runs as t\n"
        "t.Double.pause = 0.0\n"
        "def peak():\n    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"out = Path({str(tmp_path / 'o.csv')!r})\n"
        f"t.made_run(out, {few}, 4096, seconds=60)\nfirst = peak()\n"
        f"t.made_run(out, {many}, 4096, seconds=60, overwrite=True)\nprint(peak() - first)\n"
    )
    grown = int(run_python(script, PYTHONPATH=os.environ.get("PYTHONPATH", "")).stdout)
    assert grown < 24 * 1024


def test_what_a_run_left_that_died_cleaning_up_is_no_obstacle(tmp_path: Path) -> None:
    """A folder without job.json counts for nothing."""
    out = tmp_path / "o.csv"
    made_run(out, total=10)
    content = out.read_bytes()
    out.unlink()
    (tmp_path / "o.csv.parts").mkdir()
    (tmp_path / "o.csv.parts" / "part-0000000-00000000.parquet").write_bytes(b"left")
    made_run(out, total=10)
    assert out.read_bytes() == content
    assert os.listdir(tmp_path) == ["o.csv"]
