"""Shell lines that users copy: they parse, their make targets exist, the options of resnext-hub are right."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import pytest
from resnext_hub import cli
from resnext_hub.models.manifest import default_manifest

from ..conftest import ROOT
from ..support.pages import blocks

SHELL = "sh|bash|shell|console"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("demo/*.md")])


def commands(block: str) -> list[list[str]]:
    """The words of each command: without comments, variables set for it, and what stands behind a pipe or an arrow."""
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), ";"]:
            if word not in ("|", "||", "&&", ";", ">", ">>", "2>", "<", "&"):
                words.append(word)
                continue
            while words and re.match(r"\w+=", words[0]):
                words.pop(0)
            if words:
                found.append(words)
            words = []
    return found


EVERY = [pytest.param(block, id=f"{page.relative_to(ROOT)}-{i}") for page in PAGES
         for i, block in enumerate(blocks(page, SHELL))]  # fmt: skip


@pytest.mark.parametrize("block", EVERY)
def test_shell_lines_parse(block: str) -> None:
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    for first, *arguments in commands(block):
        if first == "resnext-hub" and arguments and not {"--help", "--version"} & set(arguments):
            parsed = cli._parser().parse_args(arguments)  # SystemExit where an option does not exist
            variant = getattr(parsed, "variant", None)
            if isinstance(variant, str) and not variant.isupper() and "/" not in variant:  # V, TEACHER, runs/x
                assert default_manifest().resolve(variant)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_targets_exist() -> None:
    named = {word for page in PAGES for block in blocks(page, SHELL) for first, *words in commands(block)
             if first == "make" for word in words if "=" not in word}  # fmt: skip
    named |= {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))}
    assert {"demo", "test", "check"} <= named
    done = subprocess.run(["make", "--dry-run", *sorted(named)], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_ci_runs_the_two_commands_of_the_readme_and_all_checks() -> None:
    assert [c for c in commands(blocks("README.md")[0]) if c[0] == "make"] == [
        ["make", "demo"],
        ["make", "test"],
    ]
    ci = (ROOT / ".ci" / "run").read_text()
    assert ["make", "demo"] in commands(ci)
    assert any(command[:2] == ["make", "check"] for command in commands(ci))
    checks = re.search(r"^check: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert checks is not None
    assert checks[1].split()[-1] == "test"  # its closing line is that of the run
