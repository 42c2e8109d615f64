"""Built engines: built once per checkpoint, kept beside the checkpoints, and opened from there ever after.

An engine is the folder ``.resnext-hub/engines/<checkpoint>-<key>``. The key is made of what the built form depends on:
the checkpoint's sha256, architecture and preprocessing, the engine's library and its version, the code that rewrites
the network, and the processor's instruction sets.
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

import numpy as np

from ...errors import EngineError
from ...files import publish, sha256, temporary_name
from ...models.download import local_file
from ...models.manifest import ROOT, Checkpoint
from ...models.store import Store
from ...packages import install, library_version, missing
from .built import BuiltEngine
from .export import float32_by_default, instruction_sets
from .folders import (
    OTHERS_MAY_WRITE,
    RECORD,
    SMALL,
    describe_files,
    expect_own,
    folder_of_engines,
    is_unchanged,
    note_use,
    remove_interrupted,
)

__all__ = ["open_built"]

log = logging.getLogger("resnext_hub")

TOLERANCE = 1e-3  # of the logits' range: what a built engine may be off by; 1e-6 is usual


def open_built(
    checkpoint: Checkpoint, kind: type[BuiltEngine], threads: int | None, progress: bool, build: bool
) -> BuiltEngine | None:
    """Open an engine, and build it first if needed; return None if it is not built and ``build`` is False.

    Raises:
        EngineError: a package is missing, the engine cannot be built, or another user may write to it.
        CheckpointError: the weights cannot be downloaded or verified.
    """
    advice = install(kind.extra)
    if lacking := missing(kind.needs):
        raise EngineError(f"The engine {kind.name} needs {', '.join(lacking)}: {advice}")
    store = Store()
    path, digest = local_file(checkpoint, progress, store=store)
    folder = folder_of_engines(store) / f"{path.name}-{kind.name}-{_key(checkpoint, digest, kind)}"
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
    if lacking := missing(kind.builds_with):
        raise EngineError(f"Building the engine {kind.name} needs {', '.join(lacking)}: {advice}")
    about = {"checkpoint": checkpoint.name, "file": path.name, "path": str(path), "sha256": digest}
    try:
        _build(checkpoint, kind, folder, store, about, broken)
        return kind(folder, threads)
    except Exception as error:  # no room, no compiler, a library that is broken itself: "auto" has another way
        raise EngineError(f"The engine {kind.name} could not be built in {folder.parent}: {error}") from error


def _key(checkpoint: Checkpoint, digest: str, kind: type[BuiltEngine]) -> str:
    preset = dataclasses.replace(checkpoint.preprocessing, source="")  # where it is from changes nothing
    version, code = library_version(kind.library), _code(kind)
    network = (dataclasses.astuple(checkpoint.architecture), checkpoint.num_classes)
    depends_on = [digest, network, dataclasses.astuple(preset), kind.name, version, code, instruction_sets()]
    return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]


def _code(kind: type[BuiltEngine]) -> str:
    """Return a digest of the code that turns a network into an engine."""
    here = Path(__file__).parent
    files = (ROOT / "models" / "resnext.py", here / "graph.py", here / "export.py", here / f"{kind.name}.py")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _build(
    checkpoint: Checkpoint,
    kind: type[BuiltEngine],
    folder: Path,
    store: Store,
    about: dict[str, str],
    broken: int | None,
) -> None:
    """Build an engine, compare its logits with the network's, and only then give the folder its name."""
    import torch

    from ...models.entrypoints import load
    from .graph import PixelNetwork

    path, digest = Path(about["path"]), about["sha256"]
    with store.lock(folder):
        if folder.exists() and folder.stat().st_ino != broken:  # another process was faster
            return
        log.warning(
            "Building the %s engine of %s (once; takes seconds, or minutes for the largest variants)",
            kind.name,
            checkpoint.name,
        )
        part = temporary_name(folder)
        part.mkdir(parents=True)
        remove_interrupted(folder)
        try:
            start, before = time.perf_counter(), _state(path)
            crop = checkpoint.preprocessing.crop_size
            pixels = np.random.default_rng(0).integers(0, 256, (2, crop, crop, 3), dtype=np.uint8)
            with torch.device("cpu"), float32_by_default():
                network = load(checkpoint).eval().requires_grad_(False)
                expected = PixelNetwork(network, checkpoint.preprocessing)(torch.from_numpy(pixels))[0].numpy()
                kind.build(network, checkpoint.preprocessing, part)
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
            (part / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            off = float(np.abs(kind(part)(pixels)[0] - expected).max() / np.ptp(expected))
            if not off <= TOLERANCE:
                raise EngineError(
                    f"its logits differ from PyTorch's by {off:.1e} of their range, more than {TOLERANCE:.0e}"
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
