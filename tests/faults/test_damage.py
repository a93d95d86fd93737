"""Files with a bit flipped or their end cut off: read alike, or refused in one sentence."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from channelscope.data import load
from channelscope.result import Result
from channelscope.study.store import Rows, Spec
from channelscope.sweeps.record import read_record
from channelscope.training import Recipe, train
from channelscope.weights import Checkpoint
from faults.conftest import Place, Record
from faults.work import COMMANDS, _plain, different, outcome
from helpers.expect import refusal_allowed
from helpers.runs import TINY, digits

EACH = 12  # damages for each kill that is asked for


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Flip a bit, or leave out the end."""
    if chance.random() < 0.3:
        return content[: chance.randrange(len(content))]
    at = chance.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]


def describe(result: Result) -> Any:
    """Return all that a result holds, in values that can be compared."""
    tables = {name: getattr(result, name).to_csv() for name in result.tables}
    arrays = {name: (array.shape, array.tobytes()) for name, array in result.arrays.items()}
    return result.kind, tables, arrays, result.meta


def checkpoint(path: Path) -> Any:
    return _plain(
        {
            name: getattr(Checkpoint.read(path), name)
            for name in ("state", "meta", "class_names", "image")
        }
    )


def images(path: Path) -> Any:
    data = load(f"npz:{path}")
    return data.classes, {name: part.fingerprint() for name, part in data.parts.items()}


def adversarial(path: Path) -> Any:
    folder = path.parent.parent
    result = Result.load(folder)
    return [
        result.open_adversarial(folder, model, attack).tobytes()
        for model in result.meta["models"]
        for attack in ("fgsm", "pgd-3")
    ]


def saved(path: Path) -> Any:
    return describe(Result.load(path.parent))


SAVED = {
    "compare": "c/alignment.csv c/verdicts.csv c/arrays.npz c/meta.json c/SHA256SUMS",
    "evaluate": "e/worst_case.csv e/arrays.npz e/meta.json",
    "intervene": "i/curves.csv i/arrays.npz i/meta.json",
    "relevance": "r/agreement.csv r/arrays.npz r/meta.json",
    "sweep": "s/result/sweep.csv s/result/meta.json",
}
# file among the results -> which command made it, how it is read
READ: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "net.pt": ("train", checkpoint),
    "digits.npz": ("", images),
    **{file: (name, saved) for name, files in SAVED.items() for file in files.split()},
    "e/adversarial/0": ("evaluate", adversarial),
    "s/sweep.json": ("sweep", read_record),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_of_a_damaged_file(
    name: str, kills: int, fault_seed: int, place: Place, record: Record, tmp_path: Path
) -> None:
    made, read = READ[name]
    if made:
        place.undisturbed(COMMANDS[made].words)
        shutil.copytree(place.results[COMMANDS[made].words], tmp_path, dirs_exist_ok=True)
    else:
        shutil.copy(place.folder / name, tmp_path)
    path = next(tmp_path.glob(f"{name}*"))
    content, wanted = path.read_bytes(), read(path)
    chance = random.Random(f"{fault_seed} damage {name}")
    for number in range(EACH * kills):
        path.write_bytes(changed := damaged(content, chance))
        try:
            with refusal_allowed():
                assert read(path) == wanted, f"damage {number} of {name} changed what is read"
        finally:
            shutil.copy(path, place.folder / "last-damaged")  # to look at
        assert path.read_bytes() == changed
    record.survived("a bit flipped or an end cut off", name, EACH * kills)


def test_rows_that_are_damaged_count_as_not_written(
    kills: int, fault_seed: int, record: Record, tmp_path: Path
) -> None:
    spec: Spec = {"withstood": ((), "|u1"), "activations": ((3,), "<f4")}
    values = {
        "withstood": np.arange(20, dtype=np.uint8) % 2,
        "activations": np.arange(60, dtype=np.float32).reshape(20, 3),
    }
    Rows(tmp_path, 20, spec).write(np.arange(20), values)
    chance = random.Random(f"{fault_seed} damage rows")
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(whole) == 3
    for _ in range(EACH * kills):
        path = chance.choice(sorted(whole))
        path.write_bytes(damaged(whole[path], chance))
        rows = Rows(tmp_path, 20, spec)
        done = rows.done
        for name, array in values.items():
            assert (rows.array(name)[done] == array[done]).all()
        for each, content in whole.items():
            each.write_bytes(content)
    record.survived("a bit flipped or an end cut off", "rows", EACH * kills)


# file that a run goes on from -> its command, and the row or flush at which the disk is full
STOPPED = {
    "net.pt.partial": ("train", 5),
    "e.partial/*/fgsm*/withstood.npy": ("evaluate", 10),
    "e.partial/*/fgsm*/images.npy": ("evaluate", 10),
    "e.partial/*/fgsm*/checksums.npy": ("evaluate", 10),
    "c.partial/*/natural*/activations*.npy": ("compare", 30),
    "i.partial/*/suppressed*/adversarial.npy": ("intervene", 15),
}


@pytest.mark.parametrize("start", STOPPED)
def test_a_run_that_goes_on_from_a_damaged_file(
    start: str, kills: int, fault_seed: int, place: Place, record: Record
) -> None:
    """It ends with the undisturbed result, or refuses to go on and leaves the file."""
    name, writes = STOPPED[start]
    command, stopped = COMMANDS[name], place.fresh()
    whole, _ = place.undisturbed(command.words)
    assert place.machine.run(command.words, stopped, ("full_disk", writes)).status == 2
    file = sorted(stopped.glob(start))[0].relative_to(stopped)
    content, chance = (stopped / file).read_bytes(), random.Random(f"{fault_seed} damage {file}")
    for _ in range(max(1, kills // 3)):
        folder = place.fresh()
        shutil.copytree(stopped, folder, dirs_exist_ok=True)
        (folder / file).write_bytes(damaged(content, chance))
        before = outcome_of_bytes(folder)
        ended = place.machine.run(command.words, folder)
        if ended.status == 0:
            assert not different(outcome(folder), whole)
        else:
            assert (ended.status, len(ended.said)) == (2, 1), ended
            assert outcome_of_bytes(folder) == before
        record.survived("a bit flipped or an end cut off", start)


def outcome_of_bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_damaged_recipe_does_not_go_on_with_a_run(
    kills: int, fault_seed: int, place: Place, record: Record, tmp_path: Path
) -> None:
    """A recipe is the user's text: another number is another recipe, as the run's settings say."""
    recipe, path, out = (
        Recipe.named("digits-resnet18-cifs"),
        tmp_path / "mine.toml",
        tmp_path / "runs" / "net.pt",
    )
    train(recipe, digits(2), out=out, progress=False, **TINY)
    before, content, chance = (
        outcome_of_bytes(out.parent),
        recipe.toml().encode(),
        random.Random(f"{fault_seed} damage recipe"),
    )
    for _ in range(EACH * kills):
        path.write_bytes(damaged(content, chance))
        with refusal_allowed():
            train(str(path), digits(2), out=out, resume=True, progress=False, **TINY)
            given = Recipe.named(str(path)).override(**TINY)
            assert given == recipe.override(**TINY), "the run went on with another recipe"
        assert outcome_of_bytes(out.parent) == before
    record.survived("a bit flipped or an end cut off", "recipe", EACH * kills)
