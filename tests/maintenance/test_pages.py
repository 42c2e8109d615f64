"""The model pages (docs/hub): what maintenance/write_pages.py writes, in PyTorch Hub's format, alike in both languages.

Every code block runs. Checkpoints and photos come from loopback, as in test_originals.py; the networks have one block
per stage, since test_resnext.py runs them at full depth.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import sys
import textwrap
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from PIL import Image
from resnext_hub.maintenance.write_pages import FOLDERS, PAGES, REPOSITORY, Page, main, measured_alike
from resnext_hub.models.manifest import default_manifest

from ..conftest import ROOT, UNINSTALLED
from ..support.published import environment, published

MANIFEST = default_manifest()
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
in_language = pytest.mark.parametrize("language", FOLDERS)


def text_of(page: Page, language: str) -> str:
    return (FOLDERS[language] / page.filename).read_text(encoding="utf-8")


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def code(text: str, kind: str) -> str:
    return "\n".join(block for found, block in BLOCK.findall(text) if found == kind)


def prose(text: str) -> str:
    return BLOCK.sub("", text.split("---\n", 2)[2])


def tables(text: str) -> list[list[str]]:
    """The names in the first column of each table."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("|---"):
            found.append([])
        elif line.startswith("| `"):
            found[-1].append(line.split("`")[1])
    return found


def comments(source: str) -> list[str]:
    return [line for line in source.splitlines() if line.startswith("#")]


def test_pages_are_as_written_by_the_script(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["write_pages.py", "--check"])
    assert main() == 0, capsys.readouterr().err


