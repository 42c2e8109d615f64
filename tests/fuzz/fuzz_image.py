"""Coverage-guided fuzzing of the decoders: python tests/fuzz/fuzz_image.py [libFuzzer's options] [corpus ...]

See README.md beside this file.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["PIL", "resnext_hub"]):
    import seeds
    import targets
    from PIL import Image

    Image.init()


def one(data: bytes) -> None:
    try:
        targets.prepare_image(data)
    except BaseException:
        print("FOUND", repr(data), flush=True)  # libFuzzer does not always get to write its file
        raise


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    mutated = targets.repair(atheris.Mutate(data, max_size))
    return mutated if len(mutated) <= max_size else mutated[:max_size]


if __name__ == "__main__":
    targets.quietly()
    atheris.Setup(seeds.arguments("image", sys.argv), one, custom_mutator=mutate)
    atheris.Fuzz()
