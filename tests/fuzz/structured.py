"""Files well formed outside and wrong inside, drawn by hypothesis: one strategy for each kind."""

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from targets import Target
from trees import Entry, Link, Special, Tree

from helpers.hurtful import list_hurtful, make_png

Bytes = st.SearchStrategy[bytes]


class _Pick:
    """Choose by number: hypothesis would write out what it chooses from, which is large."""

    def __init__(self, choice: Sequence[Any]) -> None:
        self.choice = choice

    def __call__(self, index: int) -> Any:
        return self.choice[index]

    def __repr__(self) -> str:
        return "pick"


def pick(choice: Sequence[Any]) -> st.SearchStrategy[Any]:
    """Draw one of these."""
    return st.integers(0, len(choice) - 1).map(_Pick(choice))


def only(value: Any) -> st.SearchStrategy[Any]:
    """Draw this."""
    return st.none().map(lambda _: value)


def _long() -> int:
    return 10**5000


HUGE = (2**31 - 1, 2**31, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**15, 10**30)
NUMBERS = st.one_of(
    st.integers(-3, 300),
    pick([sign * value for value in HUGE for sign in (1, -1)]),
    st.floats(),
    st.builds(_long),
    pick([256, 512, 1000, 4096, 30_000]),
    st.booleans(),
    st.none(),
)
WORDS = st.one_of(
    st.text(max_size=20),
    pick(
        [
            "",
            "\n",
            "a\nb",
            "\0",
            "\x1b[31m",
            "\ud800",
            "\u202e",
            "<script>alert(1)</script>",
            "../../etc/passwd",
            "/etc/passwd",
            "a" * 100_000,
            "NA",
            "nan",
            "inf",
            "1e999",
            "None",
            "__class__",
            "{x.__class__}",
            "%s%n",
            "é" * 300,
        ]
    ),
)
LEAVES = st.one_of(NUMBERS, WORDS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=8,
)
NAMES = pick(
    [
        "../out",
        "../../out",
        "/tmp/out",
        "a/../../out",
        "a\\..\\out",
        "a\nb",
        "a\udcffb",
        "x" * 250,
        "CON",
        " ",
        ".",
        "..",
        "-rf",
        "a\x1b[0mb",
        "<b>",
        "é",
        "\u202egnp.exe",
        "$(touch x)",
        "`x`",
        "a;b",
        "%00",
        "~",
    ]
)


# ---------------------------------------------------------------- plain values


def _paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the places in plain values."""
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list | tuple)
        else ()
    )
    return [above, *(path for key, item in inside for path in _paths(item, (*above, key)))]


def _changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Put something else at a place."""
    if not path:
        return new
    key, *rest = path
    if isinstance(value, dict):
        return {**value, key: _changed(value[key], tuple(rest), new)}
    items = list(value)
    items[key] = _changed(items[key], tuple(rest), new)
    return type(value)(items)


@st.composite
def edited(draw: st.DrawFn, value: Any, other: st.SearchStrategy[Any]) -> Any:
    """Change up to three places of plain values: replace them, remove them, or add to them."""
    for _ in range(draw(st.integers(1, 3))):
        path = draw(pick(_paths(value)))
        at = value
        for key in path:
            at = at[key]
        ways = ["other"] + ["less", "more", "renamed"] * (isinstance(at, dict) and bool(at))
        ways += ["less", "more"] * (isinstance(at, list) and bool(at))
        way = draw(pick(ways))
        if way == "other":
            new = draw(other)
        elif isinstance(at, dict):
            name = draw(pick(list(at)))
            new = {key: item for key, item in at.items() if way == "more" or key != name}
            if way != "less":
                new[draw(WORDS)] = at[name]
        else:
            index = draw(st.integers(0, len(at) - 1))
            new = at[:index] + at[index + 1 :] if way == "less" else [*at, draw(other)]
        value = _changed(value, path, new)
    return value


# ---------------------------------------------------------------- text


def _text_bombs(opening: str, closing: str) -> Bytes:
    deep = pick([50, 900, 5_000, 200_000])
    return st.builds(
        lambda n, closed: (opening * n + closing * n * closed).encode(), deep, st.booleans()
    )


def _encoded(text: str) -> Bytes:
    plain = text.encode("utf-8", "surrogatepass")
    return pick(
        [plain, b"\xef\xbb\xbf" + plain, plain.replace(b"\n", b"\r"), plain + b"\0", plain[:-1]]
        + [plain] * 9
    )


def _dumped(value: Any) -> str:
    try:
        return json.dumps(value, indent=1, ensure_ascii=False)
    except (ValueError, TypeError):  # a number of thousands of digits
        return '{"models": ' + "9" * 5000 + "}"


