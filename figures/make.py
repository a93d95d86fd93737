"""Make the galleries: ``python -m figures.make``.

digits: the demonstration's networks, which are trained and compared where they are not yet. cifar10: drawn from the
tables that ``python -m benchmarks.results measure`` keeps here, and its interventions from those in
docs/results-small. Main figures only, each beside its data; the tables of which a gallery is drawn are in its folder
``tables``.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from channelscope import Comparison
from channelscope.figures import draw
from channelscope.report import SECTIONS
from figures import rankings
from figures.markdown import escaped

HERE, RUN, DRAWN = Path("figures"), Path("runs/gallery"), Path("runs/gallery/drawn")
SWEEPS = ("--eps-sweep", "0.05", "0.1", "0.15", "0.2", "--step-sweep", "1", "2", "5", "10", "20")
HEADS = {
    "digits": "# Gallery: three networks on handwritten digits",
    "cifar10": "# Gallery: four networks on CIFAR-10 (JPEG)",
}
WORDS = """\
Made by `make figures`, from the tables in [tables](tables). *Standard*: trained on natural images; *AT*: on adversarial
ones; *CAS*, *CIFS*: AT with gates. A gate sits behind a layer. Its *probe*, a small classifier, tells from the layer's
channels which class it sees; a channel that speaks for that class is *positively relevant* (PR), one that speaks
against it *negatively relevant* (NR). Its *mask* multiplies each channel by a weight that grows with the relevance: PR
channels are let through, others held back; a mask made of a wrong guess lets NR channels through.

The adversarial images whose activations are shown are those of PGD-20 on the network's own answer, which can miss what
gates hide; robust accuracy is the worst case over all attacks. Of their names, *joint-sweep* attacks the answer and the
probes together, *detached* without the gradient through the masks, *frozen* with the masks held still, *probe* a probe
alone, and *from* takes images made on another network.
"""


def take_tables(made: Path, gallery: Path) -> None:
    """Copy a comparison's tables and arrays, and its settings with the command that made them."""
    tables = gallery / "tables"
    shutil.rmtree(tables, ignore_errors=True)
    tables.mkdir(parents=True)
    for file in (*made.glob("*.csv"), made / "arrays.npz"):
        shutil.copy(file, tables)
    meta = json.loads((made / "meta.json").read_text("utf-8")) | {"command": "make figures"}
    (tables / "meta.json").write_text(
        json.dumps(meta, indent=1, ensure_ascii=False) + "\n", "utf-8"
    )


def draw_gallery(gallery: Path) -> None:
    """Draw the main figures from a gallery's tables, each beside its data, and show them in its README."""
    shutil.rmtree(DRAWN, ignore_errors=True)
    draw(Comparison.load(gallery / "tables"), DRAWN)
    shown = [
        figure
        for figure in json.loads((DRAWN / "captions.json").read_text("utf-8"))
        if figure["main"]
    ]
    if gallery.name == "cifar10":
        shown += rankings.draw(DRAWN)
    for old in (file for file in gallery.iterdir() if file.is_file()):
        old.unlink()
    for figure in shown:
        for ending in ("pdf", "png", "csv"):
            shutil.copy(DRAWN / f"{figure['name']}.{ending}", gallery)
    (gallery / "README.md").write_text(page(HEADS[gallery.name], shown), "utf-8")


def page(head: str, shown: Sequence[Mapping[str, Any]]) -> str:
    """Lay out a gallery's README: what it has, and then every figure with its caption, section by section."""
    titles = {name: title for name, (title, _) in SECTIONS.items()} | {
        rankings.SECTION: rankings.SECTION
    }
    sections = {
        title: figures
        for name, title in titles.items()
        if (figures := [figure for figure in shown if figure["section"] == name])
    }
    contents = []
    for title, figures in sections.items():
        links = ", ".join("[{name}](#{name})".format_map(figure) for figure in figures)
        contents.append(f"- {title}: {links}")
    parts = [head, WORDS, "\n".join(contents)]
    for title, figures in sections.items():
        parts += [f"## {title}", *map(_shown, figures)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _shown(figure: Mapping[str, Any]) -> str:
    name = figure["name"]
    picture = f'<img src="{name}.png" width="480" alt="{escape(" ".join(figure["alt_text"].split()))}">'
    return f"### {name}\n\n{picture}\n\n{escaped(figure['caption'])} [Data]({name}.csv), [PDF]({name}.pdf)."


def run(*command: str) -> None:
    subprocess.run([sys.executable, "-m", "channelscope", *command], check=True)


def main() -> None:
    run("demo", "--out", str(RUN))
    models = ("--models", *(str(RUN / f"{method}.pt") for method in ("standard", "at", "cifs")))
    models += ("--labels", "standard", "AT", "CIFS")
    run(
        "compare",
        *models,
        "--layers",
        "layer?",
        *SWEEPS,
        "--no-thumbnails",
        "--out",
        str(RUN / "whole"),
    )
    take_tables(RUN / "whole", HERE / "digits")
    for name in HEADS:
        draw_gallery(HERE / name)


if __name__ == "__main__":
    main()
