"""Write the networks' entrypoints in hubconf.py from weights_manifest.json; --check only compares.

Each entrypoint is a plain function with its own docstring: torch.hub.list and torch.hub.help look for that.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resnext_hub.models.manifest import Architecture, Checkpoint, Manifest, load_manifest

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "# Begin: written by maintenance/write_hubconf.py from weights_manifest.json. Do not edit.\n"
END = "# End of what maintenance/write_hubconf.py writes.\n"
WIDTH = 120

PROGRESS = "show a progress bar on stderr while the weights are downloaded."
RANDOM = "False for random weights."
CLASSES = "any other number than {num_classes} replaces the head by a new one with random weights; 0 removes it."
OPTIONS = "zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans."


@dataclass(frozen=True)
class Signature:
    """The signature of a family's entrypoints, and its documentation. `function` fills in the {}."""

    name: str  #: of the function in models/entrypoints.py that takes these arguments
    parameters: str
    arguments: dict[str, str]
    errors: dict[str, str] = field(default_factory=dict)


FACEBOOK = Signature(
    "facebook_network",
    "progress=True, *, pretrained=True, num_classes={num_classes}, **network_options",
    {"progress": PROGRESS, "pretrained": RANDOM, "num_classes": CLASSES, "network_options": OPTIONS},
)
TORCHVISION = Signature(
    "torchvision_network",
    "pretrained=None, progress=True, *, weights=None, num_classes={num_classes}, **network_options",
    {
        "pretrained": 'True means weights="{oldest}". It also takes what weights takes. By default, random weights.',
        "progress": PROGRESS,
        "weights": '{tags} or "DEFAULT" (the newest); or a member of torchvision\'s enum for this network.',
        "num_classes": CLASSES,
        "network_options": OPTIONS,
    },
    {"ValueError": "no such weights, or arguments that contradict each other."},
)
NVIDIA = Signature(
    "nvidia_network",
    "pretrained=True, pretrained_from_file=None, state_dict_key_map_fn=None, **network_options",
    {
        "pretrained": RANDOM,
        "pretrained_from_file": "load this checkpoint file instead; needs pretrained=False.",
        "state_dict_key_map_fn": 'a function that renames a key; the prefix "module." is removed before.',
        "network_options": f"num_classes, last_bn_0_init, conv_init (NVIDIA's); {OPTIONS}",
    },
    {
        "FileNotFoundError": "pretrained_from_file does not exist.",
        "ValueError": "both pretrained and pretrained_from_file are given.",
    },
)
#: The signature of the repository that published the weights; None is this one.
SIGNATURES = {
    "https://github.com/facebookresearch/WSL-Images": FACEBOOK,
    "https://github.com/facebookresearch/semi-supervised-ImageNet1K-models": FACEBOOK,
    "https://github.com/pytorch/vision": TORCHVISION,
    "https://github.com/NVIDIA/DeepLearningExamples": NVIDIA,
    None: FACEBOOK,
}
ERRORS = {
    "TypeError": "an unknown network option, or one that would make it another variant.",
    "CheckpointError": "the weights cannot be downloaded, verified or loaded.",
}


def title(architecture: Architecture) -> str:
    """The name in the paper's notation: "ResNeXt-50 32x4d" has 50 layers, and 32 groups of width 4 at first."""
    depth = sum(architecture.layers) * {"BasicBlock": 2, "Bottleneck": 3}[architecture.block] + 2
    prefix = "SE-" if architecture.se_channels else ""
    if architecture.groups == 1:
        return f"{prefix}ResNet-{depth}"
    width = architecture.planes * architecture.width_per_group // 64
    return f"{prefix}ResNeXt-{depth} {architecture.groups}x{width}d"


def accuracy(checkpoint: Checkpoint) -> str:
    published, measured = checkpoint.published, checkpoint.measured_on(checkpoint.published.dataset)
    of = f" of {checkpoint.tag}" if checkpoint.tag else ""
    on = {"imagenet": "ImageNet"}.get(published.dataset, published.dataset)
    figures = f"{published.top1} / {published.top5} (published)"
    if checkpoint.system.repository is None:
        figures = figures.replace("published", "measured by this project")
    elif measured:
        figures += f", {measured.top1} / {measured.top5} (measured by {measured.source.split()[0]}'s authors)"
    return f"Top-1 / top-5 accuracy{of} on {on}, in %: {figures}."


