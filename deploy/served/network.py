"""Triton's model.py of the network: its ONNX file in ONNX Runtime on the CPU, inside Triton's Python backend.

For servers without the onnxruntime backend; needs the package onnxruntime. Requests that Triton batches arrive as a
list and pass the network as one batch.
"""

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at import; otherwise it sends usage data to Microsoft
import onnxruntime

CGROUP = Path("/sys/fs/cgroup")  # the container's limits


def cores() -> int:
    """Return the processor cores that this container may use."""
    available = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # no limit ("max"), or cgroups of version 1
        quota, period = (CGROUP / "cpu.max").read_text().split()
        available = min(available, max(1, int(quota) // int(period)))
    return available


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        threads = config.get("parameters", {}).get("threads", {}).get("string_value")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(threads or max(1, cores() // config["instance_group"][0]["count"]))
        model = Path(__file__).with_name("model.onnx")
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.input, self.output = self.session.get_inputs()[0].name, self.session.get_outputs()[0].name

    def execute(self, requests: list) -> list:
        parts = [pb_utils.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
        scores = np.asarray(self.session.run([self.output], {self.input: np.concatenate(parts)})[0])
        ends = np.cumsum([len(part) for part in parts])[:-1]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(self.output, np.ascontiguousarray(rows))])
            for rows in np.split(scores, ends)
        ]
