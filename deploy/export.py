"""From a variant to a proven artefact: written aside, held against the network, and only then given its name."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ExportError, InexactError, UnknownOptionError
from ..files import publish, sha256, temporary_name
from ..inference.engines.export import float32_by_default
from ..models.manifest import Checkpoint, find_checkpoint
from ..mount import register
from ..packages import install, missing
from .metadata import describe
from .photos import SAMPLE, read_photos, sample_photos
from .signature import Signature
from .target import Job, Target
from .targets import TARGETS
from .verify import TOLERANCES, Agreement, compare

if TYPE_CHECKING:
    from ..models.resnext import ResNeXt

__all__ = ["Report", "export", "export_network"]

log = logging.getLogger("resnext_hub")

SAMPLES = 8  # crops that prove an export where no photos are given
PHOTOS = 64  # of the user's that do
CALIBRATION = 512  # images; more move the ranges no further


@dataclass(frozen=True)
class Report:
    """An export that was proven. ``report.json`` beside the artefact has the same, but for ``folder``.

    Attributes:
        folder: what was written: the artefact, ``metadata.json``, ``report.json``, and what belongs to the target.
        artefact: the file (or folder) in it that is run.
        bytes: of the artefact and the weights beside it.
        runtime: what ran the artefact when it was held against the network.
        photos: what images that was done with.
        files: sha256 by name.
        notes: what could not be done here, and why.
    """

    folder: Path
    variant: str
    target: str
    artefact: str
    precision: str
    bytes: int
    runtime: str
    photos: str
    agreement: Agreement
    files: Mapping[str, str]
    notes: tuple[str, ...]
    seconds: float

    @property
    def path(self) -> Path:
        """The artefact."""
        return self.folder / self.artefact


register(Report)


def export(
    variant: str | Path,
    to: str,
    out: str | Path,
    *,
    precision: str = "fp32",
    preprocessing: bool = False,
    softmax: bool = False,
    top: int | None = None,
    calibration: str | Sequence[str] | None = None,
    photos: str | Sequence[str] | None = None,
    column: str | None = None,
    label_column: str | None = None,
    allow_private: bool = False,
    anonymous: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> Report:
    """Export a variant with its weights, prove the artefact, and only then give its folder the name ``out``.

    The batch size is free; inputs and outputs are float32 (or uint8 pixels) in every precision; see `Signature`.

    Args:
        variant: a published name, or the folder that training wrote.
        to: one of `targets.TARGETS`.
        out: the folder to write.
        precision: fp32, fp16, bf16 or int8; what a target takes is in its ``precisions``.
        preprocessing: uint8 pixels (N, crop, crop, 3) go in and are normalised inside; resizing stays outside.
        softmax: probabilities come out instead of logits.
        top: only the best ``top`` come out, and their classes.
        calibration: images for int8, any source (docs/data.md); 512 are taken, evenly.
        photos: images to prove the export with, 64 at most; by default a ninth of those for calibration, which it is
            then not calibrated on, else crops of a photo that is always at hand.
        column, label_column, allow_private, anonymous: see `photos.read_photos`.
        overwrite: replace ``out`` if there is one.
        progress: show a bar while the weights are fetched.
        options: the target's own.

    Raises:
        ValueError, UnknownOptionError: an argument that is out of range or does not fit the target; no such option.
        UnknownVariantError, CheckpointError: no such variant; its weights cannot be had.
        SourceError: no image can be read for ``photos`` or ``calibration``.
        InexactError: the artefact's answers are too far from the network's. Nothing is written.
        ExportError: a package is missing, or ``out`` is there. Nothing is written.
    """
    out = Path(out)
    checkpoint = find_checkpoint(variant)
    how: dict[str, Any] = {"precision": precision, "preprocessing": preprocessing, "softmax": softmax, "top": top}
    _check(checkpoint, to, out, calibration is not None, overwrite, how, options)
    preset = checkpoint.preprocessing
    reading: dict[str, Any] = {"column": column, "label_column": label_column}
    reading |= {"private": allow_private, "anonymous": anonymous}
    said = {"calibration": None if calibration is None else read_photos(calibration, preset, CALIBRATION, **reading)}
    said["photos"] = None if photos is None else read_photos(photos, preset, PHOTOS, **reading)

    import torch

    from ..models.download import local_file
    from ..models.entrypoints import load

    with torch.device("cpu"), float32_by_default():
        _, digest = local_file(checkpoint, progress)
        network = load(checkpoint, progress=progress)
    name = None if photos is None else ", ".join([photos] if isinstance(photos, str) else photos)
    return export_network(
        network, checkpoint, to, out, digest=digest, photos_name=name, overwrite=overwrite, **said, **how, **options
    )


def export_network(
    network: ResNeXt,
    checkpoint: Checkpoint,
    to: str,
    out: str | Path,
    *,
    precision: str = "fp32",
    preprocessing: bool = False,
    softmax: bool = False,
    top: int | None = None,
    calibration: np.ndarray | None = None,
    photos: np.ndarray | None = None,
    photos_name: str | None = None,
    digest: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Report:
    """As `export`, for a network that is at hand; it is used up.

    Args:
        network: on the CPU, fp32.
        checkpoint: what it is: its classes, labels and preprocessing.
        calibration, photos: uint8 pixels (N, crop, crop, 3).
        photos_name: what they are called in the report.
        digest: sha256 of the file that the weights are from.
    """
    import torch

    out = Path(out)
    how: dict[str, Any] = {"precision": precision, "preprocessing": preprocessing, "softmax": softmax, "top": top}
    target, signature, options = _check(checkpoint, to, out, calibration is not None, overwrite, how, options)
    start = time.perf_counter()
    photos, photos_name, calibration = _photos(checkpoint, photos, photos_name, calibration)
    part = temporary_name(out)
    part.mkdir(parents=True)
    try:
        with torch.device("cpu"), float32_by_default():
            expected = _logits(network, checkpoint, photos)
            metadata = describe(checkpoint, signature, precision, digest)
            job = Job(checkpoint, network, signature, precision, metadata, calibration, options)
            notes = target.write(job, part)
            runner = target.open(job, part)
            preset = checkpoint.preprocessing
            agreement = compare(runner.run, photos, expected, signature, preset, TOLERANCES[precision])
        if not agreement.is_exact:
            raise InexactError(
                f"{checkpoint.name} as {to} in {precision} is not exact: a logit differs by "
                f"{agreement.difference:.1e} of their range (on {photos_name}), more than the "
                f"{agreement.tolerance:.0e} allowed. Nothing was written."
            )
        _write_json(part / "metadata.json", metadata)
        report = Report(
            folder=out,
            variant=checkpoint.name,
            target=to,
            artefact=target.artefact,
            precision=precision,
            bytes=_size(part / target.artefact),
            runtime=runner.runtime,
            photos=photos_name,
            agreement=agreement,
            files=_hashes(part),
            notes=tuple(notes),
            seconds=round(time.perf_counter() - start, 2),
        )
        del runner  # has files in the folder open
        _write_json(part / "report.json", {k: v for k, v in dataclasses.asdict(report).items() if k != "folder"})
        publish(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return report


def _check(
    checkpoint: Checkpoint,
    to: str,
    out: Path,
    calibrated: bool,
    overwrite: bool,
    how: Mapping[str, Any],
    options: Mapping[str, Any],
) -> tuple[Target, Signature, dict[str, Any]]:
    """Find out what is wrong with arguments before weights are fetched and images are read for them."""
    if to not in TARGETS:
        raise ValueError(f"Unknown target {to!r}; choose from {', '.join(TARGETS)}.")
    target = TARGETS[to]
    precision = how["precision"]
    if precision not in target.precisions:
        raise ValueError(f"{to} does not support {precision!r}; choose from {', '.join(target.precisions)}.")
    if (precision == "int8") != calibrated:
        what = "int8 needs images: pass calibration=SOURCE" if precision == "int8" else "calibration=SOURCE is for int8"
        raise ValueError(f"{what}.")
    if unknown := sorted(options.keys() - target.options.keys()):
        raise UnknownOptionError(
            f"{to} has no option {unknown[0]!r}; its options: {', '.join(target.options) or 'none'}."
        )
    preset = checkpoint.preprocessing
    signature = Signature(
        preset.crop_size, checkpoint.num_classes, how["preprocessing"], softmax=how["softmax"], top=how["top"]
    )
    if lacking := missing(target.needs):
        raise ExportError(f"{to} needs {', '.join(lacking)}: {install('fast')}")
    if os.path.lexists(out) and not overwrite:
        raise ExportError(f"{out} exists. Choose another folder, or pass overwrite=True to replace it.")
    if overwrite and out.is_dir() and any(out.iterdir()) and not (out / "report.json").is_file():
        raise ExportError(
            f"{out} is not replaced: it was not written by an export (it has no report.json). Choose another folder."
        )
    if overwrite and out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file: an export is written to a folder.")
    chosen = target.defaults | dict(options)
    target.check(precision, chosen)
    return target, signature, chosen


def _photos(
    checkpoint: Checkpoint, photos: np.ndarray | None, name: str | None, calibration: np.ndarray | None
) -> tuple[np.ndarray, str, np.ndarray | None]:
    """The images to prove the export with, their name, and the images to calibrate on."""
    if photos is not None:
        return photos, name or "the images passed in", calibration
    if calibration is not None and len(calibration) > 8:
        held_out = np.arange(len(calibration)) % 9 == 8
        return calibration[held_out][:PHOTOS], "a held-out ninth of the calibration images", calibration[~held_out]
    return sample_photos(checkpoint.preprocessing, SAMPLES), SAMPLE, calibration


def _logits(network: ResNeXt, checkpoint: Checkpoint, pixels: np.ndarray) -> np.ndarray:
    """What the fp32 network answers, image by image: a batch of the largest would not fit."""
    import torch

    from ..inference.engines.graph import PixelNetwork

    whole = PixelNetwork(network.eval(), checkpoint.preprocessing)
    with torch.inference_mode():
        return np.concatenate([whole(torch.from_numpy(pixels[i : i + 1]))[0].numpy() for i in range(len(pixels))])


def _size(artefact: Path) -> int:
    """Of a file and what lies beside it under its name (model.onnx.data), or of all in a folder."""
    files = artefact.rglob("*") if artefact.is_dir() else artefact.parent.glob(f"{artefact.name}*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _hashes(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
