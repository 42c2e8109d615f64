"""The engine for GPUs: its rewriting, batches and handling of too little memory, on a CPU; the rest needs a GPU."""

from __future__ import annotations

import contextlib
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from resnext_hub.errors import EngineError
from resnext_hub.inference import engines
from resnext_hub.inference.bulk import Request, classify_many
from resnext_hub.inference.engines import TorchEngine, gpu, open_engine
from resnext_hub.inference.engines.gpu import GpuEngine
from resnext_hub.inference.engines.precision import TOLERANCES
from resnext_hub.models.entrypoints import build, load
from resnext_hub.models.manifest import Architecture, default_manifest

from ..conftest import randomise

TINY = default_manifest().resolve("resnext_tiny")
SMALL = Architecture("Bottleneck", (1, 1, 1, 1), 8, 4, 4, 16, True)


def pixels_of(count: int, seed: int = 0) -> np.ndarray:
    """Smooth images of resnext_tiny's size."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    size = (TINY.preprocessing.crop_size,) * 2
    return np.stack([np.asarray(Image.fromarray(image).resize(size)) for image in coarse])


def engine_of(device: str = "cpu", **options: Any) -> GpuEngine:
    return GpuEngine(load(TINY), TINY.preprocessing, device, **options)


def off(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.ptp(expected))


def test_it_computes_what_the_network_does() -> None:
    network = build(SMALL, 10).eval()
    randomise(network)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    pixels = pixels_of(5)
    expected = TorchEngine(network, TINY.preprocessing, "cpu")(pixels)
    other = build(SMALL, 10).eval()
    other.load_state_dict(state)
    engine = GpuEngine(other, TINY.preprocessing, "cpu")
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in engine.network.modules())
    for got, wanted in zip(engine(pixels), expected, strict=True):
        assert (got.shape, got.dtype) == (wanted.shape, np.float32)
        assert off(got, wanted) < TOLERANCES["fp32"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_are_cast_once(precision: str) -> None:
    engine = engine_of(precision=precision)
    assert engine.precision == precision
    assert {p.dtype for p in engine.network.parameters()} == {gpu.DTYPES[precision]}
    difference = off(engine(pixels_of(3))[0], open_engine(TINY, "torch", device="cpu")(pixels_of(3))[0])
    assert 1e-5 < difference < TOLERANCES[precision]


def test_batches_are_padded_to_few_sizes_and_longer_ones_divided() -> None:
    engine, seen = engine_of(batch=6), list[int]()
    engine.network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    engine.network.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    pixels = pixels_of(15)
    alone = [np.concatenate(x) for x in zip(*(engine(image[None]) for image in pixels), strict=True)]
    assert set(seen) == {1}
    for count, sizes in ((1, [1]), (2, [2]), (3, [4]), (4, [4]), (5, [6]), (6, [6]), (15, [6, 6, 4])):
        seen.clear()
        for got, wanted in zip(engine(pixels[:count]), alone, strict=True):
            assert got.shape == wanted[:count].shape
            assert off(got, wanted[:count]) < 1e-5
        assert seen == sizes
    assert engine(pixels[:0])[0].shape == (0, 200)


def test_a_gpu_gets_this_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (engines, gpu):
        monkeypatch.setattr(module, "device_of", lambda device: torch.device("cpu"))
    for precision, expected in (("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp16"), ("auto", "fp16")):
        opened = open_engine(TINY, device="mps", precision=precision)
        assert isinstance(opened, GpuEngine)
        assert (opened.name, opened.precision, opened.most) == ("torch", expected, gpu.MOST)
    request = Request("photos", "resnext_tiny", batch=100, device="xpu")
    assert request.open_engine().most == 100  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.undo()
    assert not isinstance(open_engine(TINY, "torch", device="cpu"), GpuEngine)
    with pytest.raises(EngineError, match="fp16.* GPU"):
        open_engine(TINY, device="cpu", precision="fp16")


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99", "mps", "xpu", "hpu"])
def test_a_device_that_is_not_here_is_named(device: str) -> None:
    with pytest.raises(EngineError, match=f"device.*{device}"):
        open_engine(TINY, device=device)


class Limited(torch.nn.Module):
    """A network that runs out of memory if it gets more images than ``limit``."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.network = load(TINY)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.network(images)


def test_too_little_memory_halves_the_batch(caplog: Any) -> None:
    caplog.set_level("WARNING", "resnext_hub")
    engine = TorchEngine(Limited(3), TINY.preprocessing, "cpu")
    pixels = pixels_of(7)
    expected = TorchEngine(Limited(99), TINY.preprocessing, "cpu")(pixels)[0]
    assert off(engine(pixels)[0], expected) < 1e-5
    assert [record.args[1:] for record in caplog.records] == [(7, 3)]
    caplog.clear()
    assert off(engine(pixels)[0], expected) < 1e-5
    assert not caplog.records, "it is said once"
    with pytest.raises(EngineError, match="one image"):
        TorchEngine(Limited(0), TINY.preprocessing, "cpu")(pixels)


