"""Rows on disk: whole or not there, whatever a kill or a damaged disk does."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channelscope.errors import UserError
from channelscope.study.store import (
    Rows,
    RunFolder,
    check_run_folder,
    digest_of,
    remove_run_folder,
    row_bytes,
    slug,
)

SPEC = {"values/layer4.0": ((3,), "<f4"), "flag": ((), "|u1")}


def write(rows: Rows, indices: list[int]) -> None:
    values = np.array(indices, np.float32)[:, None] + [0, 0.25, 0.5]
    rows.write(np.array(indices), {"values/layer4.0": values, "flag": np.ones(len(indices))})


def test_rows_that_were_written_are_there_and_others_are_not(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "stage", 8, SPEC)
    assert not rows.done.any()
    write(rows, [5, 1, 2])
    assert np.flatnonzero(rows.done).tolist() == [1, 2, 5]
    assert rows.array("values/layer4.0")[5].tolist() == [5, 5.25, 5.5]
    again = Rows(tmp_path / "stage", 8, SPEC)
    assert np.flatnonzero(again.done).tolist() == [1, 2, 5]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["values/layer4.0", "flag", "checksums"]),
    st.integers(0, 10_000),
    st.integers(1, 255),
)
def test_a_row_that_changed_on_disk_counts_as_not_written(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: int, change: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    rows = Rows(folder, 8, SPEC)
    write(rows, list(range(8)))
    path = rows.path(name)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= change
    path.write_bytes(content)
    again = Rows(folder, 8, SPEC)
    expected = np.arange(8, dtype=np.float32)[:, None] + [0, 0.25, 0.5]
    assert (again.array("values/layer4.0")[again.done] == expected[again.done]).all()
    assert (again.array("flag")[again.done] == 1).all()
    assert not again.done.all() or content == path.read_bytes()


@pytest.mark.parametrize("size", [0, 10, 130])
def test_a_file_that_was_cut_short_is_begun_anew(tmp_path: Path, size: int) -> None:
    rows = Rows(tmp_path, 8, SPEC)
    write(rows, list(range(8)))
    with rows.path("flag").open("rb+") as file:
        file.truncate(size)
    again = Rows(tmp_path, 8, SPEC)
    assert not again.done.any()
    write(again, [3])
    assert np.flatnonzero(again.done).tolist() == [3]


def test_rows_of_another_kind_are_not_taken_for_ours(tmp_path: Path) -> None:
    write(Rows(tmp_path, 8, SPEC), [0])
    assert not Rows(tmp_path, 9, SPEC).done.any()
    assert not Rows(tmp_path, 9, SPEC | {"flag": ((2,), "|u1")}).done.any()


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "others.txt"
    target.write_text("mine")
    rows = Rows(tmp_path / "stage", 2, SPEC)
    rows.path("flag").unlink()
    rows.path("flag").symlink_to(target)
    with pytest.raises(UserError, match="Cannot write"):
        write(rows, [0])
    assert not Rows(tmp_path / "stage", 2, SPEC).done.any()
    assert target.read_text() == "mine"


def test_notes_are_kept_once(tmp_path: Path) -> None:
    rows = Rows(tmp_path, 1, SPEC)
    for sentence in ("b", "a", "b"):
        rows.note(sentence)
    assert rows.notes == Rows(tmp_path, 1, SPEC).notes == ["a", "b"]


@pytest.mark.parametrize("damage", [b"", b"wenty", b"twentz", b"\xff"])
def test_rows_whose_notes_were_damaged_are_made_again(damage: bytes, tmp_path: Path) -> None:
    """A note may say that rows hold nothing, as of a scorer that refused a layer."""
    rows = Rows(tmp_path, 2, {"x": ((), "<f4")})
    rows.note("twenty")
    rows.write(np.arange(2), {"x": np.ones(2)})
    (note,) = tmp_path.glob("note-*")
    note.write_bytes(damage)
    rows = Rows(tmp_path, 2, {"x": ((), "<f4")})
    assert rows.notes == []
    assert not rows.done.any()


def test_a_run_folder_takes_no_folder_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="holds other files"):
        RunFolder(tmp_path)
    remove_run_folder(tmp_path)
    assert (tmp_path / "mine.txt").exists()
    with pytest.raises(UserError, match="is a file"):
        check_run_folder(tmp_path / "mine.txt")


def test_a_temporary_run_folder_goes_with_its_study() -> None:
    folder = RunFolder(None)
    path = folder.path
    assert path.is_dir()
    del folder
    assert not path.exists()


def test_more_than_the_disk_holds_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are free"):
        RunFolder(tmp_path / "run").check_space(10**18)


@given(st.text(max_size=300), st.text(max_size=300))
def test_slugs_differ_where_names_do(one: str, other: str) -> None:
    assert slug(one).isascii()
    assert "/" not in slug(one)
    assert len(slug(one)) < 120
    assert (one == other) == (slug(one).lower() == slug(other).lower())


def test_digests_tell_how_parts_are_divided() -> None:
    assert digest_of("ab", "c") != digest_of("a", "bc")
    assert digest_of("ab", b"c") == digest_of("ab", "c")


def test_sizes_of_rows() -> None:
    assert row_bytes(SPEC) == 13
