"""What is to be seen in a figure, in words made of its data: for those who cannot see it."""

from collections.abc import Callable, Hashable

import numpy as np
import pandas as pd

from channelscope.figures.frames import bounded, number, percent
from channelscope.figures.matching import SAME


def _each(drawn: pd.DataFrame, by: list[str], say: Callable[[pd.DataFrame], str]) -> str:
    """One part of a sentence for each group of rows, named by what the group is."""
    parts = [
        f"{', '.join(map(str, group))}: {say(rows)}"
        for group, rows in drawn.groupby(by, sort=False)
    ]
    return f"{'; '.join(parts)}."


def profile(drawn: pd.DataFrame) -> str:
    """Of channels in order: how many an attack raises, and what it makes of their sum."""

    def say(rows: pd.DataFrame) -> str:
        natural, adversarial = rows["natural"], rows["adversarial"]
        if natural.isna().all():
            return "no images"
        rise = f"under attack {int((adversarial > natural).sum())} of {len(rows)} channels rise"
        return f"{rise}, and their mean goes from {natural.mean():.3g} to {adversarial.mean():.3g}"

    return _each(drawn, ["model"], say)


def relevance(drawn: pd.DataFrame) -> str:
    """Of magnitude against relevance: Spearman's correlations."""

    def say(rows: pd.DataFrame) -> str:
        rho = rows.drop_duplicates("data").set_index("data")["spearman"]
        return f"ρ {number(rho['natural'])} on natural images, {number(rho['adversarial'])} on adversarial ones"

    return _each(drawn, ["model", "class"], say)


def nr_share(drawn: pd.DataFrame) -> str:
    """Of the shares on NR channels: their mean, and the class with the highest."""

    def say(rows: pd.DataFrame) -> str:
        mean = rows.groupby("data").tail(1).set_index("data")["share"]
        text = (
            f"mean {percent(mean['natural'])} natural, {percent(mean['adversarial'])} adversarial"
        )
        attacked = rows[rows["data"] == "adversarial"][:-1].dropna(subset=["share"])
        if attacked.empty:
            return text
        highest = attacked.sort_values("share", kind="stable").iloc[-1]
        return f"{text}, the highest adversarial share {percent(highest['share'])} on class {highest['class']}"

    return _each(drawn, ["model"], say)


def alignment_robustness(drawn: pd.DataFrame) -> str:
    """Of robustness against alignment: the correlation, and the classes at both ends."""

    def say(rows: pd.DataFrame) -> str:
        across = rows.iloc[-1]
        rho = bounded(
            *(float(across[name]) for name in ("spearman", "spearman_low", "spearman_high"))
        )
        classes = rows[:-1].dropna(subset=["accuracy"]).sort_values("accuracy", kind="stable")
        if classes.empty:
            return f"ρ across classes {rho}"
        ends = [
            f"{percent(end['accuracy'])} (class {end['class']})"
            for end in (classes.iloc[0], classes.iloc[-1])
        ]
        return f"ρ across classes {rho}, robust accuracy from {ends[0]} to {ends[1]}"

    return _each(drawn, ["model"], say)


def robustness(drawn: pd.DataFrame) -> str:
    """Of accuracy under attacks: natural, and in the worst case."""

    def say(rows: pd.DataFrame) -> str:
        accuracy = rows.set_index("attack")["accuracy"]
        return f"{percent(accuracy.iloc[0])} on natural images, {percent(accuracy.iloc[-1])} in the worst case"

    return _each(drawn, ["model"], say)


def training(drawn: pd.DataFrame) -> str:
    """Of learning curves: where they end, and which epoch was kept."""

    def say(rows: pd.DataFrame) -> str:
        ends = [_last(rows[name]) for name in ("val_natural", "val_robust")]
        kept = ", ".join(f"{epoch:g}" for epoch in rows.loc[rows["best"].astype(bool), "epoch"])
        return f"ends at {ends[0]} natural and {ends[1]} attacked accuracy, epoch {kept or '–'} was kept"

    return _each(drawn, ["model"], say)


