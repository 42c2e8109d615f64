"""Checkpoints in the format of the published files, served on loopback."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from resnext_hub.models.entrypoints import build
from resnext_hub.models.manifest import default_manifest

from ..conftest import randomise

MANIFEST = default_manifest()


def published(
    name: str, publish: Any, manifest: dict[str, Any], one_block: bool = False, prefix: str = ""
) -> tuple[dict[str, Any], torch.nn.Module]:
    """Serve random weights in the format of the published file; the manifest for them, and the network.

    Args:
        one_block: give the network one block per stage, in the manifest too.
        prefix: precedes the names of the tensors in the file.
    """
    checkpoint = MANIFEST.resolve(name)
    architecture = checkpoint.architecture
    if one_block:
        (known,) = (key for key, value in MANIFEST.architectures.items() if value == architecture)
        architecture = dataclasses.replace(architecture, layers=(1, 1, 1, 1))
        manifest = manifest | {"architectures": manifest["architectures"] | {known: dataclasses.asdict(architecture)}}
    network = build(architecture).eval()
    randomise(network)
    state = {prefix + key: value for key, value in network.state_dict().items()}
    return publish(manifest, checkpoint.name, state, checkpoint.sources[0].format != "pth-zip"), network


def environment(proxy: str) -> dict[str, str]:
    return {"http_proxy": proxy, "no_proxy": "127.0.0.1", "MPLBACKEND": "agg"}
