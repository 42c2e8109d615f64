"""The client of every request: URLs, redirects, connections, proxies, bodies, messages, and the watchdog."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import gc
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from email.message import Message
from types import SimpleNamespace
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

from ..support.wire import PUBLIC, STRANGERS, TRUSTED, Wire, ok, pair, status, to

pytestmark = pytest.mark.usefixtures("no_proxies")
A = "http://a.example.org/"
PROXY = "http://proxy.example:3128"
each_policy = pytest.mark.parametrize("policy", [TRUSTED, STRANGERS], ids=["trusted", "strangers"])
each_scheme = pytest.mark.parametrize("scheme", ["http", "https"])


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    with wire.closing:
        yield wire


# Redirects.


def leads(url: str, location: str | None, number: int = 302) -> str | None:
    answer: Any = SimpleNamespace(status=number, headers=Message())
    if location is not None:
        answer.headers["Location"] = location
    return redirected(url, answer)


@pytest.mark.parametrize(
    ("url", "location", "expected"),
    [
        ("http://a.example.org/x/y?q", "z", "http://a.example.org/x/z"),
        ("http://a.example.org/x/y", "/z?a=b&c", "http://a.example.org/z?a=b&c"),
        ("https://a.example.org/", "//b.example.org/", "https://b.example.org/"),
        (A, "https://b.example.org/", "https://b.example.org/"),
        ("https://a.example.org/", "https://b.example.org/", "https://b.example.org/"),
        (A, "HTTP://B.example.org/", "http://B.example.org/"),
        (A, "/a b%20c#d", "http://a.example.org/a%20b%20c#d"),
        (A, "/ü".encode().decode("latin-1"), "http://a.example.org/%C3%BC"),
        (A, "", None),
        (A, None, None),
    ],
)
def test_target_of_a_redirect(url: str, location: str | None, expected: str | None) -> None:
    for number in (301, 302, 303, 307, 308):
        assert leads(url, location, number) == expected
    for number in (200, 206, 300, 304, 305, 404):
        assert leads(url, location, number) is None


@pytest.mark.parametrize(
    ("url", "location", "message"),
    [
        (A, "file:///etc/passwd", "'file:///etc/passwd'"),
        ("https://a.example.org/", "ftp://b/", "'ftp://b/'"),
        ("https://a.example.org/", "http://b/", "https.*'http://b/'"),
        ("HTTPS://a.example.org/", "http://b/", "https"),
        (A, "//[::1/", r"'//\[::1/'"),
    ],
)
def test_refused_redirects(url: str, location: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        leads(url, location)
    with pytest.raises(RefusedError) as error:
        leads(url, location + "x" * 1000)
    assert len(str(error.value)) < 400


def test_redirects_up_to_the_policys_number(wire: Wire) -> None:
    steps = [to(f"/{i}") for i in range(4)]
    assert wire.get("http://a.example.org/x/y", TRUSTED, to("../z?q"), *steps[:2], ok(b"abc")) == (200, b"abc")
    assert [wire.sent(i)[0].split()[1] for i in range(4)] == ["/x/y", "/z?q", "/0", "/1"]
    with pytest.raises(RefusedError, match=r"3 .*'http://a\.example\.org/3'"):
        wire.get(A, TRUSTED, *steps)


# URLs.


@pytest.mark.parametrize(
    ("url", "target", "host", "port"),
    [
        ("http://a.example.org", "/", "a.example.org", 80),
        ("HTTP://A.example.org/x", "/x", "a.example.org", 80),
        ("http://a.example.org:8080/", "/", "a.example.org:8080", 8080),
        ("http://a.example.org:80/", "/", "a.example.org", 80),
        ("http://a.example.org?q=a b", "/?q=a%20b", "a.example.org", 80),
        ("http://a.example.org/a%20b,c(d)?e=%2F&f[]=1", "/a%20b,c(d)?e=%2F&f[]=1", "a.example.org", 80),
        ("http://bücher.example/ü?ü", "/%C3%BC?%C3%BC", "xn--bcher-kva.example", 80),
        ("http://xn--bcher-kva.example/#part", "/", "xn--bcher-kva.example", 80),
        ("http://a_b.example.org/", "/", "a_b.example.org", 80),
        ("http://example.org./", "/", "example.org.", 80),
        ("http://localhost/", "/", "localhost", 80),
        (f"http://{PUBLIC}/x", "/x", PUBLIC, 80),
        ("http://[2606:2800:220:1::1]:81/x", "/x", "[2606:2800:220:1::1]:81", 81),
        ("http://[2606:2800:220:1::1]/x", "/x", "[2606:2800:220:1::1]", 80),
    ],
)
def test_a_strangers_url_is_normalised(url: str, target: str, host: str, port: int, wire: Wire) -> None:
    wire.get(url, STRANGERS, ok())
    first, *headers = wire.sent()
    assert first == f"GET {target} HTTP/1.1"
    assert f"Host: {host}" in headers
    assert wire.connected == [(PUBLIC, port)]


def test_a_trusted_url_is_sent_as_it_is(wire: Wire) -> None:
    wire.get("http://A.example.org/x?y#z", TRUSTED, ok(), X_Ours="1")
    first, second, *headers = wire.sent()
    assert (first, second) == ("GET /x?y HTTP/1.1", "Host: A.example.org")
    assert {"User-Agent: test", "Accept-Encoding: identity", "X_Ours: 1"} <= set(headers)
    wire.get("http://[2606:2800::1]:8080/x", TRUSTED, ok())
    assert wire.looked_up == [("a.example.org", 80), ("2606:2800::1", 8080)]
    assert wire.connected == [(PUBLIC, 80), (PUBLIC, 8080)]


MALFORMED = [
    *("ftp://a.example.org/", "file:///etc/passwd", "http:///x", "http://", "http://[::1/", "http://exa mple.org/"),
    # What one reader of a host makes an address of, and another does not.
    *("https://%C2%B969.254.169.254/", "https://1%C2%AD0.0.0.1/", "https://%2010.0.0.1/", "http://a:1:2/"),
    *("https://a.example.org%0d%0a%20X:y/", "http://a.example.org%23.b/", "http://a,b/", "http://a.example.org:port/"),
    *("http://a.example.org:80a/", "http://a.example.org:123456/", "http://a.example.org:65536/"),
]
NOT_NORMALISED = ["http://１０.0.0.1/", "http://[::1].org/", "http://[::1%0a]/"]


@pytest.mark.parametrize(
    ("policy", "url"),
    [*((STRANGERS, url) for url in MALFORMED), *((TRUSTED, url) for url in MALFORMED + NOT_NORMALISED)],
)
def test_malformed_urls(url: str, policy: Policy, wire: Wire) -> None:
    with pytest.raises(RefusedError, match="URL"):
        wire.get(url, policy)
    assert (wire.looked_up, wire.connected) == ([], [])


@each_policy
@pytest.mark.parametrize("url", ["http://me@a.example.org/", "https://me:secret@a.example.org/", "http://@a/"])
def test_a_user_name_is_refused_and_not_repeated(url: str, policy: Policy, wire: Wire) -> None:
    with pytest.raises(RefusedError, match="user name") as error:
        wire.get(url, policy)
    assert (wire.looked_up, wire.connected) == ([], [])
    assert "secret" not in str(error.value)


@each_policy
def test_a_long_url_is_refused_before_it_is_parsed(policy: Policy, wire: Wire) -> None:
    """Normalising 128 kB of combining characters takes Python 13 seconds, with its lock held."""
    start = time.process_time()
    for url in ("http://a" + "\u0300\u0316" * 64_000 + ".org/", A + "x" * MAX_URL):
        with pytest.raises(RefusedError, match=f"{len(url):,} .* {MAX_URL:,}"):
            wire.get(url, policy)
    with pytest.raises(RefusedError, match=f"{MAX_URL:,}") as error:
        wire.get(A, policy, to("/" + "x" * MAX_URL))
    assert len(str(error.value)) < 400
    assert time.process_time() - start < 2
    assert wire.get(A.ljust(MAX_URL, "x"), policy, ok())[0] == 200


def test_how_a_url_is_shown() -> None:
    assert shown("http://me:p%40ss@a.example.org/x?y@z") == "http://***@a.example.org/x?y@z"
    assert shown("https://a.example.org/@me//b@c") == "https://a.example.org/@me//b@c"
    assert shown(f"http://{'p' * 300}@a.example.org/") == "http://***@a.example.org/"
    assert shown(f"http://a.example.org/{ESCAPE}").isprintable()
    assert len(shown("http://a.example.org/" + "x" * 300)) == 200


# Connections.


def test_each_address_of_a_name_is_tried_once(wire: Wire) -> None:
    wire.addresses["a.example.org"] = ["a", "b", "a", "c"]
    with pytest.raises(BrokenOffError, match=r"^a\.example\.org .* \(a: no way to a; b: .* b; c: no way to c\)$"):
        wire.get(A, Policy("test", 3, 20, allow_private=True))
    assert wire.connected == [("a", 80), ("b", 80), ("c", 80)]
    assert all(15 < seconds <= 20 for seconds in wire.seconds)
    wire.seconds.clear()
    with pytest.raises(BrokenOffError):
        wire.get("https://b.example.org/", Policy("test", 3, 20, silence=3, trusted=True))
    assert (wire.seconds, wire.looked_up[-1]) == ([3], ("b.example.org", 443))


def test_no_address_is_tried_when_the_time_is_up(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RefusedError, match="time"):
        wire.get(A, Policy("test", 3, seconds=0))
    assert wire.connected == []
    left = iter([1.0, 0.0])
    monkeypatch.setattr(Watchdog, "left", lambda self: next(left, 1.0))
    wire.addresses["a.example.org"] = [PUBLIC, "93.184.216.35"]
    with pytest.raises(BrokenOffError, match=rf"{PUBLIC}: no way to {PUBLIC}; timed out\)$"):
        wire.get(A)
    assert wire.connected == [(PUBLIC, 80)]


def test_a_name_without_an_address(wire: Wire) -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    for resolver in (unknown, lambda host, port: []):
        with pytest.raises(BrokenOffError, match=r"a\.example\.org"):
            get(A, STRANGERS, resolver=resolver, connector=wire.connector)
    assert wire.connected == []


@pytest.mark.parametrize(
    ("host", "name"), [("fe80::1%1", "fe80::1%1"), ("FE80::1%11", "fe80::1%11"), ("fe80::1%25lo", "fe80::1%lo")]
)
def test_a_zone_is_looked_up_as_written_or_as_rfc_6874_wants_it(host: str, name: str, wire: Wire) -> None:
    wire.addresses[name] = []
    with pytest.raises(BrokenOffError, match="fe80::1%"):
        wire.get(f"http://[{host}]/", dataclasses.replace(STRANGERS, allow_private=True))
    assert wire.looked_up == [(name, 80)]


def test_the_system_resolves_and_connects_by_default(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[Any] = []

    def getaddrinfo(*arguments: Any, **options: Any) -> list[Any]:
        looked_up.append((arguments, options))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, 80))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "create_connection", wire.connector)
    wire.answers = [ok(b"abc")]
    with get(A, STRANGERS) as answer:
        assert answer.body() == b"abc"
    assert looked_up == [(("a.example.org", 80), {"type": socket.SOCK_STREAM})]
    assert wire.connected == [(PUBLIC, 80)]


def test_an_error_of_a_connector_is_not_held_by_its_own_traceback(wire: Wire) -> None:
    class OurError(Exception):
        pass

    def connector(address: tuple[str, int], seconds: float) -> socket.socket:
        raise OurError("ours")

    def ask() -> None:
        get(A, TRUSTED, resolver=wire.resolver, connector=connector)

    with pytest.raises(OurError, match="^ours$"):
        ask()
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(OurError):
            ask()
        with contextlib.suppress(GetError):
            wire.get(A)
        assert not [error for error in gc.get_objects() if issubclass(type(error), (OurError, GetError))]
    finally:
        gc.enable()


# Proxies.


@pytest.mark.parametrize(
    ("proxy", "peer", "login"),
    [
        ("proxy.example", ("proxy.example", 80), None),
        ("proxy.example:3128", ("proxy.example", 3128), None),
        ("http://proxy.example/", ("proxy.example", 80), None),
        ("http://me:@proxy.example", ("proxy.example", 80), None),  # urllib's rule: both or none
        ("http://m%40e:p%3Aw@proxy.example:3128/", ("proxy.example", 3128), b"m@e:p:w"),
        ("[2606:2800::1]:8", ("2606:2800::1", 8), None),
    ],
)
def test_a_proxy_is_asked(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, proxy: str, peer: tuple[str, int], login: bytes | None
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("https_proxy", proxy)
    wire.get("http://A.example.org:81/x?y", TRUSTED, ok())
    with pytest.raises(RefusedError, match="password.* http_proxy"):
        wire.get("https://a.example.org/x", STRANGERS, status(407))
    assert (wire.looked_up, wire.connected) == ([], [peer] * 2), "the proxy looks the names up"
    expected = [] if login is None else [f"Proxy-Authorization: Basic {base64.b64encode(login).decode()}"]
    plain, tunnel = wire.sent(0), wire.sent(1)
    assert plain[:2] == ["GET http://A.example.org:81/x?y HTTP/1.1", "Host: A.example.org:81"]
    assert tunnel[0].startswith("CONNECT a.example.org:443 HTTP/1.")
    for sent in (plain, tunnel):
        assert [line for line in sent if line.startswith("Proxy-Authorization")] == expected


@each_scheme
def test_a_proxy_gets_the_hosts_name_and_checks_it_itself(
    wire: Wire, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But addresses written as numbers are checked here."""
    monkeypatch.setenv(f"{scheme}_proxy", PROXY)
    for host in ("10.0.0.1", "[::1]", "[::ffff:10.0.0.1]:81"):
        with pytest.raises(NotPublicError):
            wire.get(f"{scheme}://{host}/", STRANGERS)
    assert wire.connected == []
    for host in ("inside.example.org", PUBLIC):
        with pytest.raises(BrokenOffError, match=r"no way to proxy\.example"):
            wire.get(f"{scheme}://{host}/", STRANGERS)
    assert (wire.looked_up, wire.connected) == ([], [("proxy.example", 3128)] * 2)


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        ("::1", "http://[::1]:8000/"),
        ("[::1]", "http://[::1]:8000/"),
        ("example.org", "http://a.example.org/"),
        ("a.example.org:80", "http://a.example.org/"),
        ("a.example.org:443", "https://a.example.org/"),
        ("*", "https://a.example.org/"),
    ],
)
def test_hosts_of_no_proxy_are_asked_directly(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str
) -> None:
    for value, proxy in (("other.example.org", PROXY), (no_proxy, PROXY), (no_proxy, "socks5://unused.example")):
        monkeypatch.setenv("no_proxy", value)
        for scheme in ("http", "https"):
            monkeypatch.setenv(f"{scheme}_proxy", proxy)
        with pytest.raises(BrokenOffError, match="no way to"):
            wire.get(url)
    assert [name for name, _ in wire.connected] == ["proxy.example", PUBLIC, PUBLIC]