def test_check_sees_a_stale_page_and_one_too_many(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(FOLDERS["en"], tmp_path / "docs" / "hub")
    monkeypatch.setattr("resnext_hub.maintenance.write_pages.DOCS", tmp_path / "docs")
    monkeypatch.setattr("resnext_hub.maintenance.write_pages.FOLDERS", {"en": copy, "ko": copy / "ko"})
    shutil.copytree(ROOT / "docs" / "page_templates", tmp_path / "docs" / "page_templates")
    stale, extra = copy / PAGES[0].filename, copy / "ko" / "another.md"
    stale.write_text(stale.read_text(encoding="utf-8").replace("82.20", "92.20"), encoding="utf-8")
    extra.write_text("")
    monkeypatch.setattr(sys, "argv", ["write_pages.py", "--check"])
    assert main() == 1
    said = capsys.readouterr().err
    assert stale.name in said
    assert extra.name in said
    monkeypatch.setattr(sys, "argv", ["write_pages.py"])
    assert main() == 0
    assert not extra.exists()
    assert stale.read_text(encoding="utf-8") == text_of(PAGES[0], "en")


def test_every_published_checkpoint_is_on_one_page() -> None:
    named = Counter(checkpoint.name for page in PAGES for checkpoint in page.checkpoints)
    assert named == Counter(name for name in MANIFEST.checkpoints if name != "resnext_tiny")


@by_name
@in_language
def test_tables_name_every_variant_once(page: Page, language: str) -> None:
    names = [checkpoint.name for checkpoint in page.checkpoints]
    measured = [names] if page.checkpoints[0].measured else []
    assert tables(text_of(page, language)) == [names, *measured]
    assert page.example in names


def test_a_row_of_measurements_has_one_preprocessing() -> None:
    # timm's first row for this one on Sketch is at 176 pixels, its row on ImageNet at 224.
    found = measured_alike(MANIFEST.checkpoints["resnext101_32x8d.IMAGENET1K_V2"], "sketch")
    assert found is not None
    assert (found.image_size, found.crop_pct) == (224, 0.965)


@by_name
@in_language
def test_numbers_in_the_prose_are_known(page: Page, language: str) -> None:
    """Every decimal number is in the manifest, as it is there or rounded as the tables round, or in pyproject.toml."""
    raw = MANIFEST.path.read_text(encoding="utf-8")
    known = set(re.findall(r"\d+\.\d+", raw + (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    exact = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", raw)]
    known |= {f"{number:.{digits}f}" for number in exact for digits in (1, 2)}
    known |= {f"{checkpoint.params / 1e6:.1f}" for checkpoint in MANIFEST.checkpoints.values()}
    plain = re.sub(r"\(https?://[^)]*\)", "", prose(text_of(page, language)))
    assert not {number for number in re.findall(r"\d+\.\d+", plain) if number not in known} - {"4.0"}  # CC-BY-NC 4.0


@by_name
@in_language
def test_format_is_pytorch_hubs(page: Page, language: str) -> None:
    """The rules of pytorch/hub's scripts/sanity_check.py, but what needs the web."""
    text = text_of(page, language)
    assert text.startswith("---\nlayout: hub_detail\nbackground-class: hub-background\nbody-class: hub\ntitle: ")
    matter = front_matter(text)
    required = ["title", "summary", "image", "author", "tags", "github-link", "category", "github-id", "accelerator"]
    assert all(matter[key] for key in [*required, "featured_image_1", "featured_image_2", "demo-model-link"])
    assert matter["category"] in ("researchers", "developers")
    assert matter["tags"] == ["vision", "scriptable"]
    assert matter["accelerator"] in ("cuda", "cuda-optional")
    assert not any(":" in matter[key] for key in ("title", "summary", "author", "image"))
    sections = [line for line in text.splitlines() if line.startswith("###")]
    assert not any(":" in section for section in sections)
    if language == "en":
        assert {"### Example", "### Model Description", "### References"} <= set(sections)
    assert "{{" not in text  # Jekyll would take it for a template
    assert "{%" not in text


@by_name
@in_language
def test_licence_is_the_manifests(page: Page, language: str) -> None:
    section = re.split(r"^### ", text_of(page, language), flags=re.MULTILINE)[3]
    for checkpoint in page.checkpoints:
        commercial = "**no commercial use**" if language == "en" else "**상업적으로 이용할 수 없습니다**"
        forbidden = checkpoint.license is not None and not checkpoint.license.commercial_use
        assert (commercial in section) == forbidden
        assert (checkpoint.license_id or "NGC").replace("NC-4", "NC 4").replace("D-3", "D 3") in section


@by_name
@in_language
def test_links_into_the_repository_lead_somewhere(page: Page, language: str) -> None:
    link = rf"https://github\.com/{REPOSITORY}/blob/main/([^)\s#]+)(?:#([^)\s]+))?"
    links = re.findall(link, text_of(page, language))
    assert links
    for path, anchor in links:
        target = (ROOT / path).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", target, re.MULTILINE)
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]


@by_name
def test_both_languages_have_the_same_code_and_their_own_comments(page: Page) -> None:
    english, korean = (text_of(page, language) for language in ("en", "ko"))
    assert [kind for kind, _ in BLOCK.findall(english)] == [kind for kind, _ in BLOCK.findall(korean)]
    assert {kind for kind, _ in BLOCK.findall(english)} == {"python", "sh", "bibtex"}
    assert ast.dump(ast.parse(code(english, "python"))) == ast.dump(ast.parse(code(korean, "python")))
    for kind in ("sh", "bibtex"):
        lines = [[x for x in code(text, kind).splitlines() if not x.startswith("#")] for text in (english, korean)]
        assert lines[0] == lines[1]
    for kind in ("python", "sh"):
        said, same = comments(code(english, kind)), comments(code(korean, kind))
        assert len(said) == len(same) > 0
        assert all(re.search("[가-힣]", comment) for comment in same)
        assert not any(re.search("[가-힣]", comment) for comment in said)
    matter = front_matter(english) | {"summary": ""}
    assert matter == front_matter(korean) | {"summary": ""}
    assert re.search("[가-힣]", front_matter(korean)["summary"])


SAVE = """
found = classify("photo.jpg")
torch.save({"batch": batch, "probabilities": probabilities, "features": features, "maps": [m.shape for m in maps],
            "classified": [(p.index, p.probability) for p in found]}, "result.pt")
"""
#: As for readers who have not installed the extra `fast`: exporting a large network takes longer than all of its page.
WITHOUT_ONNX = "import sys; sys.modules['onnxruntime'] = None\n"


class Place:
    """A folder with what the pages' readers have: a photo, photos, flowers; and the commands, from the served copy."""

    def __init__(self, folder: Path, checkout: Path, photo: Path, prelude: str) -> None:
        self.folder = folder
        self.commands = folder.parent / "bin"
        for name in ("photo.jpg", "photos/one.jpg", "photos/two.jpg"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, folder / name)
        for i in range(10):  # of which 8, one batch, are to train on
            path = folder / "flowers" / ("roses", "tulips")[i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.open(photo).rotate(20 * i).save(path)
        mounted = f"""
            import importlib, runpy, sys
            package = runpy.run_path({str(checkout / "mount.py")!r})["mount"]({str(checkout)!r}).__name__
            sys.exit(importlib.import_module(package + ".cli").main())
        """
        self._command("resnext-hub", UNINSTALLED + prelude + textwrap.dedent(mounted))
        self._command("pip", "import sys; open('installed', 'a').write(' '.join(sys.argv[1:]))")

    def _command(self, name: str, script: str) -> None:
        self.commands.mkdir(exist_ok=True)
        path = self.commands / name
        path.with_suffix(".py").write_text(script)
        # Not "#!python": a line like that takes no path with a space in it.
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(f"{path}.py")} "$@"\n')
        path.chmod(0o755)


def follow(pages: list[Page], run_python: Any, checkout: Path, photo: Path, proxy: str, home: Path, shell: bool) -> str:
    """Run the pages' Python in one process, each with variables of its own, then the shell commands of the first.

    Returns what these printed. The Korean pages' code is the same.
    """
    prelude = "" if pages[0].name == "semi_supervised" else WITHOUT_ONNX
    place = Place(home, checkout, photo, prelude)
    # No repository's branch is asked for at GitHub: the proxy refuses to connect, and torch.hub takes what it has.
    variables = environment(proxy) | {"https_proxy": proxy, "PATH": f"{place.commands}:{os.environ['PATH']}"}
    script = UNINSTALLED + prelude + "import os\n"
    for page in pages:
        script += f"exec({code(text_of(page, 'en'), 'python') + SAVE!r}, {{'__name__': '__main__'}})\n"
        script += f"os.rename('result.pt', {page.name + '.pt'!r})\n"
    run_python(script, **variables)
    if not shell:
        return ""
    script = f"import subprocess; subprocess.run(['bash', '-euc', {code(text_of(pages[0], 'en'), 'sh')!r}], check=True)"
    return run_python(script, **variables).stdout


@pytest.mark.parametrize(
    ("pages", "shell"),
    # Training the larger networks on a processor is not for every day.
    [
        pytest.param([page for page in PAGES if page.name != "semi_supervised"], False, id="python"),
        pytest.param([page for page in PAGES if page.name == "semi_supervised"], True, id="python and shell"),
        *(pytest.param([page], True, id=f"{page.name}-shell", marks=pytest.mark.soak) for page in PAGES),
    ],
)
def test_every_code_block_runs(
    pages: list[Page], shell: bool, run_python: Any, put_where_hub_fetches: Any, publish: Any, manifest_json: Any,
    photo: Path, photo_proxy: str, tmp_path: Path,
) -> None:  # fmt: skip
    manifest, networks = manifest_json, []
    for page in pages:
        manifest, network = published(page.example, publish, manifest, one_block=True)
        networks.append(network)
    checkout = put_where_hub_fetches(manifest)
    here = tmp_path / "cwd"
    here.mkdir()
    said = follow(pages, run_python, checkout, photo, photo_proxy, here, shell)

    for page, network in zip(pages, networks, strict=True):
        checkpoint = MANIFEST.checkpoints[page.example]
        result = torch.load(here / f"{page.name}.pt", weights_only=True)
        with torch.no_grad():
            last = network.forward_features(result["batch"])
            assert torch.equal(network.forward_head(last).softmax(dim=1), result["probabilities"])
            assert torch.equal(network.forward_head(last, pre_logits=True), result["features"])
        assert result["features"].shape[1] == checkpoint.architecture.num_features
        size = result["batch"].shape[-1]
        assert size == checkpoint.preprocessing.crop_size
        assert [shape[-1] for shape in result["maps"]] == [size // stride for stride in (4, 8, 16, 32)]
        # The pipeline that the page writes out is the one that classifier has from the manifest.
        for index, probability in result["classified"]:
            assert probability == pytest.approx(result["probabilities"][0, index].item(), abs=1e-3)
    if any(page.author == "NVIDIA" for page in pages):
        with Image.open(here / "prediction.png") as picture:
            assert picture.width > 100
    if shell:
        pq = pytest.importorskip("pyarrow.parquet")
        assert pq.read_table(here / "predictions.parquet")["error"].to_pylist() == [None, None]
        assert (here / "runs" / "flowers" / "weights_manifest.json").exists()
        assert {"roses", "tulips"} <= set(said.split())
        extras = Requirement((here / "installed").read_text().removeprefix("install ")).extras
        assert extras
        assert extras <= set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
