"""What commands print: tables and sentences, made of results alone."""

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from channelscope.errors import escape_lines

if TYPE_CHECKING:
    import pandas as pd

    from channelscope.result import Result

_SOME = 0.125  # of the channels: the repair that is printed
_LISTED = 5  # channels of each sign that a class's line names
_CLASSES = 20  # that are listed
_GAP = 2  # spaces between columns
_NARROWEST = 24  # characters of a last column, to be wrapped
# What is in colour on a terminal, by ANSI's numbers: red, green, yellow.
_COLOURS = {"supported": 32, "not supported": 31, "inconclusive": 33, "not judged": 33}
_COLOURS |= {"WARNING": 31}
_COLOURED = re.compile(rf"(?:[\w ]+? )??({'|'.join(_COLOURS)})(?=:|,| at )")
Cells = tuple[str, ...]


class SafeStream:
    """A stream on which no text can steer the terminal.

    Control characters are escaped as in JSON, so what reads JSON from here reads names as they are.
    Characters that the stream's encoding lacks are escaped too.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write a text."""
        encoded = escape_lines(text).encode(self._encoding, "backslashreplace")
        self._stream.write(encoded.decode(self._encoding))
        return len(text)

    def set_colour(self, number: int) -> None:
        """Begin to write in a colour, by its ANSI number, or in none again (0)."""
        self._stream.write(f"\x1b[{number}m")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def find_width() -> int | None:
    """Return the terminal's width in characters; None where the output goes elsewhere."""
    if os.environ.get("COLUMNS", "").isdigit() or sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    return None


def format_table(rows: Sequence[Cells], align: str) -> str:
    """Arrange rows in columns, each flush left (l) or right (r), as wide as the terminal at most.

    The first row has the columns' names. A last column of sentences is wrapped; else columns are
    left out, the last ones first, and named below the table.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    available = find_width()
    room = None
    shown = len(widths)
    if available is not None and _measure(widths) > available:
        rest = available - _measure(widths[:-1]) - _GAP
        if align[-1] == "l" and rest >= _NARROWEST:
            room = rest
        else:
            while shown > 1 and _measure(widths[:shown]) > available:
                shown -= 1
    signs = [{"l": "<", "r": ">"}[side] for side in align]
    lines = []
    for row in rows:
        *cells, last = row[:shown]
        start = "".join(
            f"{cell:{sign}{width}}{' ' * _GAP}"
            for cell, sign, width in zip(cells, signs, widths, strict=False)
        )
        last_sign, last_width = signs[shown - 1], widths[shown - 1]
        parts = _wrap(last, room) if room else [f"{last:{last_sign}{last_width}}"]
        lines.append((start + parts[0]).rstrip())
        lines += [" " * len(start) + part for part in parts[1:]]
    if shown < len(widths):
        lines.append(f"(too wide for this terminal: {', '.join(rows[0][shown:])})")
    return "\n".join(lines)


def _measure(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Break a text between words into lines."""
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [""]


def print_text(text: str) -> None:
    """Print lines, none wider than the terminal, with what matters in colour.

    A terminal that is not to have colours is told so as usual: https://no-color.org.
    """
    width = find_width()
    lines = [
        part
        for line in text.split("\n")
        for part in (_wrap(line, width, "  ") if width and len(line) > width else [line])
    ]
    stream = sys.stdout
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if not isinstance(stream, SafeStream) or is_plain or not stream.isatty():
        print("\n".join(lines))
        return
    for line in lines:
        if match := _COLOURED.match(line):
            start, end = match.span(1)
            stream.write(line[:start])
            stream.set_colour(_COLOURS[match[1]])
            stream.write(match[1])
            stream.set_colour(0)
            line = line[end:]
        print(line)


def print_result(result: "Result", out: Path, *, as_json: bool = False) -> None:
    """Print the tables and verdicts of a result that was saved to ``out``."""
    if as_json:
        _print_json(result, out)
        return
    from channelscope.report.summary import summarise

    describe = {
        "comparison": _describe_comparison,
        "evaluation": _describe_evaluation,
        "intervention": _describe_intervention,
        "relevance": _describe_relevance,
        "damage": _describe_damage,
        "film": _describe_film,
        "sweep": _describe_sweep,
    }[result.kind]
    if headline := summarise(result).headline:
        print_text(f"{headline}\n")
    for text in describe(result):
        print_text(text)
    if result.kind in ("intervention", "relevance", "damage", "film"):
        for model, settings in result.meta["models"].items():
            for note in settings["notes"]:
                print_text(f"WARNING, {model}: {note}")
    print(f"\nreport: {out / 'report.html'}")


