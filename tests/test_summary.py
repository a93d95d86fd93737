"""The first screen: a winner only where paired differences name one, and what goes with it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from channelscope.report.summary import average_ranks, name_winner, summarise
from channelscope.result import Result
from helpers.studies import make_result, replace_tables, synthetic_study

RESULT = make_result(synthetic_study(classes=("bird", "cat", "dog"), channels=6))


def with_robust(*robust: int, of: int = 100, under: int = 0) -> Result:
    """Return the result with so many images that withstand every attack, model by model.

    Images are in order, the first ones robust: so of two models one is right wherever the other is.
    The further models of ``under`` lose an image more under a second attack than under the first.
    """
    arrays = {"labels": np.zeros(of, int)}
    for index, count in enumerate(robust):
        arrays[f"correct/{index}/natural"] = np.arange(of) < of - 1
        arrays[f"correct/{index}/fgsm"] = np.arange(of) < count + under
        arrays[f"correct/{index}/pgd-20"] = np.arange(of) < count
    return replace(RESULT, arrays=arrays)


def test_a_winner_is_named_where_it_is_ahead_of_all_others() -> None:
    headline, differences = name_winner(with_robust(0, 60, 40, under=3), set())
    assert headline.startswith("at is the most robust: it withstands every attack tried on 60.0 %")
    assert (
        "The worst case of at minus that of cifs, on the same images: 20.0 points (95 % CI 1"
        in differences[0]
    )


def test_none_is_named_where_the_difference_may_be_chance() -> None:
    headline, differences = name_winner(with_robust(0, 42, 40), set())
    assert headline.startswith("No network is shown to be the most robust")
    assert "at (42.0 %) and cifs (40.0 %) do not differ beyond chance" in headline
    assert "at is ahead of nat" in headline
    assert "at minus that of cifs, on the same images: 2.0 points" in differences[0]


def test_a_network_that_cannot_be_trusted_does_not_win() -> None:
    result = with_robust(0, 60, 40)
    assert name_winner(result, {"at"})[0].startswith("cifs is the most robust")
    headline, _ = name_winner(result, {"nat", "at", "cifs"})
    assert "trusted" in headline
    rows = pd.DataFrame({"model": ["at"], "check": ["noise"], "sentence": ["It is random."]})
    summary = summarise(replace_tables(result, faults=rows))
    assert summary.headline.startswith("cifs is the most robust")
    assert summary.reasons[0] == "Do not trust at. It is random."


@pytest.mark.parametrize(
    ("masses", "faulty", "words"),
    [
        ((0.5, 0.2, 0.3), [], "the more robust the network"),
        ((0.5, 0.3, 0.2), [], "does not order the networks"),
        ((0.5, 0.1, 0.2), ["cifs"], "the more robust the network"),
        ((0.1, 0.2, 0.3), ["nat", "cifs"], "to 20.0 % in at"),
    ],
)
def test_what_nr_channels_have_is_told_with_whether_it_orders_the_networks(
    masses: tuple[float, ...], faulty: list[str], words: str
) -> None:
    """Of 0, 60 and 40 robust images; networks that cannot be trusted are left out."""
    result = with_robust(0, 60, 40)
    alignment = result.alignment.copy()
    for model, mass in zip(result.meta["models"], masses, strict=True):
        rows = (alignment["model"] == model) & (alignment["measure"] == "nr_mass_adversarial")
        alignment.loc[rows, "value"] = mass
    faults = pd.DataFrame({"model": faulty, "check": "noise", "sentence": "It is random."})
    tables = {"alignment": alignment} | ({"faults": faults} if faulty else {})
    *_, said = summarise(replace_tables(result, **tables)).reasons
    assert words in said
    assert not any(f" in {model}" in said for model in faulty)


def test_one_network_no_robust_one_and_none_at_all_have_their_sentences() -> None:
    only = replace(with_robust(30), meta=RESULT.meta | {"models": {"only": {}}})
    assert name_winner(only, set()) == (
        "only withstands every attack tried on 30.0 % of the images.",
        [],
    )
    assert name_winner(with_robust(0, 0, 0), set())[0] == (
        "No network withstands the attacks on any image."
    )
    assert name_winner(replace(RESULT, arrays={}), set())[0] == "No robustness was measured."


def test_the_table_has_a_row_a_network_with_intervals_and_bars() -> None:
    table = summarise(RESULT).table
    assert table is not None
    heads = ("network", "natural", "strongest plain attack (PGD-20)", "worst case")
    assert tuple(table.columns[:4]) == heads
    assert [row.head for row in table.rows] == ["nat", "at", "cifs"]
    worst = RESULT.select("robustness", model="at", attack="worst", **{"class": "all"}).iloc[0]
    cells = dict(zip(table.columns[1:], table.rows[1].cells, strict=True))
    assert cells["worst case"].value == worst["accuracy"]
    assert cells["worst case"].bars == [("adversarial", worst["accuracy"])]
    mass = RESULT.select("alignment", model="at", **{"class": "all"}).set_index("measure")["value"]
    assert [length for _, length in cells["NR mass, natural → attacked"].bars] == pytest.approx(
        [mass["nr_mass_natural"], mass["nr_mass_adversarial"]]
    )
    half = RESULT.select("damage_concentration", model="at", covered=0.5).iloc[0]
    damage = cells["channels with half the damage"]
    assert damage.value == half["channels"]
    assert damage.words.endswith("of 6")


def test_attacks_made_for_gates_are_no_plain_ones() -> None:
    rows = RESULT.robustness
    adaptive = rows[rows["attack"] == "pgd-20"].assign(attack="pgd-20:joint2", accuracy=0.0)
    result = replace_tables(RESULT, robustness=pd.concat([rows, adaptive]))
    table = summarise(result).table
    assert table is not None
    assert "strongest plain attack (PGD-20)" in table.columns


def test_magnitudes_are_averaged_over_classes_rank_by_rank_of_relevance() -> None:
    arrays = [
        RESULT.array("activations", quantity, "at", data, "layer4")
        for quantity, data in (
            ("relevance", "natural"),
            ("magnitude", "natural"),
            ("magnitude", "adversarial"),
        )
    ]
    expected = np.zeros((2, 6))
    for relevance, *magnitudes in zip(*arrays, strict=True):
        for place, channel in enumerate(sorted(range(6), key=lambda c: relevance[c])):
            expected[:, place] += [magnitude[channel] / 3 for magnitude in magnitudes]
    natural, adversarial, negative = average_ranks(RESULT, "at", "layer4")
    np.testing.assert_allclose([natural, adversarial], expected)
    assert negative == pytest.approx((arrays[0] < 0).mean())
    profiles = summarise(RESULT).profiles
    assert [profile.model for profile in profiles] == ["nat", "at", "cifs"]


def test_classes_and_models_without_images_are_left_out() -> None:
    study = synthetic_study(classes=("bird", "cat"), empty=("bird",), channels=3)
    assert len(summarise(make_result(study)).profiles) == 3
    assert summarise(make_result(study, "robustness")).profiles == []
