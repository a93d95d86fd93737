"""Sweeps: every combination trained and attacked, gone on with after interruptions."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy import ndarray
from scipy import stats

import channelscope as cs
from channelscope import cli
from channelscope.analyses.sweeps import ACCURACIES
from channelscope.data import Dataset
from channelscope.recipes import ABLATIONS
from channelscope.result import Result
from channelscope.statistics.intervals import wilson
from channelscope.sweeps.record import (
    Training,
    compute_digest,
    pack_bits,
    sweep_rows,
    unpack_bits,
    variant_rows,
)
from channelscope.sweeps.variants import Variant, list_settings, make_variants, parse_values
from channelscope.training import Recipe
from channelscope.training.job import Job
from channelscope.weights import Checkpoint
from helpers.expect import contents, mistake
from helpers.runs import after_steps, digits, interrupted_at, write_npz

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]

SMALL: dict[str, Any] = {
    "arch": "resnet10",
    "width": 2,
    "epochs": 1,
    "batch_size": 16,
    "attack_steps": 1,
}
VARY = {"gates.options.imgf": ["softmax", "sigmoid"]}


def run(out: Path, **changes: Any) -> Result:
    settings = {"vary": VARY, "attack": "pgd-1", "progress": False, **SMALL, **changes}
    recipe, data = settings.pop("recipe", "cifs"), settings.pop("data", digits())
    return cs.sweep(recipe, data, out=out, device="cpu", **settings)


def without_seconds(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="seconds")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Make a sweep of two variants with two seeds each, which no test may change."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    return out, run(out, seeds=2)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures, which take long."""
    monkeypatch.setattr(Result, "draw", lambda *_, **__: None)


# ---------------------------------------------------------------- what a sweep leaves behind


def test_each_variant_is_trained_with_each_seed(swept: tuple[Path, Result]) -> None:
    out, result = swept
    table = result.sweep
    expected = [("softmax", 0), ("softmax", 1), ("sigmoid", 0), ("sigmoid", 1)]
    assert list(zip(table["gates.options.imgf"], table["seed"], strict=True)) == expected
    for file, (imgf, seed) in zip(table["file"], expected, strict=True):
        checkpoint = Checkpoint.read(out / file)
        assert {gate.options["imgf"] for gate in checkpoint.gates} == {imgf}
        assert checkpoint.meta["settings"]["seed"] == seed
        assert checkpoint.meta["settings"]["recipe"]["model"] == {"arch": "resnet10", "width": 2}
    names = {f"imgf-{imgf}-s{seed}.pt" for imgf, seed in expected}
    files = {path.name for path in out.iterdir()}
    assert files == names | {f"{name}.csv" for name in names} | {"sweep.json", "result"}
    figures = {path.name for path in (out / "result" / "figures").iterdir()}
    assert {"sweep.pdf", "sweep.png", "sweep.csv"} <= figures


def test_the_table_has_what_a_comparison_of_each_network_finds(swept: tuple[Path, Result]) -> None:
    out, result = swept
    files = [out / file for file in result.sweep["file"]]
    attacks = ["pgd-1", "pgd-1:joint-sweep"]  # as a sweep has them
    options = {"attack": "pgd-1", "eps": 0.15, "replicates": 20, "progress": False}
    robustness = cs.compare(files, digits(), attacks=attacks, **options).robustness
    overall = robustness[robustness["class"] == "all"].set_index(["model", "attack"])
    for row in result.sweep.to_dict("records"):
        for column, attack in (("natural", "natural"), ("attacked", "pgd-1"), ("robust", "worst")):
            expected = overall.loc[(Path(row["file"]).stem, attack), ["accuracy", "low", "high"]]
            measured = [row[f"{column}{end}"] for end in ("", "_low", "_high")]
            assert measured == pytest.approx(expected.tolist(), nan_ok=True)


