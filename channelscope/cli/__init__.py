"""The command line: parsing and printing only. torch is imported when a command runs, so ``--help`` is instant."""

import os
import re
import shlex
import sys
from collections.abc import Sequence

from channelscope.cli.parser import make_parser
from channelscope.errors import UserError

_NO_MEMORY = "There is not enough memory: use smaller images, fewer --images or a smaller --batch-size."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit status: 0 done, 2 the user's mistake, 130 stopped by Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    args = make_parser().parse_args(argv)
    args.command = f"channelscope {shlex.join(argv)}"
    try:
        args.run(args)
        sys.stdout.flush()
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print(f"\nchannelscope: stopped.{getattr(args, 'after_stop', '')}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in 'channelscope layers ... | head'
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        return _fail(_NO_MEMORY)
    except OSError as error:
        return _fail(f"The system refused {error.filename or 'a file'}: {error.strerror or error}.")
    except Exception as error:
        if isinstance(error, RuntimeError) and re.search("can't allocate memory|out of memory", str(error)):  # torch's
            return _fail(_NO_MEMORY)
        if os.environ.get("CHANNELSCOPE_TRACEBACK"):
            raise
        reason = (str(error).splitlines() or [""])[0]
        print(
            f"channelscope: this is a fault in channelscope ({type(error).__name__}: {reason}): please report it, "
            "with what CHANNELSCOPE_TRACEBACK=1 shows.",
            file=sys.stderr,
        )
        return 1
    return 0


def _fail(sentence: str) -> int:
    print(f"channelscope: {sentence}", file=sys.stderr)
    return 2
