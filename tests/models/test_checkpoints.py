"""What a file of weights says of itself, read in this process: each refusal by its words, mapped or not."""

from __future__ import annotations

import errno
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resnext_hub.errors import CheckpointError, UnwritableError
from resnext_hub.models import checkpoints
from resnext_hub.models.checkpoints import load_into, normalise_keys, read_state_dict
from resnext_hub.models.store import Store
from safetensors.torch import save_file

from ..support.hostile import (
    MAGIC,
    PROTO,
    STOP,
    SYSTEM,
    VERSION,
    as_legacy,
    as_zip,
    call,
    name,
    state_of,
    storage,
    tensor,
    text,
)  # fmt: skip

GOOD = state_of(tensor())
LONG = "n" * 150


def flagged(content: bytes) -> bytes:
    """The archive, its first record said to be encrypted."""
    entry = content.index(b"PK\x01\x02")
    return content[: entry + 8] + b"\x01" + content[entry + 9 :]


def moved(content: bytes, offset: int) -> bytes:
    """The archive, its last record but one (the storage) said to lie elsewhere."""
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"archive/data/0"))
    return content[: entry + 42] + struct.pack("<I", offset) + content[entry + 46 :]


def twice() -> bytes:
    content = as_zip(GOOD, {"data/0": bytes(16), "Data/0": bytes(16)})
    return content.replace(b"archive/Data/0", b"archive/data/0")


def lengthened(content: bytes) -> bytes:
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"archive/data/0"))
    return content[: entry + 20] + struct.pack("<II", 900, 900) + content[entry + 28 :]


def legacy(*parts: bytes) -> bytes:
    usual = [MAGIC, VERSION, SYSTEM, GOOD, pickle.dumps(["0"], 2), b"\x04" + bytes(7 + 16)]
    return b"".join([*parts, *usual[len(parts) :]])


