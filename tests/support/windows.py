"""A double of Windows, where nothing of this has ever run."""

from __future__ import annotations

import errno
import os
from typing import Any

import filelock
import pytest


def keep_open_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is removed while it is open, and filelock removes a lock's file when it releases it."""
    held: set[str] = set()
    unlink = os.unlink

    class Lock(filelock.FileLock):
        def _acquire(self) -> None:
            super()._acquire()
            if self.is_locked:
                held.add(os.fspath(self.lock_file))

        def _release(self) -> None:
            held.discard(os.fspath(self.lock_file))
            super()._release()
            unlink(self.lock_file)

    def remove(path: Any, **options: Any) -> None:
        if os.fspath(path) in held:
            raise PermissionError(errno.EACCES, "The process cannot access the file", path)
        unlink(path, **options)

    monkeypatch.setattr(filelock, "FileLock", Lock)
    monkeypatch.setattr(os, "unlink", remove)
    monkeypatch.setattr("shutil._use_fd_functions", False)
