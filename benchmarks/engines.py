"""Engines on this machine's CPU: ours against the usual ways to run the same network, fp32.

    python benchmarks/engines.py [--networks resnet18 …] [--batches 1 8] [--rounds 5] [--ours auto onnxruntime openvino]

Every way is a process of its own that sleeps until it is asked, so that no thread pool of one disturbs another; in each
round every way runs its share, one after the other. Peers get normalised float32 images, ready made; ours gets uint8
pixels and normalises them itself. Weights are random and the same in all. "Off" is the largest difference to
torchvision eager's logits, as a share of their range. "Peak" is what a loop of nothing but fused multiply-adds reaches
on all cores in the same run (needs a C compiler), a network's share of it counts the multiply-adds of the manifest.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from resnext_hub.telemetry import import_quietly

NETWORKS = {
    "resnet18": "resnet18_swsl",
    "resnet50": "resnet50_swsl",
    "resnext50_32x4d": "resnext50_32x4d.IMAGENET1K_V1",
    "resnext101_32x8d": "resnext101_32x8d.IMAGENET1K_V1",
}
PEERS = ["torchvision", "tuned malloc", "channels_last", "AOTInductor", "ONNX Runtime", "OpenVINO", "timm"]
# Keep freed memory, and take none by mmap: what tcmalloc or jemalloc are recommended for.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(1 << 32), "MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": str(64 << 20)}
FMA = r"""
#include <immintrin.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#ifdef __AVX512F__
#define V __m512
#define SET _mm512_set1_ps
#define FMADD _mm512_fmadd_ps
#define LANES 16
#else
#define V __m256
#define SET _mm256_set1_ps
#define FMADD _mm256_fmadd_ps
#define LANES 8
#endif
static float sink;
static void *work(void *unused) {
    V a[12], x = SET(1.0001f), y = SET(1e-9f);
    for (int j = 0; j < 12; j++) a[j] = SET(j);
    for (long i = 0; i < 40000000; i++)
        _Pragma("GCC unroll 12") for (int j = 0; j < 12; j++) a[j] = FMADD(a[j], x, y);
    float t[LANES];
    for (int j = 0; j < 12; j++) { __builtin_memcpy(t, &a[j], sizeof(a[j])); sink += t[0]; }
    return 0;
}
int main(int n, char **v) {
    int threads = atoi(v[1]); pthread_t p[256]; struct timespec s, e;
    clock_gettime(CLOCK_MONOTONIC, &s);
    for (int i = 0; i < threads; i++) pthread_create(p + i, 0, work, 0);
    for (int i = 0; i < threads; i++) pthread_join(p[i], 0);
    clock_gettime(CLOCK_MONOTONIC, &e);
    printf("%f\n", threads * 40e6 * 12 * LANES * 1e-9 / (e.tv_sec - s.tv_sec + 1e-9 * (e.tv_nsec - s.tv_nsec)));
}
"""


def peer(way: str, network: str, folder: Path) -> Any:
    """A function from a batch number to logits, written as in each library's documentation."""
    images: dict[int, np.ndarray] = {b: np.load(folder / f"images-{b}.npy") for b in _batches(folder)}
    if way.startswith("ours"):
        return _ours(way.partition(" ")[2], network, folder)
    if way in ("ONNX Runtime", "OpenVINO"):
        model = folder / f"{network}.onnx"
        if way == "ONNX Runtime":
            session = import_quietly("onnxruntime").InferenceSession(model, providers=["CPUExecutionProvider"])
            return lambda b: session.run(None, {"x": images[b]})[0]
        openvino = import_quietly("openvino")
        # float32 is asked for: where the processor has bfloat16, OpenVINO's own default is that.
        compiled = openvino.compile_model(str(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda b: compiled(images[b])[0]
    import torch

    torch.set_grad_enabled(False)
    made = _timm(network) if way == "timm" else _torchvision(network)
    made.load_state_dict(torch.load(folder / f"{network}.pth", weights_only=True))
    made.eval()
    tensors = {b: torch.from_numpy(x) for b, x in images.items()}
    if way == "channels_last":
        made = made.to(memory_format=torch.channels_last)
        tensors = {b: x.to(memory_format=torch.channels_last) for b, x in tensors.items()}
    if way == "AOTInductor":
        from torch._inductor import aoti_compile_and_package, aoti_load_package, config

        config.freezing = True
        packages = {}
        for b, x in tensors.items():
            package = str(folder / f"{network}-{b}.pt2")
            aoti_compile_and_package(torch.export.export(made, (x,)), package_path=package)
            packages[b] = aoti_load_package(package)
        return lambda b: packages[b](tensors[b]).numpy()
    return lambda b: made(tensors[b]).numpy()


def _ours(engine: str, network: str, folder: Path) -> Any:
    from resnext_hub.inference.engines import open_engine
    from resnext_hub.models.manifest import Source, default_manifest

    source = Source(f"http://127.0.0.1/{network}.pth", None, None, None, None)
    checkpoint = dataclasses.replace(default_manifest().resolve(NETWORKS[network]), sources=(source,))
    opened = open_engine(checkpoint, engine)
    pixels: dict[int, np.ndarray] = {b: np.load(folder / f"pixels-{b}.npy") for b in _batches(folder)}
    return lambda b: opened(pixels[b])[0]


def _torchvision(network: str) -> Any:
    import torchvision

    return torchvision.models.get_model(network)


def _timm(network: str) -> Any:
    import timm  # pyright: ignore[reportMissingImports]  # the extra peers

    return timm.create_model(network, pretrained=False)


def _batches(folder: Path) -> list[int]:
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob("pixels-*.npy"))


def prepare(folder: Path, network: str, batches: list[int]) -> None:
    """Weights, images, an ONNX file and the expected logits."""
    import torch
    from resnext_hub.models.manifest import default_manifest
    from resnext_hub.processing_utils.preprocessing import normalise

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    made = _torchvision(network).eval()
    for module in made.modules():  # statistics as of a trained network, so that nothing is folded away
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.get_buffer("running_mean"), 0, 0.1)
            torch.nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
    cache = folder / "hub" / "checkpoints"
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(made.state_dict(), folder / f"{network}.pth")
    shutil.copy(folder / f"{network}.pth", cache)
    preset = default_manifest().resolve(NETWORKS[network]).preprocessing
    for b in batches:
        pixels = np.random.default_rng(b).integers(0, 256, (b, 224, 224, 3), dtype=np.uint8)
        images = normalise(pixels, preset)
        np.save(folder / f"pixels-{b}.npy", pixels)
        np.save(folder / f"images-{b}.npy", images)
        np.save(folder / f"logits-{b}.npy", made(torch.from_numpy(images)).numpy())
    torch.onnx.export(
        made, (torch.zeros(2, 3, 224, 224),), folder / f"{network}.onnx", dynamo=True, verbose=False,
        input_names=["x"], dynamic_shapes=({0: torch.export.Dim("n")},), opset_version=20,
    )  # fmt: skip


