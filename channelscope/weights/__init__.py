"""Trained networks in files: our own checkpoints, those of other programs, and those we ship."""

from channelscope.weights.checkpoints import (
    GATE_LOG,
    LOG,
    Checkpoint,
    Gate,
    build,
    check_history,
    is_finite,
    log_columns,
    name_weights,
    versions,
)
from channelscope.weights.loading import load, read_network, save

__all__ = [
    "GATE_LOG",
    "LOG",
    "Checkpoint",
    "Gate",
    "build",
    "check_history",
    "is_finite",
    "load",
    "log_columns",
    "name_weights",
    "read_network",
    "save",
    "versions",
]
