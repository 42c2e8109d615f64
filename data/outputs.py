"""The folders that runs write."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import OutputError

__all__ = ["check_folder"]


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
