"""The client of every request: redirects, connections, proxies, messages, and the watchdog."""

from __future__ import annotations

import contextlib
import gc
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from email.message import Message
from typing import Any

import pytest
from resnext_hub.net.client import (
    MAX_URL,
    BrokenOffError,
    GetError,
    NotPublicError,
    Policy,
    RefusedError,
    Watchdog,
    get,
    redirected,
    shown,
)

from ..support.wire import ok, pair

pytestmark = pytest.mark.usefixtures("no_proxies")

PUBLIC = "93.184.216.34"
TRUSTED = Policy("test", redirects=3, seconds=20, trusted=True)
STRANGERS = Policy("test", redirects=3, seconds=20)
EMPTY = ok(b"")


class Answer:
    def __init__(self, status: int, location: str | None) -> None:
        self.status, self.headers = status, Message()
        if location is not None:
            self.headers["Location"] = location


def leads(url: str, location: str | None, status: int = 302) -> str | None:
    answer: Any = Answer(status, location)
    return redirected(url, answer)


@pytest.mark.parametrize(
    ("url", "location", "expected"),
    [
        ("http://a.example.org/x/y?q", "z", "http://a.example.org/x/z"),
        ("http://a.example.org/x/y", "/z?a=b&c", "http://a.example.org/z?a=b&c"),
        ("https://a.example.org/", "//b.example.org/", "https://b.example.org/"),
        ("http://a.example.org/", "https://b.example.org/", "https://b.example.org/"),
        ("https://a.example.org/", "https://b.example.org/", "https://b.example.org/"),
        ("http://a.example.org/", "HTTP://B.example.org/", "http://B.example.org/"),
        ("http://a.example.org/", "/a b%20c#d", "http://a.example.org/a%20b%20c#d"),
        ("http://a.example.org/", "/ü".encode().decode("latin-1"), "http://a.example.org/%C3%BC"),
        ("http://a.example.org/", "", None),
        ("http://a.example.org/", None, None),
    ],
)
def test_where_a_redirect_leads(url: str, location: str | None, expected: str | None) -> None:
    assert leads(url, location) == expected


@pytest.mark.parametrize("status", [200, 206, 300, 304, 305, 404])
def test_what_is_no_redirect(status: int) -> None:
    assert leads("http://a.example.org/", "/x", status) is None


@pytest.mark.parametrize(
    ("url", "location", "message"),
    [
        ("http://a.example.org/", "file:///etc/passwd", r"'file:///etc/passwd'.* http or https"),
        ("https://a.example.org/", "ftp://b/", r"'ftp://b/'.* http or https"),
        ("https://a.example.org/", "http://b/", r"from https to 'http://b/'.* not encrypted"),
        ("HTTPS://a.example.org/", "http://b/", "not encrypted"),
        ("http://a.example.org/", "//[::1/", r"redirects to '//\[::1/'.* not a valid URL"),
    ],
)
def test_redirects_that_are_refused(url: str, location: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        leads(url, location)
    with pytest.raises(RefusedError) as error:
        leads(url, location + "x" * 1000)
    assert len(str(error.value)) < 400


class Wire:
    """A resolver and a connector: whom they were asked for, and the prepared answer of each connection."""

    def __init__(self, *answers: bytes, addresses: dict[str, list[str]] | None = None) -> None:
        self.answers, self.addresses = list(answers), addresses or {}
        self.looked_up: list[tuple[str, int]] = []
        self.connected: list[tuple[str, int]] = []
        self.seconds: list[float] = []
        self.ends: list[socket.socket] = []

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
        self.ends.append(theirs)
        return ours

    def get(self, url: str, policy: Policy = TRUSTED, *, required: int | None = None, **headers: str) -> int:
        with get(url, policy, headers, resolver=self.resolver, connector=self.connector) as answer:
            if required is not None:
                answer.require(required)
            return answer.status

    def sent(self) -> bytes:
        return self.ends[-1].recv(10_000)


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    for end in wire.ends:
        end.close()


def test_the_first_address_that_takes_a_connection(wire: Wire) -> None:
    wire.addresses["a.example.org"] = ["a", "b", "a", "c"]
    with pytest.raises(BrokenOffError, match=r"^a\.example\.org could .* \(a: no way to a; b: .* b; c: no way to c\)$"):
        wire.get("http://a.example.org/", Policy("test", 3, 20, allow_private=True))
    assert wire.connected == [("a", 80), ("b", 80), ("c", 80)]
    assert all(15 < seconds <= 20 for seconds in wire.seconds)
    wire.seconds.clear()
    with pytest.raises(BrokenOffError, match="could not be reached"):
        wire.get("http://b.example.org/", Policy("test", 3, 20, silence=3, trusted=True))
    assert wire.seconds == [3]


def test_no_address_is_tried_when_the_time_is_up(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([1.0, 0.0])
    monkeypatch.setattr(Watchdog, "left", lambda self: next(left, 1.0))
    wire.addresses["a.example.org"] = [PUBLIC, "93.184.216.35"]
    with pytest.raises(BrokenOffError, match=rf"{PUBLIC}: no way to {PUBLIC}; timed out\)$"):
        wire.get("http://a.example.org/")
    assert wire.connected == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://a.example.org/", "file:///etc/passwd", "http:///x"),
        # What one reader of a host makes an address of, and another does not.
        *("https://%C2%B969.254.169.254/", "https://1%C2%AD0.0.0.1/", "https://%2010.0.0.1/", "http://１０.0.0.1/"),
        *("https://a.example.org%0d%0a%20X:y/", "http://a.example.org%23.b/", "http://a,b/", "http://[::1].org/"),
        *("http://a.example.org:80a/", "http://a.example.org:123456/", "http://[::1%0a]/", "http://a:1:2/"),
    ],
)
def test_other_schemes_and_hosts_of_two_readings(url: str, wire: Wire) -> None:
    with pytest.raises(RefusedError, match="not a well-formed URL"):
        wire.get(url)
    assert (wire.looked_up, wire.connected) == ([], [])


