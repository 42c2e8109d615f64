"""Checkpoints made to do harm, and broken ones: real files, whose hash the manifest carries, so that the hash check
does not hide what stands behind it. Nothing in them runs, and each ends in a CheckpointError or in a sound network.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from resnext_hub import cli
from resnext_hub.errors import CheckpointError
from resnext_hub.models import checkpoints
from resnext_hub.models.checkpoints import load_into, mapped_state_dict, read_state_dict
from resnext_hub.models.entrypoints import build, load
from resnext_hub.models.manifest import (
    Architecture,
    Checkpoint,
    Hash,
    Manifest,
    Source,
    default_manifest,
    find_checkpoint,
    load_manifest,
)
from resnext_hub.models.store import Store

from ..support import hostile
from ..support.hostile import (
    PROTO,
    STOP,
    as_legacy,
    as_zip,
    call,
    name,
    put,
    saved,
    state_of,
    storage,
    tensor,
    text,
)
from ..support.payloads import ARMED, EXTENTS, SYSTEM, UNARMED

pytestmark = pytest.mark.slow  # they load in processes of their own, which no test is charged for

KINDS = ["zip", "legacy", "safetensors"]
STATE = hostile.state_dict()
SMALL = Architecture(**(hostile.ARCHITECTURE | {"layers": (1, 1, 1, 1)}))
GOOD = "shapes"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def outcomes() -> Iterator[Callable[[list[Path]], list[dict[str, Any]]]]:
    """What loading each folder's checkpoint came to, in a process with bounds on memory and time for each list."""
    command, pipe, env = [sys.executable, hostile.__file__], subprocess.PIPE, os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin
        assert stdout

        def ask(folders: list[Path]) -> list[dict[str, Any]]:
            print(json.dumps([*map(str, folders)]), file=stdin, flush=True)
            return json.loads(stdout.readline())

        yield ask
        stdin.close()


def wrapped(cases: dict[str, bytes]) -> dict[str, bytes]:
    """Each pickle as the object of a zip archive and of a legacy file."""
    kinds = {"as_zip": as_zip, "as_legacy": as_legacy}
    return {f"{case}, {kind}": wrap(pickled) for case, pickled in cases.items() for kind, wrap in kinds.items()}


@pytest.fixture
def refused(outcomes: Any, tmp_path: Path, home: Path) -> Callable[..., dict[str, str]]:
    """The CheckpointError of each: it names the file, and stays small in memory and words; nothing is left behind."""

    def check(cases: dict[str, bytes], suffix: str = "pth") -> dict[str, str]:
        folders = [put(tmp_path / f"case{i}", content, f"weights.{suffix}") for i, content in enumerate(cases.values())]
        messages = {}
        for case, folder, found in zip(cases, folders, outcomes(folders), strict=True):
            assert found.get("error") == "CheckpointError", (case, found)
            assert found["exit"] == 0
            assert str(folder / "weights") in found["message"], (case, found)
            assert len(found["message"]) < 1500, (case, found)
            assert found["memory"] < found["own"] + hostile.MEMORY // 2, (case, found)
            messages[case] = found["message"]
        assert not list(tmp_path.rglob("ran"))
        assert not list(home.rglob("*.tmp"))
        return messages

    return check


# Code.


def test_the_payloads_are_real(outcomes: Any, tmp_path: Path) -> None:
    """A test that nothing runs proves something only where something would."""
    folders = []
    for i, pickled in enumerate(ARMED.values()):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "control").write_bytes(PROTO + pickled + STOP)
        folders.append(folder)
    outcomes(folders)
    asleep = [case for case, folder in zip(ARMED, folders, strict=True) if not (folder / "ran").exists()]
    assert asleep == []


