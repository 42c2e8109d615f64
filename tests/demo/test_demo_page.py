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
from PIL import Image
from resnext_hub.demo.logic import PageError
from resnext_hub.evaluation.explain import explain
from resnext_hub.inference.classifier import classifier
from resnext_hub.models.manifest import ROOT, default_manifest
from resnext_hub.processing_utils.uris import fetch

from ..conftest import Served

REASON = "the page's own environment is not there: make page"
if importlib.util.find_spec("gradio") is None:  # not imported yet: the page does that, and prepares it
    pytest.skip(REASON, allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason=REASON)
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=REASON)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("there is no chromium", allow_module_level=True)

from ..support.demo_visitor import Visitor, page_process  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # Gradio's are its own affair

SCREENSHOTS = ROOT / "build" / "screenshots"
TIMEOUT = int(os.environ.get("PAGE_TIMEOUT_MS", "120000"))  # ms: the machine may be busy; nothing waits so long
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
    content = (folder / "twin.pth").read_bytes()
    digest = {"kind": "sha256", "value": hashlib.sha256(content).hexdigest()}
    entry["sources"][0] |= {"path": "twin.pth", "bytes": len(content), "hash": digest}
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
        self.page = page._Page(models, self.limits, guarded)
        self.blocks = self.page.build()
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

    def open_page(locale: str = "en-US", path: str = "", **options: Any) -> Any:
        options.setdefault("viewport", {"width": 1280, "height": 900})
        context = browser.new_context(locale=locale, **options)
        context.set_default_timeout(TIMEOUT)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("response", lambda r: errors.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        page.goto(server.url + path)
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


def answer(page: Any, variant: str = "resnext_tiny") -> Any:
    """The part of the page that holds a variant's answer."""
    return page.locator(f"section.answer[aria-label={variant}]")


def wait_for_heat(page: Any, variant: str = "resnext_tiny") -> Any:
    figure = answer(page, variant).locator("figure.heat")
    figure.wait_for()
    return figure


def settled(page: Any) -> None:
    """Nothing of what was asked for is still being calculated."""
    page.wait_for_timeout(300)  # the click has become a request
    playwright.expect(page.locator("[data-testid=status-tracker]:not(.hide)")).to_have_count(0, timeout=TIMEOUT)
    playwright.expect(page.locator(".busy")).to_have_count(0, timeout=TIMEOUT)


def shares(page: Any, variant: str = "resnext_tiny") -> dict[str, str]:
    """What is shown: class and percentage, best first."""
    rows = answer(page, variant).locator("[data-key]").all()
    return {row.locator(".name").inner_text(): row.locator(".share").inner_text() for row in rows}


def clicked(page: Any, label: str, variant: str = "resnext_tiny") -> None:
    answer(page, variant).locator("[data-key]").filter(has_text=label).first.click()


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
    figure = wait_for_heat(page)
    expected = classifier("resnext_tiny", engine="torch")(photo, 5)
    assert shares(page) == {p.label.split(",")[0]: f"{p.probability:.1%}" for p in expected}
    tiny = default_manifest().resolve("resnext_tiny")
    answer(page).get_by_text("About this model").click()
    for text in (f"{tiny.published.top1}", f"{tiny.published.top5}", f"{tiny.params / 1e6:.1f} M", " ms", "commercial"):
        says(answer(page).locator(".card"), text)
    assert page.locator("#photo img.shown").evaluate("image => image.naturalWidth") > 0
    says(figure, next(iter(shares(page))))
    first = figure.locator(".over").get_attribute("src")
    screenshot(page, "desktop")
    other = list(shares(page))[3]
    clicked(page, other)
    says(figure.locator("figcaption"), f"{other}” ({explain('resnext_tiny', photo, other).probability:.1%})")
    assert answer(page).locator("[aria-pressed=true]").count() == 1
    assert figure.locator(".over").get_attribute("src") != first


def test_the_second_of_two_quick_clicks_counts(visit: Any, photo: Path) -> None:
    page = visit()
    upload(page, photo)
    figure = wait_for_heat(page)
    names = list(shares(page))
    for first, second in ((1, 2), (3, 4), (2, 0), (4, 1)):
        page.evaluate(
            "names => names.forEach(name => [...document.querySelectorAll('[data-key]')]"
            ".find(b => b.querySelector('.name').textContent === name).click())",
            [names[first], names[second]],
        )
        settled(page)
        says(figure.locator("figcaption"), f"“{names[second]}”")
        assert answer(page).locator("[aria-pressed=true] .name").inner_text() == names[second]


def test_variants_are_compared_and_the_number_of_classes_changes(visit: Any, photo: Path, twin: Path) -> None:
    page = visit()
    upload(page, photo)
    wait_for_heat(page)
    page.locator("#variants input").click()
    page.get_by_role("option", name="tiny_twin").click()
    page.keyboard.press("Escape")
    wait_for_heat(page, "tiny_twin")
    expected = classifier(str(twin), engine="torch")(photo, 5)
    assert list(shares(page, "tiny_twin")) == [p.label.split(",")[0] for p in expected]
    screenshot(page, "compared")
    # A class is shown in all of them, and one that is not on a list can be asked for by clicking the other's.
    clicked(page, label := list(shares(page))[1])
    for variant in ("resnext_tiny", "tiny_twin"):
        says(answer(page, variant).locator("figcaption"), label)
    number = page.locator("#classes input[type=number]")
    for typed, count in (("2", 2), ("7", 7)):
        number.fill(typed)
        number.press("Tab")
        playwright.expect(answer(page, "tiny_twin").locator("[data-key]")).to_have_count(count, timeout=TIMEOUT)
    page.locator("#variants .token-remove").first.click()  # resnext_tiny
    playwright.expect(answer(page)).to_have_count(0, timeout=TIMEOUT)
    assert "variant=tiny_twin" in page.url


def test_an_address_names_variants_language_and_number(visit: Any, photo: Path) -> None:
    page = visit("ko-KR", path="?variant=tiny_twin,no_such,resnext_tiny&top=3&lang=ko")
    upload(page, photo)
    for variant in ("tiny_twin", "resnext_tiny"):
        wait_for_heat(page, variant)
        assert len(shares(page, variant)) == 3


def test_a_removed_photo_gets_no_late_answer(visit: Any, photo: Path, server: Page, monkeypatch: Any) -> None:
    picture, gone_on = server.module.logic.picture, threading.Event()

    def slow(*arguments: Any) -> Any:
        assert gone_on.wait(TIMEOUT / 1000)
        return picture(*arguments)

    monkeypatch.setattr(server.module.logic, "picture", slow)
    page = visit()
    upload(page, photo)
    answer(page).wait_for()
    page.get_by_role("button", name="Remove the photo").click()
    playwright.expect(page.locator("#photo .drop")).to_be_visible(timeout=TIMEOUT)
    page.wait_for_timeout(500)  # more than it takes to be asked
    gone_on.set()
    settled(page)
    playwright.expect(answer(page)).to_have_count(0)


def test_photos_behind_addresses(visit: Any, photo: Path, served: Served, server: Page) -> None:
    shutil.copy(photo, served.folder / "cat.jpg")
    (served.folder / "page.jpg").write_text("<!doctype html><title>no photo</title>")
    server.port = int(served.url.rsplit(":", 1)[1])
    page = visit()
    box, notice = page.locator("#url input, #url textarea").first, page.locator("#notice")
    box.fill(f"http://{HOST}/cat.jpg")
    page.get_by_role("button", name="Fetch").click()
    wait_for_heat(page)
    assert page.locator("#photo img.shown").evaluate("image => image.naturalWidth") > 0
    assert "/cat.jpg" in served.log
    for url, text in {
        f"http://{HOST}/none.jpg": "404",
        f"http://{HOST}/page.jpg": "cannot be read as a photo",
        f"http://127.0.0.1:{server.port}/cat.jpg": "not public",
        "http://169.254.169.254/latest/meta-data": "not public",
        photo.as_uri(): "could not be fetched",
    }.items():
        box.fill(url)
        box.press("Enter")
        says(notice.get_by_role("alert"), text)
        settled(page)
        assert page.locator("#photo img.shown").count() == 1  # what is shown stays
        assert answer(page).count() == 1
    assert served.log.count("/cat.jpg") == 1
    screenshot(page, "refused")


def test_a_late_address_does_not_replace_a_newer_photo(visit: Any, photo: Path, server: Page, monkeypatch: Any) -> None:
    gone_on, late = threading.Event(), (ROOT / "demo" / "coffee.jpg").read_bytes()

    def slow(url: str, *arguments: Any, **options: Any) -> bytes:
        assert gone_on.wait(TIMEOUT / 1000)
        return late

    monkeypatch.setattr(server.page, "fetch", slow)
    page = visit()
    box = page.locator("#url input, #url textarea").first
    box.fill("http://slow.example/coffee.jpg")
    box.press("Enter")
    says(page.locator("#status"), "slow.example")
    playwright.expect(page.locator("#cancel")).to_be_visible()
    upload(page, photo)
    wait_for_heat(page)
    before = shares(page)
    gone_on.set()
    settled(page)
    assert shares(page) == before
    assert "espresso" not in before


def test_weights_that_are_awaited_or_missing(visit: Any, photo: Path, server: Page, monkeypatch: Any) -> None:
    """Waiting for weights is said, keeps nobody else waiting, and ends with one sentence that names the model."""
    gone_on, models = threading.Event(), server.page.models

    def missing(name: str) -> Any:
        assert gone_on.wait(TIMEOUT / 1000)
        raise PageError("error_weights", variant=name)

    opened, here = type(models).__getitem__, type(models).is_here
    twins = {"tiny_twin"}
    monkeypatch.setattr(type(models), "is_open", lambda self, name: name not in twins)
    monkeypatch.setattr(type(models), "is_here", lambda self, name: name not in twins and here(self, name))
    monkeypatch.setattr(
        type(models), "__getitem__", lambda self, name: missing(name) if name in twins else opened(self, name)
    )
    waiting = [visit(path="?variant=tiny_twin&lang=en") for _ in range(3)]
    for page in waiting:
        upload(page, photo)
        says(page.locator("#status"), "Downloading tiny_twin")
    quick = visit()
    upload(quick, photo)
    wait_for_heat(quick)
    gone_on.set()
    for page in waiting:
        says(page.get_by_role("alert"), "tiny_twin")
        settled(page)
        assert page.get_by_role("alert").inner_text().count("tiny_twin") == 1


def test_messages_for_bad_files(visit: Any, photo: Path, tmp_path: Path) -> None:
    page = visit()
    large = io.BytesIO()
    Image.new("1", (9000, 9000)).save(large, "PNG")
    for name, content, text in (
        ("text.jpg", b"no photo", "cannot be read"),
        ("cut.png", b"\x89PNG\r\n\x1a\n cut", "cannot be read"),
        ("image.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read"),
        ("large.png", large.getvalue(), "81 million"),
    ):
        (tmp_path / name).write_bytes(content)
        upload(page, tmp_path / name)
        says(page.get_by_role("alert"), text)
        upload(page, photo)
        wait_for_heat(page)
        playwright.expect(page.get_by_role("alert")).to_have_count(0, timeout=TIMEOUT)
        settled(page)


def test_paste_drop_camera_and_examples(visit: Any, photo: Path) -> None:
    page = visit(permissions=["camera"])
    give = """([kind, encoded]) => {
        const bytes = Uint8Array.from(atob(encoded), c => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "photo.jpg", {type: "image/jpeg"}));
        const target = kind === "paste" ? document.body : document.querySelector(".zone");
        const event = kind === "paste" ? new ClipboardEvent(kind, {clipboardData: data, bubbles: true})
                                       : new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true});
        target.dispatchEvent(event);
    }"""
    seen = set()
    for kind, path in {"paste": photo, "drop": ROOT / "demo" / "coffee.jpg"}.items():
        page.evaluate(give, [kind, base64.b64encode(path.read_bytes()).decode()])
        says(answer(page).locator("ol"), "bow tie" if kind == "paste" else "espresso")
        settled(page)
        seen.add(page.locator("#photo img.shown").get_attribute("src"))
    page.locator("[data-example=cat]").click()
    says(answer(page).locator("ol"), "cat")
    settled(page)
    seen.add(page.locator("#photo img.shown").get_attribute("src"))
    page.get_by_role("button", name="Camera").click()
    page.locator("dialog video").wait_for()
    page.wait_for_function("document.querySelector('dialog video').videoWidth > 0")
    page.get_by_role("button", name="Take the photo").click()
    page.wait_for_function("seen => !seen.includes(document.querySelector('img.shown').src)", arg=list(seen))
    wait_for_heat(page)
    settled(page)


def test_korean(visit: Any, photo: Path) -> None:
    page = visit("ko-KR")
    says(page.locator("h1"), "사진 속에는")
    upload(page, photo)
    wait_for_heat(page)
    answer(page).get_by_text("모델 정보").click()
    for text in ("정확도", "라이선스", "상업적 이용 불가", "소요 시간"):
        says(answer(page).locator(".card"), text)
    screenshot(page, "korean")
    clicked(page, label := list(shares(page))[2])
    says(answer(page).locator("figcaption"), label)
    page.locator("#language").get_by_text("English").click()
    says(page.locator("h1"), "What is in the photo?")
    says(answer(page), "About this model")
    assert answer(page).locator("[aria-pressed=true] .name").inner_text() == label  # the chosen class stays
    playwright.expect(page.locator("html")).to_have_attribute("lang", "en")
    page.locator("#language").get_by_text("한국어").click()
    says(page.locator("#photo"), "사진 선택")
    says(page.get_by_role("tab").nth(1), "사진 여러 장")


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
        playwright.expect(page.locator("#zip input[type=file]")).to_have_count(1, timeout=TIMEOUT)  # ready for another
    page.set_input_files("#zip input[type=file]", str(tmp_path / "photos.zip"))
    says(page.locator("#batch-status"), "photos.zip")
    page.locator("#make-table").click()
    says(page.locator("#table"), "2 of 3 files classified")
    assert page.locator("#table td img").count() == 2
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


@pytest.mark.parametrize(("locale", "width"), [("en-US", 390), ("ko-KR", 390), ("en-US", 320), ("ko-KR", 320)])
def test_a_phone(visit: Any, photo: Path, locale: str, width: int) -> None:
    phone = {"viewport": {"width": width, "height": 844}, "is_mobile": True, "has_touch": True}
    page = visit(locale, **phone, color_scheme="dark" if width == 320 else "light", user_agent="Mobile")
    playwright.expect(page.locator("#variants")).to_be_hidden()  # the options are folded
    upload(page, photo)
    wait_for_heat(page)
    page.wait_for_function("scrollY > 100")  # to the answer
    screenshot(page, f"phone-{locale[:2]}-{width}")

    def is_within() -> bool:
        return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    assert is_within()
    small = page.evaluate(
        "[...document.querySelectorAll('#photo button, #photo label, #results button, #cancel')]"
        ".map(e => e.getBoundingClientRect()).filter(r => r.width && (r.height < 44 || r.width < 44)).length"
    )
    assert small == 0
    for tab in (1, 2):
        page.get_by_role("tab").nth(tab).tap()
        page.locator("#make-table" if tab == 1 else "#models table").wait_for()
        assert is_within()
    screenshot(page, f"phone-models-{locale[:2]}-{width}")


def test_by_keyboard_alone(visit: Any, photo: Path, served: Served, server: Page) -> None:
    shutil.copy(photo, served.folder / "cat.jpg")
    server.port = int(served.url.rsplit(":", 1)[1])
    page = visit()

    def tab_to(selector: str) -> None:
        page.keyboard.press("Tab")
        for _ in range(60):
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"60 times Tab never came to {selector}")

    tab_to("#url input, #url textarea")
    page.keyboard.type(f"http://{HOST}/cat.jpg")
    page.keyboard.press("Enter")
    wait_for_heat(page)
    tab_to("#variants input")  # its list opens on the first, which is chosen already
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    wait_for_heat(page, "tiny_twin")
    settled(page)
    label = list(shares(page))[1]
    tab_to("section[aria-label=resnext_tiny] li:nth-child(2) button")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"  # one sees where one is
    page.keyboard.press("Enter")
    says(answer(page).locator("figcaption"), label)


