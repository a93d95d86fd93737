"""Which layer is measured by default, for every classifier of torchvision and some of timm's.

    python -m benchmarks.default_layers [NAME ...]

Weights are random and images few and small: only the structure counts. Printed are the layer, the
kind of what makes the logits, and for networks without such a layer the reason. Names are
``torchvision:NAME`` and ``timm:NAME``; without any, all of torchvision's and a choice of timm's.
"""

import sys
import time
from itertools import chain

import timm
import torch
import torchvision
from torch import nn

from channelscope.errors import UserError
from channelscope.layers.hooks import trace
from channelscope.layers.penultimate import LastLayer

CLASSES = 5
# One of each family that is not in torchvision, or is written otherwise there.
TIMM = """
beit_base_patch16_224 cait_xxs24_224 coat_tiny coatnet_nano_rw_224 convmixer_768_32
convnext_atto convnextv2_atto crossvit_tiny_240 cspresnet50 darknet53 davit_tiny
deit_tiny_distilled_patch16_224 deit_tiny_patch16_224 densenet121 dla34 dm_nfnet_f0 dpn68
edgenext_xx_small efficientformer_l1 efficientnet_b0 efficientvit_b0 eva02_tiny_patch14_224
fastvit_t8 gernet_s ghostnet_100 gmixer_24_224 hardcorenas_a hrnet_w18_small inception_v3
lcnet_050 legacy_seresnet18 levit_128s maxvit_rmlp_pico_rw_256 mixer_s32_224 mixnet_s
mnasnet_small mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0
mobilevit_xxs mvitv2_tiny nf_resnet50 pit_ti_224 poolformer_s12 pvt_v2_b0 regnetx_002 repvgg_a0
res2net50_14w_8s resmlp_12_224 resnest14d resnet18 resnetv2_50 rexnet_100 sebotnet33ts_256
selecsls42b seresnet33ts skresnet18 spnasnet_100 swin_tiny_patch4_window7_224 swinv2_cr_tiny_224
tf_efficientnetv2_b0 tinynet_e twins_svt_small vgg11_bn visformer_tiny vit_tiny_patch16_224
vovnet39a volo_d1_224 wide_resnet50_2 xception41 xcit_nano_12_p16_224
"""
# Too large to be built in a moment, and of the same family as others here.
HUGE = {
    "regnet_y_128gf",
    "vit_h_14",
    "vit_l_16",
    "vit_l_32",
    "convnext_large",
    "swin_b",
    "swin_v2_b",
}


def build_network(name: str) -> tuple[nn.Module, list[int]]:
    """Build a library's network; return it with the sides of images to try, small ones first."""
    library, _, arch = name.partition(":")
    if library == "torchvision":
        options = {"init_weights": False} if arch in ("googlenet", "inception_v3") else {}
        network = torchvision.models.get_model(arch, weights=None, num_classes=CLASSES, **options)
        return network, [64, 224, 299]
    network = timm.create_model(arch, num_classes=CLASSES)
    return network, [64, network.default_cfg["input_size"][1]]


def describe(name: str) -> tuple[bool, str]:
    """Tell whether a network has a default layer, and which, or why it has none."""
    network, sides = build_network(name)
    reason = ""
    for side in sides:
        x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        try:
            trace(network, x)
        except Exception as error:  # images that are too small fail in many ways
            reason = f"{type(error).__name__}: {str(error)[:90]!r}"
            continue
        try:
            last = LastLayer.find(network, x)
        except UserError as error:
            return False, f"{error} ({side} px)"
        weight = "exact" if last.weight is not None else "by gradient"
        return True, f"{last.inputs[0]:<28} {type(last.linear).__name__:<8} {weight} ({side} px)"
    return False, reason


def main(names: list[str]) -> None:
    """Print a line for each network, and how many have a default layer."""
    torch.manual_seed(0)
    ours = torchvision.models.list_models(torchvision.models)
    every = chain(
        (f"torchvision:{name}" for name in ours if name not in HUGE),
        (f"timm:{name}" for name in TIMM.split()),
    )
    names = names or list(every)
    found = 0
    for name in names:
        start = time.perf_counter()
        has_layer, text = describe(name)
        found += has_layer
        seconds = time.perf_counter() - start
        print(f"{'  ' if has_layer else '! '}{name:<42} {text} {seconds:.1f} s", flush=True)
    print(f"{found} of {len(names)} have a default layer")


if __name__ == "__main__":
    main(sys.argv[1:])
