"""Make the folder of a run a variant: weights named by their hash, labels, and a manifest."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..files import sha256, temporary_name
from ..models.entrypoints import build
from ..models.manifest import CONTROL, MANIFEST, Checkpoint, default_manifest
from ..processing_utils.labels import Label, labels_table
from .checkpoint import contiguous, save, write_file
from .recipe import Recipe

SCRATCH_PAPER = "1611.05431"  # of the network, for runs that start from no weights


def _save(state_dict: Mapping[str, Tensor], folder: Path, name: str) -> tuple[Path, str]:
    """Write ``folder/name-<first 8 hex digits of its sha256>.pth``, torch.hub's way of naming files.

    Returns:
        The path and the sha256. A file that is there already, with this content, is not written again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(folder / name)
    try:
        save(temporary, contiguous(state_dict))
        digest = sha256(temporary)
        path = folder / f"{name}-{digest[:8]}.pth"
        if not path.exists() or sha256(path) != digest:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path, digest


def publish_half(state_dict: Mapping[str, Tensor], folder: Path, name: str) -> Path:
    """Write a state_dict in float16, small enough for a repository; return its path.

    Loading copies into a float32 network, so float16 costs a rounding but no speed.
    """
    return _save({k: v.half() if v.is_floating_point() else v for k, v in state_dict.items()}, folder, name)[0]


def gmacs(architecture: str, num_classes: int, image_size: int) -> float:
    """The multiply-accumulates for one image (1, 3, image_size, image_size), in 10^9, as torch counts them."""
    with torch.device("meta"):
        network = build(default_manifest().architectures[architecture], num_classes).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, image_size, image_size))
    return counter.get_total_flops() / 2e9


def publish_run(
    state_dict: Mapping[str, Tensor],
    recipe: Recipe,
    labels: Sequence[Label],
    row: Mapping[str, float],
    out: Path,
    *,
    data: str,
    base: Checkpoint | None = None,
    multi_label: bool = False,
) -> Path:
    """Make ``out`` a folder that `models.manifest.find_checkpoint` takes; return the weights' path.

    Args:
        recipe: resolved; it gives architecture and preprocessing.
        labels: in the order of the logits.
        row: the last one of the curve, for the accuracy; NaN: none is claimed.
        data: what the network was trained on, in words.
        base: the checkpoint that training started from; its licence applies to the result.
        multi_label: see `models.manifest.Checkpoint`.
    """
    assert recipe.architecture is not None
    name = re.sub(r"\W", "_", out.resolve().name)[:50]  # a file's name may have 255 bytes
    name = name if name[:1].isalpha() else f"run_{name}"
    data = CONTROL.sub("\N{REPLACEMENT CHARACTER}", data)[:2000]
    weights, digest = _save(state_dict, out, name)
    write_file(out / "labels.tsv", labels_table(labels))
    published = json.loads((default_manifest().path).read_text(encoding="utf-8"))
    license_id = base.license_id if base else None
    papers = {
        key: p for key, p in published["papers"].items() if p["title"] == (base.system.paper.title if base else "")
    }
    papers = papers or {SCRATCH_PAPER: published["papers"][SCRATCH_PAPER]}
    preset = asdict(recipe.preset)
    params = sum(v.numel() for k, v in state_dict.items() if not re.search(r"running_|num_batches", k))
    measured = "measured in training (log.csv)" if row["epoch"] else "measured of the head, fitted on fixed features"
    percent = {key: None if math.isnan(value) else round(100 * value, 2) for key, value in row.items()}
    if percent["val_top1"] is percent["val_map"] is None:
        measured = "not measured"
    checkpoint: dict[str, Any] = {
        "entrypoint": name,
        "tag": None,
        "system": "own",
        "architecture": recipe.architecture,
        "num_classes": len(labels),
        "labels": "own",
        "params": params,
        "gmacs": round(gmacs(recipe.architecture, len(labels), preset["crop_size"]), 4),
        "license": license_id,
        "license_source": f"that of the weights it started from, {base.name}" if base else "not stated",
        "sources": [
            {
                "url": None,
                "path": weights.name,
                "format": "pth-zip",
                "bytes": weights.stat().st_size,
                "hash": {"kind": "sha256", "value": digest},
            }
        ],
        "published": {
            "dataset": data,
            "top1": percent["val_top1"],
            "top5": percent["val_top5"],
            "image_size": preset["crop_size"],
            "crop_pct": round(preset["crop_size"] / preset["resize_size"], 3),
            "source": measured,
            **({"mean_ap": percent["val_map"]} if multi_label else {}),
        },
        "measured": [],
        "preprocessing": preset | {"source": "run.json"},
        "known_issues": [],
        "made_by": f"resnext-hub train (run.json){f', from {base.name}' if base else ''}",
        **({"multi_label": True} if multi_label else {}),
    }
    manifest = {
        "$schema": published["$schema"],
        "version": published["version"],
        "gmacs_source": "torch.utils.flop_counter",
        "licenses": {license_id: published["licenses"][license_id]} if license_id else {},
        "label_sets": {"own": {"file": "labels.tsv", "classes": len(labels)}},
        "papers": papers,
        "systems": {"own": {"title": name, "repository": None, "training_data": data, "paper": next(iter(papers))}},
        "architectures": {recipe.architecture: published["architectures"][recipe.architecture]},
        "aliases": {},
        "checkpoints": {name: checkpoint},
    }
    # Last: a folder with a manifest is complete.
    write_file(out / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    for old in out.glob(f"{name}-????????.pth"):
        if old != weights:  # published before this run was extended
            old.unlink()
    return weights
