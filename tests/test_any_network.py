"""Networks of torchvision and timm, untouched: any layer is measured, wherever its channels are."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import channelscope as cs
from channelscope.layers.features import capture_activations
from channelscope.layers.hooks import hooked, match_layers
from channelscope.scorers import gradient

pytestmark = pytest.mark.slow

CLASSES = 3


def from_torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, num_classes=CLASSES)


def from_timm(name: str, **options: float) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=CLASSES, **options)


@dataclass(frozen=True)
class Case:
    """A network, the layers to look at, and the number of channels of each."""

    make: Callable[[], nn.Module]
    layers: dict[str, int]
    last: bool = False  # its channels are, in all of these layers


NETWORKS = {
    "ResNet-18": Case(
        from_torchvision("resnet18"), {"relu": 64, "layer2.1.conv1": 128, "layer4": 512}
    ),
    "VGG-11": Case(
        from_timm("vgg11_bn", mlp_ratio=0.03),
        {"features.0": 64, "features.13": 256, "features.28": 512},
    ),
    "MobileNetV3": Case(
        from_torchvision("mobilenet_v3_small"),
        {"features.0": 16, "features.4.block.2": 96, "features.12": 576},
    ),
    "EfficientNet-B0": Case(
        from_torchvision("efficientnet_b0"),
        {"features.0.2": 32, "features.4.0.block.2": 240, "features.8": 1280},
    ),
    "DenseNet-121": Case(
        from_torchvision("densenet121"),
        {"features.denseblock1": 256, "features.transition2.pool": 256, "features.norm5": 1024},
    ),
    "ConvNeXt, inside": Case(
        from_torchvision("convnext_tiny"),
        {"features.1.0.block.2": 96, "features.3.1.block.4": 768, "features.7.2.block.5": 768},
        last=True,
    ),
    "ConvNeXt": Case(
        from_timm("convnext_atto"), {"stem": 40, "stages.1.blocks.0": 80, "stages.3": 320}
    ),
    "ViT": Case(
        from_timm("vit_tiny_patch16_224", img_size=32, patch_size=8),
        {"patch_embed": 192, "blocks.3.mlp.act": 768, "blocks.11": 192},
        last=True,
    ),
    "Swin": Case(
        from_torchvision("swin_t"),
        {"features.0": 96, "features.2.reduction": 192, "features.5.3.mlp": 384},
        last=True,
    ),
}
networks = pytest.mark.parametrize("case", NETWORKS.values(), ids=NETWORKS.keys())


def data(n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(n, 3, 32, 32, generator=generator), torch.arange(n) % CLASSES


@networks
def test_compare_measures_three_layers(case: Case) -> None:
    result = cs.compare(
        {"net": case.make().eval()},
        data(),
        attack="fgsm",
        attacks=[],
        eps=8 / 255,
        layers=list(case.layers),
        replicates=20,
        progress=False,
    )
    channels = result.activations.groupby("layer", sort=False)["channel"].nunique()
    assert channels.to_dict() == case.layers
    assert list(result.meta["models"]["net"]["layers"]) == list(case.layers)
    numbers = result.activations[["layer", "magnitude", "frequency", "relevance"]]
    assert np.isfinite(numbers.drop(columns="layer")).all(axis=None)
    assert (numbers["relevance"].abs().groupby(numbers["layer"]).max() > 0).all()


@pytest.mark.parametrize("name", ["ResNet-18", "ConvNeXt, inside", "ViT", "Swin"])
def test_gradient_is_how_the_logit_changes_with_the_channel_wherever_it_lies(name: str) -> None:
    case = NETWORKS[name]
    net, (x, y) = case.make().eval().double(), data(2)
    x, layer = x.double(), list(case.layers)[1]
    found = gradient(net, [layer], x, y)[layer]
    channel = int(found.abs().amax(0).argmax())
    axis = -1 if case.last else 1

    def moved(by: float) -> tuple[Tensor, Tensor]:
        """Move one channel at every position; return the classes' logits and its activation."""

        def move(z: Tensor) -> Tensor:
            z = z.clone()
            z.movedim(axis, 0)[channel] += by
            return z

        with torch.no_grad(), hooked(net, {layer: move}), capture_activations(net, layer) as a:
            logits = net(x)
        return logits.gather(1, y.unsqueeze(1)).squeeze(1), a[layer][:, channel]

    (above, a_above), (below, a_below) = moved(1e-5), moved(-1e-5)
    torch.testing.assert_close(a_above - a_below, torch.full((2,), 2e-5, dtype=torch.float64))
    torch.testing.assert_close((above - below) / 2e-5, found[:, channel], rtol=1e-4, atol=1e-8)


def test_patterns_find_the_blocks_of_any_network() -> None:
    net, (x, _) = NETWORKS["ViT"].make().eval(), data(1)
    assert match_layers(net, ["blocks.?"], x) == [f"blocks.{index}" for index in range(10)]
    assert match_layers(net, ["blocks.1?.mlp.fc[12]"], x) == [
        f"blocks.{block}.mlp.fc{index}" for block in (10, 11) for index in (1, 2)
    ]
