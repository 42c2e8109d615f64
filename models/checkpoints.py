"""Load a verified file into a network: its tensors are memory-mapped, not copied.

A file of ``torch.save`` since 1.6 is a zip archive with aligned tensors, and is mapped directly. Older files, and
safetensors, are converted once to such an archive; a legacy file is converted from one mapping to the other, so it is
never completely in memory. A mapped tensor needs no memory until it is read, and then only page cache, which all
processes share. It is private and writable: an optimizer's step copies the pages that it changes, not the file.

The file must not be truncated in place while a network uses it: the process would be killed (SIGBUS). This project
replaces files only by renaming, after which a mapping still has the old file. pip, git and rsync do the same.
"""

from __future__ import annotations

import errno
import itertools
import logging
import math
import os
import re
import struct
import types
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard, cast

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, UnwritableError
from ..files import publish
from .pickles import LIMIT, ForeignError, PickleError, Storage, Stored, unpickle
from .store import Store

log = logging.getLogger("resnext_hub")

ALIGNMENT = 64  # bytes; torch.save's own. On unaligned tensors vector instructions round in another order.
MOST_VALUES, DEEPEST = 1_000_000, 20  # in a training checkpoint; that of a ResNeXt-101 has some 10,000
MOST_VIEWS = 8  # bytes of all tensors, relative to the file: many views of the same bytes would take too long to read
CONTAINERS = ("state_dict", "model_state_dict", "model")  # Lightning and NVIDIA; PyTorch's tutorials; torchvision
ZIP = b"PK\x03\x04"  # the first bytes of an archive, which torch checks too


def read_state_dict(path: str | Path, *, mmap: bool = False, vouched: bool = False) -> dict[str, Tensor]:
    """The state_dict in a file of ``torch.save``, legacy or zip, or in a training checkpoint (`CONTAINERS`).

    Nothing in the file is executed: see `pickles`. Tensors that are read into memory are compared with the archive's
    CRC32, if it has one, and must be finite. With ``mmap`` the tensors of zip and legacy files are mapped instead, and
    not examined.

    ``vouched`` means that the file was verified by a hash in our manifest (`Store.is_vouched`). If `pickles` does not
    know its format, torch's own reader then reads it, with a warning. Raises FileNotFoundError if there is no such
    file, and CheckpointError if it is not one of weights; the message names the tensor, or the byte.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No such checkpoint file: {path}")
    try:
        if _is_safetensors(path):
            import safetensors.torch

            state: dict[str, Tensor] = safetensors.torch.load_file(path)  # pyright: ignore[reportUnknownMemberType]
        else:
            state = _read(path, mmap=mmap)
    except Exception as error:  # zipfile and safetensors raise nearly anything on a broken file
        if not vouched or _is_safetensors(path):
            raise _explained(path, error) from error
        log.warning(
            "%s has the published hash, but an unknown format (%s); reading it with torch.load(weights_only=True).",
            path,
            error,
        )
        state = _read_by_torch(path)
    if not mmap:
        _expect_finite(state, path)
    return state


def _is_safetensors(path: Path) -> bool:
    name = path.with_suffix("").stem if path.suffix == ".part" else path.name  # see `Store.part`
    return name.endswith(".safetensors")


def _explained(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, ForeignError):
        return CheckpointError(f"{path} holds more than weights ({error}): save only the network's state_dict().")
    kind = "safetensors" if _is_safetensors(path) else "torch.save"
    advice = ". Save a state_dict() or download the file again." if isinstance(error, PickleError) else ""
    return CheckpointError(f"{path} is not a complete {kind} file: {error}{advice}")


def _read_by_torch(path: Path) -> dict[str, Tensor]:
    """The state_dict in a published file whose format `_read` does not know.

    torch's reader runs no code either, but it can be made to crash or to fill the memory. So it is only for files
    whose hash is in our manifest. It reads every tensor into memory.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # `read_state_dict` has warned about the format
            value: Any = torch.load(path, "cpu", weights_only=True)  # pyright: ignore[reportUnknownMemberType]
    except Exception as error:  # pickle.UnpicklingError, RuntimeError, and what its functions raise
        raise _explained(path, error) from error
    value = _inner(value)
    if not _is_dict(value) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()):
        raise CheckpointError(f"{path} contains a {type(value).__name__}, expected a state_dict (name -> tensor).")
    return {name: tensor.detach() for name, tensor in value.items()}


