"""The networks that ship with the package: ``zoo:NAME`` stands for the file of one.

Their files hold weights in half precision, which are computed with in single precision;
``results.csv`` has what was measured of each, by the commands of docs/RESULTS.md.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from channelscope.errors import UserError, suggest
from channelscope.reading import read_table

if TYPE_CHECKING:
    import pandas as pd

HERE = Path(__file__).parent
NAMES = ("cifar10-standard", "cifar10-at", "cifar10-cas", "cifar10-cifs")
RESULTS = HERE / "results.csv"
TRAINED_ON = "CIFAR-10 (JPEG)"  # all of CIFAR-10's images, coded as JPEG
_PREFIX = "zoo:"
_ENDINGS = (".pth", ".pt", ".th", ".ckpt")  # before .tar, as old programs add it


def zoo() -> "pd.DataFrame":
    """List the networks that ship with the package, and how accurate each was measured to be.

    Returns:
        A row for each network and attack. Columns: model (``zoo:NAME``), recipe, data (that it was
        trained on), attack ("natural" for none, "worst" for the worst case per image over all
        attacks), accuracy with the limits low and high of its 95 % interval, count of test images.
    """
    table = read_results()
    names = table["model"]
    recipes = "cifar10-resnet18-small-" + names.str.removeprefix("cifar10-")
    table["model"] = _PREFIX + names
    table.insert(1, "recipe", recipes)
    table.insert(2, "data", TRAINED_ON)
    return table


def read_results() -> "pd.DataFrame":
    """Read the table of what was measured, with the networks' names in the column ``model``.

    Raises:
        UserError: where the package is incomplete.
    """
    try:
        table = read_table(RESULTS, ("model", "attack"), ("accuracy", "low", "high", "count"))
        if table.empty or table.isna().any(axis=None):
            raise ValueError("it has missing values")
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {RESULTS} ({error}): install channelscope again.") from error
    return table


def locate(path: Path | str) -> Path:
    """Return the file that ``zoo:NAME`` stands for; any other path as it is.

    Raises:
        UserError: for an unknown name.
    """
    if not str(path).startswith(_PREFIX):
        return Path(path)
    name = str(path).removeprefix(_PREFIX)
    if name not in NAMES:
        raise UserError(
            f"There is no network {name!r} in the zoo: choose from {', '.join(NAMES)}."
            f"{suggest(name, NAMES)}"
        )
    return HERE / f"{name}.pt"


def check_target(path: Path | str) -> None:
    """Refuse a name of the zoo as a file to write to, which could not be read again."""
    if str(path).startswith(_PREFIX):
        raise UserError(
            f"{path} means a network that ships with the package: choose another file to write to."
        )


def get_label(path: Path | str) -> str:
    """Return a network's label: its name in the zoo, or its file's name without the ending.

    >>> get_label("nets/r18.pth.tar"), get_label("nets/acc=0.991.pth")
    ('r18', 'acc=0.991')
    """
    stem = Path(str(path).removeprefix(_PREFIX)).stem
    is_packed = str(path).lower().endswith(".tar")  # by name: torch wrote it as any other
    return Path(stem).stem if is_packed and Path(stem).suffix.lower() in _ENDINGS else stem
