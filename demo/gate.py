"""Answer only the requests that the page itself makes, of bounded size, and naming only files uploaded here.

Gradio answers far more than a page needs: it executes functions under ``/call`` and ``/run``, describes itself in
``openapi.json``, stores states for ``deep_link``, and downloads any URL that a visitor writes where a file is expected
(``{"path": "http://…", "meta": {"_type": "gradio.FileData"}}``), for however long and however much. Here a request is
answered only if it is on the list, and each body is measured while it is read.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

MIB = 2**20
API = "/gradio_api"
ROUTES = {
    "GET": re.compile(
        rf"/|/config|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(assets|static|svelte)/.*|"
        rf"{API}/(info|app_id|startup-events|theme\.css|upload_progress|queue/data|heartbeat/[\w-]+|file=.*)"
    ),
    "POST": re.compile(rf"{API}/(upload|queue/join|cancel|reset)"),
}
ROUTES["HEAD"] = ROUTES["GET"]

SMALL_BODY = 16 * 1024  # for cancel and reset
SESSION_EVENTS = 8  # that one visitor may have waiting or running
SILENT_SECONDS = 15.0  # after which the events of a visitor who does not listen for answers are dropped
BODY_SECONDS, BODY_RATE = 60.0, 64 * 1024  # time limit of a body: seconds, plus one per this many bytes

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class RefusedError(Exception):
    """The status and the text of an answer that refuses a request."""


class Gate:
    """ASGI middleware that passes on the requests of the page's own scripts, and refuses all others.

    Args:
        folder: where uploads lie; a request may name files below it and no others.
        max_join: bytes of a call's JSON body, which holds a photo only as a ``data:`` URL in the address box.
        max_upload: bytes of an upload's body: one file.
        max_uploads: bytes of all uploads under way together with what lies in ``folder``.
        queue: returns Gradio's queue, for the limits per visitor.
        full: returns the message for a full queue in the language of an ``Accept-Language`` header.
    """

    def __init__(
        self,
        app: Any,
        *,
        folder: Path,
        max_join: int,
        max_upload: int,
        max_uploads: int,
        queue: Callable[[], Any] = lambda: None,
        full: Callable[[str], str] = lambda accept: "The queue is full.",
    ) -> None:
        self.app, self.folder, self.queue, self.full = app, folder.resolve(), queue, full
        self.max_join, self.max_upload, self.max_uploads = max_join, max_upload + MIB, max_uploads
        self._announced = 0  # bytes of the uploads under way
        self._listening: dict[str, int] = {}  # session: open answer streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await (_refuse(send, 404, "Not found") if scope["type"] == "websocket" else self.app(scope, receive, send))
            return
        try:
            await self._answer(scope, receive, send)
        except RefusedError as error:
            await _refuse(send, *error.args)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        routes = ROUTES.get(method)
        if routes is None or not routes.fullmatch(path):
            raise RefusedError(404, "Not found")
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if path == f"{API}/upload":
            await self._upload(scope, receive, send)
        elif method == "POST":
            await self._call(scope, receive, send)
        elif path.startswith(f"{API}/file=") and not self._uploaded(path.removeprefix(f"{API}/file=")):
            raise RefusedError(404, "Not found")
        elif path == f"{API}/upload_progress" and not query.get("upload_id"):
            # An upload from the camera or the clipboard has no name. Gradio's script asks after it all the same: the
            # answer would be 404, after three seconds, as an error in the console.
            await _answer(send, 200, b'data: {"msg": "done"}\n\n', b"text/event-stream")
        elif path == f"{API}/queue/data":
            session = query.get("session_hash", [""])[0]
            self._listening[session] = self._listening.get(session, 0) + 1
            try:
                await self.app(scope, receive, send)
            finally:
                self._listening[session] -= 1
                if not self._listening[session]:
                    del self._listening[session]
        else:
            await self.app(scope, receive, send)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A JSON body, read completely and parsed here, so that Gradio gets exactly the checked body."""
        join = scope["path"].endswith("/join")
        body = b"".join([part async for part in _body(scope, receive, self.max_join if join else SMALL_BODY)])
        try:
            value = json.loads(body) if body else {}
        except (ValueError, RecursionError):
            raise RefusedError(400, "Not JSON") from None
        if any(not isinstance(path, str) or not self._uploaded(path) for path in _paths(value)):
            raise RefusedError(403, "Only files that were uploaded to this page can be used")
        session = str(value.get("session_hash")) if isinstance(value, dict) else ""
        queue = self.queue()
        if join and queue is not None:
            if len(queue.pending_event_ids_session.get(session, ())) >= SESSION_EVENTS:
                raise RefusedError(429, "Too many requests of one visitor are waiting")
            asyncio.get_running_loop().call_later(SILENT_SECONDS, self._drop_if_silent, queue, session)
        language = dict(scope["headers"]).get(b"accept-language", b"").decode("latin-1")

        async def in_language(message: dict[str, Any]) -> None:
            nonlocal full
            if message.get("status") == 503:  # Gradio's own text is English
                full = True
                detail = json.dumps({"detail": self.full(language)}, ensure_ascii=False).encode()
                await _answer(send, 503, detail, b"application/json")
            elif not full:
                await send(message)

        full, checked = False, json.dumps(value).encode()
        about = {b"content-length": str(len(checked)).encode(), b"content-type": b"application/json"}
        kept = [(k, v) for k, v in scope["headers"] if k not in (*about, b"transfer-encoding")]
        await self.app(scope | {"headers": [*kept, *about.items()]}, _replay(checked, receive), in_language)

    def _drop_if_silent(self, queue: Any, session: str) -> None:
        if session not in self._listening and queue.pending_event_ids_session.get(session):
            self._cleaning = asyncio.ensure_future(queue.clean_events(session_hash=session))

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One file, of an announced length for which there is room until it has arrived."""
        announced = _length(scope)
        if announced is None:
            raise RefusedError(411, "The length of an upload must be announced")
        if announced > self.max_upload:
            raise RefusedError(413, "The file is too big")
        if self._announced + announced + _size(self.folder) > self.max_uploads:
            raise RefusedError(503, "Too many uploads at the moment")
        self._announced += announced
        try:
            await self._one_file(scope, receive, send)
        finally:
            self._announced -= announced

    async def _one_file(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts, tail, files = _body(scope, receive, self.max_upload), b"", 0

        async def counted() -> dict[str, Any]:
            nonlocal tail, files
            try:
                part = await anext(parts)
            except StopAsyncIteration:
                return {"type": "http.request", "body": b"", "more_body": False}
            # A name may be split between two parts.
            files += (tail + part).count(b"filename=")
            tail = part[-8:]
            if files > 1:
                raise RefusedError(400, "One file per upload")
            return {"type": "http.request", "body": part, "more_body": True}

        await self.app(scope, counted, send)

    def _uploaded(self, name: str) -> bool:
        """True for a path of an upload. `resolve` follows links and "..", so what is compared is what would be read."""
        try:
            return "\0" not in name and Path(name).resolve().is_relative_to(self.folder)
        except (OSError, RuntimeError, ValueError):
            return False


def _paths(value: Any) -> Iterator[Any]:
    """Each "path" in a JSON value, at any depth, without recursion; null is none."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if item.get("path") is not None:
                yield item["path"]
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _length(scope: Scope) -> int | None:
    """The announced length of a body; None if it is not announced."""
    value = dict(scope["headers"]).get(b"content-length", b"")
    return int(value) if value.isdigit() else None


