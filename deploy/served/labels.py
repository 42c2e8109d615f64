"""Triton's model.py of the labels: the probabilities of all classes -> the names of the best classes."""

import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from resnext_hub.models.manifest import LabelSet  # noqa: E402
from resnext_hub.processing_utils.labels import read_labels  # noqa: E402
from resnext_hub.processing_utils.predictions import top_predictions  # noqa: E402


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        classes = pb_utils.get_input_config_by_name(config, "all")["dims"][0]
        self.labels = read_labels(LabelSet(HERE / "labels.tsv", classes))
        self.top = pb_utils.get_output_config_by_name(config, "classes")["dims"][0]

    def execute(self, requests: list) -> list:
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        scores = pb_utils.get_input_tensor_by_name(request, "all").as_numpy()
        try:
            best = top_predictions(scores, self.top, labels=self.labels)
        except ValueError as error:  # the scores are NaN: not the client's mistake
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INTERNAL))

        def column(name: str, value, dtype):
            return pb_utils.Tensor(name, np.array([[value(p) for p in row] for row in best], dtype=dtype))

        return pb_utils.InferenceResponse(
            [
                column("classes", lambda p: p.index, np.int64),
                column("labels", lambda p: p.label.encode(), np.object_),
                column("synsets", lambda p: (p.synset or "").encode(), np.object_),
                column("probabilities", lambda p: p.probability, np.float32),
                pb_utils.Tensor("scores", scores),
            ]
        )
