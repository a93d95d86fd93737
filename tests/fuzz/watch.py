"""Watch a reader in a process of its own, so that a hang or a kill is an outcome like any other."""

import gc
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from trees import Tree, remove

from channelscope.errors import UserError, has_controls

SECONDS = 5.0  # more is a hang
MEMORY = 2**30  # bytes above what the process had
LONGEST = 4000  # letters of a sentence: more is a screenful
NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|Cannot allocate memory")
# What no reader does: it runs nothing, sends nothing, changes nothing. Of events of the interpreter
# (sys.addaudithook).
FORBIDDEN = re.compile(
    r"os\.(system|exec|posix_spawn|spawn|fork|forkpty|startfile|putenv|kill|chmod|chown|link|symlink|mkdir|rmdir|"
    r"rename|remove|truncate|setxattr)|subprocess\.Popen|socket\.(connect|bind|getaddrinfo|sendto)|pickle\.find_class|"
    r"shutil\..*|tempfile\..*|ctypes\.dlopen|webbrowser\.open|ftplib\..*|urllib\.Request|winreg\..*|pty\.spawn"
)
CHANGING = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.chmod",
    "tempfile.",
)  # a reader that goes on with what it has read
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Breach(BaseException):
    """Something was about to be done that no reader does; no reader's ``except`` catches it."""


@dataclass(frozen=True)
class Outcome:
    """What a reader made of an input.

    Args:
        kind: "read" or "refused", which are well; or the name of a fault.
        said: the sentence of the refusal, or what the fault is.
        seconds, peak: the time that it computed, and the bytes of memory above those before.
    """

    kind: str
    said: str = ""
    seconds: float = 0.0
    peak: int = 0

    @property
    def well(self) -> bool:
        return self.kind in ("read", "refused")


class Hook:
    """Hear what the interpreter is about to do, and stop what no reader does, while armed."""

    def __init__(self) -> None:
        self.armed, self.allowed = False, ""
        self.breaches: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event == "open":
            path, _, flags = arguments
            if (
                not isinstance(flags, int)
                or not flags & WRITING
                or str(path).startswith((self.allowed, "/dev/null"))
            ):
                return
        elif not FORBIDDEN.fullmatch(event) or (
            event.startswith(CHANGING) and self._inside(arguments[0])
        ):
            return
        self.armed = False  # what follows is ours
        self.breaches.append(f"{event} {arguments!r}"[:300])
        raise Breach(self.breaches[-1])

    def _inside(self, path: Any) -> bool:
        return (
            os.fsdecode(path).startswith(self.allowed)
            if isinstance(path, str | bytes | os.PathLike)
            else False
        )


HOOK = Hook()


def examine(target: Any, tree: Tree, place: Path) -> Outcome:
    """Let a target read a tree, in this process, and say what came of it."""
    tree.write(place)
    HOOK.allowed, HOOK.breaches = f"{place}/", []
    before, start = _memory_before(), time.process_time()
    kind, said = "read", ""
    try:
        HOOK.armed = True
        target.read(place / "in")
        HOOK.armed = False
    except UserError as error:
        HOOK.armed = False
        kind, said = (
            ("refused", str(error))
            if not _wants_memory(error)
            else ("memory", f"asked for too much: {error}")
        )
    except Breach as error:
        kind, said = "breach", str(error)
    except BaseException as error:
        HOOK.armed = False
        kind, said = ("memory" if _wants_memory(error) else "error"), _place_of(error)
    seconds, peak = time.process_time() - start, max(0, _status("VmHWM") - before)
    return _judged(Outcome(kind, said, seconds, peak), tree)


def _judged(outcome: Outcome, tree: Tree) -> Outcome:
    said = outcome.said
    if HOOK.breaches:
        return Outcome("breach", HOOK.breaches[0], outcome.seconds, outcome.peak)
    if outcome.well and outcome.peak > MEMORY:
        return Outcome(
            "memory", f"took {outcome.peak / 2**20:.0f} MB: {said}", outcome.seconds, outcome.peak
        )
    if outcome.kind == "refused" and (
        has_controls(said) or len(said) >= LONGEST or not said.endswith((".", "?", ")"))
    ):
        return Outcome("sentence", repr(said)[:500], outcome.seconds, outcome.peak)
    if outcome.kind == "read" and tree.refuse:
        return Outcome("let in", "read what must be refused", outcome.seconds, outcome.peak)
    return outcome