def _line(value: Any) -> bytes:
    return _dumped(value).replace("\n", " ").encode("utf-8", "surrogatepass")


def json_files(content: bytes) -> Bytes:
    """Draw JSON from a valid file."""
    whole = st.deferred(lambda: edited(json.loads(content), VALUES).map(_dumped).flatmap(_encoded))
    twice = VALUES.map(
        lambda value: (
            content.strip()[:-1]
            + b', "models": '
            + _dumped(value).encode("utf-8", "replace")
            + b"}"
        )
    )
    bombs = (
        _text_bombs("[", "]") | _text_bombs('{"a":', "}") | only(b"[" + b"[]," * 2_000_000 + b"0]")
    )
    return st.one_of(whole, whole, whole, whole, twice, bombs, st.binary(max_size=40))


def json_lines(content: bytes) -> Bytes:
    """Draw lines of JSON from valid ones."""

    def drawn(lines: list[bytes]) -> Bytes:
        one = st.deferred(lambda: edited(json.loads(lines[0]), VALUES).map(_line))
        other = VALUES.map(_line)
        bomb = only(b"[" * 100_000) | only(b"9" * 5000)
        return st.lists(one | one | other | bomb | pick(lines), max_size=6).map(b"\n".join)

    return drawn(content.splitlines())


WAYS = [
    "cell",
    "cell",
    "cell",
    "row",
    "less",
    "more",
    "head",
    "quote",
    "many",
    "without",
    "column",
    "other",
]


def csv_files(content: bytes) -> Bytes:
    """Draw CSV from a valid file: cells, rows and columns are not what they should be."""
    rows = [line.split(",") for line in content.decode().splitlines()]

    @st.composite
    def drawn(draw: st.DrawFn) -> bytes:
        table = [list(row) for row in rows]
        for _ in range(draw(st.integers(1, 4))):
            row = draw(pick(table)) if table else []
            way = draw(pick(WAYS))
            at = draw(st.integers(0, len(row) - 1)) if row else 0
            if way == "cell" and row:
                row[at] = draw(
                    pick(
                        [
                            "",
                            "1e400",
                            "-inf",
                            "nan",
                            "0x10",
                            "1_000",
                            "1,5",
                            "True",
                            '"a\nb"',
                            "9" * 400,
                            "\0",
                            '"',
                        ]
                    )
                    | WORDS
                )
            elif way == "row":
                table.append(list(row))
            elif way == "less" and row:
                row.pop()
            elif way == "more":
                row.extend(["x"] * draw(pick([1, 2, 20_000])))
            elif way == "head" and table:
                table[0] = list(draw(st.permutations(table[0])))
            elif way == "quote" and row:
                row[0] = '"' + row[0]
            elif way == "many":
                del table[draw(st.integers(0, len(table))) :]
            elif way == "without" and row:  # all that is of one class, say
                table = [
                    each
                    for each in table
                    if each is table[0] or each[at : at + 1] != row[at : at + 1]
                ]
            elif way in ("column", "other") and row:
                new, old = (
                    draw(pick(["", "0", "1", "-1", "1e308", "nan", "x", "all", "natural"])),
                    row[at],
                )
                for each in table[1:]:
                    if at < len(each) and (way == "column" or each[at] == old):
                        each[at] = new
        end = draw(pick(["\n"] * 9 + [""]))
        return ("\n".join(",".join(row) for row in table) + end).encode("utf-8", "surrogatepass")

    columns = pick(
        [
            b"," * 300_000,
            b",".join(b"c%d" % index for index in range(60_000)) + b"\n" + b"1," * 60_000,
        ]
    )
    fields = only(b"a,b\n" + b"x" * 5_000_000) | only(content + b'"' + b"y\n" * 500_000)
    lines = only(
        b"\n".join([content.splitlines()[0], b"," * (content.splitlines()[0].count(b",") + 5)])
        + b"\n"
    )
    return st.one_of(
        drawn(),
        drawn(),
        drawn(),
        drawn(),
        columns,
        fields,
        lines,
        st.binary(max_size=60),
        only(b""),
    )