EMPTY = b"PK\x05\x06" + bytes(18)
NEITHER = "magic number"
#: A file's bytes, and what the message must name.
BROKEN = {
    "an empty archive": (b"PK\x03\x04" + EMPTY, "no record 'data.pkl'"),
    "no pickle": (as_zip(GOOD).replace(b"data.pkl", b"data.pkk"), "no record 'data.pkl'"),
    "no storage": (as_zip(GOOD, {}), "no record 'data/0'"),
    "a long name": (as_zip(state_of(tensor(storage(text(LONG))))), f"'data/{LONG[:95]}'"),
    "compressed": (as_zip(GOOD, compression=zipfile.ZIP_DEFLATED), "'data.pkl' is compressed or encrypted"),
    "encrypted": (flagged(as_zip(GOOD)), "'data.pkl' is compressed or encrypted"),
    "elsewhere": (moved(as_zip(GOOD), 3), "'data/0' does not begin at byte 3"),
    "at the end": (moved(as_zip(GOOD), len(as_zip(GOOD)) - 5), f"at byte {len(as_zip(GOOD)) - 5:,}"),
    "too long": (lengthened(as_zip(GOOD)), "'data/0' ends after"),
    "twice": (twice(), "'archive/data/0' twice"),
    "a record too short": (as_zip(GOOD, {"data/0": bytes(15)}), "conv1.weight has 15 bytes, expected 16"),
    "a record too long": (as_zip(GOOD, {"data/0": bytes(17)}), "conv1.weight has 17 bytes, expected 16"),
    "code": (as_zip(GOOD, {"constants.pkl": b""}), "TorchScript"),
    "a long pickle": (as_zip(bytes(checkpoints.LIMIT + 1)), "data.pkl has 4,194,305 bytes, more than 4,194,304"),
    "a longest pickle": (as_zip(bytes(checkpoints.LIMIT)), r"opcode b'\x00'"),
    "big-endian": (as_zip(GOOD).replace(b"little", b"big   "), "big-endian"),
    "a list": (as_zip(PROTO + b"]" + STOP), "a list"),
    "a number": (as_zip(state_of(b"K\x01")), "int under 'conv1.weight'"),
    "a call": (as_zip(state_of(call(name("torch", "Size"), b"K\1\x85"))), "tuple under 'conv1.weight'"),
    "a number as a name": (as_zip(PROTO + b"}K\x01" + tensor() + b"s" + STOP), "tensor under '1'"),
    "a long name of nothing": (as_zip(PROTO + b"}" + text(LONG) + b"Ns" + STOP), f"NoneType under '{LONG[:100]}'"),
    "legacy, another magic number": (legacy(pickle.dumps(7, 2)), NEITHER),
    "legacy, a text for it": (legacy(pickle.dumps("7", 2)), NEITHER),
    "legacy, another version": (legacy(MAGIC, pickle.dumps(1002, 2)), NEITHER),
    "legacy, a number for the system": (legacy(MAGIC, VERSION, pickle.dumps(1, 2)), NEITHER),
    "legacy, big-endian": (legacy(MAGIC, VERSION, pickle.dumps({"little_endian": False}, 2)), "big-endian"),
    "legacy, nothing of the system": (legacy(MAGIC, VERSION, pickle.dumps({}, 2)), "big-endian"),
    **{
        f"legacy, keys {keys!r}": (as_legacy(GOOD, keys=keys), f"list of storages, at byte {at},")
        for at in [len(MAGIC + VERSION + SYSTEM + GOOD)]
        for keys in (("0", "0"), ("0", 1), ("0", "1"))
    },
    "legacy, no key": (as_legacy(GOOD, b"", ()), "no data for conv1.weight"),
    "legacy, no list": (legacy(MAGIC, VERSION, SYSTEM, GOOD, pickle.dumps("0", 2)), "no data for conv1.weight"),
    "legacy, a byte too many": (as_legacy(GOOD) + b"\0", f"at byte {len(as_legacy(GOOD))}"),
    "legacy, a byte too few": (as_legacy(GOOD)[:-1], f"at byte {len(as_legacy(GOOD)) - 24}"),
    "legacy, of another length": (as_legacy(GOOD, b"\x05" + bytes(23)), f"at byte {len(as_legacy(GOOD)) - 24}"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("mmap", [False, True])
def test_what_is_broken_is_named(case: str, mmap: bool, tmp_path: Path) -> None:
    content, words = BROKEN[case]
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(path, mmap=mmap)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert words in message
    assert "state_dict()" in message, "what to do"


def test_other_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with pytest.raises(FileNotFoundError, match=str(path)):
        read_state_dict(path)
    path.write_bytes(as_zip(state_of(name("posix", "system"))))
    with pytest.raises(CheckpointError, match=rf"^{path}.*posix\.system at byte 20.*state_dict\(\)"):
        read_state_dict(path)
    (tmp_path / "w.safetensors").write_bytes(b"\0" * 8)
    with pytest.raises(CheckpointError, match=r"w\.safetensors .* safetensors"):
        read_state_dict(tmp_path / "w.safetensors")


def test_views_may_name_a_files_bytes_eight_times(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    for number_of_views, good in ((8, True), (9, False)):
        base = torch.zeros(100_000)
        torch.save({f"w{i}": base.view(-1) for i in range(number_of_views)}, path)
        if good:
            assert len(read_state_dict(path)) == number_of_views
        else:
            with pytest.raises(CheckpointError, match="w.pth"):
                read_state_dict(path, mmap=True)


def test_records_may_not_lie_over_one_another(tmp_path: Path) -> None:
    """Two storages of the same bytes: each fits, their sum does not."""
    pickled = PROTO + b"}" + text("a") + tensor() + b"s" + text("b") + tensor(storage(text("1"))) + b"s" + STOP
    (tmp_path / "w.pth").write_bytes(as_zip(pickled, {"data/0": bytes(16), "data/1": bytes(16)}))
    found = read_state_dict(tmp_path / "w.pth")
    assert {key: value.tolist() for key, value in found.items()} == {"a": [0.0] * 4, "b": [0.0] * 4}


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_every_kind_of_number_comes_back(mmap: bool, legacy: bool, tmp_path: Path) -> None:
    state = {
        str(dtype): torch.arange(12).reshape(3, 4).to(dtype)
        for dtype in (
            torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
            torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128,
        )
    }  # fmt: skip
    state |= {"turned": torch.arange(6.0).reshape(2, 3).T, "empty": torch.empty(0, 3), "one": torch.tensor(7.0)}
    path = tmp_path / "w.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    for wrapped in (False, True):
        if wrapped:
            torch.save({"state_dict": state, "epoch": 1}, path, _use_new_zipfile_serialization=not legacy)
        found = read_state_dict(path, mmap=mmap and not legacy)
        assert list(found) == list(state)
        for key, value in state.items():
            assert (found[key].dtype, found[key].stride()) == (value.dtype, value.stride())
            assert torch.equal(found[key], value)
        found["one"].fill_(8)  # private and writable
    assert read_state_dict(path)["one"] == 7


def test_a_crc_covers_more_than_one_chunk(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    tensors = {"first": torch.ones(300_000), "second": torch.arange(600_000.0)}
    torch.save(tensors, path)
    assert torch.equal(read_state_dict(path)["second"], tensors["second"])
    content = path.read_bytes()
    at = content.index(tensors["second"].numpy().tobytes()) + 2_300_000
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(CheckpointError, match=r"second .*CRC32"):
        read_state_dict(path)
    assert zlib.crc32(content) != zlib.crc32(path.read_bytes())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_tensors_that_are_not_finite_are_named(value: float, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    wrong = torch.tensor([0.0, value, 1.0])
    for count, words in ((1, "w0"), (3, "w0, w1, w2"), (4, "w0, w1, w2 and 1 more"), (6, "w0, w1, w2 and 3 more")):
        torch.save({"good": torch.ones(2), "n": torch.ones(2).long()} | {f"w{i}": wrong for i in range(count)}, path)
        with pytest.raises(CheckpointError) as caught:
            read_state_dict(path)
        assert str(caught.value).startswith(f"{path} holds NaN or infinity in {words}")
        with pytest.raises(CheckpointError, match=f"in {words}:"):
            checkpoints.examine(path)
        assert len(read_state_dict(path, mmap=True)) == count + 2
    torch.save({LONG: wrong}, path)
    with pytest.raises(CheckpointError, match=f"in {LONG[:100]}:"):
        read_state_dict(path)


def test_float8_is_checked_for_nan(tmp_path: Path) -> None:
    """torch has no aminmax for them, and torch.save an opcode more, which is not read; safetensors holds them."""
    path = tmp_path / "w.safetensors"
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        save_file({"w": torch.tensor([0.5, 2.0]).to(dtype)}, path)
        assert read_state_dict(path)["w"].float().tolist() == [0.5, 2.0]
        save_file({"w": torch.tensor([0.5, torch.nan]).to(dtype)}, path)
        with pytest.raises(CheckpointError, match=" w:"):
            read_state_dict(path)


WEIGHTS = {"conv1.weight": torch.arange(8.0).reshape(2, 4), "running_mean": torch.ones(3, dtype=torch.float16)}
#: Files that somebody else may have written, which hold these weights.
WRITTEN = {
    "a state_dict": WEIGHTS,
    "a training checkpoint": {
        "epoch": 3,
        "best_prec1": np.float64(76.5),  # NVIDIA's trainer
        "state_dict": {f"module.{key}": torch.nn.Parameter(value) for key, value in WEIGHTS.items()},
        "optimizer": torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], 0.1, momentum=0.9).state_dict(),
    },
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("case", WRITTEN)
def test_every_writer_is_understood(case: str, zipped: bool, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(WRITTEN[case], path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    found = normalise_keys(read_state_dict(path))
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[key], WEIGHTS[key]) and found[key].dtype == WEIGHTS[key].dtype for key in WEIGHTS)


def test_strings_of_python_2_are_understood(tmp_path: Path) -> None:
    """Python 2 wrote a short text with SHORT_BINSTRING and a longer one with BINSTRING."""
    path = tmp_path / "w.pth"
    for opcode in (b"U\x01w", b"T\x01\x00\x00\x00w"):
        path.write_bytes(as_zip(b"\x80\x02}" + opcode + tensor() + b"s."))
        assert list(read_state_dict(path)) == ["w"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_reads_a_verified_file_of_another_format(
    zipped: bool, tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A sparse tensor beside the weights: our reader does not know it, torch's does. Only a hash of ours vouches."""
    path = tmp_path / "w.pth"
    torch.save({"state_dict": WEIGHTS, "mask": torch.eye(2).to_sparse()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="_rebuild_sparse_tensor"):
        checkpoints.mapped_state_dict(path, "0" * 64, Store())
    caplog.set_level("WARNING", "resnext_hub")
    for _ in range(2):
        found = checkpoints.mapped_state_dict(path, "0" * 64, Store(), vouched=True)
        assert all(torch.equal(found[key], WEIGHTS[key]) for key in WEIGHTS | found)
    (message,) = caplog.messages  # the second time the mapped copy is there
    assert "weights_only" in message
    copy = next(home.rglob("*.mapped"))
    assert checkpoints.is_faithful(copy, path, vouched=True)
    checkpoints.examine(path, vouched=True)


def test_code_is_refused_even_in_a_verified_file(tmp_path: Path, home: Path) -> None:
    for content in (pickle.dumps(Path("x")), as_zip(state_of(call(name("os", "system"), text("true"))))):
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(CheckpointError):
            checkpoints.mapped_state_dict(tmp_path / "w.pth", "0" * 64, Store(), vouched=True)


@pytest.fixture
def unaligned(tmp_path: Path, home: Path) -> Path:
    """A file whose tensors cannot be mapped as they lie there."""
    path = tmp_path / "w.pth"
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    return path


def test_a_copy_is_written_once_and_logged(unaligned: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "resnext_hub")
    for _ in range(2):
        assert checkpoints.mapped_state_dict(unaligned, "0" * 64, Store())["w"].tolist() == [1, 1, 1]
    (said,) = caplog.messages
    assert "w.pth" in said
    assert not list(unaligned.parent.rglob("*.part"))


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [
        *((OSError(number, "a test"), True) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)),
        (RuntimeError("PytorchStreamWriter failed writing file"), True),
        (OSError(errno.EIO, "a test"), False),
    ],
    ids=str,
)
def test_a_copy_that_cannot_be_written(
    unaligned: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception, goes_on: bool
) -> None:
    def save(state: Any, file: Any) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", save)
    before = torch.serialization.get_crc32_options()
    if goes_on:
        assert checkpoints.mapped_state_dict(unaligned, "0" * 64, Store())["w"].tolist() == [1, 1, 1]
        (said,) = caplog.messages
        assert said.startswith("w.pth")
        assert said.endswith(str(error))
    else:
        with pytest.raises(type(error), match="a test"):
            checkpoints.mapped_state_dict(unaligned, "0" * 64, Store())
    assert torch.serialization.get_crc32_options() == before
    assert not list(unaligned.parent.rglob("*.part"))
    assert not list(unaligned.parent.rglob("*.mapped"))


def test_a_folder_that_cannot_be_written(
    unaligned: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock(store: Store, path: Path) -> None:
        raise UnwritableError("this is a test")

    monkeypatch.setattr(Store, "lock", lock)
    assert checkpoints.mapped_state_dict(unaligned, "0" * 64, Store())["w"].tolist() == [1, 1, 1]
    (said,) = caplog.messages
    assert said.startswith("w.pth")
    assert said.endswith("this is a test")


def test_tensors_that_share_memory_are_copied_into_the_network() -> None:
    base, image = torch.arange(60.0), torch.rand(2, 3, 4, 5)
    state = {
        "inside": base[2:4], "also": base[5:8], "first": base[0:10], "next": base[10:20], "overlaps": base[15:25],
        "last": base[25:30], "matrix": base[30:36].view(2, 3), "transposed": base[36:42].view(2, 3).T,
        "channels_last": image.to(memory_format=torch.channels_last), "permuted": image.permute(3, 2, 1, 0),
        "repeated": torch.rand(2, 1, 1, 1).expand(2, 3, 4, 5), "nothing": torch.empty(0),
    }  # fmt: skip
    network = torch.nn.Module()
    for key, value in state.items():
        network.register_parameter(key, torch.nn.Parameter(torch.zeros(value.shape)))
    load_into(network, state)
    for key, value in network.named_parameters():
        assert torch.equal(value, state[key]), key
    copied = {key for key, value in network.named_parameters() if value.data_ptr() != state[key].data_ptr()}
    assert copied == {"inside", "also", "overlaps", "transposed", "channels_last", "permuted", "repeated"}
    assert all(value.is_contiguous() for value in network.parameters())


def test_weights_go_to_the_default_device() -> None:
    network = torch.nn.Linear(2, 3)
    with torch.device("meta"):
        load_into(network, {"weight": torch.ones(3, 2, device="cpu"), "bias": torch.ones(3, device="cpu")})
    assert {value.device.type for value in network.parameters()} == {"meta"}


def test_names_and_shapes_of_the_publishers() -> None:
    state = {
        "module.layers.0.1.conv1.weight": torch.ones(2, 2, 1, 1),
        "layers.3.0.squeeze.squeeze.weight": torch.ones(2, 3, 1, 1),
        "layers.12.0.squeeze.expand.weight": torch.ones(3, 2),
        "module.module.layers.0.x": torch.ones(1),
        "a.layers.0.x": torch.ones(1),
        "squeeze.squeeze.bias": torch.ones(1, 1, 1, 1),
    }
    assert {key: tuple(value.shape) for key, value in normalise_keys(state).items()} == {
        "layer1.1.conv1.weight": (2, 2, 1, 1),
        "layer4.0.squeeze.squeeze.weight": (2, 3),
        "layer13.0.squeeze.expand.weight": (3, 2),
        "layer1.x": (1,),
        "a.layers.0.x": (1,),
        "squeeze.squeeze.bias": (1, 1, 1, 1),
    }
    with pytest.raises(CheckpointError) as caught:
        normalise_keys({"layers.0.x": torch.ones(1), "layer1.x": torch.ones(1)})
    assert str(caught.value).endswith(": layers.0.x.")
    with pytest.raises(CheckpointError, match=r": module\.layers\.0\.x, layers\.0\.x\.$"):
        normalise_keys({"module.layers.0.x": torch.ones(1), "layers.0.x": torch.ones(1)})


def test_tensors_that_do_not_fit_are_named() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    good = {key: value.clone() for key, value in network.state_dict().items()}
    for change, words in (
        ({"0.bias": torch.ones(3).to_sparse()}, "0.bias is torch.float32, expected torch.float32."),
        ({"0.bias": torch.ones(3).to(torch.float8_e4m3fn)}, "0.bias is torch.float8_e4m3fn, expected torch.float32."),
        ({"1.num_batches_tracked": torch.tensor(1j)}, "is torch.complex64, expected torch.int64."),
        ({f"surplus{i}{LONG}": torch.ones(4) for i in range(9)}, "…"),
    ):
        with pytest.raises(CheckpointError) as caught:
            load_into(network, good | change, origin="mine.pth")
        message = str(caught.value)
        assert message.startswith("mine.pth ")
        assert message.endswith(words)
        assert len(message) < 400
    with pytest.raises(CheckpointError, match="^the checkpoint .*Missing key"):
        load_into(network, {})
    for bias in (torch.ones(3).half(), torch.ones(3).double()):
        load_into(network, good | {"0.bias": bias, "1.num_batches_tracked": torch.tensor(3, dtype=torch.int8)})
        assert torch.equal(network[0].bias, torch.ones(3))
        assert network[0].bias.dtype == torch.float32
        assert network[1].num_batches_tracked.dtype == torch.int64


def test_keys_are_mapped_after_their_prefix_is_gone() -> None:
    network = torch.nn.Linear(2, 3)
    state = {"module.w": torch.ones(3, 2), "b": torch.ones(3)}
    load_into(network, state, key_map=lambda key: {"w": "weight", "b": "bias"}[key])
    assert torch.equal(network.weight, torch.ones(3, 2))
    with pytest.raises(CheckpointError, match="module.w, b"):
        load_into(network, state, key_map=lambda key: "weight")
