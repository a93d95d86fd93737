"""What scorers of relevance cost beside a forward pass, and beside the passes that they state.

    python -m benchmarks.relevance [--images N] [--rounds R] [--threads T] [--json FILE]

The task: the relevance of the channels of the 8 blocks of ``zoo:cifar10-cifs``, a ResNet-18 of
width 16 with a gate behind each of its last two blocks, over N random images, for every scorer over
those of these layers that it applies to. Scorers and forward passes run in turn, R times; `ratio`
is the median of the R ratios of CPU time, `stated` what the scorer's cost says.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import channelscope as cs
from benchmarks.timing import (
    compare_times,
    describe_machine,
    make_parser,
    measure_in_turn,
    write_report,
)
from channelscope.layers.channels import channel_axis
from channelscope.layers.hooks import eval_mode, trace
from channelscope.scorers import list_scorers

BLOCKS = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
# Of the scorers that do not apply to all blocks.
LAYERS = {
    "weights": ["layer4.1.gated"],
    "probe": ["layer4.0", "layer4.1"],
    "deeplift": ["layer4.1.gated"],
}


def measure_costs(net: nn.Module, x: Tensor, y: Tensor, rounds: int) -> dict[str, dict[str, Any]]:
    """Measure every scorer beside a forward pass: scorer -> layers, stated, ratio, quartiles."""
    channels = {
        call.name: call.output.shape[channel_axis(net, call.name, call.output.shape)]
        for call in trace(net, x[:2])[0]
    }

    def run_forward() -> None:
        with eval_mode(net), torch.no_grad():
            net(x)

    costs = {}
    for scorer in list_scorers():
        layers = LAYERS.get(scorer.name, BLOCKS)
        scorer(net, layers, x[:2], y[:2])  # captum's import is no part of it
        ways = {"forward": run_forward, "scorer": partial(scorer, net, layers, x, y)}
        times = measure_in_turn(ways, rounds)
        ratio = compare_times(times["scorer"], times["forward"], "cpu")
        stated = scorer.cost.of([channels[layer] for layer in layers])
        costs[scorer.name] = {"layers": len(layers), "stated": stated, "ratio": ratio.pop("median")}
        costs[scorer.name] |= ratio
    return costs


def main() -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument(
        "--images", type=int, default=128, help="images, all in one batch (default: %(default)s)"
    )
    options = parser.parse_args()
    if options.images < 2 or options.rounds < 2:
        parser.error("at least two images and two rounds are needed")
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    machine = describe_machine()
    x = torch.rand(options.images, 3, 32, 32)
    net = cs.load("zoo:cifar10-cifs")
    with cs.attached(net):  # the costlier way: gradients through the masks
        costs = measure_costs(net, x, torch.arange(len(x)) % 10, options.rounds)
    print(
        f"{'scorer':23}  layers  measured  stated  (forward passes of {options.images} images, "
        f"{options.rounds} rounds)"
    )
    for name, row in costs.items():
        print(f"{name:23}  {row['layers']:6}  {row['ratio']:8.1f}  {row['stated']:6}")
    write_report({"scorers": costs}, machine, options.json)


if __name__ == "__main__":
    main()
