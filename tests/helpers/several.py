"""What each of several processes does for the tests, started by ``torchrun``.

``python -m helpers.several studies FOLDER`` writes what it finds to FOLDER/RANK, pickled; with
``commands FILE`` it runs the commands in a file, lists of words as JSON. The single process that
they are compared with uses the same functions. Shapes are not checked, which takes as long as all
the rest.
"""

import gc
import json
import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import channelscope as cs
from channelscope import distributed
from channelscope.cli import main as run_command
from channelscope.errors import UserError
from channelscope.study.evaluation import Progress
from helpers import networks
from helpers.brief import few_figures
from helpers.processes import read_result

SEED = 3
IMAGES = 13  # in blocks of five, which two processes cannot share evenly
QUIET: dict[str, Any] = {"seed": SEED, "progress": False, "device": "cpu"}
BRIEF = QUIET | {"replicates": 20}


def make_networks() -> dict[str, nn.Module]:
    """Make two networks, one with gates, whose answers depend on the image."""
    torch.manual_seed(SEED)
    models: dict[str, nn.Module] = {"plain": networks.plain(), "gated": networks.gated()}
    x, _ = networks.images(IMAGES)
    with torch.no_grad():
        for network in models.values():
            last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
            last.weight *= 3 / network(x).std(0).mean()
            last.bias -= network(x).mean(0)
    return models


def make_images(count: int = IMAGES) -> tuple[Tensor, Tensor]:
    """Return images, and labels of which the plain network answers most."""
    x, y = networks.images(IMAGES)
    with torch.no_grad():
        answers = make_networks()["plain"](x).argmax(1)
    return x[:count], torch.where(torch.arange(IMAGES) < 9, answers, y)[:count]


# ---------------------------------------------------------------- results


def describe(result: cs.Result) -> dict[str, bytes]:
    """Return the files of a result, as bytes."""
    with tempfile.TemporaryDirectory() as folder:
        result.write_tables(Path(folder))
        return read_result(Path(folder))


def compare() -> cs.Result:
    """Compare the networks at two layers, with a sweep."""
    options: dict[str, Any] = {"attack": "pgd-2", "attacks": ["pgd-2x3", "joint-sweep"], "eps": 0.1}
    layers = {"plain": ["relu1", "relu2"], "gated": ["layer4.0"]}
    return cs.compare(
        make_networks(), make_images(), layers=layers, step_sweep=[1], **options, **BRIEF
    )


def evaluate() -> cs.Result:
    """Attack the networks, at two radii."""
    options: dict[str, Any] = {"attacks": ["fgsm", "pgd-2"], "eps": 0.1, "eps_sweep": [0.05]}
    return cs.evaluate(make_networks(), make_images(), checks=0, **options, **BRIEF)


def intervene() -> cs.Result:
    """Suppress channels of one network."""
    options: dict[str, Any] = {"attack": "pgd-2", "eps": 0.1, "fractions": [0.5], "random": 1}
    plain = make_networks()["plain"]
    return cs.intervene({"plain": plain}, make_images(), layers=["relu1"], **options, **BRIEF)


def relevance() -> cs.Result:
    """Score channels; one of the scorers sees all images first, another refuses one network."""
    scorers = ["gradient", "ablation-mean", "probe"]
    return cs.relevance(make_networks(), make_images(), scorers=scorers, **BRIEF)


QUESTIONS: dict[str, Callable[[], cs.Result]] = {
    "compare": compare,
    "evaluate": evaluate,
    "intervene": intervene,
    "relevance": relevance,
}


# ---------------------------------------------------------------- single points


class Foreign:
    """An attack of somebody else's: it knows nothing of other processes, nor describes itself."""

    eps = 0.1

    def __init__(self) -> None:
        self.seeds: set[int] = set()
        self.random = object()  # whose description is another in every process

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        assert generator is not None
        self.seeds.add(generator.initial_seed())
        return x


def evaluate_by(attack: Any, **options: Any) -> cs.Result:
    """Evaluate a network by one attack."""
    data = options.pop("data", make_images())
    plain = {"plain": options.pop("network", make_networks()["plain"])}
    return cs.evaluate(plain, data, attacks=attack, checks=0, **(QUIET | options))


def draw_seeds() -> tuple[set[int], bytes]:
    """Return the seeds that a foreign attack draws by, and its result's table."""
    attack = Foreign()
    result = evaluate_by(attack)
    return attack.seeds, result.attacks.to_csv().encode()


def keep_temporary() -> tuple[bool, bool]:
    """Tell whether a study's temporary folder outlives the first process's use, and the last's."""
    study = cs.Study(make_networks(), make_images(), attack="pgd-2", eps=0.1, **BRIEF)
    study.run("alignment")
    folder = study.folder.path
    if distributed.is_first():
        del study
        gc.collect()
    distributed.barrier()
    is_kept = folder.exists()
    distributed.barrier()
    if not distributed.is_first():
        del study
        gc.collect()
    distributed.barrier()
    return is_kept, folder.exists()


def count_progress() -> list[int]:
    """Return by how many images the progress goes on, from step to step."""
    steps: list[int] = []
    with patch.object(Progress, "advance", lambda _, images: steps.append(images)):
        evaluate_by("fgsm", eps=0.1)
    return [step for step in steps if step]


def read_streamed(folder: Path) -> dict[str, bytes]:
    """Evaluate on images that stay on disk, which the first process writes there."""
    from PIL import Image

    with distributed.run_first():
        for index in range(IMAGES if distributed.is_first() else 0):
            x, y = make_images()
            path = folder / "images" / f"class {y[index]}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * x[index, 0]).byte().numpy()).save(path)
    data = cs.data.load(f"imagefolder:{folder / 'images'}", stream=True)
    files = describe(evaluate_by("pgd-2", eps=0.1, data=data))
    # The others have the folder's path.
    return {name: content for name, content in files.items() if name.endswith((".csv", ".npz"))}


def refuse(**options: Any) -> str:
    """Return the sentence that an evaluation is refused with."""
    try:
        evaluate_by("fgsm", eps=0.1, **options)
    except UserError as error:
        return str(error)
    return ""


def refuse_differences() -> dict[str, str]:
    """Let something of the second process be other than of the first; return what it is told."""
    second = not distributed.is_first()
    x, y = make_images()
    torch.manual_seed(int(second))
    answers = {
        "the weights of plain": refuse(network=networks.plain()),
        "the images": refuse(data=(x.flip(0) if second else x, y)),
        "the settings": refuse(eps_sweep=[0.05] if second else []),
        "nothing": refuse(batch_size=1 if second else 7),
    }
    return answers | {"too few": refuse(data=make_images(1))}


# ---------------------------------------------------------------- the processes


def do_everything(folder: Path) -> dict[str, Any]:
    """Do all of the above in processes that have joined."""
    with distributed.join_processes("cpu"), patch("channelscope.data.blocks.MOST", 5):
        results: dict[str, Any] = {name: describe(ask()) for name, ask in QUESTIONS.items()}
        return results | {
            "streamed": read_streamed(folder),
            "seeds": draw_seeds(),
            "progress": count_progress(),
            "temporary": keep_temporary(),
            "refused": refuse_differences(),
        }


def run_commands(file: Path) -> None:
    """Run commands, one after the other, in processes that have joined."""
    few_figures()
    with distributed.join_processes("cpu"):
        for words in json.loads(file.read_text()):
            assert run_command(words) == 0, words


def main() -> None:
    work, path = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    if work == "commands":
        run_commands(path)
    else:
        (path / os.environ["RANK"]).write_bytes(pickle.dumps(do_everything(path)))


if __name__ == "__main__":
    main()
