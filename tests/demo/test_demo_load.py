"""The web page for hours: memory, descriptors and uploads after as many requests as four hours bring."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import time
import zipfile
from pathlib import Path

import pytest
from resnext_hub.models.manifest import ROOT

if importlib.util.find_spec("gradio") is None:
    pytest.skip("the page's own environment is not there: make page", allow_module_level=True)

from ..support.demo_visitor import Visitor, page_process

REQUESTS = int(os.environ.get("PAGE_REQUESTS", "2057"))  # one every 7 s for 4 hours, without the waiting
ACTIONS = 7  # of a visitor, who then goes
WARM = 0.25  # of the requests, before memory is compared
SAMPLES = 50


def resident(pid: int) -> float:
    """MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.soak
def test_four_hours_of_requests(photo: Path, tmp_path: Path) -> None:
    content, out = photo.read_bytes(), io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for i in range(3):
            file.write(photo, f"{i}.jpg")
    samples: list[tuple[int, float, float, int, int]] = []
    with page_process(tmp_path / "home") as page:
        pid, start = page.process.pid, time.monotonic()
        folder = Path()
        for done in range(0, REQUESTS, ACTIONS):
            # Every visitor's photo differs: Gradio names an upload by its hash.
            own = content + done.to_bytes(4, "big")
            with Visitor(page.url) as visitor:
                if not done:
                    written = Path(visitor.upload(own, "photo.jpg")["path"])
                    folder = next(path for path in written.parents if path.name.startswith("resnext-hub-demo-"))
                answers = [
                    (visitor.photo(own), "bow tie"),
                    (visitor.click("n03763968"), "<figure"),
                    (visitor.click("n02123045"), "<figure"),
                    (visitor.zip(out.getvalue()), "text/csv"),
                    (visitor.photo(b"no photo"), "role='alert'"),
                    (visitor.address(page.url), "role='alert'"),
                    (visitor.zip(b"no zip"), "role='alert'"),
                ]
                assert [expected for said, expected in answers if expected not in said] == []
            if done * SAMPLES // REQUESTS != (done + ACTIONS) * SAMPLES // REQUESTS:
                files = sum(path.is_file() for path in folder.rglob("*"))
                descriptors = len(os.listdir(f"/proc/{pid}/fd"))
                samples.append((done + ACTIONS, time.monotonic() - start, resident(pid), descriptors, files))
        end = time.monotonic() + 300
        while any(path.is_file() for path in folder.rglob("*")):  # a minute old, they are removed
            assert time.monotonic() < end
            time.sleep(1)
        samples.append((samples[-1][0], time.monotonic() - start, resident(pid), len(os.listdir(f"/proc/{pid}/fd")), 0))
        assert page.process.poll() is None
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / "demo_load.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("requests", "seconds", "resident_mib", "descriptors", "uploads"), *samples])
    warm = [sample for sample in samples if sample[0] >= WARM * REQUESTS]
    first, last = warm[: len(warm) // 3], warm[-(len(warm) // 3) :]
    for column, bound in ((2, 40.0), (3, 8)):  # MiB, descriptors
        grown = sum(s[column] for s in last) / len(last) - sum(s[column] for s in first) / len(first)
        assert grown < bound, samples
