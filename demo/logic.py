"""The functions of the page, without the user interface: photos in, answers out. Does not import Gradio."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import logging
import threading
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from matplotlib import colormaps
from PIL import Image

from ..data.file_names import is_hidden
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
from ..models.store import Store
from ..processing_utils.images import open_image
from ..processing_utils.predictions import Prediction
from ..processing_utils.preprocessing import crop_pixels
from ..processing_utils.uris import fetch, scheme_of

log = logging.getLogger("resnext_hub")

MIB = 2**20
SCHEMES = ("http", "https", "data")  # of a stranger's URL: no files of this machine
OVERLAY_PIXELS = 448
PREVIEW_PIXELS, THUMBNAIL_PIXELS = 1024, 96
HEAT_STRENGTH = 0.85
TOGETHER = 8  # photos of a zip that pass the network together


@dataclass(frozen=True)
class Limits:
    """The limits of one request. The photos in a zip have the same limits as single photos."""

    image_bytes: int = 16 * MIB
    image_pixels: int = 60_000_000  # phones: 8160 x 6144
    variants: int = 3
    top: int = 10
    fetch_seconds: float = 15.0
    zip_bytes: int = 64 * MIB
    zip_members: int = 200
    unpacked_bytes: int = 256 * MIB
    batch_seconds: float = 120.0


class PageError(ResNeXtHubError):
    """An error that the page shows: a key of texts.toml, the values for its placeholders, and the library's message."""

    exit_code = EXIT_WEIGHTS

    def __init__(self, key: str, detail: str = "", **values: object) -> None:
        super().__init__(key, detail, values)
        self.key, self.detail, self.values = key, detail, values


@contextlib.contextmanager
def _explained(variant: str = "") -> Iterator[None]:
    """Turn the library's errors into a `PageError`; messages that name files of this machine are only logged."""
    try:
        yield
    except PrivateAddressError as error:
        raise PageError("error_private") from error
    except FetchError as error:
        raise PageError("error_url", str(error)) from error
    except ImageError as error:
        raise PageError("error_image") from error
    except (CheckpointError, EngineError, OSError) as error:
        log.warning("demo: %s", error)
        raise PageError("error_weights", variant=variant) from error


class Models:
    """The variants that the page offers. Each is opened at its first use; the least recently used are closed.

    Args:
        variants: names or trainings' folders, as `find_checkpoint` takes them.
        engine, device: as of `inference.classifier.classifier`.
        kept: how many stay open.

    Raises as `find_checkpoint`, and ValueError if there is no variant, or if two have one name.
    """

    def __init__(self, variants: Sequence[str], engine: str = "auto", kept: int = 3, device: str | None = None) -> None:
        found = [find_checkpoint(variant) for variant in dict.fromkeys(variants)]
        self.checkpoints: dict[str, Checkpoint] = {checkpoint.name: checkpoint for checkpoint in found}
        if not found or len(self.checkpoints) != len(found):
            names = ", ".join(variants) or "none"
            raise ValueError(f"Expected at least one variant, all with different names; got {names}.")
        self._how, self._kept = {"engine": engine, "device": device}, kept
        self._open: OrderedDict[str, Classifier] = OrderedDict()
        self._guard = threading.Lock()
        self._opening = {name: threading.Lock() for name in self.checkpoints}  # a download may take minutes

    def is_here(self, name: str) -> bool:
        """True if nothing has to be downloaded for the variant."""
        return Store().find(self.checkpoints[name]) is not None

    def is_open(self, name: str) -> bool:
        """True if the variant answers at once."""
        with self._guard:
            return name in self._open

    def __getitem__(self, name: str) -> Classifier:
        """Open a variant, unless it is open; PageError if it is not offered here, or has no weights."""
        if name not in self.checkpoints:
            raise PageError("error_variant")
        with self._opening[name]:
            with self._guard:
                if name in self._open:
                    self._open.move_to_end(name)
                    return self._open[name]
            with _explained(name):
                opened = classifier(self.checkpoints[name].variant, progress=False, **self._how)
            crop = opened.preset.crop_size
            opened.engine(np.zeros((1, crop, crop, 3), np.uint8))  # the first call is slower, and its time is shown
            with self._guard:
                self._open[name] = opened
                while len(self._open) > self._kept:
                    self._open.popitem(last=False)
            return opened


