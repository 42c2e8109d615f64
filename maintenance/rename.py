"""Write another owner's name into every tracked file and file name: ``make rename OWNER=acme``.

The owner is the one in pyproject.toml's ``[project.urls] Repository``, replaced where this repository is meant: in
``<owner>/resnext-hub`` (URLs, torch.hub), ``<owner>_resnext-hub`` (torch.hub's folders, pages of PyTorch Hub) and
``<owner>.github.io/resnext-hub`` (the site of docs/).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GITHUB_NAME = re.compile(r"[A-Za-z0-9](?:-?[A-Za-z0-9]){0,38}")


def owner() -> str:
    """The current owner, read from pyproject.toml."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    return urls["Repository"].split("/")[3]


def mentions(name: str) -> re.Pattern[str]:
    """Matches an owner's name where this repository of theirs is meant."""
    return re.compile(rf"(?<![\w.-]){re.escape(name)}(?=(?:/|_|\.github\.io/)resnext-hub)")


def rename(old: str, new: str) -> int:
    """The number of files that were changed or renamed.

    Raises:
        ValueError: a file mentions ``new`` already, so that renaming back would give another text.
    """
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    changes: list[tuple[Path, Path, bytes]] = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        content = path.read_bytes()
        try:
            text = content.decode()
        except UnicodeDecodeError:  # a picture, or weights
            text = ""
        if mentions(new).search(f"{name}\n{text}"):
            raise ValueError(f"{name} mentions {new}/resnext-hub already")
        target = ROOT / mentions(old).sub(new, name)
        changed = mentions(old).sub(new, text).encode() if text else content
        if (target, changed) != (path, content):
            changes.append((path, target, changed))
    for path, target, content in changes:
        path.write_bytes(content)
        path.rename(target)
    return len(changes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("owner", help="a user or an organisation on GitHub")
    new = parser.parse_args().owner
    if not GITHUB_NAME.fullmatch(new):
        parser.error(f"not a name on GitHub: {new!r}")
    old = owner()
    if new == old:
        print(f"{new} is the owner already")
        return 0
    try:
        print(f"{rename(old, new)} files: {old} -> {new}")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
