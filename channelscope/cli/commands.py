"""What each command does; heavy modules are imported when it runs."""

import argparse
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from inspect import signature
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from channelscope.cli.models import parse_name, read_arch_args, read_models
from channelscope.cli.plans import print_plan
from channelscope.cli.printing import format_table, print_result, print_zoo
from channelscope.cli.processes import join
from channelscope.errors import UserError, escape, suggest

if TYPE_CHECKING:
    from channelscope.data import Dataset


def train(args: argparse.Namespace) -> None:
    """Train a network and print how good its best epoch was."""
    from channelscope.distributed import is_first
    from channelscope.training import train
    from channelscope.weights import Checkpoint

    if args.plan:
        print_plan(args, _read_overrides(args), lambda: load_data(args, args.data))
        return
    name = args.recipe or args.method
    out = Path(args.out or f"{Path(name).stem if name.endswith('.toml') else name}.pt")
    args.after_stop = (
        f" The complete epochs are kept in {out}.partial, a checkpoint of the best network so far "
        f"(of a first stage, in {out}.before.partial): continue with --resume."
    )
    with join(args):
        options = _collect(args, train) | {"recipe": name, "out": out}
        train(**options | {"data": load_data(args, args.data)}, **_read_overrides(args))
        if is_first():
            print(f"{out}: {_describe_kept(Checkpoint.read(out).meta)}; log in {out}.csv")


def _describe_kept(meta: dict[str, Any]) -> str:
    """Say which epoch of a training was kept, and how good it is on the validation images."""
    kept, recipe = meta["metrics"], meta["settings"]["recipe"]
    if recipe["data"].get("validation") == "none":
        return f"last epoch {kept['epoch']}, trained on the validation images, too"
    which = recipe["schedule"].get("keep") or "best"
    return (
        f"{which} epoch {kept['epoch']}, accuracy on validation images "
        f"{kept['val_natural']:.1%} (natural), {kept['val_robust']:.1%} (robust)"
    )


def _collect(args: argparse.Namespace, function: Callable[..., Any]) -> dict[str, Any]:
    """Return the options that are arguments of a function, by their common names."""
    names = signature(function).parameters
    return {name: value for name, value in vars(args).items() if name in names}


def load_data(args: argparse.Namespace, name: str) -> "Dataset":
    """Load the data set of a name, as the options say."""
    from channelscope.data import load
    from channelscope.distributed import run_first

    options = _collect(args, load) | {"name": name, "root": Path(args.data_root)}
    with run_first() if args.download else nullcontext():  # one process downloads
        return load(**options)


def _read_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """Read the changes of the recipe."""
    shorthands = ("arch", "width", "epochs", "batch_size", "lr", "eps")
    return {name: getattr(args, name) for name in shorthands} | read_settings(args.set)


def read_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Read settings of a recipe, each NAME=VALUE."""
    from channelscope.sweeps import sweep
    from channelscope.training import train
    from channelscope.training.recipes import parse_value

    reserved = {*signature(train).parameters, *signature(sweep).parameters} - {"overrides"}
    settings = _split_pairs(pairs, "--set optimizer.lr=0.05")
    if unknown := reserved & {name for name, _ in settings}:  # these have options of their own
        raise UserError(
            f"{min(unknown)!r} is no setting of a recipe: 'channelscope recipes NAME' lists them."
        )
    return {name: parse_value(value) for name, value in settings}


def _split_pairs(pairs: Iterable[str], example: str) -> list[tuple[str, str]]:
    for pair in pairs:
        if not pair.partition("=")[0] or "=" not in pair:
            raise UserError(f"{pair!r} sets nothing: write NAME=VALUE, as in {example}.")
    return [(name, value) for name, _, value in (pair.partition("=") for pair in pairs)]


def sweep(args: argparse.Namespace) -> None:
    """Train a recipe's variants and print how robust the networks are."""
    from channelscope.distributed import is_first
    from channelscope.sweeps import parse_values, sweep

    varied = _split_pairs(args.vary, "--vary gates.beta=1,2")
    name, times = Counter(name for name, _ in varied).most_common(1)[0] if varied else ("", 0)
    if times > 1:
        raise UserError(f"{name} varies twice: name all of its values at once, as in {name}=1,2.")
    with join(args):
        options = _collect(args, sweep) | {"recipe": args.recipe or args.method or "cifs"}
        options |= {"vary": {name: parse_values(values) for name, values in varied}}
        result = sweep(**options | {"data": load_data(args, args.data)}, **_read_overrides(args))
        if is_first():
            print_result(result, Path(args.out) / "result")
    failed = result.sweep[result.sweep["trouble"] != ""]
    if len(failed):
        file, reason = failed[["file", "trouble"]].iloc[0]
        raise UserError(
            f"{len(failed)} of {len(result.sweep)} networks have no result; {file}: {reason}"
        )