def _expect_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError where a tensor holds NaN or infinity; reads them all once, and needs no memory."""
    broken = [name for name, tensor in state.items() if not _is_finite(tensor)]
    if broken:
        raise CheckpointError(f"{path} holds NaN or infinity in {_shown(broken)}: did the training diverge?")


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    extremes = tensor.detach().float() if tensor.itemsize == 1 else tensor.detach()  # float8 has no aminmax
    return bool(torch.stack(torch.aminmax(extremes)).isfinite().all())


def _shown(names: Collection[str]) -> str:
    first = ", ".join(name[:100] for name in itertools.islice(names, 3))
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"


@dataclass(frozen=True)
class _Place:
    """The place of a storage in a file, in bytes; ``crc`` is 0 if it was not computed."""

    offset: int
    bytes: int
    crc: int = 0


def _read(path: Path, *, mmap: bool, find: Callable[[object], dict[str, Stored]] | None = None) -> dict[str, Tensor]:
    """The tensors of a file of ``torch.save``, private and writable: mapped where they lie, or copied from there.

    Tensors in a legacy file are unaligned, so copy them. ``find`` extracts the tensors from the unpickled value.
    """
    with open(path, "rb") as file:
        described, places = (_zip if file.read(4) == ZIP else _legacy)(file, find or _weights_in)
        size = os.fstat(file.fileno()).st_size
        views = sum(math.prod(stored.shape) * stored.storage.dtype.itemsize for stored in described.values())
        if sum(place.bytes for place in places.values()) > size or views > MOST_VIEWS * size:
            raise PickleError("its tensors are larger than the file")
        if not mmap:
            _check_crc(file, described, places)
    whole: Any = torch.UntypedStorage.from_file(str(path), False, size)  # pyright: ignore[reportUnknownMemberType]
    parts: dict[str, torch.UntypedStorage] = {}
    for key, place in places.items():
        part = whole[place.offset : place.offset + place.bytes]  # a view
        parts[key] = part if mmap else part.clone()
    return {
        name: torch.empty(0, dtype=stored.storage.dtype, device="cpu").set_(
            parts[stored.storage.key], stored.offset, stored.shape, stored.stride
        )
        for name, stored in described.items()
    }


def _check_crc(file: BinaryIO, described: Mapping[str, Stored], places: Mapping[str, _Place]) -> None:
    names = {stored.storage.key: name for name, stored in described.items()}
    for key, place in places.items():
        if place.crc:
            file.seek(place.offset)
            crc, left = 0, place.bytes
            while chunk := file.read(min(left, 1 << 20)):
                crc, left = zlib.crc32(chunk, crc), left - len(chunk)
            if crc != place.crc:
                raise PickleError(f"{names[key][:100]} has changed since it was saved (its CRC32 differs)")


def _is_dict(value: object) -> TypeGuard[dict[Any, Any]]:
    return type(value) is dict


def _inner(value: object) -> object:
    """The state_dict in a training checkpoint, by the names that training scripts give it; other values unchanged."""
    if _is_dict(value):
        return next((value[name] for name in CONTAINERS if _is_dict(value.get(name))), value)
    return value


def _weights_in(value: object) -> dict[str, Stored]:
    value = _inner(value)
    if not _is_dict(value):
        raise PickleError(f"it holds a {type(value).__name__}, expected a state_dict (name -> tensor)")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Stored):
            kind = "tensor" if isinstance(tensor, Stored) else type(tensor).__name__
            raise PickleError(f"it holds a {kind} under {str(name)[:100]!r}, expected a state_dict (name -> tensor)")
    return value


def read_training_state(path: Path) -> Any:
    """Read a training checkpoint into memory: dicts, lists and tuples of tensors, numbers and text.

    As in `read_state_dict`, nothing in the file is executed. Any other value becomes None. Raises CheckpointError if
    it is not such a file, or if its values are nested too deep or repeated too often.
    """
    found: list[Stored] = []
    kept: list[Any] = []

    def note(stored: Stored) -> Stored:
        found.append(stored)
        return stored

    def find(value: object) -> dict[str, Stored]:
        kept.append(_tree(value, note, itertools.count(), 0))
        return {f"tensor {number}": stored for number, stored in enumerate(found)}

    try:
        tensors = iter(_read(path, mmap=False, find=find).values())
    except Exception as error:  # zipfile raises nearly anything on a broken file
        raise _explained(path, error) from error
    return _tree(kept[0], lambda _: next(tensors), itertools.count(), 0)


def _tree(value: Any, replace: Callable[[Stored], object], count: Iterator[int], depth: int) -> Any:
    """A copy of nested values, with its tensors replaced in a fixed order; whatever is named twice is copied twice."""
    if next(count) > MOST_VALUES or depth > DEEPEST:
        raise PickleError(f"it holds more than {MOST_VALUES:,} values, or values nested {DEEPEST} deep")
    if isinstance(value, Stored):
        return replace(value)
    if type(value) is dict:
        return {key: _tree(item, replace, count, depth + 1) for key, item in cast("dict[Any, Any]", value).items()}
    if type(value) in (list, tuple):
        return type(value)(_tree(item, replace, count, depth + 1) for item in value)
    return value if type(value) in (bool, int, float, str) else None


def _zip(file: BinaryIO, find: Callable[[object], dict[str, Stored]]) -> tuple[dict[str, Stored], dict[str, _Place]]:
    """The tensors that a zip archive of ``torch.save`` describes, and the place of each storage.

    ``NAME/data.pkl`` describes the tensors, ``NAME/data/KEY`` is a storage. Records are stored, never
    compressed, so what can be mapped is as long as it says, and no bomb.
    """
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
    top = infos[0].filename.partition("/")[0] if infos else ""
    records: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        if info.filename in records:
            raise PickleError(f"it holds {info.filename[:100]!r} twice")
        records[info.filename] = info

    def place(name: str) -> _Place:
        info = records.get(f"{top}/{name}")
        if info is None:
            raise PickleError(f"it has no record {name[:100]!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise PickleError(f"its record {name[:100]!r} is compressed or encrypted, which torch.save does not do")
        file.seek(info.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != ZIP:
            raise PickleError(f"its record {name[:100]!r} does not begin at byte {info.header_offset:,}")
        offset = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if offset + info.file_size > os.fstat(file.fileno()).st_size:
            raise PickleError(f"its record {name[:100]!r} ends after the end of the file")
        return _Place(offset, info.file_size, info.CRC)

    if f"{top}/constants.pkl" in records:
        raise PickleError("it is a TorchScript archive, which holds code; expected a state_dict")
    pickled = place("data.pkl")
    if pickled.bytes > LIMIT:
        raise PickleError(f"its data.pkl has {pickled.bytes:,} bytes, more than {LIMIT:,}")
    if f"{top}/byteorder" in records:
        order = place("byteorder")
        file.seek(order.offset)
        if file.read(min(order.bytes, 10)) != b"little":
            raise PickleError("it was written on a big-endian machine")
    file.seek(pickled.offset)
    described = find(unpickle(file.read(pickled.bytes))[0])
    places: dict[str, _Place] = {}
    for name, stored in described.items():
        key = stored.storage.key
        if key not in places:
            places[key] = place(f"data/{key}")
        if places[key].bytes != stored.storage.bytes:
            raise PickleError(f"{name[:100]} has {places[key].bytes:,} bytes, expected {stored.storage.bytes:,}")
    return described, places


def _legacy(file: BinaryIO, find: Callable[[object], dict[str, Stored]]) -> tuple[dict[str, Stored], dict[str, _Place]]:
    """The tensors that a file of ``torch.save`` before 1.6 describes, and the place of each storage.

    The format (torch/serialization.py, ``_legacy_save``): five pickles (magic number, protocol, system, the object,
    the storages' keys), then for each key its number of elements (int64) and its bytes.
    """
    file.seek(0)
    data, at = file.read(LIMIT), 0
    header: list[Any] = []
    for expected in (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, None):
        value, at = unpickle(data, at)
        if type(value) is not (int if expected else dict) or (expected and value != expected):
            raise PickleError("it begins with neither a zip archive's signature nor torch's magic number")
        header.append(value)
    if header[2].get("little_endian") is not True:
        raise PickleError("it was written on a big-endian machine")
    storages: dict[str, Storage] = {}
    value, at = unpickle(data, at, storages)
    described = find(value)
    keys, offset = unpickle(data, at)
    size = os.fstat(file.fileno()).st_size
    places: dict[str, _Place] = {}
    for key in cast("list[Any]", keys) if type(keys) is list else ():
        if not isinstance(key, str) or key not in storages or key in places:
            raise PickleError(f"its list of storages, at byte {at:,}, does not match its tensors")
        file.seek(offset)
        storage = storages[key]
        if offset + 8 + storage.bytes > size or file.read(8) != storage.numel.to_bytes(8, "little"):
            raise PickleError(f"it is incomplete or corrupt at byte {offset:,}")
        places[key] = _Place(offset + 8, storage.bytes)
        offset += 8 + storage.bytes
    used = {stored.storage.key for stored in described.values()}
    if lost := [name for name, stored in described.items() if stored.storage.key not in places]:
        raise PickleError(f"it has no data for {_shown(lost)}")
    if offset != size:
        raise PickleError(f"it has extra data after its end, at byte {offset:,}")
    return described, {key: place for key, place in places.items() if key in used}


def mapped_state_dict(path: Path, digest: str, store: Store, *, vouched: bool = False) -> dict[str, Tensor]:
    """The state_dict in a verified file, its tensors mapped; ``digest`` names the copy that some files need."""
    with open(path, "rb") as file:
        zipped = path.suffix != ".safetensors" and file.read(4) == ZIP
    state = None
    if zipped:
        try:
            state = read_state_dict(path, mmap=True)
        except CheckpointError:
            if not vouched:
                raise
    if state is not None and all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in state.values()):
        return state
    copy = store.mapped_copy(path, digest)
    if copy.exists():
        try:
            return read_state_dict(copy, mmap=True)
        except CheckpointError as error:
            log.warning("%s cannot be used and will be converted again: %s", copy.name, error)
            copy.unlink(missing_ok=True)
    try:
        with store.lock(path):
            if not copy.exists() and not _convert(path, copy, store, vouched):
                return read_state_dict(path, vouched=vouched)
    except UnwritableError as error:  # for example, a container image with the weights, mounted read-only
        log.warning("%s could not be converted; reading it without memory mapping: %s", path.name, error)
        return read_state_dict(path, vouched=vouched)
    return read_state_dict(copy, mmap=True)


def examine(path: Path, *, vouched: bool = False) -> None:
    """Read all of a verified file, for faults that a mapped load does not notice; CheckpointError if it has one."""
    _expect_finite(read_state_dict(path, mmap=True, vouched=vouched), path)


def is_faithful(copy: Path, path: Path, *, vouched: bool = False) -> bool:
    """True if a mapped copy has the same tensors as its original, bit for bit."""
    try:
        ours, theirs = read_state_dict(copy, mmap=True), read_state_dict(path, mmap=True, vouched=vouched)
    except CheckpointError:
        return False

    def same(a: Tensor, b: Tensor) -> bool:
        bits = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in (a, b)]  # NaN equals itself, bit for bit
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)

    return ours.keys() == theirs.keys() and all(same(ours[name], theirs[name]) for name in ours)


def _convert(path: Path, copy: Path, store: Store, vouched: bool) -> bool:
    """Write a file's tensors to an aligned zip archive; False if there is no room or the folder cannot be written."""
    log.info("Converting %s so that it can be mapped (only once)", path.name)
    crc = torch.serialization.get_crc32_options()
    state = read_state_dict(path, mmap=True, vouched=vouched)
    _expect_finite(state, path)
    part = store.part(copy)
    try:
        for left in store.abandoned_parts(copy):
            left.unlink(missing_ok=True)
        torch.serialization.set_crc32_options(False)  # a third of the time; the original's sha256 is what counts
        save(state, part)
        publish(part, copy)
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError on a full disk
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        log.warning("%s could not be converted; reading it without memory mapping: %s", path.name, error)
        return False
    finally:
        torch.serialization.set_crc32_options(crc)
        part.unlink(missing_ok=True)
    return True


def save(state: Any, path: Path) -> None:
    """``torch.save`` where equal states give equal bytes, and errors of the file system are raised as they are."""
    with open(path, "wb") as file:
        # torch writes the name of a named file into the archive.
        nameless: Any = types.SimpleNamespace(write=file.write, flush=file.flush)
        try:
            torch.save(state, nameless)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch's message hides why it cannot write
                raise error.__context__ from None
            raise


def normalise_keys(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state_dict under our names and shapes; lossless.

    The prefixes ``module.`` (DataParallel), ``_orig_mod.`` (torch.compile) and ``model.`` (Lightning) are dropped.
    NVIDIA's ``layers.N.`` becomes ``layerN+1.``; squeeze-and-excitation weights saved as 1x1 convolutions
    (C_out, C_in, 1, 1) become those of linear layers (C_out, C_in).
    """

    def rename(key: str) -> str:
        key = re.sub(r"^((module|_orig_mod|model)\.)+", "", key)
        return re.sub(r"^layers\.(\d+)\.", lambda match: f"layer{int(match[1]) + 1}.", key)

    def reshape(key: str, tensor: Tensor) -> Tensor:
        gate = re.search(r"\.squeeze\.(squeeze|expand)\.weight$", key)
        return tensor.flatten(1) if gate and tensor.ndim == 4 else tensor

    return _renamed({key: reshape(key, tensor) for key, tensor in state_dict.items()}, rename)


def _renamed(state_dict: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    result = {rename(key): tensor for key, tensor in state_dict.items()}
    if len(result) < len(state_dict):
        taken = [key for key in state_dict if rename(key) != key and rename(key) in state_dict] or list(state_dict)
        raise CheckpointError(f"Two tensors of the checkpoint have the same name after renaming: {_shown(taken)}.")
    return result


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
    If the network takes images of other than 3 channels and the state_dict is for RGB, the first convolution's weights
    are adapted (`_input_weights`). Raises CheckpointError if keys are missing or too many, or if shapes or kinds of
    numbers differ.
    """
    if key_map is not None:
        renamed = key_map
        state_dict = _renamed(state_dict, lambda key: renamed(key.removeprefix("module.")))
    state = normalise_keys(state_dict)
    own = network.state_dict()
    first = own.get("conv1.weight")
    if first is not None and "conv1.weight" in state and state["conv1.weight"].shape[1:2] == (3,) != first.shape[1:2]:
        state["conv1.weight"] = _input_weights(state["conv1.weight"], first.shape[1])
    if not head:
        state = {k: v for k, v in state.items() if not k.startswith("fc.")}
        state |= {k: v for k, v in own.items() if k.startswith("fc.")}
    device = torch.get_default_device()
    for key in state.keys() & own.keys():
        _expect_same_kind(state[key], own[key], key, origin)
    state = {k: v.to(device, own[k].dtype) if k in own else v for k, v in state.items()}
    try:
        network.load_state_dict(_of_their_own(state), assign=True)  # with the strides of a new network
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        shown = " ".join(line if len(line) < 300 else line[:300] + "…" for line in lines[:3])
        raise CheckpointError(f"{origin} does not fit the network: {shown}") from error


def _input_weights(weight: Tensor, channels: int) -> Tensor:
    """A first convolution's weights for RGB, adapted to images of other channels as in timm.

    For one channel they are summed, so that a gray image has the result of its RGB copy. For more they are repeated
    (RGBRGB…), cut to the number of channels, and scaled by 3 / ``channels``.
    """
    if channels == 1:
        return weight.float().sum(1, keepdim=True)
    return weight.float().repeat(1, -(-channels // 3), 1, 1)[:, :channels] * (3 / channels)


def _expect_same_kind(tensor: Tensor, own: Tensor, key: str, origin: str) -> None:
    """Refuse numbers that would change their meaning in the network: int8 without its scale, half a complex number.

    Float of 16 bits or more becomes float of another width, as the default dtype asks; a counter (of batches) may be
    any real number, since averaging checkpoints makes it one.
    """
    is_weight = tensor.is_floating_point() and tensor.itemsize > 1
    is_counter = not own.is_floating_point() and not tensor.is_complex()
    if tensor.layout != torch.strided or tensor.is_quantized or not (is_weight or is_counter):
        raise CheckpointError(f"{origin} does not fit the network: {key} is {tensor.dtype}, expected {own.dtype}.")
    if tensor.shape != own.shape:
        sizes = f"{tuple(tensor.shape)}, expected {tuple(own.shape)}"
        raise CheckpointError(f"{origin} does not fit the network: size mismatch for {key}: {sizes}.")


def _of_their_own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share memory with no other: training one must not change another.

    Some checkpoints were saved in channels-last strides. On these, a CPU rounds in another order, and ``view`` fails.
    """
    result: dict[str, Tensor] = {}
    end = 0
    for key, tensor in sorted(state.items(), key=lambda item: item[1].data_ptr()):
        if not tensor.is_meta and tensor.numel() and (not tensor.is_contiguous() or tensor.data_ptr() < end):
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        else:
            end = max(end, tensor.data_ptr() + tensor.nbytes)
        result[key] = tensor
    return {key: result[key] for key in state}
