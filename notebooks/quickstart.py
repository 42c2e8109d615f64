# %% [markdown]
# # ResNeXt through torch.hub: a quick start
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/quickstart.ipynb)
#
# Names what is in a photo, then looks inside. It runs offline with `resnext_tiny`, whose weights are in the repository; set
# `VARIANT` to any other name, such as `resnext50_32x4d_swsl`, to fetch published weights (mind their licence).

# %%
# %matplotlib inline
from pathlib import Path

import torch

VARIANT = "resnext_tiny"

# In a clone the notebook uses it as it is; on Colab torch.hub fetches the repository.
clone = Path.cwd().resolve().parent
REPO, SOURCE = (str(clone), "local") if (clone / "hubconf.py").exists() else ("org/resnext-hub", "github")

# %% [markdown]
# ## A photo
#
# The one that matplotlib ships: Grace Hopper, in 1984, in the uniform of the US Navy.

# %%
import matplotlib

photo = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
classify = torch.hub.load(REPO, "classifier", VARIANT, source=SOURCE)
predictions = classify(photo)
predictions

# %%
utils = torch.hub.load(REPO, "nvidia_convnets_processing_utils", source=SOURCE)
utils.plot_predictions(photo, predictions, title=VARIANT)

# %% [markdown]
# `resnext_tiny` looks at 64x64 pixels and knows 200 classes. A path, a URL, bytes, a PIL image, an array or a tensor will
# do, and a list of them gives a list of answers:

# %%
from PIL import Image

image = Image.open(photo)
[answer[0].label for answer in classify([image, image.rotate(8), image.convert("L")])]

# %% [markdown]
# ## The network
#
# What the entrypoints return is a plain `torch.nn.Module`; the classifier above only feeds it and reads it.

# %%
network = torch.hub.load(REPO, VARIANT, source=SOURCE).eval()
print(f"{sum(p.numel() for p in network.parameters()):,} parameters")

batch = utils.prepare_inputs([photo], variant=VARIANT)
with torch.inference_mode():
    probabilities = network(batch).softmax(dim=1)
batch.shape, probabilities.shape

# %% [markdown]
# ## Where did it look?
#
# Grad-CAM: the parts of the last feature map that speak for a class. `torch.hub.load` has made the whole package importable.

# %%
from IPython.display import display
from resnext_hub.evaluation.explain import explain

for name in (predictions[0].label, predictions[2].label):
    display(explain(VARIANT, photo, name).plot())

# %% [markdown]
# ## As a backbone
#
# The feature maps of the four stages, for detection or segmentation; or a new head for classes of your own.

# %%
with torch.inference_mode():
    maps = network.forward_intermediates(batch)
for feature_map, (channels, stride) in zip(maps, network.feature_info, strict=True):
    print(f"stride {stride:2}: {channels:4} channels, {tuple(feature_map.shape[-2:])}")

# %%
from matplotlib import pyplot as plt

figure, axes = plt.subplots(1, 5, figsize=(11, 2.4), layout="constrained")
axes[0].imshow(utils.open_image(photo).resize((256, 256)))
axes[0].set_title("photo", fontsize=10)
for axis, feature_map, (_, stride) in zip(axes[1:], maps, network.feature_info, strict=True):
    axis.imshow(feature_map[0].mean(0), cmap="viridis")
    axis.set_title(f"mean activation, stride {stride}", fontsize=10)
for axis in axes:
    axis.axis("off")
plt.show()

# %%
mine = torch.hub.load(REPO, VARIANT, source=SOURCE, num_classes=3)
optimizer = torch.optim.SGD(mine.fc.parameters(), lr=0.1)
loss = torch.nn.functional.cross_entropy(mine(batch.expand(4, -1, -1, -1)), torch.tensor([0, 1, 2, 0]))
loss.backward()
optimizer.step()
mine.fc
