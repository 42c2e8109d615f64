"""Engines: the same logits from every one, built once, opened without torch, safe under several processes."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resnext_hub import cli
from resnext_hub.errors import EngineError
from resnext_hub.files import SUFFIX, temporary_name
from resnext_hub.inference.engines import ENGINES, TorchEngine, engine_cache, folders, open_engine
from resnext_hub.inference.engines.folders import engine_folders, note_use
from resnext_hub.inference.engines.graph import PixelNetwork, rewrite
from resnext_hub.inference.engines.onnxruntime import OnnxRuntimeEngine
from resnext_hub.inference.engines.openvino import OpenVINOEngine
from resnext_hub.models.entrypoints import build, load
from resnext_hub.models.manifest import Architecture, default_manifest
from resnext_hub.models.store import Store
from resnext_hub.packages import missing
from resnext_hub.processing_utils.preprocessing import normalise

from ..conftest import randomise

TINY = default_manifest().resolve("resnext_tiny")
ARCHITECTURES = {
    "basic": Architecture("BasicBlock", (1, 1, 1, 1), 1, 64, None, 8, True),
    "4 a group": Architecture("Bottleneck", (1, 1, 1, 1), 32, 4, None, 64, True),
    "SE": Architecture("Bottleneck", (1, 1, 1, 1), 8, 4, 4, 16, True),
    "no pool": Architecture("Bottleneck", (1, 2, 1, 1), 8, 16, None, 16, False),
}
installed = pytest.mark.skipif(
    bool(missing(["onnxruntime", "onnx", "onnxscript", "openvino"])), reason="needs pip install .[fast]"
)


def pixels_of(count: int, seed: int = 0) -> np.ndarray:
    crop = TINY.preprocessing.crop_size
    return np.random.default_rng(seed).integers(0, 256, (count, crop, crop, 3), dtype=np.uint8)


def expected_of(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    network = load(TINY).eval()
    with torch.inference_mode():
        maps = network.forward_features(torch.from_numpy(normalise(pixels, TINY.preprocessing)))
        return network.forward_head(maps).numpy(), network.forward_head(maps, pre_logits=True).numpy()


def off(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.ptp(expected))


@pytest.mark.parametrize("lanes", [8, 16])
@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_the_rewritten_network_is_the_same_function(architecture: Architecture, lanes: int) -> None:
    network = build(architecture, 10).eval()
    randomise(network)
    pixels = torch.from_numpy(pixels_of(3))
    with torch.inference_mode():
        logits, features = PixelNetwork(network, TINY.preprocessing)(pixels)
        images = torch.from_numpy(normalise(pixels.numpy(), TINY.preprocessing))
        assert torch.equal(logits, network(images.to(memory_format=torch.channels_last)))
        fast = rewrite(copy.deepcopy(network), TINY.preprocessing, lanes)
        got = fast(pixels)
    assert off(got[0].numpy(), logits.numpy()) < 1e-5
    assert off(got[1].numpy(), features.numpy()) < 1e-5
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    widths = {m.weight.shape[1] for m in fast.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1}
    assert all(width >= min(lanes, 4 * architecture.groups) for width in widths)


@installed
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [None, 1])
def test_every_engine_gives_the_networks_logits(engine: str, threads: int | None) -> None:
    opened = open_engine(TINY, engine, threads=threads)
    assert (opened.device, opened.precision) == ("cpu", "fp32")
    for count in (1, 2, 5):
        pixels = pixels_of(count)
        expected = expected_of(pixels)
        for got, wanted in zip(opened(pixels), expected, strict=True):
            assert got.dtype == np.float32
            assert got.shape == wanted.shape
            assert off(got, wanted) < 1e-5


@installed
def test_one_engine_called_by_several_threads() -> None:
    opened = open_engine(TINY, "onnxruntime", threads=1)
    assert opened.concurrent
    batches = [pixels_of(2, seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(opened, batches))
    for pixels, (logits, _) in zip(batches, results, strict=True):
        assert np.array_equal(logits, opened(pixels)[0])


@installed
@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_an_engine_can_be_pickled(engine: str) -> None:
    opened = open_engine(TINY, engine)
    pixels = pixels_of(2)
    assert np.array_equal(pickle.loads(pickle.dumps(opened))(pixels)[0], opened(pixels)[0])


FORKED = """
import os, sys, numpy as np, torch
from resnext_hub.inference.classifier import classifier
images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return torch.tensor(answers(images[2 * i : 2 * i + 2]))

