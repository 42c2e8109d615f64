"""benchmarks/load.py against a server that is known to be slow, and to fail."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from ..support.processes import serving

SCRIPT = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "load.py"
SECONDS = 0.02  # a request alone


def load(url: str, model: str, out: Path, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    command = [sys.executable, SCRIPT, model, "--url", url, "--json", out, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, json.loads(out.read_text()) if out.exists() else [], done.stdout + done.stderr


class _OneAtATime(BaseHTTPRequestHandler):
    """A v2 model "serial" that takes FP32 (2, 3), one request at a time; "broken" answers every third with a 503."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    guard = threading.Lock()
    asked = 0

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        known = self.path in ("/v2/models/serial", "/v2/models/broken")
        inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 2, 3]}]
        self._answer(200 if known else 404, {"inputs": inputs} if known else {"error": "unknown model"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers["Inference-Header-Content-Length"])
        (tensor,) = json.loads(body[:length])["inputs"]
        whole = len(body) - length == tensor["parameters"]["binary_data_size"] == 4 * 2 * 3
        with self.guard:
            type(self).asked += 1
            time.sleep(SECONDS)
        broken = "broken" in self.path and self.asked % 3 == 0
        self._answer(503 if broken else 200 if whole and tensor["shape"] == [1, 2, 3] else 400, {"error": "no"})

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with serving(_OneAtATime) as url:
        yield url


def test_waiting_counts_in_an_open_loop(url: str, tmp_path: Path):
    """50 requests a second are what the server can do at best: at 100 it falls behind, and that must show."""
    common = ["--seconds", "1", "--warm-up", "0"]
    status, results, _ = load(url, "serial", tmp_path / "r.json", "--clients", "1", "4", "--rates", "100", *common)
    assert status == 0
    alone, four, behind = results
    assert alone["load"] == "1 clients"
    assert 1000 * SECONDS <= alone["p50"] <= alone["p90"] <= alone["p99"] <= alone["worst"]
    assert four["p50"] > 2 * alone["p50"]
    assert four["per_second"] < 1 / SECONDS
    assert 60 < behind["answered"] < 140  # all that were due, though the server had no time for them
    assert behind["p99"] > 10 * alone["p50"]


def test_failures_are_counted_and_reported(url: str, tmp_path: Path):
    status, results, said = load(url, "broken", tmp_path / "r.json", "--clients", "2", "--seconds", "1")
    assert status == 1
    ((error, count),) = results[0]["errors"].items()
    assert error.startswith("HTTP 503")
    assert count > 0
    assert results[0]["answered"] > count
    assert f"{count} x HTTP 503" in said
    status, _, said = load(url, "none", tmp_path / "none.json")
    assert status == 1
    assert "HTTP 404" in said
