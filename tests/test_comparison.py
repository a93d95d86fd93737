"""Comparisons: numbers against naive ones, networks left unchanged, folders that stay whole."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import reference
from channelscope import result as result_module
from channelscope.api import compare
from channelscope.attacks import FGSM, PGD, JointSweep, make_generators
from channelscope.data import Dataset, MemorySplit
from channelscope.errors import UserError
from channelscope.files import DIGESTS
from channelscope.gates import Selective
from channelscope.layers.hooks import LayerError
from channelscope.result import Result, check_folder
from channelscope.training import Recipe
from channelscope.weights import GATE_LOG, LOG, Checkpoint
from helpers import networks
from helpers.expect import contents, mistake, randomness_untouched, refusal_allowed
from helpers.networks import (
    FORMS,
    Returns,
    TrainsInPassing,
    TrainsItself,
    gated,
    mixed,
    plain,
    unchanged,
)
from helpers.runs import METHODS, digits, run, trained

pytestmark = pytest.mark.slow

QUICK: dict[str, Any] = {"attack": "pgd-2", "attacks": (), "replicates": 20, "progress": False}


def images(
    n: int = 20, channels: int = 1, size: int = 8, classes: int = networks.CLASSES
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(n, channels, size, size, generator=generator), torch.arange(n) % classes


def net() -> nn.Module:
    """Make the same small network each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return plain()


def some(**changes: Any) -> Result:
    return compare({"net": net()}, images(), **{**QUICK, **changes})


def equal(a: Result, b: Result) -> None:
    assert list(a.tables) == list(b.tables)
    for name in a.tables:
        one, other = getattr(a, name), getattr(b, name)
        pd.testing.assert_frame_equal(
            one, other, check_dtype=bool(len(one))
        )  # an empty column has no type
    assert a.arrays.keys() == b.arrays.keys()
    for name, array in a.arrays.items():
        np.testing.assert_array_equal(array, b.arrays[name])
    one, other = (
        {key: value for key, value in found.meta.items() if key != "created"} for found in (a, b)
    )
    assert one == other


class Hidden(nn.Module):
    """Pool and rectify without modules: no layer returns what the last linear layer gets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 5, 3), nn.Linear(5, networks.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))


class Counting(nn.Module):
    """Count its calls in a buffer, which is no business of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x)


# ---------------------------------------------------------------- any network


