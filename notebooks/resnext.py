# %% [markdown]
# # ResNeXt, with torchvision's weights
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/resnext.ipynb)
#
# A ResNet whose 3x3 convolutions are grouped ([Xie et al. 2017](https://arxiv.org/abs/1611.05431)): `resnext50_32x4d` has 50
# layers, and 32 groups of 4 channels in its first stage. torchvision has published two generations of weights.
#
# The outputs kept in this file come from a machine that had **no published weights**. There `resnext_tiny` takes their place: a
# small network that comes with the repository and knows 200 classes. Run the notebook, and the same cells download the
# published weights (about 100 MB each).

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
# ## Two generations of weights
#
# `IMAGENET1K_V1` is the first. `IMAGENET1K_V2` comes from a newer recipe: 600 epochs, stronger augmentation, averaged weights.
# Each has its own preprocessing (V2 resizes to 232 pixels, V1 to 256), and `classifier` applies the right one. The photo comes
# with scikit-image.

# %%
from IPython.display import display
from skimage import data

photo = data.coffee()
names = ["resnext50_32x4d.IMAGENET1K_V1", "resnext50_32x4d.IMAGENET1K_V2"]
for name in names:
    print(f"{name}: {manifest.resolve(name).published.top1:.2f} % top-1 on ImageNet, as published")
for variant in dict.fromkeys(map(available, names)):
    classify = torch.hub.load(REPO, "classifier", variant, engine="torch", source=SOURCE, trust_repo=True)
    title = f"{variant}, which knows {len(classify.labels)} classes"
    display(utils.plot_predictions(photo, classify(photo), title=title))

# %% [markdown]
# ## The network
#
# As in torchvision, an entrypoint comes without weights unless you ask for them: `weights="DEFAULT"` is the newest. The structure
# needs none.

# %%
network = torch.hub.load(REPO, "resnext50_32x4d", source=SOURCE, trust_repo=True)
print(f"{sum(p.numel() for p in network.parameters()):,} parameters")
print(network.layer1[0].conv2)

# %% [markdown]
# With 32 groups this convolution has a 32nd of the weights of a dense one. Where the network's weights are:

# %%
from matplotlib import pyplot as plt

grouped, rest = {}, {}
for part in ("conv1", "layer1", "layer2", "layer3", "layer4", "fc"):
    grouped[part] = rest[part] = 0
    for module in network.get_submodule(part).modules():
        millions = sum(p.numel() for p in module.parameters(recurse=False)) / 1e6
        (grouped if getattr(module, "groups", 1) > 1 else rest)[part] += millions

figure, axes = plt.subplots(figsize=(7.5, 2.8), layout="constrained")
parts, left = list(rest), list(rest.values())
axes.barh(parts, left, color="#9db8cc", label="all other layers")
axes.barh(parts, list(grouped.values()), left=left, color="#d9822b", label="grouped 3x3 convolutions")
axes.invert_yaxis()
axes.set_xlabel("million parameters")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## As a backbone
#
# Use the feature maps of the four stages for detection and segmentation, or a new head for your own classes, where torchvision
# raises.

# %%
entrypoint = variant.split(".")[0]
# resnext_tiny has no argument `weights`: it always comes with its own.
weights = {"weights": "DEFAULT"} if entrypoint == "resnext50_32x4d" else {}
network = torch.hub.load(REPO, entrypoint, source=SOURCE, trust_repo=True, **weights).eval()
batch = utils.prepare_inputs([photo], variant=variant)
with torch.inference_mode():
    maps = network.forward_intermediates(batch)

figure, axes = plt.subplots(1, 5, figsize=(11, 2.6), layout="constrained")
axes[0].imshow(photo[:, 100:500])
axes[0].set_title("photo", fontsize=10)
for axis, feature_map, (channels, stride) in zip(axes[1:], maps, network.feature_info, strict=True):
    axis.imshow(feature_map[0].mean(0), cmap="viridis")
    axis.set_title(f"stride {stride}, {channels} channels", fontsize=10)
for axis in axes:
    axis.axis("off")
figure.suptitle(f"mean activation, {variant}", fontsize=10)
plt.show()

# %%
mine = torch.hub.load(REPO, entrypoint, num_classes=10, source=SOURCE, trust_repo=True, **weights)
mine.fc

# %% [markdown]
# More: the [model page](https://github.com/org/resnext-hub/blob/main/docs/hub/org_resnext-hub_resnext.md),
# [fine-tuning](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/finetune.ipynb),
# [deployment](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/deploy.ipynb).
