"""Engines on this machine's CPU: ours against the usual ways to run the same network, in each precision.

    python benchmarks/engines.py [--networks resnet18 …] [--batches 1 8] [--rounds 5] [--precisions fp32 bf16 int8]
        [--ours auto onnxruntime openvino] [--peers …]

Every way is a process of its own that sleeps until it is asked, so that no thread pool of one disturbs another; in each
round every way runs its share, one after the other. Peers get normalised float32 images, ready made; ours gets uint8
pixels and normalises them itself. Weights are random and the same in all. "Off" is the largest difference to
torchvision eager's logits, as a share of their range; for int8, which is calibrated with noise here, it says nothing.
"Peak" is what a loop of nothing but the precision's own multiply-adds reaches on all cores in the same run (needs a C
compiler, and for bf16 and int8 AVX-512), a network's share of it counts the multiply-adds of the manifest.
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
# OpenVINO's own default is bfloat16 if the processor has it. "throughput": its hint of this name, a queue of requests
# of one image each, as its documentation recommends. "QDQ": ONNX Runtime's quantize_static as its documentation
# recommends for CPUs, per channel, 7-bit weights without VNNI.
PEERS = {
    "fp32": ["torchvision", "tuned malloc", "channels_last", "AOTInductor", "ONNX Runtime", "OpenVINO", "timm"],
    "bf16": ["OpenVINO default", "OpenVINO throughput", "torch bf16", "torch bf16 autocast"],
    "int8": ["ONNX Runtime QDQ", "OpenVINO QDQ", "OpenVINO QDQ throughput"],
}
# Keep freed memory, and take none by mmap: what tcmalloc or jemalloc are recommended for.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(1 << 32), "MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": str(64 << 20)}
FMA = r"""
#include <immintrin.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#if defined(BF16)  // 32 products for each instruction
#define V __m512
#define X __m512bh
#define SET(v) ((X)_mm512_castps_si512(_mm512_set1_ps(v)))
#define FMADD _mm512_dpbf16_ps
#define LANES 32
#elif defined(INT8)  // 64 products
#define V __m512i
#define SET(v) _mm512_set1_epi8(1)
#define FMADD _mm512_dpbusd_epi32
#define LANES 64
#elif defined(__AVX512F__)
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
#ifndef X
#define X V
#endif
static float sink;
static void *work(void *unused) {
    V a[12]; X x = SET(1.0001f), y = SET(1e-9f);
    for (int j = 0; j < 12; j++) { X start = SET(j); __builtin_memcpy(&a[j], &start, sizeof(V)); }
    for (long i = 0; i < 40000000; i++)
        _Pragma("GCC unroll 12") for (int j = 0; j < 12; j++) a[j] = FMADD(a[j], x, y);
    float t[sizeof(V) / sizeof(float)];
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
    if way.startswith(("ONNX Runtime", "OpenVINO")):
        model = folder / f"{network}{'-int8' * ('QDQ' in way)}.onnx"
        if way.startswith("ONNX Runtime"):
            session = import_quietly("onnxruntime").InferenceSession(model, providers=["CPUExecutionProvider"])
            return lambda b: session.run(None, {"x": images[b]})[0]
        openvino = import_quietly("openvino")
        hint = {"INFERENCE_PRECISION_HINT": "f32"} if way == "OpenVINO" else {}
        if way.endswith("throughput"):
            return _queue(openvino, model, images)
        compiled = openvino.compile_model(str(model), "CPU", hint)
        return lambda b: compiled(images[b])[0]
    import torch

    torch.set_grad_enabled(False)
    made = _timm(network) if way == "timm" else _torchvision(network)
    made.load_state_dict(torch.load(folder / f"{network}.pth", weights_only=True))
    made.eval()
    tensors = {b: torch.from_numpy(x) for b, x in images.items()}
    if way == "channels_last" or way.startswith("torch bf16"):
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
    if way == "torch bf16":
        made = made.bfloat16()
        return lambda b: made(tensors[b].bfloat16()).float().numpy()

    def run(b: int) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled=way.endswith("autocast")):
            return made(tensors[b]).float().numpy()

    return run


