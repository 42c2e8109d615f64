"""A GET over HTTP under a policy: which addresses it may reach, how many redirects it follows, how long it may take.

Images from anyone's URL (``processing_utils/uris.py``) have one policy, downloads of checkpoints
(``models/download.py``) another. For both, the connection goes to an address that was looked up and checked, not to the
name again, because a second lookup may answer differently (DNS rebinding). Every redirect is checked in the same way.
Proxies are those of the environment (``http_proxy``, ``https_proxy``, ``no_proxy``), by the rules of `urllib.request`.
A proxy resolves names itself, so only the proxy can refuse what they lead to; addresses written as numbers are still
checked here.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import functools
import http.client
import math
import re
import socket
import string
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from ..packages import needed
from .addresses import is_public, literal

MAX_URL = 8192  # characters: Python's parsing and IDNA take time quadratic in the length
CHUNK = 1 << 20
REDIRECTS = {301, 302, 303, 307, 308}
RETRIED = {408, 425, 429, 500, 502, 503, 504}
DEFAULT_PORTS = {"http": 80, "https": 443}
_NAME = r"(?:\[[0-9a-f:.]+(?:%[\w.~-]+)?\]|[\w.-]+)"
_HOST = re.compile(rf"{_NAME}(?::\d{{0,5}})?", re.ASCII | re.IGNORECASE)
_PROXY = re.compile(
    rf"(?:(?P<scheme>https?)://)?(?:(?P<login>[^/]*)@)?(?P<host>{_NAME})(?::(?P<port>\d{{1,5}}))?/?",
    re.ASCII | re.IGNORECASE,
)

#: (host, port) -> its addresses.
Resolver = Callable[[str, int], Sequence[str]]
#: (address, port), seconds -> connected socket.
Connector = Callable[[tuple[str, int], float], socket.socket]


class GetError(Exception):
    """A GET that failed. The message is a clause without a full stop, and printable whatever the server sent."""

    def __init__(self, message: str) -> None:
        super().__init__(_printable(message))


class RefusedError(GetError):
    """Another attempt would end in the same way."""


class NotPublicError(RefusedError):
    """The host is at an address that is not public, and the policy allows none. The message names the address."""


class BrokenOffError(GetError):
    """The connection broke or was never made, or the server is busy; another attempt may succeed.

    ``wait`` is how many seconds the server asks for, None if it does not ask.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Policy:
    """The limits of a GET."""

    user_agent: str
    redirects: int  #: how many are followed; they stay with http and https, and never leave https
    seconds: float  #: for everything, redirects included (name lookups have the system's own limit)
    #: Bytes per second. If given, ``seconds`` is a window instead: the answer must begin within one, and may then take
    #: as long as it likes, if every window brings this much.
    slowest: int | None = None
    silence: float = math.inf  #: seconds for each connection attempt, and without a byte
    max_bytes: int | None = None  #: refuse a longer body; only `Answer.body` checks it
    allow_private: bool = False  #: connect to private, loopback and link-local addresses too
    #: The URL is the user's or the project's own. It is sent as it is, may be at a private address, and may then
    #: redirect to others; if it is at a public one, its redirects must be too. Other URLs are normalised and validated
    #: (needs the package validators).
    trusted: bool = False


def get(
    url: str,
    policy: Policy,
    headers: Mapping[str, str] | None = None,
    *,
    resolver: Resolver | None = None,
    connector: Connector | None = None,
) -> Answer:
    """The answer to a GET, redirects followed, whatever its status. The caller closes it.

    ``connector`` makes every connection, plain, for TLS and to proxies; TLS still verifies the host's name. It is given
    an address that was checked, or a proxy's name.

    Raises RefusedError if the URL or a redirect is malformed or not allowed, if the certificate is not trusted, if the
    proxy declines, or if there was no answer in time; BrokenOffError if no answer came.
    """
    request = _Request(policy, resolver or resolve, connector or connect)
    try:
        for _ in range(policy.redirects + 1):
            response = request.send(url, headers or {})
            target = redirected(url, response)
            if target is None:
                if policy.slowest is not None:
                    request.watchdog.start()
                return Answer(request, response)
            request.close()
            url, request.redirected = target, True
        raise RefusedError(f"more than {policy.redirects} redirects, the last one to {shown(url)!r}")
    except BaseException:
        request.close()
        request.watchdog.stop()
        raise


