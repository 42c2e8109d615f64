"""The metadata of an artefact: source, licence, preprocessing, inputs, outputs and class names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from .. import __version__
from ..models.manifest import Checkpoint
from ..packages import library_version
from ..processing_utils.labels import read_labels
from .signature import Signature


def describe(checkpoint: Checkpoint, signature: Signature, precision: str, sha256: str | None) -> dict[str, Any]:
    """Return the metadata of an artefact as JSON data.

    Args:
        sha256: of the checkpoint's file; None for a network that was not loaded from a file.
    """
    source = checkpoint.sources[0]
    return {
        "name": checkpoint.name,
        "title": checkpoint.system.title,
        "architecture": checkpoint.architecture_name,
        "source": {"file": source.filename, "url": source.url, "sha256": sha256},
        "license": {
            "id": checkpoint.license_id,
            **(dataclasses.asdict(checkpoint.license) if checkpoint.license else {"name": "not stated"}),
        },
        "known_issues": list(checkpoint.known_issues),
        "precision": precision,
        "preprocessing": dataclasses.asdict(checkpoint.preprocessing)
        | {"normalised_inside": signature.preprocessing, "resized_inside": signature.resize},
        "input": dataclasses.asdict(signature.input),
        "outputs": [dataclasses.asdict(output) for output in signature.outputs],
        "multi_label": checkpoint.multi_label,
        "label_set": checkpoint.labels.file.stem,
        "labels": [[label.synset, label.name] for label in read_labels(checkpoint.labels)],
        "exporter": {"resnext-hub": __version__, "torch": library_version("torch")},
    }


def as_strings(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata as strings, for formats that allow only these; other values become JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
