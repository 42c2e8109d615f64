"""torch.export programs (.pt2) and TorchScript: PyTorch opens both without this package."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .conversion import Conversion, Format, Runner

if TYPE_CHECKING:
    import numpy as np

EXTRA_FILE = "metadata.json"  # inside the artefact
USAGE = """\
with torch.inference_mode():
    outputs = {opened}(torch.from_numpy(batch))
outputs = [o.numpy() for o in (outputs if isinstance(outputs, tuple) else [outputs])]"""


def _runner(module: Any) -> Runner:
    import torch

    def run(batch: np.ndarray) -> Sequence[np.ndarray]:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(batch))
        return [output.numpy() for output in (outputs if isinstance(outputs, (tuple, list)) else [outputs])]

    return Runner(run, f"torch {torch.__version__}, CPU")


class TorchExportFormat(Format):
    """``model.pt2``, for ``torch.export.load(path).module()``. AOTInductor compiles it too."""

    name = "torch-export"
    artefact = "model.pt2"
    precisions = ("fp32", "fp16", "bf16")
    usage = USAGE.format(opened='torch.export.load("model.pt2").module()')

    def write(self, conversion: Conversion, folder: Path) -> Sequence[str]:
        import torch

        from ..inference.engines.export import exporters_silenced

        with torch.no_grad(), exporters_silenced():
            program = torch.export.export(
                conversion.module(), (conversion.example(),), dynamic_shapes=conversion.dynamic_shapes()
            )
            for node in program.graph.nodes:  # the Python stack, with the paths of this machine
                node.meta.pop("stack_trace", None)
            program.example_inputs = None
            extra = {EXTRA_FILE: json.dumps(conversion.metadata)}
            torch.export.save(program, folder / self.artefact, extra_files=extra)
        return []

    def open(self, conversion: Conversion, folder: Path) -> Runner:
        import torch

        from ..inference.engines.export import exporters_silenced

        with exporters_silenced():
            return _runner(torch.export.load(folder / self.artefact).module())


class TorchScriptFormat(Format):
    """``model.pt``, for ``torch.jit.load(path)``. libtorch runs it without Python."""

    name = "torchscript"
    artefact = "model.pt"
    precisions = ("fp32", "fp16", "bf16")
    usage = USAGE.format(opened='torch.jit.load("model.pt")')

    def write(self, conversion: Conversion, folder: Path) -> Sequence[str]:
        import torch

        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the deprecation, which the notes have, and assertions
            traced: Any = torch.jit.trace(  # the export itself checks it
                conversion.module(), (conversion.example(),), check_trace=False
            )
            torch.jit.save(traced, folder / self.artefact, _extra_files={EXTRA_FILE: json.dumps(conversion.metadata)})
        return ["TorchScript is deprecated in PyTorch; its successor is torch-export."]

    def open(self, conversion: Conversion, folder: Path) -> Runner:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _runner(torch.jit.load(str(folder / self.artefact)))
