"""Photograph the web page for README and docs/demo.md, with the demo's photo, into docs/pictures/.

    make demo-page
    .venv-demo/bin/python docs/screenshots.py runs/food

demo_page.jpg: resnext_tiny on a desktop. demo_phone_ko.jpg: the same on a phone, in Korean. demo_compare.jpg:
resnext_tiny beside a folder that training wrote. Needs Chromium (apt-get install chromium).
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]
from resnext_hub.demo import page
from resnext_hub.demo.logic import Limits, Models

ROOT = Path(__file__).resolve().parent.parent
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 1.5}


def photograph(visit: Any, name: str) -> None:
    visit.evaluate("document.activeElement.blur()")
    visit.wait_for_timeout(500)  # transitions
    picture = Image.open(io.BytesIO(visit.screenshot(full_page=True))).convert("RGB")
    picture.save(ROOT / "docs" / "pictures" / name, quality=85, optimize=True, progressive=True)
    print(name, picture.size)


def main() -> int:
    trained = sys.argv[1]
    models = Models(["resnext_tiny", trained], "torch")
    for variant in models.checkpoints:
        models[variant]
    limits = Limits()
    blocks = page.build(models, limits)
    url = page.launch(blocks, "127.0.0.1", 0, limits)
    with sync_playwright() as driver:
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
        # Chromium would look up hosts of Google's.
        flags = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        browser = driver.chromium.launch(executable_path=chromium, args=flags)

        def visit(locale: str, **options: Any) -> Any:
            visitor = browser.new_page(locale=locale, **options)
            visitor.set_default_timeout(120_000)
            visitor.goto(url)
            visitor.set_input_files("#photo input[type=file]", str(ROOT / "demo" / "coffee.jpg"))
            visitor.locator("#overlay-0 figure").wait_for()
            return visitor

        desktop = visit("en-US", viewport={"width": 1160, "height": 900})
        photograph(desktop, "demo_page.jpg")
        desktop.locator("#variants input").click()
        desktop.get_by_role("option", name=Path(trained).name).click()
        desktop.keyboard.press("Escape")
        desktop.locator("#overlay-1 figure").wait_for()
        photograph(desktop, "demo_compare.jpg")
        photograph(visit("ko-KR", **PHONE), "demo_phone_ko.jpg")
        browser.close()
    blocks.close(verbose=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
