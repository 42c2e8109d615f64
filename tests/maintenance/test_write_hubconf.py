"""maintenance/write_hubconf.py: a variant that is added to the manifest gets its entrypoint."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from resnext_hub.maintenance import write_hubconf
from resnext_hub.models.manifest import write_digest

NEW = {"resnet50_wsl": "resnet50_swsl", "resnext101_64x4d.IMAGENET1K_V2": "resnext101_64x4d.IMAGENET1K_V1"}


def run(clone: Path, *arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_hubconf, "ROOT", clone)
        patch.setattr(sys, "argv", ["write_hubconf.py", *arguments])
        return write_hubconf.main()


@pytest.fixture(scope="module")
def extended(clone: Path) -> Path:
    """A clone whose manifest has a new variant, a second checkpoint of an old one, and an alias."""
    path = clone / "weights_manifest.json"
    manifest: dict[str, Any] = json.loads(path.read_text())
    checkpoints = manifest["checkpoints"]
    for name, like in NEW.items():
        entrypoint, _, tag = name.partition(".")
        checkpoints[name] = {**copy.deepcopy(checkpoints[like]), "entrypoint": entrypoint, "tag": tag or None}
    checkpoints["resnet50_wsl"] |= {"system": "wsl", "known_issues": ["It is made up."]}
    manifest["aliases"]["nvidia_resnet"] = "resnet50_wsl"
    path.write_text(json.dumps(manifest))
    write_digest(clone)
    assert [run(clone, "--check"), run(clone), run(clone, "--check")] == [1, 0, 0]
    return clone


def test_a_new_variant_and_a_new_checkpoint_get_their_entrypoints(extended: Path) -> None:
    script = f"""
import runpy, torch
hubconf = runpy.run_path({str(extended / "hubconf.py")!r})
text = hubconf['resnet50_wsl'].__doc__
assert 'ResNet-50 (ResNeXt WSL)' in text and '25,557,032 parameters' in text and 'It is made up.' in text
assert 'resnet50_wsl' in hubconf['nvidia_resnet'].__doc__.splitlines()[0]
for name in ('resnet50_wsl', 'nvidia_resnet'):
    with torch.device('meta'):
        network = torch.hub.load({str(extended)!r}, name, source='local', pretrained=False, num_classes=7)
    assert network.fc.weight.shape == (7, 2048)
assert '"IMAGENET1K_V1", "IMAGENET1K_V2"' in hubconf['resnext101_64x4d'].__doc__
try: hubconf['resnext101_64x4d'](pretrained=True, weights='IMAGENET1K_V2')
except ValueError as error: assert 'IMAGENET1K_V1' in str(error)
else: raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=extended.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_edit_by_hand_is_undone(clone: Path) -> None:
    path = clone / "hubconf.py"
    written = path.read_text()
    path.write_text(written.replace("828,411,176", "829,000,000"))
    assert [run(clone, "--check"), run(clone)] == [1, 0]
    assert path.read_text() == written
