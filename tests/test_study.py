"""A study: networks run once, what they make is kept, and results do not depend on how."""

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import channelscope as cs
from channelscope.analyses.base import ChannelTable
from channelscope.attacks import PGD, attack_name, find_correct, make_generators
from channelscope.data import MemorySplit
from channelscope.errors import UserError
from channelscope.gates import FeatureSelector, LinearProbe, Selective
from channelscope.layers.features import capture_activations
from channelscope.layers.hooks import eval_mode
from channelscope.study.measuring import draw_wrong_labels

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_blocks")]

CLASSES = 3
QUIET: dict[str, Any] = {"progress": False, "device": "cpu", "replicates": 20}


def make_network(seed: int = 0, width: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, width, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, CLASSES),
    )


def make_gated(seed: int = 1) -> Selective:
    network = make_network(seed)
    return Selective(network, {"4": FeatureSelector(LinearProbe(6, CLASSES))})


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(13, 1, 6, 6, generator=generator)
    return x, torch.arange(13) % CLASSES


@pytest.fixture
def models() -> dict[str, nn.Module]:
    return {"plain": make_network(), "gated": make_gated()}


def assert_same(one: cs.Result, other: cs.Result) -> None:
    assert list(one.tables) == list(other.tables)
    for name, table in one.tables.items():
        theirs = other.tables[name]
        if isinstance(table, ChannelTable):
            assert isinstance(theirs, ChannelTable)
            assert list(table.groups) == list(theirs.groups)
            for group, columns in table.groups.items():
                for column, array in columns.items():
                    np.testing.assert_array_equal(array, theirs.groups[group][column], name)
        else:
            pd.testing.assert_frame_equal(table, theirs, check_exact=True)
    assert one.arrays.keys() == other.arrays.keys()
    assert all(np.array_equal(array, other.arrays[name]) for name, array in one.arrays.items())


# ------------------------------------------------------------ what is kept


def test_what_is_kept_is_what_the_network_makes_of_each_block(
    images: tuple[Tensor, Tensor], models: dict[str, nn.Module]
) -> None:
    x, y = images
    network = models["plain"]
    attack = PGD(eps=0.1, steps=3)
    study = cs.Study(models, images, attack=attack, attacks=attack, layers=["2", "4"], **QUIET)
    for rows in torch.arange(13).split(5):
        generators = make_generators(0, attack_name(attack), rows.tolist())
        x_adv = attack(network, x[rows], y[rows], generators)
        for data, shown in (("natural", x[rows]), ("adversarial", x_adv)):
            with (
                eval_mode(network),
                torch.no_grad(),
                capture_activations(network, "2", "4") as activations,
            ):
                logits = network(shown)
            assert (study.answers("plain", data)[rows] == logits.argmax(1).numpy()).all()
            for layer in ("2", "4"):
                kept = study.activations("plain", layer, data)[rows]
                assert (kept == activations[layer].numpy()).all()
        with eval_mode(network):
            robust = find_correct(network, x[rows], y[rows]) & find_correct(network, x_adv, y[rows])
        both = study.correct("plain") & study.correct("plain", attack_name(attack))
        assert (both[rows] == robust.numpy()).all()
    weight = network[-1].weight.detach()  # type: ignore[index]
    assert (study.relevance("plain", "4") == weight[y].numpy()).all()
    assert study.penultimate("plain") == ("4",)


def test_gates_are_told_labels_and_their_masks_are_kept(
    images: tuple[Tensor, Tensor], models: dict[str, nn.Module]
) -> None:
    study = cs.Study(models, images, attack="fgsm", attacks="fgsm", eps=0.1, **QUIET)
    assert study.gates("plain") == ()
    assert study.told("plain") == {}
    assert study.gates("gated") == ("4",)
    told = study.told("gated")
    assert (told["true"] == images[1].numpy()).all()
    assert (told["wrong"] != images[1].numpy()).all()
    mask = study.masks("gated", "4")
    np.testing.assert_allclose(mask.sum(1), 1, rtol=1e-5)  # CIFS's masks are softmaxes
    assert not np.array_equal(mask, study.masks("gated", "4", told="wrong"))


def test_wrong_labels_are_other_classes_each_as_likely() -> None:
    labels = np.arange(3000) % 3
    wrong = draw_wrong_labels(labels, 3, 0)
    assert (wrong != labels).all()
    counts = [((wrong == k) & (labels == 0)).sum() for k in (1, 2)]
    assert min(counts) > 400


