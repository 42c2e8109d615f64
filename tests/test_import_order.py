"""Imports between the folders go one way, downwards, and only `net` opens connections."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from .conftest import ROOT, tracked_files

#: The folders and modules of the package, the lowest first. Each imports only from the rows below its own.
ROWS = [
    {"errors", "files", "processes"},
    {"mount", "packages", "telemetry"},
    {"run_identity", "net"},
    {"models"},
    {"processing_utils"},  # it reads the manifest's presets, so it lies above models
    {"data"},
    {"inference", "curation"},
    {"deploy", "training", "evaluation"},
    {"demo"},
    {"cli"},
    {"hubconf", "__init__"},
]
LEVEL = {room: level for level, row in enumerate(ROWS) for room in row}
OUTSIDE = {"benchmarks", "build", "docs", "maintenance", "notebooks", "tests"}

#: What opens connections, or does so for its caller.
WAYS_OUT = {"aiohttp", "ftplib", "http", "httpx", "requests", "smtplib", "socket", "socketserver", "ssl", "urllib3"}
CALLS_OUT = {"create_connection", "download_url_to_file", "load_state_dict_from_url", "urlopen", "urlretrieve"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the package with its syntax tree: "models.store"."""
    for name in tracked_files():
        path = Path(name)
        if path.suffix == ".py" and path.parts[0] not in OUTSIDE and not name.startswith("."):
            yield ".".join(path.with_suffix("").parts), ast.parse((ROOT / path).read_text(encoding="utf-8"))


def room_of(module: str) -> str:
    """The row's name for a module. A folder's `__main__` belongs to the command line."""
    parts = module.split(".")
    return "cli" if parts[-1] == "__main__" else parts[0]


def imported(module: str, tree: ast.Module) -> Iterator[str]:
    """What a module imports of this package, inside functions too: "models.store"."""
    folder = module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or alias.name for alias in node.names]
            if node.level:
                base = folder[: len(folder) - node.level + 1]
                yield from {".".join([*base, name]) for name in names}
            else:
                yield from {name.removeprefix("resnext_hub.") for name in names if name.startswith("resnext_hub.")}


def test_imports_go_downwards() -> None:
    found = {
        (module, target)
        for module, tree in modules()
        for target in imported(module, tree)
        if target != "__version__"
        and room_of(target) != room_of(module)
        and LEVEL[room_of(target)] >= LEVEL[room_of(module)]
    }
    assert found == set()


def test_each_folder_is_in_the_table() -> None:
    rooms = {room_of(module) for module, _ in modules()}
    assert rooms <= LEVEL.keys()
    assert {"net", "models", "processing_utils", "inference", "cli"} <= rooms


def test_the_network_itself_imports_only_torch() -> None:
    tree = dict(modules())["models.resnext"]
    assert list(imported("models.resnext", tree)) == []


def test_no_test_module_imports_another() -> None:
    """They share what is in tests/support."""
    for name in tracked_files():
        if name.startswith("tests/") and name.endswith(".py"):
            for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                    assert not [n for n in names if n.rpartition(".")[2].startswith("test_")], name


def test_only_net_opens_connections() -> None:
    for module, tree in modules():
        if room_of(module) == "net":
            continue
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert not {name.partition(".")[0] for name in names} & WAYS_OUT, module
            assert not (isinstance(node, ast.Attribute) and node.attr in CALLS_OUT), module
