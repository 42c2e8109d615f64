"""What lies in the cache, and what is known of it.

Published files lie in torch.hub's own ``checkpoints`` folder, where the original repositories leave theirs. Beside
them, in ``.resnext-hub``, lie this project's: what was found when a file was hashed (``*.json``), downloads under way
(``*.part``), locks, copies of old files in a format that can be memory-mapped (``*.mapped``), and what inference
engines were built to (``engines``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, UnwritableError
from ..packages import library_version
from .manifest import PLAIN_NAME, Checkpoint, Hash, Manifest, Source, default_manifest

__all__ = [
    "Item",
    "Record",
    "checkpoints_folder",
    "find",
    "inventory",
    "is_vouched",
    "lock",
    "mapped_copy",
    "note_use",
    "own_file",
    "target",
    "verify",
]

log = logging.getLogger("resnext_hub")

UNUSED_DAYS = 30  # the cache is one for all environments of a user: another may open what this one cannot
BROKEN_OFF_AFTER = 600  # seconds that a part has not grown: no process is writing it any more


@dataclass(frozen=True)
class Record:
    """A file's state when it was last hashed, and its sha256: the same state is not hashed again."""

    bytes: int
    mtime_ns: int
    inode: int
    sha256: str
    source: str
    date: str


def checkpoints_folder() -> Path:
    """torch.hub's own folder, found without importing torch: it takes seconds, and an engine may need none."""
    if sys.modules.get("torch") is not None:
        import torch

        return Path(torch.hub.get_dir()) / "checkpoints"  # a user may have set it
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def own_file(path: Path, suffix: str) -> Path:
    """This project's file about a checkpoint file: its record, lock, part or mapped copy."""
    return checkpoints_folder() / ".resnext-hub" / f"{path.name}{suffix}"


def mapped_copy(path: Path, digest: str) -> Path:
    """The copy of a file with this sha256 that can be memory-mapped."""
    return own_file(path, f".{digest[:16]}.mapped")


def target(checkpoint: Checkpoint, source: Source) -> Path:
    """Where a source's file lies or will lie. Mirrors all name theirs "model.safetensors", so those are named here."""
    if source.path is not None:
        return source.path
    name = source.filename
    if source.format == "safetensors" and source.hash is not None:
        name = f"{checkpoint.name}-{source.hash.value[:8]}.safetensors"
    if not PLAIN_NAME.fullmatch(name):
        raise CheckpointError(f"{name[:200]!a} is not the name of a file in {checkpoints_folder()}.")
    return checkpoints_folder() / name


def find(checkpoint: Checkpoint) -> tuple[Path, Source] | None:
    """The first source whose file is on this machine."""
    for source in checkpoint.sources:
        path = target(checkpoint, source)
        if path.is_file():
            return path, source
    return None


def is_vouched(checkpoint: Checkpoint, path: Path) -> bool:
    """Whether a verified file is the one whose hash this package's own manifest states.

    The manifest in the folder of a training run vouches for nothing: whoever made the folder wrote it.
    """
    ours = default_manifest().checkpoints.get(checkpoint.name)
    hashed = [source for source in checkpoint.sources if source.hash is not None]
    return checkpoint == ours and any(target(checkpoint, source) == path for source in hashed)


