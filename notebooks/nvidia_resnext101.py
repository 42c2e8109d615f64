# %% [markdown]
# # NVIDIA ResNeXt101-32x4d and its processing utilities
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/nvidia_resnext101.ipynb)
#
# A ResNeXt-101 that NVIDIA trained in mixed precision
# ([DeepLearningExamples](https://github.com/NVIDIA/DeepLearningExamples)), and NVIDIA's utilities: a URI to a batch, scores to
# names. NVIDIA states no licence for the weights.
#
# The outputs kept in this file come from a run without network: **random weights** stand in for the published ones, and the
# pictures say so. What they name is meaningless. Run the notebook, and the same cells fetch the real weights.

# %%
# %matplotlib inline
import json
from pathlib import Path

import torch

# In a clone the notebook uses it as it is; on Colab torch.hub fetches the repository.
clone = Path.cwd().resolve().parent
REPO, SOURCE = (str(clone), "local") if (clone / "hubconf.py").exists() else ("org/resnext-hub", "github")
device = "cuda" if torch.cuda.is_available() else "cpu"

VARIANT = "nvidia_resneXt"
network = torch.hub.load(REPO, VARIANT, source=SOURCE).eval().to(device)
utils = torch.hub.load(REPO, "nvidia_convnets_processing_utils", source=SOURCE)

about = json.loads((Path(utils.__file__).parents[1] / "weights_manifest.json").read_text())["checkpoints"][VARIANT]
weights = about["made_by"] or "published weights"
print(f"{about['params']:,} parameters, {about['gmacs']} GMACs, {about['published']['top1']} % top-1 as published")

# %% [markdown]
# ## Images to a batch
#
# `prepare_input_from_uri` takes a path or a URL and gives what the network wants. These photos come with scikit-image and
# matplotlib; `https://…/photo.jpg` will do as well.

# %%
import matplotlib
import skimage

samples = Path(skimage.__file__).parent / "data"
uris = [samples / "chelsea.png", samples / "coffee.png", samples / "rocket.jpg"]
uris.append(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")

batch = torch.cat([utils.prepare_input_from_uri(str(uri)) for uri in uris]).to(device)
with torch.inference_mode():
    probabilities = network(batch).softmax(dim=1)
print(tuple(batch.shape), "->", tuple(probabilities.shape))

# %% [markdown]
# ## Scores to names
#
# `pick_n_best` gives the best classes of each image. It wants probabilities, and says so when it gets logits.

# %%
from matplotlib import pyplot as plt
from PIL import ImageOps

results = utils.pick_n_best(predictions=probabilities, n=5)

figure, axes = plt.subplots(1, 4, figsize=(12, 3.9), layout="constrained")
for axis, uri, result in zip(axes, uris, results, strict=True):
    axis.imshow(ImageOps.fit(utils.open_image(uri), (256, 256)))
    axis.axis("off")
    lines = [f"{share:>6}  {label.split(',')[0]}" for label, share in result]
    axis.set_title("\n".join(lines), y=-0.08, va="top", loc="left", fontsize=9, family="monospace")
figure.suptitle(f"{VARIANT}, {weights}", fontsize=11)
plt.show()

# %% [markdown]
# The same in one call, for images of any kind:

# %%
classify = torch.hub.load(REPO, "classifier", VARIANT, source=SOURCE, engine="torch")
utils.plot_predictions(uris[0], classify(uris[0]), title=f"{VARIANT}, {weights}")

# %% [markdown]
# More: the [model page](https://github.com/org/resnext-hub/blob/main/docs/hub/org_resnext-hub_nvidia_resnext101.md); with
# [squeeze-and-excitation](https://colab.research.google.com/github/org/resnext-hub/blob/main/notebooks/nvidia_se_resnext101.ipynb);
# NVIDIA's recipe, `nvidia_resnext101_32x4d`, in
# [docs/training.md](https://github.com/org/resnext-hub/blob/main/docs/training.md).
