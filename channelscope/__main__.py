"""``python -m channelscope``."""

import sys

from channelscope.cli import main

if __name__ == "__main__":
    sys.exit(main())
