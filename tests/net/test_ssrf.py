"""A stranger's URI never makes this machine connect to an address that only it can see, however it is spelled.

Nothing is sent: names are looked up in a table, numbers by the C library (AI_NUMERICHOST asks nobody), and the
connector notes the addresses and goes nowhere, or answers itself with a redirect (`fuzz.targets.Peer`).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from resnext_hub.errors import FetchError
from resnext_hub.net.addresses import is_public as ours
from resnext_hub.processing_utils.uris import fetch

from ..fuzz.targets import Peer, is_public, quick_tls

pytestmark = pytest.mark.usefixtures("no_proxies")

PUBLIC = "93.184.216.34"

#: Names that lead inside: what clouds and systems give them, and what anybody may write into a zone of their own.
INSIDE = {
    "localhost": ["127.0.0.1", "::1"],
    "ip6-localhost": ["::1"],
    "metadata": ["169.254.169.254"],
    "metadata.google.internal": ["169.254.169.254", "fd20:ce::254"],
    "instance-data": ["169.254.169.254"],
    "instance-data.ec2.internal": ["fd00:ec2::254"],
    "metadata.azure.internal": ["169.254.169.254"],
    "metadata.tencentyun.com": ["169.254.0.23"],
    "metadata.aliyun.example": ["100.100.100.200"],
    "kubernetes.default.svc": ["10.96.0.1"],
    "127.0.0.1.nip.example": ["127.0.0.1"],
    "a.example.org": ["10.0.0.1"],
    "aaaa.example.org": ["::1"],
    "mapped.example.org": ["::ffff:169.254.169.254"],
    "nat64.example.org": ["64:ff9b::a9fe:a9fe"],
    "linklocal.example.org": ["fe80::1%eth0"],
    "mixed.example.org": [PUBLIC, "10.0.0.1"],
    "mixed6.example.org": [PUBLIC, "2606:2800:220:1::1", "fd00::1"],
    "spelled.example.org": ["0x7f000001"],
}

#: Well-formed, and they do lead inside: it is the address that refuses them.
LEADING_INSIDE = [
    # 127.0.0.0/8 and 0.0.0.0/8: dotted, decimal, hexadecimal, octal
    "http://127.0.0.1/", "http://127.255.255.254/", "http://2130706433/", "http://0x7f000001/", "http://017700000001/",
    "http://0/", "http://0x0/", "http://0.0.0.0/", "http://127.0.0.1:443/", "http://127.0.0.1:080/", "https://127.0.0.1/",
    # private networks
    "http://10.0.0.1/", "http://10.255.255.255/", "http://167772161/", "http://0xa000001/", "http://172.16.0.1/",
    "http://172.31.255.255/", "http://2886729729/", "http://192.168.0.1/", "http://3232235521/", "http://100.64.0.1/",
    # metadata services: AWS, GCP, Azure and most others; ECS; Alibaba; Oracle; Azure's host; AWS's DNS
    "http://169.254.169.254/latest/meta-data/", "http://2852039166/", "http://0xa9fea9fe/", "http://025177524776/",
    "http://0xA9.0xFE.0xA9.0xFE/", "http://169.254.170.2/v2/credentials", "http://100.100.100.200/",
    "http://192.0.0.192/", "http://168.63.129.16/", "http://169.254.169.253/", "http://[fd00:ec2::254]/",
    "http://[fd20:ce::254]/",
    # special blocks: protocol assignments, documentation, 6to4 relays, benchmarking, multicast, reserved, broadcast
    "http://192.0.0.1/", "http://192.0.2.1/", "http://192.88.99.1/", "http://198.18.0.1/", "http://198.51.100.1/",
    "http://203.0.113.1/", "http://224.0.0.1/", "http://240.0.0.1/", "http://255.255.255.255/",
    # IPv6: unspecified, loopback, link-local, site-local, unique local, multicast, documentation, discard, SRv6
    "http://[::]/", "http://[::1]/", "http://[0:0:0:0:0:0:0:1]/", "http://[0000:0000:0000:0000:0000:0000:0000:0001]/",
    "https://[::1]:8443/", "http://[fe80::1]/", "http://[fe80::a9fe:a9fe]/", "http://[fe80::1%1]/", "http://[fec0::1]/",
    "http://[fc00::1]/", "http://[ff02::1]/", "http://[2001:db8::1]/", "http://[100::1]/", "http://[3fff::1]/",
    "http://[5f00::1]/", "http://[fe80::1%11]/", "http://[fe80::1%251]/",
    # IPv4 inside IPv6: mapped, compatible, translated (SIIT), NAT64, 6to4, Teredo
    "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[::FFFF:0a00:0001]/",
    "http://[0:0:0:0:0:ffff:10.0.0.1]/", "http://[::ffff:169.254.169.254]/", "http://[::ffff:a9fe:a9fe]/",
    "http://[::127.0.0.1]/", "http://[::a9fe:a9fe]/", "http://[::ffff:0:127.0.0.1]/", "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::169.254.169.254]/", "http://[64:ff9b:1::a9fe:a9fe]/", "http://[2002:7f00:1::]/",
    "http://[2002:a9fe:a9fe::1]/", "http://[2001::80ff:fffe]/", "http://[2001:0:5db8:d822::f5ff:fffe]/",
    # digits, dots and letters that IDNA maps; characters that it drops; what urllib drops
    "http://１２７.０.０.１/", "http://①②⑦.⓪.⓪.①/", "http://⑯⑨.②⑤④.⑯⑨.②⑤④/", "http://127。0。0。1/", "http://127．0．0．1/",
    "http://127｡0｡0｡1/", "http://𝟏𝟐𝟕.𝟎.𝟎.𝟏/", "http://２１３０７０６４３３/", "http://1\u200b27.0.0.1/", "http://127.0.0.1\u00ad/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/", "http://loca\u00adlhost/", "http://127.0.\n0.1/", "http://\t127.0.0.1/",
    # where the host ends
    "http://127.0.0.1#@photos.example.org/", "http://127.0.0.1?@photos.example.org/",
    *(f"http://{name}/" for name in INSIDE), "http://localhost./", "http://LOCALHOST/",
    "http://METADATA.google.internal./computeMetadata/v1/",
]  # fmt: skip

#: Refused as no URLs, before anything is looked up: spellings that the C library or a lenient parser would take.
NOT_WELL_FORMED = [
    "http://127.1/", "http://127.0.1/", "http://0177.1/", "http://0x7f.1/", "http://0x7F.0.0.1/", "http://0177.0.0.1/",
    "http://00000177.0.0.1/", "http://127.000.000.001/", "http://127.0.0.1./", "http://10.1/", "http://012.0.0.1/",
    "http://0xa.0x0.0x0.0x1/", "http://192.168.257/", "http://0300.0250.1/", "http://169.254.43518/",
    "http://169.16689662/", "http://0251.0376.0251.0376/", "http://0251.254.0xa9.254/", "http://０x7f.1/",
    "http://93.184.216.34@127.0.0.1/", "http://127.0.0.1:80@93.184.216.34/", "http://photos.example.org@10.0.0.1/",
    "http://photos.example.org%40127.0.0.1/", "http://127.0.0.1\\@photos.example.org/",
    "http://photos.example.org\\@127.0.0.1/", "http://127.0.0.1%2f@photos.example.org/", "http://@127.0.0.1/",
    "http://127.0.0.1%00.example.org/", "http://%31%32%37.0.0.1/", "http://127.0.0.%31/", "http://127.0.0.1%20/",
    "http://127.0.0.1 /", "http://127.0.0.1;photos.example.org/", "http://127.0.0.1,photos.example.org/",
    "http://1.1.1.1 &@2.2.2.2# @127.0.0.1/", "http://[127.0.0.1]/", "http://[::1]@photos.example.org/",
    "http:\\\\127.0.0.1\\", "http:/127.0.0.1/", "http:127.0.0.1/", "http:///127.0.0.1/", "http:////127.0.0.1/",
    "http:@127.0.0.1/", "http://:80/", "http://[fe80::1%25e\x15\udc80\udc82]/", "http://[::1%\t\u00e9]/", "http://127.0.0.1:80:80/",
]  # fmt: skip

SPELLINGS = LEADING_INSIDE + NOT_WELL_FORMED


def look_up(host: str, port: int) -> list[str]:
    """As the system's resolver, with a table for names."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return [str(info[4][0]) for info in found]
    except (OSError, UnicodeError):
        if (name := host.rstrip(".")) in INSIDE:
            return INSIDE[name]
        raise socket.gaierror(-2, "Name or service not known") from None


