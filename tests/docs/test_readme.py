"""README: its Python runs, its commands parse, and its figures are the manifest's."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from resnext_hub.cli import main
from resnext_hub.maintenance.write_table import file_size
from resnext_hub.models.manifest import default_manifest

from ..conftest import ROOT, UNINSTALLED, randomise
from ..support.pages import blocks, shell_lines

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MANIFEST = default_manifest()


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def commands() -> list[list[str]]:
    """The arguments of each line that calls resnext-hub."""
    lines = [shlex.split(line, comments=True) for line in shell_lines("README.md")]
    return [words[1:] for words in lines if words[:1] == ["resnext-hub"]]


def test_its_python_runs(
    run_python: Any, put_where_hub_fetches: Any, publish: Any, manifest_json: Any, photo: Path, tmp_path: Path
) -> None:
    from resnext_hub.models.entrypoints import build

    network = build(MANIFEST.resolve("resnext50_32x4d_swsl").architecture).eval()
    randomise(network)
    put_where_hub_fetches(publish(manifest_json, "resnext50_32x4d_swsl", network.state_dict()))
    (tmp_path / "cwd").mkdir()
    shutil.copy(photo, tmp_path / "cwd" / "photo.jpg")
    show = "print(tuple(logits.shape), tuple(features.shape), [m.shape[-1] for m in maps], new_head.fc.out_features)"
    done = run_python("\n".join([UNINSTALLED, *blocks("README.md", "python"), show]), no_proxy="127.0.0.1")
    *predictions, shapes = done.stdout.splitlines()
    assert len(predictions) == 5
    assert shapes == "(1, 1000) (1, 2048) [56, 28, 14, 7] 10"


@pytest.mark.parametrize(
    "arguments", [words for words in commands() if "resnext_tiny" in words and "--resume" not in words], ids=" ".join
)
def test_a_command_for_resnext_tiny_runs(
    arguments: list[str], photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "--out" in arguments:
        pytest.importorskip("pyarrow")
    (tmp_path / "photos").mkdir()
    shutil.copy(photo, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0
    assert all((tmp_path / name).stat().st_size for name in arguments if name in ("table.csv", "result.png"))


def test_recommendations_are_the_manifests() -> None:
    rows = [line for line in section("Which model should I choose?").splitlines() if "`" in line and line[0] == "|"]
    assert len(rows) == 4
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        found = MANIFEST.resolve(cells[1].split("`")[1])  # the newest weights, so weights="DEFAULT"
        assert cells[2].startswith(f"{found.published.top1:.2f} %")
        assert cells[3] == file_size(found)
        assert cells[4].replace(" ", "-") == found.license_id


def test_every_extra_is_one_that_there_is() -> None:
    table = section("Install")
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) <= set(PROJECT["optional-dependencies"])


def test_citations_are_the_manifests() -> None:
    (shown,) = blocks("README.md", "bibtex")
    papers = {checkpoint.system.paper.citation for checkpoint in MANIFEST.checkpoints.values()}
    assert set(shown.strip().split("\n\n")) == papers


def test_old_and_new_calls_parse_and_name_the_same_entrypoint() -> None:
    rows = re.findall(r"^\| `(\w+.*?\))` \| `(.*?\))` \|$", section("Moving from the originals"), re.MULTILINE)
    assert len(rows) == 6
    for old, new in rows:
        before, after = ast.parse(old).body[0].value, ast.parse(new).body[0].value  # type: ignore[attr-defined]
        name = after.args[1].value
        assert name in {before.func.attr, *(argument.value for argument in before.args)}
        assert {keyword.arg: keyword.value.value for keyword in after.keywords}["trust_repo"] is True
        options = [ast.dump(keyword) for keyword in after.keywords if keyword.arg != "trust_repo"]
        assert options == [ast.dump(keyword) for keyword in before.keywords]


def test_ratios_are_those_in_performance() -> None:
    measured = re.findall(r"\d+\.\d+", (ROOT / "docs" / "performance.md").read_text(encoding="utf-8"))
    rows = [line.split("|") for line in section("Measured figures").splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 9
    for row in rows:
        for shown in re.findall(r"\d+(?:\.\d+)?", row[3]):
            digits = len(shown.partition(".")[2])
            assert shown in {f"{float(number):.{digits}f}" for number in measured}, row
    assert {row[4].strip() for row in rows} - {""} == {
        f"`python benchmarks/{name}.py`" for name in ("loading", "engines", "preprocess", "bulk")
    }
