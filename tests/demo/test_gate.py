"""The page's gate alone: an application behind it notes what reaches it."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from resnext_hub.demo import gate
from resnext_hub.demo.gate import Gate

MIB = 2**20


class Behind:
    """What Gradio would be: reads the body, answers 200."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


class Door:
    """A gate over a folder with one upload, and requests through it."""

    def __init__(self, folder: Path) -> None:
        self.behind, self.folder = Behind(), folder
        (folder / "a").mkdir(parents=True)
        self.photo = folder / "a" / "photo.jpg"
        self.photo.write_bytes(b"photo")
        self.cleaned: list[str] = []
        self.sent: list[dict[str, Any]] = []
        self.queue = SimpleNamespace(pending_event_ids_session={}, clean_events=self.clean)
        self.gate = Gate(
            self.behind, folder=folder, max_join=MIB, max_upload=MIB, max_uploads=4 * MIB, queue=lambda: self.queue
        )

    async def clean(self, session_hash: str) -> None:
        self.cleaned.append(session_hash)

    async def ask(
        self, method: str, path: str, parts: Iterable[bytes], length: int | None, wait: float = 0, language: bytes = b""
    ) -> int:
        """Return the status; each part takes ``wait`` seconds to come."""
        waiting, sent = iter(parts), []

        async def receive() -> dict[str, Any]:
            if wait:
                await asyncio.sleep(wait)
            part = next(waiting, None)
            return {"type": "http.request", "body": part or b"", "more_body": part is not None}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        path, _, query = path.partition("?")
        headers = [(b"accept-language", language)]
        headers += [] if length is None else [(b"content-length", str(length).encode())]
        scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": headers}
        await self.gate(scope, receive, send)
        self.sent = sent
        return sent[0]["status"]

    def __call__(self, method: str, path: str, body: bytes = b"", length: int | None = -1) -> int:
        parts = [body[at : at + 65536] for at in range(0, len(body), 65536)]
        return asyncio.run(self.ask(method, path, parts, len(body) if length == -1 else length))

    def join(self, *data: Any) -> int:
        return self("POST", "/gradio_api/queue/join", json.dumps({"data": data, "session_hash": "s"}).encode())


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path / "uploads")


REFUSED = {
    "POST": ["call/run", "call/v2/take", "run/take", "api/take", "queue/join/x"],
    "GET": ["openapi.json", "deep_link", "proxy=http://a.example/", "file=/etc/passwd", "file=http://a.example/x"],
    "PUT": ["upload"],
}


def test_what_the_page_does_not_ask_for_is_not_there(door: Door) -> None:
    asked = [(method, f"/gradio_api/{path}") for method, paths in REFUSED.items() for path in paths]
    for method, path in [*asked, ("GET", "/monitoring")]:
        assert door(method, path) == 404, path
    assert door.behind.bodies == []


def test_what_the_page_asks_for_passes(door: Door) -> None:
    for path in ("/", "/config", "/assets/a/b.js", "/gradio_api/heartbeat/abc", f"/gradio_api/file={door.photo}"):
        assert door("GET", path) == 200
    assert door("GET", "/gradio_api/upload_progress") == 200
    assert len(door.behind.bodies) == 5  # the last one is answered by the gate


ELSEWHERE = ["http://a.example/x", "https://a.example/x", "/etc/passwd", "FOLDER/../../secret", "FOLDER/a/link"]


@pytest.mark.parametrize("path", [*ELSEWHERE, "FOLDER-beside/x", "a\0b", 7, ["FOLDER"]])
@pytest.mark.parametrize("nest", [lambda file: file, lambda file: [[file]], lambda file: {"a": {"b": file}}])
def test_only_uploads_can_be_named(door: Door, path: Any, nest: Any) -> None:
    (door.folder / "a" / "link").symlink_to("/etc/passwd")
    named = path.replace("FOLDER", str(door.folder)) if isinstance(path, str) else path
    assert door.join(nest({"path": named, "meta": {"_type": "gradio.FileData"}}), "en") == 403
    assert door.behind.bodies == []
    assert door.join(nest({"path": str(door.photo)}), {"path": None, "url": "data:image/jpeg;base64,"}) == 200


