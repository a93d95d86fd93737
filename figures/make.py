"""Make the gallery: train and compare the demonstration's networks, and keep its figures and their data here."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RUN = HERE.parent / "runs" / "gallery"
TABLES = ("activations", "alignment", "robustness", "verdicts", "training", "gates")


def main() -> None:
    """Run the demonstration (what is trained already is used again) and copy its main figures and its tables."""
    subprocess.run([sys.executable, "-m", "channelscope", "demo", "--out", str(RUN)], check=True)
    made, gallery = RUN / "comparison", HERE / "digits"
    shutil.rmtree(gallery, ignore_errors=True)
    gallery.mkdir()
    captions = json.loads((made / "figures" / "captions.json").read_text("utf-8"))
    shown = [item for item in captions if item["main"]]
    for item in shown:
        for ending in ("pdf", "png"):
            shutil.copy(made / "figures" / f"{item['name']}.{ending}", gallery)
    for name in TABLES:
        shutil.copy(made / f"{name}.csv", gallery)
    meta = json.loads((made / "meta.json").read_text("utf-8"))
    meta["command"] = "make figures"
    (gallery / "meta.json").write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n", "utf-8")
    pictures = [f"## {item['name']}\n\n![{item['name']}]({item['name']}.png)\n\n{item['caption']}\n" for item in shown]
    head = (
        "# Gallery: three networks on handwritten digits\n\nMade by `make figures`; the data is in the tables beside.\n"
    )
    (gallery / "README.md").write_text("\n".join([head, *pictures]), "utf-8")


if __name__ == "__main__":
    main()
