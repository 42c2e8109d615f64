# %% [markdown]
# # ResNeXt through torch.hub: a quick start
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/quickstart.ipynb)
#
# Classify a photo, then look inside the network. `resnext_tiny` needs no download beyond the repository: it is small, looks at
# 80x80 pixels and knows 200 classes. Set `VARIANT` to another name, such as `resnext50_32x4d_swsl`, to use published weights
# with 1,000 classes (mind their licence).

# %%
# %matplotlib inline
# %pip install -q torch torchvision numpy pillow matplotlib

from pathlib import Path

import torch

VARIANT = "resnext_tiny"

# In a clone the notebook uses the clone; elsewhere torch.hub downloads the repository.
clone = Path.cwd().resolve().parent
REPO, SOURCE = (str(clone), "local") if (clone / "hubconf.py").exists() else ("org/resnext-hub", "github")
utils = torch.hub.load(REPO, "nvidia_convnets_processing_utils", source=SOURCE, trust_repo=True)

# %% [markdown]
# `torch.hub.load` asks before it runs the code of a repository that is not on its own list; `trust_repo=True` answers yes.
#
# ## A photo
#
# An espresso, photographed by Rachel Michetti (CC0); the photo comes with the repository.

# %%
photo = Path(utils.__file__).parents[1] / "demo" / "coffee.jpg"
classify = torch.hub.load(REPO, "classifier", VARIANT, engine="torch", source=SOURCE, trust_repo=True)
predictions = classify(photo)
predictions

# %%
title = f"{VARIANT}, which knows {len(classify.labels)} classes"
utils.plot_predictions(photo, predictions, title=title)

# %% [markdown]
# A photo may be a path, a URL, bytes, a PIL image, an array or a tensor. For a list of photos you get a list of answers:

# %%
from PIL import Image, ImageOps

image = Image.open(photo)
photos = {"turned": image.rotate(8), "mirrored": ImageOps.mirror(image), "grey": image.convert("L")}
for name, (best, *_) in zip(photos, classify(photos.values()), strict=True):
    print(f"{name}: {best.label}, {best.probability:.1%}")

# %% [markdown]
# ## The network
#
# A network's entrypoint returns a plain `torch.nn.Module`. The classifier above adds preprocessing and labels to it.

# %%
network = torch.hub.load(REPO, VARIANT, source=SOURCE, trust_repo=True).eval()
print(f"{sum(p.numel() for p in network.parameters()):,} parameters")

batch = utils.prepare_inputs([photo], variant=VARIANT)
with torch.inference_mode():
    probabilities = network(batch).softmax(dim=1)
print(tuple(batch.shape), "->", tuple(probabilities.shape))

# %% [markdown]
# ## Where did it look?
#
# Grad-CAM shows which parts of the last feature map speak for a class; red speaks most. `torch.hub.load` has made the whole
# package importable.

# %%
from resnext_hub.evaluation.explain import explain

explain(VARIANT, photo, predictions[0].label).plot()

# %% [markdown]
# ## As a backbone
#
# Use the feature maps of the four stages for detection or segmentation, or train a new head for your own classes.

# %%
with torch.inference_mode():
    maps = network.forward_intermediates(batch)
for feature_map, (channels, stride) in zip(maps, network.feature_info, strict=True):
    print(f"stride {stride:2}: {channels:4} channels, {tuple(feature_map.shape[-2:])}")

# %%
from matplotlib import pyplot as plt

figure, axes = plt.subplots(1, 5, figsize=(11, 2.4), layout="constrained")
axes[0].imshow(ImageOps.fit(utils.open_image(photo), (256, 256)))
axes[0].set_title("photo", fontsize=10)
for axis, feature_map, (_, stride) in zip(axes[1:], maps, network.feature_info, strict=True):
    axis.imshow(feature_map[0].mean(0), cmap="viridis")
    axis.set_title(f"mean activation, stride {stride}", fontsize=10)
for axis in axes:
    axis.axis("off")
plt.show()

# %%
mine = torch.hub.load(REPO, VARIANT, num_classes=3, source=SOURCE, trust_repo=True)
optimizer = torch.optim.SGD(mine.fc.parameters(), lr=0.1)
loss = torch.nn.functional.cross_entropy(mine(batch.expand(4, -1, -1, -1)), torch.tensor([0, 1, 2, 0]))
loss.backward()
optimizer.step()
mine.fc

# %% [markdown]
# For training with one command see
# [fine-tuning](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/finetune.ipynb).
