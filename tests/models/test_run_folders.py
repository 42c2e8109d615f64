"""A run's folder may come from a stranger: it names only its own files, and what is wrong with it is one sentence."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import operator
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from resnext_hub.errors import CheckpointError, ManifestError, UnknownVariantError
from resnext_hub.models.entrypoints import load
from resnext_hub.models.manifest import ROOT, Hash, Source, default_manifest, find_checkpoint, load_manifest
from resnext_hub.models.store import Store
from resnext_hub.processing_utils.labels import Label, labels_table, read_labels

TINY = default_manifest().checkpoints["resnext_tiny"]
SECONDS = 5  # for any folder, however wrong


@pytest.fixture
def manifest(manifest_json: dict[str, Any]) -> dict[str, Any]:
    """What training would write for a network with the weights of resnext_tiny."""
    checkpoint = copy.deepcopy(manifest_json["checkpoints"]["resnext_tiny"])
    checkpoint["sources"][0]["path"] = "weights.pth"
    checkpoint["labels"] = "own"
    return manifest_json | {
        "label_sets": {"own": {"file": "labels.tsv", "classes": 200}},
        "licenses": {key: manifest_json["licenses"][key] for key in [checkpoint["license"]] if key},
        "systems": {"tiny": manifest_json["systems"]["tiny"]},
        "architectures": {"resnext_tiny": manifest_json["architectures"]["resnext_tiny"]},
        "papers": {k: v for k, v in manifest_json["papers"].items() if k == manifest_json["systems"]["tiny"]["paper"]},
        "aliases": {},
        "checkpoints": {"run": checkpoint},
    }


@pytest.fixture
def run(tmp_path: Path, manifest: dict[str, Any]) -> Path:
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    source = TINY.sources[0].path
    assert source is not None
    shutil.copyfile(source, folder / "weights.pth")
    shutil.copyfile(TINY.labels.file, folder / "labels.tsv")
    write(folder, manifest)
    return folder


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    """Fail, and do not hang, where a file never ends or a pipe has no writer."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it took too long"))
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def write(folder: Path, manifest: Any) -> None:
    (folder / "weights_manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def refused(folder: Path, *words: str) -> str:
    started = time.monotonic()
    with pytest.raises(ManifestError) as error:
        find_checkpoint(folder)
    message = str(error.value)
    assert time.monotonic() - started < SECONDS
    assert len(message) < 1000
    assert message.endswith(".")
    assert message.isprintable()
    assert all(word in message for word in words), message
    return message


def test_a_run_is_found_and_loaded(run: Path) -> None:
    checkpoint = find_checkpoint(run)
    assert (checkpoint.home, checkpoint.variant) == (run.resolve(), str(run.resolve()))
    assert load(checkpoint, progress=False).fc.out_features == 200
    assert [label.synset for label in read_labels(checkpoint.labels)] == [
        row.synset for row in read_labels(TINY.labels)
    ]


# Point 1: files outside the folder.

URL = "http://127.0.0.1:9/resnet18-5c106cde.pth"
DIGEST = TINY.sources[0].hash.value  # type: ignore[union-attr]
#: What a source may not say.
OUTSIDE: dict[str, dict[str, Any]] = {
    "a URL": {"url": URL, "path": None},
    "a URL beside the path": {"url": URL},
    "neither": {"path": None},
    "above": {"path": "../secret.pth"},
    "far above": {"path": "../../../../../../etc/passwd"},
    "absolute": {"path": "/etc/passwd"},
    "below": {"path": "sub/weights.pth"},
    "above and back": {"path": "../run/weights.pth"},
    "itself": {"path": "."},
    "its parent": {"path": ".."},
    "nothing": {"path": ""},
    "Windows' separator": {"path": "..\\weights.pth"},
    "a drive": {"path": "C:weights.pth"},
    "a home": {"path": "~/weights.pth"},
    "a hidden file": {"path": ".weights.pth"},
    "a NUL": {"path": "weights.pth\0"},
    "a line break": {"path": "weights.pth\n"},
    "a URL as a path": {"path": "http://127.0.0.1:9/w.pth"},
    "no hash": {"hash": None},
    "an empty hash": {"hash": {"kind": "sha256", "value": ""}},
    "an empty prefix": {"hash": {"kind": "sha256-prefix", "value": ""}},
    "a prefix": {"hash": {"kind": "sha256-prefix", "value": DIGEST[:8]}},
    "a hash of 8 digits": {"hash": {"kind": "sha256", "value": DIGEST[:8]}},
    "a hash in capitals": {"hash": {"kind": "sha256", "value": DIGEST.upper()}},
    "a hash and a line break": {"hash": {"kind": "sha256", "value": DIGEST + "\n"}},
    "no length": {"bytes": None},
}


@pytest.mark.parametrize("wrong", OUTSIDE)
def test_sources_are_files_in_the_folder_with_length_and_hash(wrong: str, run: Path, manifest: dict[str, Any]) -> None:
    manifest["checkpoints"]["run"]["sources"][0] |= OUTSIDE[wrong]
    write(run, manifest)
    refused(run, "weights_manifest.json")


def test_every_source_is_checked_not_the_first(run: Path, manifest: dict[str, Any]) -> None:
    sources = manifest["checkpoints"]["run"]["sources"]
    sources.append({"url": "http://127.0.0.1:9/nvidia_resnext101-32x4d_200821.pth.tar", "path": None, "format": None,
                    "bytes": None, "hash": None})  # fmt: skip
    write(run, manifest)
    refused(run)


@pytest.mark.parametrize(
    "name", ["../../outside", "..", ".", "", "a/b", "a\\b", "/tmp/x", "~", "a\nb", "a\0b", "-rf", "x" * 300]
)
def test_names_of_checkpoints_and_entrypoints(name: str, run: Path, manifest: dict[str, Any]) -> None:
    for wrong in (
        manifest | {"checkpoints": {name: manifest["checkpoints"]["run"]}},
        manifest | {"checkpoints": {"run": manifest["checkpoints"]["run"] | {"entrypoint": name}}},
        manifest | {"checkpoints": {"run": manifest["checkpoints"]["run"] | {"tag": name}}},
        manifest | {"aliases": {name: "run"}},
    ):
        write(run, wrong)
        refused(run)
        with pytest.raises(ManifestError):
            load_manifest(run / "weights_manifest.json")


@pytest.mark.parametrize("name", ["labels.tsv", "weights.pth", "weights_manifest.json"])
def test_links_out_of_the_folder_are_not_followed(name: str, run: Path, tmp_path: Path) -> None:
    shutil.copyfile(run / name, tmp_path / "outside")
    (run / name).unlink()
    (run / name).symlink_to(tmp_path / "outside")
    refused(run, name, "link")
    (run / name).unlink()
    (run / name).symlink_to(name)  # to itself
    with pytest.raises((ManifestError, CheckpointError)):
        load(find_checkpoint(run), progress=False)


def test_links_inside_the_folder_are_followed(run: Path) -> None:
    """As DVC and git-annex lay files out."""
    (run / "blobs").mkdir()
    for name in ("labels.tsv", "weights.pth", "weights_manifest.json"):
        (run / name).rename(run / "blobs" / name)
        (run / name).symlink_to(Path("blobs") / name)
    assert load(find_checkpoint(run), progress=False).fc.out_features == 200


def test_other_weights_are_refused(run: Path) -> None:
    content = bytearray((run / "weights.pth").read_bytes())
    content[-200] ^= 1
    (run / "weights.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="sha256"):
        load(find_checkpoint(run), progress=False)


# Point 2: names win over folders.


@pytest.mark.parametrize("name", [*default_manifest().entrypoints, *default_manifest().checkpoints])
def test_a_folder_never_hides_a_published_name(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    assert find_checkpoint(name) == default_manifest().resolve(name)
    Path(name).rmdir()
    shutil.copytree(run, name, copy_function=os.link)
    assert find_checkpoint(name) == default_manifest().resolve(name)
    for folder in (f"./{name}", Path(name), str(Path(name).resolve())):
        assert find_checkpoint(folder).home == (tmp_path / name).resolve()


def test_a_folder_without_a_separator(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    assert find_checkpoint("run").home == run.resolve()
    monkeypatch.chdir(run)
    assert find_checkpoint(".").home == run.resolve()
    for name in ("none", "./none", "none/", "", "no\0ne"):
        with pytest.raises(UnknownVariantError):
            find_checkpoint(name)


# Point 3: any single change.

VALUES = [
    None, True, 0, -1, 10**400, 1e300, float("nan"), "", "x" * 100_000, "\x1b[2J", "\ud800", "../x", [], {"": {}},
    [[None] * 10_000],
]  # fmt: skip


def places(value: Any, *where: Any) -> Iterator[tuple[Any, ...]]:
    yield where
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, *where, key)


def edits() -> Iterator[Callable[[Any, Any], object]]:
    """What is done to one place of a manifest: its value is replaced, deleted, and repeated under another name."""
    for value in VALUES:
        yield lambda inner, key, value=value: inner.__setitem__(key, value)
    yield lambda inner, key: inner.__delitem__(key)
    for name in ("", "surplus", "../x", "a\tb", "x" * 100_000):
        yield lambda inner, key, name=name: isinstance(inner, dict) and inner.__setitem__(name, inner[key])


def changed(manifest: Any) -> Iterator[tuple[str, Any]]:
    """Every manifest with one such change."""
    for *above, last in filter(None, places(manifest)):
        for number, edit in enumerate(edits()):
            top = copy.deepcopy(manifest)
            if edit(functools.reduce(operator.getitem, above, top), last) is not False:
                yield f"edit {number} at {[*above, last]}", top


def test_any_single_change_is_a_sentence_or_harmless(run: Path, manifest: dict[str, Any]) -> None:
    """No other exception, none that takes long, and nothing that JSON Schema refuses is let through."""
    validator = jsonschema.Draft202012Validator(json.loads((ROOT / "weights_manifest.schema.json").read_text()))
    tried = let_through = 0
    for what, wrong in changed(manifest):
        write(run, wrong)
        tried += 1
        started = time.monotonic()
        message, checkpoint = None, None
        try:
            checkpoint = find_checkpoint(run)
        except ManifestError as error:
            message = str(error)
        if checkpoint is None:
            assert message is not None
            assert len(message) < 1000, what
            assert message.isprintable(), what
            assert message.endswith("."), what
        else:
            let_through += 1
            assert validator.is_valid(wrong), what
            with contextlib.suppress(CheckpointError):
                load(checkpoint, progress=False)
        assert time.monotonic() - started < SECONDS, what
    assert tried > 1000
    assert let_through < tried / 10


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[]", b"null", b"1", b"[" * 10**6, b'{"a":' * 10**5, b"9" * 10**6, b" " * (5 << 20),
     b'{"a": NaN}', b'\xef\xbb\xbf{}'],
    ids=range(12),
)  # fmt: skip
def test_files_that_are_no_manifest(content: bytes, run: Path) -> None:
    (run / "weights_manifest.json").write_bytes(content)
    refused(run, "weights_manifest.json")


@pytest.mark.parametrize("name", ["labels.tsv", "weights.pth", "weights_manifest.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "missing", "zeros", "huge"])
def test_files_that_are_no_files(name: str, kind: str, run: Path) -> None:
    path = run / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    elif kind == "huge":
        with open(path, "wb") as file:
            file.truncate(1 << 40)  # a terabyte of nothing
    started = time.monotonic()
    with pytest.raises((ManifestError, UnknownVariantError, CheckpointError)):
        load(find_checkpoint(run), progress=False)
    assert time.monotonic() - started < SECONDS


LINES = [f"{i}\tn{i}\tname {i}" for i in range(200)]


@pytest.mark.parametrize(
    "lines",
    [LINES[:-1], [*LINES, "200\tn200\tmore"], [*LINES[:-1], "199"], [*LINES[:-1], "199\ta\tb\tc"],
     [*LINES[:-1], "198\ta\tb"], [*LINES[:-1], "x\ta\tb"], [*LINES[:-1], "199\ta\t\x1b[2Jb"],
     [*LINES[:-1], "199\ta\x85b\tc"], [*LINES[:-1], "199\ta\rb\tc"], [""], [*LINES, ""]],
    ids=range(11),
)  # fmt: skip
def test_labels_that_do_not_fit(lines: list[str], run: Path) -> None:
    (run / "labels.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    refused(run, "labels.tsv")


def test_labels_come_back_as_they_were_written(run: Path) -> None:
    labels = tuple(Label(i, f"Katze {i}\u00a0\u200d", "  猫, 'chat' ") for i in range(200))
    (run / "labels.tsv").write_text(labels_table(labels), encoding="utf-8", newline="\n")
    assert read_labels(find_checkpoint(run).labels) == labels
    for name in ("a\tb", "a\nb", "a\r", "a\0", "a\x85b", "a\u2028b", "a\x1c", "\udcff", "x" * 10_000):
        with pytest.raises(ValueError, match="class name"):
            labels_table([Label(0, name, "x")])
        with pytest.raises(ValueError, match="class name"):
            labels_table([Label(0, "x", name)])


def test_the_names_of_files_in_the_shared_folder(tmp_path: Path) -> None:
    """Whoever makes a checkpoint by hand, too: `target` gives no path outside torch.hub's folder."""
    digest = hashlib.sha256(b"").hexdigest()
    for url, name in (("http://127.0.0.1:9/..", "run"), ("http://127.0.0.1:9/", "run"), ("http://x/a?b", "run"),
                      ("http://127.0.0.1:9/model.safetensors", "../../run")):  # fmt: skip
        source = Source(url, None, "safetensors" if "safetensors" in url else None, None, Hash("sha256", digest))
        with pytest.raises(CheckpointError, match="name"):
            Store().path_of(dataclasses.replace(TINY, name=name, sources=(source,)), source)
