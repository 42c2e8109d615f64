"""The folders and tables that runs write."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import OutputError


def check_folder(out: Path, own: Iterable[str], way_out: str) -> None:
    """Raise OutputError for a file, and for a folder of unrelated files; those of an earlier run may be there.

    Args:
        own: names of files by which an earlier run is recognised.
        way_out: what to do instead, for the message.
    """
    if not out.is_dir():
        if out.exists():
            raise OutputError(f"{out} is a file: pass the name of a folder.")
    elif not any((out / name).exists() for name in own) and next(out.iterdir(), None) is not None:
        raise OutputError(f"{out} has other files, and is not the folder of an earlier run: {way_out}.")


@contextlib.contextmanager
def locked(file: Path, out: Path) -> Iterator[None]:
    """Hold a lock file while ``out`` is written; raise OutputError if another process holds it."""
    import filelock

    lock = filelock.FileLock(file)
    with explained():
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise OutputError(f"Another process is writing {out}: wait for it, or choose another name.") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def explained(safe: str = "") -> Iterator[None]:
    """Turn errors of the file system into `OutputError`.

    ``safe`` is a sentence without a full stop that says what is kept; the run can be resumed then.
    """
    try:
        yield
    except OSError as error:
        full = error.errno == errno.ENOSPC or "No space left" in str(error)
        where = f" ({error.filename})" if error.filename else ""
        why = "the disk is full" if full else f"{error.strerror or error}{where}"
        advice = f" {safe}: {'free some space' if full else 'fix this'} and pass resume=True." if safe else ""
        raise OutputError(f"Cannot write the output: {why}.{advice}") from error
