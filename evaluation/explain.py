"""Show the parts of an image that contribute to a class: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391).

The weight of a channel is the mean gradient of the class's logit with respect to that channel of the last feature map.
The heat map is the weighted sum of the channels, with negative values set to 0. It is as coarse as the feature map (7 x
7 for 224 pixels). It shows where the evidence is, not whether the evidence is good.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..inference.classifier import Classifier
from ..inference.engines import TorchEngine
from ..models.entrypoints import load
from ..models.manifest import Preprocessing, find_checkpoint
from ..models.resnext import ResNeXt
from ..packages import needed
from ..processing_utils.images import ImageSource
from ..processing_utils.labels import Label, read_labels
from ..processing_utils.preprocessing import load_pixels, normalise
from .targets import targets_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STRENGTH = 0.55  # opacity of the colours over the image


@dataclass(frozen=True, repr=False)
class Explanation:
    """A class, and the parts of the image that contribute to it."""

    index: int  #: of the class
    label: str  #: its name; "" if it has none
    probability: float  #: 0..1
    heat: np.ndarray  #: (crop, crop) float32, 0..1; all zeros if nothing contributes to the class
    pixels: np.ndarray  #: (crop, crop, 3) uint8, the input of the network

    @property
    def overlay(self) -> np.ndarray:
        """The colours of the heat map over the image, (crop, crop, 3) uint8."""
        with needed("A picture", "pictures"):
            from matplotlib import colormaps

        colours = 255 * colormaps["turbo"](self.heat)[..., :3]
        return np.rint((1 - STRENGTH) * self.pixels + STRENGTH * colours).astype(np.uint8)

    def plot(self) -> Figure:
        """A figure: the network's input, without and with the heat over it."""
        with needed("A picture", "pictures"):
            from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 3.5), layout="constrained")
        for axes, pixels in zip(figure.subplots(1, 2), (self.pixels, self.overlay), strict=True):
            axes.imshow(pixels)
            axes.axis("off")
        name = self.label.split(",")[0] or f"class {self.index}"
        figure.suptitle(f"{name}, {self.probability:.1%}", fontsize=11, color="#1f2933")
        return figure

    def __repr__(self) -> str:
        return f"Explanation({self.label or self.index!r}, {self.probability:.1%})"

    def _repr_png_(self) -> bytes:
        """Notebooks show the picture."""
        file = io.BytesIO()
        self.plot().savefig(file)
        return file.getvalue()


def explain(
    network: Classifier | nn.Module | str | Path,
    image: ImageSource,
    target: int | str | None = None,
    *,
    preset: Preprocessing | None = None,
    labels: Sequence[Label] | Sequence[str] | None = None,
    layer: str | None = None,
    **image_options: Any,
) -> Explanation:
    """Show which parts of an image contribute to a class.

    Args:
        network: a classifier, a variant's name or a folder of a training run; or a network in eval mode, with its
            ``preset`` and ``labels`` if it is not ours.
        image: see `processing_utils.images.open_image`, as ``image_options``.
        target: the class: its number, synset or name; the most probable one by default.
        labels: the names of the network's classes.
        layer: the layer whose output is used, such as "layer3" for a finer map; by default the last feature map.

    Raises:
        ImageError, FileNotFoundError, FetchError: the image cannot be used.
        ValueError: no such class or layer; a network without a preset.
    """
    several = isinstance(network, Classifier) and network.multi_label
    if isinstance(network, (str, Path)):
        checkpoint = find_checkpoint(network)
        preset, labels = preset or checkpoint.preprocessing, labels or read_labels(checkpoint.labels)
        several = checkpoint.multi_label
        network = load(checkpoint).eval()
    elif isinstance(network, Classifier):
        preset, labels = preset or network.preset, labels or network.labels
        network = _network_of(network)
    if isinstance(network, ResNeXt):
        preset, labels = preset or network.preprocessing, labels or network.labels
    if preset is None:
        raise ValueError("A network of your own needs preset=, the preprocessing of its images.")
    pixels = load_pixels(image, preset, **image_options)
    like = next(network.parameters())
    images = torch.from_numpy(normalise(pixels, preset))[None].to(like.device, like.dtype)
    with torch.enable_grad():
        maps, logits = _from_layer(network, images, layer) if layer else _from_last(network, images)
        named = [name if isinstance(name, Label) else Label(i, "", name) for i, name in enumerate(labels or ())]
        index = int(logits[0].argmax()) if target is None else _index(target, named, logits.shape[1])
        (gradient,) = torch.autograd.grad(logits[0, index], maps)
    heat = (gradient.float().mean((2, 3), keepdim=True) * maps.detach().float()).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, pixels.shape[:2], mode="bilinear", align_corners=False)[0, 0].cpu().numpy()
    if heat.max() > 0:
        heat /= heat.max()
    label = named[index].name if named else ""
    scores = logits[0].detach().float()
    return Explanation(index, label, float((scores.sigmoid() if several else scores.softmax(0))[index]), heat, pixels)


def _network_of(classifier: Classifier) -> nn.Module:
    """The classifier's network, or a newly loaded one: engines other than PyTorch have no gradients."""
    if isinstance(classifier.engine, TorchEngine):
        return classifier.engine.network
    if classifier.checkpoint is None:
        name = classifier.engine.name
        raise ValueError(f"The engine {name} has no gradients: make the classifier with engine='torch'.")
    return load(classifier.checkpoint).eval()


def _index(target: int | str, labels: Sequence[Label], classes: int) -> int:
    if isinstance(target, int):
        if not 0 <= target < classes:
            raise ValueError(f"The class must be from 0 to {classes - 1}, got {target}.")
        return target
    if not labels:
        raise ValueError(f"To find the class {target!r}, pass labels= with the names of the classes.")
    return next(iter(targets_of([target], labels, advice="")[0]))


def _leaf(maps: Tensor) -> Tensor:
    """A copy that starts the graph, so that earlier layers need no gradients and no memory for them."""
    return maps.detach().clone().requires_grad_()


def _from_last(network: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """The last feature map and its logits. Uses no hook, because other threads may be using the network."""
    if not hasattr(network, "forward_features") or not hasattr(network, "forward_head"):
        kind = type(network).__name__
        raise ValueError(f"Pass layer=, the name of the layer of {kind} with the last feature map, e.g. 'layer4'.")
    with torch.no_grad():
        features = network.forward_features(images)
    maps = _leaf(features)
    return maps, network.forward_head(maps)


def _from_layer(network: nn.Module, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    try:
        module = network.get_submodule(layer)
    except AttributeError as error:
        children = ", ".join(name for name, _ in network.named_children())
        raise ValueError(f"The network has no layer {layer!r}; choose from {children}.") from error
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        found.append(_leaf(output))
        # The next layer may work in place (ReLU), so it gets a copy.
        return found[-1].clone()

    handle = module.register_forward_hook(keep)
    try:
        logits = network(images)
    finally:
        handle.remove()
    if len(found) != 1 or found[0].ndim != 4:
        raise ValueError(f"The output of the layer {layer!r} is not one feature map (N, C, H, W).")
    return found[0], logits