def toml_files(content: bytes) -> Bytes:
    """Draw TOML: a valid file with other values, other sections, and depths that no recipe has."""
    lines = content.decode().splitlines()
    values = st.one_of(
        LEAVES.map(lambda value: _dumped(value) if not isinstance(value, float) else repr(value)),
        pick(
            [
                "[[[]]]",
                "{a = {b = 1}}",
                "1979-05-27",
                "'''a\nb'''",
                '"\\u0000"',
                '"a\\nb"',
                "0x7fffffffffffffffff",
                "nan",
                "-inf",
                "[1, 'a', []]",
                "9" * 5000,
                "[" * 3000,
                "true",
                '"../x.toml"',
                "[" + "1," * 100_000 + "]",
            ]
        ),
    )

    keys = pick(["a.b.c", "lr", "optimizer.lr", '""', "x." * 2000 + "x"])

    @st.composite
    def drawn(draw: st.DrawFn) -> bytes:
        own = list(lines)
        for _ in range(draw(st.integers(1, 3))):
            index = draw(st.integers(0, len(own) - 1))
            key = own[index].partition("=")[0] or "x"
            way = draw(
                pick(["value", "value", "value", "key", "section", "less", "twice", "extends"])
            )
            extra = {
                "value": lambda key=key: f"{key} = {draw(values)}",
                "key": lambda: f"{draw(keys)} = {draw(values)}",
                "section": lambda: draw(
                    pick(
                        [
                            "[optimizer]",
                            "[[gates]]",
                            "[a.b]",
                            "[" + "a." * 5000 + "a]",
                            "[gates.options]",
                        ]
                    )
                ),
                "twice": lambda index=index: own[index],
                "extends": lambda: f"extends = {draw(values)}",
                "less": lambda: "",
            }[way]()
            own[index : index + (way in ("value", "less"))] = [extra]
        return "\n".join(own).encode("utf-8", "surrogatepass")

    bombs = pick(
        [
            b"a = " + b"[" * 100_000,
            b"a" + b".a" * 100_000 + b" = 1",
            b"[" + b"a." * 100_000 + b"a]",
            b"a = " + b"{a=" * 5000,
            b"".join(b"[[a.b%d]]\n" % index for index in range(20_000)),
            b"x = " + b"9" * 300_000,
            b'x = "' + b"\\\\" * 300_000 + b'"',
        ]
    )
    return st.one_of(drawn(), drawn(), drawn(), drawn(), bombs, st.binary(max_size=60))


def words(content: bytes) -> Bytes:
    """Draw what stands behind ``--set``."""
    names = [pair.partition(b"=")[0].decode() for pair in content.split(b"\0")]
    known = [
        *names,
        "optimizer.lr",
        "schedule.milestones",
        "gates.options.beta",
        "gates.options.x",
        "model.width",
        "attack.eps",
        "x",
        "",
    ]
    values = st.one_of(
        LEAVES.map(str_of),
        pick(
            [
                "[" * 5000,
                "[" * 200 + "]" * 200,
                "[1,2",
                "'",
                '"a',
                "a\nb = 2",
                "{a=1}",
                "1" * 5000,
                "8/0",
                "1/3",
                "nan",
                "inf",
                "-1e999",
                "[],[[]],,",
                "{" * 3000,
                "2020-01-01",
                "'''",
                "=",
                "\\ud800",
            ]
        ),
    )
    pair = st.builds("{}={}".format, pick(known) | WORDS, values)
    return st.lists(pair, min_size=1, max_size=3).map(
        lambda pairs: "\0".join(pairs).encode("utf-8", "surrogatepass")
    )


def str_of(value: Any) -> str:
    """Write a value as a word of the command line."""
    try:
        return str(value)
    except ValueError:
        return "7" * 5000


# ---------------------------------------------------------------- numpy


DESCRS = (
    "|u1",
    "<f4",
    "<f8",
    "<i8",
    "|b1",
    "<f2",
    "<f16",
    "<c16",
    "|O",
    "|V0",
    "<U0",
    "|S0",
    "<U5",
    "<U500000000",
    "|V1000000000",
    "(1000000000,)|u1",
    "<M8[ns]",
    "<m8",
    ">i4",
    "x",
    "",
    "<U-1",
    "|S99999999999",
)