def test_gradio_reads_the_body_that_was_checked(door: Door) -> None:
    both = f'"path": "http://a.example/", "path": {json.dumps(str(door.photo))}'
    hidden = f'{{"session_hash": "s", "data": [{{{both}}}]}}'
    assert door("POST", "/gradio_api/queue/join", hidden.encode()) == 200
    assert b"a.example" not in door.behind.bodies[0]


def test_bodies_have_limits(door: Door) -> None:
    join, upload = "/gradio_api/queue/join", "/gradio_api/upload"
    assert door("POST", join, b"1" * (MIB + 1)) == 413
    assert door("POST", join, b"1" * (MIB + 1), length=5) == 413  # counted, whatever is announced
    assert door("POST", join, b"[" * MIB) == 400
    assert door("POST", "/gradio_api/cancel", b"1" * 20_000) == 413
    assert door("POST", upload, b"x" * (3 * MIB)) == 413
    assert door("POST", upload, b"x" * (3 * MIB), length=10) == 413
    assert door("POST", upload, b"x", length=None) == 411
    assert door("POST", upload, b'name="files"; filename="a"') == 200
    two = b'filename="a"' + b"x" * (65536 - 16) + b'filename="b"'  # the second name lies across two parts
    assert door("POST", upload, two) == 400


def test_uploads_together_have_a_limit(door: Door) -> None:
    async def both() -> tuple[int, int]:
        wait = asyncio.Event()
        answer = door.behind.__call__

        class Slow(Behind):
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                await wait.wait()
                await answer(scope, receive, send)

        door.gate.app = Slow()
        door.gate.max_uploads = 2 * MIB
        first = asyncio.create_task(door.ask("POST", "/gradio_api/upload", [b"x"], int(1.5 * MIB)))
        await asyncio.sleep(0)
        second = await door.ask("POST", "/gradio_api/upload", [b"x"], MIB)
        wait.set()
        return await first, second

    assert asyncio.run(both()) == (200, 503)
    (door.folder / "a" / "big").write_bytes(b"x" * (2 * MIB))
    assert door("POST", "/gradio_api/upload", b"x") == 503
    (door.folder / "a" / "big").unlink()
    assert door("POST", "/gradio_api/upload", b"x") == 200


def test_a_dripping_body_is_hung_up_on(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.05)
    dripping = door.ask("POST", "/gradio_api/queue/join", itertools.repeat(b"x"), None, wait=0.02)
    assert asyncio.run(dripping) == 408


def test_one_visitor_cannot_fill_the_queue(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    door.queue.pending_event_ids_session["s"] = set(range(gate.SESSION_EVENTS))
    assert door.join("en") == 429
    door.queue.pending_event_ids_session["s"] = {1}
    monkeypatch.setattr(gate, "SILENT_SECONDS", 0.01)

    async def leave(listening: bool) -> None:
        door.gate._listening = {"s": 1} if listening else {}
        await door.ask("POST", "/gradio_api/queue/join", [b'{"session_hash": "s"}'], 21)
        await asyncio.sleep(0.05)

    asyncio.run(leave(listening=True))
    assert door.cleaned == []
    asyncio.run(leave(listening=False))
    assert door.cleaned == ["s"]


def test_a_full_queue_is_said_in_the_visitors_language(door: Door) -> None:
    async def full(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b"Queue is full."})

    door.gate.app, door.gate.full = full, lambda accept: f"full in {accept}"
    join = door.ask("POST", "/gradio_api/queue/join", [b'{"session_hash": "s"}'], 21, language=b"ko")
    assert asyncio.run(join) == 503
    assert json.loads(door.sent[1]["body"]) == {"detail": "full in ko"}
