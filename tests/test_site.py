"""The hook of the site: links out of docs/ lead to GitHub; one that leads nowhere is a warning, and fails the build."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

from resnext_hub.docs.site import BLOB, on_page_markdown


def converted(markdown: str, page: str = "training.md") -> str:
    return on_page_markdown(markdown, SimpleNamespace(file=SimpleNamespace(src_uri=page)))


def test_links_out_of_docs_lead_to_github(caplog: Any) -> None:
    assert converted("[a](../cli.py#L3), [b](../docs/scale.md)") == f"[a]({BLOB}cli.py#L3), [b](../docs/scale.md)"
    assert (
        converted("[c](../../README.md) [d](../training.md)", "hub/x.md") == f"[c]({BLOB}README.md) [d](../training.md)"
    )
    assert not caplog.records


def test_a_link_that_leads_nowhere_is_a_warning(caplog: Any) -> None:
    converted("[a](../nothing.py)")
    assert caplog.record_tuples == [
        ("mkdocs.plugins.site", logging.WARNING, "training.md links to ../nothing.py, which is not there")
    ]
