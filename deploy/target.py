"""What a target of an export is. `targets.TARGETS` has them by name."""

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

    from ..models.resnext import ResNeXt

__all__ = ["Job", "Runner", "Target"]


@dataclass(frozen=True)
class Job:
    """All that a target needs to write its artefact.

    Attributes:
        network: the fp32 network, on the CPU; it may be used up.
        precision: one of the target's.
        metadata: what `metadata.describe` gives; travels inside the artefact where the format has a place.
        calibration: uint8 pixels (N, crop, crop, 3), for int8; otherwise None.
        options: the target's own, every one of `Target.options`.
    """

    checkpoint: Checkpoint
    network: ResNeXt
    signature: Signature
    precision: str
    metadata: Mapping[str, Any]
    calibration: np.ndarray | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Runner:
    """An artefact, opened: a batch of the signature's input -> its outputs, and in what it runs."""

    run: Callable[[np.ndarray], Sequence[np.ndarray]]
    runtime: str


class Target(ABC):
    """A format that a network is exported to.

    Attributes:
        name: the target's.
        artefact: the file (or folder) in the export's folder that is run.
        precisions: what it takes.
        needs: packages.
        options: its own options: name -> (default, settings of argparse).
    """

    name: ClassVar[str]
    artefact: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    options: ClassVar[Mapping[str, tuple[Any, Mapping[str, Any]]]] = {}

    @property
    def defaults(self) -> dict[str, Any]:
        """Every option at its default."""
        return {name: default for name, (default, _) in self.options.items()}

    def check(self, precision: str, options: Mapping[str, Any]) -> None:
        """Raise ValueError or ExportError for what this target cannot do here, before weights are fetched for it."""
        return

    @abstractmethod
    def write(self, job: Job, folder: Path) -> Sequence[str]:
        """Write the artefact into an empty folder. Gives notes for the report: what could not be done here, and why."""

    @abstractmethod
    def open(self, job: Job, folder: Path) -> Runner:
        """Open what was written, as production does; the export is proven by what this answers."""
