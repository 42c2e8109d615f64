"""Give a checkout of this repository the package name ``resnext_hub``, whatever the name of its folder.

torch.hub has a checkout on ``sys.path`` only while it runs hubconf.py, and a plain ``import models`` would take, or be
taken for, the user's own ``models``. So hubconf.py mounts its folder: a package whose ``__path__`` is the checkout is
put into ``sys.modules``, and everything is imported through it (docs/decisions.md).
"""

from __future__ import annotations

import copyreg
import functools
import hashlib
import importlib
import importlib.util
import os.path
import pkgutil
import runpy
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["locate", "mount", "register"]

NAME = "resnext_hub"
_KEY = "__resnext_hub_key__"


def _stamp(root: Path) -> str:
    """A digest of the code and data that a mounted package would import from a checkout."""
    digest = hashlib.blake2b(digest_size=8)
    for folder, subfolders, files in os.walk(root):
        # Folders that are not packages (a virtual environment, data, .git) hold nothing that is imported.
        subfolders[:] = sorted(s for s in subfolders if os.path.isfile(os.path.join(folder, s, "__init__.py")))
        for file in sorted(f for f in files if f.endswith((".py", ".json"))):
            path = Path(folder, file)
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _is_among(root: Path, entries: Iterable[str]) -> bool:
    return any(Path(entry).resolve() == root for entry in entries)


def _importable_from(root: Path) -> bool | None:
    """Return True if plain ``import resnext_hub`` finds this checkout, False if another, None if nothing."""
    try:
        spec = importlib.util.find_spec(NAME)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return None
    return _is_among(root, spec.submodule_search_locations or ())


def _installed() -> bool:
    import importlib.metadata  # imported here, because it is slow and the command line does not need it

    try:
        importlib.metadata.distribution("resnext-hub")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def mount(root: str | os.PathLike[str]) -> ModuleType:
    """The package of the checkout at ``root``: the one mounted before if its content is the same, else a new one.

    Its name is ``resnext_hub``, or with a suffix where another checkout or an installed distribution has that name.
    ``sys.path`` is left alone.
    """
    root = Path(root).resolve()
    key = f"{root}\0{_stamp(root)}"
    for package in list(sys.modules.values()):
        if getattr(package, "__dict__", {}).get(_KEY) == key:
            return package
    importlib.invalidate_caches()

    present = sys.modules.get(NAME)
    if present is not None and not hasattr(present, _KEY) and _is_among(root, getattr(present, "__path__", ())):
        setattr(present, _KEY, key)  # imported by its ordinary name before
        return present
    found = _importable_from(root) if present is None else False
    if found:  # an editable installation, or the working folder has a checkout of this name
        package = importlib.import_module(NAME)
        setattr(package, _KEY, key)
        package.__dict__["__mounted__"] = not _installed()
        return package
    name = NAME if found is None else f"{NAME}_{hashlib.blake2b(key.encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, root / "__init__.py", submodule_search_locations=[str(root)])
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    setattr(package, _KEY, key)
    package.__dict__["__mounted__"] = True
    sys.modules[name] = package
    spec.loader.exec_module(package)
    return package


def locate(module: str, name: str) -> Any:
    """The object ``name`` of this checkout's module ``module`` (both dotted, relative to the package)."""
    package = mount(Path(__file__).parent)
    return pkgutil.resolve_name(f"{package.__name__}.{module}:{name}")


# A pickle of a mounted class has this instead of "module.name": the package is not importable in a fresh process, so
# an expression of standard-library functions finds the checkout at its path, or else an installed resnext_hub.
_FIND = (
    "run_path(script)['locate'](module, name) if isfile(script) else resolve_name('resnext_hub.' + module + ':' + "
    "name) if find_spec('resnext_hub') else (_ for _ in ()).throw(ModuleNotFoundError('This was pickled from the "
    "resnext-hub checkout at ' + dirname(script) + ', which does not exist on this machine. ''Call torch.hub.load "
    "once, or pip install git+https://github.com/org/resnext-hub, or share the state_dict() ''instead of the "
    "network.'))"
)


class _ClassReference:
    """Stands for a class while it is pickled."""

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def __reduce__(self) -> tuple[Any, ...]:
        package, _, module = self.cls.__module__.partition(".")
        found_by = {
            "run_path": runpy.run_path,
            "isfile": os.path.isfile,
            "dirname": os.path.dirname,
            "resolve_name": pkgutil.resolve_name,
            "find_spec": importlib.util.find_spec,
            "script": str(Path(sys.modules[package].__path__[0]) / "mount.py"),
            "module": module,
            "name": self.cls.__qualname__,
        }
        return eval, (_FIND, found_by)


class _New:
    """``cls.__new__(cls)`` when it is called (copy.copy does), and something that finds the class when it is pickled.

    One for each class, so that a pickle holds the expression once, however many blocks a network has.
    """

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def __call__(self) -> object:
        return self.cls.__new__(self.cls)  # pyright: ignore[reportCallIssue]

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial, (self.cls.__new__, _ClassReference(self.cls))


def _reduce(new: _New, instance: object) -> tuple[Any, ...]:
    _, _, *state = instance.__reduce_ex__(4)
    return new, (), *state


def register(*classes: type) -> None:
    """Let instances of these classes be pickled and unpickled in processes that have not mounted the checkout.

    Does nothing where the package is installed, and so importable by its name anywhere.
    """
    for cls in classes:
        if sys.modules[cls.__module__.partition(".")[0]].__dict__.get("__mounted__"):
            copyreg.pickle(cls, functools.partial(_reduce, _New(cls)))  # type: ignore[arg-type]
