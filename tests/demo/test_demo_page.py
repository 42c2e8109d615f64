"""The web page as a visitor meets it: served on loopback, in a headless Chromium. Run by `make page`."""

from __future__ import annotations

import base64
import csv
import gc
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
import tracemalloc
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from resnext_hub.evaluation.explain import explain
from resnext_hub.inference.classifier import classifier
from resnext_hub.models.manifest import ROOT, default_manifest
from resnext_hub.processing_utils.uris import fetch

from ..conftest import Served

REASON = "the page's own environment is not there: make page"
if importlib.util.find_spec("gradio") is None:  # not imported yet: the page does that, and prepares it
    pytest.skip(REASON, allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason=REASON)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("there is no chromium", allow_module_level=True)

from ..support.demo_visitor import Visitor, page_process  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # Gradio's are its own affair

SCREENSHOTS = ROOT / "build" / "screenshots"
TIMEOUT = int(os.environ.get("PAGE_TIMEOUT_MS", "120000"))  # ms: the machine may be busy; nothing waits so long
PHONE = {"width": 390, "height": 844}
HOST = "photos.example"
LOOPBACK = ("127.0.0.1", "::1", "localhost", "0.0.0.0")


@pytest.fixture(scope="session")
def twin(tmp_path_factory: Any) -> Path:
    """A variant of one's own: resnext_tiny with its last layer turned round, in a folder as training writes it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny_twin"
    folder.mkdir()
    tiny = default_manifest().resolve("resnext_tiny")
    state = torch.load(tiny.sources[0].path, weights_only=True)
    state["fc.weight"] = -state["fc.weight"]
    torch.save(state, folder / "twin.pth")
    manifest = json.loads(default_manifest().path.read_text())
    entry = manifest["checkpoints"]["resnext_tiny"]
    digest = hashlib.sha256((folder / "twin.pth").read_bytes()).hexdigest()
    entry["sources"][0] |= {
        "path": "twin.pth",
        "bytes": (folder / "twin.pth").stat().st_size,
        "hash": {"kind": "sha256", "value": digest},
    }
    shutil.copy(ROOT / manifest["label_sets"]["tiny-imagenet-200"]["file"], folder / "labels.tsv")
    manifest |= {
        "checkpoints": {"tiny_twin": entry | {"entrypoint": "tiny_twin"}},
        "aliases": {},
        "label_sets": {"tiny-imagenet-200": {"file": "labels.tsv", "classes": 200}},
    }
    (folder / "weights_manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def called() -> list[str]:
    """The hosts that this process, the page's server in it, has looked up or connected to, other than itself."""
    hosts: list[str] = []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo":
            host = args[0]
        elif event == "socket.connect" and isinstance(args[1], tuple):
            host = args[1][0]
        else:
            return
        if host is not None and (host.decode() if isinstance(host, bytes) else host) not in LOOPBACK:
            hosts.append(str(host))

    sys.addaudithook(hook)
    return hosts


class Page:
    """The page's server: its address, and what it does when a visitor names ``http://photos.example/…``."""

    def __init__(self, twin: Path) -> None:
        from resnext_hub.demo import page
        from resnext_hub.demo.logic import Limits, Models

        self.module, self.port, self.limits = page, 0, Limits(zip_members=12)
        models = Models(["resnext_tiny", str(twin)], "torch")
        models["resnext_tiny"]
        # All names lead to a public address, and that to the test's server: the page's own checks stay as they are.
        guarded = partial(
            fetch,
            resolver=lambda host, port: [host if re.match(r"[\d.]+$", host) else "93.184.216.34"],
            connector=lambda address, seconds: socket.create_connection(("127.0.0.1", self.port), seconds),
        )
        self.blocks = page.build(models, self.limits, guarded)
        self.url = page.launch(self.blocks, "127.0.0.1", 0, self.limits)


