"""Train the zoo's networks on CIFAR-10 images, measure them, and write the tables of docs/RESULTS.md.

    python -m benchmarks.results train [--data DIR] [--methods METHOD ...]   # an hour of a CPU core for a network
    python -m benchmarks.results measure [--data DIR]                        # the zoo's files; goes on when stopped
    python -m benchmarks.results write                                       # what measure kept; needs no images

DIR holds train/<class>/ and test/<class>/. ``train`` packs the networks into channelscope/zoo; ``measure`` keeps its
tables and each image's outcome in docs/results-small, and ``write`` puts them into docs/RESULTS.md and README.md,
between their marks. To be started in the root of the repository.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from channelscope import checkpoints, zoo
from channelscope.alignment import wilson
from channelscope.checkpoints import Checkpoint, Gate
from channelscope.data import load, stratified
from channelscope.evaluation import Evaluation
from channelscope.selection import frozen

RUNS, KEPT = Path("runs/results-small"), Path("docs/results-small")
PAGES = (Path("docs/RESULTS.md"), Path("README.md"))
METHODS = ("standard", "at", "cas", "cifs")
IMAGES, AUTOATTACK_IMAGES = 1000, 400
COMPARED = ("verdicts.csv", "alignment.csv", "training.csv", "gates.csv")  # the other tables are in figures/cifar10
CORES = len(os.sched_getaffinity(0))


def name_of(method: str) -> str:
    return f"cifar10-{method}"


def run(*command: str, processes: int = 1) -> None:
    """Run a channelscope command, by several processes or by one, on a thread each.

    What is complete already, and newer than its networks, is used again.
    """
    made, networks = Path(command[-1]) / "meta.json", [zoo.located(word) for word in command if word.startswith("zoo:")]
    if made.is_file() and all(file.stat().st_mtime < made.stat().st_mtime for file in networks):
        return
    together = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m")
    print("$ channelscope", *command, flush=True)
    line = [sys.executable, "-m", *(together if processes > 1 else ()), "channelscope", *command]
    subprocess.run(line, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def train(data: Path, methods: list[str]) -> None:
    for method in methods:
        out = Path(f"runs/cifar10/{method}.pt")
        recipe = f"cifar10-resnet18-small-{method}"
        line = ("train", "--recipe", recipe, "--data", f"imagefolder:{data}", "--out", str(out), "--resume")
        subprocess.run([sys.executable, "-m", "channelscope", *line], check=True)
        pack(out, zoo.HERE / f"{name_of(method)}.pt")


def pack(source: Path, target: Path) -> None:
    """Write a trained network as the zoo has it: in half precision, and without the name of a folder of ours."""
    checkpoint = Checkpoint.read(source).halved()
    checkpoint.meta["settings"]["data"]["name"] = zoo.TRAINED_ON
    checkpoint.save(target)
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")


def measure(data: Path) -> None:
    """Attack and compare the zoo's networks on test images."""
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(partial(autoattack_on, data), map(name_of, METHODS)))
    compare(data)
    keep()
    labels_given(data).to_csv(KEPT / "labels.csv", index=False, lineterminator="\n")


def labels_given(data: Path) -> pd.DataFrame:
    """Give the gates a label for each test image, as in training: the true one, or another one, drawn from the rest."""
    part = load(f"imagefolder:{data}", stream=True).test
    x, y = next(part.subset(stratified(part.labels, IMAGES, 0)).batches(IMAGES))
    wrong = (y + torch.randint(1, 10, y.shape, generator=torch.Generator().manual_seed(0))) % 10
    rows = []
    for name in map(name_of, ("cas", "cifs")):
        network = checkpoints.load(f"zoo:{name}")
        for given, labels in (("none", None), ("true", y), ("wrong", wrong)):
            with torch.no_grad(), frozen(network, x, labels):
                answer = network(x).argmax(1)
            follows = float("nan") if labels is None else (answer == labels).double().mean().item()
            right = (answer == y).double().mean().item()
            rows.append({"model": name, "given": given, "right": right, "follows": follows, "count": len(y)})
    return pd.DataFrame(rows)


