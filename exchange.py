"""One GET over HTTP, whose caller decides where the connection goes and how long the peer may take.

Beside `mount` and `addresses`, below all rooms. What fetches images from strangers' URLs (``processing_utils/uris.py``)
and what downloads checkpoints (``models/transport.py``) have rules of their own for the addresses of a host; both
connect to an address they have looked at and not to the name again, since a second lookup may answer differently (DNS
rebinding). Redirects are handed back, not followed: the next URL is the caller's to judge. Proxies are those of the
environment (``http_proxy``, ``https_proxy``, ``no_proxy``), by the rules of `urllib.request`.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import re
import socket
import string
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = [
    "DEFAULT_PORTS",
    "REDIRECTS",
    "Connector",
    "Peer",
    "ProxyError",
    "RedirectError",
    "Watchdog",
    "connect",
    "get",
    "reach",
    "redirected",
    "resolve",
    "why_proxy_declines",
]

REDIRECTS = {301, 302, 303, 307, 308}
DEFAULT_PORTS = {"http": 80, "https": 443}
_NAME = r"(?:\[[0-9a-f:.]+(?:%[\w.~-]+)?\]|[\w.-]+)"
HOST = re.compile(rf"{_NAME}(?::\d{{0,5}})?", re.ASCII | re.IGNORECASE)
PROXY = re.compile(rf"(?P<address>(?:https?://)?(?:[^/]*@)?{_NAME})(?P<port>:\d{{1,5}})?/?", re.ASCII | re.IGNORECASE)

#: (address, port), seconds -> connected socket.
Connector = Callable[[tuple[str, int], float], socket.socket]


class RedirectError(ValueError):
    """A redirect that leads nowhere one may go. The message continues "the server " or the URL: "redirects to …"."""


class ProxyError(ValueError):
    """A proxy that cannot be asked, or that declines."""


class Peer(NamedTuple):
    """Who is to be connected to."""

    name: str
    port: int
    origin: str | None  # the URL's host where the peer is a proxy, which looks it up; None where the peer is the host


def get(url: str, headers: Mapping[str, str], connection: Callable[[Peer], socket.socket]) -> http.client.HTTPResponse:
    """The answer to one GET, whatever its status; to be closed.

    Args:
        connection: makes every connection, plain, for TLS and to proxies; TLS still verifies the host's name.

    Raises:
        ValueError: the URL is not of http or https, or has a user name or a host beyond ASCII.
        ProxyError: the environment's proxy is not one of http or https, or declines.
        OSError, http.client.HTTPException: no answer came. What ``connection`` raises comes through as it is.
    """
    request = urllib.request.Request(url, headers=dict(headers))
    # Of the host nothing is left to the interpretation of those who read it later, a proxy among them.
    if request.type not in DEFAULT_PORTS or not request.host or not HOST.fullmatch(request.host):
        raise ValueError("expected http or https, no user name, and a host in ASCII")
    parts = urllib.parse.urlsplit(f"//{request.host}")
    host, port = parts.hostname or "", parts.port or DEFAULT_PORTS[request.type]
    # An opener of its own: urlopen keeps the proxies that the environment named at its first use. And only what is
    # needed: no files, no ftp, no redirects that are followed without a look.
    opener = urllib.request.OpenerDirector()
    opener.add_handler(urllib.request.ProxyHandler(_proxies(request, f"{host}:{port}")))
    opener.add_handler(_Handler(request.host, host, connection))
    try:
        return opener.open(request)
    except OSError as error:
        failure = _unwrapped(error)
    if declined := re.match(r"Tunnel connection failed: (4\d\d)", str(failure)):
        raise ProxyError(why_proxy_declines(int(declined[1])))
    try:
        raise failure
    finally:
        del failure  # an exception that its own traceback's frame holds lives until the garbage is collected


def _unwrapped(error: OSError) -> OSError:
    reason = error.reason if isinstance(error, urllib.error.URLError) else None
    return reason if isinstance(reason, OSError) else error


def _proxies(request: urllib.request.Request, host_and_port: str) -> dict[str, str]:
    """The proxy of the environment for this request, if there is one."""
    proxy = urllib.request.getproxies().get(request.type)
    if not proxy or any(map(urllib.request.proxy_bypass, (request.host, host_and_port))):
        return {}
    match = PROXY.fullmatch(proxy)
    if match is None:  # the message does not repeat it: it may hold a password
        raise ProxyError(f"the environment variable {request.type}_proxy must be the URL of an http or https proxy")
    return {request.type: match["address"] + (match["port"] or ":80")}


def why_proxy_declines(status: int) -> str:
    what = "asks for a user name and password" if status == 407 else f"refused the connection ({status})"
    return f"the proxy {what}; set http_proxy and https_proxy to http://name:password@host:port"


class _Handler(urllib.request.AbstractHTTPHandler):
    """http and https through connections that the caller makes."""

    def __init__(self, netloc: str, host: str, connection: Callable[[Peer], socket.socket]) -> None:
        super().__init__()
        self.netloc, self.host, self.connection = netloc, host, connection

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._client(http.client.HTTPConnection, req), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        import ssl  # here: Triton's Python has none that loads, and a served model fetches nothing

        # Not http.client's own choice, which programs override to connect to unverified peers of theirs.
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        return self.do_open(self._client(functools.partial(http.client.HTTPSConnection, context=context), req), req)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def _client(self, kind: Callable[..., http.client.HTTPConnection], req: urllib.request.Request) -> Any:
        origin = None if req.host == self.netloc else self.host

        def client(host: str, **options: Any) -> http.client.HTTPConnection:
            made = kind(host, **options)
            # The one hook that http.client has for this; plain and TLS connections and proxy tunnels go through it.
            setattr(made, "_create_connection", functools.partial(self._create, origin))  # noqa: B010
            return made

        return client

    def _create(self, origin: str | None, peer: tuple[str, int], *_: object) -> socket.socket:
        return self.connection(Peer(*peer, origin))


def redirected(url: str, response: http.client.HTTPResponse) -> str | None:
    """Where an answer redirects to, as a whole URL; None where it does not.

    Raises:
        RedirectError: to what is no URL, or to another scheme than http and https, or from https back to http.
    """
    location = response.headers.get("Location")
    if response.status not in REDIRECTS or not location:
        return None
    shown = repr(location[:200])
    try:  # headers are read as Latin-1, and hold UTF-8 more often than not
        target = urllib.parse.urljoin(url, urllib.parse.quote(location, encoding="latin-1", safe=string.punctuation))
        parts = urllib.parse.urlsplit(target)
    except ValueError as error:
        raise RedirectError(f"redirects to {shown}, which is not a valid URL: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise RedirectError(f"redirects to {shown}: the scheme must be http or https")
    if parts.scheme == "http" and urllib.parse.urlsplit(url).scheme == "https":
        raise RedirectError(f"redirects from https to {shown}, which is not encrypted")
    return target


def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as the system knows them.

    Raises:
        OSError, UnicodeError: it knows none; it is no name.
    """
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def connect(address: tuple[str, int], timeout: float) -> socket.socket:
    return socket.create_connection(address, timeout)


