"""The notebooks as they lie in the repository: pairs that say the same, and outputs. `make notebooks` runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")

SCRIPTS = sorted(path for path in (ROOT / "notebooks").glob("*.py") if path.name != "execute.py")
each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def notebook_of(script: Path) -> Any:
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def test_every_notebook_is_one_of_a_pair() -> None:
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == {path.stem for path in SCRIPTS}


@each
def test_pairs_say_the_same(script: Path) -> None:
    """Else: make notebooks-write."""
    source, notebook = jupytext.read(script), notebook_of(script)
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in source.cells]


@each
def test_outputs_are_there_and_small(script: Path) -> None:
    notebook = notebook_of(script)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert script.with_suffix(".ipynb").stat().st_size < 1_000_000


@each
def test_says_where_to_open_it_and_whose_weights_it_shows(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert f"colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/{script.stem}.ipynb" in text
    if 'or "published weights"' in text:
        assert "**random weights** stand in for the published ones" in text


def test_every_model_page_has_a_notebook() -> None:
    pages = {path.stem.removeprefix("org_resnext-hub_") for path in (ROOT / "docs" / "hub").glob("*.md")}
    assert pages <= {path.stem for path in SCRIPTS}
