"""What both guarded fetchers stand on: redirects as they are handed back, connections, and the watchdog."""

from __future__ import annotations

import contextlib
import gc
import http.client
import socket
import threading
import time
from email.message import Message
from typing import Any

import pytest
from resnext_hub import exchange
from resnext_hub.exchange import Peer, ProxyError, RedirectError, Watchdog, reach, redirected

from .test_http_exchange import ok, pair

pytestmark = pytest.mark.usefixtures("no_proxies")


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
        (
            "http://a.example.org/",
            "file:///etc/passwd",
            r"'file:///etc/passwd'.* http or https",
        ),
        ("https://a.example.org/", "ftp://b/", r"'ftp://b/'.* http or https"),
        ("https://a.example.org/", "http://b/", r"from https to 'http://b/'.* not encrypted"),
        ("HTTPS://a.example.org/", "http://b/", "not encrypted"),
        ("http://a.example.org/", "//[::1/", r"redirects to '//\[::1/'.* not a valid URL"),
    ],
)
def test_redirects_that_are_refused(url: str, location: str, message: str) -> None:
    with pytest.raises(RedirectError, match=message):
        leads(url, location)
    with pytest.raises(RedirectError) as error:
        leads(url, location + "x" * 1000)
    assert len(str(error.value)) < 400


def test_the_first_address_that_takes_a_connection() -> None:
    asked: list[tuple[tuple[str, int], float]] = []
    sock = socket.socket()

    def connector(address: tuple[str, int], timeout: float) -> socket.socket:
        asked.append((address, timeout))
        if address[0] != "c":
            raise OSError(f"no way to {address[0]}")
        return sock

    times = iter([3.0, 2.0, 1.0])
    with sock:
        assert reach(["a", "b", "a", "c", "d"], 80, connector, lambda: next(times)) is sock
    assert asked == [(("a", 80), 3.0), (("b", 80), 2.0), (("c", 80), 1.0)]
    with pytest.raises(OSError, match=r"^a: no way to a; b: no way to b$"):
        reach(["a", "b"], 80, connector, lambda: 1.0)
    times = iter([1.0, 0.0])
    with pytest.raises(OSError, match=r"^a: no way to a; timed out$"):
        reach(["a", "c"], 80, connector, lambda: next(times))


def nobody(peer: Peer) -> socket.socket:
    raise AssertionError(f"connected to {peer}")


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://a.example.org/", "file:///etc/passwd", "http:///x", "http://me@a.example.org/"),
        # What one reader of a host makes an address of, and another does not.
        *("https://%C2%B969.254.169.254/", "https://1%C2%AD0.0.0.1/", "https://%2010.0.0.1/", "http://１０.0.0.1/"),
        *("https://a.example.org%0d%0a%20X:y/", "http://a.example.org%23.b/", "http://a,b/", "http://[::1].org/"),
        *("http://a.example.org:80a/", "http://a.example.org:123456/", "http://[::1%0a]/", "http://a:1:2/"),
    ],
)
def test_other_schemes_user_names_and_hosts_of_two_readings(url: str) -> None:
    with pytest.raises(ValueError, match="http or https, no user name, and a host in ASCII"):
        exchange.get(url, {}, nobody)


def test_ports_end_at_65535() -> None:
    with pytest.raises(ValueError, match="Port out of range"):
        exchange.get("http://a.example.org:65536/", {}, nobody)


def asked(url: str, answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") -> tuple[Peer, bytes, int]:
    """Whom a GET connects to, what it sends, and the status."""
    peers: list[Peer] = []
    ours, theirs = pair()
    with ours, theirs:
        theirs.sendall(answer)

        def connection(peer: Peer) -> socket.socket:
            peers.append(peer)
            return ours

        with exchange.get(url, {"X-Ours": "1"}, connection) as response:
            status = response.status
        return peers[0], theirs.recv(10_000), status


def test_who_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked("http://A.example.org/x")[0] == Peer("A.example.org", 80, None)
    assert asked("http://[2606:2800::1]:8080/x")[0] == Peer("2606:2800::1", 8080, None)
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    peer, sent, _ = asked("http://A.example.org:81/x")
    assert peer == Peer("proxy.example", 3128, "a.example.org")
    assert sent.startswith(b"GET http://A.example.org:81/x HTTP/1.1\r\n")
    assert b"\r\nX-Ours: 1\r\n" in sent
    assert asked("http://[2606:2800::1]:81/x")[0] == Peer("proxy.example", 3128, "2606:2800::1")
    monkeypatch.setenv("no_proxy", "example.org")
    assert asked("http://a.example.org/x")[0] == Peer("a.example.org", 80, None)
    monkeypatch.setenv("http_proxy", "socks5://proxy.example")
    assert asked("http://a.example.org/x")[0].origin is None, "what is not asked for need not be right"
    with pytest.raises(ProxyError, match="http_proxy"):
        asked("http://a.example.com/x")


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
def test_who_is_asked_directly(monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str) -> None:
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://proxy.example:3128")
    met: list[Peer] = []

    def connection(peer: Peer) -> socket.socket:
        met.append(peer)
        raise OSError("not connected: this is a test")

    for value in ("other.example.org", no_proxy):
        monkeypatch.setenv("no_proxy", value)
        with pytest.raises(OSError, match="this is a test"):
            exchange.get(url, {}, connection)
    assert [peer.origin is None for peer in met] == [False, True]


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
    monkeypatch: pytest.MonkeyPatch, scheme: str, proxy: str, peer: tuple[str, int]
) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", proxy)
    met: list[Peer] = []

    def connection(peer: Peer) -> socket.socket:
        met.append(peer)
        raise OSError("not connected: this is a test")

    with pytest.raises(OSError, match="this is a test"):
        exchange.get(f"{scheme}://a.example.org/", {}, connection)
    assert met == [Peer(*peer, "a.example.org")]


