"""Runs that are stopped and resumed: what is committed, what is refused, what is held in memory."""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest
from resnext_hub.curation.duckdb_tables import Limits, workspace
from resnext_hub.data.shards import Item
from resnext_hub.errors import OutputError
from resnext_hub.inference import resumable
from resnext_hub.inference.resumable import process_shards
from resnext_hub.inference.run_folder import Parts

from ..support.data_sets import write
from ..support.made_runs import Made, made_predictor, made_run
from ..support.windows import keep_open_locks


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def test_the_window_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However slow the engine, no more than a window of chunks is read ahead."""
    taken = finished = 0
    ahead = 0

    def endless() -> Iterator[resumable.Chunk]:
        nonlocal taken, ahead
        for i in range(60):
            taken += 1
            ahead = max(ahead, taken - finished)
            yield resumable.Chunk(0, i, (), i == 59, False, "")

    def slow(items: Any) -> Any:
        nonlocal finished
        time.sleep(0.005)
        finished += 1

    assert len(list(resumable._in_order(endless(), slow, 2))) == 60
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
        process_shards([(0, HeldShard(0, 800))], parts, make_rows=made_predictor(), batch=8, workers=2, advance=look)
    assert parts.rows == 800
    assert 0 < most <= 8 * (2 + 2 + 4)  # the window, and what the loops' variables hold


def test_reading_is_ahead_where_it_waits(tmp_path: Path) -> None:
    """Eight items that take 0.1 s each to read are read in the time of one or two."""

    def wait() -> bytes:
        time.sleep(0.1)
        return b"abc"

    chunk = resumable.Chunk(0, 0, tuple(Item(str(i), wait) for i in range(8)), True, True, "")
    start = time.monotonic()
    list(resumable._in_order([chunk], made_predictor(), 1))
    assert time.monotonic() - start < 0.5


def test_an_engine_that_fails_keeps_the_finished_rows(tmp_path: Path) -> None:
    made_run(tmp_path / "whole.parquet")
    out = tmp_path / "o.parquet"
    with pytest.raises(RuntimeError, match="the engine is broken"):
        made_run(out, predictor=made_predictor(fail_at=12))
    assert not out.exists()
    with pytest.raises(OutputError, match="resume=True"):
        made_run(out)
    done = made_run(out, resume=True)
    assert 0 < done.computed < 300
    assert done.images == 300
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["o.parquet", "whole.parquet"]


def test_a_superseded_worker_leaves_the_parts_of_its_successor(tmp_path: Path) -> None:
    """In a cluster. A shorter part in the place of a longer one would leave a hole behind it."""
    ours, theirs = Parts(tmp_path / "o.parquet", {}), Parts(tmp_path / "o.parquet", {})
    process = partial(process_shards, [(0, Made(0, 5000))], batch=512, workers=2, commit_seconds=math.inf)
    with ours.opened():
        process(theirs, make_rows=made_predictor())
        with pytest.raises(RuntimeError, match="the engine is broken"):
            process(ours, make_rows=made_predictor(fail_at=5))
        ours.refresh()
        assert ours.rows == 5000


def test_a_table_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    out = tmp_path / "o.parquet"
    made_run(out)
    for options in ({}, {"resume": True}):
        with pytest.raises(OutputError, match="exists"):
            made_run(out, **options)
    assert made_run(out, total=10, overwrite=True).images == 10
    assert len(rows(out)) == 10


def test_resuming_another_run_or_a_changed_source_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "o.parquet"
    with pytest.raises(RuntimeError):
        made_run(out, predictor=made_predictor(fail_at=12))
    with pytest.raises(OutputError, match="'0 50'.*'0 40'"):
        made_run(out, size=40, resume=True)
    with pytest.raises(OutputError, match="grade 'close'.*'fast'.*versions.pillow None.*'9'"):
        made_run(out, resume=True, identity={"top": 2, "grade": "fast", "versions": {"pillow": "9"}})
    assert made_run(out, overwrite=True).computed == 300


def test_a_run_without_a_committed_row_is_replaced(tmp_path: Path) -> None:
    """A mistyped source, a network that does not load: the corrected command needs neither resume nor overwrite."""
    out = tmp_path / "o.parquet"
    with pytest.raises(RuntimeError):
        made_run(out, predictor=made_predictor(fail_at=1))
    assert os.listdir(tmp_path) == []
    parts = Parts(out, {"top": 9})
    with parts.opened():
        left = {path.name: path.read_bytes() for path in parts.folder.iterdir()}
    for resume in (False, True):
        for name, content in left.items():  # as if it had been killed
            write(parts.folder / name, content)
        assert made_run(out, total=10, resume=resume).images == 10
        assert os.listdir(tmp_path) == ["o.parquet"]
        out.unlink()


def test_a_source_that_has_lost_its_last_shards_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "o.parquet"
    with pytest.raises(RuntimeError):
        made_run(out, predictor=made_predictor(fail_at=25))
    with pytest.raises(OutputError, match="shards"):
        made_run(out, total=50, resume=True)


def test_two_runs_for_one_table_exclude_each_other(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "o.parquet", {})
    with parts.opened(), pytest.raises(OutputError, match="process"):
        made_run(tmp_path / "o.parquet", overwrite=True)


def test_a_folder_as_the_table_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "o.csv").mkdir()
    with pytest.raises(OutputError, match=r"o\.csv.*folder"):
        made_run(tmp_path / "o.csv", overwrite=True)
    assert not (tmp_path / "o.csv.parts").exists()


def test_one_shard_is_looked_up_by_the_names_of_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by listing the folder: there may be a million others in it."""
    parts = Parts(tmp_path / "o.parquet", {})
    with parts.opened():
        numbered = [(0, Made(0, 40)), (1, Made(40, 40)), (2, Made(0, 0))]
        process_shards(numbered, parts, make_rows=made_predictor(), batch=8, workers=2, commit_seconds=0)
        whole = dict(parts.done)
        monkeypatch.setattr(Path, "glob", lambda *a: pytest.fail("listed"))
        for number, last in whole.items():
            parts.refresh(number)
            assert parts.done == {number: last}
            assert parts.rows == (40 if number < 2 else 0)
        parts.refresh(3)
        assert (parts.done, parts.rows) == ({}, 0)


