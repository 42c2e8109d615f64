"""Many images -> one table: its rows, and the command that makes it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from resnext_hub import cli
from resnext_hub.errors import EngineError, MissingPackageError, OutputError, SourceError
from resnext_hub.inference import bulk, resumable
from resnext_hub.inference.bulk import classify_many
from resnext_hub.inference.classifier import classifier

from ..support.data_sets import photo_folder, tar_of, write
from ..support.made_runs import TINY, jpeg, made_predictor, made_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photo_folder(tmp_path / "images")


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


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
    tar_of(folder, tmp_path / "b.tar")
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
            if key in ("probability", "probabilities", "features"):
                kind = np.float16 if key == "features" else np.float32
                assert value is None or np.array_equal(np.array(line[key], kind), np.array(value, kind))
                assert (read and json.loads(read)) == line[key]
            else:
                assert line[key] == value
                assert read == value


def test_workers_and_parts_do_not_change_the_table(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    for i in range(7, 60):
        (folder / f"{i}.jpg").write_bytes(jpeg(i))
    written = []
    for workers, seconds in ((1, 30.0), (3, 30.0), (4, 0.0)):
        monkeypatch.setattr(resumable, "COMMIT_SECONDS", seconds)
        out = tmp_path / f"{workers}.parquet"
        classify_many(str(folder), out, TINY, batch=4, workers=workers, progress=False)
        written.append(out.read_bytes())
    assert written[0] == written[1] == written[2]


def test_an_engine_that_is_not_concurrent_is_called_by_one_at_a_time(tmp_path: Path) -> None:
    predictor = made_predictor(concurrent=False)
    made_run(tmp_path / "o.parquet", predictor=predictor)
    assert predictor.engine.most == 1
    predictor = made_predictor(concurrent=True)
    made_run(tmp_path / "p.parquet", predictor=predictor)
    assert predictor.engine.most > 1
    assert (tmp_path / "o.parquet").read_bytes() == (tmp_path / "p.parquet").read_bytes()


def test_scores_that_are_no_numbers_give_a_row(tmp_path: Path) -> None:
    made_run(tmp_path / "o.parquet", total=20)
    found = rows(tmp_path / "o.parquet")
    assert [i for i, row in enumerate(found) if row["error"]] == [7]
    assert "NaN" in found[7]["error"]
    assert found[8]["classes"] == [0, 1]


# The command, with a network that takes a while, so that there is time for a signal between commits.
SLOWED = """
import signal, sys, time
from resnext_hub import cli
from resnext_hub.inference import bulk, resumable
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what they start aside ignore it
resumable.COMMIT_SECONDS = 0.0
score = bulk.Predictor._scores
bulk.Predictor._scores = lambda *arguments: time.sleep(0.2) or score(*arguments)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], bytes]:
    """The command for 160 images, 8 of them broken, without its --out; and the table of an unbroken run."""
    folder = tmp_path_factory.mktemp("unbroken")
    for i in range(160):
        write(folder / "images" / f"{i:03d}.jpg", jpeg(i) if i % 20 else b"broken")
    command = ["classify", str(folder / "images"), "--variant", TINY, "--batch", "4", "--workers", "2"]
    assert cli.main([*command, "--out", str(folder / "o.parquet")]) == 1
    return command, (folder / "o.parquet").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_killed_and_resumed(number: Any, unbroken: tuple[list[str], bytes], tmp_path: Path, capsys: Any) -> None:
    command, whole = unbroken  # which has built the engine: the signal comes while images are classified
    out, parts = tmp_path / "o.parquet", tmp_path / "o.parquet.parts"
    command = [*command, "--out", str(out)]
    started = [sys.executable, "-c", SLOWED, *command]
    process = subprocess.Popen(started, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 240
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
    assert cli.main([*command, "--resume"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "160 images" in said.err
    assert "8 images" in said.err
    assert not parts.exists()
    assert out.read_bytes() == whole


def test_the_command(folder: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "o.jsonl"
    command = ["classify", str(folder), "--variant", TINY, "--out", str(out), "--top", "2", "--batch", "3"]
    assert cli.main(command) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "8 images" in captured.err
    assert "1 image " in captured.err
    assert [len(json.loads(line)["classes"] or "") for line in out.read_text().splitlines()] == [2, 2, 2, 0, 2, 2, 2, 2]
    assert cli.main(command) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    (folder / "5.jpg").write_bytes(jpeg(5)[:-40])
    assert cli.main([*command, "--overwrite"]) == 1
    assert cli.main([*command, "--overwrite", "--truncated", "keep"]) == 0
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["truncated"] for row in kept] == [i == 3 for i in range(8)]
    assert all(len(row["classes"]) == 2 for row in kept)
    assert cli.main([*command, "--overwrite", "--max-pixels", "10"]) == 1
    assert " 10 " in out.read_text()
    (folder / "5.jpg").unlink()
    assert cli.main([*command, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--resume"], "pass --out FILE"),
        (["x", "--out", "o.csv", "--gpus", "1"], "pass --cluster ray"),
        (["x", "--out", "o.csv", "--json"], "--out FILE.jsonl"),
        (["x", "--out", "o.xls"], "must end in one of .parquet, .csv, .jsonl"),
        (["/no/such", "--out", "{tmp}/o.csv"], "No such file, folder or pattern: /no/such"),
        (["x", "--out", "o.csv", "--resume", "--overwrite"], "either --resume or --overwrite"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: Any, tmp_path: Path) -> None:
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    assert cli.main(["classify", "--variant", TINY, *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"grade": "x"}, ValueError, "'x'.* reference, close, fast"),
        ({"top": 0}, ValueError, "top .*200"),
        ({"top": 201}, ValueError, "top .*200"),
        ({"batch": 0}, ValueError, "batch"),
        ({"workers": 0}, ValueError, "workers"),
        ({"engine": "x"}, EngineError, "'x'"),
        ({"nonsense": 1}, TypeError, "'nonsense'"),
        ({"out": "there.csv"}, OutputError, r"there\.csv"),
        ({"out": "o.xls"}, OutputError, r"o\.xls"),
        ({"source": "none"}, SourceError, "none"),
    ],
)
def test_wrong_options_are_refused_before_an_engine_is_built(
    options: dict[str, Any], error: type[Exception], named: str, folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(bulk, "open_engine", lambda *a, **k: pytest.fail("too early"))
    write(tmp_path / "there.csv", "")
    given = {"source": "images", "out": "o.csv", "progress": False, **options}
    source, out = (tmp_path / given.pop(name) for name in ("source", "out"))
    with pytest.raises(error, match=named):
        classify_many(str(source), out, TINY, **given)
    assert sorted(os.listdir(tmp_path)) == ["images", "there.csv"]


@pytest.mark.parametrize("where", ["exists", "acquire", "run"])
def test_a_folder_that_may_not_be_written(
    where: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    owner = {"exists": Path, "acquire": filelock.FileLock, "run": bulk}[where]
    out = tmp_path / "o.csv"
    with monkeypatch.context() as patched:
        if where == "exists":
            real = Path.exists
            patched.setattr(Path, "exists", lambda path: refuse() if path.name == "identity.json" else real(path))
        else:
            patched.setattr(owner, where, refuse)
        assert cli.main(["classify", str(folder), "--variant", TINY, "--out", str(out)]) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_without_tqdm(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(MissingPackageError, match="tqdm: pip install pyarrow fsspec tqdm"):
        classify_many(str(folder), tmp_path / "o.csv", TINY, progress=True)
    assert os.listdir(tmp_path) == ["images"]


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
