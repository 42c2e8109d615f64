"""Exports of every variant to every format: outputs equal the network's, and an inexact export is not written."""

from __future__ import annotations

import dataclasses
import json
import runpy
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from resnext_hub import cli
from resnext_hub.data.photos import read_photos, sample_photos
from resnext_hub.deploy import tensorrt_engine, to_tensorrt
from resnext_hub.deploy.deployed_network import ResizeAndCrop
from resnext_hub.deploy.export import Report, export, export_network
from resnext_hub.deploy.formats import FORMATS
from resnext_hub.deploy.metadata import as_strings, describe
from resnext_hub.deploy.signature import Signature
from resnext_hub.deploy.verify import compare
from resnext_hub.errors import ExportError, SourceError
from resnext_hub.inference.engines.precision import TOLERANCES
from resnext_hub.models.entrypoints import build, load
from resnext_hub.models.manifest import Architecture, Checkpoint, default_manifest
from resnext_hub.models.resnext import ResNeXt
from resnext_hub.packages import missing
from resnext_hub.processing_utils.labels import read_labels
from resnext_hub.processing_utils.preprocessing import crop_pixels, load_pixels, normalise

from ..conftest import randomise

MANIFEST = default_manifest()
TINY = MANIFEST.resolve("resnext_tiny")
CROP = TINY.preprocessing.crop_size
#: A network of each family, small.
FAMILIES = {
    "basic": Architecture("BasicBlock", (1, 1, 1, 1), 1, 64, None, 8, True),
    "grouped": Architecture("Bottleneck", (1, 2, 1, 1), 8, 16, None, 16, True),
    "SE": Architecture("Bottleneck", (1, 1, 1, 1), 8, 4, 4, 16, True),
}
BEST = {"preprocessing": True, "softmax": True, "top": 3}
ANY_SIZE = {"resize": True, "softmax": True, "top": 3}

pytestmark = pytest.mark.skipif(
    bool(missing(["onnxruntime", "onnx", "onnxscript"])), reason="needs pip install .[deploy]"
)
with_openvino = pytest.mark.skipif(bool(missing(["openvino"])), reason="needs pip install .[openvino]")


def random_network(architecture: Architecture, classes: int) -> ResNeXt:
    with torch.device("meta"):
        network = build(architecture, classes)
    network = network.to_empty(device="cpu").eval()
    randomise(network)
    return network


def shrunk(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    """The checkpoint for images of 32 pixels."""
    preset = dataclasses.replace(checkpoint.preprocessing, resize_size=36, crop_size=32)
    return dataclasses.replace(checkpoint, preprocessing=preset, **changes)


def pixels_of(count: int, crop: int = CROP, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, crop, crop, 3), dtype=np.uint8)


