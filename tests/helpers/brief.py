"""The command line with few kinds of figures, as drawing all takes most of a comparison's time."""

import sys

from channelscope.figures import catalogue

KINDS = ("relevance", "robustness", "flow", "training", "gates", "masks")


def few_figures() -> None:
    """Let only some kinds of a comparison's figures be drawn."""
    catalogue.KINDS = tuple(kind for kind in catalogue.KINDS if kind.name in KINDS)


if __name__ == "__main__":
    from channelscope.cli import main

    few_figures()
    sys.exit(main(sys.argv[1:]))
