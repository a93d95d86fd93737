"""Gates, which select among a layer's features, and networks that have them.

A gate is a module ``forward(z, labels=None) -> Selection``; labels reach it in training mode only. One that hides the
gradient of its mask says so by an attribute ``detach``, which ``attached`` switches off. ``KINDS`` makes each kind of
gate from plain values: ``KINDS[kind](channels, classes, **options)``.
"""

from collections.abc import Callable

from torch import nn

from channelscope.gates.base import Selection, mask_share
from channelscope.gates.cifs import FeatureSelector, Imgf, LinearProbe, TwoLayerProbe, cifs_gate
from channelscope.gates.eas import ElementScaler
from channelscope.gates.fsr import FeatureRecalibrator
from channelscope.gates.kap import KernelAveragePool
from channelscope.gates.network import (
    Probed,
    Selective,
    attached,
    detached,
    freeze_masks,
    hides_gradient,
    takes_labels,
    with_labels,
)

__all__ = [
    "KINDS",
    "ElementScaler",
    "FeatureRecalibrator",
    "FeatureSelector",
    "Imgf",
    "KernelAveragePool",
    "LinearProbe",
    "Probed",
    "Selection",
    "Selective",
    "TwoLayerProbe",
    "attached",
    "detached",
    "freeze_masks",
    "hides_gradient",
    "mask_share",
    "takes_labels",
    "with_labels",
]

KINDS: dict[str, Callable[..., nn.Module]] = {
    "cifs": cifs_gate,
    "fsr": FeatureRecalibrator,
    "eas": ElementScaler,
    "kap": KernelAveragePool,
}
