"""The HTML of the page, in a visitor's language. Does not import Gradio; text from outside is escaped.

Pictures and tables are data: URLs, so that no answer is ever a file on the server.
"""

from __future__ import annotations

import base64
import tomllib
from collections.abc import Callable, Sequence
from functools import cache, partial
from html import escape
from pathlib import Path

from ..models.manifest import Checkpoint
from .logic import Answer, Models, PageError, Row, as_csv, as_json, key_of, short_names
from .session import Session

LANGUAGES = {"en": "English", "ko": "한국어"}
HERE = Path(__file__).parent
EXAMPLES = {"coffee": HERE / "coffee.jpg", **{name: HERE / f"examples/{name}.jpg" for name in ("cat", "officer")}}
PREVIEW_ROWS = 20
UNSURE = 0.5  # below this probability, a calibrated network is wrong more often than right
ICONS = {
    "remove": "M6 6l12 12M18 6L6 18",
    "camera": "M4 8h4l2-3h4l2 3h4v11H4z M12 10.5a3 3 0 1 0 0 6 3 3 0 0 0 0-6",
    "photo": "M4 5h16v14H4z M4 16l5-5 4 4 3-3 4 4",
}

Say = Callable[..., str]


@cache
def _texts() -> dict[str, dict[str, str]]:
    return tomllib.loads((HERE / "texts.toml").read_text(encoding="utf-8"))


def say(language: str, key: str, **values: object) -> str:
    """A text of texts.toml with its placeholders filled in."""
    return _texts()[key][language].format(**values)


def _escaped(language: str, key: str, **values: object) -> str:
    return escape(say(language, key, **values))


def preferred_language(accept: str | None) -> str:
    """The first of a browser's ``Accept-Language`` that the page has; English otherwise."""
    for choice in (accept or "").split(","):
        language = choice.split(";")[0].strip().lower().split("-")[0]
        if language in LANGUAGES:
            return language
    return "en"


def notices(errors: Sequence[PageError], language: str) -> str:
    """The error messages, each once, in an element that screen readers announce; "" if there are none."""

    def one(error: PageError) -> str:
        detail = f"<small lang='en'>{escape(error.detail)}</small>" if error.detail and language == "en" else ""
        return f"<p>{_escaped(language, error.key, **error.values)}{detail}</p>"

    lines = dict.fromkeys(map(one, errors))
    return f"<div class='notice' role='alert'>{''.join(lines)}</div>" if lines else ""


def busy(language: str, key: str, **values: object) -> str:
    """The text that tells what the visitor is waiting for."""
    return f"<p class='busy' role='status'>{_escaped(language, key, **values)}</p>"


def photo_zone(session: Session, language: str) -> str:
    """The place for a photo: what to do, or the photo; the examples; the camera's window."""
    words = partial(_escaped, language)
    if session.preview:
        inside = (
            f"<img class='shown' alt='{words('photo_alt')}' src='{_data_url('image/jpeg', session.preview)}'>"
            f"<button type='button' class='icon remove' data-act='clear' aria-label='{words('remove')}' "
            f"title='{words('remove')}'>{_icon('remove')}</button>"
        )
    else:
        inside = f"<p class='drop'>{_icon('photo')}<span>{words('photo_placeholder')}</span></p>"
    examples = "".join(
        f"<li><button type='button' data-example='{name}' "
        f"aria-label='{words('example', name=say(language, f'example_{name}'))}'>"
        f"<img alt='' src='{_data_url('image/jpeg', path.read_bytes())}'></button></li>"
        for name, path in EXAMPLES.items()
    )
    return (
        f"<div class='zone{' full' if session.preview else ''}' data-failed='{words('error_upload')}'>{inside}</div>"
        f"<div class='sources'>"
        f"<label class='button'>{words('choose')}<input type='file' class='hidden' accept='image/*' "
        f"aria-label='{words('choose')}'></label>"
        f"<button type='button' data-act='camera'>{_icon('camera')}{words('camera')}</button></div>"
        f"<div class='examples'><span id='examples-label'>{words('examples')}</span>"
        f"<ul aria-labelledby='examples-label'>{examples}</ul></div>"
        f"<dialog class='camera' aria-label='{words('camera')}'><video autoplay playsinline muted></video>"
        f"<p class='failed' role='alert' hidden>{words('error_camera')}</p><div>"
        f"<button type='button' class='primary' data-act='capture'>{words('capture')}</button>"
        f"<button type='button' data-act='close'>{words('close')}</button></div></dialog>"
    )


def choices(models: Models, language: str) -> list[tuple[str, str]]:
    """(what is shown, name) of each variant, family by family, with what decides a choice."""

    def line(checkpoint: Checkpoint) -> str:
        top1 = checkpoint.published.top1
        facts = [f"{top1:.1f} %"] * (top1 is not None) + [size_of(checkpoint)]
        if checkpoint.license is not None and not checkpoint.license.commercial_use:
            facts.append(say(language, "non_commercial"))
        if models.is_here(checkpoint.name):
            facts.append(say(language, "here"))
        return f"{checkpoint.name} · {' · '.join(facts)}"

    return [(line(checkpoint), checkpoint.name) for family in _families(models).values() for checkpoint in family]


