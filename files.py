"""Write files and folders so that a crash leaves the old content or all of the new, never a part of it.

Imports nothing else of this package.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

SUFFIX = ".tmp"
_TEMPORARY = re.compile(rf".+\.[0-9a-f]{{32}}{re.escape(SUFFIX)}", re.DOTALL)


def sha256(path: Path) -> str:
    """The sha256 of a file's content, in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_name(path: Path, folder: Path | None = None) -> Path:
    """A name that nobody else uses, next to ``path`` or in a folder of the same file system.

    It is unique even where a lock is none: on some network file systems ``flock`` succeeds for every caller
    (huggingface/huggingface_hub#4228), and in a cluster a node that was given up may still be writing.
    """
    return (folder or path.parent) / f"{path.name}.{uuid.uuid4().hex}{SUFFIX}"


def write_atomically(
    path: Path, content: str | bytes | Callable[[Path], object], *, folder: Path | None = None
) -> None:
    """Write a file under a temporary name, bring it to the disk, and give it its name.

    A link of that name is replaced, not followed. If anything fails, ``path`` is as before and nothing is left.

    Args:
        content: text (written as UTF-8, line ends unchanged), bytes, or a function that writes the file it is given.
        folder: where the temporary file goes; next to ``path`` by default.
    """
    temporary = temporary_name(path, folder)
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        publish(temporary, path)
    finally:
        _remove(temporary)


def publish(temporary: Path, path: Path) -> None:
    """Give a complete file or folder its name, once its content is on the disk; whatever had the name is replaced.

    A folder cannot replace another in one step, and on Windows no file replaces one that a process has mapped. The old
    one is moved aside first, and back if the new one cannot be moved, so a crash between the two leaves nothing of this
    name, but never a part. An old file that is still mapped keeps its temporary name; see `remove_temporary`.
    """
    sync(temporary)
    try:
        os.replace(temporary, path)
    except OSError as error:
        if not os.path.lexists(path) or not (temporary.is_dir() or isinstance(error, PermissionError)):
            raise
        old = temporary_name(path)
        os.rename(path, old)
        try:
            os.rename(temporary, path)
        except OSError:
            os.rename(old, path)
            raise
        _remove(old)
    _sync_folder(path.parent)


def sync(path: Path) -> None:
    """Bring a file, or all that is in a folder, to the disk."""
    if path.is_dir():
        for entry in path.iterdir():
            if not entry.is_symlink():
                sync(entry)
        _sync_folder(path)
        return
    with open(path, "rb+") as file:  # Windows refuses to sync a file that was opened for reading
        if sys.platform == "darwin":
            import fcntl

            with contextlib.suppress(OSError):  # some network drives have no F_FULLFSYNC
                fcntl.fcntl(file, fcntl.F_FULLFSYNC)  # fsync leaves the content in the drive's cache there
                return
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: a later write must not survive a power cut that a name does not."""
    with contextlib.suppress(OSError):  # not every system can open or sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporary(folder: Path) -> None:
    """Remove what killed processes left in a folder. The caller knows that nobody else is writing there."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
