"""Write the model pages (docs/hub), in PyTorch Hub's format, from weights_manifest.json; --check only compares.

The prose is in page_templates/<language>/<page>.md.j2. docs/hub is what https://pytorch.org/hub would take, docs/hub/ko
what PyTorchKorea/hub-kr would: images are named as they lie in their images/ folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from resnext_hub.cli.list import file_size
from resnext_hub.maintenance.write_table import accuracy
from resnext_hub.models.manifest import Accuracy, Checkpoint, default_manifest

DOCS = Path(__file__).resolve().parent.parent / "docs"
REPOSITORY = "org/resnext-hub"
FOLDERS = {"en": DOCS / "hub", "ko": DOCS / "hub" / "ko"}


@dataclass(frozen=True)
class Page:
    """One page: the systems it describes (the manifest's titles) and the checkpoint that its code shows."""

    name: str
    title: str
    systems: tuple[str, ...]
    example: str
    author: str
    image: str
    featured_images: tuple[str, str]

    @property
    def filename(self) -> str:
        return f"{REPOSITORY.replace('/', '_')}_{self.name}.md"

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return [c for c in default_manifest().checkpoints.values() if c.system.title in self.systems]


PAGES = (
    Page(
        "wsl", "ResNeXt WSL", ("ResNeXt WSL",),
        "resnext101_32x8d_wsl", "Facebook AI", "wsl-image.png", ("wsl-image.png", "no-image"),
    ),
    Page(
        "semi_supervised", "Semi-supervised and semi-weakly supervised ResNe(X)t",
        ("Semi-supervised ResNe(X)t", "Semi-weakly supervised ResNe(X)t"),
        "resnet18_swsl", "Facebook AI", "ssl-image.png", ("ssl-image.png", "no-image"),
    ),
    Page(
        "resnext", "ResNeXt", ("torchvision ResNeXt",),
        "resnext50_32x4d.IMAGENET1K_V2", "PyTorch Team", "resnext.png", ("resnext.png", "no-image"),
    ),
    Page(
        "nvidia_resnext101", "ResNeXt101", ("NVIDIA ResNeXt101-32x4d",),
        "nvidia_resneXt", "NVIDIA", "nvidia_logo.png", ("ResNeXtArch.png", "classification.jpg"),
    ),
    Page(
        "nvidia_se_resnext101", "SE-ResNeXt101", ("NVIDIA SE-ResNeXt101-32x4d",),
        "nvidia_se_resnext101_32x4d", "NVIDIA", "nvidia_logo.png", ("SEArch.png", "classification.jpg"),
    ),
)  # fmt: skip


def measured_alike(checkpoint: Checkpoint, dataset: str) -> Accuracy | None:
    """A measurement with the preprocessing of the one on ImageNet, so that a table row has one preprocessing."""
    base = checkpoint.measured_on("imagenet")
    rows = (row for row in checkpoint.measured if row.dataset == dataset)
    return base and next((r for r in rows if (r.image_size, r.crop_pct) == (base.image_size, base.crop_pct)), None)


def load_arguments(checkpoint: Checkpoint) -> str:
    """The arguments after the repository in `torch.hub.load`."""
    tag = f', weights="{checkpoint.tag}"' if checkpoint.tag else ""
    return f'"{checkpoint.entrypoint}"{tag}'


def render(page: Page, language: str) -> str:
    folder = DOCS / "page_templates"
    environment = Environment(
        loader=FileSystemLoader([folder / language, folder]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    checkpoints = default_manifest().checkpoints
    environment.globals |= {
        "repository": REPOSITORY,
        "page": page,
        "example": checkpoints[page.example],
        "checkpoints": page.checkpoints,
        "every": checkpoints,
        "load_arguments": load_arguments,
        "measured_alike": measured_alike,
    }
    aliases = {of: alias for alias, of in default_manifest().aliases.items()}
    environment.globals["alias"] = aliases.get
    environment.filters |= {"percent": accuracy, "file_size": file_size, "millions": lambda n: f"{n / 1e6:.1f}"}
    return environment.get_template(f"{page.name}.md.j2").render()


def pages() -> Iterator[tuple[Path, str]]:
    """Every page's path and text."""
    for language, folder in FOLDERS.items():
        for page in PAGES:
            yield folder / page.filename, render(page, language)


def main() -> int:
    wanted = dict(pages())
    there = {path for folder in FOLDERS.values() for path in folder.glob("*.md")}
    stale = [path for path, text in wanted.items() if path not in there or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for path in sorted([*stale, *(there - wanted.keys())]):
            print(f"{path.relative_to(DOCS.parent)} is not current; run maintenance/write_pages.py", file=sys.stderr)
        return 1 if stale or there - wanted.keys() else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path], encoding="utf-8")
    for path in there - wanted.keys():
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
