"""The figures of the whole network, of channel flow and of confusion: what is drawn is what the tables say."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from matplotlib.text import Text
from sklearn.decomposition import PCA

import reference
from channelscope import figures as plots
from channelscope.errors import UserError
from channelscope.figures.catalogue import _pictures
from channelscope.figures.flow import flow_data, flow_share_data
from channelscope.figures.network import classes_data, embedding_data, uniformity_data
from channelscope.figures.paper import COLOURS, MODEL_COLOURS
from comparisons import synthetic

CLASSES = ("bird", "cat", "dog", "frog")
COMPARED = synthetic(("nat", "at"), CLASSES, ("layer3", "layer4"), channels=8, epochs=0, swept=True)
EMPTY = synthetic(("nat", "at"), CLASSES, channels=8, epochs=0, empty=("cat",))
BARE = synthetic(("nat",), ("a", "b"), channels=3, epochs=0)


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if text.get_text())


def of(frame: pd.DataFrame, **where: object) -> pd.DataFrame:
    for column, value in where.items():
        frame = frame[frame[column.rstrip("_")] == value]
    return frame


def lines(ax: object, model: int) -> list[np.ndarray]:
    """Points of the lines in a model's colour, those of the legend left out."""
    return [
        line.get_xydata()
        for line in ax.lines
        if to_hex(line.get_color()) == MODEL_COLOURS[model].lower()
    ]


def test_depth_draws_each_measure_from_layer_to_layer() -> None:
    figure = plots.depth(COMPARED)
    mean = of(COMPARED.alignment, class_="all")
    measures = (
        ["cosine"],
        ["nr_share_natural", "nr_share_adversarial"],
        ["relevance_spearman_natural", "relevance_spearman_adversarial"],
    )
    for ax, names in zip(figure.axes, measures, strict=True):
        for index, model in enumerate(("nat", "at")):
            wanted = [np.c_[[1, 2], of(mean, model=model, measure=name)["value"]] for name in names]
            for found, points in zip(lines(ax, index), wanted, strict=True):
                np.testing.assert_array_equal(found, points)
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()] == ["layer3", "layer4"]
    for said in ("PGD-20, ε = 8/255", "dashed: natural images", "negatively relevant", "nat", "at"):
        assert said in words(figure)


def test_depth_needs_several_layers() -> None:
    assert "depth" in plots.figures(COMPARED)
    assert "depth" not in plots.figures(EMPTY)
    with pytest.raises(UserError, match="--layers"):
        plots.depth(EMPTY)


def test_depth_numbers_layers_that_models_call_differently() -> None:
    names = {"layer3": "a", "layer4": "b"}
    alignment = COMPARED.alignment
    other = alignment["layer"].where(alignment["model"] == "nat", alignment["layer"].replace(names))
    figure = plots.depth(replace(COMPARED, alignment=alignment.assign(layer=other)))
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()] == ["1", "2"]


def test_classes_draws_a_dot_for_each_class_with_images_the_most_robust_first() -> None:
    figure = plots.classes(EMPTY)
    worst = of(EMPTY.robustness, attack="worst").dropna()
    order = (
        of(worst[worst["class"] != "all"])
        .groupby("class")["accuracy"]
        .mean()
        .sort_values(ascending=False)
        .index
    )
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == [*order]
    for ax, measure in zip(figure.axes, ("robust_accuracy", "cosine", "nr_ratio"), strict=True):
        for index, model in enumerate(("nat", "at")):
            rows = of(worst, model=model).assign(value=worst["accuracy"])
            if measure != "robust_accuracy":
                rows = of(EMPTY.alignment, model=model, measure=measure)
            wanted = rows.set_index("class")["value"].loc[order]
            drawn = [
                line
                for line in ax.lines
                if to_hex(line.get_color()) == MODEL_COLOURS[index].lower()
            ]
            np.testing.assert_allclose(drawn[0].get_xdata(), wanted)
            np.testing.assert_array_equal(np.round(drawn[0].get_ydata()), range(3))


@pytest.mark.parametrize(("varied", "scale"), [("eps", 255), ("step", 1)])
def test_decay_draws_each_measure_against_the_strength(varied: str, scale: float) -> None:
    figure = plots.decay(COMPARED, varied)
    names = ("robust_accuracy", "cosine", "nr_share_adversarial", "relevance_spearman_adversarial")
    swept = of(COMPARED.decay, varied=varied)
    for ax, name in zip(figure.axes, names, strict=True):
        layer = "" if name == "robust_accuracy" else "layer4"
        for index, model in enumerate(("nat", "at")):
            rows = of(swept, model=model, measure=name, layer=layer)
            assert len(rows) == 3
            np.testing.assert_allclose(
                lines(ax, index)[0], np.c_[scale * rows["at"], rows["value"]]
            )
    assert f"decay-{varied}-layer3" in plots.figures(COMPARED)


