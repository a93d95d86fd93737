"""What figures share: a paper's style, panels and legends, wording. The figures: see ``analyses``.

Figures are drawn from a result's tables alone, never from a network.
"""

from channelscope.figures.paper import save_figure, style

__all__ = ["save_figure", "style"]
