# %% [markdown]
# # NVIDIA SE-ResNeXt101-32x4d: channels turned up and down
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/nvidia_se_resnext101.ipynb)
#
# A ResNeXt-101 with squeeze-and-excitation ([Hu et al. 2017](https://arxiv.org/abs/1709.01507)): every block looks at the mean
# of each of its channels, and decides by that how much of each to let through. NVIDIA states no licence for the weights.
#
# The outputs kept in this file come from a run without network: **random weights** stand in for the published ones, and the
# pictures say so. What they name, and what the gates do, is meaningless. Run the notebook, and the same cells fetch the real
# weights.

# %%
# %matplotlib inline
from pathlib import Path

import torch

# In a clone the notebook uses it as it is; on Colab torch.hub fetches the repository.
clone = Path.cwd().resolve().parent
REPO, SOURCE = (str(clone), "local") if (clone / "hubconf.py").exists() else ("org/resnext-hub", "github")
utils = torch.hub.load(REPO, "nvidia_convnets_processing_utils", source=SOURCE)

# %% [markdown]
# ## With and without
#
# The gates add a million parameters and next to no computation. Accuracy on ImageNet as NVIDIA published it:

# %%
import json

VARIANT = "nvidia_se_resnext101_32x4d"
manifest = json.loads((Path(utils.__file__).parents[1] / "weights_manifest.json").read_text())["checkpoints"]
weights = manifest[VARIANT]["made_by"] or "published weights"

for name in ("nvidia_resneXt", VARIANT):
    about = manifest[name]
    print(f"{name:27}{about['params'] / 1e6:6.1f} M parameters{about['gmacs']:7.2f} GMACs", end="")
    print(f"{about['published']['top1']:8.2f} % top-1")

# %% [markdown]
# ## What is in a photo
#
# `classifier` brings preprocessing and labels; the photos are scikit-image's.

# %%
from IPython.display import display
from skimage import data

photos = {"cat": data.chelsea(), "coffee": data.coffee(), "rocket": data.rocket()}
classify = torch.hub.load(REPO, "classifier", VARIANT, source=SOURCE, engine="torch")
for photo in photos.values():
    display(utils.plot_predictions(photo, classify(photo), title=f"{VARIANT}, {weights}"))

# %% [markdown]
# ## What the gates do
#
# A gate of 0 shuts its channel, a gate of 1 lets it pass as it is. For each of the 33 blocks: the median of its gates, and the
# middle half of them.

# %%
from matplotlib import pyplot as plt

network = torch.hub.load(REPO, VARIANT, source=SOURCE).eval()
gates = []
for module in network.modules():
    if type(module).__name__ == "SqueezeExcite":
        module.expand.register_forward_hook(lambda module, inputs, output: gates.append(output.sigmoid()))
with torch.inference_mode():
    network(utils.prepare_inputs(list(photos.values()), variant=VARIANT))
shares = torch.tensor([0.25, 0.5, 0.75])
quartiles = torch.stack([gate.quantile(shares, dim=1) for gate in gates])  # (blocks, 3, photos)

figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
blocks = range(1, len(gates) + 1)
for i, (name, colour) in enumerate(zip(photos, ("#2f6f9f", "#d9822b", "#5f7d4f"), strict=True)):
    axes.fill_between(blocks, quartiles[:, 0, i], quartiles[:, 2, i], color=colour, alpha=0.18, linewidth=0)
    axes.plot(blocks, quartiles[:, 1, i], color=colour, label=name)
for stage_end in (3.5, 7.5, 30.5):
    axes.axvline(stage_end, color="#9aa5b1", linewidth=0.8, linestyle=":")
axes.set_xlabel("block (dotted: where a stage ends)")
axes.set_ylabel("gate")
axes.set_xlim(1, len(gates))
axes.set_ylim(0, 1)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, ncols=3, loc="upper left")
axes.set_title(f"{VARIANT}, {weights}", fontsize=10)
plt.show()

# %% [markdown]
# More: the [model page](https://github.com/org/resnext-hub/blob/main/docs/hub/org_resnext-hub_nvidia_se_resnext101.md), and the
# network [without squeeze-and-excitation](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/nvidia_resnext101.ipynb).
