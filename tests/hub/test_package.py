"""The package's own surface: its public names, their types, its version, and the packages that it does without."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import pytest
import resnext_hub
import torch
from packaging.requirements import Requirement
from PIL import Image
from resnext_hub import Classifier, Prediction, classifier, packages
from resnext_hub.deploy.formats import FORMATS
from resnext_hub.inference.engines import BUILT

from ..conftest import ROOT, tracked_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: Extras for users; the others are for who works on the project.
EXTRAS = PROJECT["optional-dependencies"].keys() - {"dev", "docs", "fuzz", "peers"}

#: Prepended to a script: as if only torch, numpy, Pillow and what torch itself requires were installed.
BARE = """
import importlib.metadata, re, sys

def requirements(name):
    for line in importlib.metadata.requires(name) or ():
        if "extra ==" not in line:
            yield re.match(r"[\\w.-]+", line)[0]

allowed, left = set(), ["torch", "numpy", "pillow"]
while left:
    name = re.sub(r"[-_.]+", "-", left.pop()).lower()
    if name not in allowed:
        allowed.add(name)
        try:
            left += requirements(name)
        except importlib.metadata.PackageNotFoundError:  # for another platform
            pass
modules = importlib.metadata.packages_distributions()
refused = {m for m, owners in modules.items() if not {re.sub(r"[-_.]+", "-", o).lower() for o in owners} & allowed}
assert {"torchvision", "matplotlib", "validators", "resnext_hub"} <= refused, refused
assert not {"torch", "numpy", "PIL"} & refused