class Answer:
    """A server's answer: ``status``, ``headers``, and its body. The caller closes it."""

    def __init__(self, request: _Request, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self._request, self._response = request, response

    def require(self, *statuses: int) -> None:
        """Raise BrokenOffError if the server is busy, RefusedError for any other status or compressed content."""
        # The standard phrase, never the server's own text.
        phrase = f"the server answered {self.status} {http.client.responses.get(self.status, '')}".rstrip()
        if self.status in RETRIED:
            raise BrokenOffError(phrase, _seconds_asked(self.headers.get("Retry-After", "")))
        if self.status == 407:
            raise RefusedError(_why_proxy_declines(self.status))
        if self.status not in statuses:
            raise RefusedError(phrase + (", a redirect without a target" if self.status in REDIRECTS else ""))
        encoding = self.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise RefusedError(f"the server sent compressed content ({encoding[:50]!r}), which was not requested")

    def read(self) -> bytes:
        """The next bytes, b"" at the end. Does not notice a body that is shorter than announced; raises as `body`."""
        watchdog = self._request.watchdog
        try:
            chunk = self._response.read1(CHUNK)
        except (OSError, ValueError, http.client.HTTPException) as error:
            watchdog.check()
            raise BrokenOffError(_failed(error)) from error
        if not chunk:
            watchdog.check()  # the body may have ended because the watchdog closed it
        watchdog.received += len(chunk)
        return chunk

    def body(self) -> bytes:
        """The complete body.

        Raises BrokenOffError if the connection broke or ended before the announced length, and RefusedError if there
        are more bytes than the policy allows, or if the time is up.
        """
        limit = math.inf if self._request.policy.max_bytes is None else self._request.policy.max_bytes
        expected, body = self._response.length, bytearray()
        while (expected or 0) <= limit and (chunk := self.read()):
            body += chunk
            if len(body) > limit:
                break
        if max(expected or 0, len(body)) > limit:
            raise RefusedError(f"the file has more than the {limit:,} bytes allowed")
        if expected is not None and len(body) != expected:
            raise BrokenOffError(f"cut off after {len(body):,} of {expected:,} bytes")
        return bytes(body)

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self._request.watchdog.stop()
        self._request.close()


class _Request:
    """A request and its redirects, which share one policy and one time limit."""

    def __init__(self, policy: Policy, resolver: Resolver, connector: Connector) -> None:
        self.policy, self.resolver, self.connector = policy, resolver, connector
        self.watchdog = Watchdog(policy.seconds, policy.slowest)
        self.redirected = False
        self.inside = policy.allow_private
        self.close: Callable[[], object] = lambda: None

    def send(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """One request, without its redirects."""
        try:
            return self._send(_Target(url, self.policy.trusted), headers)
        except (ValueError, http.client.InvalidURL) as error:
            if isinstance(error, OSError):  # only ssl.SSLCertVerificationError is both an OSError and a ValueError
                advice = "to trust your own CA, set SSL_CERT_FILE"
                raise RefusedError(f"its certificate is not trusted: {error}; {advice}") from error
            where = f"the server redirects to {shown(url)!r}, which is " if self.redirected else ""
            why = "" if "@" in str(error) else f": {error}"  # it may repeat a password
            raise RefusedError(f"{where}not a well-formed URL{why}") from error
        except (OSError, http.client.HTTPException) as error:
            self.watchdog.check()
            if declined := re.match(r"Tunnel connection failed: (\d+)", str(error)):
                status = int(declined[1])
                kind = RefusedError if 400 <= status < 500 else BrokenOffError
                raise kind(_why_proxy_declines(status)) from error
            raise BrokenOffError(_failed(error)) from error

    def _send(self, target: _Target, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        headers = {
            "Host": target.netloc, "User-Agent": self.policy.user_agent, "Accept-Encoding": "identity", **headers,
            "Connection": "close",
        }  # fmt: skip
        proxy = _proxy(target)
        peer = proxy or target
        connection = _connection(target.scheme == "https" or peer.scheme == "https", peer.host, peer.port)
        # The only hook of http.client for this; plain connections, TLS and proxy tunnels all use it.
        setattr(connection, "_create_connection", functools.partial(self._connect, proxy and target.host))  # noqa: B010
        selector = target.selector
        if proxy is not None and target.scheme == "https":
            connection.set_tunnel(target.host, target.port, proxy.authorization)
        elif proxy is not None:
            selector = f"http://{target.netloc}{selector}"
            headers |= proxy.authorization
        try:
            connection.request("GET", selector, headers=headers)
            response = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        if connection.sock:
            connection.sock.close()  # the response has a handle of its own
        self.close = response.close
        return response

    def _connect(self, origin: str | None, peer: tuple[str, int], *_: object) -> socket.socket:
        """A connection to a host, at an address that was checked; or to the proxy, if ``origin`` is the host."""
        name, port = peer
        if origin is None:
            addresses = self._resolve(name, port)
            self._check(name, addresses)
        else:
            written = literal(origin)
            self._check(origin, [] if written is None else [written])
            addresses = [name]
        errors: list[str] = []
        for address in dict.fromkeys(addresses):
            left = min(self.policy.silence, self.watchdog.left())
            if left <= 0:
                errors.append("timed out")
                break
            try:
                return self.watchdog.watch(self.connector((address, port), left))
            except OSError as error:
                errors.append(f"{address}: {error}")
        self.watchdog.check()
        raise BrokenOffError(f"{name} could not be reached ({'; '.join(errors)})")

    def _resolve(self, name: str, port: int) -> Sequence[str]:
        try:
            addresses = self.resolver(name, port)
        except OSError as error:
            raise BrokenOffError(f"cannot resolve {name}: {error}") from error
        if not addresses:
            raise BrokenOffError(f"cannot resolve {name}: it has no address")
        return addresses

    def _check(self, host: str, addresses: Sequence[str]) -> None:
        trusted = self.policy.trusted and not self.redirected
        if self.inside and not trusted:
            return
        private = [address for address in addresses if not is_public(literal(address) or address)]
        if trusted:
            self.inside = bool(private) and len(private) == len(addresses)
        elif private:
            where = "the server redirects, and " if self.redirected else ""
            raise NotPublicError(f"{where}{host} is at {private[0]}, which is not a public address")


def _connection(tls: bool, host: str, port: int) -> http.client.HTTPConnection:
    if not tls:
        return http.client.HTTPConnection(host, port)
    import ssl  # here, because ssl does not load in Triton's Python, and a served model fetches nothing

    # A fresh context: programs replace http.client's default with one that verifies nothing.
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return http.client.HTTPSConnection(host, port, context=context)


class _Target:
    """The parts of a URL as they are sent; ValueError if it is malformed, RefusedError if not supported."""

    def __init__(self, url: str, trusted: bool) -> None:
        if len(url) > MAX_URL:
            raise RefusedError(f"the URL has {len(url):,} characters, more than the {MAX_URL:,} allowed")
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise RefusedError("the URL contains a user name, which is not supported")
        if not trusted:
            parts = _normalised(parts)
        self.scheme, self.netloc = parts.scheme, unquote(parts.netloc)
        # The host must be unambiguous, since a proxy will parse it again.
        if self.scheme not in DEFAULT_PORTS or not _HOST.fullmatch(self.netloc):
            raise ValueError("expected http or https, and a host in ASCII")
        host = urlsplit(f"//{self.netloc}")
        self.host, self.port = host.hostname or "", host.port or DEFAULT_PORTS[self.scheme]
        self.selector = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _normalised(parts: SplitResult) -> SplitResult:
    """Normalise an untrusted URL: host and path in ASCII, the scheme's default port left out."""
    host, port = parts.hostname or "", parts.port
    if not host:  # a proxy would take the path of http:10.0.0.1 for the host
        raise ValueError("it has no host")
    if ":" not in host:
        host = host.encode("idna").decode("ascii")
    elif match := re.fullmatch(r"([0-9a-f:.]+)(?:%(?:25(?=.))?([\w.~-]+))?", host, re.ASCII | re.IGNORECASE):
        host = f"[{match[1]}%25{match[2]}]" if match[2] else f"[{match[1]}]"  # RFC 6874
    else:
        raise ValueError("its host is not an IPv6 address")
    safe = "/%:=&~+!$,;'@()*[]"
    path, query = quote(parts.path or "/", safe=safe), quote(parts.query, safe=safe + "?")
    netloc = host if port in (None, 0, DEFAULT_PORTS.get(parts.scheme)) else f"{host}:{port}"
    parts = SplitResult(parts.scheme, netloc, path, query, "")
    with needed("Fetching a URL", "urls"):  # only here: everything else works without it
        import validators

    if not validators.url(parts.geturl(), simple_host=True, strict_query=False, rfc_1034=True, rfc_2782=True):
        raise ValueError("its host, port or path is malformed")
    return parts


@dataclass(frozen=True)
class _Proxy:
    scheme: str
    host: str
    port: int
    authorization: dict[str, str]


def _proxy(target: _Target) -> _Proxy | None:
    """The proxy of the environment for this request, if there is one."""
    proxy = urllib.request.getproxies().get(target.scheme)
    if not proxy or any(map(urllib.request.proxy_bypass, (target.netloc, f"{target.host}:{target.port}"))):
        return None
    match = _PROXY.fullmatch(proxy)
    port = int(match["port"] or 80) if match else 0
    if match is None or port > 65535:  # the message does not repeat the URL, which may hold a password
        raise RefusedError(f"the environment variable {target.scheme}_proxy must be the URL of an http or https proxy")
    user, _, password = map(unquote, (match["login"] or "").partition(":"))
    authorization: dict[str, str] = {}
    if user and password:
        authorization["Proxy-Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    return _Proxy((match["scheme"] or "http").lower(), match["host"].strip("[]"), port, authorization)


def _why_proxy_declines(status: int) -> str:
    what = "asks for a user name and password" if status == 407 else f"refused the connection ({status})"
    return f"the proxy {what}; set http_proxy and https_proxy to http://name:password@host:port"


def redirected(url: str, response: http.client.HTTPResponse) -> str | None:
    """The complete URL that an answer redirects to; None if it is not a redirect.

    Raises RefusedError if the target is not a URL, has another scheme than http and https, or leads from https to http.
    """
    location = response.headers.get("Location")
    if response.status not in REDIRECTS or not location:
        return None
    where = f"the server redirects to {shown(location)!r}"
    if len(location) > MAX_URL:
        raise RefusedError(f"{where}…, which has more than {MAX_URL:,} characters")
    try:  # http.client decodes headers as Latin-1, but most are UTF-8
        target = urljoin(url, quote(location, encoding="latin-1", safe=string.punctuation))
        scheme = urlsplit(target).scheme
    except ValueError as error:
        raise RefusedError(f"{where}, which is not a valid URL: {error}") from error
    if scheme not in DEFAULT_PORTS:
        raise RefusedError(f"{where}: the scheme must be http or https")
    if scheme == "http" and urlsplit(url).scheme == "https":
        raise RefusedError(f"the server redirects from https to {shown(location)!r}, which is not encrypted")
    return target


def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as the system knows them; OSError or UnicodeError if there are none."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def connect(address: tuple[str, int], timeout: float) -> socket.socket:
    return socket.create_connection(address, timeout)


def shown(url: str) -> str:
    """A URL for messages: printable, without user name and password, at most 200 characters."""
    return _printable(re.sub(r"^([^/?#]*//)[^/?#]*@", r"\1***@", url)[:200])


def _printable(text: str) -> str:
    """Replace unprintable characters, which could control a terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _failed(error: Exception) -> str:
    return f"the connection failed: {type(error).__name__}: {error}"[:500]


def _seconds_asked(retry_after: str) -> float | None:
    """The seconds from now that a Retry-After asks for; None if it is malformed."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, TypeError, IndexError, OverflowError):  # the parser fails in many ways on malformed dates
        return None


class Watchdog:
    """Shuts a connection down when the time is up, or when too few bytes arrived in a window of time.

    A socket's own timeout is for one receive. A server that sends a byte at a time, in headers, in "100 Continue" or in
    the trailers of chunks, never reaches it. ``slowest`` is the number of bytes per second that every window of
    ``seconds`` must bring; None if there is only one window.
    """

    def __init__(self, seconds: float, slowest: int | None = None) -> None:
        self.seconds, self.slowest = seconds, slowest
        self.received = 0  # bytes, counted by the caller
        self.expired = False
        self._stopped = False
        self._twin: socket.socket | None = None
        self._timer: threading.Timer | None = None
        self._lock = threading.RLock()  # for the timer's thread and the caller's
        self.start()

    def start(self) -> None:
        """Begin a new window, and cancel the present one."""
        with self._lock:
            self._before = self.received
            self._end = time.monotonic() + self.seconds
            if self._timer is not None:
                self._timer.cancel()
            if not self._stopped:
                self._timer = threading.Timer(max(0.0, self.seconds), self.look)
                self._timer.daemon = True
                self._timer.start()

    def left(self) -> float:
        """Seconds until the window ends."""
        return self._end - time.monotonic()

    def watch(self, sock: socket.socket) -> socket.socket:
        """Watch this connection instead of the one before."""
        with self._lock:
            if self._twin is not None:
                self._twin.close()
            self._twin = sock.dup()  # TLS takes the socket itself over
            if self.expired:  # while it was made
                self._shut_down()
        return sock

    def look(self) -> None:
        """End a window: begin the next one if it brought enough, else shut the connection down."""
        with self._lock:
            if self.slowest is not None and self.received - self._before >= self.slowest * self.seconds:
                self.start()
            else:
                self.expired = not self._stopped
                self._shut_down()

    def check(self) -> None:
        """Raise a `RefusedError` if the time is up."""
        if self.slowest is not None and self.expired:
            raise RefusedError(f"the server sent only {self.received - self._before:,} bytes in {self.seconds:.0f} s")
        if self.slowest is None and (self.expired or self.left() <= 0):
            raise RefusedError("the server did not answer in time")

    def _shut_down(self) -> None:
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
