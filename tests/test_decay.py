"""Decay: the measures at each strength are those of a comparison under that attack, and steps are one run's."""

from typing import Any

import pandas as pd
import pytest
import torch
from channelscope.comparison import Comparison, compare
from channelscope.comparison.decay import Stopped
from channelscope.statistics.alignment import BOUNDS
from torch import Tensor

from channelscope.attacks import FGSM, PGD, make_generators
from helpers import networks
from helpers.expect import mistake

QUICK: dict[str, Any] = {
    "attack": "pgd-3",
    "attacks": (),
    "replicates": 20,
    "progress": False,
    "thumbnails": False,
}


def some(**options: Any) -> Comparison:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = networks.resnet()
    return compare(
        {"net": net}, networks.images(20), layers=["layer2", "layer4"], **QUICK | options
    )


def at(found: Comparison, varied: str, value: float) -> pd.DataFrame:
    rows = found.decay[(found.decay["varied"] == varied) & (found.decay["at"] == value)]
    return rows.set_index(["layer", "measure"])[["value", "low", "high"]]


def overall(found: Comparison) -> pd.DataFrame:
    """Lay out what a comparison found over all classes as the decay's rows."""
    rows = found.alignment[found.alignment["class"] == "all"].set_index(["layer", "measure"])[
        ["value", "low", "high"]
    ]
    robust = found.robustness.query("`class` == 'all' and attack == 'pgd-3'").iloc[0]
    rows.loc[("", "robust_accuracy"), :] = (
        robust[["accuracy", "low", "high"]].astype(float).tolist()
    )
    return rows


def test_nothing_is_swept_unless_asked_for() -> None:
    assert some().decay.empty


def test_each_radius_is_a_comparison_under_that_radius() -> None:
    found = some(eps=0.1, eps_sweep=[0.2, 0.0, 0.1, 0.2])
    assert found.decay["at"].unique().tolist() == [0.0, 0.1, 0.2]
    assert (found.meta["eps_sweep"], found.meta["step_sweep"]) == ([0.2, 0.0, 0.1, 0.2], [])
    for eps in (0.0, 0.1, 0.2):
        rows = at(found, "eps", eps)
        assert set(rows.index.get_level_values("measure")) == {*BOUNDS, "robust_accuracy"} - {
            "relevance_robust_correlation"
        }
        pd.testing.assert_frame_equal(rows.sort_index(), overall(some(eps=eps)).sort_index())
    assert at(found, "eps", 0.0).loc[("layer4", "cosine"), "value"] == pytest.approx(1)
    pd.testing.assert_frame_equal(found.alignment, some(eps=0.1).alignment)


def test_steps_are_those_of_the_attack_itself() -> None:
    found = some(eps=0.1, step_sweep=[3, 1])
    assert found.decay["at"].unique().tolist() == [1, 3]
    assert set(found.decay["varied"]) == {"step"}
    pd.testing.assert_frame_equal(at(found, "step", 3).sort_index(), overall(found).sort_index())
    cosine = [at(found, "step", step).loc[("layer4", "cosine"), "value"] for step in (1, 3)]
    assert cosine[0] > cosine[1]


@pytest.mark.parametrize(("first", "more"), [(1, 1), (2, 1), (1, 4)])
def test_a_stopped_attack_is_where_one_run_is_after_so_many_steps(first: int, more: int) -> None:
    net, (x, y) = networks.plain(), networks.images()
    attack = PGD(eps=0.3, steps=4)
    step = PGD(eps=0.3, steps=1, step=attack.step_length, random_start=False)

    def stopped(after: int) -> Tensor:
        return Stopped(attack, after)(net, x, y, make_generators(0, str(attack), range(len(x))))

    there = stopped(first)
    for _ in range(more):
        there = step(net, there, y).clamp(x - 0.3, x + 0.3)
    torch.testing.assert_close(stopped(first + more), there, atol=1e-6, rtol=0)
    whole = attack(net, x, y, make_generators(0, str(attack), range(len(x))))
    assert torch.equal(stopped(4), whole)
    assert str(Stopped(attack, 7)) == str(attack)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"eps_sweep": [-0.1]}, "radii from 0 up"),
        ({"eps_sweep": [float("nan")]}, "radii from 0 up"),
        ({"step_sweep": [0]}, "steps from 1 up"),
        ({"step_sweep": [2], "attack": "fgsm"}, "fgsm has no steps to sweep"),
        ({"step_sweep": [2], "attack": "pgd-3x2"}, "PGD of one start"),
        ({"step_sweep": [2], "attack": PGD(early_stop=1)}, "PGD of one start"),
    ],
    # Not as they are written: the objective's address is another in every process that collects the tests.
    ids=[
        "eps below 0",
        "eps not a number",
        "no steps",
        "attack without steps",
        "several starts",
        "stopped early",
    ],
)
def test_strengths_that_are_none(options: dict[str, Any], said: str) -> None:
    with mistake(said):
        some(**options)


def test_any_attack_with_a_radius_can_be_swept_in_it() -> None:
    found = some(attack=FGSM(eps=0.1), eps_sweep=[0.05])
    assert len(found.decay) == 2 * 10 + 1