def test_natural_accuracy_is_the_share_of_correct_test_images(swept: tuple[Path, Result]) -> None:
    out, result = swept
    x, y = next(digits().test.batches(1000))
    columns = result.sweep[["file", "natural", "robust"]]
    for file, natural, robust in columns.itertuples(index=False):
        with torch.no_grad():
            answers = Checkpoint.read(out / file).build()(x).argmax(1)
        assert natural == pytest.approx(float((answers == y).float().mean()))
        assert robust <= natural


def test_the_table_has_the_validation_figures_of_the_log(swept: tuple[Path, Result]) -> None:
    out, result = swept
    for row in result.sweep.to_dict("records"):
        log = pd.read_csv(out / f"{row['file']}.csv")
        best = log[log["best"]].iloc[0]
        for name in ("val_natural", "val_robust"):
            assert row[name] == best[name]
        expected = (best["epoch"], len(log), "")
        assert (row["best_epoch"], row["trained_epochs"], row["trouble"]) == expected
        assert row["seconds"] == pytest.approx(log["seconds"].sum())


def test_the_result_can_be_loaded(swept: tuple[Path, Result]) -> None:
    out, result = swept
    loaded = Result.load(out / "result", kind="sweep")
    pd.testing.assert_frame_equal(
        loaded.sweep[result.sweep.columns], result.sweep, check_dtype=False
    )
    assert loaded.meta["title"] == "cifs on digits, by imgf"


