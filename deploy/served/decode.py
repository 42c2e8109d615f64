"""Triton's model.py: encoded images -> pixels, by a copy of resnext-hub's own code that lies beside this file.

Runs in Triton's Python backend; needs Pillow and numpy there (numpy 1 up to Triton 24.10). A request that holds a
broken image is answered with INVALID_ARG (HTTP 400), and no other request with it.
"""

import json
import sys
from pathlib import Path

import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from resnext_hub.errors import ImageError  # noqa: E402
from resnext_hub.models.manifest import Preprocessing  # noqa: E402
from resnext_hub.processing_utils.inputs import prepare_pixels  # noqa: E402


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        settings = json.loads((HERE / "decode.json").read_text(encoding="utf-8"))
        self.preset = Preprocessing(**settings["preprocessing"])
        self.grade = settings["grade"]

    def execute(self, requests: list) -> list:
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()[:, 0].tolist()
        try:
            pixels = prepare_pixels(images, self.preset, first=0 if len(images) > 1 else None, grade=self.grade)
        except ImageError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", pixels)])