def license_of(checkpoint: Checkpoint) -> str:
    if checkpoint.license is None:
        return f"not stated ({checkpoint.license_source})"
    terms = "" if checkpoint.license.commercial_use else ", no commercial use"
    return f"{checkpoint.license_id}{terms}, {checkpoint.license.url}"


def facts(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """The facts about an entrypoint's checkpoints, which are given oldest first."""
    newest = checkpoints[-1]
    system, preset = newest.system, newest.preprocessing
    size = f"{newest.params:,} parameters, {newest.gmacs:g} GMACs at {preset.crop_size}x{preset.crop_size}"
    return [
        f"Architecture: {title(newest.architecture)}, {size}. Returned in training mode.",
        f"Images: RGB in 0..1, minus the mean {preset.mean}, divided by {preset.std}.",
        f"Training data: {system.training_data}.",
        *map(accuracy, checkpoints),
        f"Licence of the weights: {'; '.join(dict.fromkeys(map(license_of, checkpoints)))}.",
        f"Paper: {system.paper.title}, {system.paper.url}",
        *([f"Original: {system.repository}"] if system.repository else []),
        *(f"Note: {issue}" for issue in dict.fromkeys(issue for c in checkpoints for issue in c.known_issues)),
    ]


def wrapped(text: str, indent: int) -> str:
    """Lines that fit. After the first, they are indented by half as much again."""
    first, others = " " * indent, " " * (indent + indent // 2)
    return "\n".join(textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=others, break_on_hyphens=False))


def fitted(before: str, inside: str, after: str) -> str:
    """One line or, if that is too long, three: as ruff formats them."""
    line = f"{before}{inside}{after}"
    spaces = " " * (len(before) - len(before.lstrip()))
    return line if len(line) <= WIDTH else f"{before}\n{spaces}    {inside}\n{spaces}{after}"


def function(name: str, manifest: Manifest) -> str:
    """The source of one entrypoint. That of an alias refers to the other name for everything else."""
    tagged = manifest.of_entrypoint(name)
    checkpoints, tags = list(tagged.values()), list(tagged)
    newest = checkpoints[-1]
    signature = SIGNATURES[newest.system.repository]
    values = {
        "num_classes": newest.num_classes,
        "oldest": tags[0],
        "tags": ", ".join(f'"{tag}"' for tag in tags),
    }
    arguments = {key: text.format(**values) for key, text in signature.arguments.items()}
    if newest.sources[0].url is None:
        arguments["progress"] = "has no effect: the weights are in this repository."
    summary = f"{title(newest.architecture)} ({newest.system.title})"
    if name in manifest.aliases:
        docstring = [f'    """{summary}: another name for `{manifest.aliases[name]}`, with the same arguments."""']
    else:
        docstring = [
            f'    """{summary}: images (N, 3, H, W) -> logits (N, num_classes).\n',
            *(wrapped(f"- {fact}", 4) for fact in facts(checkpoints)),
            "\n    Args:",
            *(wrapped(f"{key}: {text}", 8) for key, text in arguments.items()),
            "\n    Raises:",
            *(wrapped(f"{key}: {text}", 8) for key, text in (ERRORS | signature.errors).items()),
            '    """',
        ]
    passed = ", ".join([f'"{name}"', *signature.arguments])
    return "\n".join([
        fitted(f"def {name}(", signature.parameters.format(**values), "):"),
        *docstring,
        fitted(f"    return _models().{signature.name}(", passed, ")"),
    ])  # fmt: skip


def written(text: str, manifest: Manifest) -> str:
    """hubconf.py's text with the manifest's entrypoints."""
    functions = "\n\n\n".join(function(name, manifest) for name in manifest.entrypoints)
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{functions}\n\n\n{END}{after}"


def main() -> int:
    path = ROOT / "hubconf.py"
    text = path.read_text(encoding="utf-8")
    current = written(text, load_manifest(ROOT / "weights_manifest.json"))
    if current == text:
        return 0
    if "--check" in sys.argv:
        print("hubconf.py is not current; run maintenance/write_hubconf.py", file=sys.stderr)
        return 1
    path.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
