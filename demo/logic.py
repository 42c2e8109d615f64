"""What the page does, without the page: photos in, answers out. Knows nothing of Gradio."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import logging
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from ..errors import (
    EXIT_WEIGHTS,
    CheckpointError,
    EngineError,
    FetchError,
    ImageError,
    PrivateAddressError,
    ResNeXtHubError,
)
from ..evaluation.explain import Explanation, explain
from ..inference.classifier import Classifier, classifier
from ..models.manifest import Checkpoint, Preprocessing, find_checkpoint
from ..processing_utils.images import open_image
from ..processing_utils.predictions import Prediction, top_predictions
from ..processing_utils.preprocessing import crop_pixels
from ..processing_utils.uris import fetch, scheme_of

__all__ = [
    "Answer",
    "Limits",
    "Models",
    "PageError",
    "Row",
    "as_csv",
    "batch_rows",
    "classify",
    "fetch_photo",
    "overlay",
    "short_names",
]

log = logging.getLogger("resnext_hub")

MIB = 2**20
SCHEMES = ("http", "https", "data")  # of a stranger's URL: no files of this machine
OVERLAY_PIXELS = 448
TOGETHER = 8  # photos of a zip that pass the network together


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for at once. A zip's photos have the limits of single ones too."""

    image_bytes: int = 16 * MIB
    image_pixels: int = 50_000_000
    variants: int = 3
    top: int = 10
    fetch_seconds: float = 15.0
    zip_bytes: int = 64 * MIB
    zip_members: int = 200
    unpacked_bytes: int = 256 * MIB
    batch_seconds: float = 120.0


class PageError(ResNeXtHubError):
    """What a visitor is told: a key of texts.toml, what fills its gaps, and what the library says of it."""

    exit_code = EXIT_WEIGHTS

    def __init__(self, key: str, detail: str = "", **values: object) -> None:
        super().__init__(key, detail, values)
        self.key, self.detail, self.values = key, detail, values


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """The library's errors as what a visitor is told; what names files of this machine goes to the log alone."""
    try:
        yield
    except PrivateAddressError as error:
        raise PageError("error_private") from error
    except FetchError as error:
        raise PageError("error_url", str(error)) from error
    except ImageError as error:
        raise PageError("error_image", str(error)) from error
    except (CheckpointError, EngineError, OSError) as error:
        log.warning("demo: %s", error)
        raise PageError("error_weights") from error


class Models:
    """The variants that the page offers, opened when they are first asked for; of too many, the least used one goes.

    Args:
        variants: names or trainings' folders, as `find_checkpoint` takes them.
        engine: as of `inference.classifier.classifier`.
        kept: how many stay open.

    Raises:
        UnknownVariantError, ManifestError: no such variant.
        ValueError: no variant, or two of one name.
    """

    def __init__(self, variants: Sequence[str], engine: str = "auto", kept: int = 3) -> None:
        found = [find_checkpoint(variant) for variant in dict.fromkeys(variants)]
        self.checkpoints: dict[str, Checkpoint] = {checkpoint.name: checkpoint for checkpoint in found}
        if not found or len(self.checkpoints) != len(found):
            raise ValueError(
                f"Expected at least one variant, all with different names; got {', '.join(variants) or 'none'}."
            )
        self._engine, self._kept = engine, kept
        self._open: OrderedDict[str, Classifier] = OrderedDict()
        self._guard = threading.Lock()
        self._opening = {name: threading.Lock() for name in self.checkpoints}  # one may take minutes to be fetched

    def __getitem__(self, name: str) -> Classifier:
        """Raises PageError: not offered here, or its weights cannot be had."""
        if name not in self.checkpoints:
            raise PageError("error_variant")
        with self._opening[name]:
            with self._guard:
                if name in self._open:
                    self._open.move_to_end(name)
                    return self._open[name]
            with _told():
                opened = classifier(self.checkpoints[name].variant, engine=self._engine, progress=False)
            crop = opened.preset.crop_size
            opened.engine(
                np.zeros((1, crop, crop, 3), np.uint8)
            )  # the first call is slower, and would be what is shown
            with self._guard:
                self._open[name] = opened
                while len(self._open) > self._kept:
                    self._open.popitem(last=False)
            return opened


@dataclass(frozen=True)
class Answer:
    """What a variant says of a photo, best first; and what that took, in seconds."""

    variant: str
    predictions: list[Prediction]
    prepare_seconds: float
    network_seconds: float
    engine: str


def read_photo(data: bytes, limits: Limits) -> Image.Image:
    """A visitor's bytes as an upright RGB image.

    Raises:
        PageError: too big, or not an image that can be used.
    """
    if len(data) > limits.image_bytes:
        raise PageError("error_big", mib=limits.image_bytes // MIB)
    with _told():
        return open_image(data, max_pixels=limits.image_pixels, max_bytes=limits.image_bytes)


def fetch_photo(url: str, limits: Limits, fetch: Callable[..., bytes] = fetch) -> bytes:
    """What is behind a visitor's URL.

    Args:
        fetch: as `processing_utils.uris.fetch`, which refuses private addresses.

    Raises:
        PageError: refused, unreachable, too big.
    """
    url = url.strip()
    if not url:
        raise PageError("error_no_url")
    if scheme_of(url) is None:
        url = f"https://{url}"
    with _told():
        return fetch(url, schemes=SCHEMES, max_bytes=limits.image_bytes, timeout=limits.fetch_seconds)


def classify(models: Models, name: str, data: bytes, top: int, limits: Limits) -> Answer:
    """The ``top`` classes (fewer if the network has fewer) that a variant sees in an encoded photo.

    Raises:
        PageError: no photo, or no such variant.
    """
    model = models[name]
    start = time.perf_counter()
    photo = read_photo(data, limits)
    with _told():
        pixels = crop_pixels(photo, model.preset)
    prepared = time.perf_counter()
    logits, _ = model.engine(pixels[None])
    done = time.perf_counter()
    top = max(1, min(top, limits.top, len(model.labels)))
    predictions = top_predictions(logits, top, from_logits=True, labels=model.labels)[0]
    return Answer(name, predictions, prepared - start, done - prepared, model.engine.name)


def short_names(predictions: Sequence[Prediction]) -> list[str]:
    """A class's first name, which in ImageNet is not always its own: then with its synset (two are called crane)."""
    names = [p.label.split(",")[0] for p in predictions]
    return [
        f"{name} ({p.synset or p.index})" if names.count(name) > 1 else name
        for name, p in zip(names, predictions, strict=True)
    ]


def overlay(models: Models, name: str, data: bytes, index: int, limits: Limits) -> tuple[Explanation, bytes]:
    """Where a variant sees class ``index`` in a photo, and that as a JPEG: the crop that it looks at, under the heat.

    Raises:
        PageError: no photo, no such variant or class.
    """
    model = models[name]
    if not 0 <= index < len(model.labels):
        raise PageError("error_class")
    photo = read_photo(data, limits)
    with _told():
        found = explain(model, photo, index)
    file = io.BytesIO()
    Image.fromarray(_sharper(found, photo, model.preset).overlay).save(file, "JPEG", quality=85)
    return found, file.getvalue()


def _sharper(found: Explanation, photo: Image.Image, preset: Preprocessing) -> Explanation:
    """The same in more pixels than the network is given, of which a person makes out little."""
    side = min(photo.size) * preset.crop_size / preset.resize_size
    if preset.crop_size > preset.resize_size:  # the crop reaches over the edge
        return found
    x, y = (photo.width - side) / 2, (photo.height - side) / 2
    size = (OVERLAY_PIXELS, OVERLAY_PIXELS)
    pixels = np.asarray(photo.resize(size, Image.Resampling.BICUBIC, box=(x, y, x + side, y + side)))
    heat = np.asarray(Image.fromarray(found.heat).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    return dataclasses.replace(found, pixels=pixels, heat=heat)


@dataclass(frozen=True)
class Row:
    """A file of a zip: its predictions, best first, or why there are none."""

    image: str
    error: str = ""
    predictions: Sequence[Prediction] = ()


def open_zip(data: bytes, limits: Limits) -> list[zipfile.ZipInfo]:
    """The files in a zip that are to have a row; folders, and what macOS adds, are none.

    Raises:
        PageError: too big, too many, or no zip.
    """
    if len(data) > limits.zip_bytes:
        raise PageError("error_zip_big", mib=limits.zip_bytes // MIB)
    # Before a list of a million entries is made of them.
    if data.count(b"PK\x01\x02") > 10 * limits.zip_members:
        raise PageError("error_zip_many", count=limits.zip_members)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = [info for info in file.infolist() if not info.is_dir() and not _is_macos(info.filename)]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError) as error:
        raise PageError("error_zip", str(error)) from error
    if not members:
        raise PageError("error_zip_empty")
    if len(members) > limits.zip_members:
        raise PageError("error_zip_many", count=limits.zip_members)
    return members


def batch_rows(
    models: Models, name: str, data: bytes, top: int, limits: Limits, clock: Callable[[], float] = time.monotonic
) -> Iterator[Row]:
    """A row for every file of a zip, in its order. Nothing is unpacked to disk; a file that is no photo has an error.

    Raises:
        PageError: no such variant, or a zip that cannot be used.
    """
    members = open_zip(data, limits)
    model = models[name]
    end = clock() + limits.batch_seconds
    left = limits.unpacked_bytes
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        for start in range(0, len(members), TOGETHER):
            rows: list[Row] = []
            pixels: list[np.ndarray] = []
            for info in members[start : start + TOGETHER]:
                try:
                    if clock() > end:
                        raise ImageError(
                            f"Not classified: the time limit for one zip ({limits.batch_seconds:.0f} s) was reached."
                        )
                    content = _read_member(file, info, min(limits.image_bytes, left))
                    left -= len(content)
                    photo = open_image(content, max_pixels=limits.image_pixels, max_bytes=limits.image_bytes)
                    pixels.append(crop_pixels(photo, model.preset))
                    rows.append(Row(_name_of(info)))
                except ImageError as error:
                    rows.append(Row(_name_of(info), str(error)))
            found = iter(_predictions(model, pixels, top, limits))
            yield from (row if row.error else dataclasses.replace(row, predictions=next(found)) for row in rows)


def _predictions(model: Classifier, pixels: list[np.ndarray], top: int, limits: Limits) -> list[list[Prediction]]:
    if not pixels:
        return []
    logits, _ = model.engine(np.stack(pixels))
    return top_predictions(
        logits, max(1, min(top, limits.top, len(model.labels))), from_logits=True, labels=model.labels
    )


def _read_member(file: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """At most ``limit`` bytes of a member, whatever its header says. ImageError for whatever is wrong with it."""
    if PurePosixPath(info.filename).suffix.lower() in (".zip", ".7z", ".rar", ".tar", ".gz", ".tgz"):
        raise ImageError("Archives within the zip are not opened.")
    if info.flag_bits & 1:
        raise ImageError("The file is encrypted.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # LZMA's window takes what memory it says
        raise ImageError("The file uses an unsupported compression; expected zip's usual one, deflate.")
    try:
        with file.open(info) as member:
            content = member.read(limit + 1)
    except Exception as error:  # zlib's, struct's and zipfile's own, on a broken member
        raise ImageError(f"The file cannot be unpacked: {error}.") from error
    if len(content) > limit:
        raise ImageError(f"The unpacked file has more than the {limit:,} bytes allowed.")
    return content


def _is_macos(name: str) -> bool:
    path = PurePosixPath(name)
    return "__MACOSX" in path.parts or path.name == ".DS_Store"


def _name_of(info: zipfile.ZipInfo) -> str:
    """A member's name, cut to 255 characters. Without the UTF-8 flag zipfile reads code page 437, and Windows in Korea
    has written 949."""
    name = info.filename
    if not info.flag_bits & 0x800:
        for encoding in ("utf-8", "cp949"):
            with contextlib.suppress(UnicodeError):
                name = name.encode("cp437").decode(encoding)
                break
    return name[:255]


def as_csv(rows: Sequence[Row], top: int) -> bytes:
    """A line for every row: image, error, and label, synset and probability of each of the ``top`` classes.

    In UTF-8 with a byte-order mark, without which Excel does not show Hangul. A cell that a spreadsheet would take for
    a formula gets an apostrophe before it: the names in a zip may be a stranger's.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text)
    columns = [f"{column}_{i + 1}" for i in range(top) for column in ("label", "synset", "probability")]
    table.writerow(["image", "error", *columns])
    for row in rows:
        cells = [c for p in row.predictions for c in (p.label, p.synset or "", f"{p.probability:.6f}")]
        cells += [""] * (len(columns) - len(cells))
        table.writerow([_no_formula(cell) for cell in (row.image, row.error, *cells)])
    return text.getvalue().encode("utf-8-sig", errors="replace")


def _no_formula(cell: str) -> str:
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
