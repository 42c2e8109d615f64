"""Read the pickle in a file of ``torch.save`` as data: nothing in it can call a function.

torch's reader behind ``weights_only=True`` runs no code either, but it calls functions of torch's with whatever
arguments the file gives, and lets values become keys and parts of messages. So 2 MB of nested tuples as a key kill the
process, 300 bytes that double a value 40 times fill the memory in an error's text, and ``bytearray(2**40)`` is allowed.
This reader knows only what a state_dict is written with. It refuses everything else, and names the offset. What it
builds is never larger than a constant times the pickle, and is never compared, hashed or printed.
"""

from __future__ import annotations

import math
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

#: Bytes. The pickle of the largest ResNeXt has 0.1 MB, that of a training checkpoint a few times more.
LIMIT: Final = 1 << 22


class PickleError(ValueError):
    """A pickle that does not contain a state_dict."""


class ForeignError(PickleError):
    """A pickle that names a function or class that no state_dict has."""


@dataclass(frozen=True)
class Storage:
    """The memory that tensors lie in: ``numel`` elements, found in the file under ``key``."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def bytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Stored:
    """The description of a tensor: a view of a storage, within its bounds; all numbers are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """A function below, the only kind of object that a pickle can call."""

    call: Callable[..., Any]


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype


def _is(value: object, *kinds: type) -> bool:
    """True if a value is of one of these types itself, not of a subclass."""
    return type(value) in kinds


def _natural(values: Any) -> tuple[int, ...]:
    """The value as a tuple of numbers, none below zero."""
    if not _is(values, tuple, list) or len(values) > 16:
        raise PickleError("a tensor without a shape")
    if not all(_is(value, int) and value >= 0 for value in values):
        raise PickleError("a tensor whose shape, stride or offset is not made of natural numbers")
    return tuple(values)


def _tensor(storage: object, offset: object, shape: object, stride: object, *beside: object) -> Stored:
    """``torch._utils._rebuild_tensor`` and ``_v2`` (requires_grad, hooks, metadata); hooks are no weights."""
    if len(beside) > 2 and beside[2] is not None:
        raise PickleError("a tensor with its conjugate or negative bit set")
    if not isinstance(storage, Storage):
        raise PickleError("a tensor without a storage")
    (start,), sizes, steps = _natural((offset,)), _natural(shape), _natural(stride)
    if len(sizes) != len(steps):
        raise PickleError("a tensor whose stride and shape differ in length")
    if math.prod(sizes) > storage.numel:
        raise PickleError("a tensor with more elements than its storage")
    last = start + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    if max(last + 1, start) > storage.numel if math.prod(sizes) else start > storage.numel:
        raise PickleError(f"a tensor that exceeds its storage of {storage.numel:,} elements")
    return Stored(storage, start, sizes, steps)


def _parameter(data: object, *_: object) -> Stored:
    if not isinstance(data, Stored):
        raise PickleError("a parameter without a tensor")
    return data


def _put(target: dict[Any, Any], key: object, value: object) -> None:
    if not _is(key, str, int):  # hashing a nested tuple may never end, or overflow the stack
        raise PickleError(f"a dictionary key of type {type(key).__name__}")
    if key in target:
        raise PickleError("a repeated dictionary key")
    target[key] = value


def _dictionary(pairs: Any = None) -> dict[Any, Any]:
    """``OrderedDict``, whose items Python 2 wrote as a list of pairs, and ``Counter``, which some schedules have."""
    if _is(pairs, dict):
        return pairs
    result: dict[Any, Any] = {}
    if _is(pairs, list):
        for key, value in pairs:
            _put(result, key, value)
        pairs.clear()  # moved, not copied: a list that is referenced a million times would fill the memory
    return result


def _ignored(*_: object) -> None:
    """Replaces harmless values beside the weights of a training checkpoint."""


_DTYPES: Final = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
_BESIDE: Final = [
    "torch.device", "torch.serialization._get_layout", "_codecs.encode", *(str(d) for d in _DTYPES.values()),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "bytearray", "complex")),
    "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",  # the best accuracy so far, say
]  # fmt: skip
_GLOBALS: Final[Mapping[str, _Global | _StorageType]] = {
    "collections.OrderedDict": _Global(_dictionary),
    "collections.Counter": _Global(_dictionary),
    "torch.Size": _Global(_natural),
    "torch._utils._rebuild_tensor": _Global(_tensor),
    "torch._utils._rebuild_tensor_v2": _Global(_tensor),
    "torch._utils._rebuild_parameter": _Global(_parameter),
    "torch._utils._rebuild_parameter_with_state": _Global(_parameter),
    **{name: _Global(_ignored) for name in _BESIDE},
    **{f"torch.{name}Storage": _StorageType(dtype) for name, dtype in _DTYPES.items()},
}


def _storage(saved_id: Any) -> Storage:
    """A persistent id: ("storage", type, key, device, numel); old files have a sixth, None where it is no view."""
    if _is(saved_id, tuple) and len(saved_id) in (5, 6) and (*saved_id, None)[5] is None:
        word, kind, key, _, numel = saved_id[:5]
        if word == "storage" and isinstance(kind, _StorageType) and _is(key, str) and _is(numel, int) and numel >= 0:
            return Storage(key, kind.dtype, numel)
    raise PickleError("a storage of an unsupported kind")


