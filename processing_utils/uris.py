"""A URI -> bytes. The URI may come from a stranger, and the machine may stand inside a private network.

So: schemes from a short list; every address of the host looked up and checked; the connection made to the address
that was checked, not to the name again (a second lookup may answer differently: DNS rebinding); redirects checked hop
by hop; bytes, time and hops limited. Behind an HTTP proxy (``http_proxy``, ``https_proxy``, ``no_proxy``) it is the
proxy that looks names up and connects, so its rules hold for names; addresses written out are still refused here.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import http.client
import os
import re
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..addresses import is_public, literal

__all__ = ["MAX_BYTES", "FetchError", "PrivateAddressError", "fetch", "scheme_of"]

MAX_BYTES = 64 * 2**20
MAX_REDIRECTS = 5
SCHEMES = ("http", "https", "data", "file")
PORTS = {"http": 80, "https": 443}
USER_AGENT = "resnext-hub (image fetcher; +https://github.com/org/resnext-hub)"

Resolver = Callable[[str, int], Sequence[str]]
Connector = Callable[[tuple[str, int], float], socket.socket]


class FetchError(OSError):
    """A URI that was refused or could not be fetched; the message says why."""


class PrivateAddressError(FetchError):
    """Refused, because the host is at an address that is not public. (A server does not repeat the message to a
    stranger: it names the address.)"""


def scheme_of(uri: str) -> str | None:
    """The lower-case scheme of a URI, None for a path. One letter is a Windows drive, not a scheme."""
    match = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):", uri)
    return match[1].lower() if match else None


def fetch(
    uri: str,
    *,
    schemes: Sequence[str] = SCHEMES,
    allow_private: bool = False,
    max_bytes: int = MAX_BYTES,
    timeout: float = 20.0,
    resolver: Resolver | None = None,
    connector: Connector | None = None,
) -> bytes:
    """The content behind an http, https, data or file URI.

    Args:
        schemes: those that are taken; a server leaves "file" out.
        allow_private: connect to private, loopback and link-local addresses too.
        max_bytes: refuse more than this.
        timeout: seconds for the whole of it, redirects included. (Looking a name up has the system's own limit.)
        resolver: (host, port) -> addresses; the system's by default.
        connector: ((address, port), seconds) -> connected socket.

    Raises:
        FetchError: refused, unreachable, too big, too slow, or a status other than 200.
        FileNotFoundError: a file URI of no file.
    """
    scheme = scheme_of(uri)
    if scheme not in schemes:
        hint = "" if scheme in SCHEMES else " For a file of that name write ./ before it."
        raise FetchError(f"{uri[:200]!r}: the scheme {scheme!r} is not one of {', '.join(schemes)}.{hint}")
    try:
        if scheme == "data":
            return _decode_data_uri(uri, max_bytes)
        if scheme == "file":
            return _read_file_uri(uri, max_bytes)
        return _fetch_http(uri, time.monotonic() + timeout, max_bytes, allow_private, resolver, connector)
    except ValueError as error:  # from urllib, about what is no URL
        raise FetchError(f"{uri[:200]!r} is not a well-formed URL, or leads to one that is not: {error}.") from error


def _fetch_http(
    url: str,
    deadline: float,
    max_bytes: int,
    allow_private: bool,
    resolver: Resolver | None,
    connector: Connector | None,
) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        answer = _get(url, deadline, max_bytes, allow_private, resolver or _resolve, connector or _connect)
        if isinstance(answer, bytes):
            return answer
        if scheme_of(answer) not in ("http", "https"):
            raise FetchError(f"{url} redirects to {answer[:200]!r}: the scheme must be http or https.")
        if scheme_of(url) == "https" and scheme_of(answer) == "http":
            raise FetchError(f"{url} redirects from https to {answer}, which is not encrypted: refused.")
        url = answer
    raise FetchError(f"More than {MAX_REDIRECTS} redirects, the last to {url}.")


def _decode_data_uri(uri: str, max_bytes: int) -> bytes:
    header, comma, body = uri.partition(",")
    if not comma:
        raise FetchError("A data: URI has a comma between its type and its content; this one has none.")
    if len(body) > 3 * max_bytes:  # percent-encoding, its longest form
        raise FetchError(f"The data: URI holds more than {max_bytes:,} bytes.")
    # Piece by piece: unquote_to_bytes makes an object of 35 bytes or more of every escape, all at the same time.
    content = b"".join(urllib.parse.unquote_to_bytes(piece) for piece in re.findall(r"(?s)(?:%..|.){1,65536}", body))
    if header.lower().endswith(";base64"):
        try:
            content = base64.b64decode(re.sub(rb"\s", b"", content), validate=True)
        except binascii.Error as error:
            raise FetchError(f"The data: URI is not valid base64: {error}.") from error
    if len(content) > max_bytes:
        raise FetchError(f"The data: URI holds {len(content):,} bytes, more than {max_bytes:,}.")
    return content


def _read_file_uri(uri: str, max_bytes: int) -> bytes:
    parts = urllib.parse.urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise FetchError(f"{uri}: a file: URI names a file of this machine, not of {parts.netloc!r}.")
    return read_file(Path(urllib.request.url2pathname(parts.path)), max_bytes)


def read_file(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most ``max_bytes``.

    Raises:
        FileNotFoundError, FetchError: it is not there; it is a folder or a device; it is too big; it cannot be read.
    """
    try:
        there = path.exists()
    except (OSError, ValueError) as error:  # too long for a name: somebody's base64, perhaps
        raise FetchError(f"{str(path)[:80]!r}… is not a path: {type(error).__name__}.") from error
    if not there:
        raise FileNotFoundError(f"There is no file {path}.")
    if not path.is_file():
        raise FetchError(f"{path} is not a file.")
    try:
        with path.open("rb") as file:  # not the whole of it: some that say 0 bytes never end (Linux's /proc)
            data = file.read(max_bytes + 1)
            size = max(len(data), os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise FetchError(f"{path} cannot be read: {error.strerror}.") from error
    if size > max_bytes:
        raise FetchError(f"{path} has {size:,} bytes, more than {max_bytes:,}.")
    return data


class _Watchdog:
    """Shuts a connection down when the time is up. A socket's own timeout is for one receive, and a peer that sends a
    byte at a time, in headers, in "100 Continue" or in the trailers of chunks, never lets it run out.
    """

    def __init__(self, deadline: float) -> None:
        self._timer = threading.Timer(max(0.0, deadline - time.monotonic()), self._bite)
        self._timer.daemon = True
        self._twin: socket.socket | None = None
        self.bit = False

    def watch(self, sock: socket.socket) -> socket.socket:
        self._twin = sock.dup()  # TLS takes the socket itself over
        self._timer.start()
        return sock

    def _bite(self) -> None:
        self.bit = True
        if self._twin is not None:
            with contextlib.suppress(OSError):
                self._twin.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._timer.cancel()
        if self._twin is not None:
            self._twin.close()


@dataclass(frozen=True)
class _Url:
    """The parts of a URL that may be fetched; host and target in ASCII."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def _get(
    url: str, deadline: float, max_bytes: int, allow_private: bool, resolver: Resolver, connector: Connector
) -> bytes | str:
    """One request: the body, or where it redirects to."""
    parts = _split(url)
    headers = {"User-Agent": USER_AGENT, "Accept": "image/*", "Accept-Encoding": "identity"}
    target = parts.target
    proxy = _proxy_of(parts)
    if proxy is None:
        addresses = _checked(url, parts.host, _lookup(url, parts.host, parts.port, resolver), allow_private)
        peer, port = parts.host, parts.port
    else:
        if literal(parts.host) is not None:
            _checked(url, parts.host, [parts.host], allow_private)
        peer, port, _ = proxy
        addresses = [peer]
    connection = _connection(parts.scheme, peer, port, deadline)
    if proxy is not None and parts.scheme == "https":
        connection.set_tunnel(parts.host, parts.port, proxy[2])
    elif proxy is not None:
        target = f"http://{parts.netloc}{parts.target}"
        headers |= {**proxy[2], "Host": parts.netloc}
    watchdog = _Watchdog(deadline)
    _pin(connection, url, addresses, port, connector, deadline, watchdog)
    try:
        connection.request("GET", target, headers=headers)
        with connection.getresponse() as response:
            if response.status in (301, 302, 303, 307, 308):
                location = response.getheader("Location")
                if not location:
                    raise FetchError(f"{url} redirects ({response.status}) to nowhere.")
                return urllib.parse.urljoin(url, location)
            if response.status != 200:
                raise FetchError(f"{url} answered {response.status} {response.reason}.")
            body = _read_body(url, response, max_bytes)
        if watchdog.bit:  # the end of the body may be where it was shut down
            raise FetchError(f"{url} did not answer in time.")
        return body
    except (OSError, http.client.HTTPException) as error:
        if watchdog.bit:
            raise FetchError(f"{url} did not answer in time.") from error
        if isinstance(error, FetchError):
            raise
        raise FetchError(f"{url} could not be fetched: {type(error).__name__}: {error}") from error
    finally:
        watchdog.close()
        connection.close()


def _split(url: str) -> _Url:
    scheme = scheme_of(url) or ""
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "", parts.port or PORTS[scheme]
    if not host:  # of http:10.0.0.1 the path would be read as the host, by a proxy
        raise FetchError(f"{url[:200]!r} is not a well-formed URL: it names no host.")
    if ":" in host and not re.fullmatch(r"[0-9a-f:.]+(%[\w.~-]+)?", host, re.ASCII | re.IGNORECASE):
        raise FetchError(f"{url[:200]!r} is not a well-formed URL.")
    if ":" not in host:
        host = host.encode("idna").decode("ascii")
    if parts.username is not None:
        raise FetchError(f"{url[:200]!r} carries a user name; fetch it yourself and pass the bytes.")
    path = urllib.parse.quote(parts.path or "/", safe="/%:=&~+!$,;'@()*[]")
    query = urllib.parse.quote(parts.query, safe="/%:=&?~+!$,;'@()*[]")
    result = _Url(scheme, host, port, path + (f"?{query}" if query else ""))
    whole = f"{scheme}://{result.netloc}{result.target}"
    import validators  # here, and ssl below: who fetches nothing (a served model) needs neither

    if not validators.url(whole, simple_host=True, strict_query=False, rfc_1034=True, rfc_2782=True):
        raise FetchError(f"{url[:200]!r} is not a well-formed URL.")
    return result


def _lookup(url: str, host: str, port: int, resolver: Resolver) -> Sequence[str]:
    try:
        addresses = list(dict.fromkeys(resolver(host, port)))
    except (OSError, UnicodeError) as error:
        raise FetchError(f"{url}: no address is known for {host}: {error}") from error
    if not addresses:
        raise FetchError(f"{url}: no address is known for {host}.")
    return addresses


def _resolve(host: str, port: int) -> Sequence[str]:
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _checked(url: str, host: str, addresses: Sequence[str], allow_private: bool) -> Sequence[str]:
    if allow_private:
        return addresses
    for address in addresses:
        if not is_public(literal(address) or address):
            raise PrivateAddressError(
                f"{url}: {host} is at {address}, which is not a public address: refused. If you trust where the URL "
                "comes from, pass allow_private=True."
            )
    return addresses


def _proxy_of(url: _Url) -> tuple[str, int, dict[str, str]] | None:
    """(host, port, headers) of the proxy that the environment names for this host, None for a direct connection."""
    address = urllib.request.getproxies().get(url.scheme)
    if not address or urllib.request.proxy_bypass(f"{url.host}:{url.port}"):
        return None
    parts = urllib.parse.urlsplit(address if "://" in address else f"http://{address}")
    if not parts.hostname:
        raise FetchError(f"The {url.scheme}_proxy {address!r} names no host.")
    headers: dict[str, str] = {}
    if parts.username is not None:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    return parts.hostname, parts.port or 80, headers


def _connection(scheme: str, host: str, port: int, deadline: float) -> http.client.HTTPConnection:
    timeout = max(0.01, deadline - time.monotonic())
    if scheme == "https":
        import ssl

        return http.client.HTTPSConnection(host, port, timeout=timeout, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port, timeout=timeout)


def _connect(address: tuple[str, int], timeout: float) -> socket.socket:
    return socket.create_connection(address, timeout)


def _pin(
    connection: http.client.HTTPConnection,
    url: str,
    addresses: Sequence[str],
    port: int,
    connector: Connector,
    deadline: float,
    watchdog: _Watchdog,
) -> None:
    """Make the connection go to the addresses that were checked; TLS still verifies the host's name."""

    def create(*_: object) -> socket.socket:
        errors: list[str] = []
        for address in addresses:
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                break
            try:
                return watchdog.watch(connector((address, port), seconds))
            except OSError as error:
                errors.append(f"{address}: {error}")
        raise FetchError(f"{url} could not be reached ({'; '.join(errors) or 'out of time'}).")

    # The one hook that http.client has for this; plain and TLS connections and proxy tunnels all go through it.
    setattr(connection, "_create_connection", create)  # noqa: B010


def _read_body(url: str, response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    if response.getheader("Content-Encoding", "identity").lower() != "identity":
        raise FetchError(f"{url} answered compressed content, which was not asked for.")
    expected = response.length
    too_big = FetchError(f"{url} is bigger than {max_bytes:,} bytes.")
    if expected is not None and expected > max_bytes:
        raise too_big
    body = bytearray()
    while chunk := response.read1(65536):
        body += chunk
        if len(body) > max_bytes:
            raise too_big
    if expected is not None and len(body) != expected:
        raise FetchError(f"{url} was cut off after {len(body):,} of {expected:,} bytes.")
    return bytes(body)
