"""Take README's picture of the explorer: ``python -m figures.explorer``.

The zoo's networks are compared on images of $CHANNELSCOPE_DATA/cifar10-jpeg; the picture is the top
of the still page that a notebook shows without a kernel, taken by headless Chromium.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import channelscope as cs

PICTURE = Path("figures/explorer.png")
RUN = Path("runs/explorer")
IMAGES = 300
WIDTH, HEIGHT = 1060, 442
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
PAGE = '<!doctype html><meta charset="utf-8"><body style="margin: 4px 12px">{}'


def compare() -> cs.Result:
    """Compare the zoo's networks, or read what was compared before."""
    if RUN.is_dir():
        return cs.Result.load(RUN)
    result = cs.compare(
        {label: f"zoo:cifar10-{label.lower()}" for label in ("standard", "AT", "CAS", "CIFS")},
        f"imagefolder:{os.environ['CHANNELSCOPE_DATA']}/cifar10-jpeg",
        images=IMAGES,
        attack="pgd-20",
        attacks="pgd-20",
        replicates=100,
    )
    result.save(RUN, formats=["png"])
    return result


def photograph(page: str, program: str) -> None:
    """Let a browser draw a page's top into ``PICTURE``."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "page.html")
        file.write_text(page, "utf-8")
        options = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--force-device-scale-factor=1.5",
            f"--user-data-dir={folder}/profile",
            f"--window-size={WIDTH},{HEIGHT}",
            f"--screenshot={PICTURE.resolve()}",
        )
        subprocess.run([program, *options, file.as_uri()], check=True)


def main() -> None:
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        sys.exit("This takes Chromium: install it.")
    html = cs.explore(compare(), model="standard", class_name="cat")._repr_html_()
    photograph(PAGE.format(html), program)


if __name__ == "__main__":
    main()
