"""Layers of any network, by name: hooked, captured, edited."""

from channelscope.layers.channels import channel_axis
from channelscope.layers.features import (
    ablated,
    capture,
    capture_activations,
    measure_outside,
    patched,
    pool_features,
)
from channelscope.layers.hooks import (
    LayerError,
    eval_mode,
    get_layer,
    get_logits,
    hooked,
    match_layers,
    named_layers,
    trace,
)
from channelscope.layers.penultimate import LastLayer

__all__ = [
    "LastLayer",
    "LayerError",
    "ablated",
    "capture",
    "capture_activations",
    "channel_axis",
    "eval_mode",
    "get_layer",
    "get_logits",
    "hooked",
    "match_layers",
    "measure_outside",
    "named_layers",
    "patched",
    "pool_features",
    "trace",
]
