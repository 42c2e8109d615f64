"""The page of the site that runs the network in the visitor's browser, in a headless Chromium. Run by `make page`."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from resnext_hub.inference.classifier import classifier

from ..conftest import ROOT

REASON = "the page's own environment is not there: make page"
playwright = pytest.importorskip("playwright.sync_api", reason=REASON)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None or shutil.which("npm") is None:
    pytest.skip("needs chromium and npm", allow_module_level=True)
TIMEOUT = 120_000  # ms


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What docs/site.py publishes of the page, in a sub-path: the site's frame is not needed."""
    base = tmp_path_factory.mktemp("site")
    folder = base / "sub" / "path" / "try"
    command = [sys.executable, str(ROOT / "docs" / "browser.py"), str(ROOT / "build" / "try")]
    subprocess.run(command, check=True, capture_output=True, cwd=base)
    shutil.copytree(ROOT / "build" / "try", folder)
    for path in [*(ROOT / "docs" / "try").iterdir(), *(ROOT / "demo").rglob("*.jpg")]:
        shutil.copy(path, folder)
    text = (ROOT / "docs" / "try.md").read_text(encoding="utf-8")
    body = text[text.index("<div") : text.index("</div>")] + "</div>" + text[text.index("<link") :]
    (folder / "index.html").write_text(
        f"<!doctype html><meta charset=utf-8><title>Try it</title>{body}", encoding="utf-8"
    )
    return base


@pytest.fixture(scope="module")
def page(site: Path) -> Iterator[Any]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/sub/path/try/"
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        opened = browser.new_page(locale="en-US")
        opened.set_default_timeout(TIMEOUT)
        requests: list[str] = []
        opened.on("request", lambda request: requests.append(request.url))
        opened.goto(url)
        yield opened
        assert len(requests) > 5
        assert [r for r in requests if not r.startswith((url, "blob:", "data:")) and "favicon" not in r] == []
        browser.close()
    server.shutdown()
    server.server_close()


def photos(folder: Path) -> list[Path]:
    """Ten pictures: ours, matplotlib's, scikit-image's."""
    import matplotlib as mpl
    from PIL import Image

    found = [*(ROOT / "demo").rglob("*.jpg"), Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg"]
    spec = importlib.util.find_spec("skimage")
    if spec is not None and spec.origin is not None:
        data = Path(spec.origin).parent / "data"
        found += [data / f"{name}.png" for name in ("astronaut", "color", "ihc", "motorcycle_left", "brick")]
        found.append(data / "rocket.jpg")
    turned = Image.open(found[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    turned.save(folder / "turned.jpg", exif=exif, quality=95)
    return [*found, folder / "turned.jpg"]


def test_the_browser_gives_pythons_answers(page: Any, tmp_path: Path) -> None:
    python = classifier("resnext_tiny", engine="torch")
    seen = photos(tmp_path)
    assert len(seen) >= 5
    for path in seen:
        page.evaluate("document.querySelector('.try-answer').replaceChildren()")
        page.set_input_files("#try input", str(path))
        page.locator(".try-answer li").nth(4).wait_for()
        shown = page.evaluate(
            "[...document.querySelectorAll('.try-answer li')].map(e => [e.dataset.synset, +e.dataset.probability])"
        )
        expected = python(path, 5)
        assert shown[0][0] == expected[0].synset, path.name
        probability = {p.synset: p.probability for p in python(path, 200)}
        assert [p for _, p in shown] == pytest.approx([probability[synset] for synset, _ in shown], abs=0.01), path.name


def test_examples_paste_and_what_is_no_photo(page: Any, tmp_path: Path) -> None:
    page.locator(".try-examples button").nth(1).click()
    playwright.expect(page.locator(".try-answer")).to_contain_text("cat", timeout=TIMEOUT)
    (tmp_path / "no.jpg").write_text("no photo")
    page.set_input_files("#try input", str(tmp_path / "no.jpg"))
    playwright.expect(page.locator(".try-status")).to_contain_text("cannot be read", timeout=TIMEOUT)
    assert page.locator(".try-answer li").count() == 0


def test_it_is_small_and_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    folder = site / "sub" / "path" / "try"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6
    assert "http" not in (folder / "try.js").read_text(encoding="utf-8")
