"""Nothing is written, and nothing removed, where links in a stranger's folder lead."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import channelscope as cs
from channelscope.api import draw_figures
from channelscope.errors import UserError
from channelscope.files import check_no_link, recover
from channelscope.study.store import RunFolder
from helpers.studies import make_result, synthetic_study

SMALL = {"channels": 3, "epochs": 2, "count": 4, "replicates": 20}


@pytest.fixture(scope="module")
def result() -> cs.Result:
    return make_result(synthetic_study(("at", "cifs"), ("cat", "dog"), **SMALL))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the user's own, with files that a result's folder may have too."""
    (folder := tmp_path / "outside").mkdir()
    for name in ("report.html", "meta.json", "relevance.csv", "relevance.png", "captions.json"):
        (folder / name).write_text("mine")
    return folder


def list_contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


LINKS: dict[str, Callable[[Path, Path], None]] = {
    "figures": lambda folder, outside: (folder / "figures").symlink_to(outside),
    "figures, by a relative way": lambda folder, outside: (folder / "figures").symlink_to(
        os.path.relpath(outside, folder)
    ),
    "figures, by a link in the folder": lambda folder, outside: (
        (folder / "other").symlink_to(outside),
        (folder / "figures").symlink_to("other"),
    ),
    "figures, to nothing": lambda folder, outside: (folder / "figures").symlink_to(outside / "new"),
    "figures, to a file": lambda folder, outside: (folder / "figures").symlink_to(
        outside / "meta.json"
    ),
    "figures, to itself": lambda folder, _: (folder / "figures").symlink_to("figures"),
}


@pytest.mark.parametrize("link", LINKS)
def test_figures_are_not_drawn_through_a_link(
    link: str, result: cs.Result, outside: Path, tmp_path: Path
) -> None:
    (folder := tmp_path / "strangers").mkdir()
    result.write_tables(folder)
    LINKS[link](folder, outside)
    before = list_contents(outside)
    for draw in (
        lambda: draw_figures(folder, only=["relevance"], progress=False),
        lambda: result.draw(folder, only=["relevance"], progress=False),
        lambda: result.report(folder),
    ):
        with pytest.raises(UserError, match="figures is a link"):
            draw()
        assert list_contents(outside) == before
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("name", ["report.html", "figures/relevance.csv", "figures/captions.json"])
@pytest.mark.parametrize("target", ["report.html", "new"])
def test_links_to_files_are_replaced_and_not_followed(
    name: str, target: str, result: cs.Result, outside: Path, tmp_path: Path
) -> None:
    (tmp_path / "strangers" / "figures").mkdir(parents=True)
    folder = tmp_path / "strangers"
    result.write_tables(folder)
    (folder / name).symlink_to(outside / target)
    before = list_contents(outside)
    try:
        draw_figures(folder, only=["relevance"], formats=["png"], progress=False)
    except UserError as error:  # of what is read again for the page
        assert "link" in str(error)  # noqa: PT017  # either way, nothing is written outside
    assert list_contents(outside) == before


@pytest.mark.parametrize("name", ["meta.json", "arrays.npz", "alignment.csv", "SHA256SUMS"])
def test_a_result_whose_files_are_links_is_refused(
    name: str, result: cs.Result, outside: Path, tmp_path: Path
) -> None:
    (folder := tmp_path / "strangers").mkdir()
    result.write_tables(folder)
    if (folder / name).exists():
        (folder / name).rename(outside / name)
    else:
        (outside / name).write_text("")
    (folder / name).symlink_to(outside / name)
    before = list_contents(outside)
    with pytest.raises(UserError, match="link"):
        cs.Result.load(folder)
    assert list_contents(outside) == before


def test_a_result_is_replaced_and_not_what_its_links_lead_to(
    result: cs.Result, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cs.Result, "draw", lambda _, at, **__: (at / "figures").mkdir())
    (folder := tmp_path / "strangers").mkdir()
    result.save(folder, formats=["png"], progress=False)
    (folder / "figures").rename(tmp_path / "figures")
    (folder / "figures").symlink_to(tmp_path / "figures")
    (folder / "report.html").symlink_to(outside / "report.html")
    before = list_contents(outside), list_contents(tmp_path / "figures")
    result.save(folder, formats=["png"], progress=False)
    assert (list_contents(outside), list_contents(tmp_path / "figures")) == before
    assert not (folder / "figures").is_symlink()


def test_the_users_own_link_to_a_result_is_followed(result: cs.Result, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    result.write_tables(tmp_path / "there")
    (tmp_path / "named").symlink_to("there")
    draw_figures(tmp_path / "named", only=["relevance"], formats=["png"], progress=False)
    assert (tmp_path / "there" / "figures" / "relevance.png").is_file()


def test_rows_are_not_written_through_a_link(outside: Path, tmp_path: Path) -> None:
    spec = {"x": ((), "<f4")}
    run = RunFolder(tmp_path / "run")
    (tmp_path / "run" / "net").symlink_to(outside)
    for names in (("net",), ("net", "pgd-20")):
        with pytest.raises(UserError, match="net is a link"):
            run.rows(2, spec, *names)
    rows = run.rows(2, spec, "mine")
    rows.path("x").unlink()
    rows.path("x").symlink_to(outside / "meta.json")
    run.rows(2, spec, "mine").write(np.arange(2), {"x": np.ones(2)})
    assert {path.read_text() for path in outside.iterdir()} == {"mine"}


def test_a_run_folder_is_not_marked_through_a_link(outside: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "channelscope-run").symlink_to(outside / "new")
    with pytest.raises(UserError):
        RunFolder(tmp_path / "run")
    assert not (outside / "new").exists()


def test_what_a_kill_left_is_not_looked_for_behind_a_link(outside: Path, tmp_path: Path) -> None:
    (outside / ".x.writing-01234567").write_text("another run's")
    (folder := tmp_path / "result").mkdir()
    (folder / "figures").symlink_to(outside)
    recover(folder)
    assert (outside / ".x.writing-01234567").exists()


def test_links_are_found_on_the_whole_way(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    check_no_link(tmp_path / "a" / "b" / "c", tmp_path)
    check_no_link(tmp_path / "link" / "b" / "c", tmp_path / "link")
    with pytest.raises(UserError, match="link"):
        check_no_link(tmp_path / "link" / "b" / "c", tmp_path)
