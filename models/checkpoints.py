"""A verified file -> tensors mapped, not copied -> a network that has them.

A file of ``torch.save`` since 1.6 is a zip archive whose tensors lie aligned, and is mapped where it is. Older ones,
and safetensors, are converted once to such an archive; a legacy file from one mapping to the other, so that it never
lies in memory whole. A mapped tensor costs no memory until it is read, and then only page cache, which all processes
share; it is private and writable: an optimizer's step copies the pages that it touches and never reaches the file.

What mapping asks for: the file must not be truncated in place while a network uses it (the process would die of
SIGBUS). This project only ever replaces files by renaming, which leaves a mapping its old file; so do pip, git and
rsync.
"""

# pyright: reportUnknownMemberType=false
# torch and safetensors leave arguments unannotated, of UntypedStorage.from_file for one.

from __future__ import annotations

import errno
import importlib
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from .cache import CheckpointError, lock, mapped_copy

__all__ = ["is_faithful", "load_into", "mapped_state_dict", "normalise_keys", "read_state_dict"]

log = logging.getLogger("resnext_hub")

ALIGNMENT = 64  # bytes; torch.save's own. On unaligned tensors vector instructions round in another order.


def read_state_dict(path: str | Path, *, mmap: bool = False) -> dict[str, Tensor]:
    """The state_dict in a file of ``torch.save``, legacy or zip; a training checkpoint's ``state_dict`` entry too.

    Nothing in the file is executed (``weights_only=True``). ``mmap`` maps the tensors (zip only).

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it is not a file of weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    try:
        if path.suffix == ".safetensors":
            import safetensors.torch

            return safetensors.torch.load_file(path)
        data: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        # torch's own text advises to run the code after all; what it found is all that is of use of it.
        found = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))
        if found is None:
            raise CheckpointError(f"{path} is not a file of torch.save.") from error
        raise CheckpointError(
            f"{path} holds more than weights ({found[1]}), and nothing in a checkpoint is executed."
        ) from error
    except Exception as error:  # the unpickler raises nearly anything on a broken file
        raise CheckpointError(f"{path} is not a whole file of torch.save: {error}") from error
    return _state_dict_in(data, path)


def _is_dict(data: object) -> TypeGuard[dict[Any, Any]]:
    return isinstance(data, dict)


def _state_dict_in(data: object, path: Path) -> dict[str, Tensor]:
    if _is_dict(data) and _is_dict(data.get("state_dict")):
        data = data["state_dict"]
    if not _is_dict(data) or not all(isinstance(v, Tensor) for v in data.values()):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, expected a state_dict (name -> tensor).")
    return dict(data)


def _map_legacy(path: Path) -> dict[str, Tensor]:
    """The state_dict in a legacy file, its tensors mapped where they lie: unaligned, good for copying only.

    The format (torch/serialization.py, ``_legacy_save``): five pickles (magic number, protocol, system, the object,
    the storages' keys), then for each key its number of elements (int64) and its bytes. The pickles are read with the
    unpickler behind ``weights_only=True``, the object twice: where its storages lie is known after the first time.
    """
    safe: Any = importlib.import_module("torch._weights_only_unpickler")

    storages: dict[str, torch.UntypedStorage] = {}
    lengths: dict[str, tuple[int, int]] = {}  # elements, bytes

    def storage_of(saved_id: tuple[Any, ...]) -> torch.TypedStorage:
        kind, storage_type, key, _, numel, view = saved_id
        if kind != "storage" or view is not None:
            raise CheckpointError(f"{path} has storages of a kind ({kind}, {view}) that is not mapped.")
        lengths[key] = numel, numel * storage_type.dtype.itemsize
        data = storages.get(key, torch.UntypedStorage(0, device="meta"))
        return torch.TypedStorage(wrap_storage=data, dtype=storage_type.dtype, _internal=True)

    def read_object() -> Any:
        unpickler = safe.Unpickler(file, encoding="utf-8")
        unpickler.persistent_load = storage_of
        return unpickler.load()

    with open(path, "rb") as file:
        header = [safe.load(file, encoding="utf-8") for _ in range(3)]
        if header[:2] != [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION]:
            raise CheckpointError(f"{path} is not a legacy file of torch.save.")
        if not header[2]["little_endian"]:
            raise CheckpointError(f"{path} was written on a big-endian machine.")
        start = file.tell()
        read_object()
        keys = safe.load(file, encoding="utf-8")
        offset, size = file.tell(), path.stat().st_size
        whole: Any = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
        for key in keys:
            elements, length = lengths[key]
            file.seek(offset)
            if int.from_bytes(file.read(8), "little") != elements or offset + 8 + length > size:
                raise CheckpointError(f"{path} is cut short or broken at byte {offset:,}.")
            storages[key] = whole[offset + 8 : offset + 8 + length]  # a view
            offset += 8 + length
        file.seek(start)
        return _state_dict_in(read_object(), path)


def mapped_state_dict(path: Path, digest: str) -> dict[str, Tensor]:
    """The state_dict in a verified file, its tensors mapped; ``digest`` names the copy that some files need."""
    if zipfile.is_zipfile(path):
        state = read_state_dict(path, mmap=True)
        if all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in state.values()):
            return state
    copy = mapped_copy(path, digest)
    if copy.exists():
        try:
            return read_state_dict(copy, mmap=True)
        except CheckpointError as error:
            log.warning("%s is made anew: %s", copy.name, error)
            copy.unlink(missing_ok=True)
    with lock(path):
        if not copy.exists() and not _convert(path, copy):
            return read_state_dict(path)
    return read_state_dict(copy, mmap=True)


def is_faithful(copy: Path, path: Path) -> bool:
    """Whether a mapped copy still holds, bit for bit, what its original holds."""
    try:
        ours, theirs = read_state_dict(copy, mmap=True), _read_to_convert(path)
    except CheckpointError:
        return False
    as_bytes = [
        [tensor.contiguous().view(-1).view(torch.uint8) for tensor in state.values()] for state in (ours, theirs)
    ]
    return ours.keys() == theirs.keys() and all(torch.equal(a, b) for a, b in zip(*as_bytes, strict=True))


def _convert(path: Path, copy: Path) -> bool:
    """Write a file's tensors anew as an aligned zip archive; False where the cache has no room or cannot be written."""
    log.info("converting %s, once, so that it can be mapped", path.name)
    part = copy.with_name(copy.name + ".part")
    crc = torch.serialization.get_crc32_options()
    try:
        state = _read_to_convert(path)
        torch.serialization.set_crc32_options(False)  # a third of the time; the original's sha256 is what is held
        torch.save(state, part)
        os.replace(part, copy)
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError on a full disk
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        if isinstance(error, CheckpointError):
            raise
        log.warning("%s could not be converted and is read the slow way: %s", path.name, error)
        return False
    finally:
        torch.serialization.set_crc32_options(crc)
        part.unlink(missing_ok=True)
    return True


def _read_to_convert(path: Path) -> dict[str, Tensor]:
    """A file's tensors, mapped where that can be done; whatever else it is, torch.load has the last word on it."""
    if path.suffix != ".safetensors" and not zipfile.is_zipfile(path):
        try:
            return _map_legacy(path)
        except Exception as error:  # an unforeseen kind, or a torch whose unpickler has moved: a public way remains
            log.debug("%s is read, not mapped: %s", path.name, error)
    return read_state_dict(path)


def normalise_keys(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state_dict under our names and shapes; lossless.

    ``module.`` (DataParallel) is dropped; NVIDIA's ``layers.N.`` becomes ``layerN+1.``; squeeze-and-excitation weights
    saved as 1x1 convolutions (C_out, C_in, 1, 1) become those of linear layers (C_out, C_in).
    """

    def rename(key: str) -> str:
        key = key.removeprefix("module.")
        return re.sub(r"^layers\.(\d+)\.", lambda match: f"layer{int(match[1]) + 1}.", key)

    def reshape(key: str, tensor: Tensor) -> Tensor:
        gate = re.search(r"\.squeeze\.(squeeze|expand)\.weight$", key)
        return tensor.flatten(1) if gate and tensor.ndim == 4 else tensor

    return {rename(key): reshape(key, tensor) for key, tensor in state_dict.items()}


def load_into(
    network: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    head: bool = True,
    key_map: Callable[[str], str] | None = None,
    origin: str = "the checkpoint",
) -> None:
    """Put a state_dict's tensors into a network: every key must have its place; ``head=False`` leaves ``fc`` as it is.

    The network takes the tensors themselves where they fit its dtype and lie on the default device, copies elsewhere.

    Raises:
        CheckpointError: keys are missing or too many, or shapes differ; the message names the first few.
    """
    if key_map is not None:
        state_dict = {key_map(key.removeprefix("module.")): tensor for key, tensor in state_dict.items()}
    state = normalise_keys(state_dict)
    own = network.state_dict()
    if not head:
        state = {k: v for k, v in state.items() if not k.startswith("fc.")}
        state |= {k: v for k, v in own.items() if k.startswith("fc.")}
    device = torch.get_default_device()
    state = {k: v.to(device, own[k].dtype) if k in own else v for k, v in state.items()}
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        shown = " ".join(line if len(line) < 300 else line[:300] + "…" for line in lines[:3])
        raise CheckpointError(f"{origin} does not fit the network: {shown}") from error
