"""One GET: of a URL that is trusted, and of where it redirects to, which is not.

The first URL comes from the manifest or from the user, and may lie inside a private network: a mirror in the house.
What a server redirects to is a stranger's choice. So a redirect stays with http and https, does not go back from https
to http, and leads from outside to public addresses only: every address of the host is looked up and checked, and the
connection is made to one that was checked, not to the name again. A source inside may redirect to others inside.
Behind a proxy it is the proxy that looks names up, and its rules hold; addresses written out are still checked here.

And the peer must keep pace: a socket's own timeout is for one receive, and a peer that sends a byte at a time, in
headers, in "100 Continue" or between chunks, never lets it run out.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import re
import socket
import ssl
import string
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..addresses import is_public, literal

__all__ = ["Answer", "BrokenOffError", "SourceError", "get"]

TIMEOUT = 30.0  # seconds without a byte
WINDOW = 60.0  # seconds in which an answer must begin, and over which its pace is measured
SLOWEST = 1024  # bytes a second
CHUNK = 1 << 20
MAX_REDIRECTS = 10
REDIRECTS = {301, 302, 303, 307, 308}


class SourceError(Exception):
    """This source will not do; the next may."""


class BrokenOffError(Exception):
    """The connection was broken off or never came about; another attempt may do.

    ``wait`` is how many seconds the server asks for, None where it does not ask.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class Answer:
    """A server's answer: ``status``, ``headers``, and its body piece by piece. To be closed."""

    def __init__(self, response: http.client.HTTPResponse, pace: _Pace) -> None:
        self.status = response.status
        self.headers = response.headers
        self._response, self._pace = response, pace

    def read(self) -> bytes:
        """The next bytes, b"" at the end. An end before the announced one is not noticed here.

        Raises:
            BrokenOffError: the connection broke.
            SourceError: next to nothing comes.
        """
        try:
            chunk = self._response.read1(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            self._pace.check()
            raise BrokenOffError(_text(error)) from error
        if not chunk:
            self._pace.check()  # the end of the body may be where it was shut down
        self._pace.received += len(chunk)
        return chunk

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pace.stop()
        self._response.close()


def get(url: str, headers: Mapping[str, str]) -> Answer:
    """The answer to a GET, redirects followed; whatever its status.

    Raises:
        SourceError: it is no URL or redirects to what is refused, its certificate is not trusted, the proxy declines.
        BrokenOffError: it could not be reached, or not in time.
    """
    pace = _Pace()
    route = _Route(pace)
    try:
        for _ in range(MAX_REDIRECTS + 1):
            response = _open(url, headers, route)
            location = response.headers.get("Location")
            if response.status not in REDIRECTS or location is None:
                pace.start()
                return Answer(response, pace)
            response.close()
            url = _redirected(url, location)
            route.trusted = False
        raise SourceError(f"it redirects more than {MAX_REDIRECTS} times, the last time to {url[:200]!r}")
    except BaseException:
        pace.stop()
        raise


def _redirected(url: str, location: str) -> str:
    try:
        target = urllib.parse.urljoin(url, urllib.parse.quote(location, encoding="latin-1", safe=string.punctuation))
        parts = urllib.parse.urlsplit(target)
    except ValueError as error:
        raise SourceError(f"it redirects to {location[:200]!r}, which is no URL: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise SourceError(f"it redirects to {location[:200]!r}: the scheme must be http or https")
    if parts.scheme == "http" and url.startswith("https:"):
        raise SourceError(f"it redirects from https to {location[:200]!r}, which is not encrypted")
    return target


def _open(url: str, headers: Mapping[str, str], route: _Route) -> http.client.HTTPResponse:
    # An opener of its own: urlopen keeps the proxies that the environment named at its first use. And only what is
    # needed: no files, no ftp, no redirects that are followed without a look.
    opener = urllib.request.OpenerDirector()
    try:
        request = urllib.request.Request(url, headers=dict(headers))
        if request.type not in ("http", "https") or not request.host or "@" in request.host:
            raise SourceError(f"{url[:200]!r} is not a URL of http or https, or carries a user name")
        proxy = urllib.request.getproxies().get(request.type, "")
        if "://" in proxy and not proxy.startswith("http") and not urllib.request.proxy_bypass(request.host):
            raise SourceError(f"{request.type}_proxy names no proxy of http or https")
        for handler in (urllib.request.ProxyHandler(), _Handler(request.host, route)):
            opener.add_handler(handler)
        return opener.open(request, timeout=TIMEOUT)
    except (OSError, http.client.HTTPException, ValueError) as error:
        route.pace.check()
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(error, (ValueError, http.client.InvalidURL)):
            raise SourceError(f"{url[:200]!r}, or the proxy for it, is not a well-formed URL: {error}") from error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise SourceError(
                f"its certificate is not trusted: {reason}; an own authority is named in SSL_CERT_FILE"
            ) from error
        if declined := re.match(r"Tunnel connection failed: (4\d\d)", str(reason)):
            raise SourceError(why_proxy_declines(int(declined[1]))) from error
        raise BrokenOffError(_text(reason)) from error


def why_proxy_declines(status: int) -> str:
    what = "wants a name and a password" if status == 407 else f"declines ({status})"
    return f"the proxy {what}; http_proxy and https_proxy take http://name:password@host:port"


def _text(error: object) -> str:
    return str(error) or type(error).__name__


class _Handler(urllib.request.HTTPSHandler):
    """http and https through connections that take the route's checked addresses."""

    def __init__(self, host: str, route: _Route) -> None:
        super().__init__()
        self.host, self.route = host, route

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection(http.client.HTTPConnection, req), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection(http.client.HTTPSConnection, req), req)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def _connection(self, kind: Callable[..., http.client.HTTPConnection], req: urllib.request.Request) -> Any:
        proxied = req.host != self.host

        def connection(host: str, **options: Any) -> http.client.HTTPConnection:
            made = kind(host, **options)
            # The one hook that http.client has for this; plain and TLS connections and proxy tunnels go through it.
            create = functools.partial(self.route.connect, self.host, proxied)
            setattr(made, "_create_connection", create)  # noqa: B010
            return made

        return connection


class _Route:
    """Which addresses a chain of redirects may lead to."""

    def __init__(self, pace: _Pace) -> None:
        self.trusted = True  # until the first redirect
        self.inside = False
        self.pace = pace

    def connect(self, host: str, proxied: bool, peer: tuple[str, int], timeout: float, *_: object) -> socket.socket:
        name, port = peer
        if proxied:
            written = literal(urllib.parse.urlsplit(f"//{host}").hostname or "")
            self._check(host, [] if written is None else [written])
        addresses = resolve(name, port)
        if not proxied:
            self._check(name, addresses)
        failure = OSError(f"no address is known for {name}")
        for address in addresses:
            try:
                return self.pace.watch(connect((address, port), timeout))
            except OSError as error:
                failure = error
        raise failure

    def _check(self, host: str, addresses: Sequence[str]) -> None:
        private = [address for address in addresses if not is_public(address)]
        if self.trusted:
            self.inside = bool(private) and len(private) == len(addresses)
        elif private and not self.inside:
            raise SourceError(
                f"it redirects to {host}, which is at {private[0]}, not a public address; a mirror of your own goes "
                "into RESNEXT_HUB_MIRROR"
            )


def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as the system knows them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def connect(address: tuple[str, int], timeout: float) -> socket.socket:
    return socket.create_connection(address, timeout)


class _Pace:
    """Shuts a connection down whose peer sends next to nothing."""

    def __init__(self) -> None:
        self.received = 0
        self._before = 0
        self._slow = False
        self._twin: socket.socket | None = None
        self._timer: threading.Timer | None = None
        self.start()

    def start(self) -> None:
        """Begin a window."""
        if self._timer is not None:
            self._timer.cancel()
        self._before = self.received
        self._timer = threading.Timer(WINDOW, self._look)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, sock: socket.socket) -> socket.socket:
        if self._twin is not None:
            self._twin.close()
        self._twin = sock.dup()  # TLS takes the socket itself over
        return sock

    def _look(self) -> None:
        if self.received - self._before >= SLOWEST * WINDOW:
            return self.start()
        self._slow = True
        if (twin := self._twin) is not None:
            with contextlib.suppress(OSError):
                twin.shutdown(socket.SHUT_RDWR)
        return None

    def check(self) -> None:
        if self._slow:
            raise SourceError(f"it sent only {self.received - self._before:,} bytes in {WINDOW:.0f} s")

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._twin is not None:
            self._twin.close()
            self._twin = None
