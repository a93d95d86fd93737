"""Losses: per image, the papers' own, of gated and plain networks, with their gradients."""

from collections.abc import Callable
from functools import partial
from itertools import permutations, product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
from channelscope.attacks import PGD
from channelscope.errors import UserError
from channelscope.gates import KINDS, Probed, Selective
from channelscope.objectives import (
    MART,
    TRADES,
    CrossEntropy,
    Joint,
    TrainingLoss,
    cross_entropy,
    dlr,
    kl_divergence,
    margin,
)
from helpers.networks import (
    CLASSES,
    FORMS,
    Returns,
    gated,
    images,
    plain,
    randomise_batchnorm,
    resnet,
)

BETAS = (0.0, 0.1, 1.0, 2.0, 10.0, 100.0)
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def naive_joint(net: nn.Module, x: Tensor, y: Tensor, beta: float) -> Tensor:
    """Give the paper's loss of every image, from the network's logits and its probes' one."""
    answer = net.probed(x, y)
    probes = list(answer.probes.values())
    losses = [
        reference.joint_loss(logits, [p[i] for p in probes], int(y[i]), beta)
        for i, logits in enumerate(answer.logits)
    ]
    return torch.stack(losses)


def test_cross_entropy_is_per_image() -> None:
    net, (x, y) = plain().double(), images(dtype=torch.float64)
    naive = [
        reference.cross_entropy(logits, int(label)) for logits, label in zip(net(x), y, strict=True)
    ]
    torch.testing.assert_close(cross_entropy(net, x, y), torch.stack(naive))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_losses_take_networks_that_return_anything(form: object) -> None:
    net, (x, y) = Returns(form), images()
    torch.testing.assert_close(cross_entropy(net, x, y), cross_entropy(net.net, x, y))
    torch.testing.assert_close(Joint()(net, x, y), cross_entropy(net.net, x, y))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("beta", BETAS)
def test_joint_loss_is_that_of_the_paper_with_its_gradients(beta: float, training: bool) -> None:
    net, (x, y) = gated().double().train(training), images(dtype=torch.float64)
    x.requires_grad_()
    wanted = [x, *net.parameters()]
    ours, papers = Joint(beta)(net, x, y), naive_joint(net, x, y, beta)
    torch.testing.assert_close(ours, papers)
    slopes = [torch.autograd.grad(loss.sum(), wanted, allow_unused=True) for loss in (ours, papers)]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("beta", BETAS)
def test_joint_loss_of_a_plain_network_is_its_scaled_cross_entropy(beta: float) -> None:
    net, (x, y) = resnet(), images()
    torch.testing.assert_close(Joint(beta)(net, x, y), 3 / (beta + 1) * cross_entropy(net, x, y))


def test_joint_loss_of_the_paper_counts_every_probe_as_much_as_the_logits() -> None:
    net, (x, y) = gated(), images()
    probes = net.probed(x, y).probes.values()
    wanted = cross_entropy(net, x, y) + sum(
        nn.functional.cross_entropy(p, y, reduction="none") for p in probes
    )
    torch.testing.assert_close(Joint()(net, x, y), wanted)


def test_joint_loss_of_a_gated_network_without_gates_has_the_first_term_only() -> None:
    cnn, (x, y) = resnet(), images()
    torch.testing.assert_close(Joint()(Selective(cnn, {}).eval(), x, y), cross_entropy(cnn, x, y))


def test_joint_loss_of_infinite_beta_is_that_of_the_probes_alone() -> None:
    net, (x, y) = gated(), images()
    probes = net.probed(x, y).probes.values()
    wanted = 1.5 * sum(nn.functional.cross_entropy(p, y, reduction="none") for p in probes)
    torch.testing.assert_close(Joint(float("inf"))(net, x, y), wanted)


