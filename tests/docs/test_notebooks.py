"""The notebooks as they lie in the repository: pairs that say the same, and outputs. `make notebooks` runs them."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ..conftest import ROOT

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")

SCRIPTS = sorted(path for path in (ROOT / "notebooks").glob("*.py") if path.name != "execute.py")
each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def execute() -> Any:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "notebooks" / "execute.py")))


def notebook_of(script: Path) -> Any:
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def test_every_notebook_is_one_of_a_pair() -> None:
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == {path.stem for path in SCRIPTS}


@each
def test_a_notebook_is_its_script_with_outputs(execute: Any, script: Path) -> None:
    """Else: make notebooks-write."""
    source, notebook = jupytext.read(script), notebook_of(script)
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in source.cells]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any(execute.figures(cell) for cell in cells), "figures to compare"
    assert script.with_suffix(".ipynb").stat().st_size < 1_000_000
    colab = f"colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/{script.stem}.ipynb"
    assert colab in script.read_text(encoding="utf-8")


@each
def test_the_first_cell_installs_what_the_notebook_imports(script: Path) -> None:
    first = next(cell for cell in jupytext.read(script).cells if cell.cell_type == "code").source
    (line,) = re.findall(r"^%pip install -q (.*)$", first, re.MULTILINE)
    installed = set(line.split())
    if "git+https" in first:
        installed |= {"torch", "numpy", "pillow"}  # the package needs them
    names = {"PIL": "pillow", "skimage": "scikit-image"}
    code = script.read_text(encoding="utf-8")
    imported = {match[1] for match in re.finditer(r"^(?:from|import) (\w+)", code, re.MULTILINE)}
    ours = sys.stdlib_module_names | {"resnext_hub", "IPython"}
    assert {names.get(name, name) for name in imported - ours} <= installed


@each
def test_says_where_resnext_tiny_takes_the_place_of_published_weights(script: Path) -> None:
    notebook = notebook_of(script)
    texts = [output.text for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output]
    replaced = any("cannot be downloaded: resnext_tiny" in text for text in texts)
    assert replaced == ("available(" in script.read_text(encoding="utf-8"))
    assert replaced == ("no published weights" in notebook.cells[0].source)


def cells(*texts: str) -> Any:
    """A notebook whose cells show these texts."""
    outputs = [nbformat.v4.new_output("stream", text=text) for text in texts]
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output]) for output in outputs])


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("fp32: 4.8 MiB", "fp32: 7.3 MiB"),
        ("90.74% top-1", "96.30% top-1"),
        ("54 images", "55 images"),
        ("1,906,584 parameters", "1,906,585 parameters"),
        ("(2, 3, 64, 64)", "(2, 3, 64)"),
        ("espresso, 99%", "espresso, 9%"),
        ("1 image", ""),
        ("", "1 image"),
    ],
)
def test_another_figure_is_a_difference(execute: Any, stored: str, shown: str) -> None:
    assert len(execute.differences(cells("7 dogs", stored), cells("7 dogs", shown))) == 1


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("96.30% top-1 on 54 images", "94.44% top-1 on 54 images"),
        ("loss 0.684, difference 1.2e-05", "loss 0.701, difference 7e-06"),
        ("took 4.1 s, 63 ms a photo, 250 images/s", "took 9 s, 11 ms a photo, 9 images/s"),
        ("materials-a0d44160.pth, onnxruntime 1.31.1", "materials-77e99ff8.pth, onnxruntime 1.32.0"),
        ("resnext101_32x8d at 64x64", "resnext50_32x4d at 96x96"),
    ],
)
def test_times_names_and_rounding_are_not(execute: Any, stored: str, shown: str) -> None:
    assert execute.differences(cells(stored), cells(shown)) == []


def test_every_model_page_has_a_notebook() -> None:
    pages = {path.stem.removeprefix("org_resnext-hub_") for path in (ROOT / "docs" / "hub").glob("*.md")}
    assert pages <= {path.stem for path in SCRIPTS}
