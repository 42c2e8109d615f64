# %% [markdown]
# # Semi-supervised and semi-weakly supervised ResNe(X)t
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/semi_supervised.ipynb)
#
# A large teacher looks through unlabelled images; small students are pretrained on those that it is surest of, then fine-tuned
# on ImageNet-1k ([Yalniz et al. 2019](https://arxiv.org/abs/1905.00546)). `_ssl`: the teacher knows ImageNet, and chooses
# from YFCC100M. `_swsl`: it was trained on hashtags first, and chooses from a billion public images. The weights are
# CC-BY-NC 4.0: **no commercial use**.
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
# ## Twelve networks
#
# Accuracy against cost, as published. The students are plain ResNets and ResNeXts: at inference the teacher costs nothing.

# %%
import json

from matplotlib import pyplot as plt

manifest = json.loads((Path(utils.__file__).parents[1] / "weights_manifest.json").read_text())["checkpoints"]

figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
for system, label, colour, line in (
    ("torchvision", "supervised (torchvision)", "#8793a0", "none"),
    ("ssl", "semi-supervised", "#2f6f9f", "-"),
    ("swsl", "semi-weakly supervised", "#d9822b", "-"),
):
    family = {name: about for name, about in manifest.items() if about["system"] == system}
    rows = sorted((about["gmacs"], about["published"]["top1"], name) for name, about in family.items())
    gmacs, top1, names = zip(*rows, strict=True)
    axes.plot(gmacs, top1, color=colour, label=label, marker="o", linestyle=line)
    if system == "swsl":
        for x, y, name in rows:
            place = (
                {"xytext": (-9, -2), "ha": "right"} if name == "resnet50_swsl" else {"xytext": (0, 8), "ha": "center"}
            )
            axes.annotate(name.removesuffix("_swsl"), (x, y), textcoords="offset points", size=8, **place)
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
# `resnext101_32x16d_swsl` is an exception: the file that is public is not the one that its authors measured. timm measures
# 83.3 %, less than the smaller 32x8d.
#
# ## Two teachers, one student
#
# The same ResNet-18, taught in two ways. `classifier` brings preprocessing and labels; the photos are scikit-image's.

# %%
from IPython.display import display
from skimage import data

photos = {"cat": data.chelsea(), "coffee": data.coffee()}
for variant in ("resnet18_ssl", "resnet18_swsl"):
    weights = manifest[variant]["made_by"] or "published weights"
    classify = torch.hub.load(REPO, "classifier", variant, source=SOURCE, engine="torch")
    for photo in photos.values():
        display(utils.plot_predictions(photo, classify(photo), title=f"{variant}, {weights}"))

# %% [markdown]
# ## The network
#
# As the original gives it: normalised images in, logits out.

# %%
network = torch.hub.load(REPO, "resnet18_swsl", source=SOURCE).eval()
batch = utils.prepare_inputs(list(photos.values()), variant="resnet18_swsl")
with torch.inference_mode():
    probabilities = network(batch).softmax(dim=1)
print(tuple(batch.shape), "->", tuple(probabilities.shape))
for name, best in zip(photos, utils.pick_n_best(probabilities, n=1), strict=True):
    label, share = best[0]
    print(f"{name}: {label.split(',')[0]}, {share} ({weights})")

# %% [markdown]
# More: the [model page](https://github.com/org/resnext-hub/blob/main/docs/hub/org_resnext-hub_semi_supervised.md); the method
# itself, from teacher to student, in [docs/training.md](https://github.com/org/resnext-hub/blob/main/docs/training.md).