def test_joint_loss_of_infinite_beta_has_no_trace_of_the_logits() -> None:
    class Infinite(nn.Module):
        def probed(self, x: Tensor, labels: Tensor | None = None) -> Any:
            return self

        def heads(self, y: Tensor) -> list[list[tuple[Tensor, Tensor]]]:
            return [[(torch.zeros(len(y), CLASSES), y)]]

        logits = torch.tensor([[-torch.inf, 0, 0, 0, 0]] * 2)  # as of a network in half precision

    found = Joint(float("inf"))(Infinite(), torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(
        found, torch.full((2,), 3 * torch.tensor(float(CLASSES)).log().item())
    )


@pytest.mark.parametrize(
    "make", [plain, lambda: Selective(resnet(), {}).eval()], ids=["plain", "no gates"]
)
def test_joint_loss_of_infinite_beta_without_gates_is_the_cross_entropy(
    make: Callable[[], nn.Module],
) -> None:
    net, (x, y) = make(), images()
    torch.testing.assert_close(Joint(float("inf"))(net, x, y), cross_entropy(net, x, y))


# ---------------------------------------------------------------- margins


@pytest.mark.parametrize("objective", [margin, dlr], ids=["margin", "dlr"])
def test_margins_are_those_of_the_papers_with_their_gradients(objective: Any) -> None:
    net, (x, _) = plain().double(), images(20, dtype=torch.float64)
    y = torch.arange(20) % CLASSES
    x.requires_grad_()
    naive = []
    for logits, label in zip(net(x), y.tolist(), strict=True):
        largest = sorted(logits, key=lambda value: -value.item())
        other = max(
            (logits[k] for k in range(CLASSES) if k != label), key=lambda value: value.item()
        )
        apart = other - logits[label]
        naive.append(apart if objective is margin else apart / (largest[0] - largest[2]))
    ours, papers = objective(net, x, y), torch.stack(naive)
    torch.testing.assert_close(ours, papers)
    slopes = [torch.autograd.grad(loss.sum(), x)[0] for loss in (ours, papers)]
    torch.testing.assert_close(*slopes)
    assert torch.equal(ours > 0, net(x).argmax(1) != y)
    assert (ours > 0).any()
    assert (ours < 0).any()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("objective", [margin, dlr], ids=["margin", "dlr"])
def test_margins_take_networks_that_return_anything(objective: Any, form: object) -> None:
    net, (x, y) = Returns(form), images()
    torch.testing.assert_close(objective(net, x, y), objective(net.net, x, y))


@given(
    st.lists(
        st.lists(st.integers(-50, 50), min_size=4, max_size=4, unique=True), min_size=1, max_size=5
    ),
    st.floats(0.1, 10),
    st.floats(-100, 100),
)
def test_dlr_changes_with_neither_scale_nor_shift(
    rows: list[list[int]], scale: float, shift: float
) -> None:
    z, y = torch.tensor(rows, dtype=torch.float64), torch.zeros(len(rows), dtype=torch.int64)
    net = nn.Identity()  # the images are the logits
    torch.testing.assert_close(dlr(net, scale * z + shift, y), dlr(net, z, y), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        margin(net, scale * z + shift, y), scale * margin(net, z, y), rtol=1e-6, atol=1e-9
    )


def test_dlr_is_finite_where_the_logits_are_equal() -> None:
    z = torch.zeros(2, CLASSES, requires_grad=True)
    found = dlr(nn.Identity(), z, torch.tensor([0, 3]))
    assert torch.equal(found, torch.zeros(2))
    assert torch.autograd.grad(found.sum(), z)[0].isfinite().all()


@pytest.mark.parametrize("classes", [1, 2])
def test_dlr_of_fewer_than_three_classes_is_refused(classes: int) -> None:
    with pytest.raises(UserError, match=f"this network has {classes}: use the margin"):
        dlr(nn.Identity(), torch.zeros(2, classes), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("beta", "name"),
    [
        (2.0, "joint"),
        (0.5, "joint0.5"),
        (10, "joint10"),
        (0.0, "joint0"),
        (float("inf"), "jointinf"),
    ],
)
def test_objectives_have_short_names(beta: float, name: str) -> None:
    assert str(Joint(beta)) == name


# ---------------------------------------------------------------- what training minimises


def selective(kind: str, layers: dict[str, dict[str, Any]]) -> Selective:
    """Make a small ResNet-18 with gates of a kind, each of its layer's number of channels."""
    gates = {layer: KINDS[kind].build(16, CLASSES, **options) for layer, options in layers.items()}
    return randomise_batchnorm(Selective(resnet("resnet18"), gates))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": resnet,
    "cifs": gated,
    "cas": lambda: gated(k=1, imgf="identity"),
    "fsr": lambda: selective("fsr", {"layer4": {"hidden": 3, "tau": 1.0}}),
    "eas": lambda: selective("eas", {"layer4.0": {"height": 1, "width": 1}}),
    "cifs and fsr": lambda: randomise_batchnorm(
        Selective(
            resnet("resnet18"),
            {
                "layer4.0": KINDS["cifs"].build(16, CLASSES),
                "layer4.1": KINDS["fsr"].build(16, CLASSES, hidden=3, tau=1.0),
            },
        )
    ),
    "kap": lambda: selective("kap", {"layer4.1": {}}),
}
WEIGHTS: list[dict[str, Any]] = [
    {},
    {"beta": 0.5, "smoothing": 0.1},
    {"beta": 0.7, "scaled": False, "trade_off": 2.5},
]


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Draw natural images, others near them, and labels."""
    x, y = images(4, dtype=dtype)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
    return x, (x + 0.4 * (noise - 0.5)).clamp(0, 1), y


def naive_heads(net: nn.Module, x: Tensor, y: Tensor) -> list[list[tuple[Tensor, list[int]]]]:
    """List the network's own head and those of each gate: logits, and each image's target."""
    labels = y.tolist()
    if not isinstance(net, Selective):
        return [[(net(x), labels)]]
    answer: Probed = net.probed(x, y)
    heads = [[(answer.logits, labels)]]
    rivals = [
        reference.rival(logits, label) for logits, label in zip(answer.logits, labels, strict=True)
    ]
    for gate in answer.selections.values():
        own = [] if gate.probe_logits is None else [gate.probe_logits]
        heads.append(
            [(p, labels) for p in (*own, *gate.extra)] + [(p, rivals) for p in gate.rivals]
        )
    return [gate for gate in heads if gate]


def naive_loss(loss: Any, net: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """Give the paper's loss of every image, head by head."""
    clean = naive_heads(net, x, y) if not isinstance(loss, CrossEntropy) else None
    attacked, per_image = naive_heads(net, x_adv, y), []
    for i in range(len(y)):
        values: list[list[Tensor]] = []
        for g, gate in enumerate(attacked):
            values.append([])
            for h, (logits, targets) in enumerate(gate):
                if clean is None:
                    value = reference.smoothed_cross_entropy(logits[i], targets[i], loss.smoothing)
                else:
                    natural, of_natural = clean[g][h]
                    target = of_natural[i] if isinstance(loss, TRADES) else targets[i]
                    of_final = reference.log_probabilities(clean[0][0][0][i])
                    right = torch.exp(of_final[int(y[i])])
                    paper = partial(reference.mart, right=right)
                    if isinstance(loss, TRADES):
                        paper = reference.trades
                    value = paper(natural[i], logits[i], target, loss.trade_off, loss.smoothing)
                values[-1].append(value)
        per_image.append(reference.of_all_heads(values[0][0], values[1:], loss.beta, loss.scaled))
    return torch.stack(per_image)