def test_the_record_says_how_the_table_came_about(swept: tuple[Path, Result]) -> None:
    out, result = swept
    record = json.loads(
        (out / "sweep.json").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    settings = record["settings"]
    assert settings["vary"] == VARY
    assert settings["recipe"]["model"] == {"arch": "resnet10", "width": 2}
    assert (settings["attack"], settings["eps"], settings["level"]) == ("pgd-1", 0.15, 0.95)
    assert settings["data"]["test"] == digits().test.fingerprint()
    assert record["images"] == {"train": 48, "val": 24, "test": 20}
    assert record["versions"]["torch"] == torch.__version__
    assert set(record["results"]) == set(result.sweep["file"])


def test_a_part_of_the_images_is_used_the_same_for_all(undrawn: None, tmp_path: Path) -> None:
    table = run(tmp_path, seeds=2, images=24, test_images=8, vary={"beta": [1]}).sweep
    expected = digits().limited(24, 0).train.fingerprint()
    for file in table["file"]:
        data = Checkpoint.read(tmp_path / file).meta["settings"]["data"]
        assert data["train"] == expected
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert record["images"] == {"train": 24, "val": 24, "test": 8}


def test_the_test_has_a_radius_of_its_own(undrawn: None, tmp_path: Path) -> None:
    table = run(tmp_path, test_eps=0.0, vary={"k": [1]}).sweep
    assert table["robust"].tolist() == table["natural"].tolist()


# ---------------------------------------------------------------- variants


def variants(
    ablation: str | None = None, vary: Mapping[str, Sequence[Any]] | None = None, **changes: Any
) -> list[Variant]:
    base = Recipe.suited_to("digits", "cifs").override(**{**SMALL, **changes})
    return make_variants(base, list_settings(ablation, vary or {}))


@pytest.mark.parametrize(
    ("name", "read", "expected"),
    [
        (
            "imgf",
            lambda recipe: recipe.gates.options["imgf"],
            ["softmax", "softmax-abs", "sigmoid", "softplus", "relu"],
        ),
        (
            "sigmoid",
            lambda recipe: (recipe.gates.options["imgf"], recipe.gates.options["scale"]),
            [("sigmoid", scale) for scale in (0.1, 1, 5, 10, 15)],
        ),
        (
            "softplus",
            lambda recipe: (recipe.gates.options["imgf"], recipe.gates.options["sharpness"]),
            [("softplus", sharpness) for sharpness in (1, 5, 10, 20)],
        ),
        (
            "temperature",
            lambda recipe: recipe.gates.options["temperature"],
            [0.5, 1, 2, 4, 8, 24],
        ),
        ("budget", lambda recipe: recipe.gates.options["budget"], [1, 2, "channels"]),
        ("top-k", lambda recipe: recipe.gates.options["k"], [1, 2, 3, [2, 1], [3, 1]]),
        (
            "beta",
            lambda recipe: (recipe.gates.beta, recipe.attack.beta_atk),
            [(b, b) for b in (0.5, 1, 2, 4)],
        ),
        (
            "probes",
            lambda recipe: recipe.gates.probes,
            [("linear",), ("two-layer", "linear"), ("two-layer",)],
        ),
        (
            "layers",
            lambda recipe: recipe.gates.layers,
            [
                ("layer4.0", "layer4.1"),
                ("layer3.1", "layer4.0", "layer4.1"),
                ("layer3.0", "layer3.1", "layer4.0", "layer4.1"),
            ],
        ),
        (
            "one-gate",
            lambda recipe: (recipe.gates.layers, recipe.gates.probes),
            [
                ((layer,), (probe,))
                for layer in ("layer3", "layer4.0", "layer4.1")
                for probe in ("linear", "two-layer")
            ],
        ),
    ],
)
def test_the_papers_ablations_have_names(
    name: str, read: Callable[[Recipe], Any], expected: list[Any]
) -> None:
    made = variants(name, arch="resnet18")
    assert [read(variant.recipe) for variant in made] == expected
    assert len({variant.name for variant in made}) == len(expected)
    for variant in made:
        assert Job(variant.recipe, digits(), Path("net.pt"), 0).gates, "they fit the network"


def test_all_ablations_are_tested() -> None:
    of_masks = {"imgf", "sigmoid", "softplus", "temperature", "budget"}
    assert set(ABLATIONS) == of_masks | {"top-k", "beta", "probes", "layers", "one-gate"}


def test_two_settings_can_take_the_same_value() -> None:
    made = variants(vary={"gates.beta+attack.beta_atk": [0.5, 3]})
    weights = [(variant.recipe.gates.beta, variant.recipe.attack.beta_atk) for variant in made]
    assert weights == [(0.5, 0.5), (3, 3)]
    assert [variant.name for variant in made] == ["beta 0.5", "beta 3"]


def test_an_ablation_and_a_free_setting_are_combined() -> None:
    made = variants("top-k", {"gates.probes": [["linear"], ["two-layer"]]})
    assert [variant.name for variant in made] == [
        f"k {k}, probes {probe}"
        for k in ("1", "2", "3", "2+1", "3+1")
        for probe in ("linear", "two-layer")
    ]
    assert Training(made[1], 0).file == "k-1_probes-two-layer-s0.pt"


@pytest.mark.parametrize(
    ("vary", "names"),
    [
        ({"averaging.kind": ["none", "ema"]}, ["averaging none", "averaging ema"]),
        (
            {"averaging.start": [0.25], "attack.start": [True, 1e-3]},
            [
                "averaging.start 0.25, attack.start true",
                "averaging.start 0.25, attack.start 0.001",
            ],
        ),
        ({"attack.eps": ["8/255", "4/255"]}, ["eps 8/255", "eps 4/255"]),
        ({"optimizer.lr": [1e-5, 1e5]}, ["lr 1e-05", "lr 100000"]),
        ({"gates.layers": [[], ["layer3.0"]]}, ["layers []", "layers layer3.0"]),
    ],
)
def test_variants_have_names_that_tell_them_apart_and_do_for_files(
    vary: dict[str, Any], names: list[str]
) -> None:
    made = variants(vary=vary)
    assert [variant.name for variant in made] == names
    slugs = pd.Series([variant.slug for variant in made])
    assert slugs.is_unique
    assert slugs.str.fullmatch(r"[A-Za-z0-9.+_-]+").all()


def test_files_of_long_names_are_told_apart() -> None:
    names = ("momentum", "decay", "averaging.start", "trade_off", "smoothing", "beta_atk")
    alike = {name: [0.5] for name in names} | {"gates.layers": [["layer1.0", "layer2.0"]]}
    files = [
        Training(variant, 0).file
        for variant in variants(vary={**alike, "scaled": [True], "beta": [1, 2]})
    ]
    assert len(set(files)) == 2
    assert max(map(len, files)) < 140


def test_a_row_is_made_of_each_result() -> None:
    made = variants(vary={"gates.layers": [["layer4.0", "layer3.0"], []], "k": [1]})
    trainings = [Training(variant, seed) for variant in made for seed in (0, 1)]
    results = {
        trainings[0].file: {"natural": 0.5, "best_epoch": 3},
        trainings[3].file: {"trouble": "No."},
    }
    table = sweep_rows(trainings, ["gates.layers", "k"], results)
    assert table["gates.layers"].tolist() == ["layer4.0+layer3.0", "[]"]
    assert table["k"].tolist() == [1, 1]
    assert table["seed"].tolist() == [0, 1]
    assert table["trouble"].tolist() == ["", "No."]
    assert table["natural"].tolist() == pytest.approx([0.5, np.nan], nan_ok=True)
    assert table["best_epoch"].tolist() == [3, pd.NA]


def draw_correct(seeds: int, images: int, spread: float) -> ndarray:
    """Draw which images networks are correct on, whose accuracies differ by seed."""
    rng = np.random.default_rng(1)
    accuracy = 0.5 + spread * rng.standard_normal((seeds, 1))
    return rng.random((seeds, images)) < accuracy


def make_variant(correct: ndarray) -> pd.Series:
    """Return the row of a variant whose networks are correct on these images."""
    (variant,) = variants(vary={"k": [1]})
    trainings = [Training(variant, seed) for seed in range(len(correct))]
    results = {
        training.file: {"correct": dict.fromkeys(ACCURACIES, pack_bits(row))}
        for training, row in zip(trainings, correct, strict=True)
    }
    return variant_rows(trainings, results, correct.shape[1], 0.95).iloc[0]


def test_the_interval_of_a_variant_is_that_of_its_seeds_where_they_differ_most() -> None:
    correct = draw_correct(5, 2000, 0.1)
    row, accuracy = make_variant(correct), correct.mean(1)
    reach = stats.t.ppf(0.975, 4) * accuracy.std(ddof=1) / np.sqrt(5)
    expected = [accuracy.mean(), accuracy.mean() - reach, accuracy.mean() + reach]
    names = ["robust", "robust_low", "robust_high"]
    np.testing.assert_allclose(row[names].astype(float), expected, atol=0.1 * reach)
    assert (row["variant"], row["seeds"]) == ("k 1", 5)


def test_the_interval_of_a_variant_is_never_narrower_than_that_of_the_images() -> None:
    once = draw_correct(1, 400, 0.0)
    ends = ["natural_low", "natural_high"]
    alone = wilson(int(once.sum()), 400)
    assert make_variant(once)[ends].tolist() == pytest.approx([alone.low, alone.high])
    same = make_variant(np.repeat(once, 3, axis=0))  # as if seeds changed nothing
    assert same[ends].tolist() == pytest.approx([alone.low, alone.high], abs=0.01)
    perfect = make_variant(np.ones((3, 400), bool))
    assert 0.98 < perfect["natural_low"] < perfect["natural_high"] == 1


def test_a_variant_without_results_has_no_mean() -> None:
    (variant,) = variants(vary={"k": [1]})
    trainings = [Training(variant, 0)]
    row = variant_rows(trainings, {trainings[0].file: {"trouble": "No."}}, 20, 0.95).iloc[0]
    assert row["seeds"] == 0
    assert row.drop(["variant", "seeds"]).isna().all()


@given(arrays(bool, st.integers(1, 40)))
def test_packed_bits_are_read_again(correct: ndarray) -> None:
    assert unpack_bits(pack_bits(correct), len(correct)).tolist() == correct.tolist()


def test_the_means_are_those_of_the_networks(swept: tuple[Path, Result]) -> None:
    _, result = swept
    means = result.sweep.groupby("variant", sort=False)[[*ACCURACIES]].mean()
    table = result.variants.set_index("variant")
    pd.testing.assert_frame_equal(table[[*ACCURACIES]], means)
    assert (table["seeds"] == 2).all()
    for name in ACCURACIES:
        assert (table[f"{name}_low"] <= table[name]).all()
        assert (table[name] <= table[f"{name}_high"]).all()


# ---------------------------------------------------------------- going on


def without_training() -> AbstractContextManager[None]:
    """Let any step of training fail."""
    return after_steps(lambda _: pytest.fail("trained again"))


def test_a_complete_sweep_is_used_again(swept: tuple[Path, Result], undrawn: None) -> None:
    """The record has the time of the last comparison, so none was made again."""
    out, result = swept
    files = [out / "sweep.json", *(out / file for file in result.sweep["file"])]
    before = [file.read_bytes() for file in files]
    with without_training():
        again = run(out, seeds=2)
    pd.testing.assert_frame_equal(again.sweep, result.sweep)
    assert [file.read_bytes() for file in files] == before


def test_an_interrupted_sweep_goes_on_to_the_same_end(
    swept: tuple[Path, Result], undrawn: None, tmp_path: Path
) -> None:
    """Stopped in the first network's training, then in the second's; one is lost since."""
    _, result = swept
    for step, complete in ((2, 0), (4, 1)):  # three steps are a network's
        with interrupted_at(step):
            run(tmp_path)
        record = json.loads((tmp_path / "sweep.json").read_text())
        assert len(record["results"]) == complete
    (tmp_path / "imgf-softmax-s0.pt").unlink()  # trained and attacked again
    (tmp_path / "imgf-softmax-s0.pt.csv").unlink()
    expected = result.sweep[result.sweep["seed"] == 0].reset_index(drop=True)
    again = run(tmp_path).sweep
    pd.testing.assert_frame_equal(without_seconds(again), without_seconds(expected))


def test_seeds_can_be_added(undrawn: None, tmp_path: Path) -> None:
    first = run(tmp_path, vary={"k": [1]}).sweep
    written = (tmp_path / "k-1-s0.pt").stat().st_mtime_ns
    both = run(tmp_path, vary={"k": [1]}, seeds=2).sweep
    assert both["seed"].tolist() == [0, 1]
    pd.testing.assert_frame_equal(both[:1], first)
    assert (tmp_path / "k-1-s0.pt").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epochs": 2}, "recipe"),
        ({"recipe": "trades-cifs"}, "recipe"),
        ({"vary": {"gates.options.imgf": ["softmax"]}}, "vary"),
        ({"vary": {"gates.options.imgf": ["sigmoid", "softmax"]}}, "vary"),
        ({"attack": "pgd-2"}, "attack"),
        ({"test_eps": 0.1}, "eps"),
        ({"images": 24}, "data"),
        ({"test_images": 8}, "data"),
        ({"data": digits(2)}, "data"),
    ],
)
def test_a_sweep_of_other_settings_is_refused(
    changes: dict[str, Any], named: str, swept: tuple[Path, Result]
) -> None:
    out, _ = swept
    before = contents(out)
    with mistake("a sweep of other settings", f"({named})", "--out"):
        run(out, **changes)
    assert contents(out) == before


