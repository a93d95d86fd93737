"""The code blocks of the documents: found, split into commands, and run with less work."""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import channelscope
from channelscope.attacks.suites import SUITES
from channelscope.cli import main

ROOT = Path(__file__).parent.parent.parent
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What makes a command or a function take a second. The first are defaults, which a page's own words
# replace; the second replace a page's own.
_CHEAP = {
    "compare": "--attacks pgd-20",
    "evaluate": "--attacks pgd-20",
    "sweep": "--attack fgsm",
    "damage": "--attack pgd-5 --fractions 0.5",
    "intervene": "--attack pgd-5 --random 1 --fractions 0.5",
}
_SMALL = {
    "train": "--epochs 1 --width 2 --images 12 --quiet",
    "sweep": "--epochs 1 --width 2 --images 12 --test-images 12 --quiet",
    "compare": "--images 10 --replicates 20 --formats png --quiet",
    "evaluate": "--images 10 --replicates 20 --checks 0 --formats png --quiet",
    "intervene": "--images 10 --replicates 20 --formats png --quiet",
    "relevance": "--images 10 --replicates 20 --formats png --quiet",
    "damage": "--images 20 --replicates 20 --formats png --quiet",
    "film": "--images 10 --replicates 20 --formats png --quiet",
    "figures": "--formats png --quiet",
}
_TRAINING = {"epochs": 1, "width": 2, "images": 12, "progress": False}
_MEASURING = {"images": 10, "replicates": 20, "progress": False}
_FUNCTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "train": ({}, _TRAINING),
    "sweep": ({"attack": "fgsm"}, _TRAINING | {"test_images": 12}),
    "compare": ({"attacks": "pgd-20"}, _MEASURING),
    "evaluate": ({"attacks": "pgd-20"}, _MEASURING | {"checks": 0}),
    "intervene": ({"attack": "pgd-5", "random": 1, "fractions": (0.5,)}, _MEASURING),
    "relevance": ({}, _MEASURING),
    "damage": ({"attack": "pgd-5", "fractions": (0.5,)}, _MEASURING | {"images": 20}),
    "visualise": ({}, {"images": 10, "steps": 2}),
}


class Block(NamedTuple):
    """A fenced block of a page: its language and its text."""

    language: str
    text: str


def list_blocks(page: Path) -> list[Block]:
    """List a page's fenced blocks, in their order."""
    return [Block(*match) for match in _FENCE.findall(page.read_text("utf-8"))]


def split_commands(text: str) -> Iterator[list[str]]:
    """Split a block of shell lines into commands, each as words, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def run_shell(text: str) -> None:
    """Run a block's commands in this process, with less work."""
    for words in split_commands(text):
        run_command(words)


def run_command(words: list[str]) -> None:
    """Run a command of ours; of others, check that what they name is there."""
    program, *rest = words
    if program == "torchrun":  # as one process
        rest = rest[rest.index("-m") + 1 :]
        program, *rest = rest
    if program == "channelscope":
        _run_channelscope(rest)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.M)
        assert set(rest[:1]) <= set(targets), words
    elif program == "pip":
        _check_requirement(rest)
    elif program == "python":
        assert (ROOT / f"{rest[1].replace('.', '/')}.py").is_file(), words
    else:
        raise AssertionError(f"No test knows how to run {program!r}: {words}")


def _check_requirement(words: list[str]) -> None:
    assert words[0] == "install"
    name, _, extra = words[-1].rstrip("]").partition("[")
    assert name == "channelscope"
    assert not extra or f"\n{extra} =\n" in (ROOT / "setup.cfg").read_text("utf-8")


def _run_channelscope(words: list[str]) -> None:
    if words[0] == "demo":  # .ci/run does
        return
    if ">" in words:
        place = words.index(">")
        printed = StringIO()
        with redirect_stdout(printed):
            assert main(words[:place]) == 0
        Path(words[place + 1]).write_text(printed.getvalue(), "utf-8")
        return
    less = "--width 2" if "--plan" in words else _SMALL.get(words[0], "")
    if words[0] == "train" and "--out" in words:  # in place of one that is there
        for path in Path().glob(f"{words[words.index('--out') + 1]}*"):
            path.unlink()
    command, *rest = words
    if "--attacks" in rest:
        place = rest.index("--attacks") + 1
        rest[place:] = map(_quicken, rest[place:])
    assert main([command, *_CHEAP.get(command, "").split(), *rest, *less.split()]) == 0, words


def make_small(monkeypatch: Any) -> None:
    """Let the package's functions do less than they are asked for."""
    for name, (cheap, less) in _FUNCTIONS.items():
        whole = getattr(channelscope, name)
        monkeypatch.setattr(channelscope, name, _shrink(whole, cheap, less))


def _shrink(
    whole: Callable[..., Any], cheap: Mapping[str, Any], less: Mapping[str, Any]
) -> Callable[..., Any]:
    def small(*words: Any, **options: Any) -> Any:
        options = {**cheap, **options, **less}
        if isinstance(options.get("attacks"), str):
            options["attacks"] = _quicken(options["attacks"])
        return whole(*words, **options)

    return small


def _quicken(word: str) -> str:
    """Return one step in place of what takes half a minute."""
    return "fgsm" if word in (*SUITES, "square") else word
