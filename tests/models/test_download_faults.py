"""Downloads through networks that fail: redirects, names, certificates, proxies, statuses, peers that keep us waiting.

Nothing is sent anywhere but to the server on loopback: resolver and connector are recording ones.
"""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from resnext_hub.errors import CheckpointError, UnreachableError
from resnext_hub.models import download, store
from resnext_hub.models.download import local_file
from resnext_hub.models.manifest import Hash, Source
from resnext_hub.models.store import Store
from resnext_hub.net import client
from resnext_hub.net.addresses import literal

from ..support.downloads import NAME, described, left, source_at
from ..support.faulty_server import CONTENT, DIGEST, FaultyServer
from ..support.wire import PUBLIC

pytestmark = pytest.mark.usefixtures("home")


class Net:
    """A resolver and a connector that record. What lies at PUBLIC is the server; nothing else is connected to."""

    def __init__(self, server: FaultyServer) -> None:
        self.server = server
        self.names: dict[str, Any] = {}  # addresses, or exceptions to raise, in turn
        self.looked_up: list[str] = []
        self.connected: list[str] = []

    def resolve(self, host: str, port: int) -> Sequence[str]:
        self.looked_up.append(host)
        if (written := literal(host)) is not None:
            return [written]
        answer = self.names.get(host, [PUBLIC])
        if isinstance(answer, Iterator):
            answer = next(answer)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def connect(self, address: tuple[str, int], timeout: float) -> socket.socket:
        self.connected.append(address[0])
        if address[0] not in (PUBLIC, "proxy.example.org"):  # the system looks the proxy's name up
            raise OSError("not connected: this is a test")
        return socket.create_connection(("127.0.0.1", self.server.server_port), timeout)


