"""The four originals' documented snippets, with the repository's name changed and trust_repo=True added.

Nothing else differs but what today's libraries forbid (NVIDIA's page uses requests, and Image.ANTIALIAS, which Pillow
removed). Checkpoints of the right names, keys, shapes and legacy format are served on loopback; the photos' URLs are
public ones and reach a loopback server as their HTTP proxy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from resnext_hub.models.manifest import default_manifest

from ..conftest import UNINSTALLED
from ..support.published import environment, published

MANIFEST = default_manifest()
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
    ("resnext101_32x8d_wsl", "resnext101_32x8d_wsl", ""),
    ("resnet18_swsl", "resnet18_swsl", ""),
    ("resnext50_32x4d_ssl", "resnext50_32x4d_ssl", ", progress=False"),
    ("resnext50_32x4d.IMAGENET1K_V1", "resnext50_32x4d", ", pretrained=True"),
    ("resnext50_32x4d.IMAGENET1K_V2", "resnext50_32x4d", ", weights='IMAGENET1K_V2'"),
]


def test_facebooks_and_torchvisions_page(
    run_python: Any, put_where_hub_fetches: Any, publish: Any, manifest_json: Any, photo_proxy: str, tmp_path: Path
) -> None:
    """The snippets one after another, in one process, each with variables of its own."""
    networks, script = [], UNINSTALLED
    for i, (checkpoint, name, arguments) in enumerate(FACEBOOK_AND_TORCHVISION):
        manifest_json, network = published(checkpoint, publish, manifest_json)
        networks.append(network)
        page = HUB_PAGE.format(name=name, arguments=arguments)
        script += f"exec({page!r}, {{'__name__': '__main__'}})\nimport os; os.rename('result.pt', 'result{i}.pt')\n"
    put_where_hub_fetches(manifest_json)
    run_python(script, **environment(photo_proxy))
    for i, network in enumerate(networks):
        batch, output = torch.load(tmp_path / "cwd" / f"result{i}.pt", weights_only=True)
        with torch.no_grad():
            assert torch.equal(network(batch), output)


@pytest.mark.parametrize("name", ["nvidia_resneXt", "nvidia_se_resnext101_32x4d"])
def test_nvidias_page(
    name: str, run_python: Any, put_where_hub_fetches: Any, publish: Any, manifest_json: Any, photo_proxy: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    one_block = name == "nvidia_resneXt"  # the other one is this network, and squeeze-excite
    manifest, network = published(name, publish, manifest_json, one_block, prefix="module.")
    put_where_hub_fetches(manifest)
    done = run_python(UNINSTALLED + NVIDIA_PAGE.format(name=name), **environment(photo_proxy))
    batch, output, results = torch.load(tmp_path / "cwd" / "result.pt", weights_only=True)
    with torch.no_grad():
        assert torch.equal(network(batch), output)
    assert len(results) == 4
    labels = {line.split("\t")[2] for line in open_labels()}
    assert all(label in labels and share.endswith("%") for label, share in results[0])
    # The utilities print nothing: the page's own five lines are all there is.
    assert len(done.stdout.splitlines()) == 5


def open_labels() -> list[str]:
    root = Path(__file__).parent.parent.parent
    return (root / "processing_utils" / "label_sets" / "imagenet-1k.tsv").read_text().splitlines()


@pytest.mark.soak
def test_the_largest_variant(
    run_python: Any, put_where_hub_fetches: Any, publish: Any, manifest_json: Any, photo_proxy: str, tmp_path: Path
) -> None:
    """829M parameters, a legacy file of 3.3 GB: fetched, verified, loaded, run."""
    manifest, network = published("resnext101_32x48d_wsl", publish, manifest_json)
    put_where_hub_fetches(manifest)
    run_python(UNINSTALLED + HUB_PAGE.format(name="resnext101_32x48d_wsl", arguments=""), **environment(photo_proxy))
    batch, output = torch.load(tmp_path / "cwd" / "result.pt", weights_only=True)
    with torch.no_grad():
        assert torch.equal(network(batch), output)