for engine in ("torch", "onnxruntime", "openvino"):
    classify = classifier("resnext_tiny", engine=engine)

    def answers(many=images):
        return [best[0].index for best in classify(many, 1)]

    expected = answers()
    loader = torch.utils.data.DataLoader(Images(), num_workers=2, multiprocessing_context="fork", timeout=60)
    assert torch.cat(list(loader), 1).flatten().tolist() == expected, engine
    if os.fork() == 0:  # an ordinary end, in which all objects are destroyed
        assert answers() == expected and answers(images[:1]) == expected[:1], engine
        sys.exit()
    assert os.wait()[1] == 0, engine
    assert answers() == expected, engine
"""


@installed
def test_engines_work_in_forked_processes(run_python: Any) -> None:
    """They have none of the threads that the engine was opened with."""
    open_engine(TINY, "openvino")
    run_python(FORKED, timeout=240, OMP_NUM_THREADS="2", **home_of_this_process())


SIGNALS = """
import signal, subprocess, numpy as np
from resnext_hub.inference.engines import open_engine
from resnext_hub.models.manifest import default_manifest
tiny = default_manifest().resolve("resnext_tiny")
opened = [open_engine(tiny, "openvino") for _ in range(2)]
for i in range(2):
    opened[i](np.zeros((1, *[tiny.preprocessing.crop_size] * 2, 3), np.uint8))
signal.signal(signal.SIGCHLD, lambda *_: print("a child has ended"))
while opened:
    del opened[0]
    subprocess.run(["true"])
"""


@installed
def test_signals_arrive_after_engines_are_deleted(run_python: Any) -> None:
    """Every ov.Core lends the thread a stack for signals, and takes it away: the first of two is left to the second."""
    open_engine(TINY, "openvino")
    assert run_python(SIGNALS, **home_of_this_process()).stdout == "a child has ended\n" * 2


SCRIPT = """
import sys, numpy as np
from resnext_hub.inference.classifier import classifier
pixels = np.zeros((64, 64, 3), np.uint8)
print(classifier("resnext_tiny", engine={engine!r})(pixels, 1)[0].index, "torch" in sys.modules)
"""


@installed
def test_a_built_engine_starts_without_torch(run_python: Any) -> None:
    open_engine(TINY, "onnxruntime")
    script = "".join(SCRIPT.format(engine=engine) for engine in ("auto", "onnxruntime"))
    assert run_python(script, **home_of_this_process()).stdout.split()[1::2] == ["False", "False"]


def home_of_this_process() -> dict[str, str]:
    return {"TORCH_HOME": os.environ["TORCH_HOME"]}


@installed
def test_two_processes_build_once(tmp_path: Path) -> None:
    environment = os.environ | {"TORCH_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT.format(engine="onnxruntime")]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=300)[0].split() for process in processes]
    assert answers[0][0] == answers[1][0]
    folder = tmp_path / "hub" / "checkpoints" / ".resnext-hub" / "engines"
    assert len(list(folder.iterdir())) == 1


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints" / ".resnext-hub" / "engines"


@pytest.fixture(scope="module")
def built_once() -> Path:
    open_engine(TINY, "onnxruntime")
    path, digest = local()
    name = f"{path.name}-onnxruntime-{engine_cache._key(TINY, digest, OnnxRuntimeEngine)}"
    return Store().own / "engines" / name


@pytest.fixture
def quick(built_once: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building copies what was built before; all that is around it stays."""

    def build(network: Any, preset: Any, part: Path, *_: Any) -> None:
        for name in {path.name for path in built_once.iterdir()} - {"engine.json"}:
            shutil.copyfile(built_once / name, part / name)

    monkeypatch.setattr(OnnxRuntimeEngine, "build", build)


