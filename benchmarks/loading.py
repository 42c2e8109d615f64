"""torch.hub.load of a cached checkpoint in a fresh process, imports included: this repository against torchvision.

    python benchmarks/loading.py [--runs 7]

Both load the same file (random weights, the published name, keys, shapes and legacy format) and run one image; the runs
alternate, so that a machine that slows down slows both. Quote the ratio of the medians: absolute times are the
machine's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from resnext_hub.models.entrypoints import build
from resnext_hub.models.manifest import ROOT, default_manifest

NAME, TAG = "resnext50_32x4d", "IMAGENET1K_V1"
SCRIPT = (
    "import torch; network = torch.hub.load({repo!r}, {name!r}, source='local', weights={tag!r}).eval(); "
    "torch.inference_mode()(network)(torch.zeros(1, 3, 224, 224))"
)


def prepare(folder: Path) -> dict[str, str]:
    """A cache with the checkpoint, a copy of this repository that expects it, and torchvision as a hub repository."""
    checkpoint = default_manifest().of_entrypoint(NAME)[TAG]
    cached = folder / "hub" / "checkpoints" / checkpoint.sources[0].filename
    cached.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(build(checkpoint.architecture).state_dict(), cached, _use_new_zipfile_serialization=False)

    ours = folder / "ours"
    ignore = shutil.ignore_patterns(".*", "build", "__pycache__", "demo_out", "*.egg-info")
    shutil.copytree(ROOT, ours, ignore=ignore)
    manifest = json.loads((ours / "weights_manifest.json").read_text())
    source = manifest["checkpoints"][checkpoint.name]["sources"][0]
    source["bytes"] = cached.stat().st_size
    source["hash"]["value"] = hashlib.sha256(cached.read_bytes()).hexdigest()[:8]
    (ours / "weights_manifest.json").write_text(json.dumps(manifest))

    theirs = folder / "theirs"
    theirs.mkdir()
    (theirs / "hubconf.py").write_text(f"from torchvision.models import {NAME}\n")
    return {"resnext-hub": str(ours), "torchvision": str(theirs)}


def main() -> None:
    parser = argparse.ArgumentParser(description="torch.hub.load of a cached checkpoint, in a fresh process")
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        repositories = prepare(Path(folder))
        environment = os.environ | {"TORCH_HOME": folder}
        seconds: dict[str, list[float]] = {who: [] for who in repositories}
        for run in range(runs + 1):  # the first warms the page cache and is not counted
            for who, repository in repositories.items():
                script = SCRIPT.format(repo=repository, name=NAME, tag=TAG)
                start = time.perf_counter()
                subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True)
                if run:
                    seconds[who].append(time.perf_counter() - start)
    for who, values in seconds.items():
        print(f"{who:12} median {statistics.median(values):.2f} s   min {min(values):.2f}   max {max(values):.2f}")
    ratio = statistics.median(seconds["torchvision"]) / statistics.median(seconds["resnext-hub"])
    print(f"torchvision takes {ratio:.2f} times as long ({runs} runs each, alternating)")


if __name__ == "__main__":
    main()
