"""`store`: whose an unfinished download is, and file systems on which a lock is none."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import filelock
import pytest
from resnext_hub.errors import UnwritableError
from resnext_hub.models import store
from resnext_hub.models.download import local_file
from resnext_hub.models.store import Store, is_abandoned

from ..support.downloads import NAME, described, left, source_at
from ..support.faulty_server import CONTENT, DIGEST, FaultyServer

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave(path: Path, owner: str, size: int, *, old: bool = False, url: str = "") -> Path:
    """Leave an unfinished download of another process."""
    part = Store().own_file(path, f".{owner}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(CONTENT[:size])
    note = {"url": url, "etag": '"one"', "total": len(CONTENT)}
    part.with_name(f"{part.name}.json").write_text(json.dumps(note))
    if old:
        os.utime(part, (0, 0))
    return part


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_part_is_abandoned_when_its_process_has_ended_or_writes_nothing(home: Path, dead: int) -> None:
    here, alive = store._machine(), threading.get_native_id()
    for owner, old, abandoned in (
        (f"{here}-{dead}", False, True),
        (f"{here}-{alive}", False, False),
        (f"{here}-{alive}", True, True),  # the id was given to another process
        (f"00000000-{dead}", False, False),  # a process of another machine
        (f"00000000-{dead}", True, True),
    ):
        assert is_abandoned(leave(home / NAME, owner, 10, old=old)) == abandoned, (owner, old)


def test_where_locks_work_parts_of_this_machine_are_abandoned(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert is_abandoned(leave(home / NAME, f"{store._machine()}-{os.getpid()}", 10))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_longest_abandoned_download_is_resumed_and_a_running_one_left_alone(
    server: FaultyServer, home: Path, dead: int
) -> None:
    here = store._machine()
    url = f"{server.url}/{NAME}"
    leave(home / NAME, f"{here}-{dead}", 1000, url=url)
    leave(home / NAME, f"00000000-{dead}", 2000, url=url, old=True)
    running = leave(home / NAME, "00000001-7", 3000, url=url)
    assert local_file(described(source_at(server)), progress=False)[1] == DIGEST
    assert [request.get("Range") for request in server.seen] == ["bytes=2000-"]
    assert running.read_bytes() == CONTENT[:3000]
    assert left(home) == [f".resnext-hub/{running.name}", f".resnext-hub/{running.name}.json", NAME]


@pytest.mark.parametrize(
    "error",
    [*(OSError(number, "no locks") for number in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)), NotImplementedError()],
    ids=repr,
)
def test_a_file_system_without_locks_is_used_without(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    assert local_file(described(source_at(server)), progress=False)[1] == DIGEST


def test_a_folder_that_cannot_be_written_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with pytest.raises(UnwritableError), Store().lock(home / NAME):
        pass
