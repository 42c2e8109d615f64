"""Coverage-guided fuzzing: python tests/fuzz/fuzz.py KIND [libFuzzer's options] [corpus ...], see README.md beside it.

KIND is image, uri or data. Of uri nothing is sent: see `targets.Peer`.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from pathlib import Path

import atheris

# Of each kind: what is instrumented, and what of it must be imported again, since atheris imported it.
INSTRUMENTED = {
    "image": (["PIL", "resnext_hub"], []),
    "uri": (["resnext_hub", "validators", "urllib", "http", "ipaddress", "encodings"], ["urllib.parse", "ipaddress"]),
    "data": (
        ["resnext_hub.data", "zipfile", "gzip", "lzma", "csv", "json"],
        ["zipfile", "gzip", "lzma", "csv", "json.decoder"],
    ),
}
KIND = sys.argv.pop(1)
for name in INSTRUMENTED[KIND][1]:
    sys.modules.pop(name, None)
with atheris.instrument_imports(include=INSTRUMENTED[KIND][0]):
    import seeds
    import targets
    import validators  # noqa: F401  imported late by the package
    from PIL import Image

    Image.init()

SUFFIXES = sorted({name.partition(".")[2] for name, _ in seeds.sources()})
FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-data-")
NUMBERS = itertools.count()


def read_source(data: bytes) -> None:
    """Read a file whose suffix is the first line of ``data``."""
    suffix, _, content = data.partition(b"\n")
    if suffix.decode("latin-1") in SUFFIXES:
        path = Path(FOLDER.name) / f"{next(NUMBERS)}.{suffix.decode()}"  # a new name: tables are remembered by theirs
        path.write_bytes(content)
        try:
            targets.read_source(path)
        finally:
            path.unlink()


TARGET = {"image": targets.prepare_image, "uri": targets.fetch_uri, "data": read_source}[KIND]


def one(data: bytes) -> None:
    try:
        TARGET(data)
    except BaseException:
        print("FOUND", repr(data), flush=True)  # libFuzzer does not always get to write its file
        raise


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    suffix, line, content = data.partition(b"\n") if KIND == "data" else (b"", b"", data)
    mutated = atheris.Mutate(content, max_size - len(suffix + line))
    repaired = targets.repair(mutated) if KIND == "image" else mutated
    return (suffix + line + (targets.repair_tar(mutated) if suffix == b"tar" else repaired))[:max_size]


if __name__ == "__main__":
    targets.quietly()
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    atheris.Setup(seeds.arguments(KIND, sys.argv), one, custom_mutator=mutate)
    with targets.quick_tls():
        atheris.Fuzz()