@pytest.mark.parametrize("policy", [TRUSTED, STRANGERS])
@pytest.mark.parametrize("url", ["http://me@a.example.org/", "https://me:secret@a.example.org/", "http://@a/"])
def test_a_user_name_is_refused_and_not_repeated(url: str, policy: Policy, wire: Wire) -> None:
    with pytest.raises(RefusedError, match="user name") as error:
        wire.get(url, policy)
    assert (wire.looked_up, wire.connected) == ([], [])
    assert "secret" not in str(error.value)


def test_ports_end_at_65535(wire: Wire) -> None:
    with pytest.raises(RefusedError, match="Port out of range"):
        wire.get("http://a.example.org:65536/")


@pytest.mark.parametrize("policy", [TRUSTED, STRANGERS])
def test_a_long_url_is_refused_before_it_is_parsed(policy: Policy, wire: Wire) -> None:
    """Normalising 128 kB of combining characters takes Python 13 seconds, with its lock held."""
    start = time.process_time()
    for url in ("http://a" + "\u0300\u0316" * 64_000 + ".org/", "http://a.example.org/" + "x" * MAX_URL):
        with pytest.raises(RefusedError, match=f"{len(url):,} characters, more than the {MAX_URL:,}"):
            wire.get(url, policy)
    wire.answers = [f"HTTP/1.1 302 Found\r\nLocation: /{'x' * MAX_URL}\r\n\r\n".encode()]
    with pytest.raises(RefusedError, match=f"more than {MAX_URL:,} characters") as error:
        wire.get("http://a.example.org/", policy)
    assert len(str(error.value)) < 400
    assert time.process_time() - start < 2
    wire.answers = [EMPTY]
    assert wire.get("http://a.example.org/".ljust(MAX_URL, "x"), policy) == 200


ESCAPE = "\x1b]0;mine\x07\x1b[2J"


@pytest.mark.parametrize(
    "answer",
    [
        f"HTTP/1.1 404 {ESCAPE}\r\n\r\n",
        f"HTTP/1.1 503 {ESCAPE}\r\n\r\n",
        f"{ESCAPE}\r\n\r\n",
        f"HTTP/{ESCAPE} 200 OK\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nContent-Encoding: {ESCAPE}\r\n\r\n",
        f"HTTP/1.1 302 {ESCAPE}\r\nLocation: {ESCAPE}://\r\n\r\n",
        f"HTTP/1.1 302 {ESCAPE}\r\nLocation: gopher://{ESCAPE}\r\n\r\n",
    ],
)
def test_no_word_of_a_server_reaches_a_terminal_as_it_is(answer: str, wire: Wire) -> None:
    wire.answers = [answer.encode()]
    with pytest.raises(GetError) as error:
        wire.get("http://a.example.org/", required=200)
    assert str(error.value).isprintable()