@each_scheme
@pytest.mark.parametrize(
    "proxy",
    [
        *("http://", "http://:3128", "socks5://p.example", "http:/me:secret@p.example:1", "p.example:3128:me:secret"),
        *("http://me:sec：ret@ü.example", "http://p.example:1/secret", "http://p.example:123456", "p.example:"),
        "http://me:secret@p.example:65536",
    ],
)
def test_a_malformed_proxy(wire: Wire, monkeypatch: pytest.MonkeyPatch, proxy: str, scheme: str) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", proxy)
    with pytest.raises(RefusedError, match=f"{scheme}_proxy") as error:
        wire.get(f"{scheme}://a.example.org/")
    assert (wire.looked_up, wire.connected) == ([], [])
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(("number", "says"), [(403, "403"), (407, "password")])
def test_a_proxy_that_makes_no_tunnel(wire: Wire, monkeypatch: pytest.MonkeyPatch, number: int, says: str) -> None:
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy.example:3128")
    with pytest.raises(RefusedError, match=f"proxy .*{says}") as error:
        wire.get("https://a.example.org/", TRUSTED, status(number))
    assert "secret" not in str(error.value)
    with pytest.raises(BrokenOffError, match="proxy .*502"):
        wire.get("https://a.example.org/", TRUSTED, status(502))