def _families(models: Models) -> dict[str, list[Checkpoint]]:
    """The variants by family, in the manifest's order, the first offered first."""
    families: dict[str, list[Checkpoint]] = {}
    for checkpoint in models.checkpoints.values():
        families.setdefault(checkpoint.system.title, []).append(checkpoint)
    return families


def size_of(checkpoint: Checkpoint) -> str:
    """The size of a variant's file, as "100 MB"."""
    size = next((source.bytes for source in checkpoint.sources if source.bytes), 4 * checkpoint.params)
    return f"{size / 1e6:.0f} MB"


def model_table(models: Models, language: str) -> str:
    """The variants by family: accuracy, size of the download, licence, and a link to the family's page."""
    words = partial(_escaped, language)
    heads = "".join(f"<th scope='col'>{words(key)}</th>" for key in ("variant", "accuracy", "file", "license", "here"))
    body = ""
    for title, family in _families(models).items():
        name = escape(title)
        if family[0].system.repository is not None:
            name = f"<a href='{escape(family[0].system.repository)}' {_OUT}>{name}</a>"
        body += f"<tr><th scope='rowgroup' colspan='5'>{name}</th></tr>"
        for checkpoint in family:
            published = checkpoint.published
            claim = words("accuracy_short", top1=published.top1, dataset=published.dataset)
            accuracy = "–" if published.top1 is None else claim
            here = "✓" if models.is_here(checkpoint.name) else "–"
            cells = (escape(checkpoint.name), accuracy, size_of(checkpoint), _terms(checkpoint, words), here)
            body += f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    return _table(words("models"), heads, body)


_OUT = "target='_blank' rel='noopener noreferrer'"


def _terms(checkpoint: Checkpoint, words: Say) -> str:
    if checkpoint.license is None:
        return words("license_none")
    terms = f"<a href='{escape(checkpoint.license.url)}' {_OUT}>{escape(checkpoint.license.name)}</a>"
    return terms if checkpoint.license.commercial_use else f"{terms} <strong>({words('non_commercial')})</strong>"


def results(session: Session, models: Models, language: str) -> str:
    """The answers side by side, each with the heat map for the chosen class, and what can be done with them."""
    if not session.answers:
        return ""
    words = partial(_escaped, language)
    columns = "".join(
        _column(session, answer, models.checkpoints[answer.variant], language) for answer in session.answers
    )
    json_url = _data_url("application/json", as_json(session.answers))
    return (
        f"<section class='answers' aria-labelledby='answers-title'><h2 id='answers-title'>{words('answers')}</h2>"
        f"<p class='hint'>{words('hint')}</p>"
        f"<p class='announced' role='status'>{escape(_summary(session, language))}</p>"
        f"<div class='columns'>{columns}</div>"
        f"<p><a class='save' download='predictions.json' href='{json_url}'>{words('json')}</a></p></section>"
    )


def _summary(session: Session, language: str) -> str:
    """The text for screen readers: each variant's best class."""

    def line(answer: Answer) -> str:
        label, share = short_names(answer.predictions)[0], f"{answer.predictions[0].probability:.0%}"
        return say(language, "summary", variant=answer.variant, label=label, share=share)

    return " ".join(map(line, session.answers))


def _column(session: Session, answer: Answer, checkpoint: Checkpoint, language: str) -> str:
    words = partial(_escaped, language)
    first = answer.predictions[0]
    chosen = session.chosen or key_of(first)
    rows = ""
    for name, p in zip(short_names(answer.predictions), answer.predictions, strict=True):
        key = key_of(p)
        rows += (
            f"<li><button type='button' data-key='{escape(key)}' aria-pressed='{str(key == chosen).lower()}'>"
            f"<span class='name'>{escape(name)}</span><span class='share'>{p.probability:.1%}</span>"
            f"<span class='bar' style='--share:{p.probability:.4f}'></span></button></li>"
        )
    notes = [words("knows", count=checkpoint.num_classes)]
    if first.probability < UNSURE:
        notes.append(f"<strong>{words('unsure')}</strong>")
    picture = session.pictures.get(answer.variant)
    figure = "<div class='heat waiting' aria-hidden='true'></div>"
    if picture is not None:
        label, share = escape(picture.label), f"{picture.probability:.1%}"
        caption = words("overlay" if picture.has_heat else "overlay_none", label=picture.label, probability=share)
        alt = words("overlay_alt", variant=answer.variant, label=picture.label)
        figure = (
            f"<figure class='heat'><div class='compare'><img alt='{words('crop_alt')}' "
            f"src='{_data_url('image/jpeg', picture.crop)}'>"
            f"<img class='over' alt='{alt}' src='{_data_url('image/jpeg', picture.overlay)}'></div>"
            f"<input type='range' min='0' max='100' value='0' aria-label='{words('slider', label=label)}'>"
            f"<p class='legend' aria-hidden='true'><span>{words('low')}</span><i></i><span>{words('high')}</span></p>"
            f"<figcaption>{caption} {words('crop')}</figcaption></figure>"
        )
    elif answer.variant in session.without:
        figure = f"<p class='heat'>{words('no_such_class')}</p>"
    return (
        f"<section class='answer' aria-label='{escape(answer.variant)}'><h3>{escape(answer.variant)}</h3>"
        f"<p class='notes'>{' · '.join(notes)}</p><ol>{rows}</ol>{figure}"
        f"{_card(checkpoint, answer, language)}</section>"
    )


