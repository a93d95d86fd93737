"""Runs of the command line that can be killed and troubled: the client of ``faults.server``."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent
PATIENCE = 600.0  # seconds, after which a run counts as hanging


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit status (a signal's number negated), what it printed, its duration."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def said(self) -> list[str]:
        """The lines of the standard error but for progress bars."""
        lines = self.err.replace("\r", "\n").splitlines()
        return [line for line in lines if line.strip() and "%|" not in line]


class Machine:
    """A process that has imported everything, and forks for each run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0
        path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, "-m", "faults.server"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )

    def close(self) -> None:
        """End the process."""
        self.process.communicate(timeout=60)

    def start(
        self,
        words: Sequence[str],
        cwd: Path,
        *troubles: Sequence[Any],
        environment: dict[str, str] | None = None,
    ) -> "Run":
        """Start a command in a folder, with troubles: functions of ``troubles`` with arguments."""
        self.runs += 1
        names = {name: str(self.folder / f"{self.runs}.{name}") for name in ("stdout", "stderr")}
        for name in names.values():  # a run may be killed before it has done anything
            Path(name).touch()
        always = [("few_figures", 3)] if words[0] == "compare" else []
        troubles = (*always, *troubles)
        given = {
            "words": list(words),
            "cwd": str(cwd),
            "troubles": troubles,
            "environment": environment or {},
        }
        child = self.ask({"what": "start", **given, **names})
        return Run(self, child, names, time.monotonic())

    def run(
        self, words: Sequence[str], cwd: Path, *troubles: Sequence[Any], **options: Any
    ) -> Ended:
        """Start a command and wait for its end."""
        return self.start(words, cwd, *troubles, **options).wait()

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request; give the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@dataclass(frozen=True)
class Run:
    """A command that runs."""

    machine: Machine
    child: int
    names: dict[str, str]
    begun: float

    def kill_after(self, seconds: float) -> Ended:
        """Kill the command and its processes (``kill -9``) after a time, unless they have ended."""
        end = self.begun + seconds
        while (ended := self.look()) is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.02))
        if ended is None:
            os.killpg(self.child, signal.SIGKILL)
        return ended or self.wait()

    def wait(self) -> Ended:
        """Wait for the end."""
        while (ended := self.look()) is None:
            if time.monotonic() > self.begun + PATIENCE:
                os.killpg(self.child, signal.SIGKILL)
                raise AssertionError(f"the command hangs: {Path(self.names['stderr']).read_text()}")
            time.sleep(0.01)
        return ended

    def look(self) -> Ended | None:
        """Tell how the command ended; None while it runs."""
        status = self.machine.ask({"what": "look", "child": self.child})
        if status is None:
            return None
        out, err = (
            Path(self.names[name]).read_text(errors="replace") for name in ("stdout", "stderr")
        )
        return Ended(status, out, err, time.monotonic() - self.begun)
