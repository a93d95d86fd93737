"""What each command does; heavy modules are imported when it runs."""

import argparse
from collections import Counter
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from channelscope.cli.inputs import data_of, device_of, models_of, trained_on
from channelscope.cli.printing import (
    outcomes,
    table,
    tell_comparison,
    tell_evaluation,
    tell_interventions,
    tell_zoo,
)
from channelscope.cli.processes import together
from channelscope.errors import UserError

if TYPE_CHECKING:
    from channelscope.comparison import Comparison


def train(args: argparse.Namespace) -> None:
    """Train a network and print how its best epoch did."""
    from channelscope.distributed import is_first
    from channelscope.training import train
    from channelscope.weights import Checkpoint

    device, name = device_of(args), args.recipe or args.method
    out = Path(args.out or f"{Path(name).stem if name.endswith('.toml') else name}.pt")
    args.after_stop = (
        f" The epochs that are complete are kept in {out}.partial, a checkpoint of the best network so far: "
        "go on with --resume."
    )
    with together(args, device):
        train(
            name,
            data_of(args, args.data),
            out=out,
            seed=args.seed,
            images=args.images,
            resume=args.resume,
            device=device,
            logs=args.log_to,
            progress=not args.quiet,
            **_overrides(args),
        )
        if is_first():
            best = Checkpoint.read(out).meta["metrics"]
            print(
                f"{out}: best epoch {best['epoch']}, on validation images natural {best['val_natural']:.1%}, "
                f"robust {best['val_robust']:.1%}; log in {out}.csv"
            )


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    """Read what is to be changed of the recipe."""
    shorthands = {
        key: getattr(args, key) for key in ("arch", "width", "epochs", "batch_size", "lr", "eps")
    }
    return shorthands | settings(args.set)


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE pairs."""
    from channelscope.sweeps import sweep
    from channelscope.training import train
    from channelscope.training.recipes import parse_value

    own = {*signature(train).parameters, *signature(sweep).parameters} - {"overrides"}
    found = {name: parse_value(value) for name, value in _pairs(pairs, "--set optimizer.lr=0.05")}
    if strange := found.keys() & own:  # these have options of their own
        raise UserError(
            f"{min(strange)!r} is no setting of a recipe: 'channelscope recipes NAME' lists them."
        )
    return found


def _pairs(pairs: Sequence[str], example: str) -> list[tuple[str, str]]:
    if strange := [pair for pair in pairs if not pair.partition("=")[0] or "=" not in pair]:
        raise UserError(f"{strange[0]!r} sets nothing: write NAME=VALUE, as in {example}.")
    return [(name, value) for name, _, value in (pair.partition("=") for pair in pairs)]


def sweep(args: argparse.Namespace) -> None:
    """Train a recipe's variants, and print how the networks did."""
    from channelscope.distributed import is_first
    from channelscope.sweeps import parse_values, sweep

    device, out = device_of(args), Path(args.out)
    args.after_stop = " Run the same command again: it goes on with the epoch that was interrupted."
    with together(args, device):
        trained = sweep(
            args.recipe or args.method or "cifs",
            data_of(args, args.data),
            out=out,
            ablation=args.ablation,
            vary={name: parse_values(values) for name, values in _varied(args.vary)},
            seeds=args.seeds,
            images=args.images,
            test_images=args.test_images,
            attack=args.attack,
            test_eps=args.test_eps,
            device=device,
            logs=args.log_to,
            progress=not args.quiet,
            command=args.command,
            **_overrides(args),
        )
        if is_first():
            print(table(outcomes(trained), align="lr" + "r" * 5))
            print(f"\ntable: {out / 'sweep.csv'}, figure: {out / 'sweep.pdf'}", flush=True)
    if len(failed := trained[trained["trouble"] != ""]):
        raise UserError(
            f"{len(failed)} of {len(trained)} networks have no result; {failed['file'].iloc[0]}: "
            f"{failed['trouble'].iloc[0]}"
        )


def _varied(pairs: Sequence[str]) -> list[tuple[str, str]]:
    varied = _pairs(pairs, "--vary gates.beta=1,2")
    if twice := [name for name, count in Counter(name for name, _ in varied).items() if count > 1]:
        raise UserError(
            f"{twice[0]} varies twice: give all of its values at once, as in {twice[0]}=1,2."
        )
    return varied


def recipes(args: argparse.Namespace) -> None:
    """List recipes, or print one."""
    from channelscope.errors import suggest
    from channelscope.training.recipes import Recipe, catalogue, summary

    known = catalogue()
    if len(args.words) == 1 and args.words[0] in known:
        print(f"# {args.words[0]}: {summary(args.words[0])}\n{Recipe.named(args.words[0]).toml()}")
        return
    found = [name for name in known if all(word in name for word in args.words)]
    if not found:
        words = " and ".join(map(repr, args.words))
        raise UserError(
            f"No recipe's name contains {words}.{suggest(args.words[0], known)} 'channelscope recipes' lists all."
        )
    print(table([("recipe", "what it is"), *((name, summary(name)) for name in found)], align="ll"))


