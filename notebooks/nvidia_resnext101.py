# %% [markdown]
# # NVIDIA ResNeXt101-32x4d and its processing utilities
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/nvidia_resnext101.ipynb)
#
# A ResNeXt-101 that NVIDIA trained in mixed precision
# ([DeepLearningExamples](https://github.com/NVIDIA/DeepLearningExamples)), and NVIDIA's utilities: they turn a URI into a batch,
# and scores into names. NVIDIA states no licence for the weights.
#
# The outputs kept in this file come from a machine that had **no published weights**. There `resnext_tiny` takes their place: a
# small network that comes with the repository and knows 200 classes. Run the notebook, and the same cells download the
# published weights (about 177 MB).

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


VARIANT = available("nvidia_resneXt")
about = manifest.resolve("nvidia_resneXt")
print(f"{about.name}: {about.params:,} parameters, {about.gmacs} GMACs, {about.published.top1} % top-1")

# %% [markdown]
# ## Images to a batch
#
# `prepare_input_from_uri` takes a path or a URL, such as `https://…/photo.jpg`, and returns a batch of one for the network. These
# photos come with scikit-image.

# %%
import skimage

uris = [Path(skimage.__file__).parent / "data" / name for name in ("chelsea.png", "coffee.png")]

device = "cuda" if torch.cuda.is_available() else "cpu"
network = torch.hub.load(REPO, VARIANT, source=SOURCE, trust_repo=True).eval().to(device)
batch = torch.cat([utils.prepare_input_from_uri(str(uri), variant=VARIANT) for uri in uris]).to(device)
with torch.inference_mode():
    probabilities = network(batch).softmax(dim=1)
print(tuple(batch.shape), "->", tuple(probabilities.shape))

# %% [markdown]
# ## Scores to names
#
# `pick_n_best` returns the best classes of each image. It takes probabilities, and raises if it gets logits. Its labels are
# ImageNet's 1,000 if you pass no others.

# %%
labels = utils.read_labels(manifest.resolve(VARIANT).labels)
for uri, best in zip(uris, utils.pick_n_best(probabilities, n=5, labels=labels), strict=True):
    print(uri.name)
    for label, share in best:
        print(f"{share:>7}  {label}")

# %% [markdown]
# `classifier` does all of this in one call, for images of any kind:

# %%
from IPython.display import display

classify = torch.hub.load(REPO, "classifier", VARIANT, engine="torch", source=SOURCE, trust_repo=True)
for uri in uris:
    display(utils.plot_predictions(uri, classify(uri), title=f"{VARIANT}, which knows {len(labels)} classes"))

# %% [markdown]
# More: the [model page](https://github.com/org/resnext-hub/blob/main/docs/hub/org_resnext-hub_nvidia_resnext101.md); the network
# [with squeeze-and-excitation](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/nvidia_se_resnext101.ipynb);
# NVIDIA's training recipe, `nvidia_resnext101_32x4d`, in
# [docs/training.md](https://github.com/org/resnext-hub/blob/main/docs/training.md).