def test_no_code_runs(refused: Any) -> None:
    cases = wrapped({case: state_of(pickled) for case, pickled in (ARMED | UNARMED).items()})
    messages = refused(cases)
    for case, message in messages.items():
        assert re.search(r"at byte \d+|expected a state_dict", message), (case, message)
    assert "posix.system at byte 20" in messages["os.system, as_zip"]
    assert "posix.system at byte" in messages["STACK_GLOBAL, as_zip"]
    assert "\x1b" not in messages["os\x1b[2J.system, as_zip"]


def test_no_code_runs_in_a_legacy_files_other_pickles(refused: Any) -> None:
    good, tail = state_of(tensor()), b"\x04" + bytes(7 + 16)
    keys = pickle.dumps(["0"], 2)
    evil = PROTO + SYSTEM + STOP
    parts = [hostile.MAGIC, hostile.VERSION, hostile.SYSTEM, good, keys]
    cases = {f"in pickle {i}": b"".join([*parts[:i], evil, *parts[i + 1 :], tail]) for i in range(5)}
    cases["before them"] = evil + b"".join(parts) + tail
    cases["after the weights"] = b"".join(parts) + tail + evil
    refused(cases)


def test_formats_that_carry_code_and_files_of_two_formats(refused: Any) -> None:
    evil = state_of(SYSTEM)
    good_zip, good_legacy = saved(STATE, "zip"), saved(STATE, "legacy")
    scripted = io.BytesIO()
    with pytest.deprecated_call(match="torch.jit"):
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), scripted)
    cases = {
        "a TorchScript archive": scripted.getvalue(),
        "a tar of torch 0.1, which weights_only let run (CVE-2025-32434)": as_tar(evil),
        "a pickle and no more": evil,
        "a zip after a legacy file": good_legacy + good_zip,
        "an evil zip after a legacy file": good_legacy + as_zip(evil),
        "a legacy file after an evil zip": as_zip(evil) + good_legacy,
        "a zip after a tar": as_tar(evil) + good_zip,
        "a zip after a web page": b"<!doctype html><p>Log in</p>" + good_zip,
        "a zip after a GIF": b"GIF89a" + good_zip,
        "safetensors under another name": saved(STATE, "safetensors"),
    }
    assert "TorchScript" in refused(cases)["a TorchScript archive"]


