"""A file server on loopback that misbehaves by script. Standard library only: benchmarks/faults.py runs it too."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def weights_file(size: int) -> bytes:
    """A file of torch.save of this size, with no tensors but random bytes beside them."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/extra", os.urandom(size - 236))  # the rest are headers
    return file.getvalue()


CONTENT = weights_file(400_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PAGE = b"<!DOCTYPE html><html><body>Please log in.</body></html>"


class FaultyServer(ThreadingHTTPServer):
    """Answers each GET with the next step of its script, then as ``always`` says ("good").

    A step is a word and its argument: "cut 1000" breaks off after so many bytes, "503 7" is a status and its
    Retry-After, "announce -10" a Content-Length too small, "slow 0.1" waits after every 20,000 bytes, "drip 0.1" after
    every byte of the body and "headers 0.1" of the headers; the others are read where they are carried out.
    """

    daemon_threads = True
    request_queue_size = 128
    content = CONTENT
    etag = '"one"'
    always = "good"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.script: list[str] = []
        self.seen: list[dict[str, str]] = []
        self.sent = 0  # bytes of bodies
        self.stopping = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up, and handshakes that fail, are what this is for."""


@contextlib.contextmanager
def serving() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stopping.set()
            server.shutdown()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer  # type: ignore[assignment]

    def do_GET(self) -> None:
        server = self.server
        server.seen.append({"path": self.path, **dict(self.headers)})
        step, _, argument = (server.script.pop(0) if server.script else server.always).partition(" ")
        self.close_connection = True
        if step == "continue":  # for ever
            return self._write(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000, 25, float(argument))
        if step == "headers":
            return self._write(b"HTTP/1.1 200 OK\r\n" + b"X-Wait: 1\r\n" * 10_000, 1, float(argument))
        if step == "redirect":
            return self._empty(302, Location=argument.replace(" ", "%20"))
        if step == "loop":
            return self._empty(302, Location=f"{self.path}?again")
        if step.isdigit():
            return self._empty(int(step), **({"Retry-After": argument} if argument else {}))
        self._send_file(step, argument)
        return None

    def do_HEAD(self) -> None:
        """As huggingface.co does, whose client asks for these first."""
        self._empty(200, length=len(self.server.content), ETag=self.server.etag, **{"X-Repo-Commit": "0" * 40})

    def do_CONNECT(self) -> None:
        self.server.seen.append({"path": self.path, **dict(self.headers)})
        self._empty(407, **{"Proxy-Authenticate": "Basic"})

    def _empty(self, status: int, *, length: int = 0, **headers: str) -> None:
        self.close_connection = True
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send_file(self, step: str, argument: str) -> None:
        server = self.server
        content, etag = server.content, server.etag
        if step == "wrong":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if step in ("otherfile", "patched"):  # a part of another file, whatever If-Range says
            content, etag = content[::-1], '"other"' if step == "otherfile" else etag
        start = 0
        asked = self.headers.get("Range")
        if asked and step != "whole" and (self.headers.get("If-Range", etag) == etag or step == "otherfile"):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self._empty(416, **{"Content-Range": f"bytes */{len(content)}"})
        body, kind = content[start:], "application/octet-stream"
        if step == "html":
            body, kind = PAGE, "text/html; charset=utf-8"
        if step == "page":  # under a wrong flag
            body = PAGE
        if step == "gzip":
            body = gzip.compress(body)
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", kind)
        if etag:
            self.send_header("ETag", etag)
        announced = len(body) + (int(argument) if step == "announce" else 0)
        if step not in ("chunked", "unannounced"):
            self.send_header("Content-Length", str(announced))
        if step == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        if step == "gzip":
            self.send_header("Content-Encoding", "gzip")
        if start:
            shown = 0 if step == "otherrange" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if step == "cut":
            body = body[: int(argument)]
        if step == "chunked":
            cut = int(argument or len(body))
            body = b"%x\r\n%s" % (len(body), body[:cut]) + (b"" if argument else b"\r\n0\r\n\r\n")
        seconds = float(argument) if step in ("slow", "drip") else 0.0
        self._write(body, 1 if step == "drip" else 20_000, seconds)
        return None

    def _write(self, content: bytes, size: int, seconds: float) -> None:
        for i in range(0, len(content), size):
            self.wfile.write(content[i : i + size])
            self.server.sent += len(content[i : i + size])
            if seconds and self.server.stopping.wait(seconds):
                return

    def log_message(self, format: str, *args: object) -> None:
        pass
