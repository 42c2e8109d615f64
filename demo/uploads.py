"""The folder of visitors' uploads. Gradio writes every upload to a file; these are soon deleted."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PREFIX = "resnext-hub-demo-"
YOUNG = 10.0  # seconds
SHARED_MEMORY = Path("/dev/shm")
MIB = 2**20


class Uploads:
    """A folder of its own, in memory where there is room for it, that is swept and in the end removed.

    It is locked while the process lives. The next process removes the folder of one that was killed.

    Args:
        max_age: seconds that a file may lie there; a transfer that still writes is not old.
        max_bytes: of all files together; the oldest go first.
        every: seconds between sweeps.
    """

    def __init__(self, max_age: float = 60.0, max_bytes: int = 512 * MIB, every: float = 5.0) -> None:
        self.max_age, self.max_bytes, self.every = max_age, max_bytes, every
        in_memory = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * max_bytes
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=SHARED_MEMORY if in_memory else None))
        self._lock = _locked(self.folder)
        for left in self.folder.parent.glob(f"{PREFIX}*"):
            _remove_left(left)
        self._end = threading.Event()
        atexit.register(self.close)
        threading.Thread(target=self._keep_sweeping, name="uploads", daemon=True).start()

    def _keep_sweeping(self) -> None:
        while not self._end.wait(self.every):
            self.sweep()

    def sweep(self) -> None:
        """Remove files that are too old, then the oldest while there are too many bytes, then empty folders."""
        found, folders = [], []
        for folder, _, names in os.walk(self.folder, topdown=False):  # skips what is deleted meanwhile
            folders.append(Path(folder))
            for name in names:
                with contextlib.suppress(OSError):
                    stat = (path := Path(folder, name)).stat()
                    found.append((stat.st_mtime, stat.st_size, path))
        left = sum(size for _, size, _ in found)
        for written, size, path in sorted(found):
            if left <= self.max_bytes and time.time() - written <= self.max_age:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            left -= size
        for folder in folders[:-1]:
            with contextlib.suppress(OSError):  # not empty, or young: an upload may be about to be moved into it
                if time.time() - folder.stat().st_mtime > self.max_age:
                    folder.rmdir()

    def close(self) -> None:
        """Remove the folder, as at the end of the process. If that is killed, the next process does it."""
        self._end.set()
        atexit.unregister(self.close)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked(folder: Path) -> int | None:
    """The descriptor that holds a folder's lock until it is closed; None if another has it, or there are no locks."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_left(folder: Path) -> None:
    with contextlib.suppress(OSError):  # another user's, or gone
        if time.time() - folder.stat().st_mtime < YOUNG:  # its process may be about to lock it
            return
        lock = _locked(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
