"""Strength: how alignment and accuracy change as the attack gets stronger."""

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from channelscope.analyses.alignment import ALIGNMENT_NOTE, NR_NOTE, SIGNED_NOTE, join_notes
from channelscope.analyses.base import (
    Analysis,
    Plot,
    Study,
    Subject,
    Table,
    measure_study,
    register,
)
from channelscope.analyses.depth import describe_ends, draw_line, label_measure
from channelscope.analyses.subjects import by_layer
from channelscope.errors import UserError
from channelscope.figures.axes import (
    add_model_legend,
    add_title,
    choose_looks,
    list_bottom,
    make_panels,
)
from channelscope.figures.paper import styled
from channelscope.figures.words import (
    choose_layers,
    describe_attack,
    describe_each,
    describe_layers,
    format_attack,
    select_rows,
)
from channelscope.statistics.intervals import as_columns, estimate, wilson
from channelscope.statistics.measures import BOUNDS, mean_over_classes

if TYPE_CHECKING:
    from channelscope.result import Result

TABLE = Table(
    words=("model", "layer", "varied", "measure"),
    numbers=("at", "value", "low", "high"),
    help=(
        "each measure of alignment, mean over the classes, at each strength of the attack: its "
        "radius ('eps', in image units) or the number of steps after which it is stopped ('step'); "
        "'robust_accuracy', under this attack alone, belongs to no layer"
    ),
)
# What the panels show: their measures, and these in the table.
_MEASURES = {
    "robust_accuracy": "robust_accuracy",
    "cosine_centred": "cosine_centred",
    "nr_mass": "nr_mass_adversarial",
    "signed_mass": "signed_mass_adversarial",
}
_PANELS = (
    "accuracy under this attack alone; alignment: cosine of a class's natural and adversarial "
    "magnitudes (mean activations), each less the mean over all classes; NR mass: share of the "
    "relevant activation that lies on negatively relevant channels; signed mass: 1 where all "
    "active channels speak for the class, -1 where all speak against it. Means over the classes."
)


def compute_decay(study: Study) -> dict[str, Any]:
    """Compute each measure's mean over the classes, and the accuracy, at each strength."""
    return {
        "decay": [
            row
            for model, strength in product(study.models, study.strengths())
            for row in _measure_rows(study, model, *strength)
        ]
    }


def _measure_rows(
    study: Study, model: str, varied: str, at: float, data: str
) -> Iterator[dict[str, Any]]:
    level = study.settings["level"]
    words = {"model": model, "varied": varied, "at": at}
    for layer in study.layers(model):
        for measure, by_class in measure_study(study, model, layer, data).items():
            interval = estimate(mean_over_classes(by_class), level, BOUNDS[measure])
            yield words | {"layer": layer, "measure": measure} | as_columns(interval)
    correct = study.correct(model) & (study.answers(model, data) == study.labels)
    interval = wilson(int(correct.sum()), len(correct), level)
    yield words | {"layer": "", "measure": "robust_accuracy"} | as_columns(interval)


def decay_data(
    result: "Result", varied: Literal["eps", "step"], layer: str | None = None
) -> pd.DataFrame:
    """Return model, layer, measure, at -> value, low, high (means over the classes).

    Raises:
        UserError: where nothing was swept.
    """
    swept = select_rows(result.decay, varied=varied)
    if swept.empty:
        raise UserError(f"No {varied} was swept: compare with --{varied}-sweep.")
    parts = []
    for (model, name), panel in product(choose_layers(result, layer).items(), _MEASURES):
        where = {"layer": "" if panel == "robust_accuracy" else name, "measure": _MEASURES[panel]}
        rows = select_rows(swept, model=model, **where)
        parts.append(rows.assign(layer=name, measure=panel))
    columns = ["model", "layer", "measure", "at", "value", "low", "high"]
    return pd.concat(parts, ignore_index=True)[columns]


@styled
def draw_decay(
    result: "Result", varied: Literal["eps", "step"], layer: str | None = None
) -> Figure:
    """Draw how alignment and accuracy change as the attack gets stronger, a line a model.

    Raises:
        UserError: where nothing was swept.
    """
    data, layers = decay_data(result, varied, layer), choose_layers(result, layer)
    data = data.assign(at=data["at"] * (255 if varied == "eps" else 1))
    figure, axes = make_panels(4, 1, 1.15, sharex="all")
    looks = choose_looks(result)
    for ax, measure in zip(axes.flat, data["measure"].unique(), strict=True):
        for model in layers:
            rows = select_rows(data, model=model, measure=measure)
            draw_line(ax, rows, "at", looks[model])
        label_measure(ax, measure)
    for ax in list_bottom(axes):
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_xlabel("radius ε (1/255)" if varied == "eps" else "steps")
    grows = "the attack grows" if varied == "eps" else "the attack goes on"
    add_title(figure, f"Alignment as {grows}, {describe_layers(layers)}")
    if varied == "eps":
        attack = format_attack(result.meta["attack"])
    else:
        attack = f"{describe_attack(result)}, after so many of its steps"
    notes = join_notes(result, [ALIGNMENT_NOTE, NR_NOTE, SIGNED_NOTE], attack)
    add_model_legend(figure, result, layers, notes)
    return figure


def describe_decay(data: pd.DataFrame) -> str:
    """Say the values under the weakest and the strongest attack."""
    start = "from the weakest attack to the strongest, "
    return describe_each(data, ["model"], lambda rows: start + describe_ends(rows))


def by_swept_layer(varied: str, result: "Result") -> Iterator[Subject]:
    """Return a figure for each layer, where the attack's strength was swept in this way."""
    if len(select_rows(result.decay, varied=varied)):
        yield from by_layer(result)


def _plot(varied: Literal["eps", "step"], order: int, caption: str) -> Plot:
    return Plot(
        name=f"decay-{varied}",
        draw=partial(draw_decay, varied=varied),
        data=partial(decay_data, varied=varied),
        alt_text=describe_decay,
        caption=caption,
        section="network",
        order=order,
        main=varied == "eps",
        claims=("c1", "c2"),
        table="decay",
        subjects=partial(by_swept_layer, varied),
    )


register(
    Analysis(
        name="strength",
        help="how alignment and accuracy change as the attack gets stronger",
        tables={"decay": TABLE},
        compute=compute_decay,
        plots=(
            _plot(
                "eps",
                30,
                "What becomes of accuracy and alignment as the radius ε of the attack grows: "
                f"{_PANELS} {{layers}} {{mixed_bars}}",
            ),
            _plot(
                "step",
                31,
                "What becomes of accuracy and alignment in the course of the attack, which is "
                f"stopped after so many steps of the same length: {_PANELS} {{layers}} "
                "{adversarial} {mixed_bars}",
            ),
        ),
    )
)
