"""Make the galleries: ``python -m figures.make``.

digits: networks of the demonstration, trained and compared as far as that has not been done.
cifar10: drawn from the results that ``python -m benchmarks.results measure`` keeps, here and in
docs/results-small. A gallery has the main figures of a comparison, each beside its data; the tables
that they are drawn from are in its folder ``tables``.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import channelscope as cs
from channelscope import gallery
from channelscope.report import SECTIONS
from figures import markdown

HERE = Path("figures")
RUN = Path("runs/gallery")
RESULTS = Path("docs/results-small")
METHODS = {"standard": "standard", "AT": "at", "CIFS": "cifs"}
HEADS = {
    "digits": "# Gallery: three networks on handwritten digits",
    "cifar10": "# Gallery: four networks on CIFAR-10 (JPEG)",
}
RANKINGS = "Is the relevance ranking true?"  # the section of:
DAMAGE = "Through which channels does the attack get through?"  # and of
FURTHER = {  # result -> section, figures
    "interventions": (RANKINGS, ["curves-gradient"]),
    "league": (RANKINGS, ["league"]),
    "rankings": (RANKINGS, ["scorer-agreement"]),
    "damage": (DAMAGE, ["waterfall-truck-layer4", "kinds", "repairs-layer4", "edges"]),
}
WORDS = """\
Made by `make figures` from the tables in [tables](tables). *Standard*: trained on natural images;
*AT*: adversarially trained; *CAS*, *CIFS*: AT with gates. A gate follows a layer. Its *probe*, a
small classifier, guesses the class from the layer's channels; a channel that speaks for that class
is *positively relevant* (PR), one that speaks against it *negatively relevant* (NR). Its *mask*
multiplies each channel by a weight that grows with the relevance: PR channels pass, others are held
back. A mask made for a wrong guess lets NR channels pass.

Activations are those of the adversarial images of PGD-20 on the network's own answer, an attack
that can miss what gates hide; robust accuracy is the worst case over all attacks. In their names,
*joint-sweep* attacks the answer and the probes together, *detached* has no gradient through the
masks, *frozen* holds the masks still, *probe* attacks one probe alone, and *from* takes images made
on another network.
"""


def keep_tables(result: Path, tables: Path) -> None:
    """Copy a result without its pictures; the settings say that this command made it."""
    shutil.rmtree(tables, ignore_errors=True)
    tables.mkdir(parents=True)
    for file in (*result.glob("*.csv"), result / "arrays.npz"):
        shutil.copy(file, tables)
    meta = json.loads((result / "meta.json").read_text("utf-8")) | {"command": "make figures"}
    text = json.dumps(meta, indent=1, ensure_ascii=False)
    (tables / "meta.json").write_text(f"{text}\n", "utf-8")


def make_gallery(folder: Path) -> None:
    """Draw the main figures of a gallery's tables, each beside its data, and write its README."""
    for file in folder.iterdir():
        if file.is_file():
            file.unlink()
    figures = draw(folder / "tables", folder)
    if folder.name == "cifar10":
        for name, (section, only) in FURTHER.items():
            figures += [
                figure | {"section": section} for figure in draw(RESULTS / name, folder, only)
            ]
    (folder / "README.md").write_text(format_page(HEADS[folder.name], figures), "utf-8")


def draw(result: Path, folder: Path, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Draw figures of a saved result, the main ones or those named; return what is said of each."""
    loaded = cs.Result.load(result)
    pictures = gallery.list_figures(loaded)
    names = only or [name for name, picture in pictures.items() if picture.subject.main]
    with TemporaryDirectory() as temporary:
        gallery.draw(loaded, Path(temporary), only=names, formats=("pdf", "png"))
        for ending in ("pdf", "png", "csv"):
            for file in Path(temporary).glob(f"*.{ending}"):
                shutil.copy(file, folder)
        listed: list[dict[str, Any]] = json.loads(
            Path(temporary, "captions.json").read_text("utf-8")
        )
    return listed


def format_page(head: str, figures: Sequence[Mapping[str, Any]]) -> str:
    """Return a gallery's README: its contents, then every figure with its caption, by section."""
    titles = {name: title for name, (title, _) in SECTIONS.items()}
    titles |= {title: title for title, _ in FURTHER.values()}
    contents = []
    parts = []
    for name, title in titles.items():
        if of_section := [figure for figure in figures if figure["section"] == name]:
            links = ", ".join("[{name}](#{name})".format_map(figure) for figure in of_section)
            contents.append(f"- {title}: {links}")
            parts += [f"## {title}", *map(_format_figure, of_section)]
    blocks = [head, WORDS, "\n".join(contents), *parts]
    return "\n\n".join(block.strip("\n") for block in blocks) + "\n"


def _format_figure(figure: Mapping[str, Any]) -> str:
    name = figure["name"]
    alt_text = escape(" ".join(figure["alt_text"].split()))
    files = f"[Data]({name}.csv), [PDF]({name}.pdf)."
    return (
        f'### {name}\n\n<img src="{name}.png" width="480" alt="{alt_text}">\n\n'
        f"{markdown.escape(figure['caption'])} {files}"
    )


def main() -> None:
    demo = [sys.executable, "-m", "channelscope", "demo", "--out", str(RUN)]
    subprocess.run(demo, check=True)
    cs.compare(
        {label: RUN / f"{method}.pt" for label, method in METHODS.items()},
        layers=["layer?"],
        eps_sweep=(0.05, 0.1, 0.15, 0.2),
        step_sweep=(1, 2, 5, 10, 20),
        thumbnails=False,
        out=RUN / "whole",
    )
    keep_tables(RUN / "whole", HERE / "digits" / "tables")
    for name in HEADS:
        make_gallery(HERE / name)


if __name__ == "__main__":
    main()
