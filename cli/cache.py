"""``resnext-hub cache``: the downloaded weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EXIT_OK, EXIT_WEIGHTS, CheckpointError
from ..models.manifest import Manifest, find_checkpoint
from ..models.store import Store, StoredFile
from .console import fail
from .options import add_variant

if TYPE_CHECKING:
    from ..inference.engines.folders import EngineFolder


def add_to(commands: Any) -> None:
    cache: argparse.ArgumentParser = commands.add_parser(
        "cache", help="list, verify or remove downloaded weights and built engines"
    )
    actions = cache.add_subparsers(dest="action", required=True, title="actions", metavar="ACTION")
    for name, run, text in (
        ("list", _list, "list files, sizes, dates, sources, and what can be removed"),
        ("verify", _verify, "check the hash of every file again"),
        ("remove", _remove, "remove the weights of a variant, with their copies and engines"),
        ("prune", _prune, "remove what is no longer needed"),
    ):
        parser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        parser.set_defaults(run=run)
        if name == "remove":
            add_variant(parser, "variants", nargs="+")


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _entries(manifest: Manifest) -> list[StoredFile | EngineFolder]:
    """All files and engines; originals come before their copies."""
    from ..inference.engines.folders import engine_folders

    store = Store()
    return [*store.files(manifest), *engine_folders(store, manifest)]


def _described(entry: StoredFile | EngineFolder) -> list[str]:
    """The lines that ``cache list`` prints below a name."""
    of = entry.checkpoint.name if entry.checkpoint else "an unknown checkpoint"
    if entry.removable:
        return [f"can be removed: {entry.removable}"]
    if not isinstance(entry, StoredFile):
        if entry.kept:
            return [f"kept: {entry.kept}"]
        return [f"{entry.engine} engine of {of}" if entry.engine else "an engine that is being built"]
    if entry.source is None:
        return [f"mapped copy of {of}" if entry.copy_of else "download in progress"]
    if entry.record is None:
        return [f"{of}, not verified yet"]
    known = "verified" if entry.source.hash else "unverified: no hash is published"
    record = entry.record
    return [f"{of}, {known}, {record.date[:10]}", f"sha256 {record.sha256[:16]}…  {record.source}"]


def _list(arguments: argparse.Namespace, manifest: Manifest) -> int:
    entries = _entries(manifest)
    print(Store().folder)
    for entry in entries:
        print(f"{_size(entry.bytes):>13}  {entry.path.name}")
        for line in _described(entry):
            print(f"{'':15}{line}")
    removable = sum(entry.bytes for entry in entries if entry.removable)
    total = _size(sum(entry.bytes for entry in entries))
    print(f"{total:>13}  in total; {_size(removable)} can be removed (resnext-hub cache prune)")
    return EXIT_OK


def _verify(arguments: argparse.Namespace, manifest: Manifest) -> int:
    from ..inference.engines.folders import is_unchanged
    from ..models.checkpoints import examine, is_faithful

    status, store, entries = EXIT_OK, Store(), _entries(manifest)
    vouched = {e.path for e in entries if isinstance(e, StoredFile) and e.source and e.source.hash}
    broken = set()
    for entry in entries:
        path = entry.path
        if isinstance(entry, StoredFile) and entry.source:
            try:
                print(f"{path.name}: sha256 {store.verify(path, entry.source, again=True)}", flush=True)
                examine(path, vouched=path in vouched)
            except CheckpointError as error:
                broken.add(path)
                status = fail(str(error), EXIT_WEIGHTS)
            continue
        if entry.removable:
            continue
        if not isinstance(entry, StoredFile):
            if not entry.engine:
                continue
            good, unchanged, damaged = is_unchanged(path), "unchanged since it was built", "was corrupt"
        elif entry.copy_of is not None and entry.copy_of not in broken:
            good = is_faithful(path, entry.copy_of, vouched=entry.copy_of in vouched)
            unchanged, damaged = "identical to its original", "differed from its original"
        else:
            continue
        if good:
            print(f"{path.name}: {unchanged}", flush=True)
        else:
            entry.remove()
            status = fail(f"{path.name} {damaged} and has been removed. It is made again when needed.", EXIT_WEIGHTS)
    if not entries:
        print("There is nothing to verify.", file=sys.stderr)
    return status


def _remove(arguments: argparse.Namespace, manifest: Manifest) -> int:
    """Remove what was made for a variant; what is part of this repository stays."""
    trained = [variant for variant in arguments.variants if Path(variant).is_dir()]
    checkpoints = [find_checkpoint(v) if v in trained else manifest.resolve(v) for v in arguments.variants]
    entries = [entry for entry in _entries(manifest) if entry.checkpoint in checkpoints]
    for entry in entries:
        entry.remove()
        print(f"Removed {entry.path.name} ({_size(entry.bytes)})")
    if not entries:
        print("Nothing to remove: the cache has no file of these variants.", file=sys.stderr)
    return EXIT_OK


def _prune(arguments: argparse.Namespace, manifest: Manifest) -> int:
    entries = _entries(manifest)
    if not any(entry.removable for entry in entries):
        print("Nothing to remove.", file=sys.stderr)
    for entry in entries:
        if entry.removable:
            entry.remove()
            print(f"Removed {entry.path.name} ({_size(entry.bytes)}): {entry.removable}")
        elif not isinstance(entry, StoredFile) and entry.kept:
            print(f"Kept {entry.path.name} ({_size(entry.bytes)}): {entry.kept}")
    return EXIT_OK
