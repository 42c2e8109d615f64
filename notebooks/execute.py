"""Run the notebooks without network, and compare the figures that they show with those stored in the .ipynb files.

    python notebooks/execute.py [--write] [NAME ...]

Exit status 1 if a cell fails or a figure differs. --write stores the new outputs instead of comparing them.

Every notebook runs in a copy of the repository on a machine without published weights, where `resnext_tiny` takes their
place; these outputs are the stored ones. A notebook that asks for published weights then runs a second time, to test its
code on networks of that size: with random weights of the right names, keys, shapes and formats, which lie in torch.hub's
folder as if they had been downloaded. Nothing of that run is kept.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import torch
from PIL import Image
from resnext_hub.models.entrypoints import build
from resnext_hub.models.manifest import default_manifest, write_digest
from resnext_hub.tests.conftest import exported_files

HERE = Path(__file__).resolve().parent
PUBLISHED = (
    "resnext101_32x8d_wsl",
    "resnet18_ssl",
    "resnet18_swsl",
    "resnext50_32x4d.IMAGENET1K_V1",
    "resnext50_32x4d.IMAGENET1K_V2",
    "nvidia_resneXt",
    "nvidia_se_resnext101_32x4d",
)


def read_source(script: Path) -> Any:
    """Convert a script in jupytext's percent format to a notebook without outputs."""
    notebook = jupytext.read(script)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # not random: writing again changes nothing that has not changed
    return notebook


def write_random_weights(entry: dict[str, Any], name: str, folder: Path) -> None:
    """Write random weights in place of a published file, and their name, length and hash into its manifest entry."""
    checkpoint = default_manifest().checkpoints[name]
    torch.manual_seed(zlib.crc32(name.encode()))
    network = build(checkpoint.architecture)
    prefix = "module." if checkpoint.entrypoint.startswith("nvidia") else ""
    source = entry["sources"][0]
    path = folder / "unnamed"
    state = {prefix + key: value for key, value in network.state_dict().items()}
    torch.save(state, path, _use_new_zipfile_serialization=source["format"] == "pth-zip")
    filename = source["url"].rsplit("/", 1)[1]
    if source["hash"] is not None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        expected = source["hash"]["value"]
        filename = filename.replace(expected[:8], digest[:8])
        source["hash"]["value"] = digest[: len(expected)]
    source |= {"url": f"http://127.0.0.1:9/{filename}", "bytes": path.stat().st_size}
    entry["sources"] = [source]
    path.rename(folder / filename)