@contextlib.contextmanager
def lock(path: Path) -> Generator[None]:
    """Let one process at a time fetch or convert a file; eight ranks fetch it once.

    Raises:
        UnwritableError: the cache is read-only, or full.
    """
    import filelock  # a fifth of the time in which a cached network is ready, and such a network needs no lock

    file = own_file(path, ".lock")
    guard = filelock.FileLock(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        guard.acquire(timeout=1)
    except filelock.Timeout:
        log.info("Waiting for another process that is downloading or converting %s", path.name)
        guard.acquire()
    except OSError as error:
        raise UnwritableError.of(file.parent, error) from error
    try:
        yield
    finally:
        guard.release()


def _is_broken_off(part: Path, changed: float) -> bool:
    """Whether nobody is at work on a part any more: it has not changed for long, and its lock is free."""
    return time.time() - changed > BROKEN_OFF_AFTER and not _is_locked(part.with_suffix(""))


def _is_locked(path: Path) -> bool:
    import filelock

    guard = filelock.FileLock(own_file(path, ".lock"))
    try:
        guard.acquire(timeout=0)
    except (filelock.Timeout, OSError):
        return True
    guard.release()
    return False


def read_record(path: Path) -> Record | None:
    try:
        noted = json.loads(own_file(path, ".json").read_text(encoding="utf-8"))
        return Record(**{field.name: noted[field.name] for field in dataclasses.fields(Record)})
    except (OSError, ValueError, TypeError, KeyError):  # none, or one that this version cannot read: hashed again
        return None


def _write_record(path: Path, record: Record) -> None:
    file = own_file(path, ".json")
    temporary = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(dataclasses.asdict(record), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, file)
    except OSError as error:  # a read-only cache: it is hashed at every load
        log.debug("Cannot save the record of %s: %s", path, error)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, source: Source, *, again: bool = False, inside: Path | None = None) -> str:
    """The file's sha256, once it is known to be the published file.

    Known by what the manifest has: a length; a whole sha256, or the prefix in the file's name (8 hex digits: they tell
    a broken file from a whole one, not an honest one from a forged one). Where a publisher states no hash, the digest
    found at first use is held from then on. A state that was hashed before (length, modification time, inode) is not
    hashed again unless ``again``.

    Args:
        inside: the file that the record is about, where ``path`` has not got its name yet.

    Raises:
        CheckpointError: it is another file; the message says what was expected.
    """
    status = path.stat()
    if source.bytes is not None and status.st_size != source.bytes:
        raise CheckpointError(
            f"{path} has {status.st_size:,} bytes, expected {source.bytes:,}: it is incomplete or was replaced."
        )
    # No record is kept of a file outside the cache: one in this repository, or one that a user has trained.
    record = None if source.path is not None else read_record(inside or path)
    state = (status.st_size, status.st_mtime_ns, status.st_ino)
    if record is not None and (record.bytes, record.mtime_ns, record.inode) == state and not again:
        digest = record.sha256
    else:
        digest = sha256(path)
    _compare(path, source.hash, digest, record)
    if source.path is not None:
        return digest
    if record is None or (record.bytes, record.mtime_ns, record.inode, record.sha256) != (*state, digest):
        if source.hash is None and record is None:
            log.warning(
                "%s: no hash is published, so this first copy is unverified; later loads are compared with it.",
                (inside or path).name,
            )
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        _write_record(inside or path, Record(*state, sha256=digest, source=source.url or "", date=date))
    return digest


def _compare(path: Path, expected: Hash | None, digest: str, record: Record | None) -> None:
    if expected is not None and not digest.startswith(expected.value):
        dots = "…" if expected.kind == "sha256-prefix" else ""
        raise CheckpointError(
            f"{path} is not the published file: its sha256 is {digest}, expected {expected.value}{dots}."
        )
    if expected is None and record is not None and record.sha256 != digest:
        raise CheckpointError(
            f"{path} has changed since its first use on {record.date}: its sha256 was {record.sha256} and is now "
            f"{digest}. If you replaced it yourself, also delete {own_file(path, '.json')}."
        )


@dataclass(frozen=True)
class Item:
    """A file in the cache, or the folder of an engine.

    Attributes:
        removable: why it can be removed; None if it is in use.
        kept: why it is kept although this environment cannot use it.
    """

    path: Path
    bytes: int
    checkpoint: Checkpoint | None
    source: Source | None
    record: Record | None
    removable: str | None
    copy_of: Path | None = None
    engine: str | None = None
    kept: str | None = None