CASES = [
    *product(("plain", "cifs", "fsr"), WEIGHTS),
    *product(("cas", "eas", "cifs and fsr", "kap"), WEIGHTS[2:]),
]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", [CrossEntropy, TRADES, MART])
@pytest.mark.parametrize(("network", "weights"), CASES, ids=str)
def test_training_losses_are_those_of_the_papers_with_their_gradients(
    network: str, kind: Any, weights: dict[str, Any], training: bool
) -> None:
    loss = kind(
        **{
            name: value
            for name, value in weights.items()
            if name != "trade_off" or kind is not CrossEntropy
        }
    )
    net, (x, x_adv, y) = NETWORKS[network]().double().train(training), batch()
    wanted = [x.requires_grad_(), x_adv.requires_grad_(), *net.parameters()]
    found = []
    for value in (lambda: loss(net, x, x_adv, y), lambda: naive_loss(loss, net, x, x_adv, y)):
        torch.manual_seed(5)  # FSR draws noise in training
        values = value()
        slopes = torch.autograd.grad(
            values.sum(), wanted, allow_unused=True, materialize_grads=True
        )
        found.append((values, *slopes))
    for ours, papers in zip(*found, strict=True):
        torch.testing.assert_close(ours, papers, **EXACT)
    assert found[0][2].abs().max() > 0


