"""Networks whose numbers cannot be trusted: a comparison finds out by itself; honest ones pass."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import channelscope as cs
from channelscope.analyses.base import Finding
from channelscope.cli.printing import print_result
from channelscope.data import Dataset
from channelscope.objectives import margin
from channelscope.study.attacked_images import AttackedImages
from channelscope.study.masking import CHECKS
from channelscope.study.study import Study
from helpers.expect import mistake, randomness_untouched
from helpers.masked import EPS, Masked, Noisy, Purified, Saturated
from helpers.networks import gated, images, mixed, plain, unchanged
from helpers.runs import digits, trained

pytestmark = pytest.mark.usefixtures("unchecked")

QUICK: dict[str, Any] = {"attack": "pgd-2", "attacks": ("pgd-2",), "eps": 0.1, "progress": False}


class EightBits(Masked):
    """Rounds the image to the 256 levels that it has in a file."""

    def forward(self, x: Tensor) -> Tensor:
        return self.within((255 * x).round() / 255)


class Signs(Masked):
    """Sees which pixels are bright, and no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return self.within((x.detach() - 0.5).sign())


class Undefined(Masked):
    """Adds nothing to the image, by a root whose slope at 0 is infinite: 0 times it is NaN."""

    def forward(self, x: Tensor) -> Tensor:
        return self.within(x + (0 * x).sqrt())


class Contrasts(Masked):
    """Judges images by how they differ from those passed along."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.within(x)
        return logits - logits.mean(0)


class Foreign(Masked):
    """Leaves torch in its forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return self.within(torch.from_numpy(x.numpy().copy()))


class SomeHidden(Masked):
    """Has no gradient in the images whose first pixel is bright."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = (x[:, :1, :1, :1] > 0.5).to(x)
        return self.within(hidden * x.detach() + (1 - hidden) * x)


def standard() -> nn.Module:
    """Return a small CNN, trained on the digits."""
    return cs.load(trained("standard"))


def find(network: nn.Module, data: Any = None, **options: Any) -> tuple[Finding, ...]:
    """Return what a comparison finds wrong with a network, before it attacks it."""
    data = digits() if data is None else data
    return Study({"net": network}, data, **QUICK | options).faults("net")


@pytest.mark.parametrize("method", ["standard", "at", "cifs"])
def test_an_honest_network_has_no_faults(method: str) -> None:
    assert find(cs.load(trained(method))) == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_an_honest_network_of_another_precision_has_no_faults(dtype: torch.dtype) -> None:
    assert find(standard().to(dtype)) == ()


def test_networks_that_are_sure_of_some_answers_are_judged_by_what_it_hides() -> None:
    """Their cross-entropy underflows on some images, the margin does not: it may break them."""
    network = Somewhat(standard())
    for eps in (0.001, 0.0):
        assert find(network, eps=eps) == ()
    (fault,) = find(network, eps=0.1)
    assert fault.check == "zero-gradient"
    assert "leaves 4 of these, of which PGD-20 on the margin breaks 4" in fault.sentence


class Somewhat(Masked):
    """Is very sure of the images whose centre is bright."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.within(x)
        return torch.where(x[:, :1, 3, 3] > 0.9, 1e4 * logits, logits)


FAULTY: Mapping[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "rounded to 8 bits": (EightBits, "zero-gradient"),
    "sure of everything": (Saturated, "zero-gradient"),
    "signs": (Signs, "zero-gradient"),
    "purified": (Purified, "zero-gradient"),
    "not a number": (Undefined, "zero-gradient"),
    "leaves torch": (Foreign, "zero-gradient"),
    "subtracts the mean": (Contrasts, "batch-dependence"),
    "noise": (Noisy, "randomness"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_fault_is_found(name: str) -> None:
    make, check = FAULTY[name]
    (fault,) = find(make(standard()), layers=["within.layer4"])
    assert fault.check == check
    assert fault.sentence.endswith(".")
    assert "\n" not in fault.sentence
    assert fault.evidence["images"] > 7


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTY)
def test_a_comparison_of_a_faulty_network_ends_or_is_refused_in_a_sentence(name: str) -> None:
    make, _ = FAULTY[name]
    models = {"honest": standard(), "faulty": make(standard())}
    layers = {"honest": ["layer4"], "faulty": ["within.layer4"]}
    options: dict[str, Any] = QUICK | {"layers": layers, "replicates": 20}
    x, y = next(digits().test.batches(20))
    if name in ("signs", "purified"):  # PGD has nothing to follow
        with mistake("has no gradient in its input"):
            cs.compare(models, (x, y), **options)
    if name in ("signs", "purified", "leaves torch"):
        options |= {"attack": "square-5", "attacks": ("square-5",)}
    result = cs.compare(models, (x, y), **options)
    assert set(result.robustness["model"]) == set(models)


class Scaled(Masked):
    """Scales the logits: it answers as the network within, and its softmax is surer."""

    def __init__(self, within: nn.Module, factor: float) -> None:
        super().__init__(within)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.within(x)


@pytest.mark.parametrize("factor", [10, 30, 100, 1000])
@pytest.mark.parametrize("method", ["standard", "at"])
def test_logits_that_are_scaled_up_are_a_fault_where_they_mislead_attacks(
    method: str, factor: float
) -> None:
    """PGD on the cross-entropy stands still where the softmax underflows."""
    network = Scaled(cs.load(trained(method)), factor).eval()
    options: dict[str, Any] = {"layers": ["within.layer4"], "eps": EPS, "attacks": ("pgd-20",)}
    study = Study({"net": network}, digits(), **QUICK | options | {"attack": "pgd-20"})
    x, y = study.images.read_some(torch.arange(len(study.labels)), next(network.parameters()))
    attacked = AttackedImages(network, x, y, EPS, "inf", 0, len(x)).keep_correct()
    left = attacked.robust_to_pgd
    broken = len(left) - len(attacked.find_robust(attacked.make_pgd(objective=margin), left))
    faults = study.faults("net")
    assert [fault.check for fault in faults] in ([], ["zero-gradient"])
    if broken > 0.1 * len(attacked):
        assert faults
        assert "--attack cw-20" in faults[0].sentence
    if factor == 10:
        assert not faults or broken
    if factor == 1000:
        assert faults
    assert find(network, **options, attack="cw-20") == ()  # which needs no softmax


def test_few_images_without_a_gradient_are_left_to_chance() -> None:
    network = SomeHidden(plain()).eval()
    x, y = images(200)
    x[:, 0, 0, 0] = 0
    for hidden, faults in ((5, 0), (20, 1)):
        x[:hidden, 0, 0, 0] = 1
        found = find(network, (x, y), layers=["within.conv2"])
        assert len(found) == faults
    assert found[0].evidence == {"images": 200, "without_gradient": 20}


def test_a_single_image_has_no_company_to_depend_on() -> None:
    x, y = images(1)
    assert find(Contrasts(plain()).eval(), (x, y), layers=["within.conv2"]) == ()


def test_the_network_and_the_random_state_are_left_as_they_were() -> None:
    x, y = images(20)
    for network in (mixed(plain()), mixed(gated()), mixed(Noisy(plain()))):
        study = Study({"net": network}, (x, y), **QUICK)
        with unchanged(network), randomness_untouched():
            study.faults("net")


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_faults_are_found_where_gradients_are_switched_off(
    context: Callable[[], Any],
) -> None:
    network = standard()
    with context():
        assert find(network) == ()
        assert [fault.check for fault in find(EightBits(network))] == ["zero-gradient"]


def test_faults_do_not_depend_on_the_batch_size() -> None:
    data: Dataset = digits()
    one, other = (find(Noisy(standard()), data, batch_size=size) for size in (1, 128))
    assert one == other != ()


# ---------------------------------------------------------------- an evaluation's checks


@pytest.mark.slow
def test_an_evaluation_says_that_its_checks_found_nothing_and_which_were_not_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"attacks": "pgd-2", "eps": 0.1, "progress": False}
    for checks in (20, 0):
        result = cs.evaluate({"at": trained("at")}, digits(), checks=checks, **options)
        print_result(result, tmp_path)
        known = result.meta["models"]["at"]
        said = capsys.readouterr().out
        (title,) = [ax.get_title(loc="right") for ax in result.plot("attacks").axes]
        if checks:
            count = len(known["checked"])
            assert count + len(known["skipped"]) == len(CHECKS) + 1  # and the binarisation test
            assert title == f"no sign of gradient masking in {count} checks"
            assert f"at: {title}" in said
            assert all(name in said for name in known["skipped"])
        else:
            assert title == "not checked for gradient masking"
            assert f"at: {title}." in said
