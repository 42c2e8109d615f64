"""Tell public addresses from those of this machine, its network, or a cloud's own services.

Imports nothing else of this package.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket

# Ranges that `ipaddress` of some supported Python versions still calls global (IANA special-purpose registries; a
# cloud's metadata service answers at 192.0.0.192), and Azure's host agent, at a public address that is only seen from
# inside.
_SPECIAL = (
    *map(ipaddress.ip_network, ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24")),
    *map(ipaddress.ip_network, ("3fff::/20", "5f00::/16", "64:ff9b:1::/48", "fec0::/10")),
)


def literal(host: str) -> str | None:
    """The address that a host is written as, in any form of the C library (0x7f.1, 2130706433, …); None for a name."""
    host = host.rstrip(".")  # some proxies drop it
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host))
    with contextlib.suppress(OSError):
        return socket.inet_ntoa(socket.inet_aton(host))
    return None


def is_public(address: str) -> bool:
    """True if anyone on the internet may have this IPv4 or IPv6 address. An IPv4 address inside an IPv6 one counts."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.sixtofour or ip.teredo:  # deprecated tunnels (RFC 7526); Python 3.13 calls them private
            return False
        inner = ip.ipv4_mapped
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):  # NAT64, RFC 6052
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is None and int(ip) < 2**32:  # IPv4-compatible, RFC 4291: deprecated and never public
            return False
        if inner:
            return is_public(str(inner))
    special = any(ip.version == network.version and ip in network for network in _SPECIAL)
    return ip.is_global and not special and not ip.is_multicast and not ip.is_reserved


def answers(host: str, port: int) -> bool:
    """True if something accepts a TCP connection. For addresses that the user configured, not a stranger's."""
    try:
        socket.create_connection((host, port), 5.0).close()
    except OSError:
        return False
    return True
