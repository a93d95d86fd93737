"""A disk that is full or closed: one sentence, nothing half written, and the run can go on."""

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from faults.conftest import Place, Record
from faults.machine import Ended
from faults.work import COMMANDS, Command, Outcome, different, outcome

DISK = 8 * 2**20  # bytes


@contextmanager
def disk(place: Place) -> Iterator[Path]:
    """Mount a small disk as the folder of a run; skip the test where that is not allowed."""
    folder = place.fresh()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("disks cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def refused(ended: Ended, *words: str) -> None:
    """Assert that a command ended with one sentence that has one of the words."""
    assert ended.status == 2, ended
    (said,) = ended.said
    assert said.startswith("channelscope: ")
    assert any(word in said for word in words), said
    assert said.endswith((".", "?"))


def nothing_lost(folder: Path, before: Outcome, command: Command) -> None:
    """Assert that what was there is there, with nothing beside it but what a run goes on from."""
    found = {name: held for name, held in outcome(folder).items() if name != "filler"}
    assert not [name for name in found if Path(name).name.startswith(".")]
    if command.earlier:
        own = f"{command.out}.partial"
        found = {name: held for name, held in found.items() if name.partition("/")[0] != own}
        assert not different(found, before)


def gone_on(folder: Path, command: Command, place: Place) -> None:
    """Assert that the same command, undisturbed, ends with the same result."""
    whole, _ = place.undisturbed(command.words)
    ended = place.machine.run(command.words, folder)
    assert (ended.status, ended.said) == (0, []), ended
    assert not different(outcome(folder), whole)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk(name: str, kills: int, fault_seed: int, place: Place, record: Record) -> None:
    command, chance = COMMANDS[name], random.Random(f"{fault_seed} full {name}")
    place.undisturbed(command.words)
    for _ in range(max(1, kills // 5)):
        with disk(place) as folder:
            before = place.earlier(command, folder)
            room = chance.randrange(size_of(place.results[command.words]))
            free = int(
                subprocess.check_output(["df", "--output=avail", "-B1", str(folder)]).split()[-1]
            )
            (folder / "filler").write_bytes(bytes(max(0, free - room)))
            print(f"{room} bytes free")  # noqa: T201
            ended = place.machine.run(command.words, folder)
            refused(ended, "No space left on device", "are free: free space")
            nothing_lost(folder, before, command)
            (folder / "filler").unlink()
            gone_on(folder, command, place)
        record.survived("a full disk", name)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_may_not_be_written_to(name: str, place: Place, record: Record) -> None:
    command = COMMANDS[name]
    with disk(place) as folder:
        before = place.earlier(command, folder)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        refused(
            place.machine.run(command.words, folder),
            "may not be written to",
            "Read-only file system",
        )
        assert not different(outcome(folder), before)
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        gone_on(folder, command, place)
    record.survived("a read-only disk", name)


SHIMS: dict[str, tuple[str, str]] = {
    "a full disk, by a shim": ("full_disk", "No space left on device"),
    "a limit of the size of files": ("file_limit", "File too large"),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("fault", SHIMS)
def test_a_write_that_fails(
    fault: str, name: str, kills: int, fault_seed: int, place: Place, record: Record
) -> None:
    command, chance, (trouble, words) = (
        COMMANDS[name],
        random.Random(f"{fault_seed} {fault} {name}"),
        SHIMS[fault],
    )
    place.undisturbed(command.words)
    for _ in range(max(1, kills // 10)):
        folder = place.fresh()
        before = place.earlier(command, folder)
        # No more than there are.
        writes = {"train": 5, "sweep": 5, "relevance": 8}.get(name, 15)
        value: Any = (
            chance.randint(1, writes) if trouble == "full_disk" else chance.randint(1000, 4000)
        )
        print(trouble, value)  # noqa: T201
        refused(place.machine.run(command.words, folder, (trouble, value)), words)
        nothing_lost(folder, before, command)
        gone_on(folder, command, place)
        record.survived(fault, name)