# Answers.


def required(wire: Wire, answer: bytes) -> None:
    wire.answers = [answer]
    with get(A, TRUSTED, resolver=wire.resolver, connector=wire.connector) as found:
        found.require(200)


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
def test_a_servers_text_never_reaches_a_terminal_as_it_is(answer: str, wire: Wire) -> None:
    with pytest.raises(GetError) as error:
        required(wire, answer.encode())
    assert str(error.value).isprintable()


def test_a_proxys_text_never_reaches_a_terminal_as_it_is(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", PROXY)
    for number in (403, 502):
        with pytest.raises(GetError, match=f"{number}") as error:
            wire.get("https://a.example.org/", TRUSTED, f"HTTP/1.1 {number} {ESCAPE}\r\n\r\n".encode())
        assert str(error.value).isprintable()


def test_any_status_is_an_answer_and_anything_else_is_not(wire: Wire) -> None:
    for answer, kind in ((b"hello\r\n\r\n", http.client.BadStatusLine), (b"", http.client.RemoteDisconnected)):
        with pytest.raises(BrokenOffError, match=kind.__name__) as error:
            wire.get(A, TRUSTED, answer)
        assert isinstance(error.value.__cause__, kind)
    assert wire.get(A, TRUSTED, status(503)) == (503, b"")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (status(300, "Location: /x"), "300"),
        (status(304), "304"),
        (status(307), "307"),
        (status(407), "proxy .*password"),
        (ok(b"abc", "Content-Encoding: br"), "'br'"),
    ],
)
def test_answers_other_than_required(wire: Wire, answer: bytes, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        required(wire, answer)
    required(wire, ok(b"abc", "Content-Encoding: Identity"))


def test_bodies_and_their_sizes(wire: Wire) -> None:
    policy = dataclasses.replace(TRUSTED, max_bytes=1000)
    unannounced = b"HTTP/1.1 200 OK\r\n\r\n"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    for answer in (ok(b"x" * 1000), unannounced + b"x" * 1000, chunked):
        assert len(wire.get(A, policy, answer)[1]) == (5 if answer is chunked else 1000)
    for answer in (ok(b"x" * 1001), unannounced + b"x" * 1001, ok(b"", length=1001)):
        with pytest.raises(RefusedError, match="1,000 bytes"):
            wire.get(A, policy, answer)
    with pytest.raises(BrokenOffError, match="3 of 1,005"):
        wire.get(A, TRUSTED, ok(b"abc", length=1005))


# Time.


def no_timers() -> bool:
    """Whether every watchdog's thread has ended."""
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    for timer in timers:
        timer.join(10)
    return not any(timer.is_alive() for timer in timers)


def test_the_connection_is_closed_however_it_ends(wire: Wire) -> None:
    for answer in (ok(b"abc"), b"hello\r\n\r\n", status(404), to("ftp://b/")):
        with contextlib.suppress(GetError):
            wire.get(A, TRUSTED, answer)
        wire.ends[-1].settimeout(10)
        while wire.ends[-1].recv(65536):  # ends where the other side has hung up, its duplicate included
            pass
    assert no_timers()


def test_a_silent_peer() -> None:
    ours, theirs = pair()
    start = time.monotonic()
    policy = dataclasses.replace(TRUSTED, seconds=0.2)
    with theirs, pytest.raises(RefusedError, match="in time"):
        get(A, policy, resolver=lambda *_: [PUBLIC], connector=lambda *_: ours)
    assert time.monotonic() - start < 15


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
    assert no_timers()
    assert not watchdog.expired


def test_a_connection_that_is_gone_cannot_be_shut_down() -> None:
    with socket.socket() as sock:
        watchdog = Watchdog(60)
        watchdog.watch(sock)
        watchdog.look()
        assert watchdog.expired
        watchdog.stop()