def _print_json(result: "Result", out: Path) -> None:
    names = {
        "comparison": ("robustness", "verdicts", "faults"),
        "evaluation": ("attacks", "worst_case", "warnings", "eps_sweep"),
        "intervention": ("areas", "league", "suppression", "verdicts"),
        "relevance": ("agreement",),
        "damage": (
            *("damage", "completeness", "kinds", "concentration"),
            *("repair_areas", "faults", "verdicts"),
        ),
        "film": ("film_changes", "film_overfitting", "film_differences", "verdicts"),
        "sweep": ("sweep", "variants"),
    }[result.kind]
    values: dict[str, Any] = {"out": str(out)}
    for name in names:
        wanted = {"class": "all"} if name in ("robustness", "damage", "kinds") else {}
        values[name] = _list_records(result.select(name, **wanted))
    if result.kind == "evaluation":
        values["checks"] = {
            model: {"made": settings["checked"], "skipped": settings["skipped"]}
            for model, settings in result.meta["models"].items()
        }
    if result.kind in ("intervention", "relevance", "damage", "film"):
        values["notes"] = {
            model: settings["notes"] for model, settings in result.meta["models"].items()
        }
    if result.kind == "relevance":
        values["counts"] = _list_records(_count_signs(result))
        values["refused"] = result.meta["refused"]
    print(json.dumps(values, indent=1, ensure_ascii=False))


def _list_records(frame: "pd.DataFrame") -> Any:
    """Return the rows as plain values, NaN as None."""
    return json.loads(frame.to_json(orient="records", double_precision=15))


def _rows(result: "Result", table: str) -> Iterable[Any]:
    """Return the rows of a table, whose columns are attributes."""
    return result.select(table).itertuples()


def _describe_comparison(result: "Result") -> Iterator[str]:
    """Describe accuracy and, at each model's last layer, alignment; then the verdicts."""
    from channelscope.analyses.evaluation import describe_unchecked

    attack = result.meta["attack"]
    names = ("natural", attack, "worst")
    measures = ("cosine_centred", "nr_mass_natural", "nr_mass_adversarial")
    heads = ("alignment", "NR mass", "attacked", "channels")
    rows: list[Cells] = [("model", "natural", attack, "worst case", *heads)]
    for model, settings in result.meta["models"].items():
        accuracy = result.select("robustness", model=model, **{"class": "all"})
        alignment = result.select(
            "alignment", model=model, layer=settings["layers"][-1], **{"class": "all"}
        )
        shares = accuracy.set_index("attack")["accuracy"]
        values = alignment.set_index("measure")["value"]
        percent = (f"{shares[name]:.1%}" for name in names)
        cosine, natural, adversarial = (values[name] for name in measures)
        channels = values["effective_channels_natural"]
        shown = (f"{cosine:.2f}", f"{natural:.1%}", f"{adversarial:.1%}", f"{channels:.0f}")
        rows.append((model, *percent, *shown))
    yield format_table(rows, align="l" + "r" * 7)
    yield (
        f"\n{_describe_attack(result)}. alignment: cosine of a class's adversarial with its "
        "natural activations, each less the mean over all classes; NR mass: share of the relevant "
        "activation on negatively relevant channels, natural and attacked; channels: how many "
        "carry the activation.\n"
    )
    for row in _rows(result, "faults"):
        yield f"WARNING, {row.model}: {row.sentence}"
    if unchecked := describe_unchecked(result):
        yield f"{unchecked}\n"
    yield from _describe_verdicts(result)


def _describe_attack(result: "Result") -> str:
    from channelscope.figures.words import format_radius

    meta = result.meta
    norm = "" if meta["norm"] == "inf" else f" (norm {meta['norm']})"
    return f"{meta['attack']}, eps {format_radius(meta['eps'])}{norm}, {_count_images(result)}"


