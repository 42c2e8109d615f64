"""make verify-weights: every source of a manifest is fetched by the real download code, from loopback here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resnext_hub.maintenance.verify_weights import main
from resnext_hub.models import download

from ..conftest import ROOT
from ..support.faulty_server import weights_file

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def checkout(tmp_path: Path, served: Any) -> Path:
    """The real manifest, as it is written, but every URL on loopback, with a small file behind it.

    Mirrors have whole hashes, NVIDIA's files none, the others prefixes; every other one has a length.
    """
    text = (ROOT / "weights_manifest.json").read_text()
    for i, source in enumerate(sources(text)):
        header = json.dumps({"__metadata__": {"url": source["url"]}}).encode()
        mirrored = len(header).to_bytes(8, "little") + header  # safetensors of nothing
        content = mirrored if source["format"] == "safetensors" else weights_file(10_000)
        digest = hashlib.sha256(content).hexdigest()
        (served.folder / f"{i}.pth").write_bytes(content)
        hashed = {"kind": "sha256-prefix", "value": digest[:8]}
        if source["format"] == "safetensors":
            hashed = {"kind": "sha256", "value": digest}
        before, after = text.split(json.dumps(source["url"]))
        after = re.sub(
            r'"bytes": (\w+),(\s*)"hash": (null|\{[^}]*\})',
            rf'"bytes": {len(content) if i % 2 else "null"},\g<2>"hash": '
            + ("null" if "nvidia" in source["url"] else json.dumps(hashed)),
            after,
            count=1,
        )
        text = f"{before}{json.dumps(f'{served.url}/{i}.pth')}{after}"
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "models").symlink_to(ROOT / "models")
    (folder / "weights_manifest.json").write_text(text)
    return folder


def sources(text: str) -> list[dict[str, Any]]:
    checkpoints = json.loads(text)["checkpoints"].values()
    return [source for checkpoint in checkpoints for source in checkpoint["sources"] if source["url"]]


def results(folder: Path) -> dict[str, Any]:
    return {Path(row["place"]).name: row for row in json.loads((folder / "results.json").read_text())}


@pytest.fixture
def run(checkout: Path, tmp_path: Path) -> Callable[..., int]:
    return lambda *options: main(["--checkout", str(checkout), "--folder", str(tmp_path / "work"), *options])


def test_complete_hashes_are_filled_in_and_nothing_else_changes(
    run: Callable[..., int], checkout: Path, served: Any, tmp_path: Path
) -> None:
    before = (checkout / "weights_manifest.json").read_text()
    assert run("--write") == 1  # NVIDIA states no hash: seen once is not verified
    after = (checkout / "weights_manifest.json").read_text()
    states = [row["state"] for row in results(tmp_path / "work").values()]
    assert states.count("first seen") == 2
    assert states.count("verified") == len(states) - 2
    for source in sources(after):
        content = (served.folder / source["url"].rsplit("/", 1)[1]).read_bytes()
        assert source["hash"] == {"kind": "sha256", "value": hashlib.sha256(content).hexdigest()}
        assert source["bytes"] == len(content)
    for written, was in zip(after.splitlines(), before.splitlines(), strict=True):
        assert written == was or re.match(r' +"(bytes": \d+,|hash": \{.*\})$', written)
    assert (checkout / "weights_manifest.sha256").read_text().startswith(hashlib.sha256(after.encode()).hexdigest())
    assert not any(path.is_file() for path in (tmp_path / "work" / "torch_home").rglob("*.pth"))  # none is kept
    asked = len(served.log)
    assert run("--write") == 0  # what was seen once is now what is expected
    assert len(served.log) == asked
    assert (checkout / "weights_manifest.json").read_text() == after


def test_what_is_wrong_is_reported_and_not_written(
    run: Callable[..., int], checkout: Path, served: Any, tmp_path: Path
) -> None:
    prefix, longer, gone = served.folder / "0.pth", served.folder / "1.pth", served.folder / "2.pth"
    prefix.write_bytes(b"x" * len(prefix.read_bytes()))
    longer.write_bytes(longer.read_bytes() + b"x")
    gone.unlink()
    text = (checkout / "weights_manifest.json").read_text()
    whole = next(i for i, source in enumerate(sources(text)) if source["format"] == "safetensors")
    forged = served.folder / f"{whole}.pth"
    forged.write_bytes(b"x" * len(forged.read_bytes()))
    assert run("--write", "--keep") == 1
    found = results(tmp_path / "work")
    assert found["0.pth"]["state"] == "not the published file"
    assert "its sha256 is " in found["0.pth"]["message"]
    assert found["1.pth"]["state"] == "not fetched"
    assert "bytes, expected" in found["1.pth"]["message"]
    assert found["2.pth"]["state"] == "not fetched"
    assert "404" in found["2.pth"]["message"]
    assert found[f"{whole}.pth"]["state"] == "not the published file"
    assert found["3.pth"]["state"] == "verified"
    after = sources((checkout / "weights_manifest.json").read_text())
    for i in (0, 1, 2, whole):
        assert after[i] == sources(text)[i]
    assert after[3]["hash"]["kind"] == "sha256"
    report = (tmp_path / "work" / "report.md").read_text()
    assert report.count("**not fetched**") == 2
    assert report.count("**not the published file**") == 2
    kept = {path.name for path in (tmp_path / "work" / "torch_home").rglob("*.pth")}
    assert "3.pth" in kept
    assert not kept & {"0.pth", "1.pth", "2.pth"}
    assert len(sources(text)) == len(found) - 1  # and the file in the repository


def test_a_stopped_run_is_resumed(run: Callable[..., int], served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def fetch_three(source: Any, *rest: Any) -> None:
        if len(fetched) == 3:
            raise KeyboardInterrupt
        fetched.append(source.url)
        download.fetch(source, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("resnext_hub.maintenance.verify_weights.fetch", fetch_three)
        with pytest.raises(KeyboardInterrupt):
            run()
    first = list(served.log)
    assert len(first) == 3
    run()
    assert not set(first) & set(served.log[3:])
    assert len(served.log) == len(list(served.folder.iterdir()))
    run("--again")
    assert len(served.log) == 2 * len(list(served.folder.iterdir()))
