"""Measure loading a cached checkpoint: this repository and the original hub code, in fresh processes.

    python benchmarks/loading.py [--runs 5] [--variants resnext101_32x8d_wsl resnext101_32x48d_wsl]

"hub": torch.hub.load and one image, imports included, against torchvision as a hub repository. "ready": after the
imports, the time until the network is ready and until it has given logits, and the private memory it has taken
(RssAnon, in units of the checkpoint's length), against the code of WSL-Images' hubconf.py; ours again for the
first load, which converts the file. "four processes": their proportional set sizes (Pss) while all hold the network,
in the same unit; what is shared counts once. The files have random weights under the published names, keys, shapes
and legacy format.
Runs alternate, so that a machine that slows down slows both: quote the ratios of the medians, not the seconds.
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
from resnext_hub.models.manifest import ROOT, default_manifest, write_digest

HUB = (
    "import torch\n"
    "network = torch.hub.load({repo!r}, 'resnext50_32x4d', source='local', weights='IMAGENET1K_V1').eval()\n"
    "torch.inference_mode()(network)(torch.zeros(1, 3, 224, 224))"
)
ORIGINAL = """
from torch.hub import load_state_dict_from_url
from torchvision.models.resnet import Bottleneck, ResNet
def load():
    network = ResNet(Bottleneck, [3, 4, 23, 3], groups=32, width_per_group={width})
    network.load_state_dict(load_state_dict_from_url({url!r}, progress=False))
    return network
"""
OURS = """
def load():
    return torch.hub.load({repo!r}, {name!r}, source='local', progress=False)
"""
MEASURE = """
import json, logging, re, sys, threading, time
import torch
logging.disable()
{load}
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
peak, going, before = 0, True, anonymous()
def watch():
    global peak
    while going:
        peak = max(peak, anonymous())
        time.sleep(0.005)
thread = threading.Thread(target=watch)
thread.start()
start = time.perf_counter()
network = load().eval()
ready = time.perf_counter() - start
held = anonymous() - before
going = False
thread.join()
with torch.inference_mode():
    network(torch.zeros(1, 3, 224, 224))