def _count_images(result: "Result") -> str:
    return f"{result.meta['data']['images']:,} test images"


def _describe_verdicts(result: "Result") -> Iterator[str]:
    several = len({row.layer for row in _rows(result, "verdicts")} - {""}) > 1
    for row in _rows(result, "verdicts"):
        where = f" at {row.layer}" if several and row.layer else ""
        change = f" {row.change}" if getattr(row, "change", "") else ""
        yield f"{row.claim} {row.verdict}{where}: {row.statement}{change}"


def _describe_evaluation(result: "Result") -> Iterator[str]:
    """Describe the attacks, the worst cases, and what the checks found."""
    from channelscope.analyses.evaluation import describe_checks
    from channelscope.figures.words import format_radius

    meta = result.meta
    level = f"{100 * meta['level']:.0f} % CI"
    rows: list[Cells] = [("model", "attack", "natural", "robust", level, "worst case so far")]
    for row in _rows(result, "attacks"):
        shares = (f"{row.natural:.1%}", f"{row.robust:.1%}", _interval(row.low, row.high))
        rows.append((row.model, row.attack, *shares, f"{row.worst:.1%}"))
    yield format_table(rows, align="llrrrr")
    yield f"\neps {format_radius(meta['eps'])} (norm {meta['norm']}), {_count_images(result)}\n"
    for row in _rows(result, "worst_case"):
        accuracy = f"{row.robust:.1%} ({level} {_interval(row.low, row.high)})"
        yield f"Worst-case robust accuracy of {row.model}: {accuracy}, decided by {row.decided_by}."
    for row in _rows(result, "eps_sweep"):
        accuracy = f"{row.robust:.1%} ({level} {_interval(row.low, row.high)})"
        eps = format_radius(row.eps)
        yield f"Worst-case robust accuracy of {row.model} at eps {eps}: {accuracy}."
    for model, settings in meta["models"].items():
        if checked := describe_checks(result, model):
            skipped = ", ".join(settings["skipped"])
            yield f"{model}: {checked}{f' (not made: {skipped})' if skipped else ''}."
        yield from (f"note, {model}: {note}" for note in settings["notes"])
        for check, reason in settings["skipped"].items():
            yield f"not checked, {model}: {check}: {reason}"
    for row in _rows(result, "warnings"):  # last, so that nothing that sounds well is after them
        yield f"WARNING, {row.model}: {row.sentence}"


def _interval(low: float, high: float, sign: str = "") -> str:
    return f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"


def _describe_intervention(result: "Result") -> Iterator[str]:
    """Describe the league of scorers, the best on adversarial images first, and the verdicts."""
    columns = [("nr", "adversarial"), ("pr", "adversarial"), ("nr", "natural"), ("pr", "natural")]
    heads = ("NR attacked", "PR attacked", "NR natural", "PR natural")
    rows: list[Cells] = [("model", "layer", "scorer", "rank", *heads)]
    cells = {
        (row.model, row.layer, row.scorer, row.order, row.data): (
            f"{100 * row.value:+.1f} ({_interval(row.low, row.high, '+')})"
        )
        for row in _rows(result, "league")
    }
    best = result.select("league", order="both", data="adversarial")
    for _, of_layer in best.groupby(["model", "layer"], sort=False):
        for row in of_layer.sort_values("rank", kind="stable").to_dict("records"):
            place = (row["model"], row["layer"], row["scorer"])
            rows.append((*place, f"{row['rank']:.0f}", *(cells[*place, *key] for key in columns)))
    yield format_table(rows, align="lllr" + "r" * len(columns))
    yield (
        "\nAccuracy kept when the negatively relevant channels go first (NR), and lost when the "
        "positively relevant ones do (PR), beyond random order: mean over all numbers of "
        f"channels, in points, with {100 * result.meta['level']:.0f} % CI; "
        f"{_describe_attack(result)}.\n"
    )
    yield from _describe_verdicts(result)


