"""What the documentation's pages hold: their blocks of code, and the lines of those for a shell."""

from __future__ import annotations

import re
from pathlib import Path

from ..conftest import ROOT


def blocks(page: str | Path, kind: str = "sh") -> list[str]:
    """The blocks of code of a kind (a regular expression)."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^ *```(?:{kind})\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)


def shell_lines(page: str | Path) -> list[str]:
    """The lines of a page's shell blocks, continued ones joined."""
    return [line for block in blocks(page) for line in block.replace("\\\n", " ").splitlines()]
