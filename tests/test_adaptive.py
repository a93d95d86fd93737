"""Attacks made for gated networks: they see through the gates, around them, or past them."""

import dataclasses
from math import inf
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from channelscope.attacks import (
    APGD,
    FGSM,
    PGD,
    Attack,
    Detached,
    ImageGenerators,
    JointSweep,
    MaskFrozen,
    ProbeLoss,
    Transfer,
    find_correct,
    make_generators,
)
from channelscope.attacks.adaptive import BETAS, run_cascade
from channelscope.gates import (
    KINDS,
    Selection,
    Selective,
    attached,
    detached,
    freeze_masks,
    hides_gradient,
    takes_labels,
)
from channelscope.objectives import Joint, cross_entropy
from helpers.expect import mistake, randomness_untouched
from helpers.networks import CLASSES, gated, images, plain, randomise_batchnorm, resnet

BASE = PGD(eps=0.1, steps=3)
ADAPTIVE: dict[str, Attack] = {
    "sweep": JointSweep(attack=BASE),
    "sweep of APGD": JointSweep(attack=APGD(eps=0.1, steps=3), betas=(0, inf)),
    "detached": Detached(attack=BASE),
    "detached sweep": Detached(attack=JointSweep(attack=BASE)),
    "frozen natural": MaskFrozen(attack=BASE),
    "frozen label": MaskFrozen(attack=BASE, at="label"),
    "probe": dataclasses.replace(BASE, objective=ProbeLoss("layer4.0")),
    "other probe": dataclasses.replace(BASE, objective=ProbeLoss("layer4.1")),
}


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    x, y = images(n)
    return x, y


@pytest.mark.parametrize("name", [*ADAPTIVE, "transfer"])
@pytest.mark.parametrize("kind", ["gated", "plain"])
def test_adaptive_attacks_stay_in_the_ball_and_leave_the_network_as_found(
    name: str, kind: str
) -> None:
    model = gated() if kind == "gated" else resnet()
    attack = ADAPTIVE.get(name) or Transfer(attack=BASE, source=plain(), name="plain")
    x, y = batch()
    model.train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with randomness_untouched():
        found, again = (
            attack(model, x, y, make_generators(1, "a", range(len(x)))) for _ in range(2)
        )
    assert torch.equal(found, again)
    assert (found - x).abs().max() <= 0.1 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert all(
        parameter.grad is None and parameter.requires_grad for parameter in model.parameters()
    )
    if isinstance(model, Selective):
        assert all(gate.detach for gate in model.gates.values())
        assert not any("importance" in vars(gate) for gate in model.gates.values())


def test_names() -> None:
    assert [str(attack) for attack in ADAPTIVE.values()] == [
        "pgd-3:joint-sweep",
        "apgd-ce-3:joint-sweep",
        "pgd-3:detached",
        "pgd-3:joint-sweep:detached",
        "pgd-3:frozen-natural",
        "pgd-3:frozen-label",
        "pgd-3:probe-layer4.0",
        "pgd-3:probe-layer4.1",
    ]
    assert str(Transfer(attack=FGSM(), source=plain(), name="at")) == "fgsm:from-at"


def test_sweep_attacks_the_joint_loss_at_every_weight() -> None:
    sweep = JointSweep(attack=BASE)
    assert (0, 0.1, 1, 2, 10, 100, inf) == BETAS
    assert [part.objective for part in sweep.parts] == [Joint(beta) for beta in BETAS]  # type: ignore[attr-defined]
    assert all(isinstance(part, Detached) for part in Detached(attack=sweep).parts)
    assert len(Detached(attack=sweep).parts) == len(BETAS)


def test_each_attack_gets_what_those_before_it_left() -> None:
    """A cascade returns what first breaks the network, and the natural image where nothing does."""

    class Given:
        eps = 0.1

        def __init__(self, breaks: int) -> None:
            self.breaks, self.given = breaks, list[float]()

        def __call__(self, model: nn.Module, x: Tensor, y: Tensor, generator: Any = None) -> Tensor:
            self.given += x.flatten().tolist()
            assert [own.initial_seed() for own in generator.each] == x.flatten().int().tolist()
            assert generator.initial_seed() == generator.each[0].initial_seed()
            return torch.where(x == self.breaks, -x, x)

    class Sign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.flatten(), 0 * x.flatten()], 1)

    x, y = torch.tensor([1.0, 2, 3, 4, 5]).view(-1, 1, 1, 1), torch.tensor([0, 0, 0, 0, 1])
    first, second = Given(2), Given(3)
    generators = ImageGenerators(torch.Generator().manual_seed(int(value)) for value in x.flatten())
    found = run_cascade([first, second], Sign(), x, y, generators)
    assert found.flatten().tolist() == [1, -2, -3, 4, 5]
    assert first.given == [1, 2, 3, 4]  # the fifth is wrong as it is
    assert second.given == [1, 3, 4]