def test_nor_does_one_of_a_proxy(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example")
    for status in (403, 502):
        wire.answers = [f"HTTP/1.1 {status} {ESCAPE}\r\n\r\n".encode()]
        with pytest.raises(GetError, match=f"{status}") as error:
            wire.get("https://a.example.org/")
        assert str(error.value).isprintable()


def test_how_a_url_is_shown() -> None:
    assert shown("http://me:p%40ss@a.example.org/x?y@z") == "http://***@a.example.org/x?y@z"
    assert shown("https://a.example.org/@me//b@c") == "https://a.example.org/@me//b@c"
    assert shown(f"http://{'p' * 300}@a.example.org/") == "http://***@a.example.org/"
    assert shown(f"http://a.example.org/{ESCAPE}").isprintable()
    assert len(shown("http://a.example.org/" + "x" * 300)) == 200


def test_who_is_connected_to(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    wire.answers = [EMPTY] * 5
    wire.get("http://A.example.org/x?y#z", X_Ours="1")
    assert wire.sent().startswith(b"GET /x?y HTTP/1.1\r\nHost: A.example.org\r\n")
    wire.get("http://[2606:2800::1]:8080/x")
    assert wire.looked_up == [("a.example.org", 80), ("2606:2800::1", 8080)]
    assert wire.connected == [(PUBLIC, 80), (PUBLIC, 8080)]
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    wire.get("http://A.example.org:81/x", X_Ours="1")
    assert wire.connected[2:] == [("proxy.example", 3128)]
    sent = wire.sent()
    assert sent.startswith(b"GET http://A.example.org:81/x HTTP/1.1\r\nHost: A.example.org:81\r\n")
    assert b"\r\nX_Ours: 1\r\n" in sent
    assert b"\r\nUser-Agent: test\r\n" in sent
    monkeypatch.setenv("no_proxy", "example.org")
    wire.get("http://a.example.org/x")
    monkeypatch.setenv("http_proxy", "socks5://proxy.example")
    wire.get("http://a.example.org/x")
    assert wire.connected[3:] == [(PUBLIC, 80)] * 2, "what is not asked for need not be right"
    with pytest.raises(RefusedError, match="http_proxy"):
        wire.get("http://a.example.com/x")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_gets_the_hosts_name_and_checks_it_itself(
    wire: Wire, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But addresses written as numbers are checked here."""
    monkeypatch.setenv(f"{scheme}_proxy", "http://proxy.example:3128")
    for url in (f"{scheme}://10.0.0.1/", f"{scheme}://[::1]/", f"{scheme}://[::ffff:10.0.0.1]:81/"):
        with pytest.raises(NotPublicError, match=" is at "):
            wire.get(url, STRANGERS)
    assert wire.connected == []
    with pytest.raises(BrokenOffError, match="no way to proxy.example"):
        wire.get(f"{scheme}://inside.example.org/", STRANGERS)
    assert (wire.looked_up, wire.connected) == ([], [("proxy.example", 3128)])


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        ("::1", "http://[::1]:8000/"),
        ("[::1]", "http://[::1]:8000/"),
        ("a.example.org:80", "http://a.example.org/"),
        ("a.example.org:443", "https://a.example.org/"),
        ("*", "https://a.example.org/"),
    ],
)
def test_who_is_asked_directly(wire: Wire, monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str) -> None:
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://proxy.example:3128")
    for value in ("other.example.org", no_proxy):
        monkeypatch.setenv("no_proxy", value)
        with pytest.raises(BrokenOffError, match="no way to"):
            wire.get(url)
    assert [name for name, _ in wire.connected] == ["proxy.example", PUBLIC]


@pytest.mark.parametrize(
    ("proxy", "peer"),
    [
        ("proxy.example", ("proxy.example", 80)),
        ("http://proxy.example/", ("proxy.example", 80)),
        ("http://me:p%40ss@proxy.example:3128/", ("proxy.example", 3128)),
        ("[2606:2800::1]:8", ("2606:2800::1", 8)),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_how_a_proxy_is_written(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, scheme: str, proxy: str, peer: tuple[str, int]
) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", proxy)
    with pytest.raises(BrokenOffError, match="no way to"):
        wire.get(f"{scheme}://a.example.org/")
    assert (wire.looked_up, wire.connected) == ([], [peer])


@pytest.mark.parametrize(
    "proxy",
    [
        *("http://", "http://:3128", "socks5://p.example", "http:/me:secret@p.example:1", "p.example:3128:me:secret"),
        *("http://me:sec：ret@ü.example", "http://p.example:1/secret", "http://p.example:123456", "p.example:"),
        "http://me:secret@p.example:65536",
    ],
)
def test_a_proxy_that_is_none(wire: Wire, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(RefusedError, match="https_proxy") as error:
        wire.get("https://a.example.org/")
    assert (wire.looked_up, wire.connected) == ([], [])
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(("status", "says"), [(403, r"\(403\)"), (407, "password")])
def test_a_proxy_that_makes_no_tunnel(wire: Wire, monkeypatch: pytest.MonkeyPatch, status: int, says: str) -> None:
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy.example:3128")
    wire.answers = [f"HTTP/1.1 {number} No\r\n\r\n".encode() for number in (status, 502)]
    with pytest.raises(RefusedError, match=rf"proxy .*{says}.* http_proxy and https_proxy") as error:
        wire.get("https://a.example.org/")
    assert "secret" not in str(error.value)
    with pytest.raises(BrokenOffError, match="proxy .*502"):
        wire.get("https://a.example.org/")


def test_what_a_connector_raises_is_not_held_by_its_own_traceback(wire: Wire) -> None:
    class OurError(Exception):
        pass

    def connector(address: tuple[str, int], seconds: float) -> socket.socket:
        raise OurError("ours")

    def ask() -> None:
        get("http://a.example.org/", TRUSTED, resolver=wire.resolver, connector=connector)

    with pytest.raises(OurError, match="^ours$"):
        ask()
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(OurError):
            ask()
        with contextlib.suppress(GetError):
            wire.get("http://a.example.org/")
        assert not [error for error in gc.get_objects() if issubclass(type(error), (OurError, GetError))]
    finally:
        gc.enable()


def test_any_status_is_an_answer_and_anything_else_is_not(wire: Wire) -> None:
    wire.answers = [b"hello\r\n\r\n", b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", EMPTY]
    with pytest.raises(BrokenOffError, match="BadStatusLine") as error:
        wire.get("http://a.example.org/")
    assert isinstance(error.value.__cause__, http.client.BadStatusLine)
    assert wire.get("http://a.example.org/") == 503
    assert wire.get("http://a.example.org/") == 200


def test_the_watchdog_shuts_down_the_connection_it_watches_last() -> None:
    first, there = pair()
    second, elsewhere = pair()
    with first, there, second, elsewhere:
        watchdog = Watchdog(60)
        assert watchdog.watch(first) is first
        watchdog.watch(second)
        watchdog.seconds = 0
        watchdog.start()
        elsewhere.settimeout(10)
        assert elsewhere.recv(1) == b"", "the end that a shutdown makes"
        assert watchdog.expired
        there.settimeout(0.05)
        with pytest.raises(TimeoutError):
            there.recv(1)
        watchdog.stop()


def test_a_connection_that_comes_too_late_is_shut_down_at_once() -> None:
    watchdog = Watchdog(0)
    end = time.monotonic() + 10
    while not watchdog.expired and time.monotonic() < end:
        time.sleep(0.01)
    ours, theirs = pair()
    with ours, theirs:
        theirs.settimeout(10)
        watchdog.watch(ours)
        assert theirs.recv(1) == b""
        watchdog.stop()


def test_a_stopped_watchdog_shuts_nothing_down_and_holds_nothing() -> None:
    ours, theirs = pair()
    watchdog = Watchdog(0.2)
    watchdog.watch(ours)
    watchdog.start()
    watchdog.stop()
    watchdog.stop()
    ours.close()
    with theirs:
        theirs.settimeout(10)
        assert theirs.recv(1) == b"", "its duplicate of the socket is closed too"
    assert not watchdog.expired
    watchdog.start()
    watchdog.look()
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    for timer in timers:
        timer.join(10)
    assert not any(timer.is_alive() for timer in timers)
    assert not watchdog.expired


def test_a_connection_that_is_gone_cannot_be_shut_down() -> None:
    with socket.socket() as sock:
        watchdog = Watchdog(60)
        watchdog.watch(sock)
        watchdog.look()
        assert watchdog.expired
        watchdog.stop()
