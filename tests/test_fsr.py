"""FSR: the paper's separation and recalibration, to the last gradient, and its mask's noise."""

import math

import pytest
import torch
from torch import Tensor, nn

import reference
from channelscope.errors import UserError
from channelscope.gates import FeatureRecalibrator, Selection, Selective
from helpers.expect import randomness_untouched
from helpers.networks import CLASSES, images, resnet

CHANNELS, LOGITS = 5, 4


def gate(**options: float) -> FeatureRecalibrator:
    """Make a gate in double precision, its BatchNorm with statistics of its own."""
    made = FeatureRecalibrator(CHANNELS, LOGITS, hidden=3, **options).double()
    with torch.no_grad():
        for norm in (part for part in made.modules() if isinstance(part, nn.BatchNorm2d)):
            for values in (norm.weight, norm.running_var):
                values.uniform_(0.5, 1.5)
            for values in (norm.bias, norm.running_mean):
                values.normal_(0, 0.3)
    return made


def features(n: int = 3) -> Tensor:
    return torch.randn(n, CHANNELS, 4, 3, dtype=torch.float64)


def parts(answer: Selection) -> dict[str, Tensor]:
    robust, recalibrated = answer.extra
    (other,) = answer.rivals
    return {
        "features": answer.features,
        "mask": answer.mask,
        "robust": robust,
        "other": other,
        "recalibrated": recalibrated,
    }


def gumbel_pair(shape: torch.Size, seed: int) -> tuple[Tensor, Tensor]:
    """Give two Gumbel draws whose difference is the noise that a gate draws from this seed."""
    torch.manual_seed(seed)
    difference = torch.rand(shape, dtype=torch.float64).logit()
    g2 = -torch.log(-torch.log(torch.rand(shape, dtype=torch.float64)))
    return g2 + difference, g2


def gradients(answer: dict[str, Tensor], wanted: list[Tensor]) -> tuple[Tensor, ...]:
    """Differentiate a loss in which every number of the answer has a weight of its own."""
    loss = sum(
        (part * torch.linspace(-1, 2, part.numel()).view_as(part)).sum() for part in answer.values()
    )
    return torch.autograd.grad(loss, wanted)


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_gate_is_that_of_the_paper_with_all_its_gradients(training: bool, tau: float) -> None:
    made, z = gate(tau=tau).train(training), features().requires_grad_()
    noise = gumbel_pair(z.shape, seed=5) if training else None
    weights = {**made.state_dict(keep_vars=True)}
    papers = reference.separate_and_recalibrate(z, weights, tau, noise)
    torch.manual_seed(5)
    ours = parts(made(z))
    torch.testing.assert_close(ours, papers, rtol=1e-10, atol=1e-12)
    wanted = [z, *made.parameters()]
    torch.testing.assert_close(
        gradients(ours, wanted), gradients(papers, wanted), rtol=1e-8, atol=1e-10
    )


def test_every_element_is_either_robust_or_recalibrated() -> None:
    made, z = gate().eval(), features()
    answer = made(z)
    other = z * (1 - answer.mask)
    torch.testing.assert_close(answer.features - z, (1 - answer.mask) * made.recalibration(other))


def test_robust_and_recalibrated_parts_learn_labels_and_the_other_the_strongest_rival() -> None:
    cnn, (x, y) = resnet("resnet18"), images()
    net = Selective(cnn, {"layer4": FeatureRecalibrator(16, CLASSES)}).eval()
    answer = net.probed(x, y)
    (robust, _), (recalibrated, _), (other, _) = heads = answer.heads(y)[0]
    assert torch.equal(
        torch.stack([robust, recalibrated]), torch.stack(answer.selections["layer4"].extra)
    )
    assert torch.equal(other, answer.selections["layer4"].rivals[0])
    rivals = [
        reference.rival(logits, int(label)) for logits, label in zip(answer.logits, y, strict=True)
    ]
    assert [targets.tolist() for _, targets in heads] == [y.tolist(), y.tolist(), rivals]
    assert not (heads[2][1] == y).any()
    assert answer.probes == {}
    assert answer.masks["layer4"].shape == (6, 16, 1, 1)


def test_rival_is_the_answer_itself_where_that_is_wrong() -> None:
    net = Selective(resnet("resnet18"), {"layer4": FeatureRecalibrator(16, CLASSES)}).eval()
    answer = net.probed(images()[0])
    largest, second = answer.logits.topk(2).indices.unbind(1)
    assert torch.equal(answer.heads(largest)[0][2][1], second)
    assert torch.equal(answer.heads((largest + 1) % CLASSES)[0][2][1], largest)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("robustness", [0.1, 0.5, 0.999])
def test_an_element_is_separated_as_robust_as_often_as_its_robustness_says(
    robustness: float, dtype: torch.dtype
) -> None:
    """The Gumbel softmax exceeds 1/2 with probability p, also where p needs fine draws."""
    made, draws = gate(tau=0.3).train(), 40_000
    r = torch.full((1, 1, 200, 200), math.log(robustness / (1 - robustness)), dtype=dtype)
    share, wanted = (
        float((made.importance(r) > 0.5).double().mean()),
        float(r[0, 0, 0, 0].double().sigmoid()),
    )
    assert abs(share - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / draws)


def test_noise_is_drawn_in_training_mode_only() -> None:
    made, z = gate(), features()
    with randomness_untouched():
        assert torch.equal(made.eval()(z).mask, made(z).mask)
    made.train()
    assert not torch.equal(made(z).mask, made(z).mask)


def test_the_mask_nears_0_or_1_at_low_temperature() -> None:
    made, z = gate(tau=1e-4).eval(), features()
    mask = made(z).mask
    assert torch.equal(mask > 0.5, made.separation(z) > 0)
    assert ((mask < 1e-3) | (mask > 1 - 1e-3)).double().mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_masks_of_any_precision_are_numbers(dtype: torch.dtype) -> None:
    made, r = gate(tau=1e-6).train(), torch.zeros(1, 1, 300, 300, dtype=dtype)
    r.view(-1)[:3] = torch.tensor([-1e4, 1e4, 0])
    mask = made.importance(r)
    assert mask.isfinite().all()
    assert mask.view(-1)[:2].tolist() == [0, 1]


def test_labels_do_not_matter() -> None:
    made, z = gate().eval(), features()
    assert torch.equal(made(z, torch.tensor([1, 2, 3])).features, made(z).features)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden": 0}, "1 to 65,536 hidden channels, not 0"),
        ({"hidden": 10**9}, "hidden channels, not 1000000000"),
        ({"tau": 0.0}, "between 1e-6 and a million, not at 0.0"),
        ({"tau": -0.1}, "temperature tau"),
        ({"tau": math.nan}, "not at nan"),
        ({"tau": math.inf}, "not at inf"),
    ],
    ids=str,
)
def test_impossible_gates_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        FeatureRecalibrator(CHANNELS, LOGITS, **options)
