"""Long runs on a machine that fails: killed anywhere, out of room, resumed by mistake. Nothing is lost, nothing twice.

What is killed runs in processes that `dying` forks; the scripts here are what such a process does.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resnext_hub import cli
from resnext_hub.errors import OutputError
from resnext_hub.evaluation import label_files
from resnext_hub.evaluation import predict as predicting
from resnext_hub.evaluation.evaluate import Options, evaluate
from resnext_hub.evaluation.report import write_report
from resnext_hub.inference import bulk, resumable
from resnext_hub.models.manifest import find_checkpoint
from resnext_hub.processing_utils.labels import read_labels

from ..support import dying
from ..support.data_sets import table, tar, write
from ..support.known_accuracy import class_folders, contender
from ..support.made_runs import TINY, Double, jpeg, made_predictor, made_run

Run = Callable[..., Any]


@pytest.fixture
def script(run_python: Run, tmp_path: Path) -> Callable[..., Any]:
    """Call a function of this module in a fresh process, with a folder and more; what it returns, by way of JSON."""

    def call(function: Callable[..., Any], *arguments: Any, timeout: float = 300) -> Any:
        folder = tmp_path / "runs"
        folder.mkdir(exist_ok=True)
        done = run_python(
            "import json\nfrom pathlib import Path\nfrom resnext_hub.tests.inference import test_long_runs as t\n"
            f"print(json.dumps(t.{function.__name__}(Path({str(folder)!r}), *{arguments!r})))",
            timeout=timeout,
            PYTHONPATH=os.environ.get("PYTHONPATH", ""),
        )
        return json.loads(done.stdout.splitlines()[-1])

    return call


# Killed at every step.


def made(name: str, folder: Path) -> None:
    try:
        made_run(folder / name, total=40, size=20, resume=True)
    except OutputError as error:
        if "no stopped run" not in str(error):  # that run was whole
            raise


def table_killed(folder: Path, suffix: str, every: int) -> int:
    return dying.try_steps(folder, functools.partial(made, f"o{suffix}"), every)


@pytest.mark.parametrize(
    ("suffix", "every"),
    [(".parquet", 3), *(pytest.param(suffix, 1, marks=pytest.mark.soak) for suffix in (".parquet", ".csv", ".jsonl"))],
)
def test_a_table_whose_run_is_killed_at_a_step_on_the_disk(suffix: str, every: int, script: Run) -> None:
    """The table's bytes are an unbroken run's, and there is no other file."""
    kills = script(table_killed, suffix, every)
    print(f"{suffix}, at each step of {every}: {kills} kills")
    assert kills > 20 / every


def evaluated(data: str, folder: Path) -> None:
    report = evaluate([contender()], data, folder / "out", Options(batch=16), resume=True)
    assert report is not None
    write_report(report, folder / "out")


def evaluation_killed(folder: Path, every: int) -> int:
    resumable.COMMIT_SECONDS = 0.0
    label_files.SHARD_ROWS = predicting.SHARD_ROWS = 24
    data = class_folders(folder / "images")["data"]
    return dying.try_steps(folder / "runs", functools.partial(evaluated, data), every, but=("speed.json",))


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.soak)])
def test_an_evaluation_that_is_killed_at_a_step_on_the_disk(every: int, script: Run) -> None:
    """Its report, tables and pictures are an unbroken run's byte for byte, but for how long it took."""
    kills = script(evaluation_killed, every)
    print(f"evaluation, at each step of {every}: {kills} kills")
    assert kills > 30 / every


# Killed at random: the commands, whole, over real images.


SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def make_sources(folder: Path, images: int) -> dict[str, list[str]]:
    """The same images in a folder, archives, a list, a table, and all of these one after another; some are broken."""
    content = {f"{i:04d}.jpg": jpeg(i) if i % 17 else b"broken" for i in range(images)}
    for name, data in content.items():
        write(folder / "images" / name, data)
    for part in range(4):
        tar(folder / f"s-{part}.tar", {name: content[name] for name in list(content)[part::4]})
    write(folder / "list.txt", "\n".join(str(folder / "images" / name) for name in [*content, "missing.jpg"]))
    table(folder / "t.parquet", {"image": list(content.values())})
    kinds = {"folder": ["images"], "archives": ["s-{0..3}.tar"], "list": ["list.txt"], "table": ["t.parquet"]}
    kinds["all"] = [name for names in kinds.values() for name in names]
    return {kind: [str(folder / name) for name in names] for kind, names in kinds.items()}


