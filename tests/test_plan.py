"""Plans: what a training will cost, before it begins."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from channelscope.cli import main
from channelscope.cli.plans import format_plan
from channelscope.data.sampling import hold_out
from channelscope.training import Recipe
from channelscope.training.plan import KNOWN, Cost, Images, describe_images, plan_training
from helpers.expect import contents, randomness_untouched
from helpers.runs import TINY, digits

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]

IMAGES = Images("digits", (1, 8, 8), 10, 1000, 100)


def plan(recipe: str, **changes: object) -> list[Cost]:
    return plan_training(Recipe.suited_to("digits", recipe).override(**TINY | changes), IMAGES)


@pytest.mark.parametrize(
    ("method", "losses"),
    [
        ("standard", ["natural"]),
        ("trades-cifs", ["trades"]),
        ("fat", ["adversarial"]),
        ("cifs-published", ["natural", "adversarial"]),
    ],
)
def test_a_plan_has_a_line_for_each_stage(method: str, losses: list[str]) -> None:
    costs = plan(method)
    assert [cost.loss for cost in costs] == losses
    assert costs[-1].epochs == 2
    assert costs[-1].steps == 2 * 63, "the last batch of an epoch is smaller"
    for cost in costs:
        assert cost.hours == pytest.approx(cost.epochs * cost.seconds / 3600)
        assert cost.seconds > 0
        assert cost.memory > cost.disk > 0


def test_more_images_a_step_and_wider_networks_take_more_memory() -> None:
    small, large = (plan("at", batch_size=size)[0].memory for size in (16, 64))
    portions = plan("at", batch_size=64, accumulate=4)[0].memory
    wide = plan("at", batch_size=16, width=8)[0]
    assert small < large
    assert portions == small
    assert wide.memory > small
    assert wide.disk > plan("at")[0].disk


def test_images_that_are_not_held_out_are_trained_on() -> None:
    assert plan("at", validation="none")[0].steps == 2 * 69


def test_a_plan_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with randomness_untouched():
        plan("cifs")
    assert not contents(tmp_path)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cifar10", [5000] * 10),
        ("fashion-mnist", [6000] * 10),
        ("mnist", [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("svhn", [4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659]),
    ],
)
def test_known_data_sets_have_as_many_images_as_are_held_out_and_left(
    name: str, counts: Sequence[int]
) -> None:
    labels = torch.repeat_interleave(torch.arange(10), torch.tensor(counts))
    train, val = hold_out(labels, 0.1, seed=0)
    assert (KNOWN[name].train, KNOWN[name].val) == (len(train), len(val))


def test_a_data_set_that_is_here_is_counted() -> None:
    assert describe_images(digits()) == Images("digits", (1, 8, 8), 4, 48, 24)


def test_the_command_tells_a_newcomer_what_to_expect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "train --recipe cifar10-resnet18-cifs-published --width 1 --set attack.steps=1 --plan"
    assert main(command.split()) == 0
    said = capsys.readouterr().out
    assert "45,000 training and 5,000 validation images of cifar10, 3 x 32 x 32" in said
    assert "1 of 2  natural images          49  17,248" in said
    assert "2 of 2  adversarial images     120  42,240" in said
    assert "OUT.before" in said
    assert "--resume" in said
    assert all(len(line) <= 100 for line in said.splitlines())
    assert not contents(tmp_path)
    assert main(["train", "--method", "at", "--images", "200", "--epochs", "2", "--plan"]) == 0
    assert "200 training and 360 validation images of digits" in capsys.readouterr().out


def test_times_and_bytes_are_written_in_units_that_fit() -> None:
    costs = [Cost("natural", 10, 100, 30.0, 2_500_000_000, 45_000_000)]
    costs += [Cost("trades", 10, 100, 86_400.0, 5_000_000, 45_000_000)]
    said = format_plan("mine.toml", IMAGES, costs)
    for words in ("30.0 seconds", "5.0 minutes", "2.5 GB", "10.0 days", "5 MB", "trades"):
        assert words in said
