"""What `fetch` adds to the client (tests/net/test_client.py): its own limits, schemes, data: and file: URIs."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from resnext_hub.errors import FetchError
from resnext_hub.processing_utils.uris import fetch, read_file, scheme_of

from ..support.faulty_server import CONTENT, FaultyServer
from ..support.wire import Wire, ok, status, to

pytestmark = pytest.mark.usefixtures("no_proxies")
A = "http://a.example.org/"


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    with wire.closing:
        yield wire


def test_the_policy_for_images(wire: Wire) -> None:
    wire.answers = [*(to(f"/{i}") for i in range(5)), ok(b"abc")]
    assert fetch(A, **wire.options()) == b"abc"
    headers = wire.sent()
    assert "Accept: image/*" in headers
    assert any(line.startswith("User-Agent: resnext-hub (") for line in headers)
    assert all(15 < seconds <= 20 for seconds in wire.seconds)
    wire.answers = [to(f"/{i}") for i in range(6)]
    with pytest.raises(FetchError, match=f"{A}.* 5 .*'{A}5'"):
        fetch(A, **wire.options())
    for answer in (status(404), status(206), ok(b"x" * 1001)):
        wire.answers = [answer]
        with pytest.raises(FetchError, match=rf"{A}: .*(404|206|1,000)"):
            fetch(A, max_bytes=1000, **wire.options())
    with pytest.raises(FetchError, match="time"):
        fetch(A, timeout=0, **wire.options())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.org/a.jpg", "'ftp'.* http, https, data, file"),
        ("gopher://example.org/", "'gopher'"),
        ("javascript:alert(1)", "'javascript'"),
        ("nothing", "'nothing'"),
        ("photo:1.jpg", r"'photo' in 'photo:1\.jpg'.*\./"),
        ("http://me:secret@example.org/", r"^http://\*+@example\.org/: .*user name"),
        ("http://example.org\r\nHost: evil/", "URL"),
        ("http://example.org/\udcff", "URL"),
        ("http://a..b/", "URL"),
        ("http://" + "a" * 70 + ".org/", "URL"),
        ("data:image/png;base64", "comma"),
        ("data:image/png;base64,@@@@", "base64"),
        ("data:;base64,AP8", "base64"),
        ("data:,\udcff", "'data:,"),
        ("file://server/share/a.jpg", "'server'"),
        ("file://[", "URL"),
        *((start + "\u0300\u0316" * 64_000 + ".org/", "128,0.. ch") for start in (A[:8], "https://a/", "file://a")),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_refused_uris(url: str, message: str, wire: Wire) -> None:
    begin = time.process_time()
    with pytest.raises(FetchError, match=message) as error:
        fetch(url, **wire.options())
    assert wire.connected == []
    assert len(str(error.value)) < 650
    assert time.process_time() - begin < 1, "Python normalises a long host in 13 s, with the interpreter's lock held"


def test_schemes() -> None:
    assert [scheme_of(uri) for uri in ("a:b", "ab:c", "svn+ssh-2.0:x", "1ab:c")] == [None, "ab", "svn+ssh-2.0", None]
    with pytest.raises(FetchError, match=r"'file' in 'file:///a'.* https, data\.$"):
        fetch("file:///a", schemes=("https", "data"))


def test_loopback_if_it_is_allowed(server: FaultyServer) -> None:
    url = f"{server.url}/a b/ü.jpg?x=1#part"
    assert fetch(url, allow_private=True) == CONTENT
    with pytest.raises(FetchError, match=r"refused.*127\.0\.0\.1"):
        fetch(url)
    assert [request["path"] for request in server.seen] == ["/a%20b/%C3%BC.jpg?x=1"]


# A peer that sends a byte at a time never lets a socket's own timeout run out.
DRIPS = {
    "headers": (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
    "100 continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
    "body without a length": (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    "chunk extension": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"x"),
    "trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"a: b\r\n"),
}


@pytest.mark.parametrize("kind", DRIPS)
def test_a_dripping_peer_is_hung_up_on(kind: str) -> None:
    begin, drop = DRIPS[kind]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            peer, _ = listener.accept()
            with peer, contextlib.suppress(OSError):
                peer.recv(1000)
                peer.sendall(begin)
                for _ in range(200):
                    peer.sendall(drop)
                    time.sleep(0.05)

        thread = threading.Thread(target=drip)
        thread.start()
        start = time.monotonic()
        with pytest.raises(FetchError, match="time"):
            fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/", allow_private=True, timeout=0.2)
        assert time.monotonic() - start < 8, "the peer would go on for ten seconds"
        thread.join()


def test_data_uris_at_their_limits() -> None:
    for uri, content in {
        "data:,abc": b"abc",
        "data:,%61%62%63": b"abc",
        "data:;base64,AP8=": b"\x00\xff",
        "DATA:image/png;BASE64,A%50%38=": b"\x00\xff",
        "data:;base64,AP\n8%3D ": b"\x00\xff",
        "data:;base64x,AP8=": b"AP8=",
        "data:,a,b": b"a,b",
    }.items():
        assert fetch(uri, max_bytes=max(3, len(content))) == content
    for count in (1001, 3001):
        with pytest.raises(FetchError, match="1,000"):
            fetch("data:," + "a" * count, max_bytes=1000)


def test_files_at_their_limits(tmp_path: Path) -> None:
    path = tmp_path / "a b.bin"
    path.write_bytes(b"x" * 1000)
    assert read_file(path, 1000) == b"x" * 1000
    with pytest.raises(FetchError, match=r"a b\.bin has 1,000 .* 999"):
        read_file(path, 999)
    assert fetch(f"file://localhost{path.as_uri().removeprefix('file://')}") == b"x" * 1000
    with pytest.raises(FileNotFoundError, match="none$"):
        read_file(tmp_path / "none")
    for wrong, message in (("/dev/null", "/dev/null"), ("a" * 5000, f"^'{'a' * 80}'… .*OSError")):
        with pytest.raises(FetchError, match=message):
            read_file(Path(wrong))