def answer(args: argparse.Namespace) -> None:
    """Call the function of the command's name, compare or evaluate, ..., and print its result."""
    from channelscope import api
    from channelscope.distributed import is_first
    from channelscope.study.models import trained_on

    question = getattr(api, args.name)
    shared = {name: vars(args)[name] for name in api.Options.__annotations__}
    options = _collect(args, question) | shared
    if "groups" in options:
        groups: dict[str, list[str]] = {}
        for name, pattern in _split_pairs(args.groups, "--group AT=at-*"):
            groups.setdefault(name, []).append(pattern)
        options["groups"] = groups or None
    options["methods"] = dict(_split_pairs(args.methods, "--methods mine=at")) or None
    with join(args):
        models = read_models(args)

        def load() -> "Dataset":  # images are read when all names have been checked
            trainings = [checkpoint.meta for checkpoint in models.values()]
            return load_data(args, args.data or trained_on(trainings))

        result = question(**options | {"models": models, "data": load})
        if is_first():
            print_result(result, Path(args.out), as_json=args.json)


def film(args: argparse.Namespace) -> None:
    """Film trainings and print what changed in them."""
    from channelscope.api import Options, film
    from channelscope.distributed import is_first
    from channelscope.study.film import read_frames
    from channelscope.study.models import trained_on

    labels = args.labels or [Path(run).stem for run in args.runs]
    if len(labels) != len(args.runs):
        raise UserError(
            f"There are {len(args.runs)} runs and {len(labels)} labels: name one label for each."
        )
    if len(set(labels)) < len(labels):
        raise UserError("Two runs have the same label: name different ones with --labels.")
    runs = dict(zip(labels, args.runs, strict=True))

    def load() -> "Dataset":  # images are read when all names have been checked
        networks, _ = read_frames(runs)
        trainings = [checkpoint.meta for checkpoint in networks.values()]
        return load_data(args, args.data or trained_on(trainings))

    options = {name: vars(args)[name] for name in Options.__annotations__ if name in vars(args)}
    with join(args):
        result = film(**_collect(args, film) | options | {"runs": runs, "data": load})
        if is_first():
            print_result(result, Path(args.out), as_json=args.json)


def demo(args: argparse.Namespace) -> None:
    """Train three networks on digits, side by side, compare them and print the result."""
    from channelscope.result import check_folder

    out = Path(args.out)
    check_folder(out / "comparison")
    paths = {method: out / f"{method}.pt" for method in ("standard", "at", "cifs")}
    options = {"seed": args.seed, "progress": args.progress}
    # Networks this small gain nothing from a second core: each gets a process with one thread.
    with ProcessPoolExecutor(len(paths), get_context("spawn")) as processes:
        trainings = [
            processes.submit(_train_on_digits, line, method, path, **options)
            for line, (method, path) in enumerate(paths.items())
        ]
        import torch  # takes seconds, in which the others are at work

        from channelscope.api import compare

        for training in trainings:
            training.result()
    torch.set_num_threads(1)
    # All images, and figures as .pdf too, would take twice as long.
    options |= {"images": 120, "formats": ["svg"], "command": args.command}
    result = compare(paths, "digits", out=out / "comparison", **options)
    print_result(result, out / "comparison")


def _train_on_digits(line: int, method: str, path: Path, *, seed: int, progress: bool) -> None:
    """Train a network of the demo in this process, with its progress bar on a line of its own."""
    os.environ["TQDM_POSITION"] = str(line)  # read when tqdm is imported
    import torch

    from channelscope.training import train

    torch.set_num_threads(1)
    train(method, "digits", out=path, resume=True, seed=seed, epochs=10, progress=progress)


