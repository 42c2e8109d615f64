"""A network for the tests of requests: names have the addresses given, connections their answers waiting."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from resnext_hub.net.client import Policy, get

PUBLIC = "93.184.216.34"
TRUSTED = Policy("test", redirects=3, seconds=20, trusted=True)
STRANGERS = Policy("test", redirects=3, seconds=20)


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection on loopback, of TCP as http.client wants it; no name is looked up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.socket()
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
        return ours, theirs


def ok(body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def status(number: int, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {number} No", "Content-Length: 0", *headers]).encode() + b"\r\n\r\n"


def to(location: str, number: int = 302) -> bytes:
    return status(number, f"Location: {location}")


class Wire:
    """A resolver and a connector: whom they were asked for, and the prepared answer of each connection."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.addresses: dict[str, list[str]] = {}
        self.looked_up: list[tuple[str, int]] = []
        self.connected: list[tuple[str, int]] = []
        self.seconds: list[float] = []
        self.ends: list[socket.socket] = []
        self.closing = contextlib.ExitStack()

    def resolver(self, host: str, port: int) -> list[str]:
        self.looked_up.append((host, port))
        return self.addresses.get(host, [PUBLIC])

    def connector(self, address: tuple[str, int], seconds: float) -> socket.socket:
        self.connected.append(address)
        self.seconds.append(seconds)
        if not self.answers:
            raise OSError(f"no way to {address[0]}")
        ours, theirs = pair()
        theirs.sendall(self.answers.pop(0))
        theirs.shutdown(socket.SHUT_WR)
        self.ends.append(self.closing.enter_context(theirs))
        return ours

    def get(self, url: str, policy: Policy = TRUSTED, *answers: bytes, **headers: str) -> tuple[int, bytes]:
        """Status and body."""
        self.answers += answers
        with get(url, policy, headers, resolver=self.resolver, connector=self.connector) as answer:
            return answer.status, answer.body()

    def options(self) -> dict[str, Any]:
        """What `fetch` takes."""
        return {"resolver": self.resolver, "connector": self.connector}

    def sent(self, i: int = -1) -> list[str]:
        """The lines of a request."""
        return self.ends[i].recv(65536).decode("latin-1").split("\r\n")
