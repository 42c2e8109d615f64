"""URLs -> one verified file: resumed, locked, retried, mirrored.

``RESNEXT_HUB_MIRROR`` is a URL prefix that is asked first for every file (prefix/filename); ``RESNEXT_HUB_OFFLINE=1``
lets nothing be fetched. ``http_proxy``, ``https_proxy`` and ``no_proxy``, and ``SSL_CERT_FILE`` for an own CA, are
respected.
"""

from __future__ import annotations

import dataclasses
import email.utils
import errno
import http.client
import importlib.util
import json
import logging
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .cache import CheckpointError, checkpoints_folder, find, lock, own_file, target, verify
from .manifest import Checkpoint, Source

__all__ = ["UnreachableError", "fetch", "local_file"]

log = logging.getLogger("resnext_hub")

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # in a row without a byte of progress
BACKOFF = 0.5  # seconds, doubled with every such attempt
LONGEST_WAIT = 60.0  # seconds that a server's Retry-After is heeded
SLOWEST = 1024  # bytes a second, over a minute
CHUNK = 1 << 20
RETRIED = {408, 425, 429, 500, 502, 503, 504}
USER_AGENT = "resnext-hub (+https://github.com/org/resnext-hub)"


class UnreachableError(CheckpointError):
    """No source of a checkpoint could be fetched."""


class _SourceError(Exception):
    """This source will not do; the next may."""


def local_file(checkpoint: Checkpoint, progress: bool = True, *, again: bool = False) -> tuple[Path, str]:
    """The verified file of a checkpoint and its sha256; fetched where no source's file is on this machine.

    A file that the original repositories left in torch.hub's folder has the same name and is used. ``progress`` shows a
    bar on stderr; ``again`` hashes a file anew that was hashed in the same state before.

    Raises:
        CheckpointError: a file that is not the published one.
        UnreachableError: it is not on this machine and could not be fetched.
    """
    present = find(checkpoint)
    if present is None:
        # Sources of other formats have other names: the first one's name stands for all of them.
        with lock(target(checkpoint, checkpoint.sources[0])):
            present = find(checkpoint) or _fetch_first(checkpoint, progress)
    path, source = present
    try:
        return path, verify(path, source, again=again)
    except CheckpointError as error:
        raise CheckpointError(f"{error} Delete it and load again.") from error


def _candidates(checkpoint: Checkpoint) -> Iterator[Source]:
    mirror = os.environ.get("RESNEXT_HUB_MIRROR")
    for source in checkpoint.sources:
        if source.url is None:
            continue
        if source.format == "safetensors" and importlib.util.find_spec("safetensors") is None:
            log.debug("%s needs the package safetensors", source.url)
            continue
        if mirror:
            name = target(checkpoint, source).name
            yield dataclasses.replace(source, url=f"{mirror.rstrip('/')}/{name}")
        yield source


def _fetch_first(checkpoint: Checkpoint, progress: bool) -> tuple[Path, Source]:
    tried: list[str] = []
    offline = os.environ.get("RESNEXT_HUB_OFFLINE", "").lower() not in ("", "0", "false")
    for source in () if offline else _candidates(checkpoint):
        path = target(checkpoint, source)
        try:
            fetch(source, path, progress)
            return path, source
        except (_SourceError, CheckpointError) as error:
            tried.append(f"{source.url} ({error})")
    reason = "RESNEXT_HUB_OFFLINE is set" if offline else f"Tried: {'; '.join(tried) or 'nothing, it has no source'}"
    raise UnreachableError(
        f"The weights of {checkpoint.name} are not on this machine and could not be fetched. {reason}. Put the file "
        f"{target(checkpoint, checkpoint.sources[0]).name} into {checkpoints_folder()}, name a mirror in "
        "RESNEXT_HUB_MIRROR, or use resnext_tiny, whose weights are in the repository."
    )


