"""The network: the same numbers as torchvision's, and what is expected of a backbone."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torchvision
from resnext_hub.models.entrypoints import build
from resnext_hub.models.manifest import Architecture, default_manifest
from resnext_hub.models.resnext import BasicBlock, Bottleneck, ResNeXt, SqueezeExcite
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import ResNet

from ..conftest import randomise

ARCHITECTURES = default_manifest().architectures
SMALL = Architecture("Bottleneck", (1, 2, 1, 1), 4, 16, None, 16, True)
SMALL_SE = Architecture("Bottleneck", (1, 2, 1, 1), 4, 16, 8, 16, True)
SMALL_BASIC = Architecture("BasicBlock", (1, 2, 1, 1), 1, 64, None, 16, True)
WITH_GATE_OR_BASIC = pytest.mark.parametrize("architecture", [SMALL_SE, SMALL_BASIC], ids=["se", "basic"])
SMALL_ONES = pytest.mark.parametrize("architecture", [SMALL, SMALL_SE, SMALL_BASIC], ids=["grouped", "se", "basic"])
TORCHVISION_BLOCKS = {
    "BasicBlock": torchvision.models.resnet.BasicBlock,
    "Bottleneck": torchvision.models.resnet.Bottleneck,
}


def of_torchvision(a: Architecture, **options: object) -> ResNet:
    return ResNet(
        TORCHVISION_BLOCKS[a.block], list(a.layers), groups=a.groups, width_per_group=a.width_per_group, **options
    )  # type: ignore[arg-type]


LIKE_TORCHVISION = [n for n, a in ARCHITECTURES.items() if a.se_channels is None and a.planes == 64]
#: 200 to 830 million parameters: at their full depth among the soak tests, else with a block a stage.
WIDE = [n for n in LIKE_TORCHVISION if ARCHITECTURES[n].groups > 1 and ARCHITECTURES[n].width_per_group > 8]


@pytest.mark.parametrize(
    ("name", "layers"),
    [pytest.param(n, ARCHITECTURES[n].layers, marks=[pytest.mark.soak] * (n in WIDE)) for n in LIKE_TORCHVISION]
    + [(n, (1, 1, 1, 1)) for n in WIDE],
)
def test_logits_are_bit_identical_to_torchvision(name: str, layers: tuple[int, int, int, int]) -> None:
    a = dataclasses.replace(ARCHITECTURES[name], layers=layers)
    with torch.device("meta"):
        ours, theirs = build(a), of_torchvision(a)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    ours.to_empty(device="cpu")
    randomise(ours)
    theirs.load_state_dict(ours.state_dict(), assign=True)  # one copy of 3.3 GB is enough
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, got = theirs.eval()(x), ours.eval()(x)
    assert expected.std() > 0.01
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dilation", [(False, True, True), (False, False, True)])
def test_dilated_logits_are_bit_identical_to_torchvision(dilation: tuple[bool, bool, bool]) -> None:
    a = ARCHITECTURES["resnext50_32x4d"]
    ours = build(a, replace_stride_with_dilation=dilation)
    randomise(ours)
    theirs = of_torchvision(a, replace_stride_with_dilation=list(dilation))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert ours.feature_info[-1] == (2048, 8 if dilation[1] else 16)


def test_squeeze_excite_is_its_formula() -> None:
    gate = SqueezeExcite(64, 16)
    x = torch.randn(2, 64, 5, 7, dtype=torch.float32)
    with torch.no_grad():
        z = x.sum((2, 3)) / 35
        s = F.relu(z @ gate.squeeze.weight.T + gate.squeeze.bias)
        e = 1 / (1 + torch.exp(-(s @ gate.expand.weight.T + gate.expand.bias)))
        expected = torch.einsum("nchw,nc->nchw", x, e)
        torch.testing.assert_close(gate(x), expected, rtol=0, atol=1e-6)


def test_se_network_is_its_formula() -> None:
    """SE-ResNeXt101 with two blocks a stage, written out by hand in float64."""
    network = build(dataclasses.replace(ARCHITECTURES["se_resnext101_32x4d"], layers=(2, 2, 2, 2))).eval()
    randomise(network)
    state = {k: v.double() for k, v in network.state_dict().items()}

    def bn(x: torch.Tensor, p: str) -> torch.Tensor:
        return F.batch_norm(
            x, state[f"{p}.running_mean"], state[f"{p}.running_var"], state[f"{p}.weight"], state[f"{p}.bias"]
        )

    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        y = F.relu(bn(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1"))
        y = F.max_pool2d(y, 3, 2, 1)
        for stage in range(1, 5):
            for block in range(2):
                p, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
                z = F.relu(bn(F.conv2d(y, state[f"{p}.conv1.weight"]), f"{p}.bn1"))
                z = F.relu(bn(F.conv2d(z, state[f"{p}.conv2.weight"], None, stride, 1, 1, 32), f"{p}.bn2"))
                z = bn(F.conv2d(z, state[f"{p}.conv3.weight"]), f"{p}.bn3")
                assert state[f"{p}.squeeze.squeeze.weight"].shape[0] == 16
                s = F.relu(
                    F.linear(z.mean((2, 3)), state[f"{p}.squeeze.squeeze.weight"], state[f"{p}.squeeze.squeeze.bias"])
                )
                g = torch.sigmoid(F.linear(s, state[f"{p}.squeeze.expand.weight"], state[f"{p}.squeeze.expand.bias"]))
                z = z * g[:, :, None, None]
                if block == 0:
                    y = bn(F.conv2d(y, state[f"{p}.downsample.0.weight"], None, stride), f"{p}.downsample.1")
                y = F.relu(z + y)
        expected = F.linear(y.mean((2, 3)), state["fc.weight"], state["fc.bias"])
        got = network.double()(x)
        assert expected.std() > 0.01
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
        # ... and in float32, relative to the logits' size, what float32 can hold.
        got = network.float()(x.float()).double()
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 * max(1, 100 * float(expected.abs().max())))


@SMALL_ONES
def test_every_parameter_receives_a_gradient(architecture: Architecture) -> None:
    network = build(architecture, 10)
    network(torch.randn(4, 3, 64, 64)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_features(name: str) -> None:
    a = ARCHITECTURES[name]
    with torch.device("meta"):
        network = build(a, 0).eval()
        x = torch.empty(1, 3, 128, 128)
        maps = network.forward_intermediates(x)
        shapes = [tuple(m.shape[1:]) for m in maps]
        expected = [(c, 128 // s, 128 // s) for c, s in network.feature_info]
        assert shapes == expected
        assert [s for _, s in network.feature_info] == ([4, 8, 16, 32] if a.stem_pool else [2, 4, 8, 16])
        assert network.forward_features(x).shape == maps[-1].shape
        assert network(x).shape == (1, network.num_features) == (1, a.num_features)


def test_features_and_head_make_forward() -> None:
    network = build(SMALL, 10).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        features = network.forward_features(x)
        assert torch.equal(features, network.forward_intermediates(x)[-1])
        assert torch.equal(network.forward_head(features), network(x))
        pooled = network.forward_head(features, pre_logits=True)
        torch.testing.assert_close(pooled, features.mean((2, 3)))


@WITH_GATE_OR_BASIC
def test_compilers_take_it(architecture: Architecture) -> None:
    network = build(architecture, 10).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)
        assert torch.equal(torch.fx.symbolic_trace(network)(x), expected)
        exported = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},))
        torch.testing.assert_close(exported.module()(x[:1]), expected[:1])
        traced = torch.compile(network, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(traced(x), expected)


@pytest.mark.parametrize(("architecture", "num_classes"), [(SMALL_SE, 10), (SMALL_BASIC, 0)])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_torchscript_takes_it(architecture: Architecture, num_classes: int) -> None:
    network, x = build(architecture, num_classes).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(network)(x), network(x))


@pytest.mark.soak  # 12 s of compiling; the others trace all that it is given
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_inductor_takes_a_stage() -> None:
    """A block with a downsample and one without: `test_compilers_take_it` traces the whole network."""
    stage = build(SMALL, 10).eval().layer2
    x = torch.randn(2, 64, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(stage)(x), stage(x), rtol=1e-4, atol=1e-4)


@SMALL_ONES
def test_gradient_checkpointing_changes_nothing_but_memory(architecture: Architecture) -> None:
    plain = build(architecture, 10)
    randomise(plain)
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing()
    x = torch.randn(4, 3, 64, 64)
    for network in (plain, checkpointed):
        network(x).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name  # type: ignore[arg-type]
    # A recomputed batch is not counted twice.
    for (name, a), b in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_gradient_checkpointing_counts_nothing_where_training_would_not() -> None:
    network = build(SMALL, 10).eval()
    network.set_grad_checkpointing()
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    assert network.bn1.num_batches_tracked == network.layer1[0].bn1.num_batches_tracked == 0


def test_a_compiled_network_may_have_checkpointing_on() -> None:
    network = build(dataclasses.replace(SMALL_BASIC, layers=(1, 1, 1, 1)), 10)
    expected = copy.deepcopy(network)
    network.set_grad_checkpointing()
    x = torch.randn(4, 3, 64, 64)
    torch.compile(network, backend="aot_eager")(x).square().sum().backward()
    expected(x).square().sum().backward()
    torch.testing.assert_close(network.conv1.weight.grad, expected.conv1.weight.grad, rtol=1e-3, atol=1e-3)


def test_gradient_checkpointing_recomputes() -> None:
    network = build(SMALL, 10)
    network.set_grad_checkpointing()
    calls = []
    network.layer2[0].register_forward_pre_hook(lambda *_: calls.append(1))
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize(("block", "last"), [(Bottleneck, "bn3"), (BasicBlock, "bn2")])
def test_zero_init_residual(block: type[Bottleneck] | type[BasicBlock], last: str) -> None:
    network = ResNeXt(block, (1, 1, 1, 1), 10, planes=16, zero_init_residual=True)
    for stage in (network.layer1, network.layer4):
        assert getattr(stage[0], last).weight.abs().max() == 0
        assert stage[0].bn1.weight.min() == 1


def test_norm_layer() -> None:
    network = build(SMALL, 10, norm_layer=lambda channels: nn.GroupNorm(4, channels))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 10)


def test_reset_classifier() -> None:
    network = build(SMALL, 10).double()
    network.reset_classifier(3)
    assert network(torch.randn(1, 3, 64, 64, dtype=torch.float64)).shape == (1, 3)
    network.reset_classifier(0)
    assert network(torch.randn(1, 3, 64, 64, dtype=torch.float64)).shape == (1, network.num_features)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": (1, 1, 1)}, "layers"),
        ({"num_classes": -1}, "num_classes"),
        ({"num_classes": 1.5}, "num_classes"),
        ({"num_classes": True}, "num_classes"),
        ({"replace_stride_with_dilation": (True,)}, "replace_stride_with_dilation"),
        ({"block": BasicBlock, "groups": 2}, "BasicBlock|groups"),
        ({"block": BasicBlock, "replace_stride_with_dilation": (False, False, True)}, "BasicBlock|dilat"),
    ],
)
def test_meaningless_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ResNeXt(**({"block": Bottleneck, "layers": (1, 1, 1, 2), "planes": 16} | arguments))  # type: ignore[arg-type]
