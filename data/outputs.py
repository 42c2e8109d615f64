"""The folders and tables that runs write."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import OutputError


def check_folder(out: Path, own: Iterable[str], way_out: str) -> None:
    """Refuse a folder of other files; one that is new, empty or of an earlier run can be written.

    Args:
        own: names of files by which an earlier run is recognised.
        way_out: what to do instead, for the message.

    Raises:
        OutputError: it has files but none of ``own``; it is a file.
    """
    if not out.is_dir():
        if out.exists():
            raise OutputError(f"{out} is a file: pass the name of a folder.")
    elif not any((out / name).exists() for name in own) and next(out.iterdir(), None) is not None:
        raise OutputError(f"{out} has other files, and is no folder of an earlier run: {way_out}.")


@contextlib.contextmanager
def explained(safe: str = "") -> Iterator[None]:
    """Errors of the file system as `OutputError`, with what is safe and what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno == errno.ENOSPC or "No space left" in str(error)
        where = f" ({error.filename})" if error.filename else ""
        why = "the disk is full" if full else f"{error.strerror or error}{where}"
        advice = f" {safe}: {'free some space' if full else 'fix this'} and pass resume=True." if safe else ""
        raise OutputError(f"Cannot write the table: {why}.{advice}") from error
