"""Coverage-guided fuzzing of the way of a URI: python tests/fuzz/fuzz_uri.py [libFuzzer's options] [corpus ...]

Nothing is sent: see `targets.Peer` and README.md beside this file.
"""

from __future__ import annotations

import os
import sys

import atheris

for name in ("urllib.parse", "ipaddress"):  # atheris itself has imported them
    sys.modules.pop(name, None)
with atheris.instrument_imports(include=["resnext_hub", "validators", "urllib", "http", "ipaddress", "encodings"]):
    import seeds
    import targets
    import validators  # noqa: F401  imported late by the package


def one(data: bytes) -> None:
    try:
        targets.fetch_uri(data)
    except BaseException:
        print("FOUND", repr(data), flush=True)  # libFuzzer does not always get to write its file
        raise


if __name__ == "__main__":
    targets.quietly()
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    atheris.Setup(seeds.arguments("uri", sys.argv), one)
    with targets.quick_tls():
        atheris.Fuzz()