@pytest.mark.parametrize("locale", ["en-US", "ko-KR"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(visit: Any, photo: Path, locale: str, scheme: str) -> None:
    """axe finds nothing on any tab: names, contrast (AA), headings, roles."""
    page = visit(locale, color_scheme=scheme)
    upload(page, photo)
    wait_for_heat(page)
    for details in page.locator("section.answer summary").all():
        details.click()
    settled(page)
    for tab in range(3):
        page.get_by_role("tab").nth(tab).click()
        page.wait_for_timeout(400)
        rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
        findings = axe.Axe().run(page, options={"runOnly": rules})
        found = {(v["id"], n["html"][:200]) for v in findings.response["violations"] for n in v["nodes"]}
        assert found == set(), found


def blocks_of(size: int) -> int:
    """How many objects of exactly so many bytes Python holds: a photo's copies have a size of their own."""
    gc.collect()
    return sum(trace.size == size for trace in tracemalloc.take_snapshot().traces)


def test_no_file_of_a_visitor_stays(visit: Any, photo: Path, tmp_path: Path, server: Page) -> None:
    uploads = server.module.UPLOADS
    uploads.max_age = 0.0
    uploads.sweep()  # what the visitors of other tests broke off
    uploads.max_age = 3600.0  # so that it is this test that sees its own lie there, and go
    size = sys.getsizeof(photo.read_bytes())
    tracemalloc.start()
    try:
        page = visit()
        upload(page, photo)
        wait_for_heat(page)
        assert [file for file in uploads.folder.rglob("*") if file.is_file()] == []  # once read, it is removed
    finally:
        uploads.max_age = 0.0
    uploads.sweep()
    assert [file for file in uploads.folder.rglob("*") if file.is_file()] == []
    # All works on without it: the photo is in memory.
    clicked(page, label := list(shares(page))[2])
    says(answer(page).locator("figcaption"), label)
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
    clicked(page, label)
    says(page.get_by_role("alert"), "ten minutes")
    tracemalloc.stop()


def test_the_api_is_closed(server: Page, called: list[str]) -> None:
    ours = ("gradio_api/openapi.json", "gradio_api/deep_link?session_hash=a")
    for path in ("docs", "openapi.json", "monitoring", *ours):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{server.url}{path}", timeout=60)
    with urllib.request.urlopen(f"{server.url}gradio_api/info", timeout=60) as answer:
        info = json.load(answer)
    assert info["named_endpoints"] == info["unnamed_endpoints"] == {}


def test_any_number_of_classes_gets_an_answer(server: Page, photo: Path) -> None:
    for typed in (2.5, None, "", 99):
        with Visitor(server.url) as visitor:
            assert "bow tie" in visitor.photo(photo.read_bytes(), top=typed), typed


def zipped(photo: Path, count: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for i in range(count):
            file.write(photo, f"{i}.jpg")
    return out.getvalue()


@pytest.mark.parametrize("ends", ["idle", "during an upload", "during a calculation"])
def test_nothing_stays_on_disk(photo: Path, tmp_path: Path, ends: str) -> None:
    home, content = tmp_path / "home", photo.read_bytes()
    with page_process(home) as page, Visitor(page.url) as visitor, socket.socket() as line:
        uploaded = Path(visitor.upload(content, "photo.jpg")["path"])
        assert uploaded.read_bytes() == content
        folder = next(path for path in uploaded.parents if path.name.startswith("resnext-hub-demo-"))
        assert "bow tie" in visitor.photo(content)
        assert "<figure" in visitor.click("n03763968")
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
            line.connect(("127.0.0.1", int(page.url.rstrip("/").rsplit(":", 1)[1])))
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
            visitor.call("zip", "upload", [visitor.upload(zipped(photo, 200), "photos.zip"), None, "en"])
            table = visitor.messages("make-table", "click", ["resnext_tiny", 5, None, "en"])
            first = next(m for m in table if m["msg"] in ("process_generating", "process_completed"))
            assert first["msg"] == "process_generating"
        page.process.send_signal(signal.SIGTERM)
        assert page.process.wait(120) == 0
        written = page.written
    assert not folder.exists()
    # Drawing has matplotlib keep a list of fonts.
    elsewhere = {path for path in written if folder not in (path, *path.parents)}
    unexpected = {path for path in elsewhere if not path.is_relative_to(home) or "matplotlib" not in f"{path}/"}
    assert unexpected <= {home / ".cache", home / ".config"}
    assert not any(content[1000:2000] in path.read_bytes() for path in home.rglob("*") if path.is_file())
