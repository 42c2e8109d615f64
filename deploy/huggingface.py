"""A training run as a repository for the Hugging Face Hub: its folder, and the upload that the user asks for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ..errors import ExportError
from ..files import publish, sha256, temporary_name
from ..models.checkpoints import read_state_dict
from ..models.manifest import MANIFEST, Checkpoint, find_checkpoint
from ..packages import missing, needed
from ..telemetry import import_quietly

LICENSES = ("BSD-3-Clause", "CC-BY-NC-4.0")  # those that the Hub knows by these names, in lower case

CARD = """\
---
{head}
---

# {title}

A {architecture} for {classes} classes{several}, trained with [resnext-hub]({repository}).

- **Accuracy:** {accuracy}
- **Trained on:** {data}
- **Started from:** {start}
- **Licence:** {licence}
- **Images:** resized to {resize}, cropped to {crop} pixels; mean {mean}, std {std} (RGB, of values from 0 to 1)

```sh
hf download OWNER/NAME --local-dir {folder}
resnext-hub classify photo.jpg --variant {folder}
```

`labels.tsv` has the classes in the order of the logits, and `{manifest}` the sha256 of the weights.
"""


def write_repository(run: str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write weights, labels, manifest and model card of a run into a folder, which is a variant too; return it.

    The weights are safetensors if that package is installed, else the run's file. Of the paths of the training data,
    only the last names are kept.

    Raises:
        UnknownVariantError, ManifestError: no such run.
        ExportError: it is a published variant; or ``out`` exists, and is not to be replaced.
    """
    checkpoint, out = find_checkpoint(run), Path(out)
    if checkpoint.home is None:
        raise ExportError(f"{checkpoint.name} is published already: a folder that 'train' wrote is expected.")
    if out.exists() and not (overwrite and (out / MANIFEST).is_file()):
        raise ExportError(f"{out} exists. Choose another folder, or pass overwrite=True to replace a repository.")
    content: Any = json.loads((checkpoint.home / MANIFEST).read_text(encoding="utf-8"))
    (entry,), (system,) = content["checkpoints"].values(), content["systems"].values()
    data = " ".join(Path(word).name for word in checkpoint.published.dataset.split())
    entry["published"]["dataset"] = system["training_data"] = data
    part = temporary_name(out)
    part.mkdir(parents=True)
    try:
        (weights,) = (source.path for source in checkpoint.sources if source.path)
        if missing(["safetensors"]):
            shutil.copyfile(weights, part / weights.name)
        else:
            from safetensors.torch import save_file

            state, weights = read_state_dict(weights), part / "model.safetensors"
            save_file(state, weights, metadata={"format": "pt"})
            entry["sources"][0]["format"] = "safetensors"
        entry["sources"][0] |= {"path": weights.name, "bytes": (part / weights.name).stat().st_size}
        entry["sources"][0]["hash"] = {"kind": "sha256", "value": sha256(part / weights.name)}
        shutil.copyfile(checkpoint.labels.file, part / checkpoint.labels.file.name)
        (part / MANIFEST).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (part / "README.md").write_text(_card(checkpoint, data), encoding="utf-8")
        publish(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _card(checkpoint: Checkpoint, data: str) -> str:
    figure, several = checkpoint.published, checkpoint.multi_label
    value = figure.mean_ap if several else figure.top1
    name = "mAP" if several else "top-1"
    known = checkpoint.license_id in LICENSES
    head: dict[str, Any] = {"library_name": "resnext-hub", "pipeline_tag": "image-classification"}
    head |= {"tags": ["image-classification", "resnext", "pytorch"]}
    if checkpoint.license:
        head |= {"license": str(checkpoint.license_id).lower() if known else "other"}
        head |= {} if known else {"license_name": checkpoint.license_id, "license_link": checkpoint.license.url}
    if value is not None:
        task = {"task": {"type": "image-classification"}, "dataset": {"name": data, "type": "imagefolder"}}
        metric = {"type": "mean_average_precision" if several else "accuracy", "name": name, "value": value / 100}
        head["model-index"] = [{"name": checkpoint.name, "results": [task | {"metrics": [metric]}]}]
    licence, preset = checkpoint.license, checkpoint.preprocessing
    return CARD.format(
        head="\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()),
        title=checkpoint.name,
        architecture=checkpoint.architecture_name,
        classes=checkpoint.num_classes,
        several=", of which an image may show several" if several else "",
        repository="https://github.com/org/resnext-hub",
        accuracy="not measured" if value is None else f"{value:.2f} % {name}, {figure.source}",
        data=data,
        start=checkpoint.license_source.rpartition(", ")[2] if licence else "random weights",
        licence=f"{licence.name} ({licence.url}); {checkpoint.license_source}" if licence else "not stated",
        resize=preset.resize_size,
        crop=preset.crop_size,
        mean=list(preset.mean),
        std=list(preset.std),
        folder=checkpoint.name,
        manifest=MANIFEST,
    )


def check_upload(repository: str) -> None:
    """Raise, before anything is computed, if the upload to OWNER/NAME cannot work.

    Raises:
        MissingPackageError: huggingface_hub is not installed.
        ExportError: no such name is possible; there is no token; the Hub cannot be reached or refuses the token.
    """
    with needed("An upload to the Hugging Face Hub", "hub"):
        hub = import_quietly("huggingface_hub")
    if repository.count("/") != 1:
        raise ExportError(f"The repository must be OWNER/NAME, not {repository!r}.")
    if hub.get_token() is None:
        raise ExportError("There is no token for the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN.")
    try:
        hub.utils.validate_repo_id(repository)
        hub.HfApi().whoami()
    except Exception as error:  # of its HTTP client, which changes
        raise ExportError(f"The Hugging Face Hub cannot be used: {error}") from error


def upload(folder: Path, repository: str) -> str:
    """Upload a folder to OWNER/NAME, which is made, public, if it does not exist; return its address.

    Raises:
        ExportError: the Hub cannot be reached, or refuses.
    """
    hub = import_quietly("huggingface_hub")
    try:
        address = hub.HfApi().create_repo(repository, exist_ok=True)
        hub.HfApi().upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload by resnext-hub train")
    except Exception as error:  # of its HTTP client, which changes
        raise ExportError(f"{folder} was not uploaded: {error}") from error
    return str(address)