@st.composite
def npy(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw an array's file whose header promises what the file does not hold, or nonsense."""
    sides = pick([0, 1, 2, 3, 9, 28, 1000, -1, 10**6, 10**9, 10**15, 2**63, 2**64, True, "3", None])
    shape = tuple(draw(st.lists(sides, max_size=5)))
    descr: Any = draw(
        pick([*DESCRS, [("a", "<f8")], [("a", "|O")], ("<f8", (2, 2)), None, 3, ["<f8"]])
    )
    fields = {
        "descr": descr,
        "fortran_order": draw(pick([False, False, True, 1, None])),
        "shape": shape,
    }
    header = draw(
        only(repr(fields))
        | only(repr(fields))
        | pick(
            [
                "(" * 5000,
                "{" * 300,
                "-" * 9000 + "1",
                "[" * 90 + "]" * 90,
                repr({**fields, "x": 1}),
                "__import__('os')",
                "{'descr': '|u1', 'fortran_order': False, 'shape': (9" + "9" * 6000 + ",), }",
                " " * 60_000,
            ]
        )
    )
    version = draw(pick([(1, 0), (1, 0), (1, 0), (2, 0), (3, 0), (4, 0), (0, 0)]))
    text = header.encode("utf-8") + b"\n"
    length = draw(pick([len(text), len(text), len(text), 0, 2**16 - 1, len(text) + 5]))
    size = struct.pack("<H", length % 2**16) if version == (1, 0) else struct.pack("<I", length)
    count = 1
    for side in shape:
        count *= side if type(side) is int and 0 <= side < 10**5 else 1
    body = b"\1" * min(draw(pick([count, 8 * count, 0, 7])), 10**6)
    made = b"\x93NUMPY" + bytes(version) + size + text + body
    return draw(
        pick([made, made, made, content, content[:-3], b"PK\3\4" + made, pickle.dumps({"a": 1})])
    )


@cache
def _bomb(name: str, megabytes: int, head: bytes = b"") -> bytes:
    """Make an archive that is small and unpacks to much: some bytes, and zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    begun = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(2**20)) + packer.flush(
        zlib.Z_FULL_FLUSH
    )  # stands for itself, again and again
    packed, check = begun + zeros * megabytes + packer.flush(), zlib.crc32(head)
    for _ in range(megabytes):
        check = zlib.crc32(bytes(2**20), check)
    sizes = struct.pack(
        "<HHIIIHH", 0, 33, check, len(packed), len(head) + megabytes * 2**20, len(name), 0
    )
    local = b"PK\3\4\x14\0\0\0\x08\0" + sizes + name.encode() + packed
    directory = b"PK\1\2\x14\0\x14\0\0\0\x08\0" + sizes + bytes(14) + name.encode()
    return (
        local
        + directory
        + b"PK\5\6\0\0\0\0"
        + struct.pack("<HHIIH", 1, 1, len(directory), len(local), 0)
    )


def _npy_head(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def zipped(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """Pack members, which may have one name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name or "x")
            info.compress_type = method
            archive.writestr(info, content)
    return buffer.getvalue()


def unzipped(content: bytes) -> list[tuple[str, bytes]]:
    """Unpack a valid archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def _lying(content: bytes, sizes: tuple[int, int], flags: int) -> bytes:
    """Let an archive's directory promise other sizes, or that its first member is encrypted."""
    at = content.find(b"PK\1\2")
    altered = bytearray(content)
    if at >= 0:
        altered[at + 20 : at + 28] = struct.pack("<II", *sizes)
        altered[at + 8 : at + 10] = struct.pack("<H", flags)
    return bytes(altered)


