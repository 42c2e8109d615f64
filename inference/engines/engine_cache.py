"""Built engines: built once per checkpoint, kept beside the checkpoints, and opened from there ever after.

An engine is the folder ``.resnext-hub/engines/<checkpoint>-<key>``. The key is made of what the built form depends on:
the checkpoint's sha256, architecture and preprocessing, the precision and the images for calibration, the engine's
library and its version, the code that rewrites the network, and the processor's instruction sets.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import EngineError
from ...files import publish, sha256, temporary_name
from ...models.download import local_file
from ...models.manifest import ROOT, Checkpoint
from ...models.store import Store
from ...packages import install, library_version, missing
from ...processing_utils.calibration import wilson_interval
from .built import BuiltEngine
from .export import float32_by_default, instruction_sets
from .folders import (
    OTHERS_MAY_WRITE,
    SMALL,
    describe_files,
    expect_own,
    folder_of_engines,
    is_unchanged,
    note_use,
    remove_interrupted,
    write_record,
)
from .precision import TOLERANCES, computes_bf16, computes_int8

log = logging.getLogger("resnext_hub")

HELD_OUT = 4  # every 4th of the images for calibration verifies the engine instead
PORTION = 16  # images that pass the network together for that


def open_built(
    checkpoint: Checkpoint,
    kind: type[BuiltEngine],
    threads: int | None,
    progress: bool,
    build: bool,
    precision: str,
    calibration: np.ndarray | None,
) -> BuiltEngine | None:
    """Open an engine, and build it first if needed; return None if it is not built and ``build`` is False.

    Args:
        calibration: uint8 pixels (N, crop, crop, 3) for int8. Every fourth image verifies the engine instead.

    Raises:
        EngineError: a package is missing, the engine cannot be built, or another user may write to it.
        CheckpointError: the weights cannot be downloaded or verified.
    """
    advice = install(kind.extra)
    if lacking := missing(kind.needs):
        raise EngineError(f"The engine {kind.name} needs {', '.join(lacking)}: {advice}")
    if calibration is not None and len(calibration) < 2:
        raise EngineError("int8 needs 2 images or more: one to calibrate with, one to verify the engine with.")
    store = Store()
    path, digest = local_file(checkpoint, progress, store=store)
    pixels = None if calibration is None else hashlib.sha256(calibration.tobytes()).hexdigest()
    folder = folder_of_engines(store) / f"{path.name}-{kind.name}-{_key(checkpoint, digest, kind, precision, pixels)}"
    broken = None
    if folder.exists():
        expect_own(folder)
        try:
            if not is_unchanged(folder, SMALL):
                raise EngineError("its files have changed since it was built")
            opened = kind(folder, threads)
            note_use(folder)
            return opened
        except Exception as error:  # each library has its own for a file that is broken
            log.warning("%s cannot be opened and will be built again: %s", folder, error)
            broken = folder.stat().st_ino
    if not build:
        return None
    quantiser = () if calibration is None else ("onnxruntime",)
    if lacking := missing((*kind.builds_with, *quantiser)):
        raise EngineError(
            f"Building the engine {kind.name} needs {', '.join(lacking)}: pip install {' '.join(lacking)}"
        )
    about = {"checkpoint": checkpoint.name, "file": path.name, "path": str(path), "sha256": digest}
    about |= {"precision": precision, "calibration": pixels}
    try:
        _build(checkpoint, kind, folder, store, about, broken, calibration)
        return kind(folder, threads)
    except Exception as error:  # no room, no compiler, a library that is broken itself: "auto" has another way
        if _is_interrupt(error):
            raise KeyboardInterrupt from error
        raise EngineError(f"The engine {kind.name} could not be built in {folder.parent}: {error}") from error


def _is_interrupt(error: BaseException | None) -> bool:
    """Return True if Ctrl-C is behind an exception: exporters wrap it in one of their own."""
    return error is not None and (
        isinstance(error, KeyboardInterrupt) or _is_interrupt(error.__cause__) or _is_interrupt(error.__context__)
    )


def _key(
    checkpoint: Checkpoint,
    digest: str,
    kind: type[BuiltEngine],
    precision: str = "fp32",
    calibration: str | None = None,
) -> str:
    preset = dataclasses.replace(checkpoint.preprocessing, source="")  # where it is from changes nothing
    version, code = library_version(kind.library), _code(kind)
    network = (dataclasses.astuple(checkpoint.architecture), checkpoint.num_classes)
    depends_on = [digest, network, dataclasses.astuple(preset), kind.name, version, code, instruction_sets()]
    depends_on += [precision, calibration, computes_bf16(), computes_int8()]
    return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]


def _code(kind: type[BuiltEngine]) -> str:
    """Return a digest of the code that turns a network into an engine."""
    here = Path(__file__).parent
    files = (
        ROOT / "models" / "resnext.py",
        here / "graph.py",
        here / "export.py",
        here / "int8.py",
        here / f"{kind.name}.py",
    )
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _build(
    checkpoint: Checkpoint,
    kind: type[BuiltEngine],
    folder: Path,
    store: Store,
    about: dict[str, Any],
    broken: int | None,
    calibration: np.ndarray | None,
) -> None:
    """Build an engine, compare its logits with the network's, and only then give the folder its name."""
    import torch

    from ...models.entrypoints import load
    from .graph import PixelNetwork

    path, digest, precision = Path(about["path"]), about["sha256"], about["precision"]
    with store.lock(folder):
        if folder.exists() and folder.stat().st_ino != broken:  # another process was faster
            return
        log.warning(
            "Building the %s engine of %s in %s (once; takes seconds, or minutes for the largest variants)",
            kind.name,
            checkpoint.name,
            precision,
        )
        part = temporary_name(folder)
        part.mkdir(parents=True)
        remove_interrupted(folder)
        try:
            start, before = time.perf_counter(), _state(path)
            if calibration is None:
                crop = checkpoint.preprocessing.crop_size
                pixels = np.random.default_rng(0).integers(0, 256, (2, crop, crop, 3), dtype=np.uint8)
            else:
                pixels = calibration[::HELD_OUT]
                calibration = np.delete(calibration, np.s_[::HELD_OUT], 0)
            with torch.device("cpu"), float32_by_default():
                network = load(checkpoint).eval().requires_grad_(False)
                exact = PixelNetwork(network, checkpoint.preprocessing)
                expected = torch.cat([exact(images)[0] for images in torch.from_numpy(pixels).split(PORTION)]).numpy()
                kind.build(network, checkpoint.preprocessing, part, precision, calibration)
            # The change time tells of a file that was replaced for a while, and of one that was written to.
            if sha256(path) != digest or _state(path) != before or not _is_current(checkpoint, path, digest, store):
                raise EngineError("the weights were replaced while it was built")
            record = about | {
                "engine": kind.name,
                "library": kind.library,
                "version": library_version(kind.library),
                "build_seconds": round(time.perf_counter() - start, 2),
                "files": describe_files(part),
            }
            write_record(part, record)
            logits = kind(part)(pixels)[0]
            off, allowed = float(np.abs(logits - expected).max() / np.ptp(expected)), TOLERANCES[precision]
            if not off <= allowed:
                raise EngineError(
                    f"its logits differ from PyTorch's by {off:.1e} of their range, more than {allowed:.0e}"
                )
            if calibration is not None:
                same, images = int((logits.argmax(1) == expected.argmax(1)).sum()), len(pixels)
                low, high = wilson_interval(same, images)
                record["agreement"] = {"same": same, "images": images, "low": low, "high": high}
                write_record(part, record)
                log.warning(
                    "In int8, %s has the same best class as in fp32 for %d of %d images that it was not calibrated "
                    "with (95 %% interval: %.1f to %.1f %%)",
                    *(checkpoint.name, same, images, 100 * low, 100 * high),
                )
            for file in (part, *part.iterdir()):  # whatever the umask is: see `expect_own`
                file.chmod(stat.S_IMODE(file.stat().st_mode) & ~OTHERS_MAY_WRITE)
            publish(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_ctime_ns


def _is_current(checkpoint: Checkpoint, path: Path, digest: str, store: Store) -> bool:
    """Return True if the mapped copy that a load takes instead of an old file, if there is one, has its tensors."""
    from ...models.checkpoints import is_faithful

    copy = store.mapped_copy(path, digest)
    return not copy.exists() or is_faithful(copy, path, vouched=store.is_vouched(checkpoint, path))
