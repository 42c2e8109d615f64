"""The source distribution and the wheel that `make package` builds: their files and their metadata."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import NamedTuple

import pytest
from resnext_hub import __version__
from resnext_hub.models.manifest import default_manifest

from .conftest import ROOT, exported_files, tracked_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
NAME = f"resnext_hub-{__version__}"
#: Files of torch.hub's archive that are not in the wheel: it has them in another form, or only a checkout needs them.
NOT_IN_WHEEL = {"LICENSE", "NOTICE", "README.md", "pyproject.toml", "demo/README.md", "demo/requirements.txt"}


class Built(NamedTuple):
    """Each name in the source distribution and the wheel, and the wheel's METADATA."""

    sdist: set[str]
    wheel: set[str]
    metadata: Message


@pytest.fixture(scope="module")
def distributions(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The source distribution of a clone, and the wheel of that source distribution."""
    out = tmp_path_factory.mktemp("dist")

    def build(kind: str, source: Path) -> Path:
        command = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
        env = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}  # setuptools warns where it is set
        done = subprocess.run([sys.executable, "-c", command], cwd=source, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr.lower(), done.stderr
        return next(out.glob(f"{NAME}*.tar.gz" if kind == "sdist" else f"{NAME}*.whl"))

    with tarfile.open(build("sdist", clone)) as file:
        sdist = {member.name for member in file.getmembers() if member.isfile()}
        file.extractall(out, filter="data")
    with zipfile.ZipFile(build("wheel", out / NAME)) as file:
        metadata = message_from_bytes(file.read(f"{NAME}.dist-info/METADATA"))
        return Built(sdist, set(file.namelist()), metadata)


def test_the_source_distribution_holds_what_a_clone_holds(distributions: Built) -> None:
    made = {"PKG-INFO", "setup.cfg"}
    names = {name.removeprefix(f"{NAME}/") for name in distributions.sdist}
    assert {name for name in names if not name.startswith("resnext_hub.egg-info/")} - made == set(tracked_files())


def test_the_wheel_holds_the_package_and_its_data_alone(distributions: Built) -> None:
    package = {name.removeprefix("resnext_hub/") for name in distributions.wheel if name.startswith("resnext_hub/")}
    assert package == set(exported_files()) - NOT_IN_WHEEL
    info = {name for name in distributions.wheel if not name.startswith("resnext_hub/")}
    assert {name.split("/")[0] for name in info} == {f"{NAME}.dist-info"}
    assert {f"{NAME}.dist-info/licenses/{name}" for name in ("LICENSE", "NOTICE")} <= info


def test_pip_installs_a_git_repository(clone: Path, distributions: Built, tmp_path: Path) -> None:
    """As from ``git+https://``, here without an index."""
    author = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    for command in (["add", "--all"], [*author, "commit", "--quiet", "--message", "all"]):
        subprocess.run(["git", *command], cwd=clone, check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--no-compile", "--target", tmp_path, f"git+{clone.as_uri()}"], check=True)
    installed = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {name for name in distributions.wheel if name.startswith("resnext_hub/")} <= installed
    assert (tmp_path / "bin" / "resnext-hub").exists()


def test_metadata_names_authors_urls_and_licences(distributions: Built) -> None:
    metadata = distributions.metadata
    assert metadata["Author"] == "The resnext-hub authors"
    assert metadata["Author-email"] is None
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL", []))
    assert set(urls) == {"Repository", "Documentation", "Issues", "Changelog"}
    owner = REPOSITORY.split("/")[3]
    assert all(f"https://github.com/{owner}/" in url or f"https://{owner}.github.io/" in url for url in urls.values())
    assert metadata["License-Expression"] == PROJECT["license"]
    assert metadata.get_all("License-File") == ["LICENSE", "NOTICE"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Summary"] == PROJECT["description"]
    assert metadata["Keywords"]
    classifiers = metadata.get_all("Classifier", [])
    assert not [classifier for classifier in classifiers if classifier.startswith("License ::")]  # PEP 639 forbids both
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.11"} <= set(classifiers)


def test_the_licence_covers_the_weights_inside_and_notice_has_its_terms(distributions: Built) -> None:
    notice = (ROOT / "NOTICE").read_text()
    expression = PROJECT["license"].split(" AND ")
    assert all(licence in notice for licence in expression)
    inside = {name.removeprefix("resnext_hub/") for name in distributions.wheel if name.endswith(".pth")}
    assert inside
    for checkpoint in default_manifest().checkpoints.values():
        paths = {str(s.path.relative_to(ROOT)) for s in checkpoint.sources if s.path} & inside
        inside -= paths
        if paths:
            assert f"LicenseRef-{checkpoint.name.replace('_', '-')}-{checkpoint.license_id}" in expression
            assert all(path in notice for path in paths)
    assert not inside


def links(markdown: str) -> list[str]:
    """The targets of Markdown's and HTML's links and pictures, outside of code."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", markdown, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)", text)
    references = re.findall(r"^\s*\[[^\]]+\]:\s*<?([^\s>]+)", text, re.MULTILINE)
    return inline + references + re.findall(r"""(?:href|src|srcset)\s*=\s*["']([^"'\s]+)""", text)


def test_readmes_links_and_pictures_work_on_the_package_index(distributions: Built) -> None:
    """An index shows README without the repository around it; its pictures must be the files, not GitHub's pages."""
    description = distributions.metadata.get_payload()
    assert isinstance(description, str)
    found = links(description)
    raw = REPOSITORY.replace("https://github.com/", "https://raw.githubusercontent.com/") + "/main/"
    paths = []
    for link in found:
        if link.startswith("#"):
            headings = re.findall(r"^#+ (.*)$", description, re.MULTILINE)
            assert link[1:] in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]
        else:
            assert link.startswith("https://"), link
        if match := re.match(rf"(?:{REPOSITORY}/(?:blob|tree)/main/|{raw})([^#]*)", link):
            paths.append(match[1])
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]
    pictures = [link for link in found if link.lower().endswith((".png", ".jpg", ".gif"))]
    assert pictures
    assert not [link for link in pictures if REPOSITORY in link]