def signed(settings: Any, results: Any) -> str:
    meta = {"settings": settings, "results": results}
    return json.dumps(meta | {"digest": compute_digest(meta)})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        signed(1, {}),
        signed({}, 1),
        signed({}, {}).replace('"results": {}', '"results": {"a": {}}'),
    ],
)
def test_a_damaged_record_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with mistake("sweep.json is damaged", "delete it"):
        run(tmp_path)


def test_without_its_record_a_sweep_uses_its_networks_again(
    swept: tuple[Path, Result], undrawn: None, tmp_path: Path
) -> None:
    out, result = swept
    for file in ("imgf-softmax-s0.pt", "imgf-sigmoid-s0.pt"):
        (tmp_path / file).write_bytes((out / file).read_bytes())
    before = contents(tmp_path)
    with without_training():
        again = run(tmp_path).sweep
    expected = result.sweep[result.sweep["seed"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, expected)
    assert before.items() <= contents(tmp_path).items()


# ---------------------------------------------------------------- what fails, and mistakes


def test_a_network_that_cannot_be_trained_does_not_stop_the_others(tmp_path: Path) -> None:
    rates = {"optimizer.lr": [1e6, 0.1]}
    table = run(tmp_path, vary=rates, schedule_shape="flat").sweep
    assert "no longer a number" in table["trouble"][0]
    assert table.loc[0, ["natural", "robust", "val_robust", "best_epoch"]].isna().all()
    assert table["trouble"][1] == ""
    assert 0 <= table["robust"][1] <= 1
    assert (tmp_path / "result" / "figures" / "sweep.png").exists()
    loaded = Result.load(tmp_path / "result").sweep
    assert loaded["trouble"].tolist() == table["trouble"].tolist()
    json.loads(
        (tmp_path / "sweep.json").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )


def test_too_little_memory_for_one_does_not_stop_the_others(undrawn: None, tmp_path: Path) -> None:
    """Where Python or torch says so, in the training of the first network."""
    steps = iter([True, *[False] * 100])

    def fail(_: torch.optim.SGD) -> None:
        if next(steps):
            raise torch.OutOfMemoryError

    with after_steps(fail):
        table = run(tmp_path).sweep
    assert table["trouble"].tolist() == ["There is not enough memory for it.", ""]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"vary": None},
            "Nothing varies: name an ablation (imgf, sigmoid, softplus, temperature, "
            "budget, top-k, probes, beta, layers, one-gate)",
        ),
        ({"ablation": "imfg"}, "There is no ablation 'imfg': choose from"),
        ({"ablation": "imgf"}, "The ablation imgf varies gates.options.imgf already"),
        ({"vary": {"k": []}}, "k varies over a list of values, as in [1, 2], not over []."),
        (
            {"vary": {"imgf": "softmax"}},
            "imgf varies over a list of values, as in [1, 2], not over 'softmax'.",
        ),
        ({"vary": {"imfg": ["softmax"]}}, "A recipe has no setting 'imfg'."),
        ({"vary": {"imgf": ["softmax", "softmx"]}}, "not 'softmx'"),
        ({"vary": {"k": [1, 5]}}, "k = 5 of 4"),
        ({"vary": {"k": [1, 1]}}, "'k 1' and 'k 1' are the same training"),
        (
            {"vary": {"imgf": ["relu"], "gates.options.imgf": ["softmax", "sigmoid"]}},
            "are one setting",
        ),
        ({"vary": {"k": [1, 2], "gates.options.k": [3]}}, "are one setting"),
        ({"recipe": "at"}, "are the same training: vary something else. The recipe has no gates."),
        (
            {"vary": {"gates.layers": [["layer3", "layer4"], ["layer5.0"]]}},
            "'layer5.0'. Did you mean",
        ),
        ({"vary": {"width": [2, 0]}}, "width"),
        ({"vary": {"arch": ["resnet10", "resnet11"]}}, "'resnet11'"),
        ({"recipe": "cisf"}, "Did you mean 'cifs'"),
        ({"epochs": 0}, "epochs"),
        ({"attack": "pdg-20"}, "'pdg-20'"),
        ({"seeds": 0}, "seeds is a number of networks of each variant, from 1 up, not 0."),
        ({"images": 2}, "2"),
        ({"test_images": 0}, "A test needs at least one image, not 0."),
        ({"test_images": 1000}, "1000"),
        ({"logs": ["tensorbord"]}, "There is no log 'tensorbord'"),
        ({"data": Dataset("tested", digits().classes, digits().test)}, "no training images"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with mistake(words):
        run(tmp_path / "out", **changes)
    assert contents(tmp_path) == {}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with mistake("out"):
        run(tmp_path / "out")


def test_other_files_in_the_place_of_the_result_are_refused(tmp_path: Path) -> None:
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "notes.txt").write_text("mine")
    with mistake("result", "choose another"):
        run(tmp_path)
    assert contents(tmp_path) == {"result": None, "result/notes.txt": b"mine"}


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("softmax", ["softmax"]),
        ("softmax,sigmoid", ["softmax", "sigmoid"]),
        ("softmax, sigmoid", ["softmax", "sigmoid"]),
        ('"softmax","a,b"', ["softmax", "a,b"]),
        ("1,2.5,1e-3,8/255,true", [1, 2.5, 1e-3, "8/255", True]),
        ('["layer4.1"],["layer4.0","layer4.1"]', [["layer4.1"], ["layer4.0", "layer4.1"]]),
        ("[layer4.1],[layer4.0,layer4.1]", [["layer4.1"], ["layer4.0", "layer4.1"]]),
        ("[0.5,0.75],[]", [[0.5, 0.75], []]),
        ("[", ["["]),
        ("", [""]),
    ],
)
def test_values_are_read(text: str, values: list[Any]) -> None:
    assert parse_values(text) == values


