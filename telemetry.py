"""Import libraries that send usage data to their makers, with that telemetry turned off.

Each library is silenced by the switch in its own documentation, just before its first import and only when this package
is about to use it: importing ``resnext_hub`` alone changes nothing. Variables that the user has set stay as they are.
What is set stays set, so that child processes such as Ray's workers are silent too.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SWITCHES: dict[str, dict[str, str]] = {
    # Privacy.md in its wheel (1.31.1). disable_telemetry_events() stops neither the device id nor the sending.
    "onnxruntime": {"ORT_DISABLE_TELEMETRY": "1"},
    # No variable. "opt_in_out --opt_out" of openvino_telemetry writes into HOME, so import_quietly hides that package.
    "openvino": {},
    # docs.ray.io/en/latest/cluster/usage-stats.html
    "ray": {"RAY_USAGE_STATS_ENABLED": "0"},
    # mlflow.org/docs/latest/community/usage-tracking
    "mlflow": {"MLFLOW_DISABLE_TELEMETRY": "true"},
    # docs.wandb.ai/ref/environment-variables: crash reports
    "wandb": {"WANDB_ERROR_REPORTING": "false"},
    # gradio.app/guides/environment-variables: usage statistics, and the check for a new version
    "gradio": {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"},
    # huggingface.co/docs/huggingface_hub/package_reference/environment_variables
    "huggingface_hub": {"HF_HUB_DISABLE_TELEMETRY": "1"},
}


def silence(library: str) -> None:
    """Set the environment variables that turn off a library's telemetry, unless the user has set them."""
    for variable, value in SWITCHES[library].items():
        os.environ.setdefault(variable, value)


def import_quietly(module: str) -> Any:
    """Import a module of a library in `SWITCHES` with the library's telemetry turned off."""
    library = module.partition(".")[0]
    silence(library)
    with _without_openvino_telemetry() if library == "openvino" else contextlib.nullcontext():
        return importlib.import_module(module)


@contextlib.contextmanager
def _without_openvino_telemetry() -> Iterator[None]:
    """Make ``import openvino`` use its own stub, as it does if openvino_telemetry is not installed.

    Does nothing if the user has opted in: openvino_telemetry's command ``opt_in_out --opt_in`` writes "1" into a file.
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
