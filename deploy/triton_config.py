"""Triton's model configurations: plain data, and the text form (config.pbtxt) that the server reads.

The schema is Triton's model_config.proto; the tests parse every text that is written here with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["BACKENDS", "LABELS", "Backend", "Serving", "Word", "configurations", "parts", "to_text"]


LABELS = "labels.txt"  # a name a line, in the model's folder


class Word(str):
    """An enum's value: written without quotes."""


def to_text(message: Mapping[str, Any]) -> str:
    """A message in protobuf's text form. A list is a repeated field, a mapping a message in a message."""
    return "".join(f"{line}\n" for key, value in message.items() for line in _field(key, value))


def _field(key: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        inner = [f"  {line}" for name, item in value.items() for line in _field(name, item)]
        return [f"{key} {{", *inner, "}"] if inner else [f"{key} {{}}"]
    if isinstance(value, (list, tuple)):
        if any(isinstance(item, Mapping) for item in value):
            return [line for item in value for line in _field(key, item)]
        return [f"{key}: [{', '.join(_scalar(item) for item in value)}]"]
    return [f"{key}: {_scalar(value)}"]


def _scalar(value: Any) -> str:
    if isinstance(value, Word):
        return str(value)
    return json.dumps(value, ensure_ascii=False)  # strings, numbers and booleans look the same in both


@dataclass(frozen=True)
class Backend:
    """What runs the network in Triton.

    Attributes:
        target: whose artefact it runs, a name of `targets.TARGETS`; the artefact has the name that Triton looks for.
        index: what stands behind a tensor's name; libtorch knows arguments by their place, not by name.
        kinds: where it can run: Triton's instance kind by our name.
    """

    target: str
    index: str = ""
    kinds: Sequence[str] = ("auto", "gpu", "cpu")


BACKENDS: dict[str, Backend] = {
    "onnxruntime": Backend("onnx"),
    "tensorrt": Backend("tensorrt", kinds=("auto", "gpu")),
    "pytorch": Backend("torchscript", index="__0"),
    "python": Backend("onnx", kinds=("auto", "cpu")),
}


@dataclass(frozen=True)
class Serving:
    """How Triton runs one variant.

    Args:
        backend: a name of `BACKENDS`.
        device: "auto" (a GPU where the server has one), "gpu" or "cpu".
        version: the number of the version's folder, from 1.
        max_batch: images that pass the network together at most.
        preferred_batch: sizes that are sent on at once, without waiting for more; by default half of ``max_batch`` and
            all of it.
        queue_delay: microseconds that a request waits for others at most.
        instances: copies of the network that run at the same time (on each GPU).
        decoders: processes that decode and resize images.
        top: how many classes are answered by name.
        grade: how exactly images are resized, see `processing_utils.preprocessing`.
        response_cache: let Triton answer a request that it has answered before (needs --cache-config on the server).
    """

    backend: str = "onnxruntime"
    device: str = "auto"
    version: int = 1
    max_batch: int = 16
    preferred_batch: tuple[int, ...] | None = None
    queue_delay: int = 2000
    instances: int = 1
    decoders: int = 2
    top: int = 5
    grade: str = "reference"
    response_cache: bool = False

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"Unknown Triton backend {self.backend!r}; choose from {', '.join(BACKENDS)}.")
        kinds = BACKENDS[self.backend].kinds
        if self.device not in kinds:
            raise ValueError(
                f"The backend {self.backend} does not support the device {self.device!r}; choose from "
                f"{', '.join(kinds)}."
            )
        for name in ("version", "max_batch", "instances", "decoders", "top"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        if self.queue_delay < 0:
            raise ValueError(f"queue_delay (in microseconds) must be 0 or more, got {self.queue_delay}.")
        if wrong := [size for size in self.preferred_batch or () if not 1 <= size <= self.max_batch]:
            raise ValueError(f"preferred_batch must be from 1 to {self.max_batch} (max_batch), got {wrong}.")

    @property
    def batches(self) -> tuple[int, ...]:
        """The preferred sizes, smallest first."""
        sizes = (self.max_batch // 2, self.max_batch) if self.preferred_batch is None else self.preferred_batch
        return tuple(sorted({size for size in sizes if size}))


def parts(name: str) -> dict[str, str]:
    """The names of the models behind the one that clients call."""
    return {part: f"{name}_{part}" for part in ("decode", "network", "labels")}


def configurations(name: str, serving: Serving, crop: int, classes: int) -> dict[str, dict[str, Any]]:
    """The configuration of every model of a variant, by the model's name; the last is the one that clients call."""
    names = parts(name)
    built = {
        names["decode"]: _decode(serving, crop),
        names["network"]: _network(serving, crop, classes),
        names["labels"]: _labels(serving, classes),
        name: _ensemble(names, serving, classes),
    }
    return {model: {"name": model, **config} for model, config in built.items()}


# A new version is served beside the one before it, so that going back takes no loading.
NEWEST_TWO = {"latest": {"num_versions": 2}}


def _tensor(name: str, kind: str, *dims: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "data_type": Word(f"TYPE_{kind}"), "dims": dims, **more}


def _pixels(crop: int) -> tuple[Any, ...]:
    return ("UINT8", crop, crop, 3)


def _answers(serving: Serving, classes: int, **more: Any) -> list[dict[str, Any]]:
    """The best classes by name, and the scores of all (their labels are for Triton's classification extension)."""
    kinds = {"classes": "INT64", "labels": "STRING", "synsets": "STRING", "probabilities": "FP32"}
    best = [_tensor(name, kind, serving.top) for name, kind in kinds.items()]
    return [*best, _tensor("scores", "FP32", classes, **more)]


def _on_cpu(count: int) -> list[dict[str, Any]]:
    return [{"kind": Word("KIND_CPU"), "count": count}]


def _decode(serving: Serving, crop: int) -> dict[str, Any]:
    image = {"data_type": Word("TYPE_STRING"), "dims": (1,), "input_data_file": "image"}
    return {
        "backend": "python",
        "max_batch_size": serving.max_batch,
        "input": [_tensor("image", "STRING", 1)],
        "output": [_tensor("pixels", *_pixels(crop))],
        "instance_group": _on_cpu(serving.decoders),
        "version_policy": NEWEST_TWO,
        "model_warmup": [{"name": "a small JPEG", "batch_size": 1, "inputs": {"key": "image", "value": image}}],
    }


def _network(serving: Serving, crop: int, classes: int) -> dict[str, Any]:
    backend = BACKENDS[serving.backend]
    on_cpu = serving.backend == "python" or serving.device == "cpu"
    kind = "CPU" if on_cpu else serving.device.upper()
    pixels, scores = f"pixels{backend.index}", f"probabilities{backend.index}"
    zeros = {"data_type": Word("TYPE_UINT8"), "dims": _pixels(crop)[1:], "zero_data": True}
    batching: dict[str, Any] = {"max_queue_delay_microseconds": serving.queue_delay}
    if serving.batches:
        batching["preferred_batch_size"] = serving.batches
    config = {
        "backend": serving.backend,
        "max_batch_size": serving.max_batch,
        "input": [_tensor(pixels, *_pixels(crop))],
        "output": [_tensor(scores, "FP32", classes, label_filename=LABELS)],
        "instance_group": [{"kind": Word(f"KIND_{kind}"), "count": serving.instances}],
        "dynamic_batching": batching,
        "version_policy": NEWEST_TWO,
        "model_warmup": [
            {"name": f"batch of {size}", "batch_size": size, "inputs": {"key": pixels, "value": zeros}}
            for size in sorted({1, *serving.batches, serving.max_batch})
        ],
    }
    if serving.backend == "pytorch":
        config["platform"] = "pytorch_libtorch"
    return config


def _labels(serving: Serving, classes: int) -> dict[str, Any]:
    return {
        "backend": "python",
        "max_batch_size": serving.max_batch,
        "input": [_tensor("all", "FP32", classes)],
        "output": _answers(serving, classes, label_filename=LABELS),
        "instance_group": _on_cpu(1),
        "version_policy": NEWEST_TWO,
    }


def _ensemble(names: Mapping[str, str], serving: Serving, classes: int) -> dict[str, Any]:
    backend = BACKENDS[serving.backend]
    answers = _answers(serving, classes)
    # The scores pass through the labels' model, too: where one step's output is an ensemble's output and another step's
    # input, Triton 2.51 finds a "deadlock" when a client asks for some of the outputs only.
    steps = (
        ("decode", {"image": "image"}, {"pixels": "pixels"}),
        ("network", {f"pixels{backend.index}": "pixels"}, {f"probabilities{backend.index}": "all"}),
        ("labels", {"all": "all"}, {answer["name"]: answer["name"] for answer in answers}),
    )
    config = {
        "platform": "ensemble",
        "max_batch_size": serving.max_batch,
        "input": [_tensor("image", "STRING", 1)],
        "output": answers,
        # All versions of a model share one configuration, so a version of the ensemble could not name versions of its
        # parts. It is therefore served in one version, the one whose parts it names, and the answer's number is true.
        "version_policy": {"specific": {"versions": [serving.version]}},
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": names[part],
                    "model_version": serving.version,
                    "input_map": [{"key": key, "value": value} for key, value in inputs.items()],
                    "output_map": [{"key": key, "value": value} for key, value in outputs.items()],
                }
                for part, inputs, outputs in steps
            ]
        },
    }
    if serving.response_cache:
        config["response_cache"] = {"enable": True}
    return config
