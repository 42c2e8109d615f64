"""Model repositories for Triton, served by NVIDIA's own server.

The server is Triton's core with its HTTP, gRPC, batching, ensembles and cache, from the nvidia-pytriton wheel. The
wheel has only the Python backend. So the network runs in ONNX Runtime inside that one. The C++ backends of production
load the same files with the same configurations, and are not tested here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image
from resnext_hub import cli
from resnext_hub.deploy import triton
from resnext_hub.deploy.triton import Serving, add_to_repository
from resnext_hub.deploy.triton_config import BACKENDS, Word, configurations, to_text
from resnext_hub.errors import ExportError, InexactError
from resnext_hub.models.entrypoints import load
from resnext_hub.models.manifest import default_manifest
from resnext_hub.processing_utils.labels import read_labels
from resnext_hub.processing_utils.predictions import top_predictions
from resnext_hub.processing_utils.preprocessing import load_pixels, normalise

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = ROOT / ".venv-triton"
TINY = default_manifest().resolve("resnext_tiny")
STAND_IN = Serving(backend="python")


# --- without a server ---------------------------------------------------------------------------------------------


def test_text_is_protobuf_text():
    message = {"name": 'a "b" \\', "n": 3, "yes": True, "kind": Word("KIND_CPU"), "dims": (1, 2), "no": {}}
    message["sub"] = [{"key": "k"}, {"key": "l"}]
    assert to_text(message) == (
        'name: "a \\"b\\" \\\\"\nn: 3\nyes: true\nkind: KIND_CPU\ndims: [1, 2]\nno {}\n'
        'sub {\n  key: "k"\n}\nsub {\n  key: "l"\n}\n'
    )


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"backend": "caffe"}, "caffe"),
        ({"backend": "tensorrt", "device": "cpu"}, "cpu"),
        ({"version": 0}, "version"),
        ({"preferred_batch": (8, 32)}, "32"),
        ({"queue_delay": -1}, "queue_delay"),
        ({"threads": 0, "device": "cpu"}, "threads"),
        ({"threads": 4}, "device='cpu'"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, Any], names: str):
    with pytest.raises(ValueError, match=names):
        Serving(**arguments)


@pytest.mark.parametrize(("classes", "top"), [(1000, 5), (3, 3)])
def test_the_best_five_classes_or_all(classes: int, top: int):
    outputs = configurations("x", Serving(), 224, classes)["x"]["output"]
    assert [output["dims"][0] for output in outputs] == [top, top, top, top, classes]


def test_what_the_gpu_and_the_cpu_need():
    def network(**settings: Any) -> dict[str, Any]:
        return configurations("x", Serving(max_batch=12, **settings), 224, 1000)["x_network"]

    gpu, cpu = network(), network(device="cpu", threads=3)
    # cuDNN searches again for each batch size, by the parameter that the backend reads last.
    assert [w["batch_size"] for w in gpu["model_warmup"]] == list(range(1, 13))
    assert gpu["parameters"] == [{"key": "cudnn_conv_algo_search", "value": {"string_value": "0"}}]
    assert [w["batch_size"] for w in cpu["model_warmup"]] == [1, 6, 12]
    assert cpu["parameters"] == [{"key": "intra_op_thread_count", "value": {"string_value": "3"}}]
    policy = {"timeout_action": "REJECT", "default_timeout_microseconds": 9, "max_queue_size": 7}
    assert network(queue_size=7, queue_timeout=9)["dynamic_batching"]["default_queue_policy"] == policy


@pytest.mark.parametrize(
    ("limit", "expected"), [("max 100000", 8), ("300000 100000", 3), ("50000 100000", 1), (None, 8)]
)
def test_threads_of_a_container(limit: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    served = runpy.run_path(str(ROOT / "deploy" / "served" / "network.py"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    if limit is not None:
        (tmp_path / "cpu.max").write_text(f"{limit}\n")
    served["cores"].__globals__["CGROUP"] = tmp_path
    assert served["cores"]() == expected


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """resnext_tiny is exported once; later exports of the same kind are copies of the first."""
    kept: dict[str, Any] = {}
    export = triton.export

    def once(variant: str, target: str, out: Path, **options: Any) -> Any:
        said = {name: value for name, value in options.items() if value not in (None, False, "fp32")}
        key = f"{variant} {target} {sorted(said.items())}"
        if key not in kept:
            kept[key] = export(variant, target, tmp_path_factory.mktemp("exported") / "export", **options)
        shutil.copytree(kept[key].folder, out)
        return dataclasses.replace(kept[key], folder=out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "export", once)
        yield


def content(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_a_version_is_added_and_nothing_else_changes(tmp_path: Path, exported: None):
    repository = tmp_path / "models"
    report = add_to_repository("resnext_tiny", repository, serving=STAND_IN)
    assert report.folder == repository / "resnext_tiny_network" / "1"
    assert report.path.is_file()
    assert json.loads((report.folder / "report.json").read_text())["agreement"]["top1_agreement"] == 1
    first = content(repository)
    assert not [name for name in first if str(ROOT) in (repository / name).read_bytes().decode(errors="ignore")]

    add_to_repository("resnext_tiny", repository, serving=dataclasses.replace(STAND_IN, version=2, grade="close"))
    add_to_repository("resnext_tiny", repository, serving=STAND_IN, name="other")
    both = content(repository)
    changed = {name for name in first if both[name] != first[name]}
    assert changed == {"resnext_tiny/config.pbtxt"}  # it names the new versions of its parts
    assert {f.name for f in (repository / "resnext_tiny_network").iterdir()} == {"1", "2", "config.pbtxt", "labels.txt"}
    others = {f.name for f in repository.iterdir() if "tiny" not in f.name}
    assert others == {"other", "other_decode", "other_labels", "other_network"}
    assert [f.name for f in tmp_path.iterdir()] == ["models"]  # nothing temporary is left


@pytest.mark.parametrize(
    ("backend", "precision", "files"),
    [
        ("onnxruntime", "fp32", {"model.onnx"}),  # the names that the backends look for
        ("pytorch", "fp16", {"model.pt"}),
        ("tensorrt", "fp32", {"model.onnx", "build_engine.sh", "build_engine.py", "build_engine.json"}),
    ],
)
def test_files_of_every_backend(tmp_path: Path, exported: None, backend: str, precision: str, files: set[str]):
    serving = Serving(backend=backend, max_batch=12)
    report = add_to_repository("resnext_tiny", tmp_path / "models", serving=serving, precision=precision)
    found = {file.name for file in report.folder.iterdir()}
    assert files | {"README.md", "report.json", "metadata.json"} == found - {"model.plan"}
    crop = TINY.preprocessing.crop_size
    config = configurations("resnext_tiny", serving, crop, 200)["resnext_tiny_network"]
    given, got = (config[side][0]["name"].removesuffix(BACKENDS[backend].index) for side in ("input", "output"))
    metadata = json.loads((report.folder / "metadata.json").read_text())
    assert metadata["input"] == {"name": given, "dtype": "uint8", "shape": [crop, crop, 3]}
    assert metadata["outputs"] == [{"name": got, "dtype": "float32", "shape": [200]}]
    if backend == "tensorrt":
        profile = {name: [batch, crop, crop, 3] for name, batch in (("min", 1), ("opt", 6), ("max", 12))}
        assert json.loads((report.folder / "build_engine.json").read_text())["profile"] == {"input": given, **profile}


def test_the_command_line(tmp_path: Path, exported: None, capsys: Any):
    command = ["export", "--variant", "resnext_tiny", "--to", "triton", "--out", str(tmp_path / "models")]
    made = "--backend python --top 2 --max-batch 4"
    assert cli.main([*command, *made.split()]) == 0
    assert str(tmp_path / "models" / "resnext_tiny_network" / "1" / "model.onnx") in capsys.readouterr().out
    text = (tmp_path / "models" / "resnext_tiny_network" / "config.pbtxt").read_text()
    assert "preferred_batch_size: [2, 4]" in text
    assert "dims: [2]" in (tmp_path / "models" / "resnext_tiny" / "config.pbtxt").read_text()
    for wrong in (made, "--overwrite", "--max-batch 0", "--batches 1 2 3", "--top 300 --name x"):
        assert cli.main([*command, *wrong.split()]) == 2


def test_what_does_not_fit_is_refused_and_nothing_written(tmp_path: Path, exported: None):
    repository = tmp_path / "models"
    add_to_repository("resnext_tiny", repository, serving=STAND_IN)
    before = content(repository)
    second = dataclasses.replace(STAND_IN, version=2)
    gpu = {"serving": Serving(), "precision": "int8", "name": "int8"}
    for error, names, options in (
        (ExportError, "version=2", {"serving": STAND_IN}),
        (ExportError, "config.pbtxt", {"serving": dataclasses.replace(second, max_batch=32)}),
        (ValueError, "201", {"serving": dataclasses.replace(second, top=201)}),
        (ValueError, "../up", {"serving": STAND_IN, "name": "../up"}),
        (ValueError, "rough", {"serving": dataclasses.replace(second, grade="rough")}),
        (ValueError, "device='cpu'", gpu),
    ):
        with pytest.raises(error, match=names):
            add_to_repository("resnext_tiny", repository, **options)
    labels = repository / "resnext_tiny_network" / "labels.txt"
    labels.write_text("cat\n")
    with pytest.raises(ExportError, match=r"labels\.txt"):
        add_to_repository("resnext_tiny", repository, serving=second)
    assert {k: v for k, v in content(repository).items() if before[k] != v}.keys() == {
        "resnext_tiny_network/labels.txt"
    }
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    with pytest.raises(ExportError, match="photos"):
        add_to_repository("resnext_tiny", tmp_path / "photos", serving=STAND_IN)


def test_a_failure_leaves_the_repository_as_it_was(tmp_path: Path, exported: None, monkeypatch: pytest.MonkeyPatch):
    repository = tmp_path / "models"
    add_to_repository("resnext_tiny", repository, serving=STAND_IN)
    before = content(tmp_path)
    second = dataclasses.replace(STAND_IN, version=2)
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target) == repository / "resnext_tiny_labels" / "2":
            raise OSError("no space left")
        replace(source, target)

    def inexact(*_: Any, **__: Any) -> None:
        raise InexactError("off")

    for owner, name, double, error in (
        (os, "replace", full, OSError),
        (triton, "export", inexact, InexactError),
        (triton, "load_pixels", lambda *_: np.zeros(1), ExportError),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, double)
            with pytest.raises(error):
                add_to_repository("resnext_tiny", repository, serving=second)
        assert content(tmp_path) == before
    # What a killed export has left behind, and no ensemble names, is replaced.
    (repository / "resnext_tiny_decode" / "2").mkdir()
    add_to_repository("resnext_tiny", repository, serving=second)
    assert (repository / "resnext_tiny_decode" / "2" / "model.py").is_file()


def test_manifests_name_one_release_of_triton():
    deploy = ROOT / "deploy"
    base = (deploy / "triton.Dockerfile").read_text().split("FROM ")[1].split()[0]
    release = base.rsplit(":", 1)[1]
    assert base.startswith("nvcr.io/nvidia/tritonserver:")
    (service,) = yaml.safe_load_all((deploy / "kserve.yaml").read_text())
    assert (service["kind"], service["apiVersion"]) == ("InferenceService", "serving.kserve.io/v1beta1")
    predictor = service["spec"]["predictor"]
    model = predictor["model"]
    assert predictor["securityContext"]["runAsNonRoot"]
    assert not model["securityContext"]["allowPrivilegeEscalation"]
    assert str(predictor["securityContext"]["runAsUser"]) in (deploy / "triton.Dockerfile").read_text().split("USER")[1]
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= model.keys()
    assert model["resources"]["requests"].items() <= model["resources"]["limits"].items()
    assert model["protocolVersion"] == "v2"
    assert model["image"].endswith(release.removesuffix("-py3"))
    mounted = {mount["name"]: mount["mountPath"] for mount in model["volumeMounts"]}
    shared = {volume["name"] for volume in predictor["volumes"] if volume["emptyDir"].get("medium") == "Memory"}
    assert {mounted[name] for name in shared} == {"/dev/shm"}  # Python models pass tensors through it
    assert (ROOT / "docs" / "deploy.md").read_text().count(release) >= 1


# --- with NVIDIA's server -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def triton_python() -> Path:
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        pytest.skip("needs .venv-triton: make triton")
    return python


class Client:
    """tests/support/triton_client.py in its own environment; a method call is a call there."""

    def __init__(self, python: Path, *ports: int) -> None:
        script = ROOT / "tests" / "support" / "triton_client.py"
        self._process = subprocess.Popen(
            [python, script, *map(str, ports)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            print(json.dumps([name, arguments], default=str), file=self._process.stdin, flush=True)
            answer = json.loads(self._process.stdout.readline() or '{"failed": "the client has died"}')
            if "failed" in answer:
                raise RuntimeError(answer["failed"])
            return answer["answer"]

        return call

    def close(self) -> None:
        self._process.communicate(timeout=30)


class Served(NamedTuple):
    repository: Path
    client: Any
    http: int


@contextlib.contextmanager
def server(python: Path, repository: Path, folder: Path) -> Iterator[tuple[int, int]]:
    """NVIDIA's tritonserver on a repository, on loopback and free ports; its log is in ``folder``."""
    (site,) = (ENVIRONMENT / "lib").glob("python3.*/site-packages")
    wheel = site / "pytriton" / "tritonserver"
    backend = folder / "backends" / "python"
    shutil.copytree(wheel / "backends" / "python", backend, ignore=shutil.ignore_patterns("__pycache__"))
    stub = wheel / "python_backend_stubs" / site.parent.name.removeprefix("python") / "triton_python_backend_stub"
    shutil.copy(stub, backend)
    with socket.socket() as one, socket.socket() as two:
        for free in (one, two):
            free.bind(("127.0.0.1", 0))
        http, grpc = one.getsockname()[1], two.getsockname()[1]
    command = [
        wheel / "bin" / "tritonserver",
        f"--model-repository={repository}",
        f"--backend-directory={backend.parent}",
        f"--cache-directory={wheel / 'caches'}",
        "--cache-config=local,size=16777216",
        *("--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}"),
        "--allow-metrics=false",
        "--disable-auto-complete-config",  # what is served is what is written
    ]
    environment = os.environ | {
        "PATH": f"{python.parent}:{os.environ['PATH']}",  # the stub runs the environment's Python
        "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
        "PYTHONPATH": "",
        "OMP_NUM_THREADS": "1",
    }
    log = folder / "server.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder)
    try:
        end = time.monotonic() + 120
        while b"Started HTTPService" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"tritonserver did not start:\n{log.read_text(errors='replace')[-6000:]}")
            time.sleep(0.1)
        yield http, grpc
        assert process.poll() is None, f"tritonserver has died:\n{log.read_text(errors='replace')[-6000:]}"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def served(
    triton_python: Path, exported: None, tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Iterator[Served]:
    """A server on a repository with two versions of resnext_tiny, and a cached third under another name."""
    base = tmp_path_factory.getbasetemp()
    repository = (base if worker_id == "master" else base.parent) / "triton" / "models"
    repository.parent.mkdir(exist_ok=True)
    with FileLock(repository.with_suffix(".lock")):  # one for all of pytest's workers
        if not repository.exists():
            making = repository.with_name("making")
            add_to_repository("resnext_tiny", making, serving=STAND_IN)
            add_to_repository("resnext_tiny", making, serving=dataclasses.replace(STAND_IN, version=2, grade="close"))
            cached = dataclasses.replace(STAND_IN, response_cache=True, decoders=1, top=3)
            short = dataclasses.replace(STAND_IN, decoders=1, queue_size=1, threads=1)
            add_to_repository("resnext_tiny", making, serving=short, name="tiny.short")
            add_to_repository("resnext_tiny", making, serving=cached, name="tiny.cached")
            making.rename(repository)
    with server(triton_python, repository, tmp_path_factory.mktemp("server")) as (http, grpc):
        client = Client(triton_python, http, grpc)
        yield Served(repository, client, http)
        client.close()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A dozen JPEG files of different sizes, cut from a photo that every installation of matplotlib has."""
    import matplotlib

    folder = tmp_path_factory.mktemp("photos")
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as photo:
        for i in range(12):
            box = (13 * i, 17 * i, photo.width - 11 * i, photo.height - 23 * i)
            photo.crop(box).save(folder / f"{i:02}.jpg", quality=90 - i)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return load(TINY).eval()


def scores_of(served: Served, network: torch.nn.Module, files: list[Path]) -> np.ndarray:
    """The probabilities of the fp32 network in this process, of the pixels that the server's decoder makes."""
    answers = [served.client.infer(protocol="grpc", model="resnext_tiny_decode", files=[file]) for file in files]
    pixels = np.array([answer["outputs"]["pixels"][0] for answer in answers], np.uint8)
    with torch.inference_mode():
        return network(torch.from_numpy(normalise(pixels, TINY.preprocessing))).softmax(1).numpy()


def test_every_configuration_is_read_by_tritons_schema(triton_python: Path, tmp_path: Path):
    client = Client(triton_python)
    file = tmp_path / "config.pbtxt"
    served = [Serving(backend=name, device=kind) for name, backend in BACKENDS.items() for kind in backend.kinds]
    served += [Serving(preferred_batch=(), queue_delay=0, version=7, response_cache=True)]
    networks = {(c.preprocessing.crop_size, c.num_classes) for c in default_manifest().checkpoints.values()}
    for serving in served:
        for crop, classes in networks:
            for name, config in configurations("x.IMAGENET1K_V1", serving, crop, classes).items():
                file.write_text(to_text(config))
                read = client.parse(file=file)
                assert read["name"] == name
                assert read.keys() - {"platform"} == config.keys() - {"platform"}
                assert [output["dims"] for output in read["output"]] == [
                    [str(size) for size in output["dims"]] for output in config["output"]
                ]
    ensemble = configurations("x", Serving(version=7, response_cache=True), 224, 1000)["x"]
    file.write_text(to_text(ensemble))
    read = client.parse(file=file)
    assert read["version_policy"] == {"specific": {"versions": ["7"]}}
    assert {step["model_version"] for step in read["ensemble_scheduling"]["step"]} == {"7"}
    file.write_text(to_text(ensemble) + 'max_batch: "8"\n')
    with pytest.raises(RuntimeError, match="ParseError"):  # the schema does refuse what is not in it
        client.parse(file=file)
    client.close()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_answers_are_the_networks(served: Served, photos: list[Path], network: torch.nn.Module, protocol: str):
    expected = scores_of(served, network, photos)
    best = top_predictions(expected, 5, labels=read_labels(TINY.labels))
    answers = [served.client.infer(protocol=protocol, model="resnext_tiny", files=[file]) for file in photos]
    together = served.client.infer(protocol=protocol, model="resnext_tiny", files=photos)
    answers.append(together)
    assert {answer["version"] for answer in answers} == {"2"}
    rows = [(i, answers[i]["outputs"], 0) for i in range(12)] + [(i, together["outputs"], i) for i in range(12)]
    for i, outputs, row in rows:
        got = {name: values[row] for name, values in outputs.items()}
        np.testing.assert_allclose(got["scores"], expected[i], rtol=1e-3, atol=1e-6)
        assert got["classes"] == [p.index for p in best[i]]
        assert got["labels"] == [p.label for p in best[i]]
        assert got["synsets"] == [p.synset for p in best[i]]
        np.testing.assert_allclose(got["probabilities"], [p.probability for p in best[i]], rtol=1e-3, atol=1e-6)


def test_older_versions_stay(served: Served, photos: list[Path], network: torch.nn.Module):
    models = ("resnext_tiny", "resnext_tiny_network")
    ready = [served.client.ready(model=model, version=version) for model in models for version in "12"]
    assert ready == [False, True, True, True]  # rather than an answer of version 2's parts under the number 1
    # The first version resizes as the reference does, the second to within 2/255: there is no torch in Triton's Python.
    for version, grade, bound in (("1", "reference", 0), ("2", "close", 2)):
        answer = served.client.infer(protocol="grpc", model="resnext_tiny_decode", files=photos[:1], version=version)
        pixels = load_pixels(photos[0], TINY.preprocessing, grade)
        found = np.asarray(answer["outputs"]["pixels"][0], int)
        assert np.abs(found - pixels).max() <= bound


def test_tritons_own_classification(served: Served, photos: list[Path], network: torch.nn.Module):
    """A client that knows no output of ours gets labels by asking for classes, from Triton's core."""
    expected = scores_of(served, network, photos[:1])[0]
    label = read_labels(TINY.labels)[int(expected.argmax())].name
    pixels = load_pixels(photos[0], TINY.preprocessing, "close")[None]
    tensor = {"name": "pixels", "kind": "UINT8", "values": pixels.tolist()}
    for model, given, output in (
        ("resnext_tiny", {"files": photos[:1]}, "scores"),
        ("resnext_tiny_network", {"tensor": tensor}, "probabilities"),
    ):
        answer = served.client.infer(protocol="http", model=model, outputs=[output], best=3, **given)
        score, index, name = answer["outputs"][output][0][0].split(":", 2)
        assert float(score) == pytest.approx(float(expected.max()), rel=1e-3)
        assert int(index) == expected.argmax()
        assert name == label


@pytest.mark.parametrize(("protocol", "status"), [("http", "400"), ("grpc", "StatusCode.INVALID_ARGUMENT")])
def test_a_broken_image_is_a_client_error(
    served: Served, photos: list[Path], tmp_path: Path, protocol: str, status: str
):
    whole = photos[0].read_bytes()
    broken = {"cut.jpg": whole[:2000], "text.jpg": b"<html>no image</html>", "empty.jpg": b"", "head.jpg": whole[:4]}
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        answer = served.client.infer(protocol=protocol, model="resnext_tiny", files=[tmp_path / name])
        assert answer["status"] == status, answer
        assert "image" in answer["error"].lower()
        assert str(served.repository) not in answer["error"]
    answer = served.client.infer(protocol=protocol, model="resnext_tiny", files=[photos[0], tmp_path / "cut.jpg"])
    assert answer["status"] == status
    assert "Image 1" in answer["error"]
    many = served.client.infer(protocol=protocol, model="resnext_tiny", files=photos[:1] * 17)
    assert many["status"] == status
    assert served.client.ready()
    assert "outputs" in served.client.infer(protocol=protocol, model="resnext_tiny", files=photos[:1])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_client_may_ask_for_some_outputs(served: Served, photos: list[Path], protocol: str):
    asked: dict[str, Any] = {"protocol": protocol, "model": "resnext_tiny", "files": photos[:1]}
    every = served.client.infer(**asked)["outputs"]
    assert every.keys() == {"classes", "labels", "synsets", "probabilities", "scores"}
    for names in (["scores"], ["labels"], ["labels", "probabilities"], ["scores", "classes"]):
        some = served.client.infer(**asked, outputs=names)
        assert some["outputs"] == {name: every[name] for name in names}


def test_the_cache_answers_the_second_time(served: Served, photos: list[Path]):
    first, second = (served.client.infer(protocol="http", model="tiny.cached", files=photos[2:3]) for _ in range(2))
    assert first == second
    assert len(first["outputs"]["labels"][0]) == 3
    assert int(served.client.statistics(model="tiny.cached")["inference_stats"]["cache_hit"]["count"]) == 1


@pytest.mark.parametrize("seconds", [4, pytest.param(30, marks=pytest.mark.soak)])
def test_32_clients_are_batched(seconds: float, served: Served, photos: list[Path], network: torch.nn.Module):
    # Of photos whose best five do not depend on rounding, as batches differ in it.
    scores = scores_of(served, network, photos)
    gaps = -np.diff(-np.sort(-scores, axis=1)[:, :6], axis=1)
    clear = [i for i in range(len(photos)) if gaps[i].min() > 1e-5]
    files, classes = [photos[i] for i in clear], np.argsort(-scores, axis=1)[clear, :5].tolist()
    assert len(files) >= 6
    before = served.client.statistics(model="resnext_tiny_network", version="2")
    done = served.client.hammer(model="resnext_tiny", files=files, expected=classes, clients=32, seconds=seconds)
    counts = done["counts"]
    assert done["errors"] == {}
    assert counts["sent"] == counts["right"] >= 32
    assert counts["wrong"] == counts["lost"] == 0
    after = served.client.statistics(model="resnext_tiny_network", version="2")
    images, batches = (int(after[key]) - int(before[key]) for key in ("inference_count", "execution_count"))
    assert images == counts["sent"]
    assert batches < images / 2  # Triton put them together
    assert max(int(row["batch_size"]) for row in after["batch_stats"]) > 1


def test_a_full_queue_rejects_requests_and_answers_the_others(served: Served, photos: list[Path]):
    done = served.client.hammer(model="tiny.short", files=photos, expected=[[0]] * 12, clients=32, seconds=1)
    assert done["errors"]
    assert all("queue" in error for error in done["errors"])
    assert "outputs" in served.client.infer(protocol="http", model="tiny.short", files=photos[:1])


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_documented_curl(served: Served, photos: list[Path], tmp_path: Path):
    """The line in the README of a model."""
    text = (served.repository / "resnext_tiny" / "README.md").read_text()
    line = text.split("```sh\n")[1].split("```")[0].replace(":8000", f":{served.http}")
    shutil.copy(photos[0], tmp_path / "photo.jpg")
    done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    expected = served.client.infer(protocol="http", model="resnext_tiny", files=photos[:1])["outputs"]
    assert [label for label in expected["labels"][0] if label not in done.stdout] == []


def test_the_documented_client(served: Served, photos: list[Path], tmp_path: Path, triton_python: Path):
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    code = text.split("### A client")[1].split("```python\n")[1].split("```")[0]
    client = tmp_path / "client.py"
    client.write_text(code.replace("127.0.0.1:8000", f"127.0.0.1:{served.http}"))
    command = [triton_python, client, "resnext_tiny", *photos[:2]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    expected = served.client.infer(protocol="http", model="resnext_tiny", files=photos[:2])["outputs"]
    rows = zip(expected["labels"], expected["probabilities"], strict=True)
    assert done.stdout.splitlines() == [
        ", ".join(f"{label} {100 * p:.1f}%" for label, p in zip(labels, probabilities, strict=True))
        for labels, probabilities in rows
    ]


def test_load_is_measured(served: Served, tmp_path: Path):
    """benchmarks/load.py finds out what the model takes, encoded images and pixels alike."""
    script, out = ROOT / "benchmarks" / "load.py", tmp_path / "results.json"
    loads = {"resnext_tiny": ["--clients", "4", "--rates", "20"], "resnext_tiny_network": ["--clients", "2"]}
    for model, load_of in loads.items():
        command = [sys.executable, script, model, "--url", f"http://127.0.0.1:{served.http}", "--json", out, *load_of]
        command += ["--seconds", "0.4", "--warm-up", "0.1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        for result in json.loads(out.read_text()):
            assert result["errors"] == {}
            assert result["answered"] > 0
            assert 0 < result["p50"] <= result["p90"] <= result["p99"] <= result["worst"]
