"""channelscope: why a CNN is robust or not, channel by channel.

>>> import channelscope as cs
>>> attack = cs.PGD(eps=8 / 255, steps=20)
>>> str(attack)
'pgd-20'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from channelscope.api import compare, damage, draw_figures, evaluate, film, intervene, relevance
    from channelscope.attacks import APGD, FGSM, PGD
    from channelscope.data import Dataset, as_dataset
    from channelscope.errors import UserError
    from channelscope.explorer import explore
    from channelscope.gates import FeatureSelector, LinearProbe, Selective, TwoLayerProbe, attached
    from channelscope.layers.features import ablated, capture, measure_outside, patched
    from channelscope.layers.hooks import hooked
    from channelscope.networks import normalised
    from channelscope.objectives import Joint, cross_entropy, dlr, margin
    from channelscope.result import Result
    from channelscope.study.reach import measure_reach
    from channelscope.study.study import Study
    from channelscope.sweeps import sweep
    from channelscope.training import Recipe, train
    from channelscope.visualisation import visualise
    from channelscope.weights import load, save
    from channelscope.weights.loading import convert
    from channelscope.weights.zoo import zoo

__version__ = "0.2.0"

# The public face: name -> its module, which is imported when the name is first used.
_MODULES = {
    "compare": "api",
    "damage": "api",
    "draw_figures": "api",
    "evaluate": "api",
    "film": "api",
    "intervene": "api",
    "relevance": "api",
    "APGD": "attacks",
    "FGSM": "attacks",
    "PGD": "attacks",
    "Dataset": "data",
    "as_dataset": "data",
    "UserError": "errors",
    "explore": "explorer",
    "FeatureSelector": "gates",
    "LinearProbe": "gates",
    "Selective": "gates",
    "TwoLayerProbe": "gates",
    "attached": "gates",
    "ablated": "layers.features",
    "capture": "layers.features",
    "measure_outside": "layers.features",
    "patched": "layers.features",
    "hooked": "layers.hooks",
    "normalised": "networks",
    "Joint": "objectives",
    "cross_entropy": "objectives",
    "dlr": "objectives",
    "margin": "objectives",
    "Result": "result",
    "measure_reach": "study.reach",
    "Study": "study.study",
    "sweep": "sweeps",
    "Recipe": "training",
    "train": "training",
    "visualise": "visualisation",
    "load": "weights",
    "save": "weights",
    "convert": "weights.loading",
    "zoo": "weights.zoo",
}

__all__ = [
    "APGD",
    "FGSM",
    "PGD",
    "Dataset",
    "FeatureSelector",
    "Joint",
    "LinearProbe",
    "Recipe",
    "Result",
    "Selective",
    "Study",
    "TwoLayerProbe",
    "UserError",
    "ablated",
    "as_dataset",
    "attached",
    "capture",
    "compare",
    "convert",
    "cross_entropy",
    "damage",
    "dlr",
    "draw_figures",
    "evaluate",
    "explore",
    "film",
    "hooked",
    "intervene",
    "load",
    "margin",
    "measure_outside",
    "measure_reach",
    "normalised",
    "patched",
    "relevance",
    "save",
    "sweep",
    "train",
    "visualise",
    "zoo",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: importing channelscope itself is instant."""
    if name not in _MODULES:
        raise AttributeError(f"module 'channelscope' has no attribute {name!r}")
    value = getattr(import_module(f"channelscope.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