def _describe_damage(result: "Result") -> Iterator[str]:
    """Describe what the attack does at each layer, and what putting channels back repairs."""
    level = f"{100 * result.meta['level']:.0f} % CI"
    heads = ("refused", "NR rises", "PR falls", "channels", "repaired", "at random")
    rows: list[Cells] = [("model", "layer", "masks", "damage", level, *heads)]
    for row in _rows(result, "completeness"):
        where = {"model": row.model, "layer": row.layer}
        total = result.select("damage", model=row.model, **{"class": "all"}).iloc[0]
        kinds = result.select("kinds", **where, masks=row.masks, **{"class": "all"})
        shares = kinds.set_index("kind")["share"]
        half = result.select("concentration", **where, masks=row.masks, covered=0.5)["channels"]
        repaired = result.select("repairs", **where, curve="repair", fraction=_SOME)
        right = repaired.set_index("ranking")["right"]
        cells = (
            *(f"{total['damage']:.2f}", f"{total['low']:.2f} to {total['high']:.2f}"),
            f"{row.refused:.0f} of {row.images:.0f}",
            *(f"{shares[kind]:.1%}" if len(shares) else "-" for kind in ("NR rises", "PR falls")),
            f"{half.iloc[0]:.1f}" if len(half) else "-",
            *(f"{right[name]:.1%}" if name in right else "-" for name in ("account", "random")),
        )
        rows.append((row.model, row.layer, row.masks, *cells))
    yield format_table(rows, align="lll" + "r" * 8)
    yield (
        f"\n{_describe_attack(result)}. damage: fall of the margin of the label over the wrong "
        "answer, on the images that the attack breaks; refused: accounts that do not add up; NR "
        "rises, PR falls: shares of the damage; channels: how many have half of it; repaired: "
        "share of the broken images that are right again with an eighth of the channels put back, "
        "the worst first, or at random.\n"
    )
    for row in _rows(result, "faults"):
        yield f"WARNING, {row.model}: {row.sentence}"
    yield from _describe_verdicts(result)


def _describe_relevance(result: "Result") -> Iterator[str]:
    """Describe how many channels are relevant by each scorer, and how far the scorers agree."""
    agreement = {}
    for row in _rows(result, "agreement"):
        for pair in ((row.scorer, row.other), (row.other, row.scorer)):
            agreement[row.model, row.layer, *pair] = f"{row.value:.2f}"
    counts = _count_signs(result)
    scorers = list(dict.fromkeys(counts["scorer"]))
    rows: list[Cells] = [("model", "layer", "scorer", "PR", "NR", *scorers)]
    for row in counts.to_dict("records"):
        place = (row["model"], row["layer"], row["scorer"])
        cells = (agreement.get((*place, other), "") for other in scorers)
        rows.append((*place, f"{row['positive']:.1f}", f"{row['negative']:.1f}", *cells))
    yield format_table(rows, align="lll" + "r" * (len(scorers) + 2))
    yield (
        f"\n{_count_images(result)}. PR, NR: number of channels that speak for and against a "
        "class, mean over the classes; below a scorer's name: Spearman's correlation with its "
        "ranking of the channels, mean over the classes.\n"
    )
    yield from _list_channels(result)
    for row in result.meta["refused"]:
        yield f"no scores, {row['model']}, {row['layer']}, {row['scorer']}: {row['reason']}"


def _count_signs(result: "Result") -> "pd.DataFrame":
    from channelscope.analyses.relevance import count_signs

    return count_signs(result)


def _list_channels(result: "Result") -> Iterator[str]:
    """List the most relevant channels of each class, by the first scorer of each layer."""
    import numpy as np

    from channelscope.figures.words import list_groups

    shown: set[tuple[str, str]] = set()
    for model, layer, scorer in list_groups(result, "relevance"):
        if (model, layer) in shown:
            continue
        shown.add((model, layer))
        relevance = result.array("relevance", "relevance", model, layer, scorer)
        yield f"{model}, {layer}, by {scorer}: the most relevant channels, of all in relevance.csv"
        rows: list[Cells] = [("class", "PR, the strongest first", "NR, the strongest first")]
        for name, values in zip(result.meta["data"]["classes"], relevance, strict=True):
            order = np.argsort(-values, kind="stable")
            most = [str(c) for c in order[:_LISTED] if values[c] > 0]
            least = [str(c) for c in order[::-1][:_LISTED] if values[c] < 0]
            rows.append((name, " ".join(most) or "-", " ".join(least) or "-"))
        yield format_table(rows[: 1 + _CLASSES], align="lll")
        left = len(rows) - 1 - _CLASSES
        yield f"... and {left} classes more\n" if left > 0 else ""


