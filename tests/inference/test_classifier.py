"""Any image, one or many -> predictions; and what the weights in the repository are worth."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from resnext_hub import hubconf
from resnext_hub.errors import ImageError, UnknownVariantError
from resnext_hub.inference.classifier import Classifier, classifier
from resnext_hub.inference.engines import TorchEngine
from resnext_hub.models.manifest import ROOT, default_manifest
from resnext_hub.models.resnext import ResNeXt
from resnext_hub.processing_utils import preprocess, read_labels
from resnext_hub.processing_utils.preprocessing import load_pixels

TINY = default_manifest().resolve("resnext_tiny")


@pytest.fixture(scope="module")
def classify() -> Classifier:
    return classifier("resnext_tiny")


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((90, 80))


@pytest.mark.parametrize("grade", ["reference", "close", "fast"])
def test_the_pixels_are_those_of_the_grade(grade: str, shared: Path) -> None:
    photo = sorted((shared / "photos").glob("*.jpg"))[0]
    seen: list[np.ndarray] = []
    classify = classifier("resnext_tiny", engine="torch", grade=grade)
    engine = classify.engine
    classify.engine = lambda pixels: seen.append(pixels) or engine(pixels)  # type: ignore[assignment]
    assert len(classify(photo)) == 5
    assert np.array_equal(seen[0][0], load_pixels(photo, TINY.preprocessing, grade))
    with pytest.raises(ValueError, match="grade 'exact'"):
        classifier("resnext_tiny", grade="exact")


def test_the_numbers_are_the_networks(classify: Classifier, image: Image.Image) -> None:
    network = hubconf.resnext_tiny().eval()
    with torch.inference_mode():
        expected = network(torch.from_numpy(preprocess(image, TINY.preprocessing))[None]).softmax(1)[0]
    got = classify(image, top=200)
    assert [p.index for p in got[:3]] == expected.argsort(descending=True)[:3].tolist()
    for p in got:
        assert p.probability == pytest.approx(float(expected[p.index]), abs=1e-5)
    labels = read_labels("tiny-imagenet-200")
    assert all((p.synset, p.label) == (labels[p.index].synset, labels[p.index].name) for p in got)


def test_the_demo_photo_is_named_right(classify: Classifier) -> None:
    """README, notebooks and `make demo` show it: an espresso, on which a network of 200 classes must not be unsure."""
    best = classify(ROOT / "demo" / "coffee.jpg")[0]
    assert best.label == "espresso"
    assert best.probability > 0.99


def test_one_or_many(classify: Classifier, image: Image.Image, tmp_path: Path) -> None:
    image.save(tmp_path / "a.png")
    one = classify(image)
    assert len(one) == 5
    array = np.asarray(image)
    batch = torch.from_numpy(array.copy()).permute(2, 0, 1)[None].expand(3, -1, -1, -1)
    singles = [tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), array, batch[0]]
    for source in singles:
        assert [p.index for p in classify(source)] == [p.index for p in one], type(source)
    many = [[image] * 3, (image,) * 3, (image for _ in range(3)), np.stack([array] * 3), batch]
    for source in many:
        results = classify(source, 2, batch_size=2)
        assert [[p.index for p in r] for r in results] == [[p.index for p in one[:2]]] * 3, type(source)
    assert classify([]) == []


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda classify: classify("x.jpg", top="3"), TypeError, "'3'"),
        (lambda classify: classify("x.jpg", top=0), ValueError, "from 1 to 200"),
        (lambda _: classifier(None), TypeError, "None"),
        (lambda _: classifier("resnext50_32x4"), UnknownVariantError, "resnext50_32x4d"),
        (lambda _: classifier("resnext_tiny", weights="x", max_byte=1), TypeError, r"'max_byte', 'weights'.*private"),
        (lambda classify: classify(b"no image"), ImageError, "Not an image"),
        (lambda classify: classify([np.zeros((9, 9, 3), np.uint8)] * 20 + [b"no image"]), ImageError, "Image 20: "),
        (lambda classify: classify("missing.jpg"), FileNotFoundError, "missing.jpg"),
        (lambda classify: classify([b""], batch_size=0), ValueError, "batch_size"),
        (lambda classify: classify(b"", 201), ValueError, "from 1 to 200"),
        (lambda classify: classify("http://127.0.0.1/a.jpg"), OSError, "refused"),
    ],
)
def test_wrong_arguments_are_named(classify: Classifier, call: Any, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        call(classify)


def test_it_is_ready_to_infer() -> None:
    classify = classifier("resnext_tiny", engine="torch")
    assert isinstance(classify.engine, TorchEngine)
    network = classify.engine.network
    assert isinstance(network, ResNeXt)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    seen = []
    handle = network.layer1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    classify(np.zeros((64, 64, 3), np.uint8))
    handle.remove()
    assert seen[0].is_inference()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert network.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_default_dtype_is_obeyed(image: Image.Image) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert len(classifier("resnext_tiny", engine="torch")(image)) == 5
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_classifier_can_be_pickled(classify: Classifier, image: Image.Image) -> None:
    assert pickle.loads(pickle.dumps(classify))(image) == classify(image)


def test_errors_can_be_returned(classify: Classifier, image: Image.Image) -> None:
    images = [b"no image"] * 2 + [image, "missing.jpg"] + [image] * 2
    found = classify(images, 1, batch_size=2, errors="return")
    kinds = [ImageError, ImageError, list, FileNotFoundError, list, list]
    assert all(map(isinstance, found, kinds)), found
    assert "Image 1: " in str(found[1])
    assert found[2] == classify(image, 1)
    with pytest.raises(ValueError, match="'skip'"):
        classify(images, errors="skip")


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_features(engine: str, image: Image.Image) -> None:
    network = hubconf.resnext_tiny().eval()
    with torch.inference_mode():
        pixels = torch.from_numpy(preprocess(image, TINY.preprocessing))[None]
        expected = network.forward_head(network.forward_features(pixels), pre_logits=True)[0].numpy()
    classify = classifier("resnext_tiny", engine=engine)
    assert np.allclose(classify.features(image), expected, atol=1e-4)
    assert classify.features([image] * 3, batch_size=2).shape == (3, 512)
    with pytest.raises(ImageError):
        classify.features([image, b"no image"])
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * TINY.preprocessing.crop_size**2, 2))
    with pytest.raises(ValueError, match="ResNeXt"):
        Classifier(network, TINY.preprocessing, ["a", "b"]).features(image)


def test_own_network_and_labels(image: Image.Image) -> None:
    network = hubconf.resnext_tiny(num_classes=2)
    classify = Classifier(network, TINY.preprocessing, ["cat", "dog"])
    assert {p.label for p in classify(image)} == {"cat", "dog"}  # five by default, where there are five
    (best,) = classify(image, 1)
    assert best.label in ("cat", "dog")
    assert best.synset is None
    assert 0.5 <= best.probability <= 1


def test_the_weights_in_the_repository_are_small() -> None:
    (source,) = TINY.sources
    assert source.path is not None
    assert (ROOT / source.path).stat().st_size == source.bytes
    assert (ROOT / source.path).stat().st_size <= 4 * 2**20
    assert {t.dtype for t in torch.load(ROOT / source.path, weights_only=True).values()} == {torch.float16, torch.int64}
    assert {p.dtype for p in hubconf.resnext_tiny().parameters()} == {torch.float32}


def test_its_labels_are_those_it_was_trained_on(shared: Path) -> None:
    lines = (shared / "tiny-imagenet-200" / "classes.tsv").read_text().splitlines()
    assert [f"{label.synset}\t{label.name}" for label in read_labels("tiny-imagenet-200")] == lines
