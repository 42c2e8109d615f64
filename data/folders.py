"""Folders and patterns -> the files in them, in an order that depends on their names alone."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import SourceError
from ..processing_utils.uris import scheme_of
from .file_names import Passed, is_hidden, kind_of
from .stores import Access, ask, filesystem, is_remote, is_web

MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Found:
    """The files that one spec names: one file, those in a folder, or those that a pattern matches."""

    how: Literal["file", "folder", "pattern"]
    root: int  #: the length of the part of each path that is not below the data's root
    paths: Iterator[str]  #: found while they are iterated; sorted within each folder


def is_pattern(spec: str) -> bool:
    """True if a spec is a pattern. The path of an existing file or folder never is."""
    return bool(re.search(r"[*?\[{]", spec)) and not is_remote(spec) and not os.path.lexists(spec)


def expand_braces(spec: str) -> Iterator[str]:
    """``a-{08..10}.tar`` -> a-08.tar, a-09.tar, a-10.tar; ``{a,b}`` too; as in shells and WebDataset."""
    found = None if not is_remote(spec) and os.path.lexists(spec) else re.search(
        r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", spec
    )  # fmt: skip
    if not found:
        yield spec
        return
    first, last, listed = found.groups()
    middle = (
        listed.split(",") if listed is not None else (f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1))
    )
    for m in middle:
        yield from expand_braces(spec[: found.start()] + m + spec[found.end() :])


def find_files(spec: str, access: Access, passed: Passed) -> Found:
    """Find the files that a spec names; hidden files below its root are counted in ``passed``."""
    if is_web(spec):
        return Found("file", spec.rfind("/") + 1, iter([spec]))
    if is_remote(spec):
        return _in_store(spec, access, passed)
    if os.path.isdir(spec):
        return Found("folder", len(os.path.join(spec, "")), _walk(spec, passed, ()))
    if os.path.lexists(spec):
        return Found("file", len(spec) - len(os.path.basename(spec)), iter([_as_path(spec)]))
    root = _fixed(spec)
    if names := sorted(glob.iglob(spec, recursive=True)) if MAGIC.search(spec) else []:
        return Found("pattern", root, _visible(names, root, passed))
    raise SourceError(f"No such file, folder or pattern: {spec}")


def _as_path(name: str) -> str:
    """Put ./ before a local file's name that looks like a URI (http:x.jpg)."""
    return f".{os.sep}{name}" if scheme_of(name) else name


def _fixed(pattern: str) -> int:
    """The length of a pattern's folders before its first wildcard."""
    found = MAGIC.search(pattern)
    return pattern.rfind("/", 0, found.start() if found else None) + 1


def _visible(names: list[str], root: int, passed: Passed) -> Iterator[str]:
    """Leave out folders and hidden files. (glob matches names with a dot only where the pattern has the dot.)"""
    for name in names:
        if any(is_hidden(part) and not part.startswith(".") for part in name[root:].split("/")):
            passed["hidden"] += 1
        elif not os.path.isdir(name):
            yield _as_path(name)


def _walk(folder: str, passed: Passed, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """The files below a folder, sorted within each folder. Only one folder's names are in memory at each level.

    Links to folders are followed, as torchvision's ImageFolder does; a link that leads back to a folder above is not.
    """
    try:
        status = os.stat(folder)
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda e: e.name)
    except OSError as error:
        raise SourceError(f"Cannot read the folder {folder}: {error.strerror}.") from error
    own = (status.st_dev, status.st_ino)
    if own in above:
        passed["links back to a folder above"] += 1
        return
    for entry in entries:
        if is_hidden(entry.name):
            passed["hidden"] += 1
        elif entry.is_dir():
            yield from _walk(entry.path, passed, (*above, own))
        else:
            yield _as_path(entry.path)


def _in_store(spec: str, access: Access, passed: Passed) -> Found:
    files, path = filesystem(spec, access)
    as_uri = files.unstrip_protocol
    if MAGIC.search(path) and not ask(spec, files.exists, path):
        root = len(as_uri(path[: _fixed(path)] or "/").rstrip("/")) + 1
        names = map(as_uri, sorted(ask(spec, files.glob, path)))
        return Found("pattern", root, (n for n in names if not any(map(is_hidden, n[root:].split("/")))))
    if kind_of(path) is None and ask(spec, files.isdir, path):
        return Found("folder", len(as_uri(path).rstrip("/")) + 1, map(as_uri, _walk_store(files, path, passed)))
    return Found("file", len(as_uri(path)) - len(path.rpartition("/")[2]), iter([as_uri(path)]))


def _walk_store(files: Any, folder: str, passed: Passed) -> Iterator[str]:
    for info in sorted(ask(folder, files.ls, folder, detail=True), key=lambda i: i["name"]):
        name = info["name"]
        if name.rstrip("/") == folder.rstrip("/"):  # a store may list a folder's own marker in it
            continue
        if is_hidden(name.rstrip("/").rpartition("/")[2]):
            passed["hidden"] += 1
        elif info["type"] == "directory":
            yield from _walk_store(files, name, passed)
        else:
            yield name