def slowed(score: Callable[..., Any], seconds: float = 0.01) -> Callable[..., Any]:
    """A network that takes a while, so that there is time for a kill between commits."""

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return score(*arguments)

    return slow


def at_random(
    folder: Path, chance: random.Random, command: Callable[[Path, bool], list[str]], others: list[list[str]]
) -> tuple[int, int]:
    """Kill a command at random moments, one to four times, and resume it to its end; (kills, refusals).

    Args:
        command: its arguments, of the folder that it writes to; with --resume or not.
        others: more arguments that make it another job: a resume with them must be refused, and change nothing.
    """
    errors = folder.with_name(f"{folder.name}.errors")
    whole = folder.with_name("whole")
    if not whole.exists():
        whole.mkdir()
        start = time.monotonic()
        assert dying.finished(lambda: cli.main(command(whole, False)), errors) in (0, 1), errors.read_text()
        (whole.with_name("seconds")).write_text(str(time.monotonic() - start))
    seconds = float(whole.with_name("seconds").read_text())
    folder.mkdir()
    kills = refused = 0
    for _ in range(chance.randint(1, 4)):
        number, after = chance.choice(SIGNALS), chance.uniform(0, 1.1 * seconds)
        arguments = command(folder, True)
        status = dying.killed(lambda a=arguments: cli.main(a), errors, after, number)
        said = errors.read_text()
        is_done = status in (0, 1) or (status == 2 and "no stopped run" in said)  # killed as it was about to exit
        assert is_done or status in (130, -number), f"{number.name}: {status} {said}"
        assert "Traceback" not in said
        kills += not is_done
        if is_done:
            break
        if list(folder.rglob("identity.json")) and list(folder.rglob("part-*.parquet")):
            before = dying.files_of(folder)
            another = [arguments[0], *chance.choice(others), *arguments[1:]]
            status = dying.finished(lambda a=another: cli.main(a), errors)
            assert (status, "other options" in errors.read_text()) == (2, True), errors.read_text()
            assert dying.files_of(folder) == before
            refused += 1
    status = dying.finished(lambda: cli.main(command(folder, True)), errors)
    assert status in (0, 1) or (status == 2 and "no stopped run" in errors.read_text()), errors.read_text()
    found, expected = (dying.files_of(of, but=("speed.json",)) for of in (folder, whole))
    assert found.keys() == expected.keys()
    assert found == expected
    return kills, refused


def tables_at_random(folder: Path, trials: int, images: int) -> list[int]:
    """(runs, kills, refusals) over all kinds of source and of table."""
    chance = random.Random(images)
    resumable.COMMIT_SECONDS = 0.0
    bulk.Predictor._scores = slowed(bulk.Predictor._scores)  # pyright: ignore[reportAttributeAccessIssue]
    sources = make_sources(folder / "sources", images)
    cases = list(itertools.product(sources.items(), (".parquet", ".csv", ".jsonl")))
    found = []
    for trial in range(trials):
        (kind, names), suffix = cases[-1 - trial % len(cases)]

        def command(out: Path, resume: bool, names: list[str] = names, suffix: str = suffix) -> list[str]:
            workers = str(chance.randint(1, 3))
            options = ["--variant", TINY, "--batch", "4", "--workers", workers, *(["--resume"] if resume else [])]
            return ["classify", *names, "--out", str(out / f"o{suffix}"), *options]

        others = [["--top", "2"], ["--features"], ["--grade", "reference"], [sources["folder"][0] + "/0001.jpg"]]
        top = folder / f"{kind}{suffix}"
        top.mkdir(exist_ok=True)
        found.append(at_random(top / str(trial), chance, command, others))
    return [trials, *map(sum, zip(*found, strict=True))]


@pytest.mark.parametrize(
    ("trials", "images"), [(2, 40), pytest.param(60, 120, marks=pytest.mark.soak)], ids=["short", "long"]
)
def test_classify_killed_at_random_and_resumed(trials: int, images: int, script: Run) -> None:
    runs, kills, refusals = script(tables_at_random, trials, images, timeout=3000)
    print(f"classify: {runs} runs, {kills} kills, {refusals} resumes as another job refused")
    assert kills >= trials // 3  # of a few, all may have come too late


