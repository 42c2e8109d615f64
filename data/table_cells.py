"""Read labels and the cells of Arrow tables. The size of each cell is checked before it is copied."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import FetchError, SourceError
from ..processing_utils.uris import MAX_BYTES

#: A class: its name or synset, or its number; or several of them, or none.
Label = str | int | tuple[str | int, ...]
#: Stands for -1 and for an empty cell: this image has no class.
NO_CLASS = -1
TEXT = 2**16  # characters of a path, URI or name; a data: URI may be as long as an image


def parse_label(text: str) -> Label | None:
    """A label in a text file: numbers are written as text, and lists as JSON (as `inference.tables` writes them)."""
    text = text.strip()
    if text.startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            return as_label(json.loads(text))
    return int(text) if re.fullmatch(r"\d{1,9}|-1", text) else text or NO_CLASS


def as_label(value: Any) -> Label | None:
    """A value of a table or of JSON as a label: ``NO_CLASS`` for -1, null and "", None if it cannot be a label."""
    if value is None or value == "":
        return NO_CLASS
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():  # pandas makes floats of integers with gaps
        value = int(value)
    if isinstance(value, int):
        return value if value >= 0 else NO_CLASS
    if isinstance(value, list) and all((isinstance(v, int) and v >= 0) or (isinstance(v, str) and v) for v in value):
        return tuple(value)
    return None


def flags_label(uri: str, names: Sequence[str], values: Iterable[Any]) -> Label:
    """The classes that an image has by columns of 0 and 1, one for each class; ``NO_CLASS`` if all cells are empty."""
    cells = ["" if value is None else str(value).strip() for value in values]
    flags = [{"0": 0, "0.0": 0, "False": 0, "1": 1, "1.0": 1, "True": 1}.get(cell) for cell in cells]
    if not any(cells):
        return NO_CLASS
    if None in flags:
        wrong = flags.index(None)
        raise SourceError(f"{uri}: {cells[wrong][:50]!r} in the column {names[wrong]!r} is not 0 or 1.")
    return tuple(name for name, flag in zip(names, flags, strict=True) if flag)


def _plain(kind: Any) -> Any:
    """The type of the values of a dictionary or extension type."""
    from pyarrow import types

    while True:
        if types.is_dictionary(kind):
            kind = kind.value_type
        elif (storage := getattr(kind, "storage_type", None)) is not None:
            kind = storage
        else:
            return kind


def is_text(kind: Any) -> bool:
    """True if an Arrow type holds strings."""
    from pyarrow import types

    kind = _plain(kind)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def is_bytes(kind: Any) -> bool:
    """True if an Arrow type holds encoded images: bytes, or a struct of ``bytes`` and ``path`` (Hugging Face)."""
    from pyarrow import types

    kind = _plain(kind)
    if types.is_struct(kind):
        return any(kind.get_field_index(name) >= 0 for name in ("bytes", "path"))
    checks = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(check(kind) for check in checks)


def _value(scalar: Any) -> Any:
    """The scalar inside a dictionary or extension scalar."""
    while type(scalar).__name__ in ("DictionaryScalar", "ExtensionScalar"):
        scalar = scalar.value
    return scalar


def text_of(scalar: Any) -> str | None:
    """A cell of text, None for null; FetchError if it is too long for a name or a path."""
    return _content(scalar, TEXT)


def _content(scalar: Any, limit: int) -> Any:
    """A cell of text or bytes, None for null."""
    scalar = _value(scalar)
    if scalar is None or not scalar.is_valid:
        return None
    if (size := scalar.as_buffer().size) > limit:
        raise FetchError(f"A cell has {size:,} bytes, more than {limit:,}.")
    return scalar.as_py()


def cell(scalar: Any) -> tuple[str | None, bytes | str | None]:
    """(name, content) of a cell of an image column: encoded bytes, or a path or URI, or None for no image.

    Raises FetchError if it is larger than an image may be.
    """
    scalar = _value(scalar)
    if scalar is None or not scalar.is_valid:
        return None, None
    if hasattr(scalar, "keys"):
        fields = dict(scalar.items())
        path = text_of(fields["path"]) if "path" in fields else None
        data = _content(fields["bytes"], MAX_BYTES) if "bytes" in fields else None
        return path, path if data is None else data
    # By its class, because reading its Arrow type takes longer than everything else here. Text may be a data: URI.
    return None, _content(scalar, MAX_BYTES * (2 if "String" in type(scalar).__name__ else 1))