def _card(checkpoint: Checkpoint, answer: Answer, language: str) -> str:
    """One variant: its description, accuracy, licence, time for this photo, and code to use it."""
    words = partial(_escaped, language)
    published = checkpoint.published
    accuracy = []
    if published.top1 is not None:  # a run with too few validation images states none
        accuracy.append(words("accuracy_value", top1=published.top1, top5=published.top5, dataset=published.dataset))
    if measured := checkpoint.measured_on(published.dataset):
        accuracy.append(words("measured_value", top1=f"{measured.top1:.2f}", top5=f"{measured.top5:.2f}"))
    network, prepare = (f"{1000 * seconds:.0f}" for seconds in (answer.network_seconds, answer.prepare_seconds))
    pixels = checkpoint.preprocessing.crop_size
    rows = {
        "latency": words("latency_value", engine=answer.engine, network=network, prepare=prepare),
        **({"accuracy": "<br>".join(accuracy)} if accuracy else {}),
        "license": _terms(checkpoint, words),
        "size": words("size_value", params=f"{checkpoint.params / 1e6:.1f}", gmacs=checkpoint.gmacs, pixels=pixels),
        "trained": escape(checkpoint.system.training_data),
    }
    if checkpoint.known_issues:
        rows["known_issues"] = "<br>".join(map(escape, checkpoint.known_issues))
    facts = "".join(f"<dt>{words(key)}</dt><dd>{value}</dd>" for key, value in rows.items())
    python = (
        "import torch\n"
        f'classifier = torch.hub.load("org/resnext-hub", "classifier", "{checkpoint.variant}", trust_repo=True)\n'
        'print(classifier("photo.jpg"))'
    )
    shell = f"resnext-hub classify photo.jpg --variant {checkpoint.variant}"
    code = "".join(
        f"<div class='code'><pre tabindex='0'>{escape(text)}</pre>"
        f"<button type='button' data-copy='{escape(text)}' data-copied='{words('copied')}'>"
        f"{words('copy')}</button></div>"
        for text in (python, shell)
    )
    return (
        f"<details><summary>{words('about')}</summary><dl class='card'>{facts}</dl></details>"
        f"<details><summary>{words('use')}</summary>{code}</details>"
    )


def batch(rows: Sequence[Row], top: int, language: str) -> str:
    """The number of classified files, the table to save (a data: URL, no file on the server), and its first rows."""
    words = partial(_escaped, language)
    done = words("done", photos=sum(not row.error for row in rows), count=len(rows))
    csv = _data_url("text/csv;charset=utf-8", as_csv(rows, top))
    columns = ["image", "label", "probability"] + ["error"] * any(row.error for row in rows)
    heads = "".join(f"<th scope='col'>{words(f'column_{name}')}</th>" for name in columns)
    body = ""
    for row in rows[:PREVIEW_ROWS]:
        best = row.predictions[0] if row.predictions else None
        name = short_names(row.predictions)[0] if best else ""
        thumbnail = f"<img alt='' src='{_data_url('image/jpeg', row.thumbnail)}'>" if row.thumbnail else ""
        cells = [f"{thumbnail}{escape(row.image)}", escape(name), f"{best.probability:.1%}" if best else ""]
        cells += [escape(row.error)] * (len(columns) - 3)
        body += f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    table = _table(words("table", count=min(PREVIEW_ROWS, len(rows))), heads, body)
    save = f"<a class='save' download='predictions.csv' href='{csv}'>{words('download')}</a>"
    return f"<p role='status'>{done} {save}</p>{table}"


def zip_line(session: Session, count: int, language: str) -> str:
    """The content of the last zip file, in one line."""
    return f"<p role='status'>{_escaped(language, 'zip_taken', name=session.zip_name, count=count)}</p>"


def _table(caption: str, heads: str, body: str) -> str:
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{caption}'><table><caption>{caption}</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _icon(name: str) -> str:
    return f"<svg viewBox='0 0 24 24' aria-hidden='true'><path d='{ICONS[name]}'/></svg>"


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
