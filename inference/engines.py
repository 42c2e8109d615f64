"""Engines: what takes a batch of pixels to logits, as fast as this machine allows.

`open_engine` builds an engine for a checkpoint once, keeps it beside the checkpoints
(``.resnext-hub/engines/<checkpoint>-<key>``), and opens it from there ever after, without torch where the engine needs
none. The key is made of all that the built form depends on: the checkpoint's sha256, the engine's and this module's
version, and the processor's instruction sets.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
import shutil
import sys
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..models.cache import CheckpointError, lock, own_file
from ..models.download import local_file
from ..models.manifest import Checkpoint, Preprocessing
from ..mount import register

if TYPE_CHECKING:
    import torch

    from ..models.resnext import ResNeXt

__all__ = ["ENGINES", "Engine", "EngineError", "TorchEngine", "open_engine"]

log = logging.getLogger("resnext_hub")

REVISION = 1  # of the built forms: a new number has them built anew
Outputs = tuple[np.ndarray, np.ndarray]


class EngineError(RuntimeError):
    """An engine that cannot be had here; the message says what is missing."""


class Engine(ABC):
    """uint8 pixels (N, crop, crop, 3) -> float32 logits (N, classes) and pooled features (N, num_features).

    Attributes:
        name: the engine's.
        device: where it runs.
        precision: what it calculates in.
        threads: processor cores that one call uses; None where that is torch's own affair.
        concurrent: whether several threads may call it at once, and gain by it.
        build_seconds: what building it took, when it was built.
    """

    name: ClassVar[str]
    needs: ClassVar[Sequence[str]] = ()  # packages
    device: str = "cpu"
    precision: str = "fp32"
    threads: int | None = None
    concurrent: bool = False
    build_seconds: float = 0.0

    @abstractmethod
    def __call__(self, pixels: np.ndarray) -> Outputs: ...

    def __repr__(self) -> str:
        threads = f", {self.threads} threads" if self.threads else ""
        return f"{type(self).__name__}({self.precision} on {self.device}{threads})"


class TorchEngine(Engine):
    """PyTorch's eager mode, channels last; on a GPU under float16 autocast. Its weights stay where they are mapped.

    Args:
        network: any module from normalised images (N, 3, H, W) to logits (features are then empty), or a `ResNeXt`.
        device: where to run; the GPU if there is one.
        threads: 1 has every thread that calls it use one core, and lets several call it at once; the setting is
            torch's own, for the whole process (`torch.set_num_threads`). None leaves it as it is.
    """

    name = "torch"
    needs = ("torch",)

    def __init__(
        self,
        network: torch.nn.Module,
        preset: Preprocessing,
        device: str | torch.device | None = None,
        threads: int | None = None,
    ) -> None:
        import torch

        from .graph import PixelNetwork

        _keep_freed_memory()
        if threads is not None:
            torch.set_num_threads(threads)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.device = str(where)
        self.threads = threads
        self.concurrent = threads == 1 and where.type == "cpu"
        # NHWC is what GPU tensor cores and oneDNN's grouped convolutions work in.
        network = network.eval().requires_grad_(False).to(where)
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.network = network
        self._pixels = PixelNetwork(network, preset).eval().to(where)
        dtype = next((p.dtype for p in network.parameters()), torch.float32)
        self.autocast = where.type == "cuda" and dtype == torch.float32
        self.precision = "fp16" if self.autocast else {"float32": "fp32"}.get(str(dtype)[6:], str(dtype)[6:])

    def __call__(self, pixels: np.ndarray) -> Outputs:
        import torch

        where = torch.device(self.device)
        with torch.inference_mode(), torch.autocast(where.type, torch.float16, enabled=self.autocast):
            logits, features = self._pixels(torch.from_numpy(pixels).to(where))
        return logits.float().cpu().numpy(), features.float().cpu().numpy()


class _BuiltEngine(Engine):
    """An engine with a built form on disk: a folder that holds all of it, and "engine.json" that says what it is.

    Calls are shared out: each core runs one thread over its own few images at a time, which keeps the feature maps in
    its cache and has no core wait for another; a single image is run by all cores together.
    """

    extra: ClassVar[str]  # of this project, that brings what it needs
    portion: ClassVar[int] = 4  # images that one core takes at a time
    distribution: ClassVar[str]  # the distribution whose version the built form depends on
    builds_with: ClassVar[Sequence[str]] = ()

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.folder = folder
        self._share = self.threads = threads or _cores()
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


class OnnxRuntimeEngine(_BuiltEngine):
    """ONNX Runtime on the CPU. The optimised graph is what is kept; its weights are mapped from one file."""

    name = "onnxruntime"
    needs = ("onnxruntime",)
    builds_with = ("torch", "onnx", "onnxscript")
    distribution = "onnxruntime"
    extra = "fast"

    def _run_with(self, threads: int) -> Callable[[np.ndarray], Outputs]:
        import onnxruntime

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
        import onnxruntime

        exported = _export_onnx(network, preset, folder / "exported")
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(folder / "model.onnx")
        for key, value in (("file_name", "model.data"), ("min_size_in_bytes", "1024")):
            options.add_session_config_entry(f"session.optimized_model_external_initializers_{key}", value)
        _onnx_session(exported, options)
        shutil.rmtree(exported.parent)


class OpenVINOEngine(_BuiltEngine):
    """Intel's OpenVINO on the CPU, in float32 (its own default is bfloat16 where the processor has it)."""

    name = "openvino"
    needs = ("openvino",)
    builds_with = ("torch", "onnx", "onnxscript")
    distribution = "openvino"
    extra = "openvino"

    def _run_with(self, threads: int) -> Callable[[np.ndarray], Outputs]:
        import openvino

        core = openvino.Core()
        blob = (self.folder / f"model.{threads > 1}.blob").read_bytes()
        compiled = core.import_model(io.BytesIO(blob), "CPU", self._how(threads))
        local = threading.local()

        def run(pixels: np.ndarray) -> Outputs:
            if not hasattr(local, "request"):
                local.request = compiled.create_infer_request()
            results = local.request.infer({0: pixels})
            return results[0].copy(), results[1].copy()

        return run

    @staticmethod
    def _how(threads: int) -> dict[str, Any]:
        streams = 1 if threads > 1 else _cores()
        return {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": _cores()}

    @classmethod
    def build(cls, network: ResNeXt, preset: Preprocessing, folder: Path) -> None:
        import openvino

        exported = _export_onnx(network, preset, folder / "exported")
        core = openvino.Core()
        model = core.read_model(exported)
        for many in (True, False):
            compiled = core.compile_model(model, "CPU", cls._how(2 if many else 1))
            (folder / f"model.{many}.blob").write_bytes(compiled.export_model().getvalue())
        shutil.rmtree(exported.parent)


class CompiledEngine(_BuiltEngine):
    """torch.export and AOTInductor on the CPU: a shared library of kernels made for this network. Needs a C++ compiler.

    torch's own threads run it, all of them together.
    """

    name = "compile"
    needs = ("torch",)
    builds_with = ("torch",)
    distribution = "torch"
    extra = "fast"

    def _open(self) -> None:
        super()._open()
        self.concurrent = False

    def __call__(self, pixels: np.ndarray) -> Outputs:
        return self._runner(self._share)(pixels)

    def _run_with(self, threads: int) -> Callable[[np.ndarray], Outputs]:
        import torch
        import torch._inductor

        _keep_freed_memory()
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
        with torch.no_grad(), config.patch(freezing=True), _exporters_silenced():
            exported = torch.export.export(fast, (pixels,), dynamic_shapes=({0: torch.export.Dim("images")},))
            aoti_compile_and_package(exported, package_path=str(folder / "model.pt2"))


def _onnx_session(model: Path, options: Any) -> Any:
    import onnxruntime

    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _export_onnx(network: ResNeXt, preset: Preprocessing, folder: Path) -> Path:
    """The rewritten network as ONNX with a free batch size; weights beside it, since a file of 2 GB or more is none."""
    import torch

    from .graph import rewritten

    folder.mkdir()
    pixels = torch.zeros(2, preset.crop_size, preset.crop_size, 3, dtype=torch.uint8, device="cpu")
    with _exporters_silenced():
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
def _exporters_silenced() -> Iterator[None]:
    """torch's exporters warn of their own deprecated parts, and print; a user can do nothing about either."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _instruction_sets() -> tuple[str, ...]:
    simd: Any = np.show_config(mode="dicts")
    return tuple(simd["SIMD Extensions"]["found"])


def _lanes() -> int:
    """float32 numbers in a vector register."""
    return 16 if any(name == "X86_V4" or name.startswith("AVX512") for name in _instruction_sets()) else 8


@cache
def _keep_freed_memory() -> None:
    """Have glibc keep freed feature maps for the next call instead of giving them back and faulting them in again."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, its largest value: what is smaller comes from the heap
        mallopt(-1, 512 << 20)  # M_TRIM_THRESHOLD: free bytes at the heap's end that are kept


BUILT: dict[str, type[_BuiltEngine]] = {
    engine.name: engine for engine in (OnnxRuntimeEngine, OpenVINOEngine, CompiledEngine)
}
ENGINES = ("auto", TorchEngine.name, *BUILT)
register(TorchEngine, *BUILT.values())


def _missing(packages: Sequence[str]) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]


