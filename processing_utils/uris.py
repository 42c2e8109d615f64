"""A URI -> bytes. The URI may come from a stranger, and the machine may stand inside a private network.

So: schemes from a short list; every address of the host looked up and checked; the connection made to the address
that was checked, not to the name again (a second lookup may answer differently: DNS rebinding); redirects checked hop
by hop; bytes, time and hops limited. Behind an HTTP proxy (``http_proxy``, ``https_proxy``, ``no_proxy``) it is the
proxy that looks names up and connects, so its rules hold for names; addresses written out are still refused here.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import os
import re
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..addresses import is_public, literal
from ..errors import FetchError, PrivateAddressError
from ..exchange import (
    DEFAULT_PORTS,
    REDIRECTS,
    Connector,
    Peer,
    ProxyError,
    RedirectError,
    Watchdog,
    connect,
    get,
    reach,
    redirected,
    resolve,
)
from ..packages import needed

__all__ = ["MAX_BYTES", "fetch", "scheme_of"]

MAX_BYTES = 64 * 2**20
MAX_REDIRECTS = 5
SCHEMES = ("http", "https", "data", "file")
USER_AGENT = "resnext-hub (image fetcher; +https://github.com/org/resnext-hub)"

Resolver = Callable[[str, int], Sequence[str]]


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
        hint = "" if scheme in SCHEMES else " For a file with this name, write ./ before it."
        raise FetchError(f"Unknown scheme {scheme!r} in {uri[:200]!r}; expected {', '.join(schemes)}.{hint}")
    try:
        if scheme == "data":
            return _decode_data_uri(uri, max_bytes)
        if scheme == "file":
            return _read_file_uri(uri, max_bytes)
        deadline, watchdog = time.monotonic() + timeout, Watchdog(timeout)
        limits = _Limits(max_bytes, allow_private, deadline, watchdog, resolver or resolve, connector or connect)
        return _fetch_http(uri, limits)
    except ValueError as error:  # from urllib, about what is no URL
        raise FetchError(
            f"{uri[:200]!r} is not a well-formed URL, or redirects to one that is not: {error}."
        ) from error


@dataclass(frozen=True)
class _Limits:
    """How much may be fetched, from where, and until when."""

    max_bytes: int
    allow_private: bool
    deadline: float
    watchdog: Watchdog
    resolver: Resolver
    connector: Connector

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def time_is_up(self) -> bool:
        return self.watchdog.bit or self.left() <= 0


def _fetch_http(url: str, limits: _Limits) -> bytes:
    try:
        for _ in range(MAX_REDIRECTS + 1):
            answer = _get(url, limits)
            if isinstance(answer, bytes):
                return answer
            url = answer
    finally:
        limits.watchdog.stop()
    raise FetchError(f"More than {MAX_REDIRECTS} redirects, the last one to {url}.")


def _decode_data_uri(uri: str, max_bytes: int) -> bytes:
    header, comma, body = uri.partition(",")
    if not comma:
        raise FetchError("The data: URI has no comma between its type and its content.")
    if len(body) > 3 * max_bytes:  # percent-encoding, its longest form
        raise FetchError(f"The data: URI holds more than the {max_bytes:,} bytes allowed.")
    # Piece by piece: unquote_to_bytes makes an object of 35 bytes or more of every escape, all at the same time.
    content = b"".join(urllib.parse.unquote_to_bytes(piece) for piece in re.findall(r"(?s)(?:%..|.){1,65536}", body))
    if header.lower().endswith(";base64"):
        try:
            content = base64.b64decode(re.sub(rb"\s", b"", content), validate=True)
        except binascii.Error as error:
            raise FetchError(f"The data: URI is not valid base64: {error}.") from error
    if len(content) > max_bytes:
        raise FetchError(f"The data: URI holds {len(content):,} bytes, more than the {max_bytes:,} allowed.")
    return content


def _read_file_uri(uri: str, max_bytes: int) -> bytes:
    parts = urllib.parse.urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise FetchError(f"{uri}: a file: URI must name a file on this machine, not on {parts.netloc!r}.")
    return read_file(Path(urllib.request.url2pathname(parts.path)), max_bytes)


def read_file(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most ``max_bytes``.

    Raises:
        FileNotFoundError, FetchError: it is not there; it is a folder or a device; it is too big; it cannot be read.
    """
    try:
        there = path.exists()
    except (OSError, ValueError) as error:  # too long for a name: somebody's base64, perhaps
        raise FetchError(f"{str(path)[:80]!r}… is not a valid path: {type(error).__name__}.") from error
    if not there:
        raise FileNotFoundError(f"No such file: {path}")
    if not path.is_file():
        raise FetchError(f"{path} is not a file, but a folder or a device.")
    try:
        with path.open("rb") as file:  # not the whole of it: some that say 0 bytes never end (Linux's /proc)
            data = file.read(max_bytes + 1)
            size = max(len(data), os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise FetchError(f"{path} cannot be read: {error.strerror}.") from error
    if size > max_bytes:
        raise FetchError(f"{path} has {size:,} bytes, more than the {max_bytes:,} allowed.")
    return data


def _get(url: str, limits: _Limits) -> bytes | str:
    """One request: the body, or where it redirects to."""
    headers = {"User-Agent": USER_AGENT, "Accept": "image/*", "Accept-Encoding": "identity"}
    try:
        with get(_in_ascii(url), headers, lambda peer: _connection(url, peer, limits)) as response:
            if target := redirected(url, response):
                return target
            if response.status in REDIRECTS:
                raise FetchError(f"{url} answered {response.status}, a redirect without a target.")
            if response.status != 200:
                raise FetchError(f"{url} answered {response.status} {response.reason}.")
            body = _read_body(url, response, limits.max_bytes)
        if limits.time_is_up():  # the end of the body may be where it was shut down
            raise FetchError(f"{url} did not answer in time.")
        return body
    except RedirectError as error:
        raise FetchError(f"{url} {error}.") from error
    except ProxyError as error:
        raise FetchError(f"{url} could not be downloaded: {error}.") from error
    except (OSError, http.client.HTTPException) as error:
        if limits.time_is_up():
            raise FetchError(f"{url} did not answer in time.") from error
        if isinstance(error, FetchError):
            raise
        raise FetchError(f"{url} could not be downloaded: {type(error).__name__}: {error}") from error


def _connection(url: str, peer: Peer, limits: _Limits) -> socket.socket:
    """A connection to an address of the host that was checked, or to the proxy."""
    if peer.origin is None:
        addresses = _checked(url, peer.name, _lookup(url, peer, limits.resolver), limits.allow_private)
    else:
        if literal(peer.origin) is not None:
            _checked(url, peer.origin, [peer.origin], limits.allow_private)
        addresses = [peer.name]
    try:
        return limits.watchdog.watch(reach(addresses, peer.port, limits.connector, limits.left))
    except OSError as error:
        raise FetchError(f"{url} could not be reached ({error}).") from error


def _in_ascii(url: str) -> str:
    """A well-formed URL as it is sent: host and path in ASCII, the scheme's own port left out."""
    scheme = scheme_of(url) or ""
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "", parts.port or DEFAULT_PORTS[scheme]
    if not host:  # of http:10.0.0.1 the path would be read as the host, by a proxy
        raise FetchError(f"{url[:200]!r} is not a well-formed URL: it has no host.")
    if ":" not in host:
        host = host.encode("idna").decode("ascii")
    elif match := re.fullmatch(r"([0-9a-f:.]+)(?:%(?:25(?=.))?([\w.~-]+))?", host, re.ASCII | re.IGNORECASE):
        host = f"[{match[1]}%25{match[2]}]" if match[2] else f"[{match[1]}]"  # RFC 6874
    else:
        raise FetchError(f"{url[:200]!r} is not a well-formed URL.")
    if parts.username is not None:
        raise FetchError(f"{url[:200]!r} contains a user name: download the image yourself and pass the file.")
    path = urllib.parse.quote(parts.path or "/", safe="/%:=&~+!$,;'@()*[]")
    query = urllib.parse.quote(parts.query, safe="/%:=&?~+!$,;'@()*[]")
    netloc = host if port == DEFAULT_PORTS[scheme] else f"{host}:{port}"
    result = f"{scheme}://{netloc}{path}" + (f"?{query}" if query else "")
    with needed("Fetching a URL", "urls"):  # only here: everything else works without it
        import validators

    if not validators.url(result, simple_host=True, strict_query=False, rfc_1034=True, rfc_2782=True):
        raise FetchError(f"{url[:200]!r} is not a well-formed URL.")
    return result


def _lookup(url: str, peer: Peer, resolver: Resolver) -> Sequence[str]:
    try:
        addresses = list(resolver(peer.name, peer.port))
    except (OSError, UnicodeError) as error:
        raise FetchError(f"{url}: cannot resolve {peer.name}: {error}") from error
    if not addresses:
        raise FetchError(f"{url}: cannot resolve {peer.name}: it has no address.")
    return addresses


def _checked(url: str, host: str, addresses: Sequence[str], allow_private: bool) -> Sequence[str]:
    if allow_private:
        return addresses
    for address in addresses:
        if not is_public(literal(address) or address):
            raise PrivateAddressError(
                f"{url} was refused: {host} is at {address}, which is not a public address. If you trust the URL's "
                "origin, pass allow_private=True."
            )
    return addresses


def _read_body(url: str, response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    if response.getheader("Content-Encoding", "identity").lower() != "identity":
        raise FetchError(f"{url} sent compressed content, which was not requested.")
    expected = response.length
    too_big = FetchError(f"{url} has more than the {max_bytes:,} bytes allowed.")
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