def gates(drawn: pd.DataFrame) -> str:
    """Of gates by epoch: where probe and mask end."""

    def say(rows: pd.DataFrame) -> str:
        probe, mask = (
            [_last(rows[name]) for name in names]
            for names in (("probe_natural", "probe_robust"), ("mask_natural", "mask_adversarial"))
        )
        right = f"in the end the probe is right on {probe[0]} of the natural and {probe[1]} of the attacked images"
        return f"{right}, and {mask[0]} and {mask[1]} of the channels pass"

    return _each(drawn, ["model", "layer"], say)


def masks(drawn: pd.DataFrame) -> str:
    """Of the masks of classes: the range of the factors, and how alike natural and adversarial ones are."""

    def say(rows: pd.DataFrame) -> str:
        means = rows.groupby("channel", sort=False)["mask"].mean().abs()
        half = int((means.sort_values(ascending=False).cumsum() < 0.5 * means.sum()).sum()) + 1
        span = f"factors from {rows['mask'].min():.3g} to {rows['mask'].max():.3g}"
        return f"{span}, half of their sum on {half} of {len(means)} channels"

    return _each(drawn, ["data"], say)


def mask_share(drawn: pd.DataFrame) -> str:
    """Of the shares of masks in effect: over all images."""

    def say(rows: pd.DataFrame) -> str:
        share = rows.groupby("data").tail(1).set_index("data")["value"]
        return f"{percent(share['natural'])} on natural images, {percent(share['adversarial'])} on adversarial ones"

    return _each(drawn, ["model", "layer"], say)


def leakage(drawn: pd.DataFrame) -> str:
    """Of label leakage, on natural images: what is answered by what the gates are told, and what masks tell."""
    natural = drawn[(drawn["data"] == "natural") & (drawn["measure"] != "")]
    words = {
        "accuracy": "right with nothing told",
        "accuracy_true": "right with the true class told",
        "follows_wrong": "a wrong class that is told is answered",
        "readable": "class read from the mask",
        "readable_true": "class read from the mask with the true class told",
    }

    def say(rows: pd.DataFrame) -> str:
        known = rows[rows["measure"].isin(words)]
        said = zip(known["layer"], known["measure"], known["value"], strict=True)
        return ", ".join(
            f"{words[measure]}{layer and f' at {layer}'} {percent(value)}"
            for layer, measure, value in said
        )

    return _each(natural, ["model"], say)


def likeness(drawn: pd.DataFrame) -> str:
    """Of the likeness of layers: CKA of each pair of models, of their most alike layers where there are several."""

    def say(rows: pd.DataFrame) -> str:
        most = rows.sort_values("cka", kind="stable").iloc[-1]
        cka = bounded(*(float(most[name]) for name in ("cka", "low", "high")))
        return f"CKA {cka} for {most['layer']} and {most['other_layer']}"

    return _each(drawn, ["model", "other"], say)


def matched_channels(drawn: pd.DataFrame) -> str:
    """Of matched channels: how many correspond, and how many of those are moved less in the other model."""

    def say(rows: pd.DataFrame) -> str:
        same = rows[rows["correlation"] >= SAME]
        less = int((same["other_change"].abs() < same["change"].abs()).sum())
        return f"{len(same)} of {len(rows)} pairs correspond, and the attack moves {less} of them less in the other"

    return _each(drawn, ["model", "other"], say)


def depth(drawn: pd.DataFrame) -> str:
    """Of measures along the network: their first and last values."""

    def say(rows: pd.DataFrame) -> str:
        return f"under attack, from the first layer to the last, {_ends(rows[rows['data'] != 'natural'])}"

    return _each(drawn, ["model"], say)


def decay(drawn: pd.DataFrame) -> str:
    """Of measures as an attack gets stronger: their first and last values."""
    return _each(
        drawn, ["model"], lambda rows: f"from the weakest attack to the strongest, {_ends(rows)}"
    )


