"""The calibration's nulls and planted effects are what they are said to be."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import channelscope as cs
from benchmarks import calibration
from benchmarks.calibration import (
    ARCHS,
    CLAIMS,
    EFFECTS,
    FEWEST_IMAGES,
    NULLS,
    Case,
    Measures,
    Recast,
    Training,
    copy_network,
    count_decided,
    count_found,
    exchange_classes,
    judge,
    make_study,
    make_untrained,
    read_lines,
    run_cases,
    summarise,
    write_page,
)
from benchmarks.timing import describe_machine

OUTCOMES = {"supported", "not supported", "inconclusive", "not judged"}


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put untrained networks in the place of trained ones."""

    def read(training: Training, _folder: Path) -> nn.Module:
        gated = training.method in ("cifs", "cas", "trades-cifs")
        return make_untrained("resnet18", 1, 8, training.seed, gated=gated)

    monkeypatch.setattr(Training, "read", read)
    monkeypatch.setattr(calibration, "list_trainings", lambda _: [])
    monkeypatch.setattr(calibration, "IMAGES", Path("nowhere"))


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("name", NULLS)
@pytest.mark.usefixtures("untrained")
def test_every_null_is_judged(name: str, case: int, tmp_path: Path) -> None:
    line = Case("null", name, case, tmp_path).run()
    assert (line["kind"], line["name"], line["case"]) == ("null", name, case)
    assert set(NULLS[name].claims) <= set(CLAIMS)
    assert {outcome for verdicts in line["verdicts"].values() for outcome in verdicts} <= OUTCOMES


