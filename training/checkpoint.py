"""The checkpoint of a run: written completely or not at all, checked when it is read, and the one before it kept.

A checkpoint holds the sha256 of its own content, which detects any bit that changed on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.outputs import locked
from ..errors import CheckpointError, OutputError
from ..files import remove_temporary, write_atomically
from ..models import checkpoints
from ..models.checkpoints import read_training_state

__all__ = [
    "LAST",
    "claimed",
    "contiguous",
    "digest",
    "expect_plain_files",
    "read",
    "read_head",
    "save",
    "write",
    "write_file",
    "write_head",
]

LAST, PREVIOUS, DAMAGED = "last.pt", "previous.pt", "damaged.pt"


def digest(value: Any) -> str:
    """The sha256 of a tensor, or of nested dicts, lists and tuples of tensors, numbers and text."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            found.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
            bytes_: Any = plain.reshape(-1).view(torch.uint8).numpy()
            found.update(bytes_)
        elif isinstance(value, dict | list | tuple):
            found.update(f"{'dict' if isinstance(value, dict) else 'list'} {len(value)}\n".encode())
            for item in value.items() if isinstance(value, dict) else value:
                add(item)
        else:
            found.update(f"{value!r}\n".encode("utf-8", "surrogatepass"))

    add(value)
    return found.hexdigest()


def contiguous(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the channels-last strides of training, which safetensors, pruning and FSDP refuse."""
    return {name: tensor.contiguous() for name, tensor in state_dict.items()}


def write_file(path: Path, content: str | Callable[[Path], object]) -> None:
    """Call `files.write_atomically`; its errors say what to do.

    Raises:
        OutputError: the file cannot be written, because the disk is full for example.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        raise OutputError(
            f"Cannot write {path}: {error.strerror or error}. Correct this and run the same command again: the run "
            "resumes from its last checkpoint."
        ) from error


def save(path: Path, state: Any) -> None:
    """``torch.save`` that leaves either the old file or the complete new one; equal states give equal bytes."""
    write_file(path, lambda temporary: checkpoints.save(state, temporary))


def write(state: dict[str, Any], out: Path) -> None:
    """Write ``last.pt``; the one before it becomes ``previous.pt``."""
    if (out / LAST).exists():
        os.replace(out / LAST, out / PREVIOUS)
    save(out / LAST, state | {"sha256": digest(state)})


def read(out: Path, say: Callable[[str], object], *, first: bool) -> dict[str, Any] | None:
    """The state in ``last.pt``, or in ``previous.pt`` if that is damaged; None if there is none.

    Args:
        first: rename a damaged file, so that it never replaces the good one before it.

    Raises:
        CheckpointError: every one is damaged.
    """
    damaged: CheckpointError | None = None
    for path in (out / LAST, out / PREVIOUS):
        if not path.exists():
            continue
        try:
            state = _checked(path)
        except CheckpointError as error:
            damaged = damaged or error
            continue
        if damaged:
            say(f"{damaged} Resuming from {path}, the checkpoint before it.")
            if first:
                os.replace(out / LAST, out / DAMAGED)
        return state
    if damaged:
        raise CheckpointError(f"{damaged} There is no older checkpoint: delete this one to start again.") from damaged
    return None


def write_head(path: Path, state: dict[str, Any]) -> None:
    """Write a fitted head (`head.Head`) with the sha256 of its content."""
    save(path, state | {"sha256": digest(state)})


def read_head(path: Path) -> dict[str, Any] | None:
    """The head in a file; None if there is none, or it is damaged: it can be fitted again."""
    try:
        return _checked(path) if path.exists() else None
    except CheckpointError:
        return None


def _checked(path: Path) -> dict[str, Any]:
    state = read_training_state(path)
    expected = state.pop("sha256", None) if type(state) is dict else None
    if expected is None or expected != digest(state):
        raise CheckpointError(f"{path} is not as training wrote it: its sha256 differs.")
    return state


def expect_plain_files(out: Path) -> None:
    """Raise OutputError if a folder, which someone else may have made, has anything but files and folders in it.

    Through a link, training would write or read outside the folder; at a pipe, it would wait for ever.
    """
    for folder in (out, out / "tensorboard"):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise OutputError(f"{path} is a link or a special file: remove it, or choose another folder.")


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Let only one process at a time train in a folder; raise OutputError if another does."""
    with locked(out / ".lock", out):
        remove_temporary(out)  # left by killed runs
        yield