def evaluations_at_random(folder: Path, trials: int, images: int) -> list[int]:
    chance = random.Random(images)
    resumable.COMMIT_SECONDS = 0.0
    predicting._Predictor._best = slowed(predicting._Predictor._best)  # pyright: ignore[reportAttributeAccessIssue]
    labels = read_labels(find_checkpoint(TINY).labels)
    data = folder / "data"
    for i in range(images):
        write(data / str(labels[i % 9].synset) / f"{i:04d}.jpg", jpeg(i))

    def command(out: Path, resume: bool) -> list[str]:
        options = ["--variant", TINY, "--batch", "4", "--workers", "2", *(["--resume"] if resume else [])]
        return ["evaluate", "--data", str(data), "--out", str(out / "report"), *options]

    others = [["--restrict"], ["--grade", "close"], ["--views", "flip"]]
    found = [at_random(folder / str(trial), chance, command, others) for trial in range(trials)]
    return [trials, *map(sum, zip(*found, strict=True))]


@pytest.mark.parametrize(
    ("trials", "images"), [(2, 40), pytest.param(50, 120, marks=pytest.mark.soak)], ids=["short", "long"]
)
def test_evaluate_killed_at_random_and_resumed(trials: int, images: int, script: Run) -> None:
    """report.json and all else is an unbroken run's byte for byte, but for speed.json."""
    runs, kills, refusals = script(evaluations_at_random, trials, images, timeout=3000)
    print(f"evaluate: {runs} runs, {kills} kills, {refusals} resumes as another job refused")
    assert kills >= trials // 3  # of a few, all may have come too late


# One process of several killed.