def logits_of(pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return load(TINY).eval()(torch.from_numpy(normalise(pixels, TINY.preprocessing))).numpy()


def onnx_outputs(path: Path, batch: np.ndarray) -> list[np.ndarray]:
    """Run a file as a user does, without this project."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: batch})


BATCHES = {"tensorrt": {"batches": (1, 4, 16)}}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Report]:
    """An export of resnext_tiny, to be read only: of each kind one is made."""
    made: dict[str, Report] = {}

    def get(target: str, **options: Any) -> Report:
        key = f"{target} {sorted(options.items())}"
        if key not in made:
            out = tmp_path_factory.mktemp("exported") / "out"
            made[key] = export("resnext_tiny", target, out, **BATCHES.get(target, {}), **options)
        return made[key]

    return get


# What is written, for whom.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "target",  # TensorRT and OpenVINO get the ONNX file
    [pytest.param(name, marks=[pytest.mark.soak] if name in ("tensorrt", "openvino") else []) for name in FORMATS],
)
def test_every_family_to_every_target(target: str, family: str, tmp_path: Path) -> None:
    network = random_network(FAMILIES[family], TINY.num_classes)
    oldest = {"opset": 11} if target == "onnx" else {}
    report = export_network(network, shrunk(TINY), target, tmp_path / "out", **oldest)
    assert report.agreement.difference < 1e-5
    assert report.agreement.top1_agreement == 1
    assert set(report.agreement.batches) == {1, 3, 4}


def test_what_an_artefact_says_of_every_variant() -> None:
    for checkpoint in MANIFEST.checkpoints.values():
        signature = Signature(checkpoint.preprocessing.crop_size, checkpoint.num_classes)
        described = json.loads(json.dumps(describe(checkpoint, signature, "fp32", None)))
        assert described["license"]["id"] == checkpoint.license_id
        assert described["source"]["file"] == checkpoint.sources[0].filename
        assert len(described["labels"]) == checkpoint.num_classes


@pytest.mark.soak
@pytest.mark.parametrize("checkpoint", MANIFEST.checkpoints.values(), ids=lambda c: c.name)
@pytest.mark.parametrize("target", FORMATS)
def test_every_variant_to_every_target(target: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    network = random_network(checkpoint.architecture, checkpoint.num_classes)
    report = export_network(network, shrunk(checkpoint), target, tmp_path / "out")
    assert report.agreement.difference < TOLERANCES["fp32"]
    assert report.bytes > 4 * 0.99 * checkpoint.params
    if target in ("onnx", "tensorrt") and checkpoint.params > 5e8:
        assert report.bytes > 2**31
        assert (report.folder / "model.onnx").stat().st_size < 2**24
    shutil.rmtree(report.folder)


PRECISIONS = [(t.name, p) for t in FORMATS.values() for p in t.precisions if p not in ("fp32", "int8")]
QUICK = [("onnx", "fp16"), ("torch-export", "bf16"), ("torchscript", "fp16"), ("tensorrt", "bf16")]


@pytest.mark.parametrize(
    ("target", "precision"),
    [
        pytest.param(
            *both,
            marks=[*([] if both in QUICK else [pytest.mark.soak]), *([with_openvino] if both == QUICK[-1] else [])],
        )
        for both in PRECISIONS
    ],
)
def test_precisions(target: str, precision: str, exported: Callable[..., Report]) -> None:
    report = exported(target, precision=precision)
    assert 1e-5 < report.agreement.difference < TOLERANCES[precision]  # it is not secretly fp32
    assert report.bytes < 0.6 * exported("torchscript").bytes


PHOTO = Image.fromarray(sample_photos(1)[0][:, :400])  # a portrait, to be resized and cropped


# Runs the code of READMEs, each in its folder, in one process without this project.
RUN = """
import contextlib, os, runpy, sys
for folder in sys.argv[1:]:
    os.chdir(folder)
    with open("printed.txt", "w") as file, contextlib.redirect_stdout(file):
        runpy.run_path("code.py")
"""


def test_each_readme_classifies_a_photo(exported: Callable[..., Report], tmp_path: Path) -> None:
    """Its answers are the network's: logits of normalised images, or the best three of a photo of any size."""
    cases = {tmp_path / f"{target}{resize}": (target, resize)
             for target in FORMATS if target != "tensorrt" for resize in (False, True)}  # fmt: skip
    for folder, (target, resize) in cases.items():
        shutil.copytree(exported(target, **(ANY_SIZE if resize else {})).folder, folder)
        PHOTO.save(folder / "photo.jpg", quality=95)
        code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
        (folder / "code.py").write_text(code)
    done = subprocess.run([sys.executable, "-c", RUN, *cases], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logits = logits_of(load_pixels(next(iter(cases)) / "photo.jpg", TINY.preprocessing)[None])[0].astype(np.float64)
    for folder, (_, resize) in cases.items():
        expected = softmax(logits[None])[0] if resize else logits
        best = np.argsort(-expected)[: 3 if resize else 5]
        found = [line.split("  ", 1) for line in (folder / "printed.txt").read_text().splitlines()]
        assert [name for _, name in found] == [read_labels(TINY.labels)[i].name for i in best], folder.name
        # Resizing inside differs by up to 1 of 255 in a pixel.
        off = np.abs(np.array([float(score) for score, _ in found]) - expected[best])
        assert off.max() < (0.02 if resize else 0.002), folder.name


@pytest.mark.parametrize("size", [(300, 400), (231, 307), (64, 64), (20, 50), (613, 97)])
@pytest.mark.parametrize("variant", ["resnext_tiny", "resnext50_32x4d.IMAGENET1K_V2", "resnext50_32x4d_swsl"])
def test_resizing_inside_is_within_one_of_255(variant: str, size: tuple[int, int]) -> None:
    preset = MANIFEST.resolve(variant).preprocessing
    for shape in (size, size[::-1]):
        pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        found = ResizeAndCrop(preset)(torch.from_numpy(pixels)[None].float())[0].numpy()
        assert np.abs(found - crop_pixels(Image.fromarray(pixels), preset)).max() <= 1.001


@pytest.mark.parametrize(
    ("opset", "options"),
    [
        (11, {"resize": True, "softmax": True, "top": 3}),
        pytest.param(13, {"precision": "fp16"}, marks=pytest.mark.soak),
        pytest.param(17, {"preprocessing": True}, marks=pytest.mark.soak),
        (26, {}),
    ],
)
def test_opsets(opset: int, options: dict[str, Any], tmp_path: Path) -> None:
    import onnx

    report = export("resnext_tiny", "onnx", tmp_path / "out", opset=opset, **options)
    model = onnx.load(report.path)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)]
    assert model.ir_version == onnx.helper.find_min_ir_version_for(model.opset_import) or opset > 17
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used  # ONNX Runtime warns of others
    assert b"site-packages" not in report.path.read_bytes()  # nor any other path of this machine


