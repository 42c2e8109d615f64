"""What the tests of downloads share: a checkpoint at the faulty server, and what a cache must hold."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from resnext_hub.models.entrypoints import build
from resnext_hub.models.manifest import Architecture, Checkpoint, Hash, Source, default_manifest

from ..conftest import randomise
from .faulty_server import CONTENT, DIGEST, FaultyServer

NAME = f"file-{DIGEST[:8]}.pth"
SMALL = Architecture("Bottleneck", (1, 1, 1, 1), 4, 16, None, 16, True)


def described(*sources: Source) -> Checkpoint:
    return dataclasses.replace(default_manifest().resolve("resnet18_ssl"), sources=sources)


def source_at(server: FaultyServer, **changes: Any) -> Source:
    values = {"path": None, "format": "pth-legacy", "bytes": len(CONTENT), "hash": Hash("sha256-prefix", DIGEST[:8])}
    return Source(**({"url": f"{server.url}/{NAME}"} | values | changes))


def left(home: Path) -> list[str]:
    """Everything in the cache but locks and records."""
    return sorted(
        str(p.relative_to(home)) for p in home.rglob("*") if p.is_file() and not p.name.endswith((".lock", ".pth.json"))
    )


def publish_small(
    server: FaultyServer, legacy: bool, architecture: Architecture = SMALL
) -> tuple[Checkpoint, dict[str, Any]]:
    """Serve a small network's weights; its checkpoint and its state_dict."""
    network = build(architecture, 1000)
    randomise(network)
    file = io.BytesIO()
    torch.save(network.state_dict(), file, _use_new_zipfile_serialization=not legacy)
    server.content = file.getvalue()
    source = Source(f"{server.url}/w.pth", None, None, None, Hash("sha256", hashlib.sha256(server.content).hexdigest()))
    checkpoint = dataclasses.replace(
        default_manifest().resolve("resnet50_ssl"), architecture=architecture, sources=(source,)
    )
    return checkpoint, network.state_dict()
