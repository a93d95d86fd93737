"""channelscope: why a CNN is robust or not, channel by channel."""

__version__ = "0.1.0"
