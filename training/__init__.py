"""Train and fine-tune networks: recipes as data, and the loop that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .run import FinishedRun

__all__ = ["finetune"]


def finetune(
    variant: str | Path,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    say: Callable[[str], object] = lambda line: None,
    changes: Mapping[str, Any] | None = None,
    **options: Any,
) -> FinishedRun:
    """Fine-tune a variant on your own images, as ``resnext-hub train`` does; call it again to resume a stopped run.

    Args:
        variant: the weights to start from: a variant's name, or the folder of another run.
        data: one or several sources of labelled images, such as a folder with one folder per class (docs/data.md).
        out: the folder of the run; afterwards a variant, as in ``classifier(out)``.
        say: called with each line of progress, for example ``print``.
        changes: values of the recipe to change, such as ``{"epochs": 3, "batch_size": 16}``.
        options: recipe, val, workers and the other fields of `RunOptions`.

    Returns:
        The finished run: its folder, its weights, its labels, its curve and its accuracy.

    Raises:
        ResNeXtHubError: the data, the variant or the folder cannot be used, or the loss is not finite.
        StoppedError: Ctrl-C or SIGTERM. A checkpoint was written.

    Example:
        >>> from resnext_hub.training import finetune
        >>> run = finetune("resnext50_32x4d", "flowers/", "runs/flowers", say=print)
        >>> run.top1
    """
    from .run import RunOptions, TrainingRun

    sources = [data] if isinstance(data, str | Path) else data
    made = RunOptions(data=tuple(map(str, sources)), out=Path(out), variant=variant, changes=changes or {}, **options)
    return TrainingRun(made, say).run()
