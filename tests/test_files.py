"""`files`: a crash, an error or a second writer leaves the old content or all of the new."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from resnext_hub.files import SUFFIX, publish, remove_temporary, temporary_name, write_atomically

from .conftest import tracked_files
from .support import dying


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is brought to the disk or renamed, in order."""
    found: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (found.append(("sync", os.readlink(f"/proc/self/fd/{fd}"))), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (found.append((f"rename {a}", str(b))), rename(a, b)))
    return found


@pytest.mark.parametrize(
    ("content", "written"),
    [("ä\n", b"\xc3\xa4\n"), (b"\x00\r\n", b"\x00\r\n"), (lambda path: path.write_bytes(b"1"), b"1")],
    ids=["text", "bytes", "function"],
)
def test_synced_before_and_after_the_renaming(tmp_path: Path, steps: Any, content: Any, written: bytes) -> None:
    path = tmp_path / "file"
    write_atomically(path, content)
    assert path.read_bytes() == written
    assert os.listdir(tmp_path) == ["file"]
    temporary = steps[0][1]
    assert temporary != str(path)
    assert steps == [("sync", temporary), (f"rename {temporary}", str(path)), ("sync", str(tmp_path))]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["content", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: Any, step: str, error: BaseException) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*_: object) -> None:
        raise error

    def content(temporary: Path) -> None:
        temporary.write_text("new")
        if step == "content":
            fail()

    if step != "content":
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        write_atomically(path, content)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def slow(temporary: Path) -> None:
        temporary.write_text("slow")
        write_atomically(path, "fast")
        assert temporary.read_text() == "slow"

    write_atomically(path, slow)
    assert path.read_text() == "slow"
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("theirs")
    path = tmp_path / "file"
    path.symlink_to(tmp_path / "elsewhere")
    write_atomically(path, "ours")
    assert (tmp_path / "elsewhere").read_text() == "theirs"
    assert path.read_text() == "ours"
    assert not path.is_symlink()


def test_a_folder_replaces_another(tmp_path: Path, steps: list[tuple[str, str]]) -> None:
    for content in ("old", "new"):
        temporary = temporary_name(tmp_path / "folder")
        (temporary / "sub").mkdir(parents=True)
        (temporary / "sub" / "file").write_text(content)
        publish(temporary, tmp_path / "folder")
        assert ("sync", str(temporary / "sub" / "file")) in steps
        assert (tmp_path / "folder" / "sub" / "file").read_text() == content
    assert os.listdir(tmp_path) == ["folder"]


def test_the_old_folder_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = temporary_name(tmp_path / "folder")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    temporary.mkdir()
    rename = os.rename

    def fail(a: Path, b: Path) -> None:
        if a == temporary:
            raise OSError(16, "Device or resource busy")
        rename(a, b)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="busy"):
        publish(temporary, tmp_path / "folder")
    assert (tmp_path / "folder" / "old").exists()


def test_killed_at_any_step(tmp_path: Path) -> None:
    """The file is the old one or the new one; the next run removes what the killed one left."""
    found: list[str] = []
    for step in range(1, 10):
        folder = tmp_path / str(step)
        folder.mkdir()
        write_atomically(folder / "file", "old")

        def run(folder: Path = folder, step: int = step) -> None:
            dying.die_at(step, folder)
            write_atomically(folder / "file", "new")

        status = dying.finished(run, tmp_path / "errors")
        found.append((folder / "file").read_text())
        assert all(name == "file" or name.endswith(SUFFIX) for name in os.listdir(folder))
        remove_temporary(folder)
        assert os.listdir(folder) == ["file"]
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert found[0] == "old"
    assert found[-1] == "new"
    assert len(found) >= 4  # before the file is made, synced and renamed


def test_only_temporary_names_are_removed(tmp_path: Path) -> None:
    names = ["notes.tmp", "weights.pt", ".tmp", f"x.{'0' * 31}.tmp"]
    for name in names:
        (tmp_path / name).touch()
    temporary_name(tmp_path / "weights.pt").touch()
    temporary_name(tmp_path / "folder").mkdir()
    remove_temporary(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(names)


# Doubles of other platforms, where nothing of this has ever run.


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Windows: the files in this set are mapped by a process. They can be renamed, but neither replaced nor removed.

    A file that was opened for reading cannot be synced, and a folder cannot be opened.
    """
    found: set[str] = set()
    fsync, replace, unlink, rename, open_ = os.fsync, os.replace, os.unlink, os.rename, os.open

    def denied(path: object) -> None:
        raise PermissionError(errno.EACCES, "The process cannot access the file", str(path))

    def move(a: Path, b: Path) -> None:
        rename(a, b)
        found.symmetric_difference_update({str(a), str(b)} if str(a) in found else ())

    monkeypatch.setattr(os, "replace", lambda a, b: denied(b) if str(b) in found or Path(b).is_dir() else replace(a, b))
    monkeypatch.setattr(os, "unlink", lambda path: denied(path) if str(path) in found else unlink(path))
    monkeypatch.setattr(os, "rename", move)
    monkeypatch.setattr("shutil._use_fd_functions", False)
    monkeypatch.setattr(os, "open", lambda path, *a, **k: denied(path) if Path(path).is_dir() else open_(path, *a, **k))
    monkeypatch.setattr(
        os, "fsync", lambda fd: fsync(fd) if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE else denied(fd)
    )
    return found


def test_a_file_that_is_mapped_is_replaced_on_windows(tmp_path: Path, mapped: set[str]) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    mapped.add(str(path))
    write_atomically(path, "new")
    assert path.read_text() == "new"
    (left,) = map(Path, mapped)
    assert left.read_text() == "old"
    mapped.clear()
    remove_temporary(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("before", [None, "empty", "full"])
def test_a_folder_is_published_on_windows(tmp_path: Path, mapped: set[str], before: str | None) -> None:
    if before:
        (tmp_path / "folder").mkdir()
    if before == "full":
        (tmp_path / "folder" / "old").touch()
    temporary = temporary_name(tmp_path / "folder")
    temporary.mkdir()
    (temporary / "new").touch()
    publish(temporary, tmp_path / "folder")
    assert os.listdir(tmp_path / "folder") == ["new"]
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("supported", [True, False])
def test_macos_full_sync(tmp_path: Path, monkeypatch: Any, steps: list[tuple[str, str]], supported: bool) -> None:
    def full_sync(file: object, command: int) -> None:
        if not supported:
            raise OSError(errno.ENOTSUP, "Operation not supported")
        steps.append(("full sync", str(command)))

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "fcntl", SimpleNamespace(fcntl=full_sync, F_FULLFSYNC=51))
    write_atomically(tmp_path / "file", "content")
    assert steps[0] == ("full sync", "51") if supported else steps[0][0] == "sync"


def test_names_in_the_repository_are_allowed_everywhere() -> None:
    names = tracked_files()
    parts = {part for name in names for part in name.split("/")}
    reserved = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
    assert not [part for part in parts if reserved.fullmatch(part) or re.search(r'[<>:"\\|?*]|[. ]$', part)]
    assert len({name.lower() for name in names}) == len(names)