def autoattack_on(data: Path, name: str) -> None:
    """Evaluate a network with AutoAttack: in one process, as it draws by the batch, so that batches are as ours."""
    options = ("--attacks", "adaptive", "auto", "--images", str(AUTOATTACK_IMAGES), "--checks", "0")
    run("evaluate", "--models", f"zoo:{name}", *options, *_on(data), "--out", str(RUNS / f"autoattack-{name}"))


def compare(data: Path) -> Path:
    """Compare the zoo's networks, in the worst case over the adaptive attacks; give the comparison's folder."""
    evaluation, comparison = RUNS / "evaluation", RUNS / "comparison"
    shared = ("--models", *(f"zoo:{name_of(method)}" for method in METHODS), "--images", str(IMAGES), *_on(data))
    run("evaluate", *shared, "--attacks", "fgsm", "adaptive", "--out", str(evaluation), processes=CORES)
    run("compare", *shared, "--evaluation", str(evaluation), "--out", str(comparison), processes=CORES)
    return comparison


def _on(data: Path) -> tuple[str, ...]:
    return "--data", f"imagefolder:{data}", "-q"


def keep() -> None:
    """Keep what was measured: the tables, each image's outcome, the settings."""
    shutil.rmtree(KEPT, ignore_errors=True)
    for folder in sorted(path for path in RUNS.iterdir() if (path / "meta.json").is_file()):
        (KEPT / folder.name).mkdir(parents=True)
        for pattern in COMPARED if folder.name == "comparison" else ("*.csv", "arrays.npz"):
            for file in folder.glob(pattern):
                shutil.copy(file, KEPT / folder.name)
        shutil.copy(folder / "meta.json", KEPT / folder.name)
    accuracies().to_csv(zoo.RESULTS, index=False, lineterminator="\n")


def accuracies() -> pd.DataFrame:
    """Lay out a row for each network and attack: "natural" for none, "worst" for the worst case per image."""
    main, rows = Evaluation.load(KEPT / "evaluation"), []
    for index, method in enumerate(METHODS):
        name = name_of(method)
        auto = Evaluation.load(KEPT / f"autoattack-{name}")
        rows += _rows(name, main, index)
        with_auto = {row["attack"]: row for row in _rows(name, auto, 0)}
        rows += [with_auto["autoattack"], with_auto["worst"] | {"attack": "worst-with-autoattack"}]
    return pd.DataFrame(rows)


def _rows(name: str, found: Evaluation, index: int) -> list[dict[str, Any]]:
    prefix = f"correct/{index}/"
    hits = {key.removeprefix(prefix): stood for key, stood in found.arrays.items() if key.startswith(prefix)}
    hits["worst"] = np.logical_and.reduce(list(hits.values()))
    estimates = {attack: wilson(int(stood.sum()), len(stood), 0.95) for attack, stood in hits.items()}
    return [
        {"model": name, "attack": attack, "accuracy": found.value, "low": found.low, "high": found.high, "count": count}
        for attack, found in estimates.items()
        for count in [len(hits[attack])]
    ]


