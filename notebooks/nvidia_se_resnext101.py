# %% [markdown]
# # NVIDIA SE-ResNeXt101-32x4d: gates on channels
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/nvidia_se_resnext101.ipynb)
#
# A ResNeXt-101 with squeeze-and-excitation ([Hu et al. 2017](https://arxiv.org/abs/1709.01507)): every block takes the mean of
# each of its channels, and computes from these means how much of each channel to let through. NVIDIA states no licence for the
# weights.
#
# The outputs kept in this file come from a machine that had **no published weights**. There `resnext_tiny` takes their place: a
# small network that comes with the repository and knows 200 classes. Run the notebook, and the same cells download the
# published weights (about 181 MB).

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
# ## With and without squeeze-and-excitation
#
# The gates add a million parameters and almost no computation. Accuracy on ImageNet as NVIDIA published it:

# %%
for name in ("nvidia_resneXt", "nvidia_se_resnext101_32x4d"):
    about = manifest.resolve(name)
    print(f"{name:27}{about.params / 1e6:6.1f} M parameters{about.gmacs:7.2f} GMACs", end="")
    print(f"{about.published.top1:8.2f} % top-1")

# %% [markdown]
# ## What is in a photo
#
# `classifier` adds preprocessing and labels to the network. These photos come with scikit-image.

# %%
from IPython.display import display
from skimage import data

photos = {"cat": data.chelsea(), "coffee": data.coffee()}
VARIANT = available("nvidia_se_resnext101_32x4d")
classify = torch.hub.load(REPO, "classifier", VARIANT, engine="torch", source=SOURCE, trust_repo=True)
for photo in photos.values():
    title = f"{VARIANT}, which knows {len(classify.labels)} classes"
    display(utils.plot_predictions(photo, classify(photo), title=title))

# %% [markdown]
# ## What the gates do
#
# A gate of 0 shuts its channel, a gate of 1 lets it pass unchanged. For each of the 33 blocks the picture shows the median of
# its gates, and the range of the middle half of them. Only trained weights make it meaningful.

# %%
from matplotlib import pyplot as plt

network = torch.hub.load(REPO, VARIANT, source=SOURCE, trust_repo=True).eval()
gates = []
for module in network.modules():
    if type(module).__name__ == "SqueezeExcite":
        module.expand.register_forward_hook(lambda module, inputs, output: gates.append(output.sigmoid()))
with torch.inference_mode():
    network(utils.prepare_inputs(list(photos.values()), variant=VARIANT))

if gates:
    shares = torch.tensor([0.25, 0.5, 0.75])
    quartiles = torch.stack([gate.quantile(shares, dim=1) for gate in gates])  # (blocks, 3, photos)
    figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
    blocks = range(1, len(gates) + 1)
    for i, (name, colour) in enumerate(zip(photos, ("#2f6f9f", "#d9822b"), strict=True)):
        low, median, high = quartiles[:, :, i].T
        axes.fill_between(blocks, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(blocks, median, color=colour, label=name)
    for stage_end in (3.5, 7.5, 30.5):
        axes.axvline(stage_end, color="#9aa5b1", linewidth=0.8, linestyle=":")
    axes.set_xlabel("block (dotted: where a stage ends)")
    axes.set_ylabel("gate")
    axes.set_xlim(1, len(gates))
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, loc="upper left")
    axes.set_title(VARIANT, fontsize=10)
    plt.show()
else:
    print(f"{VARIANT} has no gates: this picture needs the weights of nvidia_se_resnext101_32x4d.")

# %% [markdown]
# More: the [model page](https://github.com/org/resnext-hub/blob/main/docs/hub/org_resnext-hub_nvidia_se_resnext101.md), and the
# network [without squeeze-and-excitation](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/nvidia_resnext101.ipynb).