class _Reader:
    """The machine that runs a pickle: a stack of values, the stacks saved by marks, and a memo of repeated values."""

    def __init__(self, data: bytes, at: int, storages: dict[str, Storage]) -> None:
        self.data, self.at, self.storages = data, at, storages
        self.stack: list[Any] = []
        self.aside: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise PickleError("an unexpected end of the data")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        return self.take(self.data.index(b"\n", self.at) + 1 - self.at)[:-1].decode()

    def put(self, value: object) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.aside.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.aside.pop()
        return values

    def put_tuple(self, count: int) -> None:
        values = tuple(self.stack.pop() for _ in range(count))
        self.stack.append(values[::-1])

    def append(self, values: list[Any]) -> None:
        if not _is(self.stack[-1], list):
            raise PickleError("an item added to something other than a list")
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        if not _is(self.stack[-1], dict):
            raise PickleError("an item added to something other than a dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            _put(self.stack[-1], key, value)

    def find_global(self, module: object, name: object) -> None:
        name = f"{module}.{name}" if _is(module, str) and _is(name, str) else ""
        if name not in _GLOBALS:
            raise ForeignError(ascii(name[:100])[1:-1])
        self.put(_GLOBALS[name])

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Global) or not _is(arguments, tuple):
            raise PickleError("a call of something other than a function")
        self.put(function.call(*arguments))

    def build(self) -> None:
        """State beside a value: the ``_metadata`` of a state_dict, attributes of a tensor. None is a weight."""
        self.stack.pop()

    def find_storage(self) -> None:
        storage = _storage(self.stack.pop())
        if self.storages.setdefault(storage.key, storage) != storage:
            raise PickleError("two different descriptions of one storage")
        self.put(storage)

    def memorise(self, form: str) -> None:
        self.memo[self.number(form)] = self.stack[-1]


#: The opcodes that torch.save writes at protocols 2 to 5. All others are refused.
_OPCODES: Final[Mapping[bytes, Callable[[_Reader], object]]] = {
    b"\x80": lambda reader: reader.take(1),  # the protocol
    b"(": _Reader.mark,
    b")": lambda reader: reader.put(()),
    b"]": lambda reader: reader.put([]),
    b"}": lambda reader: reader.put({}),
    b"N": lambda reader: reader.put(None),
    b"\x88": lambda reader: reader.put(True),
    b"\x89": lambda reader: reader.put(False),
    b"J": lambda reader: reader.put(reader.number("<i")),
    b"K": lambda reader: reader.put(reader.number("<B")),
    b"M": lambda reader: reader.put(reader.number("<H")),
    b"G": lambda reader: reader.put(reader.number(">d")),
    b"\x8a": lambda reader: reader.put(int.from_bytes(reader.take(reader.number("<B")), "little", signed=True)),
    b"X": lambda reader: reader.put(reader.take(reader.number("<I")).decode()),
    b"U": lambda reader: reader.put(reader.take(reader.number("<B")).decode()),  # a string of Python 2
    b"T": lambda reader: reader.put(reader.take(reader.number("<I")).decode()),  # a longer one
    b"\x8c": lambda reader: reader.put(reader.take(reader.number("<B")).decode()),
    b"C": lambda reader: reader.put(reader.take(reader.number("<B"))),
    b"B": lambda reader: reader.put(reader.take(reader.number("<I"))),
    b"t": lambda reader: reader.put(tuple(reader.since_mark())),
    b"\x85": lambda reader: reader.put_tuple(1),
    b"\x86": lambda reader: reader.put_tuple(2),
    b"\x87": lambda reader: reader.put_tuple(3),
    b"a": lambda reader: reader.append([reader.stack.pop()]),
    b"e": lambda reader: reader.append(reader.since_mark()),
    b"s": lambda reader: reader.set_items([reader.stack.pop(), reader.stack.pop()][::-1]),
    b"u": lambda reader: reader.set_items(reader.since_mark()),
    b"q": lambda reader: reader.memorise("<B"),
    b"r": lambda reader: reader.memorise("<I"),
    b"h": lambda reader: reader.put(reader.memo[reader.number("<B")]),
    b"j": lambda reader: reader.put(reader.memo[reader.number("<I")]),
    b"\x94": lambda reader: reader.memo.update({len(reader.memo): reader.stack[-1]}),
    b"\x95": lambda reader: reader.take(8),  # the length of a frame
    b"c": lambda reader: reader.find_global(reader.line(), reader.line()),
    b"\x93": lambda reader: reader.find_global(*[reader.stack.pop(), reader.stack.pop()][::-1]),
    b"R": _Reader.reduce,
    b"b": _Reader.build,
    b"Q": _Reader.find_storage,
}


def unpickle(data: bytes, at: int = 0, storages: dict[str, Storage] | None = None) -> tuple[Any, int]:
    """The value of the pickle that begins at byte ``at``, its tensors as `Stored`; and where the pickle ends.

    ``storages`` gets the storages that the pickle names, by their keys. Raises ForeignError if it names a function or
    class that no state_dict has (nothing has been called), and PickleError if it is broken or of another kind.
    """
    reader = _Reader(data, at, {} if storages is None else storages)
    try:
        while True:
            at = reader.at
            code = reader.take(1)
            if code == b".":
                return reader.stack.pop(), reader.at
            if code not in _OPCODES:
                names = [op.name for op in pickletools.opcodes if op.code == code.decode("latin-1")]
                raise PickleError(f"the opcode {(*names, repr(code))[0]}, which torch.save does not write,")
            _OPCODES[code](reader)
    except PickleError as error:
        raise type(error)(f"{error} at byte {at:,}") from None
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise PickleError(f"an invalid instruction ({type(error).__name__}) at byte {at:,}") from error
