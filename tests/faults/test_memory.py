"""No memory, in one process, in one of two, in an image reader: one sentence; the run goes on."""

import random
import signal
import socket
from pathlib import Path

import pytest
from PIL import Image

from faults.conftest import Place, Record
from faults.work import COMMANDS, different, outcome
from helpers.runs import digits

SHORT = "There is not enough memory"
TROUBLES = {
    **{
        f"train, {kind}": ("train", ("no_memory_at_step", 5, 0, kind))
        for kind in ("python", "torch")
    },
    **{
        f"sweep, {kind}": ("sweep", ("no_memory_at_step", 5, 0, kind))
        for kind in ("python", "torch")
    },
    **{name: (name, ("no_memory_at_batch", 2)) for name in ("evaluate", "compare", "intervene")},
}


@pytest.mark.parametrize("case", TROUBLES)
def test_no_memory_at_some_point(case: str, place: Place, record: Record) -> None:
    name, trouble = TROUBLES[case]
    command, folder = COMMANDS[name], place.fresh()
    whole, _ = place.undisturbed(command.words)
    before = place.earlier(command, folder)
    ended = place.machine.run(command.words, folder, trouble)
    assert (ended.status, len(ended.said)) == (2, 1), ended
    assert SHORT in ended.said[0]
    found = {
        path: held
        for path, held in outcome(folder).items()
        if path.partition("/")[0] != f"{command.out}.partial"
    }
    assert not before or not different(found, before)
    assert place.machine.run(command.words, folder).status == 0
    assert not different(outcome(folder), whole)
    record.survived("no memory", name)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_limit_of_the_memory(
    name: str, kills: int, fault_seed: int, place: Place, record: Record
) -> None:
    """The system refuses memory at any request; if compiled code crashes, that counts as a kill."""
    command, chance = COMMANDS[name], random.Random(f"{fault_seed} memory {name}")
    whole, _ = place.undisturbed(command.words)
    for _ in range(max(1, kills // 5)):
        folder, more = place.fresh(), chance.randrange(40 * 2**20)
        print(f"{more} bytes more")  # noqa: T201
        ended = place.machine.run(command.words, folder, ("little_memory", more))
        assert "Traceback" not in ended.err
        if ended.status != 0:
            assert ended.status in (2, -signal.SIGSEGV, -signal.SIGABRT), ended
            assert len([line for line in ended.said if line.startswith("channelscope: ")]) == (
                ended.status == 2
            ), ended
            assert place.machine.run(command.words, folder).status == 0
        assert not different(outcome(folder), whole)
        record.survived("a limit of the memory", name)


def together(
    place: Place, folder: Path, *troubles: tuple[object, ...]
) -> list[tuple[int, list[str]]]:
    """Train in two processes; give how each ended, and what it said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    runs = [
        place.machine.start(
            COMMANDS["train"].words, folder, *troubles, environment=shared | {"RANK": str(rank)}
        )
        for rank in range(2)
    ]
    return [(ended.status, ended.said) for ended in (run.wait() for run in runs)]


def test_no_memory_in_one_of_two_processes(place: Place, record: Record) -> None:
    whole, folder = place.fresh(), place.fresh()
    assert together(place, whole) == [(0, []), (0, [])]
    (first, told), (second, said) = together(place, folder, ("no_memory_at_step", 5, 1, "torch"))
    assert (first, second) == (2, 2)
    assert said[-1].startswith(f"channelscope: process 1: {SHORT}")
    assert told[-1].startswith("channelscope: Another process of this run has ended")
    assert sorted(outcome(folder)) == ["net.pt.csv", "net.pt.partial"]
    assert together(place, folder) == [(0, []), (0, [])]
    assert not different(outcome(folder), outcome(whole))
    record.survived("no memory", "train, one of two processes")


def test_a_process_that_reads_images_is_killed(place: Place, record: Record) -> None:
    folder, data = place.fresh(), digits(2).test
    for index, image in enumerate(data.images):
        path = place.folder / "images" / str(int(data.labels[index])) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    words = (
        "evaluate", "--models", "../at.pt", "--data", "imagefolder:../images", "--stream",
        "--attacks", "fgsm", "--checks", "0", "--eps", "0.1", "--batch-size", "4", "--out", "e",
        "--device", "cpu", "-q",
    )  # fmt: skip
    whole, _ = place.undisturbed(words)
    ended = place.machine.run(words, folder, ("killed_reader", 1))
    assert (ended.status, len(ended.said)) == (2, 1), ended
    assert "A process that reads images was ended by the system" in ended.said[0]
    assert place.machine.run(words, folder).status == 0
    assert not different(outcome(folder), whole)
    record.survived("no memory", "evaluate, a process that reads images")
