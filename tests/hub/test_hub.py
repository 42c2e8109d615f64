"""The repository as torch.hub meets it: mounted, beside anything the user has, in fresh processes."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resnext_hub.models.entrypoints import require
from resnext_hub.models.manifest import default_manifest

from ..conftest import ROOT, UNINSTALLED, UNINSTALLED_COMPLETELY, tracked_files

ENTRYPOINTS = {*default_manifest().entrypoints, "classifier", "nvidia_convnets_processing_utils", "transforms"}
LOAD = "torch.hub.load({root!r}, {name!r}, source='local')"


def load(root: Path, name: str = "resnext_tiny") -> str:
    return LOAD.format(root=str(root), name=name)


@pytest.fixture
def fetched(put_where_hub_fetches: Any) -> Path:
    return put_where_hub_fetches()


def test_a_fetched_archive_is_listed_loads_and_classifies(run_python: Any, fetched: Path) -> None:
    done = run_python(
        UNINSTALLED + "import torch\n"
        "hub = dict(skip_validation=True, trust_repo=True)\n"
        "print(torch.hub.list('org/resnext-hub:main', verbose=False, **hub))\n"
        "assert not [m for m in sys.modules if m.startswith('resnext_hub')], 'listing imports nothing'\n"
        "text = torch.hub.help('org/resnext-hub:main', 'resnext101_32x48d_wsl', **hub)\n"
        "assert '828,411,176 parameters' in text and 'CC-BY-NC' in text and '1805.00932' in text\n"
        "hub['verbose'] = False\n"
        "path = list(sys.path)\n"
        "network = torch.hub.load('org/resnext-hub:main', 'resnext_tiny', **hub)\n"
        "assert sys.path == path\n"
        "assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 200)\n"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'torchvision'], 'a network needs torch alone'\n"
        "assert 'torch._dynamo' not in sys.modules, 'nor does it need the compiler, which takes seconds to import'\n"
        "for name in ('models', 'processing_utils', 'inference', 'mount', 'hubconf'):\n"
        "    assert name not in sys.modules, name\n"
        "import numpy as np\n"
        "classify = torch.hub.load('org/resnext-hub:main', 'classifier', 'resnext_tiny', **hub)\n"
        "assert len(classify(np.zeros((80, 90, 3), np.uint8))) == 5\n"
        "utils = torch.hub.load('org/resnext-hub:main', 'nvidia_convnets_processing_utils', **hub)\n"
        "assert callable(utils.prepare_input_from_uri) and callable(utils.pick_n_best)\n"
    )
    assert set(eval(done.stdout.splitlines()[0])) == ENTRYPOINTS


def test_torch_hub_fetches_and_unpacks_the_archive(
    run_python: Any, copy_repository: Any, hub_archive: Any, tmp_path: Path
) -> None:
    """torch.hub's own unpacking, with its one network call replaced; force_reload brings new code at the same path.

    Without trust_repo, which every snippet has, a script stops at torch's question.
    """
    checkout = copy_repository("original")
    first = hub_archive(checkout)
    module = checkout / "models" / "entrypoints.py"
    module.write_text(module.read_text() + "\nMARK = 'second'\n")
    checkout = checkout.rename(tmp_path / "changed")
    second = hub_archive(checkout)
    run_python(
        UNINSTALLED + "import shutil, torch\n"
        f"archives = [{str(first)!r}, {str(second)!r}]\n"
        "torch.hub.download_url_to_file = lambda url, to, *a, **k: shutil.copy(archives.pop(0), to)\n"
        "import builtins\n"
        "hub, asked = dict(skip_validation=True, verbose=False), []\n"
        "builtins.input = lambda *a: asked.append(a) or ''\n"
        "try: torch.hub.load('org/resnext-hub:main', 'resnext_tiny', **hub)\n"
        "except Exception as error: assert 'Untrusted' in str(error), error\n"
        "assert len(asked) == 1 and len(archives) == 2, asked\n"
        "hub['trust_repo'] = True\n"
        "old = torch.hub.load('org/resnext-hub:main', 'resnext_tiny', **hub)\n"
        "new = torch.hub.load('org/resnext-hub:main', 'resnext_tiny', force_reload=True, **hub)\n"
        "assert not archives and len(asked) == 1\n"
        "module = lambda network: sys.modules[type(network).__module__.rsplit('.', 1)[0] + '.entrypoints']\n"
        "assert not hasattr(module(old), 'MARK') and module(new).MARK == 'second'\n"
        "again = torch.hub.load('org/resnext-hub:main', 'resnext_tiny', **hub)\n"
        "assert type(again) is type(new), 'the same content is mounted once'\n"
        "import pickle, copy\n"
        "assert type(pickle.loads(pickle.dumps(new))) is type(new)\n"
        "assert type(copy.deepcopy(old)) is type(old)\n"
    )


#: A call of torch.hub with this repository, its parentheses closed; in notebooks by its name or as REPO.
REPOSITORY = r"""\\?["'](?:org/resnext-hub|{{ repository }})|REPO\b"""
CALL = re.compile(rf"hub\.(?:load|help|list)\(\s*(?:{REPOSITORY})(?:[^()]|\([^()]*\))*\)")


def test_every_snippet_trusts_the_repository() -> None:
    calls = {}
    for name in tracked_files():
        if Path(name).suffix in (".py", ".md", ".j2", ".ipynb", ".yml", ".toml"):
            calls[name] = CALL.findall((ROOT / name).read_text(encoding="utf-8"))
    assert {name for name in calls if name.startswith("notebooks/") and calls[name]}
    assert all(calls[name] for name in ("README.md", "hubconf.py", "docs/page_templates/ko/layout.md.j2"))
    trusting = ("trust_repo=True", "**hub", "**k")  # the keywords that tests share
    unsafe = [(name, call) for name in calls for call in calls[name] if not any(word in call for word in trusting)]
    assert not unsafe


def test_a_checkout_beside_the_installed_package(run_python: Any, copy_repository: Any) -> None:
    checkout = copy_repository("checkout")
    run_python(
        f"import torch, importlib\nnetwork = {load(checkout)}\nname = type(network).__module__.split('.')[0]\n"
        "assert '_' in name.removeprefix('resnext_hub')\n"
        f"assert importlib.import_module(name + '.inference.classifier').__file__.startswith({str(checkout)!r})\n"
    )


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_users_own_packages_are_untouched(run_python: Any, root: Path, tmp_path: Path, when: str) -> None:
    own = tmp_path / "cwd"
    for name in ("models", "processing_utils", "utils", "inference", "training", "mount", "cli"):
        (own / name).mkdir(parents=True)
        (own / name / "__init__.py").write_text("OWN = True\n")
    imports = "import models, processing_utils, utils, inference, training, mount, cli\n"
    check = "assert all(m.OWN for m in (models, processing_utils, utils, inference, training, mount, cli))\n"
    loading = f"network = {load(root)}\nutils_of_hub = {load(root, 'nvidia_convnets_processing_utils')}\n"
    steps = imports + loading + check if when == "before" else loading + imports + check
    run_python(
        UNINSTALLED + "import torch\n" + steps + "assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 200)\n"
        f"classify = torch.hub.load({str(root)!r}, 'classifier', 'resnext_tiny', source='local')\n" + check
    )


def test_two_checkouts_in_one_process(run_python: Any, copy_repository: Any) -> None:
    one, two = copy_repository("a folder.with-odd name"), copy_repository("two")
    run_python(
        UNINSTALLED + "import torch, pickle\n"
        f"a, b = {load(one)}, {load(two)}\n"
        "file = lambda network: sys.modules[type(network).__module__].__file__\n"
        f"assert file(a).startswith({str(one)!r}) and file(b).startswith({str(two)!r})\n"
        "assert type(a).__module__.startswith('resnext_hub.')\n"
        "x = torch.ones(1, 3, 64, 64)\n"
        "assert torch.equal(a.eval()(x), b.eval()(x))\n"
        "for network in (a, b):\n"
        "    assert type(pickle.loads(pickle.dumps(network))) is type(network)\n"
    )


PICKLING = """
import copy, io, pathlib, pickle
import torch

def run(network):
    with torch.inference_mode():
        return network.eval()(torch.ones(1, 3, 64, 64))

network = {load}
expected = run(network)
assert torch.equal(run(copy.deepcopy(network)), expected)
assert torch.equal(run(copy.copy(network)), expected)
classify = {classifier}
image = torch.zeros(3, 70, 80)
assert pickle.loads(pickle.dumps(classify))(image) == copy.copy(classify)(image) == classify(image)
pathlib.Path("classifier.pickle").write_bytes(pickle.dumps((classify, classify(image))))
assert torch.equal(run(pickle.loads(pickle.dumps(network))), expected)
file = io.BytesIO()
torch.save(network, file)
file.seek(0)
assert torch.equal(run(torch.load(file, weights_only=False)), expected)
pathlib.Path("network.pickle").write_bytes(pickle.dumps(network))
torch.save(network, "network.pt")
torch.save(expected, "expected.pt")
"""
UNPICKLING = """
import pickle, torch
classify, expected = pickle.load(open("classifier.pickle", "rb"))
assert classify(torch.zeros(3, 70, 80)) == expected
networks = [pickle.load(open("network.pickle", "rb")), torch.load("network.pt", weights_only=False)]
for network in networks:
    assert torch.equal(network.eval()(torch.ones(1, 3, 64, 64)), torch.load("expected.pt", weights_only=True))
"""


def test_networks_can_be_pickled(run_python: Any, copy_repository: Any) -> None:
    checkout = copy_repository("checkout")
    classifier = f"torch.hub.load({str(checkout)!r}, 'classifier', 'resnext_tiny', source='local')"
    run_python(UNINSTALLED + PICKLING.format(load=load(checkout), classifier=classifier))
    run_python(UNINSTALLED + UNPICKLING)  # the checkout is at its path
    shutil.rmtree(checkout)
    run_python(UNPICKLING)  # the package is installed
    done = run_python(UNINSTALLED + UNPICKLING, check=False)
    assert done.returncode != 0
    assert re.search(f"ModuleNotFoundError: .*{checkout}", done.stderr)
    assert "pip install git+https://github.com/" in done.stderr


def test_a_torch_below_the_floor_and_a_missing_package_are_named(run_python: Any, root: Path) -> None:
    require("2.10.0+cu128", (3, 11, 0))
    require("3.0", (3, 15, 1))
    with pytest.raises(ImportError, match=r"Python 3\.11 or newer.* 3\.10\.4"):
        require("2.14.1", (3, 10, 4))
    done = run_python(
        "import sys, torch\n"
        "def refused(call):\n"
        "    try: call()\n"
        "    except ImportError as error: print(type(error).__name__, error)\n"
        "version, torch.__version__ = torch.__version__, '2.9.1'\n"
        f"refused(lambda: {load(root)})\n"
        "torch.__version__, sys.modules['PIL'] = version, None\n"
        f"refused(lambda: {load(root, 'nvidia_convnets_processing_utils')})\n"
    )
    floor, package = done.stdout.splitlines()
    assert re.search(r"^ImportError .*torch 2\.10 .* 2\.9\.1: pip install --upgrade torch$", floor)
    assert re.search("^MissingPackageError .* pillow: pip install numpy pillow", package)


def test_fetching_says_nothing_on_stdout_and_the_licence_once(
    run_python: Callable[..., Any], copy_repository: Any, publish: Any, manifest_json: dict[str, Any]
) -> None:
    from resnext_hub.models.entrypoints import build

    state = build(default_manifest().architectures["resnet18"]).state_dict()
    checkout = copy_repository("checkout", publish(manifest_json, "resnet18_swsl", state))
    done = run_python(
        UNINSTALLED + "import torch\n"
        f"a = {load(checkout, 'resnet18_swsl')}\nb = {load(checkout, 'resnet18_swsl')}\n"
        "assert torch.equal(a.fc.weight, b.fc.weight)\n"
    )
    assert done.stdout == ""
    assert done.stderr.count("CC-BY-NC-4.0") == 1


def test_a_clone_beside_the_script_can_be_pickled(run_python: Any, copy_repository: Any, tmp_path: Path) -> None:
    """A folder named resnext_hub in the working folder can be imported by its name, but not from elsewhere."""
    (tmp_path / "cwd").mkdir()
    checkout = copy_repository("cwd/resnext_hub")
    run_python(
        UNINSTALLED_COMPLETELY + f"import torch, pickle, pathlib\nnetwork = {load(checkout)}\n"
        f"pathlib.Path({str(tmp_path / 'network.pickle')!r}).write_bytes(pickle.dumps(network))\n"
    )
    run_python(
        UNINSTALLED_COMPLETELY + "sys.path.pop(0)\nimport pickle, pathlib\n"
        f"network = pickle.loads(pathlib.Path({str(tmp_path / 'network.pickle')!r}).read_bytes())\n"
    )


def test_a_real_git_archive(tmp_path: Path, root: Path) -> None:
    """What is committed, as git archive packs it, which is what GitHub serves."""
    if not (root / ".git").exists():
        pytest.skip("needs a git checkout")
    archive = tmp_path / "main.zip"
    command = ["git", "archive", "--format=zip", "--prefix=resnext-hub-main/", "-o", str(archive), "HEAD"]
    subprocess.run(command, cwd=root, check=True)
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    unpacked = tmp_path / "unpacked" / "resnext-hub-main"
    assert not (unpacked / "tests").exists()
    source = default_manifest().resolve("resnext_tiny").sources[0]
    assert source.path is not None
    assert (unpacked / source.path.relative_to(root)).stat().st_size == source.bytes
    assert (unpacked / "hubconf.py").is_file()
