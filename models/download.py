"""A checkpoint's source -> one verified local file."""

from __future__ import annotations

import hashlib
import logging
import os
import urllib.error
from pathlib import Path

import torch

from .manifest import ROOT, Checkpoint, Source

__all__ = ["CheckpointError", "UnreachableError", "local_file"]

log = logging.getLogger("resnext_hub")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says why and what to do."""


class UnreachableError(CheckpointError):
    """No source of a checkpoint could be fetched."""


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, source: Source) -> None:
    """Raise unless the file is what its source says, by length and by hash, as far as either is known."""
    size = path.stat().st_size
    if source.bytes is not None and size != source.bytes:
        raise CheckpointError(
            f"{path} has {size:,} bytes where {source.bytes:,} were published: the download was cut short or the file "
            "was replaced. Delete it and load again."
        )
    if source.hash is None:
        log.warning("%s: its publisher states no hash, so its content is not verified.", path.name)
        return
    digest = _sha256(path)
    if not digest.startswith(source.hash.value):
        raise CheckpointError(
            f"{path} is not the published file: its sha256 is {digest}, expected {source.hash.value}"
            f"{'…' if source.hash.kind == 'sha256-prefix' else ''}. Delete it and load again."
        )


def local_file(checkpoint: Checkpoint, progress: bool = True) -> Path:
    """The verified file of a checkpoint, fetched into torch.hub's own ``checkpoints`` folder where it is not there yet.

    A file that the original repositories left there has the same name and is used. ``progress`` shows a bar on stderr.

    Raises:
        CheckpointError: a file that is not the published one.
        UnreachableError: it is not on this machine and could not be fetched.
    """
    tried: list[str] = []
    for source in checkpoint.sources:
        if source.path is not None:
            path = ROOT / source.path
        elif source.format == "safetensors" or source.url is None:
            continue  # a mirror in a format that torch does not read
        else:
            path = Path(torch.hub.get_dir()) / "checkpoints" / source.filename
            if not path.exists():
                try:
                    _download(source, path, progress)
                except (OSError, urllib.error.URLError) as error:
                    tried.append(f"{source.url} ({error})")
                    continue
        _verify(path, source)
        return path
    raise UnreachableError(
        f"The weights of {checkpoint.name} are not on this machine and could not be fetched. Tried: "
        f"{'; '.join(tried) or 'nothing'}. Put the file into {Path(torch.hub.get_dir()) / 'checkpoints'}, or use "
        "resnext_tiny, whose weights are in the repository."
    )


def _download(source: Source, path: Path, progress: bool) -> None:
    assert source.url is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    log.info("fetching %s", source.url)
    # Beside its final name and renamed only once verified: an interrupted or wrong download is never kept as whole.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        torch.hub.download_url_to_file(source.url, str(part), None, progress)
        _verify(part, source)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