@st.composite
def zips(draw: st.DrawFn, content: bytes, member: Callable[[bytes], Bytes], stored: bool) -> bytes:
    """Draw an archive with a member changed, doubled, renamed, or packed in other ways."""
    members = unzipped(content)
    index = draw(st.integers(0, len(members) - 1))
    name, inside = members[index]
    way = draw(
        pick(
            ["inside"] * 6 + ["twice", "name", "method", "lies", "less", "many", "empty", "shared"]
        )
    )
    method = (
        zipfile.ZIP_STORED if stored else draw(pick([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    )
    if way == "inside":
        members[index] = name, draw(member(inside))
    elif way == "twice":
        members.append((name, draw(member(inside))))
    elif way == "name":
        members[index] = draw(NAMES).encode("utf-8", "replace").decode(), inside
    elif way == "method":
        method = draw(pick([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
    elif way == "less":
        del members[index]
    elif way == "many":
        members += [(f"x{number}", b"") for number in range(draw(pick([3, 5000])))]
    elif way == "empty":
        members = []
    made = zipped(members, method)
    if way == "lies":
        sizes = pick([0, 1, 2**20, 2**31, 2**32 - 1])
        made = _lying(made, (draw(sizes), draw(sizes)), draw(pick([0, 1, 2**11])))
    if way == "shared":
        made = _shared(name, inside, draw(pick([3, 2000])))
    return made


def _shared(name: str, content: bytes, times: int) -> bytes:
    """Make an archive whose directory names one member again and again."""
    one = zipped([(name, content)])
    start = one.find(b"PK\1\2")
    end = one.find(b"PK\5\6")
    directory = b"".join(
        one[start:end].replace(name.encode(), f"{index:04d}{name[4:]}".encode())
        for index in range(times)
    )
    tail = b"PK\5\6\0\0\0\0" + struct.pack("<HHIIH", times, times, len(directory), start, 0)
    return one[:start] + directory + tail


def npz_files(content: bytes) -> Bytes:
    """Draw arrays' archives."""
    if not unzipped(content):
        content = zipped([("labels.npy", _npy_head((0,)))])
    name = unzipped(content)[0][0]
    bombs = st.deferred(
        lambda: pick(
            [
                _bomb(name, 1500),
                _bomb(name, 700, _npy_head((700, 1024, 1024))),
                _bomb(name, 150, _npy_head((150, 1024, 1024))),
                _bomb("test_labels.npy", 400, _npy_head((400 * 2**20,))),
                _bomb("x.npy", 300, _npy_head((2**26 + 2**25,), "<i4")),
            ]
        )
    )
    arrays = pick(
        [
            np.zeros((3, 4, 4)),
            np.full((3, 4, 4), np.nan),
            np.zeros((3, 4, 4), np.uint16),
            np.zeros(3, np.int8),
            np.array(["a\nb", "b"]),
            np.array(["\ud800"]),
            np.zeros((3, 0, 4), np.uint8),
            np.zeros((0, 4, 4), np.uint8),
            np.array(10**6),
            np.array([2**62, 0, 1]),
            np.array([-1, 0, 1]),
            np.zeros(3, [("a", "f4")]),
            np.ones((3, 4, 4), bool),
            np.array(["a"] * 3),
            np.array([2**64 - 1, 0, 0], np.uint64),
            np.array([99_999, 0, 0]),
            np.full((3, 2, 2), 1e300),
            np.zeros((3, 1, 1), np.float16),
            np.zeros(10**6, np.uint8),
        ]
    )

    def packed(array: Any) -> bytes:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, array, allow_pickle=True)
        return buffer.getvalue()

    member = lambda inside: st.one_of(npy(inside), npy(inside), arrays.map(packed))  # noqa: E731
    bare = npy(unzipped(content)[0][1])
    return st.one_of(
        zips(content, member, False),
        zips(content, member, False),
        zips(content, member, False),
        bombs,
        bare,
        only(content),
    )


# ---------------------------------------------------------------- torch


class _Calls:
    """Be pickled as the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def _global(module: str, name: str, arguments: bytes) -> bytes:
    """Write a pickle that calls a function by name, without having it."""
    return b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n" + arguments + b"R."


def _folded(depth: int, width: int, kind: type = list) -> Any:
    """Make a value of few parts, nested so often that writing it out would fill any memory."""
    value: Any = "x"
    for _ in range(depth):
        value = (
            kind([value] * width)
            if kind is not dict
            else {str(index): value for index in range(width)}
        )
    return value


def _nested(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


PAYLOADS = (
    pickle.dumps(_Calls(eval, "open('/tmp/channelscope-fuzz-canary', 'w')"), 2),
    _global("os", "system", b"(X\x07\0\0\0touch xt"),
    _global("posix", "system", b"(X\x07\0\0\0touch xt"),
    _global("subprocess", "Popen", b"(X\x04\0\0\0truet"),
    _global("builtins", "exec", b"(X\x06\0\0\0import t"),
    _global("builtins", "bytearray", b"(\x8a\x05\0\0\0\0\x02t"),
    _global("builtins", "bytearray", b"(J\xff\xff\xff\x7ft"),
    _global("torch", "Tensor", b"(\x8a\x05\0\0\0\0\x02t"),
    _global("torch", "FloatTensor", b"(J\0\0\0\x7ft"),
    _global("torch.storage", "UntypedStorage", b"(\x8a\x05\0\0\0\0\x02t"),
    _global("collections", "Counter", b"(X\x01\0\0\0at"),
    _global("torch.hub", "load", b"(X\x01\0\0\0at"),
    _global(
        "torch._utils",
        "_rebuild_meta_tensor_no_storage",
        b"(ctorch\nfloat32\n(M\x09\x03K\x09t(K\x01K\x01t\x89t",
    ),
    _nested(1000),
    _nested(200_000),
    b"\x80\x02]" + b"2" * 300_000 + b".",
    b"\x80\x02]" + b"]" * 400_000 + b"e.",
    b"\x80\x02\x8b\xff\xff\xff\x7f.",
    b"\x80\x02X\xff\xff\xff\xff.",
    b"\x80\x02]q\0h\0a.",
    b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    b"\x80\x02\x8b\x10\x27\0\0" + b"\x7f" * 10_000 + b".",
    b"cos\nsystem\n(S'x'\ntR.",
    b"\x80\x02}" + b"(K\x01K\x01u" * 10 + b".",
)


@cache
def _tensors() -> st.SearchStrategy[Any]:
    one = torch.ones(1)
    return pick(
        [
            one.expand(10**6, 10**6),
            one.expand(2**30),
            torch.ones(3).as_strided((4, 4), (0, 0)),
            torch.ones(9)[::2],
            torch.zeros(0),
            one.half(),
            one.to(torch.complex64),
            one.bool(),
            torch.ones(2, 2).to_sparse(),
            torch.ones(2, 2).to_sparse_csr(),
            torch.ones(8, device="meta"),
            one * torch.nan,
            one.int(),
            torch.nn.Parameter(one),
            torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.int64), one, (10**9, 10**9)),
            torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
            torch.ones(4, 4).T,
            torch.ones(4, dtype=torch.float64),
            torch.tensor(10**18),
            torch.ones(2, 2, dtype=torch.complex64).conj(),
            torch.ones(4).to(torch.float8_e5m2),
            torch.ones(2).to(torch.uint16),
        ]
    )


class Later:
    """A value that cannot be gone through; it is made when all else is there."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def _made(value: Any) -> Any:
    if isinstance(value, Later):
        return value.make()
    if type(value) is dict:
        return {key: _made(item) for key, item in value.items()}
    return type(value)(map(_made, value)) if type(value) in (list, tuple) else value


def _within_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def _odd() -> st.SearchStrategy[Any]:
    folded = st.builds(
        lambda *how: Later(lambda: _folded(*how)),
        pick([4, 30, 90]),
        st.integers(2, 8),
        pick([list, tuple, dict]),
    )
    strange = pick(
        [
            {1, 2},
            b"ab",
            1j,
            torch.float32,
            torch.Size([1]),
            torch.device("cpu"),
            bytearray(b"x"),
            Later(_within_itself),
            Later(_long),
        ]
    )
    return st.one_of(VALUES, _tensors(), _tensors(), folded, strange)


def _written(content: Any, legacy: bool) -> bytes:
    buffer = io.BytesIO()
    try:
        torch.save(_made(content), buffer, _use_new_zipfile_serialization=not legacy)
    except Exception:  # what torch does not write (a conjugate view, in the old form) is no input
        return b""
    return buffer.getvalue()


def pt_files(content: bytes) -> Bytes:
    """Draw networks' files with other values and tensors, pickles that call, archives that lie."""
    known = torch.load(io.BytesIO(content), weights_only=True)
    values = st.builds(_written, edited(known, _odd()), pick([False, False, False, True]))
    payload = pick(PAYLOADS)

    def member(inside: bytes) -> Bytes:
        numbers = pick(
            [
                b"\x8a\x05\0\0\0\0\x02",
                b"J\xff\xff\xff\x7f",
                b"K\0",
                b"J\xff\xff\xff\xff",
                b"M\xff\xff",
                b"N",
                b"\x88",
            ]
        )
        at = st.integers(0, max(0, inside.count(b"K") - 1))
        return st.one_of(
            payload,
            payload,
            st.builds(_swapped, only(inside), at, numbers),
            only(inside[:-2]),
            only(b""),
        )

    if not content.startswith(b"PK"):
        return st.one_of(
            values, payload, payload.map(lambda code: content[:40] + code), st.binary(max_size=60)
        )
    pickled = next(name for name, _ in unzipped(content) if name.endswith("data.pkl"))
    programs = payload.map(
        lambda code: zipped([(pickled, code), (pickled.replace("data.pkl", "version"), b"3\n")])
    )
    bombs = st.deferred(
        lambda: pick([_bomb("archive/data/0", 1500), _bomb("archive/data.pkl", 1500)])
    )
    return st.one_of(
        values,
        values,
        values,
        zips(content, member, True),
        zips(content, member, True),
        programs,
        payload,
        bombs,
    )


def _swapped(inside: bytes, at: int, number: bytes) -> bytes:
    """Put another number in the place of a small one in a pickle: a size, a stride, an offset."""
    place = -1
    for _ in range(at + 1):
        place = inside.find(b"K", place + 1)
    return inside[:place] + number + inside[place + 2 :] if place >= 0 else inside


# ---------------------------------------------------------------- pictures and other files


def _png(
    width: int, height: int, data: bytes, extra: bytes = b"", depth: int = 8, colours: int = 2
) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@cache
def _picture_bombs() -> tuple[bytes, ...]:
    rows = zlib.compress(bytes(200 * 2**20), 9)
    ztxt = zlib.compress(bytes(100 * 2**20), 9)
    body = b"zTXta\0\0" + ztxt
    text = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    tiff = (
        b"II*\0\x08\0\0\0\x05\0"
        + b"".join(
            struct.pack("<HHII", tag, 4, 1, value)
            for tag, value in ((256, 60_000), (257, 60_000), (258, 8), (262, 1), (273, 8))
        )
        + bytes(4)
    )
    return (
        _png(10_000, 6_600, rows),
        _png(13_000, 13_000, rows, colours=0),
        _png(2**31 - 1, 2**31 - 1, rows),
        _png(9_400, 9_400, b""),
        _png(4, 4, rows),
        _png(0, 0, b""),
        _png(4, 4, zlib.compress(bytes(52)), text),
        _png(4, 4, zlib.compress(bytes(100)), depth=16),
        b"P6 100000 100000 255\n",
        b"P5 9000 9000 255\n" + bytes(100),
        b"P6 4 4 65535\n" + bytes(96),
        b"P6 " + b"9" * 5000,
        b"GIF89a\xff\xff\xff\xff\x80\0\0"
        + bytes(6)
        + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x4c\x01\0;",
        b"BM"
        + struct.pack(
            "<IHHIIiiHHIIiiII", 70, 0, 0, 54, 40, 2**30, -(2**30), 1, 24, 0, 0, 0, 0, 0, 0
        )
        + bytes(16),
        b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 70, 0, 0, 54, 40, 9000, 9000, 1, 8, 1, 0, 0, 0, 0, 0)
        + bytes(16),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) print\n",
        tiff,
        b"RIFF\x20\0\0\0WEBPVP8L\x10\0\0\0\x2f\xff\xff\xff\x0f" + bytes(12),
        b"icns\0\0\0\x10" + bytes(8),
        b"SIMPLE  =                    T" + bytes(2880),
        b"\0\0\x01\0\x01\0" + bytes(40),
        b"8BPS\0\x01" + bytes(40),
        *(content for _, content in list_hurtful().values()),
        make_png(30_000, 1),
        make_png(1, 30_000),
        make_png(2300, 2300),
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>",
        b"",
        b"\0",
    )


def pictures(content: bytes) -> Bytes:
    """Draw pictures that claim to be enormous, have another kind than their name, or are cut."""
    bombs = st.deferred(lambda: pick(_picture_bombs()))
    cut = st.integers(0, len(content)).map(lambda length: content[:length])
    swapped = st.builds(
        lambda at, byte: content[:at] + byte + content[at + 1 :],
        st.integers(0, len(content) - 1),
        st.binary(min_size=1, max_size=4),
    )
    return st.one_of(bombs, bombs, cut, swapped, swapped, st.binary(max_size=60))


def idx_files(content: bytes) -> Bytes:
    """Draw MNIST's files."""
    sides = pick([0, 1, 2, 20, 28, 2**31 - 1, -1, 10**6])
    kinds = pick([8, 9, 11, 12, 13, 14, 0, 255])
    made = st.builds(
        lambda kind, shape, body: (
            struct.pack(">BBBB", 0, 0, kind, len(shape))
            + b"".join(struct.pack(">i", side) for side in shape)
            + bytes(body)
        ),
        kinds,
        st.lists(sides, max_size=4),
        pick([0, 1, 20, 28 * 28 * 20, 20 * 8]),
    )
    return st.one_of(made, made, st.binary(max_size=40), only(content[:-1]), only(content))


def pickles(content: bytes) -> Bytes:
    """Draw pickles that run something."""
    return st.one_of(pick(PAYLOADS), st.binary(max_size=60), only(content + b"x"))


def anything(content: bytes) -> Bytes:
    """Draw bytes."""
    return st.binary(max_size=200) | st.integers(0, len(content)).map(
        lambda length: content[:length]
    )


PICTURES = (".png", ".jpg", ".gif", ".bmp", ".tif", ".webp", ".ppm")
FILES: tuple[tuple[tuple[str, ...], Callable[[bytes], Bytes]], ...] = (
    ((".json",), json_files),
    ((".jsonl",), json_lines),
    ((".csv",), csv_files),
    ((".toml",), toml_files),
    (("/words",), words),
    ((".npz",), npz_files),
    ((".npy",), npy),
    ((".pt", ".pth", ".partial"), pt_files),
    (("ubyte",), idx_files),
    (PICTURES, pictures),
    (("_batch_1", "_batch_2", "_batch_3", "_batch_4", "_batch_5", "test_batch", ".meta"), pickles),
)


@cache
def of_file(name: str, content: bytes) -> Bytes:
    """Give the strategy of a file, by its name."""
    how = next((how for endings, how in FILES if name.endswith(endings)), anything)
    return how(content)


# ---------------------------------------------------------------- folders


@st.composite
def _elsewhere(draw: st.DrawFn, target: Target, tree: Tree) -> Tree:
    """Replace a file by a link out of the folder, a pipe, a folder or a file of a terabyte."""
    name = draw(pick(list(tree.entries)))
    depth = name.count("/")
    outside = f"outside/{name.removeprefix('in/')}"
    way = draw(
        pick(["out", "out", "device", "fifo", "socket", "folder", "sparse", "loop", "gone", "less"])
    )
    entries: dict[str, Entry] = dict(tree.entries)
    entry: dict[str, Entry | None] = {
        "device": Link("/dev/zero"),
        "loop": Link(name.rpartition("/")[2]),
        "gone": Link("nowhere"),
        "less": None,
        **{kind: Special(kind) for kind in ("fifo", "socket", "folder", "sparse")},
    }
    if way == "out":  # what is there is as it should be, and lies elsewhere
        entries[outside] = entries[name]
        entries[name] = Link("../" * depth + outside)
        return Tree(entries, refuse=target.ours)
    new = entry[way]
    if new is None:
        del entries[name]
    else:
        entries[name] = new
    if name.endswith((".jpg", ".png")) and draw(st.booleans()):
        entries[
            name.rpartition("/")[0] + "/" + draw(NAMES.filter(lambda odd: "/" not in odd)) + ".png"
        ] = new or b""
    return Tree(entries)


@st.composite
def _repeated(draw: st.DrawFn, tree: Tree) -> Tree:
    """Put one picture in the place of all, and beside them, many times."""
    names = [name for name in tree.entries if name.endswith(PICTURES)]
    sides = pick([(1, 1), (30_000, 1), (2048, 2048), (700, 900), (5792, 5792)])
    content = draw(sides.map(lambda side: make_png(*side)) | pick(_picture_bombs()))
    copies = draw(pick([1, 10, 40]))
    return Tree(
        {name: entry for name, entry in tree.entries.items() if name not in names}
        | {f"{name[:-4]}-{copy}{name[-4:]}": content for name in names for copy in range(copies)}
    )


@st.composite
def _everywhere(draw: st.DrawFn, tree: Tree) -> Tree:
    """Give a model, class, layer, attack or number another name wherever a result has it."""
    words = ["at", "cifs", "cat", "dog", "net", "layer4", "pgd-20", "fgsm", "natural", "0.0", "0.5"]
    old = draw(pick(words)).encode()
    new = draw(pick([b"x" * 100_000, b"x" * 4096, b"x" * 300, b"1e308", b"-1e308", b"5e-324"]))
    texts = (".csv", ".json")
    return Tree(
        {
            name: entry.replace(old, new)
            if name.endswith(texts) and isinstance(entry, bytes)
            else entry
            for name, entry in tree.entries.items()
        }
    )


@st.composite
def _named(draw: st.DrawFn, tree: Tree) -> Tree:
    """Give a file or a folder another name."""
    name = draw(pick(list(tree.entries)))
    parts = name.split("/")
    index = draw(st.integers(1, len(parts) - 1))
    odd = draw(NAMES.filter(lambda odd: "/" not in odd and odd not in (".", "..")))
    new = "/".join(
        [
            *parts[:index],
            odd + (parts[index][-4:] if index == len(parts) - 1 else ""),
            *parts[index + 1 :],
        ]
    )
    return Tree({(new if key == name else key): entry for key, entry in tree.entries.items()})


@st.composite
def trees(draw: st.DrawFn, target: Target) -> Tree:
    """Draw an input for a target from one of its valid ones."""
    tree = draw(pick(target.trees))
    ways = ["inside"] * 8 + ["elsewhere", "named"] * target.files
    ways += ["repeated"] * 3 * any(name.endswith(PICTURES) for name in tree.entries)
    ways += ["everywhere"] * 2 * ("in/meta.json" in tree.entries)
    way = draw(pick(ways))
    if way == "repeated":
        return draw(_repeated(tree))
    if way == "everywhere":
        return draw(_everywhere(tree))
    if way == "elsewhere":
        return draw(_elsewhere(target, tree))
    if way == "named":
        return draw(_named(tree))
    name = draw(pick([name for name, entry in tree.entries.items() if isinstance(entry, bytes)]))
    content = tree.entries[name]
    assert isinstance(content, bytes)
    changed = draw(of_file(name, content))
    return Tree({**tree.entries, name: changed}, refuse=target.never and changed != content)
