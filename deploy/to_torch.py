"""torch.export programs (.pt2) and TorchScript: what torch itself opens again, without this project."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .target import Job, Runner, Target

if TYPE_CHECKING:
    import numpy as np

__all__ = ["TorchExportTarget", "TorchScriptTarget", "example"]

log = logging.getLogger("resnext_hub")

EXTRA_FILE = "metadata.json"  # inside the artefact


def example(job: Job, count: int = 2) -> Any:
    """A batch that the signature's input takes, for tracing; two images, since one would be taken for a constant."""
    import torch

    spec = job.signature.input
    return torch.zeros(count, *spec.shape, dtype=getattr(torch, spec.dtype), device="cpu")


def _runner(module: Any) -> Runner:
    import torch

    def run(batch: np.ndarray) -> Sequence[np.ndarray]:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(batch))
        return [output.numpy() for output in (outputs if isinstance(outputs, (tuple, list)) else [outputs])]

    return Runner(run, f"torch {torch.__version__}, CPU")


class TorchExportTarget(Target):
    """``torch.export.load(path).module()``; also what AOTInductor compiles."""

    name = "torch-export"
    artefact = "model.pt2"
    precisions = ("fp32", "fp16", "bf16")

    def write(self, job: Job, folder: Path) -> Sequence[str]:
        import torch

        from ..inference.engines.export import exporters_silenced
        from .network import DTYPES, DeployedNetwork

        module = DeployedNetwork(job.network, job.checkpoint.preprocessing, job.signature, DTYPES[job.precision])
        with torch.no_grad(), exporters_silenced():
            program = torch.export.export(module, (example(job),), dynamic_shapes=({0: torch.export.Dim("images")},))
            for node in program.graph.nodes:  # Python's stack: this machine's paths, and a lot of it
                node.meta.pop("stack_trace", None)
            program.example_inputs = None
            extra = {EXTRA_FILE: json.dumps(job.metadata)}
            torch.export.save(program, folder / self.artefact, extra_files=extra)
        return []

    def open(self, job: Job, folder: Path) -> Runner:
        import torch

        from ..inference.engines.export import exporters_silenced

        with exporters_silenced():
            return _runner(torch.export.load(folder / self.artefact).module())


class TorchScriptTarget(Target):
    """``torch.jit.load(path)``, which needs no Python where libtorch runs it."""

    name = "torchscript"
    artefact = "model.pt"
    precisions = ("fp32", "fp16", "bf16")

    def write(self, job: Job, folder: Path) -> Sequence[str]:
        import torch

        from .network import DTYPES, DeployedNetwork

        _say_deprecated()
        module = DeployedNetwork(job.network, job.checkpoint.preprocessing, job.signature, DTYPES[job.precision])
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the deprecation, which was said; and asserts that tracing leaves out
            traced: Any = torch.jit.trace(module, (example(job),), check_trace=False)  # checked by the export itself
            torch.jit.save(traced, folder / self.artefact, _extra_files={EXTRA_FILE: json.dumps(job.metadata)})
        return ["TorchScript is deprecated in PyTorch; its successor is torch-export."]

    def open(self, job: Job, folder: Path) -> Runner:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _runner(torch.jit.load(str(folder / self.artefact)))


@cache
def _say_deprecated() -> None:
    log.warning("TorchScript is deprecated in PyTorch. It still works, but for new work use the target torch-export.")
