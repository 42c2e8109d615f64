"""The files of checkpoints on this machine: where they are, what is known of them, and which can be removed.

Published files lie in torch.hub's own ``checkpoints`` folder, where the original repositories leave theirs. Next to
them, in ``.resnext-hub``, this project keeps records of hashed files (``*.json``), unfinished downloads (``*.part``),
locks, and copies of old files that can be memory-mapped (``*.mapped``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import hashlib
import json
import logging
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import CheckpointError, UnwritableError
from ..files import SUFFIX, sha256, write_atomically
from .manifest import PLAIN_NAME, Checkpoint, Hash, Manifest, Source, default_manifest

log = logging.getLogger("resnext_hub")

ABANDONED_AFTER = 600  # seconds without a write, after which a file counts as abandoned
_PART = re.compile(r"(.+?)(?:\.[0-9a-f]{16}\.mapped)?\.([0-9a-f]{8})-(\d+)\.part")  # see `Store.part`
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}  # what file systems without locks answer


@dataclass(frozen=True)
class Record:
    """A file's state when it was last hashed, and its sha256. A file in the same state is not hashed again."""

    bytes: int
    mtime_ns: int
    inode: int
    sha256: str
    source: str
    date: str


@dataclass(frozen=True)
class StoredFile:
    """A file in the store."""

    path: Path
    bytes: int
    checkpoint: Checkpoint | None = None  #: of a mapped copy, that of its original
    source: Source | None = None  #: where it was downloaded
    record: Record | None = None
    removable: str | None = None  #: why it can be removed; None if it is in use
    copy_of: Path | None = None  #: the original of a mapped copy

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def checkpoints_folder() -> Path:
    """torch.hub's own folder, found without importing torch: that takes seconds, and an engine may not need it."""
    if sys.modules.get("torch") is not None:
        import torch

        return Path(torch.hub.get_dir()) / "checkpoints"  # a user may have set it
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


