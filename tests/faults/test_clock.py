"""A clock that jumps, by up to a year and back: the same results, and no negative time in a log."""

import csv

import pytest

from faults.conftest import Place, Record
from faults.work import COMMANDS, different, outcome


@pytest.mark.parametrize("name", COMMANDS)
def test_a_clock_that_jumps(
    name: str, kills: int, fault_seed: int, place: Place, record: Record
) -> None:
    command = COMMANDS[name]
    whole, _ = place.undisturbed(command.words)
    for number in range(max(1, kills // 10)):
        folder = place.fresh()
        ended = place.machine.run(command.words, folder, ("jumping_clock", fault_seed + number))
        assert (ended.status, ended.said) == (0, [])
        assert not different(outcome(folder), whole)
        for log in (*folder.rglob("*.pt.csv"), *folder.rglob("training.csv")):
            with log.open(encoding="utf-8") as file:
                assert all(0 <= float(row["seconds"]) < 1e4 for row in csv.DictReader(file))
        record.survived("a clock that jumps", name)


def test_a_log_that_goes_on_while_the_clock_jumps_follows_the_earlier_one(
    fault_seed: int, place: Place, record: Record
) -> None:
    words, folder = (*COMMANDS["train"].words, "--logs", "tensorboard"), place.fresh()
    jumps = ("jumping_clock", fault_seed)
    assert place.machine.run(words, folder, jumps, ("full_disk", 5)).status == 2
    assert place.machine.run(words, folder, jumps).status == 0
    names = sorted(path.name for path in (folder / "net.pt.tensorboard").iterdir())
    assert names == [f"events.out.tfevents.{number:010}" for number in range(2)]
    record.survived("a clock that jumps", "train --logs tensorboard")