@pytest.mark.parametrize("name", ["untrained", "copies-at"])
@pytest.mark.usefixtures("untrained")
def test_a_case_is_the_same_again_and_another_differs(name: str, tmp_path: Path) -> None:
    studies = [NULLS[name].make(case, tmp_path).study for case in (3, 3, 4)]
    prints = [study.images.fingerprint for study in studies]
    assert prints[0] == prints[1] != prints[2]
    assert all(FEWEST_IMAGES <= len(study.labels) <= 359 for study in studies)
    digests = [[study.describe(model)["digest"] for model in study.models] for study in studies]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_untrained_networks_are_of_their_seed(
    arch: str, channels: int, size: int, gated: bool
) -> None:
    x = torch.rand(4, channels, size, size)
    before = torch.get_rng_state()
    logits = [make_untrained(arch, channels, size, seed, gated=gated)(x) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert logits[0].shape == (4, 10)
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def test_copies_are_exact_or_nearly_so() -> None:
    network, x = make_untrained("resnet10", 1, 8, 1), torch.rand(8, 1, 8, 8)
    exact, near = (copy_network(network, seed)(x) for seed in (0, 1))
    assert torch.equal(exact, network(x))
    assert not torch.equal(near, network(x))
    torch.testing.assert_close(near, network(x), rtol=0.05, atol=0.05)


def test_exchanged_classes_take_their_outcomes_from_one_class() -> None:
    labels = np.repeat(np.arange(6), 20)
    source = exchange_classes(labels, 6, np.random.default_rng(0))
    takes = [set(labels[source[labels == k]]) for k in range(6)]
    assert all(len(each) == 1 for each in takes)
    assert set.union(*takes) == set(range(6))


@pytest.mark.parametrize("natural", [True, False])
def test_a_recast_study_differs_in_the_outcomes_alone(natural: bool) -> None:
    network = make_untrained("cnn", 1, 8, 0)
    study = make_study({"at": network}, "digits", {"at": "at"}, 0, images=60)
    source = exchange_classes(study.labels, 10, np.random.default_rng(0))
    recast = Recast(study, source, natural=natural)
    was, layer = study.correct("at"), study.layers("at")[0]
    np.testing.assert_array_equal(recast.correct("at"), was[source] if natural else was)
    np.testing.assert_array_equal(
        recast.correct("at", "pgd-5"), study.correct("at", "pgd-5")[source]
    )
    for data, attack in (("natural", "natural"), ("adversarial", "pgd-5")):
        correct = recast.answers("at", data) == study.labels
        np.testing.assert_array_equal(correct, recast.correct("at", attack))
    np.testing.assert_array_equal(recast.activations("at", layer), study.activations("at", layer))
    assert recast.describe("at") == {**study.describe("at"), "compute": {"calibration": 1}}


def test_verdicts_are_those_of_compare() -> None:
    models = {
        name: make_untrained("cnn", 1, 8, seed) for seed, name in enumerate(("standard", "at"))
    }
    methods = {name: name for name in models}
    study = make_study(models, "digits", methods, 5, images=80)
    result = cs.compare(
        models,
        "digits",
        methods=methods,
        attack="pgd-5",
        attacks=("pgd-5",),
        replicates=calibration.REPLICATES,
        seed=5,
        images=80,
        progress=False,
    )
    table = result.verdicts
    assert judge(study) == {
        claim: list(table[table["claim"] == claim]["verdict"]) for claim in table["claim"].unique()
    }


@pytest.mark.parametrize("name", EFFECTS)
def test_planted_networks_have_the_planned_values(name: str, tmp_path: Path) -> None:
    effect = EFFECTS[name]
    study = effect.make(0, tmp_path)
    measures, robust = {}, {}
    for model in study.models:
        layer = study.layers(model)[0]
        natural, adversarial = (
            torch.from_numpy(np.array(study.activations(model, layer, data)))
            for data in ("natural", "adversarial")
        )
        means = (
            torch.stack([a[study.labels == k].mean(0) for k in range(effect.classes)])
            for a in (natural, adversarial)
        )
        measures[model] = Measures(*means, effect.layout.make_weight())
        robust[model] = study.correct(model, "planned")
        assert study.correct(model).mean() > 0.9
    assert robust["at"].mean() > 0.45
    at = measures["at"]
    if effect.claim == "NR damage":
        moved = at.adversarial - at.natural
        own = -torch.diagonal(moved)
        others = moved[:, : effect.classes].sum(1) + own
        share = (others / (own + others)).mean()
        assert share.item() - 0.5 == pytest.approx(effect.size, abs=0.02)
        return
    assert robust["standard"].mean() < 0.25
    if effect.claim == "C1":
        assert at.cosine - measures["standard"].cosine == pytest.approx(effect.size, abs=0.03)
    elif effect.claim == "C2":
        assert at.rise == pytest.approx(effect.size, abs=0.005)
    elif effect.claim == "C3":
        by_class = [robust["at"][study.labels == k].mean() for k in range(effect.classes)]
        correlation = spearmanr(at.signed_mass, by_class).statistic
        assert correlation == pytest.approx(effect.size, abs=0.15)
    elif effect.claim == "C4":
        gain = robust["cifs"].mean() - robust["at"].mean()
        assert gain == pytest.approx(effect.size, abs=0.015)
    else:
        assert at.rise - measures["cifs"].rise == pytest.approx(effect.size, abs=0.005)


@pytest.mark.parametrize("name", ["C1+", "C5-"])
def test_effects_are_judged(name: str, tmp_path: Path) -> None:
    verdicts = Case("effect", name, 1, tmp_path).run()["verdicts"]
    assert {outcome for each in verdicts.values() for outcome in each} <= OUTCOMES


def test_decisions_are_counted() -> None:
    outcomes = ["supported", "not supported", "inconclusive", "not judged"]
    lines = [{"verdicts": {"C1": [outcome, "inconclusive"]}} for outcome in outcomes]
    counts = count_decided([*lines, {"verdicts": {}}], "C1")
    assert (counts["decided"], counts["n"]) == (2, 5)
    assert counts["low"] < 0.4 < counts["high"]
    found = count_found([{"verdicts": {"C1": [outcome]}} for outcome in outcomes], EFFECTS["C1-"])
    assert (found["expected"], found["found"], found["n"]) == ("not supported", 1, 4)


@pytest.mark.usefixtures("untrained")
def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_cases({"untrained": 1}, {}, tmp_path, workers=1)
    record = tmp_path / "cases.jsonl"
    with record.open("a") as file:
        file.write('{"kind": "null", "na\n')  # as a kill leaves it
    made = []
    run = Case.run
    monkeypatch.setattr(Case, "run", lambda case: (made.append(case.key), run(case))[1])
    lines = run_cases({"untrained": 2}, {"C2+": 1}, tmp_path, workers=1)
    assert made == [("null", "untrained", 1), ("effect", "C2+", 0)]
    assert lines[0] == first[0]
    assert not read_lines(record, "another source")
    page = tmp_path / "docs" / "page.md"
    summary = summarise(lines)
    write_page(page, json.loads(json.dumps(summary)), describe_machine())
    text = page.read_text()
    assert "| untrained |" in text
    assert "| C2 | +" in text


@pytest.mark.slow
def test_networks_are_trained_once(tmp_path: Path) -> None:
    training = Training("standard", 0, epochs=1, noisy=True)
    training.run(tmp_path)
    path = training.path(tmp_path)
    written = path.stat().st_mtime_ns
    training.run(tmp_path)
    assert path.stat().st_mtime_ns == written
    x, y = next(calibration.load_images("digits").test.batches(359))
    with torch.no_grad():
        accuracy = (training.read(tmp_path)(x).argmax(1) == y).float().mean()
    assert accuracy < 0.35  # its labels were noise
