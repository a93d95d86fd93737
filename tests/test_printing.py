"""What commands print fits the terminal, and has colours where a terminal has them."""

import io
import sys
from contextlib import redirect_stdout

import pytest

from channelscope.cli.printing import SafeStream, format_table, print_text

ROWS = [("model", "attack", "robust", "worst"), ("a-long-name", "pgd-20", "31.4%", "28.6%")]
PROSE = [("name", "help"), ("pgd-20", "the attack that most papers on robustness start with")]


class Terminal(io.StringIO):
    """A terminal that takes what is written."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def write(text: str) -> str:
    """Return what a terminal gets."""
    terminal = Terminal()
    with redirect_stdout(SafeStream(terminal)):  # type: ignore[type-var]
        print_text(text)
    return terminal.getvalue()


@pytest.mark.parametrize("width", [12, 20, 30, 34, 80])
@pytest.mark.parametrize("align", ["llrr", "llll"])
def test_columns_are_left_out_before_a_line_is_too_wide(
    width: int, align: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    table, _, left_out = format_table(ROWS, align).partition("\n(")
    lines = table.splitlines()
    assert max(map(len, lines)) <= max(width, len("a-long-name"))
    shown = lines[0].split()
    assert shown == list(ROWS[0][: len(shown)])
    assert [name for name in ROWS[0] if name in left_out] == list(ROWS[0][len(shown) :])
    assert lines[1].split() == list(ROWS[1][: len(shown)])


def test_a_last_column_of_sentences_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = format_table(PROSE, "ll").splitlines()
    assert max(map(len, lines)) <= 40
    assert all(line.startswith(" " * 8) for line in lines[2:])
    assert " ".join(" ".join(lines[1:]).split()) == " ".join(PROSE[1])


def test_a_file_gets_tables_and_sentences_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    long = ("x" * 70, "y" * 70)
    assert len(format_table([long, long], "ll").splitlines()[0]) == 142
    print_text("word " * 60)
    assert capsys.readouterr().out.count("\n") == 1


def test_sentences_are_wrapped_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("NO_COLOR", "1")
    text = "C1 supported: alignment of adversarial-with-natural activations rises"
    lines = write(text).splitlines()
    assert max(map(len, lines)) <= 30
    assert " ".join(line.strip() for line in lines) == text


@pytest.mark.parametrize(
    ("text", "coloured"),
    [
        ("C1 supported: x", "C1 \x1b[32msupported\x1b[0m: x\n"),
        ("NR damage not supported: x", "NR damage \x1b[31mnot supported\x1b[0m: x\n"),
        ("WARNING, at: x", "\x1b[31mWARNING\x1b[0m, at: x\n"),
        ("a network that is supported", "a network that is supported\n"),
    ],
)
def test_verdicts_have_colours_on_a_terminal(
    text: str, coloured: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert write(text) == coloured
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert write(text) == f"{text}\n"


def test_names_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[2J" not in write("C1 supported: \x1b[2J of a model")


def test_nothing_is_coloured_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with redirect_stdout(SafeStream(sys.stdout)):  # type: ignore[type-var]
        print_text("C1 supported: x")
    assert capsys.readouterr().out == "C1 supported: x\n"
