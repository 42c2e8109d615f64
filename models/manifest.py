"""The typed view of weights_manifest.json: the source, hash, architecture and preprocessing of every checkpoint.

Needs no torch, so that the command line lists and checks variants quickly.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from ..errors import ManifestError, UnknownVariantError
from ..mount import register
from .schema import SchemaError, check

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = "weights_manifest.json"
DIGEST = "weights_manifest.sha256"
SCHEMA = "weights_manifest.schema.json"
LIMIT: Final = 4 << 20  # bytes of a manifest; ours has 0.1 MB
LABELS_LIMIT: Final = 16 << 20  # bytes of a file of labels
#: Characters not allowed in a manifest or a file of labels: controls, line separators, surrogates.
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
PLAIN_NAME: Final = re.compile(r"\w[\w.-]*")  # of a file; the schema's "path" is made of these


def _content(path: Path, limit: int) -> str:
    """The text of a regular file of at most ``limit`` bytes; ManifestError if it is anything else, or is not UTF-8."""
    not_blocking = getattr(os, "O_NONBLOCK", 0)  # or a named pipe would wait for a writer
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | not_blocking)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ManifestError(f"{path} is not a regular file.")
            content = file.read(limit + 1)
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}.") from error
    if len(content) > limit:
        raise ManifestError(f"{path} has more than {limit:,} bytes.")
    try:
        return content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 text (byte {error.start:,}).") from error


@dataclass(frozen=True)
class Architecture:
    """The arguments of `models.resnext.ResNeXt` that make a network what its name says."""

    block: str
    layers: tuple[int, ...]
    groups: int
    width_per_group: int
    se_channels: int | None
    planes: int
    stem_pool: bool

    @property
    def num_features(self) -> int:
        """Channels of the last feature map."""
        return self.planes * 2 ** (len(self.layers) - 1) * {"BasicBlock": 1, "Bottleneck": 4}[self.block]


@dataclass(frozen=True)
class Hash:
    """The hash of a file."""

    #: "sha256" (the complete digest) or "sha256-prefix" (its first hex digits, as torch.hub names files: they detect a
    #: broken file, not a forged one).
    kind: str
    value: str


@dataclass(frozen=True)
class Source:
    """One place that has the checkpoint: a URL, or a path on this machine. Unknown facts are None.

    ``format`` is "pth-legacy" (torch.save before 1.6), "pth-zip", "safetensors", or None if unknown.
    """

    url: str | None
    path: Path | None
    format: str | None
    bytes: int | None
    hash: Hash | None

    @property
    def filename(self) -> str:
        return self.path.name if self.path else (self.url or "").rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Accuracy:
    """Accuracies in percent on the validation set of ``dataset`` (None: not measured), and their source.

    ``mean_ap`` is the mean of the classes' average precisions, of a network for several classes per image.
    """

    dataset: str
    top1: float | None
    top5: float | None
    image_size: int | None
    crop_pct: float | None
    source: str
    mean_ap: float | None = None


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of a checkpoint's images: sizes in pixels; mean and std per RGB channel of values in 0..1."""

    resize_size: int
    crop_size: int
    interpolation: str
    antialias: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: str


@dataclass(frozen=True)
class License:
    name: str
    url: str
    commercial_use: bool


@dataclass(frozen=True)
class Paper:
    title: str
    url: str
    citation: str


@dataclass(frozen=True)
class System:
    """One of the published families: what it was trained on and by whom."""

    title: str
    repository: str | None
    training_data: str
    paper: Paper


@dataclass(frozen=True)
class LabelSet:
    """A file of (index, synset, names), tab-separated, in the order of the logits."""

    file: Path
    classes: int

    def rows(self) -> list[tuple[str, str]]:
        """(synset, names) of each class; ManifestError if the file is not such a table of ``classes`` lines."""
        lines = [line.split("\t") for line in _content(self.file, LABELS_LIMIT).removesuffix("\n").split("\n")]
        if len(lines) != self.classes:
            raise ManifestError(f"{self.file} has {len(lines):,} lines, expected {self.classes:,}.")
        for number, fields in enumerate(lines):
            if len(fields) != 3 or fields[0] != str(number) or any(map(CONTROL.search, fields)):
                raise ManifestError(f"{self.file}: line {number + 1} is not {number}, a class and its name, in tabs.")
        return [(synset, name) for _, synset, name in lines]


@dataclass(frozen=True)
class Checkpoint:
    """One set of weights."""

    name: str
    entrypoint: str  #: the torch.hub name
    tag: str | None  #: tells several checkpoints of one entrypoint apart
    system: System
    architecture: Architecture
    architecture_name: str
    num_classes: int
    labels: LabelSet
    params: int
    gmacs: float
    license_id: str | None
    license: License | None
    license_source: str
    sources: tuple[Source, ...]
    published: Accuracy
    measured: tuple[Accuracy, ...]
    preprocessing: Preprocessing
    known_issues: tuple[str, ...]
    made_by: str | None
    multi_label: bool = False  #: an image may show several classes: the probability of each is the sigmoid of its logit
    home: Path | None = None  #: the folder that a user's training wrote; None for a published checkpoint

    @property
    def variant(self) -> str:
        """The argument with which `find_checkpoint` returns this checkpoint."""
        return str(self.home or self.name)

    def measured_on(self, dataset: str) -> Accuracy | None:
        """The first independent measurement on a dataset, None if there is none."""
        return next((row for row in self.measured if row.dataset == dataset), None)