def compare(args: argparse.Namespace) -> None:
    """Compare checkpoints, write the folder and print what was found."""
    from channelscope.comparison import check_folder
    from channelscope.distributed import is_first
    from channelscope.locks import lock_path

    device, out = device_of(args), Path(args.out)
    check_folder(out)
    with together(args, device), lock_path(out.resolve()):
        found = _comparison(args, device)
        if is_first():
            found.meta["command"] = args.command
            found.save(out, progress=not args.quiet)
            tell_comparison(found, out, args.json)


def _comparison(args: argparse.Namespace, device: str) -> "Comparison":
    from channelscope.comparison import compare

    models = models_of(args)
    return compare(
        models,
        data_of(args, args.data or trained_on(models.values())),
        attack=args.attack,
        eps=args.eps,
        attacks=args.attacks,
        evaluation=args.evaluation,
        layers=args.layers,
        eps_sweep=args.eps_sweep,
        step_sweep=args.step_sweep,
        images=args.images,
        seed=args.seed,
        replicates=args.replicates,
        thumbnails=not args.no_thumbnails,
        batch_size=args.batch_size,
        device=device,
        progress=not args.quiet,
    )


def evaluate(args: argparse.Namespace) -> None:
    """Attack checkpoints, write the folder and print what was found."""
    from channelscope.distributed import is_first
    from channelscope.evaluation import evaluate

    device, models = device_of(args), models_of(args)
    args.after_stop = (
        " Run the same command again: it goes on with the images and attacks that are left."
    )
    with together(args, device):
        found = evaluate(
            models,
            data_of(args, args.data or trained_on(models.values())),
            attacks=args.attacks,
            eps=args.eps,
            norm=args.norm,
            eps_sweep=args.eps_sweep,
            images=args.images,
            checks=args.checks,
            cascade=args.cascade,
            save_adversarial=args.save_adversarial,
            out=args.out,
            seed=args.seed,
            batch_size=args.batch_size,
            device=device,
            command=args.command,
            progress=not args.quiet,
        )
        if is_first():
            tell_evaluation(found, Path(args.out), args.json)


def intervene(args: argparse.Namespace) -> None:
    """Suppress channels of checkpoints, write the folder and print what was found."""
    from channelscope.intervention import check_folder, intervene
    from channelscope.locks import lock_path

    device, models, out = device_of(args), models_of(args), Path(args.out)
    check_folder(out)
    with lock_path(out.resolve()):
        found = intervene(
            models,
            data_of(args, args.data or trained_on(models.values())),
            layers=args.layers,
            scorers=args.scorers,
            attack=args.attack,
            eps=args.eps,
            fractions=args.fractions,
            random=args.random,
            relevant_to=args.relevant_to,
            images=args.images,
            seed=args.seed,
            replicates=args.replicates,
            batch_size=args.batch_size,
            device=device,
            command=args.command,
            progress=not args.quiet,
        )
        found.save(out)
    tell_interventions(found, out, args.json)


def figures(args: argparse.Namespace) -> None:
    """Draw a comparison's figures and report again."""
    from channelscope.comparison import Comparison
    from channelscope.locks import lock_path

    folder = Path(args.folder)
    how = {name: getattr(args, name) for name in ("style", "wide", "latex", "only", "formats")}
    with lock_path(folder.resolve()):
        Comparison.load(folder).draw(folder, **how, progress=not args.quiet)
    print(f"figures in {folder / 'figures'}, report in {folder / 'report.html'}")


def demo(args: argparse.Namespace) -> None:
    """Train three networks on digits, compare them and print what was found."""
    from channelscope.comparison import check_folder, compare
    from channelscope.data import load
    from channelscope.training import train

    out, methods = Path(args.out), ("standard", "at", "cifs")
    check_folder(out / "comparison")
    args.after_stop = " Run the same command again: it goes on with the epoch that was interrupted."
    digits, quiet = load("digits"), args.quiet
    paths = {method: out / f"{method}.pt" for method in methods}
    for method, path in paths.items():
        train(method, digits, out=path, seed=args.seed, resume=True, progress=not quiet)
    found = compare(paths, digits, seed=args.seed, progress=not quiet)
    found.meta["command"] = args.command
    found.save(out / "comparison", progress=not quiet)
    tell_comparison(found, out / "comparison", as_json=False)


def convert(args: argparse.Namespace) -> None:
    """Convert another program's network file to a checkpoint."""
    from channelscope.weights.converters import convert

    checkpoint = convert(args.source, args.file, args.out, args.method)
    gates = ", ".join(gate.layer for gate in checkpoint.gates) or "none"
    arch = checkpoint.architecture
    print(f"{args.out}: {arch.arch}, width {arch.width}, {arch.classes} classes, gates at: {gates}")


def zoo(args: argparse.Namespace) -> None:
    """List the networks that ship with the package."""
    from channelscope.weights.zoo import zoo

    measured = zoo()
    networks = measured[["model", "recipe", "data"]].drop_duplicates()
    tell_zoo(
        list(networks.itertuples(index=False, name=None)),
        measured.to_dict("records"),
    )


def doctor(args: argparse.Namespace) -> int:
    """Print what is installed and present and what is amiss; return the exit status."""
    from channelscope.doctor import examine, format_findings

    findings = examine(Path(args.data_root))
    print(format_findings(findings))
    return int(any(finding.problem for finding in findings))
