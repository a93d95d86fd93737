"""Networks that others published: what the benchmark of them says, on files made here."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import published
from benchmarks.published import MNIST, NETWORKS, Published, Repository
from helpers.expect import mistake

HOME = Repository(name="somebody/nets", commit="0" * 40)
CODE = """
from torch import nn

def cnn():
    layers = (nn.Conv2d(1, 4, 4, 2), nn.Sigmoid(), nn.Conv2d(4, 4, 4, 2), nn.Sigmoid())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(100, 10))
"""


def write(name: str, **options: Any) -> Published:
    return Published(
        name=name,
        repository=HOME,
        path=f"{name}.pt",
        accuracy=12.5,
        stated="README",
        data=MNIST,
        eps=0.1,
        **options,
    )


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return a folder with a repository of two networks in it, and digits beside it."""
    folder = tmp_path / HOME.name
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "digits.npz", test_images=images, test_labels=np.arange(40) % 10)
    layers = (nn.Conv2d(1, 4, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 4, 2), nn.ReLU())
    state = nn.Sequential(*layers, nn.Flatten(), nn.Linear(100, 10)).state_dict()
    for name in ("recognised", "sigmoids"):
        torch.save({"state_dict": [state], "acc": 12.5}, folder / f"{name}.pt")
    (folder / "nets.py").write_text(CODE, "utf-8")
    return tmp_path


def run(weights: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    networks = (write("recognised"), write("sigmoids", normalise="0.5;1", arch="nets.py:cnn"))
    monkeypatch.setattr(published, "NETWORKS", networks)
    data = ("--data", "npz:none.npz", "--digits", f"npz:{weights / 'digits.npz'}")
    argv = ["published", "--weights", str(weights), *data, *words]
    monkeypatch.setattr(sys, "argv", argv)
    published.main()


def test_networks_are_evaluated_beside_what_is_stated(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(weights, monkeypatch, "--images", "20", "--json", str(weights / "report.json"))
    heading, _, first, second, _, machine = capsys.readouterr().out.splitlines()
    assert heading.startswith("| network | repository | data; training | recognised by itself as")
    address = f"https://github.com/{HOME.name}/raw/{HOME.commit}/recognised.pt"
    assert f"[recognised]({address}) | {HOME.name} | MNIST; standard | a chain of 3" in first
    assert "| none | none | 20 |" in first
    assert "12.50 (README)" in first
    assert "(eps 0.1)" in first
    assert "a chain of 3 layers, which it is not" in second
    assert "`--arch nets.py:cnn --normalise '0.5;1'`" in second
    assert re.search(r"\d{4}-\d\d-\d\d; .*torch ", machine)
    assert (weights / "report.json").is_file()


def test_images_that_are_not_there_are_told(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(weights, monkeypatch, "--digits", "npz:nowhere.npz")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("The networks of mnist are left out: ")
    assert error.endswith("No network is left to evaluate: name images with --data and --digits.\n")


def test_a_missing_file_is_told_with_the_repository(tmp_path: Path) -> None:
    words = (f"{HOME.name}/net.pt is not there: git clone", HOME.address, HOME.commit)
    with mistake(*words):
        published.check_files([write("net")], tmp_path)


def test_every_network_says_where_it_comes_from() -> None:
    text = published.list_networks(NETWORKS)
    assert len(NETWORKS) >= 8
    for network in NETWORKS:
        assert re.fullmatch(r"[0-9a-f]{40}", network.repository.commit)
        assert network.stated
        assert 0 < network.accuracy <= 100
        assert f"{network.name}: {network.path}" in text
        assert f"git clone {network.repository.address} DIR/{network.repository.name}" in text
