"""The folders of built engines on this machine: what each was built from, if it is unchanged, and which can be removed.

They lie in the store's own folder, in ``engines``. Each has a record, engine.json.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import EngineError, ManifestError, UnknownVariantError
from ...files import SUFFIX, sha256
from ...models.manifest import Checkpoint, Manifest, find_checkpoint
from ...models.store import ABANDONED_AFTER, Store
from ...packages import library_version

RECORD = "engine.json"
SMALL = 1 << 20  # bytes: files up to this size are hashed whenever an engine is opened
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
UNUSED_DAYS = 30  # all environments of a user share the store: another may open what this one cannot


@dataclass(frozen=True)
class EngineFolder:
    """A built engine, or one that is being built.

    Attributes:
        engine: its name in `ENGINES`; None if it cannot be opened here.
        removable: why it can be removed; None if it is in use.
        kept: why it is kept although this environment cannot open it.
    """

    path: Path
    bytes: int
    checkpoint: Checkpoint | None = None
    engine: str | None = None
    removable: str | None = None
    kept: str | None = None

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def folder_of_engines(store: Store) -> Path:
    return store.own / "engines"


def read_record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RECORD).read_text(encoding="utf-8"))


def write_record(folder: Path, record: dict[str, Any]) -> None:
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The length and sha256 of each file of an engine that was just built, for its record."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(folder.iterdir())}


def is_unchanged(folder: Path, hashed: float = math.inf) -> bool:
    """Return True if the files of a built engine are as they were when it was built.

    Args:
        hashed: only the length is compared of files with more bytes than this.
    """
    try:
        files = read_record(folder)["files"]
        return files.keys() | {RECORD} == {path.name for path in folder.iterdir()} and all(
            stat.S_ISREG((folder / name).lstat().st_mode)
            and (folder / name).stat().st_size == file["bytes"]
            and (file["bytes"] > hashed or sha256(folder / name) == file["sha256"])
            for name, file in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def expect_own(folder: Path) -> None:
    """Raise EngineError if another user, who is not root, owns a built engine or may write to it: it is native code.

    Who may write to the folder that holds the engines could replace one after this check. If that folder is ours, it
    becomes unwritable for others.
    """
    if not hasattr(os, "getuid"):
        return
    parent = folder.parent.stat()
    if parent.st_uid == os.getuid() and parent.st_mode & OTHERS_MAY_WRITE:
        folder.parent.chmod(stat.S_IMODE(parent.st_mode) & ~OTHERS_MAY_WRITE)
    for path in (folder.parent, folder, *folder.iterdir()):
        status = path.stat() if path == folder.parent else path.lstat()  # the folder of engines may be a link
        if status.st_uid not in (0, os.getuid()) or status.st_mode & OTHERS_MAY_WRITE:
            raise EngineError(
                f"Another user owns or may write to {path}, which is run as code: delete it, or set TORCH_HOME to a "
                "folder of your own."
            )


def remove_interrupted(folder: Path) -> None:
    """Remove what killed builds of an engine left. The caller holds its lock."""
    for path in folder.parent.glob(f"{folder.name}.*{SUFFIX}"):
        if time.time() - _size_and_time(path)[1] > ABANDONED_AFTER:
            shutil.rmtree(path, ignore_errors=True)


def note_use(folder: Path) -> None:
    """Record that an engine was used just now, for `engine_folders`."""
    with contextlib.suppress(OSError):  # a read-only folder
        os.utime(folder / RECORD)


def engine_folders(store: Store, manifest: Manifest) -> list[EngineFolder]:
    """All built engines, and what was left of interrupted builds."""
    folder = folder_of_engines(store)
    published = {file.path.name: file for file in store.files(manifest) if file.source is not None}
    checkpoints = {name: file.checkpoint for name, file in published.items()} | {
        source.path.name: checkpoint  # in this repository
        for checkpoint in manifest.checkpoints.values()
        for source in checkpoint.sources
        if source.path is not None
    }

    def described(path: Path) -> EngineFolder:
        size, changed = _size_and_time(path)
        if path.suffix == SUFFIX:
            old = time.time() - changed > ABANDONED_AFTER and not store.is_locked(path.name.rsplit(".", 2)[0])
            return EngineFolder(path, size, removable="an engine whose build was interrupted" if old else None)
        try:
            record = read_record(path)
            file, digest, name, trained = record["file"], record["sha256"], record["engine"], record.get("path", "")
            current = library_version(record["library"]) == record["version"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return _unusable(EngineFolder(path, size), changed, "an engine that this version cannot open")
        found = published.get(file)
        if found is None:
            gone = file not in checkpoints and not Path(trained).is_file()
        else:
            gone = found.record is not None and found.record.sha256 != digest
        why = "an engine of a checkpoint that no longer exists" if gone else None
        engine = EngineFolder(path, size, checkpoints.get(file) or _trained(trained), name, why)
        if gone or current:
            return engine
        return _unusable(engine, changed, "an engine built with another version of its library")

    return [described(path) for path in sorted(folder.iterdir())] if folder.is_dir() else []


def _trained(path: str) -> Checkpoint | None:
    """The checkpoint of a training run's file; None if it is gone or unusable."""
    with contextlib.suppress(UnknownVariantError, ManifestError, OSError):
        return find_checkpoint(Path(path).parent) if path else None
    return None


def _size_and_time(folder: Path) -> tuple[int, float]:
    """The size of all files in a folder, and the time of the last change."""
    size, newest = 0, 0.0
    for path in [folder, *folder.rglob("*")]:
        with contextlib.suppress(OSError):  # one that is being built changes meanwhile
            status = path.stat()
            size += 0 if path.is_dir() else status.st_size
            newest = max(newest, status.st_mtime)
    return size, newest


def _unusable(engine: EngineFolder, used: float, why: str) -> EngineFolder:
    """An engine that this environment cannot open; removable if no environment has used it for `UNUSED_DAYS`."""
    if time.time() - used > UNUSED_DAYS * 86400:
        return replace(engine, removable=f"{why}, not used for {UNUSED_DAYS} days")
    return replace(engine, kept=f"{why}: another environment may use it")
