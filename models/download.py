"""Download one verified file from several URLs: with a lock, resuming, retries, and a mirror.

``RESNEXT_HUB_MIRROR`` is a URL prefix that is tried first for every file (prefix/filename). With
``RESNEXT_HUB_OFFLINE=1`` nothing is downloaded. ``http_proxy``, ``https_proxy`` and ``no_proxy`` are respected, and
``SSL_CERT_FILE`` for your own CA.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.util
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UnreachableError, UnwritableError
from ..files import publish
from ..net.client import Answer, BrokenOffError, GetError, Policy, RefusedError, get
from .manifest import Checkpoint, License, Source
from .store import Store

log = logging.getLogger("resnext_hub")

ATTEMPTS = 5  # in a row without progress
PROGRESS = 1024  # bytes; fewer before a cut count as no progress, or retries would never end
RESTARTS = 2  # from the first byte, because the parts do not fit together
BACKOFF = 0.5  # seconds, doubled with every such attempt
LONGEST_WAIT = 60.0  # seconds; longer values of Retry-After are cut
POLICY = Policy(
    user_agent="resnext-hub (+https://github.com/org/resnext-hub)",
    redirects=10,
    seconds=60.0,
    slowest=1024,
    silence=30.0,
    trusted=True,
)


def local_file(
    checkpoint: Checkpoint, progress: bool = True, *, again: bool = False, store: Store | None = None
) -> tuple[Path, str]:
    """The verified file of a checkpoint and its sha256; downloaded if it is not on this machine.

    A file that the original repositories left in torch.hub's folder has the same name and is used.

    Args:
        progress: show a bar on stderr.
        again: hash the file even if it has not changed since it was last hashed.
        store: where files are kept; torch.hub's folder by default.

    Raises:
        CheckpointError: a file is not the published one.
        UnreachableError: it is not on this machine and could not be downloaded.
    """
    store = store or Store()
    present = store.find(checkpoint)
    if present is None:
        # The sources' file names differ by format: lock the first one's name for all of them.
        with store.lock(store.path_of(checkpoint, checkpoint.sources[0])):
            present = store.find(checkpoint) or _fetch_first(checkpoint, store, progress)
    path, source = present
    try:
        digest = store.verify(path, source, again=again)
    except CheckpointError as error:
        raise CheckpointError(f"{error} Delete it and load again.") from error
    if checkpoint.license is not None and not checkpoint.license.commercial_use:
        _log_license(checkpoint.variant, checkpoint.license_id, checkpoint.license)
    return path, digest


@cache
def _log_license(variant: str, name: str | None, license: License) -> None:
    log.warning("Licence of the weights of %s: %s, no commercial use. See %s", variant, name, license.url)


def _candidates(checkpoint: Checkpoint, store: Store) -> Iterator[Source]:
    mirror = os.environ.get("RESNEXT_HUB_MIRROR", "").rstrip("/")
    if "@" in mirror:  # refused here and not by the client, so that no message repeats a password
        log.warning("RESNEXT_HUB_MIRROR is ignored: it must not contain a user name or a password.")
        mirror = ""
    for source in checkpoint.sources:
        if source.url is None:
            continue
        if source.format == "safetensors" and importlib.util.find_spec("safetensors") is None:
            log.debug("Skipping %s: it needs the package safetensors", source.url)
            continue
        if mirror:
            yield dataclasses.replace(source, url=f"{mirror}/{store.path_of(checkpoint, source).name}")
        yield source


def _fetch_first(checkpoint: Checkpoint, store: Store, progress: bool) -> tuple[Path, Source]:
    tried: list[str] = []
    offline = os.environ.get("RESNEXT_HUB_OFFLINE", "").lower() not in ("", "0", "false")
    for source in () if offline else _candidates(checkpoint, store):
        path = store.path_of(checkpoint, source)
        try:
            fetch(source, path, store, progress)
            return path, source
        except (GetError, CheckpointError) as error:
            mirror = "" if source in checkpoint.sources else "RESNEXT_HUB_MIRROR "
            tried.append(f"{mirror}{source.url} ({str(error).rstrip('.')})")
    why = f" and could not be downloaded. Tried: {'; '.join(tried) or 'nothing, no source is known'}"
    why = ", and RESNEXT_HUB_OFFLINE is set" if offline else why
    way = "unset RESNEXT_HUB_OFFLINE" if offline else "set RESNEXT_HUB_MIRROR to the URL of a mirror"
    name = store.path_of(checkpoint, checkpoint.sources[0]).name
    raise UnreachableError(
        f"The weights of {checkpoint.name} are not on this machine{why}. Put the file {name} into {store.folder}, "
        f"{way}, or use resnext_tiny, whose weights are in the repository."
    )


def fetch(source: Source, path: Path, store: Store, progress: bool = True) -> None:
    """Download a source to ``path``, which appears when the content is complete and verified.

    The caller holds the lock. The bytes that a broken connection or a killed process leaves are kept, and the next
    download resumes after them. Raises GetError if no file could be downloaded, and CheckpointError if the content is
    not the published one, or cannot be written.
    """
    # Imported here because torch takes seconds. It is tqdm if that is installed, otherwise torch's plain bar.
    from torch.hub import tqdm  # pyright: ignore[reportPrivateImportUsage]

    part = _Part(path, store)
    log.info("Downloading %s", source.url)
    bar = tqdm(total=source.bytes, disable=not progress, unit="B", unit_scale=True, unit_divisor=1024, desc=path.name)
    try:
        part.file.parent.mkdir(parents=True, exist_ok=True)
        part.take_over()
        _fetch_verified(source, path, part, store, bar)
        publish(part.file, path)
    except CheckpointError:
        part.discard()
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise UnwritableError.of(part.file.parent, error) from error
        part.discard()
        full = f"The disk with {part.file.parent} is full, and the partial download was deleted"
        raise CheckpointError(f"{full}. Free some space and try again.") from error
    finally:
        bar.close()
        if not part.file.exists():
            part.discard()


def _fetch_verified(source: Source, path: Path, part: _Part, store: Store, bar: Any) -> None:
    for last in (False, True):
        in_one_piece = _fetch_with_retries(source, part, bar)
        try:
            if part.is_web_page():
                raise CheckpointError("the server sent a web page labelled as a file: does it ask for a login?")
            store.verify(part.file, source, final=path)
            _expect_weights(part.file, source, path, store)
            return
        except CheckpointError as error:
            if in_one_piece or last:
                raise
            # The pieces are of two versions of the file, or a crash of the machine damaged one.
            log.info("%s The resumed download is corrupt; starting again.", error)
            part.discard()


def _expect_weights(file: Path, source: Source, path: Path, store: Store) -> None:
    """Read a downloaded file as a load would, before it gets its name.

    Other programs unpickle the files in torch.hub's folder by their names, and would run the code in one of them.
    """
    from .checkpoints import read_state_dict  # it imports torch

    try:
        read_state_dict(file, mmap=True, vouched=source.hash is not None)
    except CheckpointError:
        store.own_file(path, ".json").unlink(missing_ok=True)  # or the next download would be compared with this one
        raise


def _fetch_with_retries(source: Source, part: _Part, bar: Any) -> bool:
    """Download until the file is complete; True if it came in one piece."""
    failures = restarts = 0
    while True:
        before = part.size()
        try:
            return _request(source, part, bar)
        except BrokenOffError as error:
            after = part.size()
            failures = 1 if after >= before + PROGRESS else failures + 1
            restarts += after < before
            if failures >= ATTEMPTS or restarts > RESTARTS:
                raise
            wait = min(max(BACKOFF * 2 ** (failures - 1), error.wait or 0.0), LONGEST_WAIT)
            log.info("%s: %s; trying again in %.1f s", source.url, error, wait)
            time.sleep(wait)


@dataclass(frozen=True)
class _Noted:
    """The file that the downloaded bytes are part of; "" and None if the server did not state it."""

    url: str
    etag: str
    total: int | None

    @property
    def strong(self) -> bool:
        """True if the ETag changes with every byte of the file."""
        return bool(self.etag) and not self.etag.startswith("W/")


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


class _Part:
    """An unfinished download of ``path``: its bytes, and next to them a note that says what they are part of."""

    def __init__(self, path: Path, store: Store) -> None:
        self.path, self.store = path, store
        self.file = store.part(path)
        self.note = _note(self.file)

    def take_over(self) -> None:
        """Resume an abandoned download, the longest if there are several; remove the others."""
        for other in self.store.abandoned_parts(self.path):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                if self.file.exists():
                    _note(other).unlink()
                    other.unlink()
                else:
                    os.rename(_note(other), self.note)
                    os.rename(other, self.file)

    def size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    def noted(self, source: Source) -> _Noted | None:
        """The note about the downloaded bytes; None if they cannot be resumed."""
        try:
            data = json.loads(self.note.read_text(encoding="utf-8"))
            total = data["total"]  # keys of later versions are ignored
            noted = _Noted(str(data["url"]), str(data["etag"]), None if total is None else int(total))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        # Without a hash or an ETag nobody would notice that the rest belongs to another file.
        usable = noted.url == source.url and self.size() > 0 and (noted.strong or source.hash is not None)
        return noted if usable and (noted.total is None or self.size() <= noted.total) else None

    def begin(self, noted: _Noted) -> None:
        self.file.unlink(missing_ok=True)  # first: bytes must never lie beside another file's note
        self.note.write_text(json.dumps(dataclasses.asdict(noted)), encoding="utf-8")

    def is_web_page(self) -> bool:
        with open(self.file, "rb") as file:
            return file.read(256).lstrip().lower().startswith((b"<!doctype html", b"<html"))

    def discard(self) -> None:
        for file in (self.file, self.note):
            with contextlib.suppress(OSError):
                file.unlink()


def _request(source: Source, part: _Part, bar: Any) -> bool:
    """One request: the rest of the file, or all of it if the rest may not belong to the part.

    Returns True if all came in one piece.
    """
    assert source.url is not None
    noted = part.noted(source)
    offset = part.size() if noted else 0
    if noted and offset == noted.total:  # killed while it was verified
        return False
    headers: dict[str, str] = {}
    if noted:
        headers["Range"] = f"bytes={offset}-"
        if noted.strong:
            headers["If-Range"] = noted.etag  # another file now: the server sends all of it
    with get(source.url, POLICY, headers) as answer:
        answer.require(200, 206, 416)
        if answer.headers.get_content_type() == "text/html":
            raise RefusedError("the server sent a web page, not a file: does it ask for a login?")
        continued = answer.status == 206
        if answer.status == 416 or (continued and not _continues(answer, noted, offset)):
            part.discard()
            raise BrokenOffError("the server sent a range that was not requested, or one of another file")
        total = _announced(answer, source)
        if not continued:
            offset = 0
            part.begin(_Noted(source.url, answer.headers.get("ETag", ""), total))
        if total is not None:
            free = shutil.disk_usage(part.file.parent).free
            if free < total - offset:
                lacks = f"has {free:,} bytes left, and the download needs {total - offset:,} bytes more"
                raise CheckpointError(f"The disk with {part.file.parent} {lacks}. Free some space and try again.")
            bar.total = total
        bar.update(offset - bar.n)
        with open(part.file, "ab") as file:
            while chunk := answer.read():
                file.write(chunk)
                bar.update(len(chunk))
    size = part.size()
    if total is not None and size != total:
        if size > total:
            part.discard()
        raise BrokenOffError(f"cut off after {size:,} of {total:,} bytes")
    return not continued


def _continues(answer: Answer, noted: _Noted | None, offset: int) -> bool:
    """True if a 206 is the rest of the part."""
    shown, _, whole = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    etag = answer.headers.get("ETag", "")
    return (
        noted is not None
        and shown.partition("-")[0] == str(offset)
        and (not etag or not noted.etag or etag == noted.etag)
        and (not whole.isdecimal() or noted.total is None or int(whole) == noted.total)
    )


def _announced(answer: Answer, source: Source) -> int | None:
    """The file's length, if the answer or the manifest states it."""
    length = answer.headers.get("Content-Length", "")
    if answer.status == 206:
        length = answer.headers.get("Content-Range", "").rpartition("/")[2]
    total = int(length) if length.isdecimal() and len(length) < 20 else None
    if total is not None and source.bytes is not None and total != source.bytes:
        raise RefusedError(f"the server's file has {total:,} bytes, expected {source.bytes:,}")
    chunked = answer.headers.get("Transfer-Encoding", "").lower() == "chunked"
    if total is None and source.bytes is None and source.hash is None and not chunked:
        raise RefusedError("the server states no length, and no hash is published: a cut would go unnoticed")
    return total if total is not None else source.bytes
