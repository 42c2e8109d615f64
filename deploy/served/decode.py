"""Triton's model.py of the decoder: encoded images -> pixels, with the copy of resnext-hub's code beside this file.

Runs in Triton's Python backend and needs Pillow and numpy there (numpy 1 up to Triton 24.10). A request with an
unusable image gets INVALID_ARG (HTTP 400); other requests are not affected.
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
            # Large images are decoded one at a time, however many a request has.
            pixels = prepare_pixels(images, self.preset, first=0 if len(images) > 1 else None, grade=self.grade)
        except ImageError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", pixels)])