def open_engine(
    checkpoint: Checkpoint,
    engine: str = "auto",
    *,
    device: str | torch.device | None = None,
    threads: int | None = None,
    progress: bool = True,
    build: bool = True,
) -> Engine:
    """The engine of a checkpoint, built if it has not been built on this machine.

    Args:
        engine: one of `ENGINES`; "auto" takes PyTorch on a GPU, on a CPU ONNX Runtime where it is installed.
        device: where to run; the GPU if there is one. Engines other than "torch" run on the CPU.
        threads: processor cores for one call; all by default. With 1 the engine is to be called by several threads.
        progress: show a bar while weights are fetched.
        build: False has "auto" take what has been built before, else PyTorch: for a few images, building takes longer
            than it saves.

    Raises:
        ValueError: no such engine.
        EngineError: a package or a compiler that it needs is missing.
        CheckpointError: the weights cannot be fetched or verified.
    """
    if engine not in ENGINES:
        raise ValueError(f"There is no engine {engine!r}; there are {', '.join(ENGINES)}.")
    on_cpu = not _has_gpu() if device is None else str(device) == "cpu"
    if engine not in ("auto", "torch") and not on_cpu and device is not None:
        raise EngineError(f"The engine {engine} runs on the CPU, not on {device}; engine='torch' does.")
    kind = BUILT.get(engine) or (OnnxRuntimeEngine if engine == "auto" and on_cpu else None)
    if kind is not None:
        try:
            if opened := _open_built(checkpoint, kind, threads, progress, build or engine != "auto"):
                return opened
        except EngineError as error:
            if engine != "auto":
                raise
            log.info("%s", error)
    from ..models.entrypoints import load

    return TorchEngine(load(checkpoint, progress=progress), checkpoint.preprocessing, device, threads)


