"""The four originals' documented snippets, with the repository's name changed and trust_repo=True added.

Nothing else differs but what today's libraries forbid (NVIDIA's page uses requests, and Image.ANTIALIAS, which Pillow
removed). Checkpoints of the right names, keys, shapes and legacy format are served on loopback; the photos' URLs are
public ones and reach a loopback server as their HTTP proxy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from resnext_hub.processing_utils import read_labels

from ..conftest import UNINSTALLED
from ..support.published import environment, published

HUB_PAGE = """
import torch
model = torch.hub.load('org/resnext-hub:main', {name!r}{arguments}, trust_repo=True)
model.eval()

import urllib
url, filename = ("http://images.example.org/dog.jpg", "dog.jpg")
try: urllib.URLopener().retrieve(url, filename)
except: urllib.request.urlretrieve(url, filename)

from PIL import Image
from torchvision import transforms
input_image = Image.open(filename)
preprocess = transforms.Compose([
    transforms.Resize(256),
    transforms.CenterCrop(224),
    transforms.ToTensor(),
    transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
])
input_tensor = preprocess(input_image)
input_batch = input_tensor.unsqueeze(0)

if torch.cuda.is_available():
    input_batch = input_batch.to('cuda')
    model.to('cuda')

with torch.no_grad():
    output = model(input_batch)
print(output[0])
print(torch.nn.functional.softmax(output[0], dim=0))
torch.save((input_batch, output), "result.pt")
"""
NVIDIA_PAGE = """
import torch
from PIL import Image
import torchvision.transforms as transforms
import numpy as np
import json
import matplotlib.pyplot as plt
import warnings
warnings.filterwarnings('ignore')

device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
print(f'Using {{device}} for inference')

resneXt = torch.hub.load('org/resnext-hub:main', {name!r}, trust_repo=True)
utils = torch.hub.load('org/resnext-hub:main', 'nvidia_convnets_processing_utils', trust_repo=True)

resneXt.eval().to(device)

uris = [
    'http://images.cocodataset.org/test-stuff2017/000000024309.jpg',
    'http://images.cocodataset.org/test-stuff2017/000000028117.jpg',
    'http://images.cocodataset.org/test-stuff2017/000000006149.jpg',
    'http://images.cocodataset.org/test-stuff2017/000000004954.jpg',
]

batch = torch.cat(
    [utils.prepare_input_from_uri(uri) for uri in uris]
).to(device)

with torch.no_grad():
    output = torch.nn.functional.softmax(resneXt(batch), dim=1)

results = utils.pick_n_best(predictions=output, n=5)

import urllib.request
for uri, result in zip(uris, results):
    img = Image.open(urllib.request.urlopen(uri))
    img.thumbnail((256,256), Image.LANCZOS)
    plt.imshow(img)
    plt.show()
    print(result)
torch.save((batch, resneXt(batch).detach(), results), "result.pt")
"""


FACEBOOK_AND_TORCHVISION = [
    ("resnext101_32x8d_wsl", HUB_PAGE.format(name="resnext101_32x8d_wsl", arguments="")),
    ("resnet18_swsl", HUB_PAGE.format(name="resnet18_swsl", arguments="")),
    ("resnext50_32x4d_ssl", HUB_PAGE.format(name="resnext50_32x4d_ssl", arguments=", progress=False")),
    ("resnext50_32x4d.IMAGENET1K_V1", HUB_PAGE.format(name="resnext50_32x4d", arguments=", pretrained=True")),
    ("resnext50_32x4d.IMAGENET1K_V2", HUB_PAGE.format(name="resnext50_32x4d", arguments=", weights='IMAGENET1K_V2'")),
]
NVIDIA = [(name, NVIDIA_PAGE.format(name=name)) for name in ("nvidia_resneXt", "nvidia_se_resnext101_32x4d")]
LARGEST = [("resnext101_32x48d_wsl", HUB_PAGE.format(name="resnext101_32x48d_wsl", arguments=""))]


@pytest.fixture
def follow(
    run_python: Any, put_where_hub_fetches: Any, publish: Any, manifest_json: Any, photo_proxy: str, tmp_path: Path
) -> Callable[..., tuple[str, list[Any]]]:
    """Run pages one after another in a fresh process, each with variables of its own, and check the logits.

    The networks have one block per stage: test_resnext.py compares all of them at full depth.
    """

    def follow(pages: list[tuple[str, str]], one_block: bool = True) -> tuple[str, list[Any]]:
        manifest, networks, script = manifest_json, [], UNINSTALLED
        for i, (name, page) in enumerate(pages):
            prefix = "module." if name.startswith("nvidia") else ""
            manifest, network = published(name, publish, manifest, one_block, prefix=prefix)
            networks.append(network)
            script += f"exec({page!r}, {{'__name__': '__main__'}})\nimport os; os.rename('result.pt', 'result{i}.pt')\n"
        put_where_hub_fetches(manifest)
        printed = run_python(script, **environment(photo_proxy)).stdout
        others: list[Any] = []
        for i, network in enumerate(networks):
            batch, output, *more = torch.load(tmp_path / "cwd" / f"result{i}.pt", weights_only=True)
            with torch.no_grad():
                assert torch.equal(network(batch), output)
            others += more
        return printed, others

    return follow


def test_facebooks_and_torchvisions_page(follow: Callable[..., Any]) -> None:
    follow(FACEBOOK_AND_TORCHVISION)


def test_nvidias_page(follow: Callable[..., tuple[str, list[Any]]]) -> None:
    printed, found = follow(NVIDIA)
    labels = {label.name for label in read_labels()}
    for results in found:
        assert len(results) == 4
        assert all(label in labels and share.endswith("%") for label, share in results[0])
    # The utilities print nothing: the page's own five lines are all there is.
    assert len(printed.splitlines()) == 5 * len(NVIDIA)


@pytest.mark.soak
def test_the_largest_variant(follow: Callable[..., Any]) -> None:
    """829M parameters, a legacy file of 3.3 GB: fetched, verified, loaded, run."""
    follow(LARGEST, one_block=False)
