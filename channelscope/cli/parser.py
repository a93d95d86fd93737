"""The commands and their help. Importing and parsing need no torch, so that help comes at once."""

import argparse
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from inspect import cleandoc
from itertools import groupby
from typing import Any, NoReturn

from channelscope import __version__
from channelscope.cli import commands, layers
from channelscope.cli.options import (
    DATA,
    DRAWING,
    MEASURING,
    NETWORK,
    OPTIONS,
    RECIPE,
    SINGLE,
    TRAINING,
    add_options,
    positive,
)
from channelscope.errors import escape, suggest
from channelscope.recipes import ABLATIONS, METHODS

_OVERVIEW = """\
Why is one CNN robust and another not? channelscope looks at single channels: how strongly they are
activated on natural and on adversarial images, how relevant they are to each class, and whether
activation and relevance agree.

start here:
  channelscope demo                                   train three networks on digits, compare them
  channelscope train --method at --out at.pt          train one network
  channelscope compare --models nat.pt at.pt cifs.pt  compare networks: tables, figures, a page
  channelscope zoo                                    trained networks that come with the package
"""
_METHODS = "\n".join(["methods:", *(f"  {name:<16}{text}" for name, text in METHODS.items())])
_AGAIN = " Run the same command again: it goes on where it was."
_STUDY = """\
A run that was stopped or killed goes on when the same command is given again. Under torchrun
several processes share the images: torchrun --nproc-per-node 4 -m channelscope {command} ...

disk: {disk}
The exact number is printed at the start."""