def test_windows_where_an_open_lock_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_open_locks(monkeypatch)
    made_run(tmp_path / "o.csv")
    with Parts(tmp_path / "empty.csv", {}).opened():
        pass
    with workspace(tmp_path / "selected.csv", Limits()):
        pass
    assert os.listdir(tmp_path) == ["o.csv"]


@pytest.mark.parametrize(
    ("few", "many"),
    [(5_000, 50_000), pytest.param(50_000, 1_000_000, marks=pytest.mark.soak)],
    ids=["short", "million"],
)
def test_memory_does_not_grow_with_the_images(few: int, many: int, run_python: Any, tmp_path: Path) -> None:
    """Ten or twenty times the images take at most a few MiB more."""
    script = f"""
from pathlib import Path
from resnext_hub.tests.support import made_runs
from resnext_hub.tests.support.processes import peak
made_runs.Double.pause, out = 0.0, Path({str(tmp_path / "o.csv")!r})
made_runs.made_run(out, {few}, 4096, seconds=60)
first = peak(reset=False)
made_runs.made_run(out, {many}, 4096, seconds=60, overwrite=True)
print(peak(reset=False) - first)
"""
    assert int(run_python(script, PYTHONPATH=os.environ.get("PYTHONPATH", "")).stdout) < 24


def test_leftovers_of_a_finished_run_are_ignored(tmp_path: Path) -> None:
    """A folder without identity.json counts for nothing."""
    out = tmp_path / "o.csv"
    made_run(out, total=10)
    content = out.read_bytes()
    out.unlink()
    (tmp_path / "o.csv.parts").mkdir()
    (tmp_path / "o.csv.parts" / "part-0000000-00000000.parquet").write_bytes(b"left")
    made_run(out, total=10)
    assert out.read_bytes() == content
    assert os.listdir(tmp_path) == ["o.csv"]
