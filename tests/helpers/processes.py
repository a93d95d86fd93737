"""Several processes of one command: how tests start them, what each does, and what they write.

``python -m helpers.processes FOLDER WORDS`` is one of them. It writes its id to FOLDER/RANK and
runs the command of these words, in which RANK stands for its number, with few kinds of figures.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from channelscope.files import DIGESTS

TESTS = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
OF_THE_RUN = ("created", "command", "hardware", "batch_size")  # what of meta.json may differ


def torchrun(*words: str | Path) -> subprocess.Popen[str]:
    """Start two processes of a module, named as after ``python -m``, with arguments."""
    return _launch("--standalone", "--nproc-per-node", "2", "-m", *map(str, words))


def run_on_two_nodes(*words: str | Path) -> list[subprocess.Popen[str]]:
    """Start a process of a module on each of two nodes, in whose words NODE is the number.

    The nodes are groups of processes of their own, which meet at a port of this machine.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", port)
    return [
        _launch(
            *(*place, "--node-rank", node, "--nproc-per-node", "1", "-m"),
            *(str(word).replace("NODE", node) for word in words),
        )
        for node in ("0", "1")
    ]


def _launch(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *words],
        cwd=TESTS,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_sentences(errors: str) -> list[str]:
    """Return what a command said of mistakes, in its standard error."""
    lines = errors.replace("\r", "\n").splitlines()
    return [line for line in lines if line.startswith("channelscope: ")]


def read_result(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a result's files, but for what is of the run alone."""
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    meta = json.loads(files.pop("meta.json"))
    files.pop(DIGESTS, None)  # that of meta.json among them
    lasting = {name: value for name, value in meta.items() if name not in OF_THE_RUN}
    return files | {"meta.json": json.dumps(lasting).encode()}


def assert_same_files(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    """Assert that the files of two results are equal."""
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def main() -> int:
    """Be one of the processes of a command; return its exit status."""
    from channelscope.cli import main as run
    from helpers.brief import few_figures

    folder, *words = sys.argv[1:]
    rank = os.environ["RANK"]
    (Path(folder) / rank).write_text(str(os.getpid()))
    few_figures()
    return run([word.replace("RANK", rank) for word in words])


if __name__ == "__main__":
    sys.exit(main())