@dataclass(frozen=True)
class Manifest:
    """All checkpoints, in the order of the README's table."""

    path: Path
    checkpoints: Mapping[str, Checkpoint]
    architectures: Mapping[str, Architecture]
    label_sets: Mapping[str, LabelSet]
    aliases: Mapping[str, str]

    @property
    def entrypoints(self) -> tuple[str, ...]:
        """Every name that torch.hub serves a network under, aliases included."""
        return (*dict.fromkeys(c.entrypoint for c in self.checkpoints.values()), *self.aliases)

    def of_entrypoint(self, entrypoint: str) -> dict[str, Checkpoint]:
        """The checkpoints of one entrypoint, oldest first, by tag ("" where there is only one, untagged)."""
        entrypoint = self.aliases.get(entrypoint, entrypoint)
        return {c.tag or "": c for c in self.checkpoints.values() if c.entrypoint == entrypoint}

    def resolve(self, name: str) -> Checkpoint:
        """The checkpoint of this name, or the newest of an entrypoint's; UnknownVariantError if there is none."""
        if name in self.checkpoints:
            return self.checkpoints[name]
        if found := self.of_entrypoint(name):
            return list(found.values())[-1]
        lower = {known.lower(): known for known in [*self.entrypoints, *self.checkpoints]}
        near = [lower[match] for match in difflib.get_close_matches(str(name).lower(), lower, n=3, cutoff=0.5)]
        hint = f"Did you mean {' or '.join(near)}?" if near else "The README and 'resnext-hub list' have all names."
        raise UnknownVariantError(f"No such variant: {name!r}. {hint}")


register(Accuracy, Architecture, Checkpoint, Hash, LabelSet, License, Manifest, Paper, Preprocessing, Source, System)


def _source(data: Mapping[str, Any], folder: Path) -> Source:
    values = dict(data)
    values["hash"] = values["hash"] and Hash(**values["hash"])
    values["path"] = values["path"] and folder / values["path"]
    return Source(**values)


def _checkpoint(name: str, data: Mapping[str, Any], shared: Mapping[str, Any], folder: Path) -> Checkpoint:
    values = dict(data)
    preprocessing = dict(values["preprocessing"])
    preprocessing |= {"mean": tuple(preprocessing["mean"]), "std": tuple(preprocessing["std"])}
    values |= {
        "system": shared["systems"][values["system"]],
        "architecture_name": values["architecture"],
        "architecture": shared["architectures"][values["architecture"]],
        "license_id": values["license"],
        "license": values["license"] and shared["licenses"][values["license"]],
        "labels": shared["label_sets"][values["labels"]],
        "sources": tuple(_source(source, folder) for source in values["sources"]),
        "published": Accuracy(**values["published"]),
        "measured": tuple(Accuracy(**row) for row in values["measured"]),
        "preprocessing": Preprocessing(**preprocessing),
        "known_issues": tuple(values["known_issues"]),
    }
    return Checkpoint(name=name, **values)


def _architecture(name: str, data: Mapping[str, Any]) -> Architecture:
    """An architecture that `models.resnext` can build."""
    values: dict[str, Any] = {**data, "layers": tuple(data["layers"])}
    made = Architecture(**values)
    if made.block == "BasicBlock" and (made.groups, made.width_per_group) != (1, 64):
        raise SchemaError(("architectures", name), "a BasicBlock needs 1 group and a width_per_group of 64")
    if made.planes * made.width_per_group < 64:
        raise SchemaError(("architectures", name), "planes * width_per_group is below 64")
    return made


def _parsed(path: Path, data: Mapping[str, Any], folder: Path) -> Manifest:
    where: tuple[str, ...] = ()
    try:
        papers = {key: Paper(**value) for key, value in data["papers"].items()}
        shared: dict[str, Any] = {
            "licenses": {key: License(**value) for key, value in data["licenses"].items()},
            "label_sets": {
                key: LabelSet(folder / value["file"], value["classes"]) for key, value in data["label_sets"].items()
            },
            "architectures": {key: _architecture(key, value) for key, value in data["architectures"].items()},
            "systems": {},
        }
        for key, value in data["systems"].items():
            where = ("systems", key)
            shared["systems"][key] = System(**(value | {"paper": papers[value["paper"]]}))
        checkpoints: dict[str, Checkpoint] = {}
        for key, value in data["checkpoints"].items():
            where = ("checkpoints", key)
            checkpoints[key] = _checkpoint(key, value, shared, folder)
    except KeyError as error:  # the schema check excludes other errors
        raise SchemaError(where, f"{error} is not defined") from error
    return Manifest(path, checkpoints, shared["architectures"], shared["label_sets"], dict(data["aliases"]))


@cache
def _schema() -> Any:
    return json.loads((ROOT / SCHEMA).read_text(encoding="utf-8"))