class _Full(nn.Module):
    """A network that cannot answer on no images, as many cannot."""

    def forward(self, x: Tensor) -> Tensor:
        assert len(x), "no images"
        return F.one_hot(torch.zeros(len(x), dtype=torch.long), 3) + x.flatten(1)[:, :3]


@pytest.mark.parametrize("attacks", ["none before", "all left"])
def test_a_sweep_ends_where_no_image_is_right_any_more(attacks: str) -> None:
    x, network = torch.zeros(4, 3, 2, 2), _Full().eval()
    y = torch.full((4,), 1 if attacks == "none before" else 0)

    def attack(network: nn.Module, x: Tensor, y: Tensor, generator: Any = None) -> Tensor:
        del y, generator
        network(x)
        adversarial = x.clone()
        adversarial[:, 0, 0, 1] = 2  # breaks all
        return adversarial

    x_adv = run_cascade((attack, attack), network, x, y)
    assert bool((x_adv[:, 0, 0, 1] == 2).all()) == (attacks == "all left")


def test_probe_loss_is_the_cross_entropy_of_one_probe() -> None:
    model, (x, y) = gated().eval(), batch()
    probed = model.probed(x)
    for layer in ("layer4.0", "layer4.1"):
        wanted = F.cross_entropy(probed.probes[layer], y, reduction="none")
        torch.testing.assert_close(ProbeLoss(layer)(model, x, y), wanted)
    assert torch.equal(ProbeLoss(2)(model, x, y), ProbeLoss("layer4.1")(model, x, y))
    bare = resnet().eval()
    for objective in (ProbeLoss("layer4"), ProbeLoss(1)):
        torch.testing.assert_close(objective(bare, x, y), cross_entropy(bare, x, y))
    with mistake("no probe number 3: the probes are 1 at layer4.0, 2 at layer4.1"):
        ProbeLoss(3)(model, x, y)
    with mistake("no gate at layer 'layer4'", "Did you mean 'layer4."):
        ProbeLoss("layer4")(model, x, y)


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("labelled", [False, True])
def test_frozen_masks_are_those_of_the_natural_images(labelled: bool) -> None:
    """Inside, the network is what a naive one with constant masks is, and so is its gradient."""
    model, (x, y) = gated().eval().double(), batch()
    x = x.double()
    labels = y if labelled else None
    if labelled:
        for gate in model.gates.values():
            gate.training = True
    masks = {layer: mask.detach() for layer, mask in model.probed(x, labels).masks.items()}
    model.eval()
    moved = (
        x
        + 0.05
        * torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ).clamp(0, 1)
    with freeze_masks(model, x, labels):
        at = moved.clone().requires_grad_()
        logits = model(at)
        (gradient,) = torch.autograd.grad(logits.sum(), at)
        part = model(moved[:2])
    naive = moved.clone().requires_grad_()
    wanted = _masked(model.cnn, naive, masks)
    (wanted_gradient,) = torch.autograd.grad(wanted.sum(), naive)
    torch.testing.assert_close(logits, wanted)
    torch.testing.assert_close(gradient, wanted_gradient)
    torch.testing.assert_close(part, wanted[:2])
    free = model(moved)
    assert not torch.equal(free, logits)
    torch.testing.assert_close(model.probed(moved).logits, free)


def _masked(cnn: Any, x: Tensor, masks: dict[str, Tensor]) -> Tensor:
    """The ResNet's forward, with the masks multiplied after the two blocks of the last stage."""
    handles = [
        cnn.get_submodule(layer).register_forward_hook(
            lambda _m, _i, z, mask=mask: z * mask[:, :, None, None]
        )
        for layer, mask in masks.items()
    ]
    try:
        return cnn(x)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_every_gate_with_a_mask_can_be_frozen(kind: str) -> None:
    """Masks stay whatever would change them, the gate's weights too; afterwards they are free."""
    gate = KINDS[kind].build(16, CLASSES, **({"height": 1, "width": 1} if kind == "eas" else {}))
    model, (x, _) = randomise_batchnorm(Selective(resnet("resnet18"), {"layer4.1": gate})), batch()
    masks = {layer: mask.clone() for layer, mask in model.probed(x).masks.items()}
    with freeze_masks(model, x):
        with torch.no_grad():
            for parameter in gate.parameters():
                parameter.copy_(parameter.flip(0) + 1)
        held = model.probed(1 - x).masks
    assert masks.keys() == held.keys()
    for layer in masks:
        assert torch.equal(held[layer], masks[layer])
        assert not torch.equal(model.probed(x).masks[layer], masks[layer])
    assert bool(masks) == (kind != "kap")
    assert takes_labels(gate) == (kind in ("cifs", "eas"))