def write() -> None:
    """Put the tables between their marks, ``<!-- NAME -->`` and ``<!-- end of NAME -->``, in the pages."""
    for page in PAGES:
        text = page.read_text("utf-8")
        for name, make in TABLES.items():
            marks = re.compile(f"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
            text = marks.sub(lambda found, made=make: f"{found[1]}{made()}\n{found[2]}", text)
        page.write_text(text, "utf-8")


def headline() -> str:
    """Say what came of CIFS against AT in the worst case."""
    verdict = _verdicts().query("claim == 'C4' and models.str.contains('cifs')").iloc[0]
    words = {
        "supported": "CIFS makes adversarial training more robust here",
        "not supported": "CIFS does not make adversarial training more robust here",
        "inconclusive": "Whether CIFS makes adversarial training more robust is not decided here",
    }
    return f"**{words[verdict['verdict']]}.** {verdict['statement']}"


def networks() -> str:
    """Lay out how the networks were trained."""
    rows = []
    for name in map(name_of, METHODS):
        checkpoint = Checkpoint.read(f"zoo:{name}")
        history, kept = checkpoint.meta["history"], checkpoint.meta["metrics"]
        rows.append(
            {
                "network": f"`zoo:{name}`",
                "gates (probe)": ", ".join(map(_gate, checkpoint.gates)) or "none",
                "epochs, kept": f"{len(history)}, {kept['epoch']}",
                "minutes": f"{sum(row['seconds'] for row in history) / 60:.0f}",
                "training images": _percent(kept["accuracy"]),
                "validation, natural": _percent(kept["val_natural"]),
                "validation, PGD-3": _percent(kept["val_robust"]),
                "MB": f"{(zoo.HERE / f'{name}.pt').stat().st_size / 1e6:.2f}",
            }
        )
    return _markdown(rows)


def _gate(gate: Gate) -> str:
    return f"{gate.layer} ({gate.options['probe']})"


def robustness() -> str:
    """Lay out accuracy by network and attack."""
    return _accuracies("natural", "fgsm", "pgd-20", "cw-30", "apgd-ce", "apgd-dlr", "worst")


def autoattack() -> str:
    """Lay out accuracy under AutoAttack, on fewer images."""
    return _accuracies("autoattack", "worst-with-autoattack")


def front() -> str:
    """Lay out what the README has."""
    return _accuracies("natural", "pgd-20", "cw-30", "worst", "autoattack")


def shares() -> str:
    """Say where the activation goes under attack: the share of it on NR channels, mean over the classes."""
    table = pd.read_csv(KEPT / "comparison" / "alignment.csv", keep_default_na=False)
    table = table[table["class"] == "all"].set_index(["model", "measure"])["value"].astype(float)
    words = []
    for method, label in zip(METHODS, ("standard", "AT", "CAS", "CIFS"), strict=True):
        natural, adversarial = (table[name_of(method), f"nr_share_{data}"] for data in ("natural", "adversarial"))
        words.append(f"{label} {_percent(natural)} → {_percent(adversarial)}")
    return f"Share of the activation on NR channels, natural → adversarial images: {', '.join(words)}."


NAMES = {
    "natural": "natural",
    "fgsm": "FGSM",
    "pgd-20": "PGD-20",
    "cw-30": "C&W-30",
    "apgd-ce": "APGD-CE",
    "apgd-dlr": "APGD-DLR",
    "autoattack": "AutoAttack",
    "worst": "adaptive worst case",
    "worst-with-autoattack": "worst case with AutoAttack",
}


def _accuracies(*attacks: str) -> str:
    table = pd.DataFrame(zoo.results()).set_index(["model", "attack"]).astype(float)
    rows = []
    for name in map(name_of, METHODS):
        cells = {"network": name.removeprefix("cifar10-")}
        for attack in attacks:
            found = table.loc[(name, attack)]
            heading = f"{NAMES[attack]} (n = {found['count']:.0f})"
            cells[heading] = f"{100 * found['accuracy']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
        rows.append(cells)
    return _markdown(rows)


def decided() -> str:
    """Lay out which attack decides the worst case, and what the checks for masking found."""
    found = Evaluation.load(KEPT / "evaluation")
    lines = []
    for row in found.worst.to_dict("records"):
        signs = found.warnings[found.warnings["model"] == row["model"]]["sentence"].tolist()
        checked = " ".join(signs) or "no sign of gradient masking"
        lines.append(f"- {row['model']}: most images are broken by `{row['decided_by']}`; {checked}")
    return "\n".join(lines)


def claims() -> str:
    """Lay out the verdicts."""
    return _markdown(_verdicts()[["claim", "models", "verdict", "statement"]].to_dict("records"))


def _verdicts() -> pd.DataFrame:
    return pd.read_csv(KEPT / "comparison" / "verdicts.csv", keep_default_na=False)


def why() -> str:
    """Say what the logs show of CIFS beside AT."""
    measures = ["accuracy", "val_natural", "val_robust", "probe_natural", "probe_robust", "mask_natural"]
    shown = _kept_epochs().drop_duplicates("model", keep="last").set_index("model")[measures].map(_percent)
    at, cifs = shown.loc[name_of("at")], shown.loc[name_of("cifs")]
    return (
        f"The CIFS network is right on {cifs['accuracy']} of the adversarial training images, where its gates have the "
        f"labels, and on {cifs['val_robust']} of the validation images under attack, where they have not; the AT one "
        f"on {at['accuracy']} and {at['val_robust']}. The mask of its last gate lets {cifs['mask_natural']} of the "
        f"channels through. The network is right on {cifs['val_natural']} of the validation images, and on "
        f"{cifs['val_robust']} under attack; that gate's probe alone is right on {cifs['probe_natural']} and "
        f"{cifs['probe_robust']}."
    )


def gates() -> str:
    """Lay out what the gates do at the epoch that was kept."""
    rows = [
        {
            "network, layer": f"{row['model']}, {row['layer']}",
            "network on training images (labels given)": _percent(row["accuracy"]),
            "network on validation images under attack": _percent(row["val_robust"]),
            "probe, natural": _percent(row["probe_natural"]),
            "probe, under attack": _percent(row["probe_robust"]),
            "mask in effect, natural": _percent(row["mask_natural"]),
            "mask in effect, under attack": _percent(row["mask_adversarial"]),
            "cosine of an image's two masks": f"{row['mask_cosine']:.3f}",
        }
        for row in _kept_epochs().dropna(subset=["layer"]).to_dict("records")
    ]
    return _markdown(rows)


def labels() -> str:
    """Lay out what the networks answer when their gates are given labels."""
    rows = [
        {
            "network": row["model"],
            "label given to the gates": row["given"],
            "answer is the true class": _percent(row["right"]),
            "answer is the label given": "" if pd.isna(row["follows"]) else _percent(row["follows"]),
        }
        for row in pd.read_csv(KEPT / "labels.csv").to_dict("records")
    ]
    return _markdown(rows)


def _kept_epochs() -> pd.DataFrame:
    """Give the log of each network's kept epoch, a row for each gate."""
    training, log = (pd.read_csv(KEPT / "comparison" / f"{name}.csv") for name in ("training", "gates"))
    return training[training["best"]].merge(log, on=["model", "epoch"], how="left")


def conditions() -> str:
    """Say on what the figures were measured."""
    meta = json.loads((KEPT / "evaluation" / "meta.json").read_text("utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in meta["versions"].items())
    hardware = meta["hardware"]
    return (
        f"n = {meta['data']['images']} test images of {zoo.TRAINED_ON}, class shares kept; L-inf, eps 8/255; "
        f"seed {meta['seed']}; {meta['level']:.0%} intervals (Wilson's, over images). Measured "
        f"{meta['created'][:10]} on {hardware['device']}, {hardware['processes']} processes; {versions}."
    )


TABLES = {
    make.__name__: make
    for make in (
        headline,
        networks,
        robustness,
        autoattack,
        decided,
        claims,
        why,
        gates,
        labels,
        conditions,
        front,
        shares,
    )
}


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _markdown(rows: list[dict[str, Any]]) -> str:
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([str(row[head]) for head in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("step", choices=("train", "measure", "write"))
    parser.add_argument(
        "--data", type=Path, default=Path("data/cifar10-jpeg"), metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--methods", nargs="+", default=METHODS, choices=METHODS, help="networks to train (default: all)"
    )
    args = parser.parse_args()
    if args.step == "train":
        train(args.data, args.methods)
    if args.step == "measure":
        measure(args.data)
    if args.step in ("measure", "write"):
        write()


if __name__ == "__main__":
    main()
