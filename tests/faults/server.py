"""Run commands in forks of one process that has imported everything: ``python -m faults.server``.

Reads requests from its standard input, a line of JSON each, and answers each with a line. What is
to go wrong in a run is done to the child, before its command begins.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from channelscope.data import blocks
from faults import troubles

# All that commands import late; nothing of it computes, so no pool of threads is there to be lost
# in the fork.
MODULES = [
    "channelscope.cli",
    "channelscope.cli.commands",
    "channelscope.api",
    "channelscope.sweeps",
    "channelscope.training",
    "channelscope.weights.zoo",
    "sklearn.datasets",
    "scipy.stats",
    "matplotlib.backends.backend_agg",
    "torch._dynamo",
    "torch.fx",
    "matplotlib.backends.backend_pdf",
    "channelscope.weights.loading",
    "torch.distributed",
    "PIL.Image",
    "unittest.mock",
]


def start(request: dict[str, Any]) -> int:
    """Start a command in a fork, in a process group of its own; give its id."""
    if (child := os.fork()) == 0:
        os._exit(_run(request))
    with suppress(OSError):  # the child does it too: whoever is first
        os.setpgid(child, child)
    return child


def _run(request: dict[str, Any]) -> int:
    """Run a command as the console does, with a trouble prepared; give its exit status."""
    from channelscope import cli

    os.setpgid(0, 0)
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, "r" if number == 0 else "w") for number in range(3)
    )
    status = 1
    try:
        for name, *values in request["troubles"]:
            getattr(troubles, name)(*values)
        status = cli.main(request["words"])
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return status


def look(request: dict[str, Any]) -> int | None:
    """Give the exit status of a command, a signal as a negative number; None while it runs."""
    child, status = os.waitpid(request["child"], os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if child else None


def main() -> None:
    """Answer requests until there are no more."""
    torch.set_num_threads(1)
    for module in MODULES:
        importlib.import_module(module)
    blocks.MOST = 4  # so that a few images are several blocks
    answers: dict[str, Callable[[dict[str, Any]], int | None]] = {"start": start, "look": look}
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        channel.write(json.dumps(answers[request["what"]](request)) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