def test_standard_and_adversarial_training_ignore_the_natural_images() -> None:
    net, (x, x_adv, y) = gated(), batch(torch.float32)
    torch.testing.assert_close(CrossEntropy()(net, x, x_adv, y), Joint()(net, x_adv, y))
    torch.testing.assert_close(CrossEntropy()(net, 1 - x, x_adv, y), Joint()(net, x_adv, y))


def test_a_trade_off_of_nothing_leaves_the_fit() -> None:
    net, (x, x_adv, y) = plain(), batch(torch.float32)
    torch.testing.assert_close(TRADES(trade_off=0)(net, x, x_adv, y), cross_entropy(net, x, y))
    own = net(x_adv).softmax(1)
    others = own.scatter(1, y.unsqueeze(1), 0).amax(1)
    wanted = cross_entropy(net, x_adv, y) - torch.log1p(-others)
    torch.testing.assert_close(MART(trade_off=0)(net, x, x_adv, y), wanted)


def test_the_published_weights_are_the_defaults() -> None:
    assert (TRADES().trade_off, MART().trade_off) == (6, 5)
    assert all(
        (loss.beta, loss.beta_atk, loss.scaled) == (2, 2, True)
        for loss in (TRADES(), MART(), CrossEntropy())
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 1.0])
def test_label_smoothing_mixes_the_label_with_all_classes(smoothing: float) -> None:
    net, (x, _, y) = resnet().double(), batch()
    target = (1 - smoothing) * nn.functional.one_hot(y, CLASSES).double() + smoothing / CLASSES
    wanted = -(target * net(x).log_softmax(1)).sum(1)
    torch.testing.assert_close(CrossEntropy(smoothing=smoothing)(net, x, x, y), wanted, **EXACT)
    torch.testing.assert_close(
        TRADES(smoothing=smoothing, trade_off=3)(net, x, x, y), wanted, **EXACT
    )


# ---------------------------------------------------------------- extreme logits


logits = st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=2, max_size=2)