def serve(way: str, network: str, folder: Path) -> None:
    """A peer's process: for each line "batch repetitions" one line of seconds and of the difference in logits."""
    start = time.perf_counter()
    run = peer(way, network, folder)
    print(json.dumps({"ready": time.perf_counter() - start}), flush=True)
    for line in sys.stdin:
        batch, repetitions = map(int, line.split())
        expected = np.load(folder / f"logits-{batch}.npy")
        off = float(np.abs(run(batch) - expected).max() / np.ptp(expected))
        seconds = []
        for _ in range(repetitions):
            start = time.perf_counter()
            run(batch)
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"off": off, "seconds": seconds}), flush=True)


class Way:
    def __init__(self, way: str, network: str, folder: Path) -> None:
        self.name = way
        environment = os.environ | {"TORCH_HOME": str(folder)} | (MALLOC if way == "tuned malloc" else {})
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", way, network, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        self.ready = self._answer()["ready"]
        self.seconds: dict[int, list[float]] = {}
        self.off: dict[int, float] = {}

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"The process of {self.name} ended unexpectedly.")
        return json.loads(line)

    def run(self, batch: int, repetitions: int) -> None:
        print(batch, repetitions, file=self.process.stdin, flush=True)
        answer = self._answer()
        self.seconds.setdefault(batch, []).extend(answer["seconds"])
        self.off[batch] = answer["off"]

    def close(self) -> None:
        self.process.communicate()


