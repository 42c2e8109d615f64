"""Downloads and the machine: processes that are killed, sixteen at once, disks that are full or read-only."""

from __future__ import annotations

import collections
import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from resnext_hub.errors import CheckpointError, UnreachableError
from resnext_hub.files import sha256
from resnext_hub.models.entrypoints import load
from resnext_hub.models.manifest import Architecture
from resnext_hub.models.store import Store

from ..support.downloads import left, publish_small
from ..support.faulty_server import FaultyServer, serving

pytestmark = pytest.mark.usefixtures("home")

#: Large enough (8 MB) that every step takes a while in which to be killed.
LARGER = Architecture("Bottleneck", (1, 1, 1, 1), 4, 32, None, 32, True)

# Imports once, and then forks a process for each load: 200 trials would else be 200 imports of torch. A line in is
# a cache and a number of processes; lines out are their ids, and after another line, their exit statuses: until then
# an id is not given to another process, which would be killed in its place.
FORKS = """
import dataclasses, fcntl, hashlib, os, sys, traceback
import torch, torch.hub
import filelock, resnext_hub.models.checkpoints
from resnext_hub.models import download
from resnext_hub.models.entrypoints import load
from resnext_hub.models.manifest import Architecture, Hash, Source, default_manifest

torch.set_num_threads(1)
flock = fcntl.flock
download.BACKOFF = 0.001
url, digest, expected = sys.argv[1:]
checkpoint = dataclasses.replace(
    default_manifest().resolve("resnet50_ssl"),
    architecture=Architecture("Bottleneck", (1, 1, 1, 1), 4, 32, None, 32, True),
    sources=(Source(url, None, None, None, Hash("sha256", digest)),),
)

def run():
    state = load(checkpoint, progress=False).state_dict()
    found = hashlib.sha256(b"".join(v.numpy().tobytes() for v in state.values())).hexdigest()
    assert found == expected, "other weights"

print("ready", flush=True)
for line in iter(sys.stdin.readline, ""):
    home, count, locks = line.split()
    os.environ["TORCH_HOME"] = home
    fcntl.flock = flock if locks == "locks" else lambda *_: None  # as on some network file systems
    children = []
    for _ in range(int(count)):
        if (child := os.fork()) == 0:
            try:
                run()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    print(*children, flush=True)
    sys.stdin.readline()
    print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)
"""


