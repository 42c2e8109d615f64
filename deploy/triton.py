"""Add a variant to a Triton model repository: encoded images go in, labels with probabilities come out.

A variant X becomes four models: X_decode (bytes to pixels, Python), X_network (pixels to the probabilities of all
classes, in the chosen backend), X_labels (the names of the best classes, Python) and X, the ensemble that clients call.
The Python models contain the code that they need, so the server needs Pillow and numpy, but not this package or torch.

Exports add variants and versions to a repository and change nothing else in it. A version is built and verified in a
folder beside the repository and moved in model by model, the ensemble last. So a server that watches the repository
never sees an incomplete model, and clients never see an ensemble without its parts.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ExportError
from ..files import sync
from ..models.manifest import ROOT, Checkpoint, find_checkpoint
from ..processing_utils.labels import read_labels
from ..processing_utils.preprocessing import check_grade, load_pixels
from .export import Report, export
from .triton_config import BACKENDS, LABELS, Serving, configurations, parts, to_text

__all__ = ["Serving", "add_to_repository"]

SERVED = Path(__file__).parent / "served"  # files that become model.py
CONFIG = "config.pbtxt"

# Files of this package that the Python models import.
CODE = (
    "__init__.py",
    "mount.py",
    "errors.py",
    "packages.py",
    "models/__init__.py",
    "models/manifest.py",
    "net/*.py",
    "models/schema.py",
    "processing_utils/*.py",
)

# Runs alone (python -I) on a decoder's folder: reads a JPEG from stdin and writes its pixels.
DECODE = """
import json, sys
from pathlib import Path
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
from resnext_hub.models.manifest import Preprocessing
from resnext_hub.processing_utils import inputs
assert Path(inputs.__file__).is_relative_to(folder), inputs.__file__
how = json.loads((folder / "decode.json").read_text(encoding="utf-8"))
pixels = inputs.prepare_pixels([sys.stdin.buffer.read()], Preprocessing(**how["preprocessing"]), grade=how["grade"])
sys.stdout.buffer.write(pixels.tobytes())
"""

README = """\
# {name}

{title}, served by Triton. `{name}_network/<version>/` has its metadata and the report of the export.

```sh
curl -s --data-binary @photo.jpg -H 'Inference-Header-Content-Length: 0' \\
    http://127.0.0.1:8000/v2/models/{name}/infer | tr -cd '[:print:]'
```

