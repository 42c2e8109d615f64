"""Hooks of MkDocs: what is documented, and links from docs/ to other files of the repository, which lead to GitHub."""

from __future__ import annotations

import logging
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BLOB = "https://github.com/org/resnext-hub/blob/main/"
log = logging.getLogger("mkdocs.plugins.site")  # a warning there fails a strict build


def on_startup(**_: Any) -> None:
    """build/documented/resnext_hub: the package's modules and rooms, as links.

    The root of the repository is the package: read there, the environment in .venv would be part of it (4 GB, minutes).
    """
    documented = ROOT / "build" / "documented" / "resnext_hub"
    documented.mkdir(parents=True, exist_ok=True)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    rooms = [ROOT / name.split(".")[1] for name in packages if "." in name]
    for path in (*ROOT.glob("*.py"), *rooms):
        link = documented / path.name
        if not link.is_symlink():
            link.symlink_to(path)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """``[text](../path)`` in a page of docs/ -> the file on GitHub; a path that leads nowhere is a warning."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def to_github(link: re.Match[str]) -> str:
        target, anchor = (folder / link[1]).resolve(), link[2] or ""
        if target.is_relative_to(ROOT / "docs"):
            return link[0]
        if not target.exists():
            log.warning("%s links to %s, which is not there", page.file.src_uri, link[1])
        return f"]({BLOB}{target.relative_to(ROOT).as_posix()}{anchor})"

    return re.sub(r"\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)", to_github, markdown)
