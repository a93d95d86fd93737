"""The examples in docstrings of packages that a user's own file is added to."""

import re
from textwrap import dedent
from types import ModuleType
from typing import Any


def run_example(module: ModuleType) -> dict[str, Any]:
    """Run the indented lines of a module's docstring as a file; return the names it defines."""
    lines = re.findall(r"^(?: {4}.*)?\n", module.__doc__ or "", re.MULTILINE)
    names: dict[str, Any] = {"__name__": "example"}
    exec(dedent("".join(lines)), names)
    return names
