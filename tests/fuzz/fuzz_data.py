"""Coverage-guided fuzzing of archives, tables and lists: python tests/fuzz/fuzz_data.py [options] [corpus ...]

The first line of an input is the file's suffix. See README.md beside this file.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

import atheris

for name in ("zipfile", "gzip", "lzma", "csv", "json.decoder"):  # atheris itself may have imported them
    sys.modules.pop(name, None)
with atheris.instrument_imports(include=["resnext_hub.data", "zipfile", "gzip", "lzma", "csv", "json"]):
    import seeds
    import targets

SUFFIXES = sorted({name.partition(".")[2] for name, _ in seeds.sources()})
FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-data-")
NUMBERS = itertools.count()


def one(data: bytes) -> None:
    suffix, _, content = data.partition(b"\n")
    if suffix.decode("latin-1") not in SUFFIXES:
        return
    path = Path(FOLDER.name) / f"{next(NUMBERS)}.{suffix.decode()}"  # a new name: tables are remembered by theirs
    path.write_bytes(content)
    try:
        targets.read_source(path)
    except BaseException:
        print("FOUND", repr(data), flush=True)  # libFuzzer does not always get to write its file
        raise
    finally:
        path.unlink()


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    suffix, line, content = data.partition(b"\n")
    mutated = atheris.Mutate(content, max_size - len(suffix) - 1)
    return suffix + line + (targets.repair_tar(mutated) if suffix == b"tar" else mutated)


if __name__ == "__main__":
    targets.quietly()
    atheris.Setup(seeds.arguments("data", sys.argv), one, custom_mutator=mutate)
    atheris.Fuzz()
