"""Tools that show the figures of training runs: TensorBoard, MLflow, Weights & Biases.

What a tool sends, and where to, is the user's own configuration of it. A resumed run is a new one there, from its first
epoch on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..telemetry import import_quietly


class Logger(Protocol):
    """Is made for the folder of a run and the values of its recipe."""

    def __init__(self, out: Path, recipe: Mapping[str, Any]) -> None: ...

    def log(self, values: Mapping[str, float], epoch: int) -> None: ...

    def close(self, *, failed: bool) -> None: ...


class _TensorBoard:
    """Files in the folder ``tensorboard`` of the run."""

    def __init__(self, out: Path, recipe: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out / "tensorboard"))

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, epoch)
        self.writer.flush()

    def close(self, *, failed: bool) -> None:
        self.writer.close()


class _MLflow:
    """A run where MLFLOW_TRACKING_URI says, or else in ``mlflow.db`` of the working directory."""

    def __init__(self, out: Path, recipe: Mapping[str, Any]) -> None:
        self.mlflow = import_quietly("mlflow")
        run = self.mlflow.start_run(run_name=out.resolve().name, nested=self.mlflow.active_run() is not None)
        self.id = run.info.run_id
        self.mlflow.log_params(dict(recipe))

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        self.mlflow.log_metrics(dict(values), step=epoch, run_id=self.id)

    def close(self, *, failed: bool) -> None:
        self.mlflow.end_run("FAILED" if failed else "FINISHED")


class _WeightsAndBiases:
    """Online for a user who has logged in, or with WANDB_MODE=online; otherwise offline, in the folder ``wandb``."""

    def __init__(self, out: Path, recipe: Mapping[str, Any]) -> None:
        wandb = import_quietly("wandb")
        mode = None if "WANDB_MODE" in os.environ or wandb.login(prompt=False) else "offline"
        self.run = wandb.init(dir=out, name=out.resolve().name, config=dict(recipe), mode=mode)

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        self.run.log(dict(values), step=epoch)

    def close(self, *, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


#: By the name of the module that must be installed.
LOGGERS: dict[str, type[Logger]] = {"tensorboard": _TensorBoard, "mlflow": _MLflow, "wandb": _WeightsAndBiases}
