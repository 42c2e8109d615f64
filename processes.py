"""The processes that torchrun started, or this one alone.

Imports nothing else of this package, and torch only when there are several.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Processes:
    """The place of this process among those that work together."""

    rank: int = 0  #: its number
    world: int = 1  #: how many there are on all machines
    local: int = 0  #: its number on this machine
    local_world: int = 1  #: how many there are on this machine

    @classmethod
    def here(cls) -> Processes:
        """Read torchrun's environment variables; without them, this process is the only one."""
        names = {"rank": "RANK", "world": "WORLD_SIZE", "local": "LOCAL_RANK", "local_world": "LOCAL_WORLD_SIZE"}
        return cls(**{field: int(os.environ[name]) for field, name in names.items() if name in os.environ})

    @property
    def first(self) -> bool:
        """True in the process that writes and prints for all."""
        return self.rank == 0

    def has(self, number: int) -> bool:
        """True if the item of that number is this process's: each takes every ``world``-th."""
        return number % self.world == self.rank

    @property
    def device(self) -> torch.device:
        """This process's GPU, or the CPU."""
        import torch

        return torch.device("cuda", self.local) if torch.cuda.is_available() else torch.device("cpu")

    @contextlib.contextmanager
    def joined(self, timeout: datetime.timedelta, *, gpu: bool = False) -> Iterator[None]:
        """Connect the processes while the block runs; they wait ``timeout`` for the slowest.

        ``gpu`` exchanges tensors on the GPUs, where there are any; otherwise on the CPU.
        """
        if self.world == 1:
            yield
            return
        import torch
        import torch.distributed as dist

        gpu = gpu and torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(self.local)
        dist.init_process_group("nccl" if gpu else "gloo", timeout=timeout)
        try:
            yield
        finally:
            dist.destroy_process_group()
            gc.collect()  # training leaves cycles that hold the group; its threads could abort Python when it exits

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank; waits for all. RuntimeError if another process has ended."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def total(self, *values: float) -> list[float]:
        """The sum of each value over the processes."""
        if self.world == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        shared = torch.tensor(
            values, dtype=torch.float64, device=self.device if dist.get_backend() == "nccl" else "cpu"
        )
        dist.all_reduce(shared)
        return shared.tolist()

    def any(self, flag: bool) -> bool:
        """True in all processes if ``flag`` is true in one."""
        return self.total(float(flag))[0] > 0