@pytest.fixture
def net(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> Net:
    net = Net(server)
    monkeypatch.setattr(client, "resolve", net.resolve)
    monkeypatch.setattr(client, "connect", net.connect)
    return net


def published(server: FaultyServer, scheme: str = "http") -> Source:
    return source_at(server, url=f"{scheme}://weights.example.org/{NAME}")


# Redirects.


def test_a_redirect_is_followed_and_the_rest_asked_for_there(server: FaultyServer, net: Net, home: Path) -> None:
    to_store = "redirect http://store.example.org/signed?key=1"
    server.script = [to_store, "cut 100000", to_store, "redirect /elsewhere"]
    assert local_file(described(published(server)), progress=False)[1] == DIGEST
    assert [r["path"] for r in server.seen] == [f"/{NAME}", "/signed?key=1"] * 2 + ["/elsewhere"]
    assert server.seen[-1]["Range"] == "bytes=100000-"
    assert server.seen[-1]["Host"] == "store.example.org"
    for request in server.seen:
        assert request["User-Agent"] == "resnext-hub (+https://github.com/org/resnext-hub)"
        assert request["Accept-Encoding"] == "identity"
    assert left(home) == [NAME]


@pytest.mark.parametrize(
    ("step", "message", "requests"),
    [
        ("loop", "10 redirects", 11),
        ("302", "302", 1),  # to nowhere
        ("redirect file:///etc/passwd", "http or https", 1),
        ("redirect ftp://store.example.org/w.pth", "http or https", 1),
        ("redirect data:,weights", "http or https", 1),
        ("redirect //[::1/", "URL", 1),
        ("redirect http://store.example.org:port/", "URL", 1),
        ("redirect http://127.0.0.1:99999999999999999999/", "URL", 1),
        ("redirect https://%C2%B969.254.169.254/", "ASCII", 1),
        ("redirect https://%2010.0.0.1/", "ASCII", 1),
        ("redirect http://me:secret@store.example.org/", "user name", 1),
        ("redirect http://long.example.org/", "URL", 1),
    ],
)
def test_redirects_that_are_not_followed(
    server: FaultyServer, net: Net, home: Path, step: str, message: str, requests: int, waits: list[float]
) -> None:
    server.always = step
    net.names["long.example.org"] = UnicodeError("label too long")  # what a label of 64 letters gets
    with pytest.raises(UnreachableError, match=message):
        local_file(described(published(server)), progress=False)
    assert len(server.seen) == requests
    assert set(net.connected) == {PUBLIC}
    assert waits == [], "it would end the same"
    assert left(home) == []


INSIDE = [
    "127.0.0.1", "localhost.", "2130706433", "0x7f.1", "0177.0.0.1", "0", "[::1]", "[::ffff:127.0.0.1]",
    "[64:ff9b::a9fe:a9fe]", "169.254.169.254", "[fd00:ec2::254]", "168.63.129.16", "100.100.100.200", "192.0.0.192",
    "10.0.0.1", "10.0.0.2.", "172.16.0.1", "192.168.1.1", "[fe80::1]", "metadata.example.org", "half.example.org",
]  # fmt: skip


@pytest.mark.parametrize("host", INSIDE)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_public_source_may_not_redirect_to_a_private_address(
    server: FaultyServer, net: Net, home: Path, host: str, scheme: str
) -> None:
    net.names |= {
        "localhost.": ["127.0.0.1", "::1"],
        "metadata.example.org": ["169.254.169.254"],
        "half.example.org": [PUBLIC, "10.0.0.1"],
    }
    server.always = f"redirect {scheme}://{host}/latest/"
    says = rf"{re.escape(host.strip('[]'))} is at [0-9a-f:.]+"
    with pytest.raises(UnreachableError, match=f"{says}.*RESNEXT_HUB_MIRROR"):
        local_file(described(published(server)), progress=False)
    assert net.connected == [PUBLIC], "nothing was sent there"
    assert left(home) == []


def test_the_connection_goes_to_the_address_that_was_checked(server: FaultyServer, net: Net) -> None:
    """A second lookup would answer with an address inside; there is none."""
    net.names["store.example.org"] = iter([[PUBLIC], ["127.0.0.1"]])
    server.script = ["redirect http://store.example.org/"]
    assert local_file(described(published(server)), progress=False)[1] == DIGEST
    assert net.connected == [PUBLIC, PUBLIC]


def test_a_private_mirror_may_redirect_to_a_private_store(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESNEXT_HUB_MIRROR", server.url)
    server.script = [f"redirect http://localhost:{server.server_port}/store"]
    assert local_file(described(published(server)), progress=False)[1] == DIGEST
    assert [r["path"] for r in server.seen] == [f"/{NAME}", "/store"]


@pytest.mark.parametrize("mirror", ["file:///srv/weights", "/srv/weights", "ftp://mirror.example.org", "http://"])
def test_a_mirror_that_is_no_web_server(
    server: FaultyServer, net: Net, monkeypatch: pytest.MonkeyPatch, mirror: str
) -> None:
    monkeypatch.setenv("RESNEXT_HUB_MIRROR", mirror)
    server.always = "404"
    with pytest.raises(UnreachableError, match=f"RESNEXT_HUB_MIRROR {mirror[:5]}"):
        local_file(described(published(server)), progress=False)
    assert net.connected == [PUBLIC]  # for the manifest's source


@pytest.mark.parametrize(
    "mirror", ["http://me:se/cret@a.example.org", "http:/me:secret@a.example.org", "https://me:secret@a.example.org/w/"]
)
def test_a_mirrors_password_is_never_repeated(
    server: FaultyServer, net: Net, home: Path, monkeypatch: pytest.MonkeyPatch, mirror: str,
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    caplog.set_level("DEBUG")
    monkeypatch.setenv("RESNEXT_HUB_MIRROR", mirror)
    server.always = "404"
    with pytest.raises(UnreachableError) as error:
        local_file(described(published(server)))
    printed = "\n".join([str(error.value), caplog.text, *capsys.readouterr()])
    assert "cret" not in printed
    assert "RESNEXT_HUB_MIRROR is ignored" in caplog.text
    assert net.connected == [PUBLIC], "the publisher is asked instead"


# Peers that keep us waiting.


def rules(monkeypatch: pytest.MonkeyPatch, **changes: float) -> None:
    """Change the policy of downloads."""
    monkeypatch.setattr(download, "POLICY", dataclasses.replace(download.POLICY, **changes))


@pytest.mark.parametrize("step", ["drip 0.05", "headers 0.05", "continue 0.05"])
def test_the_mirror_is_tried_after_a_server_that_is_too_slow(
    server: FaultyServer, home: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Every wait for a byte is short, and the whole would take for ever."""
    rules(monkeypatch, seconds=0.3)
    server.script = [step]
    mirror = source_at(server, url=f"{server.url}/mirror/{NAME}")
    assert local_file(described(source_at(server), mirror), progress=False)[1] == DIGEST
    assert left(home) == [NAME]


def test_the_pace_is_measured_window_by_window() -> None:
    assert (download.POLICY.seconds, download.POLICY.slowest) == (60, 1024)
    enough = 1024 * 60
    pace = client.Watchdog(60, 1024)
    try:
        for _ in range(3):
            pace.received += enough
            pace.look()
            pace.check()
        pace.received += enough - 1
        pace.look()
        with pytest.raises(client.RefusedError, match=r"61,439 .*60 s"):
            pace.check()
    finally:
        pace.stop()


def test_a_peer_that_keeps_pace_is_waited_for(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    rules(monkeypatch, seconds=0.3)
    server.script = ["slow 0.05"]
    assert local_file(described(source_at(server)), progress=False)[1] == DIGEST
    assert len(server.seen) == 1


def test_a_peer_that_falls_silent_is_asked_for_the_rest(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    rules(monkeypatch, silence=0.5)
    server.script = ["slow 60"]
    assert local_file(described(source_at(server)), progress=False)[1] == DIGEST
    assert [r.get("Range") for r in server.seen] == [None, "bytes=20000-"]


# Names.


def test_a_name_server_that_comes_back(server: FaultyServer, net: Net, waits: list[float]) -> None:
    failure = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    net.names["weights.example.org"] = iter([failure, failure, [PUBLIC]])
    assert local_file(described(published(server)), progress=False)[1] == DIGEST
    assert len(waits) == 2


def test_every_address_of_a_name_is_tried(server: FaultyServer, net: Net) -> None:
    net.names["weights.example.org"] = ["2606:2800:220:1::1", PUBLIC]
    assert local_file(described(published(server)), progress=False)[1] == DIGEST
    assert net.connected == ["2606:2800:220:1::1", PUBLIC]


# Certificates.


def with_tls(server: FaultyServer, folder: Path, name: str = "weights.example.org", **options: Any) -> Path:
    """Put the server behind TLS; the authority's certificate."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if name:
        authority.issue_cert(name, **options).configure_cert(context)
    else:  # self-signed: the authority's own certificate
        authority.cert_pem.write_to_path(folder / "own.pem")
        authority.private_key_pem.write_to_path(folder / "own.pem", append=True)
        context.load_cert_chain(folder / "own.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return folder / "ca.pem"


@pytest.mark.parametrize(
    ("trusted", "name", "age", "message"),
    [
        (False, "", 0, "self.signed certificate"),
        (False, "weights.example.org", 0, "unable to get local issuer certificate"),
        (True, "other.example.org", 0, "not valid for 'weights.example.org'"),
        (True, "weights.example.org", 9, "certificate has expired"),
    ],
)
def test_certificates_that_are_not_trusted(
    server: FaultyServer, net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float],
    trusted: bool, name: str, age: int, message: str,
) -> None:  # fmt: skip
    # A program may do so for servers of its own; it is not meant for ours.
    monkeypatch.setattr(ssl, "_create_default_https_context", ssl._create_unverified_context)
    options = {"not_after": datetime.now(UTC) - timedelta(days=age)} if age else {}
    authority = with_tls(server, tmp_path, name, **options)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    with pytest.raises(UnreachableError, match=f"certificate .*{message}.*SSL_CERT_FILE"):
        local_file(described(published(server, "https")), progress=False)
    assert (server.seen, waits) == ([], []), "nothing was asked for, nor tried again"


def test_cut_and_resumed_under_tls(
    server: FaultyServer, net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(with_tls(server, tmp_path)))
    server.script = ["cut 100000"]
    assert local_file(described(published(server, "https")), progress=False)[1] == DIGEST
    assert [r.get("Range") for r in server.seen] == [None, "bytes=100000-"]


def test_no_redirect_leaves_encryption(
    server: FaultyServer, net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(with_tls(server, tmp_path)))
    server.script = ["redirect http://weights.example.org/"]
    with pytest.raises(UnreachableError, match="https.*'http://"):
        local_file(described(published(server, "https")), progress=False)
    assert len(server.seen) == 1


def test_a_server_that_speaks_no_tls(server: FaultyServer, net: Net, home: Path) -> None:
    with pytest.raises(UnreachableError, match="SSL"):
        local_file(described(published(server, "https")), progress=False)
    assert left(home) == []


# Proxies.


def test_a_proxy_is_given_its_password_and_nobody_else(
    server: FaultyServer, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://me:p%40ss@proxy.example.org:3128")
    monkeypatch.setenv("no_proxy", "store.example.org")
    server.script = ["redirect http://store.example.org/w"]
    assert local_file(described(published(server)), progress=False)[1] == DIGEST
    assert net.looked_up == ["store.example.org"], "the proxy looks the other name up"
    assert net.connected == ["proxy.example.org", PUBLIC]
    assert [r["path"] for r in server.seen] == [f"http://weights.example.org/{NAME}", "/w"]
    assert [r.get("Proxy-Authorization") for r in server.seen] == ["Basic bWU6cEBzcw==", None]


@pytest.mark.parametrize("host", [h for h in INSIDE if literal(h.strip("[]"))])
def test_through_a_proxy_a_redirect_to_a_private_address_is_refused(
    server: FaultyServer, net: Net, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example.org:3128")
    server.always = f"redirect http://{host}/latest/"
    with pytest.raises(UnreachableError, match=rf"{re.escape(host.strip('[]'))} is at "):
        local_file(described(published(server)), progress=False)
    assert len(server.seen) == 1, "the proxy was not asked for it"


# Caches that another version has written.


@pytest.mark.parametrize("published_hash", [True, False])
def test_a_record_with_more_in_it_holds(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, published_hash: bool
) -> None:
    checkpoint = described(source_at(server) if published_hash else source_at(server, hash=None, bytes=None))
    path, _ = local_file(checkpoint, progress=False)
    record = Store().own_file(path, ".json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"version": 9, "signature": "…"}))
    with monkeypatch.context() as patch:
        patch.setattr(store, "sha256", lambda path: pytest.fail("hashed again"))
        assert local_file(checkpoint, progress=False)[1] == DIGEST
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(CheckpointError, match="is not the published file" if published_hash else "has changed"):
        local_file(checkpoint, progress=False)


def test_other_things_in_the_cache_are_left_alone(server: FaultyServer, home: Path) -> None:
    own = home / ".resnext-hub"
    own.mkdir(parents=True)
    (own / "index.v9").write_text("of a later version")
    (own / "blobs").mkdir()
    published_whole = Source(f"{server.url}/{NAME}", None, None, None, Hash("sha256", DIGEST))
    assert local_file(described(published_whole), progress=False)[1] == DIGEST
    assert (own / "index.v9").read_text() == "of a later version"
    assert (own / "blobs").is_dir()