def reach(addresses: Sequence[str], port: int, connector: Connector, seconds: Callable[[], float]) -> socket.socket:
    """A connection to the first of the addresses that takes one, ``seconds()`` for each.

    Raises:
        OSError: none does, or no time is left; the message has every address and its error.
    """
    errors: list[str] = []
    for address in dict.fromkeys(addresses):
        if (left := seconds()) <= 0:
            errors.append("timed out")
            break
        try:
            return connector((address, port), left)
        except OSError as error:
            errors.append(f"{address}: {error}")
    raise OSError("; ".join(errors))


class Watchdog:
    """Shuts a connection down when the time is up. A socket's own timeout is for one receive, and a peer that sends a
    byte at a time, in headers, in "100 Continue" or in the trailers of chunks, never lets it run out.
    """

    def __init__(self, seconds: float) -> None:
        self.bit = False
        self._stopped = False
        self._twin: socket.socket | None = None
        self._timer: threading.Timer | None = None
        self._lock = threading.RLock()  # of the timer's thread and the caller's
        self.start(seconds)

    def start(self, seconds: float) -> None:
        """Begin to wait, anew where it is waiting."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if not self._stopped:
                self._timer = threading.Timer(max(0.0, seconds), self.look)
                self._timer.daemon = True
                self._timer.start()

    def watch(self, sock: socket.socket) -> socket.socket:
        """Watch this connection, and none before it."""
        with self._lock:
            if self._twin is not None:
                self._twin.close()
            self._twin = sock.dup()  # TLS takes the socket itself over
            if self.bit:  # while it was made
                self._bite()
        return sock

    def look(self) -> None:
        """What happens when the time is up."""
        with self._lock:
            self.bit = not self._stopped
            self._bite()

    def _bite(self) -> None:
        if self._twin is not None:
            with contextlib.suppress(OSError):
                self._twin.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._timer is not None:
                self._timer.cancel()
            if self._twin is not None:
                self._twin.close()
                self._twin = None
