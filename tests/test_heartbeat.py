"""A process that stops is told of, and ends the run; one that only takes long does not."""

from collections import Counter

import pytest

from channelscope.errors import UserError
from channelscope.heartbeat import Watch, get_timeout


class Time:
    """A clock that is set by hand, and a store for all watches."""

    def __init__(self) -> None:
        self.now = 0.0
        self.numbers: Counter[str] = Counter()

    def __call__(self) -> float:
        return self.now

    def add(self, key: str, amount: int) -> int:
        self.numbers[key] += amount
        return self.numbers[key]

    def watches(self, size: int, timeout: float = 600) -> list[Watch]:
        return [Watch(self, rank, size, timeout, self) for rank in range(size)]

    def pass_by(self, seconds: float, *living: Watch) -> None:
        """Let time pass, in which some processes beat."""
        self.now += seconds
        for watch in living * 2:  # each hears of the others' latest beats
            watch.beat()


def test_who_beats_is_not_spoken_of() -> None:
    time = Time()
    watches = time.watches(3)
    for _ in range(100):
        time.pass_by(30, *watches)
        assert not any(watch.list_news() for watch in watches)
    assert all(watch.get_last_words() is None for watch in watches)


def test_a_stopped_process_is_told_of_once_after_a_minute_and_when_it_is_back() -> None:
    time = Time()
    first, second, third = watches = time.watches(3)
    time.pass_by(1, *watches)
    time.pass_by(50, first, third)
    assert not first.list_news()
    time.pass_by(61, first, third)
    (sentence,) = first.list_news()
    assert "Process 1 " in sentence
    assert not first.list_news()
    assert not third.list_news()  # one speaks for all
    time.pass_by(1, *watches)
    (sentence,) = first.list_news()
    assert "again" in sentence
    assert not second.list_news()


def test_the_others_end_after_the_time_that_is_set() -> None:
    time = Time()
    first, second, third = time.watches(3, timeout=600)
    time.pass_by(1, first, second, third)
    time.pass_by(599, second, third)
    assert second.get_last_words() is None
    time.pass_by(2, second, third)
    assert "Process 0 " in (second.get_last_words() or "")
    assert third.get_last_words() == ""  # it ends in silence


def test_where_the_store_does_not_answer_its_process_is_the_silent_one() -> None:
    time = Time()
    first, second = time.watches(2, timeout=600)
    time.pass_by(1, first, second)
    time.now += 601
    assert second.find_silent(600) == [0]
    assert "Process 0 " in (second.get_last_words() or "")


def test_the_time_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHANNELSCOPE_TIMEOUT", raising=False)
    assert get_timeout() == 1800
    monkeypatch.setenv("CHANNELSCOPE_TIMEOUT", "90")
    assert get_timeout() == 90
    for text in ("", "soon", "0", "nan", "inf"):
        monkeypatch.setenv("CHANNELSCOPE_TIMEOUT", text)
        with pytest.raises(UserError, match="CHANNELSCOPE_TIMEOUT"):
            get_timeout()
