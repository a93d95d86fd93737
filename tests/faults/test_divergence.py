"""A loss that is no number: the run stops, names the step and keeps the last good checkpoint."""

import re
from pathlib import Path
from typing import Any

import pytest

from channelscope.weights import Checkpoint
from faults.conftest import Place, Record
from faults.work import COMMANDS, different, outcome

TRAIN = COMMANDS["train"].words  # three epochs of three steps, with gates
PLAIN = tuple("at" if word == "cifs" else word for word in TRAIN)
HALF = (*PLAIN, "--set", "attack.steps=2", "engine.precision=fp16", "schedule.epochs=12")
KINDS = {"gated": TRAIN, "plain": PLAIN, "fp16": HALF}


def stopped(place: Place, words: tuple[str, ...], epochs: int, said: str, *trouble: object) -> Path:
    """Assert that a run stops with words (a pattern) and keeps what was good; give its folder."""
    folder = place.fresh()
    ended = place.machine.run(words, folder, ("nan_at_steps", *trouble))
    advice = f"lower the learning rate (the state of epoch {epochs} is in net.pt.partial"
    assert ended.status == 2
    (sentence,) = ended.said
    where, _, rest = sentence.partition(": lower")
    assert re.fullmatch(f"channelscope: {said}", where), sentence
    assert f"lower{rest}" == f"{advice}, a checkpoint of the best network so far)."
    assert sorted(outcome(folder)) == ["net.pt.csv", "net.pt.partial"]
    assert len(Checkpoint.read(folder / "net.pt.partial").meta["history"]) == epochs
    return folder


def stopped_and_gone_on(place: Place, words: tuple[str, ...], *rest: Any) -> None:
    """Assert that it also goes on from there, to the undisturbed result."""
    folder = stopped(place, words, *rest)
    assert place.machine.run(words, folder).status == 0
    assert not different(outcome(folder), place.undisturbed(words)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [4, 8])
def test_a_loss_that_is_no_number(kind: str, step: int, place: Place, record: Record) -> None:
    epoch, within = (step - 1) // 3, (step - 1) % 3 + 1
    said = f"The loss is no longer a number in epoch {epoch + 1}, at step {within} of 3"
    stopped_and_gone_on(place, KINDS[kind], epoch, said, step, step, "loss")
    record.survived("a loss that is no number", f"train, {kind}")


@pytest.mark.parametrize("kind", ["gated", "plain"])
def test_gradients_that_are_no_numbers(kind: str, place: Place, record: Record) -> None:
    """They spoil the weights, and so the next step's loss or the checkpoint of the epoch."""
    said = "The loss is no longer a number in epoch 2, at step 2 of 3"
    stopped_and_gone_on(place, KINDS[kind], 1, said, 4, 4, "gradients")
    stopped_and_gone_on(
        place, KINDS[kind], 1, "The weights are no longer numbers after epoch 2", 6, 6, "gradients"
    )
    record.survived("gradients that are no numbers", f"train, {kind}", 2)


def test_half_precision_leaves_out_a_step_whose_gradients_are_no_numbers(
    place: Place, record: Record
) -> None:
    folder = place.fresh()
    ended = place.machine.run(HALF, folder, ("nan_at_steps", 4, 5, "gradients"))
    assert (ended.status, ended.said) == (0, [])
    record.survived("gradients that are no numbers", "train, fp16")


def test_half_precision_whose_gradients_are_never_numbers(place: Place, record: Record) -> None:
    # At which step depends on how many of the first ones the processor's own half precision
    # overflows at.
    said = "The gradients are no longer numbers, however scaled, in epoch 10, at step [123] of 3"
    folder = stopped(place, HALF, 9, said, 4, 999, "gradients")
    assert (
        place.machine.run(HALF, folder).status == 0
    )  # not as undisturbed: all steps from the fourth were left out
    record.survived("gradients that are no numbers", "train, fp16")
