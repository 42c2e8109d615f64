"""Build the files that the page "Try it" runs in the browser: resnext_tiny as ONNX, and ONNX Runtime for the web.

    python docs/browser.py build/try

The network is exported by this project, with the preprocessing after the crop inside; its weights are stored in half
precision, as they are in the repository. ONNX Runtime comes from the npm package onnxruntime-web, checked against the
hash below: the page loads nothing from other servers.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from resnext_hub.deploy.export import export
from resnext_hub.models.manifest import default_manifest

VARIANT = "resnext_tiny"
PACKAGE = "onnxruntime-web@1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
LARGE = 1024  # values: smaller tensors stay as they are


def assemble(out: Path) -> None:
    """Write the network and the runtime into a folder, unless they are there.

    Raises:
        RuntimeError: npm cannot fetch the package, or it is not the one whose hash is above.
    """
    digest = default_manifest().resolve(VARIANT).sources[0].hash
    wanted = f"{digest} {PACKAGE}"
    done = out / "done.txt"
    if done.is_file() and done.read_text() == wanted:
        return
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        export(VARIANT, "onnx", Path(folder) / "export", preprocessing=True, softmax=True, progress=False)
        model = onnx.load(Path(folder) / "export" / "model.onnx")
        halve(model)
        onnx.save(model, out / "model.onnx")
        shutil.copy(Path(folder) / "export" / "metadata.json", out)
        fetch_runtime(Path(folder), out)
    done.write_text(wanted)


def halve(model: onnx.ModelProto) -> None:
    """Store large float32 weights as float16, each with a cast behind it: half the download, the same arithmetic."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < LARGE:
            continue
        name, values = tensor.name, numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)


def fetch_runtime(folder: Path, out: Path) -> None:
    """Unpack the files of ONNX Runtime for the web that the page needs."""
    command = ["npm", "pack", "--silent", PACKAGE]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"npm cannot fetch {PACKAGE}: {done.stderr.strip()[-300:]}")
    archive = folder / done.stdout.split()[-1]
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if f"sha512-{found}" != INTEGRITY:
        raise RuntimeError(f"{PACKAGE} has the hash sha512-{found}, not the one in docs/browser.py.")
    with tarfile.open(archive) as file:
        for name in RUNTIME:
            member = file.extractfile(f"package/dist/{name}")
            assert member is not None
            (out / name).write_bytes(member.read())


if __name__ == "__main__":
    assemble(Path(sys.argv[1]))
