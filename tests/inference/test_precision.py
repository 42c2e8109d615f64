"""Precisions: bf16 and int8 engines, what "auto" takes, and where a precision is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from resnext_hub import cli
from resnext_hub.errors import EngineError
from resnext_hub.inference import engines
from resnext_hub.inference.classifier import classifier
from resnext_hub.inference.engines import TorchEngine, engine_cache, open_engine
from resnext_hub.inference.engines.built import BuiltEngine
from resnext_hub.inference.engines.precision import TOLERANCES, computes_bf16, computes_int8
from resnext_hub.models.manifest import default_manifest
from resnext_hub.packages import missing

TINY = default_manifest().resolve("resnext_tiny")
AVX2, AVX512 = {"avx2", "fma"}, {"avx2", "avx512f", "avx512_bf16", "avx512_vnni"}
onnxruntime = pytest.mark.skipif(
    bool(missing(["onnxruntime", "onnx", "onnxscript"])), reason="needs pip install .[fast]"
)
openvino = pytest.mark.skipif(bool(missing(["openvino", "onnx", "onnxscript"])), reason="needs pip install .[openvino]")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images in a folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, pixels in enumerate(pixels_of(12)):
        Image.fromarray(pixels).resize((96, 80)).save(folder / f"{i:02}.png")
    return folder


def pixels_of(count: int) -> np.ndarray:
    """Smooth images: their neighbouring pixels are alike, as those of photos are."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    size = (TINY.preprocessing.crop_size,) * 2
    return np.stack([np.asarray(Image.fromarray(image).resize(size)) for image in coarse])


def off(engine: Any, pixels: np.ndarray) -> float:
    expected = open_engine(TINY, "torch")(pixels)[0]
    return float(np.abs(engine(pixels)[0] - expected).max() / np.ptp(expected))


def test_flags_say_which_precision_the_processor_computes() -> None:
    assert (computes_bf16(AVX512), computes_int8(AVX512)) == (True, True)
    assert (computes_bf16(AVX2), computes_int8(AVX2)) == (False, False)
    assert computes_bf16({"amx_bf16"})
    assert computes_int8({"avx_vnni"})


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=openvino)])
def test_bf16_is_near_fp32_and_is_not_it(engine: str) -> None:
    opened = open_engine(TINY, engine, precision="bf16")
    assert (opened.name, opened.precision) == (engine, "bf16")
    assert off(opened, pixels_of(3)) < TOLERANCES["bf16"]
    if engine == "torch" or computes_bf16():  # OpenVINO computes in fp32 where bf16 has no instructions
        assert off(opened, pixels_of(3)) > 1e-5
    assert open_engine(TINY, engine).precision == "fp32"


