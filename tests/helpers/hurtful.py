"""Small pictures that take much time or memory to decode: whoever reads files must refuse them."""

import io
import struct
import zlib
from functools import cache
from typing import Any

from PIL import Image


def save_picture(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """Return a picture as a file's bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def make_png(width: int, height: int) -> bytes:
    """Make a black, grey PNG: a thousandth of its pixels in bytes."""
    return save_picture(Image.new("L", (width, height)), "PNG")


def repeat_scan(side: int, times: int) -> bytes:
    """Make a progressive JPEG whose last scan comes again and again."""
    content = save_picture(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * times + content[-2:]


def repeat_chunk(times: int, kind: bytes = b"tEXt", content: bytes = b"a\0b") -> bytes:
    """Make a PNG with a chunk that comes again and again."""
    chunk = struct.pack(">I", len(content)) + kind + content
    chunk += struct.pack(">I", zlib.crc32(kind + content))
    png = make_png(4, 4)
    return png[:33] + chunk * times + png[33:]


def repeat_comment(times: int, comment: bytes = b"\x01x\0") -> bytes:
    """Make a GIF with a comment, in blocks, that comes again and again."""
    gif = save_picture(Image.new("L", (8, 8)), "GIF")
    place = 13 + 3 * 2 ** ((gif[10] & 7) + 1)  # behind the colours
    return gif[:place] + (b"!\xfe" + comment) * times + gif[place:]


def make_tiff(entries: dict[int, int], body: bytes) -> bytes:
    """Make a TIFF of tags and what is behind them."""
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + tags + bytes(4) + body


def enlarge_tile(side: int) -> bytes:
    """Make a TIFF of 4 x 4 pixels in a tile of so many, which libtiff makes room for."""
    body = zlib.compress(bytes(256))
    entries = {256: 4, 257: 4, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side}
    place = 8 + 2 + 12 * (len(entries) + 2) + 4
    return make_tiff(entries | {324: place, 325: len(body)}, body)


def share_strips(side: int) -> bytes:
    """Make a TIFF each of whose rows is the same few bytes."""
    body, count = zlib.compress(bytes(side)), side
    entries = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 273: 0, 277: 1, 278: 1, 279: 0}
    head = make_tiff(entries, b"")
    places = struct.pack("<I", len(head) + 8 * count) * count
    lengths = struct.pack("<I", len(body)) * count
    for tag, place in ((273, len(head)), (279, len(head) + 4 * count)):
        at = head.index(struct.pack("<HH", tag, 4))
        head = head[:at] + struct.pack("<HHII", tag, 4, count, place) + head[at + 12 :]
    return head + places + lengths + body


@cache
def list_hurtful() -> dict[str, tuple[str, bytes]]:
    """Return pictures, each with its file's ending, of which every one is to be refused."""
    black, plain = Image.new("RGB", (3000, 3000)), Image.new("P", (4500, 4500))
    return {
        "scans": (".jpg", repeat_scan(2000, 300)),
        "chunks": (".png", repeat_chunk(70_000)),
        "empty chunks": (".png", repeat_chunk(70_000, b"abcd", b"")),
        "comments": (".gif", repeat_comment(110_000)),
        "pieces of a comment": (".gif", repeat_comment(1, b"\x01x" * 110_000 + b"\0")),
        "black png": (".png", make_png(5792, 5792)),
        "black webp": (".webp", save_picture(black, "WEBP", lossless=True, method=0)),
        "black gif": (".gif", save_picture(plain, "GIF")),
        "black tiff": (".tif", save_picture(black, "TIFF", compression="tiff_adobe_deflate")),
        "tile": (".tif", enlarge_tile(2**15)),
        "strips": (".tif", share_strips(5000)),
        "slow ppm": (".ppm", b"P5 1100 1100 100\n" + bytes(1100 * 1100)),
        "digits": (".ppm", b"P2 1100 1100 255\n" + b"0 " * 1100 * 1100),
    }