def onnx_metadata(path: Path) -> dict[str, str]:
    import onnx

    return {p.key: p.value for p in onnx.load(path).metadata_props}


def pt2_metadata(path: Path) -> dict[str, Any]:
    extra = {"metadata.json": ""}
    torch.export.load(path, extra_files=extra)
    return json.loads(extra["metadata.json"])


def openvino_metadata(path: Path) -> dict[str, str]:
    import openvino

    return openvino.Core().read_model(path).get_rt_info(["resnext_hub"]).value


def torchscript_metadata(path: Path) -> dict[str, Any]:
    extra = {"metadata.json": b""}
    with pytest.deprecated_call(match="deprecated"):
        torch.jit.load(str(path), _extra_files=extra)
    return json.loads(extra["metadata.json"])


@pytest.mark.parametrize(
    ("target", "inside"),
    [
        ("onnx", onnx_metadata),
        ("openvino", openvino_metadata),
        ("torch-export", pt2_metadata),
        ("torchscript", torchscript_metadata),
    ],
)
def test_metadata_inside_and_beside(target: str, inside: Callable[[Path], dict[str, Any]], exported: Any) -> None:
    report = exported(target, **ANY_SIZE)
    beside = json.loads((report.folder / "metadata.json").read_text())
    found = inside(report.path)
    assert as_strings(found) == as_strings(beside)
    assert TINY.sources[0].hash is not None
    assert beside["source"]["sha256"] == TINY.sources[0].hash.value
    assert beside["license"]["id"] == "research-only"
    assert beside["labels"] == [[label.synset, label.name] for label in read_labels(TINY.labels)]
    assert beside["preprocessing"]["mean"] == list(TINY.preprocessing.mean)
    assert beside["input"] == {"name": "pixels", "dtype": "uint8", "shape": [None, None, 3]}
    assert [output["name"] for output in beside["outputs"]] == ["probabilities", "classes"]
    said = json.loads((report.folder / "report.json").read_text())
    assert said["agreement"] == json.loads(json.dumps(dataclasses.asdict(report.agreement)))
    assert said["files"].keys() == {p.name for p in report.folder.iterdir()} - {"report.json"}


