"""``kill -9`` at random moments: a run killed repeatedly ends with the undisturbed result."""

import random
import signal
from pathlib import Path

import pytest

from channelscope.result import Result
from faults.conftest import Place, Record
from faults.machine import Ended
from faults.work import COMMANDS, Command, Outcome, different, outcome

PER_ROUND = 6  # kills, after which the run is left alone


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_that_is_killed_ends_with_the_undisturbed_result(
    name: str, kills: int, fault_seed: int, place: Place, record: Record
) -> None:
    command = COMMANDS[name]
    whole, ended = place.undisturbed(command.words)
    done, number = 0, 0
    while done < kills:
        seed = f"{fault_seed} {name} {number}"
        chance, folder = random.Random(seed), place.fresh()
        print(f"round {seed!r}")  # noqa: T201
        before = place.earlier(command, folder) if chance.random() < 0.4 else {}
        done += killed(name, folder, before, min(PER_ROUND, kills - done), chance, place)
        last = place.machine.run(command.words, folder)
        assert (last.status, last.said) == (0, []), f"round {seed!r}: {last}"
        assert not different(outcome(folder), whole), f"round {seed!r}"
        assert last.out.splitlines() == ended.out.splitlines(), f"round {seed!r}"
        number += 1
    record.survived("kill -9", name, done)


def killed(
    name: str, folder: Path, before: Outcome, times: int, chance: random.Random, place: Place
) -> int:
    """Start and kill a command, up to a number of times or to its end; return the kills."""
    command = COMMANDS[name]
    for kill in range(times):
        ended = killed_once(command, folder, chance, place)
        if ended.status == 0:
            return kill
        assert ended.status == -signal.SIGKILL, ended
        if chance.random() < 0.5:
            check_readable(name, folder, before, place)
    return times


def killed_once(command: Command, folder: Path, chance: random.Random, place: Place) -> Ended:
    """Start a command and kill it at some moment, or just as it does something to files."""
    if chance.random() < 0.5:
        _, whole = place.undisturbed(command.words)
        moment = chance.uniform(0, whole.seconds)
        print(f"killed after {moment:.3f} s")  # noqa: T201
        return place.machine.start(command.words, folder).kill_after(moment)
    number = chance.randint(1, operations(command, place))
    print(f"killed at operation {number} on files")  # noqa: T201
    return place.machine.run(command.words, folder, ("kill_at_file_operation", number, str(folder)))


def operations(command: Command, place: Place) -> int:
    """Count what an undisturbed run does to files of its folder."""
    key = ("operations", *command.words)
    if key not in place.whole:
        folder, counted = place.fresh(), place.folder / "counted"
        ended = place.machine.run(
            command.words, folder, ("count_file_operations", str(counted), str(folder))
        )
        place.whole[key] = ({"operations": counted.stat().st_size}, ended)
    return place.whole[key][0]["operations"]


def check_readable(name: str, folder: Path, before: Outcome, place: Place) -> None:
    """Check that what is read after a kill is the earlier result or the new one, whole."""
    command = COMMANDS[name]
    if not before:
        return
    Result.load(folder / command.out)
    whole, _ = place.undisturbed(command.words)
    found = {
        path: held
        for path, held in outcome(folder).items()
        if path.partition("/")[0] == command.out
    }
    drawn = {path: held for path, held in found.items() if not Path(path).name.startswith(".")}
    assert not different(drawn, before) or not different(drawn, whole)
