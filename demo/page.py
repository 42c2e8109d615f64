"""The page, in Gradio: components, events, and no more; the work is in logic.py, the HTML in views.py.

What Gradio does by itself and must not do here: it writes uploads to files and keeps them (uploads.py), answers far
more than the page asks (gate.py), keeps what was shown to every visitor in memory (forget), sends usage data (silence),
keeps past runs in the browser (run_history), and would fetch fonts and Swagger's scripts from elsewhere.

A visitor's requests overtake each other: a slow address answers after the next photo was chosen. Each begins a turn of
its kind (session.py), and an answer whose turn has passed is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..telemetry import silence
from . import logic, views
from .gate import Gate
from .logic import MIB, Limits, Models, PageError, count_of
from .session import Session
from .uploads import Uploads
from .views import LANGUAGES, preferred_language, say

if sys.modules.get("gradio") is not None:
    raise ImportError("Import resnext_hub.demo.page before gradio, which chooses its upload folder on import.")

UPLOADS = Uploads()
os.environ["GRADIO_TEMP_DIR"] = str(UPLOADS.folder)
silence("gradio")

import gradio as gr  # noqa: E402  # pyright: ignore[reportMissingImports]
from gradio import component_meta  # noqa: E402  # pyright: ignore[reportMissingImports]
from starlette.middleware import Middleware  # noqa: E402  # pyright: ignore[reportMissingImports]

log = logging.getLogger("resnext_hub")

KEPT_SECONDS = 600  # without a request, after which a visitor's data is dropped
SESSIONS = 32  # visitors whose photos are in memory; the oldest are dropped first
WAITING = 32  # requests in each queue
DOWNLOADS = 4  # weights that are downloaded or opened at the same time
HERE = Path(__file__).parent
SANS = ("system-ui", "-apple-system", "Segoe UI", "Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans KR", "sans-serif")

#: One queue for each kind of request: waiting for downloads must not block the networks.
QUICK: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 16}
TAKE = QUICK | {"concurrency_id": "take", "trigger_mode": "multiple"}
FETCH = QUICK | {"concurrency_id": "fetch", "trigger_mode": "multiple"}
WEIGHTS = QUICK | {"concurrency_id": "weights", "concurrency_limit": None, "trigger_mode": "always_last"}
CALCULATE = QUICK | {"concurrency_id": "calculate", "concurrency_limit": 2, "trigger_mode": "always_last"}
CALCULATE |= {"show_progress": "minimal"}  # the place in the queue

#: Leaves photo, notice, answers and status unchanged. (A generator that yields nothing would clear them.)
NOTHING = (gr.skip(),) * 4


def _page_error(error: Exception) -> PageError:
    if isinstance(error, PageError):
        return error
    log.error("demo", exc_info=error)
    return PageError("error_other")


# Gradio writes a .pyi file beside the source of every component class; not here.
_write_pyi, component_meta.create_or_modify_pyi = component_meta.create_or_modify_pyi, lambda *_: None


class Count(gr.Slider):
    """Takes whatever is typed beside it, nothing too: `count_of` reads it. Gradio's own ends in a traceback."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        return payload


component_meta.create_or_modify_pyi = _write_pyi


