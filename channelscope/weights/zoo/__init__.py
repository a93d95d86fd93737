"""The networks that ship with the package: ``zoo:NAME`` stands for a file wherever a trained network is asked for.

Their files hold weights in half precision, which are computed with in single precision. ``results.csv`` has what was
measured of each, by the commands of docs/RESULTS.md.
"""

import csv
from pathlib import Path

from channelscope.errors import UserError, suggest
from channelscope.reading import read_text

HERE = Path(__file__).parent
NAMES = ("cifar10-standard", "cifar10-at", "cifar10-cas", "cifar10-cifs")
RESULTS = HERE / "results.csv"
TRAINED_ON = "CIFAR-10 (JPEG)"  # all of CIFAR-10's images, coded as JPEG
_PREFIX = "zoo:"
_COLUMNS = ("model", "attack", "accuracy", "low", "high", "count")


def located(path: Path | str) -> Path:
    """Give the file that ``zoo:NAME`` stands for; any other path as it is.

    Raises:
        UserError: for an unknown name.
    """
    if not str(path).startswith(_PREFIX):
        return Path(path)
    name = str(path).removeprefix(_PREFIX)
    if name not in NAMES:
        known = ", ".join(NAMES)
        raise UserError(
            f"There is no network {name!r} in the zoo: choose from {known}.{suggest(name, NAMES)}"
        )
    return HERE / f"{name}.pt"


def check_target(path: Path | str) -> None:
    """Refuse a name of the zoo as a place to write to: the file could not be read again."""
    if str(path).startswith(_PREFIX):
        raise UserError(
            f"{path} means a network that ships with the package: choose another file to write to."
        )


def label_of(path: Path | str) -> str:
    """Give a network's label: its name in the zoo, or its file's without the ending."""
    return Path(str(path).removeprefix(_PREFIX)).stem


def results() -> list[dict[str, str]]:
    """Read what was measured: a row for each network and attack.

    The columns: model; attack ("natural" for none, "worst" for the worst case per image over all attacks); accuracy,
    low, high: fractions, with the 95 % interval; count, of test images.

    Raises:
        UserError: where the package is incomplete.
    """
    try:
        rows = list(
            csv.DictReader(read_text(RESULTS, within=RESULTS.parent).splitlines(), strict=True)
        )
        if not rows:
            raise ValueError("it is empty")
        for row in rows:
            if tuple(row) != _COLUMNS or not all(float(row[name]) >= 0 for name in _COLUMNS[2:]):
                raise ValueError("it is of another kind")
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"Cannot read {RESULTS} ({error}): install channelscope again.") from error
    return rows
