"""What torch.hub reads: one documented function an entrypoint.

    network = torch.hub.load("org/resnext-hub", "resnext50_32x4d_swsl", trust_repo=True)

torch.hub asks before it runs code of an owner that is not on its own list; with trust_repo=True no script stops there.

Everything behind it is imported when an entrypoint is called, through the checkout mounted as a package (mount.py).
"""

from importlib import import_module as _import_module
from os.path import dirname as _dirname
from os.path import join as _join
from runpy import run_path as _run_path

dependencies = ["torch"]


def _module(name):
    """A module of this checkout, by its dotted name in the package."""
    root = _dirname(__file__)
    package = _run_path(_join(root, "mount.py"))["mount"](root).__name__
    with _import_module(".packages", package).needed("This entrypoint", "images"):
        return _import_module(f".{name}", package)


def resnext101_32x8d_wsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x8d, weakly supervised; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNeXt-101 32x8d, 88,791,336 parameters, 16.414 GMACs at 224x224.
    Training data: 940 million public Instagram images labelled by 1.5K hashtags (weak supervision), then
    ImageNet-1k.
    Published accuracy (ImageNet): 82.2 / 96.4 % top-1 / top-5.
    Licence of the weights: CC-BY-NC 4.0 (no commercial use).
    Paper: Exploring the Limits of Weakly Supervised Pretraining, https://arxiv.org/abs/1805.00932

    Args:
        progress: show a bar on stderr while the weights are fetched.
        pretrained: False for a freshly initialised network.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.
    """
    return _module("models.entrypoints").facebook(
        "resnext101_32x8d_wsl", progress, pretrained, num_classes, network_options
    )


def resnext101_32x16d_wsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x16d, weakly supervised; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNeXt-101 32x16d, 194,026,792 parameters, 36.163 GMACs at 224x224.
    Training data: 940 million public Instagram images labelled by 1.5K hashtags (weak supervision), then
    ImageNet-1k.
    Published accuracy (ImageNet): 84.2 / 97.2 % top-1 / top-5.
    Licence of the weights: CC-BY-NC 4.0 (no commercial use).
    Paper: Exploring the Limits of Weakly Supervised Pretraining, https://arxiv.org/abs/1805.00932

    Args:
        progress: show a bar on stderr while the weights are fetched.
        pretrained: False for a freshly initialised network.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.
    """
    return _module("models.entrypoints").facebook(
        "resnext101_32x16d_wsl", progress, pretrained, num_classes, network_options
    )


def resnext101_32x32d_wsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x32d, weakly supervised; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNeXt-101 32x32d, 468,530,472 parameters, 87.107 GMACs at 224x224.
    Training data: 940 million public Instagram images labelled by 1.5K hashtags (weak supervision), then
    ImageNet-1k.
    Published accuracy (ImageNet): 85.1 / 97.5 % top-1 / top-5.
    Licence of the weights: CC-BY-NC 4.0 (no commercial use).
    Paper: Exploring the Limits of Weakly Supervised Pretraining, https://arxiv.org/abs/1805.00932

    Args:
        progress: show a bar on stderr while the weights are fetched.
        pretrained: False for a freshly initialised network.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.
    """
    return _module("models.entrypoints").facebook(
        "resnext101_32x32d_wsl", progress, pretrained, num_classes, network_options
    )


def resnext101_32x48d_wsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x48d, weakly supervised; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNeXt-101 32x48d, 828,411,176 parameters, 153.31 GMACs at 224x224.
    Training data: 940 million public Instagram images labelled by 1.5K hashtags (weak supervision), then
    ImageNet-1k.
    Published accuracy (ImageNet): 85.4 / 97.6 % top-1 / top-5.
    Licence of the weights: CC-BY-NC 4.0 (no commercial use).
    Paper: Exploring the Limits of Weakly Supervised Pretraining, https://arxiv.org/abs/1805.00932

    Args:
        progress: show a bar on stderr while the weights are fetched.
        pretrained: False for a freshly initialised network.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.
    """
    return _module("models.entrypoints").facebook(
        "resnext101_32x48d_wsl", progress, pretrained, num_classes, network_options
    )


