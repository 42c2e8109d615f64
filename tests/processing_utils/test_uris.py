"""Fetching a URI is hostile ground. Nothing is sent to a private or public address: resolver and connector record."""

from __future__ import annotations

import base64
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
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "::ffff:10.0.0.1", "fe80::1%eth0"]
)
def test_names_that_resolve_to_private_addresses_are_refused(address: str) -> None:
    connector = Refuser()
    with pytest.raises(FetchError, match="not a public address.*allow_private=True"):
        fetch("http://photos.example.org/a.jpg", resolver=at(address), connector=connector)
    with pytest.raises(FetchError, match="not a public address"):
        fetch("http://photos.example.org/a.jpg", resolver=at("93.184.216.34", address), connector=connector)
    assert connector.calls == []


def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    """DNS rebinding: the second lookup would answer with a private address; there is no second lookup."""
    answers = [["93.184.216.34"], ["127.0.0.1"]]
    connector = Refuser()
    with pytest.raises(FetchError, match="could not be reached"):
        fetch("http://photos.example.org/a.jpg", resolver=lambda h, p: answers.pop(0), connector=connector)
    assert connector.calls == [("93.184.216.34", 80)]
    assert len(answers) == 1


def test_every_checked_address_is_tried() -> None:
    connector = Refuser()
    with pytest.raises(FetchError, match=r"93\.184\.216\.34: .*2606:2800:220:1::1: "):
        fetch("https://a.example.org:8443/", resolver=at("93.184.216.34", "2606:2800:220:1::1"), connector=connector)
    assert connector.calls == [("93.184.216.34", 8443), ("2606:2800:220:1::1", 8443)]


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
    """Answers as the path says, on loopback."""

    seen: list[tuple[str, dict[str, str]]]


class Answers(BaseHTTPRequestHandler):
    server: Server  # type: ignore[assignment]

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        kind, _, argument = self.path.lstrip("/").partition("/")
        if kind == "status":
            self.send_response(int(argument))
            self.end_headers()
        elif kind == "redirect":
            self.send_response(302)
            self.send_header("Location", argument)
            self.end_headers()
        elif kind == "nowhere":
            self.send_response(301)
            self.end_headers()
        elif kind == "loop":
            self.send_response(302)
            self.send_header("Location", f"/loop/{int(argument or 0) + 1}")
            self.end_headers()
        elif kind == "big":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x" * 1000)
        elif kind == "slow":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        elif kind == "gzip":
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(b"\x1f\x8b")
        else:
            body = b"content of " + self.path.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + (10 if kind == "cut" else 0)))
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


@pytest.fixture
def get(server: Server) -> Callable[..., bytes]:
    """Fetch from a public name whose connection is led to the loopback server."""

    def connector(address: tuple[str, int], timeout: float) -> socket.socket:
        assert address[0] == "93.184.216.34"
        return socket.create_connection(server.server_address[:2], timeout)

    def get_path(path: str, **options: object) -> bytes:
        resolver = options.pop("resolver", at("93.184.216.34"))
        return fetch(f"http://photos.example.org/{path}", resolver=resolver, connector=connector, **options)  # type: ignore[arg-type]

    return get_path


def test_a_good_answer(get: Callable[..., bytes], server: Server) -> None:
    assert get("a b/ü.jpg?x=1&y=ü#part") == b"content of /a%20b/%C3%BC.jpg?x=1&y=%C3%BC"
    _, headers = server.seen[0]
    assert headers["Host"] == "photos.example.org"
    assert headers["User-Agent"].startswith("resnext-hub")
    assert headers["Accept-Encoding"] == "identity"


def test_loopback_with_leave(server: Server) -> None:
    url = f"http://127.0.0.1:{server.server_port}/a.jpg"
    assert fetch(url, allow_private=True) == b"content of /a.jpg"
    with pytest.raises(FetchError, match="refused"):
        fetch(url)