def _ends(rows: pd.DataFrame) -> str:
    parts = [
        f"{_plain(measure)} from {number(float(values.iloc[0]))} to {number(float(values.iloc[-1]))}"
        for measure, values in rows.groupby("measure", sort=False)["value"]
    ]
    return ", ".join(parts)


def classes(drawn: pd.DataFrame) -> str:
    """Of measures by class: between which classes each lies."""

    def say(rows: pd.DataFrame) -> str:
        parts = []
        for measure, values in rows.dropna(subset=["value"]).groupby("measure", sort=False):
            ends = values.sort_values("value", kind="stable").iloc[[0, -1]].to_dict("records")
            said = " to ".join(f"{number(end['value'])} ({end['class']})" for end in ends)
            parts.append(f"{_plain(measure)} {said}")
        return ", ".join(parts) or "no images"

    return _each(drawn, ["model"], say)


def embedding(drawn: pd.DataFrame) -> str:
    """Of class means in a plane: how far the attack moves them, next to how far they lie apart."""

    def say(rows: pd.DataFrame) -> str:
        natural, adversarial = (
            rows[rows["data"] == data].set_index("class")[["x", "y"]]
            for data in ("natural", "adversarial")
        )
        moved = np.linalg.norm(adversarial - natural, axis=1).mean()
        apart = np.linalg.norm(natural - natural.mean(), axis=1).mean()
        return f"the attack moves the classes by {moved:.2g} on average, and they lie {apart:.2g} from their centre"

    return _each(drawn, ["model"], say)


def uniformity(drawn: pd.DataFrame) -> str:
    """Of sorted frequencies: how even they are."""

    def say(rows: pd.DataFrame) -> str:
        even = rows.drop_duplicates("data").set_index("data")["uniformity"]
        return f"uniformity {even['natural']:.3f} on natural images, {even['adversarial']:.3f} on adversarial ones"

    return _each(drawn, ["model"], say)


def flow(drawn: pd.DataFrame) -> str:
    """Of channel flow: how often PR channels fall silent and NR ones wake."""

    def say(rows: pd.DataFrame) -> str:
        silenced = percent(float(rows[rows["relevance"] > 0]["silenced"].mean()))
        awakened = percent(float(rows[rows["relevance"] < 0]["awakened"].mean()))
        return f"a PR channel is silenced on {silenced} of the images, an NR channel awakened on {awakened}, on average"

    return _each(drawn, ["model", "class"], say)


def flow_share(drawn: pd.DataFrame) -> str:
    """Of significant changes: the means over the classes."""

    def say(rows: pd.DataFrame) -> str:
        mean = rows.iloc[-1]
        return f"{percent(mean['falls'])} fall and {percent(mean['rises'])} rise"

    return _each(drawn, ["model", "channels"], say)


def confusion(drawn: pd.DataFrame) -> str:
    """Of answers and shared channels: their correlation, and the class that is confused most."""

    def say(rows: pd.DataFrame) -> str:
        apart = rows[rows["class"] != rows["answer"]].dropna(subset=["share"])
        correlation = f"ρ {number(rows['spearman'].iloc[0])}"
        if apart.empty:
            return correlation
        most = apart.sort_values("share", kind="stable").iloc[-1]
        return f"{correlation}, most often {most['class']} is taken for {most['answer']} ({percent(most['share'])})"

    return _each(drawn, ["model"], say)


def _last(column: pd.Series) -> str:
    measured = column.dropna()
    return percent(float(measured.iloc[-1])) if len(measured) else "–"


def ranges(drawn: pd.DataFrame) -> str:
    """Of any figure: between which values each of its quantities lies."""

    def say(rows: pd.DataFrame) -> str:
        numbers = rows.select_dtypes(np.number).dropna(axis="columns", how="all")
        return ", ".join(
            f"{_plain(name)} {numbers[name].min():.3g} to {numbers[name].max():.3g}"
            for name in numbers
        )

    return _each(drawn, ["model"], say) if "model" in drawn else f"{say(drawn)}."


def _plain(name: Hashable) -> str:
    return str(name).replace("_", " ")