def as_tar(pickled: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for member in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(member)
            info.size = len(pickled)
            tar.addfile(info, io.BytesIO(pickled))
    return file.getvalue()


# Memory and time.


def test_bombs(refused: Any) -> None:
    most = checkpoints.LIMIT
    big = b"](" + b"N" * 100_000 + b"eq\x00"
    pairs = b"](" + b"".join(b"](" + text(str(i)) + b"Ne" for i in range(50_000)) + b"eq\x00"
    counter = name("collections", "Counter") + b"q\x01"
    large = {
        "a deep tuple": b")" + b"\x85" * 1_000_000,
        "a deep tuple as a key, which killed torch's reader": b"})" + b"\x85" * 1_000_000 + b"Ns",
        "a deep list": b"]q\x00" * 200_000 + b"a" * 199_999,
        "only marks": b"(" * (most - 100),
        "only dictionaries": b"}" * (most - 100),
        "the longest pickle": b"N" * (most - 100),
        "a longer pickle": b"N" * most,
        "a long list, copied": big + (counter + b"h\x00\x85R" + b"h\x01h\x00\x85R" * 100_000),
        "a long list of pairs, copied": pairs + (counter + b"h\x00\x85R" + b"h\x01h\x00\x85R" * 100_000),
        "a shape of many, copied": big + name("torch", "Size") + b"q\x01" + b"h\x01h\x00\x85R" * 100_000,
        "one tensor under 20,000 names": b"N}("
        + tensor()
        + b"q\x000"
        + b"".join(text(str(i)) + b"h\x00" for i in range(20_000))
        + b"u",
    }
    cases = {
        "doubled 60 times, as a value": hostile.doubled(),
        "doubled 60 times, as a key": b"}" + hostile.doubled() + b"Ns",
        "doubled 60 times, called: in torch's error message": hostile.doubled() + b")R",
        "doubled 60 times, as a persistent id": hostile.doubled() + b"Q",
        "doubled 60 times, as a shape": tensor(shape=hostile.doubled(), stride=b"h\x01"),
        "doubled 60 times, as a storage's key": storage(hostile.doubled()),
        "bytearray": call(name("__builtin__", "bytearray"), hostile.number(2**40)),
        "a text of 4 GB": b"X\xff\xff\xff\xff",
        "BINUNICODE8 of 2**60": b"\x8d" + struct.pack("<Q", 2**60),
        "BYTEARRAY8 of 2**60": b"\x96" + struct.pack("<Q", 2**60),
        "LONG4 of 2**31": b"\x8b\xff\xff\xff\x7f",
        "FRAME of 2**63": b"\x95" + struct.pack("<Q", 2**63),
        "the highest number in the memo": b"Nr\xff\xff\xff\xff",
    }  # fmt: skip
    pickles = {case: state_of(pickled) for case, pickled in cases.items()}
    pickles["no STOP"] = PROTO + b"}"
    pickles["a name without end"] = PROTO + b"c" + b"x" * 100_000
    refused(wrapped(pickles) | {case: as_zip(state_of(pickled)) for case, pickled in large.items()})


# Tensors that reach where they must not.


def test_tensors_out_of_bounds(refused: Any) -> None:
    cases = {}
    for case, pickled in EXTENTS.items():
        state = PROTO + pickled + STOP if pickled.startswith(b"}") else state_of(pickled)
        cases |= wrapped({case: state})
    for case, message in refused(cases).items():
        assert re.search(r"at byte [\d,]+|conv1\.weight|no record|bytes", message), (case, message)


def test_archives_out_of_order(refused: Any) -> None:
    """Those that are refused before much is read of them are in test_checkpoints.py."""
    good = state_of(tensor())

    directory = as_zip(good).index(b"PK\x01\x02")
    entry = as_zip(good).rindex(b"PK\x01\x02", 0, as_zip(good).rindex(b"archive/data/0"))
    cases = {
        "a bomb: 300 MB in 300 KB": as_zip(good, {"data/0": bytes(300_000_000)}, compression=zipfile.ZIP_DEFLATED),
        "a bomb as the pickle": as_zip(bytes(300_000_000), compression=zipfile.ZIP_DEFLATED),
        "names that lead out": as_zip(good, {"../../ran": b"x", "data/../../../../ran": b"x", "/ran": b"x"}),
        # one letter is changed back, as zipfile would warn of it
        "two pickles": as_zip(good, {"data/0": bytes(16), "Data.pkl": state_of(SYSTEM)}).replace(b"Data.", b"data."),
        "a record beyond the end": as_zip(good)[: entry + 42] + b"\xff\xff\xff\x7f" + as_zip(good)[entry + 46 :],
        "a record of 4 GB": as_zip(good)[: entry + 20] + b"\xfe\xff\xff\xff" * 2 + as_zip(good)[entry + 28 :],
        "a directory of 4 GB": as_zip(good)[:-10] + b"\xff\xff\xff\x7f" + as_zip(good)[-6:],
        "a directory elsewhere": as_zip(good)[:-6] + b"\x00\x00\x00\x00" + as_zip(good)[-2:],
        "no directory": as_zip(good)[:directory],
        "only a signature": b"PK\x03\x04",
    }
    refused(cases)


def test_safetensors_out_of_order(refused: Any) -> None:
    def file(header: Any, data: bytes = bytes(16), length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    def entry(start: int = 0, end: int = 16, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
        return {"dtype": dtype, "shape": [4] if shape is None else shape, "data_offsets": [start, end]}

    cases = {
        "a header of 2**63": file({}, length=2**63),
        "a header beyond the end": file({"a": entry()}, length=10_000),
        "a header cut": file({"a": entry()}, length=20),
        "a pickle as its header": file(state_of(SYSTEM)),
        "a pickle as the file": state_of(SYSTEM),
        "a zip as the file": as_zip(state_of(SYSTEM)),
        "no JSON": file(b"\xff" * 20),
        "deep JSON": file(b'{"a":' * 200_000),
        "two that overlap": file({"a": entry(), "b": entry(8, 24)}, bytes(24)),
        "a hole": file({"a": entry(), "b": entry(20, 36)}, bytes(36)),
        "beyond the end": file({"a": entry(0, 16), "b": entry(16, 32)}),
        "behind its start": file({"a": entry(16, 0)}),
        "a shape that is not its bytes": file({"a": entry(shape=[5])}),
        "a shape whose product is 2**64": file({"a": entry(shape=[2**32, 2**32])}),
        "a negative shape": file({"a": entry(shape=[-4])}),
        "a type that there is none of": file({"a": entry(dtype="PICKLE")}),
        "more after its end": file({"a": entry()}, bytes(17)),
        "nothing": b"",
        "other names": file({"a": entry()}),
        "a tensor of nothing": file({"conv1.weight": entry(0, 0, [0])}, b""),
    }
    messages = refused(cases, "safetensors")
    assert "Missing key(s)" in messages["other names"]


def test_a_hub_entrypoint_refuses_code(tmp_path: Path, home: Path, manifest_json: dict[str, Any]) -> None:
    """The path of a published checkpoint: its file is in the cache, and the manifest knows 8 digits of its hash."""
    home.mkdir(parents=True)
    for kind in (as_zip, as_legacy):
        content = kind(state_of(SYSTEM))
        digest = hashlib.sha256(content).hexdigest()
        file = f"resnet18-{digest[:8]}.pth"
        manifest_json["checkpoints"]["resnet18_ssl"]["sources"] = [
            {
                "url": f"https://127.0.0.1:1/{file}", "path": None, "format": None, "bytes": len(content),
                "hash": {"kind": "sha256-prefix", "value": digest[:8]},
            }
        ]  # fmt: skip
        (home / file).write_bytes(content)
        (tmp_path / "manifest.json").write_text(json.dumps(manifest_json))
        manifest = load_manifest(tmp_path / "manifest.json")
        with pytest.raises(CheckpointError, match=rf"{file} .*posix\.system at byte"):
            load(manifest.resolve("resnet18_ssl"))


def test_a_malicious_mapped_copy_is_made_again(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = put(tmp_path / "run", saved(STATE, "legacy"))
    load(find_checkpoint(folder), progress=False)
    (copy,) = home.rglob("*.mapped")
    good = copy.read_bytes()
    copy.write_bytes(as_zip(state_of(SYSTEM)))
    network = load(find_checkpoint(folder), progress=False)
    assert torch.equal(network.fc.weight, STATE["fc.weight"])
    assert "converted again" in caplog.text
    assert copy.read_bytes() == good
    assert not Path("ran").exists()


# Broken in transport or on the disk.


def boundaries(content: bytes, kind: str) -> list[int]:
    """Where parts of a file begin and end: records, headers, pickles, tensors."""
    if kind == "zip":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found = [info.header_offset for info in archive.infolist()] + [archive.start_dir, len(content) - 22]
    elif kind == "safetensors":
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        found = [8, start, *(start + entry["data_offsets"][0] for key, entry in header.items() if key[0] != "_")]
    else:
        found = [match.end() for match in re.finditer(re.escape(STOP), content)]
    return sorted({at + step for at in [0, *found] for step in (-1, 0, 1) if 0 <= at + step < len(content)})


@pytest.mark.parametrize("kind", KINDS)
def test_cut_anywhere(kind: str, tmp_path: Path) -> None:
    """With the right hash, so that it is the reader that must see it: every boundary, and 40 places at random."""
    content = saved(STATE, kind)
    file = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    places, choice = boundaries(content, kind), random.Random(0)
    for at in [*choice.sample(places, min(len(places), 200)), *choice.choices(range(len(content)), k=40)]:
        file.write_bytes(content[:at])
        with pytest.raises(CheckpointError, match=r"torch\.save|safetensors"):
            mapped_state_dict(file, "0" * 64, Store())
    file.write_bytes(content)
    assert mapped_state_dict(file, "0" * 64, Store()).keys() == STATE.keys()


def published(home: Path, content: bytes, digits: int | None, kind: str) -> tuple[Checkpoint, Path]:
    """A checkpoint whose file is in the cache; its publisher states so many digits of its sha256."""
    home.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(content).hexdigest()
    hashed = Hash("sha256" if digits == 64 else "sha256-prefix", digest[:digits]) if digits else None
    source = Source(f"https://127.0.0.1:1/w-{digest[:8]}.pth", None, f"pth-{kind}", len(content), hashed)
    checkpoint = dataclasses.replace(
        default_manifest().resolve("resnet18_ssl"), architecture=SMALL, num_classes=hostile.CLASSES, sources=(source,)
    )
    file = home / source.filename
    file.write_bytes(content)
    return checkpoint, file


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize("digits", [64, 8, None], ids=["whole hash", "prefix", "no hash"])
def test_a_bit_flipped_anywhere(
    digits: int | None, kind: str, home: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    content = saved(STATE, kind)
    places = random.Random(0)

    def flipped() -> bytes:
        at = places.randrange(len(content))
        return content[:at] + bytes([content[at] ^ 1 << places.randrange(8)]) + content[at + 1 :]

    checkpoint, file = published(home, content, digits, kind)
    if digits:
        for _ in range(30):  # at first use
            file.write_bytes(flipped())
            with pytest.raises(CheckpointError, match="is not the published file"):
                load(checkpoint, progress=False)
        file.write_bytes(content)
    load(checkpoint, progress=False)
    assert ("this first copy is unverified" in caplog.text) == (digits is None)
    message = "is not the published file" if digits else r"has changed .* was \w+ and is now \w+"
    for _ in range(30):  # at the first use of every later state
        file.write_bytes(flipped())
        with pytest.raises(CheckpointError, match=message):
            load(checkpoint, progress=False)
    file.write_bytes(content)
    load(checkpoint, progress=False)

    status = file.stat()  # on the disk, behind everybody's back: the same inode, size and time of change
    file.write_bytes(flipped())
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    monkeypatch.setattr(cli, "default_manifest", lambda: of_one(checkpoint))
    assert cli.main(["cache", "verify"]) == 3
    assert re.search(message, capsys.readouterr().err)


def of_one(checkpoint: Checkpoint) -> Manifest:
    return dataclasses.replace(default_manifest(), checkpoints={checkpoint.name: checkpoint})


# Tensors that are whole and do not fit.

WRONG = {
    "a weight too few": (lambda s: s.pop("conv1.weight"), r"Missing key\(s\).*conv1\.weight"),
    "all but one": (lambda s: [s.pop(key) for key in list(s)[1:]], r"Missing key\(s\).*bn1\.weight"),
    "a weight too many": (lambda s: s.update(surplus=torch.ones(1)), r"Unexpected key\(s\).*surplus"),
    "a shape": (lambda s: s.update({"fc.bias": torch.ones(3)}), r"size mismatch for fc\.bias: \(3,\), expected \(5,\)"),
    "turned": (lambda s: s.update({"fc.weight": s["fc.weight"].T}), r"size mismatch for fc\.weight"),
    "a counter of no numbers": (
        lambda s: s.update({"bn1.num_batches_tracked": torch.ones(0, dtype=torch.int64)}),
        r"size mismatch for bn1\.num_batches_tracked",
    ),
    "int8": (lambda s: s.update({"fc.bias": torch.ones(5, dtype=torch.int8)}), r"fc\.bias is torch\.int8, expected"),
    "int64": (lambda s: s.update({"fc.bias": torch.ones(5, dtype=torch.int64)}), r"fc\.bias is torch\.int64"),
    "bool": (lambda s: s.update({"fc.bias": torch.ones(5) > 0}), r"fc\.bias is torch\.bool"),
    "complex": (lambda s: s.update({"fc.bias": torch.ones(5) * 1j}), r"fc\.bias is torch\.complex64"),
    "NaN": (lambda s: s["bn1.running_var"].fill_(torch.nan), r"NaN or infinity in bn1\.running_var"),
    "one infinity": (lambda s: s["fc.weight"][2].fill_(-torch.inf), r"NaN or infinity in fc\.weight"),
    "NaN everywhere": (
        lambda s: [t.fill_(torch.nan) for t in s.values() if t.is_floating_point()],
        r"NaN or infinity in [\w.]+, [\w.]+, [\w.]+ and \d+ more",
    ),
    "two of one name": (lambda s: s.update({"module.fc.bias": torch.ones(5)}), r"same name.*: module\.fc\.bias"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", WRONG)
def test_weights_that_do_not_fit(wrong: str, kind: str, tmp_path: Path) -> None:
    """As a user's own file, which is read into memory, and as a published one, which is mapped or converted."""
    change, message = WRONG[wrong]
    state = {key: tensor.clone() for key, tensor in STATE.items()}
    change(state)
    name = "w.safetensors" if kind == "safetensors" else "w.pth"
    folder = put(tmp_path / "run", saved(state, kind), name)
    checkpoint = find_checkpoint(folder)
    with pytest.raises(CheckpointError, match=message):
        load(checkpoint, file=folder / name)
    if kind == "zip" and "NaN" in message:  # mapped without being read: `cache verify` reads it
        load(checkpoint, progress=False)
        with pytest.raises(CheckpointError, match=message):
            checkpoints.examine(folder / name)
    else:
        with pytest.raises(CheckpointError, match=message):
            load(checkpoint, progress=False)


def test_a_copy_is_compared_by_what_its_bytes_mean(tmp_path: Path) -> None:
    for change in (
        lambda t: t.view(torch.int32), lambda t: t.view(1, -1), lambda t: t.clone().fill_(7), lambda t: t[:0]
    ):  # fmt: skip
        for path, bias in ((tmp_path / "w.pth", STATE["fc.bias"]), (tmp_path / "copy", change(STATE["fc.bias"]))):
            torch.save(STATE | {"fc.bias": bias}, path)
        assert not checkpoints.is_faithful(tmp_path / "copy", tmp_path / "w.pth")
    torch.save(STATE, tmp_path / "copy")
    assert checkpoints.is_faithful(tmp_path / "copy", tmp_path / "w.pth")
    (tmp_path / "copy").write_bytes(b"")
    assert not checkpoints.is_faithful(tmp_path / "copy", tmp_path / "w.pth")


class Named(torch.Tensor):
    pass


SPECIAL = {
    "sparse": lambda t: t.to_sparse(),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "of a class of its own": lambda t: t.as_subclass(Named),
    "without memory": lambda t: t.to("meta"),
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
    "conjugate": lambda t: torch.conj(t + 0j),
    "negated when it is read": lambda t: torch._neg_view(t),  # pyright: ignore[reportPrivateImportUsage]
    "float8": lambda t: t.to(torch.float8_e4m3fn),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "zip"])
@pytest.mark.parametrize("special", SPECIAL)
def test_tensors_that_are_more_than_numbers(special: str, legacy: bool, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    state = STATE | {"fc.weight": SPECIAL[special](STATE["fc.weight"])}
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"[\w.]+ at byte|conjugate"):
        load_into(build(SMALL, hostile.CLASSES), mapped_state_dict(file, "0" * 64, Store()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_floats_of_another_width_become_the_networks(dtype: torch.dtype, kind: str, tmp_path: Path) -> None:
    state = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in STATE.items()}
    folder = put(tmp_path / "run", saved(state, kind), "w.safetensors" if kind == "safetensors" else "w.pth")
    for key, value in load(find_checkpoint(folder), progress=False).state_dict().items():
        assert value.dtype == STATE[key].dtype
        assert torch.equal(value, state[key].to(value.dtype))


def test_an_averaged_counter_is_a_number_too(tmp_path: Path) -> None:
    state = STATE | {"bn1.num_batches_tracked": torch.tensor(2.5)}
    network = build(SMALL, hostile.CLASSES)
    load_into(network, state)
    assert network.bn1.num_batches_tracked == 2


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_strides_parameters_hooks_and_old_pickles(kind: str, tmp_path: Path) -> None:
    """What older versions and other programs have written, and is harmless: the numbers come through, and only they."""
    weight = torch.nn.Parameter(STATE["fc.weight"].T.contiguous().T)
    weight.attribute = "x"
    state = dict(STATE) | {
        "fc.weight": weight,
        "conv1.weight": STATE["conv1.weight"].to(memory_format=torch.channels_last),
    }
    folder = put(tmp_path / "run", saved({"state_dict": state, "epoch": 3, "size": torch.Size((1, 2))}, kind))
    network = load(find_checkpoint(folder), progress=False)
    assert all(torch.equal(tensor, STATE[key]) for key, tensor in network.state_dict().items())
    assert network.fc.weight.is_contiguous()
    assert not hasattr(network.fc.weight, "attribute")
    hooks = call(name("collections", "OrderedDict"), b"]](K\x00Nea")
    parameter = call(name("torch._utils", "_rebuild_parameter"), tensor(), b"\x88", hooks)
    pairs = b"](](U\x01a" + tensor() + b"e](U\x01b" + parameter + b"ee"
    metadata = b"}" + text("_metadata") + b"Nsb"
    python2 = PROTO + call(name("collections", "OrderedDict"), pairs) + metadata + STOP
    (tmp_path / "old.pth").write_bytes((as_zip if kind == "zip" else as_legacy)(python2))
    assert {k: (type(v), v.tolist(), v.requires_grad) for k, v in read_state_dict(tmp_path / "old.pth").items()} == {
        k: (torch.Tensor, [0.0] * 4, False) for k in "ab"
    }


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_tensors_that_share_memory_are_copied(kind: str, tmp_path: Path) -> None:
    """Two layers of one storage, and one number for a whole layer: training one must not change another."""
    shared = torch.rand(8, 4, 3, 3)
    state = STATE | {
        "layer3.0.conv1.weight": shared, "layer1.0.conv1.weight": shared.as_strided((2, 2, 3, 3), (1, 1, 3, 1)),
        "bn1.weight": torch.rand(3)[1:], "bn1.bias": torch.rand(3)[:1].expand(2),
    }  # fmt: skip
    folder = put(tmp_path / "run", saved(state, kind))
    network = load(find_checkpoint(folder), progress=False)
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
    with torch.no_grad():
        network.layer3[0].conv1.weight.zero_()
        network.bn1.bias[0] = 7
    assert torch.equal(network.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
    assert network.bn1.bias[1] == state["bn1.bias"][1]


# At random.


def fuzzed(folder: Path, examples: int, seconds: int, seed: int) -> dict[str, int]:
    command = [sys.executable, hostile.__file__, "--fuzz", folder, *map(str, (examples, seconds, seed))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, f"{done.stderr[-3000:]}\nthe file lies in {folder}"
    return json.loads(done.stdout)


def test_broken_at_random(tmp_path: Path) -> None:
    counts = fuzzed(tmp_path, 150, 60, 0)
    assert sum(counts.values()) > 20
    assert any(count for case, count in counts.items() if case.endswith("refused"))


@pytest.mark.soak
def test_broken_at_random_for_ten_minutes(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    counts = fuzzed(tmp_path, 10**9, 600, seed)
    print(f"seed {seed}: {counts}")
    assert all(count > (100 if case.endswith("refused") else 0) for case, count in counts.items()), counts
