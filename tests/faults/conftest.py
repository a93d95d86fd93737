"""Fixtures of the faults: a machine for commands, data, networks, undisturbed results, a record."""

import itertools
import json
import os
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

import channelscope
from faults.machine import Ended, Machine
from faults.work import COMMANDS, Command, Outcome, outcome
from helpers.runs import write_npz

FEW = 3  # kills a command, where all tests are run


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption(
        "--kills", type=int, default=FEW, help="how many kills a command (default: %(default)s)"
    )
    group.addoption(
        "--fault-seed", type=int, default=2102, help="of what chance decides (default: %(default)s)"
    )
    group.addoption(
        "--fault-record", metavar="FILE", help="write what was tried, if all of it was survived"
    )


@dataclass
class Record:
    """What was tried and survived: fault -> command -> how often."""

    counts: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def survived(self, fault: str, command: str, times: int = 1) -> None:
        self.counts[fault][command] += times

    def lines(self) -> list[str]:
        """Lay the record out as a table."""
        rows = [
            (fault, command, str(n))
            for fault, by in self.counts.items()
            for command, n in by.items()
        ]
        widths = [
            max(map(len, column))
            for column in zip(*[("fault", "command", "survived"), *rows], strict=True)
        ]
        total = ("all", "", str(sum(int(n) for *_, n in rows)))
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [("fault", "command", "survived"), *rows, total]
        ]


RECORD = Record()


@pytest.fixture(scope="session")
def record() -> Record:
    return RECORD


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> int:
    """How many kills, and other things that chance decides, a command."""
    return request.config.getoption("kills", FEW)


@pytest.fixture(scope="session")
def fault_seed(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("fault_seed", 2102)


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    """Say what was tried, and keep the record of a run in which all went well."""
    if not RECORD.counts or config.getoption("kills", FEW) == FEW:
        return
    terminalreporter.section(f"faults survived, seed {config.getoption('fault_seed')}")
    for line in RECORD.lines():
        terminalreporter.write_line(line)
    file, stats = config.getoption("fault_record"), terminalreporter.stats
    if (
        file
        and exitstatus == 0
        and not any(stats.get(kind) for kind in ("failed", "error", "deselected"))
    ):
        skipped = sorted({str(report.longrepr[2]) for report in stats.get("skipped", ())})
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(
            json.dumps(_described(config) | {"skipped": skipped}, indent=1) + "\n", "utf-8"
        )
        terminalreporter.write_line(f"written to {file}")


def _described(config: pytest.Config) -> dict[str, Any]:
    return {
        "command": "make faults",
        "survived": {fault: dict(by) for fault, by in RECORD.counts.items()},
        "seed": config.getoption("fault_seed"),
        "versions": {"channelscope": channelscope.__version__, "torch": torch.__version__}
        | {"python": platform.python_version(), "system": platform.system()},
        "hardware": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "date": datetime.now(UTC).date().isoformat(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in info.read_text().splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()


@dataclass
class Place:
    """A folder with data and networks, and beside them a folder for each run."""

    machine: Machine
    folder: Path
    whole: dict[tuple[str, ...], tuple[Outcome, Ended]] = field(default_factory=dict)
    results: dict[tuple[str, ...], Path] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def fresh(self) -> Path:
        """Make the folder of another run."""
        path = self.folder / f"run-{next(self.numbers)}"
        path.mkdir()
        return path

    def undisturbed(self, words: tuple[str, ...]) -> tuple[Outcome, Ended]:
        """Run a command that is left alone, once; give what it writes, and how it ended."""
        if words not in self.whole:
            folder = self.fresh()
            ended = self.machine.run(words, folder)
            assert (ended.status, ended.said) == (0, []), ended
            self.whole[words], self.results[words] = (outcome(folder), ended), folder
        return self.whole[words]

    def earlier(self, command: Command, folder: Path) -> Outcome:
        """Put another result where the command writes, if allowed; return what is there."""
        if command.earlier:
            wanted, _ = self.undisturbed(command.earlier)
            ended = self.machine.run(command.earlier, folder)
            assert ended.status == 0
            assert outcome(folder) == wanted
        return outcome(folder)


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    yield machine
    machine.close()


@pytest.fixture(scope="session")
def place(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    write_npz(folder)
    place = Place(machine, folder)
    (folder / "train").mkdir()
    for method in ("at", "cifs"):
        words = ["train", "--method", method, *COMMANDS["train"].words[3:]]
        words[words.index("net.pt")] = f"../{method}.pt"
        begun = time.monotonic()
        ended = machine.run(words, folder / "train")
        assert ended.status == 0, (ended, time.monotonic() - begun)
    return place
