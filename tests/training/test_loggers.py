"""Loggers get every epoch, also those before a stop, and cannot stop a training. (The real ones: test_telemetry.py.)"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from resnext_hub.cli import main
from resnext_hub.errors import MissingPackageError
from resnext_hub.training import display
from resnext_hub.training.display import Display
from resnext_hub.training.loop import COLUMNS
from resnext_hub.training.run import RunOptions


class Recorder:
    """A logger whose server can be away."""

    away = False
    made: list[Recorder] = []  # noqa: RUF012

    def __init__(self, out: Path, recipe: Mapping[str, Any]) -> None:
        self.out, self.recipe, self.rows, self.failed = out, recipe, list[tuple[int, Any]](), None
        self.made.append(self)

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        if self.away:
            raise ConnectionError("no server")
        self.rows.append((epoch, dict(values)))

    def close(self, *, failed: bool) -> None:
        self.failed = failed


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setattr(Recorder, "made", [])
    monkeypatch.setitem(display.LOGGERS, "recorder", Recorder)
    return Recorder


def epochs(out: Path, numbers: list[int]) -> None:
    """Show epochs, as a run does after the ones that log.csv has; ``val_top1`` is not known."""
    with Display(out, 8, shown=True, loggers=["recorder"], recipe={"lr": 0.1}) as shown:
        for number in numbers:
            rows = [dict.fromkeys(COLUMNS, 0.5) | {"epoch": n, "val_top1": float("nan")} for n in range(1, number + 1)]
            with open(out / "log.csv", "w", newline="") as file:
                writer: csv.DictWriter[str] = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
            shown("epoch", rows[-1])


def test_a_logger_gets_each_epoch_once(tmp_path: Path) -> None:
    epochs(tmp_path, [1, 2])
    epochs(tmp_path, [3])  # resumed
    first, second = Recorder.made
    assert [epoch for epoch, _ in first.rows] == [1, 2]
    assert [epoch for epoch, _ in second.rows] == [1, 2, 3]
    assert first.rows[0][1].keys() == set(COLUMNS) - {"epoch", "val_top1"}
    assert (first.out, first.recipe, first.failed) == (tmp_path, {"lr": 0.1}, False)
    with Display(tmp_path, 8, shown=True, loggers=["recorder"]) as shown:
        shown("epoch", dict.fromkeys(COLUMNS, 1.0))
        shown.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        assert Recorder.made[2].failed is True


def test_training_goes_on_without_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Recorder, "away", True)
    epochs(tmp_path, [1, 2])
    assert caplog.messages == ["recorder gets no more epochs: no server"]
    assert (tmp_path / "curves.png").exists()


def test_a_logger_that_is_not_installed_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("resnext_hub.training.run.missing", lambda names: set(names) - {"tensorboard"})
    with pytest.raises(MissingPackageError, match="pip install wandb"):
        RunOptions(data=("nowhere",), out=tmp_path / "out", variant="resnext_tiny", loggers=["wandb"])
    with pytest.raises(ValueError, match="Unknown logger 'x'"):
        RunOptions(data=("nowhere",), out=tmp_path / "out", variant="resnext_tiny", loggers=["x"])
    start = ["train", "--variant", "resnext_tiny", "--data", "nowhere", "--out", str(tmp_path / "out")]
    assert main([*start, "--log", "tensorboard", "mlflow"]) != 0
    assert "mlflow-skinny" in capsys.readouterr().err
