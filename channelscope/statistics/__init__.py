"""Statistics of channels: pure functions of arrays."""