def resnet18_ssl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNet-18, semi-supervised; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNet-18, 11,689,512 parameters, 1.814 GMACs at 224x224.
    Training data: a subset of YFCC100M without labels, selected by a teacher trained on ImageNet-1k, then
    ImageNet-1k.
    Published accuracy (ImageNet): 72.8 / 91.5 % top-1 / top-5.
    Licence of the weights: CC-BY-NC 4.0 (no commercial use).
    Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546

    Args:
        progress: show a bar on stderr while the weights are fetched.
        pretrained: False for a freshly initialised network.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.
    """
    return _module("models.entrypoints").facebook("resnet18_ssl", progress, pretrained, num_classes, network_options)


def resnet50_ssl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNet-50, semi-supervised; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNet-50, 25,557,032 parameters, 4.089 GMACs at 224x224.
    Training data: a subset of YFCC100M without labels, selected by a teacher trained on ImageNet-1k, then
    ImageNet-1k.
    Published accuracy (ImageNet): 79.3 / 94.9 % top-1 / top-5.
    Licence of the weights: CC-BY-NC 4.0 (no commercial use).
    Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546

    Args:
        progress: show a bar on stderr while the weights are fetched.
        pretrained: False for a freshly initialised network.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.
    """
    return _module("models.entrypoints").facebook("resnet50_ssl", progress, pretrained, num_classes, network_options)


def resnext50_32x4d_ssl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-50 32x4d, semi-supervised; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNeXt-50 32x4d, 25,028,904 parameters, 4.23 GMACs at 224x224.
    Training data: a subset of YFCC100M without labels, selected by a teacher trained on ImageNet-1k, then
    ImageNet-1k.
    Published accuracy (ImageNet): 80.3 / 95.4 % top-1 / top-5.
    Licence of the weights: CC-BY-NC 4.0 (no commercial use).
    Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546

    Args:
        progress: show a bar on stderr while the weights are fetched.
        pretrained: False for a freshly initialised network.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.
    """
    return _module("models.entrypoints").facebook(
        "resnext50_32x4d_ssl", progress, pretrained, num_classes, network_options
    )


def resnext101_32x4d_ssl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x4d, semi-supervised; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNeXt-101 32x4d, 44,177,704 parameters, 7.97 GMACs at 224x224.
    Training data: a subset of YFCC100M without labels, selected by a teacher trained on ImageNet-1k, then
    ImageNet-1k.
    Published accuracy (ImageNet): 81 / 95.7 % top-1 / top-5.
    Licence of the weights: CC-BY-NC 4.0 (no commercial use).
    Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546

    Args:
        progress: show a bar on stderr while the weights are fetched.
        pretrained: False for a freshly initialised network.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.
    """
    return _module("models.entrypoints").facebook(
        "resnext101_32x4d_ssl", progress, pretrained, num_classes, network_options
    )


def resnext101_32x8d_ssl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x8d, semi-supervised; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNeXt-101 32x8d, 88,791,336 parameters, 16.414 GMACs at 224x224.
    Training data: a subset of YFCC100M without labels, selected by a teacher trained on ImageNet-1k, then
    ImageNet-1k.
    Published accuracy (ImageNet): 81.7 / 96.1 % top-1 / top-5.
    Licence of the weights: CC-BY-NC 4.0 (no commercial use).
    Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546

    Args:
        progress: show a bar on stderr while the weights are fetched.
        pretrained: False for a freshly initialised network.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.
    """
    return _module("models.entrypoints").facebook(
        "resnext101_32x8d_ssl", progress, pretrained, num_classes, network_options
    )


def resnext101_32x16d_ssl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x16d, semi-supervised; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNeXt-101 32x16d, 194,026,792 parameters, 36.163 GMACs at 224x224.
    Training data: a subset of YFCC100M without labels, selected by a teacher trained on ImageNet-1k, then
    ImageNet-1k.
    Published accuracy (ImageNet): 81.9 / 96.2 % top-1 / top-5.
    Licence of the weights: CC-BY-NC 4.0 (no commercial use).
    Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546

    Args:
        progress: show a bar on stderr while the weights are fetched.
        pretrained: False for a freshly initialised network.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.
    """
    return _module("models.entrypoints").facebook(
        "resnext101_32x16d_ssl", progress, pretrained, num_classes, network_options
    )


