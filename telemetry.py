"""Import libraries that report their use to their makers with that report turned off.

Each library is silenced by the switch that its own documentation names, just before its first import and only when this
package is about to use it: importing ``resnext_hub`` alone changes nothing. A variable that the user has set is obeyed.
The variables stay set, so child processes (Ray's workers, a notebook's kernel) are silent too.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["SWITCHES", "import_quietly", "silence"]

SWITCHES: dict[str, dict[str, str]] = {
    # Privacy.md in its wheel (1.31.1). disable_telemetry_events() stops neither the device id nor the sending.
    "onnxruntime": {"ORT_DISABLE_TELEMETRY": "1"},
    # No variable. "opt_in_out --opt_out" of openvino_telemetry writes into HOME, so import_quietly hides that package.
    "openvino": {},
    # docs.ray.io/en/latest/cluster/usage-stats.html
    "ray": {"RAY_USAGE_STATS_ENABLED": "0"},
    # gradio.app/guides/environment-variables: statistics, and the check for a new version
    "gradio": {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"},
    # huggingface.co/docs/huggingface_hub/package_reference/environment_variables
    "huggingface_hub": {"HF_HUB_DISABLE_TELEMETRY": "1"},
}


def silence(library: str) -> None:
    """Set the environment variables that turn off a library's reports, unless the user has set them."""
    for variable, value in SWITCHES[library].items():
        os.environ.setdefault(variable, value)


def import_quietly(module: str) -> Any:
    """Import a module of a library in `SWITCHES` with the library's reports turned off.

    Raises:
        ModuleNotFoundError: The library is not installed.
    """
    library = module.partition(".")[0]
    silence(library)
    with _without_openvino_telemetry() if library == "openvino" else contextlib.nullcontext():
        return importlib.import_module(module)


@contextlib.contextmanager
def _without_openvino_telemetry() -> Iterator[None]:
    """Have ``import openvino`` take the stub that it brings for where openvino_telemetry is not installed.

    Does nothing if the user has opted in: ``opt_in_out --opt_in`` of openvino_telemetry writes "1" into a file.
    """
    consent = Path(os.path.expanduser("~/intel/openvino_telemetry"))
    if consent.is_file() and consent.read_text(errors="replace").strip() == "1":
        yield
        return
    name = "openvino_telemetry"
    present = sys.modules.get(name)
    sys.modules[name] = None  # pyright: ignore[reportArgumentType]  # importing it raises ImportError
    try:
        yield
    finally:
        del sys.modules[name]
        if present is not None:
            sys.modules[name] = present
