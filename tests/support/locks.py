"""What locks/ holds."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from ..conftest import ROOT


def entries(lock: Path) -> list[tuple[Requirement, list[str]]]:
    """Requirements with their hashes."""
    lines = re.sub(r"\\\n", " ", lock.read_text()).splitlines()
    parts = [line.split(" --hash=") for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return [(Requirement(first), [digest.strip() for digest in hashes]) for first, *hashes in parts]


def pinned(lock: str) -> dict[str, Version]:
    """What an installation here, on this Python, takes."""
    found = entries(ROOT / "locks" / lock)
    here = [requirement for requirement, _ in found if requirement.marker is None or requirement.marker.evaluate()]
    return {canonicalize_name(r.name): Version(next(iter(r.specifier)).version) for r in here}
