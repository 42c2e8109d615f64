"""Run the notebooks without network; --write keeps what they show. Exit status 1 where a cell fails or a pair differs.

A notebook runs in a copy of the repository whose manifest has random weights, of the right names, keys, shapes and formats,
in the place of those published ones that the notebooks use. They lie in torch.hub's folder of that run, as if they had been
fetched before; so cells are the same as for readers, and `made_by` in the manifest tells them what they were given.
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
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import torch
from PIL import Image
from resnext_hub.models.entrypoints import build
from resnext_hub.models.manifest import default_manifest, write_digest
from resnext_hub.models.resnext import BasicBlock, Bottleneck
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
    """The notebook, without outputs, that a script in jupytext's percent format stands for."""
    notebook = jupytext.read(script)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # not random: writing again changes nothing that has not changed
    return notebook


def write_random_weights(entry: dict[str, Any], name: str, folder: Path) -> None:
    """Random weights in the place of a published file, and their name, length and hash in its manifest entry."""
    checkpoint = default_manifest().checkpoints[name]
    torch.manual_seed(zlib.crc32(name.encode()))
    network = build(checkpoint.architecture)
    for block in network.modules():  # calm, or a hundred layers at random would be as sure of themselves as can be
        if isinstance(block, (BasicBlock, Bottleneck)):
            torch.nn.init.constant_(block.bn2.weight if isinstance(block, BasicBlock) else block.bn3.weight, 0.2)
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
    entry |= {"sources": [source], "made_by": "random weights"}
    path.rename(folder / filename)


def prepare(folder: Path, scripts: list[Path]) -> list[Path]:
    """The copy of the repository with its notebooks, and torch.hub's folder beside it."""
    clone, checkpoints = folder / "clone", folder / "torch_home" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in exported_files():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(HERE.parent / name, clone / name)
    manifest = json.loads((clone / "weights_manifest.json").read_text(encoding="utf-8"))
    text = "".join(script.read_text(encoding="utf-8") for script in scripts)
    for name in PUBLISHED:
        if name.split(".")[0] in text:
            write_random_weights(manifest["checkpoints"][name], name, checkpoints)
    (clone / "weights_manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    write_digest(clone)
    (clone / "notebooks").mkdir()
    copies = [clone / "notebooks" / f"{script.stem}.ipynb" for script in scripts]
    for script, copy in zip(scripts, copies, strict=True):
        nbformat.write(read_source(script), copy)
    return copies


def execute(folder: Path, notebooks: list[Path], timeout: int) -> int:
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `!resnext-hub` is that of this Python
    environment = os.environ | {"PATH": commands, "TORCH_HOME": str(folder / "torch_home")}
    options = ["--nbmake", "--overwrite", f"--nbmake-timeout={timeout}", "-p", "no:cacheprovider"]
    pytest = [sys.executable, "-m", "pytest", f"--rootdir={HERE.parent}", "-c", HERE.parent / "pyproject.toml"]
    return subprocess.run([*pytest, *options, *notebooks], cwd=HERE.parent, env=environment, check=False).returncode


def smaller(png: str) -> str:
    """A picture in 256 colours: a third of the length, for a repository that many will clone."""
    out = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    image.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def joined(outputs: list[Any]) -> list[Any]:
    """Neighbouring texts of one stream as one, without progress bars, which write over themselves."""
    kept: list[Any] = []
    for output in outputs:
        if kept and output.output_type == "stream" == kept[-1].output_type and output.name == kept[-1].name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            plain = re.sub(r"\r+\n", "\n", output.text)
            output.text = re.sub(r"^.*\d+%\|.*\n?", "", re.sub(r"[^\n]*\r", "", plain), flags=re.MULTILINE)
    return [output for output in kept if output.output_type != "stream" or output.text.strip()]


def keep(executed: Path, folder: Path) -> None:
    """Write a notebook with its outputs, but nothing that the next run would change for no reason."""
    notebook: Any = nbformat.read(executed, as_version=4)
    notebook.metadata = read_source(HERE / f"{executed.stem}.py").metadata
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
        for output in cell.get("outputs", ()):
            if "text" in output:
                output["text"] = output["text"].replace(str(folder / "clone"), "resnext-hub")
            if png := output.get("data", {}).get("image/png"):
                output["data"]["image/png"] = smaller(png)
    nbformat.write(notebook, HERE / executed.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every notebook")
    parser.add_argument("--write", action="store_true", help="write the notebooks with what they show")
    parser.add_argument("--timeout", type=int, default=1800, metavar="SECONDS", help="of a cell")
    arguments = parser.parse_args()
    names = arguments.names or sorted(path.stem for path in HERE.glob("*.py") if path != Path(__file__).resolve())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        notebooks = prepare(folder, [HERE / f"{name}.py" for name in names])
        status = execute(folder, notebooks, arguments.timeout)
        if status == 0 and arguments.write:
            for notebook in notebooks:
                keep(notebook, folder)
    return status


if __name__ == "__main__":
    sys.exit(main())