def _describe_film(result: "Result") -> Iterator[str]:
    """Describe each run's first, best and last epoch, what changed, and how runs differ."""
    from channelscope.analyses.film import describe_changes, describe_differences

    names = ("natural", "robust", "cosine_centred", "nr_mass_adversarial", "cross_class")
    heads = ("natural", "robust", "alignment", "NR mass, attacked", "cross-class")
    rows: list[Cells] = [("run", "epoch", *heads)]
    best = {row.run: row.best for row in _rows(result, "film_overfitting")}
    for run in result.meta["models"]:
        film = result.select("film", run=run)
        epochs = film.loc[film["measure"] == "natural", "epoch"]
        for epoch in sorted({epochs.min(), best.get(run, epochs.max()), epochs.max()}):
            values = film[film["epoch"] == epoch].set_index("measure")["estimate"]
            cells = (f"{values[name]:.3f}" if name in values else "-" for name in names)
            mark = " (best)" if epoch == best.get(run) else ""
            rows.append((run, f"{epoch:.0f}{mark}", *cells))
    yield format_table(rows, align="ll" + "r" * len(names))
    yield f"\n{_describe_attack(result)}.\n"
    for row in _rows(result, "film_overfitting"):
        yield f"{row.run}: {row.statement}"
    yield from describe_changes(result)
    yield from describe_differences(result)
    yield from _describe_verdicts(result)


def _describe_sweep(result: "Result") -> Iterator[str]:
    """Describe the accuracy of each network, and of each variant where there are several seeds."""
    heads = ("natural", "attacked", "worst case", "95 % CI", "robust, validation")
    rows: list[Cells] = [("variant", "seed", *heads)]
    for row in _rows(result, "sweep"):
        cells = ["-"] * len(heads)
        if not row.trouble:
            accuracy = (row.natural, row.attacked, row.robust, row.val_robust)
            cells = [f"{share:.1%}" for share in accuracy]
            cells.insert(3, _interval(row.robust_low, row.robust_high))
        rows.append((row.variant, f"{row.seed:.0f}", *cells))
    yield format_table(rows, align="lr" + "r" * len(heads))
    variants = list(_rows(result, "variants"))
    if max(row.seeds for row in variants) > 1:
        rows = [("mean of the seeds", "seeds", "natural", "95 % CI", "worst case", "95 % CI")]
        for row in variants:
            pairs = (
                (row.natural, row.natural_low, row.natural_high),
                (row.robust, row.robust_low, row.robust_high),
            )
            cells = [
                cell for mean, low, high in pairs for cell in (f"{mean:.1%}", _interval(low, high))
            ]
            rows.append((row.variant, f"{row.seeds:.0f}", *(cells if row.seeds else "----")))
        yield "\n" + format_table(rows, align="lrrrrr")


def print_zoo(measured: "pd.DataFrame") -> None:
    """Print the networks that come with the package, and how accurate each was measured to be."""
    attacks = ("natural", "pgd-20", "cw-30", "worst", "autoattack")
    rows: list[Cells] = [("network", *attacks, "trained on", "recipe")]
    for name, of_network in measured.groupby("model", sort=False):
        accuracy = of_network.set_index("attack")["accuracy"]
        first = of_network.iloc[0]
        shares = (f"{accuracy[attack]:.1%}" for attack in attacks)
        rows.append((str(name), *shares, first["data"], first["recipe"]))
    print(format_table(rows, align="l" + "r" * len(attacks) + "ll"))
    counts = measured.set_index("attack")["count"].groupby(level=0, sort=False).first()
    print(
        f"\nworst: worst case over all attacks. L-inf, eps 8/255, {counts['worst']:.0f} test "
        f"images (autoattack: {counts['autoattack']:.0f}), seed 0;\nsee docs/RESULTS.md. Use their "
        "names as files:\n"
        "  channelscope compare --models zoo:cifar10-at zoo:cifar10-cifs --data cifar10 --download"
    )
