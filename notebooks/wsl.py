# %% [markdown]
# # ResNeXt WSL: weakly supervised by hashtags
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/wsl.ipynb)
#
# ResNeXt-101 networks that Facebook AI pretrained on 940 million public images with 1,500 hashtags as labels, then
# fine-tuned on ImageNet-1k ([Mahajan et al. 2018](https://arxiv.org/abs/1805.00932)). The licence of the weights is CC-BY-NC 4.0:
# **no commercial use**.
#
# The outputs kept in this file come from a machine that had **no published weights**. There `resnext_tiny` takes their place: a
# small network that comes with the repository and knows 200 classes. Run the notebook, and the same cells download the
# published weights (356 MB).

# %%
# %matplotlib inline
# %pip install -q torch torchvision numpy pillow matplotlib scikit-image

from pathlib import Path

import torch

# In a clone the notebook uses the clone; elsewhere torch.hub downloads the repository.
clone = Path.cwd().resolve().parent
REPO, SOURCE = (str(clone), "local") if (clone / "hubconf.py").exists() else ("org/resnext-hub", "github")
utils = torch.hub.load(REPO, "nvidia_convnets_processing_utils", source=SOURCE, trust_repo=True)

# %% [markdown]
# `torch.hub.load` asks before it runs the code of a repository that is not on its own list; `trust_repo=True` answers yes.
# It also makes the whole package importable: the manifest, for example, which lists every checkpoint.

# %%
from resnext_hub.errors import UnreachableError
from resnext_hub.models.download import local_file
from resnext_hub.models.manifest import default_manifest

manifest = default_manifest()


def available(name):
    """The name, its weights downloaded if need be; "resnext_tiny" if that fails."""
    try:
        local_file(manifest.resolve(name))
    except UnreachableError:
        print(f"The weights of {name} cannot be downloaded: resnext_tiny takes its place.")
        return "resnext_tiny"
    return name


# %% [markdown]
# ## The family
#
# The manifest has the authors' figures, and timm's measurements of the same files.

# %%
print(f"{'':23}{'parameters':>11}{'GMACs':>8}{'file':>9}{'top-1':>8}")
for name, about in manifest.checkpoints.items():
    if name.endswith("_wsl"):
        size = f"{about.sources[0].bytes / 1e9:.1f} GB"
        print(f"{name:23}{about.params / 1e6:9.1f} M{about.gmacs:8.1f}{size:>9}{about.published.top1:8.1f}")

# %% [markdown]
# ## What is in a photo
#
# `classifier` adds the checkpoint's own preprocessing and labels to the network. It takes paths, URLs, bytes, PIL images, arrays
# and tensors. These photos come with scikit-image.

# %%
from IPython.display import display
from skimage import data

photos = {"cat": data.chelsea(), "coffee": data.coffee()}
VARIANT = available("resnext101_32x8d_wsl")
classify = torch.hub.load(REPO, "classifier", VARIANT, engine="torch", source=SOURCE, trust_repo=True)
for photo in photos.values():
    title = f"{VARIANT}, which knows {len(classify.labels)} classes"
    display(utils.plot_predictions(photo, classify(photo), title=title))

# %% [markdown]
# ## What a billion images are good for
#
# Five trainings of one architecture, ResNeXt-101 32x8d. On ImageNet's own validation images their accuracies are close. On images
# that look different they are far apart: photos that a ResNet-50 gets wrong (ImageNet-A), art and toys (ImageNet-R), drawings
# (Sketch). timm measured them, with one centre crop of 224 pixels.

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
    rows = manifest.checkpoints[name].measured
    return next(row.top1 for row in rows if row.dataset == dataset and row.image_size == 224)


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
# Without a head (`num_classes=0`) the network returns features, 2,048 per image for the WSL networks: for retrieval, clustering,
# or your own small classifier. How similar are the photos to each other, and to their mirror images?

# %%
network = torch.hub.load(REPO, VARIANT, num_classes=0, source=SOURCE, trust_repo=True).eval()
images = [*photos.values(), *(photo[:, ::-1].copy() for photo in photos.values())]
names = [*photos, *(f"{name}, mirrored" for name in photos)]
with torch.inference_mode():
    features = network(utils.prepare_inputs(images, variant=VARIANT))
features = torch.nn.functional.normalize(features, dim=1)
similarity = features @ features.T

figure, axes = plt.subplots(figsize=(5.4, 4), layout="constrained")
heat = axes.imshow(similarity, cmap="viridis", vmax=1)
axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=9)
axes.set_yticks(range(len(names)), names, fontsize=9)
axes.set_title(f"cosine similarity of features, {VARIANT}", fontsize=10)
figure.colorbar(heat)
plt.show()

# %% [markdown]
# More: the [model page](https://github.com/org/resnext-hub/blob/main/docs/hub/org_resnext-hub_wsl.md),
# [fine-tuning](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/finetune.ipynb),
# [deployment](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/deploy.ipynb).