RANK = """
import sys, time
from pathlib import Path
from resnext_hub import cli
from resnext_hub.evaluation import label_files, predict
from resnext_hub.inference import resumable
from resnext_hub.tests.inference.test_long_runs import slowed
label_files.SHARD_ROWS = predict.SHARD_ROWS = 8
resumable.COMMIT_SECONDS = 0.0
predict._Predictor._best = slowed(predict._Predictor._best, 0.2)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.soak
@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_of_an_evaluation_is_killed(lost: int, tmp_path: Path) -> None:
    """torchrun ends, and waits for it not for ever; the same command with --resume has the report of one process."""
    import psutil

    labels = read_labels(find_checkpoint(TINY).labels)
    for i in range(96):
        write(tmp_path / "data" / str(labels[i % 9].synset) / f"{i:04d}.jpg", jpeg(i))
    script = write(tmp_path / "rank.py", RANK)
    arguments = ["evaluate", "--data", str(tmp_path / "data"), "--variant", TINY, "--batch", "4", "--workers", "1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}

    def start(*more: str) -> subprocess.Popen[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        run = [*command, f"--master-port={port}", str(script), *arguments, "--out", str(tmp_path / "out"), *more]
        return subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    run = start()
    parts = tmp_path / "out" / "predictions.parquet.parts"
    until = time.monotonic() + 240
    while len(list(parts.glob("part-*.parquet"))) < 4:
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.01)
    ranks = {p.environ().get("RANK"): p for p in psutil.Process(run.pid).children(recursive=True)}
    ranks[str(lost)].kill()
    output, _ = run.communicate(timeout=240)
    assert run.returncode != 0
    assert "resnext-hub: " in output  # the other one says what to do
    assert "--resume" in output
    assert not (tmp_path / "out" / "predictions.parquet").exists()
    done = len(list(parts.glob("part-*.parquet")))
    run = start("--resume")
    output, _ = run.communicate(timeout=240)
    assert run.returncode == 0, output
    assert 0 < json.loads((tmp_path / "out" / "speed.json").read_text())["computed"] <= 96 - 4 * done + 8
    script.write_text(RANK)
    whole = [sys.executable, str(script), *arguments, "--out", str(tmp_path / "whole")]
    subprocess.run(whole, env=environment, check=True, timeout=240, capture_output=True)
    found, expected = (dying.files_of(tmp_path / of, but=("speed.json",)) for of in ("out", "whole"))
    assert found == expected


# A disk that is full, or may not be written.


@pytest.mark.parametrize(
    ("suffix", "every"),
    [(".parquet", 3), *(pytest.param(suffix, 1, marks=pytest.mark.soak) for suffix in (".parquet", ".csv", ".jsonl"))],
)
def test_a_full_disk(suffix: str, every: int, small_disk: Callable[[int], Path], tmp_path: Path) -> None:
    """From no room for anything to room for all but the table."""
    tries = resumed = 0
    made_run(tmp_path / f"o{suffix}", total=600, seconds=60)
    disk = small_disk(4096)
    said = set()
    for pages in itertools.count(1, every):
        resize(disk, pages * 4096)
        try:
            made_run(disk / f"o{suffix}", total=600, seconds=60)
            break
        except OutputError as error:
            tries += 1
            said.add(re.sub(r"\d.*", "", str(error)))
        assert not list(disk.rglob("*.tmp"))
        assert not (disk / f"o{suffix}").exists()
        resize(disk, 2**20)
        resumed += made_run(disk / f"o{suffix}", total=600, seconds=60, resume=True).computed < 600
        assert dying.files_of(disk) == {f"o{suffix}": (tmp_path / f"o{suffix}").read_bytes()}
        (disk / f"o{suffix}").unlink()
    print(f"{suffix}: {tries} sizes of a full disk")
    assert tries > 10 / every
    assert resumed, "the rows that were finished are kept"
    assert all("disk is full" in text for text in said), said


def resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def test_a_full_disk_for_a_report(small_disk: Callable[[int], Path], tmp_path: Path, monkeypatch: Any) -> None:
    data = class_folders(tmp_path / "images")["data"]
    monkeypatch.setattr(resumable, "COMMIT_SECONDS", 0.0)
    evaluated(data, tmp_path)
    whole = dying.files_of(tmp_path / "out", but=("speed.json",))
    disk = small_disk(4096)
    said = []
    for pages in range(1, 99, 14):
        resize(disk, pages * 4096)
        try:
            evaluated(data, disk)
        except OutputError as error:
            said.append(str(error))
            assert not list(disk.rglob("*.tmp"))
            resize(disk, 2**20)
            evaluated(data, disk)
        assert dying.files_of(disk / "out", but=("speed.json",)) == whole
        shutil.rmtree(disk / "out")
    assert 1 < len(said) < 7
    assert all("the disk is full" in text or "No space left" in text for text in said), said


def test_a_file_system_that_is_read_only(small_disk: Callable[[int], Path], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    disk = small_disk(2**20)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert cli.main(["classify", str(tmp_path / "0.jpg"), "--variant", TINY, "--out", str(disk / "o.csv")]) == 2
    assert "Read-only file system" in capsys.readouterr().err


def folder_made_read_only(_: Path, name: str) -> list[str]:
    """As an ordinary user, whom modes bind."""
    os.chdir(name)
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)

    class Meddling(Double):
        def __call__(self, pixels: Any) -> Any:
            if self.calls == 12:
                os.chmod("o.csv.parts", 0o555)
            return super().__call__(pixels)

    predictor = made_predictor()
    predictor.engine = Meddling()
    try:
        made_run(Path("o.csv"), predictor=predictor)
    except OutputError as error:
        said = str(error)
    else:
        return ["nothing was said"]
    names = os.listdir("o.csv.parts")
    os.chmod("o.csv.parts", 0o755)
    made_run(Path("o.csv"), resume=True)
    made_run(Path("whole.csv"))
    same = Path("whole.csv").read_bytes() == Path("o.csv").read_bytes()
    return [said, str(len(names) > 3), str(any(".tmp" in name for name in names)), str(same)]


def test_a_folder_that_becomes_read_only(script: Run) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's folders are closed to all but who made them
        os.chmod(name, 0o777)
        said, *facts = script(folder_made_read_only, name)
    assert "Permission denied" in said
    assert "kept" in said
    assert facts == ["True", "False", "True"]


# What lies there is not what was written.


@pytest.mark.parametrize("how", ["emptied", "cut", "flipped", "identity"])
def test_a_part_that_is_broken_is_named(how: str, tmp_path: Path) -> None:
    out = tmp_path / "o.csv"
    with pytest.raises(RuntimeError, match="the engine is broken"):
        made_run(out, predictor=made_predictor(fail_at=12))
    parts = tmp_path / "o.csv.parts"
    path = parts / "identity.json" if how == "identity" else sorted(parts.glob("part-*"))[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 8] ^= 1
    path.write_bytes({"cut": content[: len(content) // 2], "flipped": content}.get(how, b""))
    with pytest.raises(OutputError, match=f"{path.name}.*overwrite=True"):
        made_run(out, resume=True)
    assert not out.exists()
    assert made_run(out, overwrite=True).images == 300