class Recorder(Peer):
    """A `Peer` without answers, that lets every address through and notes it."""

    def __call__(self, address: tuple[str, int], timeout: float) -> socket.socket:
        self.addresses.append(address[0])
        raise ConnectionRefusedError("not connected: this is a test")


@pytest.fixture(autouse=True, scope="module")
def _certificates() -> Iterator[None]:
    with quick_tls():
        yield


def test_the_table_is_long_and_names_nothing_twice() -> None:
    assert len(SPELLINGS) == len(set(SPELLINGS)) > 140


@pytest.mark.parametrize("url", LEADING_INSIDE, ids=ascii)
def test_urls_of_private_addresses_are_refused(url: str) -> None:
    recorder = Recorder([])
    with pytest.raises(FetchError, match="refused"):
        fetch(url, resolver=look_up, connector=recorder)
    assert recorder.addresses == []
    with pytest.raises(FetchError, match="could not be reached"):  # it is a way in, where that is allowed
        fetch(url, resolver=look_up, connector=recorder, allow_private=True)
    assert any("x" in address or not is_public(address) for address in recorder.addresses)


@pytest.mark.parametrize("url", NOT_WELL_FORMED, ids=ascii)
@pytest.mark.parametrize("allow_private", [False, True])
def test_malformed_urls_are_not_looked_up(url: str, allow_private: bool) -> None:
    def resolver(host: str, port: int) -> list[str]:
        raise AssertionError(f"looked {host!r} up")

    recorder = Recorder([])
    with pytest.raises(FetchError, match="well-formed|user name"):
        fetch(url, resolver=resolver, connector=recorder, allow_private=allow_private)
    assert recorder.addresses == []


