"""The footer of a Parquet file: its schema, and where each column chunk lies and how large it is.

pyarrow reads footers too. But its objects for column chunks end the process if one is damaged or encrypted: Cython does
not catch the exception that C++ throws there. So only the schema is taken from pyarrow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

FIRST = 2**16  # bytes that are fetched first
MAGIC = b"PAR1"


class Chunk(NamedTuple):
    """One column of one row group: ``packed`` bytes from ``start`` on, ``unpacked`` when they are decompressed."""

    path: str
    start: int
    packed: int
    unpacked: int


class Footer(NamedTuple):
    """``size``: of the footer in bytes. ``groups``: the rows and the chunks of each row group."""

    size: int
    schema: Any
    groups: list[tuple[int, list[Chunk]]]


def with_footer(length: int, last: Callable[[int], bytes]) -> bytes:
    """The end of a file of this length, with the complete footer; ``last(n)`` returns its last n bytes."""
    tail = last(min(FIRST, length))
    size = _size(tail)
    return last(size) if len(tail) < size <= length and tail[-4:] == MAGIC else tail


def _size(tail: bytes) -> int:
    return int.from_bytes(tail[-8:-4], "little") + 8


def read_footer(tail: bytes) -> Footer:
    """Read the end of a file; pyarrow.ArrowException if it is not a Parquet file, ValueError if it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_metadata(pa.BufferReader(tail)).schema.to_arrow_schema()
    size = _size(tail)
    try:
        groups = [(int(g[3]), [_chunk(column[3]) for column in g[1]]) for g in _struct(tail[-size:-8])[4]]
    except (IndexError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("its footer is damaged") from error
    if any(rows < 0 or min(c[1:]) < 0 for rows, chunks in groups for c in chunks):
        raise ValueError("its footer is damaged")
    return Footer(size, schema, groups)


def _chunk(about: dict[int, Any]) -> Chunk:
    start = min(about.get(11) or about[9], about[9])  # of the dictionary, if there is one
    return Chunk(b".".join(about[3]).decode("utf-8", "replace"), start, int(about[7]), int(about[6]))


def _struct(data: bytes) -> dict[int, Any]:
    """Field numbers and values of a struct in Thrift's compact protocol, as parquet.thrift numbers them."""
    at = 0

    def take(length: int) -> bytes:
        nonlocal at
        at += length
        if at > len(data):
            raise IndexError
        return data[at - length : at]

    def unsigned() -> int:
        number = shift = 0
        while (byte := take(1)[0]) & 0x80:
            number |= (byte & 0x7F) << shift
            shift += 7
        return number | byte << shift

    def signed() -> int:
        number = unsigned()
        return number >> 1 ^ -(number & 1)

    def value(kind: int, in_list: bool = False) -> Any:
        match kind:
            case 1 | 2:
                return take(1) == b"\1" if in_list else kind == 1
            case 3:
                return take(1)[0]
            case 4 | 5 | 6:
                return signed()
            case 7:
                return take(8)
            case 8:
                return take(unsigned())
            case 9 | 10:
                head = take(1)[0]
                return [value(head & 15, True) for _ in range(unsigned() if head >> 4 == 15 else head >> 4)]
            case 12:
                fields, number = {}, 0
                while head := take(1)[0]:
                    number = number + (head >> 4) if head >> 4 else signed()
                    fields[number] = value(head & 15)
                return fields
        raise IndexError

    return value(12)
