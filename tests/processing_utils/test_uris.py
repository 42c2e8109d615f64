"""URIs that are refused, and real servers: TLS, and peers that send a byte at a time. `tests/net` has the rest."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from resnext_hub.errors import FetchError
from resnext_hub.net.addresses import is_public
from resnext_hub.processing_utils.uris import fetch, scheme_of

pytestmark = pytest.mark.usefixtures("no_proxies")


class Refuser:
    """A connector that notes where it was sent and goes nowhere."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def __call__(self, address: tuple[str, int], timeout: float) -> socket.socket:
        self.calls.append(address)
        raise OSError("not connected: this is a test")


def at(*addresses: str) -> Callable[[str, int], list[str]]:
    return lambda host, port: list(addresses)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.org/a.jpg", "scheme 'ftp'.* http, https, data, file"),
        ("gopher://example.org/", "scheme 'gopher'"),
        ("javascript:alert(1)", "scheme 'javascript'"),
        ("http:///a.jpg", "not a well-formed URL"),
        ("http://", "not a well-formed URL"),
        ("http://exa mple.org/", "not a well-formed URL"),
        ("http://example.org:99999/", "not a well-formed URL"),
        ("http://example.org\r\nHost: evil/", "not a well-formed URL"),
        ("http://[::1/", "not a well-formed URL"),
        ("http://user:secret@example.org/", "contains a user name"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,@@@@", "not valid base64"),
        ("file://server/share/a.jpg", "not on 'server'"),
    ],
)
def test_malformed_uris_are_refused(url: str, message: str) -> None:
    connector = Refuser()
    with pytest.raises(FetchError, match=message):
        fetch(url, resolver=at("93.184.216.34"), connector=connector)
    assert connector.calls == []


def test_a_name_that_does_not_resolve() -> None:
    def resolver(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(FetchError, match=r"cannot resolve nowhere\.example"):
        fetch("http://nowhere.example/", resolver=resolver)


class Server(ThreadingHTTPServer):
    """Answers with the path, on loopback."""

    seen: list[tuple[str, dict[str, str]]]


class Answers(BaseHTTPRequestHandler):
    server: Server  # type: ignore[assignment]

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        body = b"content of " + self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client hung up, as it should


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Answers) as server:
        server.seen = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_loopback_with_leave(server: Server) -> None:
    url = f"http://127.0.0.1:{server.server_port}/a b/ü.jpg?x=1#part"
    assert fetch(url, allow_private=True) == b"content of /a%20b/%C3%BC.jpg?x=1"
    with pytest.raises(FetchError, match="refused"):
        fetch(url)


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
        with pytest.raises(FetchError, match="did not answer in time"):
            fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/", allow_private=True, timeout=0.5)
        assert time.monotonic() - start < 8, "the peer would go on for ten seconds"
        thread.join()


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize(
    ("host", "trusted", "message"),
    [
        ("photos.example.org", True, None),
        ("photos.example.org", False, "CERTIFICATE_VERIFY_FAILED"),
        ("other.example.org", True, "Hostname mismatch"),
    ],
)
def test_tls_is_verified_for_the_host_not_the_address(
    host: str,
    trusted: bool,
    message: str | None,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What a program does for servers of its own is not meant for ours.
    monkeypatch.setattr(ssl, "_create_default_https_context", ssl._create_unverified_context)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("photos.example.org").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with Server(("127.0.0.1", 0), Answers) as server:
        server.seen = []
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def connector(address: tuple[str, int], timeout: float) -> socket.socket:
            return socket.create_connection(("127.0.0.1", server.server_port), timeout)

        def get() -> bytes:
            return fetch(f"https://{host}/a.jpg", resolver=at("93.184.216.34"), connector=connector)

        if message is None:
            assert get() == b"content of /a.jpg"
        else:
            with pytest.raises(FetchError, match=message):
                get()
            assert server.seen == []
        server.shutdown()


@pytest.mark.parametrize(
    "uri", ["http://example.org/\udcff", "data:,\udcff", "file://[", "http://a..b/", "http://" + "a" * 70 + ".org/"]
)
def test_text_that_urllib_chokes_on(uri: str) -> None:
    with pytest.raises(FetchError):
        fetch(uri, resolver=at("93.184.216.34"), connector=Refuser())


@pytest.mark.parametrize(
    "host", ["a_b.example.org", "example.org.", "xn--bcher-kva.example", "bücher.example", "localhost"]
)
def test_hosts_as_they_occur(host: str) -> None:
    connector = Refuser()
    with pytest.raises(FetchError, match="could not be reached"):
        fetch(f"http://{host}/a.jpg", resolver=at("93.184.216.34"), connector=connector)
    assert connector.calls == [("93.184.216.34", 80)]


@pytest.mark.parametrize("start", ["http://a", "https://a/", "file://a"])
def test_a_long_uri_is_refused_before_it_is_parsed(start: str) -> None:
    """Normalising such a host takes Python 13 s, with the interpreter's lock held."""
    begin = time.process_time()
    with pytest.raises(FetchError, match="characters, more than the"):
        fetch(start + "\u0300\u0316" * 64_000 + ".org/", connector=Refuser())
    assert time.process_time() - begin < 1


@given(st.ip_addresses())
def test_no_address_is_public_that_python_calls_private(address: object) -> None:
    if is_public(str(address)):
        assert address.is_global  # type: ignore[attr-defined]


@pytest.mark.parametrize("address", ["2002:808:808::1", "2001:0:808:808::1"])
def test_tunnels_lead_nowhere(address: str) -> None:
    """6to4 and Teredo, whatever is inside: Pythons differ in what they call them."""
    assert not is_public(address)


@given(st.text(max_size=60))
def test_any_text_is_fetched_from_nowhere(text: str) -> None:
    connector = Refuser()
    for uri in (text, f"http://{text}", f"https://example.org/{text}", f"http://example.org:{text}/"):
        if scheme_of(uri) in ("http", "https"):
            with pytest.raises(FetchError):
                fetch(uri, resolver=at("10.0.0.1"), connector=connector)
    assert connector.calls == []
