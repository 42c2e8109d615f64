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

import http.client
import socket
import ssl
from collections.abc import Mapping, Sequence

from .. import exchange
from ..addresses import is_public, literal
from ..exchange import Peer, ProxyError, RedirectError, Watchdog, connect, reach, redirected, resolve

__all__ = ["Answer", "BrokenOffError", "SourceError", "get"]

TIMEOUT = 30.0  # seconds without a byte
WINDOW = 60.0  # seconds in which an answer must begin, and over which its pace is measured
SLOWEST = 1024  # bytes a second
CHUNK = 1 << 20
MAX_REDIRECTS = 10


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
            try:
                target = redirected(url, response)
            except RedirectError as error:
                response.close()
                raise SourceError(f"the server {error}") from error
            if target is None:
                pace.start(WINDOW)
                return Answer(response, pace)
            response.close()
            url = target
            route.trusted = False
        raise SourceError(f"the server redirects more than {MAX_REDIRECTS} times, the last time to {url[:200]!r}")
    except BaseException:
        pace.stop()
        raise


def _open(url: str, headers: Mapping[str, str], route: _Route) -> http.client.HTTPResponse:
    try:
        return exchange.get(url, headers, route.connect)
    except ProxyError as error:
        raise SourceError(str(error)) from error
    except ssl.SSLCertVerificationError as error:  # an OSError and a ValueError
        raise SourceError(
            f"its certificate is not trusted: {error}; to trust your own CA, set SSL_CERT_FILE"
        ) from error
    except (ValueError, http.client.InvalidURL) as error:
        raise SourceError(f"{url[:200]!r}, or the proxy for it, is not a well-formed URL: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        route.pace.check()
        raise BrokenOffError(_text(error)) from error


def _text(error: object) -> str:
    return str(error) or type(error).__name__


class _Route:
    """Which addresses a chain of redirects may lead to."""

    def __init__(self, pace: _Pace) -> None:
        self.trusted = True  # until the first redirect
        self.inside = False
        self.pace = pace

    def connect(self, peer: Peer) -> socket.socket:
        if peer.origin is not None:
            written = literal(peer.origin)
            self._check(peer.origin, [] if written is None else [written])
        addresses = resolve(peer.name, peer.port)
        if peer.origin is None:
            self._check(peer.name, addresses)
        return self.pace.watch(reach(addresses, peer.port, connect, lambda: TIMEOUT))

    def _check(self, host: str, addresses: Sequence[str]) -> None:
        private = [address for address in addresses if not is_public(address)]
        if self.trusted:
            self.inside = bool(private) and len(private) == len(addresses)
        elif private and not self.inside:
            raise SourceError(
                f"the server redirects to {host} at {private[0]}, which is not a public address; to use your own "
                "mirror, set RESNEXT_HUB_MIRROR"
            )


class _Pace(Watchdog):
    """Lets a peer go on as long as it keeps pace, window after window."""

    def __init__(self) -> None:
        self.received = self._before = 0
        super().__init__(WINDOW)

    def start(self, seconds: float) -> None:
        self._before = self.received
        super().start(seconds)

    def look(self) -> None:
        if self.received - self._before >= SLOWEST * WINDOW:
            self.start(WINDOW)
        else:
            super().look()

    def check(self) -> None:
        if self.bit:
            raise SourceError(f"the server sent only {self.received - self._before:,} bytes in {WINDOW:.0f} s")
