"""The site's hooks: links out of docs/ lead to GitHub, a broken one fails the build, and the changelog is a page."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from resnext_hub.docs.site import BLOB, EDIT, on_files, on_page_markdown

from ..conftest import ROOT as REPOSITORY


def page(source: str) -> SimpleNamespace:
    return SimpleNamespace(file=SimpleNamespace(src_uri=source), edit_url=None)


def converted(markdown: str, source: str = "training.md") -> str:
    return on_page_markdown(markdown, page(source))


def test_links_out_of_docs_lead_to_github(caplog: Any) -> None:
    assert converted("[a](../mount.py#L3), [b](../docs/scale.md)") == f"[a]({BLOB}mount.py#L3), [b](../docs/scale.md)"
    assert (
        converted("[c](../../README.md) [d](../training.md)", "hub/x.md") == f"[c]({BLOB}README.md) [d](../training.md)"
    )
    assert not caplog.records


def test_a_broken_link_is_a_warning(caplog: Any) -> None:
    converted("[a](../nothing.py)")
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("mkdocs.plugins.site", logging.WARNING)
    assert record.args == ("training.md", "../nothing.py")


@pytest.mark.parametrize(
    ("source", "edited"),
    [
        ("changelog.md", "CHANGELOG.md"),
        ("hub/org_resnext-hub_nvidia_resnext101.md", "docs/page_templates/en/nvidia_resnext101.md.j2"),
        ("hub/ko/org_resnext-hub_wsl.md", "docs/page_templates/ko/wsl.md.j2"),
    ],
)
def test_a_generated_page_is_edited_at_its_source(source: str, edited: str) -> None:
    generated = page(source)
    on_page_markdown("", generated)
    assert generated.edit_url == f"{EDIT}{edited}"
    assert (REPOSITORY / edited).is_file()


def test_the_changelog_is_a_page_whose_links_lead_from_docs(monkeypatch: Any, tmp_path: Any) -> None:
    text = "[a](docs/deploy.md), [b](SECURITY.md#x), [c](https://example.org/), [d](#e)"
    (tmp_path / "CHANGELOG.md").write_text(text)
    monkeypatch.setattr("resnext_hub.docs.site.ROOT", tmp_path)
    files: list[Any] = []
    plugins = SimpleNamespace(_current_plugin=None)  # MkDocs notes it in the file
    on_files(files, config=SimpleNamespace(site_dir="site", use_directory_urls=True, plugins=plugins))
    assert [file.src_uri for file in files] == ["changelog.md"]
    expected = "[a](deploy.md), [b](../SECURITY.md#x), [c](https://example.org/), [d](#e)"
    assert files[0].content_string == expected
