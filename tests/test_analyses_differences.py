"""Differences between networks: none between copies, naive tests on the images, corrected."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm

import reference
from channelscope.analyses.base import measure_study, worst_case
from channelscope.analyses.differences import MEASURES, check_differences
from channelscope.statistics.intervals import paired_difference
from channelscope.statistics.measures import mean_over_classes
from helpers.figures import rows_of
from helpers.studies import KeptStudy, make_result, synthetic_study

CLASSES = ("bird", "cat", "dog", "frog")
LAYERS = ("layer3", "layer4")
KEYS = ["layer", "other_layer", "class", "measure"]


def copy_model(study: KeptStudy) -> KeptStudy:
    """Return the study of two models with a copy of the first as a third."""
    arrays = dict(study.arrays)
    for name, array in study.arrays.items():
        what, _, rest = name.partition("/0/")
        if rest:
            arrays[f"{what}/2/{rest}"] = array
    known = {**study.known, "copy": study.known["one"]}
    return KeptStudy(arrays, known, study.classes, study.settings)


STUDY = copy_model(
    synthetic_study(("one", "other"), CLASSES, LAYERS, channels=8, empty=("dog",), replicates=60)
)
RESULT = make_result(STUDY, "alignment", "robustness", "differences")


def test_every_pair_is_the_later_network_less_the_earlier() -> None:
    table = RESULT.differences
    pairs = list(dict.fromkeys(zip(table["model"], table["other"], strict=True)))
    assert pairs == [("other", "one"), ("copy", "one"), ("copy", "other")]
    values = RESULT.alignment.set_index(["model", "layer", "class", "measure"])["value"]
    for model, other in pairs:
        rows = rows_of(table, model=model, other=other)
        assert len(rows) == (1 + len(CLASSES)) * (1 + len(LAYERS) * len(MEASURES))
        for row in rows[rows["layer"] != ""].to_dict("records"):
            where = (row["layer"], row["class"], row["measure"])
            difference = values[(model, *where)] - values[(other, *where)]
            assert row["value"] == pytest.approx(difference, nan_ok=True)


def test_copies_do_not_differ() -> None:
    rows = rows_of(RESULT.differences, model="copy", other="one")
    rows = rows[rows["class"] != "dog"]
    assert (rows["value"] == 0).all()
    assert (rows[["p", "q"]] == 1).all().all()
    of_accuracy = rows["measure"] == "robust_accuracy"
    assert (rows.loc[~of_accuracy, ["low", "high"]] == 0).all().all()
    # Among few images none differs: that others would is not excluded.
    assert (rows.loc[of_accuracy, "low"] < 0).all()
    assert (rows.loc[of_accuracy, "high"] > 0).all()


def test_mcnemars_test_is_on_the_images_of_the_class() -> None:
    robust = rows_of(RESULT.differences, model="other", other="one", measure="robust_accuracy")
    one, other = (worst_case(STUDY, model) for model in ("one", "other"))
    for name in ("all", *CLASSES):
        row = rows_of(robust, class_=name).iloc[0]
        images = STUDY.labels >= 0 if name == "all" else STUDY.labels == CLASSES.index(name)
        if not images.any():
            assert np.isnan(row["p"])
            continue
        gained, lost = int((other & ~one)[images].sum()), int((one & ~other)[images].sum())
        n = gained + lost
        p = 1.0
        if gained != lost:  # mid-p: half of what was observed, on both sides
            p = binomtest(gained, n).pvalue - binom.pmf(gained, n, 0.5)
        interval = paired_difference(other[images], one[images])
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
        assert row["value"] == pytest.approx((gained - lost) / images.sum())
        assert row["p"] == pytest.approx(p)


def test_p_is_of_the_paired_bootstrap() -> None:
    """Both networks see the same images in each replicate."""
    ours, theirs = (
        measure_study(STUDY, model, "layer4")["cosine_centred"] for model in ("other", "one")
    )
    for name, replicates in {
        "all": mean_over_classes(ours) - mean_over_classes(theirs),
        "bird": (ours - theirs)[:, 0],
    }.items():
        value, others = replicates[0], replicates[1:][~np.isnan(replicates[1:])]
        table = RESULT.differences.set_index(["model", "other", *KEYS])
        row = table.loc[("other", "one", "layer4", "layer4", name, "cosine_centred")]
        assert row["p"] == pytest.approx(2 * norm.sf(abs(value) / np.std(others, ddof=1)))
        low, high = np.quantile(others, [0.025, 0.975]) - others.mean() + value
        assert (row["low"], row["high"]) == pytest.approx((min(low, value), max(high, value)))


def test_q_is_corrected_over_all_that_is_compared_of_a_pair() -> None:
    for model, other in (("other", "one"), ("copy", "other")):
        rows = rows_of(RESULT.differences, model=model, other=other)
        tested = rows.dropna(subset=["p"])
        wanted = reference.false_discovery(tested["p"].tolist())
        assert tested["q"].tolist() == pytest.approx(wanted)
        assert rows[rows["p"].isna()]["q"].isna().all()


def test_networks_of_unequally_many_layers_differ_in_accuracy_alone() -> None:
    study = synthetic_study(("one", "other"), CLASSES, LAYERS, channels=4)
    study.known = {**study.known, "one": {**study.known["one"], "layers": ["layer4"]}}
    assert set(make_result(study, "differences").differences["measure"]) == {"robust_accuracy"}


def test_one_network_has_nothing_to_differ_from() -> None:
    study = synthetic_study(("one",), CLASSES, channels=4)
    result = make_result(study, "differences")
    assert result.differences.empty
    check_differences(result)