class _Parser(argparse.ArgumentParser):
    """Answers a mistake in one sentence, with the names that come closest."""

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith(("?", ".")) else "."
        self.exit(2, f"{self.prog}: {escape(message)}{end} See '{self.prog} --help'.\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse arguments; a command refuses those it does not know, which argparse passes on."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            near = suggest(unknown[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}.{near}")
        return parsed, []

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = list(action.choices or ())
        if choices and value not in choices:
            names = ", ".join(choices)
            text = f"there is no {value!r}: choose from {names}.{suggest(str(value), choices)}"
            raise argparse.ArgumentError(action, text)


# Names of commands and files are not broken.
_wrap = partial(textwrap.wrap, break_on_hyphens=False)


class _Help(argparse.HelpFormatter):
    """Fills paragraphs to the terminal's width, and keeps the lines of lists and examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled: list[str] = []
        for is_text, lines in groupby(text.splitlines(), key=lambda line: line[:1].strip() != ""):
            if is_text:
                filled += _wrap(" ".join(lines), width)
            else:
                filled += [part for line in lines for part in _wrap_item(line, width)]
        return "\n".join(filled)


def _wrap_item(line: str, width: int) -> Iterator[str]:
    """Wrap a line of a list below its text; one of an example so that a shell still takes it."""
    name = re.match(r" *(\S+  +)?", line)
    hang = " " * (name.end() if name and name[1] else 6)
    *parts, last = _wrap(line, width - 2, subsequent_indent=hang) or [""]
    is_example = line.startswith("  channelscope ")
    yield from (f"{part} \\" if is_example else part for part in parts)
    yield last


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line.

    Each command sets ``name``; ``run``, its function; and, where several processes can share its
    work, ``after_stop``: what to do when it was stopped.
    """
    parser = _Parser(
        prog="channelscope",
        description=_OVERVIEW,
        formatter_class=_Help,
    )
    parser.add_argument("-V", "--version", action="version", version=f"channelscope {__version__}")
    menu = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    _add_training(menu)
    _add_questions(menu)
    _add_listings(menu)
    _add_others(menu)
    return parser


def _add_training(menu: Any) -> None:
    demo = _add_command(
        menu,
        "demo",
        commands.demo,
        "train three networks on digits and compare them",
        """
        Train a standard, an AT and a CIFS network on scikit-learn's handwritten digits and compare
        them. Nothing is downloaded. A run that was stopped goes on when the same command is given
        again; networks that are complete are used again.
        """,
        "channelscope demo",
    )
    demo.set_defaults(after_stop=_AGAIN)
    add_options(demo, "out seed progress", out="channelscope-demo")

    train = _add_command(
        menu,
        "train",
        commands.train,
        "train a network",
        """
        Train a network; write its best checkpoint, chosen on the validation images under attack,
        and a log. A recipe of two stages, such as cifar10-resnet18-cifs-published, trains one after
        the other, and OUT.before is the checkpoint of the first. Under torchrun several processes
        share every batch: torchrun --nproc-per-node 4 -m channelscope train ...
        """,
        """
        channelscope train --method cifs --data digits --out cifs.pt
        channelscope train --method trades --data cifar10 --download --width 16 --epochs 30
        channelscope train --recipe cifar10-resnet18-cifs-fast --data cifar10 --set gates.k=3
        channelscope train --method cifs --data cifar10 --init nat.pt --out warm.pt
        channelscope train --recipe cifar10-resnet18-cifs-published --plan
        """,
        _METHODS,
    )
    train.set_defaults(after_stop=_AGAIN)
    what = train.add_mutually_exclusive_group(required=True)
    add_options(what, "method recipe", TRAINING)
    add_options(train, f"{RECIPE} {DATA} images", TRAINING, data="digits")
    train.add_argument("--out", metavar="FILE", help="checkpoint to write (default: METHOD.pt)")
    add_options(train, "plan init init_gates keep_epochs resume seed device progress", TRAINING)

    sweep = _add_command(
        menu,
        "sweep",
        commands.sweep,
        "train variants of a recipe and compare them",
        """
        Train every combination of some settings' values, attack the networks, and write
        checkpoints, logs, tables and a figure; of several seeds the means, with intervals. A run
        that was stopped goes on when the same command is given again. Under torchrun several
        processes share every batch.
        """,
        """
        channelscope sweep imgf --data cifar10 --download --seeds 5 --out imgf
        channelscope sweep --recipe svhn-resnet18-cifs-fast --data svhn --vary gates.beta=1,2 k=1,2
        channelscope sweep --epochs 5 --vary gates.layers=[layer4.1],[layer4.0,layer4.1]
        """,
        _METHODS,
    )
    sweep.set_defaults(after_stop=_AGAIN, seed=0)  # the seed of the parts of the data
    sweep.add_argument(
        "ablation",
        nargs="?",
        choices=list(ABLATIONS),
        metavar="ABLATION",
        help=f"an ablation of the CIFS paper, whose settings vary: {', '.join(ABLATIONS)}",
    )
    what = sweep.add_mutually_exclusive_group()
    add_options(what, "method recipe", TRAINING)
    add_options(sweep, f"vary seeds {RECIPE} {DATA} images", TRAINING, data="digits")
    add_options(sweep, "attack test_eps test_images out device progress", TRAINING, out="sweep")


def _add_questions(menu: Any) -> None:
    """Add the commands that put a question to a study: each calls the function of its name."""
    _add_question(
        menu,
        "compare",
        "compare networks channel by channel",
        """
        Compare networks and write a folder: tables (CSV, npz), figures (PDF, PNG), meta.json and
        report.html, with verdicts on claims C1 to C5 of the CIFS paper (arXiv 2102.05311).
        """,
        """
        channelscope compare --models nat.pt at.pt cifs.pt
        channelscope compare --models nat.pt at.pt --labels standard AT --attack pgd-100x5
        """,
        disk="about 4 bytes x images x channels of the measured layers x (3 + number of swept\n"
        "radii and steps) for each model, and the size of small pictures unless --no-thumbnails.",
        options="attack attacks eps eps_sweep step_sweep layers groups checks threshold thumbnails",
        out="comparison",
        checks=0,
        attacks="adaptive",
    )
    _add_question(
        menu,
        "evaluate",
        "attack networks, and say whether the result can be believed",
        """
        Attack networks by suites of strong and adaptive attacks, take the worst case per image,
        and look for signs of gradient masking. Write a folder: tables (CSV, npz), figures,
        meta.json and RobustBench's JSON. 'channelscope attacks' lists suites and attacks.
        """,
        """
        channelscope evaluate --models at.pt cifs.pt --attacks adaptive --images 500
        channelscope evaluate --models cifs.pt --attacks all --eps-sweep 2/255 4/255 8/255
        channelscope evaluate --models at.pt cifs.pt --attacks auto --cascade -q
        """,
        disk="some bytes for each image and attack; with --save-adversarial also\n"
        "4 bytes x images x pixels x attacks for each model.",
        options="attacks eps norm eps_sweep checks cascade save_adversarial",
        out="evaluation",
        attacks="standard",
    )
    _add_question(
        menu,
        "intervene",
        "test relevance: suppress channels and see what accuracy is lost",
        """
        Suppress channels of trained networks at test time: the most negatively relevant (NR), the
        most positively relevant (PR) or random ones first. Measure natural accuracy, and robust
        accuracy under an attack that sees it. Write tables (CSV), figures (PDF, PNG) and
        meta.json: curves, a league of relevance scorers, and the verdict "C4 by intervention":
        does a network get more robust without its NR channels? 'channelscope scorers' lists the
        scorers.
        """,
        """
        channelscope intervene --models at.pt cifs.pt --scorers weights gradient ablation
        channelscope intervene --models zoo:cifar10-at --layers layer3 layer4 --data cifar10
        """,
        disk="about 4 bytes x images x channels of the measured layers x scorers for each model.",
        options="layers scorers attack eps fractions random relevant_to",
        out="intervention",
        attack="pgd-20",
        images=500,
    )
    _add_question(
        menu,
        "relevance",
        "score how relevant channels are to the classes",
        """
        Score how relevant each channel is to each class: above 0 it speaks for the class
        (positively relevant, PR), below 0 against it (NR). Write a folder: tables of the relevance
        and of how far scorers agree, meta.json and a figure. A scorer that does not apply to a
        layer is left out there. 'channelscope scorers' lists the scorers and what they cost.
        """,
        """
        channelscope relevance --models at.pt cifs.pt --scorers gradient ablation
        channelscope relevance --models zoo:cifar10-at --layers 'layer[34].*' --data cifar10
        """,
        disk="about 4 bytes x images x channels of the measured layers x scorers for each model.",
        options="layers scorers",
        out="relevance",
        scorers=("gradient", "gradient-x-activation", "ablation"),
        replicates=200,
    )

    _add_question(
        menu,
        "damage",
        "account for an attack's damage, channel by channel",
        """
        Account for what an attack does to the images that it breaks: by how much each channel
        lowers the margin of the label over the wrong answer, so that the parts add up; then put
        channels back, the worst first, and see which images are right again. Write tables (CSV),
        figures (PDF, PNG) and meta.json, and the verdict whether the damage is done by negatively
        relevant (NR) channels that rise, as the CIFS paper holds.
        """,
        """
        channelscope damage --models nat.pt at.pt cifs.pt
        channelscope damage --models zoo:cifar10-at --layers 'layer?' --data cifar10 --adaptive
        """,
        disk="about 4 bytes x images x channels of the measured layers x 4 (more behind gates)\n"
        "for each model, and for each scorer 4 bytes x images x channels.",
        options="layers scorers attack eps fractions adaptive bound edges groups",
        out="damage",
        attack="pgd-20",
        images=1000,
        fractions=(0.0625, 0.125, 0.25, 0.5),
    )

    film = _add_command(
        menu,
        "film",
        commands.film,
        "measure every kept epoch of trainings",
        """
        Measure the network of every kept epoch of trainings on the same images: accuracy under a
        cheap attack, alignment, NR mass, kinds of damage, cross-class features, gates; beside them
        the training log. Write tables (CSV), figures (PDF, PNG) and meta.json: where curves jump,
        how far robust accuracy falls from the best epoch to the last (robust overfitting), and
        the verdict whether cross-class features peak at the best epoch (arXiv 2506.05032).
        """,
        """
        channelscope train --method at --keep-epochs 1 --epochs 40 --out at.pt
        channelscope film at.pt --out film
        channelscope film at.pt cifs.pt --labels AT CIFS --images 200
        """,
        _STUDY.format(
            command="film RUN",
            disk="about 12 bytes x images x channels of the penultimate layer for each kept epoch.",
        ),
    )
    film.set_defaults(after_stop=_AGAIN)
    film.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="checkpoint of a training with --keep-epochs, the kept epochs beside it",
    )
    names = f"labels {DATA} images attack eps threshold {MEASURING}"
    add_options(film, names, OPTIONS, out="film", attack="pgd-10", images=500)


def _add_question(
    menu: Any,
    name: str,
    summary: str,
    description: str,
    examples: str,
    *,
    disk: str,
    options: str,
    **defaults: Any,
) -> None:
    more = _STUDY.format(command=name, disk=disk)
    command = _add_command(menu, name, commands.answer, summary, description, examples, more)
    command.set_defaults(after_stop=_AGAIN)
    names = f"models labels {NETWORK} output methods {DATA} images {options} {MEASURING}"
    add_options(command, names, OPTIONS, **defaults)


def _add_listings(menu: Any) -> None:
    _add_command(
        menu,
        "attacks",
        commands.attacks,
        "list attacks and suites of attacks",
        """
        List the suites of attacks and the attacks, by the names that --attack and --attacks take,
        and what each attack costs.
        """,
        "channelscope attacks",
    )
    _add_command(
        menu,
        "scorers",
        commands.scorers,
        "list the relevance scorers and what they cost",
        "List the relevance scorers, by the names that --scorers takes, and what each costs.",
        "channelscope scorers",
    )
    _add_command(
        menu,
        "analyses",
        commands.analyses,
        "list the analyses and their figures",
        """
        List what the results of compare, evaluate, ... consist of: the analyses, what each tells,
        and its kinds of figures, by the names that figures --only takes.
        """,
        "channelscope analyses",
    )
    recipes = _add_command(
        menu,
        "recipes",
        commands.recipes,
        "list the recipes, or show one",
        """
        List the recipes that come with the package, SETTING-METHOD or SETTING-METHOD-fast, by the
        words in their names; show one, as a file to change and to train from, by its whole name.
        """,
        """
        channelscope recipes svhn fast
        channelscope recipes cifar10-resnet18-cifs > mine.toml
        channelscope train --recipe mine.toml --data cifar10
        """,
    )
    recipes.add_argument(
        "words", nargs="*", metavar="WORD", help="a whole name, or what the names must contain"
    )
    _add_command(
        menu,
        "zoo",
        commands.zoo,
        "list the trained networks that come with the package",
        """
        List the trained networks that come with the package: how robust each was measured to be,
        what it was trained on and by which recipe. Their names stand for files: --models zoo:NAME,
        cs.load('zoo:NAME').
        """,
        """
        channelscope zoo
        channelscope compare --models zoo:cifar10-standard zoo:cifar10-at --data cifar10 --download
        """,
    )
    listing = _add_command(
        menu,
        "layers",
        layers.list_layers,
        "list a network's layers",
        """
        List the layers whose activations can be captured, by name, with their channels and shapes;
        or those that patterns match, in which * stands for anything but a dot: layer4.* are the
        blocks of layer4.
        """,
        """
        channelscope layers cifs.pt
        channelscope layers zoo:cifar10-at 'layer4.*' 'layer?.0.conv1'
        channelscope layers torchvision:convnext_tiny 'features.*'
        """,
    )
    listing.add_argument(
        "model",
        metavar="MODEL",
        help="network's file, zoo:NAME; or torchvision:NAME, timm:NAME, with random weights",
    )
    listing.add_argument(
        "patterns", nargs="*", metavar="PATTERN", help="names or patterns (default: all layers)"
    )
    add_options(listing, NETWORK, SINGLE)
    listing.set_defaults(download=False)
    listing.add_argument("--image-size", type=positive, metavar="S", help="use images of S x S")


def _add_others(menu: Any) -> None:
    figures = _add_command(
        menu,
        "figures",
        commands.figures,
        "draw the figures of a result again",
        """
        Draw the figures and the report of a saved result again, from its tables
        alone. Beside each figure is what it shows (.csv); captions.txt has the captions. Other
        figures in the folder stay. Figures in a style of your choice, or of some models, layers or
        classes, go into a folder in DIR/figures, such as DIR/figures/icml, and leave the report
        alone. 'channelscope analyses' lists the kinds of figures.
        """,
        """
        channelscope figures comparison
        channelscope figures comparison --style icml --only c1,c3 --formats svg
        channelscope figures comparison --style icml --wide --models at cifs --labels AT CIFS
        """,
    )
    figures.add_argument("folder", metavar="DIR", help="folder that compare or evaluate, ... wrote")
    look = "style wide latex title notes height models labels layers classes"
    add_options(figures, f"{look} only all_figures formats progress", DRAWING)

    convert = _add_command(
        menu,
        "convert",
        commands.convert,
        "turn any program's network file into a checkpoint",
        """
        Turn a network that another program saved into a checkpoint, which needs no further options
        when it is read, but for code of your own, which is named again: OUT@FILE.py:NAME. Most are
        recognised by their tensors: networks of papers' releases (CIFS, CAS, FSR, TRADES, MART,
        AWP), of torchvision and of timm. Nothing in a file is run.
        """,
        """
        channelscope convert ckp_best.pt cifs.pt --imgf-scale 2
        channelscope convert r50.pth r50.pt --normalise imagenet
        channelscope convert mine.ckpt mine.pt --arch mynets.py:ResNet18 --arch-args width=2
        """,
    )
    convert.add_argument("file", metavar="FILE", help="file to read; no code in it is run")
    convert.add_argument("out", metavar="OUT", help="checkpoint to write")
    add_options(convert, f"{NETWORK} download", SINGLE)
    convert.add_argument(
        "--method",
        metavar="METHOD",
        choices=list(METHODS),
        help="how it was trained, where the file does not say so (as in train)",
    )
    convert.add_argument(
        "--imgf-scale",
        type=float,
        metavar="S",
        help="what the softmax masks of a release of CIFS sum to, which no tensor tells: 2 in "
        "files of the paper's time (default: 1, as in the released file)",
    )

    doctor = _add_command(
        menu,
        "doctor",
        commands.doctor,
        "look for what is missing or broken here",
        """
        Look at versions, devices, threads, data and the package's own files, and say what is wrong
        and what to do about it. Optional packages, data sets and GPUs that are missing are no
        problem. Add what it prints to a bug report: it names folders (your home folder as ~), and
        of the environment only what it lists. Exit status: 0 nothing is wrong, 1 something is. It
        takes some seconds.
        """,
        """
        channelscope doctor
        channelscope doctor --data-root ~/datasets > doctor.txt
        """,
    )
    add_options(doctor, "data_root")


def _add_command(
    menu: Any,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    summary: str,
    description: str,
    examples: str,
    more: str = "",
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = menu.add_parser(
        name,
        help=summary,
        description=f"{cleandoc(description)}\n\n{more}".rstrip(),
        epilog="examples:\n  " + cleandoc(examples).replace("\n", "\n  "),
        formatter_class=_Help,
    )
    parser.set_defaults(name=name, run=run)
    return parser
