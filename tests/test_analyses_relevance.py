"""Relevance by several scorers: naive means and rank correlations; the figure draws every pair."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy import ndarray

import reference
from channelscope.analyses.relevance import (
    check_relevance,
    count_signs,
    describe_scorer_agreement,
    draw_scorer_agreement,
    scorer_agreement_data,
)
from helpers.figures import join_texts, rows_of
from helpers.studies import KeptStudy, make_result

CLASSES = ("bird", "cat", "dog", "frog")
SCORERS = ("gradient", "ablation", "weights")
LABELS = np.arange(24) % 3  # class frog has no images


@dataclass(eq=False)
class ScoredStudy(KeptStudy):
    """A study in which weights score layer4 alone, as of real networks."""

    def relevance(self, model: str, layer: str, scorer: str | None = None) -> ndarray:
        if scorer == "weights" and layer != "layer4":
            raise KeyError((scorer, layer))
        return super().relevance(model, layer, scorer)


def make_study(scorers: Sequence[str] = SCORERS) -> KeptStudy:
    rng = np.random.default_rng(0)
    draws = rng.poisson(1, (24, 30))
    arrays = {"labels": LABELS, "weights": np.concatenate([np.ones((24, 1)), draws], 1)}
    for index in range(2):
        for layer in ("layer3", "layer4"):
            common = rng.normal(size=(24, 6))
            for scorer in SCORERS:
                scores = common + rng.normal(size=(24, 6))
                arrays[f"scores/{index}/{layer}/{scorer}"] = scores.astype(np.float32)
    known = {name: {"layers": ["layer3", "layer4"]} for name in ("plain", "gated")}
    settings = {"scorers": dict.fromkeys(scorers, "1"), "level": 0.95}
    return ScoredStudy(arrays, known, CLASSES, settings, "relevance")


STUDY = make_study()
RESULT = make_result(STUDY)


def test_the_table_has_the_mean_over_the_images_of_each_class() -> None:
    for model in STUDY.models:
        for scorer in SCORERS:
            where = {"model": model, "layer": "layer4", "scorer": scorer}
            scores = STUDY.relevance(**where).astype(float)
            for k, name in enumerate(CLASSES[:3]):
                relevance = RESULT.select("relevance", **where, **{"class": name})["relevance"]
                np.testing.assert_allclose(relevance, scores[k == LABELS].mean(0))
            assert (
                RESULT.select("relevance", **where, **{"class": "frog"})["relevance"].isna().all()
            )


def test_agreement_is_the_mean_rank_correlation_and_lies_in_its_interval() -> None:
    for row in RESULT.agreement.itertuples():
        correlations = []
        for name in CLASSES[:3]:
            one, other = (
                RESULT.select(
                    "relevance",
                    model=row.model,
                    layer=row.layer,
                    scorer=scorer,
                    **{"class": name},
                )["relevance"].tolist()
                for scorer in (row.scorer, row.other)
            )
            correlations.append(reference.spearman(one, other))
        assert row.value == pytest.approx(np.mean(correlations))
        assert -1 <= row.low < row.value < row.high <= 1


def test_scorers_that_refuse_a_layer_are_left_out_and_all_others_compared_once() -> None:
    pairs = RESULT.agreement[["model", "layer", "scorer", "other"]].to_numpy().tolist()
    assert pairs == [
        [model, *pair]
        for model in ("plain", "gated")
        for pair in (
            ("layer3", "gradient", "ablation"),
            ("layer4", "gradient", "ablation"),
            ("layer4", "gradient", "weights"),
            ("layer4", "ablation", "weights"),
        )
    ]


def test_the_signs_of_channels_are_counted_mean_over_the_classes_with_images() -> None:
    counts = count_signs(RESULT)
    assert len(counts) == 2 * (2 + 3)
    assert counts["positive"].tolist() == (6 - counts["negative"]).tolist()
    first = RESULT.select("relevance", model="plain", layer="layer3", scorer="gradient")
    positive = (first["relevance"] > 0).sum() / 3
    assert counts["positive"].iloc[0] == pytest.approx(positive)


def test_one_scorer_has_no_agreement() -> None:
    result = make_result(make_study(["gradient"]))
    assert result.agreement.empty
    assert result.figures == []


def test_scorers_of_which_there_is_no_relevance_are_refused() -> None:
    check_relevance(RESULT)
    agreement = RESULT.agreement.assign(other="weights")
    with pytest.raises(ValueError, match="other scorers"):
        check_relevance(replace(RESULT, tables={**RESULT.tables, "agreement": agreement}))


def test_the_figure_draws_every_pair_of_every_layer() -> None:
    drawn = scorer_agreement_data(RESULT)
    figure = draw_scorer_agreement(RESULT)
    panels = figure.axes[: len(STUDY.models) * 2]  # a colour bar is last
    titles = [f"{model}, {layer}" for model in STUDY.models for layer in ("layer3", "layer4")]
    assert [ax.get_title("left") for ax in panels] == titles
    for ax, (_, cells) in zip(panels, drawn.groupby(["model", "layer"], sort=False), strict=True):
        rows, columns = (
            [label.get_text() for label in labels]
            for labels in (ax.get_yticklabels(), ax.get_xticklabels())
        )
        array = np.ma.reshape(ax.collections[0].get_array(), (len(rows), len(columns)))
        for cell in cells.itertuples():
            shown = array[rows.index(cell.other), columns.index(cell.scorer)]
            assert shown == pytest.approx(cell.value)
        assert len(ax.texts) == len(cells) == array.count()
    assert "24 images" in join_texts(figure)


def test_the_alternative_text_names_the_scorers_that_agree_least_and_most() -> None:
    rows = rows_of(RESULT.agreement, model="plain", layer="layer4")
    least, most = (rows.loc[place] for place in (rows["value"].idxmin(), rows["value"].idxmax()))
    assert (
        f"plain, layer4: rank correlations from {least['value']:.2f} ({least['scorer']} and "
        f"{least['other']}) to {most['value']:.2f} ({most['scorer']} and {most['other']})"
    ) in describe_scorer_agreement(scorer_agreement_data(RESULT))
