"""SECURITY.md: each promise names tests that exist; and nothing is fetched unasked."""

import ast
import re
import socket
from pathlib import Path

import pytest

from channelscope.cli import main

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def functions(file: Path) -> set[str]:
    """Name the tests of a module, without running it."""
    body = ast.parse(file.read_text("utf-8")).body
    return {
        part.name
        for part in body
        if isinstance(part, ast.FunctionDef) and part.name.startswith("test_")
    }


def test_every_test_that_is_named_is_there() -> None:
    named = NAMED.findall(PAGE)
    assert named
    assert [f"{file}::{name}" for file, name in named if name not in functions(ROOT / file)] == []


def test_every_promise_names_a_test() -> None:
    promises = [line for line in PAGE.splitlines() if line.startswith("| ")][2:]
    assert len(promises) > 10
    assert [line for line in promises if not NAMED.search(line)] == []
    assert PAGE.count("tests/") == len(NAMED.findall(PAGE))


SMALL = ("--width", "2", "--epochs", "1", "--images", "60", "--quiet")


def test_nobody_is_called_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[object] = []

    def refused(*where: object) -> None:
        called.append(where)
        raise OSError("no network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.chdir(tmp_path)
    assert main(["zoo"]) == 0
    assert (
        main(["train", "--method", "standard", "--data", "digits", "--out", "nat.pt", *SMALL]) == 0
    )
    assert main(["compare", "--models", "zoo:cifar10-at", "--data", "cifar10"]) == 2
    assert "pass --download" in capsys.readouterr().err
    assert called == []
    assert main(["compare", "--models", "zoo:cifar10-at", "--data", "cifar10", "--download"]) == 2
    assert called  # the test would notice
