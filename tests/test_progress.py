"""What is said of a long step where nobody sees a bar move."""

import io
import sys
from collections.abc import Callable

import pytest
from tqdm.auto import tqdm

from channelscope.progress import PAUSE, Lines, open_bar


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what makes time go on, which otherwise stands still."""
    now = [1000.0]
    monkeypatch.setattr("channelscope.progress.time.monotonic", lambda: now[0])

    def go_on(seconds: float) -> None:
        now[0] += seconds

    return go_on


def test_a_step_of_a_minute_is_a_few_lines(
    wait: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with open_bar(total=600, description="standard") as bar:
        for image in range(600):
            if image == 300:
                bar.set_description("at")
            bar.set_postfix(loss=1.5, refresh=False)
            wait(0.1)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert 60 / PAUSE - 1 <= len(lines) <= 60 / PAUSE + 1
    assert lines[0].startswith("standard: 33% after 00:20, 00:40 left, loss 1.5")
    assert lines[-1].startswith("at: done after 01:00")


def test_a_tenth_or_a_phase_is_a_line_in_a_long_step(
    wait: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with open_bar(total=1000) as bar:
        for phase in ("first", "second"):
            bar.set_description(phase)
            for _ in range(500):
                wait(60)
                bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == [
        *("0%", "10%", "20%", "30%", "40%", "50%", "50%", "60%", "70%", "80%", "90%", "done"),
    ]


def test_a_short_step_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(open_bar([1, 2, 3], "figures")) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_a_step_that_goes_on_is_judged_by_what_it_does_itself(
    wait: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with open_bar(total=100, initial=50) as bar:
        wait(100)
        bar.update(25)
    assert capsys.readouterr().err.splitlines()[0] == "75% after 01:40, 01:40 left"


def test_a_step_that_fails_is_not_said_to_be_done(
    wait: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        with open_bar(total=2) as bar:
            wait(100)
            bar.update()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert "done" not in capsys.readouterr().err


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with open_bar(total=2) as bar:
        assert isinstance(bar, tqdm)


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_nothing_is_said_that_is_not_asked_for(
    stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    bar = open_bar(range(3), shown=False)
    assert not isinstance(bar, Lines)
    assert list(bar) == [0, 1, 2]
    assert not (stream and stream.getvalue())
