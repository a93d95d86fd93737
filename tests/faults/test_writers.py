"""Two runs that write to one place: one works, and the other says so before it does anything."""

import os
import signal
import time
from pathlib import Path

import pytest

from channelscope.files import hidden_name
from faults.conftest import Place, Record
from faults.machine import Run
from faults.work import COMMANDS, different, outcome

LOCKED = {"sweep": "s/sweep.json"}  # what the lock is named by, where it is not the place itself


def lock_of(name: str, folder: Path) -> Path:
    path = folder / LOCKED.get(name, COMMANDS[name].out)
    return path.with_name(hidden_name(path, "lock"))


def halted(name: str, folder: Path, place: Place) -> Run:
    """Start a run and hold it up as soon as it has its lock."""
    run = place.machine.start(COMMANDS[name].words, folder)
    while not lock_of(name, folder).exists():
        assert run.look() is None, "the run ended without a lock"
        time.sleep(0.005)
    os.killpg(run.child, signal.SIGSTOP)
    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_of_two_runs_one_is_refused_at_once_and_the_other_is_not_disturbed(
    name: str, place: Place, record: Record
) -> None:
    command, folder = COMMANDS[name], place.fresh()
    whole, _ = place.undisturbed(command.words)
    run = halted(name, folder, place)
    before = outcome(folder)
    ended = place.machine.run(command.words, folder)
    assert ended.status == 2
    (said,) = ended.said
    assert said.startswith("channelscope: Another run is writing to ")
    assert said.endswith(": wait until it has ended, or choose another --out.")
    assert ended.out == ""
    assert not different(outcome(folder), before)
    os.killpg(run.child, signal.SIGCONT)
    assert run.wait().status == 0
    assert not different(outcome(folder), whole)
    record.survived("a second run at the same place", name)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_lock_of_a_run_that_was_killed_stops_nobody(
    name: str, place: Place, record: Record
) -> None:
    command, folder = COMMANDS[name], place.fresh()
    whole, _ = place.undisturbed(command.words)
    run = halted(name, folder, place)
    os.killpg(run.child, signal.SIGKILL)
    assert run.wait().status == -signal.SIGKILL
    assert lock_of(name, folder).exists()
    assert place.machine.run(command.words, folder).status == 0
    assert not different(outcome(folder), whole)
    record.survived("a lock left by a kill", name)


def test_figures_wait_for_the_comparison_that_is_being_replaced(
    place: Place, record: Record
) -> None:
    folder = place.fresh()
    place.earlier(COMMANDS["compare"], folder)
    run = halted("compare", folder, place)
    ended = place.machine.run(("figures", "c", "--only", "c1", "-q"), folder)
    assert ended.status == 2
    assert ended.said[0].startswith("channelscope: Another run is writing to ")
    os.killpg(run.child, signal.SIGKILL)
    run.wait()
    assert place.machine.run(("figures", "c", "--only", "c1", "-q"), folder).status == 0
    record.survived("a second run at the same place", "figures")
