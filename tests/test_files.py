"""Files and folders appear whole or not at all, and what stood there before stays until then."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from channelscope.errors import UserError
from channelscope.files import replacing, replacing_folder

Replacing = Callable[[Path], AbstractContextManager[Path]]
either = pytest.mark.parametrize("way", [replacing, replacing_folder])


def put(at: Path, text: str, way: Replacing) -> None:
    """Write a text to a file, or to a file of a folder."""
    (at if way is replacing else at / "part.txt").write_text(text)


def got(at: Path, way: Replacing) -> str:
    return (at if way is replacing else at / "part.txt").read_text()


def put_half(at: Path, way: Replacing, error: BaseException) -> None:
    """Write half, then fail."""
    put(at, "half", way)
    raise error


@either
def test_content_appears_when_the_context_ends(way: Replacing, tmp_path: Path) -> None:
    target = tmp_path / "new" / "deeper" / "out.pt"
    with way(target) as temporary:
        put(temporary, "whole", way)
        assert not target.exists()
    assert got(target, way) == "whole"
    assert [path.name for path in target.parent.iterdir()] == ["out.pt"]


@either
def test_content_replaces_what_stood_there(way: Replacing, tmp_path: Path) -> None:
    target = tmp_path / "out"
    for text in ("earlier", "later"):
        with way(target) as temporary:
            put(temporary, text, way)
    assert got(target, way) == "later"
    assert list(tmp_path.iterdir()) == [target]


@either
def test_nothing_half_written_is_left_after_an_exception(way: Replacing, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), way(tmp_path / "out") as temporary:
        put_half(temporary, way, KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


@either
def test_earlier_content_is_kept_after_an_exception(way: Replacing, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with way(target) as temporary:
        put(temporary, "earlier", way)
    with pytest.raises(ZeroDivisionError), way(target) as temporary:
        put_half(temporary, way, ZeroDivisionError())
    assert got(target, way) == "earlier"
    assert list(tmp_path.iterdir()) == [target]


@either
def test_full_disk_is_told_in_a_sentence_and_leaves_nothing(way: Replacing, tmp_path: Path) -> None:
    full = OSError(28, "No space left on device")
    words = r"Cannot write .*out: No space left on device\. Free space"
    with pytest.raises(UserError, match=words), way(tmp_path / "out") as temporary:
        put_half(temporary, way, full)
    assert list(tmp_path.iterdir()) == []


@either
def test_folder_that_is_a_file_is_told_in_a_sentence(way: Replacing, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"Cannot write .*out: "), way(tmp_path / "file" / "out"):
        pytest.fail("there is nowhere to write to")
    assert (tmp_path / "file").read_text() == "in the way"


def test_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.txt").write_text("kept")
    with pytest.raises(UserError, match="Cannot write"), replacing(tmp_path / "out") as temporary:
        temporary.write_text("file")
    assert (tmp_path / "out" / "kept.txt").read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 1


def test_folder_does_not_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("kept")
    with pytest.raises(UserError, match="Cannot write"), replacing_folder(tmp_path / "out") as temporary:
        put(temporary, "folder", replacing_folder)
    assert (tmp_path / "out").read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 1


def test_earlier_folder_is_put_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    with replacing_folder(target) as temporary:
        put(temporary, "earlier", replacing_folder)
    rename = Path.rename

    def refuse(self: Path, to: Path) -> Path:
        if (self / "part.txt").read_text() == "later":
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match="Input/output error"), replacing_folder(target) as temporary:
        put(temporary, "later", replacing_folder)
    assert got(target, replacing_folder) == "earlier"
    assert list(tmp_path.iterdir()) == [target]


@either
def test_other_users_may_read_as_the_umask_says(way: Replacing, tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.mkdir() if way is replacing_folder else usual.touch()
    with way(tmp_path / "out") as temporary:
        put(temporary, "text", way)
    assert (tmp_path / "out").stat().st_mode == usual.stat().st_mode


@either
def test_long_names_can_be_written(way: Replacing, tmp_path: Path) -> None:
    target = tmp_path / ("n" * 240 + ".csv")
    with way(target) as temporary:
        put(temporary, "text", way)
    assert got(target, way) == "text"


def test_temporary_file_keeps_the_ending_that_writers_look_at(tmp_path: Path) -> None:
    with replacing(tmp_path / "arrays.npz") as temporary:
        assert temporary.suffix == ".npz"
        temporary.write_bytes(b"x")