@pytest.mark.parametrize(("status", "hops"), [(301, 1), (302, 3), (303, 1), (307, 1), (308, 3)])
def test_a_redirect_to_each_is_refused(status: int, hops: int) -> None:
    for url in SPELLINGS:
        if not url.isascii() or not url.isprintable():  # a header holds neither
            continue
        onward = f"HTTP/1.1 {status} Moved\r\nLocation: /further\r\nContent-Length: 0\r\n\r\n"
        inside = f"HTTP/1.1 {status} Moved\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n"
        peer = Peer([answer.encode() for answer in [onward] * (hops - 1) + [inside]])
        look = with_photos(look_up)
        with pytest.raises(FetchError):
            fetch("http://photos.example.org/a.jpg", resolver=look, connector=peer)
        peer.close()
        # Some of the malformed are relative, and lead back to where they came from; nothing answers there any more.
        assert peer.addresses[:hops] == [PUBLIC] * hops, url
        assert set(peer.addresses) == {PUBLIC}, url
        if url in LEADING_INSIDE:
            assert len(peer.addresses) == hops, url


def with_photos(resolver: Callable[[str, int], list[str]]) -> Callable[[str, int], list[str]]:
    return lambda host, port: [PUBLIC] if host == "photos.example.org" else resolver(host, port)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_is_not_asked_for_an_address_that_is_written_out(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a name leads to, only the proxy knows; a number or a malformed URL does not get that far."""
    monkeypatch.setenv(f"{scheme}_proxy", "http://proxy.example.org:3128")
    asked = 0
    for url in SPELLINGS:
        recorder = Recorder([])
        with pytest.raises(FetchError):
            fetch(url.replace("http:", f"{scheme}:"), resolver=look_up, connector=recorder)
        host = url.split("//")[-1].split("/")[0].replace("\u00ad", "").rstrip(".").lower()
        named = host in INSIDE or host == "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ"
        if url.startswith(scheme + ":"):
            assert recorder.addresses == (["proxy.example.org"] if named else []), url
            asked += named
    assert scheme == "https" or asked == len(INSIDE) + 5


@pytest.mark.parametrize("name", INSIDE)
def test_one_private_address_among_public_ones_is_refused(name: str) -> None:
    for addresses in ([PUBLIC, *INSIDE[name]], [*INSIDE[name], PUBLIC, "2606:2800:220:1::1"]):
        recorder = Recorder([])
        with pytest.raises(FetchError, match="public"):
            fetch("http://photos.example.org/", resolver=lambda h, p, a=addresses: a, connector=recorder)
        assert recorder.addresses == []


@pytest.mark.parametrize("hop", ["/next", "http://photos.example.org/next", "//photos.example.org:8080/"])
def test_a_name_that_becomes_private_between_two_requests(hop: str) -> None:
    """Rebinding: each request has one lookup, which is checked, and the connection goes to what was checked."""
    answers = [[PUBLIC], ["169.254.169.254"], [PUBLIC]]
    peer = Peer([f"HTTP/1.1 302 Found\r\nLocation: {hop}\r\nContent-Length: 0\r\n\r\n".encode()])
    with pytest.raises(FetchError, match=r"169\.254\.169\.254"):
        fetch("http://photos.example.org/a.jpg", resolver=lambda h, p: answers.pop(0), connector=peer)
    peer.close()
    assert peer.addresses == [PUBLIC]
    assert answers == [[PUBLIC]]


@pytest.mark.parametrize("answer", [["localhost"], ["10.0.0.1", "what"], ["photos.example.org"], [""], ["1.1.1.1/8"]])
def test_a_resolver_that_answers_no_addresses(answer: list[str]) -> None:
    """They would be looked up once more, and not checked."""
    recorder = Recorder([])
    with pytest.raises(FetchError):
        fetch("http://photos.example.org/", resolver=lambda h, p: answer, connector=recorder)
    assert recorder.addresses == []


@given(st.ip_addresses())
@example(ipaddress.ip_address("2002:808:808::1"))  # 6to4 and Teredo, whatever is inside: Pythons differ in
@example(ipaddress.ip_address("2001:0:808:808::1"))  # what they call them
def test_addresses_that_python_calls_private_are_not_public(address: ipaddress.IPv6Address) -> None:
    if ours(str(address)):
        assert address.is_global
        assert not (address.version == 6 and (address.sixtofour or address.teredo))


# The grammar of what people and attackers write: every part of a URL from a list of its kinds, or anything.
ipv4 = st.ip_addresses(v=4)
numbers = st.one_of(
    ipv4.map(str),
    ipv4.map(lambda ip: str(int(ip))),
    ipv4.map(lambda ip: hex(int(ip))),
    ipv4.map(lambda ip: f"0{int(ip):o}"),
    ipv4.map(lambda ip: ".".join(f"0{byte:o}" for byte in ip.packed)),
    ipv4.map(lambda ip: ".".join(map(hex, ip.packed))),
    ipv4.map(lambda ip: f"{ip.packed[0]}.{int(ip) & 0xFFFFFF}"),
    ipv4.map(lambda ip: f"[::ffff:{ip}]"),
    ipv4.map(lambda ip: f"[64:ff9b::{ip}]"),
    ipv4.map(lambda ip: f"[2002:{int(ip) >> 16:x}:{int(ip) & 0xFFFF:x}::]"),
    st.ip_addresses(v=6).map(lambda ip: f"[{ip}]"),
)
hosts = st.one_of(numbers, st.sampled_from([*INSIDE, "photos.example.org", "bücher.example"]), st.text(max_size=20))
widths = st.sampled_from(["", "０１２３４５６７８９", "⓪①②③④⑤⑥⑦⑧⑨", "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗"])
urls = st.builds(
    lambda scheme, user, host, digits, port, rest: (
        f"{scheme}{user}{host.translate(str.maketrans('0123456789', digits)) if digits else host}{port}{rest}"
    ),
    st.sampled_from(["http://", "https://", "HTTP://", "http:", "http:/", "http:///", "http:\\\\"]),
    st.sampled_from(["", "", "", "me@", "me:word@", "photos.example.org\\@", "@"]),
    hosts,
    widths,
    st.one_of(st.just(""), st.integers(-1, 70000).map(lambda port: f":{port}"), st.text(max_size=3).map(":".__add__)),
    st.one_of(
        st.sampled_from(["", "/", "/a b.jpg?x#y", "?@10.0.0.1", "#@10.0.0.1", "\\@10.0.0.1"]), st.text(max_size=20)
    ),
)


@settings(max_examples=200)
@given(urls, st.lists(st.ip_addresses().map(str), max_size=3), st.lists(urls, max_size=2))
@example("http://photos.example.org/", [PUBLIC], ["http:10.0.0.1/"])
@example("http://[::1].example.org/", [PUBLIC], [])  # Python's versions differ in what the host is
def test_any_url_is_refused_or_goes_to_a_public_address(
    url: str, addresses: Sequence[str], hops: Sequence[str]
) -> None:
    def resolver(host: str, port: int) -> list[str]:
        try:
            return look_up(host, port)
        except OSError:
            return list(addresses)

    header = "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: "
    peer = Peer([f"{header}{hop}\r\n\r\n".encode("utf-8", "replace") for hop in hops])
    with pytest.raises(FetchError):
        fetch(url, resolver=resolver, connector=peer)
    peer.close()
