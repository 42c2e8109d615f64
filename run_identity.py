"""The identity of a resumable run: a JSON record of everything that determines its result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from . import __version__
from .packages import library_version


def versions(*packages: str) -> dict[str, str | None]:
    """Return the versions of this package and of the given ones; None for one that is not installed."""
    return {"resnext-hub": __version__} | {package: library_version(package) for package in packages}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name what differs between two identities, such as "batch 16, now 8; versions.numpy '2.1', now '2.2'".

    Return "" if they are equal. Tuples and lists are the same, as in JSON.
    """
    old, new = (dict(_flat("", json.loads(json.dumps(identity)))) for identity in (before, now))
    return "; ".join(
        f"{key} {_short(old.get(key))}, now {_short(new.get(key))}"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    )


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, inner)
    else:
        yield prefix, value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:199]}…"
