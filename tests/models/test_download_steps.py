"""What a download asks for, says and writes, step by step: the answers are made here, and no server is asked."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from email.message import Message
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import filelock
import pytest
import torch.hub
from resnext_hub.errors import CheckpointError, UnreachableError, UnwritableError
from resnext_hub.models import download, store
from resnext_hub.models.download import local_file
from resnext_hub.models.manifest import Hash, Source
from resnext_hub.models.store import Store
from resnext_hub.net.client import Answer, BrokenOffError, GetError, Policy, RefusedError

from ..support.downloads import described, left
from ..support.faulty_server import weights_file

CONTENT = weights_file(1900)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
URL = "http://weights.example.org/w.pth"
SOURCE = Source(URL, None, "pth-legacy", len(CONTENT), Hash("sha256", SHA256))


class Made(Answer):
    """An answer as `client.get` gives them; an exception among the chunks is raised."""

    def __init__(self, status: int = 200, chunks: Sequence[bytes | Exception] = (CONTENT,), **headers: str) -> None:
        self.status, self.chunks, self.headers = status, list(chunks), Message()
        for name, value in ({"Content_Type": "application/octet-stream"} | headers).items():
            self.headers[name.replace("_", "-")] = value
        self.open = False

    def read(self) -> bytes:
        chunk = self.chunks.pop(0) if self.chunks else b""
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    def __enter__(self) -> Made:
        self.open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.open = False


class Bar:
    """Stands for tqdm."""

    made: ClassVar[list[Bar]] = []

    def __init__(self, **options: Any) -> None:
        self.options, self.total, self.n, self.steps, self.closed = options, options["total"], 0, [], False
        self.made.append(self)

    def update(self, n: int) -> None:
        self.n += n
        self.steps.append(n)

    def close(self) -> None:
        self.closed = True


class Network:
    """Stands for `client.get`: the answers in their order, and what was asked."""

    def __init__(self) -> None:
        self.answers: list[Made | Exception] = []
        self.asked: list[tuple[str, dict[str, str]]] = []

    def __call__(self, url: str, policy: Policy, headers: dict[str, str]) -> Made:
        assert policy is download.POLICY
        self.asked.append((url, dict(headers)))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def network(home: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network()
    Bar.made = []
    monkeypatch.setattr(download, "get", network)
    monkeypatch.setattr(torch.hub, "tqdm", Bar)
    monkeypatch.setattr(download, "BACKOFF", 0.5)
    return network


@pytest.fixture
def path(home: Path) -> Path:
    return home / "w.pth"


@pytest.fixture
def part(path: Path) -> Path:
    """Where the bytes of a download lie before it is whole."""
    folder = path.parent / ".resnext-hub"
    folder.mkdir(parents=True)
    return Store().part(path)


def note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def leave(part: Path, content: bytes = CONTENT[:10], etag: str = '"one"') -> None:
    """An unfinished download, and the note beside it."""
    part.write_bytes(content)
    note_of(part).write_text(json.dumps({"url": URL, "etag": etag, "total": 1900}))


def rest(begin: int) -> Made:
    """The answer that an unfinished download asks for."""
    return Made(206, [CONTENT[begin:]], Content_Range=f"bytes {begin}-1899/1900")


def fetch(source: Source, path: Path, progress: bool = True) -> None:
    download.fetch(source, path, Store(), progress)


ASKED: dict[str, str] = {}  # the client adds what every request has


@pytest.mark.parametrize("progress", [True, False])
def test_a_complete_file(network: Network, path: Path, caplog: pytest.LogCaptureFixture, progress: bool) -> None:
    caplog.set_level("DEBUG", "resnext_hub")
    answer = Made(chunks=[CONTENT[:7], CONTENT[7:]], Content_Length=str(len(CONTENT)), ETag='"one"')
    network.answers = [answer]
    fetch(SOURCE, path, progress)
    assert path.read_bytes() == CONTENT
    assert network.asked == [(URL, ASKED)]
    (bar,) = Bar.made
    assert bar.options == {
        "total": len(CONTENT), "disable": not progress, "unit": "B", "unit_scale": True, "unit_divisor": 1024,
        "desc": "w.pth",
    }  # fmt: skip
    assert (bar.steps, bar.total, bar.closed) == ([0, 7, len(CONTENT) - 7], len(CONTENT), True)
    assert not answer.open
    (said,) = caplog.messages
    assert said.endswith(URL)
    assert left(path.parent) == ["w.pth"]


def test_the_bar_learns_the_length(network: Network, path: Path) -> None:
    network.answers = [Made(Content_Length=str(len(CONTENT)))]
    fetch(Source(URL, None, None, None, SOURCE.hash), path)
    (bar,) = Bar.made
    assert (bar.options["total"], bar.options["disable"], bar.total) == (None, False, len(CONTENT))


def test_what_is_noted_beside_a_part(
    network: Network, path: Path, part: Path, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """And what is asked of the rest; 1,024 bytes since the last break are progress, and the wait begins anew."""
    caplog.set_level("DEBUG", "resnext_hub")
    seen: list[Any] = []

    class Watched(Made):
        begun = False

        def read(self) -> bytes:
            if not self.begun:
                seen.append((json.loads(note_of(part).read_text()), part.stat().st_size))
            self.begun = True
            return super().read()

    length, size = str(len(CONTENT)), len(CONTENT)
    broken = BrokenOffError("it was cut off")
    network.answers = [
        Watched(chunks=[CONTENT[:10], broken], Content_Length=length, ETag='"one"'),
        Watched(206, [CONTENT[10:1033], broken], Content_Range=f"bytes 10-{size - 1}/{size}", ETag='"one"'),
        Watched(206, [CONTENT[1033:1034], broken], Content_Range=f"bytes 1033-{size - 1}/*"),
        Watched(206, [CONTENT[1034:]], Content_Range=f"bytes 1034-{size - 1}/{size}", ETag='"one"'),
    ]
    fetch(SOURCE, path)
    note = {"url": URL, "etag": '"one"', "total": len(CONTENT)}
    assert seen == [(note, n) for n in (0, 10, 1033, 1034)]
    ranges = [{}, *({"Range": f"bytes={n}-", "If-Range": '"one"'} for n in (10, 1033, 1034))]
    assert network.asked == [(URL, ASKED | more) for more in ranges]
    assert waits == [0.5, 1.0, 2.0]
    assert all(
        said.startswith(f"{URL}: it was cut off") and said.endswith(f" in {wait} s")
        for said, wait in zip(caplog.messages[1:], waits, strict=True)
    )
    assert Bar.made[0].steps == [0, 10, 0, 1023, 0, 1, 0, size - 1034]
    assert left(path.parent) == ["w.pth"]


def test_progress_is_1024_bytes(network: Network, path: Path, waits: list[float]) -> None:
    ends = [100, 1123, 2147, 2247, 2347]  # 1,023 more is none, 1,024 is
    content = CONTENT * 2
    source = Source(URL, None, None, len(content), Hash("sha256", hashlib.sha256(content).hexdigest()))
    begin, size = 0, len(content)
    for end in [*ends, size]:
        chunks = [content[begin:end], *([BrokenOffError("cut")] if end < size else [])]
        shown = {"Content_Range": f"bytes {begin}-{size - 1}/{size}"} if begin else {"Content_Length": str(size)}
        network.answers.append(Made(206 if begin else 200, chunks, **shown))
        begin = end
    fetch(source, path)
    assert waits == [0.5, 1.0, 0.5, 1.0, 2.0]
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Made(404), "404"),
        (Made(Content_Type="text/html; charset=utf-8"), "page"),
        (Made(Content_Length="5"), " 5 .*1,900"),
        (Made(206, Content_Range="bytes 0-1899/1901"), "1,901 .*1,900"),
    ],
)  # fmt: skip
def test_what_is_not_the_file(network: Network, path: Path, part: Path, answer: Made, message: str) -> None:
    if answer.status == 206:
        answer.headers.replace_header("Content-Range", "bytes 3-1899/1901")
        part.write_bytes(CONTENT[:3])
        note_of(part).write_text(json.dumps({"url": URL, "etag": "", "total": None}))
    network.answers = [answer]
    with pytest.raises(GetError, match=message):
        fetch(SOURCE, path)
    assert Bar.made[0].closed
    assert not path.exists()
    assert not answer.open


@pytest.mark.parametrize("length", ["", "+1900", "1900 ", "0x76c", "²", "9" * 20])
def test_a_length_that_is_no_number_is_none(network: Network, path: Path, length: str) -> None:
    network.answers = [Made(Content_Length=length)]
    fetch(SOURCE, path)
    assert path.read_bytes() == CONTENT


def test_without_length_and_hash_a_cut_would_go_unnoticed(network: Network, path: Path) -> None:
    unknown = Source(URL, None, None, None, None)
    network.answers = [Made()]
    with pytest.raises(GetError, match=r"no length.*hash"):
        fetch(unknown, path)
    network.answers = [Made(Transfer_Encoding="Chunked")]  # has an end of its own
    fetch(unknown, path)
    assert path.read_bytes() == CONTENT
    for known in (Source(URL, None, None, 1900, None), Source(URL, None, None, None, SOURCE.hash)):
        path.unlink()
        network.answers = [Made()]
        fetch(known, path)
        assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_server_that_is_busy(
    network: Network, path: Path, waits: list[float], caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level("DEBUG", "resnext_hub")
    afters = ["", "7", "61", "soon", "-3", formatdate(time.time() - 1000, usegmt=True)]
    network.answers = [Made(status, **({"Retry_After": after} if after else {})) for after in afters]
    with pytest.raises(GetError, match=f" {status} [A-Z]"):
        fetch(SOURCE, path)
    assert waits == [0.5, 7.0, 60.0, 4.0]
    assert len(network.asked) == 5
    assert caplog.messages[2].startswith(f"{URL}: ")
    assert f" {status} " in caplog.messages[2]
    assert caplog.messages[2].endswith(" in 7.0 s")


def test_a_date_to_wait_for(network: Network, path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.time, "time", lambda: 1_000_000.0)
    dates = {
        formatdate(1_000_020, usegmt=True): 20.0,
        "Fri, 99 Foo 2026 00:00:00 GMT": 1.0,
        formatdate(999_000, usegmt=True): 2.0,
        "1e1": 4.0,
        "9" * 400: 60.0,
        "Fri, 31 Dec 99999 23:59:59 GMT": 0.5,
        "\xb2": 1.0,
    }
    for some in (list(dates)[:4], list(dates)[5:], ["9" * 400]):
        waits.clear()
        path.unlink(missing_ok=True)
        network.answers = [*(Made(503, Retry_After=date) for date in some), Made()]
        fetch(SOURCE, path)
        assert waits == [dates[date] for date in some]


NOT_THE_REST = "sent a range that was not requested"


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (416, {}),
        (206, {}),
        (206, {"Content_Range": "bytes 9-1899/1900"}),
        (206, {"Content_Range": "bytes 100-1899/1900"}),
        (206, {"Content_Range": "bytes 10-1899/1901"}),
        (206, {"Content_Range": "bytes 10-1899/1900", "ETag": '"two"'}),
    ],
)
def test_another_range_than_asked_for(
    network: Network, path: Path, part: Path, waits: list[float], caplog: pytest.LogCaptureFixture,
    status: int, headers: dict[str, str],
) -> None:  # fmt: skip
    caplog.set_level("DEBUG", "resnext_hub")
    leave(part)
    network.answers = [Made(status, [b"x"], **headers), Made()]
    fetch(SOURCE, path)
    assert [asked.get("Range") for _, asked in network.asked] == ["bytes=10-", None]
    (_, said) = caplog.messages
    assert NOT_THE_REST in said
    assert said.endswith(" in 0.5 s")
    assert path.read_bytes() == CONTENT


def test_a_server_that_always_begins_elsewhere_is_given_up(
    network: Network, path: Path, part: Path, waits: list[float]
) -> None:
    for _ in range(3):
        network.answers += [Made(chunks=[CONTENT[:1500], BrokenOffError("cut")]), Made(416)]
    with pytest.raises(GetError, match=NOT_THE_REST):
        fetch(SOURCE, path)
    assert network.answers == []
    assert not part.exists()


@pytest.mark.parametrize(
    ("note", "bytes_at_hand", "asked"),
    [
        ({"url": URL, "etag": "", "total": 1900}, 10, {"Range": "bytes=10-"}),
        ({"url": URL, "etag": "", "total": None}, 10, {"Range": "bytes=10-"}),
        ({"url": URL, "etag": "", "total": "1900"}, 10, {"Range": "bytes=10-"}),
        ({"url": URL, "etag": 'W/"one"', "total": 1900}, 10, {"Range": "bytes=10-"}),
        ({"url": URL, "etag": '"one"', "total": 1900, "more": 1}, 10, {"Range": "bytes=10-", "If-Range": '"one"'}),
        ({"url": URL + "?", "etag": '"one"', "total": 1900}, 10, {}),
        ({"url": URL, "etag": '"one"', "total": 1900}, 0, {}),
        ({"url": URL, "etag": '"one"', "total": 9}, 10, {}),
        ({"url": URL, "etag": '"one"', "total": "many"}, 10, {}),
        ({"url": URL, "etag": '"one"'}, 10, {}),
        ({"url": 1, "etag": [], "total": {}}, 10, {}),
        *((text, 10, {}) for text in ("", "{", "[]", "7", "null", "\0\xff")),
    ],
)
def test_which_parts_are_resumed(
    network: Network, path: Path, part: Path, note: Any, bytes_at_hand: int, asked: dict[str, str]
) -> None:
    part.write_bytes(CONTENT[:bytes_at_hand])
    note_of(part).write_text(note if isinstance(note, str) else json.dumps(note), encoding="latin-1")
    network.answers = [rest(bytes_at_hand) if asked else Made()]
    fetch(SOURCE, path)
    assert network.asked == [(URL, ASKED | asked)]
    assert path.read_bytes() == CONTENT


def test_without_a_hash_a_part_needs_a_strong_etag(network: Network, path: Path, part: Path) -> None:
    for etag, goes_on in (('"one"', True), ('W/"one"', False), ("", False)):
        leave(part, etag=etag)
        network.answers = [rest(10) if goes_on else Made()]
        fetch(Source(URL, None, None, 1900, None), path)
        assert ("Range" in network.asked[-1][1]) == goes_on


def test_a_complete_part_is_not_requested(network: Network, path: Path, part: Path) -> None:
    leave(part, CONTENT, "")
    fetch(SOURCE, path)
    assert network.asked == []
    assert path.read_bytes() == CONTENT


def test_pieces_that_do_not_fit_are_downloaded_again_once(
    network: Network, path: Path, part: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "resnext_hub")
    leave(part, b"x" * 1900, "")
    network.answers = [Made()]
    fetch(SOURCE, path)
    assert path.read_bytes() == CONTENT
    assert caplog.messages[1].startswith(str(part))

    path.unlink()
    leave(part, b"x" * 1900, "")
    network.answers = [Made(chunks=[b"y" * 1900])]
    with pytest.raises(CheckpointError, match="is not the published file"):
        fetch(SOURCE, path)
    assert left(path.parent) == []


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><p>", b" \r\n\t<HTML lang=ko>", b"<html>"])
def test_a_web_page_under_a_wrong_flag(network: Network, path: Path, page: bytes) -> None:
    network.answers = [Made(chunks=[page])]
    with pytest.raises(CheckpointError, match="page"):
        fetch(Source(URL, None, None, None, SOURCE.hash), path)
    assert left(path.parent) == []


@pytest.mark.parametrize("size", [1899, 1901])
def test_more_or_less_than_announced(network: Network, path: Path, waits: list[float], size: int) -> None:
    network.answers = [Made(chunks=[(CONTENT * 2)[:size]])] * 1 + [BrokenOffError("gone")] * 5
    with pytest.raises(GetError, match="^gone$"):
        fetch(SOURCE, path)
    assert [asked.get("Range") for _, asked in network.asked][:2] == [None, "bytes=1899-" if size < 1900 else None]


def test_an_incomplete_download_is_reported(
    network: Network, path: Path, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "resnext_hub")
    network.answers = [Made(chunks=[CONTENT[:1500]]), rest(1500)]
    fetch(SOURCE, path)
    assert "1,500 of 1,900 bytes" in caplog.messages[1]
    assert network.asked[1] == (URL, ASKED | {"Range": "bytes=1500-"}), "without an ETag there is no condition"


def test_a_disk_that_is_too_small(network: Network, path: Path, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: (asked.append(folder), SimpleNamespace(free=free))[1])
    for free, begin in ((1899, 0), (1900, 0), (399, 1500), (400, 1500)):
        path.unlink(missing_ok=True)
        if begin:
            leave(part, CONTENT[:begin], "")
        network.answers = [rest(begin) if begin else Made()]
        if free < 1900 - begin:
            with pytest.raises(CheckpointError, match=rf"{part.parent} has {free:,} bytes.* {1900 - begin:,} bytes"):
                fetch(SOURCE, path)
        else:
            fetch(SOURCE, path)
            assert path.read_bytes() == CONTENT
    assert set(asked) == {part.parent}


@pytest.mark.parametrize(
    ("number", "message", "kept"),
    [
        (errno.ENOSPC, "is full", False),
        (errno.EDQUOT, "is full", False),
        (errno.EACCES, r"\(Permission denied\).*TORCH_HOME", True),
    ],
)
def test_a_disk_that_fails(
    network: Network, path: Path, part: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str, kept: bool
) -> None:
    monkeypatch.setattr(download.os, "replace", mock.Mock(side_effect=OSError(number, os.strerror(number))))
    network.answers = [Made()]
    with pytest.raises(CheckpointError, match=rf"{part.parent} .*{message}") as error:
        fetch(SOURCE, path)
    assert isinstance(error.value, UnwritableError) == kept
    assert part.exists() == kept
    assert Bar.made[0].closed


# From a checkpoint to its sources.


MIRROR = Source("http://mirror.example.org/m.safetensors", None, "safetensors", 1900, SOURCE.hash)


def test_sources_are_tried_in_their_order(network: Network, home: Path) -> None:
    content = (2).to_bytes(8, "little") + b"{}"  # safetensors of nothing
    mirror = dataclasses.replace(MIRROR, bytes=None, hash=Hash("sha256", hashlib.sha256(content).hexdigest()))
    network.answers = [Made(404), Made(chunks=[content])]
    path, digest = local_file(
        described(Source(None, home / "none.pth", None, None, None), SOURCE, mirror), progress=False
    )
    assert [url for url, _ in network.asked] == [URL, MIRROR.url]
    assert path.read_bytes() == content
    assert digest == hashlib.sha256(content).hexdigest()
    assert [bar.options["disable"] for bar in Bar.made] == [True, True]


def test_without_safetensors_its_files_are_passed_over(
    network: Network, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "resnext_hub")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "safetensors" else 1)
    network.answers = [Made()]
    local_file(described(MIRROR, SOURCE))
    assert [url for url, _ in network.asked] == [URL]
    assert MIRROR.url in caplog.messages[0]
    assert "safetensors" in caplog.messages[0]
    assert not Bar.made[0].options["disable"]


@pytest.mark.parametrize("mirror", ["http://house.example.org/w", "http://house.example.org/w///"])
def test_a_mirror_goes_before_the_publisher(
    network: Network, home: Path, monkeypatch: pytest.MonkeyPatch, mirror: str
) -> None:
    monkeypatch.setenv("RESNEXT_HUB_MIRROR", mirror)
    network.answers = [Made(404), Made()]
    local_file(described(SOURCE), progress=False)
    assert [url for url, _ in network.asked] == ["http://house.example.org/w/w.pth", URL]


def says(error: pytest.ExceptionInfo[UnreachableError], *facts: str) -> bool:
    """Whether the message names the variant, the file and its folder, the way out, and these facts."""
    text = str(error.value)
    return all(fact in text for fact in ("resnet18_ssl", "w.pth", "resnext_tiny", *facts))


def test_the_error_when_all_sources_fail(network: Network, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network.answers = [Made(404), RefusedError("it is asleep")]
    with pytest.raises(UnreachableError) as error:
        local_file(described(SOURCE, MIRROR), progress=False)
    assert says(error, "RESNEXT_HUB_MIRROR", URL, "404 Not Found", f"{MIRROR.url} (it is asleep)", str(home))
    with pytest.raises(UnreachableError) as error:
        local_file(described(Source(None, home / "w.pth", None, None, None)), progress=False)
    assert says(error, "Tried: nothing")
    for value, offline in (("1", True), ("yes", True), ("0", False), ("False", False), ("", False)):
        monkeypatch.setenv("RESNEXT_HUB_OFFLINE", value)
        network.answers, network.asked = [Made(404)], []
        with pytest.raises(UnreachableError) as error:
            local_file(described(SOURCE), progress=False)
        if offline:
            assert says(error, "unset RESNEXT_HUB_OFFLINE", str(home))
        assert len(network.asked) == (not offline)


def test_a_file_that_is_not_the_published_one(network: Network, path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 1900)
    with pytest.raises(CheckpointError) as error:
        local_file(described(SOURCE))
    assert str(error.value).startswith(str(path))
    assert "Delete" in str(error.value)
    assert network.asked == []
    assert path.exists(), "it is the user's to delete"


# The cache around it.


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TORCH_HOME": "/somewhere/torch", "XDG_CACHE_HOME": "/elsewhere"}, "/somewhere/torch"),
        ({"TORCH_HOME": "", "XDG_CACHE_HOME": "/elsewhere"}, "/elsewhere/torch"),
        ({"TORCH_HOME": ""}, "~/.cache/torch"),
        ({"TORCH_HOME": "~/weights"}, "~/weights"),
    ],
)
def test_the_folder_is_torch_hubs_without_torch(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert store.checkpoints_folder() == Path(expected).expanduser() / "hub" / "checkpoints"


def test_another_process_is_waited_for(path: Path, part: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "resnext_hub")
    held = threading.Event()

    def hold() -> None:
        with filelock.FileLock(part.with_name("w.pth.lock")):
            held.set()
            end = time.monotonic() + 30
            while not caplog.messages and time.monotonic() < end:
                time.sleep(0.01)

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    with Store().lock(path):
        (said,) = caplog.messages
        assert "w.pth" in said
    other.join()


def test_a_file_of_another_length_is_not_hashed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:-1])
    monkeypatch.setattr(store, "sha256", lambda path: pytest.fail("read for nothing"))
    with pytest.raises(CheckpointError, match=rf"^{path} .*1,899.* 1,900"):
        Store().verify(path, SOURCE)