def fetch(source: Source, path: Path, progress: bool = True) -> None:
    """Fetch a source into ``path``; the name appears when the content is whole and verified. The caller holds the lock.

    What a broken connection or a killed process leaves is kept beside the records and continued.

    Raises:
        CheckpointError: the content is not the published one, or the disk is full.
    """
    # Only here: torch takes seconds to import. tqdm where it is installed, else a plain bar of torch's.
    from torch.hub import tqdm  # pyright: ignore[reportPrivateImportUsage]

    assert source.url is not None
    part = own_file(path, ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    log.info("fetching %s", source.url)
    bar = tqdm(total=source.bytes, disable=not progress, unit="B", unit_scale=True, unit_divisor=1024, desc=path.name)
    try:
        _fetch_with_retries(source, part, bar)
        verify(part, source, inside=path)
        os.replace(part, path)
    except CheckpointError:
        part.unlink(missing_ok=True)
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        part.unlink(missing_ok=True)
        raise CheckpointError(f"The disk with {part.parent} is full; nothing was kept.") from error
    finally:
        bar.close()
        if not part.exists():
            _Parts(part).note.unlink(missing_ok=True)


def _fetch_with_retries(source: Source, part: Path, bar: Any) -> None:
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _request(source, part, bar)
            return
        except _SourceError:
            raise
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            after = part.stat().st_size if part.exists() else 0
            failures = 1 if after > before else failures + 1
            wait = _wait(error, failures)
            if wait is None or failures >= ATTEMPTS:
                raise _SourceError(_reason(error)) from error
            log.info("%s: %s; again in %.1f s", source.url, _reason(error), wait)
            time.sleep(wait)


def _reason(error: Exception) -> str:
    return str(error.reason) if type(error) is urllib.error.URLError else str(error) or type(error).__name__


def _wait(error: Exception, failures: int) -> float | None:
    """Seconds until another attempt; None where another would end the same."""
    wait = BACKOFF * 2 ** (failures - 1)
    if isinstance(error, urllib.error.HTTPError):
        if error.code not in RETRIED:
            return None
        asked = error.headers.get("Retry-After", "")
        if asked.isdigit():
            wait = float(asked)
        elif asked:
            parsed = email.utils.parsedate_tz(asked)
            wait = wait if parsed is None else max(0.0, email.utils.mktime_tz(parsed) - time.time())
    return min(wait, LONGEST_WAIT)


class _Parts:
    """A download under way: its bytes, and what they are part of."""

    def __init__(self, part: Path) -> None:
        self.part = part
        self.note = part.with_name(part.name + ".json")

    def resumable(self, url: str) -> dict[str, str]:
        """The validators noted for the bytes at hand, {} where they are of no use."""
        try:
            noted = json.loads(self.note.read_text(encoding="utf-8"))
            return noted if noted["url"] == url and self.part.stat().st_size > 0 else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def begin(self, url: str, headers: http.client.HTTPMessage, total: int | None) -> None:
        noted = {"url": url, "etag": headers.get("ETag", ""), "total": str(total or "")}
        self.note.write_text(json.dumps(noted), encoding="utf-8")


def _request(source: Source, part: Path, bar: Any) -> None:
    """One request: the rest of the file, or all of it where the rest may not belong to the part."""
    assert source.url is not None
    parts = _Parts(part)
    noted = parts.resumable(source.url)
    offset = part.stat().st_size if noted else 0
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if noted["etag"] and not noted["etag"].startswith("W/"):
            headers["If-Range"] = noted["etag"]  # another file now: the server sends all of it
    try:
        # An opener of its own: urlopen keeps the proxies that the environment named at its first use.
        opener = urllib.request.build_opener()
        response = opener.open(urllib.request.Request(source.url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part is no beginning of what is there now
            part.unlink(missing_ok=True)
            raise ConnectionError("the server has no such range; beginning anew") from error
        raise
    with response:
        total = _announced(response, source, noted, offset)
        if response.status == 206:
            mode = "ab"
        else:
            mode, offset = "wb", 0
            parts.begin(source.url, response.headers, total)
        if total is not None:
            free = shutil.disk_usage(part.parent).free
            if free < total - offset:
                raise CheckpointError(
                    f"{total - offset:,} bytes are to be fetched and the disk with {part.parent} has {free:,} left."
                )
            bar.total = total
        bar.update(offset - bar.n)
        _copy(response, part, mode, bar)
    size = part.stat().st_size
    if total is not None and size != total:
        if size > total:
            part.unlink()
        raise ConnectionError(f"cut off after {size:,} of {total:,} bytes")


def _announced(response: http.client.HTTPResponse, source: Source, noted: dict[str, str], offset: int) -> int | None:
    """The whole file's length as far as the answer gives it; refuses an answer that is another thing."""
    headers = response.headers
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _SourceError(f"it answers {headers['Content-Encoding']} content, which was not asked for")
    if headers.get_content_type() == "text/html":
        raise _SourceError("it answers a web page, not a file: a login or a notice?")
    if response.status not in (200, 206):
        raise _SourceError(f"it answers {response.status} {response.reason}")
    length = headers.get("Content-Length")
    total = int(length) if length and length.isdigit() else None
    if response.status == 206:
        start, _, whole = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        total = int(whole) if whole.isdigit() else None
        if start.partition("-")[0] != str(offset) or (noted["total"] and total and str(total) != noted["total"]):
            raise _SourceError(f"it answers another range than asked for: {headers.get('Content-Range')!r}")
    if total is not None and source.bytes is not None and total != source.bytes:
        raise _SourceError(f"it has {total:,} bytes where {source.bytes:,} were published")
    return total if total is not None else source.bytes


def _copy(response: http.client.HTTPResponse, part: Path, mode: str, bar: Any) -> None:
    window, received = time.monotonic(), 0
    with open(part, mode) as file:
        while chunk := response.read1(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
            received += len(chunk)
            if (elapsed := time.monotonic() - window) > 60:
                if received < SLOWEST * elapsed:
                    raise _SourceError(f"it sent only {received:,} bytes in the last {elapsed:.0f} s")
                window, received = time.monotonic(), 0