def resnet18_swsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNet-18, semi-weakly supervised; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNet-18, 11,689,512 parameters, 1.814 GMACs at 224x224.
    Training data: 64 million of 940 million public Instagram images, selected by a teacher trained on their
    hashtags, then ImageNet-1k.
    Published accuracy (ImageNet): 73.4 / 91.9 % top-1 / top-5.
    Licence of the weights: CC-BY-NC 4.0 (no commercial use).
    Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546

    Args:
        progress: show a bar on stderr while the weights are fetched.
        pretrained: False for a freshly initialised network.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.
    """
    return _module("models.entrypoints").facebook("resnet18_swsl", progress, pretrained, num_classes, network_options)


def resnet50_swsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNet-50, semi-weakly supervised; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNet-50, 25,557,032 parameters, 4.089 GMACs at 224x224.
    Training data: 64 million of 940 million public Instagram images, selected by a teacher trained on their
    hashtags, then ImageNet-1k.
    Published accuracy (ImageNet): 81.2 / 96 % top-1 / top-5.
    Licence of the weights: CC-BY-NC 4.0 (no commercial use).
    Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546

    Args:
        progress: show a bar on stderr while the weights are fetched.
        pretrained: False for a freshly initialised network.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.
    """
    return _module("models.entrypoints").facebook("resnet50_swsl", progress, pretrained, num_classes, network_options)


def resnext50_32x4d_swsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-50 32x4d, semi-weakly supervised; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNeXt-50 32x4d, 25,028,904 parameters, 4.23 GMACs at 224x224.
    Training data: 64 million of 940 million public Instagram images, selected by a teacher trained on their
    hashtags, then ImageNet-1k.
    Published accuracy (ImageNet): 82.2 / 96.3 % top-1 / top-5.
    Licence of the weights: CC-BY-NC 4.0 (no commercial use).
    Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546

    Args:
        progress: show a bar on stderr while the weights are fetched.
        pretrained: False for a freshly initialised network.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.
    """
    return _module("models.entrypoints").facebook(
        "resnext50_32x4d_swsl", progress, pretrained, num_classes, network_options
    )


def resnext101_32x4d_swsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x4d, semi-weakly supervised; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNeXt-101 32x4d, 44,177,704 parameters, 7.97 GMACs at 224x224.
    Training data: 64 million of 940 million public Instagram images, selected by a teacher trained on their
    hashtags, then ImageNet-1k.
    Published accuracy (ImageNet): 83.4 / 96.8 % top-1 / top-5.
    Licence of the weights: CC-BY-NC 4.0 (no commercial use).
    Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546

    Args:
        progress: show a bar on stderr while the weights are fetched.
        pretrained: False for a freshly initialised network.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.
    """
    return _module("models.entrypoints").facebook(
        "resnext101_32x4d_swsl", progress, pretrained, num_classes, network_options
    )