def test_networks_are_left_as_they_were(
    images: tuple[Tensor, Tensor], models: dict[str, nn.Module]
) -> None:
    for network in models.values():
        network.train()
    before = {name: dict(net.state_dict()) for name, net in models.items()}
    before = {
        name: {key: value.clone() for key, value in state.items()} for name, state in before.items()
    }
    cs.compare(models, images, attack="fgsm", attacks="fgsm", eps=0.1, **QUIET)
    for name, network in models.items():
        assert network.training
        assert all(parameter.grad is None for parameter in network.parameters())
        assert all(parameter.requires_grad for parameter in network.parameters())
        after = network.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in before[name].items())


# ------------------------------------------------------------ the same, however it is made

COMPARE: dict[str, Any] = {
    "attacks": ["pgd-2", "joint-sweep"],
    "eps": 0.1,
    "layers": ["2", "4"],
    "eps_sweep": [0.05],
    "step_sweep": [1],
}


def test_blocks_have_the_size_that_is_asked_for(
    images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    network, sizes = make_network(), list[int]()
    network.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    options: dict[str, Any] = {"attacks": "fgsm", "eps": 0.1, "checks": 0} | QUIET
    for block in (None, 7):
        sizes.clear()
        result = cs.evaluate({"net": network}, images, block=block, folder=tmp_path, **options)
        assert result.meta["block"] == (block or 5) in sizes  # the folder has none of this size


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_results_do_not_depend_on_the_batch_size(
    batch_size: int, images: tuple[Tensor, Tensor], models: dict[str, nn.Module]
) -> None:
    one = cs.compare(models, images, **COMPARE, **QUIET)
    assert_same(cs.compare(models, images, batch_size=batch_size, **COMPARE, **QUIET), one)


def test_a_study_goes_on_where_it_was(
    images: tuple[Tensor, Tensor],
    models: dict[str, nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error after any number of blocks stands for a kill: what is on disk is the same."""
    wanted = cs.compare(models, images, **COMPARE, **QUIET)
    calls = 0
    attack_once = PGD.__call__

    def stop(self: PGD, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls % 4 == 0:
            raise KeyboardInterrupt
        return attack_once(self, *args, **kwargs)

    monkeypatch.setattr(PGD, "__call__", stop)
    for _ in range(100):
        try:
            result = cs.compare(models, images, folder=tmp_path / "run", **COMPARE, **QUIET)
            break
        except KeyboardInterrupt:
            continue
    assert calls > 8
    assert_same(result, wanted)


def test_studies_share_what_they_have_in_common(
    images: tuple[Tensor, Tensor],
    models: dict[str, nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"folder": tmp_path / "run", "eps": 0.1, **QUIET}
    judged = cs.evaluate(models, images, attacks=["pgd-2", "fgsm"], checks=0, **options)
    monkeypatch.setattr("channelscope.attacks.FGSM.__call__", None)  # it is not made again
    compared = cs.compare(models, images, attack="pgd-2", attacks=["fgsm"], **options)
    for index in range(2):
        for name in ("natural", "pgd-2", "fgsm"):
            key = f"correct/{index}/{name}"
            assert (compared.arrays[key] == judged.arrays[key]).all()


def test_other_weights_data_or_settings_take_nothing_from_a_run_folder(
    images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    options = {"attacks": ["pgd-2"], "checks": 0, "folder": tmp_path / "run", **QUIET}
    cs.evaluate({"net": make_network(0)}, images, eps=0.1, **options)
    for network, x, eps, seed in (
        (make_network(1), images[0], 0.1, 0),
        (make_network(0), images[0].flip(0), 0.1, 0),
        (make_network(0), images[0], 0.2, 0),
        (make_network(0), images[0], 0.1, 1),
    ):
        data = (x, images[1])
        shared = cs.evaluate({"net": network}, data, eps=eps, seed=seed, **options)
        alone = options | {"folder": None}
        assert_same(shared, cs.evaluate({"net": network}, data, eps=eps, seed=seed, **alone))


def test_kept_adversarial_images_are_those_that_were_judged(
    images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    network = make_network()
    out = tmp_path / "out"
    result = cs.evaluate(
        {"net": network},
        images,
        attacks=["pgd-2"],
        eps=0.1,
        checks=0,
        save_adversarial=True,
        out=out,
        **QUIET,
    )
    kept = torch.from_numpy(result.open_adversarial(out, "net", "pgd-2").copy())
    assert ((kept - images[0]).abs() <= 0.1 + 1e-6).all()
    with eval_mode(network):
        robust = find_correct(network, images[0], images[1]) & find_correct(
            network, kept, images[1]
        )
    assert (result.arrays["correct/0/pgd-2"] == robust.numpy()).all()
    assert not out.with_name("out.partial").exists()
    with pytest.raises(UserError, match="no adversarial images"):
        result.open_adversarial(out, "net", "fgsm")


# ------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("level", 95),
        ("batch_size", 0),
        ("block", 0),
        ("images", 0),
        ("seed", -1),
        ("replicates", 3),
        ("threshold", 2.0),
        ("layers", "4"),
        ("layers", ["5.nothing"]),
        ("attack", "pdg-20"),
        ("attacks", ["nothing"]),
        ("eps_sweep", [-1.0]),
        ("step_sweep", [0]),
        ("methods", {"other": "at"}),
        ("methods", {"net": "magic"}),
        ("bach_size", 3),
    ],
)
def test_a_wrong_argument_is_named(name: str, value: Any, images: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError) as error:
        cs.compare({"net": make_network()}, images, **(QUIET | {name: value}))
    text = str(error.value)
    assert (
        name in text
        or str(value) in text
        or (isinstance(value, list) and value[0] in text)
        or (
            isinstance(value, dict) and any(part in text for pair in value.items() for part in pair)
        )
    )
    assert "\n" not in text


def test_names_are_checked_before_any_image_is_read(
    monkeypatch: pytest.MonkeyPatch, images: tuple[Tensor, Tensor]
) -> None:
    monkeypatch.setattr(MemorySplit, "batches", None)
    for wrong in ({"attack": "nothing"}, {"layers": ["nothing"]}):
        with pytest.raises(UserError, match="nothing"):
            cs.compare({"net": make_network()}, images, **QUIET, **wrong)
    with pytest.raises(UserError, match="nothing"):
        cs.relevance({"net": make_network()}, images, scorers=["nothing"], **QUIET)


def test_data_must_be_named_for_networks_that_do_not_say_what_they_were_trained_on() -> None:
    with pytest.raises(UserError, match="data"):
        cs.compare({"net": make_network()}, **QUIET)


def test_a_function_of_the_users_is_a_scorer(images: tuple[Tensor, Tensor]) -> None:
    def by_number(model: nn.Module, layers: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {layer: torch.arange(6.0).expand(len(x), 6) - y[:, None] for layer in layers}

    result = cs.relevance({"net": make_network()}, images, scorers=[by_number, "weights"], **QUIET)
    scores = result.array("relevance", "relevance", "net", "4", "by_number")
    np.testing.assert_allclose(scores, np.arange(6.0) - np.arange(3)[:, None])
    curves = cs.intervene(
        {"net": make_network()}, images, scorers=[by_number], attack="fgsm", eps=0.1, **QUIET
    )
    assert set(curves.league["scorer"]) == {"by_number"}


# ------------------------------------------------------------ kills

KILLED = """
import sys, torch
sys.path.insert(0, {tests!r})
import channelscope as cs
cs.evaluate({models!r}, {data!r}, attacks=["pgd-40", "cw-40"], eps=0.1, checks=0, out={out!r},
            progress=False, device="cpu")
"""


def test_a_killed_evaluation_goes_on_to_the_same_bytes(tmp_path: Path, undrawn: None) -> None:
    generator = np.random.default_rng(0)
    data = tmp_path / "digits.npz"
    np.savez(
        data,
        test_images=generator.integers(0, 256, (400, 8, 8), dtype=np.uint8),
        test_labels=np.arange(400) % 10,
    )
    cs.train("standard", "digits", out=tmp_path / "net.pt", epochs=1, images=100, progress=False)
    script = KILLED.format(
        tests=str(Path(__file__).parent),
        models=[str(tmp_path / "net.pt")],
        data=f"npz:{data}",
        out=str(tmp_path / "killed"),
    )
    partial = tmp_path / "killed.partial"
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ)
    try:
        while process.poll() is None and not list(partial.rglob("withstood.npy")):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    options = {"attacks": ["pgd-40", "cw-40"], "eps": 0.1, "checks": 0, **QUIET}
    del options["replicates"]
    models = [str(tmp_path / "net.pt")]
    killed = cs.evaluate(models, f"npz:{data}", out=tmp_path / "killed", **options)
    assert not partial.exists()
    assert_same(killed, cs.evaluate(models, f"npz:{data}", **options))


# ------------------------------------------------------------ groups of networks


def group(images: tuple[Tensor, Tensor], groups: Any) -> dict[str, list[str]]:
    """Return a study's groups of three AT networks, a copy of one, and a standard one."""
    networks = {f"at-{seed}": make_network(seed) for seed in range(3)}
    networks |= {"copy": make_network(0), "std": make_network(4)}
    methods = {label: "standard" if label == "std" else "at" for label in networks}
    study = cs.Study(networks, images, attack=PGD(steps=1), methods=methods, groups=groups, **QUIET)
    return dict(study.settings["method_groups"])


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (None, {}),
        ({"AT": ["at-*"]}, {"AT": ["at-0", "at-1", "at-2"]}),
        ({"AT": "at-*"}, {"AT": ["at-0", "at-1", "at-2"]}),
        ({"AT": ["at-2", "at-[01]"]}, {"AT": ["at-0", "at-1", "at-2"]}),
        ({"a": ["at-1", "at-*"], "s": ["std"]}, {"a": ["at-0", "at-1", "at-2"], "s": ["std"]}),
    ],
    ids=str,
)
def test_groups_are_the_networks_whose_labels_match(
    groups: Any, expected: dict[str, list[str]], images: tuple[Tensor, Tensor]
) -> None:
    assert group(images, groups) == expected


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"AT": ["net-*"]}, "no model is called 'net-*': the labels are at-0, at-1, at-2"),
        ({"AT": ["at-*", "AT-0"]}, "no model is called 'AT-0'"),
        ({"AT": ["at-*"], "one": ["at-1"]}, "at-1 is in AT and in one: name it once"),
        ({"AT": ["at-*", "copy"]}, "AT has the same network twice"),
        ({"all": ["at-1", "std"]}, "all has models that were trained differently (at, standard)"),
        ({"std": ["at-*"]}, "std is the label of another model"),
        ({"": ["std"]}, "the name '' cannot be printed"),
        ({"a\x1b": ["std"]}, "the name 'a\\x1b' cannot be printed"),
    ],
    ids=str,
)
def test_groups_that_are_none_are_refused_in_a_sentence(
    groups: Any, words: str, images: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(UserError) as caught:
        group(images, groups)
    message = str(caught.value)
    assert message.startswith(f"group: {words}")
    assert "\n" not in message


def test_verdicts_are_on_groups(images: tuple[Tensor, Tensor]) -> None:
    networks = {f"at-{seed}": make_network(seed) for seed in range(2)}
    networks |= {f"cifs-{seed}": make_gated(seed) for seed in range(3)}
    methods = {label: label.partition("-")[0] for label in networks}
    groups = {"AT": ["at-*"], "CIFS": ["cifs-*"]}
    result = cs.compare(
        networks, images, attack=PGD(steps=1), attacks=(), methods=methods, groups=groups, **QUIET
    )
    verdicts = result.verdicts.set_index("claim")
    assert result.meta["method_groups"] == {"AT": ["at-0", "at-1"], "CIFS": [*networks][2:]}
    assert verdicts.loc["C4", "models"] == "CIFS - AT"
    assert verdicts.loc["C4", "seeds"] == 2
    alone = cs.compare(networks, images, attack=PGD(steps=1), attacks=(), methods=methods, **QUIET)
    rows = alone.verdicts[alone.verdicts["claim"] == "C4"]
    assert rows["models"].tolist() == [f"cifs-{seed} - at-0" for seed in range(3)]
    assert set(rows["seeds"]) == {1}


def test_networks_made_in_inference_mode_are_refused(images: tuple[Tensor, Tensor]) -> None:
    with torch.inference_mode():
        network = make_network()
        with pytest.raises(UserError, match=r"made in torch\.inference_mode"):
            cs.relevance({"net": make_network()}, images, **QUIET)
    with pytest.raises(UserError, match=r"copy\.deepcopy"):
        cs.relevance({"net": network}, images, **QUIET)
    copied = copy.deepcopy(network)
    assert cs.relevance({"net": copied}, images, scorers=["gradient"], **QUIET).kind == "relevance"
