"""Layers of any network, by name: hooked, captured, edited."""
