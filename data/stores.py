"""Files on this machine, behind http(s), or in an object store: open them, read parts, notice replaced files.

A list or a table may come from a stranger, so each path and URI in it is checked: schemes, addresses, sizes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import stat
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FetchError, SourceError
from ..packages import needed
from ..processing_utils.uris import MAX_BYTES, fetch, read_file, scheme_of
from ..telemetry import silence
from .file_names import RAW

# fsspec has many more (ftp, ssh, github, chains such as simplecache::http://). Some of them connect to any address in
# the URI or open any file, and a list or table may be untrusted.
STORES = ("s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "abfss", "oci", "oss", "memory")
#: The options with which each store serves public data without an account.
ANONYMOUS = {
    **{scheme: {"anon": True} for scheme in ("s3", "s3a", "az", "abfs", "abfss")},
    **{scheme: {"token": "anon"} for scheme in ("gs", "gcs")},
    "hf": {"token": False},
}

# A list, table or archive behind http(s) is fetched completely, with the same checks as images.
WEB = ("http", "https")
WEB_BYTES, WEB_SECONDS = 2 * 2**30, 1800.0
FREE_BYTES = 2**30  # to keep free on the disk of the temporary folder


@dataclass(frozen=True)
class Access:
    """The permissions for URLs and stores."""

    private: bool = False  #: fetch URLs at private addresses too
    anonymous: bool = False  #: ask stores for public data, without an account


def is_remote(spec: str) -> bool:
    return scheme_of(spec) is not None


def is_web(spec: str) -> bool:
    return scheme_of(spec) in WEB


def reason(error: Exception) -> str:
    """An error's message. For a system error, only its text: callers name the file themselves."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) if isinstance(error, SourceError) else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def readable(failed: str) -> Iterator[None]:
    """Raise any error as a SourceError that begins with ``failed``: each store and each decoder has its own errors."""
    try:
        yield
    except (SourceError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise SourceError(f"{failed}: {reason(error)}") from error


def ask(uri: str, question: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a method of a store; raise SourceError if it fails."""
    with readable(f"Cannot read {uri}"):
        return question(*arguments, **options)


def filesystem(uri: str, access: Access = Access(), schemes: Sequence[str] = ("file", *STORES)) -> tuple[Any, str]:
    """fsspec's file system for a store's URI, and the path in it."""
    scheme = scheme_of(uri) or ""
    hint = "For a file with this name, write ./ before it."
    if "::" in uri:
        raise SourceError(f"Chained URLs ('::') are not allowed: {uri[:200]!r}. {hint}")
    if scheme not in schemes:
        taken = ", ".join(("http", "https", "file", *STORES))
        raise SourceError(f"Unknown scheme {scheme!r} in {uri[:200]!r}; expected {taken}. {hint}")
    if not uri[len(scheme) :].startswith("://"):  # fsspec would read it as a path of this machine
        raise SourceError(f"{uri[:200]!r} is not a URL: expected {scheme}://.")
    if scheme == "hf":
        silence("huggingface_hub")  # fsspec imports it
    with needed(f"Reading {uri}", "bulk"):
        import fsspec.core
    options = ANONYMOUS.get(scheme, {}) if access.anonymous else {}
    try:
        # Without the cache: it would keep a million names in memory, and return an old listing to a resumed run.
        return fsspec.core.url_to_fs(uri, use_listings_cache=False, **options)
    except Exception as error:  # s3fs is not installed, no credentials: each store has its own
        raise SourceError(f"{uri}: {type(error).__name__}: {error}") from error


def version_of(uri: str, access: Access = Access()) -> str:
    """The length and date (or ETag) of a file, which change when it is replaced."""
    try:
        if not is_remote(uri):
            status = os.stat(uri)
            return f"{status.st_size} {status.st_mtime}"
        files, path = filesystem(uri, access)
        info = files.info(path)
    except SourceError:
        raise
    except Exception as error:  # each store has its own
        return type(error).__name__
    dates = (info.get(key) for key in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created"))
    return f"{info.get('size')} {next(filter(None, dates), None)}"


def _fetch_all(uri: str, access: Access) -> bytes:
    return fetch(uri, schemes=WEB, allow_private=access.private, max_bytes=WEB_BYTES, timeout=WEB_SECONDS)


def open_binary(uri: str, access: Access) -> Any:
    """Open a file that can seek; SourceError for a device or a pipe, which may never end."""
    if is_web(uri):
        return io.BytesIO(_fetch_all(uri, access))
    if is_remote(uri):
        files, path = filesystem(uri, access)
        return files.open(path, "rb")
    if not stat.S_ISREG(os.stat(uri).st_mode):
        raise SourceError(f"{uri} is not a regular file.")
    return open(uri, "rb")


def read_range(uri: str, access: Access, start: int, length: int) -> bytes:
    """Read a part of a file of this machine or of a store."""
    if is_remote(uri):
        files, path = filesystem(uri, access)
        return files.cat_file(path, start=start, end=start + length)
    with open(uri, "rb") as file:
        file.seek(start)
        return file.read(length)


def read_image(location: str, access: Access) -> bytes:
    """Read one encoded image, of at most ``MAX_BYTES``; FetchError or FileNotFoundError if it cannot be read."""
    scheme = scheme_of(location)
    if location.lower().endswith(RAW):
        raise FetchError(f"{location}: camera raw files cannot be read; convert them to JPEG.")
    if scheme in (*WEB, "data", "file"):
        return fetch(location, allow_private=access.private)
    if scheme is None:
        return read_file(Path(location))
    try:
        files, path = filesystem(location, access, STORES)
        data = files.cat_file(path, start=0, end=MAX_BYTES + 1)
    except SourceError as error:
        raise FetchError(str(error)) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"No such file: {location}") from error
    except Exception as error:  # each store has its own
        raise FetchError(f"{location} could not be downloaded: {type(error).__name__}: {error}") from error
    if len(data) > MAX_BYTES:
        raise FetchError(f"{location} has more than the {MAX_BYTES:,} bytes allowed.")
    return data


class Spool:
    """A temporary file, removed when the object is garbage-collected or its process ends."""

    def __init__(self, fill: Callable[[Any], object]) -> None:
        folder = tempfile.mkdtemp(prefix="resnext-hub-")
        weakref.finalize(self, _remove, folder, os.getpid())
        self.path, self.digest = str(Path(folder) / "content"), ""
        with open(self.path, "wb") as file:
            fill(file)


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker has a copy of the object
        shutil.rmtree(folder, ignore_errors=True)


def check_free(folder: str, what: str) -> None:
    """Raise SourceError if the disk of a temporary folder is nearly full."""
    if shutil.disk_usage(os.path.dirname(folder)).free < FREE_BYTES:
        raise SourceError(f"{what} does not fit on the disk of {tempfile.gettempdir()}: set TMPDIR to another folder.")


# Key -> spool, for the last few: each shard of a table needs its spool again.
_spools: OrderedDict[Any, Spool] = OrderedDict()
SPOOLS = 2


def keep(key: Any, make: Callable[[], Spool]) -> Spool:
    """The spool of this key; made if it is not among the last few."""
    spool = _spools.pop(key, None) or make()
    _spools[key] = spool
    while len(_spools) > SPOOLS:
        _spools.popitem(last=False)
    return spool


def spooled(uri: str, access: Access, version: str | None = None) -> Spool:
    """Fetch an http(s) URI into a temporary file. ``version``: the sha256 that it must have."""
    content = _fetch_all(uri, access)
    spool = Spool(lambda file: file.write(content))
    spool.digest = hashlib.sha256(content).hexdigest()
    if version is not None and spool.digest != version:
        raise FetchError(f"{uri} has changed since the run started.")
    return spool