class Refusing:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name in refused else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Refusing(finder) for finder in sys.meta_path]
"""


def test_importing_the_package_imports_nothing_else(run_python: Any) -> None:
    run_python(
        "import sys\nbefore = set(sys.modules)\nimport resnext_hub\n"
        "new = {name for name in set(sys.modules) - before if not name.startswith('__editable__')}\n"
        "assert new == {'resnext_hub'}, new\n"
        "from resnext_hub import cli\n"
        "assert cli.main(['list']) == 0\n"
        "import resnext_hub.training\n"
        "late = {'torch', 'numpy', 'PIL', 'importlib.metadata'} & set(sys.modules) - before\n"
        "assert not late, late\n"
        "from resnext_hub import *\n"
        "assert classifier.__module__ == 'resnext_hub.inference.classifier'\n"
        "assert 'torch' not in sys.modules\n"
    )


def test_public_names_are_what_the_type_checker_sees() -> None:
    """`__all__`, the lazy imports and the imports for type checkers are three lists of the same names."""
    checked = next(n for n in ast.parse((ROOT / "__init__.py").read_text()).body if isinstance(n, ast.If))
    imported = {a.name: n.module for n in checked.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert imported == {name: resnext_hub._MODULES.get(name, "errors") for name in imported}
    assert set(resnext_hub.__all__) == imported.keys() | {"__version__"}
    assert set(resnext_hub.__all__) <= set(dir(resnext_hub))
    for name in imported:
        assert getattr(resnext_hub, name).__name__ == name
        assert getattr(resnext_hub, name).__doc__
    with pytest.raises(AttributeError, match="clasifier"):
        resnext_hub.clasifier  # noqa: B018


def test_the_version_has_one_source() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    assert f"\n## {resnext_hub.__version__} " in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {resnext_hub.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_one_image_or_many_is_in_the_types(photo: Path) -> None:
    """`make types` checks assert_type; here the values are checked."""
    classify = assert_type(classifier("resnext_tiny"), Classifier)
    data = photo.read_bytes()
    with Image.open(photo) as image:
        singles = [
            assert_type(classify(str(photo)), list[Prediction]),
            assert_type(classify(photo), list[Prediction]),
            assert_type(classify(data), list[Prediction]),
            assert_type(classify(io.BytesIO(data)), list[Prediction]),
            assert_type(classify(image), list[Prediction]),
        ]
        array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)

    def images() -> Iterator[Path]:
        yield photo

    many = [
        assert_type(classify([str(photo), photo, array]), list[list[Prediction]]),
        assert_type(classify((photo,)), list[list[Prediction]]),
        assert_type(classify(images()), list[list[Prediction]]),
        assert_type(classify([tensor]), list[list[Prediction]]),
    ]
    assert_type(classify(array), list[Any])
    assert_type(classify(tensor[None]), list[Any])
    for one in [
        *singles,
        classify(array),
        classify(tensor),
        *(results[0] for results in many),
        classify(tensor[None])[0],
    ]:
        assert [type(p) for p in one] == [Prediction] * 5
        assert [p.index for p in one] == [p.index for p in singles[0]]


@pytest.mark.parametrize("prediction", ["classify('a.jpg')[0]", "classify(['a.jpg'])[0][0]"])
def test_a_notebook_completes_the_attributes_of_a_prediction(prediction: str, tmp_path: Path) -> None:
    jedi = pytest.importorskip("jedi")  # IPython's
    (tmp_path / "resnext_hub").symlink_to(ROOT)
    project = jedi.Project(tmp_path, added_sys_path=[str(tmp_path)])
    code = f"from resnext_hub import classifier\nclassify = classifier('resnext_tiny')\n{prediction}."
    names = {c.name for c in jedi.Script(code, path=tmp_path / "user.py", project=project).complete()}
    assert {"index", "synset", "label", "probability"} <= names


def test_torch_numpy_and_pillow_are_enough(run_python: Any, root: Path, photo: Path) -> None:
    """Through torch.hub, where nothing else is installed: a network, the classifier, the utilities; and what is not."""
    done = run_python(
        BARE + "import torch\n"
        f"load = lambda *a, **k: torch.hub.load({str(root)!r}, *a, source='local', **k)\n"
        "network = load('resnext_tiny').eval()\n"
        "assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 200)\n"
        "classify = load('classifier', 'resnext_tiny')\n"
        f"assert 'military uniform' in [p.label for p in classify({str(photo)!r})]\n"
        "utils = load('nvidia_convnets_processing_utils')\n"
        f"batch = utils.prepare_input_from_uri({str(photo)!r})\n"
        "logits = load('nvidia_resneXt', pretrained=False).eval()(batch)\n"
        "assert len(utils.pick_n_best(logits.softmax(1).detach(), n=3)[0]) == 3\n"
        "assert not refused & {name.partition('.')[0] for name in sys.modules} - {'resnext_hub'}\n"
        "help(sys.modules[type(classify).__module__.partition('.')[0]])\n"
        "def missing(call):\n"
        "    try:\n"
        "        call()\n"
        "    except ImportError as error:\n"
        "        print('MISSING', type(error).__name__, error.name, error)\n"
        "missing(lambda: classify('http://127.0.0.1:9/x.jpg'))\n"
        "missing(lambda: utils.prepare_input_from_uri('http://127.0.0.1:9/x.jpg', allow_private=True))\n"
        f"missing(lambda: utils.plot_predictions({str(photo)!r}, []))\n"
    )
    lines = [line.split(maxsplit=3) for line in done.stdout.splitlines() if line.startswith("MISSING")]
    assert [line[1:3] for line in lines] == [
        ["MissingPackageError", "validators"],
        ["MissingPackageError", "validators"],
        ["MissingPackageError", "matplotlib"],
    ]
    assert all(f"pip install {name}" in text for _, _, name, text in lines)


def test_an_evaluation_without_pyarrow_asks_for_its_own_packages(run_python: Any) -> None:
    done = run_python(
        "import sys\n"
        "sys.modules['pyarrow'] = None\n"
        "from resnext_hub import cli\n"
        "assert cli.main(['evaluate', '--variant', 'resnext_tiny', '--data', 'x']) == 2\n"
    )
    assert "pyarrow" in done.stderr
    assert "scipy" in done.stderr
    assert "table" not in done.stderr


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_missing_packages_are_those_of_the_extras(extra: str) -> None:
    def names(extra: str) -> Iterator[Requirement]:
        for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
            if requirement.name == PROJECT["name"]:
                for inner in requirement.extras:
                    yield from names(inner)
            else:
                yield requirement

    expected = {r.name: r for r in names(extra)}
    named = {r.name: r for r in map(Requirement, packages.PACKAGES[extra])}
    assert named.keys() == expected.keys()
    for name, requirement in named.items():
        assert requirement.extras == expected[name].extras
        upper = {str(s) for s in expected[name].specifier if "<" in s.operator}
        assert {str(s) for s in requirement.specifier} == upper, "pip takes the newest that the project allows"


def test_what_is_imported_late_belongs_to_the_package() -> None:
    base = {Requirement(r).name for r in PROJECT["dependencies"]}
    for feature in ("images", "urls", "pictures", "augmentation"):
        assert set(packages.PACKAGES[feature]) <= base
    for engine in BUILT.values():
        assert {*engine.needs, *engine.builds_with} - {"torch"} <= set(packages.PACKAGES[engine.extra])
    for kind in FORMATS.values():
        assert set(kind.needs) - {"torch"} <= set(packages.PACKAGES[kind.extra])


def test_no_text_sends_users_to_a_name_that_nobody_has_registered() -> None:
    """The package index does not know resnext-hub, so pip is given a folder or the git URL."""
    wrong = [
        f"{name}: {line.strip()}"
        for name in tracked_files()
        if name.endswith((".py", ".md", ".j2", ".toml", ".ipynb", ".txt", ".yaml")) and not name.startswith("locks/")
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
        if re.search(r"pip3? install .*resnext[-_]hub", line) and "git+https" not in line
    ]
    assert wrong == []


def test_python_dash_m_and_the_version() -> None:
    command = [sys.executable, "-m", "resnext_hub"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"resnext-hub {resnext_hub.__version__}\n"
    bare = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (bare.returncode, bare.stdout) == (2, "")
    assert "classify" in bare.stderr
    assert bare.stderr.startswith("usage: resnext-hub")
