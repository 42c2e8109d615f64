"""The web page as a process of its own, and a visitor who has no browser: what a browser would send, over HTTP."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx  # pyright: ignore[reportMissingImports]  # Gradio has it

# Notes, in a file opened before, whatever this process opens for writing, makes or moves.
WATCHED = """
import os, sys
from resnext_hub import cli
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
def hook(event, args):
    if event == "open" and not isinstance(args[0], int) and args[2] & WRITING:
        path = args[0]
    elif event in ("os.rename", "os.link", "os.symlink"):
        path = args[1]
    elif event == "os.mkdir":
        path = args[0]
    else:
        return
    os.write(log, os.fsencode(path) + b"\\n")
sys.addaudithook(hook)
sys.exit(cli.main(sys.argv[2:]))
"""


class PageProcess(NamedTuple):
    process: subprocess.Popen[str]
    url: str
    log: Path
    start: int

    @property
    def written(self) -> set[Path]:
        """All that the process has opened for writing since the page was there."""
        return {Path(line) for line in self.log.read_bytes()[self.start :].decode().splitlines()} - {Path("/dev/null")}


@contextmanager
def page_process(
    folder: Path, engine: str = "torch", inherited: Mapping[str, str] = os.environ
) -> Iterator[PageProcess]:
    """``resnext-hub demo`` with its home, temporary and current folder in ``folder``."""
    log = folder.parent / f"{folder.name}.log"
    folder.mkdir(exist_ok=True)
    environment = {
        **inherited,
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "RESNEXT_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-c", WATCHED, str(log)]
    command += ["demo", "--variant", "resnext_tiny", "--engine", engine, "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder
    ) as process:
        try:
            assert process.stdout
            said = ""
            while (url := re.search(r"http://127\.0\.0\.1:\d+/", said)) is None:
                line = process.stdout.readline()
                assert line, said
                said += line
            yield PageProcess(process, url[0], log, log.stat().st_size)
        finally:
            process.kill()


class Visitor:
    """Asks a page what a browser would ask it. What is sent for a session's states is ignored: the server has them."""

    def __init__(self, url: str) -> None:
        self.client, self.session = httpx.Client(base_url=url, timeout=120), secrets.token_hex(8)
        config = self.client.get("config").raise_for_status().json()
        names = {c["id"]: c["props"].get("elem_id") for c in config["components"]}
        self._calls: dict[tuple[Any, str], int] = {}
        for call in config["dependencies"]:
            for target, event in call["targets"]:
                self._calls[names.get(target), event] = call["id"]
            if call.get("trigger_after") is not None:
                self._calls[call["trigger_after"], "after"] = call["id"]

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def upload(self, data: bytes, name: str) -> dict[str, Any]:
        path = self.client.post("gradio_api/upload", files={"files": (name, data)}).raise_for_status().json()[0]
        return {"path": path, "orig_name": name, "size": len(data), "meta": {"_type": "gradio.FileData"}}

    def join(self, what: Any, event: str, data: list[Any], **more: Any) -> httpx.Response:
        """Ask for something without listening for the answer."""
        body = {"data": data, "fn_index": self._calls[what, event], "session_hash": self.session, **more}
        return self.client.post("gradio_api/queue/join", json=body)

    def messages(self, what: Any, event: str, data: list[Any], **more: Any) -> Iterator[dict[str, Any]]:
        """What the page answers, as it comes."""
        self.join(what, event, data, **more).raise_for_status()
        with self.client.stream("GET", "gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.raise_for_status().iter_lines():
                if line:
                    yield json.loads(line.removeprefix("data: "))

    def call(self, what: Any, event: str, data: list[Any], **more: Any) -> str:
        """All that the page answers."""
        said = list(self.messages(what, event, data, **more))
        assert [message["success"] for message in said if message["msg"] == "process_completed"] == [True], said
        return "".join(json.dumps(message.get("output"), ensure_ascii=False) for message in said)

    def photo(self, data: bytes, name: str = "photo.jpg", top: Any = 5) -> str:
        """Upload a photo and have it classified."""
        said = self.call("photo", "upload", [None, "en"], event_data={"path": self.upload(data, name)["path"]})
        opened = self._calls["photo", "upload"]
        for call in (opened, self._calls[opened, "after"]):
            said += self.call(call, "after", [["resnext_tiny"], top, None, "en"])
        return said

    def address(self, url: str) -> str:
        return self.call("url", "submit", [url, None, "en"])

    def click(self, key: str) -> str:
        """Where the network sees a class of the last photo."""
        return self.call("results", "select", [None, "en"], event_data={"key": key})

    def zip(self, data: bytes) -> str:
        said = self.call("zip", "upload", [self.upload(data, "photos.zip"), None, "en"])
        return said + self.call("make-table", "click", ["resnext_tiny", 5, None, "en"])