@pytest.fixture(scope="module")
def server(twin: Path, called: list[str]) -> Iterator[Page]:
    page = Page(twin)
    yield page
    page.blocks.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # Chromium asks Google for things of its own
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


@pytest.fixture
def visit(server: Page, browser: Any, called: list[str]) -> Iterator[Callable[..., Any]]:
    """Opens the page for a new visitor. In the end: nothing was asked of another machine, and no error was shown."""
    contexts, requests, errors = [], [], []

    def open_page(locale: str = "en-US", **options: Any) -> Any:
        options.setdefault("viewport", {"width": 1280, "height": 900})
        context = browser.new_context(locale=locale, **options)
        context.set_default_timeout(TIMEOUT)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("response", lambda r: errors.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        page.goto(server.url)
        playwright.expect(page.locator("html")).to_have_attribute("data-language", locale[:2], timeout=TIMEOUT)
        playwright.expect(page.locator("html")).to_have_attribute("lang", locale[:2])
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert len(requests) > 5
    assert [url for url in requests if not url.startswith((server.url, "data:", "blob:"))] == []
    assert errors == []
    assert called == []


def upload(page: Any, photo: Path) -> None:
    page.set_input_files("#photo input[type=file]", str(photo))


def wait_for_overlay(page: Any, panel: int = 0) -> Any:
    figure = page.locator(f"#overlay-{panel} figure")
    figure.wait_for()
    return figure


def settled(page: Any) -> None:
    """Nothing of what was asked for is still being calculated."""
    page.wait_for_timeout(300)  # the click has become a request
    playwright.expect(page.locator("[data-testid=status-tracker]:not(.hide)")).to_have_count(0, timeout=TIMEOUT)


def shares(page: Any, panel: int = 0) -> dict[str, float]:
    bars = page.locator(f"#bars-{panel} meter")
    return {bar.get_attribute("aria-label"): float(bar.get_attribute("value")) for bar in bars.all()}


def says(locator: Any, text: str | re.Pattern[str]) -> None:
    playwright.expect(locator).to_contain_text(text, timeout=TIMEOUT)


def screenshot(page: Any, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(300)  # transitions
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def test_a_photo_is_uploaded_and_a_class_is_clicked(visit: Any, photo: Path) -> None:
    page = visit()
    screenshot(page, "empty")
    upload(page, photo)
    wait_for_overlay(page)
    expected = classifier("resnext_tiny", engine="torch")(photo, 5)
    shown = shares(page)
    assert list(shown) == [p.label.split(",")[0] for p in expected]
    assert list(shown.values()) == pytest.approx([p.probability for p in expected], abs=1e-5)
    card = page.locator("#card-0")
    tiny = default_manifest().resolve("resnext_tiny")
    for text in (f"{tiny.published.top1}", f"{tiny.published.top5}", f"{tiny.params / 1e6:.1f} M", " ms", "commercial"):
        says(card, text)
    assert page.locator("#photo img").evaluate("image => image.naturalWidth") > 0
    says(page.locator("#overlay-0"), shown_name := next(iter(shown)))
    first = page.locator("#overlay-0 img").get_attribute("src")
    screenshot(page, "desktop")
    other = list(shown)[3]
    page.get_by_test_id(f"{other}-confidence-set").click()
    says(page.locator("#overlay-0 figcaption"), f"{other}” ({explain('resnext_tiny', photo, other).probability:.1%})")
    assert other in page.locator("#overlay-0 img").get_attribute("alt")
    assert shown_name not in page.locator("#overlay-0 figcaption").inner_text()
    assert page.locator("#overlay-0 img").get_attribute("src") != first


def test_variants_are_compared_and_the_number_of_classes_changes(visit: Any, photo: Path, twin: Path) -> None:
    page = visit()
    upload(page, photo)
    wait_for_overlay(page)
    page.locator("#variants input").click()
    page.get_by_role("option", name="tiny_twin").click()
    page.keyboard.press("Escape")
    wait_for_overlay(page, 1)
    expected = classifier(str(twin), engine="torch")(photo, 5)
    assert list(shares(page, 1)) == [p.label.split(",")[0] for p in expected]
    says(page.locator("#bars-1"), "tiny_twin")
    screenshot(page, "compared")
    page.locator("#top input[type=number]").fill("2")
    page.locator("#top input[type=number]").press("Enter")
    page.locator("#classify").click()
    playwright.expect(page.locator("#bars-1 meter")).to_have_count(2, timeout=TIMEOUT)
    page.locator("#variants .token-remove").first.click()  # resnext_tiny
    playwright.expect(page.locator("#panel-1")).to_be_hidden(timeout=TIMEOUT)
    says(page.locator("#bars-0"), "tiny_twin")


def test_what_is_asked_meanwhile_is_answered(visit: Any, photo: Path, server: Page, monkeypatch: Any) -> None:
    overlay, gone_on = server.module.overlay, threading.Event()

    def slow(*arguments: Any) -> Any:
        assert gone_on.wait(TIMEOUT / 1000)
        return overlay(*arguments)

    monkeypatch.setattr(server.module, "overlay", slow)
    page = visit()
    upload(page, photo)
    page.locator("#bars-0 meter").first.wait_for()
    page.get_by_role("button", name="Remove Image").click()
    playwright.expect(page.locator("#photo input[type=file]")).to_have_count(1, timeout=TIMEOUT)
    page.wait_for_timeout(500)  # more than it takes to be asked
    gone_on.set()
    playwright.expect(page.locator("#panel-0")).to_be_hidden(timeout=TIMEOUT)


def test_photos_behind_addresses(visit: Any, photo: Path, served: Served, server: Page) -> None:
    shutil.copy(photo, served.folder / "cat.jpg")
    (served.folder / "page.jpg").write_text("<!doctype html><title>no photo</title>")
    server.port = int(served.url.rsplit(":", 1)[1])
    page = visit()
    box, notice = page.locator("#url input, #url textarea").first, page.locator("#notice")
    box.fill(f"http://{HOST}/cat.jpg")
    page.get_by_role("button", name="Fetch").click()
    wait_for_overlay(page)
    assert page.locator("#photo img").evaluate("image => image.naturalWidth") > 0
    assert "/cat.jpg" in served.log
    for url, text in {
        f"http://{HOST}/none.jpg": "404",
        f"http://{HOST}/page.jpg": "not a photo",
        f"http://127.0.0.1:{server.port}/cat.jpg": "not public",
        "http://169.254.169.254/latest/meta-data": "not public",
        photo.as_uri(): "could not be fetched",
    }.items():
        box.fill(url)
        box.press("Enter")
        says(notice.get_by_role("alert"), text)
    assert served.log.count("/cat.jpg") == 1
    screenshot(page, "refused")


def test_bad_files_are_told_of_kindly(visit: Any, photo: Path, tmp_path: Path) -> None:
    page = visit()
    page.locator("#classify").click()
    says(page.get_by_role("alert"), "First choose a photo")
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    (tmp_path / "image.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    for name in ("text.jpg", "cut.png", "image.svg"):
        upload(page, tmp_path / name)
        says(page.get_by_role("alert"), "not a photo that can be used")
        playwright.expect(page.locator("#photo input[type=file]")).to_have_count(1, timeout=TIMEOUT)
        upload(page, photo)
        wait_for_overlay(page)
        playwright.expect(page.get_by_role("alert")).to_have_count(0)
        page.get_by_role("button", name="Remove Image").click()
        playwright.expect(page.locator("#overlay-0 figure")).to_have_count(0, timeout=TIMEOUT)
        settled(page)


def test_webcam_and_clipboard(visit: Any, photo: Path) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write", "camera"])
    page.get_by_role("button", name=re.compile("clipboard", re.IGNORECASE)).wait_for()
    page.evaluate(
        """async () => {
            const canvas = document.createElement('canvas');
            canvas.width = canvas.height = 80;
            canvas.getContext('2d').fillRect(10, 10, 50, 50);
            const blob = await new Promise(done => canvas.toBlob(done, 'image/png'));
            await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
        }"""
    )
    settled(page)
    page.get_by_role("button", name=re.compile("clipboard", re.IGNORECASE)).click()
    wait_for_overlay(page)
    page.get_by_role("button", name="Remove Image").click()
    playwright.expect(page.locator("#panel-0")).to_be_hidden(timeout=TIMEOUT)
    settled(page)
    page.get_by_role("button", name=re.compile("camera|webcam", re.IGNORECASE)).first.click()
    page.locator("#photo .access-wrap, #photo button:has-text('Webcam'), #photo [title*='access']").first.click()
    page.locator("#photo video").wait_for()
    page.wait_for_function("document.querySelector('#photo video').videoWidth > 0")  # before it sees, there is no photo
    page.get_by_role("button", name=re.compile("capture", re.IGNORECASE)).first.click()
    wait_for_overlay(page)


def test_korean(visit: Any, photo: Path) -> None:
    page = visit("ko-KR")
    says(page.locator("h1"), "사진 속에는")
    upload(page, photo)
    wait_for_overlay(page)
    for text in ("정확도", "라이선스", "상업적 이용 불가", "소요 시간"):
        says(page.locator("#card-0"), text)
    screenshot(page, "korean")
    page.locator("#language").get_by_text("English").click()
    says(page.locator("h1"), "What is in the photo?")
    says(page.locator("#card-0"), "Accuracy")
    playwright.expect(page.locator("html")).to_have_attribute("lang", "en")
    page.locator("#language").get_by_text("한국어").click()
    says(page.locator("#classify"), "분류하기")
    says(page.get_by_role("tab").nth(1), "사진 여러 장")
    says(page.locator("#card-0"), "정확도")


def test_a_zip_becomes_a_table(visit: Any, photo: Path, tmp_path: Path, server: Page) -> None:
    page = visit()
    page.get_by_role("tab", name="Many photos").click()
    page.locator("#make-table").click()
    says(page.get_by_role("alert"), "First choose a zip")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        file.write(photo, "a.jpg")
        file.write(photo, "사진/b.jpg")
        file.writestr("notes.txt", "no photo")
    (tmp_path / "broken.zip").write_bytes(b"PK no zip")
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as file:
        for i in range(server.limits.zip_members + 1):
            file.writestr(f"{i}.jpg", "")
    for name, text in {"broken.zip": "not a zip", "many.zip": "too many files"}.items():
        page.set_input_files("#zip input[type=file]", str(tmp_path / name))
        says(page.get_by_role("alert"), text)
        page.locator("#zip").get_by_role("button", name=re.compile("clear|remove", re.IGNORECASE)).first.click()
        playwright.expect(page.get_by_role("alert")).to_have_count(0, timeout=TIMEOUT)
    page.set_input_files("#zip input[type=file]", str(tmp_path / "photos.zip"))
    says(page.locator("#zip"), "photos")
    page.locator("#make-table").click()
    says(page.locator("#table"), "2 of 3 files classified")
    screenshot(page, "batch")
    with page.expect_download() as download:
        page.locator("#table a.save").click()
    content = Path(download.value.path()).read_bytes().decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    assert [row["image"] for row in rows] == ["a.jpg", "사진/b.jpg", "notes.txt"]
    best = classifier("resnext_tiny", engine="torch")(photo, 1)[0]
    assert rows[0]["label_1"] == rows[1]["label_1"] == best.label
    assert float(rows[0]["probability_1"]) == pytest.approx(best.probability, abs=1e-5)
    assert rows[2]["error"]


@pytest.mark.parametrize("locale", ["en-US", "ko-KR"])
def test_a_phone(visit: Any, photo: Path, locale: str) -> None:
    page = visit(locale, viewport=PHONE, is_mobile=True, has_touch=True, device_scale_factor=2)
    upload(page, photo)
    wait_for_overlay(page)
    screenshot(page, f"phone-{locale[:2]}")

    def is_within() -> bool:
        return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    assert is_within()
    for wide in ("h1", "#overlay-0 img"):
        assert page.locator(wide).bounding_box()["width"] > 250
    page.get_by_role("tab").nth(1).tap()
    page.locator("#make-table").wait_for()
    assert is_within()
    screenshot(page, f"phone-batch-{locale[:2]}")


def test_by_keyboard_alone(visit: Any, photo: Path, served: Served, server: Page) -> None:
    shutil.copy(photo, served.folder / "cat.jpg")
    server.port = int(served.url.rsplit(":", 1)[1])
    page = visit()

    def tab_to(selector: str) -> None:
        page.keyboard.press("Tab")
        for _ in range(40):
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"40 times Tab never came to {selector}")

    tab_to("#url input, #url textarea")
    page.keyboard.type(f"http://{HOST}/cat.jpg")
    page.keyboard.press("Enter")
    wait_for_overlay(page)
    tab_to("#variants input")  # its list opens on the first, which is chosen already
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    wait_for_overlay(page, 1)
    says(page.locator("#bars-1"), "tiny_twin")
    tab_to("#classify")
    page.keyboard.press("Enter")
    settled(page)
    label = list(shares(page))[1]
    tab_to(f"#bars-0 button:has([aria-label='{label}'])")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"  # one sees where one is
    page.keyboard.press("Enter")
    says(page.locator("#overlay-0 figcaption"), label)


@pytest.mark.parametrize("locale", ["en-US", "ko-KR"])
def test_every_control_has_a_name(visit: Any, photo: Path, locale: str) -> None:
    page = visit(locale)
    upload(page, photo)
    wait_for_overlay(page)
    tools = page.context.new_cdp_session(page)
    roles = ("button", "checkbox", "combobox", "link", "listbox", "radio", "slider", "spinbutton", "tab", "textbox")

    def unnamed() -> list[Any]:
        nodes = tools.send("Accessibility.getFullAXTree")["nodes"]
        controls = [n for n in nodes if not n.get("ignored") and n.get("role", {}).get("value") in roles]
        assert len(controls) > 8
        return [
            tools.send("DOM.describeNode", {"backendNodeId": n["backendDOMNodeId"]})["node"].get("attributes")
            for n in controls
            if not n.get("name", {}).get("value", "").strip()
        ]

    assert unnamed() == []
    page.get_by_role("tab").nth(1).click()
    page.locator("#make-table").wait_for()
    assert unnamed() == []
    assert page.locator("img:not([alt])").count() == 0


def blocks_of(size: int) -> int:
    """How many objects of exactly so many bytes Python holds: a photo's copies have a size of their own."""
    gc.collect()
    return sum(trace.size == size for trace in tracemalloc.take_snapshot().traces)


def test_no_file_of_a_visitor_stays(visit: Any, photo: Path, tmp_path: Path, server: Page) -> None:
    uploads = server.module.UPLOADS
    uploads.max_age = 3600.0  # so that it is this test that sees them lie there, and go
    size = sys.getsizeof(photo.read_bytes())
    tracemalloc.start()
    try:
        page = visit()
        upload(page, photo)
        wait_for_overlay(page)
        contents = {file.read_bytes() for file in uploads.folder.rglob("*") if file.is_file()}
        assert photo.read_bytes() in contents  # Gradio does write it
        del contents
    finally:
        uploads.max_age = 0.0
    uploads.sweep()
    assert [file for file in uploads.folder.rglob("*") if file.is_file()] == []
    # All works on without it: the photo is in memory.
    page.locator("#classify").click()
    label = list(shares(page))[2]
    page.get_by_test_id(f"{label}-confidence-set").click()
    says(page.locator("#overlay-0 figcaption"), label)
    assert page.locator("#photo img").evaluate("image => image.naturalWidth") > 0
    assert [file for file in uploads.folder.rglob("*") if file.is_file()] == []
    uploads.max_age = 60.0
    kept = page.evaluate(
        "async () => [JSON.stringify({...localStorage, ...sessionStorage}), await indexedDB.databases()]"
    )
    assert "data:" not in kept[0]
    assert kept[1] == []
    assert blocks_of(size) > 0
    server.module.forget(server.blocks.app, 0)
    assert not server.blocks.app.state_holder.session_data
    assert blocks_of(size) == 0
    page.locator("#classify").click()
    says(page.get_by_role("alert"), "forgotten after ten minutes")
    tracemalloc.stop()


def test_the_api_is_closed(server: Page, called: list[str]) -> None:
    for path in (
        "docs",
        "openapi.json",
        "monitoring",
        "gradio_api/openapi.json",
        "gradio_api/deep_link?session_hash=a",
    ):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{server.url}{path}", timeout=60)
    with urllib.request.urlopen(f"{server.url}gradio_api/info", timeout=60) as answer:
        info = json.load(answer)
    assert info["named_endpoints"] == info["unnamed_endpoints"] == {}


def zipped(photo: Path, count: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for i in range(count):
            file.write(photo, f"{i}.jpg")
    return out.getvalue()


@pytest.mark.parametrize("ends", ["idle", "during an upload", "during a calculation"])
def test_nothing_stays_on_disk(photo: Path, tmp_path: Path, ends: str) -> None:
    home, content = tmp_path / "home", photo.read_bytes()
    with page_process(home) as page, Visitor(page.url) as visitor:
        uploaded = Path(visitor.upload(content, "photo.jpg")["path"])
        assert uploaded.read_bytes() == content
        folder = next(path for path in uploaded.parents if path.name.startswith("resnext-hub-demo-"))
        assert "bow tie" in visitor.photo(content)
        assert "<figure" in visitor.click(3)
        assert "text/csv" in visitor.zip(zipped(photo, 2))
        for said in (
            visitor.photo(b"no photo"),
            visitor.zip(b"no zip"),
            visitor.address(page.url),
            visitor.address(f"data:image/jpeg;base64,{base64.b64encode(content[:9000]).decode()}"),
        ):
            assert "role='alert'" in said
        assert "data:image/jpeg" in visitor.address(f"data:image/jpeg;base64,{base64.b64encode(content).decode()}")
        if ends == "during an upload":
            line = socket.create_connection(("127.0.0.1", int(page.url.rstrip("/").rsplit(":", 1)[1])), 60)
            before = set(folder.rglob("*"))
            head = '--end\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
            line.sendall(
                b"POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n"
                b"Content-Type: multipart/form-data; boundary=end\r\n\r\n" + head.encode() + content
            )
            end = time.monotonic() + 60
            while not any(path.stat().st_size for path in set(folder.rglob("*")) - before if path.is_file()):
                assert time.monotonic() < end
                time.sleep(0.05)
        elif ends == "during a calculation":
            visitor.call("zip", "upload", [visitor.upload(zipped(photo, 200), "photos.zip"), "en"])
            table = visitor.messages("make-table", "click", [None, "resnext_tiny", 5, "en"])
            first = next(m for m in table if m["msg"] in ("progress", "process_completed"))
            assert first["msg"] == "progress"
        page.process.send_signal(signal.SIGTERM)
        assert page.process.wait(120) == 0
        written = page.written
    assert not folder.exists()
    # Drawing has matplotlib keep a list of fonts.
    elsewhere = {path for path in written if folder not in (path, *path.parents)}
    assert {path for path in elsewhere if not path.is_relative_to(home) or "matplotlib" not in f"{path}/"} <= {
        home / ".cache",
        home / ".config",
    }
    assert not any(content[1000:2000] in path.read_bytes() for path in home.rglob("*") if path.is_file())
