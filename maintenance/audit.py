"""Compare the versions in locks/ with the vulnerabilities in locks/advisories.tsv; needs no network.

locks/oldest.txt has the lowest versions that pyproject.toml allows, so a floor with a known vulnerability is found too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

LOCKS = Path(__file__).resolve().parent.parent / "locks"


def findings(locks: Path = LOCKS) -> Iterator[str]:
    """Yield a line for each locked version with a known vulnerability that is not accepted."""
    lines = (LOCKS / "advisories.tsv").read_text(encoding="utf-8").splitlines()
    advisories = [line.split("\t") for line in lines if not line.startswith("#")]
    for lock in sorted(locks.glob("*.txt")):
        for line in lock.read_text(encoding="utf-8").splitlines():
            if "==" not in line.split("#")[0]:
                continue
            locked = Requirement(line.rstrip("\\ "))
            version = next(iter(locked.specifier)).version
            for affected, records, *accepted in advisories:
                advisory = Requirement(affected)
                if advisory.name == locked.name and version in advisory.specifier and not accepted:
                    yield f"{lock.name}: {locked.name} {version} has {records}"


if __name__ == "__main__":
    found = list(findings())
    print("\n".join(found) or "No locked version has a vulnerability that locks/advisories.tsv names.")
    sys.exit(bool(found))