The answer is JSON, followed by the values of the outputs. For programs use Triton's clients: docs/deploy.md of
resnext-hub has an example.
"""


def add_to_repository(
    variant: str | Path, out: str | Path, *, serving: Serving | None = None, name: str | None = None, **options: Any
) -> Report:
    """Export a variant, verify it, and add it to the Triton model repository ``out``, which is created if needed.

    Args:
        variant: a published name, or a folder that training wrote.
        serving: how Triton runs it; ``serving.version`` is the version to add.
        name: the model's name for clients; by default the variant's name. To serve a variant twice, for example in fp16
            and int8, use two names.
        options: precision, calibration, photos and others of `export.export`.

    Returns:
        The report of the network, which is also in its version folder as ``report.json``.

    Raises:
        ExportError: ``out`` is not a model repository; it has this version already; other versions have another
            configuration; the network cannot be exported or is not exact. The repository stays as it was.
        ValueError, UnknownVariantError, CheckpointError: as `export.export`.
    """
    serving = serving or Serving()
    out, most = Path(out).absolute(), serving.max_batch
    checkpoint = find_checkpoint(variant)
    name = name or checkpoint.name
    _check(checkpoint, name, serving, out)
    if options.get("precision") == "int8" and not serving.on_cpu:
        raise ValueError("int8 has kernels for CPUs only: pass device='cpu', or another precision.")
    models = configurations(name, serving, checkpoint.preprocessing.crop_size, checkpoint.num_classes)
    texts = {model: to_text(config) for model, config in models.items()}
    _check_place(out, name, serving.version, texts, checkpoint)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the repository, not in it: a polling server takes any folder in it for a model.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".part", dir=out.parent) as temporary:
        built, exported = Path(temporary, "models"), Path(temporary, "exported")
        to = BACKENDS[serving.backend].format
        if to == "tensorrt":  # the engine supports the sizes that Triton will send
            options = {"batches": (1, min(serving.batches, default=most), most), **options}
        report = export(variant, to, exported, preprocessing=True, softmax=True, **options)
        for model, text in texts.items():
            (built / model / str(serving.version)).mkdir(parents=True)
            (built / model / CONFIG).write_text(text, encoding="utf-8")
        names = parts(name)
        decode, network, labels, ensemble = (built / model / str(serving.version) for model in (*names.values(), name))
        _put_decoder(decode, checkpoint, serving)
        for file in report.folder.iterdir():
            os.replace(file, network / file.name)
        if serving.backend == "python":
            shutil.copyfile(SERVED / "network.py", network / "model.py")
        _put_code(labels, "labels")
        shutil.copyfile(checkpoint.labels.file, labels / "labels.tsv")
        for version in (network, labels):
            (version.parent / LABELS).write_text(_label_lines(checkpoint), encoding="utf-8")
        (ensemble / "about.txt").write_text(f"{name}: see {names['network']}\n")
        (built / name / "README.md").write_text(README.format(name=name, title=checkpoint.system.title))
        _move_in(built, out, name, serving.version)
    return dataclasses.replace(report, folder=out / names["network"] / str(serving.version))


def _check(checkpoint: Checkpoint, name: str, serving: Serving, out: Path) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"A model name may have letters, digits, '_', '-' and '.', got {name!r}.")
    if checkpoint.multi_label:
        raise ExportError(
            f"A Triton repository is for one class per image, and {checkpoint.name} for several: export it to onnx."
        )
    if serving.top is not None and serving.top > checkpoint.num_classes:
        count = checkpoint.num_classes
        raise ValueError(f"top must be from 1 to {count}, the classes of {checkpoint.name}; got {serving.top}.")
    check_grade(serving.grade)
    if not out.exists():
        return
    if not out.is_dir() or not all((folder / CONFIG).is_file() for folder in out.iterdir() if folder.is_dir()):
        raise ExportError(f"{out} is not a Triton model repository: every folder in it must have a {CONFIG}.")


def _check_place(out: Path, name: str, version: int, texts: dict[str, str], checkpoint: Checkpoint) -> None:
    """Versions of a model share one configuration, so a new version must match it."""
    if (out / name / str(version)).exists():
        raise ExportError(
            f"{out / name} already has version {version}: pass version={version + 1}, or another name=NAME."
        )
    *behind, _ = texts
    for model in behind:
        there = out / model / CONFIG
        if there.is_file() and there.read_text(encoding="utf-8") != texts[model]:
            raise ExportError(
                f"{there} is shared by all versions and does not match the options of version {version}: pass the "
                "options that it was made with, or another name=NAME."
            )
    labels = out / parts(name)["network"] / LABELS
    if labels.is_file() and labels.read_text(encoding="utf-8") != _label_lines(checkpoint):
        raise ExportError(f"{labels} has other classes than {checkpoint.name}: pass another name=NAME.")


def _label_lines(checkpoint: Checkpoint) -> str:
    return "".join(f"{label.name}\n" for label in read_labels(checkpoint.labels))


def _put_decoder(folder: Path, checkpoint: Checkpoint, serving: Serving) -> None:
    _put_code(folder, "decode")
    how = {"preprocessing": dataclasses.asdict(checkpoint.preprocessing), "grade": serving.grade}
    (folder / "decode.json").write_text(json.dumps(how, indent=1) + "\n", encoding="utf-8")
    image = _a_jpeg()
    # Triton stores a string as its length in four bytes, then the bytes.
    (folder.parent / "warmup").mkdir()
    (folder.parent / "warmup" / "image").write_bytes(len(image).to_bytes(4, "little") + image)
    done = subprocess.run([sys.executable, "-I", "-c", DECODE, folder], input=image, capture_output=True, check=False)
    expected = load_pixels(image, checkpoint.preprocessing, serving.grade)
    found = np.frombuffer(done.stdout, np.uint8)
    # The faster grades depend on the packages that are installed; torch's resize and Pillow's differ by at most 2.
    bound = 0 if serving.grade == "reference" else 2
    if found.size != expected.size or np.abs(found - expected.ravel().astype(int)).max() > bound:
        raise ExportError(
            f"The decoder's pixels differ from the expected ones. {done.stderr.decode(errors='replace')[-2000:]}"
        )
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache)


def _put_code(folder: Path, served: str) -> None:
    shutil.copyfile(SERVED / f"{served}.py", folder / "model.py")
    for pattern in CODE:
        for file in sorted(ROOT.glob(pattern)):
            target = folder / "resnext_hub" / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def _a_jpeg() -> bytes:
    """Return a picture to warm up with, larger than any crop."""
    from PIL import Image

    ramp = np.linspace(0, 255, 320, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp[None, :], ramp[::-1, None], ramp[:, None]), axis=-1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def _move_in(built: Path, out: Path, name: str, version: int) -> None:
    """Move the models into the repository, the ensemble's configuration last; undo everything if a step fails."""
    sync(built)
    if not out.exists():
        os.replace(built, out)
        return
    with ExitStack() as undo:
        for model in (*parts(name).values(), name):
            source, target = built / model, out / model
            if target.exists():
                source, target = source / str(version), target / str(version)
            if target.exists():  # left by an export that was killed here; no ensemble uses it yet
                shutil.rmtree(target)
            os.replace(source, target)
            undo.callback(shutil.rmtree, target, ignore_errors=True)
        if (built / name / CONFIG).exists():
            for file in ("README.md", CONFIG):
                os.replace(built / name / file, out / name / file)
        undo.pop_all()