def test_where_no_layer_is_penultimate_what_the_last_one_reads_is_measured() -> None:
    assert set(compare({"net": Hidden()}, images(), **QUICK).activations["layer"]) == {
        "linear:input"
    }
    assert set(
        compare({"net": Hidden()}, images(), layers=["conv"], **QUICK).activations["layer"]
    ) == {"conv"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_networks_of_any_precision_are_compared(dtype: torch.dtype) -> None:
    network = net().to(dtype)
    found = compare({"net": network}, images(), **QUICK)
    wanted = network.eval().float()(images()[0]).argmax(1) == images()[1]
    assert (
        found.arrays["correct/0/natural"] == wanted.numpy()
    ).mean() >= 0.9  # rounding may turn a close call


def test_a_buffer_of_the_networks_own_may_change_and_is_put_back() -> None:
    network = Counting()
    compare({"net": network}, images(), **QUICK)
    assert network.calls == 0


# ---------------------------------------------------------------- the numbers


def naive_features(network: nn.Module, layer: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Give a layer's features, in the graph, and the logits, by a hook of torch's."""
    kept: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(
        lambda _m, _i, out: kept.append(out) or out.clone()
    )
    try:
        logits = network(x)
    finally:
        handle.remove()
    return kept[0], logits


def naive_activations(network: nn.Module, layer: str, x: Tensor) -> list[list[float]]:
    features, _ = naive_features(network, layer, x)
    return [[float(channel.double().mean()) for channel in image] for image in features.detach()]


def naive_gradient(network: nn.Module, layer: str, x: Tensor, y: Tensor) -> list[list[float]]:
    """Return each image's gradient of its label's logit by channel, summed over space."""
    rows = []
    for image, label in zip(x, y.tolist(), strict=True):
        features, logits = naive_features(network, layer, image[None])
        (slope,) = torch.autograd.grad(logits[0, label], features)
        rows.append([float(channel.double().sum()) for channel in slope[0]])
    return rows


def column(found: Result, name: str, data: str, layer: str, k: int) -> list[float]:
    rows = found.activations
    rows = rows[(rows["data"] == data) & (rows["layer"] == layer) & (rows["class"] == str(k))]
    assert list(rows["channel"]) == list(range(len(rows)))
    return list(rows[name])


def close(values: list[float], expected: list[float], tolerance: float = 1e-5) -> None:
    assert values == pytest.approx(expected, rel=tolerance, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("arch", ["resnet10", "wrn-10-1"])
def test_the_tables_agree_with_naive_ones(arch: str) -> None:
    """Magnitude, frequency, relevance, alignment and accuracy of one network, two layers."""
    network, (x, y) = networks.resnet(arch), images(18)
    last = "layer4" if arch == "resnet10" else "features"
    layers = ["layer2", last]
    found = compare({"net": network}, (x, y), layers=layers, seed=3, batch_size=18, **QUICK)
    x_adv = PGD(steps=2)(network, x, y, make_generators(3, "pgd-2", range(18)))
    for layer in layers:
        naive = {
            "natural": naive_activations(network, layer, x),
            "adversarial": naive_activations(network, layer, x_adv),
        }
        weights = [1.0] * len(y)
        stats = {
            data: reference.channel_statistics(values, y.tolist(), weights, networks.CLASSES)
            for data, values in naive.items()
        }
        linear = network.linear.weight.tolist()
        of_images = (
            [linear[k] for k in y.tolist()]
            if layer == last
            else naive_gradient(network, layer, x, y)
        )
        relevance = reference.channel_statistics(of_images, y.tolist(), weights, networks.CLASSES)[
            "magnitude"
        ]
        for k in range(networks.CLASSES):
            for data in ("natural", "adversarial"):
                close(column(found, "magnitude", data, layer, k), stats[data]["magnitude"][k])
                close(column(found, "frequency", data, layer, k), stats[data]["frequency"][k])
                close(column(found, "count", data, layer, k), stats[data]["count"][k])
                close(column(found, "relevance", data, layer, k), relevance[k], 1e-4)
            if layer == last:
                close(column(found, "relevance", "natural", layer, k), linear[k])
        check_alignment(found, layer)
    check_accuracy(
        found, {"natural": network(x).argmax(1) == y, "pgd-2": network(x_adv).argmax(1) == y}, y
    )


def check_alignment(found: Result, layer: str) -> None:
    rows = found.alignment[found.alignment["layer"] == layer].set_index(["class", "measure"])
    table, robust, links = rows["value"], [], []
    means = [column(found, "magnitude", "natural", layer, k) for k in range(networks.CLASSES)]
    present = [k for k, mean in enumerate(means) if not any(map(math.isnan, mean))]
    centre, distances = reference.place_classes([means[k] for k in present])
    for k in range(networks.CLASSES):
        natural, adversarial, relevance = (
            column(found, name, data, layer, k)
            for name, data in (
                ("magnitude", "natural"),
                ("magnitude", "adversarial"),
                ("relevance", "natural"),
            )
        )
        distance = distances[present.index(k)] if k in present else math.nan
        shares = [reference.nr_share(magnitude, relevance) for magnitude in (natural, adversarial)]
        expected = {
            "cosine": reference.cosine(natural, adversarial),
            "spearman": reference.spearman(natural, adversarial),
            "shift": reference.shift(natural, adversarial),
            "nr_share_natural": shares[0],
            "nr_share_adversarial": shares[1],
            "nr_ratio": shares[1] / shares[0] if shares[0] else math.nan,
            "nr_fall": reference.nr_fall(natural, adversarial, relevance),
            "dead_channels": reference.dead_channels(natural, adversarial),
            "cosine_centred": reference.cosine_centred(natural, adversarial, centre),
            "displacement": reference.displacement(natural, adversarial, distance),
        }
        for data, magnitude in (("natural", natural), ("adversarial", adversarial)):
            frequency = column(found, "frequency", data, layer, k)
            of_data = {
                "relevance_spearman": reference.spearman(magnitude, relevance),
                "nr_mass": reference.nr_mass(magnitude, relevance),
                "signed_mass": reference.signed_mass(magnitude, relevance),
                "effective_channels": reference.effective_channels(magnitude),
                "uniformity": reference.uniformity(frequency),
            }
            expected |= {f"{name}_{data}": value for name, value in of_data.items()}
        assert table[str(k)].to_dict() == pytest.approx(expected, rel=1e-6, nan_ok=True)
        accuracy = found.robustness.set_index(["attack", "class"])["accuracy"]
        robust.append(accuracy["worst", str(k)])
        links.append(expected["signed_mass_adversarial"])
    for measure in expected:
        known = [
            value
            for k in range(networks.CLASSES)
            if not math.isnan(value := table[str(k), measure])
        ]
        assert table["all", measure] == pytest.approx(
            math.fsum(known) / len(known) if known else math.nan, nan_ok=True
        )
    link = reference.spearman(links, robust)
    assert table["across", "signed_mass_robust_correlation"] == pytest.approx(link, nan_ok=True)


def check_accuracy(found: Result, hits: dict[str, Tensor], y: Tensor) -> None:
    worst = torch.stack(list(hits.values())).all(0)
    for attack, right in {**hits, "worst": worst}.items():
        rows = found.robustness[found.robustness["attack"] == attack].set_index("class")
        assert rows["accuracy"]["all"] == pytest.approx(right.float().mean().item())
        assert rows["count"]["all"] == len(y)
        for k in range(networks.CLASSES):
            of_class = [
                bool(hit) for hit, label in zip(right, y.tolist(), strict=True) if label == k
            ]
            assert rows["accuracy"][str(k)] == pytest.approx(sum(of_class) / len(of_class))
            assert rows["count"][str(k)] == len(of_class)


def test_intervals_hold_their_estimates() -> None:
    found = some(replicates=50)
    for frame, value in ((found.alignment, "value"), (found.robustness, "accuracy")):
        known = frame.dropna(subset=[value, "low", "high"])
        assert len(known) > 10
        assert (known["low"] <= known[value] + 1e-9).all()
        assert (known[value] <= known["high"] + 1e-9).all()


def test_a_wider_level_gives_wider_intervals() -> None:
    narrow, wide = (some(replicates=50, level=level).alignment for level in (0.5, 0.99))
    rows = narrow["measure"] == "cosine"
    assert (wide["low"] <= narrow["low"])[rows].all()
    assert (wide["high"] - wide["low"])[rows].mean() > 2 * (narrow["high"] - narrow["low"])[
        rows
    ].mean()


def test_the_threshold_is_that_of_the_frequency() -> None:
    low, high = (some(threshold=threshold).activations["frequency"] for threshold in (0.0, 0.9))
    assert (high <= low).all()
    assert high.sum() < low.sum()


def test_the_arrays_are_the_hits_behind_the_accuracy() -> None:
    found, (_, y) = some(), images()
    np.testing.assert_array_equal(found.arrays["labels"], y.numpy())
    accuracy = found.robustness.set_index(["attack", "class"])["accuracy"]
    for attack in ("natural", "pgd-2"):
        assert found.arrays[f"correct/0/{attack}"].mean() == accuracy[attack, "all"]


# ---------------------------------------------------------------- networks of any kind


def torchvisions() -> dict[str, nn.Module]:
    from torchvision.models import mobilenet_v3_small, resnet18

    return {"resnet": resnet18(num_classes=3), "mobilenet": mobilenet_v3_small(num_classes=3)}


def test_torchvisions_networks_compare() -> None:
    models, data = torchvisions(), images(12, channels=3, size=32, classes=3)
    found = compare(models, data, **QUICK)
    assert list(found.meta["models"]) == ["resnet", "mobilenet"]
    assert found.meta["models"]["resnet"]["layers"] == ["layer4"]
    assert set(found.activations["model"]) == {"resnet", "mobilenet"}
    rows = found.activations[
        (found.activations["model"] == "resnet") & (found.activations["data"] == "natural")
    ]
    np.testing.assert_allclose(
        rows["relevance"], models["resnet"].fc.weight.detach().flatten(), rtol=1e-6
    )
    assert not found.activations.isna().any().any()
    assert len(found.training) == 0
    assert set(found.verdicts["verdict"]) == {"not judged"}


@pytest.mark.parametrize("kind", ["resnet", "mobilenet"])
def test_torchvisions_networks_are_left_as_found(kind: str) -> None:
    model = mixed(torchvisions()[kind])
    with unchanged(model), randomness_untouched():
        compare({"net": model}, images(6, channels=3, size=32, classes=3), **QUICK)


@pytest.mark.parametrize("make", [plain, gated, networks.resnet], ids=lambda make: make.__name__)
@pytest.mark.parametrize("layers", [None, ["conv1"]], ids=["penultimate", "conv1"])
def test_networks_are_left_as_found(make: Any, layers: list[str] | None) -> None:
    model = mixed(make())
    with unchanged(model):
        compare({"net": model}, images(), layers=layers, **QUICK)


def test_a_network_is_left_as_found_after_an_error() -> None:
    model = mixed(plain())
    with unchanged(model), mistake("conv1"):
        compare({"net": model}, images(), layers=["conv9"], **QUICK)


def test_gated_and_plain_networks_mix() -> None:
    found = compare({"plain": networks.resnet("resnet18"), "gated": gated()}, images(), **QUICK)
    attacks = found.robustness.groupby("model", sort=False)["attack"].unique()
    assert list(attacks["plain"]) == ["natural", "pgd-2", "worst"]
    assert list(attacks["gated"]) == ["natural", "pgd-2", "worst"]
    rows = found.robustness[found.robustness["model"] == "gated"].pivot(
        index="class", columns="attack", values="accuracy"
    )
    assert (rows["worst"] <= rows.drop(columns="worst").min(axis=1) + 1e-9).all()
    assert (
        found.meta["models"]["gated"]["layers"] == ["layer4.1.gated"]
        or found.meta["models"]["gated"]["layers"]
    )


def test_one_list_of_layers_serves_networks_with_and_without_gates() -> None:
    """Without gates NAME.gated is NAME, once. A gate's layer has both sides."""
    models, layers = {"plain": networks.resnet("resnet18"), "gated": gated()}, ["layer4.1"]
    both = [*layers, "layer4.1.gated"]
    found = compare(models, images(), layers=both, **QUICK)
    assert found.meta["models"]["plain"]["layers"] == layers
    assert found.meta["models"]["gated"]["layers"] == both
    with mistake("There is no layer 'layer4.9'"):
        compare({"plain": models["plain"]}, images(), layers=["layer4.9.gated"], **QUICK)
    with mistake("layer4.9.gated"):
        compare({"gated": models["gated"]}, images(), layers=["layer4.9.gated"], **QUICK)


def test_gates_are_attacked_with_the_gradient_through_their_masks() -> None:
    """Detached masks hide part of the gradient: a comparison is the same with and without."""
    torch.manual_seed(1)
    one = gated(detach=True)
    torch.manual_seed(1)
    other = gated(detach=False)
    assert isinstance(one, Selective)
    assert [gate.detach for gate in one.gates.values()] == [True, True]
    a, b = (
        compare({"net": model}, images(), layers=["layer4.0"], **QUICK) for model in (one, other)
    )
    pd.testing.assert_frame_equal(a.activations, b.activations)
    pd.testing.assert_frame_equal(a.robustness, b.robustness)
    assert [gate.detach for gate in one.gates.values()] == [True, True]


@pytest.mark.parametrize("form", FORMS)
def test_networks_may_return_logits_in_any_form(form: str) -> None:
    torch.manual_seed(1)
    found = compare({"net": Returns(FORMS[form]).eval()}, images(), layers=["net.relu2"], **QUICK)
    torch.manual_seed(1)
    bare = compare(
        {"net": Returns(FORMS["tensor"]).eval()}, images(), layers=["net.relu2"], **QUICK
    )
    pd.testing.assert_frame_equal(found.activations, bare.activations)
    pd.testing.assert_frame_equal(found.robustness, bare.robustness)


@pytest.mark.parametrize("kind", [TrainsItself, TrainsInPassing])
def test_networks_that_switch_themselves_to_train_mode_are_refused_or_held(
    kind: type[nn.Module],
) -> None:
    model = kind().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if kind is TrainsItself:
        with mistake("train mode"):
            compare({"net": model}, images(), **QUICK)
    else:
        with refusal_allowed("train mode"):
            compare({"net": model}, images(), **QUICK)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Asserts(nn.Module):
    """Checks the size of its images with an assertion, as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == 16, f"wrong width {x.shape[-1]}"
        return self.net(x)


class Unwritten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("kind", [Asserts, Unwritten, networks.Brittle, lambda: plain(channels=3)])
def test_networks_that_do_not_take_the_images(kind: Any) -> None:
    with mistake("(1, 8, 8)"):
        compare({"net": kind()}, images(), **QUICK)


def test_a_network_without_a_last_linear_layer_needs_layers() -> None:
    model = nn.Sequential(nn.Conv2d(1, networks.CLASSES, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten())
    with mistake("name the layers"):
        compare({"net": model}, images(), **QUICK)
    assert set(compare({"net": model}, images(), layers=["0"], **QUICK).activations["layer"]) == {
        "0"
    }


# ---------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def four() -> Result:
    return compare([trained(method) for method in METHODS], digits(), **QUICK)


def test_checkpoints_bring_what_is_known_of_their_training(four: Result) -> None:
    assert list(four.meta["models"]) == [trained(method).stem for method in METHODS]
    assert [known["method"] for known in four.meta["models"].values()] == list(METHODS)
    assert list(four.training["model"].unique()) == list(four.meta["models"])
    expected = pd.concat(
        [pd.read_csv(f"{trained(method)}.csv")[list(LOG)] for method in METHODS], ignore_index=True
    )
    pd.testing.assert_frame_equal(four.training[list(LOG)], expected.astype({"best": int}))
    assert {*four.training.columns} == {"model", *LOG}
    assert four.meta["data"] == {
        "name": "digits",
        "classes": ["0", "1", "2", "3"],
        "images": 20,
        "fingerprint": digits().test.fingerprint(),
    }
    assert set(four.verdicts["claim"]) == {"C1", "C2", "C3", "C4", "C5", "CAS"}
    assert four.meta["eps"] == Recipe.suited_to("digits").attack.eps


def test_the_logs_of_gates_are_a_table_of_their_own(four: Result) -> None:
    rows = []
    for method in ("cifs", "cas"):
        log = pd.read_csv(f"{trained(method)}.csv")
        for gate in Checkpoint.read(trained(method)).gates:
            columns = {name: log[f"{gate.layer}.{name}"] for name in GATE_LOG}
            rows.append(
                pd.DataFrame(
                    {"model": trained(method).stem, "layer": gate.layer, "epoch": log["epoch"]}
                    | columns
                )
            )
    assert list(four.gates.columns) == ["model", "layer", "epoch", *GATE_LOG]
    pd.testing.assert_frame_equal(four.gates, pd.concat(rows, ignore_index=True))


def test_each_gate_has_a_row_for_each_epoch(tmp_path: Path) -> None:
    run("standard-cifs", tmp_path / "net.pt", data=digits(2), arch="resnet18", width=1)
    found = compare([tmp_path / "net.pt"], digits(2), **QUICK)
    rows = list(found.gates[["model", "epoch", "layer"]].itertuples(index=False, name=None))
    assert rows == [("net", epoch, layer) for layer in ("layer4.0", "layer4.1") for epoch in (1, 2)]


def test_without_gates_their_table_is_empty() -> None:
    found = some()
    assert list(found.gates.columns) == ["model", "layer", "epoch", *GATE_LOG]
    assert found.gates.empty


def test_paths_checkpoints_and_networks_are_the_same_network() -> None:
    path = trained("cifs")
    forms = [{"net": path}, {"net": str(path)}, {"net": Checkpoint.read(path)}]
    known = [compare(models, digits(), **QUICK) for models in forms]
    bare = compare(
        {"net": Checkpoint.read(path).build()}, digits(), methods={"net": "cifs"}, **QUICK
    )
    equal(known[0], known[1])
    equal(known[0], known[2])
    pd.testing.assert_frame_equal(known[0].activations, bare.activations)
    assert bare.meta["models"]["net"]["method"] == "cifs"


def test_c4_says_that_training_is_not_on_record() -> None:
    bare = {"at": Checkpoint.read(trained("at")).build(), "cifs": trained("cifs")}
    found = compare(bare, digits(), methods={"at": "at"}, **QUICK)
    verdict = found.verdicts.set_index("claim").loc["C4"]
    assert "equal compute is not on record" in verdict["statement"]


@pytest.mark.parametrize("settings", [None, 3, {}, {"recipe": 3}, {"recipe": {}}, "x"], ids=str)
def test_a_checkpoint_with_records_of_another_kind_compares(settings: Any, tmp_path: Path) -> None:
    known = Checkpoint.read(trained("at"))
    for key in ("settings", "history", "metrics", "versions"):
        changed = {**known.meta, key: settings}
        Checkpoint(**{**vars(known), "meta": changed}).save(tmp_path / "net.pt")
        with refusal_allowed():
            compare([tmp_path / "net.pt"], digits(), **QUICK)


# ---------------------------------------------------------------- the same again


def test_the_same_seed_gives_the_same_frames() -> None:
    one = some(seed=4, images=11)
    torch.manual_seed(9)
    with randomness_untouched():
        other = some(seed=4, images=11)
    equal(one, other)


def test_the_blocks_do_not_change_natural_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    model = networks.resnet("resnet18")
    frames = []
    for size in (3, 7, 128):
        monkeypatch.setattr("channelscope.data.blocks.MOST", size)
        found = compare({"net": model}, images(), layers=["layer2", "layer4"], **QUICK)
        frames.append(found.activations[found.activations["data"] == "natural"])
        assert found.robustness["accuracy"][0] == found.arrays["correct/0/natural"].mean()
    for frame in frames[1:]:
        pd.testing.assert_frame_equal(frame, frames[0], rtol=1e-5, atol=1e-7)


def test_the_images_are_chosen_by_the_seed_with_class_shares_kept() -> None:
    few, again, other = (some(images=10, seed=seed) for seed in (0, 0, 1))
    assert few.meta["data"]["images"] == 10
    assert sorted(few.arrays["labels"].tolist()) == sorted([0, 1, 2, 3, 4] * 2)
    assert few.meta["data"]["fingerprint"] == again.meta["data"]["fingerprint"]
    assert few.meta["data"]["fingerprint"] != other.meta["data"]["fingerprint"]


def test_all_images_are_used_unless_told() -> None:
    assert some().meta["data"]["images"] == some(images=20).meta["data"]["images"] == 20


# ---------------------------------------------------------------- layers and attacks


def test_layers_by_label() -> None:
    models = {"a": plain(), "b": networks.resnet(), "c": plain()}
    found = compare(models, images(), layers={"a": ["conv1", "relu2"], "b": ["layer1.0"]}, **QUICK)
    layers = {model: known["layers"] for model, known in found.meta["models"].items()}
    assert layers == {"a": ["conv1", "relu2"], "b": ["layer1.0"], "c": ["relu2"]}
    assert [*found.activations.groupby("model", sort=False)["layer"].unique()["a"]] == [
        "conv1",
        "relu2",
    ]


def test_a_layer_may_be_named_by_call() -> None:
    found = compare({"net": networks.Twice()}, images(), layers=["relu@0", "relu@1"], **QUICK)
    assert set(found.activations["layer"]) == {"relu@0", "relu@1"}


class Noise:
    """An attack of the user's own."""

    eps = 0.1

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        noise = 2 * torch.rand(x.shape, generator=generator) - 1
        return (x + self.eps * noise).clamp(0, 1)

    def __str__(self) -> str:
        return "noise"


def test_an_attack_of_the_users_own() -> None:
    found = compare({"net": gated()}, images(), **QUICK | {"attack": Noise()})
    assert list(found.robustness["attack"].unique()) == ["natural", "noise", "worst"]
    assert (found.meta["attack"], found.meta["eps"]) == ("noise", 0.1)


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (FGSM(eps=0.1), "fgsm"),
        (PGD(eps=0.5, steps=2, norm="2", restarts=2), "pgd-2x2-l2"),
        ("fgsm-l2", "fgsm-l2"),
    ],
    ids=str,
)
def test_attacks_by_name_or_as_such(attack: Any, name: str) -> None:
    found = compare({"net": gated()}, images(), **QUICK | {"attack": attack})
    assert list(found.robustness["attack"].unique()) == ["natural", name, "worst"]