def load_manifest(path: str | Path, folder: Path = ROOT) -> Manifest:
    """Read a manifest, and check it against weights_manifest.schema.json. The paths in it start at ``folder``.

    Raises ManifestError if it is not JSON, is not what the schema allows, or refers to something it does not define.
    """
    path = Path(path)
    content = _content(path, LIMIT)
    try:
        data = json.loads(content)
        check(data, _schema(), _schema())
        return _parsed(path, data, folder)
    except SchemaError as error:
        raise ManifestError(f"{path}: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path} is not JSON that can be read: {error}.") from error


def _digest_line(manifest: Path) -> str:
    """The digest of a manifest, in the format of sha256sum."""
    return f"{hashlib.sha256(manifest.read_bytes()).hexdigest()}  {MANIFEST}\n"


def write_digest(folder: Path) -> None:
    """Record the digest of a checkout's manifest; `default_manifest` accepts only a manifest with this digest."""
    (folder / DIGEST).write_text(_digest_line(folder / MANIFEST), encoding="utf-8", newline="\n")


@cache
def default_manifest() -> Manifest:
    """The manifest of this checkout; ManifestError if it is not the one that weights_manifest.sha256 is for."""
    manifest, digest = ROOT / MANIFEST, ROOT / DIGEST
    if not digest.is_file() or digest.read_text(encoding="utf-8") != _digest_line(manifest):
        raise ManifestError(
            f"{manifest} has been changed: its sha256 differs from the one in {DIGEST}. It defines where weights come "
            "from and how they are verified, so it is not used. Install resnext-hub again or, if the change is "
            f"intended, run `sha256sum {MANIFEST} > {DIGEST}` in that folder."
        )
    # A test checks it against the schema.
    return _parsed(manifest, json.loads(manifest.read_text(encoding="utf-8")), ROOT)


def _expect_inside(folder: Path, path: Path) -> None:
    """Raise ManifestError if a path of a run's folder is not of a file in this folder itself."""
    if path.parent != folder or not PLAIN_NAME.fullmatch(path.name):
        raise ManifestError(f"{folder / MANIFEST} names a file outside its folder: {str(path)[:200]!a}.")
    if not Path(os.path.realpath(path)).is_relative_to(folder):
        raise ManifestError(f"{path} is a link to a file outside its folder.")


def _checkpoint_of_run(folder: Path) -> Checkpoint:
    """The checkpoint of a run's folder. Someone else may have made it, so it can name only files inside itself.

    A URL in it would be fetched as if we had published it, and a hash of 8 digits is quickly forged.
    """
    path = folder / MANIFEST
    _expect_inside(folder, path)
    checkpoints = list(load_manifest(path, folder).checkpoints.values())
    if len(checkpoints) != 1:
        raise ManifestError(f"{path} describes {len(checkpoints)} checkpoints, expected 1 in a training folder.")
    (checkpoint,) = checkpoints
    for source in checkpoint.sources:
        if source.path is None or source.bytes is None or source.hash is None or source.hash.kind != "sha256":
            raise ManifestError(f"{path} must state a file in its folder, its length and its complete sha256.")
        _expect_inside(folder, source.path)
    _expect_inside(folder, checkpoint.labels.file)
    if checkpoint.labels.classes != checkpoint.num_classes:
        raise ManifestError(f"{path} has {checkpoint.labels.classes:,} labels for {checkpoint.num_classes:,} classes.")
    checkpoint.labels.rows()
    return dataclasses.replace(checkpoint, home=folder)


def find_checkpoint(variant: str | Path) -> Checkpoint:
    """The checkpoint that a user means: a published one by its name, or their own by the folder that training wrote.

    Such a folder holds the weights, the labels and a manifest of this one checkpoint; see `training.publish`. A string
    without a separator is a published name if there is such a name: a folder of that name is meant by "./name".

    Raises:
        UnknownVariantError: no such name, or a folder without a manifest.
        ManifestError: the folder's manifest cannot be used, or names something outside the folder.
    """
    if not isinstance(variant, (str, os.PathLike)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"The variant must be a name or a folder, not of type {type(variant).__name__}.")
    if isinstance(variant, str) and not any(separator in variant for separator in (os.sep, os.altsep) if separator):
        try:
            return default_manifest().resolve(variant)
        except UnknownVariantError as error:
            if not variant or not Path(variant).exists():
                raise UnknownVariantError(f"{error} There is no folder of this name either.") from None
    folder = Path(variant)
    if not folder.is_dir():
        if folder.exists():
            own = "docs/differences.md shows how to load a file of your own."
            raise UnknownVariantError(f"{folder} is a file: pass the folder that training wrote. {own}")
        if folder.name != str(variant):  # a path: no published name has a separator
            raise UnknownVariantError(f"No such folder: {folder}")
        return default_manifest().resolve(str(variant))
    if not os.path.lexists(folder / MANIFEST):
        raise UnknownVariantError(f"{folder} has no {MANIFEST}: training writes it when it finishes.")
    return _checkpoint_of_run(Path(os.path.realpath(folder)))
