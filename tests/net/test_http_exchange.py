"""What goes over the wire when a URI is fetched, answer by answer; the peer is on loopback."""

from __future__ import annotations

import base64
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, ClassVar

import pytest
from resnext_hub.errors import FetchError
from resnext_hub.net import client
from resnext_hub.processing_utils.uris import fetch, read_file, scheme_of

from ..support.wire import ok, pair

pytestmark = pytest.mark.usefixtures("no_proxies")

PUBLIC = "93.184.216.34"


class Peer:
    """A connector whose every connection has its answer waiting; keeps what it was sent."""

    opened: ClassVar[list[socket.socket]] = []

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.addresses: list[tuple[str, int]] = []
        self.seconds: list[float] = []
        self.ends: list[socket.socket] = []

    def __call__(self, address: tuple[str, int], timeout: float) -> socket.socket:
        self.addresses.append(address)
        self.seconds.append(timeout)
        ours, theirs = pair()
        theirs.sendall(self.answers.pop(0))
        theirs.shutdown(socket.SHUT_WR)
        self.ends.append(theirs)
        self.opened.append(theirs)
        return ours

    def request(self, i: int = 0) -> list[str]:
        return self.ends[i].recv(65536).decode("latin-1").split("\r\n")


def to(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


@pytest.fixture(autouse=True)
def hang_up() -> Iterator[None]:
    yield
    while Peer.opened:
        Peer.opened.pop().close()


def get(url: str, *answers: bytes, **options: Any) -> tuple[bytes, Peer]:
    peer = Peer(*answers)
    try:
        return fetch(url, resolver=lambda host, port: [PUBLIC], connector=peer, **options), peer
    except BaseException:
        raise


def test_the_request() -> None:
    body, peer = get("http://photos.example.org/a/b.jpg?x=1#part", ok(b"abc"))
    first, *headers = peer.request()
    assert body == b"abc"
    assert first == "GET /a/b.jpg?x=1 HTTP/1.1"
    assert "Host: photos.example.org" in headers
    assert "Accept: image/*" in headers
    assert "Accept-Encoding: identity" in headers
    assert any(line.startswith("User-Agent: resnext-hub (") for line in headers)
    assert peer.addresses == [(PUBLIC, 80)]
    assert 15 < peer.seconds[0] <= 20


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
        (f"http://{PUBLIC}/x", "/x", PUBLIC, 80),
        ("http://[2606:2800:220:1::1]:81/x", "/x", "[2606:2800:220:1::1]:81", 81),
        ("http://[2606:2800:220:1::1]/x", "/x", "[2606:2800:220:1::1]", 80),
    ],
)
def test_urls_as_they_are_sent(url: str, target: str, host: str, port: int) -> None:
    _, peer = get(url, ok(b""))
    first, *headers = peer.request()
    assert first == f"GET {target} HTTP/1.1"
    assert f"Host: {host}" in headers
    assert peer.addresses == [(PUBLIC, port)]