def test_redirects_are_followed_and_checked(get: Callable[..., bytes], server: Server) -> None:
    assert get("redirect//there.jpg") == b"content of /there.jpg"
    assert get("redirect/http://other.example.org/x") == b"content of /x"
    seen = len(server.seen)
    hosts = {"photos.example.org": ["93.184.216.34"], "inside.example.org": ["10.0.0.1"]}
    with pytest.raises(FetchError, match=r"inside\.example\.org is at 10\.0\.0\.1"):
        get("redirect/http://inside.example.org/", resolver=lambda host, port: hosts[host])
    assert len(server.seen) == seen + 1
    for target in ("file:///etc/passwd", "ftp://example.org/", "data:,x", "gopher://x/"):
        with pytest.raises(FetchError, match="scheme"):
            get(f"redirect/{target}")
    with pytest.raises(FetchError, match="more than 5 redirects"):
        get("loop")
    with pytest.raises(FetchError, match="answered 301"):
        get("nowhere")


@pytest.mark.parametrize("status", [204, 304, 403, 404, 429, 500, 503])
def test_a_status_other_than_200(get: Callable[..., bytes], status: int) -> None:
    with pytest.raises(FetchError, match=f"answered {status}"):
        get(f"status/{status}")


def test_limits(get: Callable[..., bytes]) -> None:
    with pytest.raises(FetchError, match="more than the 5,000 bytes"):
        get("big", max_bytes=5000)
    with pytest.raises(FetchError, match="more than the 5 bytes"):
        get("announced", max_bytes=5)
    with pytest.raises(FetchError, match=r"cut off after 15 of 25 bytes|IncompleteRead"):
        get("cut")
    with pytest.raises(FetchError, match="compressed"):
        get("gzip")
    with pytest.raises(FetchError, match=r"in time|timed out"):
        get("slow", timeout=0.5)


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


@pytest.mark.parametrize("target", ["http://[bad/", "http://exa mple.org/", "//"])
def test_a_redirect_to_no_url(get: Callable[..., bytes], target: str) -> None:
    with pytest.raises(FetchError):
        get(f"redirect/{target}")


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


def test_schemes_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"secret")
    with pytest.raises(FetchError, match="scheme 'file'.* http, https"):
        fetch((tmp_path / "a").as_uri(), schemes=("http", "https"))


def test_a_proxy_is_used_and_its_rules_hold(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy looks names up, so they are not resolved here; addresses written out are still refused."""
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{server.server_port}")

    def resolver(host: str, port: int) -> list[str]:
        raise AssertionError("resolved behind a proxy")

    assert fetch("http://photos.example.org/a.jpg", resolver=resolver) == b"content of http://photos.example.org/a.jpg"
    _, headers = server.seen[0]
    assert headers["Host"] == "photos.example.org"
    assert headers["Proxy-Authorization"] == "Basic " + base64.b64encode(b"me:secret").decode()
    for url in ("http://10.0.0.1/", "http://2130706433/", "http://[::1]/"):
        with pytest.raises(FetchError, match="refused"):
            fetch(url, resolver=resolver)
    assert len(server.seen) == 1
    assert fetch("http://bücher.example/a b/ü.jpg?x=ü#part", resolver=resolver).endswith(
        b"http://xn--bcher-kva.example/a%20b/%C3%BC.jpg?x=%C3%BC"
    )
    monkeypatch.setenv("no_proxy", "direct.example.org")
    with pytest.raises(AssertionError, match="resolved"):
        fetch("http://direct.example.org/", resolver=resolver)


def test_data_uris() -> None:
    assert fetch("data:image/png;base64," + base64.b64encode(b"\x00\xff").decode()) == b"\x00\xff"
    assert fetch("data:text/plain,a%20b") == b"a b"
    with pytest.raises(FetchError, match="more than the 3"):
        fetch("data:,abcd", max_bytes=3)


def test_file_uris(tmp_path: Path) -> None:
    path = tmp_path / "a b.jpg"
    path.write_bytes(b"123")
    assert fetch(path.as_uri()) == b"123"
    with pytest.raises(FetchError, match="more than the 2"):
        fetch(path.as_uri(), max_bytes=2)
    with pytest.raises(FileNotFoundError):
        fetch((tmp_path / "none").as_uri())
    with pytest.raises(FetchError, match="not a file"):
        fetch(tmp_path.as_uri())


@pytest.mark.parametrize(
    ("uri", "scheme"), [("a.jpg", None), ("C:\\a.jpg", None), ("/x:y", None), ("HTTPS://a", "https")]
)
def test_what_is_a_path(uri: str, scheme: str | None) -> None:
    assert scheme_of(uri) == scheme


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
