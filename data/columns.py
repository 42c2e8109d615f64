"""Choose the columns of images and of labels of a table or list. `docs/data.md` lists the names for users."""

from __future__ import annotations

from typing import Any

from ..errors import SourceError
from .table_cells import is_bytes, is_text

# The first of these that a table or list has.
IMAGE_COLUMNS = (
    *("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp", "path", "image_path", "filepath"),
    *("file", "file_name", "filename", "uri", "url", "image_url", "name", "image_id"),
)
LABEL_COLUMNS = (
    *("label", "wnid", "synset", "class", "cls", "labels", "target", "targets", "class_index", "class_id"),
    *("class_name", "label_name", "fine_label", "category"),
)
# The first of these that a table of encoded images has holds their names.
NAME_COLUMNS = ("name", "path", "file_name", "filename", "__key__")


def named(names: list[str], ordered: tuple[str, ...]) -> str | None:
    """The first of ``ordered`` that is among names, whatever the case."""
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in ordered if name in lower), None)


def _which(uri: str, content: str, option: str, names: list[str]) -> SourceError:
    return SourceError(
        f"Which column of {uri} holds the {content}? Pass {option}=NAME, one of {', '.join(names)[:500]}."
    )


def _label_named(usable: list[str], names: list[str]) -> str | None:
    """The column of labels; None in a table of `classify --out`, whose column ``label`` is a prediction."""
    return None if {"error", "probabilities"} <= set(names) else named(usable, LABEL_COLUMNS)


def flag_columns(names: list[str], wanted: str | None) -> list[str]:
    """The columns in "a,b,c", one of 0 and 1 for each class; none if this is the name of one column."""
    return wanted.split(",") if wanted and "," in wanted and wanted not in names else []


def list_columns(uri: str, names: list[str], column: str | None, label_column: str | None) -> tuple[str, str | None]:
    """The columns of paths and of labels of a list with these columns; SourceError if there is no column of paths."""
    for wanted in filter(None, [column, *(flag_columns(names, label_column) or [label_column])]):
        if wanted not in names:
            raise SourceError(f"{uri} has no column {wanted!r}; choose from {', '.join(names)[:500]}.")
    image = column or named(names, IMAGE_COLUMNS)
    if image is None:
        raise SourceError(
            f"{_which(uri, 'images', 'column', names)} (Without a header, name the list .txt: one path per line.)"
        )
    return image, label_column or _label_named([name for name in names if name != image], names)


def image_column(uri: str, schema: Any, wanted: str | None, label: str | None = None) -> tuple[str, str | None]:
    """The column of images, and the column of their names, if the images are bytes and there is one."""
    content = [field.name for field in schema if is_bytes(field.type)]
    text = [field.name for field in schema if is_text(field.type) and field.name != label]
    if wanted is not None and wanted not in (*content, *text):
        raise SourceError(f"{uri} has no column {wanted!r} of images or paths; choose from {', '.join(schema.names)}.")
    candidates = content or text
    chosen = wanted or (candidates[0] if len(candidates) == 1 else named(candidates, IMAGE_COLUMNS))
    if chosen is None:
        raise _which(uri, "images", "column", schema.names)
    return chosen, named(text, NAME_COLUMNS) if chosen in content else None


def label_column(uri: str, schema: Any, image: str, wanted: str | None) -> str | None:
    """The column of classes; None if there is none and the images are paths, whose folders may be the classes."""
    for name in flag_columns(schema.names, wanted) or filter(None, [wanted]):
        if name not in schema.names:
            raise SourceError(f"{uri} has no column {name!r}; choose from {', '.join(schema.names)}.")
    usable = [f.name for f in schema if f.name != image and _holds_labels(f.type)]
    found = wanted or _label_named(usable, schema.names)
    if found is None and not is_text(schema.field(image).type):
        raise _which(uri, "classes", "label_column", schema.names)
    return found


def _holds_labels(kind: Any) -> bool:
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return types.is_integer(kind.value_type) or is_text(kind.value_type)
    return is_text(kind) or types.is_integer(kind) or types.is_floating(kind)