@pytest.mark.soak
def test_weights_of_two_gigabytes_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resnext_hub.deploy.to_onnx.ONE_FILE", 1000)
    report = export("resnext_tiny", "onnx", tmp_path / "out")
    assert (report.folder / "model.onnx.data").stat().st_size > 4 * 0.9 * TINY.params
    assert report.bytes > 4 * 0.9 * TINY.params
    (tmp_path / "out").rename(tmp_path / "moved")
    images = normalise(pixels_of(2), TINY.preprocessing)
    (got,) = onnx_outputs(tmp_path / "moved" / "model.onnx", images)
    assert np.abs(got - logits_of(pixels_of(2))).max() < 1e-4


def test_a_folder_that_training_wrote(tmp_path: Path) -> None:
    from resnext_hub.models.manifest import MANIFEST as FILE
    from resnext_hub.models.manifest import ROOT

    run = tmp_path / "run"
    run.mkdir()
    manifest = json.loads((ROOT / FILE).read_text())
    manifest["checkpoints"] = {"mine": manifest["checkpoints"]["resnext_tiny"]}
    weights = ROOT / manifest["checkpoints"]["mine"]["sources"][0]["path"]
    manifest["checkpoints"]["mine"]["entrypoint"] = "mine"
    for labels in manifest["label_sets"].values():
        shutil.copy(ROOT / labels["file"], run)
        labels["file"] = Path(labels["file"]).name
    shutil.copy(weights, run)
    manifest["checkpoints"]["mine"]["sources"][0]["path"] = weights.name
    manifest["aliases"] = {}
    (run / FILE).write_text(json.dumps(manifest))
    report = export(run, "torchscript", tmp_path / "out")
    assert report.variant == "mine"
    assert report.agreement.difference < 1e-5


# Verification.


