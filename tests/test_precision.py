"""The precision "auto": measured at the start of a run, on record, and kept by what goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from channelscope import training
from channelscope.training import precision
from channelscope.training.precision import choose_precision, measure_speeds, pick_precision
from channelscope.training.state import State
from channelscope.weights import Checkpoint
from helpers.expect import mistake, randomness_untouched
from helpers.runs import digits, interrupted, run, same_run, tiny_job

pytestmark = pytest.mark.usefixtures("unchecked")

AUTO = {"precision": "auto"}


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], list[str]]:
    """Let measurements give these speeds; return a function that sets them and lists the runs."""
    measured: list[str] = []

    def set_speeds(fp32: float, bf16: float) -> list[str]:
        def measure(job: Any, _device: str) -> dict[str, float]:
            measured.append(job.out.name)
            return {"fp32": fp32, "bf16": bf16}

        monkeypatch.setattr(precision, "measure_speeds", measure)
        return measured

    return set_speeds


@pytest.mark.parametrize(
    ("bf16", "expected"), [(190.0, "bf16"), (105.0, "fp32"), (100.0, "fp32"), (11.0, "fp32")]
)
def test_the_faster_one_is_taken(bf16: float, expected: str) -> None:
    assert pick_precision({"fp32": 100.0, "bf16": bf16}) == expected


@pytest.mark.parametrize("method", ["standard", "cifs", "hbar"])
def test_both_are_measured_and_nothing_else_changes(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_SECONDS", 0.0)
    job = tiny_job(method, tmp_path / "net.pt", **AUTO)
    with randomness_untouched():
        speeds = measure_speeds(job, "cpu")
    assert list(speeds) == ["fp32", "bf16"]
    assert min(speeds.values()) > 0
    assert not list(tmp_path.iterdir())


def test_a_precision_that_is_named_is_not_measured(
    tmp_path: Path, speeds: Callable[[float, float], list[str]]
) -> None:
    measured = speeds(1.0, 2.0)
    job = tiny_job("at", tmp_path / "net.pt")
    assert choose_precision(job, "cpu") is job
    assert (job.precision, measured) == ("fp32", [])


@pytest.mark.parametrize(("bf16", "same_as"), [(5.0, "fp32"), (20.0, "bf16")])
def test_what_is_chosen_trains_as_if_it_were_named(
    bf16: float, same_as: str, tmp_path: Path, speeds: Callable[[float, float], list[str]]
) -> None:
    speeds(10.0, bf16)
    run("cifs", tmp_path / "auto.pt", **AUTO)
    run("cifs", tmp_path / "named.pt", precision=same_as)
    assert same_run(tmp_path / "auto.pt", tmp_path / "named.pt")
    meta = Checkpoint.read(tmp_path / "auto.pt").meta
    assert meta["engine"] == {
        "precision": same_as,
        "images_per_second": {"fp32": 10.0, "bf16": bf16},
    }
    assert meta["settings"]["recipe"]["engine"]["precision"] == "auto"


def test_a_resumed_run_keeps_what_the_first_one_chose(
    tmp_path: Path, speeds: Callable[[float, float], list[str]]
) -> None:
    measured = speeds(10.0, 20.0)
    interrupted("at", tmp_path / "net.pt", 5, **AUTO)
    assert measured == ["net.pt"]
    speeds(20.0, 10.0)  # on another machine
    run("at", tmp_path / "net.pt", resume=True, **AUTO)
    assert measured == ["net.pt"]
    run("at", tmp_path / "whole.pt", precision="bf16")
    assert same_run(tmp_path / "net.pt", tmp_path / "whole.pt")
    assert Checkpoint.read(tmp_path / "net.pt").meta["engine"]["precision"] == "bf16"


def test_a_state_without_its_choice_is_refused(
    tmp_path: Path, speeds: Callable[[float, float], list[str]]
) -> None:
    speeds(10.0, 20.0)
    partial = interrupted("at", tmp_path / "net.pt", 5, **AUTO)
    content = torch.load(partial, weights_only=True)
    content["meta"]["engine"] = {"images_per_second": {"fp32": 1.0}}
    torch.save(content, partial)
    with mistake("net.pt.partial is damaged"):
        run("at", tmp_path / "net.pt", resume=True, **AUTO)


def test_each_stage_says_what_it_was_computed_in(
    tmp_path: Path, speeds: Callable[[float, float], list[str]]
) -> None:
    measured = speeds(10.0, 20.0)
    short = {"before.schedule.epochs": 1, "epochs": 1}
    run("cifs-published", tmp_path / "net.pt", **AUTO, **short)
    assert measured == ["net.pt.before", "net.pt"]
    for name in measured:
        assert Checkpoint.read(tmp_path / name).meta["engine"]["precision"] == "bf16"


def test_the_choice_is_told(
    tmp_path: Path,
    speeds: Callable[[float, float], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    speeds(1234.0, 567.0)
    options: dict[str, Any] = {"arch": "resnet10", "width": 2, "epochs": 1, "attack_steps": 1}
    training.train("at", digits(2), out=tmp_path / "net.pt", device="cpu", **AUTO, **options)
    assert "precision: fp32, as measured: fp32 1.23e+03, bf16 567 images" in capsys.readouterr().err


# ---------------------------------------------------------------- the layout of the weights


@pytest.mark.parametrize(("width", "is_last"), [(8, True), (4, False)])
def test_channels_come_last_where_that_is_safe(width: int, is_last: bool, tmp_path: Path) -> None:
    """With 4 channels in a strided 1x1 convolution, the process would end by an abort."""
    state = State.start(tiny_job("cifs", tmp_path / "net.pt", width=width), "cpu")
    kernels = [
        value for value in state.network.parameters() if value.ndim == 4 and value.shape[1] > 1
    ]
    layout = torch.channels_last if is_last else torch.contiguous_format
    assert all(value.is_contiguous(memory_format=layout) for value in kernels)


def test_files_have_weights_in_their_usual_order(tmp_path: Path) -> None:
    run("cifs", tmp_path / "net.pt", width=8, epochs=1)
    saved = Checkpoint.read(tmp_path / "net.pt").state.values()
    assert all(value.is_contiguous() for value in saved)


def test_a_run_with_channels_last_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    interrupted("at", tmp_path / "net.pt", 5, width=8)
    run("at", tmp_path / "net.pt", width=8, resume=True)
    run("at", tmp_path / "whole.pt", width=8)
    assert same_run(tmp_path / "net.pt", tmp_path / "whole.pt")