def resnext101_32x8d_swsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x8d, semi-weakly supervised; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNeXt-101 32x8d, 88,791,336 parameters, 16.414 GMACs at 224x224.
    Training data: 64 million of 940 million public Instagram images, selected by a teacher trained on their
    hashtags, then ImageNet-1k.
    Published accuracy (ImageNet): 84.3 / 97.2 % top-1 / top-5.
    Licence of the weights: CC-BY-NC 4.0 (no commercial use).
    Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546

    Args:
        progress: show a bar on stderr while the weights are fetched.
        pretrained: False for a freshly initialised network.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.
    """
    return _module("models.entrypoints").facebook(
        "resnext101_32x8d_swsl", progress, pretrained, num_classes, network_options
    )


def resnext101_32x16d_swsl(progress=True, *, pretrained=True, num_classes=1000, **network_options):
    """ResNeXt-101 32x16d, semi-weakly supervised; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNeXt-101 32x16d, 194,026,792 parameters, 36.163 GMACs at 224x224.
    Training data: 64 million of 940 million public Instagram images, selected by a teacher trained on their
    hashtags, then ImageNet-1k.
    Published accuracy (ImageNet): 84.8 / 97.4 % top-1 / top-5. The public file measures 83.34 / 96.84 %: its
    authors said in 2019 that the wrong weights were saved.
    Licence of the weights: CC-BY-NC 4.0 (no commercial use).
    Paper: Billion-scale semi-supervised learning for image classification, https://arxiv.org/abs/1905.00546

    Args:
        progress: show a bar on stderr while the weights are fetched.
        pretrained: False for a freshly initialised network.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.
    """
    return _module("models.entrypoints").facebook(
        "resnext101_32x16d_swsl", progress, pretrained, num_classes, network_options
    )


def resnext50_32x4d(pretrained=None, progress=True, *, weights=None, num_classes=1000, **network_options):
    """ResNeXt-50 32x4d by torchvision; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNeXt-50 32x4d, 25,028,904 parameters, 4.23 GMACs at 224x224.
    Training data: ImageNet-1k.
    Published accuracy (ImageNet): IMAGENET1K_V1 77.618 / 93.698 %; IMAGENET1K_V2 81.198 / 95.34 % top-1 /
    top-5.
    Licence of the weights: BSD 3-Clause.
    Paper: Aggregated Residual Transformations for Deep Neural Networks, https://arxiv.org/abs/1611.05431

    Args:
        pretrained: True means IMAGENET1K_V1; by default there are no weights, as in torchvision.
        progress: show a bar on stderr while the weights are fetched.
        weights: "IMAGENET1K_V1" or "IMAGENET1K_V2", "DEFAULT" (the newest), the
            same qualified as "ResNeXt50_32X4D_Weights.…", or a member of torchvision's enum.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.

    Raises:
        ValueError: weights that do not exist, or contradictory arguments.
    """
    return _module("models.entrypoints").torchvision(
        "resnext50_32x4d", pretrained, progress, weights, num_classes, network_options
    )


def resnext101_32x8d(pretrained=None, progress=True, *, weights=None, num_classes=1000, **network_options):
    """ResNeXt-101 32x8d by torchvision; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNeXt-101 32x8d, 88,791,336 parameters, 16.414 GMACs at 224x224.
    Training data: ImageNet-1k.
    Published accuracy (ImageNet): IMAGENET1K_V1 79.312 / 94.526 %; IMAGENET1K_V2 82.834 / 96.228 % top-1 /
    top-5.
    Licence of the weights: BSD 3-Clause.
    Paper: Aggregated Residual Transformations for Deep Neural Networks, https://arxiv.org/abs/1611.05431

    Args:
        pretrained: True means IMAGENET1K_V1; by default there are no weights, as in torchvision.
        progress: show a bar on stderr while the weights are fetched.
        weights: "IMAGENET1K_V1" or "IMAGENET1K_V2", "DEFAULT" (the newest), the
            same qualified as "ResNeXt101_32X8D_Weights.…", or a member of torchvision's enum.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.

    Raises:
        ValueError: weights that do not exist, or contradictory arguments.
    """
    return _module("models.entrypoints").torchvision(
        "resnext101_32x8d", pretrained, progress, weights, num_classes, network_options
    )


def resnext101_64x4d(pretrained=None, progress=True, *, weights=None, num_classes=1000, **network_options):
    """ResNeXt-101 64x4d by torchvision; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNeXt-101 64x4d, 83,455,272 parameters, 15.46 GMACs at 224x224.
    Training data: ImageNet-1k.
    Published accuracy (ImageNet): IMAGENET1K_V1 83.246 / 96.454 % top-1 / top-5.
    Licence of the weights: BSD 3-Clause.
    Paper: Aggregated Residual Transformations for Deep Neural Networks, https://arxiv.org/abs/1611.05431

    Args:
        pretrained: True means IMAGENET1K_V1; by default there are no weights, as in torchvision.
        progress: show a bar on stderr while the weights are fetched.
        weights: "IMAGENET1K_V1", "DEFAULT" (the newest), the
            same qualified as "ResNeXt101_64X4D_Weights.…", or a member of torchvision's enum.
        num_classes: other than 1000 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.

    Raises:
        ValueError: weights that do not exist, or contradictory arguments.
    """
    return _module("models.entrypoints").torchvision(
        "resnext101_64x4d", pretrained, progress, weights, num_classes, network_options
    )


def nvidia_resneXt(pretrained=True, pretrained_from_file=None, state_dict_key_map_fn=None, **network_options):
    """ResNeXt-101 32x4d by NVIDIA; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNeXt-101 32x4d, 44,177,704 parameters, 7.97 GMACs at 224x224.
    Training data: ImageNet-1k.
    Published accuracy (ImageNet): 80.43 / 95.06 % top-1 / top-5.
    Licence of the weights: not stated for the weight file (NVIDIA's code: BSD 3-Clause).
    Paper: Aggregated Residual Transformations for Deep Neural Networks, https://arxiv.org/abs/1611.05431

    Args:
        pretrained: False for a freshly initialised network.
        pretrained_from_file: a checkpoint file to load instead; give pretrained=False with it.
        state_dict_key_map_fn: renames the checkpoint's keys, after a "module." prefix is dropped.
        network_options: num_classes, zero_init_residual, replace_stride_with_dilation, norm_layer.

    Raises:
        FileNotFoundError: pretrained_from_file is not there.
        ValueError: both pretrained and pretrained_from_file.
    """
    return _module("models.entrypoints").nvidia(
        "nvidia_resneXt", pretrained, pretrained_from_file, state_dict_key_map_fn, network_options
    )


def nvidia_resnext101_32x4d(pretrained=True, pretrained_from_file=None, state_dict_key_map_fn=None, **network_options):
    """Another name of nvidia_resneXt. ResNeXt-101 32x4d by NVIDIA; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: ResNeXt-101 32x4d, 44,177,704 parameters, 7.97 GMACs at 224x224.
    Training data: ImageNet-1k.
    Published accuracy (ImageNet): 80.43 / 95.06 % top-1 / top-5.
    Licence of the weights: not stated for the weight file (NVIDIA's code: BSD 3-Clause).
    Paper: Aggregated Residual Transformations for Deep Neural Networks, https://arxiv.org/abs/1611.05431

    Args:
        pretrained: False for a freshly initialised network.
        pretrained_from_file: a checkpoint file to load instead; give pretrained=False with it.
        state_dict_key_map_fn: renames the checkpoint's keys, after a "module." prefix is dropped.
        network_options: num_classes, zero_init_residual, replace_stride_with_dilation, norm_layer.

    Raises:
        FileNotFoundError: pretrained_from_file is not there.
        ValueError: both pretrained and pretrained_from_file.
    """
    return _module("models.entrypoints").nvidia(
        "nvidia_resnext101_32x4d", pretrained, pretrained_from_file, state_dict_key_map_fn, network_options
    )


def nvidia_se_resnext101_32x4d(
    pretrained=True, pretrained_from_file=None, state_dict_key_map_fn=None, **network_options
):
    """SE-ResNeXt-101 32x4d by NVIDIA; images (N, 3, H, W) -> logits (N, num_classes).

    Architecture: SE-ResNeXt-101 32x4d, 45,251,128 parameters, 7.971 GMACs at 224x224.
    Training data: ImageNet-1k.
    Published accuracy (ImageNet): 81 / 95.48 % top-1 / top-5.
    Licence of the weights: not stated for the weight file (NVIDIA's code: BSD 3-Clause).
    Paper: Squeeze-and-Excitation Networks, https://arxiv.org/abs/1709.01507

    Args:
        pretrained: False for a freshly initialised network.
        pretrained_from_file: a checkpoint file to load instead; give pretrained=False with it.
        state_dict_key_map_fn: renames the checkpoint's keys, after a "module." prefix is dropped.
        network_options: num_classes, zero_init_residual, replace_stride_with_dilation, norm_layer.

    Raises:
        FileNotFoundError: pretrained_from_file is not there.
        ValueError: both pretrained and pretrained_from_file.
    """
    return _module("models.entrypoints").nvidia(
        "nvidia_se_resnext101_32x4d", pretrained, pretrained_from_file, state_dict_key_map_fn, network_options
    )


def resnext_tiny(progress=True, *, pretrained=True, num_classes=200, **network_options):
    """A small ResNeXt whose weights are in this repository; images (N, 3, 64, 64) -> logits (N, num_classes).

    Architecture: ResNeXt-35 (groups 4, width 8), 1,906,584 parameters, 0.087 GMACs at 64x64.
    Training data: Tiny ImageNet (Stanford CS231n): 100,000 images of 200 ImageNet classes at 64x64; and the scores that
        EfficientNet-Lite2 gives them.
    Accuracy, measured by this project on Tiny ImageNet's validation images: 54.2 / 79.24 % top-1 / top-5.
    Licence of the weights: research use only (trained on images derived from ImageNet).
    Paper: Aggregated Residual Transformations for Deep Neural Networks, https://arxiv.org/abs/1611.05431

    Args:
        progress: nothing is fetched; taken so that every entrypoint takes it.
        pretrained: False for a freshly initialised network.
        num_classes: other than 200 puts a new head on the pretrained features; 0 leaves the head out.
        network_options: zero_init_residual, replace_stride_with_dilation, norm_layer.
    """
    return _module("models.entrypoints").facebook("resnext_tiny", progress, pretrained, num_classes, network_options)


def nvidia_convnets_processing_utils():
    """NVIDIA's processing utilities: an object with ``prepare_input_from_uri`` and ``pick_n_best``, and more.

    ``prepare_input_from_uri(uri, cuda=False)`` -> (1, 3, 224, 224) float32, resized, cropped and normalised.
    ``pick_n_best(predictions, n=5)`` takes probabilities (N, 1000) -> for each sample a list of (label, "97.1%").
    ``labels=`` names another label set ("tiny-imagenet-200") or gives the names; ``from_logits=True`` takes logits.
    Needs numpy and Pillow; fetching a URL also needs validators, and ``plot_predictions`` matplotlib.
    """
    return _module("processing_utils")


def classifier(variant, **options):
    """A callable from images to names: paths, URLs, bytes, PIL images, arrays or tensors, one or many.

    ``classify("photo.jpg", top=5)`` -> the top predictions, each with ``.index``, ``.synset``, ``.label``,
    ``.probability``; a list of images gives a list of such lists, ``batch_size=16`` at a time.
    The checkpoint's own preprocessing, the fastest engine that is installed, and the device are chosen for you.

    Args:
        variant: an entrypoint's name, or a checkpoint's ("resnext50_32x4d.IMAGENET1K_V1").
        options: engine ("auto"; "torch", "onnxruntime", "openvino", "compile": all but torch's are built at their first
            use, once a machine); device; progress; and of images, allow_private (fetch from private addresses too),
            schemes, max_bytes, max_pixels, timeout.

    Raises:
        ValueError: no such variant; near names are suggested.
    """
    return _module("inference.classifier").classifier(variant, **options)