@pytest.mark.parametrize("attack", [PGD(early_stop=0), APGD()], ids=str)
def test_frozen_masks_take_no_early_stop(attack: Attack) -> None:
    with mistake("early_stop"):
        MaskFrozen(attack=attack)


def test_sweep_needs_an_attack_with_an_objective() -> None:
    with mistake("pgd-20:detached has no objective"):
        JointSweep(attack=Detached(attack=PGD()))


def test_hidden_gradients() -> None:
    """Only an attached gate shows the gradient through its mask; each is left as it was."""
    model, (x, _) = gated().eval(), batch()
    model.gates["layer4.1"].detach = False

    def gradient() -> Tensor:
        at = x.clone().requires_grad_()
        return torch.autograd.grad(model(at).sum(), at)[0]

    assert hides_gradient(model)
    with attached(model):
        assert not hides_gradient(model)
        shown = gradient()
    with detached(model):
        assert all(gate.detach for gate in model.gates.values())
        hidden = gradient()
    assert [gate.detach for gate in model.gates.values()] == [True, False]
    assert not torch.allclose(shown, hidden)
    with attached(model), detached(model):
        torch.testing.assert_close(gradient(), hidden)
    assert not hides_gradient(resnet())


def test_detached_attack_is_the_attack_on_hidden_gradients() -> None:
    model, (x, y) = gated().eval(), batch()
    attack = PGD(eps=0.1, steps=3, random_start=False)
    with attached(model):
        found = Detached(attack=attack)(model, x, y)
        shown = attack(model, x, y)
    with detached(model):
        wanted = attack(model, x, y)
    assert torch.equal(found, wanted)
    assert not torch.equal(found, shown)


def test_transferred_images_are_those_of_the_other_network() -> None:
    model, other, (x, y) = gated(), plain(), batch()
    attack = FGSM(eps=0.1)
    assert torch.equal(
        Transfer(attack=attack, source=other, name="plain")(model, x, y), attack(other, x, y)
    )


def test_adaptive_attacks_break_a_gate_that_hides() -> None:
    """A mask that falls steeply with the input, its gradient hidden, is seen through."""

    class Cliff(nn.Module):
        """The mask of both channels swings with the mean of the first, the first logit."""

        labelled = False

        def __init__(self) -> None:
            super().__init__()
            self.detach = True

        def importance(self, v: Tensor) -> Tensor:
            return torch.stack(
                [torch.sigmoid(200 * (v[:, 0] - 0.45)), torch.sigmoid(200 * (0.45 - v[:, 0]))], 1
            )

        def forward(self, z: Tensor, labels: Tensor | None = None) -> Any:
            v = z.mean((2, 3))
            mask = self.importance(v.detach() if self.detach else v)
            return Selection(z * mask[:, :, None, None], None, mask)

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            z = self.features(torch.cat([x, 1 - 0 * x - x], 1))
            return torch.stack([z.mean((2, 3))[:, 0], z.mean((2, 3))[:, 1] - 0.1], 1)

    x = torch.full((4, 1, 3, 3), 0.5)
    y = torch.zeros(4, dtype=torch.int64)
    model = Selective(Backbone(), {"features": Cliff()})
    # Without the mask's gradient, raising the second logit means lowering x as well.
    for attack in (BASE, Detached(attack=BASE), JointSweep(attack=BASE), MaskFrozen(attack=BASE)):
        assert not find_correct(
            model, attack(model, x, y, torch.Generator().manual_seed(0)), y
        ).any()


def test_sweeps_worst_case_is_that_of_the_attacks_one_by_one() -> None:
    model, (x, y) = gated().eval(), batch(12)
    attack = PGD(eps=0.05, steps=2, random_start=False)
    with attached(model):
        worst = find_correct(model, x, y)
        for beta in BETAS:
            x_adv = dataclasses.replace(attack, objective=Joint(beta))(model, x, y)
            worst &= find_correct(model, x_adv, y)
        found = JointSweep(attack=attack)(model, x, y)
    assert torch.equal(find_correct(model, found, y), worst)
