"""What a pickle says, read as data, in this process: what is refused and by which words, and what comes through."""

from __future__ import annotations

import pickle
from collections import Counter, OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from resnext_hub.models.pickles import ForeignError, PickleError, Storage, Stored, unpickle

from ..support.hostile import PROTO, STOP, call, name, number, numbers, state_of, storage, tensor, text
from ..support.payloads import ARMED, EXTENTS, UNARMED

BEYOND = "storage of 4 elements"
MORE = "more elements"
NATURAL = "natural numbers"
STORAGE = "storage of an unsupported kind"
NO_CALL = "a call"
NO_DICTIONARY = "dictionary"
END = "end of the data"
#: What the message must name for each case that is refused for another reason than a function or class.
WORDS = {
    "INST": "INST",
    "a registered extension, EXT1": "EXT1",
    "EXT4": "EXT4",
    "an out-of-band buffer": "NEXT_BUFFER",
    "a persistent id in text": "PERSID",
    "a persistent id that is a text": STORAGE,
    "a persistent id that is a module": STORAGE,
    "a storage of another type": STORAGE,
    "a storage that is a view": STORAGE,
    "a storage with a number as its key": STORAGE,
    "a storage of -1": STORAGE,
    "a call of a value": NO_CALL,
    "a call of a storage's type": NO_CALL,
    "a call with no arguments": NO_CALL,
    "an item for a tensor (CVE-2026-24747)": NO_DICTIONARY,
    "items for a storage (CVE-2026-24747)": NO_DICTIONARY,
    "items for a list (CVE-2026-24747)": NO_DICTIONARY,
    "a list's item for a dictionary": "a list",
    "an odd number of items": "(ValueError)",
    "a tensor as a key": "Stored",
    "the same key twice": "repeated",
    "a tensor of no storage": "without a storage",
    "a parameter of no tensor": "without a tensor",
    "beyond the storage": MORE,
    "beyond it by an offset": BEYOND,
    "offset far away": BEYOND,
    "a negative offset": NATURAL,
    "beyond it by a stride": BEYOND,
    "a huge stride": BEYOND,
    "a negative stride": NATURAL,
    "a huge shape": MORE,
    "a shape whose product is 2**64": MORE,
    "a shape of many numbers": "without a shape",
    "a shape that is no number": NATURAL,
    "a shape that is true": NATURAL,
    "a negative shape": NATURAL,
    "a shape without strides": "stride",
    "repeated without end": MORE,
    "nothing, at an offset beyond": BEYOND,
    "one storage of two lengths": "descriptions of one storage",
    "one storage of two types": "descriptions of one storage",
}
MORE_WORDS = {
    "nothing": (b"", END, 0),
    "no STOP": (PROTO + b"N", END, 3),
    "only STOP": (STOP, "(IndexError)", 0),
    "a byte that is no opcode": (b"N\xff", r"b'\xff'", 1),
    "a text that is cut": (b"X\x05\x00\x00\x00four", END, 0),
    "a length that is cut": (b"X\x05\x00", END, 0),
    "a text that is no UTF-8": (b"U\x01\xff.", "(UnicodeDecodeError)", 0),
    "a memo that is empty": (b"h\x00.", "(KeyError)", 0),
    "a name without end": (b"ctorch", "(ValueError)", 0),
    "a call with too few": (call(name("torch._utils", "_rebuild_tensor"), b"N"), "(TypeError)", 33),
    "a number, far into it": (b"N" * 1500 + b"s", NO_DICTIONARY, 1500),
    "a tensor of a number": (tensor(shape=b"K\x04"), "without a shape", None),
    "conjugated": (
        call(name("torch._utils", "_rebuild_tensor_v2"), storage(), number(0), numbers(4), numbers(1), b"\x89N", b"}"),
        "conjugate",
        None,
    ),
    "a storage of five words, the first another": (storage().replace(text("storage"), text("module")), STORAGE, None),
    "a storage of four words": (storage().replace(number(4), b""), STORAGE, None),
    "a storage of seven words": (storage(view=b"NN"), STORAGE, None),
    "a storage of true elements": (storage().replace(number(4), b"\x88"), STORAGE, None),
    "pairs with a tuple as a key": (call(name("collections", "OrderedDict"), b"](](]Nee"), "list", None),
}


