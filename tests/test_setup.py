"""The set-up of every environment: newer releases on the index change nothing.

The recipes of the Makefile run as they are, with a Python whose ``pip`` only resolves (``--dry-run``). The index is a
folder of wheels made here: for every locked package the locked version and a version 9999.
"""

from __future__ import annotations

import base64
import ensurepip
import hashlib
import json
import re
import shutil
import subprocess
import venv
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pip
import pytest
from packaging.utils import canonicalize_name

from .conftest import ROOT, Served
from .support.locks import entries, pinned

#: What make builds, from which lock.
TARGETS = {".venv-core": "core", ".venv": "dev", ".venv-demo": "demo"}  # the others have the same recipe
PIPS = ["the pip that Python brings", "the newest pip"]


def wheel(folder: Path, name: str, version: str, requires: Iterable[str] = ()) -> str:
    """Write an empty wheel with the extra "more"; return its sha256."""
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nProvides-Extra: more\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {"METADATA": metadata, "WHEEL": tag}
    record = ""
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for file, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{stem}.dist-info/{file},sha256={digest},{len(text)}\n"
            archive.writestr(f"{stem}.dist-info/{file}", text)
        archive.writestr(f"{stem}.dist-info/RECORD", f"{record}{stem}.dist-info/RECORD,,\n")
    return hashlib.sha256((folder / f"{stem}-py3-none-any.whl").read_bytes()).hexdigest()


class Tomorrow(NamedTuple):
    """A checkout whose locks name made wheels, and the index that has newer ones of each."""

    checkout: Path
    wheels: Path


@pytest.fixture(scope="module")
def tomorrow(tmp_path_factory: pytest.TempPathFactory) -> Tomorrow:
    base = tmp_path_factory.mktemp("tomorrow")
    (base / "checkout" / "locks").mkdir(parents=True)
    (base / "index").mkdir()
    shutil.copy(ROOT / "pyproject.toml", base / "checkout")
    # uv says below each package who requires it. Here they all require it with an extra, the hardest case for pip.
    locks = {lock.name: lock.read_text() for lock in (ROOT / "locks").glob("*.txt")}
    requires = defaultdict(set)
    for text in locks.values():
        for name, comment in re.findall(r"^([\w.-]+)==(?:.*\n)+?    # via((?:.*\n    #  )*.*)", text, re.MULTILINE):
            for parent in re.findall(r"^(?: {4}#   )? ?([a-z0-9._-]+)$", comment, re.MULTILINE):
                requires[parent].add(f"{name}[more]")
    digests: dict[tuple[str, str], str] = {}
    for lock in locks:
        lines = []
        for requirement, _ in entries(ROOT / "locks" / lock):
            name, version = canonicalize_name(requirement.name), next(iter(requirement.specifier)).version
            if (name, version) not in digests:
                digests[name, version] = wheel(base / "index", name, version, requires[name])
                wheel(base / "index", name, "9999")
            lines.append(f"{requirement} --hash=sha256:{digests[name, version]}\n")
        (base / "checkout" / "locks" / lock).write_text("".join(lines))
    # A Python that makes an "environment", where only pip does something.
    empty = base / "empty"
    venv.create(empty, with_pip=False)
    (base / "python").write_text(
        '#!/bin/bash\n[ "$1 $2" = "-m venv" ] || exit 0\nmkdir -p "$3/bin"; cp "$TOOLS"/{pip,python} "$3/bin"\n'
    )
    (base / "pip").write_text(
        '#!/bin/bash\ncase "$*" in check*|*--editable*) exit 0;; esac\n'
        f'exec {empty}/bin/python "$PIP" "$@" --dry-run --report "$REPORTS/$(date +%N).json"\n'
    )
    for script in ("python", "pip"):
        (base / script).chmod(0o755)
    # Copied: a pip that is run as a folder takes the packages beside it for installed.
    shutil.copytree(Path(pip.__file__).parent, base / PIPS[1] / "pip")
    with zipfile.ZipFile(next(Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl"))) as bundled:
        bundled.extractall(base / PIPS[0])
    return Tomorrow(base / "checkout", base / "index")


def set_up(tomorrow: Tomorrow, target: str, version: str, reports: Path, makefile: str, **variables: str) -> str | None:
    """Run make; return the error, if any. pip's reports of what it would install are in ``reports`` then."""
    reports.mkdir()
    shutil.copytree(tomorrow.checkout, reports / "checkout")
    (reports / "checkout" / "Makefile").write_text(makefile)
    if target != ".venv":  # what .venv-demo needs first
        (reports / "checkout" / ".venv" / "bin").mkdir(parents=True)
        (reports / "checkout" / ".venv" / ".done").touch()
        shutil.copy(tomorrow.wheels.parent / "python", reports / "checkout" / ".venv" / "bin")
    tools = tomorrow.wheels.parent
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(reports), "REPORTS": str(reports), "TOOLS": str(tools)}
    environment |= {"PIP": str(tools / version / "pip"), "PIP_CONFIG_FILE": "/dev/null"}
    index = {name: value for name, value in variables.items() if name.startswith("PIP_")}
    environment |= index or {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tomorrow.wheels)}
    command = ["make", f"{target}/.done", f"PYTHON={tools}/python"]
    command += [f"{name}={value}" for name, value in variables.items() if name not in index]
    checkout = reports / "checkout"
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr if done.returncode else None


