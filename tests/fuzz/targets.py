"""What is fuzzed: one call, and what must hold of it. Used by the fuzzers (atheris) and by tests/test_fuzz.py."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
from resnext_hub.data.labels import list_images
from resnext_hub.data.source import shards
from resnext_hub.errors import FetchError, ImageError, SourceError
from resnext_hub.models.manifest import Preprocessing, default_manifest
from resnext_hub.processing_utils import uris
from resnext_hub.processing_utils.preprocessing import GRADES, load_pixels, normalise
from resnext_hub.processing_utils.uris import MAX_BYTES as MAX_IMAGE_BYTES

MAX_PIXELS = 128 * 128  # a fuzzer wants many small images
MAX_BYTES = 100_000
BOUNDS = {"reference": 0, "close": 2, "fast": 2}  # of 255, from the reference
PNG = b"\x89PNG\r\n\x1a\n"


@cache
def _preset() -> Preprocessing:
    return replace(default_manifest().resolve("nvidia_resneXt").preprocessing, resize_size=40, crop_size=35)


def prepare_image(data: bytes) -> bool:
    """Bytes -> the input of a network, in every grade: all prepare it and keep their bounds, or all refuse it.

    Raises:
        AssertionError: they disagree, or the input is not one.
        Exception: whatever is not an ImageError.
    """
    results, messages = [], []
    for grade in GRADES:
        try:
            results.append(load_pixels(data, _preset(), grade, max_pixels=MAX_PIXELS))
        except ImageError as error:
            messages.append(str(error))
            results.append(None)
    assert all(len(message) < 1000 for message in messages), "a message repeats what it should not"
    prepared = [pixels for pixels in results if pixels is not None]
    assert len(prepared) in (0, len(GRADES)), [pixels is not None for pixels in results]
    for grade, pixels in zip(GRADES, prepared, strict=False):
        assert pixels.shape == (35, 35, 3)
        assert np.abs(pixels.astype(int) - prepared[0].astype(int)).max() <= BOUNDS[grade], grade
        assert np.isfinite(normalise(pixels, _preset())).all()
    return bool(prepared)


def repair(data: bytes) -> bytes:
    """Right checksums for the chunks of a PNG, so that a mutation gets past them."""
    if not data.startswith(PNG):
        return data
    out, at = bytearray(data), len(PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack(">L", data[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(data):
            break
        out[end : end + 4] = struct.pack(">L", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(out)


def read_source(path: Path) -> tuple[int, int]:
    """List a file and read its items, but no URI and no absolute path that it names; (images read, errors).

    Raises:
        AssertionError: an image has more bytes than one may have.
        Exception: whatever is not a SourceError, or of an item a FetchError or FileNotFoundError.
    """
    read = refused = 0
    try:
        for shard in shards([str(path)], 4):
            for item in shard.items():
                if not item.name.startswith(str(path)) and (":" in item.name or item.name.startswith("/")):
                    continue
                try:
                    content = item.read()
                except (FetchError, FileNotFoundError):
                    refused += 1
                else:
                    assert len(content) <= MAX_IMAGE_BYTES
                    read += bool(content)
        list_images([str(path)])
    except SourceError:
        refused += 1
    return read, refused


def repair_tar(data: bytes, start: int = 0) -> bytes:
    """Right checksums for the headers of a tar, so that a mutation gets past them."""
    out = bytearray(data)
    for at in range(start, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)


# The registries of IANA for special purposes (IPv4: 2024-10, IPv6: 2024-10), multicast, and what Azure keeps for
# itself: written out, so that nothing is shared with the code that is judged.
NOT_PUBLIC = [
    ipaddress.ip_network(block)
    for block in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("::/8", "64:ff9b:1::/48", "100::/64", "2001:db8::/32", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10"),
        *("fec0::/10", "ff00::/8"),
    )
]
WRAPPED = {"64:ff9b::/96": 0, "2002::/16": 80, "2001::/32": 0}  # NAT64, 6to4, Teredo: bits right of the IPv4 address


def is_public(address: str) -> bool:
    """Whether a connection may be made to it."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    for block, shift in WRAPPED.items():
        if ip.version == 6 and ip in ipaddress.ip_network(block):
            inner = (int(ip) >> shift) & 0xFFFFFFFF
            return is_public(str(ipaddress.IPv4Address(inner ^ (0xFFFFFFFF if block == "2001::/32" else 0))))
    if ip.version == 6 and ip.ipv4_mapped:
        return is_public(str(ip.ipv4_mapped))
    return not any(ip.version == block.version and ip in block for block in NOT_PUBLIC)


class _Near(socket.socket):
    """One end of a pair, which does not know the options of TCP."""

    def setsockopt(self, *_: object) -> None:
        pass


class Peer:
    """A connector that goes nowhere: it notes the addresses, and each connection holds a prepared answer."""

    def __init__(self, answers: list[bytes]) -> None:
        self.addresses: list[str] = []
        self._answers = answers
        self._ends: list[socket.socket] = []

    def __call__(self, address: tuple[str, int], timeout: float) -> socket.socket:
        self.addresses.append(address[0])
        assert is_public(address[0]), f"connected to {address[0]}"
        assert 0 <= address[1] < 65536
        if not self._answers:
            raise ConnectionRefusedError("not connected: this is a test")
        pair, far = socket.socketpair()
        near = _Near(fileno=pair.detach())
        self._ends.append(far)
        near.settimeout(timeout)
        far.sendall(self._answers.pop(0)[:65_536])  # less than the pair's buffer: it does not block
        far.shutdown(socket.SHUT_WR)
        return near

    def close(self) -> None:
        for end in self._ends:
            end.close()


@contextlib.contextmanager
def quick_tls() -> Iterator[None]:
    """Without the system's certificates, which take longer to read than all the rest."""
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with mock.patch.object(ssl, "create_default_context", return_value=bare):
        yield


def fetch_uri(data: bytes) -> bytes | None:
    """A URI, the addresses that its hosts have, and what the peers answer, apart by zero bytes -> what was fetched.

    Raises:
        AssertionError: a connection to an address that is not public was asked for, or a limit was passed.
        Exception: whatever is not a FetchError.
    """
    uri, addresses, *answers = [*data.split(b"\0"), b""][: 2 + 8]
    names = addresses.decode("latin-1").split(",")

    def resolver(host: str, port: int) -> list[str]:
        try:  # numbers in any spelling, as the C library takes them; nothing is asked for over the network
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
            return [str(info[4][0]) for info in found]
        except (OSError, UnicodeError):
            return [name for name in names if name]

    peer = Peer([answer for answer in answers if answer])
    try:
        body = uris.fetch(
            uri.decode("utf-8", "surrogateescape"),
            schemes=("http", "https", "data"),
            max_bytes=MAX_BYTES,
            timeout=10,
            resolver=resolver,
            connector=peer,
        )
    except FetchError:
        return None
    finally:
        peer.close()
    assert isinstance(body, bytes)
    assert len(body) <= MAX_BYTES
    return body


def quietly() -> None:
    """Pillow warns of what is odd in a file; that is no finding."""
    warnings.simplefilter("ignore")
