"""A download that is refused never lies in torch.hub's folder, where other programs unpickle files by their names."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from resnext_hub.errors import CheckpointError
from resnext_hub.models.download import local_file
from resnext_hub.models.manifest import Hash

from ..support import hostile
from ..support.downloads import described, left, source_at
from ..support.faulty_server import FaultyServer

SYSTEM = (
    hostile.PROTO + b"}" + hostile.text("conv1.weight") + b"cposix\nsystem\n(" + hostile.text("touch ran") + b"tRs."
)


@pytest.mark.parametrize("digits", [0, 8, 64])
@pytest.mark.parametrize("kind", ["zip", "legacy", "neither"])
def test_a_refused_download_gets_no_name(
    kind: str, digits: int, server: FaultyServer, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server.content = {
        "zip": hostile.as_zip(SYSTEM), "legacy": hostile.as_legacy(SYSTEM), "neither": b"\x80\x02cposix\nsystem\n."
    }[kind]  # fmt: skip
    value = hashlib.sha256(server.content).hexdigest()[:digits]
    hashed = Hash("sha256" if digits == 64 else "sha256-prefix", value) if digits else None
    with pytest.raises(CheckpointError):
        local_file(described(source_at(server, bytes=None, hash=hashed)), progress=False)
    assert left(home) == []
    assert not list(home.rglob("*.json")), "nor is it remembered as the first copy"
    assert not Path("ran").exists()
