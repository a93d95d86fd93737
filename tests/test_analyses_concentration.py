"""Concentration of the damage: the counts are those of the account, image by image."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import channelscope as cs
from channelscope.analyses.concentration import check_concentration, count_per_image
from helpers.networks import images, plain
from helpers.studies import KeptStudy, make_result, replace_tables, synthetic_study

# A class a row: its weight of each of four channels.
WEIGHT = np.array([[1.0, -1.0, 0.0, 0.5], [-1.0, 1.0, 0.5, 0.0]])


def make_study(labels: list[int], answers: list[int], fall: np.ndarray) -> KeptStudy:
    """Return a study of one network whose activations fall by so much, image by image."""
    study = synthetic_study(("net",), ("a", "b"), channels=4, count=len(labels) // 2)
    shape = (len(labels), 4)
    arrays = {
        "labels": np.array(labels),
        "relevance/0/layer4": WEIGHT[labels],
        "activations/0/natural/layer4": np.ones(shape),
        "activations/0/adversarial/layer4": 1 - fall,
        "answers/0/adversarial": np.array(answers),
        "correct/0/natural": np.ones(len(labels), bool),
    }
    return replace(study, arrays=study.arrays | arrays)


def test_channels_are_counted_on_broken_images_by_the_difference_of_two_weights() -> None:
    # W_a - W_b = [2, -2, -0.5, 0.5]: of the falls [1, 0, 0, 0] all is one channel's; of
    # [1, -1, 0, 0] two have half each; of [-1, 0, 0, 0] the margin rises, which no attack does.
    falls = np.array([[1, 0, 0, 0], [1, -1, 0, 0], [-1, 0, 0, 0], [1, 0, 0, 0]], float)
    study = make_study([0, 0, 0, 1], [1, 1, 1, 1], falls)
    counts, accounted, broken = count_per_image(study, "net", "layer4")
    assert broken.tolist() == [True, True, True, False]
    assert accounted.tolist() == [True, True, False, False]
    assert counts[accounted].tolist() == [[1, 1], [1, 2]]
    table = make_result(study, "concentration").damage_concentration.set_index("covered")
    assert table["channels"].to_dict() == {0.5: 1.0, 0.9: 1.5}
    assert set(table["images"]) == {2}
    assert set(table["broken"]) == {3}


def test_a_wrong_answer_whose_class_has_no_image_has_no_account() -> None:
    study = make_study([0, 0, 0, 0], [1, 1, 1, 0], np.ones((4, 4)))
    _, accounted, broken = count_per_image(study, "net", "layer4")
    assert broken.sum() == 3
    assert not accounted.any()
    assert make_result(study, "concentration").damage_concentration.empty


def test_a_table_of_another_layer_or_of_too_many_channels_is_refused() -> None:
    result = make_result(synthetic_study(("net",), channels=4), "concentration")
    table = result.damage_concentration
    assert len(table) == 2
    other = replace_tables(result, damage_concentration=table.assign(layer="other"))
    with pytest.raises(ValueError, match="layers that were not measured"):
        check_concentration(other)
    more = replace_tables(result, damage_concentration=table.assign(channels=5.0))
    with pytest.raises(ValueError, match="more channels"):
        check_concentration(more)


@pytest.mark.slow
def test_the_counts_are_those_of_the_damage_account() -> None:
    options = {"attack": "pgd-3", "eps": 0.2, "images": 24, "replicates": 20, "progress": False}
    x, _ = images(24)
    network = plain().eval()
    with torch.no_grad():  # all classes are answered, and every answer is right
        network[-1].bias -= network(x).mean(0)
        y = network(x).argmax(1)
    tables = [
        run({"net": network}, (x, y), **options, **more)
        for run, more in ((cs.compare, {}), (cs.damage, {"scorers": ()}))
    ]
    counted, account = tables[0].damage_concentration, tables[1].concentration
    assert len(counted)
    columns = ["covered", "of", "channels"]
    assert counted[columns].to_numpy() == pytest.approx(account[columns].to_numpy())