def test_the_resolver_is_asked_for_the_host_and_its_port() -> None:
    asked: list[tuple[str, int]] = []

    def resolver(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return [PUBLIC, PUBLIC, "93.184.216.35"]

    def refuse(address: tuple[str, int], timeout: float) -> socket.socket:
        raise OSError(f"no way to {address[0]}")

    for url, port in (("http://a.example.org/", 80), ("https://a.example.org/", 443), ("http://a.example.org:8/", 8)):
        with pytest.raises(FetchError) as error:
            fetch(url, resolver=resolver, connector=refuse)
        assert asked[-1] == ("a.example.org", port)
        expected = f"{PUBLIC}: no way to {PUBLIC}; 93.184.216.35: no way to 93.184.216.35"
        assert str(error.value) == f"{url}: a.example.org could not be reached ({expected})."
    with pytest.raises(FetchError, match=r"http://a\.example\.org/: cannot resolve a\.example\.org"):
        fetch("http://a.example.org/", resolver=lambda host, port: [])


def test_the_system_resolves_and_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default; nothing leaves this machine: both ends are recorded."""
    looked_up: list[Any] = []
    peer = Peer(ok(b"abc"))

    def getaddrinfo(*arguments: Any, **options: Any) -> list[Any]:
        looked_up.append((arguments, options))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, 80))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "create_connection", peer)
    assert fetch("http://a.example.org/x") == b"abc"
    assert looked_up == [(("a.example.org", 80), {"type": socket.SOCK_STREAM})]
    assert peer.addresses == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    ("host", "name"), [("fe80::1%1", "fe80::1%1"), ("FE80::1%11", "fe80::1%11"), ("fe80::1%25lo", "fe80::1%lo")]
)
def test_a_zone_is_looked_up_as_it_was_meant(host: str, name: str) -> None:
    """Written as it is, or as RFC 6874 wants it."""
    asked: list[tuple[str, int]] = []
    with pytest.raises(FetchError, match=r"cannot resolve fe80::1%"):
        fetch(f"http://[{host}]/", resolver=lambda *peer: asked.append(peer) or [], allow_private=True)
    assert asked == [(name, 80)]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects(status: int) -> None:
    body, peer = get("http://a.example.org/x/y", to("../z?q", status), ok(b"abc"))
    assert body == b"abc"
    assert peer.request(1)[0] == "GET /z?q HTTP/1.1"


def test_five_redirects_and_no_more() -> None:
    steps = [to(f"/{i}") for i in range(6)]
    body, peer = get("http://a.example.org/", *steps[:5], ok(b"abc"))
    assert body == b"abc"
    assert peer.request(5)[0] == "GET /4 HTTP/1.1"
    with pytest.raises(FetchError, match=r"more than 5 redirects.*'http://a\.example\.org/5'\."):
        get("http://a.example.org/", *steps, ok(b"abc"))


def test_redirects_that_are_refused() -> None:
    with pytest.raises(FetchError, match=r"http://a.example.org/: the server redirects to 'ftp://x/y'"):
        get("http://a.example.org/", to("ftp://x/y"))
    with pytest.raises(FetchError, match=r"http://a\.example\.org/: the server answered 307"):
        get("http://a.example.org/", b"HTTP/1.1 307 Moved\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(FetchError, match=r"answered 304 Not Modified\."):
        get("http://a.example.org/", b"HTTP/1.1 304 Not Modified\r\n\r\n")
    with pytest.raises(FetchError, match=r"http://a\.example\.org/: the server answered 300 Multiple Choices\."):
        get("http://a.example.org/", b"HTTP/1.1 300 Choices\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n")


def test_from_http_to_https_is_a_way(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, str]] = []

    def without_tls(tls: bool, host: str, port: int) -> HTTPConnection:
        asked.append((tls, host))
        return HTTPConnection(host, port)

    monkeypatch.setattr(client, "_connection", without_tls)
    assert get("http://a.example.org/", to("https://b.example.org/"), ok(b"abc"))[0] == b"abc"
    assert asked == [(False, "a.example.org"), (True, "b.example.org")]
    assert get("https://a.example.org/", to("https://b.example.org/x"), ok(b"abc"))[0] == b"abc"


def test_sizes() -> None:
    assert get("http://a.example.org/", ok(b"x" * 100), max_bytes=100)[0] == b"x" * 100
    with pytest.raises(FetchError, match=r"http://a\.example\.org/: .* 1,000 bytes"):
        get("http://a.example.org/", ok(b"x" * 1001), max_bytes=1000)
    unannounced = b"HTTP/1.1 200 OK\r\n\r\n"
    assert get("http://a.example.org/", unannounced + b"x" * 100, max_bytes=100)[0] == b"x" * 100
    with pytest.raises(FetchError, match="more than the 100 bytes"):
        get("http://a.example.org/", unannounced + b"x" * 101, max_bytes=100)
    with pytest.raises(FetchError, match="more than the 100 bytes"):
        get("http://a.example.org/", ok(b"", length=101), max_bytes=100)
    with pytest.raises(FetchError, match="cut off after 3 of 1,005 bytes"):
        get("http://a.example.org/", ok(b"abc", length=1005))
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert get("http://a.example.org/", chunked)[0] == b"abcde"


def test_only_what_was_asked_for() -> None:
    assert get("http://a.example.org/", ok(b"abc", "Content-Encoding: Identity"))[0] == b"abc"
    with pytest.raises(FetchError, match=r"http://a\.example\.org/: .*compressed content"):
        get("http://a.example.org/", ok(b"abc", "Content-Encoding: br"))
    with pytest.raises(FetchError, match=r"http://a\.example\.org/: .*BadStatusLine: hello"):
        get("http://a.example.org/", b"hello\r\n\r\n")
    with pytest.raises(FetchError, match="RemoteDisconnected: "):
        get("http://a.example.org/", b"")


def test_the_connection_is_closed_however_it_ends() -> None:
    for answer in (ok(b"abc"), b"hello\r\n\r\n", b"HTTP/1.1 404 No\r\n\r\n"):
        peer = Peer(answer)
        try:
            fetch("http://a.example.org/", resolver=lambda host, port: [PUBLIC], connector=peer)
        except FetchError:
            pass
        end = peer.ends[0]
        end.settimeout(10)
        while end.recv(65536):  # ends where the other side has hung up, its duplicate for the watchdog included
            pass
        timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert not any(map(not_over, timers))


def not_over(timer: threading.Timer) -> bool:
    timer.join(10)
    return timer.is_alive()


def test_a_peer_that_says_nothing() -> None:
    ours, theirs = pair()
    start = time.monotonic()
    with theirs, pytest.raises(FetchError, match=r"^http://a\.example\.org/: the server did not answer in time\.$"):
        fetch("http://a.example.org/", resolver=lambda *_: [PUBLIC], connector=lambda *_: ours, timeout=0.2)
    assert time.monotonic() - start < 15


def test_no_time_left_to_connect() -> None:
    peer = Peer()
    with pytest.raises(FetchError, match=r"^http://a\.example\.org/: the server did not answer in time\.$"):
        fetch("http://a.example.org/", resolver=lambda host, port: [PUBLIC], connector=peer, timeout=0)
    assert peer.addresses == []


# Behind a proxy.


def through(monkeypatch: pytest.MonkeyPatch, proxy: str, url: str, *answers: bytes) -> tuple[bytes | str, Peer]:
    """Body or error, and what the proxy was sent."""
    monkeypatch.setenv(f"{scheme_of(url)}_proxy", proxy)

    def resolver(host: str, port: int) -> list[str]:
        raise AssertionError("the proxy looks names up")

    peer = Peer(*answers)
    try:
        return fetch(url, resolver=resolver, connector=peer), peer
    except FetchError as error:
        return str(error), peer


@pytest.mark.parametrize(
    ("proxy", "address", "authorization"),
    [
        ("http://proxy.example:3128", ("proxy.example", 3128), None),
        ("proxy.example:3128", ("proxy.example", 3128), None),
        ("http://proxy.example", ("proxy.example", 80), None),
        ("http://me:@proxy.example", ("proxy.example", 80), None),  # urllib's rule: both or none
        ("http://m%40e:p%3Aw@proxy.example:8", ("proxy.example", 8), b"m@e:p:w"),
    ],
)
def test_a_proxy(
    monkeypatch: pytest.MonkeyPatch, proxy: str, address: tuple[str, int], authorization: bytes | None
) -> None:
    body, peer = through(monkeypatch, proxy, "http://a.example.org:81/x?y", ok(b"abc"))
    assert body == b"abc"
    assert peer.addresses == [address]
    first, *headers = peer.request()
    assert first == "GET http://a.example.org:81/x?y HTTP/1.1"
    assert [line for line in headers if line.startswith("Host:")] == ["Host: a.example.org:81"]
    sent = [line for line in headers if line.startswith("Proxy-Authorization: ")]
    assert sent == (
        [] if authorization is None else [f"Proxy-Authorization: Basic {base64.b64encode(authorization).decode()}"]
    )


def test_a_proxy_is_asked_for_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    message, peer = through(
        monkeypatch, "http://me:pw@proxy.example:3128", "https://a.example.org/x", b"HTTP/1.1 407 Who?\r\n\r\n"
    )
    assert peer.addresses == [("proxy.example", 3128)]
    first, *headers = peer.request()
    assert first.startswith("CONNECT a.example.org:443 HTTP/1.")
    assert f"Proxy-Authorization: Basic {base64.b64encode(b'me:pw').decode()}" in headers
    assert re.search(r"^https://a\.example\.org/x: .*password.* http_proxy and https_proxy", str(message))


def test_addresses_written_out_are_checked_before_the_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("10.0.0.1", "0x7f.1", "[::1]"):
        message, peer = through(monkeypatch, "http://proxy.example", f"http://{host}/")
        assert "not a public address" in str(message) or "not a well-formed URL" in str(message)
        if host == "10.0.0.1":
            assert re.search(r"^http://10\.0\.0\.1/ .* 10\.0\.0\.1 is at 10\.0\.0\.1", str(message))
        assert peer.addresses == []
    body, peer = through(monkeypatch, "http://proxy.example", f"http://{PUBLIC}/", ok(b"abc"))
    assert body == b"abc"


# Without a network.


def test_data_uris_at_their_limits() -> None:
    assert fetch("data:,abc", max_bytes=3) == b"abc"
    assert fetch("data:,%61%62%63", max_bytes=3) == b"abc"
    with pytest.raises(FetchError, match="1,004 bytes, more than the 1,003"):
        fetch("data:," + "a" * 1004, max_bytes=1003)
    with pytest.raises(FetchError, match="more than the 1,000 bytes"):
        fetch("data:," + "a" * 3001, max_bytes=1000)
    assert fetch("data:;base64,AP8=") == b"\x00\xff"
    assert fetch("DATA:image/png;BASE64,A%50%38=") == b"\x00\xff"
    assert fetch("data:;base64,AP\n8%3D ") == b"\x00\xff"
    assert fetch("data:;base64x,AP8=") == b"AP8="
    assert fetch("data:,a,b") == b"a,b"
    with pytest.raises(FetchError, match=r"The data: URI is not valid base64: "):
        fetch("data:;base64,AP8")
    with pytest.raises(FetchError, match="no comma"):
        fetch("data:image/png")


def test_files_at_their_limits(tmp_path: Path) -> None:
    path = tmp_path / "a b.bin"
    path.write_bytes(b"x" * 1000)
    assert read_file(path, 1000) == b"x" * 1000
    with pytest.raises(FetchError, match=r"a b\.bin has 1,000 bytes, more than the 999"):
        read_file(path, 999)
    assert fetch(f"file://localhost{path.as_uri().removeprefix('file://')}") == b"x" * 1000
    with pytest.raises(FetchError, match="file: URI .*'elsewhere'"):
        fetch("file://elsewhere/a")
    with pytest.raises(FileNotFoundError, match=r"No such file: .*none$"):
        read_file(tmp_path / "none")
    with pytest.raises(FetchError, match="is not a file"):
        read_file(Path("/dev/null"))
    with pytest.raises(FetchError) as error:
        read_file(Path("a" * 5000))
    assert str(error.value).startswith(f"'{'a' * 80}'… ")
    assert "OSError" in str(error.value)


def test_schemes() -> None:
    assert scheme_of("a:b") is None, "a drive"
    assert scheme_of("ab:c") == "ab"
    assert scheme_of("svn+ssh-2.0:x") == "svn+ssh-2.0"
    assert scheme_of("1ab:c") is None
    with pytest.raises(FetchError) as error:
        fetch("photo:1.jpg")
    assert re.search(r"'photo' in 'photo:1\.jpg'.* http, https, data, file\. .*\./", str(error.value))
    with pytest.raises(FetchError) as error:
        fetch("file:///a", schemes=("https", "data"))
    assert re.search(r"'file' in 'file:///a'.* https, data\.$", str(error.value))
    with pytest.raises(FetchError) as error:
        fetch("nothing")
    assert "scheme None in 'nothing'" in str(error.value)
    with pytest.raises(FetchError) as error:
        fetch("x" * 300 + ":")
    assert len(str(error.value)) < 650
    with pytest.raises(FetchError, match=r"^http://[*]+@a\.example\.org/: .* contains a user name"):
        get("http://me:pw@a.example.org/")
    with pytest.raises(FetchError, match="not a well-formed URL"):
        get("http://a.example.org:port/")