def test_nothing_that_was_not_swept_is_drawn() -> None:
    assert not [name for name in plots.figures(EMPTY) if name.startswith("decay")]
    with pytest.raises(UserError, match="compare with --step-sweep"):
        plots.decay(EMPTY, "step")
    only = replace(COMPARED, decay=of(COMPARED.decay, varied="eps"))
    assert not [name for name in plots.figures(only) if name.startswith("decay-step")]


def test_embedding_is_the_plane_of_the_class_means() -> None:
    figure = plots.embedding(EMPTY)
    for ax, model in zip(figure.axes, ("nat", "at"), strict=True):
        rows = of(EMPTY.activations, model=model).dropna()
        means = rows.pivot(index=["class", "data"], columns="channel", values="magnitude")
        known = PCA(2).fit(means)
        wanted = pd.DataFrame(np.abs(known.transform(means)), index=means.index)
        for data, colour in COLOURS.items():
            drawn = [
                line.get_xydata()[0]
                for line in ax.lines
                if to_hex(line.get_color()) == colour.lower()
            ]
            np.testing.assert_allclose(np.abs(drawn), wanted.xs(data, level="data"), atol=1e-9)
        for label, share in zip(
            (ax.get_xlabel(), ax.get_ylabel()), known.explained_variance_ratio_, strict=True
        ):
            assert f"{100 * share:.0f} %" in label
    assert "1\u00a0cat" in words(figure)


def test_numbers_of_crowded_classes_hide_neither_dots_nor_each_other() -> None:
    """Twelve classes at nearly one place, and one far away."""
    names = tuple(f"class {i}" for i in range(13))
    comparison = synthetic(("nat",), names, channels=8, epochs=0)
    rows = comparison.activations
    crowded = 0.01 * rows["magnitude"] + (rows["class"] == "class 12") * rows["channel"]
    figure = plots.embedding(replace(comparison, activations=rows.assign(magnitude=crowded)))
    (ax,) = figure.axes
    renderer = FigureCanvasAgg(figure).get_renderer()
    numbers = [text for text in ax.texts if text.get_text()]
    assert sorted(text.get_text() for text in numbers) == sorted(map(str, range(13)))
    assert min(text.get_fontsize() for text in numbers) >= 6.5
    boxes = [Text.get_window_extent(text, renderer).padded(-1.5) for text in numbers]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    dots = [ax.transData.transform(line.get_xydata()[0]) for line in ax.lines]
    assert not [dot for dot in dots for box in boxes if box.contains(*dot)]


def test_uniformity_draws_sorted_frequencies_and_says_the_measure() -> None:
    figure = plots.uniformity(EMPTY)
    mean = of(EMPTY.alignment, class_="all")
    for ax, model in zip(figure.axes, ("nat", "at"), strict=True):
        for patch, data in zip(
            [p for p in ax.patches if isinstance(p, StepPatch)], COLOURS, strict=True
        ):
            rows = of(EMPTY.activations, model=model, data=data).dropna()
            by_class = [
                sorted(part["frequency"], reverse=True) for _, part in rows.groupby("class")
            ]
            np.testing.assert_allclose(patch.get_data().values, np.mean(by_class, axis=0))
            assert (
                to_hex(patch.get_facecolor() if patch.get_fill() else patch.get_edgecolor())
                == COLOURS[data].lower()
            )
        said = [
            of(mean, model=model, measure=f"uniformity_{data}")["value"].item() for data in COLOURS
        ]
        wanted = f"uniformity: natural {said[0]:.3f}\n→ adversarial {said[1]:.3f}"
        assert ax.get_title(loc="right") == wanted
    assert "uniformity: entropy of the frequencies" in words(figure)


# ---------------------------------------------------------------- flow


def test_flow_draws_each_channel_up_where_it_wakes_and_down_where_it_falls_silent() -> None:
    drawn, figure = flow_data(EMPTY), plots.flow(EMPTY)
    panels = list(product(("nat", "at"), drawn["class"].unique()))
    for ax, (model, name) in zip(figure.axes, panels, strict=True):
        where = {"model": model, "class": name}
        known = (
            of(EMPTY.activations, data="natural", **where)
            .set_index("channel")["relevance"]
            .sort_values()
        )
        rows = of(EMPTY.flow, **where).set_index("channel").loc[known.index]
        for way, colour, sign in (("awakened", "adversarial", 1), ("silenced", "natural", -1)):
            dots = [
                line
                for line in ax.lines
                if line.get_marker() == "o" and to_hex(line.get_color()) == COLOURS[colour].lower()
            ]
            points = np.concatenate([line.get_xydata() for line in dots])
            wanted = np.c_[np.arange(1, 9), sign * rows[way]]
            np.testing.assert_allclose(points[points[:, 0].argsort()], wanted)
            certain = {x for line in dots if line.get_alpha() > 0.5 for x in line.get_xdata()}
            assert certain == set(np.flatnonzero(rows["q"] <= 0.05) + 1)
            means = {"awakened": rows[known < 0][way], "silenced": rows[known > 0][way]}[way].mean()
            kind = {"awakened": "NR", "silenced": "PR"}[way]
            assert f"{kind} {way}: {100 * means:.0f} %" in [text.get_text() for text in ax.texts]
        boundary = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"]
        assert boundary == [(known < 0).sum() + 0.5]