def figures(args: argparse.Namespace) -> None:
    """Draw the figures and the report of a result again."""
    from channelscope.api import draw_figures
    from channelscope.gallery import name_folder

    options = _collect(args, draw_figures)
    draw_figures(**options)
    others = {"folder", "only", "all_figures", "formats", "progress"}
    name = name_folder(**{key: value for key, value in options.items() if key not in others})
    folder = Path(args.folder)
    page = "" if name else f", report: {folder / 'report.html'}"
    print(f"figures: {folder / 'figures' / name}{page}")


def attacks(args: argparse.Namespace) -> None:
    """List suites of attacks, and attacks."""
    from channelscope.attacks.registry import describe_attacks
    from channelscope.attacks.suites import SUITES

    rows = [(suite.name, suite.help) for suite in SUITES.values()]
    print(format_table([("suite", "attacks"), *rows], align="ll"))
    print(
        "\nattacks (capitals stand for numbers, brackets for what may be left out; what begins "
        "with\na colon follows another name, as in cw-30:joint2:fixed):"
    )
    print(describe_attacks())


def scorers(args: argparse.Namespace) -> None:
    """List the relevance scorers."""
    from channelscope.scorers import list_scorers

    rows = [(scorer.name, str(scorer.cost), scorer.help) for scorer in list_scorers()]
    print(format_table([("scorer", "cost", "relevance of a channel"), *rows], align="lll"))
    print(
        "\ncost: number of forward passes of all images, a backward pass counting as one; 'a "
        "layer',\n'a channel': for each that is scored"
    )


def analyses(args: argparse.Namespace) -> None:
    """List the analyses of each kind of result, with their kinds of figures."""
    from channelscope.analyses.base import Kind, analyses_of

    for kind in get_args(Kind):
        rows = [
            (item.name, ", ".join(plot.name for plot in item.plots) or "none", item.help)
            for item in analyses_of(kind)
        ]
        print(format_table([(kind, "figures", "what it tells"), *rows], align="lll") + "\n")
    print("figures: by these names 'channelscope figures DIR --only NAME' draws them")


def recipes(args: argparse.Namespace) -> None:
    """List recipes, or print one."""
    from channelscope.training.recipes import Recipe, catalogue, summary

    known = catalogue()
    if len(args.words) == 1 and args.words[0] in known:
        print(f"# {args.words[0]}: {summary(args.words[0])}\n{Recipe.named(args.words[0]).toml()}")
        return
    names = [name for name in known if all(word in name for word in args.words)]
    if not names:
        words = " and ".join(map(repr, args.words))
        raise UserError(
            f"No recipe's name contains {words}.{suggest(args.words[0], known)} "
            "'channelscope recipes' lists all."
        )
    rows = [(name, summary(name)) for name in names]
    print(format_table([("recipe", "what it is"), *rows], align="ll"))


def convert(args: argparse.Namespace) -> None:
    """Convert any program's network file to a checkpoint."""
    from channelscope.weights.architectures import External
    from channelscope.weights.loading import convert, describe_network

    name = parse_name(args.file)
    checkpoint = convert(
        name.path,
        args.out,
        name.arch or args.arch,
        arch_args=read_arch_args(args),
        normalise=args.normalise,
        method=args.method,
        imgf_scale=args.imgf_scale,
        download=args.download,
    )
    print(escape(f"{args.out}: {describe_network(checkpoint)}"))
    architecture = checkpoint.architecture
    if isinstance(architecture, External) and architecture.is_code:
        typed = shlex.quote(f"{args.out}@{architecture.arch}")
        print(escape(f"Its code is your own, so name that whenever it is read: --models {typed}"))


def zoo(args: argparse.Namespace) -> None:
    """List the networks that come with the package."""
    from channelscope.weights.zoo import zoo

    print_zoo(zoo())


def doctor(args: argparse.Namespace) -> int:
    """Print what is installed and present and what is wrong; return the exit status."""
    from channelscope.doctor import examine, format_findings

    findings = examine(Path(args.data_root))
    print(format_findings(findings))
    return int(any(finding.problem for finding in findings))
