"""The selection of images for a student, against a plain reference; what stops it; what a killed run leaves."""

from __future__ import annotations

import json
import math
import os
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("duckdb", reason="the extra train")

import fsspec
from resnext_hub.cli import main
from resnext_hub.curation import selection as module
from resnext_hub.curation.duckdb_tables import Limits, workspace
from resnext_hub.curation.selection import SCHEMA, select
from resnext_hub.errors import OutputError, SourceError
from resnext_hub.inference.bulk import COLUMNS

# Ties, and both ends of what float32 can say.
SCORES = (0.0, 1e-38, 1e-6, 0.25, 0.25, 0.5, 0.5, 0.75, 1 - 2**-24, 1.0)
SMALL = Limits("200MB", threads=1)


def row(image: str, index: int, pairs: dict[int, float], error: str | None = None) -> dict[str, Any]:
    best = sorted(pairs.items(), key=lambda pair: -pair[1])
    values: dict[str, Any] = {"image": image, "index": index, "error": error}
    if error is None:
        values |= {
            "classes": [number for number, _ in best],
            "labels": [f"label {number}" for number, _ in best],
            "synsets": [f"n{number:08d}" for number, _ in best],
            "probabilities": [score for _, score in best],
        }
    return values


def write(path: Path, rows: list[dict[str, Any]], columns: pa.Schema | None = None) -> Path:
    columns = columns or COLUMNS.insert(1, pa.field("index", pa.int64()))
    pq.write_table(pa.Table.from_pylist(rows, columns), path)
    return path


def reference(rows: list[dict[str, Any]], per_class: int, max_classes: int) -> list[tuple[Any, ...]]:
    ranking = defaultdict(list)
    for one in rows:
        if one["error"] is None:
            for number, score in list(zip(one["classes"], one["probabilities"], strict=True))[:max_classes]:
                ranking[number].append((-score, one["image"], one["index"]))
    return [
        (image, index, number, f"n{number:08d}", rank, -negative)
        for number in sorted(ranking)
        for rank, (negative, image, index) in enumerate(sorted(ranking[number])[:per_class], 1)
    ]


def read(path: Path) -> list[tuple[Any, ...]]:
    return [tuple(values.values()) for values in pq.read_table(path).to_pylist()]


def some_rows(images: int, classes: int = 20, top: int = 3, seed: int = 0) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    rows = []
    for index in range(images):
        pairs = {
            number: float(pa.scalar(chance.random(), pa.float32()).as_py())
            for number in chance.sample(range(classes), top)
        }
        rows.append(row(f"image-{index:05d}.jpg", index, pairs, "broken" if index % 10 == 3 else None))
    return rows


@settings(max_examples=25)
@given(data=st.data())
def test_as_a_plain_reference(data: st.DataObject) -> None:
    top = data.draw(st.integers(1, 4), "top")
    max_classes = data.draw(st.integers(1, top), "P")
    per_class = data.draw(st.integers(1, 6), "K")
    score = st.sampled_from([float(pa.scalar(value, pa.float32()).as_py()) for value in SCORES])
    rows = []
    for index in range(data.draw(st.integers(0, 25), "images")):
        numbers = data.draw(st.permutations(range(6)))[:top]
        image = f"{data.draw(st.sampled_from('ba'))}{index}.jpg"
        failed = data.draw(st.integers(0, 5)) == 0
        rows.append(row(image, index, {n: data.draw(score) for n in numbers}, "broken" if failed else None))
    cut = data.draw(st.integers(0, len(rows)), "cut")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scores").mkdir()
        write(folder / "scores" / "a.parquet", rows[cut:])  # in another order than their rows' numbers
        write(folder / "scores" / "b.parquet", rows[:cut])
        options = {"per_class": per_class, "max_classes": max_classes, "num_classes": 6}
        found = select(str(folder / "scores"), folder / "out.parquet", **options, limits=SMALL)
        expected = reference(rows, per_class, max_classes)
        assert read(folder / "out.parquet") == expected
        assert pq.read_schema(folder / "out.parquet").remove_metadata() == SCHEMA
        assert [path.name for path in folder.iterdir() if path.name != "scores"] == ["out.parquet"]
    served = defaultdict(int)
    for image, *_ in expected:
        served[image] += 1
    assert found.counts == {number: sum(r[2] == number for r in expected) for number in range(6)}
    assert found.rows == len(expected)
    assert found.images == len(served)
    assert found.several == sum(count > 1 for count in served.values())
    assert found.failed == sum(r["error"] is not None for r in rows)
    assert found.scored == len(rows) - found.failed
    assert found.pairs == found.scored * max_classes
    assert found.short(per_class) == {number: count for number, count in found.counts.items() if count < per_class}


def test_threads_memory_and_the_order_of_files_do_not_matter(tmp_path: Path) -> None:
    rows = [row(f"{i % 7}-{i}.jpg", i, {0: 0.5, 1 + i % 2: 0.25}) for i in range(5000)]  # nothing but ties
    for name, part in (("a", rows[:2000]), ("b", rows[2000:]), ("c", rows[2000:]), ("d", rows[:2000])):
        write(tmp_path / f"{name}.parquet", part)
    one, other = tmp_path / "one.parquet", tmp_path / "other.parquet"
    first, second = ([str(tmp_path / f"{name}.parquet") for name in names] for names in ("ab", "cd"))
    select(first, one, per_class=100, max_classes=2, limits=SMALL)
    select(second, other, per_class=100, max_classes=2, limits=Limits("500MB", threads=4))
    assert read(one) == read(other) == reference(rows, 100, 2)


def test_parts_of_a_run_that_is_not_put_together(tmp_path: Path) -> None:
    """They have no column index."""
    rows = some_rows(60)
    write(tmp_path / "part-0.parquet", rows, COLUMNS)
    select(str(tmp_path), tmp_path / "out" / "selected.parquet", per_class=4, max_classes=2, limits=SMALL)
    assert read(tmp_path / "out" / "selected.parquet") == [
        (image, None, *rest) for image, _, *rest in reference(rows, 4, 2)
    ]


def test_a_table_without_errors_and_synsets(tmp_path: Path) -> None:
    rows = [row("a", 0, {1: 0.5}), row("b", 1, {1: 0.75})]
    columns = pa.schema([COLUMNS.field(name) for name in ("image", "classes", "probabilities")])
    write(tmp_path / "scores.parquet", rows, columns)
    select(str(tmp_path / "scores.parquet"), tmp_path / "out.parquet", per_class=5, max_classes=1, limits=SMALL)
    assert read(tmp_path / "out.parquet") == [("b", None, 1, None, 1, 0.75), ("a", None, 1, None, 2, 0.5)]


def test_where_teacher_and_hashtag_agree(tmp_path: Path) -> None:
    rows = some_rows(200)
    chance = random.Random(1)
    targets = {one["image"]: chance.sample(range(20), 3) for one in rows if chance.random() < 0.7}
    write(tmp_path / "scores.parquet", rows)
    tagged = [{"image": image, "targets": classes} for image, classes in targets.items()]
    pq.write_table(pa.Table.from_pylist(tagged), tmp_path / "tags.parquet")
    scores, tags = str(tmp_path / "scores.parquet"), str(tmp_path / "tags.parquet")
    found = select(scores, tmp_path / "out.parquet", per_class=3, max_classes=2, limits=SMALL, hashtags=tags)
    agreeing = []
    for one in rows:
        if one["error"] is None:
            best = list(zip(one["classes"], one["probabilities"], strict=True))[:2]
            kept = {number: score for number, score in best if number in targets.get(one["image"], ())}
            agreeing.append(row(one["image"], one["index"], kept))
    assert read(tmp_path / "out.parquet") == reference(agreeing, 3, 2) != []
    assert found.pairs == sum(len(one["classes"]) for one in agreeing)


def test_an_object_store(tmp_path: Path) -> None:
    rows = some_rows(100)
    memory = fsspec.filesystem("memory")
    try:
        for number, part in enumerate((rows[:30], rows[30:])):
            path = write(tmp_path / "part.parquet", part)
            memory.pipe(f"/selection/scores/part-{number}.parquet", path.read_bytes())
        memory.pipe("/selection/scores/identity.json", b"{}")
        for number, spec in enumerate(("scores", "scores/part-*.parquet", "scores/part-{0..1}.parquet")):
            out = tmp_path / f"{number}.parquet"
            select(f"memory://selection/{spec}", out, per_class=3, max_classes=2, limits=SMALL)
            assert read(out) == reference(rows, 3, 2)
    finally:
        memory.rm("/selection", recursive=True)


def test_a_selection_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, out = write(tmp_path / "scores.parquet", some_rows(80)), tmp_path / "out.parquet"
    found = select(str(scores), out, per_class=3, max_classes=2, limits=SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(module.tables, "workspace", lambda *_: pytest.fail("done again"))
        assert select(str(scores), out, per_class=3, max_classes=2, limits=Limits("1GB")) == found
    before = out.read_bytes()
    with pytest.raises(OutputError, match=r"\(per_class\)"):
        select(str(scores), out, per_class=4, max_classes=2, limits=SMALL)
    write(scores, some_rows(90))
    with pytest.raises(OutputError, match=r"\(scores\).*overwrite=True"):
        select(str(scores), out, per_class=3, max_classes=2, limits=SMALL)
    assert out.read_bytes() == before
    select(str(scores), out, per_class=3, max_classes=2, limits=SMALL, overwrite=True)
    assert read(out) == reference(some_rows(90), 3, 2)


def test_a_table_that_select_did_not_write_is_not_replaced(tmp_path: Path) -> None:
    scores = write(tmp_path / "scores.parquet", some_rows(10))
    (tmp_path / "text.parquet").write_text("no table")
    for theirs in (scores, tmp_path / "text.parquet"):
        before = theirs.read_bytes()
        with pytest.raises(OutputError, match=theirs.name):
            select(str(scores), theirs, per_class=3, max_classes=2)
        assert theirs.read_bytes() == before


@pytest.mark.parametrize("where", ["selection._find_thresholds", "os.replace"])  # the table is written, without a name
def test_a_killed_run_leaves_no_table(where: str, tmp_path: Path, run_python: Callable[..., Any]) -> None:
    scores, out = write(tmp_path / "scores.parquet", some_rows(2000)), tmp_path / "out.parquet"
    spill = tmp_path / "spill"
    script = f"""
import os, signal
from pathlib import Path
from resnext_hub.curation import duckdb_tables, selection
{where} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
selection.select({str(scores)!r}, {str(out)!r}, per_class=50, max_classes=2,
    limits=duckdb_tables.Limits("200MB", Path({str(spill)!r}), 1))
"""
    done = run_python(script, check=False, PYTHONPATH=os.environ.get("PYTHONPATH", ""))
    assert done.returncode == -9, done.stderr
    assert not out.exists()
    assert (tmp_path / "out.parquet.work").exists()
    select(str(scores), out, per_class=50, max_classes=2, limits=Limits("200MB", spill, 1))
    assert read(out) == reference(some_rows(2000), 50, 2)
    assert not (tmp_path / "out.parquet.work").exists()
    assert list(spill.iterdir()) == []


def test_two_runs_at_once(tmp_path: Path) -> None:
    scores, out = write(tmp_path / "scores.parquet", some_rows(10)), tmp_path / "out.parquet"
    with workspace(out, SMALL), pytest.raises(OutputError, match=r"out\.parquet"):
        select(str(scores), out, per_class=3, max_classes=2, limits=SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(["classes"]), "'classes'.* image"),
        (lambda t: t.drop(["image"]), "'image'"),
        (lambda t: t.set_column(2, "probabilities", pa.array([["x"]] * 3)), r"VARCHAR\[\].* FLOAT"),
        (lambda t: t.set_column(2, "probabilities", pa.array([[0.5], [0.5, 0.2], [0.1, 0.1]])), "different lengths"),
        (lambda t: t.set_column(2, "probabilities", pa.array([[1.5, 0.5]] * 3)), "0 to 1.*: 3"),
        (lambda t: t.set_column(2, "probabilities", pa.array([[math.nan, 0.5]] * 3)), "0 to 1"),
        (lambda t: t.set_column(2, "probabilities", pa.array([[0.2, 0.7]] * 3)), "sorted.*: 3"),
        (lambda t: t.set_column(1, "classes", pa.array([[-1, 2]] * 3)), "class.*: 3"),
        (lambda t: t.set_column(0, "image", pa.array(["a", None, "b"])), "image: 1"),
    ],
)  # fmt: skip
def test_a_table_without_predictions(change: Callable[[pa.Table], pa.Table], message: str, tmp_path: Path) -> None:
    good = {"image": ["a", "b", "c"], "classes": [[1, 2]] * 3, "probabilities": [[0.5, 0.2]] * 3}
    pq.write_table(change(pa.table(good)), tmp_path / "scores.parquet")
    with pytest.raises(SourceError, match=message):
        select(str(tmp_path / "scores.parquet"), tmp_path / "out.parquet", per_class=3, max_classes=2, limits=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]


def test_fewer_classes_an_image_than_asked_for(tmp_path: Path) -> None:
    scores = write(tmp_path / "scores.parquet", some_rows(10, top=3))
    with pytest.raises(SourceError, match="3 classes .*top=10.* max_classes=3"):
        select(str(scores), tmp_path / "out.parquet", per_class=3)


def test_what_is_no_table(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    (tmp_path / "text.parquet").write_text("no table")
    (tmp_path / "empty").mkdir()
    cut = write(tmp_path / "cut.parquet", some_rows(500)).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(cut[: len(cut) // 2])
    for spec in ("text.parquet", "cut.parquet", "missing.parquet", "missing-*.parquet", "empty"):
        with pytest.raises(SourceError, match=spec.replace("*", r"\*")):
            select(str(tmp_path / spec), out, per_class=3, limits=SMALL)
    for spec in ("https://example.org/scores.parquet", "ftp://example.org/a.parquet", "memory://nowhere/a.parquet"):
        with pytest.raises(SourceError):
            select(spec, out, per_class=3, limits=SMALL)
    assert not out.exists()


def test_arguments_that_mean_nothing(tmp_path: Path) -> None:
    scores = write(tmp_path / "scores.parquet", some_rows(10))
    for options in ({"per_class": 0}, {"per_class": 1, "max_classes": 0}, {"per_class": 1, "num_classes": 0}):
        with pytest.raises(ValueError, match=list(options)[-1]):
            select(str(scores), tmp_path / "out.parquet", **options)
    with pytest.raises(OutputError, match=r"\.parquet"):
        select(str(scores), tmp_path / "out.csv", per_class=1)


def test_a_full_disk(small_disk: Callable[[int], Path], tmp_path: Path) -> None:
    rows = [row(f"{random.Random(i).random()}" * 4, i, {i % 5: 0.5}) for i in range(20_000)]
    scores = write(tmp_path / "scores.parquet", rows)
    disk = small_disk(256 * 1024)
    with pytest.raises(OutputError, match="disk is full"):
        select(str(scores), disk / "out.parquet", per_class=4000, max_classes=1, limits=SMALL)
    assert list(disk.iterdir()) == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores, out = write(tmp_path / "scores.parquet", some_rows(100)), tmp_path / "out.parquet"
    arguments = [str(scores), "--per-class", "10", "--max-classes", "3", "--num-classes", "21", "--out", str(out)]
    assert main(["select", *arguments, "--memory", "200MB", "--threads", "1"]) == 0
    expected = reference(some_rows(100), 10, 3)
    assert read(out) == expected
    told = capsys.readouterr().out
    assert all(fact in told for fact in ("90 images", "10 ", "270 pairs"))
    assert f"{len(expected):,} rows" in told
    assert "  class 20: 0\n" in told
    assert json.loads(pq.read_metadata(out).metadata[b"resnext_hub"])["job"]["per_class"] == 10
    assert main(["select", str(tmp_path / "missing.parquet"), "--per-class", "1", "--out", str(out)]) == 2
    assert "missing.parquet" in capsys.readouterr().err


def test_other_columns(tmp_path: Path) -> None:
    scores = write(tmp_path / "scores.parquet", some_rows(30))
    renamed = pq.read_table(scores).rename_columns({"image": "photo", "classes": "best"})
    pq.write_table(renamed, tmp_path / "renamed.parquet")
    outs = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    options = ["--per-class", "4", "--max-classes", "3", "--out"]
    assert main(["select", str(scores), *options, str(outs[0])]) == 0
    columns = ["--column", "photo", "--label-column", "best"]
    assert main(["select", str(tmp_path / "renamed.parquet"), *columns, *options, str(outs[1])]) == 0
    assert read(outs[0]) == read(outs[1]) != []


@pytest.mark.soak
def test_memory_does_not_grow_with_the_images(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    """2 million images, 10 million pairs, at 300 MB; the process holds a few hundred MB beside DuckDB's limit."""
    import duckdb

    with duckdb.connect(config={"memory_limit": "2GB", "threads": 1}) as connection:
        connection.execute(f"""
            COPY (SELECT 'image-' || lpad(i::VARCHAR, 40, '0') AS image, i AS "index",
                    [((hash(i) % 500) + 101 * k)::INTEGER FOR k IN [0, 1, 2, 3, 4]] AS classes,
                    [(hash(i, 1) // 65536) / 281474976710656.0 * power(0.5, k) FOR k IN [0, 1, 2, 3, 4]]::FLOAT[]
                        AS probabilities
                FROM range(2000000) AS t(i))
            TO '{tmp_path / "scores.parquet"}' (FORMAT parquet)""")
    script = f"""
from resnext_hub.curation import duckdb_tables, selection
from resnext_hub.tests.support.processes import peak
found = selection.select({str(tmp_path / "scores.parquet")!r}, {str(tmp_path / "out.parquet")!r}, per_class=2000,
    max_classes=5, limits=duckdb_tables.Limits("300MB", threads=1))
print(peak(reset=False), found.rows)
"""
    done = run_python(script, PYTHONPATH=os.environ.get("PYTHONPATH", ""))
    most, rows = map(int, done.stdout.split())
    assert most < 700  # 475 when this was written; the pairs alone would be 700
    with duckdb.connect(config={"memory_limit": "2GB", "threads": 1}) as connection:
        scores, out = tmp_path / "scores.parquet", tmp_path / "out.parquet"
        connection.execute(f"""
            CREATE TEMP TABLE best AS
            SELECT c, image FROM (SELECT unnest(classes) AS c, unnest(probabilities) AS p, image FROM '{scores}')
            QUALIFY row_number() OVER (PARTITION BY c ORDER BY p DESC, image) <= 2000""")
        expected = connection.execute("SELECT count(*) FROM best").fetchall()
        wrong = connection.execute(
            f"SELECT count(*) FROM best ANTI JOIN '{out}' AS o ON o.class = c AND o.image = best.image"
        ).fetchall()
    assert expected == [(rows,)]
    assert wrong == [(0,)]
