"""What `make docs` adds to MkDocs: the repository's other pages, equations, and the commands' help.

README.md, the pages beside it, the galleries and benchmarks/RESULTS.md are pages of the site too.
A link is written as GitHub reads it, relative to its page's place in the repository; here it is
turned into the site's, and a file that is linked to comes along.
"""

import argparse
import html
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
DOCS = "docs/"
PAGES = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "benchmarks/RESULTS.md",
    "figures/cifar10/README.md",
    "figures/digits/README.md",
)
# Link targets in Markdown and HTML: what stands before one, the path, the anchor or title after it.
LINK = re.compile(r"""(\]\(|\b(?:src|href)=")([^)\s"#:]+)((?:#[^)\s"]*)?)(?=[)"])""")
TEXT_LINK = re.compile(r"\[([^][]*)\]\(([^)\s#:]+)\)")
MATHS = re.compile(
    r'<(span|div) class="arithmatex">\s*(?:\\\(|\\\[)(.*?)(?:\\\)|\\\])\s*</\1>', re.DOTALL
)
# A shape such as "n *image", which mkdocstrings reads as a product.
SHAPE = re.compile(
    r'<span class="n">n</span> <span class="o">\*</span> <span class="n">(\w+)</span>'
)
HELP = "<!-- help of all commands -->"


def to_site(path: str) -> str:
    """Return where a file of the repository lies in the site."""
    return path.removeprefix(DOCS)


def to_repository(uri: str) -> str:
    """Return where a page of the site lies in the repository."""
    return uri if (ROOT / uri).is_file() and not (ROOT / DOCS / uri).is_file() else DOCS + uri


def resolve(page: str, link: str) -> str:
    """Return the repository's file or folder that a page's link leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def list_linked(page: str) -> Iterator[str]:
    """List the files of the repository that a page links to."""
    for match in LINK.finditer((ROOT / page).read_text("utf-8")):
        target = resolve(page, match[2])
        if not target.startswith("..") and (ROOT / target).is_file():
            yield target


def on_files(files: Any, config: Any) -> Any:
    """Add the repository's other pages, and every file that a page links to."""
    for page in PAGES:
        files.append(File.generated(config, page, abs_src_path=str(ROOT / page)))
    pages = [to_repository(file.src_uri) for file in files.documentation_pages()]
    for target in {target for page in pages for target in list_linked(page)}:
        if files.get_file_from_path(to_site(target)) is None:
            added = File.generated(config, to_site(target), abs_src_path=str(ROOT / target))
            files.append(added)
    return files


def on_page_markdown(text: str, page: Any, **_: Any) -> str:
    """Turn the links of the repository into those of the site; write the commands' help."""
    here = to_repository(page.file.src_uri)
    folder = posixpath.dirname(page.file.src_uri)

    def drop_folder(match: re.Match[str]) -> str:
        return match[1] if (ROOT / resolve(here, match[2])).is_dir() else match[0]

    def rewrite(match: re.Match[str]) -> str:
        target = resolve(here, match[2])
        if target.startswith("..") or not (ROOT / target).is_file():
            return match[0]
        return f"{match[1]}{posixpath.relpath(to_site(target), folder or '.')}{match[3]}"

    text = LINK.sub(rewrite, TEXT_LINK.sub(drop_folder, text))
    return text.replace(HELP, format_help()) if HELP in text else text


def on_page_content(text: str, **_: Any) -> str:
    """Set equations as MathML, which browsers draw without a script; mend tensors' shapes."""

    def convert(match: re.Match[str]) -> str:
        display = "inline" if match[1] == "span" else "block"
        return str(latex2mathml.converter.convert(html.unescape(match[2]), display=display))

    text = SHAPE.sub(r'<span class="s2">&quot;n *\1&quot;</span>', text)
    return MATHS.sub(convert, text)


def format_help() -> str:
    """Return the help of every command as Markdown."""
    os.environ["COLUMNS"] = "90"
    from channelscope.cli.parser import make_parser

    parts = []
    for name, parser in list_commands(make_parser()).items():
        parts.append(f"## channelscope {name}\n\n```text\n{parser.format_help().strip()}\n```\n")
    return "\n".join(parts)


def list_commands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """Return the command line's commands, by name."""
    menus = [action for action in parser._actions if hasattr(action, "_name_parser_map")]
    commands: dict[str, argparse.ArgumentParser] = menus[0].choices
    return commands
