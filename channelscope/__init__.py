"""channelscope: why a CNN is robust or not, channel by channel.

>>> import channelscope as cs
>>> attack = cs.PGD(eps=8 / 255, steps=20)
>>> str(attack)
'pgd-20'
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# The public face, by module. Everything is imported at its first use, so that importing channelscope is instant.
_FACE = {
    "attacks": ("APGD", "FGSM", "PGD"),
    "layers.features": ("ablated", "capture"),
    "weights": ("load",),
    "weights.converters": ("convert",),
    "weights.zoo": ("zoo",),
    "comparison": ("Comparison", "compare"),
    "errors": ("UserError",),
    "evaluation": ("Evaluation", "evaluate"),
    "explorer": ("explore",),
    "intervention": ("Interventions", "intervene"),
    "objectives": ("Joint", "cross_entropy", "dlr", "margin"),
    "scorers": ("relevance",),
    "gates": ("FeatureSelector", "LinearProbe", "Selective", "TwoLayerProbe", "attached"),
    "sweeps": ("sweep",),
    "training": ("Recipe", "train"),
}
_HOME = {name: module for module, names in _FACE.items() for name in names}

if TYPE_CHECKING:
    from channelscope.attacks import APGD, FGSM, PGD
    from channelscope.comparison import Comparison, compare
    from channelscope.errors import UserError
    from channelscope.evaluation import Evaluation, evaluate
    from channelscope.explorer import explore
    from channelscope.gates import FeatureSelector, LinearProbe, Selective, TwoLayerProbe, attached
    from channelscope.intervention import Interventions, intervene
    from channelscope.layers.features import ablated, capture
    from channelscope.objectives import Joint, cross_entropy, dlr, margin
    from channelscope.scorers import relevance
    from channelscope.sweeps import sweep
    from channelscope.training import Recipe, train
    from channelscope.weights import load
    from channelscope.weights.converters import convert
    from channelscope.weights.zoo import zoo

__all__ = [
    "APGD",
    "FGSM",
    "PGD",
    "Comparison",
    "Evaluation",
    "FeatureSelector",
    "Interventions",
    "Joint",
    "LinearProbe",
    "Recipe",
    "Selective",
    "TwoLayerProbe",
    "UserError",
    "ablated",
    "attached",
    "capture",
    "compare",
    "convert",
    "cross_entropy",
    "dlr",
    "evaluate",
    "explore",
    "intervene",
    "load",
    "margin",
    "relevance",
    "sweep",
    "train",
    "zoo",
]


class _Face(ModuleType):
    """The package. Importing ``channelscope.capture`` binds that module here, where the function shall be."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"channelscope.{_HOME[name]}"), name)
    raise AttributeError(f"module 'channelscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