def test_an_artefact_with_other_answers_is_not_written(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from resnext_hub.inference.engines.graph import fold

    def wrong(network: Any, lanes: int = 1) -> Any:
        network.fc.weight.data[:, :16] *= 0.9
        return fold(network, lanes)

    monkeypatch.setattr("resnext_hub.deploy.deployed_network.fold", wrong)
    command = ["export", "--variant", "resnext_tiny", "--to", "torchscript", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 4
    assert "of their range" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at", ["write", "open"])
def test_an_export_that_fails_leaves_nothing(at: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    kind = FORMATS["torchscript"]
    write = kind.write

    def fails(conversion: Any, folder: Path) -> Any:
        write(conversion, folder)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(kind), at, lambda self, conversion, folder: fails(conversion, folder))
    assert cli.main(["export", "--variant", "resnext_tiny", "--to", "torchscript", "--out", str(tmp_path / "out")]) == 2
    assert "No space left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def agreement_of(outputs: Sequence[np.ndarray], expected: np.ndarray, **how: Any) -> Any:
    """`compare` with an artefact whose outputs are known."""
    signature = Signature(32, expected.shape[1], preprocessing=True, **how)
    rows = iter(range(len(expected)))

    def run(batch: np.ndarray) -> list[np.ndarray]:
        chosen = [next(rows) for _ in batch]
        return [output[chosen] for output in outputs]

    return compare(run, np.split(pixels_of(len(expected), 32), [1, 4]), expected, signature, 1e-4)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("top", [None, 5])
@pytest.mark.parametrize("probabilities", [False, True])
def test_comparing_sees_one_wrong_number(probabilities: bool, top: int | None) -> None:
    expected = np.random.default_rng(0).normal(0, 5, (9, 40)).astype(np.float32)
    scores = softmax(expected) if probabilities else expected

    def outputs(scores: np.ndarray) -> list[np.ndarray]:
        if top is None:
            return [scores]
        order = np.argsort(-scores, 1)[:, :top]
        return [np.take_along_axis(scores, order, 1), order]

    how: dict[str, Any] = {"softmax": probabilities, "top": top}
    right = agreement_of(outputs(scores), expected, **how)
    assert right.is_exact
    assert right.top1_agreement == 1
    wrong = scores.copy()
    best = expected[4].argmax()
    wrong[4, best] *= 0.99  # the best of one image
    assert not agreement_of(outputs(wrong), expected, **how).is_exact
    swapped = scores.copy()
    second = np.argsort(-expected[2])[1]
    swapped[2, [expected[2].argmax(), second]] = swapped[2, [second, expected[2].argmax()]]
    off = agreement_of(outputs(swapped), expected, **how)
    assert not off.is_exact
    assert off.top1_agreement == pytest.approx(8 / 9)
    with pytest.raises(ValueError, match="float64"):
        agreement_of([scores.astype(np.float64), *outputs(scores)[1:]], expected, **how)
    nothing = np.full_like(scores, np.nan)
    assert not agreement_of([nothing, *outputs(scores)[1:]] if top is None else
                            [nothing[:, :top], outputs(scores)[1]], expected, **how).is_exact  # fmt: skip


# Photos.


def crop(image: Image.Image) -> np.ndarray:
    return crop_pixels(image, TINY.preprocessing)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, pixels in enumerate(sample_photos(20, crop)):
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return folder


def test_photos_are_taken_evenly_and_broken_ones_passed_over(photos: Path, caplog: Any, tmp_path: Path) -> None:
    everything = np.stack(read_photos(str(photos), 100))
    assert np.array_equal(everything, sample_photos(20, crop))
    assert np.array_equal(read_photos(str(photos), 5), everything[::4])
    (photos / "03.png").write_bytes(b"\x89PNG broken")
    assert np.array_equal(read_photos(str(photos), 100), np.delete(everything, 3, 0))
    assert "Skipped: " in caplog.text
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(photos / "00.png", "00.png")
    assert np.array_equal(read_photos(str(tmp_path / "photos.tar"), 5), everything[:1])
    for path in photos.iterdir():
        path.write_bytes(b"\x89PNG broken")
    with pytest.raises(SourceError, match=str(photos)):
        read_photos(str(photos), 5)


def test_an_export_is_verified_on_the_users_photos(photos: Path, tmp_path: Path) -> None:
    report = export("resnext_tiny", "torchscript", tmp_path / "out", photos=str(photos))
    assert report.agreement.images == 20
    assert report.photos == str(photos)


# int8.


def test_int8(photos: Path, tmp_path: Path, exported: Callable[..., Report]) -> None:
    import onnx

    full = exported("onnx", **ANY_SIZE)
    report = export("resnext_tiny", "onnx", tmp_path / "int8", precision="int8", calibration=str(photos), **BEST)
    assert report.bytes < 0.3 * full.bytes
    assert report.photos.startswith("a held-out ninth")
    assert report.agreement.images == 2
    assert "18" in report.notes[0]
    assert 1e-4 < report.agreement.difference < TOLERANCES["int8"]
    model = onnx.load(report.path)
    assert {p.key for p in model.metadata_props} == {p.key for p in onnx.load(full.path).metadata_props}
    operators = {node.op_type for node in model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Softmax", "TopK"} <= operators
    scales = {i.name: i for i in model.graph.initializer}
    weights = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in scales]
    kept = [scales[n.input[0]] for n in weights if len(scales[n.input[0]].dims) == 4]
    assert kept
    assert all(w.data_type == onnx.TensorProto.INT8 for w in kept)
    per_channel = [scales[n.input[1]].dims[0] for n in weights if len(scales[n.input[0]].dims) == 4]
    assert per_channel == [w.dims[0] for w in kept]
    probabilities, classes = onnx_outputs(report.path, pixels_of(3))
    assert len(set(map(tuple, np.round(probabilities, 9)))) == 3  # not rounded to 256 values
    assert classes.dtype == np.int64


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_leaves_the_stem_and_the_first_block_in_float32(family: str, tmp_path: Path) -> None:
    """Of normalised images; in one network with weights of seven bits."""
    import onnx
    from onnx.numpy_helper import to_array

    network = random_network(FAMILIES[family], TINY.num_classes)
    in_front = 1 + sum(isinstance(m, torch.nn.Conv2d) for m in network.layer1[0].modules())
    all_of_them = sum(isinstance(m, torch.nn.Conv2d) for m in network.modules())
    how: dict[str, Any] = {"precision": "int8", "calibration": pixels_of(9, 32), "reduce_range": family == "basic"}
    report = export_network(network, shrunk(TINY), "onnx", tmp_path / "out", **how)
    model = onnx.load(report.path)
    exact = {i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == all_of_them
    assert [node.input[1] in exact for node in convolutions] == [i < in_front for i in range(all_of_them)]
    weights = [
        to_array(i) for i in model.graph.initializer if i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 4
    ]
    assert max(np.abs(w.astype(int)).max() for w in weights) == (64 if family == "basic" else 127)


def test_groups_are_merged_as_far_as_the_size_allows() -> None:
    from resnext_hub.inference.engines.graph import fold
    from resnext_hub.inference.engines.int8 import GROWTH, lanes_of

    for architecture in FAMILIES.values():
        network = random_network(architecture, 10)
        lanes = lanes_of(network)
        before = sum(m.weight.numel() for m in network.modules() if isinstance(m, torch.nn.Conv2d))
        after = sum(m.weight.numel() for m in fold(network, lanes).modules() if isinstance(m, torch.nn.Conv2d))
        assert after <= GROWTH * before + 10 * architecture.num_features


# TensorRT, where there is none.


def test_tensorrt_gets_a_command_and_a_script(exported: Callable[..., Report]) -> None:
    import onnx

    report = exported("tensorrt", **BEST)
    assert "TensorRT is not installed" in report.notes[0]
    command = (report.folder / "build_engine.sh").read_text().splitlines()[-1]
    assert command.endswith(
        "trtexec --onnx=model.onnx --saveEngine=model.plan "
        f"--minShapes=pixels:1x{CROP}x{CROP}x3 --optShapes=pixels:4x{CROP}x{CROP}x3 "
        f"--maxShapes=pixels:16x{CROP}x{CROP}x3 --stronglyTyped --noTF32 --skipInference"
    )
    first = onnx.load(report.path).graph.node[0]
    assert (first.op_type, first.input[0]) == ("Cast", "pixels")  # TensorRT takes uint8 in no other way
    done = subprocess.run([sys.executable, "build_engine.py"], cwd=report.folder, capture_output=True, text=True)
    assert "No module named 'tensorrt'" in done.stderr


class FakeTensorRT(SimpleNamespace):
    """TensorRT's builder as far as the script calls it (names as in the bindings of 11.4), writing down what it is
    told. It builds nothing: what this proves is the calls, not an engine."""

    def __init__(self, typed: bool) -> None:
        self.told: list[Any] = []
        told = self.told.append
        config = SimpleNamespace(
            clear_flag=lambda flag: told(("clear", flag)), add_optimization_profile=lambda p: told(("profile", p))
        )
        profile = SimpleNamespace(set_shape=lambda *shape: told(("shape", *shape)))
        builder = SimpleNamespace(
            create_network=lambda flags: told(("network", flags)) or "network",
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=lambda network, config: b"plan",
        )
        parser = SimpleNamespace(parse_from_file=lambda path: Path(path).is_file(), num_errors=1)
        parser.get_error = lambda i: "no such file"
        super().__init__(
            Logger=SimpleNamespace, Builder=lambda logger: builder, OnnxParser=lambda network, logger: parser
        )
        self.Logger = type("Logger", (), {"WARNING": 2, "__init__": lambda self, level: None})
        self.BuilderFlag = SimpleNamespace(TF32="TF32")
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**({"STRONGLY_TYPED": 1} if typed else {}))


@pytest.mark.parametrize("typed", [True, False], ids=["TensorRT 10", "TensorRT 11"])
def test_the_tensorrt_script(typed: bool, tmp_path: Path, monkeypatch: Any, exported: Callable[..., Report]) -> None:
    folder = shutil.copytree(exported("tensorrt", **BEST).folder, tmp_path / "copy")
    fake = FakeTensorRT(typed)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    runpy.run_path(str(folder / "build_engine.py"), run_name="__main__")
    assert (folder / "model.plan").read_bytes() == b"plan"
    assert ("network", 2 if typed else 0) in fake.told
    assert ("shape", "pixels", *([n, CROP, CROP, 3] for n in (1, 4, 16))) in fake.told
    assert ("clear", "TF32") in fake.told
    with pytest.raises(RuntimeError, match="no such file"):
        tensorrt_engine.build(tmp_path / "none.onnx", tmp_path / "plan", {}, tf32=False)


def test_bf16_for_tensorrt_needs_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_tensorrt, "missing", lambda packages: packages)
    with pytest.raises(ExportError, match="openvino"):
        export("resnext_tiny", "tensorrt", tmp_path / "out", precision="bf16")
    assert list(tmp_path.iterdir()) == []


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "caffe"}, "caffe"),
        ({"precision": "bf16"}, "bf16"),
        ({"precision": "int8"}, "calibration"),
        ({"calibration": "photos"}, "calibration"),
        ({"top": 0}, "top"),
        ({"top": 201}, "200"),
        ({"batches": (1, 2, 3)}, "batches"),
        ({"to": "tensorrt", "batches": (4, 2, 8)}, "4 2 8"),
        ({"to": "tensorrt", "resize": True}, "resize"),
        ({"opset": 10}, "opset"),
        ({"opset": 12, "precision": "int8", "calibration": "photos"}, "13"),
        ({"variant": "resnext50"}, "resnext50"),
        ({"photos": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    said: dict[str, Any] = {"variant": "resnext_tiny", "to": "onnx", "out": tmp_path / "out"} | arguments
    with pytest.raises((ValueError, TypeError, ExportError), match=message):
        export(**said)
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = export("resnext_tiny", "torchscript", out)
    with pytest.raises(ExportError, match="overwrite"):
        export("resnext_tiny", "torchscript", out)
    second = export("resnext_tiny", "torchscript", out, precision="fp16", overwrite=True)
    assert second.bytes < first.bytes
    assert list(tmp_path.iterdir()) == [out]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("")
    with pytest.raises(ExportError, match="mine"):
        export("resnext_tiny", "torchscript", mine, overwrite=True)
    with pytest.raises(ExportError, match=r"thesis\.tex"):
        export("resnext_tiny", "torchscript", mine / "thesis.tex", overwrite=True)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resnext_hub.deploy.export.missing", lambda packages: [p for p in packages if p == "onnx"])
    with pytest.raises(ExportError, match="pip install"):
        export("resnext_tiny", "onnx", tmp_path / "out")


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    command = ["export", "--variant", "resnext_tiny", "--to", "torchscript", "--out", str(out)]
    command += ["--precision", "fp16", "--top", "3"]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert str(out / "model.pt") in text
    assert "100% of 8 images" in text
    assert cli.main(command) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert cli.main([*command, "--overwrite", "--batches", "1", "2", "3"]) == 2
    assert "'batches'" in capsys.readouterr().err
    assert cli.main(["export", "--variant", "no_such", "--to", "onnx", "--out", str(tmp_path / "no")]) == 2


@pytest.mark.soak
def test_int8_keeps_the_accuracy(shared: Path, root: Path, tmp_path: Path) -> None:
    """By the benchmark's own measurement, which prints it."""
    measure = runpy.run_path(str(root / "benchmarks" / "int8.py"))["measure_accuracy"]
    data = shared / "tiny-imagenet-200"
    train, val = data / "train-00000-of-00004.parquet", data / "val.parquet"
    found = measure("resnext_tiny", train, val, tmp_path)
    assert found.images == 5000
    assert found.interval[1] <= 0.5
    assert found.same > 0.93
    assert found.size <= 0.3
