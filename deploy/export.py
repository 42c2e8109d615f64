"""Export a variant to another format. The result gets its name only after it was compared with the network."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..data.photos import CALIBRATION, SAMPLE, read_photos, sample_photos
from ..errors import ExportError, InexactError, UnknownOptionError
from ..files import publish, sha256, temporary_name
from ..inference.engines.export import float32_by_default
from ..inference.engines.precision import TOLERANCES
from ..models.manifest import Checkpoint, Preprocessing, find_checkpoint
from ..mount import register
from ..packages import install, missing
from ..processing_utils.preprocessing import crop_pixels
from .conversion import Conversion, Format
from .formats import FORMATS
from .metadata import describe
from .readme import readme
from .signature import Signature
from .verify import Agreement, compare

if TYPE_CHECKING:
    from ..models.resnext import ResNeXt

PHOTOS = 64  # of the user's, to verify with
PHOTOS_OF_ANY_SIZE = 8  # the same if resizing is part of the artefact: they are kept at full size
SAMPLES = 8  # crops to verify with if the user passes no photos

#: The options of every format, with their defaults.
DEFAULTS = {
    "precision": "fp32", "preprocessing": False, "resize": False, "softmax": False, "top": None, "overwrite": False,
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """A verified export. ``report.json`` beside the artefact has the same content, without ``folder``."""

    folder: Path  #: contains the artefact, metadata.json, report.json, README.md and what the format adds
    variant: str
    format: str
    artefact: str  #: the name of the file in the folder that is run
    precision: str
    bytes: int  #: the size of the artefact and of the weights beside it
    runtime: str  #: the library and device that ran the artefact for the comparison
    photos: str  #: the images of the comparison, in words
    agreement: Agreement
    files: Mapping[str, str]  #: sha256 by name
    notes: tuple[str, ...]  #: what was not possible here, and why
    seconds: float

    @property
    def path(self) -> Path:
        return self.folder / self.artefact


register(Report)


def export(
    variant: str | Path,
    to: str,
    out: str | Path,
    *,
    calibration: str | Sequence[str] | None = None,
    photos: str | Sequence[str] | None = None,
    column: str | None = None,
    label_column: str | None = None,
    allow_private: bool = False,
    anonymous: bool = False,
    progress: bool = True,
    **options: Any,
) -> Report:
    """Export a variant with its weights and verify the artefact.

    The batch size is free. Inputs and outputs are float32 (or uint8 pixels) in every precision; see `Signature`.

    Args:
        variant: a published name, or a folder that training wrote.
        to: one of `formats.FORMATS`.
        out: the folder to write.
        calibration: images for int8, any source (docs/data.md). At most 512 are used, spread evenly.
        photos: images to verify the export with, at most 64. By default a ninth of the calibration images, which are
            then not used for calibration; without any, crops of a photo that is always available.
        column, label_column, allow_private, anonymous: see `data.photos.read_photos`.
        progress: show a bar while the weights are downloaded.
        options: precision, preprocessing, resize, softmax, top, overwrite and the format's own: see `export_network`.

    Raises:
        ValueError, UnknownOptionError: an argument is out of range, does not fit the format or does not exist.
        UnknownVariantError, CheckpointError: no such variant; its weights are not available.
        SourceError: no image can be read from ``photos`` or ``calibration``.
        InexactError: the outputs differ too much from the network's. Nothing is written.
        ExportError: a package is missing, or ``out`` exists. Nothing is written.
    """
    checkpoint = find_checkpoint(variant)
    _, signature, _ = _check(checkpoint, to, Path(out), calibration is not None, options)
    crop = partial(crop_pixels, preset=checkpoint.preprocessing)
    reading: dict[str, Any] = {"column": column, "label_column": label_column}
    reading |= {"private": allow_private, "anonymous": anonymous}
    limit, use = (PHOTOS_OF_ANY_SIZE, np.asarray) if signature.resize else (PHOTOS, crop)
    read: dict[str, Any] = {"photos": None if photos is None else read_photos(photos, limit, use, **reading)}
    if calibration is not None:
        read["calibration"] = np.stack(read_photos(calibration, CALIBRATION, crop, **reading))

    import torch

    from ..models.download import local_file
    from ..models.entrypoints import load

    with torch.device("cpu"), float32_by_default():
        _, digest = local_file(checkpoint, progress)
        network = load(checkpoint, progress=progress)
    name = photos if isinstance(photos, str) else ", ".join(photos or ())
    return export_network(network, checkpoint, to, out, digest=digest, photos_name=name, **read, **options)


def export_network(
    network: ResNeXt,
    checkpoint: Checkpoint,
    to: str,
    out: str | Path,
    *,
    calibration: np.ndarray | None = None,
    photos: Sequence[np.ndarray] | np.ndarray | None = None,
    photos_name: str = "the images passed in",
    digest: str | None = None,
    **options: Any,
) -> Report:
    """Export a network that is already loaded, as `export` does. The network is changed.

    Args:
        network: on the CPU, fp32.
        checkpoint: describes its classes, labels and preprocessing.
        calibration: uint8 pixels (N, crop, crop, 3).
        photos: the same, or with ``resize`` RGB images (height, width, 3) of any size.
        photos_name: the name of the photos in the report.
        digest: sha256 of the file with the weights.
        options: precision ("fp32"): also fp16, bf16 or int8, see the format's ``precisions``;
            preprocessing (False): the input is uint8 pixels (N, crop, crop, 3), which are normalised inside;
            resize (False): the pixels may have any size and are also resized and cropped inside;
            softmax (False): the output is probabilities instead of logits;
            top (None): the output is the ``top`` best scores and their classes;
            overwrite (False): replace ``out`` if it is an export;
            and the format's own.
    """
    import torch

    out = Path(out)
    kind, signature, own = _check(checkpoint, to, out, calibration is not None, options)
    precision, preset = options.get("precision", "fp32"), checkpoint.preprocessing
    start = time.perf_counter()
    if photos is None:
        photos, photos_name, calibration = _photos(signature, preset, calibration)
    batches, pixels = _batches(photos, signature, preset)
    part = temporary_name(out)
    part.mkdir(parents=True)
    try:
        with torch.device("cpu"), float32_by_default():
            expected = _logits(network, preset, pixels)
            metadata = describe(checkpoint, signature, precision, digest)
            conversion = Conversion(checkpoint, network, signature, precision, metadata, calibration, own)
            notes = kind.write(conversion, part)
            runner = kind.open(conversion, part)
            agreement = compare(runner.run, batches, expected, signature, TOLERANCES[precision])
        if not agreement.is_exact:
            raise InexactError(
                f"{checkpoint.name} as {to} in {precision} is not exact: a logit differs by "
                f"{agreement.difference:.1e} of their range (on {photos_name}), more than the "
                f"{agreement.tolerance:.0e} allowed. Nothing was written."
            )
        _write_json(part / "metadata.json", metadata)
        (part / "README.md").write_text(readme(kind, signature, metadata), encoding="utf-8")
        report = Report(
            folder=out,
            variant=checkpoint.name,
            format=to,
            artefact=kind.artefact,
            precision=precision,
            bytes=_size(part / kind.artefact),
            runtime=runner.runtime,
            photos=photos_name,
            agreement=agreement,
            files={str(f.relative_to(part)): sha256(f) for f in sorted(part.rglob("*")) if f.is_file()},
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
    checkpoint: Checkpoint, to: str, out: Path, calibrated: bool, options: Mapping[str, Any]
) -> tuple[Format, Signature, dict[str, Any]]:
    """(format, signature, the format's own options), checked before weights are downloaded and images are read."""
    if to not in FORMATS:
        raise ValueError(f"Unknown format {to!r}; choose from {', '.join(FORMATS)}.")
    kind = FORMATS[to]
    if unknown := sorted(options.keys() - DEFAULTS.keys() - kind.options.keys()):
        names = ", ".join(kind.options) or "none"
        raise UnknownOptionError(f"{to} has no option {unknown[0]!r}; its options: {names}.")
    chosen = {**DEFAULTS, **options}
    precision, overwrite = chosen["precision"], chosen["overwrite"]
    if precision not in kind.precisions:
        raise ValueError(f"{to} does not support {precision!r}; choose from {', '.join(kind.precisions)}.")
    if (precision == "int8") != calibrated:
        what = "int8 needs images: pass calibration=SOURCE" if precision == "int8" else "calibration=SOURCE is for int8"
        raise ValueError(f"{what}.")
    preset, resize = checkpoint.preprocessing, chosen["resize"]
    if resize and (not kind.resizes or preset.interpolation != "bilinear"):
        raise ValueError(f"{to} cannot resize inside ({preset.interpolation}): leave out resize.")
    inside = {"preprocessing": chosen["preprocessing"] or resize, "resize": resize}
    inside |= {"softmax": chosen["softmax"], "multi_label": checkpoint.multi_label, "top": chosen["top"]}
    signature = Signature(preset.crop_size, checkpoint.num_classes, **inside)
    if lacking := missing(kind.needs):
        raise ExportError(f"{to} needs {', '.join(lacking)}: {install(kind.extra)}")
    if os.path.lexists(out) and not overwrite:
        raise ExportError(f"{out} exists. Choose another folder, or pass overwrite=True to replace it.")
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file: an export is written to a folder.")
    if out.is_dir() and any(out.iterdir()) and not (out / "report.json").is_file():
        raise ExportError(f"{out} is not replaced: no export wrote it (it has no report.json). Choose another folder.")
    own = {name: chosen.get(name, default) for name, default in kind.defaults.items()}
    kind.check(precision, own)
    return kind, signature, own


def _photos(
    signature: Signature, preset: Preprocessing, calibration: np.ndarray | None
) -> tuple[Sequence[np.ndarray], str, np.ndarray | None]:
    """Return photos to verify with, their name, and the images that are left for calibration."""
    if calibration is not None and len(calibration) > 8:
        held_out = np.arange(len(calibration)) % 9 == 8
        photos = calibration[held_out][: PHOTOS_OF_ANY_SIZE if signature.resize else PHOTOS]
        return list(photos), "a held-out ninth of the calibration images", calibration[~held_out]
    if not signature.resize:
        return sample_photos(SAMPLES, partial(crop_pixels, preset=preset)), SAMPLE, calibration
    squares = sample_photos(30)[::7]  # of three sizes; portraits and landscapes are cut from them
    return [s[: len(s) * 3 // 4] if i % 2 else s[:, : len(s) // 2] for i, s in enumerate(squares)], SAMPLE, calibration


def _batches(
    photos: Sequence[np.ndarray] | np.ndarray, signature: Signature, preset: Preprocessing
) -> tuple[list[np.ndarray], np.ndarray]:
    """(inputs in batches of 1, 3 and then 4, to detect a batch size that is not free; the pixels in all).

    Raises InexactError if resizing inside the artefact would change pixels by more than 1 of 255.
    """
    if not signature.resize:
        pixels = np.stack([*photos])
        ends = [1, *range(4, len(pixels), 4)]
        return [signature.inputs_of(part, preset) for part in np.split(pixels, ends) if len(part)], pixels
    import torch

    from .deployed_network import ResizeAndCrop

    batches: list[np.ndarray] = []
    for photo in photos:  # images of one batch have one size, so they are mirror images of one photo
        mirrored = [photo, photo[:, ::-1], photo[::-1], photo[::-1, ::-1]]
        batches.append(np.stack(mirrored[: {0: 1, 1: 3}.get(len(batches), 4)]))
    resize = ResizeAndCrop(preset)
    pixels = np.concatenate([resize(torch.from_numpy(batch).float()).numpy() for batch in batches])
    reference = [crop_pixels(Image.fromarray(image), preset) for batch in batches for image in batch]
    if not (off := float(np.abs(pixels - np.stack(reference)).max())) < 1.01:
        raise InexactError(f"Resizing inside the artefact changes pixels by {off:.1f} of 255. Nothing was written.")
    return batches, pixels


def _logits(network: ResNeXt, preset: Preprocessing, pixels: np.ndarray) -> np.ndarray:
    """Return the logits of the fp32 network, computed image by image to limit memory."""
    import torch

    from ..inference.engines.graph import PixelNetwork

    original = PixelNetwork(network.eval(), preset)
    with torch.inference_mode():
        return np.concatenate([original(torch.from_numpy(image[None]))[0].numpy() for image in pixels])


def _size(artefact: Path) -> int:
    """Return the size of a file and of the weights beside it."""
    files = (artefact, artefact.with_name(f"{artefact.name}.data"), artefact.with_suffix(".bin"))
    return sum(file.stat().st_size for file in files if file.is_file())


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
