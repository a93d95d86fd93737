"""What channels see: planted ones that respond to one colour and to edges of one direction."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import channelscope as cs
from channelscope.attacks import PGD
from helpers.networks import unchanged

EPS = 0.1
BALL = PGD(eps=EPS, steps=10, random_start=False)


def planted() -> nn.Sequential:
    """Channel 0 responds to red, less of the others; 1 to vertical edges, 2 to horizontal ones."""
    net = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular", bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 2),
    )
    with torch.no_grad():
        weight = net[0].weight.zero_()
        weight[0, :, 1, 1] = torch.tensor([1.0, -0.5, -0.5])
        weight[1, :, 1, 1:] = torch.tensor([1.0, -1.0])
        weight[2, :, 1:, 1] = torch.tensor([1.0, -1.0])
        net[4].weight.copy_(torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]]))
    return net


def drawn(n: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return 0.3 + 0.4 * torch.rand(n, 3, 16, 16, generator=generator), torch.arange(n) % 2


@pytest.fixture(scope="module")
def views() -> "cs.visualisation.Visualisations":
    nets = {"first": planted(), "second": planted()}
    with unchanged(nets["first"]):
        return cs.visualise(nets, "1", [0, 1, 2], drawn(), steps=100, attack=BALL)


def steepness(image: Tensor) -> tuple[float, float]:
    """Return the mean absolute difference between neighbours: across, and down."""
    return tuple(float((image - image.roll(1, axis)).abs().mean()) for axis in (2, 1))


def test_from_noise_a_channel_of_one_colour_gives_that_colour(views):
    red, green, blue = views.models["first"].noise[0].mean((1, 2))
    assert red > 0.9
    assert max(green, blue) < 0.1


def test_from_noise_a_channel_of_one_edge_direction_gives_such_edges(views):
    across, down = steepness(views.models["first"].noise[1])
    assert across > 1.7 * down
    across, down = steepness(views.models["first"].noise[2])
    assert down > 1.7 * across


def test_from_a_natural_image_the_ball_is_searched_to_its_end(views):
    own = views.models["first"]
    change = own.driven - own.start
    assert change.abs().max() <= EPS + 1e-6
    # Where the channel is active at all, red rises and the others fall, as far as they may.
    active = (own.start[0] * torch.tensor([1.0, -0.5, -0.5]).view(3, 1, 1)).sum(0) > 0
    expected = torch.tensor([EPS, -EPS, -EPS])
    torch.testing.assert_close(
        change[0][:, active].T, expected.expand(int(active.sum()), 3), atol=1e-5, rtol=0
    )


def test_activations_are_those_of_the_images(views):
    own, table = views.models["second"], views.table
    rows = table[table["model"] == "second"].reset_index(drop=True)
    with torch.no_grad():
        for name in ("noise", "start", "driven"):
            a = planted()[:2](getattr(own, name)).mean((2, 3)).diagonal()
            assert rows[name].to_numpy() == pytest.approx(a.numpy(), rel=1e-5)
        natural = planted()[:2](drawn()[0]).mean((2, 3)).amax(0)
    assert rows["natural"].to_numpy() == pytest.approx(natural.numpy(), rel=1e-5)
    assert (rows["driven"] > rows["start"]).all()
    assert (rows["noise"] > rows["natural"]).all()


def test_references_are_ranked_by_activation_and_by_relevance_and_located(views):
    x, y = drawn()
    net = planted()
    with torch.no_grad():
        z = net[:2](x)
    a = z.mean((2, 3))
    own = views.models["first"]
    contributions = a * net[4].weight.detach()[y]
    for name, numbers in (("activation", a), ("relevance", contributions)):
        for channel in range(3):
            expected = numbers[:, channel].argsort(descending=True)[:4]
            torch.testing.assert_close(own.references[name][channel], expected)
            shown = z[expected, channel]
            shown = shown / shown.amax((1, 2), keepdim=True)
            torch.testing.assert_close(own.maps[name][channel], shown)
    # What does not speak for the class is not among the most relevant: channel 0 is of class 0.
    assert (y[own.references["relevance"][0]] == 0).all()


def test_the_seed_decides(views):
    again = cs.visualise({"first": planted()}, "1", [0, 1, 2], drawn(), steps=100, attack=BALL)
    torch.testing.assert_close(
        again.models["first"].noise, views.models["first"].noise, rtol=0, atol=0
    )
    other = cs.visualise({"first": planted()}, "1", [0], drawn(), steps=5, seed=1, attack=BALL)
    same = cs.visualise({"first": planted()}, "1", [0], drawn(), steps=5, attack=BALL)
    assert not torch.equal(other.models["first"].noise, same.models["first"].noise)


def test_channels_are_chosen_by_what_they_contribute():
    net = planted()
    with torch.no_grad():
        net[4].weight[:, 1] = 50
    views = cs.visualise({"net": net}, None, None, drawn(), steps=1, attack=BALL)
    assert views.models["net"].channels[0] == 1


def test_the_figure_has_a_row_a_channel_and_the_networks_side_by_side(views):
    figure = views.plot()
    pictures = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    assert len(pictures) == 3 * 5
    own = views.models["first"]
    second = views.models["second"].driven[0]
    np.testing.assert_allclose(pictures[1], own.noise[0].movedim(0, -1).numpy())
    np.testing.assert_allclose(pictures[4], second.movedim(0, -1).numpy())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": [3]}, "channels: .*3 channels.*no channel 3"),
        ({"channels": []}, "channels: none"),
        ({"channels": {"other": [1]}}, "channels: there is none for 'net'"),
        ({"layer": "11"}, "11"),
        ({"steps": 0}, "steps: 0"),
    ],
)
def test_mistakes_are_answered_by_a_sentence(options, words):
    with pytest.raises(cs.UserError, match=words):
        cs.visualise({"net": planted()}, **({"data": drawn(), "layer": "1"} | options))


def test_networks_side_by_side_have_as_many_channels():
    nets = {"one": planted(), "two": planted()}
    with pytest.raises(cs.UserError, match="as many"):
        cs.visualise(nets, "1", {"one": [0], "two": [0, 1]}, drawn(), steps=1, attack=BALL)


def test_other_networks_show_the_channels_that_match():
    turned = planted()
    with torch.no_grad():
        turned[0].weight.copy_(planted()[0].weight[[2, 0, 1]])
    nets = {"one": planted(), "two": turned}
    views = cs.visualise(nets, "1", [0, 1], drawn(), steps=1, attack=BALL)
    assert views.models["two"].channels == (1, 2)


def test_from_noise_a_channel_that_grey_leaves_silent_is_driven():
    net = planted()
    with torch.no_grad():
        net[0].bias = nn.Parameter(torch.tensor([-0.2, 0.0, 0.0]))
    noise = cs.visualise({"net": net}, "1", [0], drawn(), steps=100, attack=BALL).models["net"]
    assert noise.activations["noise"] > 0.5
