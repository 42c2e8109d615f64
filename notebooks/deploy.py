# %% [markdown]
# # Deployment: artefacts that are held against the network
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/deploy.ipynb)
#
# `resnext-hub export` writes a variant for another runtime, compares its answers with the fp32 network's, and only then gives
# the folder its name. Here: ONNX in fp32 and int8, run without torch, and a model repository for Triton. `resnext_tiny` needs
# no download; any name that `resnext-hub list` shows, or a folder that `resnext-hub train` left, goes the same way.

# %%
# %matplotlib inline
import importlib.util

from IPython import get_ipython

if importlib.util.find_spec("resnext_hub") is None:  # on Colab
    get_ipython().system('pip install -q "resnext-hub[deploy] @ git+https://github.com/org/resnext-hub"')

# %% [markdown]
# ## Photos
#
# To prove the exports with, and to calibrate int8: crops of four photos that come with scikit-image. For a network that is to
# be served take a few hundred of those that it will see.

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
# With `--preprocessing` and `--softmax` both are in the graph: pixels go in as bytes, probabilities come out.

# %%
# !resnext-hub export resnext_tiny --to onnx --out exports/fp32 --preprocessing --softmax --photos photos

# %% [markdown]
# And in int8, with ranges taken from photos:

# %%
# !resnext-hub export resnext_tiny --to onnx --out exports/int8 --preprocessing --softmax --photos photos --precision int8 --calibration photos

# %% [markdown]
# What a server must know is in `metadata.json`, and in the ONNX file itself: what goes in and comes out, preprocessing, labels,
# licence, the hash of the weights.

# %%
import json

metadata = json.loads(Path("exports/fp32/metadata.json").read_text())
for key in ("name", "precision", "input", "outputs", "preprocessing", "license", "label_set"):
    print(f"{key}: {json.dumps(metadata[key])}")

# %% [markdown]
# ## Run it
#
# ONNX Runtime, numpy and Pillow; neither torch nor this package.

# %%
import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # or ONNX Runtime reports its use to Microsoft
import numpy as np
import onnxruntime
from matplotlib import pyplot as plt

size = metadata["preprocessing"]["crop_size"]
paths = [folder / name for name in ("astronaut1.png", "chelsea1.png", "coffee2.png", "rocket1.png")]
photos = [Image.open(path) for path in paths]
pixels = np.stack([np.asarray(photo.resize((size, size), Image.Resampling.BILINEAR)) for photo in photos])

results = {}
for precision in ("fp32", "int8"):
    session = onnxruntime.InferenceSession(f"exports/{precision}/model.onnx", providers=["CPUExecutionProvider"])
    (results[precision],) = session.run(["probabilities"], {metadata["input"]["name"]: pixels})
    megabytes = Path(f"exports/{precision}/model.onnx").stat().st_size / 2**20
    print(f"{precision}: {megabytes:.1f} MiB")

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
# A model repository for NVIDIA's inference server: encoded images in, labels out, batched by the server. Each call adds a
# variant or a version. `--backend python` runs the network in ONNX Runtime on a processor; without it, on a GPU where the
# server has one.

# %%
# !resnext-hub export resnext_tiny --to triton --out models --backend python

# %%
for path in sorted(Path("models").glob("*/*")):
    if path.suffix == ".pbtxt" or path.is_dir():
        print(path)
print("\n" + Path("models/resnext_tiny/config.pbtxt").read_text()[:700] + " …")

# %% [markdown]
# How to build the server, a client, versions, Kubernetes and a load test:
# [docs/deploy.md](https://github.com/org/resnext-hub/blob/main/docs/deploy.md).
