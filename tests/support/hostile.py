"""What the tests of hostile checkpoints are made with: pickles by hand, files around them, a process that may die.

As a script it reads lists of folders from stdin and loads their checkpoints in a process for each list, within bounds,
with a cache beside the folder; ``--fuzz`` breaks small checkpoints at random, see `fuzz`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import pickletools
import resource
import signal
import struct
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
ARCHITECTURE = {
    "block": "BasicBlock", "layers": [1, 1, 1, 1], "groups": 1, "width_per_group": 64, "se_channels": None, "planes": 2,
    "stem_pool": True,
}  # fmt: skip
CLASSES = 5
ROUND = 200
MEMORY, SECONDS = 1 << 30, 30  # what loads may take beyond what the process has, and of the processor


def state_dict(**options: Any) -> dict[str, torch.Tensor]:
    """The weights of a network of 2,000 parameters, which every checkpoint of these tests claims to be of."""
    from resnext_hub.models.entrypoints import build
    from resnext_hub.models.manifest import Architecture

    torch.manual_seed(0)
    return build(Architecture(**(ARCHITECTURE | {"layers": (1, 1, 1, 1)})), CLASSES, **options).state_dict()


def put(folder: Path, content: bytes, name: str = "weights.pth") -> Path:
    """A run's folder with this content as its weights, and a manifest that carries their own length and hash."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    manifest = json.loads((ROOT / "weights_manifest.json").read_text())
    checkpoint = manifest["checkpoints"]["resnet18_ssl"]
    digest = hashlib.sha256(content).hexdigest()
    hashed = {"kind": "sha256", "value": digest}
    checkpoint["sources"] = [{"url": None, "path": name, "format": None, "bytes": len(content), "hash": hashed}]
    checkpoint |= {"architecture": "small", "num_classes": CLASSES, "labels": "own"}
    (folder / "labels.tsv").write_text("".join(f"{i}\tclass{i}\tclass {i}\n" for i in range(CLASSES)))
    manifest["label_sets"] = {"own": {"file": "labels.tsv", "classes": CLASSES}}
    manifest["architectures"] = {"small": ARCHITECTURE}
    manifest["checkpoints"] = {"hostile": checkpoint}
    manifest["aliases"] = {}
    (folder / "weights_manifest.json").write_text(json.dumps(manifest))
    return folder


# Pickles by hand, at protocol 2 as torch.save writes them.

PROTO, STOP = b"\x80\x02", b"."


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(20, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def storage(key: bytes = text("0"), count: int = 4, kind: str = "FloatStorage", view: bytes = b"") -> bytes:
    return b"(" + text("storage") + name("torch", kind) + key + text("cpu") + number(count) + view + b"tQ"


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(where: bytes | None = None, offset: int = 0, shape: bytes = numbers(4), stride: bytes = numbers(1)) -> bytes:
    ordered = call(name("collections", "OrderedDict"))
    arguments = (storage() if where is None else where, number(offset), shape, stride, b"\x89", ordered)
    return call(name("torch._utils", "_rebuild_tensor_v2"), *arguments)


def doubled(times: int = 60) -> bytes:
    """A tuple of itself, twice, again and again: 4 bytes each, and 2 ** times parts to whoever walks through it."""
    return b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(times))


def state_of(value: bytes) -> bytes:
    """The pickle of a state_dict that holds this under a name that the network has."""
    return PROTO + b"}" + text("conv1.weight") + value + b"s" + STOP


# Files around a pickle.


def as_zip(pickled: bytes, records: Mapping[str, bytes] | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for record, content in ({"data/0": bytes(16)} if records is None else records).items():
            archive.writestr(f"archive/{record}", content)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


MAGIC = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)
VERSION = pickle.dumps(torch.serialization.PROTOCOL_VERSION, 2)
SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}, 2)


def as_legacy(pickled: bytes, storages: bytes = b"\x04" + bytes(7 + 16), keys: tuple[Any, ...] = ("0",)) -> bytes:
    return MAGIC + VERSION + SYSTEM + pickled + pickle.dumps(list(keys), 2) + storages


def saved(state: Any, kind: str) -> bytes:
    if kind == "safetensors":
        import safetensors.torch

        return safetensors.torch.save({key: value.contiguous() for key, value in state.items()})
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    return file.getvalue()


# A process that may die.


def _outcome(folder: Path) -> dict[str, Any]:
    from resnext_hub.models.entrypoints import load
    from resnext_hub.models.manifest import find_checkpoint

    try:
        network = load(find_checkpoint(folder), progress=False)
    except BaseException as error:  # whatever it is, it is for the test to judge
        return {"error": type(error).__name__, "message": str(error)}
    return {"shapes": {key: list(value.shape) for key, value in network.state_dict().items()}}