def test_worst_case_is_over_further_attacks() -> None:
    found = compare(
        {"net": gated()}, images(), **QUICK | {"attacks": ["fgsm", JointSweep(attack=PGD(steps=2))]}
    )
    accuracy = found.robustness.query("`class` == 'all'").set_index("attack")["accuracy"]
    assert list(accuracy.index) == ["natural", "pgd-2", "fgsm", "pgd-2:joint-sweep", "worst"]
    assert accuracy["worst"] <= accuracy.min()
    assert found.meta["attacks"] == ["fgsm", "pgd-2:joint-sweep"]
    assert found.meta["models"]["net"]["attacks"] == ["pgd-2", "fgsm", "pgd-2:joint-sweep"]


def test_eps_zero_leaves_everything_alike() -> None:
    found = some(eps=0.0)
    table = found.alignment.set_index(["class", "measure"])["value"]
    assert table["all", "cosine"] == pytest.approx(1)
    assert table["all", "shift"] == 0
    accuracy = found.robustness.set_index(["attack", "class"])["accuracy"]
    assert accuracy["worst", "all"] == accuracy["natural", "all"]


# ---------------------------------------------------------------- mistakes


def colour() -> tuple[Tensor, Tensor]:
    return images(channels=3)


def with_nan() -> tuple[Tensor, Tensor]:
    x, y = images()
    x[0, 0, 0, 0] = float("nan")
    return x, y


