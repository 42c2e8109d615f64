"""From URLs to one verified file, against a loopback server that misbehaves by script."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from resnext_hub import cli
from resnext_hub.errors import CheckpointError, UnreachableError
from resnext_hub.files import sha256
from resnext_hub.models import checkpoints, download, store
from resnext_hub.models.download import local_file
from resnext_hub.models.entrypoints import load
from resnext_hub.models.manifest import Hash, Source, default_manifest
from resnext_hub.models.store import Store

from ..support.downloads import NAME, described, left, publish_small, source_at
from ..support.faulty_server import CONTENT, DIGEST, FaultyServer

pytestmark = pytest.mark.usefixtures("home")


def test_a_good_download(server: FaultyServer, home: Path, capfd: Any) -> None:
    path, digest = local_file(described(source_at(server)), progress=False)
    assert path.read_bytes() == CONTENT
    assert digest == DIGEST
    assert left(home) == [NAME]
    assert server.seen[0]["User-Agent"].startswith("resnext-hub")
    assert server.seen[0]["Accept-Encoding"] == "identity"
    local_file(described(source_at(server)), progress=False)
    assert len(server.seen) == 1, "fetched once"
    assert capfd.readouterr() == ("", "")


def test_the_bar_is_on_stderr(server: FaultyServer, capfd: Any) -> None:
    local_file(described(source_at(server)), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "100" in err


@pytest.mark.parametrize("share", range(1, 10))
def test_cut_and_resumed(server: FaultyServer, home: Path, share: int) -> None:
    at = len(CONTENT) * share // 10
    server.script = [f"cut {at}"]
    path, _ = local_file(described(source_at(server)), progress=False)
    assert path.read_bytes() == CONTENT
    assert [r.get("Range") for r in server.seen] == [None, f"bytes={at}-"]
    assert server.seen[1]["If-Range"] == '"one"'
    assert left(home) == [NAME]


def test_a_server_without_ranges_restarts_the_download(server: FaultyServer) -> None:
    server.script = ["cut 100000", "whole"]
    path, _ = local_file(described(source_at(server)), progress=False)
    assert path.read_bytes() == CONTENT


def test_a_file_that_changed_between_parts_is_downloaded_again(server: FaultyServer) -> None:
    other = os.urandom(len(CONTENT))
    server.content, server.etag, server.script = other, '"old"', ["cut 100000"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "ATTEMPTS", 1)
        with pytest.raises(UnreachableError, match="100,000 of 400,000"):
            local_file(described(source_at(server)), progress=False)
    server.content, server.etag = CONTENT, '"one"'
    path, _ = local_file(described(source_at(server)), progress=False)
    assert server.seen[-1]["If-Range"] == '"old"'
    assert path.read_bytes() == CONTENT


def test_a_file_is_on_the_disk_before_it_gets_its_name(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(f"{b}"), replace(a, b))[1])
    path, _ = local_file(described(source_at(server)), progress=False)
    assert calls[-3:] == [str(Store().part(path)), str(path), str(path.parent)]


@pytest.mark.parametrize(("extra", "words"), [(-1000, "not the published file"), (1000, "range")])
def test_where_the_manifest_knows_no_length_the_announced_one_is_kept(
    server: FaultyServer, home: Path, extra: int, words: str
) -> None:
    server.always = f"announce {extra}"
    with pytest.raises(UnreachableError, match=words):
        local_file(described(source_at(server, bytes=None)), progress=False)
    assert left(home) == []
    server.always, server.script = "good", [f"announce {extra}"] * (extra > 0)
    assert local_file(described(source_at(server, bytes=None)), progress=False)[1] == DIGEST


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("404", "404"),
        ("html", "page"),
        ("gzip", "compressed .*'gzip'"),
        ("wrong", "is not the published file"),
    ],
)
def test_the_mirror_is_tried_after_a_wrong_answer(server: FaultyServer, home: Path, step: str, message: str) -> None:
    mirror = source_at(server, url=f"{server.url}/mirror/{NAME}")
    server.script = [step]
    path, _ = local_file(described(source_at(server), mirror), progress=False)
    assert path.read_bytes() == CONTENT
    assert [r["path"] for r in server.seen] == [f"/{NAME}", f"/mirror/{NAME}"]
    path.unlink()
    server.script = [step, step]
    with pytest.raises(UnreachableError, match=f"{NAME} .*{message}.*/mirror/.*{message}.*RESNEXT_HUB_MIRROR"):
        local_file(described(source_at(server), mirror), progress=False)
    assert left(home) == []


# What is known of a file, and when it is looked at again.


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    seen: list[Path] = []
    original = store.sha256
    monkeypatch.setattr(store, "sha256", lambda path: (seen.append(path), original(path))[1])
    return seen


def test_a_file_state_is_hashed_once(server: FaultyServer, hashed: list[Path]) -> None:
    checkpoint = described(source_at(server))
    path, _ = local_file(checkpoint, progress=False)
    assert len(hashed) == 1
    local_file(checkpoint, progress=False)
    assert len(hashed) == 1
    local_file(checkpoint, progress=False, again=True)
    assert len(hashed) == 2
    os.utime(path, ns=(1, 1))
    local_file(checkpoint, progress=False)
    assert len(hashed) == 3
    Store().own_file(path, ".json").write_text('{"version": 99}')  # a later version's record
    local_file(checkpoint, progress=False)
    assert len(hashed) == 4


def test_a_flipped_bit_is_found(server: FaultyServer) -> None:
    checkpoint = described(source_at(server))
    path, _ = local_file(checkpoint, progress=False)
    before = path.stat()
    path.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="is not the published file"):
        local_file(checkpoint, progress=False)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # rot on the disk: the state is as it was
    local_file(checkpoint, progress=False)
    with pytest.raises(CheckpointError, match="is not the published file"):
        local_file(checkpoint, progress=False, again=True)


def test_a_file_without_a_published_hash_must_stay_as_it_was(server: FaultyServer, caplog: Any) -> None:
    checkpoint = described(source_at(server, hash=None, bytes=None))
    path, _ = local_file(checkpoint, progress=False)
    assert caplog.text.count("unverified") == 1
    local_file(checkpoint, progress=False)
    assert caplog.text.count("unverified") == 1
    path.write_bytes(b"another")
    with pytest.raises(CheckpointError, match=rf"{DIGEST} .*[0-9a-f]{{64}}"):
        local_file(checkpoint, progress=False)


def test_a_file_left_by_the_originals_is_used(server: FaultyServer, home: Path) -> None:
    home.mkdir(parents=True)
    (home / NAME).write_bytes(CONTENT)
    assert local_file(described(source_at(server)), progress=False) == (home / NAME, DIGEST)
    assert server.seen == []


# From the file to the network.


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "zip"])
def test_networks_are_mapped_and_only_old_files_converted(server: FaultyServer, home: Path, legacy: bool) -> None:
    checkpoint, expected = publish_small(server, legacy)
    for _ in range(2):
        network = load(checkpoint, progress=False)
        assert all(torch.equal(v, expected[k]) for k, v in network.state_dict().items())
        assert all(p.data_ptr() % 64 == 0 for p in network.parameters())
    mapped = [name for name in left(home) if name.endswith(".mapped")]
    assert len(mapped) == legacy
    file = str(home / (mapped[0] if legacy else "w.pth"))
    assert file in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "zip"])
def test_training_a_mapped_network_leaves_the_file_alone(server: FaultyServer, home: Path, legacy: bool) -> None:
    checkpoint, expected = publish_small(server, legacy)
    network = load(checkpoint, progress=False)
    digests = {p: sha256(p) for p in home.rglob("*") if p.is_file()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(network.fc.weight, expected["fc.weight"])
    assert network.bn1.num_batches_tracked == 8
    assert {p: sha256(p) for p in home.rglob("*") if p.is_file()} == digests
    again = load(checkpoint, progress=False, verify=True)
    assert torch.equal(again.fc.weight, expected["fc.weight"])


def test_without_a_head_its_weights_are_not_read(server: FaultyServer) -> None:
    checkpoint, expected = publish_small(server, False)
    network = load(checkpoint, 0, progress=False)
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 512)
    assert "fc.weight" not in network.state_dict()
    other = load(checkpoint, 3, progress=False)
    assert other.fc.weight.shape == (3, 512)
    assert 0 < other.fc.weight.abs().max() < 1
    assert torch.equal(other.conv1.weight, expected["conv1.weight"])


def test_an_unaligned_archive_is_converted(server: FaultyServer, tmp_path: Path) -> None:
    _, expected = publish_small(server, False)
    path = tmp_path / "w2.pth"
    with zipfile.ZipFile(io.BytesIO(server.content)) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():  # written again without torch's padding
            new.writestr(zipfile.ZipInfo(info.filename), old.read(info))
    state = checkpoints.mapped_state_dict(path, "0" * 64, Store())
    assert all(torch.equal(state[k], v) for k, v in expected.items())
    assert all(v.data_ptr() % 64 == 0 for v in state.values())


def test_a_legacy_file_is_converted_without_being_read_into_memory(
    server: FaultyServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, expected = publish_small(server, True)
    read = checkpoints.read_state_dict

    def mapped_only(path: Path, *, mmap: bool = False, **options: Any) -> Any:
        assert mmap, f"{path} was read into memory"
        return read(path, mmap=mmap, **options)

    monkeypatch.setattr(checkpoints, "read_state_dict", mapped_only)
    network = load(checkpoint, progress=False)
    assert all(torch.equal(v, expected[k]) for k, v in network.state_dict().items())


def test_legacy_tensors_that_share_memory_and_those_that_are_views(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {"whole": base, "row": base[1], "turned": base.T, "half": base[0].half(), "empty": torch.empty(0)}
    path = tmp_path / "w.pth"
    torch.save({"epoch": 3, "state_dict": state}, path, _use_new_zipfile_serialization=False)
    store, copy = Store(tmp_path), tmp_path / "copy"
    store.own.mkdir()
    assert checkpoints._convert(path, copy, store, vouched=False)
    found = checkpoints.read_state_dict(copy, mmap=True)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in state.items())


def test_safetensors_mirrors(server: FaultyServer, home: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    checkpoint, expected = publish_small(server, True)
    server.content = safetensors.save({k: v.contiguous() for k, v in expected.items()})
    digest = hashlib.sha256(server.content).hexdigest()
    mirror = Source(f"{server.url}/model.safetensors", None, "safetensors", None, Hash("sha256", digest))
    server.script = ["404"]
    network = load(dataclasses.replace(checkpoint, sources=(*checkpoint.sources, mirror)), progress=False)
    assert all(torch.equal(v, expected[k]) for k, v in network.state_dict().items())
    assert f"{checkpoint.name}-{digest[:8]}.safetensors" in left(home)


def test_manifest_mirrors_have_hashes() -> None:
    mirrors = [source for checkpoint in default_manifest().checkpoints.values() for source in checkpoint.sources[1:]]
    assert {source.hash and source.hash.kind for source in mirrors} == {"sha256"}


def test_the_cache_on_the_command_line(
    server: FaultyServer, home: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _ = publish_small(server, True)
    manifest = dataclasses.replace(default_manifest(), checkpoints={checkpoint.name: checkpoint})
    monkeypatch.setattr(cli, "default_manifest", lambda: manifest)
    load(checkpoint, progress=False)
    own = home / ".resnext-hub"
    (own / "other.pth.0123abcd-7.part").write_bytes(b"1" * 1000)
    os.utime(own / "other.pth.0123abcd-7.part", (1, 1))
    (own / "running.pth.0123abcd-7.part").write_bytes(b"1" * 1000)
    (own / "gone.pth.0123456789abcdef.mapped").write_bytes(b"1" * 1000)
    (home / "somebody_elses.pth").write_bytes(b"1")

    assert cli.main(["cache", "list"]) == 0
    out = capsys.readouterr().out
    assert "resnet50_ssl, verified, 20" in out
    assert "mapped copy of resnet50_ssl" in out
    assert out.count("can be removed: ") == 2
    assert "somebody_elses" not in out

    assert cli.main(["cache", "verify"]) == 0
    assert hashlib.sha256(server.content).hexdigest() in capsys.readouterr().out
    (copy_file,) = own.glob("w.pth.*.mapped")
    good = copy_file.read_bytes()
    at = len(good) // 2
    copy_file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    assert cli.main(["cache", "verify"]) == 3
    assert copy_file.name in capsys.readouterr().err
    load(checkpoint, progress=False)
    assert copy_file.read_bytes() == good
    copy_file.write_bytes(good[: len(good) // 2])
    load(checkpoint, progress=False)
    assert copy_file.read_bytes() == good

    (home / "w.pth").write_bytes(b"x")
    assert cli.main(["cache", "verify"]) == 3
    assert "w.pth" in capsys.readouterr().err
    (home / "w.pth").write_bytes(server.content)

    assert cli.main(["cache", "prune"]) == 0
    assert "Removed other.pth.0123abcd-7.part" in capsys.readouterr().out
    assert (home / "somebody_elses.pth").exists()
    assert [name for name in left(home) if "resnext-hub" in name and name.endswith(".mapped")]
    assert [p.name for p in own.glob("*.part")] == ["running.pth.0123abcd-7.part"]
    (own / "running.pth.0123abcd-7.part").unlink()
    whole = left(home)
    (home / "w.pth").unlink()
    assert cli.main(["cache", "prune"]) == 0
    assert left(home) == ["somebody_elses.pth"]

    load(checkpoint, progress=False)
    assert left(home) == whole
    assert cli.main(["cache", "remove", "no_such_variant"]) == 2
    assert left(home) == whole
    assert cli.main(["cache", "remove", checkpoint.name]) == 0
    assert left(home) == ["somebody_elses.pth"]

    assert cli.main(["download", checkpoint.name, "--to", str(tmp_path / "usb")]) == 0
    assert left(home) == ["somebody_elses.pth"]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "usb"))
    monkeypatch.setenv("RESNEXT_HUB_OFFLINE", "1")
    load(checkpoint, progress=False)