def _try(folders: list[Path]) -> list[dict[str, Any]]:
    """What came of each, in one process for all; of those after one that ends it, nothing did."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for folder in folders:
                signal.alarm(10 * SECONDS)
                resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + SECONDS, resource.RLIM_INFINITY))
                os.chdir(folder)
                os.environ["TORCH_HOME"] = str(folder.parent / "home")
                if (folder / "control").exists():  # what the payload does to a reader that trusts it
                    with contextlib.suppress(Exception):
                        pickle.loads((folder / "control").read_bytes())
                else:
                    (folder / "outcome.json").write_text(json.dumps(_outcome(folder)))
            code = 0
        finally:
            os._exit(code)
    _, status, usage = os.wait4(pid, 0)
    found = {"exit": os.waitstatus_to_exitcode(status), "memory": usage.ru_maxrss << 10}
    files = [folder / "outcome.json" for folder in folders]
    return [found | (json.loads(file.read_text()) if file.exists() else {}) for file in files]


def fuzz(folder: Path, examples: int, seconds: float, seed: int) -> dict[str, int]:
    """Break small checkpoints of three formats at random, each with its hash made right; count what came of them.

    The file being tried lies in ``folder``, should the process die of it. An outcome other than a network of the right
    shapes or a CheckpointError raises.
    """
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    state = state_dict()
    shapes = {key: list(value.shape) for key, value in state.items()}
    originals = {kind: saved(state, kind) for kind in ("zip", "legacy", "safetensors")}
    originals["training"] = saved({"state_dict": state, "epoch": 3, "optimizer": {"state": {0: state}}}, "legacy")
    counts = dict.fromkeys((f"{kind} {end}" for kind in originals for end in ("loaded", "refused")), 0)
    stop = time.monotonic() + seconds  # looked at after each round
    # What the tensors hold is of no interest: most changes go where the file describes itself.
    ranges = {kind: _description(content) for kind, content in originals.items()}

    @st.composite
    def broken(draw: st.DrawFn) -> tuple[str, bytes]:
        kind = draw(st.sampled_from(sorted(originals)))
        content = bytearray(originals[kind])
        for _ in range(draw(st.integers(1, 4))):
            start, end = draw(st.sampled_from([*ranges[kind], (0, len(content))]))
            at = draw(st.integers(start, max(start, min(end, len(content)) - 1)))
            match draw(st.sampled_from(["flip", "set", "insert", "delete", "copy", "cut", "number"])):
                case "flip":
                    content[at : at + 1] = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in content[at : at + 1])
                case "set":
                    content[at : at + 1] = draw(st.sampled_from(OPCODES) | st.binary(min_size=1, max_size=1))
                case "insert":
                    content[at:at] = draw(st.sampled_from(OPCODES) | st.binary(max_size=8))
                case "delete":
                    del content[at : at + draw(st.integers(1, 64))]
                case "copy":
                    other = draw(st.integers(0, len(content)))
                    piece = content[at : at + draw(st.integers(1, 200))]
                    content[other : other + draw(st.integers(0, len(piece)))] = piece
                case "cut":
                    del content[at:]
                case _:
                    value = draw(st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]))
                    form = draw(st.sampled_from(["<B", "<H", "<I", "<Q"]))
                    size = struct.calcsize(form)
                    content[at : at + size] = struct.pack(form, value % 256**size)
        return kind, bytes(content)

    @settings(
        max_examples=min(examples, ROUND), deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(broken())
    def load_broken(example: tuple[str, bytes]) -> None:
        kind, content = example
        suffix = "safetensors" if kind == "safetensors" else "pth"
        outcome = _outcome(put(folder, content, f"weights.{suffix}"))
        if "shapes" in outcome:
            assert outcome["shapes"] == shapes
        else:
            assert outcome["error"] == "CheckpointError", f"{outcome} of {kind} {hashlib.sha256(content).hexdigest()}"
        counts[f"{kind} {'loaded' if 'shapes' in outcome else 'refused'}"] += 1
        for left in (Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints" / ".resnext-hub").glob("weights.*"):
            if left.suffix != ".lock":
                left.unlink()

    while sum(counts.values()) < examples and time.monotonic() < stop:
        seeded(seed + sum(counts.values()))(load_broken)()
    return counts


OPCODES = [op.code.encode("latin-1") for op in pickletools.opcodes]


def _description(content: bytes) -> list[tuple[int, int]]:
    """Where a file of one of three formats describes itself: what tensors there are, and where."""
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            headers = [(info.header_offset, info.header_offset + 64) for info in infos[:8]]
            return [*headers, (infos[0].header_offset, infos[1].header_offset), (archive.start_dir, len(content))]
    if content[8:9] == b"{":
        return [(0, 8 + int.from_bytes(content[:8], "little"))]
    return [(0, 250), (250, content.rindex(b"e.") + 10)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    state_dict()  # imports everything, once, before the forks

    if sys.argv[1:2] == ["--fuzz"]:
        print(json.dumps(fuzz(Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))))
    else:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        for line in sys.stdin:
            print(json.dumps([found | {"own": own} for found in _try([*map(Path, json.loads(line))])]), flush=True)