@cache
def _machine() -> str:
    """Eight hex digits that identify this machine since its start, among those that share its folders."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        start = ""
    return hashlib.sha256(f"{platform.node()} {start}".encode()).hexdigest()[:8]


def is_abandoned(part: Path) -> bool:
    """True if no process is writing to an unfinished file: it has ended, or has written nothing for ten minutes.

    The caller holds the lock; see `Store.part` for why that is not enough.
    """
    owner = _PART.fullmatch(part.name)
    if owner and owner[2] == _machine() and not (sys.platform == "linux" and os.path.exists(f"/proc/{owner[3]}")):
        return True
    return time.time() - part.stat().st_mtime > ABANDONED_AFTER


class Store:
    """The folder of downloaded checkpoints (by default torch.hub's), and this project's own folder in it."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = checkpoints_folder() if folder is None else folder
        self.own = self.folder / ".resnext-hub"

    def path_of(self, checkpoint: Checkpoint, source: Source) -> Path:
        """The file of a source, which may not exist.

        Mirrors all name theirs "model.safetensors", so those get the checkpoint's name.
        """
        if source.path is not None:
            return source.path
        name = source.filename
        if source.format == "safetensors" and source.hash is not None:
            name = f"{checkpoint.name}-{source.hash.value[:8]}.safetensors"
        if not PLAIN_NAME.fullmatch(name):
            raise CheckpointError(f"{name[:200]!a} is not the name of a file in {self.folder}.")
        return self.folder / name

    def find(self, checkpoint: Checkpoint) -> tuple[Path, Source] | None:
        """The first of a checkpoint's sources whose file is on this machine, and the file."""
        for source in checkpoint.sources:
            path = self.path_of(checkpoint, source)
            if path.is_file():
                return path, source
        return None

    def own_file(self, path: Path, suffix: str) -> Path:
        """This project's file about a checkpoint's file: its record (".json") or its lock (".lock")."""
        return self.own / f"{path.name}{suffix}"

    def mapped_copy(self, path: Path, digest: str) -> Path:
        """The copy of a file with this sha256 that can be memory-mapped."""
        return self.own_file(path, f".{digest[:16]}.mapped")

    def part(self, path: Path) -> Path:
        """The file that this thread writes a download or a copy to, before it gets the name ``path``.

        Each thread on each machine has its own, because on some network file systems ``flock`` succeeds for every
        caller, or for one caller on each machine (huggingface/huggingface_hub#4228).
        """
        return self.own_file(path, f".{_machine()}-{threading.get_native_id()}.part")

    def abandoned_parts(self, path: Path) -> list[Path]:
        """The unfinished files for ``path`` that no process writes to any more, the largest first."""
        name = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{8}}-\d+\.part")
        found: list[tuple[int, Path]] = []
        for part in self.own.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process has taken it over
                if name.fullmatch(part.name) and is_abandoned(part):
                    found.append((part.stat().st_size, part))
        return [part for _, part in sorted(found, reverse=True)]

    def is_vouched(self, checkpoint: Checkpoint, path: Path) -> bool:
        """True if this package's own manifest states the hash of a verified file.

        The manifest in the folder of a training run vouches for nothing: whoever made the folder wrote it.
        """
        ours = default_manifest().checkpoints.get(checkpoint.name)
        hashed = [source for source in checkpoint.sources if source.hash is not None]
        return checkpoint == ours and any(self.path_of(checkpoint, source) == path for source in hashed)

    @contextlib.contextmanager
    def lock(self, path: Path) -> Generator[None]:
        """Let one process at a time download or convert a file, so that eight ranks download it once.

        On a file system without locks it does nothing; files are then downloaded more than once, and still correct.
        Raises UnwritableError if the folder cannot be written.
        """
        import filelock  # its import takes a fifth of the time of loading a cached network, which needs no lock

        file = self.own_file(path, ".lock")
        guard = filelock.FileLock(file)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            guard.acquire(timeout=1)
        except filelock.Timeout:
            log.info("Waiting for another process that is downloading or converting %s", path.name)
            guard.acquire()
        except (NotImplementedError, OSError) as error:  # filelock raises the first for ENOSYS
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise UnwritableError.of(file.parent, error) from error
            log.info("%s cannot be locked: %s", file, error)
        try:
            yield
        finally:
            guard.release()

    def is_locked(self, name: str) -> bool:
        """True if a process holds the lock of the file of this name."""
        import filelock

        guard = filelock.FileLock(self.own / f"{name}.lock")
        try:
            guard.acquire(timeout=0)
        except (filelock.Timeout, OSError):
            return True
        guard.release()
        return False

    def record(self, path: Path) -> Record | None:
        """The record of a file from when it was last hashed; None if there is none."""
        try:
            noted = json.loads(self.own_file(path, ".json").read_text(encoding="utf-8"))
            return Record(**{field.name: noted[field.name] for field in dataclasses.fields(Record)})
        except (OSError, ValueError, TypeError, KeyError):  # none, or one that this version cannot read: hashed again
            return None

    def _write_record(self, file: Path, record: Record) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(dataclasses.asdict(record), indent=1) + "\n")
        except OSError as error:  # a read-only folder: the file is hashed at every load
            log.debug("Cannot save the record %s: %s", file, error)

    def verify(self, path: Path, source: Source, *, again: bool = False, final: Path | None = None) -> str:
        """Check that a file is the published one, and return its sha256.

        The manifest may state its length, and its complete sha256 or the prefix in the file's name (8 hex digits, which
        detect a broken file, not a forged one). Where no hash is published, later copies are compared with the first.
        A file whose state (length, modification time, inode) is as when it was last hashed is not hashed again, unless
        ``again`` is True. The record is kept under the name ``final`` that the file will get. Raises CheckpointError if
        it is another file; the message says what was expected.
        """
        status = path.stat()
        if source.bytes is not None and status.st_size != source.bytes:
            raise CheckpointError(
                f"{path} has {status.st_size:,} bytes, expected {source.bytes:,}: it is incomplete or was replaced."
            )
        # No record is kept of a file outside the store: one in this repository, or one that a user has trained.
        record = None if source.path is not None else self.record(final or path)
        state = (status.st_size, status.st_mtime_ns, status.st_ino)
        if record is not None and (record.bytes, record.mtime_ns, record.inode) == state and not again:
            digest = record.sha256
        else:
            digest = sha256(path)
        self._compare(path, source.hash, digest, record)
        if source.path is not None:
            return digest
        if record is None or (record.bytes, record.mtime_ns, record.inode, record.sha256) != (*state, digest):
            if source.hash is None and record is None:
                log.warning(
                    "%s: no hash is published, so this first copy is unverified; later loads are compared with it.",
                    (final or path).name,
                )
            date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            record = Record(*state, sha256=digest, source=source.url or "", date=date)
            self._write_record(self.own_file(final or path, ".json"), record)
        return digest

    def _compare(self, path: Path, expected: Hash | None, digest: str, record: Record | None) -> None:
        if expected is not None and not digest.startswith(expected.value):
            dots = "…" if expected.kind == "sha256-prefix" else ""
            raise CheckpointError(
                f"{path} is not the published file: its sha256 is {digest}, expected {expected.value}{dots}."
            )
        if expected is None and record is not None and record.sha256 != digest:
            raise CheckpointError(
                f"{path} has changed since its first use on {record.date}: its sha256 was {record.sha256} and is now "
                f"{digest}. If you replaced it yourself, also delete {self.own_file(path, '.json')}."
            )

    def files(self, manifest: Manifest) -> list[StoredFile]:
        """The manifest's files, their mapped copies and unfinished downloads; nothing of other projects."""
        published: dict[str, StoredFile] = {}
        for checkpoint in manifest.checkpoints.values():
            for source in checkpoint.sources:
                path = self.path_of(checkpoint, source)
                if source.path is None and path.is_file():
                    size, record = path.stat().st_size, self.record(path)
                    published[path.name] = StoredFile(path, size, checkpoint, source, record)
        found = list(published.values())
        for path in sorted(self.own.iterdir()) if self.own.is_dir() else []:
            with contextlib.suppress(FileNotFoundError):  # another process has finished with it
                if file := self._own(path, published):
                    found.append(file)
        return found

    def _own(self, path: Path, published: dict[str, StoredFile]) -> StoredFile | None:
        """A file in this project's own folder: a mapped copy, or one that is being written or was left unfinished."""
        size, changed = path.stat().st_size, path.stat().st_mtime
        part = path.with_suffix("") if path.name.endswith(".part.json") else path
        if part.suffix == ".part":
            name = _PART.sub(r"\1", part.name)
            old = is_abandoned(part if part.exists() else path) and not self.is_locked(name)
            return StoredFile(path, size, removable="an interrupted download or conversion" if old else None)
        if path.suffix == SUFFIX:
            old = time.time() - changed > ABANDONED_AFTER
            return StoredFile(path, size, removable="a file whose writing was interrupted" if old else None)
        if path.suffix == ".mapped":
            name, digest, _ = path.name.rsplit(".", 2)
            of = published.get(name)
            current = of is not None and of.record is not None and of.record.sha256.startswith(digest)
            why = None if current else "a mapped copy of a file that no longer exists"
            return StoredFile(path, size, of and of.checkpoint, removable=why, copy_of=of and of.path)
        return None
