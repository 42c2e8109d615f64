# %% [markdown]
# # Fine-tuning: your own classes
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/finetune.ipynb)
#
# `resnext-hub train` reads a folder that has one folder of images per class, and writes a folder that every other command accepts
# as a variant. In this notebook `resnext_tiny`, whose weights come with the repository, learns to tell three materials apart, on a
# CPU. For your own photos take a larger network, such as `resnext50_32x4d_swsl` (mind its licence), and a GPU.

# %%
# %matplotlib inline
# %pip install -q matplotlib scikit-image
import importlib.util

from IPython import get_ipython

if importlib.util.find_spec("resnext_hub") is None:  # not in a clone's environment: on Colab, for example
    get_ipython().system('pip install -q "resnext-hub[train] @ git+https://github.com/org/resnext-hub"')

# %% [markdown]
# ## Images
#
# Square patches of three photos that come with scikit-image: brick, grass and gravel. Training uses the left part of each photo,
# and validation the right part, so no pixel is in both.

# %%
from pathlib import Path

from matplotlib import pyplot as plt
from PIL import Image
from skimage import data

SIDE, STEP = 64, 32
samples = {"brick": data.brick(), "grass": data.grass(), "gravel": data.gravel()}
for name, photo in samples.items():
    height, width = photo.shape
    border = 7 * width // 10
    for part, left, right in (("train", 0, border), ("val", border, width)):
        folder = Path("materials", part, name)
        folder.mkdir(parents=True, exist_ok=True)
        for y in range(0, height - SIDE + 1, STEP):
            for x in range(left, right - SIDE + 1, STEP):
                Image.fromarray(photo[y : y + SIDE, x : x + SIDE]).save(folder / f"{y:03}_{x:03}.png")

for part in ("train", "val"):
    print(f"materials/{part}:", {name: len(list(Path("materials", part, name).iterdir())) for name in samples})

figure, axes = plt.subplots(3, 8, figsize=(8, 3.3), layout="constrained")
for row, name in zip(axes, samples, strict=True):
    for axis, path in zip(row, sorted(Path("materials/train", name).iterdir())[::18], strict=False):
        axis.imshow(Image.open(path), cmap="gray")
        axis.axis("off")
    row[0].set_title(name, fontsize=10, loc="left")
plt.show()

# %% [markdown]
# ## Training
#
# The recipe is `finetune`. It fits the last layer first. From there it trains the whole network, the early stages with lower learning
# rates, and publishes what is better on the validation images. BatchNorm's statistics stay
# unchanged. The same command resumes a run that was stopped. For so few images `--workers 0` is fastest: the main process
# reads them.

# %%
# !resnext-hub train --variant resnext_tiny --data materials --out runs/materials --epochs 3 --batch 16 --workers 0

# %%
Image.open("runs/materials/curves.png")

# %% [markdown]
# ## The result
#
# The weights, with part of their hash in the name; the labels; and a manifest with preprocessing, accuracy and licence.

# %%
import json

print(*sorted(path.name for path in Path("runs/materials").iterdir()), sep="\n")
(about,) = json.loads(Path("runs/materials/weights_manifest.json").read_text())["checkpoints"].values()
print(f"\n{about['published']['top1']:.1f} % top-1 on the validation images")
print(f"licence of the weights: {about['license']}")

# %% [markdown]
# Use `runs/materials` like a published variant, on the command line and in Python:

# %%
# !resnext-hub classify materials/val/grass/192_358.png --variant runs/materials --top 3

# %%
from resnext_hub.hubconf import classifier
from resnext_hub.processing_utils import plot_predictions

classify = classifier("runs/materials", engine="torch")
paths = sorted(Path("materials/val").glob("*/*.png"))
best = [predictions[0].label for predictions in classify(paths, top=1)]

names = list(samples)
counts = [[0] * len(names) for _ in names]
for path, label in zip(paths, best, strict=True):
    counts[names.index(path.parent.name)][names.index(label)] += 1

figure, axes = plt.subplots(figsize=(3.8, 3.4), layout="constrained")
axes.imshow(counts, cmap="Blues")
for i, row in enumerate(counts):
    for j, count in enumerate(row):
        axes.text(j, i, count, ha="center", va="center", color="white" if count > max(row) / 2 else "#1f2933")
axes.set_xticks(range(3), names)
axes.set_yticks(range(3), names)
axes.set_xlabel("predicted")
axes.set_ylabel("true")
axes.set_title(f"{len(paths)} validation patches", fontsize=10)
plt.show()

# %%
patch = paths[-1]
plot_predictions(patch, classify(patch, top=3), title=f"runs/materials on a patch of {patch.parent.name}")

# %% [markdown]
# For other recipes, tables and archives as data, several processes, hashtags and teachers see
# [docs/training.md](https://github.com/org/resnext-hub/blob/main/docs/training.md). To serve the result see
# [deployment](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/deploy.ipynb), and use `runs/materials`
# as the variant.