def prepare(folder: Path, scripts: list[Path], random_weights: bool) -> list[Path]:
    """Copy the repository and the notebooks into a folder, with torch.hub's folder beside them; return the notebooks."""
    clone, checkpoints = folder / "clone", folder / "torch_home" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (folder / "packages").mkdir()
    (folder / "packages" / "resnext_hub").symlink_to(clone)
    for name in exported_files():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(HERE.parent / name, clone / name)
    if random_weights:
        manifest = json.loads((clone / "weights_manifest.json").read_text(encoding="utf-8"))
        text = "".join(script.read_text(encoding="utf-8") for script in scripts)
        for name in PUBLISHED:
            if f'"{name}"' in text:
                write_random_weights(manifest["checkpoints"][name], name, checkpoints)
        (clone / "weights_manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        write_digest(clone)
    (clone / "notebooks").mkdir()
    copies = [clone / "notebooks" / f"{script.stem}.ipynb" for script in scripts]
    for script, copy in zip(scripts, copies, strict=True):
        nbformat.write(read_source(script), copy)
    return copies


def execute(folder: Path, notebooks: list[Path], timeout: int) -> int:
    """Run the notebooks in place, offline, two at a time with one thread each. Returns pytest's exit status."""
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `!resnext-hub` is that of this Python
    offline = {
        "RESNEXT_HUB_OFFLINE": "1",
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }
    paths = {"PYTHONPATH": str(folder / "packages"), "TORCH_HOME": str(folder / "torch_home"), "PATH": commands}
    environment = os.environ | offline | paths  # PYTHONPATH comes before the installed package: all is the copy's
    options = ["--nbmake", "--overwrite", f"--nbmake-timeout={timeout}", "-p", "no:cacheprovider", "-n", "2"]
    pytest = [sys.executable, "-m", "pytest", f"--rootdir={HERE.parent}", "-c", HERE.parent / "pyproject.toml"]
    return subprocess.run([*pytest, *options, *notebooks], cwd=HERE.parent, env=environment, check=False).returncode


def smaller(png: str) -> str:
    """Reduce a picture to 256 colours: a third of the size."""
    out = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    image.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def joined(outputs: list[Any]) -> list[Any]:
    """Neighbouring texts of one stream as one, without progress bars and the note that %pip always prints."""
    kept: list[Any] = []
    for output in outputs:
        if kept and output.output_type == "stream" == kept[-1].output_type and output.name == kept[-1].name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            plain = re.sub(r"[^\n]*\r", "", re.sub(r"\r+\n", "\n", output.text))
            output.text = re.sub(r"^(.*\d+%\|.*|Note: you may need to restart .*)\n?", "", plain, flags=re.MULTILINE)
    return [output for output in kept if output.output_type != "stream" or output.text.strip()]


def executed(path: Path, folder: Path) -> Any:
    """The executed notebook without parts that differ between equal runs."""
    notebook: Any = nbformat.read(path, as_version=4)
    notebook.metadata = read_source(HERE / f"{path.stem}.py").metadata
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
        for output in cell.get("outputs", ()):
            if "text" in output:
                output["text"] = output["text"].replace(str(folder / "clone"), "resnext-hub")
            if png := output.get("data", {}).get("image/png"):
                output["data"]["image/png"] = smaller(png)
    return notebook


# A number on its own: not part of a name, a hash, a size such as 64x64 or a version, and not followed by a unit of time.
TIME = r"(?:[mµn]?s|sec(?:onds?)?|min(?:utes?)?|h(?:ours?)?|(?:images|photos)(?:/s| per second))\b"
FIGURE = re.compile(rf"(?<![\w.])-?\d+(?:,\d{{3}})*(?:\.\d+)?(?:e[+-]?\d+)?(?!\w|\.\d|\s?{TIME})")


def figures(cell: Any) -> list[str]:
    """The numbers in the texts that a cell shows, each with its "%" if it has one."""
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.get("outputs", ())]
    text = "\n".join(texts)
    return [
        found[0] + ("%" if text[found.end() :].lstrip(" ").startswith("%") else "") for found in FIGURE.finditer(text)
    ]


def agree(stored: str | None, fresh: str | None) -> bool:
    """Integers must be equal. Percentages and decimals may differ by 4 % and 0.05: processors round differently."""
    if stored is None or fresh is None or stored == fresh:
        return stored == fresh
    stored, fresh = stored.replace(",", ""), fresh.replace(",", "")
    if stored.lstrip("-").isdigit() and fresh.lstrip("-").isdigit():
        return False
    a, b = float(stored.rstrip("%")), float(fresh.rstrip("%"))
    return abs(a - b) <= 0.05 + 0.04 * max(abs(a), abs(b))


def differences(stored: Any, fresh: Any) -> list[str]:
    """One line for each stored figure that the new run does not show."""
    return [
        f"cell {number}: {before} is stored, {now} is shown"
        for number, (old, new) in enumerate(zip_longest(stored.cells, fresh.cells, fillvalue={}))
        for before, now in zip_longest(figures(old), figures(new))
        if not agree(before, now)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every notebook")
    parser.add_argument("--write", action="store_true", help="store the outputs in the .ipynb files")
    parser.add_argument("--timeout", type=int, default=1800, metavar="SECONDS", help="of a cell")
    arguments = parser.parse_args()
    names = arguments.names or sorted(path.stem for path in HERE.glob("*.py") if path != Path(__file__).resolve())
    scripts = [HERE / f"{name}.py" for name in names]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "stored"
        notebooks = prepare(folder, scripts, random_weights=False)
        if status := execute(folder, notebooks, arguments.timeout):
            return status
        for path in notebooks:
            fresh = executed(path, folder)
            if arguments.write:
                nbformat.write(fresh, HERE / path.name)
            for line in differences(nbformat.read(HERE / path.name, as_version=4), fresh):
                print(f"{path.name}: {line}", file=sys.stderr)
                status = 1
        if status:
            print("If the new figures are right: make notebooks-write", file=sys.stderr)
        if published := [script for script in scripts if "available(" in script.read_text(encoding="utf-8")]:
            folder = Path(temporary) / "published"
            notebooks = prepare(folder, published, random_weights=True)
            status = execute(folder, notebooks, arguments.timeout) or status
            for path in notebooks:
                for name in re.findall(r"The weights of (\S+) cannot be", path.read_text(encoding="utf-8")):
                    if not name.startswith("{"):  # that is the cell's source
                        print(f"{path.name}: {name} must be in PUBLISHED", file=sys.stderr)
                        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