class Forks:
    """The script above, beside the server that its processes fetch from."""

    def __init__(self, server: FaultyServer) -> None:
        self.server = server
        _, state = publish_small(server, True, LARGER)
        self.digest = hashlib.sha256(server.content).hexdigest()
        expected = hashlib.sha256(b"".join(v.numpy().tobytes() for v in state.values())).hexdigest()
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS, f"{server.url}/w.pth", self.digest, expected],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self._line() == ["ready"]

    def _line(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def start(self, home: Path, count: int = 1, locks: str = "locks") -> list[int]:
        """The ids of so many processes, each of which loads the network into a cache."""
        self._say(f"{home} {count} {locks}")
        return [int(word) for word in self._line()]

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait(self) -> list[int]:
        """Their exit statuses."""
        self._say("")
        return [int(word) for word in self._line()]

    def run(self, home: Path, count: int = 1, locks: str = "locks") -> list[int]:
        self.start(home, count, locks)
        return self.wait()


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with serving() as server:
        forks = Forks(server)
        yield forks
        forks.process.communicate(timeout=60)  # the end of its input


def wait_for(there: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not there() and time.monotonic() < deadline:
        time.sleep(0.0005)


# Killed.


def files(folder: Path) -> dict[str, Path]:
    """What a load writes, by its name here."""
    checkpoints = folder / "hub" / "checkpoints"
    own = checkpoints / ".resnext-hub"
    copies = list(own.glob("w.pth.*.mapped*"))
    found = {
        "part": next((p for p in own.glob("w.pth.*.part") if "mapped" not in p.name), own / "none"),
        "file": checkpoints / "w.pth",
        "copy part": next((p for p in copies if p.suffix == ".part"), own / "none"),
        "copy": next((p for p in copies if p.suffix == ".mapped"), own / "none"),
    }
    return {name: path for name, path in found.items() if path.exists()}


def stage(folder: Path, total: int) -> str:
    """How far a killed load had come."""
    found = files(folder)
    if "copy" in found:
        return "converted"
    if "copy part" in found:
        return "converting"
    if "file" in found:
        return "fetched"
    if "part" in found:
        return "fetching" if found["part"].stat().st_size < total else "verifying"
    return "before the first byte"


@pytest.mark.parametrize("trials", [8, pytest.param(200, marks=pytest.mark.soak)])
def test_killed_at_random_the_next_run_succeeds(forks: Forks, tmp_path: Path, trials: int) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    total = len(forks.server.content)
    good = tmp_path / "good"
    forks.server.always = "good"
    start = time.monotonic()
    assert forks.run(good) == [0]
    seconds = time.monotonic() - start
    digests = {name: sha256(path) for name, path in files(good).items()}
    assert digests.keys() == {"file", "copy"}
    stages: collections.Counter[str] = collections.Counter()
    requests = 0
    for trial in range(trials):
        folder = tmp_path / str(trial)
        for _ in range(chance.choice([1, 1, 2])):
            # At a moment of the whole, or soon after a step has begun: some are short.
            after = chance.choice(["", "part", "file", "copy part"])
            waiting = chance.random() < 0.3  # another process waits for the lock, takes over and must succeed
            first, *_ = forks.start(folder, 1 + waiting)
            wait_for(lambda: not after or bool({after, "copy"} & files(folder).keys()))  # noqa: B023
            time.sleep(chance.uniform(0, seconds if not after else seconds / 10))
            os.kill(first, signal.SIGKILL)
            if not waiting:
                stages[stage(folder, total)] += 1
            statuses = forks.wait()
            assert statuses[0] in (-signal.SIGKILL, 0)
            stages["had ended"] += statuses[0] == 0
            assert statuses[1:] == [0] * waiting
            stages["another took over"] += waiting
            for name, path in files(folder).items():
                assert "part" in name or sha256(path) == digests[name], f"a wrong {name} under its final name"
        before = len(forks.server.seen)
        assert forks.run(folder) == [0]
        requests += len(forks.server.seen) - before
        assert {name: sha256(path) for name, path in files(folder).items()} == digests
        for path in folder.rglob("w.pth*"):
            path.unlink()
        print(f"{trial + 1} trials, {requests} requests by the next runs; killed while: {dict(stages)}", flush=True)


def test_a_killed_download_is_resumed(forks: Forks, tmp_path: Path) -> None:
    forks.server.script = ["slow 0.02"]
    (process,) = forks.start(tmp_path)
    wait_for(lambda: "part" in files(tmp_path) and files(tmp_path)["part"].stat().st_size >= 40_000)
    os.kill(process, signal.SIGKILL)
    assert forks.wait() == [-signal.SIGKILL]
    size = files(tmp_path)["part"].stat().st_size
    assert 0 < size < len(forks.server.content)
    assert forks.run(tmp_path) == [0]
    assert forks.server.seen[-1]["Range"] == f"bytes={size}-"
    assert files(tmp_path).keys() == {"file", "copy"}


def test_sixteen_processes_fetch_and_convert_once(forks: Forks, tmp_path: Path) -> None:
    before = len(forks.server.seen)
    forks.server.script = ["slow 0.002"]
    assert forks.run(tmp_path, 16) == [0] * 16
    assert len(forks.server.seen) == before + 1
    assert files(tmp_path).keys() == {"file", "copy"}


def test_without_working_locks_files_are_correct(forks: Forks, tmp_path: Path) -> None:
    """huggingface/huggingface_hub#4228: processes that share a part append to each other's bytes."""
    before = len(forks.server.seen)
    forks.server.script = ["slow 0.002"] * 8
    assert forks.run(tmp_path, 8, "no-locks") == [0] * 8
    assert len(forks.server.seen) > before + 1
    found = files(tmp_path)
    assert found.keys() == {"file", "copy"}
    assert sha256(found["file"]) == forks.digest


# Disks.


def same(network: torch.nn.Module, expected: dict[str, Any]) -> bool:
    return all(torch.equal(v, expected[k]) for k, v in network.state_dict().items())


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


# Of the file: nothing fits, …, all but the copy's end, all. (What fits to the page is left out: the records need one.)
SHARES: list[Any] = [0.0, 0.5, 0.99, 1.03, 1.5, 2.0, 2.1]
SHARES += [pytest.param(i / 100, marks=pytest.mark.soak) for i in (*range(1, 100, 3), *range(103, 220, 3))]


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "unannounced"])
@pytest.mark.parametrize("share", SHARES)
def test_a_disk_that_is_full_at_any_stage(
    server: FaultyServer, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch,
    share: float, announced: bool,
) -> None:  # fmt: skip
    checkpoint, expected = publish_small(server, True)
    disk = small_disk(max(8192, int(len(server.content) * share)))
    folder = disk / "hub" / "checkpoints"
    monkeypatch.setenv("TORCH_HOME", str(disk))
    server.always = "good" if announced else "unannounced"
    if share < 1:
        with pytest.raises(CheckpointError, match="is full|bytes left"):
            load(checkpoint, progress=False)
        assert left(folder) == []
    else:
        assert same(load(checkpoint, progress=False), expected)
        assert left(folder) in (["w.pth"], [".resnext-hub/" + p.name for p in folder.rglob("*.mapped")] + ["w.pth"])
    remount(disk, f"size={4 * len(server.content)}")
    assert same(load(checkpoint, progress=False), expected)
    assert len(left(folder)) == 2, "with room, it is converted too"


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "zip"])
@pytest.mark.parametrize("converted", [True, False], ids=["converted", "as_fetched"])
def test_a_read_only_cache_that_has_the_file(
    server: FaultyServer, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, caplog: Any,
    legacy: bool, converted: bool,
) -> None:  # fmt: skip
    checkpoint, expected = publish_small(server, legacy)
    disk = small_disk(4 * len(server.content))
    folder = disk / "hub" / "checkpoints"
    monkeypatch.setenv("TORCH_HOME", str(disk))
    if converted:
        load(checkpoint, progress=False)
    else:  # as the original repositories, or the maker of an image, left it
        folder.mkdir(parents=True)
        (folder / "w.pth").write_bytes(server.content)
    remount(disk, "ro")
    before = left(folder)
    requests = len(server.seen)
    for _ in range(2):
        assert same(load(checkpoint, progress=False), expected)
    assert len(server.seen) == requests
    assert left(folder) == before
    assert ("w.pth could not be converted" in caplog.text) == (legacy and not converted)
    remount(disk, "rw")


def test_a_read_only_cache_that_has_not(
    server: FaultyServer, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _ = publish_small(server, True)
    disk = small_disk(4 * len(server.content))
    monkeypatch.setenv("TORCH_HOME", str(disk))
    remount(disk, "ro")
    for prepare in (lambda: None, lambda: Store().own.mkdir(parents=True)):
        remount(disk, "rw")
        prepare()
        remount(disk, "ro")
        with pytest.raises(CheckpointError, match=r"\(Read-only file system\).*TORCH_HOME"):
            load(checkpoint, progress=False)
    assert server.seen == []


def test_a_cache_that_cannot_be_written_at_the_end(
    server: FaultyServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, expected = publish_small(server, True)

    def replace(*_: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:  # (a file system with open files cannot be made read-only)
        patch.setattr(os, "replace", replace)
        with pytest.raises(UnreachableError, match=r"\(Read-only file system\)"):
            load(checkpoint, progress=False)
    assert same(load(checkpoint, progress=False), expected)
    assert len(server.seen) == 1, "the bytes were there"
