"""A command in a process that may be killed, for ``test_processes``: ``lost.py FOLDER WORDS``."""

import os
import sys
from pathlib import Path

from channelscope import cli


def main() -> int:
    """Write the process's id to FOLDER/RANK, and run the command."""
    folder, *words = sys.argv[1:]
    (Path(folder) / os.environ["RANK"]).write_text(str(os.getpid()))
    return cli.main(words)


if __name__ == "__main__":
    sys.exit(main())
