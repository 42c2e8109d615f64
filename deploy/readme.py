"""The README of an artefact: what it is, and Python code that runs it without this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .conversion import Format
from .signature import Signature

_OPEN = """\
about = json.load(open("metadata.json", encoding="utf-8"))
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")"""
_RESIZE = """\
how = about["preprocessing"]
resize, crop = how["resize_size"], how["crop_size"]
image = image.resize([int(resize * side / min(image.size)) for side in image.size], Image.Resampling.BILINEAR)
left, top = (round((side - crop) / 2) for side in image.size)
image = image.crop((left, top, left + crop, top + crop))"""
_NORMALISE = """\
pixels = np.asarray(image, np.float32) / 255
batch = ((pixels - np.float32(how["mean"])) / np.float32(how["std"])).transpose(2, 0, 1)[None]"""
_PIXELS = "batch = np.asarray(image)[None]"
_BEST = "scores, classes = (output[0] for output in outputs)"
_ALL = """\
classes = np.argsort(-outputs[0][0])[:5]
scores = outputs[0][0][classes]"""
_PRINT = """\
for score, index in zip(scores, classes):
    print(f"{score:.3f}  {about['labels'][index][1]}")"""


def readme(format: Format, signature: Signature, metadata: Mapping[str, Any]) -> str:
    module = {"onnx": "onnxruntime", "openvino": "openvino", "tensorrt": "build_engine"}.get(format.name, "torch")
    package = {"build_engine": "tensorrt torch"}.get(module, module)
    steps = [
        f"import json\n\nimport numpy as np\nimport {module}\nfrom PIL import Image, ImageOps\n",
        _OPEN,
        *([] if signature.resize else [_RESIZE]),
        _PIXELS if signature.preprocessing else _NORMALISE,
        format.usage,
        _BEST if signature.top else _ALL,
        _PRINT,
    ]
    code, (given, *outputs) = "\n".join(steps), (metadata["input"], *metadata["outputs"])
    licence = metadata["license"]
    tensors = [
        f"- {what} `{spec['name']}`: {spec['dtype']} (N, {', '.join(str(n or 'any') for n in spec['shape'])})"
        for what, spec in (("input", given), *(("output", output) for output in outputs))
    ]
    return f"""\
# {metadata["name"]}, {format.name}, {metadata["precision"]}

{metadata["title"]}. Licence of the weights: {licence["id"]}{f" ({licence['url']})" if licence.get("url") else ""}.
`metadata.json` describes the file, `report.json` has the measured differences from the original network.

{chr(10).join(tensors)}

To classify `photo.jpg`, in this folder (`pip install {package} numpy pillow`):

```python
{code}
```
"""