async def _body(scope: Scope, receive: Receive, limit: int) -> AsyncIterator[bytes]:
    """The parts of a body, as they arrive. A body that is longer than the limit or arrives too slowly is refused."""
    if (_length(scope) or 0) > limit:
        raise RefusedError(413, "The request is too big")
    start, read, more = time.monotonic(), 0, True
    while more:
        left = start + BODY_SECONDS + read / BODY_RATE - time.monotonic()
        try:
            message = await asyncio.wait_for(receive(), max(left, 0))
        except TimeoutError:
            raise RefusedError(408, "The request took too long to arrive") from None
        if message["type"] == "http.disconnect":
            raise RefusedError(400, "The request ended early")
        read += len(message.get("body", b""))
        if read > limit:
            raise RefusedError(413, "The request is too big")
        more = message.get("more_body", False)
        yield message.get("body", b"")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A body that was read before, then what else arrives: that the visitor has left."""
    given = False

    async def replay() -> dict[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    total, stack = 0, [str(folder)]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:  # another thread is removing it
            continue
    return total


async def _refuse(send: Send, status: int, text: str) -> None:
    await _answer(send, status, text.encode(), b"text/plain; charset=utf-8", close=True)


async def _answer(send: Send, status: int, body: bytes, kind: bytes, close: bool = False) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    if close:  # what is left of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
