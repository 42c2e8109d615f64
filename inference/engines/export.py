"""A network -> ONNX, from which engines are built."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...models.manifest import Preprocessing
from .precision import computes_int8

if TYPE_CHECKING:
    from ...models.resnext import ResNeXt


def export_onnx(
    network: ResNeXt,
    preset: Preprocessing,
    folder: Path,
    lanes: int | None = None,
    calibration: np.ndarray | None = None,
) -> Path:
    """Write the rewritten network with a free batch size; the weights are in files of their own, as ONNX holds 2 GB.

    Args:
        lanes: see `graph.fold`; by default the float32 values in a vector register.
        calibration: uint8 pixels (N, crop, crop, 3) to quantise the network to int8 with.
    """
    import torch

    from .graph import rewrite

    folder.mkdir()
    module = rewrite(network, preset, lanes or _lanes())
    if calibration is not None:
        from .int8 import equalise

        equalise(module, calibration)
    pixels = torch.zeros(2, preset.crop_size, preset.crop_size, 3, dtype=torch.uint8, device="cpu")
    with exporters_silenced():
        torch.onnx.export(
            module,
            (pixels,),
            folder / "model.onnx",
            dynamo=True,
            opset_version=20,
            dynamic_shapes=({0: torch.export.Dim("images")},),
            input_names=["pixels"],
            output_names=["logits", "features"],
            external_data=True,
            verbose=False,
        )
    if calibration is None:
        return folder / "model.onnx"
    from .int8 import quantise

    exact, int8 = folder / "model.onnx", folder / "int8.onnx"
    quantise(exact, int8, calibration, not computes_int8(), external=True, everything=True)
    return int8


@contextlib.contextmanager
def exporters_silenced() -> Iterator[None]:
    """Silence torch's exporters: they print, and warn of their own deprecated parts; a user can change neither."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def float32_by_default() -> Iterator[None]:
    """Set torch's default dtype to float32 inside the block, whatever the user's is."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@cache
def instruction_sets() -> tuple[str, ...]:
    """Return the vector instruction sets of this processor, by numpy's names."""
    simd: Any = np.show_config(mode="dicts")
    return tuple(simd.get("SIMD Extensions", {}).get("found", ()))  # no key if there is none beyond the baseline


def _lanes() -> int:
    """The number of float32 values in a vector register."""
    return 16 if any(name == "X86_V4" or name.startswith("AVX512") for name in instruction_sets()) else 8
