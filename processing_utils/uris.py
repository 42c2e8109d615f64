"""Fetch the bytes behind a URI: http and https by rules for URLs that a stranger may have chosen, data: and file:."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from ..errors import FetchError, PrivateAddressError
from ..net import client

MAX_BYTES = 64 * 2**20
SCHEMES = ("http", "https", "data", "file")
POLICY = client.Policy(
    user_agent="resnext-hub (image fetcher; +https://github.com/org/resnext-hub)",
    redirects=5,
    seconds=20.0,
    max_bytes=MAX_BYTES,
)


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
    timeout: float = POLICY.seconds,
    resolver: client.Resolver | None = None,
    connector: client.Connector | None = None,
) -> bytes:
    """The content behind an http, https, data or file URI.

    Args:
        schemes: those that are accepted; a server leaves "file" out.
        allow_private: connect to private, loopback and link-local addresses too.
        max_bytes: refuse more than this.
        timeout: seconds for everything, redirects included. (Name lookups have the system's own limit.)
        resolver: (host, port) -> addresses; the system's by default.
        connector: ((address, port), seconds) -> connected socket.

    Raises:
        FetchError: refused, unreachable, too big, too slow, or a status other than 200.
        FileNotFoundError: a file URI of a file that does not exist.
    """
    scheme = scheme_of(uri)
    if scheme not in schemes:
        hint = "" if scheme in SCHEMES else " For a file with this name, write ./ before it."
        raise FetchError(f"Unknown scheme {scheme!r} in {client.shown(uri)!r}; expected {', '.join(schemes)}.{hint}")
    if scheme != "data" and len(uri) > client.MAX_URL:  # urllib's time is quadratic in the length
        raise FetchError(f"The URI has {len(uri):,} characters, more than the {client.MAX_URL:,} allowed.")
    policy = dataclasses.replace(POLICY, seconds=timeout, max_bytes=max_bytes, allow_private=allow_private)
    try:
        if scheme not in ("http", "https"):
            return (_decode_data_uri if scheme == "data" else _read_file_uri)(uri, max_bytes)
        with client.get(uri, policy, {"Accept": "image/*"}, resolver=resolver, connector=connector) as answer:
            answer.require(200)
            return answer.body()
    except ValueError as error:  # from urllib
        raise FetchError(f"{uri[:200]!r} is not a well-formed URI: {error}.") from error
    except client.NotPublicError as error:
        advice = "If you trust the URL's origin, pass allow_private=True."
        raise PrivateAddressError(f"{client.shown(uri)} was refused: {error}. {advice}") from error
    except client.GetError as error:
        raise FetchError(f"{client.shown(uri)}: {error}.") from error


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
        raise FetchError(f"{client.shown(uri)}: a file: URI must name a file on this machine, not on {parts.netloc!r}.")
    return read_file(Path(urllib.request.url2pathname(parts.path)), max_bytes)


def read_file(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most ``max_bytes``; FileNotFoundError or FetchError otherwise."""
    try:
        there = path.exists()
    except (OSError, ValueError) as error:  # too long for a name: somebody's base64, perhaps
        raise FetchError(f"{str(path)[:80]!r}… is not a valid path: {type(error).__name__}.") from error
    if not there:
        raise FileNotFoundError(f"No such file: {path}")
    if not path.is_file():
        raise FetchError(f"{path} is not a file, but a folder or a device.")
    try:
        with path.open("rb") as file:  # not all of it: some that state 0 bytes never end (Linux's /proc)
            data = file.read(max_bytes + 1)
            size = max(len(data), os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise FetchError(f"{path} cannot be read: {error.strerror}.") from error
    if size > max_bytes:
        raise FetchError(f"{path} has {size:,} bytes, more than the {max_bytes:,} allowed.")
    return data
