"""The base class of export formats, and the data that a format takes and returns. `formats.FORMATS` lists them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..models.manifest import Checkpoint
from .signature import Signature

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..models.resnext import ResNeXt
    from .deployed_network import DeployedNetwork


@dataclass(frozen=True)
class Conversion:
    """Everything that a format needs to write its artefact."""

    checkpoint: Checkpoint
    network: ResNeXt  #: fp32, on the CPU; writing changes it
    signature: Signature
    precision: str  #: one of the format's
    metadata: Mapping[str, Any]  #: of `metadata.describe`; stored inside the artefact if the format has a place for it
    calibration: np.ndarray | None = None  #: uint8 pixels (N, crop, crop, 3) for int8; otherwise None
    options: Mapping[str, Any] = field(default_factory=dict)  #: a value for each of `Format.options`

    def module(self, lanes: int = 1) -> DeployedNetwork:
        """Return the module to export; it takes over the network."""
        from .deployed_network import DTYPES, DeployedNetwork

        return DeployedNetwork(
            self.network, self.checkpoint.preprocessing, self.signature, DTYPES[self.precision], lanes
        )

    def example(self) -> torch.Tensor:
        """Return a batch to trace with. It has two images because exporters take a size of 1 for a constant."""
        import torch

        spec = self.signature.input
        sides = (7 + 2 * i if side is None else side for i, side in enumerate(spec.shape))
        return torch.zeros(2, *sides, dtype=getattr(torch, spec.dtype), device="cpu")

    def dynamic_shapes(self) -> tuple[dict[int, Any]]:
        """Return the free dimensions of the input, for torch's exporters."""
        import torch

        names = {0: "images"} | {i: f"side{i}" for i, side in enumerate(self.signature.input.shape, 1) if side is None}
        return ({i: torch.export.Dim(name) for i, name in names.items()},)


@dataclass(frozen=True)
class Runner:
    """An opened artefact: ``run`` takes a batch and returns the outputs; ``runtime`` names library and device."""

    run: Callable[[np.ndarray], Sequence[np.ndarray]]
    runtime: str


class Format(ABC):
    """A file format that a network can be exported to."""

    name: ClassVar[str]  #: the value of ``--to``
    artefact: ClassVar[str]  #: the file in the export's folder that is run
    precisions: ClassVar[tuple[str, ...]]
    needs: ClassVar[tuple[str, ...]] = ("torch",)  #: modules that must be installed
    extra: ClassVar[str] = "deploy"  #: the extra of this package that installs them
    resizes: ClassVar[bool] = True  #: True if resizing can be part of the artefact
    options: ClassVar[Mapping[str, tuple[Any, Mapping[str, Any]]]] = {}  #: name -> (default, settings for argparse)
    usage: ClassVar[str]  #: for the README: Python code that turns ``batch`` into ``outputs``, a list of arrays

    @property
    def defaults(self) -> dict[str, Any]:
        return {name: default for name, (default, _) in self.options.items()}

    def check(self, precision: str, options: Mapping[str, Any]) -> None:
        """Raise ValueError or ExportError for anything that this format cannot do here. Runs before any download."""
        return

    @abstractmethod
    def write(self, conversion: Conversion, folder: Path) -> Sequence[str]:
        """Write the artefact into an empty folder; return notes for the report about what was not possible here."""

    @abstractmethod
    def open(self, conversion: Conversion, folder: Path) -> Runner:
        """Open the artefact as production does. The export is verified with what this returns."""