def test_bf16_is_torchs_without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_cache, "missing", lambda packages: [name for name in packages if name != "torch"])
    opened = open_engine(TINY, precision="bf16")
    assert isinstance(opened, TorchEngine)
    assert opened.precision == "bf16"
    assert next(opened.network.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("flags", [AVX2, AVX512], ids=["AVX2", "AVX512"])
def test_auto_takes_bf16_if_the_processor_has_it(flags: set[str], monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(engines, "computes_bf16", lambda: computes_bf16(flags))
    assert open_engine(TINY, "torch", precision="auto").precision == ("bf16" if flags is AVX512 else "fp32")
    assert "fp32 is faster" not in caplog.text
    assert open_engine(TINY, "torch", precision="bf16").precision == "bf16"
    assert caplog.text.count("fp32 is faster") == (flags is AVX2)
    assert open_engine(TINY, "torch").precision == "fp32"


@pytest.mark.parametrize(
    "engine", [pytest.param("onnxruntime", marks=onnxruntime), pytest.param("openvino", marks=[onnxruntime, openvino])]
)
def test_int8_is_calibrated_and_verified_on_other_images(
    engine: str, photos: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(photos.parent))  # another test builds the same engine
    caplog.set_level("WARNING")
    opened = open_engine(TINY, engine, precision="int8", calibration=str(photos))
    assert isinstance(opened, BuiltEngine)
    assert (opened.name, opened.precision) == (engine, "int8")
    assert 1e-4 < off(opened, pixels_of(3)) < TOLERANCES["int8"]
    record = json.loads((opened.folder / "engine.json").read_text())
    agreement = record["agreement"]
    assert agreement["images"] == 3
    assert 0 <= agreement["low"] <= agreement["same"] / 3 <= agreement["high"] <= 1
    assert f"{agreement['same']} of 3 images" in caplog.text
    assert record["calibration"] == opened.calibration
    caplog.clear()
    assert open_engine(TINY, engine, precision="int8", calibration=str(photos)).calibration == opened.calibration
    assert not caplog.records, "it is not built again"
    (photos / "00.png").unlink()
    assert open_engine(TINY, engine, precision="int8", calibration=str(photos)).calibration != opened.calibration


@onnxruntime
@openvino
@pytest.mark.parametrize(("flags", "engine"), [(AVX2, "onnxruntime"), (AVX512, "openvino")])
def test_auto_takes_openvino_for_int8_only_where_there_are_instructions(
    flags: set[str], engine: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "computes_int8", lambda: computes_int8(flags))
    assert open_engine(TINY, precision="int8", calibration=str(photos)).name == engine
    monkeypatch.setattr(engines, "missing", lambda packages: list(packages))
    assert open_engine(TINY, precision="int8", calibration=str(photos)).name == "onnxruntime"


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"precision": "fp8"}, "'fp8'.* int8"),
        ({"engine": "onnxruntime", "precision": "bf16"}, "onnxruntime.* bf16.* torch, openvino"),
        ({"engine": "torch", "precision": "int8", "calibration": "x"}, "torch.* int8.* onnxruntime, openvino"),
        ({"precision": "int8"}, "calibration=SOURCE"),
        ({"calibration": "x"}, "calibration=SOURCE is for int8"),
    ],
)
def test_what_does_not_fit_is_refused(how: dict[str, Any], named: str) -> None:
    with pytest.raises(EngineError, match=named):
        classifier("resnext_tiny", **how)


@onnxruntime
def test_one_image_is_too_few_for_int8(photos: Path) -> None:
    with pytest.raises(EngineError, match="2 images"):
        open_engine(TINY, precision="int8", calibration=str(photos / "00.png"))


@onnxruntime
def test_a_table_in_int8_is_calibrated_with_its_own_images(photos: Path, capsys: Any) -> None:
    out = photos.parent / "table.parquet"
    command = ["classify", str(photos), "--variant", "resnext_tiny", "--out", str(out), "--precision"]
    assert cli.main([*command, "int8"]) == 0
    made = json.loads((pq.read_schema(out).metadata or {})[b"resnext_hub"])
    assert made["precision"] == "int8"
    assert made["calibration"] == open_engine(TINY, precision="int8", calibration=str(photos)).calibration
    assert cli.main([*command, "fp32", "--engine", "torch", "--overwrite"]) == 0
    made = json.loads((pq.read_schema(out).metadata or {})[b"resnext_hub"])
    assert (made["precision"], made["calibration"]) == ("fp32", None)
    capsys.readouterr()
    photo = ["classify", str(photos / "00.png"), "--variant", "resnext_tiny", "--precision", "int8"]
    assert cli.main(photo) == 2
    assert "--calibration SOURCE" in capsys.readouterr().err


@onnxruntime
def test_equalising_changes_ranges_but_not_the_network() -> None:
    from resnext_hub.inference.engines.graph import rewrite
    from resnext_hub.inference.engines.int8 import equalise
    from resnext_hub.models.entrypoints import load

    module: Any = rewrite(load(TINY), TINY.preprocessing, 1)
    pixels = pixels_of(3)
    before, weight = module(torch.from_numpy(pixels))[0], module.network.conv1.weight.clone()
    equalise(module, pixels)
    after = module(torch.from_numpy(pixels))[0]
    assert (after - before).abs().max() < 1e-4 * (before.max() - before.min())
    assert (module.network.conv1.weight.abs() >= weight.abs()).all()  # no channel's range shrinks
    assert not torch.equal(module.network.conv1.weight, weight)