def _queue(openvino: Any, model: Path, images: dict[int, np.ndarray]) -> Any:
    compiled = openvino.compile_model(str(model), "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})
    queue, logits = openvino.AsyncInferQueue(compiled), {}
    queue.set_callback(lambda request, i: logits.update({i: request.get_output_tensor(0).data.copy()}))

    def run(b: int) -> np.ndarray:
        for i in range(b):
            queue.start_async({0: images[b][i : i + 1]}, i)
        queue.wait_all()
        return np.concatenate([logits[i] for i in range(b)])

    return run


def _ours(way: str, network: str, folder: Path) -> Any:
    from resnext_hub.inference.engines import open_engine
    from resnext_hub.models.manifest import Source, default_manifest

    source = Source(f"http://127.0.0.1/{network}.pth", None, None, None, None)
    checkpoint = dataclasses.replace(default_manifest().resolve(NETWORKS[network]), sources=(source,))
    engine, precision = way.split()
    images = str(folder / "calibration") if precision == "int8" else None
    opened = open_engine(checkpoint, engine, precision=precision, calibration=images)
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
    """Weights, images, ONNX files and the expected logits."""
    import torch
    from PIL import Image
    from resnext_hub.inference.engines.precision import computes_int8
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
        external_data=False, input_names=["x"], dynamic_shapes=({0: torch.export.Dim("n")},), opset_version=20,
    )  # fmt: skip
    noise = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), dtype=np.uint8)
    (folder / "calibration").mkdir()
    for i, image in enumerate(noise):
        Image.fromarray(image).save(folder / "calibration" / f"{i}.png")
    quantization = import_quietly("onnxruntime.quantization")
    prepared, images = folder / "prepared.onnx", iter([{"x": normalise(noise, preset)}])
    quantization.shape_inference.quant_pre_process(folder / f"{network}.onnx", prepared, skip_symbolic_shape=True)

    class Images(quantization.CalibrationDataReader):
        def get_next(self) -> Any:
            return next(images, None)

    quantization.quantize_static(
        prepared, folder / f"{network}-int8.onnx", Images(), per_channel=True, reduce_range=not computes_int8()
    )


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


def fma_peak(folder: Path, precision: str) -> float | None:
    """Billions of multiply-adds per second on all cores; None without a C compiler or the instructions."""
    (folder / "fma.c").write_text(FMA)
    command = ["cc", "-O2", "-march=native", "-pthread", f"-D{precision.upper()}", "fma.c", "-o", "fma"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    done = subprocess.run([folder / "fma", str(os.cpu_count())], check=True, capture_output=True, text=True)
    return float(done.stdout)


COLUMNS = ("ms/image", "x eager", "x ours, the first", "x best peer of the precision", "of peak", "off")
Figures = dict[tuple[str, str, int], list[str]]  # (way, network, batch) -> a row of its table


def precision_of(way: str) -> str:
    return way.split()[-1] if way.startswith("ours") else next(p for p, peers in PEERS.items() if way in peers)


def compare(network: str, batches: list[int], rounds: int, ours: list[str], peers: list[str], folder: Path) -> Figures:
    figures: Figures = {}
    from resnext_hub.models.manifest import default_manifest

    subprocess.run([sys.executable, __file__, "--prepare", network, *map(str, batches), str(folder)], check=True)
    gmacs = default_manifest().resolve(NETWORKS[network]).gmacs
    ways = [Way(way, network, folder) for way in [*peers, *ours]]
    peaks: dict[str, list[float | None]] = {precision_of(way.name): [] for way in ways}
    for _ in range(rounds):
        for precision, found in peaks.items():
            found.append(fma_peak(folder, precision))
        for batch in batches:
            for way in ways:
                way.run(batch, max(2, min(20, round(40 / (gmacs * batch)))))
    peak = {p: statistics.median(filter(None, found)) for p, found in peaks.items() if None not in found}
    for way in ways:
        way.close()
    for batch in batches:
        seconds = {way.name: statistics.median(way.seconds[batch]) for way in ways}
        print(f"\n| {network}, batch {batch} | {' | '.join(COLUMNS)} |")
        print(f"|---{'|--:' * len(COLUMNS)}|")
        for way in ways:
            s, precision = seconds[way.name], precision_of(way.name)
            best = min((seconds[name] for name in peers if precision_of(name) == precision), default=None)
            row = [f"{1e3 * s / batch:.2f}"]
            row += [
                f"{other / s:.2f}" if other else "–" for other in (seconds.get("torchvision"), seconds[ours[0]], best)
            ]
            row.append(f"{batch * gmacs / s / peak[precision]:.0%}" if precision in peak else "–")
            row.append(f"{way.off[batch]:.0e}")
            figures[way.name, network, batch] = row
            print(f"| {way.name}{' (best peer)' if s == best else ''} | {' | '.join(row)} |", flush=True)
    return figures


def summary(figures: Figures, ours: list[str]) -> None:
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
    for way in ours:
        for column, name in enumerate(COLUMNS[1:], 1):
            line(f"{way}: {name}", way, column)


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
    parser.add_argument("--ours", nargs="*", default=["auto"], help="engines of ours, for fp32 (default: auto)")
    parser.add_argument("--precisions", nargs="*", default=list(PEERS), choices=PEERS, help="default: all")
    every = [way for peers in PEERS.values() for way in peers]
    parser.add_argument("--peers", nargs="*", default=every, choices=every, help="of these precisions (default: all)")
    arguments = parser.parse_args()
    ours = [f"ours {engine} fp32" for engine in arguments.ours]  # always: the others are compared with it
    ours += [f"ours auto {precision}" for precision in arguments.precisions if precision != "fp32"]
    peers = [way for way in arguments.peers if precision_of(way) in arguments.precisions]
    figures: Figures = {}
    for network in arguments.networks:
        with tempfile.TemporaryDirectory() as name:
            figures |= compare(network, arguments.batches, arguments.rounds, ours, peers, Path(name))
    summary(figures, ours)
    return None


if __name__ == "__main__":
    main()
