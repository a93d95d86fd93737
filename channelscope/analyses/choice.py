"""A part of a result: some of its models, layers and classes, in another order or by other names.

What was measured stays as it was: the worst case over all images is over all of them still.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import pandas as pd

from channelscope.analyses.base import ChannelTable
from channelscope.errors import UserError, suggest
from channelscope.figures.words import measured_layers

if TYPE_CHECKING:
    from channelscope.result import Result

_OF_LAYER = ("layer", "other_layer", "first", "second")


def choose_part(
    result: "Result",
    models: Sequence[str] = (),
    labels: Sequence[str] = (),
    layers: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> "Result":
    """Return a result with some of its models, layers and classes; of an empty choice all.

    Args:
        result: of any kind.
        models: labels, in the order that is wanted.
        labels: other names, one for each of the models.
        layers: names or patterns such as "layer4*" of measured layers; models without are left out.
        classes: names, in the order that is wanted.

    Raises:
        UserError: for a name that the result does not have, or another number of labels.
    """
    if not any((models, labels, layers, classes)):
        return result
    names = _choose_names("model", models, list(result.meta["models"]))
    wanted = _choose_names("class", classes, result.meta.get("data", {}).get("classes", []))
    of_model = _choose_layers(result, names, layers) if layers else {}
    names = [name for name in names if not layers or of_model[name]]
    if labels and len(set(labels)) != len(names):
        raise UserError(
            f"--labels has {len(set(labels))} different names for {len(names)} models: name one "
            "for each."
        )
    renamed = dict(zip(names, labels or names, strict=True))
    meta = {**result.meta, "models": {}}
    for name, label in renamed.items():
        known = result.meta["models"][name]
        meta["models"][label] = {**known, "layers": of_model[name]} if layers else known
    if classes:
        meta["data"] = {**result.meta["data"], "classes": wanted}
    part = _Part(renamed, _list_dropped(result, of_model), wanted, result)
    tables = {name: part.choose(table) for name, table in result.tables.items()}
    return replace(result, meta=meta, tables=tables)


def _choose_names(what: str, chosen: Sequence[str], known: Sequence[str]) -> list[str]:
    for name in chosen:
        if name not in known:
            raise UserError(
                f"No {what} {name!r} in this result; choose from {', '.join(known)}."
                f"{suggest(name, known)}"
            )
    return list(dict.fromkeys(chosen)) or list(known)


def _choose_layers(
    result: "Result", models: Sequence[str], patterns: Sequence[str]
) -> dict[str, list[str]]:
    measured = {model: names for model, names in measured_layers(result).items() if model in models}
    all_names = list(dict.fromkeys(name for names in measured.values() for name in names))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in all_names):
            raise UserError(
                f"No layer {pattern!r} was measured; choose from {', '.join(all_names)}."
                f"{suggest(pattern, all_names)}"
            )
    return {
        model: [name for name in names if any(fnmatchcase(name, each) for each in patterns)]
        for model, names in measured.items()
    }


def _list_dropped(result: "Result", of_model: Mapping[str, Sequence[str]]) -> set[tuple[str, str]]:
    """Return (model, layer) of the measured layers that were not chosen."""
    return {
        (model, name)
        for model, chosen in of_model.items()
        for name in measured_layers(result)[model]
        if name not in chosen
    }


class _Part:
    """Which rows of a table are chosen, and what they are called."""

    def __init__(
        self,
        renamed: Mapping[str, str],
        dropped: set[tuple[str, str]],
        classes: Sequence[str],
        result: "Result",
    ) -> None:
        self.renamed, self.dropped, self.classes = renamed, dropped, classes
        self.all_models = set(result.meta["models"])
        self.all_classes = result.meta.get("data", {}).get("classes", [])

    def choose(self, table: pd.DataFrame | ChannelTable) -> pd.DataFrame | ChannelTable:
        """Return the chosen rows of a table, the models in the chosen order."""
        if isinstance(table, ChannelTable):
            return self._choose_groups(table)
        # Elsewhere "other" is something else, such as a scorer.
        of_model = [name for name in ("model", "other") if name in table]
        of_model = [name for name in of_model if set(table[name]) <= self.all_models]
        chosen = [
            self._has(row) and all(row[name] in self.renamed for name in of_model)
            for row in table.to_dict("records")
        ]
        rows = table[pd.Series(chosen, index=table.index, dtype=bool)]
        for column in of_model:
            rows = rows.assign(**{column: rows[column].map(self.renamed)})
        if "model" in of_model:
            place = {name: place for place, name in enumerate(self.renamed.values())}
            rows = rows.sort_values("model", key=lambda names: names.map(place), kind="stable")
        return rows.reset_index(drop=True)

    def _has(self, row: Mapping[Any, Any]) -> bool:
        """Tell whether a row is of chosen layers and classes, or of none of them."""
        owners = {"other_layer": row.get("other")}
        of_layers = (
            (owners.get(column, row.get("model")), row[column]) not in self.dropped
            for column in _OF_LAYER
            if column in row
        )
        name = row.get("class")
        of_class = name in self.classes or name not in self.all_classes
        return all(of_layers) and of_class

    def _choose_groups(self, table: ChannelTable) -> ChannelTable:
        places = [table.classes.index(name) for name in self.classes]
        groups = {}
        for model, label in self.renamed.items():
            for group, arrays in table.groups.items():
                row = dict(zip(table.words, group, strict=True))
                if row["model"] == model and self._has(row):
                    words = tuple((row | {"model": label}).values())
                    groups[words] = {name: array[places] for name, array in arrays.items()}
        return replace(table, classes=tuple(self.classes), groups=groups)
