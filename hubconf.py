"""The entrypoints of torch.hub: a function for each network, the classifier, and NVIDIA's utilities.

    network = torch.hub.load("org/resnext-hub", "resnext50_32x4d_swsl", trust_repo=True)

Without trust_repo=True, torch.hub asks before it runs the code of an owner that it does not know, and a script stops.

Everything else is imported when an entrypoint is called, from this checkout mounted as a package (mount.py).
"""

from importlib import import_module as _import_module
from os.path import dirname as _dirname
from os.path import join as _join
from runpy import run_path as _run_path

dependencies = ["torch"]


def _module(name):
    """Import a module of this checkout by its dotted name in the package."""
    root = _dirname(__file__)
    package = _run_path(_join(root, "mount.py"))["mount"](root).__name__
    with _import_module(".packages", package).needed("This entrypoint", "images"):
        return _import_module(f".{name}", package)


def _models():
    return _module("models.entrypoints")


# Begin: written by maintenance/write_hubconf.py from weights_manifest.json. Do not edit.


def resnext101_32x8d_wsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x8d (ResNeXt WSL): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNeXt-101 32x8d, 88,791,336 parameters, 16.414 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: 940 million public Instagram images labelled by 1.5K hashtags (weak supervision), then ImageNet-1k.
    - Top-1 / top-5 accuracy on ImageNet, in %: 82.2 / 96.4 (published), 82.72 / 96.624 (measured by timm's authors).
    - Licence of the weights: CC-BY-NC-4.0, no commercial use, https://creativecommons.org/licenses/by-nc/4.0/.
    - Paper: Exploring the Limits of Weakly Supervised Pretraining, https://arxiv.org/abs/1805.00932
    - Original: https://github.com/facebookresearch/WSL-Images
    - Note: Others measured a higher accuracy than published: 82.72 / 96.624 (timm), 82.55 / 96.74 (PaddleClas).

    Args:
        progress: show a progress bar on stderr while the weights are downloaded.
        pretrained: False for random weights.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
    """
    return _models().facebook_network("resnext101_32x8d_wsl", progress, pretrained, num_classes, network_options)


def resnext101_32x16d_wsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x16d (ResNeXt WSL): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNeXt-101 32x16d, 194,026,792 parameters, 36.163 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: 940 million public Instagram images labelled by 1.5K hashtags (weak supervision), then ImageNet-1k.
    - Top-1 / top-5 accuracy on ImageNet, in %: 84.2 / 97.2 (published), 84.166 / 97.192 (measured by timm's authors).
    - Licence of the weights: CC-BY-NC-4.0, no commercial use, https://creativecommons.org/licenses/by-nc/4.0/.
    - Paper: Exploring the Limits of Weakly Supervised Pretraining, https://arxiv.org/abs/1805.00932
    - Original: https://github.com/facebookresearch/WSL-Images
    - Note: In timm, the deprecated name ig_resnext101_32x16d loads another network,
      resnext101_32x8d.fb_wsl_ig1b_ft_in1k (resnet.py, lines 2229-2231).

    Args:
        progress: show a progress bar on stderr while the weights are downloaded.
        pretrained: False for random weights.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
    """
    return _models().facebook_network("resnext101_32x16d_wsl", progress, pretrained, num_classes, network_options)


def resnext101_32x32d_wsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x32d (ResNeXt WSL): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNeXt-101 32x32d, 468,530,472 parameters, 87.107 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: 940 million public Instagram images labelled by 1.5K hashtags (weak supervision), then ImageNet-1k.
    - Top-1 / top-5 accuracy on ImageNet, in %: 85.1 / 97.5 (published), 85.09 / 97.442 (measured by timm's authors).
    - Licence of the weights: CC-BY-NC-4.0, no commercial use, https://creativecommons.org/licenses/by-nc/4.0/.
    - Paper: Exploring the Limits of Weakly Supervised Pretraining, https://arxiv.org/abs/1805.00932
    - Original: https://github.com/facebookresearch/WSL-Images
    - Note: In timm, the deprecated name ig_resnext101_32x32d loads another network,
      resnext101_32x8d.fb_wsl_ig1b_ft_in1k (resnet.py, lines 2229-2231).
    - Note: The original's README says 466M parameters; the exact number is 468,530,472.

    Args:
        progress: show a progress bar on stderr while the weights are downloaded.
        pretrained: False for random weights.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
    """
    return _models().facebook_network("resnext101_32x32d_wsl", progress, pretrained, num_classes, network_options)


def resnext101_32x48d_wsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x48d (ResNeXt WSL): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNeXt-101 32x48d, 828,411,176 parameters, 153.31 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: 940 million public Instagram images labelled by 1.5K hashtags (weak supervision), then ImageNet-1k.
    - Top-1 / top-5 accuracy on ImageNet, in %: 85.4 / 97.6 (published), 85.436 / 97.576 (measured by timm's authors).
    - Licence of the weights: CC-BY-NC-4.0, no commercial use, https://creativecommons.org/licenses/by-nc/4.0/.
    - Paper: Exploring the Limits of Weakly Supervised Pretraining, https://arxiv.org/abs/1805.00932
    - Original: https://github.com/facebookresearch/WSL-Images
    - Note: In timm, the deprecated name ig_resnext101_32x48d loads another network,
      resnext101_32x8d.fb_wsl_ig1b_ft_in1k (resnet.py, lines 2229-2231).
    - Note: timm has its configuration, but no function that builds the network. timm's last results are in commit
      5e7d47ca (2022-07-19).

    Args:
        progress: show a progress bar on stderr while the weights are downloaded.
        pretrained: False for random weights.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
    """
    return _models().facebook_network("resnext101_32x48d_wsl", progress, pretrained, num_classes, network_options)


def resnet18_ssl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNet-18 (Semi-supervised ResNe(X)t): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNet-18, 11,689,512 parameters, 1.814 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: a subset of YFCC100M without labels, selected by a teacher trained on ImageNet-1k, then
      ImageNet-1k.
    - Top-1 / top-5 accuracy on ImageNet, in %: 72.8 / 91.5 (published), 72.636 / 91.416 (measured by timm's authors).
    - Licence of the weights: CC-BY-NC-4.0, no commercial use, https://creativecommons.org/licenses/by-nc/4.0/.
    - Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546
    - Original: https://github.com/facebookresearch/semi-supervised-ImageNet1K-models
    - Note: The original's README says 14M parameters; the exact number is 11,689,512.
    - Note: The original's hubconf.py first downloads torchvision's weights, then overwrites them.

    Args:
        progress: show a progress bar on stderr while the weights are downloaded.
        pretrained: False for random weights.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
    """
    return _models().facebook_network("resnet18_ssl", progress, pretrained, num_classes, network_options)


def resnet50_ssl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNet-50 (Semi-supervised ResNe(X)t): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNet-50, 25,557,032 parameters, 4.089 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: a subset of YFCC100M without labels, selected by a teacher trained on ImageNet-1k, then
      ImageNet-1k.
    - Top-1 / top-5 accuracy on ImageNet, in %: 79.3 / 94.9 (published), 79.252 / 94.826 (measured by timm's authors).
    - Licence of the weights: CC-BY-NC-4.0, no commercial use, https://creativecommons.org/licenses/by-nc/4.0/.
    - Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546
    - Original: https://github.com/facebookresearch/semi-supervised-ImageNet1K-models
    - Note: The original's hubconf.py first downloads torchvision's weights, then overwrites them.

    Args:
        progress: show a progress bar on stderr while the weights are downloaded.
        pretrained: False for random weights.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
    """
    return _models().facebook_network("resnet50_ssl", progress, pretrained, num_classes, network_options)


def resnext50_32x4d_ssl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-50 32x4d (Semi-supervised ResNe(X)t): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNeXt-50 32x4d, 25,028,904 parameters, 4.23 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: a subset of YFCC100M without labels, selected by a teacher trained on ImageNet-1k, then
      ImageNet-1k.
    - Top-1 / top-5 accuracy on ImageNet, in %: 80.3 / 95.4 (published), 80.316 / 95.386 (measured by timm's authors).
    - Licence of the weights: CC-BY-NC-4.0, no commercial use, https://creativecommons.org/licenses/by-nc/4.0/.
    - Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546
    - Original: https://github.com/facebookresearch/semi-supervised-ImageNet1K-models

    Args:
        progress: show a progress bar on stderr while the weights are downloaded.
        pretrained: False for random weights.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
    """
    return _models().facebook_network("resnext50_32x4d_ssl", progress, pretrained, num_classes, network_options)


def resnext101_32x4d_ssl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x4d (Semi-supervised ResNe(X)t): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNeXt-101 32x4d, 44,177,704 parameters, 7.97 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: a subset of YFCC100M without labels, selected by a teacher trained on ImageNet-1k, then
      ImageNet-1k.
    - Top-1 / top-5 accuracy on ImageNet, in %: 81.0 / 95.7 (published), 80.936 / 95.732 (measured by timm's authors).
    - Licence of the weights: CC-BY-NC-4.0, no commercial use, https://creativecommons.org/licenses/by-nc/4.0/.
    - Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546
    - Original: https://github.com/facebookresearch/semi-supervised-ImageNet1K-models

    Args:
        progress: show a progress bar on stderr while the weights are downloaded.
        pretrained: False for random weights.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
    """
    return _models().facebook_network("resnext101_32x4d_ssl", progress, pretrained, num_classes, network_options)


def resnext101_32x8d_ssl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x8d (Semi-supervised ResNe(X)t): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNeXt-101 32x8d, 88,791,336 parameters, 16.414 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: a subset of YFCC100M without labels, selected by a teacher trained on ImageNet-1k, then
      ImageNet-1k.
    - Top-1 / top-5 accuracy on ImageNet, in %: 81.7 / 96.1 (published), 81.62 / 96.036 (measured by timm's authors).
    - Licence of the weights: CC-BY-NC-4.0, no commercial use, https://creativecommons.org/licenses/by-nc/4.0/.
    - Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546
    - Original: https://github.com/facebookresearch/semi-supervised-ImageNet1K-models

    Args:
        progress: show a progress bar on stderr while the weights are downloaded.
        pretrained: False for random weights.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
    """
    return _models().facebook_network("resnext101_32x8d_ssl", progress, pretrained, num_classes, network_options)


def resnext101_32x16d_ssl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x16d (Semi-supervised ResNe(X)t): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNeXt-101 32x16d, 194,026,792 parameters, 36.163 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: a subset of YFCC100M without labels, selected by a teacher trained on ImageNet-1k, then
      ImageNet-1k.
    - Top-1 / top-5 accuracy on ImageNet, in %: 81.9 / 96.2 (published), 81.856 / 96.084 (measured by timm's authors).
    - Licence of the weights: CC-BY-NC-4.0, no commercial use, https://creativecommons.org/licenses/by-nc/4.0/.
    - Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546
    - Original: https://github.com/facebookresearch/semi-supervised-ImageNet1K-models

    Args:
        progress: show a progress bar on stderr while the weights are downloaded.
        pretrained: False for random weights.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
    """
    return _models().facebook_network("resnext101_32x16d_ssl", progress, pretrained, num_classes, network_options)


def resnet18_swsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNet-18 (Semi-weakly supervised ResNe(X)t): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNet-18, 11,689,512 parameters, 1.814 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: 64 million of 940 million public Instagram images, selected by a teacher trained on their hashtags,
      then ImageNet-1k.
    - Top-1 / top-5 accuracy on ImageNet, in %: 73.4 / 91.9 (published), 73.286 / 91.754 (measured by timm's authors).
    - Licence of the weights: CC-BY-NC-4.0, no commercial use, https://creativecommons.org/licenses/by-nc/4.0/.
    - Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546
    - Original: https://github.com/facebookresearch/semi-supervised-ImageNet1K-models
    - Note: The original's README says 14M parameters; the exact number is 11,689,512.
    - Note: The original's hubconf.py first downloads torchvision's weights, then overwrites them.

    Args:
        progress: show a progress bar on stderr while the weights are downloaded.
        pretrained: False for random weights.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
    """
    return _models().facebook_network("resnet18_swsl", progress, pretrained, num_classes, network_options)


def resnet50_swsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNet-50 (Semi-weakly supervised ResNe(X)t): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNet-50, 25,557,032 parameters, 4.089 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: 64 million of 940 million public Instagram images, selected by a teacher trained on their hashtags,
      then ImageNet-1k.
    - Top-1 / top-5 accuracy on ImageNet, in %: 81.2 / 96.0 (published), 81.146 / 95.98 (measured by timm's authors).
    - Licence of the weights: CC-BY-NC-4.0, no commercial use, https://creativecommons.org/licenses/by-nc/4.0/.
    - Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546
    - Original: https://github.com/facebookresearch/semi-supervised-ImageNet1K-models
    - Note: The original's hubconf.py first downloads torchvision's weights, then overwrites them.

    Args:
        progress: show a progress bar on stderr while the weights are downloaded.
        pretrained: False for random weights.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
    """
    return _models().facebook_network("resnet50_swsl", progress, pretrained, num_classes, network_options)


def resnext50_32x4d_swsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-50 32x4d (Semi-weakly supervised ResNe(X)t): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNeXt-50 32x4d, 25,028,904 parameters, 4.23 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: 64 million of 940 million public Instagram images, selected by a teacher trained on their hashtags,
      then ImageNet-1k.
    - Top-1 / top-5 accuracy on ImageNet, in %: 82.2 / 96.3 (published), 82.162 / 96.224 (measured by timm's authors).
    - Licence of the weights: CC-BY-NC-4.0, no commercial use, https://creativecommons.org/licenses/by-nc/4.0/.
    - Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546
    - Original: https://github.com/facebookresearch/semi-supervised-ImageNet1K-models

    Args:
        progress: show a progress bar on stderr while the weights are downloaded.
        pretrained: False for random weights.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
    """
    return _models().facebook_network("resnext50_32x4d_swsl", progress, pretrained, num_classes, network_options)


def resnext101_32x4d_swsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x4d (Semi-weakly supervised ResNe(X)t): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNeXt-101 32x4d, 44,177,704 parameters, 7.97 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: 64 million of 940 million public Instagram images, selected by a teacher trained on their hashtags,
      then ImageNet-1k.
    - Top-1 / top-5 accuracy on ImageNet, in %: 83.4 / 96.8 (published), 83.268 / 96.76 (measured by timm's authors).
    - Licence of the weights: CC-BY-NC-4.0, no commercial use, https://creativecommons.org/licenses/by-nc/4.0/.
    - Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546
    - Original: https://github.com/facebookresearch/semi-supervised-ImageNet1K-models

    Args:
        progress: show a progress bar on stderr while the weights are downloaded.
        pretrained: False for random weights.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
    """
    return _models().facebook_network("resnext101_32x4d_swsl", progress, pretrained, num_classes, network_options)


def resnext101_32x8d_swsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x8d (Semi-weakly supervised ResNe(X)t): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNeXt-101 32x8d, 88,791,336 parameters, 16.414 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: 64 million of 940 million public Instagram images, selected by a teacher trained on their hashtags,
      then ImageNet-1k.
    - Top-1 / top-5 accuracy on ImageNet, in %: 84.3 / 97.2 (published), 84.276 / 97.188 (measured by timm's authors).
    - Licence of the weights: CC-BY-NC-4.0, no commercial use, https://creativecommons.org/licenses/by-nc/4.0/.
    - Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546
    - Original: https://github.com/facebookresearch/semi-supervised-ImageNet1K-models

    Args:
        progress: show a progress bar on stderr while the weights are downloaded.
        pretrained: False for random weights.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
    """
    return _models().facebook_network("resnext101_32x8d_swsl", progress, pretrained, num_classes, network_options)


def resnext101_32x16d_swsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x16d (Semi-weakly supervised ResNe(X)t): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNeXt-101 32x16d, 194,026,792 parameters, 36.163 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: 64 million of 940 million public Instagram images, selected by a teacher trained on their hashtags,
      then ImageNet-1k.
    - Top-1 / top-5 accuracy on ImageNet, in %: 84.8 / 97.4 (published), 83.34 / 96.844 (measured by timm's authors).
    - Licence of the weights: CC-BY-NC-4.0, no commercial use, https://creativecommons.org/licenses/by-nc/4.0/.
    - Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546
    - Original: https://github.com/facebookresearch/semi-supervised-ImageNet1K-models
    - Note: The public file does not reach the published accuracy: timm's authors measured 83.34 / 96.844. Its author
      confirmed in 2019 that the wrong model was saved and promised a new file, which was never published
      (facebookresearch/semi-supervised-ImageNet1K-models#1).

    Args:
        progress: show a progress bar on stderr while the weights are downloaded.
        pretrained: False for random weights.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
    """
    return _models().facebook_network("resnext101_32x16d_swsl", progress, pretrained, num_classes, network_options)


def resnext50_32x4d(pretrained=None, progress=True, *, weights=None, num_classes=1000, **network_options):
    """ResNeXt-50 32x4d (torchvision ResNeXt): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNeXt-50 32x4d, 25,028,904 parameters, 4.23 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: ImageNet-1k.
    - Top-1 / top-5 accuracy of IMAGENET1K_V1 on ImageNet, in %: 77.618 / 93.698 (published), 77.632 / 93.674 (measured
      by timm's authors).
    - Top-1 / top-5 accuracy of IMAGENET1K_V2 on ImageNet, in %: 81.198 / 95.34 (published), 81.19 / 95.344 (measured by
      timm's authors).
    - Licence of the weights: BSD-3-Clause, https://spdx.org/licenses/BSD-3-Clause.html.
    - Paper: Aggregated Residual Transformations for Deep Neural Networks, https://arxiv.org/abs/1611.05431
    - Original: https://github.com/pytorch/vision

    Args:
        pretrained: True means weights="IMAGENET1K_V1". It also takes what weights takes. By default, random weights.
        progress: show a progress bar on stderr while the weights are downloaded.
        weights: "IMAGENET1K_V1", "IMAGENET1K_V2" or "DEFAULT" (the newest); or a member of torchvision's enum for this
            network.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
        ValueError: no such weights, or arguments that contradict each other.
    """
    return _models().torchvision_network("resnext50_32x4d", pretrained, progress, weights, num_classes, network_options)


def resnext101_32x8d(pretrained=None, progress=True, *, weights=None, num_classes=1000, **network_options):
    """ResNeXt-101 32x8d (torchvision ResNeXt): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNeXt-101 32x8d, 88,791,336 parameters, 16.414 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: ImageNet-1k.
    - Top-1 / top-5 accuracy of IMAGENET1K_V1 on ImageNet, in %: 79.312 / 94.526 (published), 79.308 / 94.53 (measured
      by timm's authors).
    - Top-1 / top-5 accuracy of IMAGENET1K_V2 on ImageNet, in %: 82.834 / 96.228 (published), 82.832 / 96.234 (measured
      by timm's authors).
    - Licence of the weights: BSD-3-Clause, https://spdx.org/licenses/BSD-3-Clause.html.
    - Paper: Aggregated Residual Transformations for Deep Neural Networks, https://arxiv.org/abs/1611.05431
    - Original: https://github.com/pytorch/vision

    Args:
        pretrained: True means weights="IMAGENET1K_V1". It also takes what weights takes. By default, random weights.
        progress: show a progress bar on stderr while the weights are downloaded.
        weights: "IMAGENET1K_V1", "IMAGENET1K_V2" or "DEFAULT" (the newest); or a member of torchvision's enum for this
            network.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
        ValueError: no such weights, or arguments that contradict each other.
    """
    return _models().torchvision_network(
        "resnext101_32x8d", pretrained, progress, weights, num_classes, network_options
    )


def resnext101_64x4d(pretrained=None, progress=True, *, weights=None, num_classes=1000, **network_options):
    """ResNeXt-101 64x4d (torchvision ResNeXt): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNeXt-101 64x4d, 83,455,272 parameters, 15.46 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: ImageNet-1k.
    - Top-1 / top-5 accuracy of IMAGENET1K_V1 on ImageNet, in %: 83.246 / 96.454 (published), 82.978 / 96.252 (measured
      by timm's authors).
    - Licence of the weights: BSD-3-Clause, https://spdx.org/licenses/BSD-3-Clause.html.
    - Paper: Aggregated Residual Transformations for Deep Neural Networks, https://arxiv.org/abs/1611.05431
    - Original: https://github.com/pytorch/vision
    - Note: timm evaluates with a resize to 256 (82.978 / 96.252), torchvision with a resize to 232 (83.246 / 96.454).

    Args:
        pretrained: True means weights="IMAGENET1K_V1". It also takes what weights takes. By default, random weights.
        progress: show a progress bar on stderr while the weights are downloaded.
        weights: "IMAGENET1K_V1" or "DEFAULT" (the newest); or a member of torchvision's enum for this network.
        num_classes: any other number than 1000 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
        ValueError: no such weights, or arguments that contradict each other.
    """
    return _models().torchvision_network(
        "resnext101_64x4d", pretrained, progress, weights, num_classes, network_options
    )


def nvidia_resneXt(pretrained=True, pretrained_from_file=None, state_dict_key_map_fn=None, **network_options):
    """ResNeXt-101 32x4d (NVIDIA ResNeXt101-32x4d): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNeXt-101 32x4d, 44,177,704 parameters, 7.97 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: ImageNet-1k.
    - Top-1 / top-5 accuracy on ImageNet, in %: 80.43 / 95.06 (published).
    - Licence of the weights: not stated (NVIDIA's code: BSD-3-Clause, ConvNets/LICENSE).
    - Paper: Aggregated Residual Transformations for Deep Neural Networks, https://arxiv.org/abs/1611.05431
    - Original: https://github.com/NVIDIA/DeepLearningExamples
    - Note: The publisher states no hash, so the downloaded file cannot be verified.
    - Note: NVIDIA's README also states lower means after 250 epochs: 80.26 ± 0.11 (DGX-1), 80.19 ± 0.08 (A100).
    - Note: The keys in the file may have a "module." prefix and older names; they are renamed when it is loaded.

    Args:
        pretrained: False for random weights.
        pretrained_from_file: load this checkpoint file instead; needs pretrained=False.
        state_dict_key_map_fn: a function that renames a key; the prefix "module." is removed before.
        network_options: num_classes, last_bn_0_init, conv_init (NVIDIA's); zero_init_residual,
            replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
        FileNotFoundError: pretrained_from_file does not exist.
        ValueError: both pretrained and pretrained_from_file are given.
    """
    return _models().nvidia_network(
        "nvidia_resneXt", pretrained, pretrained_from_file, state_dict_key_map_fn, network_options
    )


def nvidia_se_resnext101_32x4d(
    pretrained=True, pretrained_from_file=None, state_dict_key_map_fn=None, **network_options
):
    """SE-ResNeXt-101 32x4d (NVIDIA SE-ResNeXt101-32x4d): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: SE-ResNeXt-101 32x4d, 45,251,128 parameters, 7.971 GMACs at 224x224. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: ImageNet-1k.
    - Top-1 / top-5 accuracy on ImageNet, in %: 81.0 / 95.48 (published).
    - Licence of the weights: not stated (NVIDIA's code: BSD-3-Clause, ConvNets/LICENSE).
    - Paper: Squeeze-and-Excitation Networks, https://arxiv.org/abs/1709.01507
    - Original: https://github.com/NVIDIA/DeepLearningExamples
    - Note: The publisher states no hash, so the downloaded file cannot be verified.
    - Note: timm's seresnext101_32x4d is another network, with 48.96M parameters.

    Args:
        pretrained: False for random weights.
        pretrained_from_file: load this checkpoint file instead; needs pretrained=False.
        state_dict_key_map_fn: a function that renames a key; the prefix "module." is removed before.
        network_options: num_classes, last_bn_0_init, conv_init (NVIDIA's); zero_init_residual,
            replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
        FileNotFoundError: pretrained_from_file does not exist.
        ValueError: both pretrained and pretrained_from_file are given.
    """
    return _models().nvidia_network(
        "nvidia_se_resnext101_32x4d", pretrained, pretrained_from_file, state_dict_key_map_fn, network_options
    )


def resnext_tiny(progress=True, *, pretrained=True, num_classes=200, **network_options):
    """ResNeXt-35 4x8d (resnext_tiny): images (N, 3, H, W) -> logits (N, num_classes).

    - Architecture: ResNeXt-35 4x8d, 1,906,584 parameters, 0.135 GMACs at 80x80. Returned in training mode.
    - Images: RGB in 0..1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    - Training data: Tiny ImageNet (Stanford CS231n): 100,000 images of 200 ImageNet classes at 64x64; and the scores
      that EfficientNet-Lite2 gives them.
    - Top-1 / top-5 accuracy on tiny-imagenet-200, in %: 58.18 / 82.1 (measured by this project).
    - Licence of the weights: research-only, no commercial use, https://www.image-net.org/download.php.
    - Paper: Aggregated Residual Transformations for Deep Neural Networks, https://arxiv.org/abs/1611.05431

    Args:
        progress: has no effect: the weights are in this repository.
        pretrained: False for random weights.
        num_classes: any other number than 200 replaces the head by a new one with random weights; 0 removes it.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer (as in torchvision); in_chans.

    Raises:
        TypeError: an unknown network option, or one that would make it another variant.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
    """
    return _models().facebook_network("resnext_tiny", progress, pretrained, num_classes, network_options)


def nvidia_resnext101_32x4d(pretrained=True, pretrained_from_file=None, state_dict_key_map_fn=None, **network_options):
    """ResNeXt-101 32x4d (NVIDIA ResNeXt101-32x4d): another name for `nvidia_resneXt`, with the same arguments."""
    return _models().nvidia_network(
        "nvidia_resnext101_32x4d", pretrained, pretrained_from_file, state_dict_key_map_fn, network_options
    )


# End of what maintenance/write_hubconf.py writes.


def nvidia_convnets_processing_utils():
    """NVIDIA's processing utilities: an object with ``prepare_input_from_uri``, ``pick_n_best`` and more.

    - ``prepare_input_from_uri(uri, cuda=False)`` reads an image from a path or URL, and returns it resized, cropped and
      normalised: (1, 3, 224, 224) float32.
    - ``pick_n_best(predictions, n=5)`` takes probabilities (N, 1000), and returns for each sample a list of pairs like
      ("espresso", "97.1%"). With ``from_logits=True`` it takes logits. ``labels=`` names another label set, such as
      "tiny-imagenet-200", or lists the names.

    Raises:
        MissingPackageError: numpy or Pillow is not installed; or, for URLs, validators.

    Examples:
        >>> utils = torch.hub.load("org/resnext-hub", "nvidia_convnets_processing_utils", trust_repo=True)
        >>> images = utils.prepare_input_from_uri("photo.jpg")
    """
    return _module("processing_utils")


def transforms(network, train=False):
    """A function that prepares one image as a network takes it, like torchvision's transforms.

    An image is a path, a URL, bytes, a PIL image, an array or a tensor. ``prepare(image)`` returns a float32 tensor
    (3, H, W), resized, cropped and normalised. Pass it to a data set as its ``transform``.

    Args:
        network: a network that was loaded from here, or the name of an entrypoint or checkpoint.
        train: for training: torchvision's RandomResizedCrop and RandomHorizontalFlip instead of the centre crop.

    Raises:
        ValueError: no such variant; the message suggests similar names.
        MissingPackageError: numpy or Pillow is not installed.

    Examples:
        >>> prepare = torch.hub.load("org/resnext-hub", "transforms", "resnext50_32x4d_swsl", trust_repo=True)
        >>> dataset = torchvision.datasets.ImageFolder("photos", transform=prepare)
    """
    return _module("processing_utils.inputs").transforms(network, train)


def classifier(variant, **options):
    """A function that classifies images with the checkpoint's own preprocessing, and returns named predictions.

    An image is a path, a URL, bytes, a PIL image, an array or a tensor. ``classify(image, top=5)`` returns the five
    best predictions, each with ``.index``, ``.synset``, ``.label`` and ``.probability``. For several images, it returns
    a list of such lists.

    Args:
        variant: the name of an entrypoint, or of a checkpoint ("resnext50_32x4d.IMAGENET1K_V1").
        options: engine ("auto", "torch", "onnxruntime" or "openvino"), precision ("fp32", "bf16", "int8" or "auto"),
            calibration, build, device and progress; and for images, grade, allow_private, schemes, max_bytes,
            max_pixels, timeout and truncated. See `inference.classifier.classifier`.

    Raises:
        ValueError: no such variant; the message suggests similar names.
        CheckpointError: the weights cannot be downloaded, verified or loaded.
        MissingPackageError: numpy or Pillow is not installed.

    Examples:
        >>> classify = torch.hub.load("org/resnext-hub", "classifier", "resnext50_32x4d_swsl", trust_repo=True)
        >>> classify("photo.jpg", top=3)
    """
    return _module("inference.classifier").classifier(variant, **options)