first = time.perf_counter() - start
print(json.dumps(dict(ready=ready, first=first, peak=peak - before, held=held)))
"""


def prepare(folder: Path, names: list[str]) -> Path:
    """A cache with checkpoints of random weights, and a copy of this repository that expects them."""
    ours = folder / "ours"
    ignore = shutil.ignore_patterns(".*", "build", "__pycache__", "demo_out", "*.egg-info", "tests")
    shutil.copytree(ROOT, ours, ignore=ignore)
    manifest = json.loads((ours / "weights_manifest.json").read_text())
    for name in names:
        checkpoint = default_manifest().checkpoints[name]
        cached = folder / "hub" / "checkpoints" / checkpoint.sources[0].filename
        cached.parent.mkdir(parents=True, exist_ok=True)
        with torch.device("meta"):
            network = build(checkpoint.architecture)
        network.to_empty(device="cpu")
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.0, 0.01)
        torch.save(network.state_dict(), cached, _use_new_zipfile_serialization=False)
        with open(cached, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        source = manifest["checkpoints"][name]["sources"][0]
        source["bytes"] = cached.stat().st_size
        source["hash"]["value"] = digest[: len(source["hash"]["value"])]
    (ours / "weights_manifest.json").write_text(json.dumps(manifest))
    write_digest(ours)
    return ours


def run(script: str, folder: Path) -> tuple[float, str]:
    environment = os.environ | {"TORCH_HOME": str(folder)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as on a user's machine: what was compiled once is kept
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True)
    return time.perf_counter() - start, done.stdout.decode()


def hub(folder: Path, ours: Path, runs: int) -> None:
    theirs = folder / "theirs"
    theirs.mkdir()
    (theirs / "hubconf.py").write_text("from torchvision.models import resnext50_32x4d\n")
    seconds: dict[str, list[float]] = {"ours": [], "torchvision": []}
    for i in range(runs + 1):  # the first warms the page cache and converts, and is not counted
        for who, repository in (("ours", ours), ("torchvision", theirs)):
            taken, _ = run(HUB.format(repo=str(repository)), folder)
            if i:
                seconds[who].append(taken)
    a, b = (statistics.median(seconds[who]) for who in ("ours", "torchvision"))
    print("\n| hub, process to logits | ours, s | torchvision, s | ratio |\n|---|--:|--:|--:|")
    print(f"| resnext50_32x4d | {a:.2f} | {b:.2f} | {b / a:.2f} |", flush=True)


def ready(name: str, folder: Path, ours: Path, runs: int) -> None:
    checkpoint = default_manifest().checkpoints[name]
    source = checkpoint.sources[0]
    path = folder / "hub" / "checkpoints" / source.filename
    size = path.stat().st_size
    scripts = {
        "original": MEASURE.format(load=ORIGINAL.format(width=checkpoint.architecture.width_per_group, url=source.url)),
        "ours": MEASURE.format(load=OURS.format(repo=str(ours), name=name)),
    }
    results: dict[str, list[dict[str, float]]] = {"original": [], "ours": [], "first load": []}
    os.environ["TORCH_HOME"] = str(folder)
    for _ in range(runs):
        shutil.rmtree(path.parent / ".resnext-hub", ignore_errors=True)
        results["first load"].append(json.loads(run(scripts["ours"], folder)[1]))
        for who, script in scripts.items():
            results[who].append(json.loads(run(script, folder)[1]))
    median = {
        who: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for who, rows in results.items()
    }
    print(f"\n| {name}, {size / 1e9:.2f} GB | ready, s | to logits, s | peak private | held private |")
    print("|---|--:|--:|--:|--:|")
    for who, row in median.items():
        memory = f"{row['peak'] / size:.3f} x | {row['held'] / size:.3f} x"
        print(f"| {who} | {row['ready']:.2f} | {row['first']:.2f} | {memory} |")
    a, b = median["ours"], median["original"]
    c = median["first load"]
    print(f"| ratio | {b['ready'] / a['ready']:.1f} | {b['first'] / a['first']:.1f} | | |")
    print(f"| ratio, first load | {b['ready'] / c['ready']:.2f} | {b['first'] / c['first']:.2f} | | |", flush=True)


def four_processes(name: str, folder: Path, ours: Path) -> None:
    checkpoint = default_manifest().checkpoints[name]
    source = checkpoint.sources[0]
    size = (folder / "hub" / "checkpoints" / source.filename).stat().st_size
    loads = {
        "original": ORIGINAL.format(width=checkpoint.architecture.width_per_group, url=source.url),
        "ours": OURS.format(repo=str(ours), name=name),
    }
    print(f"\n| {name}, four processes | Pss together |\n|---|--:|")
    for who, load in loads.items():
        script = f"import torch, logging, sys\nlogging.disable()\n{load}\nimport torchvision\n{HOLD}"
        environment = os.environ | {"TORCH_HOME": str(folder), "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", script],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        before = [int(p.stdout.readline()) for p in processes if p.stdout]
        for p in processes:
            print("load", file=p.stdin, flush=True)
        for p in processes:
            assert p.stdout is not None
            p.stdout.readline()
        after = [_pss(p.pid) for p in processes]
        for p in processes:
            p.communicate("done\n")
        print(f"| {who} | {(sum(after) - sum(before)) / size:.2f} x |", flush=True)


HOLD = """
import re
def pss():
    return int(re.search(r"Pss:\\s+(\\d+)", open("/proc/self/smaps_rollup").read())[1]) * 1024
print(pss(), flush=True)
sys.stdin.readline()
network = load().eval()
with torch.inference_mode():
    network(torch.zeros(1, 3, 64, 64))
print("ready", flush=True)
sys.stdin.readline()
"""


def _pss(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.split("\nPss:")[1].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare loading a cached checkpoint with the original code.")
    parser.add_argument("--runs", type=int, default=5, help="runs per way (default: %(default)s)")
    parser.add_argument(
        "--variants",
        nargs="*",
        default=["resnext101_32x8d_wsl", "resnext101_32x48d_wsl"],
        help="variants to load (default: resnext101_32x8d_wsl resnext101_32x48d_wsl)",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = prepare(folder, ["resnext50_32x4d.IMAGENET1K_V1", *arguments.variants])
        hub(folder, ours, arguments.runs)
        for variant in arguments.variants:
            ready(variant, folder, ours, arguments.runs)
        four_processes(arguments.variants[0], folder, ours)


if __name__ == "__main__":
    main()