@pytest.mark.parametrize("case", ARMED | UNARMED | EXTENTS)
def test_what_is_refused_is_named_with_its_byte(case: str) -> None:
    pickled = (ARMED | UNARMED | EXTENTS)[case]
    if case in WORDS:
        with pytest.raises(PickleError) as caught:
            unpickle(PROTO + pickled + STOP)
        words, _, at = str(caught.value).rpartition(" at byte ")
        assert type(caught.value) is PickleError
        assert WORDS[case] in words
        assert 2 <= int(at.replace(",", "")) < 2 + len(pickled)
    elif case in EXTENTS or pickled == b"N":  # as long as the file's own records are not known, nothing is wrong
        value, end = unpickle(PROTO + pickled + STOP)
        assert value is None or isinstance(value, Stored)
        assert end == len(PROTO + pickled + STOP)
    else:
        with pytest.raises(ForeignError, match=r"^[\w.]+(\\x1b\[2J\.system)? at byte \d+$"):
            unpickle(PROTO + pickled + STOP)


def test_a_foreign_name_is_shown_short_and_where_it_stands() -> None:
    for before, at in ((b"", "2"), (b"N" * 1500, "1,502")):
        with pytest.raises(ForeignError) as caught:
            unpickle(PROTO + before + name("m" * 60, "a" * 60) + STOP)
        assert str(caught.value) == f"{'m' * 60}.{'a' * 39} at byte {at}"
    with pytest.raises(ForeignError) as caught:
        unpickle(PROTO + name("os", "ä\x1b") + STOP)
    assert str(caught.value) == r"os.\xe4\x1b at byte 2"


@pytest.mark.parametrize("case", MORE_WORDS)
def test_what_is_broken_is_named_with_its_byte(case: str) -> None:
    pickled, words, at = MORE_WORDS[case]
    with pytest.raises(PickleError) as caught:
        unpickle(pickled)
    found, _, byte = str(caught.value).rpartition(" at byte ")
    assert words in found
    assert at is None or byte == f"{at:,}"


NUMBERS = st.one_of(
    st.sampled_from([0, 1, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -1, -(2**31), -(2**31) - 1, 2**70, -(2**70)]),
    st.integers(),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(allow_nan=False), st.text())
PLAIN = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(st.one_of(NUMBERS, st.text()), inner, max_size=5),
    ),
    max_leaves=30,
)


@settings(max_examples=100)
@given(PLAIN, st.binary(max_size=4), st.binary(max_size=4))
def test_plain_values_are_read_as_python_reads_them(value: Any, before: bytes, after: bytes) -> None:
    pickled = pickle.dumps(value, 2)
    found, end = unpickle(before + pickled + after, len(before))
    assert repr(found) == repr(value)  # which tells 1 from True, and () from []
    assert end == len(before) + len(pickled)


def test_repeated_objects_are_one_object() -> None:
    """More than 256 of them, so that the memo's long numbers are used too."""
    lists = [[i] for i in range(300)]
    found, _ = unpickle(pickle.dumps([lists, lists[::-1]], 2))
    assert found == [lists, lists[::-1]]
    assert all(a is b for a, b in zip(found[0], found[1][::-1], strict=True))


def test_texts_of_python_2_and_dictionaries_of_pairs() -> None:
    pairs = b"](](U\x01aNe](U\x01bK\x07ee"
    for module, kind in (("collections", "OrderedDict"), ("collections", "Counter")):
        assert unpickle(call(name(module, kind), pairs) + STOP)[0] == {"a": None, "b": 7}
        assert unpickle(call(name(module, kind)) + STOP)[0] == {}
    for value in (OrderedDict(a=1, b=2), Counter("aab")):
        assert unpickle(pickle.dumps(value, 2))[0] == value
    with pytest.raises(PickleError, match=r"repeated.* at byte \d+$"):
        unpickle(call(name("collections", "OrderedDict"), b"](](U\x01aNe](U\x01aNee") + STOP)


