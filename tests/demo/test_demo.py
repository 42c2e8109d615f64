"""What the web page does, without Gradio: photos in, answers out, and nothing of a stranger's on disk."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import os
import re
import stat
import string
import struct
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from resnext_hub import cli
from resnext_hub.demo import logic, views
from resnext_hub.demo.logic import (
    Limits,
    Models,
    PageError,
    Row,
    as_csv,
    batch_rows,
    classify,
    count_of,
    fetch_photo,
    index_of,
    key_of,
    picture,
    short_names,
)
from resnext_hub.demo.session import Session
from resnext_hub.demo.uploads import Uploads
from resnext_hub.inference.classifier import classifier
from resnext_hub.models.manifest import default_manifest
from resnext_hub.processing_utils.predictions import Prediction
from resnext_hub.processing_utils.preprocessing import crop_pixels

LIMITS = Limits()
TEXTS = tomllib.loads((Path(views.__file__).parent / "texts.toml").read_text(encoding="utf-8"))
HERE = Path(views.__file__).parent


@pytest.fixture(scope="module")
def models() -> Models:
    return Models(["resnext_tiny"], engine="torch")


@pytest.fixture
def data(photo: Path) -> bytes:
    return photo.read_bytes()


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return out.getvalue()


def read_csv(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))


def refused(key: str, run: Callable[..., object], *arguments: object) -> PageError:
    with pytest.raises(PageError) as caught:
        run(*arguments)
    assert caught.value.key == key
    return caught.value


def test_a_photo_is_classified_as_the_library_does(models: Models, data: bytes) -> None:
    answer = classify(models, "resnext_tiny", data, 5, LIMITS)
    assert answer.predictions == classifier("resnext_tiny", engine="torch")(data, 5)
    assert answer.engine == "torch"
    assert answer.network_seconds > 0
    assert answer.prepare_seconds > 0


@pytest.mark.parametrize(
    ("typed", "count"),
    [(1000, 10), (-3, 1), (2.5, 2), ("7", 7), (None, 5), ("", 5), ("x", 5), (float("nan"), 5), (float("inf"), 5)],
)
def test_any_number_of_classes_can_be_typed(models: Models, data: bytes, typed: object, count: int) -> None:
    assert count_of(typed, LIMITS.top) == count
    if typed in (1000, None):
        assert len(classify(models, "resnext_tiny", data, typed, LIMITS).predictions) == count


def test_what_is_not_a_photo_is_refused(models: Models, data: bytes) -> None:
    for wrong in (b"", b"no photo", data[:5000], b"<!doctype html>"):
        refused("error_image", classify, models, "resnext_tiny", wrong, 5, LIMITS)
    assert refused("error_big", classify, models, "resnext_tiny", data, 5, Limits(image_bytes=1000)).values
    error = refused("error_pixels", classify, models, "resnext_tiny", data, 5, Limits(image_pixels=1000))
    assert error.values["pixels"] == 0  # million


def test_only_offered_variants_are_opened(models: Models, data: bytes) -> None:
    for name in ("resnext50_32x4d", "/etc", "../models", ""):
        refused("error_variant", classify, models, name, data, 5, LIMITS)
    with pytest.raises(ValueError, match="name"):
        Models([])


def test_missing_weights_are_not_explained_to_strangers(monkeypatch: Any, tmp_path: Path, caplog: Any) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("RESNEXT_HUB_OFFLINE", "1")
    error = refused("error_weights", Models(["resnet18_swsl"], engine="torch").__getitem__, "resnet18_swsl")
    assert (error.detail, error.values) == ("", {"variant": "resnet18_swsl"})
    assert "RESNEXT_HUB_OFFLINE" in caplog.text


def test_the_least_used_variant_goes(monkeypatch: Any, tmp_path: Path) -> None:
    opened = []

    def open_one(variant: str, **options: Any) -> Any:
        opened.append(variant)
        assert options["device"] == "cpu"
        return classifier("resnext_tiny", engine="torch")

    monkeypatch.setattr(logic, "classifier", open_one)
    models = Models(["resnext_tiny", "resnet18_ssl", "resnet18_swsl"], kept=2, device="cpu")
    for name in ("resnext_tiny", "resnet18_ssl", "resnext_tiny", "resnet18_swsl", "resnext_tiny", "resnet18_ssl"):
        models[name]
    assert opened == ["resnext_tiny", "resnet18_ssl", "resnet18_swsl", "resnet18_ssl"]


def test_addresses_of_strangers(data: bytes, photo: Path) -> None:
    for private in ("http://127.0.0.1/x.jpg", "http://169.254.169.254/latest", "http://[::1]/", "10.0.0.1/a.png"):
        assert refused("error_private", fetch_photo, private, LIMITS).detail == ""
    for url in (photo.as_uri(), "ftp://example.org/x", "http://"):
        refused("error_url", fetch_photo, url, LIMITS)
    refused("error_no_url", fetch_photo, "  ", LIMITS)
    url = "data:image/jpeg;base64," + base64.b64encode(data).decode()
    assert fetch_photo(url, LIMITS) == data
    refused("error_url", fetch_photo, url, Limits(image_bytes=1000))


def test_an_address_without_a_scheme_is_taken_for_a_web_address() -> None:
    fetch = Mock(return_value=b"photo")
    assert fetch_photo(" example.org/cat.jpg ", LIMITS, fetch) == b"photo"
    allowed = {"max_bytes": LIMITS.image_bytes, "timeout": LIMITS.fetch_seconds}
    fetch.assert_called_once_with("https://example.org/cat.jpg", schemes=("http", "https", "data"), **allowed)


def test_a_picture_shows_the_crop_that_the_network_sees(models: Models, data: bytes) -> None:
    best = classify(models, "resnext_tiny", data, 1, LIMITS).predictions[0]
    assert index_of(models["resnext_tiny"], key_of(best)) == best.index
    assert index_of(models["resnext_tiny"], "no such class") is None
    found = picture(models, "resnext_tiny", data, best.index, LIMITS)
    assert found.has_heat
    assert found.probability == pytest.approx(best.probability)
    preset = models["resnext_tiny"].preset
    expected = crop_pixels(Image.open(io.BytesIO(data)), preset).astype(int)
    crop, overlay = (np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in (found.crop, found.overlay))
    assert crop.shape == overlay.shape == (448, 448, 3)
    small = np.asarray(Image.fromarray(crop).resize((preset.crop_size,) * 2, Image.Resampling.BOX)).astype(int)
    assert np.abs(small - expected).mean() < 12  # the same picture, in more pixels
    assert np.abs(overlay.astype(int) - crop).mean() > 5
    for index in (200, -1):
        refused("error_class", picture, models, "resnext_tiny", data, index, LIMITS)


def test_names_that_two_classes_share_are_told_apart() -> None:
    cranes = [
        Prediction(134, "n02012849", "crane", 0.6),
        Prediction(517, "n03126707", "crane", 0.3),
        Prediction(1, "n01443537", "goldfish, Carassius auratus", 0.1),
    ]
    assert short_names(cranes) == ["crane (n02012849)", "crane (n03126707)", "goldfish"]


def test_a_zip_gives_a_row_for_every_file(models: Models, data: bytes, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.parent.rglob("*"))
    files = {
        "a.jpg": data,
        "folder/": b"",
        "folder/사진.jpg": data,
        "../../evil.jpg": data,
        "/etc/evil.jpg": data,
        "__MACOSX/._a.jpg": b"resource fork",
        "nested.zip": zipped({"a.jpg": data}),
        "notes.txt": b"no photo",
        "cut.jpg": data[:5000],
        "=HYPERLINK(1).jpg": b"",
    }
    rows = list(batch_rows(models, "resnext_tiny", zipped(files), 3, LIMITS))
    assert set(tmp_path.parent.rglob("*")) == before  # nothing was unpacked, in or out of this folder
    assert [row.image for row in rows] == [n for n in files if not n.endswith("/") and "MACOSX" not in n]
    good = classify(models, "resnext_tiny", data, 3, LIMITS).predictions
    for row in rows:
        is_good = row.image.endswith(("a.jpg", "사진.jpg", "evil.jpg"))
        assert bool(row.error) != is_good
        assert [p.index for p in row.predictions] == [p.index for p in good if is_good]
    table = read_csv(as_csv(rows, 3))
    assert [line["image"] for line in table][-1] == "'=HYPERLINK(1).jpg"
    assert table[0]["label_1"] == good[0].label
    assert float(table[0]["probability_1"]) == pytest.approx(good[0].probability, abs=1e-5)
    assert table[1]["image"] == "folder/사진.jpg"
    assert "Archives within" in table[4]["error"]
    assert len(table[0]) == 2 + 3 * 3


def test_zips_that_are_refused(models: Models, data: bytes) -> None:
    def run(content: bytes, limits: Limits = LIMITS) -> list[Row]:
        return list(batch_rows(models, "resnext_tiny", content, 3, limits))

    for broken in (b"", b"no zip", zipped({"a.jpg": data})[:-40], data):
        refused("error_zip", run, broken)
    refused("error_zip_empty", run, zipped({"folder/": b""}))
    refused("error_zip_big", run, zipped({"a.jpg": data}), Limits(zip_bytes=1000))
    many = zipped({f"{i}.jpg": b"" for i in range(4)})
    refused("error_zip_many", run, many, Limits(zip_members=3))
    assert len(run(many, Limits(zip_members=4))) == 4
    refused("error_zip_many", run, zipped({f"{i}/": b"" for i in range(21)}), Limits(zip_members=2))


def test_a_zip_bomb_is_not_unpacked(models: Models, data: bytes) -> None:
    bomb = zipped({"zeros.jpg": b"\0" * 40_000_000, "a.jpg": data})
    # Its header may lie: what counts is what comes out.
    size = struct.pack("<I", 40_000_000)
    lying = bomb.replace(size, struct.pack("<I", 100))
    for content in (bomb, lying):
        rows = list(batch_rows(models, "resnext_tiny", content, 1, LIMITS))
        assert rows[0].error
        assert rows[1].error == ""
    limits = Limits(unpacked_bytes=len(data) + 10)  # for all of them together
    rows = list(batch_rows(models, "resnext_tiny", zipped({"a.jpg": data, "b.jpg": data}), 1, limits))
    assert [bool(row.error) for row in rows] == [False, True]


def test_members_that_need_much_memory_or_a_password_are_not_opened(models: Models, data: bytes) -> None:
    rows = list(batch_rows(models, "resnext_tiny", zipped({"a.jpg": data}, zipfile.ZIP_LZMA), 1, LIMITS))
    assert "deflate" in rows[0].error
    secret = bytearray(zipped({"a.jpg": data}, zipfile.ZIP_STORED))
    secret[6] |= 1  # the flag of encryption, in the member's header and in the directory
    secret[secret.index(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in next(batch_rows(models, "resnext_tiny", bytes(secret), 1, LIMITS)).error


def test_a_zip_has_a_time_limit(models: Models, data: bytes) -> None:
    now = iter([0.0, 1.0, 200.0, 201.0])
    content = zipped({f"{i}.jpg": data for i in range(3)})
    rows = list(batch_rows(models, "resnext_tiny", content, 1, LIMITS, clock=lambda: next(now)))
    assert [bool(row.error) for row in rows] == [False, True, True]
    assert "120 s" in rows[1].error


def test_names_that_windows_wrote_in_korean(models: Models, data: bytes) -> None:
    name = "사진.jpg".encode("cp949")
    content = zipped({"x" * len(name): data}).replace(b"x" * len(name), name)
    assert next(batch_rows(models, "resnext_tiny", content, 1, LIMITS)).image == "사진.jpg"


def test_every_text_is_there_in_both_languages_and_is_used() -> None:
    code = "".join((HERE / name).read_text(encoding="utf-8") for name in ("logic.py", "views.py", "page.py"))
    for key, text in TEXTS.items():
        assert set(text) == set(views.LANGUAGES), key
        gaps = [{name for _, name, _, _ in string.Formatter().parse(text[one]) if name} for one in text]
        assert gaps[0] == gaps[1], key
        assert re.search("[가-힣]", text["ko"]), key
        assert not re.search("[가-힣]", text["en"]), key
        assert re.search(rf"[\"']{key}[\"']", code) or key.startswith(("column_", "example_")), f"{key} is said nowhere"


def test_language_of_a_browser() -> None:
    assert views.preferred_language("ko-KR,ko;q=0.9,en;q=0.8") == "ko"
    assert views.preferred_language("fr,en-GB;q=0.7,ko;q=0.5") == "en"
    assert views.preferred_language("fr") == views.preferred_language(None) == "en"


@pytest.mark.parametrize("language", views.LANGUAGES)
def test_views_are_complete_and_escaped(models: Models, data: bytes, language: str) -> None:
    answer = classify(models, "resnext_tiny", data, 2, LIMITS)
    offered = Models(list(default_manifest().checkpoints), engine="torch")
    table = views.model_table(offered, language)
    for checkpoint in offered.checkpoints.values():
        session = Session(answers=[dataclasses.replace(answer, variant=checkpoint.name)])
        html = views.results(session, offered, language)
        for part in (html, table):
            assert str(checkpoint.published.top1) in part
            assert checkpoint.license is None or checkpoint.license.url in part
        commercial = checkpoint.license is None or checkpoint.license.commercial_use
        assert (views.say(language, "non_commercial") in html) != commercial
        assert f"--variant {checkpoint.name}" in html
    nasty = "<img src=x onerror=alert(1)>'\""
    rows = [Row(nasty, nasty), Row("a.jpg", "", answer.predictions)]
    shown = [
        views.batch(rows, 2, language),
        views.notices([PageError("error_image", nasty), PageError("error_weights", variant=nasty)], language),
        views.zip_line(Session(zip_name=nasty), 2, language),
        views.busy(language, "fetching", host=nasty),
    ]
    assert not any("<img" in html for html in shown)
    assert "role='alert'" in shown[1]
    assert views.notices([], language) == ""
    twice = [PageError("error_weights", variant="resnet18_swsl") for _ in range(2)]
    assert views.notices(twice, language).count("resnet18_swsl") == 1


def test_a_table_has_no_empty_column(models: Models, data: bytes) -> None:
    rows = list(batch_rows(models, "resnext_tiny", zipped({"a.jpg": data}), 2, LIMITS))
    assert views.batch(rows, 2, "en").count("<th ") == 3
    assert views.batch([*rows, Row("b.txt", "no photo")], 2, "en").count("<th ") == 4
    assert views.batch(rows, 2, "en").count("<img ") == 1


def test_a_later_request_makes_an_earlier_one_stale() -> None:
    session = Session()
    first = session.turn("photo")
    assert not session.is_stale("photo", first)
    session.turn("run")
    assert not session.is_stale("photo", first)
    session.turn("photo")
    assert session.is_stale("photo", first)


def test_command_says_what_is_wrong(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "resnext_hub.demo.page", raising=False)
    assert cli.main(["demo"]) == 2
    assert "pip install 'gradio<7'" in capsys.readouterr().err


def test_a_port_in_use(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def serve(*arguments: object, **options: object) -> None:
        raise OSError("Cannot find empty port in range: 80-80. Set GRADIO_SERVER_PORT.")  # Gradio's: no errno

    monkeypatch.setitem(sys.modules, "resnext_hub.demo.page", SimpleNamespace(serve=serve))
    assert cli.main(["demo", "--variant", "resnext_tiny", "--engine", "torch", "--port", "80"]) == 2
    said = capsys.readouterr().err
    assert "127.0.0.1:80" in said
    assert "--port" in said
    assert "GRADIO" not in said


def test_uploads_do_not_grow_old() -> None:
    with closing(Uploads(max_age=60, every=3600)) as uploads:
        old, new = uploads.folder / "hash" / "old.jpg", uploads.folder / "new.jpg"
        old.parent.mkdir()
        for file in (old, new):
            file.write_bytes(b"photo")
        past = time.time() - 61
        os.utime(old, (past, past))
        os.utime(old.parent, (past, past))
        uploads.sweep()
        assert not old.exists()
        assert new.read_bytes() == b"photo"
        os.utime(new, (past, past))
        uploads.sweep()
        assert not [path for path in uploads.folder.rglob("*") if path.is_file()]
    assert not uploads.folder.exists()


def test_a_folder_that_vanishes_during_a_sweep_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Uploads(max_age=-1, every=3600)) as uploads:
        (uploads.folder / "moved").mkdir()
        (uploads.folder / "photo.jpg").touch()
        scandir = os.scandir

        def vanish(path: Any) -> Any:
            if Path(path).name == "moved":
                Path(path).rmdir()
            return scandir(path)

        monkeypatch.setattr(os, "scandir", vanish)
        uploads.sweep()
        monkeypatch.undo()
        assert not list(uploads.folder.iterdir())


def test_uploads_are_swept_by_themselves_and_do_not_fill_the_memory() -> None:
    with closing(Uploads(max_age=3600, max_bytes=1000, every=0.05)) as uploads:
        assert stat.S_IMODE(uploads.folder.stat().st_mode) == 0o700  # for this user only
        for i in range(5):
            file = uploads.folder / str(i)
            file.write_bytes(b"x" * 400)
            os.utime(file, (time.time() - 100 + i,) * 2)
        end = time.monotonic() + 30
        while len(list(uploads.folder.iterdir())) > 2 and time.monotonic() < end:
            time.sleep(0.05)
        assert sorted(path.name for path in uploads.folder.iterdir()) == ["3", "4"]  # the oldest went


def test_what_a_killed_process_left_is_removed_by_the_next(monkeypatch: Any) -> None:
    code = "from resnext_hub.demo.uploads import Uploads; print(Uploads().folder, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        try:
            assert process.stdout
            left = Path(process.stdout.readline().strip())
            (left / "photo.jpg").write_bytes(b"photo")
            monkeypatch.setattr("resnext_hub.demo.uploads.YOUNG", 0.0)
            Uploads().close()
            assert left.exists()  # it is in use
        finally:
            process.kill()
    assert (left / "photo.jpg").exists()
    Uploads().close()
    assert not left.exists()
