"""The command line: it parses and prints; all else is in the functions that it calls.

torch is imported when a command runs, so that ``--help`` comes at once.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout

from channelscope.cli import processes
from channelscope.cli.parser import make_parser
from channelscope.cli.printing import SafeStream
from channelscope.errors import UserError, escape

_NO_MEMORY = (
    "There is not enough memory: use smaller images, fewer --images or, to train, a smaller "
    "--batch-size."
)
# What torch says when memory is short; the last is oneDNN's.
_TORCH_NO_MEMORY = "can't allocate memory|out of memory|could not create a primitive"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    0: done; 1: an error in channelscope, or found by ``doctor``; 2: the user's mistake; 130:
    stopped by Ctrl-C. Of several processes that ``torchrun`` started, only the first writes to the
    standard output.
    """
    argv = (sys.argv[1:] if argv is None else argv) or ["--help"]
    _open_closed_streams()
    os.environ["MPLBACKEND"] = "agg"  # no command shows a window, and another one may be missing
    if processes.number():
        _close_stdout()
    args = _parse(argv)
    args.command = escape(f"channelscope {shlex.join(argv)}")  # it is kept in files
    try:
        processes.check(args)
        with redirect_stdout(SafeStream(sys.stdout)):
            status: int = args.run(args) or 0
        sys.stdout.flush()
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        if not processes.number():
            print(f"\nchannelscope: stopped.{getattr(args, 'after_stop', '')}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has gone, as in 'channelscope layers ... | head'
        _close_stdout()
        return 0
    except MemoryError:
        return _fail(_NO_MEMORY)
    except OSError as error:
        return _fail(f"The system refused {error.filename or 'a file'}: {error.strerror or error}.")
    except Exception as error:
        return _fail_unexpectedly(error)
    return status


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments; of several processes, the first says what is wrong with them."""
    with redirect_stderr(sys.stdout) if processes.number() else nullcontext():
        return make_parser().parse_args(argv)


def _open_closed_streams() -> None:
    """Open streams that the shell has closed, as by ``>&-``: else a file would take their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It gets the lowest number that is free, which is the stream's own.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, closefd=False))


def _close_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(sentence: str, status: int = 2) -> int:
    """Say why the command failed, unless the first of several processes says the same."""
    if not processes.is_said(sentence):
        which = f"process {processes.number()}: " if processes.number() else ""
        print(f"channelscope: {which}{sentence}", file=SafeStream(sys.stderr), flush=True)
    return status


def _fail_unexpectedly(error: Exception) -> int:
    """Say what can be said of an error that nobody foresaw."""
    if isinstance(error, RuntimeError) and re.search(_TORCH_NO_MEMORY, str(error)):
        return _fail(_NO_MEMORY)
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return _fail(
            "A process that reads images was ended by the system: free memory and start the "
            "command again."
        )
    if os.environ.get("CHANNELSCOPE_TRACEBACK"):
        raise error
    reason = (str(error).splitlines() or [""])[0]
    return _fail(
        f"this is an error in channelscope ({type(error).__name__}: {reason}): please report it, "
        "with what CHANNELSCOPE_TRACEBACK=1 shows and 'channelscope doctor' prints.",
        status=1,
    )
