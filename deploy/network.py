"""The network as it goes into an artefact: BatchNorm folded, and its ends as the signature says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..inference.engines.graph import fold, rewrite
from ..models.manifest import Preprocessing
from ..models.resnext import ResNeXt
from .signature import Signature

__all__ = ["DTYPES", "DeployedNetwork"]

#: What a precision calculates in. int8 is made from the float32 graph.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}


class _Mean(nn.Module):
    """Pooling that leaves nothing to flatten: a graph would ask its input for the batch size to do that, and TensorRT
    lets uint8 pixels be asked for nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class DeployedNetwork(nn.Module):
    """The input of a `Signature` -> its outputs. ``network`` is used up.

    Normalisation, softmax and the choice of the best are float32 in every precision.

    Args:
        lanes: merge groups of convolutions narrower than this; see `inference.engines.graph.fold`.
    """

    def __init__(
        self,
        network: ResNeXt,
        preset: Preprocessing,
        signature: Signature,
        dtype: torch.dtype = torch.float32,
        lanes: int = 1,
    ) -> None:
        super().__init__()
        self.signature = signature
        self.dtype = dtype
        self.body = rewrite(network, preset, lanes) if signature.preprocessing else fold(network, lanes)
        network.register_module("avgpool", _Mean())
        network.to(dtype)  # the network's numbers, not the pixels' mean
        self.eval()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        # TensorRT takes uint8 only if it is cast before anything else, so pixels are.
        logits = self.body(x.float())[0] if self.signature.preprocessing else self.body(x.to(self.dtype))
        logits = logits.float()
        scores = logits.softmax(1) if self.signature.softmax else logits
        if self.signature.top is None:
            return scores
        best = scores.topk(self.signature.top)
        return best.values, best.indices