def _has_gpu() -> bool:
    """Whether PyTorch has a GPU; torch is only imported to find out where there is a driver at all."""
    drivers = ("/dev/nvidiactl", "/dev/kfd", "/proc/driver/nvidia")
    if sys.modules.get("torch") is None and not any(map(os.path.exists, drivers)):
        return False
    import torch

    return torch.cuda.is_available()


def _open_built(
    checkpoint: Checkpoint, kind: type[_BuiltEngine], threads: int | None, progress: bool, build: bool
) -> _BuiltEngine | None:
    """The engine, built if need be; None where it has not been built and is not to be."""
    advice = f"pip install 'resnext-hub[{kind.extra}]'"
    if missing := _missing(kind.needs):
        raise EngineError(f"The engine {kind.name} needs {', '.join(missing)}: {advice}.")
    path, digest = local_file(checkpoint, progress)
    folder = _folder(path, digest, kind)
    if folder.exists():
        try:
            return kind(folder, threads)
        except Exception as error:  # each library has its own for a file that is broken
            log.warning("%s cannot be opened and is built anew: %s", folder, error)
    if not build:
        return None
    if missing := _missing(kind.builds_with):
        raise EngineError(f"Building the engine {kind.name} takes {', '.join(missing)}: {advice}.")
    try:
        _build(checkpoint, kind, folder, path.name, digest, progress)
    except (OSError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise EngineError(f"The engine {kind.name} could not be built in {folder.parent}: {error}") from error
    return kind(folder, threads)


def _folder(path: Path, digest: str, kind: type[_BuiltEngine]) -> Path:
    version = importlib.metadata.version(kind.distribution)
    depends_on = [digest, kind.name, version, REVISION, _instruction_sets(), _cores()]
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]
    return own_file(path, "").parent / "engines" / f"{path.name}-{kind.name}-{key}"


def _build(
    checkpoint: Checkpoint, kind: type[_BuiltEngine], folder: Path, file: str, digest: str, progress: bool
) -> None:
    from ..models.entrypoints import load

    with lock(folder):
        if folder.exists():
            try:
                kind(folder)  # another process was faster
                return
            except Exception:
                shutil.rmtree(folder)
        log.info("building the %s engine of %s, once", kind.name, checkpoint.name)
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            start = time.perf_counter()
            kind.build(load(checkpoint, progress=progress), checkpoint.preprocessing, part)
            about = {
                "checkpoint": checkpoint.name,
                "file": file,
                "sha256": digest,
                "engine": kind.name,
                "distribution": kind.distribution,
                "version": importlib.metadata.version(kind.distribution),
                "build_seconds": round(time.perf_counter() - start, 2),
            }
            (part / "engine.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
