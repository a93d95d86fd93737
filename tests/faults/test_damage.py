"""Files with a bit flipped or their end cut off: read alike, or refused in one sentence."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from channelscope.comparison import Comparison
from channelscope.evaluation import Evaluation
from channelscope.evaluation.progress import Progress
from channelscope.intervention import Interventions

from channelscope.data import load
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


def frames(result: Any) -> Any:
    """Give all that a result holds, in values that can be compared."""
    held = {name: getattr(result, name) for name in result.__dataclass_fields__}
    return {name: _value(value) for name, value in held.items()}


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _value(item) for name, item in value.items()}
    if hasattr(value, "to_csv"):
        return value.to_csv()
    return (value.shape, value.tobytes()) if hasattr(value, "tobytes") else value


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
    evaluation = Evaluation.load(path.parent.parent)
    labels, attacks = list(evaluation.meta["models"]), ["fgsm", "pgd-3"]
    return [
        evaluation.adversarial(path.parent.parent, label, attack).tobytes()
        for label in labels
        for attack in attacks
    ]


def read_by(kind: Any) -> Callable[[Path], Any]:
    return lambda path: frames(kind.load(path.parent))


# file among the results -> which command made it, how it is read
READ: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "net.pt": ("train", checkpoint),
    "digits.npz": ("", images),
    **{
        f"c/{name}": ("compare", read_by(Comparison))
        for name in ("activations.csv", "verdicts.csv", "training.csv")
    },
    **{
        f"c/{name}": ("compare", read_by(Comparison))
        for name in ("arrays.npz", "meta.json", "SHA256SUMS")
    },
    **{
        f"e/{name}": ("evaluate", read_by(Evaluation))
        for name in ("worst.csv", "arrays.npz", "meta.json")
    },
    **{f"i/{name}": ("intervene", read_by(Interventions)) for name in ("curves.csv", "meta.json")},
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


def test_the_record_of_an_evaluation_forgets_what_is_damaged(
    kills: int, fault_seed: int, record: Record, tmp_path: Path
) -> None:
    progress = Progress(tmp_path / "e.partial", {"eps": 0.1})
    for batch in range(20):
        progress.record(
            (0, "fgsm", "fgsm"),
            [4 * batch + i for i in range(4)],
            [batch % 2 == 0, True, False, True],
        )
    whole, (path,) = dict(progress.met[0, "fgsm", "fgsm"]), (tmp_path / "e.partial").glob("met-*")
    content, chance = path.read_bytes(), random.Random(f"{fault_seed} damage progress")
    for _ in range(EACH * kills):
        path.write_bytes(damaged(content, chance))
        known = Progress(tmp_path / "e.partial", {"eps": 0.1}).met
        assert set(known) <= {(0, "fgsm", "fgsm")}
        assert known[0, "fgsm", "fgsm"].items() <= whole.items()
    record.survived("a bit flipped or an end cut off", "progress", EACH * kills)


# file that a run goes on from -> its command, and the flush at which the disk is full
STOPPED = {
    "net.pt.partial": ("train", 5),
    "e.partial/met-0.jsonl": ("evaluate", 11),
    "e.partial/adversarial": ("evaluate", 11),
}


@pytest.mark.parametrize("start", STOPPED)
def test_a_run_that_goes_on_from_a_damaged_file(
    start: str, kills: int, fault_seed: int, place: Place, record: Record
) -> None:
    """It ends with the undisturbed result, or refuses to go on and leaves the file."""
    name, flushes = STOPPED[start]
    command, stopped = COMMANDS[name], place.fresh()
    whole, _ = place.undisturbed(command.words)
    assert place.machine.run(command.words, stopped, ("full_disk", flushes)).status == 2
    file = next(
        path
        for path in stopped.rglob("*")
        if path.is_file() and str(path.relative_to(stopped)).startswith(start)
    )
    file = file.relative_to(stopped)
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