def taken(reports: Path) -> dict[str, str]:
    """The packages that pip would have installed, with their versions."""
    found = [json.loads(report.read_text())["install"] for report in reports.glob("*.json")]
    packages = [package["metadata"] for installed in found for package in installed]
    return {canonicalize_name(package["name"]): package["version"] for package in packages}


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@needs_make
@pytest.mark.parametrize(("target", "version"), [*((target, PIPS[0]) for target in TARGETS), (".venv", PIPS[1])])
def test_newer_releases_change_nothing(tomorrow: Tomorrow, target: str, version: str, tmp_path: Path) -> None:
    error = set_up(tomorrow, target, version, tmp_path / "reports", (ROOT / "Makefile").read_text())
    assert error is None, error
    locked = {name: str(version) for name, version in pinned(f"{TARGETS[target]}.txt").items()}
    assert taken(tmp_path / "reports") == locked


@needs_make
def test_torch_can_come_from_another_index(tomorrow: Tomorrow, served: Served, tmp_path: Path) -> None:
    """make demo TORCH_INDEX=…: the locked versions, without CUDA's packages; all else as locked."""
    locked = {name: str(version) for name, version in pinned("core.txt").items()}
    for file in tomorrow.wheels.iterdir():
        folder = served.folder / "all" / canonicalize_name(file.name.split("-")[0])
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder)
    for name in ("torch", "torchvision"):
        (served.folder / "cpu" / name).mkdir(parents=True)
        wheel(served.folder / "cpu" / name, name, f"{locked[name]}+cpu")
        wheel(served.folder / "cpu" / name, name, "9999+cpu")
    index = {"TORCH_INDEX": f"{served.url}/cpu", "PIP_INDEX_URL": f"{served.url}/all"}
    reports, makefile = tmp_path / "reports", (ROOT / "Makefile").read_text()
    error = set_up(tomorrow, ".venv-core", PIPS[0], reports, makefile, **index)
    assert error is None, error
    found = taken(reports)
    assert {found.pop("torch"), found.pop("torchvision")} == {f"{locked[n]}+cpu" for n in ("torch", "torchvision")}
    cuda = {name for name in locked if name.startswith(("nvidia-", "cuda-"))} | {"triton"}
    assert cuda
    assert found == {n: v for n, v in locked.items() if n not in cuda | {"torch", "torchvision"}}


def test_the_smallest_lock_has_what_the_package_needs_and_no_more() -> None:
    core, dev = pinned("core.txt"), pinned("dev.txt")
    assert len(core) < len(dev) / 2
    assert core.items() <= dev.items()
