"""Engines with a built form on disk: ONNX Runtime, OpenVINO, AOTInductor. `engines` builds, keeps and opens them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import threading
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..models.manifest import Preprocessing
from ..mount import register
from ..telemetry import import_quietly
from .torch_engine import Engine, Outputs, keep_freed_memory

if TYPE_CHECKING:
    from ..models.resnext import ResNeXt

__all__ = [
    "KINDS",
    "BuiltEngine",
    "CompiledEngine",
    "OnnxRuntimeEngine",
    "OpenVINOEngine",
    "available_cores",
    "instruction_sets",
]


class BuiltEngine(Engine):
    """An engine with a built form on disk: a folder that holds all of it, and "engine.json" that says what it is.

    Calls are shared out: each core runs one thread over its own few images at a time, which keeps the feature maps in
    its cache and has no core wait for another; a single image is run by all cores together.
    """

    extra: ClassVar[str]  # of this project, that brings what it needs
    portion: ClassVar[int] = 4  # images that one core takes at a time
    library: ClassVar[str]  # the module whose version the built form depends on
    needs: ClassVar[Sequence[str]]  # packages, to open it
    builds_with: ClassVar[Sequence[str]]

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.folder = folder
        self._share = self.threads = threads or available_cores()
        self.concurrent = self.threads == 1
        about = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
        self.build_seconds = about["build_seconds"]
        self._open()

    def _open(self) -> None:
        self._guard = threading.Lock()
        self._runners: dict[int, Callable[[np.ndarray], Outputs]] = {}
        self._pool = ThreadPoolExecutor(self._share) if self._share > 1 else None
        self._runner(self._share)

    def _runner(self, threads: int) -> Callable[[np.ndarray], Outputs]:
        with self._guard:
            if threads not in self._runners:
                self._runners[threads] = self._run_with(threads)
            return self._runners[threads]

    @abstractmethod
    def _run_with(self, threads: int) -> Callable[[np.ndarray], Outputs]:
        """What runs a few images on so many cores."""

    @classmethod
    @abstractmethod
    def build(cls, network: ResNeXt, preset: Preprocessing, folder: Path) -> None:
        """Write the built form into a folder; the network is used up."""

    def __call__(self, pixels: np.ndarray) -> Outputs:
        count = len(pixels)
        if self._pool is None or count < self._share:
            return self._runner(self._share)(pixels)
        portion = min(self.portion, -(-count // self._share))
        parts = [pixels[i : i + portion] for i in range(0, count, portion)]
        results = list(self._pool.map(self._runner(1), parts))
        return np.concatenate([logits for logits, _ in results]), np.concatenate([maps for _, maps in results])

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_guard", "_runners", "_pool")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()


class OnnxRuntimeEngine(BuiltEngine):
    """ONNX Runtime on the CPU. The optimised graph is what is kept; its weights are mapped from one file."""

    name = "onnxruntime"
    needs = ("onnxruntime",)
    builds_with = ("torch", "onnx", "onnxscript")
    library = "onnxruntime"
    extra = "fast"

    def _run_with(self, threads: int) -> Callable[[np.ndarray], Outputs]:
        onnxruntime = import_quietly("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimised
        options.intra_op_num_threads = threads
        session = _onnx_session(self.folder / "model.onnx", options)

        def run(pixels: np.ndarray) -> Outputs:
            logits, features = session.run(None, {"pixels": pixels})
            return logits, features

        return run

    @classmethod
    def build(cls, network: ResNeXt, preset: Preprocessing, folder: Path) -> None:
        onnxruntime = import_quietly("onnxruntime")
        exported = _export_onnx(network, preset, folder / "exported")
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(folder / "model.onnx")
        for key, value in (("file_name", "model.data"), ("min_size_in_bytes", "1024")):
            options.add_session_config_entry(f"session.optimized_model_external_initializers_{key}", value)
        _onnx_session(exported, options)
        shutil.rmtree(exported.parent)


@cache
def openvino_core() -> Any:
    """The one ``openvino.Core`` of this process, for good.

    Every Core lends the thread that makes it a stack for signals (sigaltstack) and takes it away when it goes. Where
    two go in the order they came, the thread is left with a stack that is no longer mapped, and the next signal ends
    the process: a SIGCHLD, where a DataLoader's workers are watched (OpenVINO 2026.4).
    """
    return import_quietly("openvino").Core()


class OpenVINOEngine(BuiltEngine):
    """Intel's OpenVINO on the CPU, in float32 (its own default is bfloat16 where the processor has it)."""

    name = "openvino"
    needs = ("openvino",)
    builds_with = ("torch", "onnx", "onnxscript")
    library = "openvino"
    extra = "openvino"

    def _run_with(self, threads: int) -> Callable[[np.ndarray], Outputs]:
        blob = (self.folder / f"model.{threads > 1}.blob").read_bytes()
        compiled = openvino_core().import_model(
            io.BytesIO(blob), "CPU", self._how(threads, max(self._share, available_cores()))
        )
        local = threading.local()

        def run(pixels: np.ndarray) -> Outputs:
            if not hasattr(local, "request"):
                local.request = compiled.create_infer_request()
            results = local.request.infer({0: pixels})
            return results[0].copy(), results[1].copy()

        # In one thread first: two threads in OpenVINO's very first call of a process can wait for each other for ever.
        crop = compiled.input(0).partial_shape[1].get_length()
        run(np.zeros((1, crop, crop, 3), np.uint8))
        return run

    @staticmethod
    def _how(threads: int, callers: int) -> dict[str, Any]:
        """One stream of many threads, or a stream of one thread for every caller at the same time."""
        streams, cores = (1, threads) if threads > 1 else (callers, callers)
        return {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": cores}

    @classmethod
    def build(cls, network: ResNeXt, preset: Preprocessing, folder: Path) -> None:
        exported = _export_onnx(network, preset, folder / "exported")
        core = openvino_core()
        model = core.read_model(exported)
        for many in (True, False):
            compiled = core.compile_model(
                model, "CPU", cls._how(max(2, available_cores()) if many else 1, available_cores())
            )
            (folder / f"model.{many}.blob").write_bytes(compiled.export_model().getvalue())
        shutil.rmtree(exported.parent)


class CompiledEngine(BuiltEngine):
    """torch.export and AOTInductor on the CPU: a shared library of kernels made for this network. Needs a C++ compiler.

    torch's own threads run it, all of them together.
    """

    name = "compile"
    needs = ("torch",)
    builds_with = ("torch",)
    library = "torch"
    extra = "fast"

    def _open(self) -> None:
        super()._open()
        self.threads, self.concurrent = None, False

    def __call__(self, pixels: np.ndarray) -> Outputs:
        return self._runner(self._share)(pixels)

    def _run_with(self, threads: int) -> Callable[[np.ndarray], Outputs]:
        import torch
        import torch._inductor

        keep_freed_memory()
        run_compiled = torch._inductor.aoti_load_package(str(self.folder / "model.pt2"))

        def run(pixels: np.ndarray) -> Outputs:
            with torch.inference_mode():
                logits, features = run_compiled(torch.from_numpy(pixels))
            return logits.numpy(), features.numpy()

        return run

    @classmethod
    def build(cls, network: ResNeXt, preset: Preprocessing, folder: Path) -> None:
        import torch
        from torch._inductor import aoti_compile_and_package, config

        from .graph import rewritten

        fast = rewritten(network, preset, lanes=1).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        pixels = torch.zeros(2, preset.crop_size, preset.crop_size, 3, dtype=torch.uint8, device="cpu")
        with torch.no_grad(), config.patch(freezing=True), exporters_silenced():
            exported = torch.export.export(fast, (pixels,), dynamic_shapes=({0: torch.export.Dim("images")},))
            aoti_compile_and_package(exported, package_path=str(folder / "model.pt2"))


def _onnx_session(model: Path, options: Any) -> Any:
    onnxruntime = import_quietly("onnxruntime")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _export_onnx(network: ResNeXt, preset: Preprocessing, folder: Path) -> Path:
    """The rewritten network as ONNX with a free batch size; weights beside it, since a file of 2 GB or more is none."""
    import torch

    from .graph import rewritten

    folder.mkdir()
    pixels = torch.zeros(2, preset.crop_size, preset.crop_size, 3, dtype=torch.uint8, device="cpu")
    with exporters_silenced():
        torch.onnx.export(
            rewritten(network, preset, _lanes()),
            (pixels,),
            folder / "model.onnx",
            dynamo=True,
            opset_version=20,
            dynamic_shapes=({0: torch.export.Dim("images")},),
            input_names=["pixels"],
            output_names=["logits", "features"],
            external_data=True,
            verbose=False,
        )
    return folder / "model.onnx"


@contextlib.contextmanager
def exporters_silenced() -> Iterator[None]:
    """torch's exporters warn of their own deprecated parts, and print; a user can do nothing about either."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def instruction_sets() -> tuple[str, ...]:
    simd: Any = np.show_config(mode="dicts")
    return tuple(simd.get("SIMD Extensions", {}).get("found", ()))  # no key where there is none beyond the baseline


def _lanes() -> int:
    """float32 numbers in a vector register."""
    return 16 if any(name == "X86_V4" or name.startswith("AVX512") for name in instruction_sets()) else 8


KINDS: dict[str, type[BuiltEngine]] = {kind.name: kind for kind in (OnnxRuntimeEngine, OpenVINOEngine, CompiledEngine)}
register(*KINDS.values())
