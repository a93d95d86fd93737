"""Make the galleries: ``python -m figures.make``.

digits: the demonstration's networks, which are trained and compared where they are not yet. cifar10: drawn from the
tables that ``python -m benchmarks.results measure`` keeps here. Main figures only, each gallery with its tables.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from channelscope import Comparison
from channelscope.plots import caption, draw

HERE, RUN, DRAWN = Path("figures"), Path("runs/gallery"), Path("runs/gallery/drawn")
HEADS = {
    "digits": "# Gallery: three networks on handwritten digits",
    "cifar10": "# Gallery: four networks on CIFAR-10 (JPEG)",
}
WORDS = """\
Made by `make figures`; the data is in the tables beside. *Standard*: trained on natural images; *AT*: on adversarial
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
    gallery.mkdir(exist_ok=True)
    for file in (*made.glob("*.csv"), made / "arrays.npz"):
        shutil.copy(file, gallery)
    meta = json.loads((made / "meta.json").read_text("utf-8")) | {"command": "make figures"}
    (gallery / "meta.json").write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n", "utf-8")


def draw_gallery(gallery: Path) -> None:
    """Draw the main figures from a gallery's tables, and list them with their captions in its README."""
    comparison = Comparison.load(gallery)
    for old in (*gallery.glob("*.png"), *gallery.glob("*.pdf")):
        old.unlink()
    shutil.rmtree(DRAWN, ignore_errors=True)
    draw(comparison, DRAWN)
    shown = [item["name"] for item in json.loads((DRAWN / "captions.json").read_text("utf-8")) if item["main"]]
    for name in shown:
        for ending in ("pdf", "png"):
            shutil.copy(DRAWN / f"{name}.{ending}", gallery)
    pictures = [f"## {name}\n\n![{name}]({name}.png)\n\n{caption(name, comparison)}\n" for name in shown]
    (gallery / "README.md").write_text("\n".join([f"{HEADS[gallery.name]}\n", WORDS, *pictures]), "utf-8")


def main() -> None:
    subprocess.run([sys.executable, "-m", "channelscope", "demo", "--out", str(RUN)], check=True)
    take_tables(RUN / "comparison", HERE / "digits")
    for name in HEADS:
        draw_gallery(HERE / name)


if __name__ == "__main__":
    main()