NET = {"net": net()}
MISTAKES: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "no models": ({}, images(), {}, "no network"),
    "no models in a list": ([], images(), {}, "no network"),
    "two files of one name": (["a/net.pt", "b/net.pt"], images(), {}, "label"),
    "a missing file": (["net.pt"], images(), {}, "net.pt"),
    "other classes": (NET, images(classes=7), {}, "classes"),
    "classes of other names": (
        {"net": trained("at")},
        Dataset("mine", ("a", "b", "c", "d"), digits().test),
        {},
        "0, 1",
    ),
    "a wrong layer": (NET, images(), {"layers": ["conv"]}, "Did you mean"),
    "a wrong layer by label": (NET, images(), {"layers": {"net": ["relu3"]}}, "Did you mean"),
    "layers of a model that is not there": (NET, images(), {"layers": {"nets": ["conv1"]}}, "nets"),
    "layers as one text": (NET, images(), {"layers": "conv1"}, "list"),
    "no layers": (NET, images(), {"layers": []}, "layer"),
    "a method of a model that is not there": (NET, images(), {"methods": {"nets": "at"}}, "nets"),
    "a method that is none": (NET, images(), {"methods": {"net": "magic"}}, "magic"),
    "eps with an attack": (NET, images(), {"attack": PGD(), "eps": 0.1}, "eps"),
    "an unknown attack": (NET, images(), {"attack": "cw"}, "pgd-20"),
    "an attack without steps": (NET, images(), {"attack": "pgd-0"}, "step"),
    "a negative eps": (NET, images(), {"eps": -0.1}, "eps"),
    "an eps that is no number": (NET, images(), {"eps": float("nan")}, "eps"),
    "no images": (NET, images(), {"images": 0}, "image"),
    "too many images": (NET, images(), {"images": 21}, "20"),
    "a negative number of images": (NET, images(), {"images": -1}, "at least one image"),
    "images out of range": (NET, (images()[0] * 255, images()[1]), {}, "[0, 1]"),
    "images of NaN": (NET, with_nan(), {}, "NaN"),
    "colour images": (NET, colour(), {}, "(3, 8, 8)"),
    "no replicates": (NET, images(), {"replicates": 0}, "replicate"),
    "a level of 1": (NET, images(), {"level": 1.0}, "level"),
    "a level that is no number": (NET, images(), {"level": float("nan")}, "level"),
    "no images per batch": (NET, images(), {"batch_size": 0}, "batch"),
    "an unknown data set": (NET, "digit", {}, "digits"),
    "labels too few": (NET, (images()[0], images()[1][:-1]), {}, "Labels"),
    "a class called all": (
        NET,
        Dataset("mine", ("a", "b", "c", "d", "all"), MemorySplit(*images())),
        {},
        "all",
    ),
    "a class called across": (
        NET,
        Dataset("mine", ("a", "b", "c", "d", "across"), MemorySplit(*images())),
        {},
        "across",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_in_a_sentence(case: str) -> None:
    models, data, settings, words = MISTAKES[case]
    with mistake(words):
        compare(models, data, **{**QUICK, **settings})


def test_a_wrong_layer_is_an_error_of_its_own() -> None:
    with pytest.raises(LayerError):
        some(layers=["conv9"])


def test_damaged_weights_are_told() -> None:
    model = plain()
    model.linear.weight.data.fill_(float("nan"))
    with mistake("not finite"):
        compare({"net": model}, images(), layers=["conv1"], **QUICK)


# ---------------------------------------------------------------- saving

WEIRD = ("NA", "nan", "<script>alert(1)</script>", "../x", 'a "b", c; d', " ")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take long: put a file in their place."""

    def draw(_self: Result, folder: Path, **_how: Any) -> None:
        (Path(folder) / "figures").mkdir(exist_ok=True)
        for ending in ("csv", "png"):
            (Path(folder) / "figures" / f"drawn.{ending}").write_bytes(b"drawn")
        (Path(folder) / "report.html").write_text("report")

    monkeypatch.setattr(Result, "draw", draw)


def weird() -> Result:
    """Compare on classes of difficult names, the last of which have no images."""
    few = MemorySplit(*images(12, classes=3))
    data = Dataset("mine <b>", WEIRD, few)
    models = {
        "NA": networks.resnet(classes=len(WEIRD)),
        "nan <i>": networks.resnet(classes=len(WEIRD)),
    }
    return compare(models, data, methods={"NA": "standard", "nan <i>": "at"}, **QUICK)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """Draw one comparison."""
    torch.manual_seed(0)
    found = weird()
    return found, found.save(tmp_path_factory.mktemp("saved") / "out", progress=False)


def test_a_comparison_comes_back_as_it_was(saved: tuple[Result, Path]) -> None:
    found, folder = saved
    again = Result.load(folder)
    equal(found, again)
    assert again.meta["created"] == found.meta["created"]
    assert list(again.activations["class"].unique()) == list(WEIRD)


def test_a_comparison_of_checkpoints_comes_back(
    four: Result, undrawn: None, tmp_path: Path
) -> None:
    four.save(tmp_path / "out", progress=False)
    again = Result.load(str(tmp_path / "out"))
    equal(four, again)
    assert set(again.training["best"]) == {0, 1}
    again.save(tmp_path / "again", progress=False)
    for name in four.tables:
        assert (tmp_path / "out" / f"{name}.csv").read_bytes() == (
            tmp_path / "again" / f"{name}.csv"
        ).read_bytes()


def test_what_is_the_same_on_both_kinds_of_images_is_written_once(
    undrawn: None, tmp_path: Path
) -> None:
    result = some()
    folder = result.save(tmp_path / "out", progress=False)
    with np.load(folder / "arrays.npz") as archive:
        written = {name for name in archive.files if name.startswith("tables/activations/")}
    kinds = [group[1] for group in result.tables["activations"].groups]
    once = [f"tables/activations/{kinds.index('natural')}/relevance"]
    assert [name for name in written if name.endswith("/relevance")] == once
    assert len([name for name in written if name.endswith("/magnitude")]) == 2
    equal(result, Result.load(folder))


def test_a_folder_holds_tables_figures_and_a_page(saved: tuple[Result, Path]) -> None:
    found, folder = saved
    names = {
        "arrays.npz",
        "meta.json",
        DIGESTS,
        "figures",
        "report.html",
        *(f"{name}.csv" for name in found.tables),
    }
    assert {path.name for path in folder.iterdir()} == names
    assert {path.name for path in folder.parent.iterdir()} == {"out"}
    pictures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert pictures == {path.stem for path in (folder / "figures").glob("*.pdf")}
    assert {"relevance", "robustness"} <= pictures
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "mine <b>" not in page


def test_a_class_without_images_is_nan_and_counts_0(saved: tuple[Result, Path]) -> None:
    found, _ = saved
    for name in WEIRD[3:]:
        rows = found.activations[found.activations["class"] == name]
        assert len(rows)
        assert rows[["magnitude", "frequency", "relevance"]].isna().all().all()
        assert (rows["count"] == 0).all()
        for frame, value in ((found.alignment, "value"), (found.robustness, "accuracy")):
            assert frame[frame["class"] == name][[value, "low", "high"]].isna().all().all()
        assert (found.robustness[found.robustness["class"] == name]["count"] == 0).all()
    for name in WEIRD[:3]:
        assert not found.activations[found.activations["class"] == name].isna().any().any()
    overall = found.alignment[
        (found.alignment["class"] == "all") & (found.alignment["measure"] == "cosine")
    ]
    assert not overall["value"].isna().any()


def test_the_tables_are_the_same_bytes_for_the_same_input(undrawn: None, tmp_path: Path) -> None:
    for name in ("one", "other"):
        some().save(tmp_path / name, progress=False)
    one, other = (contents(tmp_path / name) for name in ("one", "other"))
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} <= {
        "meta.json",
        DIGESTS,
    }  # the time, and its digest


def test_an_earlier_comparison_is_replaced(undrawn: None, tmp_path: Path) -> None:
    some(seed=1).save(tmp_path / "out", progress=False)
    for ending in ("csv", "png"):
        (tmp_path / "out" / "figures" / f"magnitude-old.{ending}").write_bytes(b"old")
    some(seed=2).save(tmp_path / "out", progress=False)
    assert Result.load(tmp_path / "out").meta["seed"] == 2
    assert not (tmp_path / "out" / "figures" / "magnitude-old.png").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_empty_folder_is_filled(undrawn: None, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    some().save(tmp_path / "out", progress=False)
    assert Result.load(tmp_path / "out")


def test_the_working_folder_can_be_filled(
    undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    some().save(".", progress=False)
    assert Result.load(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    "mine",
    [
        {"thesis.tex": "mine"},
        {"meta.json": "{}", "thesis.tex": "mine"},
        {"meta.json": '{"models": 3}'},
        {".git": ""},
    ],
    ids=["other files", "other files and a meta.json", "a foreign meta.json", "a hidden file"],
)
def test_a_folder_of_something_else_is_refused(
    undrawn: None, mine: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    for name, text in mine.items():
        (tmp_path / "out" / name).write_text(text)
    before = contents(tmp_path)
    with mistake("out"):
        some().save(tmp_path / "out", progress=False)
    with mistake("out"):
        check_folder(tmp_path / "out")
    assert contents(tmp_path) == before


def test_a_file_is_no_folder(undrawn: None, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for place in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with mistake("out"):
            some().save(place, progress=False)
    assert contents(tmp_path) == {"out": b"mine"}


FAILURES: dict[str, Any] = {
    "while drawing": (Result, "draw"),
    "in a table": (pd.DataFrame, "to_csv"),
    "in the arrays": (result_module, "_write_arrays"),
    "at the end": (result_module, "write_digests"),
}


@pytest.mark.parametrize("step", FAILURES)
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"]
)
def test_a_failure_while_saving_leaves_the_earlier_comparison(
    step: str, error: BaseException, undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some(seed=1).save(tmp_path / "out", progress=False)
    before, later = contents(tmp_path), some(seed=2)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(*FAILURES[step], fail)
        with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
            later.save(tmp_path / "out", progress=False)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("failing", [1, 2], ids=["first rename", "second rename"])
def test_a_rename_that_fails_leaves_the_earlier_comparison(
    failing: int, undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some(seed=1).save(tmp_path / "out", progress=False)
    before, later, rename, renames = contents(tmp_path), some(seed=2), Path.rename, []

    def fail(self: Path, target: Path) -> Path:
        renames.append(target)
        if len(renames) == failing:
            raise OSError(16, "Device or resource busy")
        return rename(self, target)

    with monkeypatch.context() as patched, mistake("busy"):
        patched.setattr(Path, "rename", fail)
        later.save(tmp_path / "out", progress=False)
    assert contents(tmp_path) == before


def test_saving_and_comparing_say_nothing_without_progress(
    undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some().save(tmp_path / "out", progress=False)
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------- loading


def rewrite(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


def change(folder: Path, table: str, column: str, value: Any) -> None:
    frame = pd.read_csv(folder / f"{table}.csv", keep_default_na=False).astype({column: object})
    frame.loc[0, column] = value
    frame.to_csv(folder / f"{table}.csv", index=False)


def rearranged(folder: Path, name: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
    with np.load(folder / "arrays.npz") as archive:
        arrays = dict(archive)
    wanted = [each for each in arrays if each.startswith(name) and not each.endswith("/images")]
    assert wanted
    np.savez(folder / "arrays.npz", **arrays | {each: how(arrays[each]) for each in wanted})


SPOILT: dict[str, Any] = {
    "no tables": lambda folder: [path.unlink() for path in folder.glob("*.csv")],
    "a missing table": lambda folder: (folder / "alignment.csv").unlink(),
    "an empty table": lambda folder: (folder / "robustness.csv").write_text(""),
    "bytes for a table": lambda folder: (folder / "robustness.csv").write_bytes(bytes(range(256))),
    "other columns": lambda folder: rewrite(folder, "alignment.csv", "measure", "size"),
    "words for numbers": lambda folder: rewrite(folder, "alignment.csv", ",cosine,", ",cosine,x"),
    "lines of unequal length": lambda folder: append(
        folder / "alignment.csv", "1,2,3,4,5,6,7,8,9\n"
    ),
    "a table cut short": lambda folder: (folder / "confusion.csv").write_text(
        (folder / "confusion.csv").read_text()[:-3]
    ),
    "a table of other models": lambda folder: rewrite(folder, "confusion.csv", "net,", "nobody,"),
    "an array that lacks channels": lambda folder: rearranged(
        folder, "tables/flow/0/change", lambda array: array[:, 1:]
    ),
    "alignment of another layer": lambda folder: change(folder, "alignment", "layer", "elsewhere"),
    "a layer that was not measured": lambda folder: change(
        folder, "excitation", "layer", "elsewhere"
    ),
    "channels matched in no layer": lambda folder: change(folder, "excitation", "layer", ""),
    "a row twice": lambda folder: append(
        folder / "confusion.csv",
        (folder / "confusion.csv").read_text().splitlines(keepends=True)[-1],
    ),
    "an unknown class": lambda folder: change(folder, "robustness", "class", "elsewhere"),
    "an unknown answer": lambda folder: change(folder, "confusion", "answer", "elsewhere"),
    "a channel of no number": lambda folder: change(folder, "excitation", "channel", -1),
    "half a channel": lambda folder: change(folder, "excitation", "channel", 1.5),
    "an infinite magnitude": lambda folder: rearranged(
        folder, "tables/activations/0/magnitude", lambda array: array + np.inf
    ),
    "a magnitude beyond all axes": lambda folder: rearranged(
        folder, "tables/activations/0/magnitude", lambda array: array + 1e308
    ),
    "an accuracy beyond all axes": lambda folder: change(folder, "robustness", "accuracy", 1e308),
    "words for magnitudes": lambda folder: rearranged(
        folder, "tables/activations/0/magnitude", lambda array: array.astype(str)
    ),
    "data of another kind": lambda folder: rewrite(folder, "meta.json", '"adversarial"', '"sound"'),
    "half an image": lambda folder: change(folder, "excitation", "image", 0.5),
    "the image before the first": lambda folder: change(folder, "excitation", "image", -1),
    "pictures of two sizes": lambda folder: rearranged(
        folder, "thumbnails/natural", lambda array: array[..., :2]
    ),
    "pictures of nothing": lambda folder: rearranged(
        folder, "thumbnails/", lambda array: array[:, :0]
    ),
    "half a label": lambda folder: rearranged(folder, "labels", lambda array: array + 0.5),
    "no list of layers": lambda folder: rewrite(
        folder, "meta.json", '"penultimate": [', '"penultimate": 5, "x": ['
    ),
    "a strange recipe": lambda folder: rewrite(
        folder, "meta.json", '"method": ', '"settings": [3], "method": '
    ),
    "strange gates": lambda folder: rewrite(
        folder, "meta.json", '"method": ', '"gates": ["x"], "method": '
    ),
    "a level that is no number": lambda folder: rewrite(
        folder, "meta.json", '"level": 0', '"level": NaN, "x": 0'
    ),
    "an array that stands under no other name": lambda folder: rewrite(
        folder, "meta.json", '"shared": {', '"shared": {"labels2": "elsewhere", '
    ),
    "no arrays": lambda folder: (folder / "arrays.npz").unlink(),
    "empty arrays": lambda folder: (folder / "arrays.npz").write_bytes(b""),
    "pickled arrays": lambda folder: np.savez(
        folder / "arrays.npz", labels=np.array([{}], dtype=object)
    ),
    "no meta data": lambda folder: (folder / "meta.json").unlink(),
    "meta data cut short": lambda folder: (folder / "meta.json").write_text('{"models":'),
    "meta data that are a list": lambda folder: (folder / "meta.json").write_text("[]"),
    "meta data that are empty": lambda folder: (folder / "meta.json").write_text("{}"),
    "meta data in bytes": lambda folder: (folder / "meta.json").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_damaged_comparison_is_told(case: str, undrawn: None, tmp_path: Path) -> None:
    folder = some().save(tmp_path / "out", progress=False)
    (folder / DIGESTS).unlink()  # by which any change shows
    SPOILT[case](folder)
    with mistake(str(folder)):
        Result.load(folder)


def test_a_radius_may_be_a_whole_number(undrawn: None, tmp_path: Path) -> None:
    again = Result.load(
        some(eps=1, attacks="fgsm", attack="fgsm").save(tmp_path / "out", progress=False)
    )
    assert again.meta["eps"] == 1
    again.plot("relevance")


def test_what_is_no_comparison(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with mistake(str(path), "holds no result"):
            Result.load(path)


def test_a_link_to_a_folder_stays_a_link(undrawn: None, tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    some().save(link, progress=False)
    assert link.is_symlink()
    assert (real / "report.html").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link"}


@pytest.mark.usefixtures("unchecked")
def test_an_attack_without_a_radius_is_refused() -> None:
    with mistake("with an eps"):
        some(attack=lambda network, x, y, generator=None: x)


@pytest.mark.usefixtures("unchecked")
def test_models_are_given_by_label_or_path() -> None:
    for wrong in ("nat.pt", [net()], {"a": 3}, {"a\x1b": net()}):
        with pytest.raises(UserError):
            compare(wrong, images(), **QUICK)  # type: ignore[arg-type]


def test_c4_is_not_judged_where_the_recipes_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    # These networks are hardly trained: that they are near chance would be all that is said.
    monkeypatch.setattr("channelscope.analyses.claims.find_faults", lambda *_: ())
    paths = {method: trained(method) for method in ("at", "cifs")}

    def get_statement(**changed: Any) -> str:
        result = compare(paths | changed, digits(), **QUICK)
        return str(result.verdicts.set_index("claim").loc["C4", "statement"])

    assert "Not judged" not in get_statement()
    other = Checkpoint.read(paths["at"])
    other.meta["settings"]["recipe"]["attack"]["beta_atk"] = 7.0  # of gates alone
    assert "Not judged" not in get_statement(at=other)
    other.meta["settings"]["recipe"]["attack"]["eps"] = 0.0
    words = "Not judged: Their training differs beside the gates (attack.eps)."
    assert words in get_statement(at=other)