def _wants_memory(error: BaseException | None) -> bool:
    """Return whether an error, or its cause, is a lack of memory other than the parser's own."""
    while error is not None:
        if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
            frames = traceback.extract_tb(error.__traceback__)
            return not (frames and frames[-1].filename.endswith("ast.py"))
        error = error.__cause__ or error.__context__
    return False


def _place_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in frames
        if "channelscope" in frame.filename
    ]
    last = frames[-1]
    place = f"{Path(last.filename).name}:{last.lineno}, by {' '.join(ours[-3:])}"
    return f"{type(error).__name__}: {error} (at {place})"[:600]


def _status(name: str) -> int:
    """Give a line of the kernel's account of this process, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def _computed(pid: int) -> tuple[float, bool]:
    """Return a process's seconds of computing, and whether it waits for other than a processor."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, True
    return (int(numbers[10]) + int(numbers[11])) / os.sysconf("SC_CLK_TCK"), state != "R"


def _memory_before() -> int:
    """Begin a new count of the highest memory; give what there is."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def confined() -> None:
    """Let this process have no more than so much memory beyond what it has, and be quiet."""
    limit = _status("VmData") + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    sys.addaudithook(HOOK)
    import torch

    torch.set_num_threads(1)


class Watched:
    """A process that reads what it is sent, and is ended and replaced when it does not answer."""

    def __init__(self, targets: dict[str, Any], seconds: float = SECONDS) -> None:
        self.targets, self.seconds = targets, seconds
        self.place = Path(tempfile.mkdtemp(prefix="channelscope-fuzz-")).resolve()
        self.process: Any = None
        self.ours: Connection | None = None

    def read(self, target: str, tree: Tree) -> Outcome:
        """Return the outcome of an input; if the process dies of it, the next gets another."""
        if self.process is None:
            self._start()
        assert self.ours is not None
        self.ours.send((target, tree))
        try:
            if not self._answers():
                self.stop()
                return Outcome("hang", f"no answer in {self.seconds:g} s", self.seconds)
            outcome: Outcome = self.ours.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            status = self.process.exitcode
            self.stop()
            return Outcome("crash", f"the process ended with status {status}")
        if not outcome.well:  # what it left in memory is not the next one's
            self.stop()
        return outcome

    def _answers(self) -> bool:
        """Wait for an answer, within limits of computing time and of waiting time.

        Other programs on the machine, which may keep it waiting for a processor, do not count.
        """
        assert self.ours is not None
        begun = idle = _computed(self.process.pid)[0]
        since = time.monotonic()
        while not self.ours.poll(0.2):
            seconds, waits = _computed(self.process.pid)
            if not waits or seconds > idle:
                idle, since = seconds, time.monotonic()
            if seconds - begun > self.seconds or time.monotonic() - since > self.seconds:
                return False
        return True

    def _start(self) -> None:
        self.ours, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(theirs, self.targets, self.place / "work"), daemon=True
        )
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            assert self.ours is not None
            self.ours.close()
            self.process = self.ours = None

    def close(self) -> None:
        """End the process, and remove its folder."""
        self.stop()
        remove(self.place)


@contextmanager
def watched(
    targets: dict[str, Any], seconds: float = SECONDS
) -> Iterator[Callable[[str, Tree], Outcome]]:
    """Give a function that has an input read, in a process that ends with the context."""
    watching = Watched(targets, seconds)
    try:
        yield watching.read
    finally:
        watching.close()


def _serve(pipe: Connection, targets: dict[str, Any], place: Path) -> None:
    confined()
    gc.disable()  # a cycle that is broken in the midst of a measurement is no fault of the reader
    count = 0
    while True:
        try:
            name, tree = pipe.recv()
        except (EOFError, OSError):
            return
        outcome = examine(targets[name], tree, place)
        if (count := count + 1) % 50 == 0:
            gc.collect()
        pipe.send(outcome)
