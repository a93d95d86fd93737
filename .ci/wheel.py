"""Build sdist and wheel, check the wheel's content, and use it in a clean environment.

The clean environment has a Python and the wheel of its own; what channelscope needs it finds in
the environment that runs this, as torch a second time would take gigabytes and minutes. That the
wheel asks for all of it is checked there by ``channelscope doctor``, which reads the wheel's own
requirements.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from email.parser import BytesParser
from pathlib import Path

import numpy as np
from packaging.metadata import Metadata

HERE = Path(__file__).parent.parent
PACKAGE = HERE / "channelscope"
SMALL = ("--data", "npz:two.npz", "--quiet")
COMMANDS = (
    ("--version",),
    ("zoo",),
    ("recipes", "cifar10-resnet18-cifs-fast"),
    ("layers", "zoo:cifar10-cifs", "layer4*"),
    ("train", "--method", "cifs", "--width", "2", "--epochs", "1", "--out", "cifs.pt", *SMALL),
    ("relevance", "--models", "cifs.pt", "--scorers", "weights", "--replicates", "20", *SMALL),
    (
        "compare",
        "--models",
        "cifs.pt",
        "--attack",
        "fgsm",
        "--attacks",
        "fgsm",
        "--replicates",
        "20",
        *SMALL,
    ),
)
MADE = (
    "cifs.pt",
    "relevance/relevance.csv",
    "comparison/report.html",
    "comparison/figures/relevance.pdf",
)


def run(*words: object, cwd: Path = HERE) -> str:
    """Run a program without Python's environment variables; return its output, exit on failure."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME")
    }
    done = subprocess.run(
        [*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(
            f"{' '.join(map(str, words))} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def check_content(wheel: Path) -> None:
    """Compare what the wheel holds with the package's folder, and read what it says of itself."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        about = archive.read(metadata)
    inside = {name for name in names if ".dist-info/" not in name}
    files = {path.relative_to(HERE) for path in PACKAGE.rglob("*") if path.is_file()}
    there = {path.as_posix() for path in files if "__pycache__" not in path.parts}
    if inside != there:
        lacking, further = sorted(there - inside), sorted(inside - there)
        raise SystemExit(
            f"The wheel lacks {lacking} and has {further} too: mend package_data in setup.cfg."
        )
    Metadata.from_email(about, validate=True)
    if not BytesParser().parsebytes(about).get_payload():
        raise SystemExit("The wheel has no description.")


def install(wheel: Path, folder: Path) -> Path:
    """Install the wheel in an environment that also finds our packages; return its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
    )
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A path alone: the .pth files in it, and so this environment's editable channelscope, are not
    # followed.
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    return python


def use(python: Path, folder: Path) -> None:
    """Train, score and compare with the installed wheel, from a folder that holds nothing else."""
    where = run(
        python, "-P", "-c", "import channelscope; print(channelscope.__file__)", cwd=folder
    ).strip()
    if not Path(where).is_relative_to(python.parent.parent):
        raise SystemExit(f"What runs is not the wheel but {where}.")
    command = python.with_name("channelscope")
    found = run(
        python,
        "-P",
        "-c",
        "from pathlib import Path; from channelscope.doctor import examine, format_findings; "
        "print(format_findings(examine(Path())))",
        cwd=folder,
    )
    for words in (
        "zoo                4 of 4 files intact",
        "templates          3 of 3 files intact",
    ):
        if words not in found:
            raise SystemExit(f"doctor does not find {words!r}:\n{found}")
    if any(word in found.partition("problems: ")[2] for word in ("pip install", "unknown")):
        raise SystemExit(f"The wheel does not work with what it asks for:\n{found}")
    images, labels = np.random.default_rng(0).random((60, 8, 8), np.float32), np.arange(60) % 2
    np.savez(
        folder / "two.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    for words in COMMANDS:
        run(command, *words, cwd=folder)
    if missing := [name for name in MADE if not (folder / name).stat().st_size]:
        raise SystemExit(f"{missing[0]} is empty.")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        built, folder = Path(scratch) / "built", Path(scratch) / "elsewhere"
        folder.mkdir()
        run(
            sys.executable, "-m", "build", "--outdir", built, HERE
        )  # the wheel is made from the sdist
        (wheel,) = built.glob("*.whl")
        check_content(wheel)
        use(install(wheel, Path(scratch) / "clean"), folder)
        print(
            f"{wheel.name}: built, {wheel.stat().st_size / 1e6:.1f} MB, "
            "installed and used in a clean environment."
        )


if __name__ == "__main__":
    main()