@given(logits, st.floats(-1e3, 1e3))
def test_the_divergence_is_that_of_the_definition(pair: list[list[float]], shift: float) -> None:
    p, q = torch.tensor(pair, dtype=torch.float64).unsqueeze(1)
    found, wanted = kl_divergence(p, q), reference.divergence(p[0], q[0])
    torch.testing.assert_close(found, wanted.unsqueeze(0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(kl_divergence(p + shift, q), found, rtol=1e-9, atol=1e-9)
    assert found >= -1e-12
    assert abs(kl_divergence(p, p).item()) < 1e-15


EXTREME = [(1e4, -1e4, 0.0), (1e4, 1e4, -1e4), (-1e4, -1e4, -1e4), (1e4, 0.0, 0.0)]
CORNERS = sorted({order for row in EXTREME for order in permutations(row)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "loss",
    [kind(smoothing=s) for kind in (CrossEntropy, TRADES, MART) for s in (0.0, 0.1)],
    ids=str,
)
def test_losses_and_gradients_are_finite_whatever_the_logits(
    loss: TrainingLoss, dtype: torch.dtype
) -> None:
    pairs = [(p, q, y) for p in CORNERS for q in CORNERS for y in range(3)]
    p, q = (
        torch.tensor([pair[i] for pair in pairs], dtype=dtype).requires_grad_() for i in range(2)
    )
    y = torch.tensor([label for _, _, label in pairs])
    net = nn.Identity()  # the images are the logits
    values = loss(net, p, q, y)
    slopes = torch.autograd.grad(values.sum(), (p, q), allow_unused=True, materialize_grads=True)
    assert values.isfinite().all()
    assert values.min() > -1e-2
    assert all(slope.isfinite().all() for slope in slopes)
    divergence = loss.attacked(net, p.detach())(net, q, y)
    (slope,) = torch.autograd.grad(divergence.sum(), q)
    assert divergence.isfinite().all()
    assert slope.isfinite().all()


@pytest.mark.parametrize(
    ("loss", "natural", "adversarial", "wanted"),
    [
        (TRADES(), (1e4, -1e4), (1e4, -1e4), 0.0),
        (TRADES(), (1e4, -1e4), (-1e4, 1e4), 6 * 2e4),
        (TRADES(), (-1e4, 1e4), (-1e4, 1e4), 2e4),
        (MART(), (1e4, -1e4), (1e4, -1e4), 0.0),
        (MART(), (1e4, -1e4), (-1e4, 1e4), 2e4 + 2e4),
        (MART(), (-1e4, 1e4), (-1e4, 1e4), 2e4 + 2e4),
        (MART(), (-1e4, 1e4), (1e4, -1e4), 5 * 2e4),
    ],
)
def test_losses_of_extreme_logits_are_right(
    loss: TrainingLoss, natural: tuple[float, ...], adversarial: tuple[float, ...], wanted: float
) -> None:
    p, q = torch.tensor([natural]), torch.tensor([adversarial])
    assert loss(nn.Identity(), p, q, torch.tensor([0])).item() == pytest.approx(wanted)


# ---------------------------------------------------------------- what is attacked


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", [CrossEntropy, MART])
def test_attacks_of_these_losses_maximise_the_joint_loss(kind: Any, network: str) -> None:
    net, (x, x_adv, y) = NETWORKS[network](), batch(torch.float32)
    found = kind(beta=7.0, beta_atk=0.5).attacked(net, x)(net, x_adv, y)
    torch.testing.assert_close(found, Joint(0.5)(net, x_adv, y))


@pytest.mark.parametrize("network", NETWORKS)
def test_attacks_of_trades_maximise_the_divergence_from_the_natural_answers(network: str) -> None:
    net, (x, x_adv, y) = NETWORKS[network]().double(), batch()
    objective = TRADES(trade_off=3, beta=7.0, beta_atk=0.5).attacked(net, x.requires_grad_())
    values = objective(net, x_adv.requires_grad_(), y)
    (slope,) = torch.autograd.grad(values.sum(), x_adv, retain_graph=True)
    natural = [[logits.detach() for logits, _ in gate] for gate in naive_heads(net, x, y)]
    attacked, per_image = naive_heads(net, x_adv, y), []
    for i in range(len(y)):
        heads = [
            [reference.divergence(p[i], q[i]) for p, (q, _) in zip(*pair, strict=True)]
            for pair in zip(natural, attacked, strict=True)
        ]
        per_image.append(reference.of_all_heads(heads[0][0], heads[1:], 0.5, scaled=True))
    wanted = torch.stack(per_image)
    torch.testing.assert_close(values, wanted, **EXACT)
    torch.testing.assert_close(slope, torch.autograd.grad(wanted.sum(), x_adv)[0], **EXACT)
    assert torch.autograd.grad(values.sum(), x, allow_unused=True)[0] is None, (
        "the natural answers are constant"
    )


def test_the_divergence_of_some_images_is_theirs() -> None:
    net, (x, x_adv, y) = gated(), batch(torch.float32)
    objective, some = TRADES().attacked(net, x), torch.tensor([3, 1])
    torch.testing.assert_close(
        objective.rows(some)(net, x_adv[some], y[some]), objective(net, x_adv, y)[some]
    )


@pytest.mark.parametrize("early_stop", [None, 0, 1])
def test_trades_is_attacked_to_where_the_answer_is_another(early_stop: int | None) -> None:
    net, (x, _, y) = gated(), batch(torch.float32)
    objective = TRADES().attacked(net, x)
    attack = PGD(eps=0.2, steps=10, random_start=0.001, objective=objective, early_stop=early_stop)
    start = PGD(eps=0.2, steps=1, step=0.0, random_start=0.001, objective=objective)
    near, found = (each(net, x, y, torch.Generator().manual_seed(0)) for each in (start, attack))
    before, after = objective(net, near, y), objective(net, found, y)
    right = net(x).argmax(1) == y
    assert right.any()
    assert (after[right] > before[right]).all()
    if early_stop == 0:
        assert torch.equal(found[~right], near[~right]), (
            "an image that is misclassified is not attacked"
        )
