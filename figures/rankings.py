"""The figures of the CIFAR-10 networks' interventions and rankings, drawn from the tables in docs/results-small."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from channelscope.figures import interventions
from channelscope.figures.paper import write
from channelscope.figures.scorers import scorer_agreement, scorer_agreement_data
from channelscope.intervention import Interventions

KEPT = Path("docs/results-small")
SECTION = "Is the relevance ranking true?"
SCORER = "gradient"  # at the penultimate layer, the last layer's weight

Drawn = tuple[
    Figure, pd.DataFrame, str, str
]  # the figure, its data, its caption, what is seen in words


def draw(folder: Path) -> list[dict[str, Any]]:
    """Draw the figures, each beside its data; say of each what the gallery's page tells."""
    made = {"suppression": suppression(), "league": league(), "scorer-agreement": agreement()}
    for name, (figure, data, *_) in made.items():
        write(figure, data, folder / name, ("pdf", "png"))
    return [
        {"name": name, "caption": caption, "seen": seen, "section": SECTION}
        for name, (*_, caption, seen) in made.items()
    ]


def suppression() -> Drawn:
    """Show what becomes of networks without some channels of the penultimate layer."""
    found = Interventions.load(KEPT / "interventions")
    caption = (
        "Accuracy of trained networks as channels of the penultimate layer are set to 0 at test time, without "
        "retraining and under an attack that sees it: first those most negatively relevant (NR) to the class that the "
        "network answers, or most positively relevant (PR), or random ones. Relevance: the gradient, here the last "
        "layer's weight."
    )
    seen = " ".join(found.verdicts.query("scorer == @SCORER")["statement"])
    return (
        interventions.curves(found, scorer=SCORER),
        interventions.curves_data(found, scorer=SCORER),
        caption,
        seen,
    )


def league() -> Drawn:
    """Show which scorer's ranking is the truest at a layer below the penultimate one."""
    found = Interventions.load(KEPT / "league")
    (layer,) = found.league["layer"].unique()
    caption = (
        f"How true each scorer's ranking of the channels of {layer} is: how far accuracy lies from that of random "
        "order, as channels are set to 0 from the NR end or from the PR end of the ranking."
    )
    best = found.league.query("order == 'both' and data == 'adversarial'").sort_values("rank")
    places = [f"{row.scorer} {100 * row.value:.1f}" for row in best.itertuples()]
    seen = f"Under attack, mean of both ends, in points of accuracy: {', '.join(places)}."
    return interventions.league(found), interventions.league_data(found), caption, seen


def agreement() -> Drawn:
    """Show whether scorers rank a layer's channels alike."""
    table = pd.read_csv(KEPT / "rankings" / "agreement.csv")
    meta = json.loads((KEPT / "rankings" / "meta.json").read_text("utf-8"))
    caption = (
        "Whether scorers rank a layer's channels alike: Spearman's correlation of their relevance over the channels, "
        "mean over the classes, layer by layer."
    )
    ranges = [
        f"{layer}: {rows['value'].min():.2f} to {rows['value'].max():.2f}"
        for layer, rows in table.groupby("layer", sort=False)
    ]
    return (
        scorer_agreement(table, meta),
        scorer_agreement_data(table),
        caption,
        f"Correlations, {'; '.join(ranges)}.",
    )