def fma_peak(folder: Path) -> float | None:
    """Billions of multiply-adds per second on all cores; None without a C compiler."""
    (folder / "fma.c").write_text(FMA)
    try:
        subprocess.run(
            ["cc", "-O2", "-march=native", "-pthread", "fma.c", "-o", "fma"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    done = subprocess.run([folder / "fma", str(os.cpu_count())], check=True, capture_output=True, text=True)
    return float(done.stdout)


Figures = dict[tuple[str, str, int], list[str]]  # (way, network, batch) -> a row of its table


def compare(network: str, batches: list[int], rounds: int, ours: list[str], peers: list[str], folder: Path) -> Figures:
    figures: Figures = {}
    from resnext_hub.models.manifest import default_manifest

    subprocess.run([sys.executable, __file__, "--prepare", network, *map(str, batches), str(folder)], check=True)
    gmacs = default_manifest().resolve(NETWORKS[network]).gmacs
    ways = [Way(way, network, folder) for way in [*peers, *(f"ours {engine}" for engine in ours)]]
    peaks = []
    for _ in range(rounds):
        peaks.append(fma_peak(folder))
        for batch in batches:
            for way in ways:
                way.run(batch, max(2, min(20, round(40 / (gmacs * batch)))))
    peak = None if None in peaks else statistics.median(p for p in peaks if p)
    for way in ways:
        way.close()
    for batch in batches:
        seconds = {way.name: statistics.median(way.seconds[batch]) for way in ways}
        eager, best = seconds["torchvision"], min(peers, key=lambda name: seconds[name])
        print(f"\n| {network}, batch {batch} | ms/image | x eager | x best peer | of peak | off |")
        print("|---|--:|--:|--:|--:|--:|")
        for way in ways:
            s = seconds[way.name]
            share = f"{batch * gmacs / s / peak:.0%}" if peak else "–"
            row = [f"{1e3 * s / batch:.2f}", f"{eager / s:.2f}", f"{seconds[best] / s:.2f}", share]
            row.append(f"{way.off[batch]:.0e}")
            figures[way.name, network, batch] = row
            print(f"| {way.name}{' (best peer)' if way.name == best else ''} | {' | '.join(row)} |", flush=True)
    return figures


def summary(figures: Figures, ours: str) -> None:
    """All networks side by side, the batches in one cell."""
    ways = [*dict.fromkeys(way for way, _, _ in figures)]
    networks = [*dict.fromkeys(network for _, network, _ in figures)]
    batches = [*dict.fromkeys(batch for _, _, batch in figures)]

    def line(name: str, way: str, column: int) -> None:
        cells = [" / ".join(figures[way, network, batch][column] for batch in batches) for network in networks]
        print(f"| {name} | {' | '.join(cells)} |")

    print(f"\n| ms per image, batch {' / '.join(map(str, batches))} | {' | '.join(networks)} |")
    print("|---|" + "--:|" * len(networks))
    for way in ways:
        line(way, way, 0)
    for column, name in enumerate(("x eager", "x the best peer", "share of the FMA peak", "off"), 1):
        line(f"{ours}: {name}", ours, column)


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        return serve(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    if sys.argv[1:2] == ["--prepare"]:
        return prepare(Path(sys.argv[-1]), sys.argv[2], [int(b) for b in sys.argv[3:-1]])
    parser = argparse.ArgumentParser(description="Compare engines on a CPU with the usual ways to run a network.")
    parser.add_argument(
        "--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS, help="networks to measure (default: all)"
    )
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8], help="batch sizes (default: 1 8)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per batch size (default: %(default)s)")
    parser.add_argument("--ours", nargs="*", default=["auto"], help="engines of ours (default: auto)")
    parser.add_argument(
        "--peers", nargs="*", default=PEERS, choices=PEERS, help="other ways to compare with (default: all)"
    )
    arguments = parser.parse_args()
    figures: Figures = {}
    for network in arguments.networks:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            figures |= compare(network, arguments.batches, arguments.rounds, arguments.ours, arguments.peers, folder)
    summary(figures, f"ours {arguments.ours[0]}")
    return None


if __name__ == "__main__":
    main()