def test_flow_share_counts_the_channels_that_change_significantly() -> None:
    drawn = flow_share_data(EMPTY)
    relevance = of(EMPTY.activations, data="natural")[
        ["model", "layer", "class", "channel", "relevance"]
    ]
    tested = EMPTY.flow.merge(relevance).dropna()
    for (kind, sign), model in product((("PR", 1), ("NR", -1)), ("nat", "at")):
        rows = of(drawn, model=model, channels=kind).set_index("class")
        assert list(rows.index) == ["bird", "dog", "frog", "mean"]
        for name, (way, direction) in product(
            ("bird", "dog", "frog"), (("falls", -1), ("rises", 1))
        ):
            channels = of(tested, model=model, class_=name)
            channels = channels[np.sign(channels["relevance"]) == sign]
            counted = (channels["q"] <= 0.05) & (np.sign(channels["change"]) == direction)
            assert rows.loc[name, way] == pytest.approx(counted.sum() / len(channels))
        assert rows.loc["mean", "falls"] == pytest.approx(rows["falls"].iloc[:-1].mean())
    (ax,) = plots.flow_share(EMPTY).axes
    widths = [abs(bar.get_width()) for bar in ax.patches]
    wanted = of(drawn, class_="mean")[["falls", "rises"]].to_numpy().ravel()
    np.testing.assert_allclose(widths, wanted)


def test_channels_that_were_not_tested_are_no_share() -> None:
    few = replace(BARE, flow=BARE.flow.assign(p=np.nan, q=np.nan))
    assert "too few images to test" in words(plots.flow_share(few))
    assert all(
        line.get_alpha() < 0.5
        for ax in plots.flow(few).axes
        for line in ax.lines
        if len(line.get_xdata()) > 2
    )


def test_confusion_stands_beside_the_overlap_of_pr_channels() -> None:
    figure = plots.confusion(EMPTY)
    names = ["bird", "dog", "frog"]
    off = ~np.eye(3, dtype=bool)
    for (left, right), model in zip(
        np.reshape(figure.axes[:4], (2, 2)), ("nat", "at"), strict=True
    ):
        rows = of(EMPTY.confusion, model=model, data="adversarial")
        counts = rows.pivot(index="class", columns="answer", values="count").loc[names]
        shares = counts.div(counts.sum(axis=1), axis=0)[names].to_numpy()
        known = of(EMPTY.activations, model=model, data="natural")
        relevance = (
            known.pivot(index="class", columns="channel", values="relevance")
            .loc[names]
            .to_numpy()
            .tolist()
        )
        shared = np.array(
            [[reference.overlap(one, other) for other in relevance] for one in relevance]
        )
        for ax, wanted in ((left, shares), (right, shared)):
            drawn = ax.images[0].get_array()
            np.testing.assert_allclose(drawn.data[off], wanted[off])
            assert (drawn.mask == ~off).all()
        rho = reference.spearman(shares[off].tolist(), shared[off].tolist())
        assert f"ρ {rho:.2f}".replace("-", "−") in right.get_title(loc="right")


def test_captions_say_what_is_not_independent_and_how_it_was_tested() -> None:
    assert "Mantel's test" in plots.caption("confusion", EMPTY)
    assert "Benjamini and Hochberg" in plots.caption("flow-share", EMPTY)
    for picture in _pictures(COMPARED).values():
        assert "{" not in picture.caption()


def test_only_the_last_layers_figures_are_shown_at_once() -> None:
    shown = {name: picture.subject.main for name, picture in _pictures(COMPARED).items()}
    for kind in (
        "classes",
        "decay-eps",
        "flow",
        "flow-share",
        "confusion",
        "embedding",
        "uniformity",
    ):
        assert shown[f"{kind}-layer4"]
        assert not shown[f"{kind}-layer3"]


@pytest.mark.parametrize(
    "kind", ["depth", "classes", "decay-eps", "flow", "flow-share", "confusion", "uniformity"]
)
def test_what_is_seen_is_said_of_every_model(kind: str) -> None:
    name = kind if kind == "depth" else f"{kind}-layer4"
    said = _pictures(COMPARED)[name].entry(name)["seen"]
    assert said.startswith("nat")
    assert "; at" in said
    assert "nan" not in said


def test_data_name_the_layer_that_was_asked_for() -> None:
    for make in (classes_data, embedding_data, uniformity_data, flow_data):
        assert set(make(COMPARED, "layer3")["layer"]) == {"layer3"}
        with pytest.raises(UserError, match="No layer 'layer5'"):
            make(COMPARED, "layer5")
