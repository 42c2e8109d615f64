"""Triton's model configurations, as data and as the text (config.pbtxt) that the server reads.

The schema is Triton's model_config.proto. The tests parse every text that is written here with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LABELS = "labels.txt"  # one name per line, in the model's folder


class Word(str):
    """The value of an enum, which is written without quotes."""


def to_text(message: Mapping[str, Any]) -> str:
    """Return a message in protobuf's text form. A list is a repeated field, a mapping a nested message."""
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
    return json.dumps(value, ensure_ascii=False)  # strings, numbers and booleans are written the same way


@dataclass(frozen=True)
class Backend:
    """A Triton backend that can run the network."""

    format: str  #: a name in `formats.FORMATS`; the artefact has the name that Triton looks for
    index: str = ""  #: suffix of the tensors' names: libtorch identifies arguments by position, not by name
    threads: str = ""  #: the configuration parameter with the number of threads on a CPU
    kinds: Sequence[str] = ("auto", "gpu", "cpu")  #: the devices that it supports


BACKENDS: dict[str, Backend] = {
    "onnxruntime": Backend("onnx", threads="intra_op_thread_count"),
    "tensorrt": Backend("tensorrt", kinds=("auto", "gpu")),
    "pytorch": Backend("torchscript", index="__0", threads="INTRA_OP_THREAD_COUNT"),
    "python": Backend("onnx", threads="threads", kinds=("auto", "cpu")),
}


