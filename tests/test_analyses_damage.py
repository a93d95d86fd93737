"""The damage tables from arrays: known shares, the verdict's nulls and effects, figures."""

from typing import Any

import numpy as np
import pytest
from numpy import ndarray

from channelscope.analyses.base import ChannelAccount, Damage, DamagedLayer
from channelscope.analyses.damage import count_channels, kinds_data, waterfall_data
from channelscope.analyses.nr_damage import judge_nr_damage
from channelscope.analyses.repairs import repairs_data
from channelscope.result import Result
from helpers.expect import mistake
from helpers.figures import join_texts
from helpers.studies import KeptStudy, make_result

CLASSES = ("a", "b", "c")
SETTINGS: dict[str, Any] = {
    "attack": "pgd-20",
    "eps": 0.1,
    "norm": "inf",
    "level": 0.95,
    "replicates": 100,
    "bound": 0.02,
    "fractions": [0.5],
    "seed": 0,
}


def make_study(
    share: ndarray, *, refused: int = 0, broken: float = 1.0, accurate: bool = True
) -> KeptStudy:
    """Make a study in which NR channels that rise do this share of each image's damage.

    Of four channels 0 is NR and rises, 1 is PR and falls, 2 is PR and counters with 0.2, 3 does
    nothing.
    """
    n = len(share)
    rng = np.random.default_rng(len(share))
    labels = np.arange(n) % 3
    draws = rng.poisson(1, (n, SETTINGS["replicates"]))
    natural = np.tile([1.0, 2.0, 1.0, 1.0], (n, 1))
    adversarial = np.tile([2.0, 1.0, 2.0, 1.0], (n, 1))
    harm = 1.2  # of which 0.2 is countered
    channels = np.stack([harm * share, harm * (1 - share), np.full(n, -0.2), np.zeros(n)], 1)
    is_broken = np.arange(n) < broken * n
    answers = np.where(is_broken, (labels + 1) % 3, labels)
    error = np.where(np.arange(n) < refused, 0.5, 0.001)
    first = labels if accurate else np.zeros(n, np.int64)
    arrays = {
        "labels": labels,
        "weights": np.concatenate([np.ones((n, 1)), draws], 1),
        "correct/0/natural": first == labels,
        "correct/0/pgd-20": ~is_broken,
        "answers/0/natural": first,
        "answers/0/adversarial": answers,
        "activations/0/natural/layer4": natural,
        "activations/0/adversarial/layer4": adversarial,
        "relevance/0/layer4": np.tile([-1.0, 1.0, 1.0, 1.0], (n, 1)),
    }
    account = ChannelAccount(channels, {}, np.ones(n), error)
    curves = {
        ("account", "repair"): np.stack([np.arange(n) % 2 == 0, np.ones(n, bool)], 1),
        ("account", "harm"): np.stack([np.arange(n) % 4 > 0, np.zeros(n, bool)], 1),
        ("random", "repair"): np.stack([np.zeros(n, bool), np.ones(n, bool)], 1),
        ("random", "harm"): np.stack([np.ones(n, bool), np.zeros(n, bool)], 1),
    }
    layer = DamagedLayer({"attached": account}, (2, 4), curves)
    damage = Damage(is_broken, answers, np.ones(n), np.full(n, 0.4), {"layer4": layer})
    known = {"net": {"layers": ["layer4"], "penultimate": ["layer4"], "digest": "ab" * 32}}
    return KeptStudy(arrays, known, CLASSES, SETTINGS, "damage", damages={"net": damage})


def result_of(study: KeptStudy) -> Result:
    return make_result(study)


def test_shares_of_kinds_channels_and_points_are_those_that_were_planted() -> None:
    n = 60
    result = result_of(make_study(np.full(n, 0.75), refused=6))
    kinds = result.select("kinds", **{"class": "all"}).set_index("kind")["share"]
    expected = {"NR rises": 0.9, "PR falls": 0.3, "counter": -0.2, "around": 0.0}
    assert {kind: kinds[kind] for kind in expected} == pytest.approx(expected)
    assert kinds.sum() == pytest.approx(1)
    ledger = result.select("ledger", rival="all", **{"class": "a"}).set_index("channel")
    assert ledger["damage"].tolist() == pytest.approx([0.9, 0.3, -0.2, 0])
    assert ledger["rises"].tolist() == pytest.approx([0.9, 0, 0, 0])
    assert ledger["falls"].tolist() == pytest.approx([0, 0.3, 0, 0])
    assert ledger["nr"].tolist() == [1, 0, 0, 0]
    assert ledger["count"].tolist() == [18] * 4
    rivals = result.tables["ledger"].groups
    assert {group[4] for group in rivals} == {"all", "a", "b", "c"}
    completeness = result.completeness.iloc[0]
    assert (completeness["images"], completeness["refused"]) == (60, 6)
    channels = result.concentration.set_index("covered")["channels"]
    assert channels.to_dict() == {0.5: 1, 0.9: 2}
    repairs = result.select("repairs", ranking="account").set_index(["curve", "channels"])["right"]
    assert repairs["repair"].to_dict() == {0: 0, 2: 0.5, 4: 1}
    assert repairs["harm"].to_dict() == {0: 0, 2: 0.25, 4: 1}
    areas = result.select("repair_areas", curve="repair").set_index("ranking")
    assert areas["area"].to_dict() == pytest.approx({"account": 0.5, "random": 0.25})
    assert areas["rank"].to_dict() == {"account": 1, "random": 2}


