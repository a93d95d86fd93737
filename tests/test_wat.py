"""WAT: the weights of classes, from their losses on attacked validation images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import reference
from channelscope.data import Dataset, MemorySplit
from channelscope.layers.hooks import eval_mode
from channelscope.training import engine
from channelscope.training.engine import reweigh_classes
from channelscope.training.state import State
from channelscope.weights import Checkpoint
from helpers.expect import mistake
from helpers.runs import digits, run, tiny_job, trained

pytestmark = pytest.mark.usefixtures("unchecked")

EXACT: dict[str, Any] = {"precision": "fp64"}


def start(method: str, folder: Path, **changes: Any) -> State:
    return State.start(tiny_job(method, folder / "net.pt", **changes), "cpu")


def uneven() -> Dataset:
    """Return digits of which the first class has fewer validation images than the others."""
    data = digits()
    assert isinstance(data.val, MemorySplit)
    return Dataset(
        "digits", data.classes, data.test, data.train, data.val.subset(torch.arange(4, 24))
    )


@pytest.fixture(scope="module", params=[0.0, 0.1, 2.0])
def weighing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> State:
    """Make a state of which only the weights of the classes are asked for."""
    return start("wat", tmp_path_factory.mktemp("wat"), eta=request.param)


COSTS = st.lists(st.floats(0, 8), min_size=5, max_size=5)


@given(st.lists(COSTS, min_size=1, max_size=5))
def test_weights_are_those_of_the_experts(weighing: State, costs: list[list[float]]) -> None:
    weighing.class_costs = torch.tensor(costs, dtype=torch.float64).sum(0)
    weighing.history = [{} for _ in costs]
    assert weighing.class_weights is not None
    eta = weighing.job.recipe.loss.eta
    assert eta is not None
    expected = reference.class_weights(costs, eta)
    assert weighing.class_weights.tolist() == pytest.approx(expected)


def test_costs_are_the_losses_of_each_class_and_of_all(tmp_path: Path) -> None:
    """Without noise at the start and without steps, adversarial images are the natural ones."""
    state = start("wat", tmp_path, data=uneven(), attack_eps=0, attack_start=0, **EXACT)
    weights = reweigh_classes(state, 0)
    x, y = next(uneven().val.batches(100))
    with eval_mode(state.network), torch.no_grad():
        losses = [
            reference.trades(logits, logits, label, 6.0).item()
            for logits, label in zip(state.network(x.double()), y.tolist(), strict=True)
        ]
    of_class = [
        [loss for loss, label in zip(losses, y, strict=True) if label == k] for k in range(4)
    ]
    expected = [sum(part) / len(part) for part in (*of_class, losses)]
    assert state.class_costs.tolist() == pytest.approx(expected)
    assert weights == {f"{name}.class_weight": 2.0 for name in digits().classes}


@pytest.mark.parametrize("method", ["wat", "wat-cifs"])
def test_costs_are_higher_under_the_attack_and_add_up(method: str, tmp_path: Path) -> None:
    state = start(method, tmp_path)
    quiet = start(method, tmp_path, attack_eps=0, attack_start=0)
    for one in (state, quiet):
        reweigh_classes(one, 0)
    assert (state.class_costs > quiet.class_costs).all()
    once = state.class_costs.clone()
    reweigh_classes(state, 1)  # of the same network: the random starts are the same, too
    torch.testing.assert_close(state.class_costs, 2 * once)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradient_is_that_of_the_weighed_loss(accumulate: int, tmp_path: Path) -> None:
    state = start("wat", tmp_path, accumulate=accumulate, **EXACT)
    state.history = [{}]
    state.class_costs = torch.tensor([3.0, 1.0, 0.5, 2.0, 1.5], dtype=torch.float64)
    x, y = next(digits().train.batches(12))
    x = x.double()
    x_adv = (x + 0.05 * torch.randn_like(x)).clamp(0, 1)
    engine._backward(state, x, x_adv, y, len(y))
    gradients = [value.grad.clone() for value in state.network.parameters()]
    state.optimizer.zero_grad()
    weights = reference.class_weights([state.class_costs.tolist()], 0.1)
    losses: Tensor = state.job.loss(state.network, x, x_adv, y)
    total = sum(weights[k] * loss for k, loss in zip(y.tolist(), losses, strict=True))
    (total / len(y)).backward()
    for value, gradient in zip(state.network.parameters(), gradients, strict=True):
        torch.testing.assert_close(value.grad, gradient)


def test_a_class_that_is_lost_gains_weight(tmp_path: Path) -> None:
    """All of its training images but one are labelled as another class."""
    data = digits()
    assert isinstance(data.train, MemorySplit)
    labels = data.train.labels.clone()
    labels[37:] = 2
    spoilt = Dataset(
        "digits", data.classes, data.test, MemorySplit(data.train.images, labels), data.val
    )
    run("wat", tmp_path / "net.pt", data=spoilt, epochs=3, eta=0.5)
    last = Checkpoint.read(tmp_path / "net.pt").meta["history"][-1]
    weights = [last[f"{name}.class_weight"] for name in data.classes]
    assert weights.index(max(weights)) == 3
    assert weights[3] > 2


def test_the_weights_of_every_epoch_are_on_record() -> None:
    history = Checkpoint.read(trained("wat-cifs")).meta["history"]
    names = [f"{name}.class_weight" for name in digits().classes]
    first, second = ([row[name] for name in names] for row in history)
    assert first == [2.0] * 4
    assert second != first
    log = trained("wat-cifs").with_suffix(".pt.csv").read_text().splitlines()[0].split(",")
    assert log[-4:] == names


def test_without_weights_a_loss_is_as_it_was(tmp_path: Path) -> None:
    state = start("trades", tmp_path)
    assert state.class_weights is None
    assert reweigh_classes(state, 0) == {}
    assert "eta" not in state.job.recipe.values()["loss"]


def test_classes_are_weighed_on_validation_images_alone(tmp_path: Path) -> None:
    with mistake("loss.eta", "hold-out"):
        tiny_job("wat", tmp_path / "net.pt", validation="none")
    data = digits()
    assert isinstance(data.val, MemorySplit)
    few = Dataset(
        "digits", data.classes, data.test, data.train, data.val.subset(torch.arange(6, 24))
    )
    with mistake("loss.eta", f"of which {data.classes[0]} has none"):
        tiny_job("wat", tmp_path / "net.pt", data=few)
