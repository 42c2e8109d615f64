"""The locks hold what pyproject.toml asks for, each file by its sha256; SECURITY.md names tests that are there."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from resnext_hub.maintenance.audit import findings

from .support.locks import entries, pinned

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted((ROOT / "locks").glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = canonicalize_name(PROJECT["name"])


def asked_for(extra: str | None = "dev") -> list[Requirement]:
    """The package's requirements with those of an extra, and of the extras that it names."""
    listed = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"] + ["resnext-hub[dev]"]
    found = []
    for requirement in map(Requirement, listed):
        if canonicalize_name(requirement.name) == NAME:
            found += [inner for name in sorted(requirement.extras) for inner in asked_for(name)]
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_package_is_pinned_and_hashed(lock: Path) -> None:
    assert "://" not in lock.read_text()
    found = entries(lock)
    assert found
    for requirement, hashes in found:
        assert [s.operator for s in requirement.specifier] == ["=="], requirement
        assert hashes, requirement
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in hashes), requirement


def test_what_the_project_asks_for_is_locked_and_the_oldest_lock_is_at_the_floors() -> None:
    locked, oldest, floors = pinned("dev.txt"), pinned("oldest.txt"), defaultdict(list)
    for requirement in asked_for(None):
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(locked[name]), name
        floors[name] += [Version(s.version) for s in requirement.specifier if s.operator == ">="]
    assert len(floors) > 20
    assert {name: oldest[name] for name in floors} == {name: max(found) for name, found in floors.items()}


def test_no_locked_version_has_a_known_vulnerability(tmp_path: Path) -> None:
    assert list(findings()) == []
    (tmp_path / "a.txt").write_text("ray==2.55.0 ; python_version < '4' \\\n    --hash=sha256:0\npip==26.3\n")
    (found,) = findings(tmp_path)
    assert "CVE-2026-57516" in found
    assert "a.txt" in found


def test_security_names_tests_that_are_there() -> None:
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", (ROOT / "SECURITY.md").read_text())
    assert named
    for file, name in named:
        (path,) = (ROOT / "tests").rglob(file)
        assert re.search(rf"^def {name}\(", path.read_text(), re.MULTILINE), f"{file}::{name}"
