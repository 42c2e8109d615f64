# %% [markdown]
# # ResNeXt, with torchvision's weights
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/resnext.ipynb)
#
# A ResNet whose 3x3 convolutions are grouped ([Xie et al. 2017](https://arxiv.org/abs/1611.05431)): `resnext50_32x4d` has 50
# layers, and 32 groups of 4 channels in its first stage. torchvision has published two generations of weights.
#
# The outputs kept in this file come from a run without network: **random weights** stand in for the published ones, and the
# pictures say so. What they name is meaningless; figures of accuracy are the published and measured ones. Run the notebook,
# and the same cells fetch the real weights.

# %%
# %matplotlib inline
import json
from pathlib import Path

import torch

# In a clone the notebook uses it as it is; on Colab torch.hub fetches the repository.
clone = Path.cwd().resolve().parent
REPO, SOURCE = (str(clone), "local") if (clone / "hubconf.py").exists() else ("org/resnext-hub", "github")
utils = torch.hub.load(REPO, "nvidia_convnets_processing_utils", source=SOURCE)
manifest = json.loads((Path(utils.__file__).parents[1] / "weights_manifest.json").read_text())["checkpoints"]

# %% [markdown]
# ## Two generations of weights
#
# `IMAGENET1K_V1` are the first, `IMAGENET1K_V2` those of a newer recipe: 600 epochs, stronger augmentation, averaged weights.
# Each has its own preprocessing (V2 resizes to 232 pixels, V1 to 256), and `classifier` takes the right one. The photo is
# scikit-image's.

# %%
from IPython.display import display
from skimage import data

photo = data.chelsea()
for tag in ("IMAGENET1K_V1", "IMAGENET1K_V2"):
    name = f"resnext50_32x4d.{tag}"
    about = manifest[name]
    weights = about["made_by"] or "published weights"
    classify = torch.hub.load(REPO, "classifier", name, source=SOURCE, engine="torch")
    print(f"{name}: {about['published']['top1']:.2f} % top-1 on ImageNet, as published")
    display(utils.plot_predictions(photo, classify(photo), title=f"{name}, {weights}"))

# %% [markdown]
# ## The network
#
# As in torchvision, an entrypoint comes without weights unless asked. `weights="DEFAULT"` is the newest.

# %%
network = torch.hub.load(REPO, "resnext50_32x4d", source=SOURCE, weights="DEFAULT").eval()
batch = utils.prepare_inputs([photo], variant="resnext50_32x4d.IMAGENET1K_V2")
with torch.inference_mode():
    logits = network(batch)
print(f"{tuple(batch.shape)} -> {tuple(logits.shape)}, {sum(p.numel() for p in network.parameters()):,} parameters")
print(network.layer1[0].conv2)

# %% [markdown]
# In 32 groups this convolution has a 32nd of the weights that a dense one would have. Where the network's weights are:

# %%
from matplotlib import pyplot as plt

stages = ["layer1", "layer2", "layer3", "layer4"]
grouped, rest = {}, {}
for part in ["conv1", *stages, "fc"]:
    modules = list(network.get_submodule(part).modules())
    sizes = [(getattr(module, "groups", 1), sum(p.numel() for p in module.parameters(False))) for module in modules]
    grouped[part] = sum(size for groups, size in sizes if groups > 1) / 1e6
    rest[part] = sum(size for groups, size in sizes if groups == 1) / 1e6

figure, axes = plt.subplots(figsize=(7.5, 2.8), layout="constrained")
axes.barh(list(rest), list(rest.values()), color="#9db8cc", label="all other layers")
axes.barh(
    list(rest), list(grouped.values()), left=list(rest.values()), color="#d9822b", label="grouped 3x3 convolutions"
)
axes.invert_yaxis()
axes.set_xlabel("million parameters")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## As a backbone
#
# Feature maps of the four stages, for detection and segmentation; or a new head for classes of your own, where torchvision
# raises.

# %%
with torch.inference_mode():
    maps = network.forward_intermediates(batch)

figure, axes = plt.subplots(1, 5, figsize=(11, 2.6), layout="constrained")
axes[0].imshow(photo[:, 75:375])
axes[0].set_title("photo", fontsize=10)
for axis, feature_map, (channels, stride) in zip(axes[1:], maps, network.feature_info, strict=True):
    axis.imshow(feature_map[0].mean(0), cmap="viridis")
    axis.set_title(f"stride {stride}, {channels} channels", fontsize=10)
for axis in axes:
    axis.axis("off")
figure.suptitle(f"mean activation, {weights}", fontsize=10)
plt.show()

# %%
mine = torch.hub.load(REPO, "resnext50_32x4d", source=SOURCE, weights="DEFAULT", num_classes=10)
mine.fc

# %% [markdown]
# More: the [model page](https://github.com/org/resnext-hub/blob/main/docs/hub/org_resnext-hub_resnext.md),
# [fine-tuning](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/finetune.ipynb),
# [deployment](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/deploy.ipynb).
