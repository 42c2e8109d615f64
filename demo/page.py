"""The page, in Gradio: components, events, and no more; what happens is in logic.py, what is shown in views.py.

What Gradio does by itself and must not do here: it writes uploads to files and keeps them (uploads.py), keeps what was
shown to every visitor in memory (forget), sends usage data (silence), keeps past runs in the browser
(run_history), offers every event as a public API, and would fetch fonts and Swagger's scripts from elsewhere.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from ..telemetry import silence
from .gate import Gate
from .logic import (
    MIB,
    Limits,
    Models,
    PageError,
    as_csv,
    batch_rows,
    classify,
    fetch_photo,
    open_zip,
    overlay,
    read_photo,
    short_names,
)
from .uploads import Uploads
from .views import LANGUAGES, card, download_link, figure, notice, preferred_language, preview, say

if sys.modules.get("gradio") is not None:
    raise ImportError(
        "Import resnext_hub.demo.page before gradio, which chooses its upload folder when it is imported."
    )

UPLOADS = Uploads()
os.environ["GRADIO_TEMP_DIR"] = str(UPLOADS.folder)
silence("gradio")

import gradio as gr  # noqa: E402  # pyright: ignore[reportMissingImports]
from gradio import component_meta  # noqa: E402  # pyright: ignore[reportMissingImports]
from gradio.data_classes import ImageData  # noqa: E402  # pyright: ignore[reportMissingImports]
from starlette.middleware import Middleware  # noqa: E402  # pyright: ignore[reportMissingImports]

__all__ = ["build", "forget", "launch", "serve"]

log = logging.getLogger("resnext_hub")

KEPT_SECONDS = 600  # what is in memory of a visitor who does nothing
SESSIONS = 32  # visitors whose photos are in memory; of more, the oldest are forgotten
WAITING = 32  # requests in the queue
PREVIEW_PIXELS = 1024
PREVIEW_ROWS = 20
SANS = ("system-ui", "-apple-system", "Segoe UI", "Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans KR", "sans-serif")


UNCHANGED = object()  # what the page has shown of a photo came back: Gradio tells twice of what the clipboard gives


# Gradio writes a .pyi file beside the source of every component class; not here.
_write_pyi, component_meta.create_or_modify_pyi = component_meta.create_or_modify_pyi, lambda *_: None


class Photo(gr.Image):
    """Gives the bytes that were uploaded: what they are, the library judges. Shows a JPEG, as a data: URL."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        if payload is None:
            return None
        if not payload.path:
            return UNCHANGED
        try:
            return Path(payload.path).read_bytes()  # Gradio has seen to it that it is an upload
        except FileNotFoundError:  # waited too long in the queue
            return None

    def postprocess(self, value: Any) -> ImageData | None:
        if value is None:
            return None
        return ImageData(url=f"data:image/jpeg;base64,{base64.b64encode(value).decode()}", mime_type="image/jpeg")


component_meta.create_or_modify_pyi = _write_pyi


def _shrunk(data: bytes, limits: Limits) -> bytes:
    """A small JPEG of a photo, upright, of whatever format it was: a browser may not show it (TIFF)."""
    photo = read_photo(data, limits)
    photo.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=85)
    return file.getvalue()


def _guarded(run: Callable[[], Any], language: str) -> tuple[Any, str]:
    """What ``run`` gives, and the notice for what went wrong instead: (result, "") or (None, notice)."""
    try:
        return run(), ""
    except PageError as error:
        return None, notice(error, language)
    except Exception:
        log.exception("demo")
        return None, notice(PageError("error_other"), language)