@pytest.mark.parametrize("function", ["torch.device", "_codecs.encode", "builtins.set", "__builtin__.bytearray"])
def test_harmless_things_beside_the_weights_become_nothing(function: str) -> None:
    module, _, attribute = function.rpartition(".")
    assert unpickle(call(name(module, attribute), text("cpu"), number(2**40)) + STOP)[0] is None


def test_sizes_and_states() -> None:
    assert unpickle(pickle.dumps(torch.Size((2, 3)), 2))[0] == (2, 3)
    assert unpickle(b"K\x07" + b"}b" + STOP)[0] == 7, "a state is thrown away"


@pytest.mark.parametrize(
    ("kind", "dtype", "bytes_each"),
    [
        ("Float", torch.float32, 4), ("Double", torch.float64, 8), ("Half", torch.float16, 2),
        ("BFloat16", torch.bfloat16, 2), ("Long", torch.int64, 8), ("Int", torch.int32, 4), ("Short", torch.int16, 2),
        ("Char", torch.int8, 1), ("Byte", torch.uint8, 1), ("Bool", torch.bool, 1),
        ("ComplexFloat", torch.complex64, 8), ("ComplexDouble", torch.complex128, 16),
    ],
)  # fmt: skip
def test_storages(kind: str, dtype: torch.dtype, bytes_each: int) -> None:
    storages: dict[str, Storage] = {}
    described = {key: storage(text(key), 4 + i, f"{kind}Storage") for i, key in enumerate("ab")}
    again = storage(text("a"), 4, f"{kind}Storage", b"N")
    found, _ = unpickle(b"".join(described.values()) + again + STOP, 0, storages)
    assert found == Storage("a", dtype, 4)
    assert storages == {"a": Storage("a", dtype, 4), "b": Storage("b", dtype, 5)}
    assert storages["b"].bytes == 5 * bytes_each
    assert unpickle(storage(count=0, kind=f"{kind}Storage") + STOP)[0].numel == 0


@pytest.mark.parametrize(
    ("count", "offset", "shape", "stride"),
    [
        (4, 0, (4,), (1,)),
        (4, 3, (), ()),
        (4, 1, (3,), (1,)),
        (4, 4, (0,), (1,)),
        (4, 4, (2, 0), (2**62, 1)),
        (10, 0, (2, 3), (5, 2)),
        (10, 0, (2, 3), (1, 4)),
        (4, 3, (4,), (0,)),
        (1, 0, (1,) * 16, (1,) * 16),
        (0, 0, (0,), (1,)),
    ],
)
def test_tensors_reach_to_the_last_element(
    count: int, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    for convert in (numbers, lambda *values: b"](" + b"".join(map(number, values)) + b"e"):
        pickled = tensor(storage(count=count), offset, convert(*shape), convert(*stride))
        found = Stored(Storage("0", torch.float32, count), offset, shape, stride)
        assert unpickle(pickled + STOP)[0] == found
        assert unpickle(call(name("torch._utils", "_rebuild_parameter"), pickled, b"\x88", b"N") + STOP)[0] == found
    if offset or 0 not in shape:
        with pytest.raises(PickleError, match=f"storage of {count} elements|{MORE}"):
            unpickle(tensor(storage(count=count), offset + 1, numbers(*shape), numbers(*stride)) + STOP)


def test_too_many_dimensions_are_no_shape() -> None:
    with pytest.raises(PickleError, match=r"without a shape at byte \d+$"):
        unpickle(tensor(shape=numbers(*[1] * 17), stride=numbers(*[1] * 17)) + STOP)


def test_a_state_dict() -> None:
    storages: dict[str, Storage] = {}
    value, end = unpickle(state_of(tensor()), storages=storages)
    assert value == {"conv1.weight": Stored(storages["0"], 0, (4,), (1,))}
    assert end == len(state_of(tensor()))
