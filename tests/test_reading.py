"""Files are looked at before they are read."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from channelscope.reading import (
    LARGEST_LINE,
    LARGEST_TEXT,
    check_kinds,
    check_regular,
    open_arrays,
    parse_json,
    parse_toml,
    read_json,
    read_table,
    read_text,
)


def npy(shape: tuple[int, ...], body: bytes, descr: str = "|u1") -> bytes:
    """An array's file whose header may promise more than there is."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue() + body


def packed(path: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return path


def test_plain_values_are_of_the_kinds_that_are_wanted() -> None:
    kinds = {"eps": int | float, "layers": [str], "models": {"*": {"gates?": [dict]}}, "seed?": int}
    right = {
        "eps": 0.1,
        "layers": ["a"],
        "models": {"net": {"gates": None}, "other": {"gates": [{}]}},
        "more": None,
    }
    check_kinds(right, kinds, "meta.json")
    wrong: dict[str, dict[str, object]] = {
        "eps": {"eps": float("nan")},
        "layers": {"layers": ["a", 3]},
        "net": {"models": {"net": []}},
        "gates": {"models": {"net": {"gates": {}}}},
        "seed": {"seed": "3"},
    }
    for name, changed in wrong.items():
        with pytest.raises(ValueError, match=f"{name} is missing or of another kind"):
            check_kinds(right | changed, kinds, "meta.json")
    with pytest.raises(ValueError, match=r"meta\.json is missing or of another kind"):
        check_kinds([right], kinds, "meta.json")


def test_what_is_no_ordinary_file_is_refused(tmp_path: Path) -> None:
    """Opening a pipe would wait for ever, and a device never ends."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros", "."):
        with pytest.raises(ValueError, match="no ordinary file"):
            read_text(tmp_path / name)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (folder := tmp_path / "result").mkdir()
    (tmp_path / "outside").write_text("{}")
    (folder / "inside").write_text("{}")
    (folder / "out").symlink_to("../outside")
    (folder / "in").symlink_to("inside")
    (tmp_path / "linked").symlink_to("result")
    with pytest.raises(ValueError, match="out of the folder"):
        read_json(folder / "out", within=folder)
    assert read_json(folder / "in", within=folder) == {}
    assert (
        read_json(tmp_path / "linked" / "in", within=tmp_path / "linked") == {}
    )  # the folder itself may be one
    assert check_regular(folder / "out") == folder / "out"  # and so may a user's file


def test_endless_texts_are_refused(tmp_path: Path) -> None:
    (path := tmp_path / "text").touch()
    os.truncate(path, LARGEST_TEXT + 1)
    with pytest.raises(ValueError, match="more than"):
        read_text(path)
    os.truncate(path, 2**40)
    with pytest.raises(ValueError, match="more than"):
        read_text(path)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[" * 60 + "]" * 60, '{"a":' * 60 + "1" + "}" * 60, '"\\ud800"', "9" * 5000],
)
def test_json_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # json's own among them
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 9000,
        "a" + ".a" * 900 + " = 1",
        "a = '" + "x" * 2**17 + "'",
        "[" + "a." * 99 + "a]",
    ],
)
def test_toml_that_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # tomllib's own among them
        parse_toml(text)


def test_arrays_are_read_as_numpy_wrote_them(tmp_path: Path) -> None:
    written = {
        "a": np.arange(6.0).reshape(2, 3),
        "b/c": np.array(["x", "yz"]),
        "d": np.zeros((0, 3), bool),
        "e": np.asfortranarray(np.arange(24, dtype=">i4").reshape(2, 3, 4)),
        "f": np.array(3.5),
        "g": np.arange(300_000.0),
    }
    np.savez_compressed(tmp_path / "a.npz", **written)
    with open_arrays(tmp_path / "a.npz") as archive:
        assert archive.files == list(written)
        assert all(np.array_equal(archive[name], array) for name, array in written.items())
        assert all(archive[name].dtype == array.dtype for name, array in written.items())


def test_an_array_with_another_checksum_is_refused(tmp_path: Path) -> None:
    path = packed(
        tmp_path / "a.npz", ("a.npy", npy((1000,), bytes(1000))), method=zipfile.ZIP_STORED
    )
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises((zipfile.BadZipFile, ValueError)), open_arrays(path) as archive:
        archive["a"]


def test_names_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"name,value\n{'a' * 4096},1\n")
    assert len(read_table(tmp_path / "t.csv", ("name",), ("value",))) == 1
    (tmp_path / "t.csv").write_text(f"name,value\n{'a' * 4097},1\n")
    with pytest.raises(ValueError, match="names of more than 4096 letters"):
        read_table(tmp_path / "t.csv", ("name",), ("value",))


@pytest.mark.parametrize(
    "content",
    [
        npy((10**15,), b"x"),
        npy((2**63, 4), b""),
        npy((3,), b"xx"),
        npy((3,), b"xxxx"),
        npy((10**15,), b"", "<U0"),
        npy((1,), b"x" * 8, "|O"),
        b"\x93NUMPY\1\0\2\0((",
        b"",
    ],
)
def test_headers_that_lie_are_refused_before_there_is_room_for_them(
    content: bytes, tmp_path: Path
) -> None:
    with (
        open_arrays(packed(tmp_path / "a.npz", ("a.npy", content))) as archive,
        pytest.raises(ValueError, match="it"),
    ):
        archive["a"]


def test_archives_that_unpack_to_much_more_are_refused(tmp_path: Path) -> None:
    zeros = bytes(130 * 2**20)
    with (
        pytest.raises(ValueError, match="unpack to 130 MB"),
        open_arrays(packed(tmp_path / "a.npz", ("a.npy", zeros))),
    ):
        pass
    with open_arrays(
        packed(tmp_path / "a.npz", ("a.npy", npy((len(zeros),), zeros)), method=zipfile.ZIP_STORED)
    ) as archive:
        assert len(archive["a"]) == len(zeros)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_of_an_odd_make_are_refused(tmp_path: Path) -> None:
    a = npy((1,), b"x")
    for made in (
        packed(tmp_path / "twice.npz", ("a.npy", a), ("a.npy", a)),
        packed(tmp_path / "lzma.npz", ("a.npy", a), method=zipfile.ZIP_LZMA),
        packed(tmp_path / "many.npz", *((f"{index}.npy", b"") for index in range(10_001))),
    ):
        with pytest.raises(ValueError, match="it "), open_arrays(made):
            pass


def test_tables_of_endless_or_uneven_lines_are_refused(tmp_path: Path) -> None:
    path, columns = tmp_path / "t.csv", (("name",), ("value",))
    for content in (
        "name,value" + "," * LARGEST_LINE,
        "name,value\na,1,2\nb,1,2\n",
        "name,value\na,1\nb,1,2\n",
        "name,value\na,1,2\nb,1\n",
        "name,value\n" + "a,1" + ",2" * 20_000 + "\n",
        "name,value,value.1\na,1,2\n",
        "name,name\na,b\n",
        '"name,value",value\na,1,2\n',
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"first line|lines of another length|other columns"):
            read_table(path, *columns)
    path.write_text("name,value\nNA,1\n")
    assert read_table(path, *columns).values.tolist() == [["NA", 1]]


@pytest.mark.parametrize("number", ["1e308", "-1e308", "1.1e100"])
def test_numbers_that_no_axis_has_room_for_are_refused(number: str, tmp_path: Path) -> None:
    path, columns = tmp_path / "t.csv", (("name",), ("value",))
    path.write_text(f"name,value\na,{number}\nb,0.5\n")
    with pytest.raises(ValueError, match=r"t\.csv has numbers beyond"):
        read_table(path, *columns)
    path.write_text("name,value\na,3e38\nb,inf\nc,-inf\nd,\n")
    assert read_table(path, *columns)["value"].tolist()[:3] == [3e38, np.inf, -np.inf]


def test_tables_may_have_further_columns_of_words(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("name,value,seed\nat,1,07\n")
    assert read_table(path, ("name",), ("value",), open_ended=True).values.tolist() == [
        ["at", 1, "07"]
    ]
    for content in (
        "name,value,a,b,c\nat,1,2,3,4\n",
        "name,value,a\x1b\nat,1,2\n",
        "name,a\nat,1\n",
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"other columns|control characters"):
            read_table(path, ("name",), ("value",), open_ended=True)
