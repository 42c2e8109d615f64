# %% [markdown]
# # Fine-tuning: your own classes
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/finetune.ipynb)
#
# `resnext-hub train` takes a folder with one folder of images for each class, and leaves a folder that every other command
# takes for a variant. Here `resnext_tiny`, whose weights are in the repository, learns to tell three materials apart, on a
# processor. For photos of your own take a larger one, such as `resnext50_32x4d_swsl` (mind its licence), and a GPU.

# %%
# %matplotlib inline
import importlib.util

from IPython import get_ipython

if importlib.util.find_spec("resnext_hub") is None:  # on Colab
    get_ipython().system('pip install -q "resnext-hub[train] @ git+https://github.com/org/resnext-hub"')

# %% [markdown]
# ## Images
#
# Square patches of three photos that come with scikit-image: brick, grass and gravel. Training gets the left of each photo,
# validation the right, so that it shows nothing that was trained on.

# %%
from pathlib import Path

from matplotlib import pyplot as plt
from PIL import Image
from skimage import data

SIDE, STEP = 96, 48
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
    for axis, path in zip(row, sorted(Path("materials/train", name).iterdir())[::6], strict=False):
        axis.imshow(Image.open(path), cmap="gray")
        axis.axis("off")
    row[0].set_title(name, fontsize=10, loc="left")
plt.show()

# %% [markdown]
# ## Training
#
# The recipe is `finetune`: the whole network, its early stages more slowly, BatchNorm as it was. The same command goes on with
# a run that was stopped. So few images are read quickest in the main process (`--workers 0`).

# %%
# !resnext-hub train --variant resnext_tiny --data materials --out runs/materials --epochs 6 --batch 16 --workers 0

# %%
Image.open("runs/materials/curves.png")

# %% [markdown]
# ## What came out
#
# The weights under the name of their hash, the labels, and a manifest with preprocessing, accuracy and licence.

# %%
import json

print(*sorted(path.name for path in Path("runs/materials").iterdir()), sep="\n")
(about,) = json.loads(Path("runs/materials/weights_manifest.json").read_text())["checkpoints"].values()
print(
    f"\n{about['published']['top1']:.1f} % right on the validation images; licence of the weights: {about['license']}"
)

# %% [markdown]
# `runs/materials` is a variant like the published ones, on the command line and in Python.

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
axes.set_xlabel("answer")
axes.set_ylabel("truth")
axes.set_title(f"{len(paths)} patches not trained on", fontsize=10)
plt.show()

# %%
plot_predictions(paths[-1], classify(paths[-1], top=3), title=f"runs/materials on a patch of {paths[-1].parent.name}")

# %% [markdown]
# Other recipes, tables and archives as data, several processes, hashtags and teachers:
# [docs/training.md](https://github.com/org/resnext-hub/blob/main/docs/training.md). To serve the result:
# [deployment](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/deploy.ipynb), with `runs/materials`
# for the variant.
