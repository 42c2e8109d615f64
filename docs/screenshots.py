"""Photograph the web page for README and docs/demo.md, with the demo's photo, into docs/pictures/.

    make demo-page
    .venv-demo/bin/python docs/screenshots.py runs/food

demo_page.jpg: resnext_tiny, 1280 pixels wide. demo_compare.jpg: beside a trained folder, dark and in Korean.
demo_phone.jpg: 390 pixels in Korean and 320 pixels, dark, in English. Needs Chromium (apt-get install chromium).
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
PHONE = {"is_mobile": True, "has_touch": True, "device_scale_factor": 1.5, "user_agent": "Mobile"}


def photographed(visit: Any) -> Image.Image:
    visit.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    visit.wait_for_timeout(1000)  # transitions
    return Image.open(io.BytesIO(visit.screenshot(full_page=True))).convert("RGB")


def save(picture: Image.Image, name: str) -> None:
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

        def visit(width: int, locale: str, scheme: str, variants: str = "resnext_tiny", **options: Any) -> Any:
            view = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, **options}
            visitor = browser.new_page(locale=locale, **view)
            visitor.set_default_timeout(120_000)
            visitor.goto(f"{url}?variant={variants}&lang={locale[:2]}")
            visitor.wait_for_selector("html[data-language]")
            visitor.set_input_files("#photo input[type=file]", str(ROOT / "demo" / "coffee.jpg"))
            for i in range(len(variants.split(","))):
                visitor.locator("#results figure.heat").nth(i).wait_for()
            return photographed(visitor)

        save(visit(1280, "en-US", "light"), "demo_page.jpg")
        both = f"resnext_tiny,{Path(trained).name}"
        save(visit(1280, "ko-KR", "dark", both), "demo_compare.jpg")
        phones = [visit(390, "ko-KR", "light", **PHONE), visit(320, "en-US", "dark", **PHONE)]
        beside = Image.new("RGB", (sum(p.width for p in phones) + 40, max(p.height for p in phones)), "white")
        for left, phone in zip((0, phones[0].width + 40), phones, strict=True):
            beside.paste(phone, (left, 0))
        save(beside, "demo_phone.jpg")
        browser.close()
    blocks.close(verbose=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
