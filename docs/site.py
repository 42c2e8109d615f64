"""MkDocs hooks: the page "Try it", the package for the API reference, the changelog, links from docs/ to files."""

from __future__ import annotations

import logging
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import browser  # noqa: E402

BLOB = "https://github.com/org/resnext-hub/blob/main/"
EDIT = BLOB.replace("/blob/", "/edit/")
log = logging.getLogger("mkdocs.plugins.site")  # a warning there fails a strict build


def _documented(source: str) -> str:
    """Turn the comments ``#:`` of fields, after or above them, into docstrings, which mkdocstrings shows."""
    source = re.sub(r"^(    \w+: [^#\n]+?)  #: (.+)$", r'\1\n    """\2."""', source, flags=re.MULTILINE)
    above = re.compile(r"^((?:    #: .+\n)+)(    \w+: .+)$", re.MULTILINE)
    return above.sub(lambda m: f'{m[2]}\n    """{m[1].replace("    #: ", " ").strip()}"""', source)


def on_startup(**_: Any) -> None:
    """Create build/documented/resnext_hub, a copy of the package's code for the API reference.

    The repository's root is the package. Reading it there would include the environment in .venv (4 GB, minutes).
    """
    documented = ROOT / "build" / "documented" / "resnext_hub"
    shutil.rmtree(documented, ignore_errors=True)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    for name in packages:
        folder = Path(*name.split(".")[1:])
        (documented / folder).mkdir(parents=True)
        for file in (ROOT / folder).glob("*.py"):
            copy = _documented(file.read_text(encoding="utf-8"))
            (documented / folder / file.name).write_text(copy, encoding="utf-8")


def on_config(config: Any) -> None:
    """Leave out the page that runs the network in the browser if its runtime cannot be downloaded."""
    if shutil.which("npm") is None:
        log.info('The page "Try it" is left out: it needs npm.')
        config["nav"] = [entry for entry in config["nav"] if "try.md" not in entry.values()]
        config["exclude_docs"] += "\ntry.md\n"


def on_post_build(config: Any) -> None:
    """Add the network, its runtime and example photos to the page that runs it."""
    if shutil.which("npm") is None:
        return
    browser.assemble(ROOT / "build" / "try")
    shutil.copytree(ROOT / "build" / "try", Path(config["site_dir"]) / "try", dirs_exist_ok=True)
    for photo in (ROOT / "demo" / "coffee.jpg", *(ROOT / "demo" / "examples").glob("*.jpg")):
        shutil.copy(photo, Path(config["site_dir"]) / "try")


def on_files(files: Any, config: Any) -> None:
    """Add the repository's CHANGELOG.md as a page."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\((?!\w+:|#)(docs/)?", lambda link: "](" if link[1] else "](../", text)
    files.append(File.generated(config, "changelog.md", content=text))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn ``[text](../path)`` in a page of docs/ into a link to GitHub; warn if there is no such file."""
    source = page.file.src_uri
    if source == "changelog.md":
        page.edit_url = f"{EDIT}CHANGELOG.md"
    elif template := re.fullmatch(r"hub/(?:(ko)/)?.*resnext-hub_(\w+)\.md", source):
        page.edit_url = f"{EDIT}docs/page_templates/{template[1] or 'en'}/{template[2]}.md.j2"
    folder = (ROOT / "docs" / source).parent

    def to_github(link: re.Match[str]) -> str:
        target, anchor = (folder / link[1]).resolve(), link[2] or ""
        if target.is_relative_to(ROOT / "docs"):
            return link[0]
        if not target.exists():
            log.warning("%s links to %s, which does not exist", source, link[1])
        return f"]({BLOB}{target.relative_to(ROOT).as_posix()}{anchor})"

    return re.sub(r"\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)", to_github, markdown)
