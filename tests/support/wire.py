"""What the tests of requests share: a connection, and an answer as it is sent."""

from __future__ import annotations

import socket


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection on loopback, of TCP as http.client wants it; no name is looked up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.socket()
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
        return ours, theirs


def ok(body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