class _Page:
    """The components, and what their events call."""

    def __init__(self, models: Models, limits: Limits, fetch: Callable[..., bytes] | None) -> None:
        self.models, self.limits = models, limits
        self.fetch = fetch_photo if fetch is None else partial(fetch_photo, fetch=fetch)
        self._labelled: list[tuple[Any, dict[str, tuple[str, dict[str, object]]]]] = []
        self.panels: list[tuple[gr.Label, gr.HTML, gr.HTML]] = []

    # -- what it looks like

    def _labels(self, component: Any, values: dict[str, object] | None = None, **texts: str) -> Any:
        """The component, noted: which of its properties says which text."""
        self._labelled.append((component, {prop: (key, values or {}) for prop, key in texts.items()}))
        return component

    def _relabel(self, language: str) -> list[Any]:
        return [
            gr.update(**{prop: say(language, key, **values) for prop, (key, values) in texts.items()})
            for _, texts in self._labelled
        ]

    def build(self) -> gr.Blocks:
        with gr.Blocks(title="resnext-hub", analytics_enabled=False) as page:
            with gr.Row(elem_id="top"):
                self._labels(gr.Markdown(say("en", "heading"), elem_id="heading"), value="heading")
                self.language = gr.Radio(
                    [(name, key) for key, name in LANGUAGES.items()],
                    value="en",
                    label="Language · 언어",
                    scale=0,
                    min_width=270,
                    elem_id="language",
                )
            with gr.Tabs():
                with self._labels(gr.Tab(say("en", "tab_photo"), id="photo"), label="tab_photo"):
                    self._photo_tab()
                with self._labels(gr.Tab(say("en", "tab_batch"), id="batch"), label="tab_batch"):
                    self._batch_tab()
            labelled = [component for component, _ in self._labelled]
            quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 16}
            # The document says in which language it is, and that it has been greeted in it.
            marked = "l => { const html = document.documentElement; html.lang = html.dataset.language = l; return l }"
            greeted = page.load(self._greet, None, [self.language, *labelled], **quick)
            greeted.then(None, self.language, None, js=marked, api_visibility="private")
            chosen = self.language.input(self._relabel, self.language, labelled, js=marked, **quick)
            chosen.then(self.run, self._run_inputs, self._run_outputs, **self._slow)
        return page

    def _greet(self, request: gr.Request) -> list[Any]:
        language = preferred_language(request.headers.get("accept-language"))
        return [language, *self._relabel(language)]

    def _photo_tab(self) -> None:
        limits, names = self.limits, list(self.models.checkpoints)
        with gr.Row():
            with gr.Column(min_width=320):
                self.photo = self._labels(
                    Photo(
                        sources=["upload", "webcam", "clipboard"],
                        image_mode=None,
                        label=say("en", "photo"),
                        height=300,
                        buttons=[],
                        elem_id="photo",
                    ),
                    label="photo",
                    placeholder="photo_placeholder",
                )
                self.url = self._labels(
                    gr.Textbox(
                        label=say("en", "url"),
                        placeholder="https://…",
                        submit_btn=say("en", "fetch"),
                        max_lines=1,
                        max_length=limits.image_bytes,
                        elem_id="url",
                    ),
                    label="url",
                    submit_btn="fetch",
                )
            with gr.Column(min_width=320):
                self.variants = self._labels(
                    gr.Dropdown(
                        names,
                        value=names[:1],
                        multiselect=True,
                        max_choices=limits.variants,
                        label=say("en", "variants", count=limits.variants),
                        info=say("en", "variants_info"),
                        elem_id="variants",
                    ),
                    {"count": limits.variants},
                    label="variants",
                    info="variants_info",
                )
                self.top = self._labels(
                    gr.Slider(1, limits.top, value=5, step=1, label=say("en", "top"), elem_id="top"), label="top"
                )
                button = self._labels(
                    gr.Button(say("en", "classify"), variant="primary", elem_id="classify"), value="classify"
                )
        self.notice = gr.HTML(elem_id="notice", padding=False)
        self.hint = self._labels(gr.Markdown(say("en", "hint"), elem_id="hint"), value="hint")
        with gr.Row(elem_id="panels"):
            for i in range(limits.variants):
                # page.css hides an empty one: what visible=False takes out of the document may come back empty.
                with gr.Column(min_width=300, elem_id=f"panel-{i}"):
                    label = gr.Label(show_heading=False, elem_id=f"bars-{i}")
                    html = (gr.HTML(elem_id=f"{part}-{i}", padding=False) for part in ("overlay", "card"))
                    self.panels.append((label, *html))
        self.data = gr.State(None)
        self.shown = gr.State([])  # of each panel: variant, its classes

        panels = [part for panel in self.panels for part in panel]
        self._run_inputs = [self.data, self.variants, self.top, self.language]
        self._run_outputs = [self.notice, self.shown, *panels]
        self._slow: dict[str, Any] = {
            "api_visibility": "private",
            "concurrency_id": "network",
            "concurrency_limit": 2,
            "show_progress": "minimal",
            "trigger_mode": "always_last",  # what is asked while an answer is awaited is not lost, as it else would be
        }
        run = (self.run, self._run_inputs, self._run_outputs)
        taken = [self.data, self.photo, self.notice]
        at_once = self._slow | {"trigger_mode": "multiple"}  # what there is to take is what is there now
        in_turn = at_once | {"concurrency_id": "take", "concurrency_limit": 1}  # or a refusal could pass the next photo
        self.photo.input(self.take, [self.photo, self.language], taken, **in_turn).success(*run, **self._slow)
        self.url.submit(self.take_url, [self.url, self.language], taken, **at_once).success(*run, **self._slow)
        for event in (self.variants.input, self.top.release):
            event(*run, **self._slow)
        button.click(partial(self.run, asked=True), *run[1:], **self._slow)
        for i, (label, overlay_, _) in enumerate(self.panels):
            inputs = [self.data, self.shown, self.language]
            label.select(self._explainer(i), inputs, [overlay_, self.notice], **self._slow)

    def _batch_tab(self) -> None:
        limits, names = self.limits, list(self.models.checkpoints)
        size: dict[str, object] = {"count": limits.zip_members, "mib": limits.zip_bytes // MIB}
        with gr.Row():
            with gr.Column(min_width=320):
                self.zip = self._labels(
                    gr.File(
                        label=say("en", "zip", **size),
                        file_types=[".zip"],
                        type="binary",
                        height=160,
                        elem_id="zip",
                    ),
                    size,
                    label="zip",
                )
            with gr.Column(min_width=320):
                self.batch_variant = self._labels(
                    gr.Dropdown(names, value=names[0], label=say("en", "variant"), elem_id="batch-variant"),
                    label="variant",
                )
                self.batch_top = self._labels(
                    gr.Slider(1, limits.top, value=5, step=1, label=say("en", "top"), elem_id="batch-top"), label="top"
                )
                button = self._labels(
                    gr.Button(say("en", "make_table"), variant="primary", elem_id="make-table"), value="make_table"
                )
        self.batch_notice = gr.HTML(elem_id="batch-notice", padding=False)
        table = gr.HTML(elem_id="table", padding=False)
        self.zip_data = gr.State(None)
        quick: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 4, "show_progress": "hidden"}
        for event in (self.zip.upload, self.zip.clear):
            event(self.take_zip, [self.zip, self.language], [self.zip_data, self.batch_notice, table], **quick)
        button.click(
            self.make_table,
            [self.zip_data, self.batch_variant, self.batch_top, self.language],
            [self.batch_notice, table],
            api_visibility="private",
            concurrency_id="batch",
            concurrency_limit=1,
        )

    # -- what it does

    def take(self, data: Any, language: str) -> tuple[Any, Any, Any]:
        """A photo was chosen, or taken away: (kept, shown, notice)."""
        if data is UNCHANGED:
            return gr.skip(), gr.skip(), gr.skip()
        if data is None:
            return None, None, ""
        small, wrong = _guarded(lambda: _shrunk(data, self.limits), language)
        return (None, None, wrong) if wrong else (data, small, "")

    def take_url(self, url: str, language: str) -> tuple[Any, Any, str]:
        """The same of an address."""
        data, wrong = _guarded(lambda: self.fetch(url, self.limits), language)
        return (None, None, wrong) if wrong else self.take(data, language)

    def run(
        self, data: bytes | None, names: Sequence[str], top: int, language: str, asked: bool = False
    ) -> Iterator[list[Any]]:
        """Every variant's answer, as it comes; then where each sees its first class.

        Args:
            asked: say so where the photo or the model is missing.
        """
        names = names[: self.limits.variants]
        missing = "error_no_variant" if data is not None and not names else "error_no_photo" if data is None else ""
        empty = [None, "", ""]
        if missing or data is None:
            wrong = notice(PageError(missing), language) if asked or names == [] else gr.skip()
            yield [wrong, [], *(empty * len(self.panels))]
            return
        shown: list[tuple[str, list[int]]] = []
        parts, wrongs = empty * len(self.panels), ""
        for name in names:
            answer, wrong = _guarded(lambda name=name: classify(self.models, name, data, top, self.limits), language)
            wrongs += wrong
            if answer is not None:
                bars = dict(
                    zip(short_names(answer.predictions), (p.probability for p in answer.predictions), strict=True)
                )
                title = say(language, "bars", variant=name)
                facts = card(self.models.checkpoints[name], answer, language)
                at = 3 * len(shown)
                parts[at : at + 3] = [gr.update(value=bars, label=title), "", facts]
                shown.append((name, [p.index for p in answer.predictions]))
            yield [wrongs, shown, *parts]
        for i, (name, classes) in enumerate(shown):
            parts[3 * i + 1], wrong = self._figure(data, name, classes[0], language)
            wrongs += wrong
        yield [wrongs, shown, *parts]

    def _figure(self, data: bytes, name: str, index: int, language: str) -> tuple[str, str]:
        made, wrong = _guarded(
            lambda: figure(name, *overlay(self.models, name, data, index, self.limits), language), language
        )
        return made or "", wrong

    def _explainer(self, panel: int) -> Callable[..., tuple[str, str]]:
        """What a click on a class of a panel calls: where its variant sees that class."""

        def explain(
            data: bytes | None, shown: Sequence[tuple[str, list[int]]], language: str, event: gr.SelectData
        ) -> tuple[str, str]:
            if data is None or panel >= len(shown) or not 0 <= event.index < len(shown[panel][1]):
                return "", notice(PageError("error_no_photo"), language)
            name, classes = shown[panel]
            return self._figure(data, name, classes[event.index], language)

        return explain

    def take_zip(self, data: bytes | None, language: str) -> tuple[Any, str, str]:
        """A zip was chosen, or taken away."""
        if data is None:
            return None, "", ""
        members, wrong = _guarded(lambda: open_zip(data, self.limits), language)
        return (data if members else None), wrong, ""

    def make_table(
        self,
        data: bytes | None,
        name: str,
        top: int,
        language: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[str, str]:
        """The table of a zip's photos."""

        def rows() -> list[Any]:
            if data is None:
                raise PageError("error_no_zip")
            count = len(open_zip(data, self.limits))
            made = []
            for row in batch_rows(self.models, name, data, top, self.limits):
                made.append(row)
                progress((len(made), count), desc=say(language, "progress", done=len(made), count=count), unit="")
            return made

        made, wrong = _guarded(rows, language)
        if made is None:
            return wrong, ""
        return "", download_link(as_csv(made, top), made, language) + preview(made, PREVIEW_ROWS, language)


def build(models: Models, limits: Limits | None = None, fetch: Callable[..., bytes] | None = None) -> gr.Blocks:
    """The page, not yet served.

    Args:
        fetch: in the place of `processing_utils.uris.fetch`, which refuses private addresses; for tests.
    """
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
    )
    app, address, _ = page.launch(
        server_name=host,
        server_port=port or None,
        theme=_theme(),
        css_paths=Path(__file__).parent / "page.css",
        max_file_size=limits.zip_bytes,
        state_session_capacity=SESSIONS,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        share=False,
        app_kwargs={
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
            "middleware": [gate],
        },
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
    """Serve the page until the process is told to end; then remove what was uploaded."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # containers end so: as Ctrl-C, with cleaning up
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
