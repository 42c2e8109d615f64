"""``resnext-hub cache``: the downloaded weights."""

from __future__ import annotations

import argparse
import shutil
from typing import Any

from ..errors import EXIT_OK, EXIT_WEIGHTS, CheckpointError
from ..models.manifest import Manifest
from .console import fail

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    cache: argparse.ArgumentParser = commands.add_parser("cache", help="list, verify or remove downloaded weights")
    actions = cache.add_subparsers(dest="action", required=True, title="actions", metavar="ACTION")
    for name, run, text in (
        ("list", _list, "list files, sizes, dates, sources, and what can be removed"),
        ("verify", _verify, "check the hash of every file again"),
        ("prune", _prune, "remove what is no longer needed"),
    ):
        actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.").set_defaults(run=run)


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _list(arguments: argparse.Namespace, manifest: Manifest) -> int:
    from ..models.cache import checkpoints_folder, inventory

    items = inventory(manifest)
    print(checkpoints_folder())
    for item in items:
        print(f"{_size(item.bytes):>13}  {item.path.name}")
        if item.removable:
            print(f"{'':15}can be removed: {item.removable}")
        elif item.kept:
            print(f"{'':15}kept: {item.kept}")
        elif item.engine:
            print(
                f"{'':15}{item.engine} engine of {item.checkpoint.name if item.checkpoint else 'an unknown checkpoint'}"
            )
        elif item.source is None:
            print(f"{'':15}{f'mapped copy of {item.checkpoint.name}' if item.checkpoint else 'download in progress'}")
        elif item.record is None:
            print(f"{'':15}{item.checkpoint.name if item.checkpoint else ''}, not verified yet")
        else:
            known = "verified" if item.source.hash else "unverified: no hash is published"
            print(f"{'':15}{item.checkpoint.name if item.checkpoint else ''}, {known}, {item.record.date[:10]}")
            print(f"{'':15}sha256 {item.record.sha256[:16]}…  {item.record.source}")
    removable = sum(item.bytes for item in items if item.removable)
    print(
        f"{_size(sum(item.bytes for item in items)):>13}  in total; {_size(removable)} can be removed (resnext-hub "
        "cache prune)"
    )
    return EXIT_OK


def _verify(arguments: argparse.Namespace, manifest: Manifest) -> int:
    from ..models.cache import inventory, is_whole, verify
    from ..models.checkpoints import examine, is_faithful

    status, broken = EXIT_OK, set()
    items = inventory(manifest)  # originals come before their copies
    vouched = {item.path for item in items if item.source is not None and item.source.hash is not None}
    for item in items:
        if item.source is not None:
            try:
                print(f"{item.path.name}: sha256 {verify(item.path, item.source, again=True)}", flush=True)
                examine(item.path, vouched=item.path in vouched)
            except CheckpointError as error:
                broken.add(item.path)
                status = fail(str(error), EXIT_WEIGHTS)
        elif item.engine and not item.removable:
            if is_whole(item.path):
                print(f"{item.path.name}: unchanged since it was built")
            else:
                shutil.rmtree(item.path, ignore_errors=True)
                status = fail(
                    f"{item.path.name} was corrupt and has been removed. It is built again when needed.", EXIT_WEIGHTS
                )
        elif item.copy_of is not None and not item.removable and item.copy_of not in broken:
            if is_faithful(item.path, item.copy_of, vouched=item.copy_of in vouched):
                print(f"{item.path.name}: identical to its original", flush=True)
            else:
                item.path.unlink(missing_ok=True)
                status = fail(
                    f"{item.path.name} differed from its original and has been removed. It is made again when needed.",
                    EXIT_WEIGHTS,
                )
    return status


def _prune(arguments: argparse.Namespace, manifest: Manifest) -> int:
    from ..models.cache import inventory

    for item in inventory(manifest):
        if item.removable:
            if item.path.is_dir():
                shutil.rmtree(item.path, ignore_errors=True)
            else:
                item.path.unlink(missing_ok=True)
            print(f"Removed {item.path.name} ({_size(item.bytes)}): {item.removable}")
        elif item.kept:
            print(f"Kept {item.path.name} ({_size(item.bytes)}): {item.kept}")
    return EXIT_OK
