"""The exceptions of errors.py: one base class, an exit status each, and no second place."""

from __future__ import annotations

import ast
import builtins
import pickle
from typing import Any

import pytest
import resnext_hub
from resnext_hub import errors
from resnext_hub.demo.logic import PageError

from .conftest import ROOT, tracked_files

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
#: Other than 2, wrong arguments.
STATUSES = {
    "CheckpointError": 3,
    "DivergedError": 5,
    "FetchError": 1,
    "ImageError": 1,
    "InexactError": 4,
    "PageError": 3,
    "PrivateAddressError": 1,
    "TruncatedImageError": 1,
    "UnreachableError": 3,
    "UnwritableError": 3,
}
BUILT_IN = {n for n, v in vars(builtins).items() if isinstance(v, type) and issubclass(v, BaseException)}
OUTSIDE = ("tests/", "benchmarks/", "maintenance/", "docs/", "notebooks/")
#: Files whose exceptions never leave the package.
INTERNAL = {"demo/gate.py", "models/pickles.py", "models/schema.py", "net/client.py"}


@pytest.mark.parametrize("error", [*CLASSES, PageError], ids=lambda error: error.__name__)
def test_each_error_has_the_base_class_and_an_exit_status(error: Any) -> None:
    assert issubclass(error, resnext_hub.ResNeXtHubError)
    assert error.exit_code == STATUSES.get(error.__name__, 2)


@pytest.mark.parametrize("error", [e for e in CLASSES if e is not errors.ResNeXtHubError], ids=lambda e: e.__name__)
def test_each_error_is_also_a_built_in_one(error: Any) -> None:
    """Users who catch ValueError, OSError or RuntimeError catch ours too."""
    assert issubclass(error, (ValueError, TypeError, OSError, RuntimeError, ModuleNotFoundError, FloatingPointError))
    copy = pickle.loads(pickle.dumps(error("why")))  # as between the processes of a cluster
    assert (type(copy), str(copy)) == (error, "why")


def test_errors_are_defined_in_one_place() -> None:
    found = set()
    for name in tracked_files():
        if not name.endswith(".py") or name.startswith(OUTSIDE):
            continue
        classes = [n for n in ast.walk(ast.parse((ROOT / name).read_text("utf-8"))) if isinstance(n, ast.ClassDef)]
        if BUILT_IN & {base.id for node in classes for base in node.bases if isinstance(base, ast.Name)}:
            found.add(name)
    assert found - INTERNAL == {"errors.py"}


def test_errors_imports_nothing_else_of_the_package() -> None:
    tree = ast.parse((ROOT / "errors.py").read_text("utf-8"))
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [node for node in imported if node.level or (node.module or "").startswith("resnext_hub")]
