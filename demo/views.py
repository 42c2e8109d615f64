"""What the page shows, as HTML, in a visitor's language. Knows nothing of Gradio; what is not ours is escaped.

Pictures and tables are data: URLs, so that no answer is ever a file on the server.
"""

from __future__ import annotations

import base64
import tomllib
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path

from ..evaluation.explain import Explanation
from ..models.manifest import Checkpoint
from .logic import Answer, PageError, Row

__all__ = ["LANGUAGES", "card", "download_link", "figure", "notice", "preferred_language", "preview", "say"]

LANGUAGES = {"en": "English", "ko": "한국어"}


@cache
def _texts() -> dict[str, dict[str, str]]:
    return tomllib.loads((Path(__file__).parent / "texts.toml").read_text(encoding="utf-8"))


def say(language: str, key: str, **values: object) -> str:
    """A text of texts.toml, its gaps filled."""
    return _texts()[key][language].format(**values)


def preferred_language(accept: str | None) -> str:
    """The first of a browser's ``Accept-Language`` that the page has; English otherwise."""
    for choice in (accept or "").split(","):
        language = choice.split(";")[0].strip().lower().split("-")[0]
        if language in LANGUAGES:
            return language
    return "en"


def notice(error: PageError | None, language: str) -> str:
    """What went wrong, in a place that screen readers read out when it changes; empty if nothing did."""
    if error is None:
        return ""
    detail = f"<small lang='en'>{escape(error.detail)}</small>" if error.detail else ""
    return f"<div class='notice' role='alert'>{escape(say(language, error.key, **error.values))}{detail}</div>"


def card(checkpoint: Checkpoint, answer: Answer, language: str) -> str:
    """What a variant is, how good, under which licence, and how long it took."""

    def words(key: str, **values: object) -> str:
        return escape(say(language, key, **values))

    published, license_ = checkpoint.published, checkpoint.license
    accuracy: list[str] = []
    if published.top1 is not None:
        accuracy.append(words("accuracy_value", top1=published.top1, top5=published.top5, dataset=published.dataset))
    if measured := checkpoint.measured_on(published.dataset):
        accuracy.append(words("measured_value", top1=f"{measured.top1:.2f}", top5=f"{measured.top5:.2f}"))
    terms = words("license_none")
    if license_ is not None:
        terms = (
            f"<a href='{escape(license_.url)}' target='_blank' rel='noopener noreferrer'>{escape(license_.name)}</a>"
        )
        if not license_.commercial_use:
            terms += f" <strong>({words('non_commercial')})</strong>"
    pixels = checkpoint.preprocessing.crop_size
    milliseconds = {
        "network": f"{1000 * answer.network_seconds:.0f}",
        "prepare": f"{1000 * answer.prepare_seconds:.0f}",
    }
    rows = {
        "latency": words("latency_value", engine=answer.engine, **milliseconds),
        **({"accuracy": "<br>".join(accuracy)} if accuracy else {}),
        "license": terms,
        "size": words("size_value", params=f"{checkpoint.params / 1e6:.1f}", gmacs=checkpoint.gmacs, pixels=pixels),
        "trained": escape(checkpoint.system.training_data),
    }
    if checkpoint.known_issues:
        rows["known_issues"] = "<br>".join(map(escape, checkpoint.known_issues))
    return f"<dl class='card'>{''.join(f'<dt>{words(key)}</dt><dd>{value}</dd>' for key, value in rows.items())}</dl>"


def figure(variant: str, found: Explanation, jpeg: bytes, language: str) -> str:
    """The overlay, with what it shows in words."""
    label = found.label.split(",")[0] or str(found.index)
    key = "overlay" if found.heat.any() else "overlay_none"
    caption = say(language, key, label=label, probability=f"{found.probability:.1%}")
    alt = say(language, "overlay_alt", variant=variant, label=label)
    return (
        f"<figure class='overlay'><img alt='{escape(alt)}' src='{_data_url('image/jpeg', jpeg)}'>"
        f"<figcaption aria-live='polite'>{escape(caption)}</figcaption></figure>"
    )


def preview(rows: Sequence[Row], count: int, language: str) -> str:
    """The first ``count`` rows of a table."""
    heads = [say(language, f"column_{name}") for name in ("image", "label", "probability", "error")]
    body = ""
    for row in rows[:count]:
        best = row.predictions[0] if row.predictions else None
        cells = (row.image, best.label if best else "", f"{best.probability:.1%}" if best else "", row.error)
        body += f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in heads)
    caption = escape(say(language, "table", count=min(count, len(rows))))
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{caption}'><table><caption>{caption}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def download_link(csv: bytes, rows: Sequence[Row], language: str) -> str:
    """How many files were classified, and the table to save: no file on the server, so none to delete."""
    done = say(language, "done", photos=sum(not row.error for row in rows), count=len(rows))
    return (
        f"<p role='status'>{escape(done)} <a class='save' download='predictions.csv' "
        f"href='{_data_url('text/csv;charset=utf-8', csv)}'>{escape(say(language, 'download'))}</a></p>"
    )


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
