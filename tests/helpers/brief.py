"""The command line with few kinds of figures: drawing all takes most of a comparison's time."""

import sys

from channelscope import gallery
from channelscope.gallery import Picture, list_figures
from channelscope.result import Result

KINDS = ("relevance", "robustness", "flow", "training", "gates", "masks")


def list_few_figures(result: Result) -> dict[str, Picture]:
    """Return a comparison's figures of these kinds; of other results, which have few, all."""
    pictures = list_figures(result)
    if result.kind != "comparison":
        return pictures
    return {name: picture for name, picture in pictures.items() if picture.plot.name in KINDS}


def few_figures() -> None:
    """Let only some kinds of a comparison's figures be drawn."""
    gallery.list_figures = list_few_figures


if __name__ == "__main__":
    from channelscope.cli import main

    few_figures()
    sys.exit(main(sys.argv[1:]))
