"""Gates, which select among a layer's features, and networks that have them.

A gate is a module ``forward(z, labels=None) -> Selection``; labels reach its mask in training mode
only, which it announces by an attribute ``labelled = True``. A gate that hides the gradient of its
mask has an attribute ``detach``, which ``attached`` switches off. A gate whose mask can be frozen
makes it in a method ``importance``.

A kind of gate is one module here with a builder that ``@register_gate(name, help=...)`` registers;
``KINDS[name].build(channels, classes, **options)`` makes such a gate of plain values.
"""

from channelscope.errors import import_modules
from channelscope.gates.base import KINDS, GateKind, Selection, mask_share, register_gate
from channelscope.gates.cifs import FeatureSelector, LinearProbe, TwoLayerProbe
from channelscope.gates.eas import ElementScaler
from channelscope.gates.fsr import FeatureRecalibrator
from channelscope.gates.importance import Imgf, Importance
from channelscope.gates.kap import KernelAveragePool
from channelscope.gates.network import (
    Probed,
    Selective,
    attached,
    detached,
    freeze_masks,
    hides_gradient,
    hold_masks,
    takes_labels,
    with_labels,
)

__all__ = [
    "KINDS",
    "ElementScaler",
    "FeatureRecalibrator",
    "FeatureSelector",
    "GateKind",
    "Imgf",
    "Importance",
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
    "hold_masks",
    "mask_share",
    "register_gate",
    "takes_labels",
    "with_labels",
]

import_modules(__name__, __path__)  # every kind registers itself
