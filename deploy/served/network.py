"""Triton's model.py: the network's ONNX graph in ONNX Runtime on the CPU, inside Triton's Python backend.

For servers that have no onnxruntime backend. Needs the package onnxruntime there. What Triton batches together comes
here as a list of requests, and passes the network as one batch.
"""

import json
import os
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at import; else it sends usage data to Microsoft
import onnxruntime


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        instances = json.loads(args["model_config"])["instance_group"][0]["count"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, len(os.sched_getaffinity(0)) // instances)
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
