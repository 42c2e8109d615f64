"""A run as a repository of the Hugging Face Hub: what is in the folder, and what a double of the Hub receives."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from resnext_hub.cli import main
from resnext_hub.deploy.huggingface import write_repository
from resnext_hub.errors import ExportError
from resnext_hub.models.entrypoints import load
from resnext_hub.models.manifest import find_checkpoint
from resnext_hub.processing_utils.labels import read_labels
from resnext_hub.training.publish import publish_run
from resnext_hub.training.recipe import load_recipe

from ..support.data_sets import fruit

TINY = find_checkpoint("resnext_tiny")
ROW = {"epoch": 1, "val_loss": 1.0, "val_top1": 0.25, "val_top5": 0.5, "val_map": float("nan")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any) -> Path:
    """A finished run over /home/somebody/secret/photos."""
    folder, recipe = tmp_path_factory.mktemp("runs") / "pets", load_recipe("finetune")
    recipe = recipe.resolved(TINY.preprocessing, TINY.architecture_name)
    labels = read_labels(TINY.labels)
    publish_run(load(TINY).state_dict(), recipe, labels, ROW, folder, data="/home/somebody/secret/photos", base=TINY)
    return folder


def test_the_folder_is_a_variant_and_says_what_it_is(run: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "hub"
    assert main(["export", "--variant", str(run), "--to", "huggingface", "--out", str(out)]) == 0
    names = {path.name for path in out.iterdir()}
    weights = "model.safetensors" if importlib.util.find_spec("safetensors") else next(run.glob("*.pth")).name
    assert names == {"README.md", "labels.tsv", "weights_manifest.json", weights}
    if weights.endswith(".safetensors"):
        ours, theirs = load(find_checkpoint(out)).state_dict(), load(find_checkpoint(run)).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    card = (out / "README.md").read_text()
    head = dict(line.split(": ", 1) for line in card.split("---\n")[1].splitlines())
    assert json.loads(head["license"]) == "other"
    assert json.loads(head["license_name"]) == "research-only"
    (result,) = json.loads(head["model-index"])[0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "name": "top-1", "value": 0.25}]
    for text in (card, (out / "weights_manifest.json").read_text()):
        assert "photos" in text
        assert "somebody" not in text
    again = ["export", "--variant", str(run), "--to", "huggingface", "--out", str(out)]
    assert main(again) == 2
    assert main([*again, "--overwrite"]) == 0
    assert main([*again, "--overwrite", "--softmax"]) == 2
    assert "--softmax" in capsys.readouterr().err


def test_without_safetensors_the_weights_are_the_runs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnext_hub.deploy.huggingface.missing", list)
    out = write_repository(run, tmp_path / "hub")
    (weights,) = out.glob("*.pth")
    assert weights.read_bytes() == (run / weights.name).read_bytes()
    assert find_checkpoint(out).sources[0].hash == find_checkpoint(run).sources[0].hash


def test_what_is_published_or_somebodys_folder_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="published already"):
        write_repository("resnext_tiny", tmp_path / "hub")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").touch()
    with pytest.raises(ExportError, match="exists"):
        write_repository(run, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "diary.txt").exists()


# The upload, by the command line, from outside the process.


class Hub(ThreadingHTTPServer):
    """What the client asks of the Hub's API; commits are kept."""

    refuses = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.asked: list[str] = []
        self.created: list[Any] = []
        self.files: dict[str, bytes] = {}


class _Answers(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def _answer(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"GET {path}")
        if self.headers["Authorization"] != "Bearer hf_made_up" or self.server.refuses:
            self._answer({"error": "Invalid user token"}, 401)
        elif path == "/api/whoami-v2":
            self._answer({"type": "user", "name": "somebody", "orgs": [], "auth": {}})
        else:
            self._answer({"id": "somebody/pets", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"POST {path}")
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size) if size else b"".join(self._chunks())
        if path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer({"url": f"http://{self.headers['Host']}/somebody/pets", "id": "somebody/pets"})
        elif path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            where = f"http://{self.headers['Host']}/somebody/pets/commit/{'1' * 40}"
            self._answer({"success": True, "commitOid": "1" * 40, "commitUrl": where, "hookOutput": ""})
        else:
            self._answer({})

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def train(tmp_path: Path, hub: Hub, **environment: str) -> subprocess.CompletedProcess[str]:
    words = ["-m", "resnext_hub", "train", "--variant", "resnext_tiny", "--data", fruit(tmp_path / "data")]
    words += ["--out", tmp_path / "pets", "--workers", "0", "--threads", "1", "--push-to-hub", "somebody/pets"]
    base = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    base |= {"HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=base | environment, capture_output=True, text=True, timeout=240, cwd=tmp_path)


def test_a_finished_run_is_uploaded(tmp_path: Path, hub: Hub) -> None:
    pytest.importorskip("huggingface_hub")
    done = train(tmp_path, hub, HF_TOKEN="hf_made_up")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "pets" / "huggingface"
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(hub.files) == 4
    assert [(made["organization"], made["name"]) for made in hub.created] == [("somebody", "pets")]
    assert hub.asked[0] == "GET /api/whoami-v2"  # before the training
    assert f"http://127.0.0.1:{hub.server_port}/somebody/pets" in done.stderr


def test_what_cannot_be_uploaded_is_refused_before_the_training(tmp_path: Path, hub: Hub) -> None:
    pytest.importorskip("huggingface_hub")
    done = train(tmp_path, hub)
    assert done.returncode == 2
    assert "HF_TOKEN" in done.stderr
    assert hub.asked == []
    hub.refuses = True
    assert train(tmp_path, hub, HF_TOKEN="hf_made_up").returncode == 2
    assert hub.asked == ["GET /api/whoami-v2"]
    assert not (tmp_path / "pets").exists()


def test_without_huggingface_hub_it_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    arguments = ["train", "--variant", "resnext_tiny", "--data", "x", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--push-to-hub", "somebody/pets"]) != 0
    assert "pip install huggingface_hub" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
