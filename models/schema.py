"""Checks JSON against a schema: the part of JSON Schema that weights_manifest.schema.json uses, without a package.

Patterns must match the complete string, and numbers must be finite; otherwise this means what JSON Schema means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import NoneType
from typing import Any, Final, cast

TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (NoneType,),
}


class SchemaError(ValueError):
    """A value that the schema does not allow; ``where`` are the keys that lead to it."""

    def __init__(self, where: tuple[str, ...], reason: str) -> None:
        super().__init__(f"{'.'.join(where) or 'top level'}: {reason}")
        self.where = where


def _shown(value: object) -> str:
    """A value for a message: short, in ASCII, and never a container, whose text may be endless."""
    if isinstance(value, dict | list):
        return f"a JSON {'object' if isinstance(value, dict) else 'array'}"
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "a number of more than 64 bits"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def check(value: Any, schema: Any, root: Mapping[str, Any], where: tuple[str, ...] = ()) -> None:
    """Check a value from ``json.loads`` against a schema, whose references start at ``root``; raise SchemaError."""
    if schema is True:
        return
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]

    def refuse(reason: str) -> SchemaError:
        return SchemaError(where, f"{_shown(value)} {reason}")

    stated = schema.get("type", [])
    kinds: list[str] = [stated] if isinstance(stated, str) else stated
    if kinds and type(value) not in [kind for name in kinds for kind in TYPES[name]]:
        raise refuse(f"is not of type {' or '.join(kinds)}")
    allowed = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if allowed is not None and not any(type(value) is type(one) and value == one for one in allowed):
        raise refuse(f"is not {' or '.join(_shown(one) for one in allowed)}")
    if isinstance(value, str):
        _check_text(value, schema, refuse)
    elif isinstance(value, int | float):
        _check_number(value, schema, refuse)
    elif isinstance(value, list):
        items = cast("list[Any]", value)
        low, high = schema.get("minItems", 0), schema.get("maxItems", len(items))
        if not low <= len(items) <= high:
            raise refuse(f"has {len(items):,} items, expected {low} to {high}")
        for number, item in enumerate(items):
            check(item, schema.get("items", True), root, (*where, str(number)))
    elif isinstance(value, dict):
        _check_object(cast("dict[str, Any]", value), schema, root, where)
    for key in ("anyOf", "oneOf"):
        _check_choice(value, schema.get(key, [True]), root, where)


def _check_text(value: str, schema: Mapping[str, Any], refuse: Any) -> None:
    low, high = schema.get("minLength", 0), schema.get("maxLength", len(value))
    if not low <= len(value) <= high:  # before the pattern, whose time depends on it
        raise refuse(f"has {len(value):,} characters, expected {low} to {high:,}")
    if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
        raise refuse(f"does not match {schema['pattern']}")


def _check_number(value: float, schema: Mapping[str, Any], refuse: Any) -> None:
    if isinstance(value, float) and not float("-inf") < value < float("inf"):
        raise refuse("is not a finite number")
    if "minimum" in schema and value < schema["minimum"]:
        raise refuse(f"is below {schema['minimum']}")
    if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
        raise refuse(f"is not above {schema['exclusiveMinimum']}")
    if "maximum" in schema and value > schema["maximum"]:
        raise refuse(f"is above {schema['maximum']:,}")


def _check_object(value: dict[str, Any], schema: Mapping[str, Any], root: Any, where: tuple[str, ...]) -> None:
    for key in schema.get("required", ()):
        if key not in value:
            raise SchemaError(where, f"the key {_shown(key)} is missing")
    if len(value) < schema.get("minProperties", 0):
        raise SchemaError(where, "it is empty")
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for key, item in value.items():
        if key not in known and others is False:
            raise SchemaError(where, f"the key {_shown(key)} is not known")
        check(key, schema.get("propertyNames", True), root, where)
        check(item, known.get(key, others), root, (*where, key))


def _check_choice(value: Any, schemas: list[Any], root: Any, where: tuple[str, ...]) -> None:
    """Check "anyOf" or "oneOf": the schema's alternatives exclude each other, so the two mean the same."""
    errors: list[SchemaError] = []
    for schema in schemas:
        try:
            return check(value, schema, root, where)
        except SchemaError as error:
            errors.append(error)
    raise max(errors, key=lambda error: len(error.where))  # most likely that of the intended alternative
