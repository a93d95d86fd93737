"""Valid files with bits flipped, or parts cut out, doubled, moved or inserted."""

import random
import zipfile

from structured import unzipped, zipped
from targets import Target
from trees import Tree

BYTES = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\xff\xff\xff\xff",
    b"\0\0\0\x80",
    b"\n",
    b'"',
    b",",
    b"[",
    b"{",
    b"../",
    b"9" * 30,
    b"nan",
    b"-1",
)


def mutated(target: Target, rng: random.Random) -> Tree:
    """Draw an input for a target by damage to a file of one of its valid ones."""
    tree = rng.choice(target.trees)
    name = rng.choice([name for name, entry in tree.entries.items() if isinstance(entry, bytes)])
    content = tree.entries[name]
    assert isinstance(content, bytes)
    changed = of_file(content, rng)
    return Tree({**tree.entries, name: changed}, refuse=target.never and changed != content)


def of_file(content: bytes, rng: random.Random) -> bytes:
    """Damage a file; of half of the archives a member instead, with its checksum put right."""
    if content.startswith(b"PK\3\4") and rng.random() < 0.6:
        members = unzipped(content)
        index = rng.randrange(len(members))
        packed = any(info.compress_type for info in _infos(content))
        members[index] = members[index][0], damaged(members[index][1], rng)
        return zipped(members, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
    return damaged(content, rng)


def _infos(content: bytes) -> list[zipfile.ZipInfo]:
    import io

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.infolist()


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Damage bytes in one to four places."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = _once(content, rng)
    return content


def _once(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    end = min(len(content), at + rng.choice((1, 2, 4, 16, 200)))
    match rng.choice(
        ("flip", "flip", "flip", "cut", "less", "twice", "put", "over", "move", "beginning")
    ):
        case "flip" if at < len(content):
            return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        case "cut":
            return content[:at]
        case "less":
            return content[:at] + content[end:]
        case "twice":
            return content[:end] + content[at:end] * rng.choice((1, 3, 100)) + content[end:]
        case "put":
            return content[:at] + rng.choice(BYTES) + content[at:]
        case "over":
            new = rng.choice(BYTES)
            return content[:at] + new + content[at + len(new) :]
        case "move":
            to = rng.randrange(len(content) + 1)
            return content[:to] + content[at:end] + content[to:]
        case "beginning":
            return content[at:]
    return content
