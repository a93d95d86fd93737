"""Refuse a tag that is not this version, or a version that CHANGELOG.md does not date.

    python .ci/release.py v0.2.0

The version is the literal in channelscope/__init__.py, read without importing the package.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent.parent


def read_version() -> str:
    """Return the version that the source states."""
    text = (HERE / "channelscope" / "__init__.py").read_text("utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return str(version)


def read_release() -> tuple[str, str]:
    """Return the version and the date ("unreleased" before its release) that head CHANGELOG.md."""
    text = (HERE / "CHANGELOG.md").read_text("utf-8")
    heading = re.search(r"^## (\S+) \((\d{4}-\d{2}-\d{2}|unreleased)\)$", text, re.MULTILINE)
    if heading is None:
        raise SystemExit("CHANGELOG.md has no heading '## VERSION (YYYY-MM-DD)'.")
    return heading[1], heading[2]


def check_release(tag: str) -> None:
    """Exit with a sentence where the tag, the source and CHANGELOG.md do not agree."""
    version = read_version()
    changelog, date = read_release()
    if tag != f"v{version}":
        raise SystemExit(f"The tag is {tag}, and channelscope.__version__ is {version}.")
    if changelog != version or date == "unreleased":
        raise SystemExit(f"CHANGELOG.md begins with {changelog} ({date}): date {version} there.")


if __name__ == "__main__":
    check_release(sys.argv[1])
