"""`make rename OWNER=acme` on a copy of the tracked files: no mention of the owner is missed, and it can be undone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")

OWNER = re.compile(r"github\.com/([\w-]+)/resnext-hub|\b([\w-]+)\.github\.io/resnext-hub")
NEW = "acme-2"


def git(clone: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=clone, check=True)


def run(clone: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, clone / script, *arguments], cwd=clone, capture_output=True, text=True)


def rename(clone: Path, owner: str) -> subprocess.CompletedProcess[str]:
    git(clone, "add", "--all")
    return run(clone, "maintenance/rename.py", owner)


def contents(clone: Path) -> dict[str, bytes]:
    files = (path for path in clone.rglob("*") if path.is_file() and ".git" not in path.relative_to(clone).parts)
    return {path.relative_to(clone).as_posix(): path.read_bytes() for path in files}


def test_every_mention_is_renamed_and_renaming_back_gives_the_same_bytes(clone: Path) -> None:
    before = contents(clone)
    old = OWNER.search(before["pyproject.toml"].decode())
    assert old
    done = rename(clone, NEW)
    assert done.returncode == 0, done.stderr

    after = contents(clone)
    placeholder = re.compile(rf"{old[1]}(?:/|_|%2f|\.github\.io/)resnext-hub".encode(), re.IGNORECASE)
    assert not [name for name, content in after.items() if placeholder.search(name.encode() + b"\n" + content)]
    owners = {name: OWNER.findall(content.decode(errors="ignore")) for name, content in after.items()}
    named = {one or other for found in owners.values() for one, other in found}
    assert named == {NEW}
    for name in ("README.md", "models/download.py", "notebooks/wsl.ipynb", ".github/ISSUE_TEMPLATE/bug.yml"):
        assert owners[name], name
    assert f"docs/hub/ko/{NEW}_resnext-hub_wsl.md" in after
    assert b"arxiv.org/abs" in after["weights_manifest.json"]

    for script in ("maintenance/write_hubconf.py", "maintenance/write_table.py", "maintenance/write_pages.py"):
        done = run(clone, script, "--check")
        assert done.returncode == 0, done.stderr
    for script in clone.glob("notebooks/*.py"):
        if script.with_suffix(".ipynb").exists():
            pair = [jupytext.read(script), jupytext.read(script.with_suffix(".ipynb"))]
            assert [c.source for c in pair[0].cells] == [c.source for c in pair[1].cells], script.name

    assert rename(clone, old[1]).returncode == 0
    assert contents(clone) == before


@pytest.mark.parametrize("owner", ["", "a/b", "-a", "a--b", "a_b", "a" * 40])
def test_no_name_on_github(clone: Path, owner: str) -> None:
    before = contents(clone)
    assert rename(clone, owner).returncode == 2
    assert contents(clone) == before


def test_an_owner_who_is_mentioned_already_is_refused(clone: Path) -> None:
    """Else the two could not be told apart when renaming back."""
    (clone / "docs" / "forks.md").write_text(f"See https://github.com/{NEW}/resnext-hub.\n")
    before = contents(clone)
    done = rename(clone, NEW)
    (clone / "docs" / "forks.md").unlink()
    assert done.returncode == 1
    assert "docs/forks.md" in done.stderr
    assert contents(clone) == {name: content for name, content in before.items() if name != "docs/forks.md"}
