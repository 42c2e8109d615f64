# %% [markdown]
# # ResNeXt WSL: weakly supervised by hashtags
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/wsl.ipynb)
#
# ResNeXt-101 networks that Facebook AI pretrained on 940 million public images with 1,500 hashtags for labels, then
# fine-tuned on ImageNet-1k ([Mahajan et al. 2018](https://arxiv.org/abs/1805.00932)). The weights are CC-BY-NC 4.0: **no
# commercial use**.
#
# The outputs kept in this file come from a run without network: **random weights** stand in for the published ones, and the
# pictures say so. What they name is meaningless; figures of accuracy are the published and measured ones. Run the notebook,
# and the same cells fetch the real weights.

# %%
# %matplotlib inline
from pathlib import Path

import torch

# In a clone the notebook uses it as it is; on Colab torch.hub fetches the repository.
clone = Path.cwd().resolve().parent
REPO, SOURCE = (str(clone), "local") if (clone / "hubconf.py").exists() else ("org/resnext-hub", "github")
utils = torch.hub.load(REPO, "nvidia_convnets_processing_utils", source=SOURCE)

# %% [markdown]
# ## The family
#
# What is known of a checkpoint is in the repository's manifest: the authors' figures, and timm's measurements of the same
# files.

# %%
import json

manifest = json.loads((Path(utils.__file__).parents[1] / "weights_manifest.json").read_text())["checkpoints"]

print(f"{'':23}{'parameters':>11}{'GMACs':>8}{'file':>9}{'top-1':>8}")
for name, about in manifest.items():
    if about["system"] == "wsl":
        size = f"{4 * about['params'] / 1e9:.1f} GB"
        print(f"{name:23}{about['params'] / 1e6:9.1f} M{about['gmacs']:8.1f}{size:>9}{about['published']['top1']:8.1f}")

# %% [markdown]
# ## What is in a photo
#
# `classifier` brings the checkpoint's own preprocessing and labels. It takes paths, URLs, bytes, PIL images, arrays and
# tensors; these photos are scikit-image's.

# %%
from IPython.display import display
from skimage import data

VARIANT = "resnext101_32x8d_wsl"
weights = manifest[VARIANT]["made_by"] or "published weights"
photos = {"cat": data.chelsea(), "coffee": data.coffee(), "rocket": data.rocket()}

classify = torch.hub.load(REPO, "classifier", VARIANT, source=SOURCE, engine="torch")
for photo in photos.values():
    display(utils.plot_predictions(photo, classify(photo), title=f"{VARIANT}, {weights}"))

# %% [markdown]
# ## What a billion images are good for
#
# One architecture, ResNeXt-101 32x8d, trained in five ways. On ImageNet's own validation images they are close to each
# other. Far from what ImageNet looks like they are not: photos that a ResNet-50 gets wrong (ImageNet-A), art and toys
# (ImageNet-R), drawings (Sketch). Measured by timm, one centre crop at 224 pixels.

# %%
import numpy as np
from matplotlib import pyplot as plt

NETWORKS = {
    "resnext101_32x8d.IMAGENET1K_V1": "ImageNet",
    "resnext101_32x8d.IMAGENET1K_V2": "ImageNet, newer recipe",
    "resnext101_32x8d_ssl": "semi-supervised",
    "resnext101_32x8d_swsl": "semi-weakly supervised",
    "resnext101_32x8d_wsl": "weakly supervised",
}
SETS = {"imagenet": "ImageNet", "imagenet_a": "ImageNet-A", "imagenet_r": "ImageNet-R", "sketch": "Sketch"}


def measured_top1(name, dataset):
    rows = manifest[name]["measured"]
    return next(row["top1"] for row in rows if row["dataset"] == dataset and row["image_size"] == 224)


colours = ["#c9d3dc", "#9db8cc", "#6c9cbd", "#2f6f9f", "#d9822b"]
figure, axes = plt.subplots(figsize=(9, 3.8), layout="constrained")
for i, (name, label) in enumerate(NETWORKS.items()):
    values = [measured_top1(name, dataset) for dataset in SETS]
    bars = axes.bar(np.arange(len(SETS)) + 0.16 * (i - 2), values, 0.15, label=label, color=colours[i])
    axes.bar_label(bars, fmt="%.0f", fontsize=8, color="#1f2933", padding=1)
axes.set_xticks(range(len(SETS)), SETS.values())
axes.set_ylabel("top-1, %")
axes.set_ylim(0, 100)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, ncols=2, fontsize=9, loc="upper right")
plt.show()

# %% [markdown]
# ## Features
#
# Without a head (`num_classes=0`) the network gives 2,048 features an image: for retrieval, clustering, or a small classifier
# of your own. How alike are the photos, and the same photos mirrored?

# %%
network = torch.hub.load(REPO, VARIANT, source=SOURCE, num_classes=0).eval()
images = [*photos.values(), *(photo[:, ::-1].copy() for photo in photos.values())]
names = [*photos, *(f"{name}, mirrored" for name in photos)]
with torch.inference_mode():
    features = network(utils.prepare_inputs(images, variant=VARIANT))
features = torch.nn.functional.normalize(features, dim=1)
similarity = features @ features.T

figure, axes = plt.subplots(figsize=(6, 4.4), layout="constrained")
heat = axes.imshow(similarity, cmap="viridis", vmax=1)
axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=9)
axes.set_yticks(range(len(names)), names, fontsize=9)
axes.set_title(f"cosine similarity of features, {weights}", fontsize=10)
figure.colorbar(heat)
plt.show()

# %% [markdown]
# More: the [model page](https://github.com/org/resnext-hub/blob/main/docs/hub/org_resnext-hub_wsl.md),
# [fine-tuning](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/finetune.ipynb),
# [deployment](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/deploy.ipynb).
