"""Make the galleries: keep the main figures of two comparisons, and their data, here.

    python -m figures.make [--data DIR]

digits: the demonstration's networks, trained where they are not yet. cifar10: the networks of the zoo on the images of
DIR (test/<class>/), as docs/RESULTS.md has them; left as it is where DIR is missing.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks import results

HERE, RUN = Path("figures"), Path("runs/gallery")
TABLES = ("activations", "alignment", "robustness", "verdicts", "training", "gates")
HEADS = {
    "digits": "# Gallery: three networks on handwritten digits",
    "cifar10": "# Gallery: four networks on CIFAR-10 (JPEG)",
}
WORDS = """\
Made by `make figures`; the data is in the tables beside. *Standard*: trained on natural images; *AT*: on adversarial
ones; *CAS*, *CIFS*: AT with gates. A gate sits behind a layer. Its *probe*, a small classifier, tells from the layer's
channels which class it sees; a channel that speaks for that class is *positively relevant* (PR), one that speaks
against it *negatively relevant* (NR). Its *mask* multiplies each channel by a weight that grows with the relevance: PR
channels are let through, NR ones held back.
"""


def keep(name: str, made: Path) -> None:
    """Copy a comparison's main figures and its tables."""
    gallery = HERE / name
    shutil.rmtree(gallery, ignore_errors=True)
    gallery.mkdir()
    captions = json.loads((made / "figures" / "captions.json").read_text("utf-8"))
    shown = [item for item in captions if item["main"]]
    for item in shown:
        for ending in ("pdf", "png"):
            shutil.copy(made / "figures" / f"{item['name']}.{ending}", gallery)
    for table in TABLES:
        shutil.copy(made / f"{table}.csv", gallery)
    meta = json.loads((made / "meta.json").read_text("utf-8")) | {"command": "make figures"}
    (gallery / "meta.json").write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n", "utf-8")
    pictures = [f"## {item['name']}\n\n![{item['name']}]({item['name']}.png)\n\n{item['caption']}\n" for item in shown]
    (gallery / "README.md").write_text("\n".join([f"{HEADS[name]}\n", WORDS, *pictures]), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m figures.make", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, default=Path("data/cifar10-jpeg"), metavar="DIR", help="CIFAR-10's images")
    data = parser.parse_args().data
    subprocess.run([sys.executable, "-m", "channelscope", "demo", "--out", str(RUN)], check=True)
    keep("digits", RUN / "comparison")
    if data.is_dir():
        keep("cifar10", results.compare(data))
    else:
        print(f"There is no folder {data}: figures/cifar10 is left as it is.")


if __name__ == "__main__":
    main()