NETWORK = ("--arch", "resnet10", "--width", "2")
TINY = [*NETWORK, *("--epochs", "1", "--batch-size", "16", "--device", "cpu")]
QUICK = [*TINY, "--set", "attack.steps=1", "--attack", "fgsm"]


def main(*words: str | Path) -> int:
    """Run the command line in this process; return its exit status."""
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as stop:  # argparse's
        return int(stop.code or 0)


def test_the_command_prints_a_table(
    undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_npz(tmp_path), tmp_path / "out"
    words = ["--vary", "optimizer.lr=0.1,1e6", "--seeds", "2", "--out", out]
    assert main("sweep", "--data", data, *QUICK, *words) == 2
    said = capsys.readouterr()
    lines = said.out.splitlines()[2:]  # behind the answer
    assert lines[0].split()[:3] == ["variant", "seed", "natural"]
    table = pd.read_csv(out / "result" / "sweep.csv")
    shares = [f"{share:.1%}" for share in table.loc[0, ["natural", "attacked", "robust"]]]
    assert lines[1].split()[:6] == ["lr", "0.1", "0", *shares]
    assert lines[3].split() == ["lr", "1e+06", "0", *"-----"]
    means = pd.read_csv(out / "result" / "variants.csv")
    assert means["seeds"].tolist() == [2, 0]
    natural, low, high = means.loc[0, ["natural", "natural_low", "natural_high"]]
    interval = [f"{100 * low:.1f}", "to", f"{100 * high:.1f}"]
    assert lines[7].split()[:7] == ["lr", "0.1", "2", f"{natural:.1%}", *interval]
    assert lines[8].split() == ["lr", "1e+06", "0", *"----"]
    assert str(out / "result") in said.out
    assert "1/4: lr 0.1, seed 0" in said.err
    assert "2 of 4 networks have no result; lr-1e+06-s0.pt: The" in said.err.splitlines()[-1]
    record = json.loads((out / "sweep.json").read_text())
    assert record["command"].startswith("channelscope sweep --data")


def test_quiet_prints_the_table_alone(
    undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--vary", "gates.layers=[layer3.0,layer4.0]", "-q", "--out", tmp_path / "out"]
    assert main("sweep", "--data", write_npz(tmp_path), *QUICK, *words) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "layers layer3.0+layer4.0" in said.out


def test_ctrl_c_tells_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "imgf", "--data", write_npz(tmp_path), *QUICK, "--out", tmp_path / "out"]
    with after_steps(stop):
        assert main(*words) == 130
    assert "Run the same command again" in capsys.readouterr().err


def stop(_: torch.optim.SGD) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Nothing varies"),
        (["imfg"], "'imfg'"),
        (["--vary", "gates.beta"], "'gates.beta' sets nothing: write NAME=VALUE"),
        (["--vary", "k=1", "k=2"], "k varies twice"),
        (["imgf", "--method", "at", "--recipe", "digits-resnet18-cifs"], "not allowed with"),
        (["imgf", "--recipe", "digits-resnet18-sifs"], "'digits-resnet18-sifs'. Did you mean"),
        (["imgf", "--seeds", "0"], "'0'"),
    ],
)
def test_a_mistake_at_the_command_line_is_one_line(
    words: Sequence[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("sweep", "--out", tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert contents(tmp_path) == {}
