"""Runs that die: at every step on the disk, or at random; for scripts of `test_long_runs`, in a process of their own.

A process that has imported everything and started no thread forks a run after another, so that a start takes
milliseconds. Every run is waited for with a limit: one that hangs is a failure.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

pa.array(["x"])  # imports pandas where there is one: once, and not in every run

LIMIT = 240.0  # seconds that a run may take, on a machine with much else to do
# What an audit hook is told before it happens; writes in between are seen by the renaming that follows.
STEPS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")


def fork(run: Callable[[], object], errors: Path) -> int:
    """Start a run in a process group of its own, what it prints into a file; its number is its exit status."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        with contextlib.suppress(PermissionError, ProcessLookupError):  # it did so itself, and is gone
            os.setpgid(pid, pid)
        return pid
    status: object = 99
    try:
        os.setpgid(0, 0)
        out = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        status = run()
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 0)


def ended(pid: int, after: float = LIMIT) -> int | None:
    """The exit status (-N for signal N) of a run that ends within so many seconds; None of one that goes on."""
    until = time.monotonic() + after
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.002)


def finished(run: Callable[[], object], errors: Path) -> int:
    """The exit status of a run; an error if it hangs."""
    pid = fork(run, errors)
    status = ended(pid)
    if status is None:
        os.killpg(pid, signal.SIGKILL)
        raise AssertionError(f"hangs: {errors.read_text()}")
    return status


def killed(run: Callable[[], object], errors: Path, after: float, number: signal.Signals) -> int:
    """The exit status of a run whose process group gets a signal after so many seconds, if it is not done by then."""
    pid = fork(run, errors)
    status = ended(pid, after)
    if status is None:
        os.killpg(pid, number)
        status = ended(pid)
    if status is None:
        os.killpg(pid, signal.SIGKILL)
        raise AssertionError(f"does not stop at {number.name}: {errors.read_text()}")
    return status


def die_at(step: int, folder: Path) -> None:
    """Have this process kill itself before its step-th change to the files of a folder."""
    done = 0

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event not in STEPS and not (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes, os.PathLike)) else ""
        if path.startswith(str(folder)) or (path and not path.startswith("/")):  # shutil.rmtree's are relative
            done += 1
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def files_of(folder: Path, but: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Everything below a folder."""
    names = (path for path in sorted(folder.rglob("*")) if path.name not in but)
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in names}


def try_steps(folder: Path, run: Callable[[Path], object], every: int = 1, but: tuple[str, ...] = ()) -> int:
    """Kill a run at every N-th step, resume it and kill that at a random step, resume it again: files must be as of an
    unbroken run. Returns how many kills that were.

    Args:
        run: does it, or goes on with it, into a folder; exit status 0.
        but: names of files that may differ.
    """
    chance = random.Random(every)
    (folder / "whole").mkdir(parents=True)
    errors = folder / "errors"
    assert finished(lambda: run(folder / "whole"), errors) == 0, errors.read_text()
    whole = files_of(folder / "whole", but)

    def attempt(case: Path, step: int | None) -> int:
        def do() -> object:
            if step is not None:
                die_at(step, case)
            return run(case)

        return finished(do, errors)

    kills = 0
    for step in itertools.count(1, every):
        case = folder / str(step)
        case.mkdir()
        status = attempt(case, step)
        if status == 0:
            break
        assert status == -signal.SIGKILL, errors.read_text()
        again = attempt(case, chance.randint(1, step + 3))
        assert again in (0, -signal.SIGKILL), errors.read_text()
        kills += 1 + (again != 0)
        assert attempt(case, None) == 0, f"step {step}: {errors.read_text()}"
        found = files_of(case, but)
        assert found.keys() == whole.keys(), f"step {step}: {found.keys()}"
        assert found == whole, f"step {step}"
    return kills