def test_channels_are_counted_until_their_share_is_reached() -> None:
    contributions = np.array([[5.0, 3.0, 2.0, -9.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 7.0, 0.0]])
    assert count_channels(contributions, 0.5).tolist() == [1, 2, 1]
    assert count_channels(contributions, 0.9).tolist() == [3, 4, 1]


# ---------------------------------------------------------------- the verdict


def judge(share: ndarray, **options: Any) -> str:
    (verdict,) = judge_nr_damage(make_study(share, **options))
    return verdict.verdict


def test_verdict_seldom_decides_where_half_of_the_damage_is_of_either_kind() -> None:
    rng = np.random.default_rng(0)
    decided = sum(judge(rng.beta(0.5, 0.5, 80)) != "inconclusive" for _ in range(200))
    assert decided <= 0.05 * 200 + 3 * np.sqrt(0.05 * 0.95 * 200)


@pytest.mark.parametrize(
    ("mean", "expected"), [(0.65, "supported"), (0.35, "not supported"), (0.53, "inconclusive")]
)
def test_verdict_finds_effects_and_calls_trifles_inconclusive(mean: float, expected: str) -> None:
    rng = np.random.default_rng(1)
    shares = [rng.beta(8 * mean, 8 * (1 - mean), 300) for _ in range(20)]
    assert sum(judge(share) == expected for share in shares) >= 18


def test_verdict_says_the_share_and_its_interval() -> None:
    (verdict,) = judge_nr_damage(make_study(np.linspace(0.6, 0.9, 90)))
    assert verdict.estimate == pytest.approx(0.25)
    assert verdict.least == 0.05
    assert "75.0 %" in verdict.statement
    assert (verdict.n, verdict.seeds) == (90, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"broken": 0.1}, "it takes 20 broken images"),
        ({"refused": 60}, "does not add up"),
        ({"accurate": False}, "not clearly above chance"),
    ],
)
def test_verdict_is_not_judged_without_its_conditions(options: dict[str, Any], words: str) -> None:
    (verdict,) = judge_nr_damage(make_study(np.full(90, 0.8), **options))
    assert verdict.verdict == "not judged"
    assert words in verdict.statement


# ---------------------------------------------------------------- figures


def test_waterfall_goes_from_the_natural_to_the_attacked_margin() -> None:
    result = result_of(make_study(np.full(60, 0.75)))
    drawn = waterfall_data(result, "b").set_index("bar")
    assert drawn.index.tolist() == [
        "natural",
        *("channel 0", "channel 1", "channel 3", "channel 2"),
        "attacked",
    ]
    assert -drawn["damage"]["natural"] == pytest.approx(0.4)
    assert -drawn["damage"]["attacked"] == pytest.approx(0.4 - 1.0)
    ends = drawn["start"] - drawn["damage"]
    assert drawn["start"].iloc[2:-1].tolist() == pytest.approx(ends.iloc[1:-2].tolist())
    figure = result.plot("waterfall", class_name="b")
    (ax,) = figure.axes
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == pytest.approx((-drawn["damage"]).tolist())
    assert "class" not in join_texts(figure)


def test_kinds_stack_to_the_whole() -> None:
    result = result_of(make_study(np.full(60, 0.75)))
    drawn = kinds_data(result)
    (ax,) = result.plot("kinds").axes
    right = max(bar.get_x() + bar.get_width() for bar in ax.patches)
    left = min(bar.get_x() + bar.get_width() for bar in ax.patches)
    assert right + left == pytest.approx(1)
    assert len(ax.patches) == len(drawn)


def test_repairs_draw_the_account_and_chance() -> None:
    result = result_of(make_study(np.full(60, 0.75)))
    drawn = repairs_data(result)
    assert set(drawn["ranking"]) == {"account", "random"}
    repair, harm = result.plot("repairs").axes
    assert [list(line.get_ydata()) for line in repair.lines[:2]] == [[0, 0.5, 1], [0, 0, 1]]
    assert [list(line.get_ydata()) for line in harm.lines[:2]] == [[0, 0.25, 1], [0, 0, 1]]


def test_pictures_have_captions_and_alternative_texts() -> None:
    result = result_of(make_study(np.full(60, 0.75)))
    assert {name.split("-")[0] for name in result.figures} == {"waterfall", "kinds", "repairs"}
    for name in result.figures:
        assert "PGD-20" in result.caption(name)
    assert "90.0 % through NR channels that rise" in kinds_text(result)


def kinds_text(result: Result) -> str:
    from channelscope.gallery import list_figures

    picture = list_figures(result)["kinds"]
    return picture.plot.alt_text(picture.data())


def test_unknown_layer_is_a_mistake() -> None:
    result = result_of(make_study(np.full(60, 0.75)))
    for name in ("waterfall", "repairs"):
        with mistake("No layer 'layer9'"):
            result.plot(name, layer="layer9")
