# %% [markdown]
# # Semi-supervised and semi-weakly supervised ResNe(X)t
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/semi_supervised.ipynb)
#
# A large teacher classifies unlabelled images. Small students are pretrained on the images of which it is surest, then
# fine-tuned on ImageNet-1k ([Yalniz et al. 2019](https://arxiv.org/abs/1905.00546)). The teacher of the `_ssl` networks was trained
# on ImageNet and chose from YFCC100M. The teacher of the `_swsl` networks was first trained on hashtags and chose from 940
# million public images. The licence of the weights is CC-BY-NC 4.0: **no commercial use**.
#
# The outputs kept in this file come from a machine that had **no published weights**. There `resnext_tiny` takes their place: a
# small network that comes with the repository and knows 200 classes. Run the notebook, and the same cells download the
# published weights (47 MB each).

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
# ## Twelve networks
#
# Accuracy against cost, as published. The students are plain ResNets and ResNeXts: at inference the teacher costs nothing.

# %%
from matplotlib import pyplot as plt

figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
for kind, label, colour, line in (
    (".IMAGENET1K_V", "supervised (torchvision)", "#8793a0", "none"),
    ("_ssl", "semi-supervised", "#2f6f9f", "-"),
    ("_swsl", "semi-weakly supervised", "#d9822b", "-"),
):
    family = [about for name, about in manifest.checkpoints.items() if kind in name]
    points = sorted((about.gmacs, about.published.top1, about.name) for about in family)
    gmacs, top1, names = zip(*points, strict=True)
    axes.plot(gmacs, top1, color=colour, label=label, marker="o", linestyle=line)
    if kind == "_swsl":
        for x, y, name in points:
            place, side = ((-9, -2), "right") if name == "resnet50_swsl" else ((0, 8), "center")
            name = name.removesuffix(kind)
            axes.annotate(name, (x, y), place, textcoords="offset points", size=8, ha=side)
axes.set_xscale("log")
axes.set_xticks([2, 4, 8, 16, 32], ["2", "4", "8", "16", "32"])
axes.minorticks_off()
axes.set_xlim(1.4, 50)
axes.set_ylim(72, 86.5)
axes.set_xlabel("GMACs at 224 x 224")
axes.set_ylabel("top-1 on ImageNet, %")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# `resnext101_32x16d_swsl` is an exception: the public file is not the one that its authors measured. timm measured 83.3 %, less
# than for the smaller 32x8d.
#
# ## Two teachers, one student
#
# The same ResNet-18, pretrained in two ways. `classifier` adds preprocessing and labels to the network. The photos come with
# scikit-image.

# %%
from IPython.display import display
from skimage import data

photos = {"cat": data.chelsea(), "coffee": data.coffee()}
variants = list(dict.fromkeys([available("resnet18_ssl"), available("resnet18_swsl")]))
for variant in variants:
    classify = torch.hub.load(REPO, "classifier", variant, engine="torch", source=SOURCE, trust_repo=True)
    for photo in photos.values():
        title = f"{variant}, which knows {len(classify.labels)} classes"
        display(utils.plot_predictions(photo, classify(photo), title=title))

# %% [markdown]
# ## The network
#
# As in the original repository, it takes normalised images and returns logits.

# %%
variant = variants[-1]
network = torch.hub.load(REPO, variant, source=SOURCE, trust_repo=True).eval()
batch = utils.prepare_inputs(list(photos.values()), variant=variant)
with torch.inference_mode():
    probabilities = network(batch).softmax(dim=1)
print(f"{variant}: {tuple(batch.shape)} -> {tuple(probabilities.shape)}")
labels = utils.read_labels(manifest.resolve(variant).labels)
for name, [(label, share)] in zip(photos, utils.pick_n_best(probabilities, n=1, labels=labels), strict=True):
    print(f"{name}: {label.split(',')[0]}, {share}")

# %% [markdown]
# More: the [model page](https://github.com/org/resnext-hub/blob/main/docs/hub/org_resnext-hub_semi_supervised.md); the method
# itself, from teacher to student, in [docs/training.md](https://github.com/org/resnext-hub/blob/main/docs/training.md).
