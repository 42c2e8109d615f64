"""The network in the form that is exported: BatchNorm folded, and the inputs and outputs of a `Signature`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..inference.engines.graph import fold, rewrite
from ..models.manifest import Preprocessing
from ..models.resnext import ResNeXt
from .signature import Signature

#: The type that a precision computes in. int8 is made from the float32 graph.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}


class ResizeAndCrop(nn.Module):
    """Pixels (N, height, width, 3) of any size -> (N, crop, crop, 3), 0..255, as torchvision's Resize and CenterCrop.

    Pillow's antialiased bilinear resize is linear in each direction, so it is a product with a matrix, which every
    format can run. Pillow also rounds the values after each direction; they differ from these by at most 1 of 255.
    """

    def __init__(self, preset: Preprocessing) -> None:
        super().__init__()
        self.resize, self.crop = preset.resize_size, preset.crop_size

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        # 1, 2, ... height: exporters cannot calculate with the shape of an input.
        rows, columns = (torch.cumsum(line * 0 + 1, 0) for line in (x[0, 0, :, 0], x[0, 0, 0]))
        short = torch.minimum(rows[-1], columns[-1])
        x = torch.matmul(x, self._weights(columns, short).t())
        x = torch.matmul(self._weights(rows, short), x)
        return x.permute(0, 2, 3, 1)

    def _weights(self, positions: Tensor, short: Tensor) -> Tensor:
        """Return how much each pixel of the image contributes to each pixel of the result, (crop, size)."""
        size = positions[-1]
        # The half makes no difference to the result, unless a runtime divides inexactly (OpenVINO does).
        scaled = torch.floor((self.resize * size + 0.5) / short)
        start = torch.round((scaled - self.crop) / 2)
        scale = size / scaled
        centres = (torch.arange(self.crop, dtype=torch.float32) + start + 0.5) * scale
        distances = (positions - 0.5)[None] - centres[:, None]
        weights = torch.relu(1 - distances.abs() / torch.relu(scale - 1).add(1))  # a wider triangle when shrinking
        return weights / weights.sum(1, keepdim=True)


class DeployedNetwork(nn.Module):
    """The inputs of a `Signature` -> its outputs. Takes over ``network``.

    Resizing, normalisation, softmax and top-k are float32 in every precision. ``lanes``: see
    `inference.engines.graph.fold`.
    """

    def __init__(
        self, network: ResNeXt, preset: Preprocessing, signature: Signature, dtype: torch.dtype, lanes: int
    ) -> None:
        super().__init__()
        self.signature = signature
        self.dtype = dtype
        self.resize = ResizeAndCrop(preset) if signature.resize else nn.Identity()
        self.body = rewrite(network, preset, lanes) if signature.preprocessing else fold(network, lanes)
        network.to(dtype)  # the network's own tensors; the mean of the pixels stays float32
        self.eval()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        # TensorRT accepts uint8 only if the first operation is a cast.
        logits = self.body(self.resize(x.float()))[0] if self.signature.preprocessing else self.body(x.to(self.dtype))
        logits = logits.float()
        scores = logits
        if self.signature.softmax:
            scores = logits.sigmoid() if self.signature.multi_label else logits.softmax(1)
        if self.signature.top is None:
            return scores
        best = scores.topk(self.signature.top)
        return best.values, best.indices
