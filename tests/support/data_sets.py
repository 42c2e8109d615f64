"""Small files of every kind that `data/` reads: images, archives, tables."""

from __future__ import annotations

import functools
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from .made_runs import jpeg

FRUIT = ("apple", "pear", "pear", "apple", "fig", "pear")


@functools.cache
def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


NUMBER = {picture(i): i for i in range(len(FRUIT))}


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fruit(top: Path, split: str = "") -> Path:
    """The images in class folders; read in the order of their folders they are 0, 3, 4, 1, 5, 2."""
    for i, name in enumerate(FRUIT):
        write(top / split / name / ("deep/er" if i == 2 else "") / f"{i}.png", picture(i))
    return top


def members(prefix: str = "", labels: str = "") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for i, name in enumerate(FRUIT):
        if labels == "cls":
            found |= {f"{i}.cls": name.encode(), f"{i}.png": picture(i)}
        elif labels == "json":
            found |= {f"{i}.png": picture(i), f"{i}.json": json.dumps({"width": 16, "label": name}).encode()}
        else:
            found[f"{prefix}{name}/{i}.png"] = picture(i)
    return found


def tar(path: Path, content: dict[str, bytes], compress: Callable[[bytes], bytes] = bytes, **options: Any) -> Path:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return write(path, compress(file.getvalue()))


def zipped(path: Path, content: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def images() -> list[bytes]:
    return [picture(i) for i in range(len(FRUIT))]


def table(path: Path, columns: dict[str, Any], metadata: dict[str, Any] | None = None) -> Path:
    made = pa.table(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    if metadata:
        made = made.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(made, path, row_group_size=4)
    return path


NAMES = ["pear", "fig", "apple"]
CLASS_LABEL = {"info": {"features": {"label": {"_type": "ClassLabel", "names": NAMES}}}}
NUMBERS = [NAMES.index(name) for name in FRUIT]


#: The images of `photo_folder`, in their order.
ORDER = ["0.jpg", "2.jpg", "4.jpg", "5.jpg", "6.jpg", "b/1.jpg", "b/3.jpg", "b/5.jpg"]


def photo_folder(path: Path) -> Path:
    """Seven images and one that is broken, in two folders, among files that are no images."""
    for i in range(7):
        write(path / ("b" if i % 2 else "") / f"{i}.jpg", jpeg(i))
    write(path / "5.jpg", jpeg(5)[:200])
    write(path / "notes.txt", "nothing")
    write(path / ".hidden.jpg", b"")
    return path


def tar_of(folder: Path, path: Path, mode: str = "w") -> Path:
    """The images of `photo_folder` in an archive, each with a label file."""
    with tarfile.open(path, mode) as archive:
        for name in ORDER:
            archive.add(folder / name, name)
            archive.add(folder / "notes.txt", name.replace("jpg", "cls"))
    return path