@pytest.mark.parametrize(
    "proxy",
    [
        *("http://", "http://:3128", "socks5://p.example", "http:/me:secret@p.example:1", "p.example:3128:me:secret"),
        *("http://me:sec：ret@ü.example", "http://p.example:1/secret", "http://p.example:123456", "p.example:"),
    ],
)
def test_a_proxy_that_is_none(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(ProxyError, match="https_proxy"):
        exchange.get("https://a.example.org/", {}, nobody)


@pytest.mark.parametrize(("status", "says"), [(403, r"\(403\)"), (407, "password")])
def test_a_proxy_that_makes_no_tunnel(monkeypatch: pytest.MonkeyPatch, status: int, says: str) -> None:
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy.example:3128")
    with pytest.raises(ProxyError, match=rf"proxy .*{says}.* http_proxy and https_proxy") as error:
        asked("https://a.example.org/", f"HTTP/1.1 {status} No\r\n\r\n".encode())
    assert "secret" not in str(error.value)
    with pytest.raises(OSError, match="Tunnel connection failed: 502") as other:
        asked("https://a.example.org/", b"HTTP/1.1 502 No\r\n\r\n")
    assert type(other.value) is OSError


def test_what_goes_wrong_comes_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class OurError(OSError):
        pass

    def connection(peer: Peer) -> socket.socket:
        raise OurError("ours")

    with pytest.raises(OurError, match="^ours$"):
        exchange.get("http://a.example.org/", {}, connection)
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(OurError):
            exchange.get("http://a.example.org/", {}, connection)
        assert not [error for error in gc.get_objects() if type(error) is OurError], "held by its own traceback"
    finally:
        gc.enable()
    with pytest.raises(http.client.BadStatusLine):
        asked("http://a.example.org/", b"hello\r\n\r\n")
    assert asked("http://a.example.org/", b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")[2] == 503
    assert asked("http://a.example.org/", ok(b""))[2] == 200


def test_the_watchdog_bites_the_connection_it_watches_last() -> None:
    first, there = pair()
    second, elsewhere = pair()
    with first, there, second, elsewhere:
        watchdog = Watchdog(60)
        assert watchdog.watch(first) is first
        watchdog.watch(second)
        watchdog.start(0)
        elsewhere.settimeout(10)
        assert elsewhere.recv(1) == b"", "the end that a shutdown makes"
        assert watchdog.bit
        there.settimeout(0.05)
        with pytest.raises(TimeoutError):
            there.recv(1)
        watchdog.stop()


def test_a_connection_that_comes_too_late_is_bitten_at_once() -> None:
    watchdog = Watchdog(0)
    end = time.monotonic() + 10
    while not watchdog.bit and time.monotonic() < end:
        time.sleep(0.01)
    ours, theirs = pair()
    with ours, theirs:
        theirs.settimeout(10)
        watchdog.watch(ours)
        assert theirs.recv(1) == b""
        watchdog.stop()


def test_a_stopped_watchdog_bites_nobody_and_holds_nothing() -> None:
    ours, theirs = pair()
    watchdog = Watchdog(0.2)
    watchdog.watch(ours)
    watchdog.start(0.2)
    watchdog.stop()
    watchdog.stop()
    ours.close()
    with theirs:
        theirs.settimeout(10)
        assert theirs.recv(1) == b"", "its duplicate of the socket is closed too"
    assert not watchdog.bit
    watchdog.start(0)
    watchdog.look()
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    for timer in timers:
        timer.join(10)
    assert not any(timer.is_alive() for timer in timers)
    assert not watchdog.bit


def test_a_connection_that_is_gone_cannot_be_bitten() -> None:
    with socket.socket() as sock:
        watchdog = Watchdog(60)
        watchdog.watch(sock)
        watchdog.look()
        assert watchdog.bit
        watchdog.stop()
