"""Measure the package's own shape, as ARCHITECTURE.md has it: ``python .ci/measures.py [FOLDER]``.

FOLDER holds the package; an earlier version can be unpacked by ``git archive COMMIT | tar -x``.
"""

import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grimp

NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def measure_imports(folder: Path) -> tuple[int, int]:
    """Return how many modules there are, and how many stand on the longest chain of imports.

    Imports within functions count, those for type checkers do not. No module is visited twice on a
    chain, so that circles, which ``make floors`` refuses, do not end it.
    """
    sys.path.insert(0, str(folder))
    graph = grimp.build_graph("channelscope", exclude_type_checking_imports=True, cache_dir=None)
    sys.setrecursionlimit(10_000)
    above: list[str] = []

    @cache
    def chain(module: str) -> int:
        above.append(module)
        imported = graph.find_modules_directly_imported_by(module) - {*above}
        longest = 1 + max(map(chain, sorted(imported)), default=0)
        above.pop()
        return longest

    return len(graph.modules), max(map(chain, sorted(graph.modules)))


def read_lines(file: Path) -> Iterator[tuple[bool, bool, bool]]:
    """Tell of each line whether it has code (or docstring), a comment, more than 100 columns."""
    code, comments = set(), set()
    with tokenize.open(file) as opened:
        lines = opened.readlines()
    for token in tokenize.generate_tokens(iter(lines).__next__):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in NO_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    for number, line in enumerate(lines, 1):
        yield number in code, number in comments, len(line.rstrip("\n")) > 100


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    modules, chain = measure_imports(folder)
    lines = [line for file in (folder / "channelscope").rglob("*.py") for line in read_lines(file)]
    code, comments, long = (sum(column) for column in zip(*lines, strict=True))
    print(f"modules {modules}, on the longest chain of imports {chain}")
    print(f"lines {len(lines):,}, of more than 100 columns {long / len(lines):.1%}")
    print(f"comments on 100 lines of code {100 * comments / code:.1f}")


if __name__ == "__main__":
    main()