def _own_item(path: Path, published: dict[str, Item]) -> Item | None:
    """What a file in this project's own folder is: a mapped copy or what a broken-off download left."""
    size = path.stat().st_size
    if path.suffix == ".part" or path.name.endswith(".part.json"):
        part = path if path.suffix == ".part" else path.with_suffix("")
        why = "an interrupted download or conversion" if _is_broken_off(part, path.stat().st_mtime) else None
        return Item(path, size, None, None, None, why)
    if path.suffix == ".mapped":
        name, digest, _ = path.name.rsplit(".", 2)
        of = published.get(name)
        current = of is not None and of.record is not None and of.record.sha256.startswith(digest)
        why = None if current else "a mapped copy of a file that no longer exists"
        return Item(path, size, of and of.checkpoint, None, None, why, of and of.path)
    return None


def is_whole(engine: Path) -> bool:
    """Whether the files of a built engine are as they were when it was built."""
    try:
        files = json.loads((engine / "engine.json").read_text(encoding="utf-8"))["files"]
        return all(sha256(engine / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _engine(folder: Path, published: dict[str, Item], own_weights: dict[str, Checkpoint]) -> Item:
    size, newest = 0, 0.0
    for file in [folder, *folder.rglob("*")]:
        with contextlib.suppress(OSError):  # one that is being built changes meanwhile
            status = file.stat()
            size += 0 if file.is_dir() else status.st_size
            newest = max(newest, status.st_mtime)
    if folder.suffix in (".part", ".old"):
        why = "an engine whose build was interrupted" if _is_broken_off(folder, newest) else None
        return Item(folder, size, None, None, None, why)
    try:
        about = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
        file, digest, name, trained = about["file"], about["sha256"], about["engine"], Path(about.get("path", ""))
        current = library_version(about["library"]) == about["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return _foreign(Item(folder, size, None, None, None, None), newest, "an engine that this version cannot open")
    of = published.get(file)
    if of is None:
        gone = file not in own_weights and not trained.is_file()
    else:
        gone = of.record is not None and of.record.sha256 != digest
    why = "an engine of a checkpoint that no longer exists" if gone else None
    item = Item(folder, size, own_weights.get(file) or (of and of.checkpoint), None, None, why, engine=name)
    if gone or current:
        return item
    return _foreign(item, newest, "an engine built with another version of its library")


def _foreign(item: Item, used: float, why: str) -> Item:
    """An engine that this environment cannot open; removable when no environment has used it for `UNUSED_DAYS`."""
    if time.time() - used > UNUSED_DAYS * 86400:
        return dataclasses.replace(item, removable=f"{why}, not used for {UNUSED_DAYS} days")
    return dataclasses.replace(item, kept=f"{why}: another environment may use it")


def note_use(engine: Path) -> None:
    """Date an engine's last use, which `inventory` asks for."""
    with contextlib.suppress(OSError):  # a read-only cache
        os.utime(engine / "engine.json")


def inventory(manifest: Manifest) -> list[Item]:
    """The manifest's files in the cache, their mapped copies, and what can go; nothing of other projects."""
    published: dict[str, Item] = {}
    own_weights: dict[str, Checkpoint] = {}  # in this repository
    for checkpoint in manifest.checkpoints.values():
        for source in checkpoint.sources:
            path = target(checkpoint, source)
            if source.path is not None:
                own_weights[path.name] = checkpoint
            elif path.is_file():
                published[path.name] = Item(path, path.stat().st_size, checkpoint, source, read_record(path), None)
    own = checkpoints_folder() / ".resnext-hub"
    found = sorted(own.iterdir()) if own.is_dir() else []
    engines = sorted((own / "engines").iterdir()) if (own / "engines").is_dir() else []
    return [
        *published.values(),
        *(item for path in found if (item := _own_item(path, published))),
        *(_engine(path, published, own_weights) for path in engines),
    ]