@dataclass(frozen=True)
class Serving:
    """How Triton runs one variant. ``resnext-hub export --help`` and docs/deploy.md describe the options too."""

    backend: str = "onnxruntime"  #: a name of `BACKENDS`
    device: str = "auto"  #: "auto" (a GPU if the server has one), "gpu" or "cpu"
    version: int = 1  #: the number of the version's folder, from 1
    max_batch: int = 16  #: the largest batch
    #: Batch sizes that run at once, without waiting for more requests; by default half of ``max_batch``, and all of it.
    preferred_batch: tuple[int, ...] | None = None
    queue_delay: int = 2000  #: the longest time in microseconds that a request waits for others
    queue_size: int = 512  #: the number of requests that may wait for a model; more are rejected; 0: no limit
    queue_timeout: int = 10_000_000  #: a request that has waited for so many microseconds is rejected; 0: never
    instances: int = 1  #: copies of the network that run at the same time (on each GPU)
    #: Threads of each copy on a CPU. By default the backend decides; in a container set it to the CPU limit, because
    #: all backends but "python" count the cores of the whole machine.
    threads: int | None = None
    decoders: int = 2  #: processes that decode and resize images
    top: int | None = None  #: the number of classes in a response; by default 5, or all if there are fewer
    grade: str = "reference"  #: how exactly images are resized, see `processing_utils.preprocessing`
    response_cache: bool = False  #: answer a repeated request from Triton's cache (needs --cache-config on the server)

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"Unknown Triton backend {self.backend!r}; choose from {', '.join(BACKENDS)}.")
        kinds = BACKENDS[self.backend].kinds
        if self.device not in kinds:
            raise ValueError(
                f"The backend {self.backend} does not support the device {self.device!r}; choose from "
                f"{', '.join(kinds)}."
            )
        least = dict.fromkeys(("version", "max_batch", "instances", "decoders", "top", "threads"), 1)
        for name, low in (least | dict.fromkeys(("queue_delay", "queue_size", "queue_timeout"), 0)).items():
            if (value := getattr(self, name)) is not None and value < low:
                raise ValueError(f"{name} must be {low} or more, got {value}.")
        if self.threads is not None and not self.on_cpu:
            raise ValueError("threads is for networks on a CPU: pass device='cpu'.")
        if wrong := [size for size in self.preferred_batch or () if not 1 <= size <= self.max_batch]:
            raise ValueError(f"preferred_batch must be from 1 to {self.max_batch} (max_batch), got {wrong}.")

    @property
    def on_cpu(self) -> bool:
        """True if the network never runs on a GPU."""
        return self.backend == "python" or self.device == "cpu"

    @property
    def batches(self) -> tuple[int, ...]:
        """The preferred sizes, smallest first."""
        sizes = (self.max_batch // 2, self.max_batch) if self.preferred_batch is None else self.preferred_batch
        return tuple(sorted({size for size in sizes if size}))


def parts(name: str) -> dict[str, str]:
    """Return the names of the models that the ensemble consists of."""
    return {part: f"{name}_{part}" for part in ("decode", "network", "labels")}


def configurations(name: str, serving: Serving, crop: int, classes: int) -> dict[str, dict[str, Any]]:
    """Return the configuration of every model of a variant, by its name. The last is the ensemble that clients call."""
    names = parts(name)
    built = {
        names["decode"]: _decode(serving, crop),
        names["network"]: _network(serving, crop, classes),
        names["labels"]: _labels(serving, classes),
        name: _ensemble(names, serving, classes),
    }
    return {model: {"name": model, **config} for model, config in built.items()}


# A new version is served beside the previous one, so that returning to it needs no loading.
NEWEST_TWO = {"latest": {"num_versions": 2}}


def _tensor(name: str, kind: str, *dims: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "data_type": Word(f"TYPE_{kind}"), "dims": dims, **more}


def _pixels(crop: int) -> tuple[Any, ...]:
    return ("UINT8", crop, crop, 3)


def _answers(serving: Serving, classes: int, **more: Any) -> list[dict[str, Any]]:
    """The outputs: the best classes by name, and all scores, whose labels Triton's classification extension uses."""
    kinds = {"classes": "INT64", "labels": "STRING", "synsets": "STRING", "probabilities": "FP32"}
    best = [_tensor(name, kind, serving.top or min(5, classes)) for name, kind in kinds.items()]
    return [*best, _tensor("scores", "FP32", classes, **more)]


def _on_cpu(count: int) -> list[dict[str, Any]]:
    return [{"kind": Word("KIND_CPU"), "count": count}]


def _waiting(serving: Serving) -> dict[str, Any]:
    """Return the limits of a model's queue."""
    policy: dict[str, Any] = {"timeout_action": Word("REJECT")}
    policy |= {"default_timeout_microseconds": serving.queue_timeout, "max_queue_size": serving.queue_size}
    return {"default_queue_policy": policy}


def _decode(serving: Serving, crop: int) -> dict[str, Any]:
    image = {"data_type": Word("TYPE_STRING"), "dims": (1,), "input_data_file": "image"}
    return {
        "backend": "python",
        "max_batch_size": serving.max_batch,
        "input": [_tensor("image", "STRING", 1)],
        "output": [_tensor("pixels", *_pixels(crop))],
        "instance_group": _on_cpu(serving.decoders),
        "dynamic_batching": {"preferred_batch_size": [1], **_waiting(serving)},  # one request for each free decoder
        "version_policy": NEWEST_TWO,
        "model_warmup": [{"name": "a small JPEG", "batch_size": 1, "inputs": {"key": "image", "value": image}}],
    }


def _network(serving: Serving, crop: int, classes: int) -> dict[str, Any]:
    backend = BACKENDS[serving.backend]
    kind = "CPU" if serving.on_cpu else serving.device.upper()
    pixels, scores = f"pixels{backend.index}", f"probabilities{backend.index}"
    zeros = {"data_type": Word("TYPE_UINT8"), "dims": _pixels(crop)[1:], "zero_data": True}
    batching: dict[str, Any] = {"max_queue_delay_microseconds": serving.queue_delay, **_waiting(serving)}
    # cuDNN searches for the fastest algorithms again for each batch size (triton-inference-server/server#8808).
    searched = not serving.on_cpu and serving.backend in ("onnxruntime", "pytorch")
    warm = range(1, serving.max_batch + 1) if searched else sorted({1, *serving.batches, serving.max_batch})
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
            {"name": f"batch of {size}", "batch_size": size, "inputs": {"key": pixels, "value": zeros}} for size in warm
        ],
    }
    parameters = {} if serving.threads is None else {backend.threads: str(serving.threads)}
    if searched and serving.backend == "onnxruntime":
        # 0 is the exhaustive search. It must be here: a value in gpu_execution_accelerator is overwritten by this one's
        # default (onnxruntime_backend, src/onnxruntime.cc).
        parameters["cudnn_conv_algo_search"] = "0"
    if parameters:
        config["parameters"] = [{"key": k, "value": {"string_value": v}} for k, v in parameters.items()]
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
    # The scores also pass through the labels' model. If an output of the ensemble is the input of a step, Triton 2.51
    # reports a "deadlock" when a client requests only some of the outputs.
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
        # All versions of a model share one configuration, so two versions of the ensemble could not use different
        # versions of its parts. The ensemble is therefore served in one version, with the parts of the same number.
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
