"""The command line: parsing and printing only. torch is imported when a command runs, so ``--help`` is instant."""

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from channelscope import __version__
from channelscope.errors import UserError

if TYPE_CHECKING:
    from channelscope.comparison import Comparison
    from channelscope.data import Dataset

_METHODS = ("standard", "at", "cifs", "cas")

_OVERVIEW = """\
Why is one CNN robust and another not? channelscope looks channel by channel: how strongly each channel is
activated on natural and on adversarial images, how relevant it is to the class, and whether the two line up.

begin here:
  channelscope demo                                   train three networks on digits and compare them
  channelscope train --method at --out at.pt          train one network
  channelscope compare --models nat.pt at.pt cifs.pt  compare networks: tables, figures, report.html
"""


_NO_MEMORY = "There is not enough memory: use smaller images, fewer --images or a smaller --batch-size."


class _Parser(argparse.ArgumentParser):
    """Answers a mistake with one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}: see '{self.prog} --help'.\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit status: 0 done, 2 the user's mistake, 130 stopped by Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv)
    args.command = f"channelscope {shlex.join(argv)}"
    try:
        args.run(args)
        sys.stdout.flush()
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print(f"\nchannelscope: stopped.{getattr(args, 'after_stop', '')}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in 'channelscope layers ... | head'
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        return _fail(_NO_MEMORY)
    except OSError as error:
        return _fail(f"The system refused {error.filename or 'a file'}: {error.strerror or error}.")
    except Exception as error:
        if isinstance(error, RuntimeError) and re.search("can't allocate memory|out of memory", str(error)):  # torch's
            return _fail(_NO_MEMORY)
        if os.environ.get("CHANNELSCOPE_TRACEBACK"):
            raise
        reason = (str(error).splitlines() or [""])[0]
        print(
            f"channelscope: this is a fault in channelscope ({type(error).__name__}: {reason}): please report it, "
            "with what CHANNELSCOPE_TRACEBACK=1 shows.",
            file=sys.stderr,
        )
        return 1
    return 0


def _fail(sentence: str) -> int:
    print(f"channelscope: {sentence}", file=sys.stderr)
    return 2


def _train(args: argparse.Namespace) -> None:
    from channelscope.checkpoints import Checkpoint
    from channelscope.training import train

    out = Path(args.out or f"{args.method}.pt")
    args.after_stop = f" The epochs that are complete are kept in {out}.partial: go on with --resume."
    train(
        args.method,
        _data(args, args.data),
        out=out,
        seed=args.seed,
        resume=args.resume,
        device=_device(args),
        progress=not args.quiet,
        **{name: getattr(args, name) for name in ("arch", "width", "epochs", "batch_size", "lr", "eps")},
    )
    best = Checkpoint.read(out).meta["metrics"]
    print(
        f"{out}: best epoch {best['epoch']}, on validation images natural {best['val_natural']:.1%}, "
        f"robust {best['val_robust']:.1%}; log in {out}.csv"
    )


def _compare(args: argparse.Namespace) -> None:
    from channelscope.checkpoints import Checkpoint
    from channelscope.comparison import check_folder, compare

    out = Path(args.out)
    check_folder(out)
    labels = args.labels or [Path(path).stem for path in args.models]
    if len(labels) != len(args.models):
        raise UserError(f"There are {len(args.models)} models and {len(labels)} labels: give one label for each model.")
    if len(set(labels)) < len(labels):
        raise UserError("Two models have the same label: give each its own with --labels.")
    models = {label: Checkpoint.read(path) for label, path in zip(labels, args.models, strict=True)}
    found = compare(
        models,
        _data(args, args.data or _trained_on(models.values())),
        attack=args.attack,
        eps=args.eps,
        layers=args.layers,
        images=args.images,
        seed=args.seed,
        replicates=args.replicates,
        batch_size=args.batch_size,
        device=_device(args),
        progress=not args.quiet,
    )
    found.meta["command"] = args.command
    found.save(out, progress=not args.quiet)
    _report(found, out, args.json)


def _trained_on(checkpoints: Any) -> str:
    """Name the data set on which all of the checkpoints were trained."""
    settings = [checkpoint.meta.get("settings") for checkpoint in checkpoints]
    names = {known["data"]["name"] if known else None for known in settings}
    name = names.pop()
    if names or name is None:
        raise UserError("The models do not say that they were trained on one data set: name the data with --data.")
    return str(name)


def _figures(args: argparse.Namespace) -> None:
    from channelscope.comparison import Comparison

    folder = Path(args.folder)
    Comparison.load(folder).draw(folder, progress=not args.quiet)
    print(f"figures in {folder / 'figures'}, report in {folder / 'report.html'}")


def _demo(args: argparse.Namespace) -> None:
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
    _report(found, out / "comparison", as_json=False)


def _convert(args: argparse.Namespace) -> None:
    from channelscope.converters import CONVERTERS

    out = Path(args.out)
    if out.exists():
        raise UserError(f"{out} exists: choose another file to write to, or delete it first.")
    checkpoint = CONVERTERS[args.source](args.file, method=args.method)
    checkpoint.save(out)
    gates = ", ".join(gate.layer for gate in checkpoint.gates) or "none"
    arch = checkpoint.architecture
    print(f"{out}: {arch.arch}, width {arch.width}, {arch.classes} classes, gates at: {gates}")


def _layers(args: argparse.Namespace) -> None:
    import torch

    from channelscope.checkpoints import Checkpoint
    from channelscope.hooks import trace
    from channelscope.relevance import LastLayer

    checkpoint = Checkpoint.read(args.model)
    network, images = checkpoint.build(), torch.zeros(2, *checkpoint.image)
    calls, _ = trace(network, images)
    penultimate = LastLayer.find(network, torch.rand(2, *checkpoint.image, generator=torch.Generator())).inputs[0]
    rows = [("layer", "kind", "channels", "shape")]
    for call in calls:
        shape = " x ".join(map(str, call.output.shape[1:]))
        mark = "  <- penultimate: what 'compare' looks at by default" if call.name == penultimate else ""
        rows.append((call.name, type(call.module).__name__, str(call.output.shape[1]), shape + mark))
    print(_table(rows, align="llrl"))


def _data(args: argparse.Namespace, name: str) -> "Dataset":
    from channelscope.data import load

    return load(name, root=Path(args.data_root), download=args.download, seed=args.seed, image_size=args.image_size)


def _device(args: argparse.Namespace) -> str:
    import torch

    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device is None else args.device
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"There is no device {device!r} here: use --device cpu.") from error
    return str(device)


def _report(found: "Comparison", out: Path, as_json: bool) -> None:
    """Print what was found: a table and the verdicts, or all of it as JSON."""
    robustness = found.robustness[found.robustness["class"] == "all"]
    if as_json:
        frames = {"robustness": robustness, "verdicts": found.verdicts}
        values = {name: json.loads(frame.to_json(orient="records")) for name, frame in frames.items()}
        print(json.dumps({"out": str(out), **values}, indent=1, ensure_ascii=False))
        return
    print(_table(_summary(found), align="l" + "r" * 6))
    print(f"\n{found.meta['attack']}, eps {found.meta['eps']:.4g}, {found.meta['data']['images']} test images\n")
    for verdict in found.verdicts.itertuples():
        print(f"{verdict.claim} {verdict.verdict}: {verdict.statement}")
    print(f"\nreport: {out / 'report.html'}")


def _summary(found: "Comparison") -> list[tuple[str, ...]]:
    """Lay out a row for each model: accuracy and, at its last layer, the alignment measures."""
    rows: list[tuple[str, ...]] = [
        ("model", "natural", found.meta["attack"], "worst case", "cosine", "NR ratio", "relevance alignment")
    ]
    accuracy = found.robustness[found.robustness["class"] == "all"].set_index(["model", "attack"])["accuracy"]
    overall = found.alignment[found.alignment["class"] == "all"]
    for model, known in found.meta["models"].items():
        last = overall[(overall["model"] == model) & (overall["layer"] == known["layers"][-1])]
        value = last.set_index("measure")["value"]
        shares = (f"{accuracy[model, attack]:.1%}" for attack in ("natural", found.meta["attack"], "worst"))
        measures = (f"{value[name]:.2f}" for name in ("cosine", "nr_ratio", "relevance_spearman_adversarial"))
        rows.append((model, *shares, *measures))
    return rows


def _table(rows: Sequence[tuple[str, ...]], align: str) -> str:
    """Set rows in columns, flush left (l) or right (r)."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, align, strict=True)
        lines.append("  ".join(f"{cell:{'<' if side == 'l' else '>'}{width}}" for cell, width, side in cells).rstrip())
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="channelscope", description=_OVERVIEW, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"channelscope {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    train = _command(
        commands,
        "train",
        _train,
        "train a network",
        "Train a network and write its best checkpoint, chosen on the validation part under attack, and a log.",
        "channelscope train --method cifs --data digits --out cifs.pt\n"
        "  channelscope train --method at --data cifar10 --download --width 16 --epochs 30 --out at.pt",
    )
    train.add_argument(
        "--method", required=True, choices=_METHODS, help="standard; at: adversarial training; cifs, cas: at with gates"
    )
    _add_data(train, "digits")
    train.add_argument("--out", metavar="FILE", help="checkpoint to write (default: METHOD.pt)")
    train.add_argument("--arch", help="resnet10, resnet18 (default), resnet34, resnet50 or wrn-28-10")
    train.add_argument("--width", type=_positive, metavar="W", help="planes of the first stage (default: the recipe's)")
    train.add_argument("--epochs", type=_positive, metavar="N", help="passes over the data (default: the recipe's)")
    train.add_argument("--batch-size", type=_positive, metavar="N", help="images per step (default: the recipe's)")
    train.add_argument("--lr", type=float, help="learning rate at the beginning (default: the recipe's)")
    train.add_argument("--eps", type=_eps, metavar="E", help="radius of the training attack, such as 8/255")
    train.add_argument("--resume", action="store_true", help="go on with an interrupted run, or begin if there is none")
    _add_common(train)

    compare = _command(
        commands,
        "compare",
        _compare,
        "compare networks channel by channel",
        "Compare networks and write a folder: tables (CSV, npz), figures (PDF, PNG), meta.json and report.html, with\n"
        "verdicts on the claims C1 to C4 of the CIFS paper (arXiv 2102.05311).",
        "channelscope compare --models nat.pt at.pt cifs.pt\n"
        "  channelscope compare --models nat.pt at.pt --labels standard AT --attack pgd-100x5 --eps 8/255 --images 500",
    )
    compare.add_argument("--models", nargs="+", required=True, metavar="FILE", help="checkpoints of networks")
    compare.add_argument("--labels", nargs="+", metavar="NAME", help="their names (default: the file names)")
    _add_data(compare, None)
    compare.add_argument("--out", default="comparison", metavar="DIR", help="folder to write (default: %(default)s)")
    compare.add_argument(
        "--attack", default="pgd-20", help="fgsm, pgd-STEPS, pgd-STEPSxRESTARTS, -l2 for L2 (default: pgd-20)"
    )
    compare.add_argument("--eps", type=_eps, metavar="E", help="radius of the attack (default: the recipe's, as 8/255)")
    compare.add_argument("--layers", nargs="+", metavar="NAME", help="layers to look at (default: the penultimate)")
    compare.add_argument("--images", type=_positive, metavar="N", help="test images to use (default: all)")
    compare.add_argument(
        "--batch-size", type=_positive, default=128, metavar="N", help="images per pass (default: 128)"
    )
    compare.add_argument(
        "--replicates", type=_positive, default=500, metavar="N", help="of the bootstrap (default: 500)"
    )
    compare.add_argument("--json", action="store_true", help="print the results as JSON")
    _add_common(compare)

    figures = _command(
        commands,
        "figures",
        _figures,
        "draw a comparison's figures again",
        "Draw the figures and the report of a comparison again, from its tables alone.",
        "channelscope figures comparison",
    )
    figures.add_argument("folder", metavar="DIR", help="folder that 'channelscope compare' wrote")
    _add_quiet(figures)

    demo = _command(
        commands,
        "demo",
        _demo,
        "train three networks on digits and compare them",
        "Train a standard, an AT and a CIFS network on scikit-learn's handwritten digits and compare them. Nothing is\n"
        "downloaded; a run that was interrupted goes on, and networks that are complete are used again.",
        "channelscope demo",
    )
    demo.add_argument(
        "--out", default="channelscope-demo", metavar="DIR", help="folder to write (default: %(default)s)"
    )
    demo.add_argument("--seed", type=_seed, default=0, metavar="S", help="of weights, images and attacks (default: 0)")
    _add_quiet(demo)

    convert = _command(
        commands,
        "convert",
        _convert,
        "turn another program's network file into a checkpoint",
        "Turn a network saved by another program into a checkpoint. cifs-release: a CIFAR ResNet (CIFS, CAS or plain) "
        "of\nthe CIFS authors' code.",
        "channelscope convert --from cifs-release ckp_best.pt cifs.pt",
    )
    convert.add_argument("--from", dest="source", required=True, choices=("cifs-release",), help="where FILE is from")
    convert.add_argument("file", metavar="FILE", help="file to read; nothing in it is run")
    convert.add_argument("out", metavar="OUT", help="checkpoint to write")
    convert.add_argument("--method", choices=_METHODS, help="how it was trained, where the file cannot tell")

    layers = _command(
        commands,
        "layers",
        _layers,
        "list a network's layers",
        "List the layers that can be captured, by name, with their channels and shapes.",
        "channelscope layers cifs.pt",
    )
    layers.add_argument("model", metavar="MODEL", help="checkpoint of a network")
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str, description: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"examples:\n  {example}" if "\n" in example else f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_data(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--data",
        default=default,
        metavar="NAME",
        help="digits, cifar10, svhn, fashion-mnist, mnist, imagefolder:DIR (train/ and test/, a folder per class) or "
        f"npz:FILE (train_images, train_labels, ...) (default: {default or 'what the models were trained on'})",
    )
    parser.add_argument("--data-root", default="data", metavar="DIR", help="where downloaded sets lie (default: data)")
    parser.add_argument("--download", action="store_true", help="fetch the set if it is not there")
    parser.add_argument("--image-size", type=_positive, metavar="S", help="scale and crop images to S x S")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=_seed, default=0, metavar="S", help="of everything random (default: 0)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    _add_quiet(parser)


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars")


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() and len(text) < 10 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return number


def _seed(text: str) -> int:
    if not (text.isdecimal() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 999999999")
    return int(text)


def _eps(text: str) -> float:
    try:
        eps = float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        eps = -1.0
    if not 0 <= eps <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no radius in [0, 1] image units, such as 0.031 or 8/255")
    return eps
