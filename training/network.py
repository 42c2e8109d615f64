"""What training starts from: a network, new or with weights, and the head that the classes want."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ..models.checkpoints import read_state_dict
from ..models.entrypoints import build, load
from ..models.manifest import Checkpoint, default_manifest
from ..processing_utils.labels import read_labels
from .grow import grow_into
from .recipe import Recipe

__all__ = ["starting_network"]


def starting_network(
    recipe: Recipe, base: Checkpoint | None, classes: Sequence[str], initial_weights: Path | None = None
) -> nn.Module:
    """A network for ``classes``, in training mode.

    With ``base`` it has that checkpoint's weights: the head too where the classes are the checkpoint's own, in its
    order, and a new one otherwise. ``initial_weights`` are a state_dict of this network, or of a smaller one (`grow`).

    Raises:
        CheckpointError: the weights cannot be had.
        ValueError: ``initial_weights`` do not fit.
    """
    if base is None:
        assert recipe.architecture is not None
        network = build(default_manifest().architectures[recipe.architecture], len(classes))
        if initial_weights is not None:
            grow_into(network, read_state_dict(initial_weights))
        return network
    network = load(base)
    if [label.synset for label in read_labels(base.labels)] != list(classes):
        network.reset_classifier(len(classes))
    return network
