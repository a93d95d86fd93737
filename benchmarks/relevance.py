"""What scorers of relevance cost beside a forward pass, and beside the passes that they state.

    python -m benchmarks.relevance [--images N] [--rounds R] [--threads T] [--json FILE]

The task: the relevance of the channels of the 8 blocks of a ResNet-18 of width 16 with a gate
behind its last two blocks, over N random images of 32 x 32, for every scorer over those of these
layers that it applies to. Scorers and forward passes run in turn, R times; `ratio` is the median of
the R ratios of CPU time, `stated` what the scorer's cost says.
"""

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.training import CLASSES, machine, resnet18, seconds, spread, with_gates
from channelscope.layers.channels import channel_axis
from channelscope.layers.hooks import eval_mode, trace
from channelscope.scorers import list_scorers

WIDTH, SIZE = 16, 32
BLOCKS = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
OF = {
    "weights": ["layer4.1.gated"],
    "probe": ["layer4.0", "layer4.1"],
    "deeplift": ["layer4.1.gated"],
}


def costs(net: nn.Module, x: Tensor, y: Tensor, rounds: int) -> dict[str, dict[str, Any]]:
    """Measure every scorer beside a forward pass: scorer -> layers, stated, ratio, quartiles."""
    channels = {
        call.name: call.output.shape[channel_axis(net, call.name, call.output.shape)]
        for call in trace(net, x[:2])[0]
    }
    found = {}
    for scorer in list_scorers():
        layers = OF.get(scorer.name, BLOCKS)
        scorer(net, layers, x[:2], y[:2])  # captum's import is no part of it
        ratios = []
        for _ in range(rounds):
            with eval_mode(net), torch.no_grad():
                bare = seconds(lambda: net(x))["cpu"]
            ratios.append(seconds(partial(scorer, net, layers, x, y))["cpu"] / bare)
        stated = scorer.cost.of([channels[layer] for layer in layers])
        found[scorer.name] = {
            "layers": len(layers),
            "stated": stated,
            "ratio": statistics.median(ratios),
        } | spread(ratios)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=int, default=128, help="images, all in one batch (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="runs of each, 2 at least (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of torch (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    if options.images < 2 or options.rounds < 2:
        parser.error("at least two images and two rounds are needed")
    torch.set_num_threads(options.threads)
    x = torch.rand(options.images, 3, SIZE, SIZE)
    found = costs(
        with_gates(resnet18(WIDTH), WIDTH).eval(), x, torch.arange(len(x)) % CLASSES, options.rounds
    )
    print(
        f"{'scorer':23}  layers  measured  stated  (forward passes of {options.images} images, "
        f"{options.rounds} rounds)"
    )
    for name, row in found.items():
        print(f"{name:23}  {row['layers']:6}  {row['ratio']:8.1f}  {row['stated']:6}")
    if options.json:
        made = {
            "command": f"python -m benchmarks.relevance --images {options.images} "
            f"--rounds {options.rounds} --threads {options.threads}",
            "machine": machine(),
        }
        options.json.write_text(
            json.dumps({"made": made, "scorers": found}, indent=1) + "\n", "utf-8"
        )


if __name__ == "__main__":
    main()