@dataclass(frozen=True)
class Answer:
    """A variant's predictions for a photo, best first, and the time that they took in seconds."""

    variant: str
    predictions: list[Prediction]
    prepare_seconds: float
    network_seconds: float
    engine: str


def read_photo(data: bytes, limits: Limits) -> Image.Image:
    """A visitor's bytes as an upright RGB image; PageError if that is not possible."""
    if len(data) > limits.image_bytes:
        raise PageError("error_big", mib=limits.image_bytes // MIB)
    pixels = _pixels(data)
    if pixels > limits.image_pixels:
        raise PageError("error_pixels", pixels=round(pixels / 1e6), limit=limits.image_pixels // 10**6)
    with _explained():
        return open_image(data, max_pixels=limits.image_pixels, max_bytes=limits.image_bytes)


def _pixels(data: bytes) -> int:
    """The number of pixels that a photo's header states, without decoding; 0 if it states none."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
            return image.width * image.height
    except Exception:  # `open_image` says what is wrong
        return 0


def shrunk(photo: Image.Image, pixels: int = PREVIEW_PIXELS) -> bytes:
    """A photo as a small JPEG: a browser may not show its own format (TIFF)."""
    small = photo.copy()
    small.thumbnail((pixels, pixels))
    return _jpeg(small)


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def fetch_photo(url: str, limits: Limits, fetch: Callable[..., bytes] = fetch) -> bytes:
    """Download the photo at a visitor's URL with ``fetch``, which refuses private addresses."""
    url = url.strip()
    if not url:
        raise PageError("error_no_url")
    if scheme_of(url) is None:
        url = f"https://{url}"
    with _explained():
        return fetch(url, schemes=SCHEMES, max_bytes=limits.image_bytes, timeout=limits.fetch_seconds)


def classify(models: Models, name: str, data: bytes, top: object, limits: Limits) -> Answer:
    """The ``top`` classes (fewer if the network has fewer) that a variant predicts for an encoded photo."""
    model = models[name]
    start = time.perf_counter()
    photo = read_photo(data, limits)
    with _explained():
        pixels = crop_pixels(photo, model.preset)
    prepared = time.perf_counter()
    logits, _ = model.engine(pixels[None])
    done = time.perf_counter()
    top = count_of(top, min(limits.top, len(model.labels)))
    predictions = model.predictions_of(logits, top)[0]
    return Answer(name, predictions, prepared - start, done - prepared, model.engine.name)


def count_of(top: object, most: int) -> int:
    """The number of classes to show, 1 to ``most``, from what a visitor has typed, which may be 2.5 or nothing."""
    try:
        return max(1, min(round(float(str(top))), most))
    except (ValueError, OverflowError):
        return min(5, most)


def short_names(predictions: Sequence[Prediction]) -> list[str]:
    """A class's first name, which in ImageNet is not always its own: then with its synset (two are called crane)."""
    names = [p.label.split(",")[0] for p in predictions]
    return [
        f"{name} ({p.synset or p.index})" if names.count(name) > 1 else name
        for name, p in zip(names, predictions, strict=True)
    ]


def key_of(prediction: Prediction) -> str:
    """The key of a class in several variants: its synset, or its name where it has none."""
    return prediction.synset or prediction.label or str(prediction.index)


def index_of(model: Classifier, key: str) -> int | None:
    """A variant's number of the class that `key_of` names; None if it does not know that class."""
    for index, label in enumerate(model.labels):
        if key in ((label,) if isinstance(label, str) else (label.synset, label.name)):
            return index
    return None


@dataclass(frozen=True)
class Picture:
    """The centre crop that a variant looks at, and the same with the heat map of a class, both as JPEG."""

    label: str
    probability: float
    has_heat: bool
    crop: bytes
    overlay: bytes


def picture(models: Models, name: str, data: bytes, index: int, limits: Limits) -> Picture:
    """The heat map of class ``index`` in a photo."""
    model = models[name]
    if not 0 <= index < len(model.labels):
        raise PageError("error_class")
    photo = read_photo(data, limits)
    with _explained(name):
        found = explain(model, photo, index)
    sharp = _sharper(found, photo, model.preset)
    # The stronger the heat, the less of the photo is seen through it. Inferno's lightness rises evenly.
    strength = HEAT_STRENGTH * sharp.heat[..., None]
    heat = 255 * colormaps["inferno"](0.15 + 0.85 * sharp.heat)[..., :3]
    mixed = np.rint((1 - strength) * sharp.pixels + strength * heat).astype(np.uint8)
    crop, overlay = (_jpeg(Image.fromarray(pixels)) for pixels in (sharp.pixels, mixed))
    label = found.label.split(",")[0] or str(found.index)
    return Picture(label, found.probability, bool(found.heat.any()), crop, overlay)


def _sharper(found: Explanation, photo: Image.Image, preset: Preprocessing) -> Explanation:
    """Enlarge the crop from the original photo: the network's own input is too small for a person to see much."""
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
    thumbnail: bytes = b""


def open_zip(data: bytes, limits: Limits) -> list[zipfile.ZipInfo]:
    """The files in a zip that get a row, without folders and hidden files; PageError if it is too big or no zip."""
    if len(data) > limits.zip_bytes:
        raise PageError("error_zip_big", mib=limits.zip_bytes // MIB)
    # Before zipfile makes a list of a million entries.
    if data.count(b"PK\x01\x02") > 10 * limits.zip_members:
        raise PageError("error_zip_many", count=limits.zip_members)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            files = [info for info in file.infolist() if not info.is_dir()]
            # "." and ".." are not names that begin with a dot.
            parts = [[part for part in info.filename.split("/") if part.strip(".")] for info in files]
            members = [info for info, names in zip(files, parts, strict=True) if not any(map(is_hidden, names))]
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
    """A row for every file of a zip, in its order. Nothing is unpacked to disk; what is no photo gets an error."""
    members = open_zip(data, limits)
    model = models[name]
    top = count_of(top, min(limits.top, len(model.labels)))
    end = clock() + limits.batch_seconds
    left = limits.unpacked_bytes
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        for start in range(0, len(members), TOGETHER):
            rows: list[Row] = []
            pixels: list[np.ndarray] = []
            for info in members[start : start + TOGETHER]:
                try:
                    if clock() > end:
                        raise ImageError(f"Not classified: a zip may take {limits.batch_seconds:.0f} s.")
                    content = _read_member(file, info, min(limits.image_bytes, left))
                    left -= len(content)
                    photo = open_image(content, max_pixels=limits.image_pixels, max_bytes=limits.image_bytes)
                    pixels.append(crop_pixels(photo, model.preset))
                    rows.append(Row(_name_of(info), thumbnail=shrunk(photo, THUMBNAIL_PIXELS)))
                except ImageError as error:
                    rows.append(Row(_name_of(info), str(error)))
            logits = model.engine(np.stack(pixels))[0] if pixels else np.empty((0, len(model.labels)))
            found = iter(model.predictions_of(logits, top))
            yield from (row if row.error else dataclasses.replace(row, predictions=next(found)) for row in rows)


def _read_member(file: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """At most ``limit`` bytes of a member, whatever its header says. ImageError for whatever is wrong with it."""
    if PurePosixPath(info.filename).suffix.lower() in (".zip", ".7z", ".rar", ".tar", ".gz", ".tgz"):
        raise ImageError("Archives within the zip are not opened.")
    if info.flag_bits & 1:
        raise ImageError("The file is encrypted.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # LZMA allocates what the file states
        raise ImageError("The file uses an unsupported compression; expected zip's usual one, deflate.")
    try:
        with file.open(info) as member:
            content = member.read(limit + 1)
    except Exception as error:  # zlib's, struct's and zipfile's own, on a broken member
        raise ImageError(f"The file cannot be unpacked: {error}.") from error
    if len(content) > limit:
        raise ImageError(f"The unpacked file has more than the {limit:,} bytes allowed.")
    return content


def _name_of(info: zipfile.ZipInfo) -> str:
    """A member's name, cut to 255 characters.

    Without the UTF-8 flag zipfile reads code page 437, and Windows in Korea has written 949.
    """
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
        cells = [row.image, row.error, *cells]
        table.writerow([f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell for cell in cells])
    return text.getvalue().encode("utf-8-sig", errors="replace")


def as_json(answers: Sequence[Answer]) -> bytes:
    """The answers of all variants: for each its name, and its classes with synset and probability."""

    def about(p: Prediction) -> dict[str, object]:
        return {"label": p.label, "synset": p.synset, "index": p.index, "probability": round(p.probability, 6)}

    found = [{"variant": one.variant, "predictions": list(map(about, one.predictions))} for one in answers]
    return json.dumps(found, ensure_ascii=False, indent=1).encode()
