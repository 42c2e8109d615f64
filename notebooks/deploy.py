# %% [markdown]
# # Deployment: export, compare, run without torch
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/deploy.ipynb)
#
# `resnext-hub export` writes a variant for another runtime, and compares its answers with those of the fp32 network. Only if they
# agree does the folder get its name. This notebook exports `resnext_tiny`, which needs no download and knows 200 classes: to ONNX in
# fp32 and int8, which then run without torch, and to a model repository for Triton. Any name that `resnext-hub list` shows works
# the same way, and so does a folder that `resnext-hub train` wrote.

# %%
# %matplotlib inline
# %pip install -q onnxruntime matplotlib scikit-image
import importlib.util
import os

from IPython import get_ipython

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else ONNX Runtime reports to Microsoft
if importlib.util.find_spec("resnext_hub") is None:  # not in a clone's environment: on Colab, for example
    get_ipython().system('pip install -q "resnext-hub[deploy] @ git+https://github.com/org/resnext-hub"')

# %% [markdown]
# ## Photos
#
# The exports are compared on these photos, and int8 is calibrated on them: crops of four photos that come with scikit-image. For a
# network that you will serve, take a few hundred photos like those that it will see.

# %%
from pathlib import Path

import skimage
from PIL import Image

SIDE = 256
folder = Path("photos")
folder.mkdir(exist_ok=True)
for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"):
    photo = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
    for i in range(8):
        x, y = (photo.width - SIDE) * (i % 4) // 3, (photo.height - SIDE) * (i // 4)
        photo.crop((x, y, x + SIDE, y + SIDE)).save(folder / f"{Path(name).stem}{i}.png")

# %% [markdown]
# ## ONNX
#
# `--preprocessing` and `--softmax` put both into the graph: pixels go in as bytes, probabilities come out.

# %%
# !resnext-hub export --variant resnext_tiny --to onnx --out exports/fp32 --preprocessing --softmax --photos photos

# %% [markdown]
# The same in int8, with value ranges measured on the photos:

# %%
# !resnext-hub export --variant resnext_tiny --to onnx --out exports/int8 --preprocessing --softmax --photos photos --precision int8 --calibration photos

# %% [markdown]
# `metadata.json`, and the ONNX file itself, contain what a server must know: inputs and outputs, preprocessing, labels, licence,
# and the hash of the weights.

# %%
import json

metadata = json.loads(Path("exports/fp32/metadata.json").read_text())
for key in ("name", "precision", "input", "outputs", "preprocessing", "license", "label_set"):
    print(f"{key}: {json.dumps(metadata[key])}")

# %% [markdown]
# ## Run it
#
# This needs ONNX Runtime, numpy and Pillow, but neither torch nor this package. Two crops of a cat and two of an espresso:

# %%
import numpy as np
import onnxruntime
from matplotlib import pyplot as plt

size = metadata["preprocessing"]["crop_size"]
paths = [folder / name for name in ("chelsea2.png", "chelsea6.png", "coffee1.png", "coffee5.png")]
photos = [Image.open(path) for path in paths]
pixels = np.stack([np.asarray(photo.resize((size, size), Image.Resampling.BILINEAR)) for photo in photos])

results = {}
for precision in ("fp32", "int8"):
    model = Path("exports", precision, "model.onnx")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (results[precision],) = session.run(["probabilities"], {metadata["input"]["name"]: pixels})
    print(f"{precision}: {model.stat().st_size / 2**20:.1f} MiB")

figure, axes = plt.subplots(2, len(photos), figsize=(11, 4.4), layout="constrained", height_ratios=(3, 2))
for column, photo, fp32, int8 in zip(axes.T, photos, results["fp32"], results["int8"], strict=True):
    column[0].imshow(photo)
    column[0].axis("off")
    classes = fp32.argsort()[::-1][:3]
    rows = np.arange(len(classes))
    column[1].barh(rows - 0.2, 100 * fp32[classes], 0.36, color="#2f6f9f", label="fp32")
    column[1].barh(rows + 0.2, 100 * int8[classes], 0.36, color="#d9822b", label="int8")
    column[1].set_yticks(rows, [metadata["labels"][c][1].split(",")[0][:16] for c in classes], fontsize=9)
    column[1].invert_yaxis()
    column[1].set_xlim(0, 100)
    column[1].spines[["top", "right"]].set_visible(False)
axes[1, 0].set_xlabel("%")
axes[1, -1].legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# ## Triton
#
# A model repository for NVIDIA's inference server: encoded images go in, labels come out, and the server batches requests. Each
# call adds a variant or a version. With `--backend python` ONNX Runtime runs the network on a CPU; without it the server's own
# ONNX Runtime does, on a GPU if there is one.

# %%
# !resnext-hub export --variant resnext_tiny --to triton --out models --backend python

# %%
print(*sorted(Path("models").glob("*/*")), sep="\n")

# %% [markdown]
# How to build the server, write a client, change versions, deploy to Kubernetes and test under load:
# [docs/deploy.md](https://github.com/org/resnext-hub/blob/main/docs/deploy.md).
