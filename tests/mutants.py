"""Mutation testing of the rooms that meet other people's files and servers: python tests/mutants.py [MUTANT...].

mutmut 3 names a module by its path below ``src/``, and here the repository's root is the package. So the tree is copied
to ``build/mutants`` in the layout that it expects, and it runs there; its settings are pyproject.toml's. A second run
tests only what has changed and what is named (``'*.uris.*'``); ``mutmut show MUTANT`` in that folder shows a mutant.

Prints for each module how many mutants the tests notice, and fails below 85 %.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAB = ROOT / "build" / "mutants"
FLOOR = 85.0  # percent
BESIDE = ("tests/", "pyproject.toml", "weights_manifest.")  # what tests look for in the repository's root
#: How mutmut writes down a mutant's end: the exit status of the tests that it was held against.
SURVIVED, UNTESTED = (0, 5), 33


def lay_out() -> None:
    """The package below ``src/``, tests and settings beside it; what is unchanged keeps its time and its results."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    package = Path("src", "resnext_hub")
    for name in listed:
        source = ROOT / name
        for target in [Path(name)] * name.startswith(BESIDE) + [package / name] * (not name.startswith("tests/")):
            if source.is_file() and not _is_same(source, LAB / target):
                (LAB / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, LAB / target)
                (LAB / "mutants" / target).unlink(missing_ok=True)


def _is_same(source: Path, target: Path) -> bool:
    return target.is_file() and target.read_bytes() == source.read_bytes()


def outcomes() -> dict[str, Counter[str]]:
    """For each module how many mutants were noticed, survived, or were reached by no test."""
    counts: dict[str, Counter[str]] = {}
    for file in sorted((LAB / "mutants").rglob("*.py.meta")):
        ends = json.loads(file.read_text())["exit_code_by_key"].values()
        module = file.relative_to(LAB / "mutants" / "src" / "resnext_hub").as_posix().removesuffix(".py.meta")
        counts[module] = Counter(map(_outcome, ends))
    return counts


def _outcome(end: int | None) -> str:
    if end is None:
        return "untried"
    return "untested" if end == UNTESTED else "survived" if end in SURVIVED else "noticed"


def main(mutants: list[str]) -> int:
    lay_out()
    ran = subprocess.run(
        [Path(sys.executable).with_name("mutmut"), "run", "--max-children", "4", *mutants], cwd=LAB, check=False
    ).returncode
    counts = outcomes()
    utilities = [count for module, count in counts.items() if module.startswith("processing_utils/")]
    counts["processing_utils"] = sum(utilities, Counter())
    failed = ran != 0
    for module, count in counts.items():
        share = 100 * count["noticed"] / max(1, count.total())
        failed |= share < FLOOR and "/" not in module.removeprefix("models/")
        print(f"{module:32} {count.total():5} mutants {share:5.1f} % noticed  {dict(count)}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
