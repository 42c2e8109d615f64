"""Triton's model.py of the decoder: encoded images -> pixels, with the copy of resnext-hub's code beside this file.

Runs in Triton's Python backend and needs Pillow and numpy there (numpy 1 up to Triton 24.10). A request with an
unusable image gets INVALID_ARG (HTTP 400); other requests are not affected.
"""

import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from resnext_hub.errors import ImageError  # noqa: E402
from resnext_hub.models.manifest import Preprocessing  # noqa: E402
from resnext_hub.processing_utils.images import MAX_PIXELS, decode  # noqa: E402
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
        parts = []
        try:
            for first, group in self._groups(images):
                number = first if len(images) > 1 else None
                parts.append(prepare_pixels(group, self.preset, first=number, grade=self.grade))
        except ImageError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", np.concatenate(parts))])

    @staticmethod
    def _groups(images):
        """Split a request into parts that are decoded together: MAX_PIXELS limits all images of a part, not each."""
        group, first, total = [], 0, 0
        for i, image in enumerate(images):
            try:
                size = decode(image, MAX_PIXELS, lambda opened: opened.width * opened.height)
            except ImageError:
                size = 0  # prepare_pixels raises it again, with the image's number
            if group and total + size > MAX_PIXELS:
                yield first, group
                group, first, total = [], i, 0
            group.append(image)
            total += size
        yield first, group