class _Page:
    """The components, and what their events call."""

    def __init__(self, models: Models, limits: Limits, fetch: Callable[..., bytes] | None) -> None:
        self.models, self.limits = models, limits
        self.fetch = logic.fetch_photo if fetch is None else partial(logic.fetch_photo, fetch=fetch)
        self._labelled: list[tuple[Any, Callable[[str], dict[str, str]]]] = []
        self._openers = ThreadPoolExecutor(DOWNLOADS, "weights")

    # The components.

    def _make(self, kind: Any, texts: dict[str, str], values: dict[str, object] | None = None, **options: Any) -> Any:
        """Make a component that changes its language.

        ``texts`` are its properties that are text, with their keys in texts.toml; ``values`` fill their placeholders;
        ``options`` are its other properties.
        """

        def in_language(language: str) -> dict[str, str]:
            return {prop: say(language, key, **(values or {})) for prop, key in texts.items()}

        component = kind(**in_language("en"), **options)
        self._labelled.append((component, in_language))
        return component

    def build(self) -> gr.Blocks:
        with gr.Blocks(title="resnext-hub", analytics_enabled=False) as page:
            self.session = gr.State(Session())
            with gr.Row(elem_id="top"):
                self._make(gr.Markdown, {"value": "heading"}, elem_id="heading")
                spoken = [(name, key) for key, name in LANGUAGES.items()]
                how: dict[str, Any] = {"scale": 0, "min_width": 270, "elem_id": "language"}
                self.language = gr.Radio(spoken, value="en", label="Language · 언어", **how)
            with gr.Tabs():
                with self._make(gr.Tab, {"label": "tab_photo"}, id="photo"):
                    self._photo_tab()
                with self._make(gr.Tab, {"label": "tab_batch"}, id="batch"):
                    self._batch_tab()
                with self._make(gr.Tab, {"label": "tab_models"}, id="models"):
                    self.table_of_models = gr.HTML(views.model_table(self.models, "en"), elem_id="models")
            self._greeting(page)
        return page

    def _greeting(self, page: gr.Blocks) -> None:
        """Follow the browser's language and the choices in the address, and what the visitor changes."""
        said = [self.variants, self.batch_variant, self.table_of_models, self.photo, self.notice, self.results]
        said += [component for component, _ in self._labelled]
        # The document's attributes state its language, and that the greeting is done.
        marked = "l => { const html = document.documentElement; html.lang = html.dataset.language = l; return l }"
        greeted = page.load(self._greet, self.session, [self.language, self.top, self.options, *said], **QUICK)
        greeted.then(None, self.language, None, js=marked, api_visibility="private")
        speak = {"js": f"(l, ...rest) => [({marked})(l), ...rest]"}
        self.language.input(self._speak, [self.language, self.session, self.variants], said, **speak, **QUICK)
        choices = [self.variants, self.top, self.language]
        linked = """(variants, top, lang) => {
            const query = new URLSearchParams({variant: variants.join(","), top, lang});
            history.replaceState(null, "", "?" + query.toString().replaceAll("%2C", ","));
        }"""
        for component in choices:
            component.input(None, choices, None, js=linked, api_visibility="private")

    def _greet(self, session: Session, request: gr.Request) -> list[Any]:
        asked = request.query_params
        language = asked.get("lang", "")
        if language not in LANGUAGES:
            language = preferred_language(request.headers.get("accept-language"))
        names = [name for name in asked.get("variant", "").split(",") if name in self.models.checkpoints]
        names = list(dict.fromkeys(names))[: self.limits.variants] or list(self.models.checkpoints)[:1]
        is_phone = "Mobi" in request.headers.get("user-agent", "")
        top = count_of(asked.get("top", ""), self.limits.top)
        return [language, top, gr.update(open=not is_phone), *self._speak(language, session, names)]

    def _speak(self, language: str, session: Session, names: Sequence[str]) -> list[Any]:
        choices = views.choices(self.models, language)
        return [
            gr.update(choices=choices, value=list(names)),
            gr.update(choices=choices),
            views.model_table(self.models, language),
            views.photo_zone(session, language),
            views.notices(session.errors, language),
            views.results(session, self.models, language),
            *(gr.update(**in_language(language)) for _, in_language in self._labelled),
        ]

    def _photo_tab(self) -> None:
        limits, names = self.limits, list(self.models.checkpoints)
        with gr.Row():
            with gr.Column(min_width=280):
                script = (HERE / "photo.js").read_text(encoding="utf-8")
                self.photo = gr.HTML(views.photo_zone(Session(), "en"), js_on_load=script, elem_id="photo")
                self.url = self._make(
                    gr.Textbox,
                    {"label": "url", "submit_btn": "fetch"},
                    placeholder="https://…",
                    max_lines=1,
                    max_length=limits.image_bytes,
                    elem_id="url",
                )
                self.notice = gr.HTML(elem_id="notice")
                self.status = gr.HTML(elem_id="status")
                cancel = self._make(gr.Button, {"value": "cancel"}, size="sm", elem_id="cancel")
            with gr.Column(min_width=280, scale=2):
                self.options = self._make(gr.Accordion, {"label": "options"}, elem_id="options")
                with self.options:
                    self.variants = self._make(
                        gr.Dropdown,
                        {"label": "variants", "info": "variants_info"},
                        {"count": limits.variants},
                        choices=views.choices(self.models, "en"),
                        value=names[:1],
                        multiselect=True,
                        max_choices=limits.variants,
                        elem_id="variants",
                    )
                    self.top = self._make_count("classes")
                self.results = gr.HTML(js_on_load=(HERE / "results.js").read_text(encoding="utf-8"), elem_id="results")
        zone = [self.photo, self.notice, self.results, self.status]
        who = [self.session, self.language]
        asked = [self.variants, self.top, *who]
        taken = [
            self.photo.upload(self.take_upload, who, zone, **TAKE),
            self.photo.select(self.take_example, who, zone, **TAKE),
            self.url.submit(self.take_url, [self.url, *who], zone, **FETCH),
        ]
        self.photo.clear(self.clear, who, zone, **TAKE)
        chosen = [event(None, None, None, api_visibility="private") for event in (self.variants.input, self.top.input)]
        calls: list[Any] = list(taken)
        for event in (*taken, *chosen):
            opened = event.success(self.open, asked, [self.notice, self.status], **WEIGHTS)
            calls += [opened, opened.success(self.run, asked, zone[1:], show_progress_on=self.status, **CALCULATE)]
        pictures = CALCULATE | {"trigger_mode": "multiple", "show_progress_on": self.status}
        self.results.select(self.choose, who, [self.notice, self.results], **pictures)
        cancel.click(self.cancel, self.session, self.status, cancels=calls, **QUICK)

    def _make_count(self, elem_id: str) -> Any:
        """The slider for the number of classes."""
        return self._make(Count, {"label": "top"}, minimum=1, maximum=self.limits.top, value=5, step=1, elem_id=elem_id)

    def _batch_tab(self) -> None:
        size: dict[str, object] = {"count": self.limits.zip_members, "mib": self.limits.zip_bytes // MIB}
        with gr.Row():
            with gr.Column(min_width=280):
                file: dict[str, Any] = {"file_types": [".zip"], "type": "filepath", "height": 160}
                self.zip = self._make(gr.File, {"label": "zip"}, size, elem_id="zip", **file)
            with gr.Column(min_width=280):
                self.batch_variant = self._make(
                    gr.Dropdown,
                    {"label": "variant"},
                    choices=views.choices(self.models, "en"),
                    value=next(iter(self.models.checkpoints)),
                    elem_id="batch-variant",
                )
                self.batch_top = self._make_count("batch-classes")
                with gr.Row():
                    make = self._make(gr.Button, {"value": "make_table"}, variant="primary", elem_id="make-table")
                    cancel = self._make(gr.Button, {"value": "cancel"}, elem_id="batch-cancel")
        self.batch_notice = gr.HTML(elem_id="batch-notice")
        status = gr.HTML(elem_id="batch-status")
        table = gr.HTML(elem_id="table")
        who = [self.session, self.language]
        shown = [self.batch_notice, status, table]
        self.zip.upload(self.take_zip, [self.zip, *who], [self.zip, *shown], **TAKE)
        one = {"concurrency_id": "batch", "concurrency_limit": 1, "trigger_mode": None, "show_progress_on": status}
        making = make.click(self.make_table, [self.batch_variant, self.batch_top, *who], shown, **(CALCULATE | one))
        cancel.click(self.cancel, self.session, status, cancels=[making], **QUICK)

    # The functions that events call.

    def _shown(self, session: Session, language: str) -> tuple[str, str, str, str]:
        """The photo, the notice, the answers and no status, as they are now."""
        return (
            views.photo_zone(session, language),
            views.notices(session.errors, language),
            views.results(session, self.models, language),
            "",
        )

    def _take(self, read: Callable[[], bytes], session: Session, language: str, turn: int) -> Any:
        """Replace the photo by what ``read`` gives. If that is refused, the photo that is shown stays."""
        try:
            data = read()
            preview = logic.shrunk(logic.read_photo(data, self.limits))
        except Exception as error:
            wrong = _page_error(error)
            if session.is_stale("photo", turn):
                return NOTHING
            session.errors = [wrong]
            return gr.skip(), views.notices([wrong], language), gr.skip(), ""
        if session.is_stale("photo", turn):
            return NOTHING
        session.take(data, preview)
        return self._shown(session, language)

    def take_upload(self, session: Session, language: str, event: gr.EventData) -> Any:
        """A photo was chosen, dropped, pasted, or taken with the camera."""
        path = getattr(event, "path", None)

        def read() -> bytes:
            if not isinstance(path, str):
                raise PageError("error_upload")
            return _read_upload(Path(path), self.limits.image_bytes)

        return self._take(read, session, language, session.turn("photo"))

    def take_example(self, session: Session, language: str, event: gr.EventData) -> Any:
        path = views.EXAMPLES.get(str(getattr(event, "name", "")))
        turn = session.turn("photo")
        return NOTHING if path is None else self._take(path.read_bytes, session, language, turn)

    def take_url(self, url: str, session: Session, language: str) -> Iterator[Any]:
        turn = session.turn("photo")
        host = urlsplit(url if "//" in url[:9] else f"//{url}").hostname if len(url) < 2000 else None
        yield gr.skip(), "", gr.skip(), views.busy(language, "fetching", host=host or "data:")
        yield self._take(lambda: self.fetch(url, self.limits), session, language, turn)

    def clear(self, session: Session, language: str) -> Any:
        session.turn("photo")
        session.turn("run")
        session.take(None, b"")
        return self._shown(session, language)

    def cancel(self, session: Session) -> str:
        """Cancel the request. A download that has started continues, for the next visitor who needs it."""
        for what in ("photo", "run", "choose", "batch"):
            session.turn(what)
        return ""

    async def open(self, names: Sequence[str], top: object, session: Session, language: str) -> AsyncIterator[Any]:
        """Download and open the weights that are not open yet, outside the queue that calculates."""
        session.errors = [error for error in session.errors if error.key != "error_weights"]
        for name in names[: self.limits.variants]:
            if session.photo is None or self.models.is_open(name) or name not in self.models.checkpoints:
                continue
            key = "opening" if self.models.is_here(name) else "downloading"
            size = views.size_of(self.models.checkpoints[name])
            yield gr.skip(), views.busy(language, key, variant=name, size=size)
            try:
                await asyncio.get_running_loop().run_in_executor(self._openers, self.models.__getitem__, name)
            except Exception as error:
                session.errors.append(_page_error(error))
        yield views.notices(session.errors, language), ""

    def run(self, names: Sequence[str], top: object, session: Session, language: str) -> Iterator[Any]:
        """Every variant's answer, as it comes; then where each sees the chosen class."""
        turn, data, names = session.turn("run"), session.photo, names[: self.limits.variants]
        refused = {error.values.get("variant") for error in session.errors if error.key == "error_weights"}
        wanted = (data, tuple(names), count_of(top, self.limits.top))
        if data is None or (session.answers and session.done == wanted):
            yield NOTHING[1:]  # a refused photo: leave the page unchanged
            return
        session.done, session.answers, session.without = wanted, [], set()
        if not names:
            session.errors = [PageError("error_no_variant")]
        for name in names:
            if name in refused:
                continue
            try:
                answer = logic.classify(self.models, name, data, top, self.limits)
            except Exception as error:
                session.errors.append(_page_error(error))
                continue
            if session.is_stale("run", turn):
                yield NOTHING[1:]
                return
            session.answers.append(answer)
            yield self._shown(session, language)[1:]
        session.pictures = {k: v for k, v in session.pictures.items() if session.chosen}
        yield from self._pictures(session, language, "run", turn)

    def _pictures(self, session: Session, language: str, what: str, turn: int) -> Iterator[Any]:
        """The heat maps of the chosen class, one after the other; of each variant's first class if none is chosen."""
        data, chosen = session.photo, session.chosen
        for answer in list(session.answers):
            if data is None or session.is_stale(what, turn):
                yield NOTHING[1:]
                return
            try:
                model = self.models[answer.variant]
                index = logic.index_of(model, chosen) if chosen else answer.predictions[0].index
                if index is None:
                    session.without.add(answer.variant)
                    continue
                found = logic.picture(self.models, answer.variant, data, index, self.limits)
            except Exception as error:
                session.errors.append(_page_error(error))
                continue
            if session.is_stale(what, turn):
                yield NOTHING[1:]
                return
            session.pictures[answer.variant] = found
            yield self._shown(session, language)[1:]
        yield self._shown(session, language)[1:]

    def choose(self, session: Session, language: str, event: gr.EventData) -> Iterator[Any]:
        """A class was clicked: show every variant's heat map of it. Of two quick clicks the second counts."""
        at = float(getattr(event, "at", 0.0))
        if at < session.clicked:  # the requests arrived in the wrong order
            yield NOTHING[:2]
            return
        turn, session.clicked = session.turn("choose"), at
        if session.photo is None or not session.answers:
            session.errors = [PageError("error_no_photo")]
            yield views.notices(session.errors, language), gr.skip()
            return
        session.chosen, session.pictures, session.without = str(getattr(event, "key", ""))[:300], {}, set()
        for shown in self._pictures(session, language, "choose", turn):
            yield shown[:2]

    def take_zip(self, path: str | None, session: Session, language: str) -> tuple[Any, str, str, str]:
        """A zip was chosen: keep it in memory, show what it holds, and empty the box for the next."""
        if path is None:
            return gr.skip(), "", "", ""
        try:
            data = _read_upload(Path(path), self.limits.zip_bytes)
            count = len(logic.open_zip(data, self.limits))
        except Exception as error:
            return None, views.notices([_page_error(error)], language), "", ""
        session.zip, session.zip_name = data, Path(path).name[:80]
        return None, "", views.zip_line(session, count, language), ""

    def make_table(self, name: str, top: object, session: Session, language: str) -> Iterator[tuple[Any, Any, Any]]:
        """The table of a zip's photos."""
        turn, data = session.turn("batch"), session.zip
        top = count_of(top, self.limits.top)
        try:
            if data is None:
                raise PageError("error_no_zip")
            count, made = len(logic.open_zip(data, self.limits)), []
            for row in logic.batch_rows(self.models, name, data, top, self.limits):
                made.append(row)
                if session.is_stale("batch", turn):
                    yield NOTHING[1:]
                    return
                if len(made) % 8 == 0:
                    yield "", views.busy(language, "progress", done=len(made), count=count), gr.skip()
            yield "", "", views.batch(made, top, language)
        except Exception as error:
            yield views.notices([_page_error(error)], language), "", ""


def _read_upload(path: Path, most: int) -> bytes:
    """An upload's bytes; its file is removed. The gate has checked that it is an upload."""
    try:
        if path.stat().st_size > most:
            raise PageError("error_big", mib=most // MIB)
        return path.read_bytes()
    except FileNotFoundError:  # waited too long in the queue
        raise PageError("error_upload") from None
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def build(models: Models, limits: Limits | None = None, fetch: Callable[..., bytes] | None = None) -> gr.Blocks:
    """The page, not yet served. ``fetch`` replaces `processing_utils.uris.fetch` in tests."""
    return _Page(models, limits or Limits(), fetch).build()


def _theme() -> gr.themes.Base:
    """Gradio's own, in fonts that the visitor has, and dark enough to be read (4.5 to 1 and more, as WCAG AA asks)."""
    theme = gr.themes.Default(primary_hue="blue", font=SANS, font_mono=SANS)
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        input_placeholder_color="*neutral_500",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
    )


def launch(page: gr.Blocks, host: str, port: int, limits: Limits | None = None, **options: Any) -> str:
    """Serve a page; return its address. Port 0 is any that is free."""
    page.queue(max_size=WAITING, api_open=False)
    limits = limits or Limits()
    gate = Middleware(
        Gate,
        folder=UPLOADS.folder,
        max_join=limits.image_bytes * 4 // 3 + MIB,  # a photo as a data: URL
        max_upload=limits.zip_bytes,
        max_uploads=UPLOADS.max_bytes,
        queue=lambda: page._queue,  # Gradio offers no other way to its queue
        full=lambda accept: say(preferred_language(accept), "queue_full"),
    )
    app, address, _ = page.launch(
        server_name=host,
        server_port=port or None,
        theme=_theme(),
        css_paths=HERE / "page.css",
        max_file_size=limits.zip_bytes,
        state_session_capacity=SESSIONS,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        share=False,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None, "middleware": [gate]},
        prevent_thread_lock=True,
        quiet=True,
        **options,
    )
    threading.Thread(target=_keep_forgetting, args=(page, app), name="forget", daemon=True).start()
    return address


def forget(app: Any, seconds: float) -> None:
    """Drop what Gradio holds of visitors who have done nothing for so long: photos, pictures, tables."""
    holder, now = app.state_holder, datetime.now()
    with holder.lock:
        for visitor, used in list(holder.time_last_used.items()):
            if (now - used).total_seconds() >= seconds:
                holder.session_data.pop(visitor, None)
                holder.time_last_used.pop(visitor, None)


def _keep_forgetting(page: gr.Blocks, app: Any) -> None:
    while page.is_running:
        forget(app, KEPT_SECONDS)
        time.sleep(5)


def serve(models: Models, host: str, port: int, open_browser: bool = False) -> None:
    """Serve the page until SIGTERM or Ctrl-C; then remove the uploads."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # how containers stop: handled like Ctrl-C
    page = build(models)
    address = launch(page, host, port, inbrowser=open_browser)
    print(f"resnext-hub demo: {address} (press Ctrl-C to stop)", flush=True)  # noqa: T201
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        page.close(verbose=False)
        UPLOADS.close()
