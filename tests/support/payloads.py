"""Pickles that run code, name what they must not, or make tensors out of bounds."""

from __future__ import annotations

from .hostile import PROTO, STOP, call, name, number, numbers, storage, tensor, text

TOUCH = text("touch ran")
POSIX = name("posix", "system")
SYSTEM = call(POSIX, TOUCH)
WRITE = "open('ran', 'w').close()"
INNER = call(name("_codecs", "encode"), text((PROTO + SYSTEM + STOP).decode("latin-1")), text("latin1"))
#: What runs in the hands of Python's own unpickler: shown in `test_the_payloads_are_real`.
ARMED = {
    "os.system": SYSTEM,
    "os.system through its alias": call(name("os", "system"), TOUCH),
    "exec": call(name("builtins", "exec"), text(WRITE)),
    "exec by its Python 2 name": call(name("__builtin__", "eval"), text(WRITE)),
    "compile and eval": call(
        name("builtins", "eval"), call(name("builtins", "compile"), text(WRITE), text("x"), text("eval"))
    ),
    "open": call(name("builtins", "open"), text("ran"), text("w")),
    "subprocess": call(name("subprocess", "check_output"), b"]" + text("touch") + b"a" + text("ran") + b"a"),
    "getattr chain": call(
        call(name("builtins", "getattr"), call(name("builtins", "__import__"), text("os")), text("system")), TOUCH
    ),
    "operator.methodcaller": call(
        call(name("operator", "methodcaller"), text("system"), TOUCH),
        call(name("importlib", "import_module"), text("os")),
    ),
    "functools.partial": call(call(name("functools", "partial"), POSIX, TOUCH)),
    "timeit": call(name("timeit", "timeit"), text(WRITE), text("pass"), name("timeit", "default_timer"), number(1)),
    "cProfile": call(name("cProfile", "run"), text(WRITE), text("prof")),
    "runpy": call(
        name("runpy", "_run_code"), call(name("builtins", "compile"), text(WRITE), text("x"), text("exec")), b"}"
    ),
    "code.InteractiveInterpreter": call(
        call(name("builtins", "getattr"), call(name("code", "InteractiveInterpreter")), text("runsource")), text(WRITE)
    ),
    "pathlib": call(
        call(name("builtins", "getattr"), call(name("pathlib", "Path"), text("ran")), text("touch"))
    ),
    "logging.FileHandler": call(name("logging", "FileHandler"), text("ran")),
    "torch.storage, a pickle inside": call(
        name("torch.storage", "_load_from_bytes"), INNER
    ),
    "pickle.loads, a pickle inside": call(
        name("_pickle", "loads"), INNER
    ),
    "INST": b"(" + TOUCH + b"iposix\nsystem\n",
    "OBJ": b"(" + POSIX + TOUCH + b"o",
    "NEWOBJ": name("builtins", "bytes") + name("builtins", "map") + POSIX + b"]" + TOUCH + b"a\x86\x81\x85\x81",
    "NEWOBJ_EX": name("builtins", "bytes")
    + (name("builtins", "map") + POSIX + b"]" + TOUCH + b"a\x86}\x92") + b"\x85}\x92",
    "STACK_GLOBAL": text("posix") + text("system") + b"\x93" + TOUCH + b"\x85R",
    "BUILD, __setstate__ from a dictionary": name("argparse", "Namespace") + b")\x81"
    + (b"}" + text("__setstate__") + POSIX + b"s") + b"b" + TOUCH + b"b",
    "a key of a dictionary": b"}" + SYSTEM + b"Ns",
    "a hook of a tensor": call(name("collections", "OrderedDict"), b"]](K\x00" + SYSTEM + b"ea"),
    "thrown away by POP": b"N" + SYSTEM + b"0",
    "a second PROTO 5": b"\x80\x05" + SYSTEM,
}  # fmt: skip
#: What needs a state of things that a test does not make, and what only names something it must not.
UNARMED = {
    f"{module}.{attribute}": call(name(module, attribute), text("http://127.0.0.1:1/x"))
    for module, attribute in [
        ("torch.utils.model_zoo", "load_url"), ("torch.hub", "load"), ("torch.hub", "load_state_dict_from_url"),
        ("torch.jit", "load"), ("torch.serialization", "load"),
        ("pathlib", "Path.touch"), ("torch", "load"), ("torch._utils", "_rebuild_device_tensor_from_numpy"),
        ("torch._utils", "_rebuild_wrapper_subclass"), ("torch._utils", "_rebuild_meta_tensor_no_storage"),
        ("torch._utils", "_rebuild_nested_tensor"), ("torch._utils", "_rebuild_qtensor"),
        ("torch._utils", "_rebuild_sparse_tensor"), ("torch._utils", "_rebuild_tensor_v3"),
        ("torch._tensor", "_rebuild_from_type_v2"), ("torch", "Tensor"), ("torch", "FloatTensor"),
        ("torch.nn.parameter", "Parameter"), ("torch.storage", "UntypedStorage"), ("torch.storage", "TypedStorage"),
        ("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "load"),
        ("torch.jit._script", "RecursiveScriptModule"), ("torch.package", "PackageImporter"), ("joblib", "load"),
        ("webbrowser", "open"), ("ctypes", "CDLL"), ("pip", "main"), ("socket", "create_connection"),
        ("shutil", "rmtree"), ("urllib.request", "urlretrieve"), ("linecache", "getline"), ("builtins", "getattr"),
        ("collections", "defaultdict"), ("collections", "OrderedDict.fromkeys"), ("argparse", "Namespace"),
        ("resnext_hub.models.checkpoints", "read_state_dict"), ("os\x1b[2J", "system"),
    ]
} | {
    "a registered extension, EXT1": b"\x82\x01" + TOUCH + b"\x85R",
    "EXT4": b"\x84\xff\xff\xff\x7f" + TOUCH + b"\x85R",
    "an out-of-band buffer": b"\x97",
    "a persistent id in text": b"Pposix\n",
    "a persistent id that is a text": text("storage") + b"Q",
    "a persistent id that is a module": b"(" + text("module") + name("torch", "FloatStorage") + text("a.py") + b"NNtQ",
    "a storage of another type": b"(" + text("storage") + name("collections", "OrderedDict") + text("0") + b"NK\x04tQ",
    "a storage that is a view": storage(view=b"(" + text("0") + number(0) + number(4) + b"t"),
    "a storage with a number as its key": storage(number(0)),
    "a storage of -1": storage(count=-1),
    "a call of a value": b")" + b")R",
    "a call of a storage's type": call(name("torch", "FloatStorage"), number(2**40)),
    "a call with no arguments": name("collections", "OrderedDict") + b"NR",
    "an item for a tensor (CVE-2026-24747)": tensor() + b"K\x00K\x00s",
    "items for a storage (CVE-2026-24747)": storage() + b"(K\x00K\x00u",
    "items for a list (CVE-2026-24747)": b"](K\x00K\x00u",
    "a list's item for a dictionary": b"}K\x00a",
    "an odd number of items": b"}(K\x00u",
    "a tensor as a key": b"}" + tensor() + b"Ns",
    "the same key twice": b"}" + text("a") + b"Ns" + text("a") + b"Ns",
    "a tensor of no storage": tensor(b"N"),
    "a parameter of no tensor": call(name("torch._utils", "_rebuild_parameter"), b"N", b"\x88", b"N"),
    "a state_dict of something else": b"N",
}  # fmt: skip
EXTENTS = {
    "beyond the storage": tensor(shape=numbers(5)),
    "beyond it by an offset": tensor(offset=1),
    "offset far away": tensor(offset=2**62),
    "a negative offset": tensor(offset=-1),
    "beyond it by a stride": tensor(shape=numbers(2, 2), stride=numbers(3, 1)),
    "a huge stride": tensor(shape=numbers(2), stride=numbers(2**62)),
    "a negative stride": tensor(stride=numbers(-1)),
    "a huge shape": tensor(shape=numbers(2**62)),
    "a shape whose product is 2**64": tensor(shape=numbers(2**32, 2**32), stride=numbers(0, 0)),
    "a shape of many numbers": tensor(shape=numbers(*[1] * 100), stride=numbers(*[1] * 100)),
    "a shape that is no number": tensor(shape=b"(" + text("4") + b"t"),
    "a shape that is true": tensor(shape=b"(\x88t"),
    "a negative shape": tensor(shape=numbers(-4)),
    "a shape without strides": tensor(stride=b")"),
    "repeated without end": tensor(shape=numbers(2**40), stride=numbers(0)),
    "nothing, at an offset beyond": tensor(offset=5, shape=numbers(0)),
    "a storage larger than its bytes": tensor(storage(count=400), shape=numbers(400)),
    "a storage smaller than its bytes": tensor(storage(count=2), shape=numbers(2)),
    "a storage of 2**70 elements": tensor(storage(count=2**70)),
    "one storage of two lengths": b"}" + text("a") + tensor() + b"s" + text("b") + tensor(storage(count=2**40)) + b"s",
    "one storage of two types": b"}" + text("a") + tensor() + b"s" + text("b")
    + tensor(storage(kind="IntStorage")) + b"s",
    "a storage that is not there": tensor(storage(text("7"))),
    "a storage with a path as its key": tensor(storage(text("../../data/0"))),
    "a storage of the pickle's own bytes": tensor(storage(text("../data.pkl"))),
}  # fmt: skip
