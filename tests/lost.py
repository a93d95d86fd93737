"""A process that may be killed, for ``test_distributed``: ``lost.py FOLDER WORK`` or ``FOLDER command WORDS``."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from channelscope import cli, distributed


def lost(work: str) -> str:
    """Let the second process be killed while the first works with it; give what the first is told."""
    x = torch.arange(24.0).view(2, 3, 2, 2).requires_grad_()
    try:
        with distributed.join_processes("cpu"):
            y = distributed.synchronise_batchnorm(nn.BatchNorm2d(3))(x)
            if distributed.rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if work == "backward":
                y.sum().backward()
            else:
                distributed.all_gather(y)
    except distributed.ProcessLost as error:
        return str(error)
    return "nothing"


def main() -> int:
    """Write to FOLDER/NUMBER what this process was told or, before it runs a command, its id."""
    folder, work, *words = sys.argv[1:]
    file = Path(folder) / os.environ["RANK"]
    if work == "command":
        file.write_text(str(os.getpid()))
        return cli.main(words)
    file.write_text(lost(work))
    return 0


if __name__ == "__main__":
    sys.exit(main())