def test_too_little_memory_does_not_end_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    for i, image in enumerate(pixels_of(10)):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    made = dict[int, list[Any]]()
    for limit in (99, 2):
        engine = TorchEngine(Limited(limit), TINY.preprocessing, "cpu")
        monkeypatch.setattr(Request, "open_engine", lambda self, engine=engine: engine)
        out = tmp_path / f"{limit}.parquet"
        done = classify_many(str(tmp_path / "*.png"), out, "resnext_tiny", batch=8, workers=3, progress=False)
        assert (done.images, done.errors) == (10, 0)
        made[limit] = pq.read_table(out)["label"].to_pylist()
    assert made[2] == made[99]
    assert "8 images" in caplog.text


class Stream:
    """A stream of a machine without a GPU: everything has happened already."""

    def __init__(self, device: Any = None) -> None: ...

    def wait_stream(self, other: Any) -> None: ...

    wait_event = wait_stream

    def record_event(self) -> Any:
        return SimpleNamespace(synchronize=lambda: None)

    def synchronize(self) -> None: ...


def test_slots_and_graphs_with_a_double_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the GPU's own work: which sizes run eagerly, are captured and replayed, by several threads."""
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda value: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(gpu, "_pinned", lambda shape, dtype: torch.zeros(shape, dtype=dtype))
    captured, replayed = list[int](), list[int]()

    def capture(self: Any, network: Any, static: torch.Tensor) -> Any:
        made = network(static)

        def replay() -> None:
            replayed.append(len(static))
            for old, new in zip(made, network(static), strict=True):
                old.copy_(new)

        captured.append(len(static))
        return SimpleNamespace(replay=replay), static, made

    monkeypatch.setattr(gpu._Cuda, "_captured", capture)
    engine = engine_of(batch=8)
    engine._cuda = gpu._Cuda("cpu")
    pixels = pixels_of(8)
    expected = engine_of()(pixels)[0]
    for count in (1, 8, 3):
        for _ in range(3):
            assert off(engine(pixels[:count])[0], expected[:count]) < 1e-5
    assert (captured, replayed) == ([1, 8, 4], [1, 1, 8, 8, 4, 4])
    both = threading.Barrier(4)

    def call(i: int) -> np.ndarray:
        both.wait()
        return np.stack([engine(np.roll(pixels, i, 0))[0] for _ in range(5)])

    with ThreadPoolExecutor(4) as pool:
        for i, found in enumerate(pool.map(call, range(4))):
            assert off(found, np.stack([np.roll(expected, i, 0)] * 5)) < 1e-5
    assert captured == [1, 8, 4]
    engine._run_fewer_than(8)
    assert (engine.most, engine._cuda.graphs) == (4, {})
    again = pickle.loads(pickle.dumps(engine))
    assert off(again(pixels)[0], expected) < 1e-5

    def fail(self: Any, network: Any, static: torch.Tensor) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(gpu._Cuda, "_captured", fail)
    for _ in range(3):
        assert off(again(pixels[:1])[0], expected[:1]) < 1e-5
    assert not again._cuda.capturing


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_logits_on_a_gpu_are_those_of_the_cpu(precision: str) -> None:
    """Eagerly, then captured, then replayed, for several sizes; in fp32 TF32 is off, whatever PyTorch's setting."""
    engine = open_engine(TINY, device="cuda", precision=precision, batch=64)
    assert isinstance(engine, GpuEngine)
    expected = TorchEngine(load(TINY), TINY.preprocessing, "cpu")(pixels_of(64))
    for count in (1, 5, 64):
        for _ in range(3):
            for got, wanted in zip(engine(pixels_of(64)[:count]), expected, strict=True):
                assert off(got, wanted[:count]) < TOLERANCES[precision]
    assert engine._cuda is not None
    assert sorted(shape[0] for shape in engine._cuda.graphs) == [1, 8, 64]


@pytest.mark.gpu
def test_a_replayed_graph_computes_what_the_eager_network_does() -> None:
    """Several threads at once, each with other images and sizes: no batch gets another's pixels or results."""
    engine = open_engine(TINY, device="cuda", precision="fp16", batch=32)
    pixels = pixels_of(32)
    expected = TorchEngine(engine.network, TINY.preprocessing, "cuda")(pixels)[0]  # type: ignore[attr-defined]

    def call(i: int) -> float:
        count, first = 1 + 7 * i % 32, i % 32
        return off(engine(np.roll(pixels, -first, 0)[:count])[0], np.roll(expected, -first, 0)[:count])

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(call, range(200))) < TOLERANCES["fp16"]


@pytest.mark.gpu
def test_a_table_on_a_gpu_has_the_classes_of_the_cpu(tmp_path: Path) -> None:
    for i, image in enumerate(pixels_of(70)):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    made = []
    for device in ("cpu", "cuda"):
        out = tmp_path / f"{device}.parquet"
        classify_many(str(tmp_path / "*.png"), out, TINY.name, engine="torch", device=device, progress=False)
        made.append(pq.read_table(out)["label"].to_pylist())
    assert made[0] == made[1]
