"""The commands, their options and their help."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from channelscope import __version__
from channelscope.cli import commands, inspection
from channelscope.cli.options import (
    SCORERS,
    add_attack,
    add_common,
    add_data,
    add_data_root,
    add_device,
    add_images,
    add_layers,
    add_measuring,
    add_models,
    add_out,
    add_quiet,
    add_replicates,
    add_training,
    count,
    eps,
    methods,
    positive,
    scorers,
    seed,
    share,
)
from channelscope.errors import escape
from channelscope.recipes import ABLATIONS, METHODS

_OVERVIEW = """\
Why is one CNN robust and another not? channelscope looks channel by channel: how strongly each channel is
activated on natural and on adversarial images, how relevant it is to the class, and whether the two line up.

begin here:
  channelscope demo                                   train three networks on digits and compare them
  channelscope train --method at --out at.pt          train one network
  channelscope compare --models nat.pt at.pt cifs.pt  compare networks: tables, figures, report.html
  channelscope zoo                                    trained networks that are here already
"""


class _Parser(argparse.ArgumentParser):
    """Answers a mistake with one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {escape(message)}: see '{self.prog} --help'.\n")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line; each command sets ``run`` to its function."""
    parser = _Parser(
        prog="channelscope",
        description=_OVERVIEW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"channelscope {__version__}")
    menu = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    train = _command(
        menu,
        "train",
        commands.train,
        "train a network",
        "Train a network and write its best checkpoint, chosen on the validation part under attack, and a log.\n"
        "Under torchrun several processes share every batch: torchrun --nproc-per-node 4 -m channelscope train ...\n\n"
        + methods(),
        "channelscope train --method cifs --data digits --out cifs.pt\n"
        "  channelscope train --method trades --data cifar10 --download --width 16 --epochs 30 --out trades.pt\n"
        "  channelscope train --recipe cifar10-resnet18-cifs-fast --data cifar10 --set optimizer.lr=0.05 gates.k=3",
    )
    add_training(train, required=True)
    train.add_argument("--out", metavar="FILE", help="checkpoint to write (default: METHOD.pt)")
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on with an interrupted run, or begin if there is none",
    )
    add_common(train)

    recipes = _command(
        menu,
        "recipes",
        commands.recipes,
        "list the recipes, or show one",
        "List the recipes that ship with the package, SETTING-METHOD or SETTING-METHOD-fast, by the words in their\n"
        "names; show one, as a file to change and to train from, by its whole name.",
        "channelscope recipes svhn fast\n"
        "  channelscope recipes cifar10-resnet18-cifs > mine.toml\n"
        "  channelscope train --recipe mine.toml --data cifar10",
    )
    recipes.add_argument(
        "words", nargs="*", metavar="WORD", help="a whole name, or what the names must contain"
    )

    sweep = _command(
        menu,
        "sweep",
        commands.sweep,
        "train a recipe's variants and compare them",
        "Train every combination of some settings' values, attack the networks, and write checkpoints, logs, a table\n"
        "(sweep.csv, sweep.json) and a figure (sweep.pdf, .png). The same command again goes on where it was stopped.\n\n"
        + methods(),
        "channelscope sweep imgf --data cifar10 --download --seeds 0 1 2 --out imgf\n"
        "  channelscope sweep --recipe cifar10-resnet18-cifs-fast --data cifar10 --vary gates.beta=1,2 k=1,2\n"
        "  channelscope sweep --width 4 --epochs 5 --vary gates.layers=[layer4.1],[layer4.0,layer4.1]",
    )
    sweep.add_argument(
        "ablation",
        nargs="?",
        choices=ABLATIONS,
        metavar="ABLATION",
        help=f"of the CIFS paper, settings that vary under this name: {', '.join(ABLATIONS)}",
    )
    sweep.add_argument(
        "--vary",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=A,B",
        help="settings and the values to train",
    )
    sweep.add_argument(
        "--seeds",
        type=seed,
        nargs="+",
        default=[0],
        metavar="S",
        help="of each variant (default: 0)",
    )
    add_training(sweep, required=False)
    add_out(sweep, "sweep")
    sweep.add_argument(
        "--attack",
        default="pgd-20",
        help="of the test: fgsm, pgd-STEPS, pgd-STEPSxRESTARTS, -l2 (default: pgd-20)",
    )
    sweep.add_argument(
        "--test-eps",
        type=eps,
        metavar="E",
        help="its radius, such as 8/255 (default: the recipe's)",
    )
    sweep.add_argument(
        "--test-images", type=positive, metavar="N", help="test images to use (default: all)"
    )
    add_device(sweep)
    sweep.set_defaults(seed=0)  # of the parts of the data, which are the same for all

    compare = _command(
        menu,
        "compare",
        commands.compare,
        "compare networks channel by channel",
        "Compare networks and write a folder: tables (CSV, npz), figures (PDF, PNG), meta.json and report.html, with\n"
        "verdicts on the claims C1 to C4 of the CIFS paper (arXiv 2102.05311).",
        "channelscope compare --models nat.pt at.pt cifs.pt\n"
        "  channelscope compare --models nat.pt at.pt --labels standard AT --attack pgd-100x5 --eps 8/255 --images 500",
    )
    add_models(compare)
    add_data(compare, None)
    add_out(compare, "comparison")
    add_attack(compare)
    compare.add_argument(
        "--attacks",
        nargs="+",
        default=["adaptive"],
        metavar="NAME",
        help="for the worst case, beside that one: suites and attacks as in evaluate (default: adaptive)",
    )
    compare.add_argument(
        "--evaluation",
        metavar="DIR",
        help="take worst case and adversarial images from what evaluate wrote there",
    )
    compare.add_argument(
        "--eps-sweep",
        type=eps,
        nargs="+",
        default=[],
        metavar="E",
        help="also measure alignment at these radii",
    )
    compare.add_argument(
        "--step-sweep",
        type=positive,
        nargs="+",
        default=[],
        metavar="N",
        help="and after so many steps of the attack",
    )
    add_replicates(compare, 500)
    add_layers(compare)
    add_images(compare)
    compare.add_argument(
        "--no-thumbnails",
        action="store_true",
        help="keep no small pictures of the images that excite channels most",
    )
    add_measuring(compare)

    evaluate = _command(
        menu,
        "evaluate",
        commands.evaluate,
        "attack networks, and tell whether the result can be believed",
        "Attack networks by suites of strong and adaptive attacks, take the worst case per image, look for signs of\n"
        "gradient masking. Writes a folder: tables (CSV, npz), figures, meta.json and RobustBench's JSON. The same\n"
        "command again goes on where it was stopped.\n\nsuites:\n"
        "  standard   FGSM, PGD-20, PGD-100 with 5 restarts, C&W-inf, APGD on the cross-entropy and on DLR\n"
        "  paper      FGSM, PGD-20, PGD-100, C&W-inf as in the CIFS paper; with gates also the joint loss swept\n"
        "  adaptive   PGD-20, C&W-inf, APGD on both losses; with gates also: the sweep of the joint loss, gradients\n"
        "             hidden and not, frozen masks, each probe alone, transfer from the networks without gates\n"
        "  auto       standard AutoAttack (needs: pip install 'channelscope[autoattack]')\n"
        "  all        all of these\n"
        "attacks by name: fgsm, pgd-20, pgd-100x5 (restarts), cw-30, apgd-ce, apgd-dlr, apgd-margin, apgd-ce-50x5,\n"
        "  joint-sweep, square, autoattack",
        "channelscope evaluate --models at.pt cifs.pt --attacks adaptive --images 500\n"
        "  channelscope evaluate --models cifs.pt --attacks all --eps-sweep 2/255 4/255 8/255 16/255 --out cifs\n"
        "  channelscope evaluate --models at.pt cifs.pt --attacks auto --cascade -q",
    )
    add_models(evaluate)
    add_data(evaluate, None)
    add_out(evaluate, "evaluation")
    evaluate.add_argument(
        "--attacks",
        nargs="+",
        default=["standard"],
        metavar="NAME",
        help="suites and attacks (default: standard)",
    )
    evaluate.add_argument(
        "--eps",
        type=eps,
        metavar="E",
        help="radius of the attacks (default: the recipe's, as 8/255)",
    )
    evaluate.add_argument(
        "--norm", choices=("inf", "2"), default="inf", help="of the ball (default: inf)"
    )
    evaluate.add_argument(
        "--eps-sweep",
        type=eps,
        nargs="+",
        default=[],
        metavar="E",
        help="also take the worst case at these radii",
    )
    add_images(evaluate)
    evaluate.add_argument(
        "--checks",
        type=count,
        default=128,
        metavar="N",
        help="images to look for masking on; 0: none (default: 128)",
    )
    evaluate.add_argument(
        "--cascade",
        action="store_true",
        help="give each attack only what those before it have left: faster",
    )
    evaluate.add_argument(
        "--save-adversarial",
        action="store_true",
        help="keep the adversarial images, for compare --evaluation",
    )
    add_measuring(evaluate)

    intervene = _command(
        menu,
        "intervene",
        commands.intervene,
        "test relevance: suppress channels, see what is lost",
        "Suppress channels of trained networks at test time: the most negatively relevant (NR), the most positively\n"
        "relevant (PR) or random ones first. Measure natural accuracy, and robust accuracy under an attack that sees\n"
        "it. Write tables (CSV), figures (PDF, PNG) and meta.json: curves, a league of relevance scorers, and the\n"
        'verdict "C4 by intervention": does a network get more robust without its NR channels?',
        "channelscope intervene --models at.pt cifs.pt --scorer weights gradient ablation\n"
        "  channelscope intervene --models zoo:cifar10-at --layers layer3 layer4 --data cifar10 --images 200",
    )
    add_models(intervene)
    add_data(intervene, None)
    add_out(intervene, "intervention")
    add_layers(intervene)
    intervene.add_argument(
        "--scorer",
        dest="scorers",
        nargs="+",
        choices=SCORERS,
        default=["gradient"],
        metavar="NAME",
        help="as 'channelscope relevance --help' lists them (default: gradient)",
    )
    add_attack(intervene)
    intervene.add_argument(
        "--fractions",
        type=share,
        nargs="+",
        default=[0.125, 0.25, 0.5, 0.75],
        metavar="F",
        help="shares of the channels to suppress, beside none and all (default: 0.125 0.25 0.5 0.75)",
    )
    intervene.add_argument(
        "--random",
        type=positive,
        default=3,
        metavar="N",
        help="random orders to compare with (default: 3)",
    )
    intervene.add_argument(
        "--relevant-to",
        choices=("answer", "label"),
        default="answer",
        help="relevance to the class that the network answers, or that is true: an oracle (default: answer)",
    )
    add_images(intervene, 500)
    add_replicates(intervene, 500)
    add_measuring(intervene)

    figures = _command(
        menu,
        "figures",
        commands.figures,
        "draw a comparison's figures again",
        "Draw the figures and the report of a comparison again, from its tables alone. Beside each figure lies\n"
        "what it shows (.csv), and captions.txt has the captions; other figures that lie there stay.",
        "channelscope figures comparison\n  channelscope figures comparison --style icml --only c1,c3 --formats svg",
    )
    figures.add_argument("folder", metavar="DIR", help="folder that 'channelscope compare' wrote")
    figures.add_argument(
        "--style", metavar="NAME", help="width and fonts of a paper: default, icml, neurips or ieee"
    )
    figures.add_argument(
        "--wide", action="store_true", help="as wide as the paper's text rather than one column"
    )
    figures.add_argument(
        "--latex", action="store_true", help="let LaTeX set the text; captions.tex has the captions"
    )
    figures.add_argument(
        "--only",
        nargs="+",
        default=(),
        metavar="WHAT",
        help="claims (c1 to c4), kinds (magnitude) or names of figures (magnitude-cat)",
    )
    figures.add_argument(
        "--formats",
        nargs="+",
        default=("pdf", "png"),
        metavar="NAME",
        help="pdf, png, svg (default: pdf png)",
    )
    add_quiet(figures)

    demo = _command(
        menu,
        "demo",
        commands.demo,
        "train three networks on digits and compare them",
        "Train a standard, an AT and a CIFS network on scikit-learn's handwritten digits and compare them. Nothing is\n"
        "downloaded; a run that was interrupted goes on, and networks that are complete are used again.",
        "channelscope demo",
    )
    add_out(demo, "channelscope-demo")
    demo.add_argument(
        "--seed",
        type=seed,
        default=0,
        metavar="S",
        help="of weights, images and attacks (default: 0)",
    )
    add_quiet(demo)

    convert = _command(
        menu,
        "convert",
        commands.convert,
        "turn another program's network file into a checkpoint",
        "Turn a network saved by another program into a checkpoint. cifs-release: a CIFAR ResNet (CIFS, CAS or plain) "
        "of\nthe CIFS authors' code.",
        "channelscope convert --from cifs-release ckp_best.pt cifs.pt",
    )
    convert.add_argument(
        "--from", dest="source", required=True, choices=("cifs-release",), help="where FILE is from"
    )
    convert.add_argument("file", metavar="FILE", help="file to read; nothing in it is run")
    convert.add_argument("out", metavar="OUT", help="checkpoint to write")
    convert.add_argument(
        "--method",
        metavar="METHOD",
        choices=METHODS,
        help="how it was trained, where the file cannot tell (as in train)",
    )

    relevance = _command(
        menu,
        "relevance",
        inspection.relevance,
        "score how relevant channels are to the classes",
        "Score how relevant each channel is to each class: above 0 it speaks for the class (positively relevant, PR),\n"
        "below against it (NR). Writes a folder: relevance.csv, agreement.csv (do scorers rank the channels alike?),\n"
        "meta.json and a figure of the agreement. A scorer that does not apply to a layer is left out there.\n\n"
        + scorers(),
        "channelscope relevance --models at.pt cifs.pt --scorer gradient ablation integrated-gradients\n"
        "  channelscope relevance --models zoo:cifar10-at --layers 'layer[34].*' --data cifar10 --images 500",
    )
    add_models(relevance)
    add_data(relevance, None)
    add_out(relevance, "relevance")
    add_layers(relevance)
    relevance.add_argument(
        "--scorer",
        nargs="+",
        choices=SCORERS,
        default=["gradient", "gradient-x-activation", "ablation"],
        metavar="NAME",
        help="see above (default: gradient gradient-x-activation ablation)",
    )
    add_images(relevance)
    add_replicates(relevance, 200)
    add_measuring(relevance)

    layers = _command(
        menu,
        "layers",
        inspection.layers,
        "list a network's layers",
        "List the layers that can be captured, by name, with their channels and shapes; or those that patterns match,\n"
        "in which * stands for anything but a dot: layer4.* are the blocks of layer4.",
        "channelscope layers cifs.pt\n"
        "  channelscope layers zoo:cifar10-at 'layer4.*' 'layer?.0.conv1'\n"
        "  channelscope layers torchvision:convnext_tiny 'features.*'",
    )
    layers.add_argument(
        "model",
        metavar="MODEL",
        help="checkpoint, zoo:NAME; or torchvision:NAME, timm:NAME, with random weights",
    )
    layers.add_argument(
        "patterns", nargs="*", metavar="PATTERN", help="names, or patterns (default: all layers)"
    )
    layers.add_argument("--image-size", type=positive, metavar="S", help="look at images of S x S")

    _command(
        menu,
        "zoo",
        commands.zoo,
        "list the trained networks that ship with the package",
        "List the trained networks that ship with the package: how robust each was measured to be, what it was\n"
        "trained on and by which recipe. Their names stand for files: --models zoo:NAME, cs.load('zoo:NAME').",
        "channelscope zoo\n"
        "  channelscope compare --models zoo:cifar10-standard zoo:cifar10-at zoo:cifar10-cifs \\\n"
        "      --data cifar10 --download",
    )

    doctor = _command(
        menu,
        "doctor",
        commands.doctor,
        "look for what is missing or broken here",
        "Look at versions, devices, threads, data, disks, memory and the package's own files, and say in words what\n"
        "is amiss and what to do about it. Optional packages, data sets and GPUs that are not there are no trouble.\n"
        "Add what it prints to a report of a fault: it names folders (your home folder as ~), and of the environment\n"
        "only what it lists. Exit status: 0 nothing is amiss, 1 something is. It takes some seconds.",
        "channelscope doctor\n  channelscope doctor --data-root ~/datasets > doctor.txt",
    )
    add_data_root(doctor)
    return parser


def _command(
    menu: Any,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    summary: str,
    description: str,
    example: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = menu.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"examples:\n  {example}" if "\n" in example else f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser
