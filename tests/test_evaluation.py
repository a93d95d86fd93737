"""Evaluations: attacks, the worst case, what is dropped, what is kept, resuming after a kill."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import channelscope as cs
from channelscope import evaluate
from channelscope.analyses.evaluation import robustbench_entry
from channelscope.analyses.strength import compute_decay
from channelscope.attacks import APGD, FGSM, PGD, JointSweep, find_correct, stop_early
from channelscope.attacks.suites import SUITES, attacks_on
from channelscope.cli import main
from channelscope.files import DIGESTS
from channelscope.study.evaluation import Plan, attacks_on_model
from channelscope.study.models import load_models
from channelscope.study.study import Study
from helpers import masked
from helpers.expect import contents, mistake, randomness_untouched
from helpers.runs import digits, trained, write_npz

QUICK: dict[str, Any] = {"images": 12, "checks": 0, "progress": False, "eps": 0.1}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_blocks", "unchecked")]
ALL = QUICK | {"images": None}
ANY_EPS = {name: value for name, value in QUICK.items() if name != "eps"}
WEAK = ("fgsm", "pgd-3", "cw-3", "apgd-ce-5")


@dataclasses.dataclass(frozen=True, eq=False)
class Breaks:
    """An attack that adds eps, and counts the images that it is given."""

    eps: float = 0.1
    given: list[int] = dataclasses.field(default_factory=list)
    name: str = "breaks"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, generator: Any = None) -> Tensor:
        self.given.append(len(x))
        return (x + self.eps).clamp(0, 1)

    def __str__(self) -> str:
        return self.name


class Brightness(nn.Module):
    """Tells images by their mean: class 1 if it is above the limit."""

    def __init__(self, limit: float = 0.5) -> None:
        super().__init__()
        self.limit = nn.Parameter(torch.tensor(limit))

    def forward(self, x: Tensor) -> Tensor:
        score = 20 * (x.flatten(1).mean(1) - self.limit)
        return torch.stack([-score, score], 1)


def greys(*values: float) -> tuple[Tensor, Tensor]:
    """Images of one brightness each, all labelled 0 below 0.5 and 1 above."""
    x = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    return x, (torch.tensor(values) > 0.5).long()


def test_known_network_has_the_known_accuracies() -> None:
    """Every attack of radius 0.1 breaks what lies within 0.1 of the limit, and nothing else."""
    data = greys(0.1, 0.3, 0.45, 0.48, 0.52, 0.7, 0.8, 0.9)
    found = cs.evaluate(
        {"net": Brightness()}, data, attacks=["fgsm", "pgd-5", "cw-5", "apgd-ce-8"], **ALL
    )
    assert list(found.attacks["attack"]) == ["fgsm", "pgd-5", "cw-5", "apgd-ce-8"]
    assert set(found.attacks["natural"]) == {1.0}
    assert set(found.attacks["robust"]) == {5 / 8}
    assert found.worst_case[["natural", "robust", "count"]].values.tolist() == [[1.0, 5 / 8, 8]]
    low, high = found.worst_case.iloc[0][["low", "high"]]
    assert 0 <= low < 5 / 8 < high <= 1
    by_class = found.robustness[found.robustness["attack"] == "worst"].set_index("class")[
        "accuracy"
    ]
    assert by_class.to_dict() == {"all": 5 / 8, "0": 2 / 4, "1": 3 / 4}


def test_worst_case_is_per_image() -> None:
    """Two attacks that break half of the images each leave none."""

    @dataclasses.dataclass(frozen=True)
    class Half(Breaks):
        below: float = 0.5

        def __call__(self, model: nn.Module, x: Tensor, y: Tensor, generator: Any = None) -> Tensor:
            towards = torch.where(y.view(-1, 1, 1, 1) == 0, 1.0, -1.0)
            chosen = (x.flatten(1).mean(1) < self.below).view(-1, 1, 1, 1)
            return torch.where(chosen == (self.name == "dark"), x + 0.1 * towards, x).clamp(0, 1)

    data = greys(0.42, 0.45, 0.55, 0.58)
    found = evaluate(
        {"net": Brightness()}, data, attacks=[Half(name="dark"), Half(name="bright")], **ALL
    )
    assert list(found.attacks["robust"]) == [0.5, 0.5]
    assert list(found.attacks["worst"]) == [0.5, 0.0]
    assert found.worst_case["robust"].item() == 0


def test_images_that_are_broken_are_not_attacked() -> None:
    """Misclassified images are given to no attack; in a cascade, broken ones to no other."""
    x, y = greys(0.1, 0.2, 0.3, 0.45, 0.9, 0.95)
    y[0] = 1  # the network is wrong about it as it is
    first, second = Breaks(), Breaks(name="second")
    found = evaluate({"net": Brightness()}, (x, y), attacks=[first, second], **ALL)
    assert sum(first.given) == sum(second.given) == 5
    assert list(found.attacks["robust"]) == [4 / 6, 4 / 6]
    first, second = Breaks(), Breaks(name="second")
    chained = evaluate({"net": Brightness()}, (x, y), attacks=[first, second], cascade=True, **ALL)
    assert sum(first.given) == 5
    assert sum(second.given) == 4
    assert chained.parts["attacked"].tolist() == [5, 4]
    assert chained.parts["broken"].tolist() == [1, 0]
    assert chained.worst_case["robust"].item() == found.worst_case["robust"].item()


def test_dropping_broken_images_changes_no_outcome_but_by_chance() -> None:
    network = cs.load(trained("at"))
    x, y = next(digits().test.batches(100))
    x, y = x[find_correct(network, x, y)], y[find_correct(network, x, y)]
    for attack in (PGD(eps=0.1, steps=5), PGD(eps=0.1, steps=5, restarts=3)):
        whole = find_correct(network, attack(network, x, y, torch.Generator().manual_seed(0)), y)
        dropped = find_correct(
            network, stop_early(attack)(network, x, y, torch.Generator().manual_seed(0)), y
        )
        assert int((whole & ~dropped).sum()) >= int((dropped & ~whole).sum())
    assert stop_early(FGSM()) == FGSM()
    assert stop_early(APGD()) == APGD()


@pytest.mark.parametrize("cascade", [False, True])
def test_outcomes_do_not_depend_on_the_batch_size(cascade: bool) -> None:
    models, options = {"at": trained("at"), "cifs": trained("cifs")}, QUICK | {"cascade": cascade}
    small = evaluate(
        models, digits(), attacks=[*WEAK, "joint-sweep"], **(options | {"batch_size": 2})
    )
    large = evaluate(
        models, digits(), attacks=[*WEAK, "joint-sweep"], **(options | {"batch_size": 50})
    )
    pd.testing.assert_frame_equal(small.attacks, large.attacks, check_exact=True)
    pd.testing.assert_frame_equal(small.parts, large.parts, check_exact=True)


def test_networks_and_randomness_are_left_as_found() -> None:
    network = cs.load(trained("cifs"))
    network.train()
    network.cnn.conv1.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    with randomness_untouched():
        evaluate({"cifs": network}, digits(), attacks=["adaptive"], **(QUICK | {"images": 4}))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.cnn.conv1.weight.requires_grad
    assert network.cnn.layer1[0].conv1.weight.requires_grad
    assert all(gate.detach for gate in network.gates.values())


def test_suites() -> None:
    """Each suite has its attacks; gated networks get more; an attack named twice is made once."""
    gated, plain = cs.load(trained("cifs")), cs.load(trained("at"))

    def names(network: nn.Module, *wanted: str, **options: Any) -> list[str]:
        given: dict[str, Any] = {"eps": 0.1, "norm": "inf", "classes": 4, "twins": {"at": plain}}
        return list(attacks_on(network, wanted, **(given | options)))

    standard = ["fgsm", "pgd-20", "pgd-100x5", "cw-30", "apgd-ce", "apgd-dlr"]
    assert names(plain, "standard") == names(gated, "standard") == standard
    assert names(plain, "standard", classes=2)[-1] == "apgd-margin"
    assert names(plain, "paper") == ["fgsm", "pgd-20:fixed", "pgd-100:fixed", "cw-30:fixed"]
    joint = [f"pgd-20:joint{beta}:fixed" for beta in ("0", "0.1", "1", "", "10", "100", "inf")]
    assert names(gated, "paper")[4:] == [
        "pgd-20:probe1:fixed",
        "pgd-20:probe2:fixed",
        *joint,
        *(f"{name}:detached" for name in joint),
    ]
    assert names(plain, "adaptive") == ["pgd-20", "cw-30", "apgd-ce", "apgd-dlr"]
    assert names(gated, "adaptive")[4:] == [
        "pgd-20:joint-sweep",
        "pgd-20:joint-sweep:detached",
        "pgd-20:frozen-natural",
        "pgd-20:frozen-label",
        "pgd-20:probe-layer3.0",
        "pgd-20:probe-layer4.0",
        "cw-20:from-at",
    ]
    assert names(plain, "auto") == ["autoattack"]
    every = names(gated, "all")
    assert len(set(every)) == len(every)
    assert set(standard) | {"pgd-100:fixed", "autoattack"} <= set(every)
    assert names(plain, "standard", norm="2")[1] == "pgd-20-l2"
    assert SUITES.keys() == {"standard", "paper", "adaptive", "auto", "all"}
    with mistake("pgd-20-l2", "L2"):
        names(plain, "pgd-20-l2")
    with mistake("'nonsense'"):
        names(plain, "nonsense")


def test_networks_without_gates_are_attacked_as_often_as_those_with_gates() -> None:
    """In the place of attacks made for gates they get restarts of PGD."""
    at, cifs = cs.load(trained("at")), cs.load(trained("cifs"))

    def names(label: str, *wanted: str, eps: float = 0.1, **models: nn.Module) -> list[str]:
        loaded = load_models(models, {}, torch.device("cpu"))
        (model,) = [model for model in loaded if model.label == label]
        plan = Plan(attacks=wanted, eps=0.1, norm="inf")
        attacks = attacks_on_model(model, loaded, plan, eps, classes=4)
        assert {attack.eps for attack in attacks.values()} == {eps}
        return list(attacks)

    # Two sweeps of seven losses; masks held in two ways; two probes; images made on the other.
    shared = ["pgd-20", "cw-30", "apgd-ce", "apgd-dlr"]
    assert names("at", "adaptive", at=at, cifs=cifs) == [*shared, "pgd-20x19"]
    assert names("at", "adaptive", eps=0.05, at=at, cifs=cifs) == [*shared, "pgd-20x19"]
    assert len(names("cifs", "adaptive", at=at, cifs=cifs)) == 11
    assert names("at", "paper", at=at, cifs=cifs)[4:] == ["pgd-20x16"]
    assert names("at", "pgd-20", "joint-sweep", at=at, cifs=cifs)[1:] == ["pgd-20:joint-sweep"]
    assert names("at", "adaptive", at=at) == shared
    assert len(names("cifs", "adaptive", cifs=cifs)) == 10


def test_accuracy_at_each_weight_is_that_of_the_attack_alone(tmp_path: Path) -> None:
    """No image is spared at a weight because another weight broke it; the sweep breaks the same."""
    names = [f"pgd-3:joint{beta}" for beta in ("0", "1", "inf")]
    models, options = [trained("at"), trained("cifs")], ALL | {"eps": 0.05}
    both = evaluate(models, digits(), attacks=[*names, "cw-3:joint1", "pgd-3:fixed"], **options)
    for name in names:
        alone = evaluate(models, digits(), attacks=name, **options)
        for index, model in enumerate(both.meta["models"]):
            correct = both.arrays[f"correct/{index}/{name}"]
            np.testing.assert_array_equal(correct, alone.arrays[f"correct/{index}/{name}"])
            row = both.joint[(both.joint["model"] == model) & (both.joint["attack"] == "pgd-3")]
            weight = float(name.partition("joint")[2])
            assert row.set_index("beta_atk").loc[weight, "accuracy"] == correct.mean()
    sweep = JointSweep(attack=PGD(eps=0.05, steps=3), betas=(0, 1, np.inf))
    swept = evaluate(models, digits(), attacks=[sweep], **options)
    for index in range(2):
        correct = np.all([both.arrays[f"correct/{index}/{name}"] for name in names], axis=0)
        np.testing.assert_array_equal(swept.arrays[f"correct/{index}/{sweep}"], correct)
    both.save(tmp_path / "result")
    pd.testing.assert_frame_equal(cs.Result.load(tmp_path / "result").joint, both.joint)


def test_comparisons_count_as_robust_what_evaluations_do() -> None:
    """An image that is wrong as it is, and that the attack makes right, is not robust."""
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Brightness())
    nn.init.ones_(network[0].weight)
    nn.init.zeros_(network[0].bias)
    x = torch.tensor([0.45, 0.45, 0.55, 0.2]).view(4, 1, 1, 1).expand(4, 1, 4, 4)
    y = torch.tensor([1, 0, 1, 0])  # with 0.1 more: the first right, the second wrong
    options: dict[str, Any] = QUICK | {"images": None, "attacks": [Breaks()]}
    options.pop("eps")
    swept: dict[str, Any] = {"layers": ["0"], "replicates": 20, "eps_sweep": [0.1]}
    study = Study({"net": network}, (x, y), **options, **swept)
    one = study.correct("net", "breaks").tolist()
    other = Study({"net": network}, (x, y), kind="evaluation", **options).correct("net", "breaks")
    assert one == other.tolist() == [False, False, True, True]
    right = study.answers("net", "adversarial") == study.labels
    assert right.tolist() == [True, False, True, True]
    (row,) = [row for row in compute_decay(study)["decay"] if row["measure"] == "robust_accuracy"]
    assert row["value"] == 0.5


def test_evaluations_are_saved_and_loaded_whole(tmp_path: Path) -> None:
    models = {"at": trained("at"), "NA": trained("cifs")}
    found = evaluate(
        models, digits(), attacks=WEAK, eps_sweep=[0.05, 0.3], out=tmp_path / "out", **QUICK
    )
    loaded = cs.Result.load(tmp_path / "out")
    for name in ("attacks", "robustness", "worst_case", "parts", "warnings", "eps_sweep"):
        pd.testing.assert_frame_equal(
            getattr(loaded, name), getattr(found, name), check_dtype=False
        )
    assert loaded.meta == found.meta
    assert all(np.array_equal(loaded.arrays[name], array) for name, array in found.arrays.items())
    held = {path.name for path in (tmp_path / "out").iterdir()}
    assert held == {
        f"{name}.csv"
        for name in (
            "attacks",
            "robustness",
            "worst_case",
            "parts",
            "warnings",
            "eps_sweep",
            "joint",
        )
    } | {
        "arrays.npz",
        "meta.json",
        "figures",
        "report.html",
        "robustbench",
        DIGESTS,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # what it went on from is gone
    assert found.meta["attacks"] == list(WEAK)
    assert {"torch", "channelscope", "python"} <= found.meta["versions"].keys()
    evaluate(models, digits(), attacks=["fgsm"], out=tmp_path / "out", **QUICK)  # takes its place
    assert list(cs.Result.load(tmp_path / "out").attacks["attack"]) == ["fgsm", "fgsm"]


def test_accuracy_falls_with_eps() -> None:
    found = evaluate(
        {"at": trained("at")}, digits(), attacks=WEAK, eps_sweep=[0.5, 0, 0.02, 0.1], **QUICK
    )
    assert list(found.eps_sweep["eps"]) == [0, 0.02, 0.1, 0.5]
    assert found.eps_sweep["robust"].is_monotonic_decreasing
    assert found.eps_sweep["robust"].iloc[0] == found.worst_case["natural"].item()
    assert found.eps_sweep["robust"].iloc[2] == found.worst_case["robust"].item()
    assert found.eps_sweep["robust"].iloc[3] < found.worst_case["robust"].item()


def test_robustbench_form() -> None:
    found = evaluate(
        {"at": trained("at")}, digits(), attacks=["fgsm", "pgd-3"], **QUICK | {"eps": 8 / 255}
    )
    known = robustbench_entry(found, "at")
    assert known["clean_acc"] == f"{100 * found.worst_case['natural'].item():.2f}"
    assert known["reported"] == f"{100 * found.worst_case['robust'].item():.2f}"
    assert (known["eps"], known["dataset"], known["architecture"]) == (
        "8/255",
        "digits",
        "resnet10",
    )
    assert known["autoattack_acc"] is None
    assert known["unreliable"] is False
    assert json.loads(json.dumps(known)) == known
    with mistake("'cifs'"):
        robustbench_entry(found, "cifs")


def test_verdict_c4_names_the_attack_that_decided() -> None:
    models = {"at": trained("at"), "cifs": trained("cifs")}
    found = cs.compare(
        models, digits(), attack="fgsm", attacks=["pgd-20"], eps=0.2, replicates=40, progress=False
    )
    worst = found.robustness[
        (found.robustness["attack"] == "worst") & (found.robustness["class"] == "all")
    ]
    worst = worst.set_index("model")["accuracy"]
    c4 = found.verdicts.set_index("claim").loc["C4"]
    assert c4["estimate"] == pytest.approx(worst["cifs"] - worst["at"])
    alone = found.robustness[~found.robustness["attack"].isin(["natural", "worst"])].query(
        "`class` == 'all'"
    )
    first = {
        model: rows.loc[rows["accuracy"].idxmin(), "attack"]
        for model, rows in alone.groupby("model")
    }
    assert f"{first['cifs']} on cifs, {first['at']} on at" in c4["statement"]


@pytest.mark.parametrize("attack", [Breaks(eps=0.1, name="bright"), Breaks(eps=0.1, name="nan")])
def test_attacks_that_leave_the_ball_are_refused(attack: Breaks) -> None:
    @dataclasses.dataclass(frozen=True, eq=False)
    class Wrong(Breaks):
        def __call__(self, model: nn.Module, x: Tensor, y: Tensor, generator: Any = None) -> Tensor:
            return x * float("nan") if self.name == "nan" else (x + self.eps + 1e-4).clamp(0, 1)

    with mistake(f"The attack {attack.name}"):
        evaluate({"net": Brightness()}, greys(0.2, 0.8), attacks=[Wrong(name=attack.name)], **ALL)


def test_attacks_as_such_keep_their_ball() -> None:
    """Their eps and norm are the evaluation's, and its sweep changes them."""
    found = evaluate(
        {"at": trained("at")},
        digits(),
        attacks=[PGD(eps=0.3, steps=3)],
        eps_sweep=[0.02, 0.3],
        **ANY_EPS,
    )
    named = evaluate(
        {"at": trained("at")},
        digits(),
        attacks="pgd-3",
        eps_sweep=[0.02, 0.3],
        **ANY_EPS | {"eps": 0.3},
    )
    assert found.meta["eps"] == 0.3
    pd.testing.assert_frame_equal(found.attacks, named.attacks)
    pd.testing.assert_frame_equal(found.eps_sweep, named.eps_sweep)
    assert found.eps_sweep["robust"].iloc[0] > found.eps_sweep["robust"].iloc[1]
    round_ball = evaluate(
        {"at": trained("at")}, digits(), attacks=[PGD(eps=0.5, steps=2, norm="2")], **ANY_EPS
    )
    assert (round_ball.meta["eps"], round_ball.meta["norm"]) == (0.5, "2")


@pytest.mark.parametrize(
    ("attacks", "words"),
    [
        ([PGD(eps=0.1, step=0.01), "pgd-20"], "called pgd-20"),
        ([PGD(eps=0.1, step=0.01), PGD(eps=0.1)], "called pgd-20"),
        ([PGD(eps=0.1), PGD(eps=0.2, steps=5)], "different balls"),
        ([PGD(eps=0.2)], "different balls"),
        ([PGD(eps=0.1, norm="2"), FGSM(eps=0.1)], "different balls"),
        ([lambda model, x, y, generator: x], "with an eps"),
        (["pgd-3", "autoattack"], "four classes"),
    ],
)
def test_attacks_that_do_not_go_together_are_refused(
    attacks: list[Any], words: str, unchecked: None
) -> None:
    data = digits(3) if words == "four classes" else digits()
    model = trained("at", 3) if words == "four classes" else trained("at")
    asked: list[int] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("channelscope.study.store.Rows.write", lambda *_: asked.append(1))
        with mistake(words):
            evaluate({"at": model}, data, attacks=attacks, **QUICK)
    assert not asked  # before the first image


def test_comparisons_attack_is_not_taken_for_another_of_its_name() -> None:
    with mistake("called pgd-20"):
        cs.compare(
            [trained("at")],
            digits(),
            attack=PGD(eps=0.1, step=1e-6),
            attacks="pgd-20",
            progress=False,
        )


def test_attack_that_takes_no_generator_is_refused(unchecked: None) -> None:
    class Short:
        eps = 0.1

        def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return x

    with mistake("generator"):
        evaluate({"at": trained("at")}, digits(), attacks=[Short()], **QUICK)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_networks_of_any_precision_are_evaluated(dtype: torch.dtype) -> None:
    network = cs.load(trained("at")).to(dtype)
    found = evaluate(
        {"net": network}, digits(), attacks=["pgd-2", "apgd-ce-3"], **QUICK | {"checks": 20}
    )
    assert found.worst_case["natural"].item() >= found.worst_case["robust"].item()
    assert found.meta["models"]["net"]["skipped"].keys() <= {
        "binarisation"
    }  # a tiny network may have no readout


def test_few_images_are_evaluated_on_a_network_of_many_classes() -> None:
    x, _ = next(digits().test.batches(3))
    network = cs.load(trained("at"))
    y = network(x).argmax(1).clamp(max=1)
    found = evaluate({"net": network}, (x, y), attacks="fgsm", **ALL)
    assert found.meta["data"]["classes"] == ["0", "1", "2", "3"]
    assert found.robustness[found.robustness["class"] == "3"]["accuracy"].isna().all()


def test_in_a_cascade_the_attack_that_broke_the_most_decides() -> None:
    data = greys(0.1, 0.42, 0.45, 0.48, 0.9)
    found = evaluate({"net": Brightness()}, data, attacks=["pgd-5", "fgsm"], cascade=True, **ALL)
    assert found.worst_case["decided_by"].item() == "pgd-5"
    unharmed = evaluate({"net": Brightness()}, greys(0.1, 0.9), attacks=["pgd-5", "fgsm"], **ALL)
    assert unharmed.worst_case["decided_by"].item() == "no attack"
    assert (
        unharmed.worst_case["low"].item()
        < unharmed.worst_case["robust"].item()
        == unharmed.worst_case["high"].item()
        == 1
    )


@pytest.mark.parametrize(
    ("attacks", "cascade", "known"),
    [("autoattack", False, True), ("autoattack", True, False), ("square", False, False)],
)
def test_robustbench_takes_autoattacks_figure_from_autoattack_alone(
    attacks: str, cascade: bool, known: bool
) -> None:
    found = evaluate(
        {"at": trained("at")}, digits(), attacks=attacks, cascade=cascade, **QUICK | {"images": 6}
    )
    assert (robustbench_entry(found, "at")["autoattack_acc"] is not None) == known


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no attack": ({"attacks": []}, "attacks"),
    "unknown attack": ({"attacks": ["pgd"]}, "'pgd'"),
    "no images": ({"images": 0}, "images"),
    "no batch": ({"batch_size": 0}, "batch_size"),
    "nowhere to keep": ({"save_adversarial": True}, "out"),
    "no level": ({"level": 1.0}, "level"),
    "negative eps": ({"eps": -0.1}, "eps"),
    "negative checks": ({"checks": -1}, "checks"),
    "unknown method": ({"methods": {"at": "magic"}}, "magic"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_get_a_sentence(case: str, tmp_path: Path) -> None:
    changes, words = MISTAKES[case]
    options = {"attacks": ["fgsm"], "out": tmp_path / "out"} | QUICK | changes
    if case == "nowhere to keep":
        del options["out"]
    with mistake(words):
        evaluate({"at": trained("at")}, digits(), **options)
    assert not list(tmp_path.iterdir())


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    with mistake("other files"):
        evaluate({"at": trained("at")}, digits(), attacks=["fgsm"], out=tmp_path / "out", **QUICK)
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "thesis.tex").write_text("more work")
    with mistake("other files"):
        evaluate({"at": trained("at")}, digits(), attacks=["fgsm"], out=tmp_path / "run", **QUICK)
    (tmp_path / "run.partial" / "thesis.tex").unlink()
    (tmp_path / "run.partial").rmdir()
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "changed",
    [
        {"versions": None},
        {"norm": "1"},
        {"eps": 10**400},
        {"level": float("nan")},
        {"attacks": "fgsm"},
        {"models": {"at": {"method": "at", "arch": "resnet18", "digest": "ab", "settings": [1]}}},
        {"models": {"at": {"method": "at", "arch": "resnet18"}}},
    ],
    ids=str,
)
def test_settings_of_another_kind_are_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    found = evaluate({"at": trained("at")}, digits(), attacks=["fgsm"], **QUICK)
    found.save(tmp_path / "out")
    (tmp_path / "out" / DIGESTS).unlink()  # by which any change shows
    cs.Result.load(tmp_path / "out")
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    (tmp_path / "out" / "meta.json").write_text(json.dumps(meta | changed))
    with mistake("damaged"):
        cs.Result.load(tmp_path / "out")


def test_outcomes_that_are_none_are_refused(tmp_path: Path) -> None:
    found = evaluate({"at": trained("at")}, digits(), attacks=["fgsm"], **QUICK)
    found.save(tmp_path / "out")
    (tmp_path / "out" / DIGESTS).unlink()  # by which any change shows
    np.savez(tmp_path / "out" / "arrays.npz", **found.arrays)
    cs.Result.load(tmp_path / "out")
    for how in (lambda array: array * 0.5, lambda array: array[:, None]):
        np.savez(
            tmp_path / "out" / "arrays.npz",
            **{name: how(array) for name, array in found.arrays.items()},
        )
        with mistake("damaged"):
            cs.Result.load(tmp_path / "out")


@pytest.mark.parametrize(("eps", "norm", "words"), [(1, "inf", "1"), (2, "2", "2")])
def test_a_radius_may_be_a_whole_number(eps: int, norm: Any, words: str, tmp_path: Path) -> None:
    found = evaluate(
        {"at": trained("at")}, digits(), attacks=["fgsm"], **QUICK | {"eps": eps, "norm": norm}
    )
    found.save(tmp_path / "out")
    assert robustbench_entry(cs.Result.load(tmp_path / "out"), "at")["eps"] == words


@pytest.mark.parametrize("name", ["meta.json", "attacks.csv", "arrays.npz", "worst_case.csv"])
def test_damaged_evaluations_are_refused(name: str, tmp_path: Path) -> None:
    evaluate({"at": trained("at")}, digits(), attacks=["fgsm"], out=tmp_path / "out", **QUICK)
    (tmp_path / "out" / DIGESTS).unlink()  # by which any change shows
    damaged = tmp_path / "out" / name
    damaged.write_bytes(damaged.read_bytes()[:-30])
    with mistake("damaged"):
        cs.Result.load(tmp_path / "out")
    with mistake("no result"):
        cs.Result.load(tmp_path)


# ---------------------------------------------------------------- masked gradients

FOUND_OUT = ("saturated logits", "quantised input", "detached purification", "random gate")


@pytest.mark.parametrize("name", FOUND_OUT)
def test_masked_network_is_warned_of_and_broken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning's attack is run on all images; the worst case is below half of plain PGD-20."""
    monkeypatch.setattr(
        "channelscope.data.blocks.MOST", 128
    )  # as in earnest: a random network draws by the block
    network, data = masked.masked(name), masked.digits(64)
    options = {"attacks": "pgd-20", "eps": masked.EPS, "checks": 64, "progress": False}
    with randomness_untouched():
        found = evaluate({"net": network}, data, out=tmp_path / "out", **options)
    assert len(found.warnings)
    assert found.worst_case["robust"].item() < found.attacks["robust"].iloc[0] / 2
    fallbacks = found.meta["models"]["net"]["fallbacks"]
    robust = found.attacks.set_index("attack")["robust"]
    assert set(fallbacks) <= set(robust.index)
    assert fallbacks
    assert robust[found.worst_case["decided_by"].item()] == robust.min()
    assert robustbench_entry(found, "net")["unreliable"] is True
    assert all(json.loads(evidence) for evidence in found.warnings["evidence"])
    pd.testing.assert_frame_equal(cs.Result.load(tmp_path / "out").warnings, found.warnings)


def test_network_without_any_gradient_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient attacks say nothing about it, and the evaluation says that."""
    monkeypatch.setattr("channelscope.data.blocks.MOST", 128)
    options = {"attacks": ["pgd-20", "apgd-ce"], "eps": masked.EPS, "checks": 0, "progress": False}
    found = evaluate({"net": masked.masked("detached purification")}, masked.digits(32), **options)
    assert list(found.attacks["robust"]) == [found.worst_case["natural"].item()] * 2
    assert any("pgd-20 could not be made" in note for note in found.meta["models"]["net"]["notes"])


def test_honest_network_is_not_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("channelscope.data.blocks.MOST", 128)
    options = {"attacks": "pgd-20", "eps": masked.EPS, "checks": 64, "progress": False}
    found = evaluate({"net": masked.honest("at")}, masked.digits(64), **options)
    assert found.warnings.empty
    assert found.meta["models"]["net"]["fallbacks"] == []
    assert list(found.attacks["attack"]) == ["pgd-20"]


# ---------------------------------------------------------------- figures


def test_figure_of_eps_shows_the_sweep() -> None:
    found = evaluate(
        {"at": trained("at")}, digits(), attacks=["fgsm"], eps_sweep=[0.05, 0.2], **QUICK
    )
    (line,) = found.plot("eps").axes[0].lines
    assert list(line.get_xdata()) == pytest.approx([0, 255 * 0.05, 255 * 0.2])
    robust = found.eps_sweep["robust"]
    assert list(line.get_ydata()) == pytest.approx([found.worst_case["natural"].item(), *robust])
    with mistake("--eps-sweep"):
        evaluate({"at": trained("at")}, digits(), attacks=["fgsm"], **QUICK).plot("eps")


# ---------------------------------------------------------------- at the command line


def test_command_prints_a_table_and_writes_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("channelscope.data.blocks.MOST", 128)
    words = [
        "evaluate",
        "--models",
        str(trained("at")),
        str(trained("cifs")),
        "--labels",
        "AT",
        "CIFS",
        "-q",
    ]
    words += [
        "--data",
        write_npz(tmp_path, 4),
        "--images",
        "8",
        "--eps",
        "0.1",
        "--checks",
        "8",
        "--device",
        "cpu",
    ]
    words += [
        "--attacks",
        "pgd-2",
        "joint-sweep",
        "--eps-sweep",
        "0.05",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    for part in (
        "worst case so far",
        "pgd-20:joint-sweep",
        "CIFS",
        "8 test images",
    ):
        assert part in said
    held = cs.Result.load(tmp_path / "out")
    assert held.meta["command"].startswith("channelscope evaluate --models")
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {
        "captions.json",
        "captions.txt",
        *(
            f"{name}.{ending}"
            for name in ("attacks", "eps")
            for ending in ("csv", "pdf", "png", "svg")
        ),
    }
    assert len(list((tmp_path / "out" / "robustbench").glob("*.json"))) == 2
    words[words.index("pgd-2") : words.index("--out")] = ["fgsm", "--json"]
    words[words.index("--checks") + 1] = "2"
    assert main(words) == 0
    values = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in values["worst_case"]] == ["AT", "CIFS"]
    assert len(values["checks"]["AT"]["made"]) > 5
    assert values["checks"] == {
        model: {"made": held["checked"], "skipped": held["skipped"]}
        for model, held in cs.Result.load(tmp_path / "out").meta["models"].items()
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--attacks", "pgd"], "'pgd'"),
        (["--eps", "2"], "radius"),
        (["--norm", "1"], "--norm"),
        (["--checks", "-1"], "--checks"),
        (["--attacks", "pgd-20-l2"], "L2"),
        (["--labels", "a", "b"], "1 models and 2 labels"),
    ],
)
def test_wrong_words_get_a_sentence(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "evaluate",
        "--models",
        str(trained("at")),
        "--data",
        write_npz(tmp_path, 4),
        "--device",
        "cpu",
        "-q",
    ]
    try:
        status = main([*command, *words, "--out", str(tmp_path / "out")])
    except SystemExit as stop:
        status = int(str(stop.code))
    assert status == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


# ---------------------------------------------------------------- stopped and gone on


def test_links_out_of_an_evaluation_are_refused(tmp_path: Path) -> None:
    cs.evaluate({"net": Brightness()}, greys(0.1, 0.9), attacks=["fgsm"], **ALL).save(
        tmp_path / "out"
    )
    for name in ("meta.json", "arrays.npz", "attacks.csv"):
        moved = (tmp_path / "out" / name).rename(tmp_path / name)
        (tmp_path / "out" / name).symlink_to(moved)
        with mistake("damaged", "a link out of the folder"):
            cs.Result.load(tmp_path / "out")
        moved.rename(tmp_path / "out" / name)
    cs.Result.load(tmp_path / "out")
