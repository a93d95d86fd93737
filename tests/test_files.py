"""Files and folders appear whole or not at all, and what stood there before stays until then."""

import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from channelscope.errors import UserError
from channelscope.files import (
    DIGESTS,
    atomic_folder,
    atomic_write,
    check_digests,
    check_result_folder,
    hidden_name,
    recover,
    write_digests,
)

Replacing = Callable[[Path], AbstractContextManager[Path]]
either = pytest.mark.parametrize("way", [atomic_write, atomic_folder])


def put(at: Path, text: str, way: Replacing) -> None:
    """Write a text to a file, or to a file of a folder."""
    (at if way is atomic_write else at / "part.txt").write_text(text)


def got(at: Path, way: Replacing) -> str:
    return (at if way is atomic_write else at / "part.txt").read_text()


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
    with (
        pytest.raises(UserError, match="Cannot write"),
        atomic_write(tmp_path / "out") as temporary,
    ):
        temporary.write_text("file")
    assert (tmp_path / "out" / "kept.txt").read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 1


def test_folder_does_not_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("kept")
    with (
        pytest.raises(UserError, match="Cannot write"),
        atomic_folder(tmp_path / "out") as temporary,
    ):
        put(temporary, "folder", atomic_folder)
    assert (tmp_path / "out").read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 1


def test_earlier_folder_is_put_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    with atomic_folder(target) as temporary:
        put(temporary, "earlier", atomic_folder)
    rename = Path.rename

    def refuse(self: Path, to: Path) -> Path:
        if (self / "part.txt").read_text() == "later":
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match="Input/output error"), atomic_folder(target) as temporary:
        put(temporary, "later", atomic_folder)
    assert got(target, atomic_folder) == "earlier"
    assert list(tmp_path.iterdir()) == [target]


@either
def test_other_users_may_read_as_the_umask_says(way: Replacing, tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.mkdir() if way is atomic_folder else usual.touch()
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
    with atomic_write(tmp_path / "arrays.npz") as temporary:
        assert temporary.suffix == ".npz"
        temporary.write_bytes(b"x")


# ---------------------------------------------------------------- after a kill


class Killed(BaseException):
    """Stands for a kill, but for what a process does on its way out."""


def killed_while_replacing(target: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace a folder, and be killed as it is renamed for the first time or the second."""
    rename, renames = Path.rename, []

    def watched(self: Path, to: Path) -> Path:
        renames.append(to)
        if len(renames) == at:
            raise Killed
        return rename(self, to)

    with monkeypatch.context() as patched, suppress(Killed), atomic_folder(target) as temporary:
        put(temporary, "later", atomic_folder)
        patched.setattr(Path, "rename", watched)
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)


@pytest.mark.parametrize(("at", "found"), [(1, "earlier"), (2, "later")])
def test_folder_of_a_kill_between_two_renames_is_put_in_its_place(
    at: int, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    with atomic_folder(target) as temporary:
        put(temporary, "earlier", atomic_folder)
    killed_while_replacing(target, at, monkeypatch)
    assert target.exists() == (at == 1)
    assert len(list(tmp_path.iterdir())) == 2
    recover(target)
    assert got(target, atomic_folder) == found
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["out", "o[u]t*", "n" * 240 + ".pt", "\u5b57" * 80])
def test_half_written_files_are_removed_and_others_stay(name: str, tmp_path: Path) -> None:
    target = tmp_path / name
    foreign = [
        ".out.writing-mine",
        ".out2.writing-abcd1234",
        ".out",
        "out.writing-abcd1234",
        ".out.lock",
    ]
    for other in foreign:
        (tmp_path / other).touch()
    (tmp_path / f"{hidden_name(target, 'writing-')}abcd1234.pt").touch()
    recover(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(foreign)


def test_half_written_files_inside_a_folder_are_removed_and_do_not_make_it_anothers(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "out"
    (folder / "figures").mkdir(parents=True)
    for name in (
        "a.csv",
        ".meta.json.writing-abcd1234.json",
        "figures/.a.pdf.writing-abcd1234.pdf",
        "figures/a.csv",
    ):
        (folder / name).touch()
    check_result_folder(folder, {"a.csv"}, {"figures"})
    recover(folder)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == [
        "a.csv",
        "figures",
        "figures/a.csv",
    ]


@pytest.mark.parametrize("name", ["mine.txt", "mine.png", "deeper/a.png", "captions.csv.txt"])
def test_files_beside_the_figures_are_not_replaced(name: str, tmp_path: Path) -> None:
    ours = (
        "a.csv",
        "figures/a.csv",
        "figures/a.pdf",
        "figures/a.png",
        "figures/a.svg",
        "figures/captions.tex",
    )
    for each in ours:
        (tmp_path / each).parent.mkdir(exist_ok=True)
        (tmp_path / each).touch()
    check_result_folder(tmp_path, {"a.csv"}, {"figures"})
    (tmp_path / "figures" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "figures" / name).touch()
    with pytest.raises(UserError, match="holds other files"):
        check_result_folder(tmp_path, {"a.csv"}, {"figures"})


def test_the_folder_that_one_stands_in_is_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_result_folder(Path(), {"a.csv"}, {"figures"})


# ---------------------------------------------------------------- digests


def test_changed_files_are_told_from_those_that_were_written(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    for name in ("a.csv", "deeper/b.csv"):
        (tmp_path / name).write_text("robust\n0.51\n")
    write_digests(tmp_path)
    check_digests(tmp_path, ["a.csv", "deeper/b.csv"])
    (tmp_path / "deeper" / "b.csv").write_text("robust\n0.91\n")
    check_digests(tmp_path, ["a.csv"])
    with pytest.raises(ValueError, match=r"deeper/b\.csv is not as it was written"):
        check_digests(tmp_path, ["a.csv", "deeper/b.csv"])
    (tmp_path / DIGESTS).write_text("")
    with pytest.raises(ValueError, match=r"a\.csv is not as it was written"):
        check_digests(tmp_path, ["a.csv"])


def test_digests_are_what_sha256sum_checks(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("robust\n0.51\n")
    write_digests(tmp_path)
    assert (
        subprocess.run(
            ["sha256sum", "--check", "--quiet", DIGESTS], cwd=tmp_path, check=False
        ).returncode
        == 0
    )