@pytest.fixture
def built(built_once: Path, home: Path) -> Path:
    """The folder of an engine that was built before."""
    return shutil.copytree(built_once, home / built_once.name)


@installed
def test_a_build_that_fails_or_is_killed(built_once: Path, quick: None, home: Path, monkeypatch: Any) -> None:
    def fails(*args: Any) -> None:
        (args[2] / "model.onnx").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(OnnxRuntimeEngine, "build", fails)
        with pytest.raises(EngineError, match="No space left"):
            open_engine(TINY, "onnxruntime")
        assert isinstance(open_engine(TINY), TorchEngine)
    assert list(home.iterdir()) == []
    part = temporary_name(home / built_once.name)
    part.mkdir(parents=True)
    (part / "model.onnx").write_bytes(b"half")
    for path in (part / "model.onnx", part):
        os.utime(path, (0, 0))
    assert open_engine(TINY, "onnxruntime").name == "onnxruntime"
    assert [path.name for path in home.iterdir()] == [built_once.name]


@installed
def test_a_build_that_is_interrupted_does_not_fall_back_to_torch(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's ONNX exporter wraps Ctrl-C in an exception of its own."""

    def interrupted(*args: Any) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("failed to export") from error

    monkeypatch.setattr(OnnxRuntimeEngine, "build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_engine(TINY)
    assert list(home.iterdir()) == []


@installed
def test_a_broken_engine_is_built_again(built: Path, quick: None, caplog: Any) -> None:
    os.utime(built / "engine.json", (0, 0))
    open_engine(TINY, "onnxruntime")
    assert (built / "engine.json").stat().st_mtime > 0, "its last use is noted"
    (built / "model.data").write_bytes(b"")
    assert off(open_engine(TINY, "onnxruntime")(pixels_of(1))[0], expected_of(pixels_of(1))[0]) < 1e-5
    assert str(built) in caplog.text


def local() -> tuple[Path, str]:
    return engine_cache.local_file(TINY)


def test_the_cache_knows_its_engines(home: Path) -> None:
    path, digest = local()

    def put(name: str, **values: Any) -> None:
        about = {"file": path.name, "sha256": digest, "engine": "torch", "library": "torch"}
        about |= {"version": importlib.metadata.version("torch")} | values
        (home / name).mkdir(parents=True)
        (home / name / "engine.json").write_text(json.dumps(about))

    put("good")
    put("other-version", version="0.1")
    put("other-file", file="resnet50-00000000.pth")
    put("other-library", library="no_such_library")
    (home / "broken").mkdir()
    for name in ("new", "killed"):
        temporary_name(home / name).mkdir()
    new, killed = sorted((path for path in home.iterdir() if path.suffix == SUFFIX), reverse=True)
    os.utime(killed, (0, 0))
    items = {item.path.name: item for item in engine_folders(Store(), default_manifest())}
    assert [name for name, item in items.items() if item.kept] == ["broken", "other-library", "other-version"]
    assert [name for name, item in items.items() if item.removable] == [killed.name, "other-file"]
    long_ago = time.time() - 31 * 86400
    for name in ("good", "other-version", "other-library", "broken"):
        for path in (*(home / name).iterdir(), home / name):
            os.utime(path, (long_ago, long_ago))
    found = {item.path.name: item.removable for item in engine_folders(Store(), default_manifest())}
    assert found["good"] is None
    assert found[new.name] is None
    assert "another version" in str(found["other-version"])
    assert "no longer exists" in str(found["other-file"])
    assert "another version" in str(found["other-library"])
    assert "cannot open" in str(found["broken"])
    note_use(home / "other-version")
    assert cli.main(["cache", "prune"]) == 0
    assert {path.name for path in home.iterdir()} == {"good", new.name, "other-version"}


def test_the_cache_names_the_run_of_an_engine(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "run" / "mine.pth"
    weights.parent.mkdir()
    weights.touch()
    monkeypatch.setattr(folders, "find_checkpoint", {weights.parent: TINY}.__getitem__)
    (home / "trained").mkdir(parents=True)
    about = {"file": weights.name, "sha256": "0", "engine": "torch", "library": "torch", "path": str(weights)}
    about["version"] = importlib.metadata.version("torch")
    (home / "trained" / "engine.json").write_text(json.dumps(about))
    (item,) = engine_folders(Store(), default_manifest())
    assert (item.checkpoint, item.removable) == (TINY, None)
    weights.unlink()
    (item,) = engine_folders(Store(), default_manifest())
    assert "no longer exists" in str(item.removable)


def test_an_engine_under_construction_is_not_pruned(home: Path) -> None:
    folder = home / "resnext_tiny.pth-onnxruntime-0"
    part = temporary_name(folder)
    part.mkdir(parents=True)
    os.utime(part, (0, 0))
    with Store().lock(folder):
        assert [item.removable for item in engine_folders(Store(), default_manifest())] == [None]
    (item,) = engine_folders(Store(), default_manifest())
    assert "interrupted" in str(item.removable)


def test_auto_falls_back_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_cache, "missing", lambda packages: [name for name in packages if name != "torch"])
    assert isinstance(open_engine(TINY), TorchEngine)
    with pytest.raises(EngineError, match="pip install onnxruntime onnx onnxscript"):
        open_engine(TINY, "onnxruntime")


def test_engines_refuse_what_they_cannot_do() -> None:
    with pytest.raises(EngineError, match="tensorrt.* auto, torch"):
        open_engine(TINY, "tensorrt")
    with pytest.raises(EngineError, match="cuda"):
        open_engine(TINY, "onnxruntime", device="cuda")


def test_auto_builds_nothing_if_told_not_to(home: Path) -> None:
    assert isinstance(open_engine(TINY, build=False), TorchEngine)
    assert not home.exists()


def test_an_engine_of_any_module() -> None:
    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.mean((2, 3)))

    logits, features = TorchEngine(Mean(), TINY.preprocessing)(pixels_of(2))
    assert logits.shape == (2, 4)
    assert features.shape == (2, 0)


def test_the_key_of_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = local()[1]
    other = dataclasses.replace(TINY.preprocessing, mean=(0.5, 0.5, 0.5))
    pooled = dataclasses.replace(TINY.architecture, stem_pool=not TINY.architecture.stem_pool)  # of the same tensors
    keys = {
        engine_cache._key(dataclasses.replace(TINY, architecture=pooled), digest, OnnxRuntimeEngine),
        engine_cache._key(dataclasses.replace(TINY, num_classes=7), digest, OnnxRuntimeEngine),
        engine_cache._key(TINY, digest, OnnxRuntimeEngine),
        engine_cache._key(TINY, "0" * 64, OnnxRuntimeEngine),
        engine_cache._key(dataclasses.replace(TINY, preprocessing=other), digest, OnnxRuntimeEngine),
        engine_cache._key(TINY, digest, OpenVINOEngine),
        engine_cache._key(TINY, digest, OpenVINOEngine, "bf16"),
        engine_cache._key(TINY, digest, OnnxRuntimeEngine, "int8", "0" * 64),
        engine_cache._key(TINY, digest, OnnxRuntimeEngine, "int8", "1" * 64),
    }
    monkeypatch.setattr(engine_cache, "instruction_sets", lambda: ("another",))
    keys.add(engine_cache._key(TINY, digest, OnnxRuntimeEngine))
    monkeypatch.setattr(engine_cache, "library_version", lambda module: "0.1")
    keys.add(engine_cache._key(TINY, digest, OnnxRuntimeEngine))
    assert len(keys) == 11


@installed
@pytest.mark.parametrize("name", ["model.onnx", "engine.json", "model.data", "added"])
def test_an_engine_with_a_changed_file_is_built_again(built: Path, quick: None, name: str) -> None:
    """Of the large file, which is not hashed, a changed length is noticed."""
    before = {path.name: path.read_bytes() for path in built.iterdir()} | {"added": b""}
    content = before[name]
    longer = name in ("model.data", "added")
    (built / name).write_bytes(content + b"x" if longer else content[:-9] + b"?" + content[-8:])
    open_engine(TINY, "onnxruntime")
    assert {path.name for path in built.iterdir()} == before.keys() - {"added"}
    assert (built / "model.data").read_bytes() == before["model.data"]
    assert (built / "model.onnx").read_bytes() == before["model.onnx"]


@installed
def test_the_folder_of_engines_is_not_writable_by_others(built: Path) -> None:
    home = built.parent
    home.chmod(0o777)
    assert open_engine(TINY, "onnxruntime").name == "onnxruntime"
    assert home.stat().st_mode & 0o022 == 0
    if os.getuid() == 0:
        os.chown(home, 12345, -1)
        with pytest.raises(EngineError, match="owns"):
            open_engine(TINY, "onnxruntime")


@installed
@pytest.mark.parametrize("inside", [False, True])
def test_an_engine_that_others_may_write_is_not_opened(quick: None, home: Path, inside: bool) -> None:
    before = os.umask(0)
    try:
        open_engine(TINY, "onnxruntime")
    finally:
        os.umask(before)
    assert open_engine(TINY, "onnxruntime").name == "onnxruntime"
    (folder,) = home.iterdir()
    path = folder / "engine.json" if inside else folder
    for bits in (0o020, 0o002):
        mode = path.stat().st_mode
        path.chmod(mode | bits)
        with pytest.raises(EngineError, match="may write"):
            open_engine(TINY, "onnxruntime")
        assert open_engine(TINY, "auto").name == "torch"
        path.chmod(mode)
    if os.getuid() == 0:
        os.chown(path, 12345, -1)
        with pytest.raises(EngineError, match="owns"):
            open_engine(TINY, "onnxruntime")


@installed
def test_weights_replaced_during_the_build(quick: None, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an engine of other weights would lie under the digest of the published ones."""
    sha256 = engine_cache.sha256
    monkeypatch.setattr(engine_cache, "sha256", lambda path: "0" * 64 if path.suffix == ".pth" else sha256(path))
    with pytest.raises(EngineError, match="replaced"):
        open_engine(TINY, "onnxruntime")
    assert list(home.iterdir()) == []


@installed
@pytest.mark.parametrize("how", ["renamed", "written"])
def test_weights_replaced_and_put_back_during_the_build(
    quick: None, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    (source,) = TINY.sources
    assert source.path is not None
    path, aside = tmp_path / source.path.name, tmp_path / "aside"
    shutil.copy(source.path, path)
    content, before = path.read_bytes(), path.stat()
    build_it = OnnxRuntimeEngine.build

    def build_and_swap(*arguments: Any) -> None:
        if how == "renamed":
            path.rename(aside)
            path.write_bytes(b"other weights")
            aside.replace(path)
        else:
            path.write_bytes(b"other weights")
            path.write_bytes(content)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        build_it(*arguments)

    monkeypatch.setattr(OnnxRuntimeEngine, "build", build_and_swap)
    ours = dataclasses.replace(TINY, sources=(dataclasses.replace(source, path=path),))
    with pytest.raises(EngineError, match="replaced"):
        open_engine(ours, "onnxruntime")
    assert list(home.iterdir()) == []


@installed
def test_an_engine_that_gives_other_logits_is_not_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(network: Any, preset: Any, lanes: int) -> Any:
        network.fc.weight.data.mul_(1.1)
        return rewrite(network, preset, lanes)

    monkeypatch.setattr("resnext_hub.inference.engines.graph.rewrite", wrong)
    with pytest.raises(EngineError, match="logits"):
        open_engine(TINY, "onnxruntime")
    assert list(home.iterdir()) == []


@installed
def test_an_engine_is_fp32_whatever_the_default_is(home: Path) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        opened = open_engine(TINY, "onnxruntime")
    finally:
        torch.set_default_dtype(torch.float32)
    assert off(opened(pixels_of(1))[0], expected_of(pixels_of(1))[0]) < 1e-5


@installed
def test_cache_verify_finds_a_broken_engine(built: Path, capsys: Any) -> None:
    assert cli.main(["cache", "verify"]) == 0
    assert "unchanged" in capsys.readouterr().out
    data = bytearray((built / "model.data").read_bytes())
    data[1000] ^= 1
    (built / "model.data").write_bytes(data)
    assert cli.main(["cache", "verify"]) == 3
    assert built.name in capsys.readouterr().err
    assert list(built.parent.iterdir()) == []
