"""Sweeps: every combination trained and attacked, gone on with after interruptions, and drawn."""

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from channelscope import cli
from channelscope import figures as plots
from channelscope.cli import parser
from channelscope.comparison import compare
from channelscope.data import Dataset
from channelscope.errors import UserError
from channelscope.figures import sweeps
from channelscope.figures.paper import COLOURS
from channelscope.sweeps import ABLATIONS, _digest, sweep, values_of
from channelscope.training import Recipe
from channelscope.weights import Checkpoint
from helpers.expect import contents, mistake
from runs import digits, write_npz

pytestmark = pytest.mark.usefixtures("unchecked")

module = import_module("channelscope.sweeps")  # the package's own name for it is the function
SMALL: dict[str, Any] = {
    "arch": "resnet10",
    "width": 2,
    "epochs": 1,
    "batch_size": 16,
    "attack_steps": 1,
}
VARY = {"gates.options.imgf": ["softmax", "sigmoid"]}


def run(out: Path, **changes: Any) -> pd.DataFrame:
    settings = {"vary": VARY, "attack": "pgd-1", "progress": False, **SMALL, **changes}
    return sweep(
        settings.pop("recipe", "cifs"), settings.pop("data", digits()), out=out, **settings
    )


def read(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "sweep.csv", dtype={"trouble": object}).fillna({"trouble": ""})


def timeless(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="seconds")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """Make a sweep of two variants with two seeds each, which no test may change."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    return out, run(out, seeds=(0, 1))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take long: leave them out."""
    monkeypatch.setattr(plots, "sweep", lambda *_: Figure())
    monkeypatch.setattr(plots, "save", lambda figure, path: path)


@pytest.fixture
def untrained(undrawn: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Recipe, Dataset]]:
    """Only note what would be trained."""
    noted: list[tuple[Recipe, Dataset]] = []

    def train(recipe: Recipe, data: Dataset, **_: Any) -> None:
        noted.append((recipe, data))
        raise UserError("Not today.")

    monkeypatch.setattr(module, "train", train)
    return noted


# ---------------------------------------------------------------- what a sweep leaves behind


def test_each_variant_is_trained_with_each_seed(swept: tuple[Path, pd.DataFrame]) -> None:
    out, table = swept
    expected = [("softmax", 0), ("softmax", 1), ("sigmoid", 0), ("sigmoid", 1)]
    assert list(zip(table["gates.options.imgf"], table["seed"], strict=True)) == expected
    for file, (imgf, seed) in zip(table["file"], expected, strict=True):
        known = Checkpoint.read(out / file)
        assert {gate.options["imgf"] for gate in known.gates} == {imgf}
        assert known.meta["settings"]["seed"] == seed
        assert known.meta["settings"]["recipe"]["model"] == {"arch": "resnet10", "width": 2}
    names = {f"imgf-{imgf}-s{seed}.pt" for imgf, seed in expected}
    assert set(contents(out)) == names | {f"{name}.csv" for name in names} | {
        f"sweep.{ending}" for ending in ("csv", "json", "pdf", "png")
    }


def test_the_table_has_what_a_comparison_of_each_network_finds(
    swept: tuple[Path, pd.DataFrame],
) -> None:
    out, table = swept
    found = compare(
        [out / file for file in table["file"]], digits(), attack="pgd-1", eps=0.15, progress=False
    )
    overall = found.robustness[found.robustness["class"] == "all"].set_index(["model", "attack"])
    for row in table.to_dict("records"):
        for column, attack in (("natural", "natural"), ("attacked", "pgd-1"), ("robust", "worst")):
            expected = overall.loc[(Path(row["file"]).stem, attack), ["accuracy", "low", "high"]]
            measured = [row[f"{column}{end}"] for end in ("", "_low", "_high")]
            assert measured == pytest.approx(expected.tolist(), nan_ok=True)


def test_natural_accuracy_is_the_share_of_correct_test_images(
    swept: tuple[Path, pd.DataFrame],
) -> None:
    out, table = swept
    x, y = next(digits().test.batches(1000))
    for file, natural, robust in table[["file", "natural", "robust"]].itertuples(index=False):
        with torch.no_grad():
            answers = Checkpoint.read(out / file).build()(x).argmax(1)
        assert natural == pytest.approx(float((answers == y).float().mean()))
        assert robust <= natural


def test_the_table_has_the_validation_figures_of_the_log(swept: tuple[Path, pd.DataFrame]) -> None:
    out, table = swept
    for row in table.to_dict("records"):
        log = pd.read_csv(out / f"{row['file']}.csv")
        best = log[log["best"]].iloc[0]
        assert [row[name] for name in ("val_natural", "val_robust")] == best[
            ["val_natural", "val_robust"]
        ].tolist()
        assert (row["best_epoch"], row["trained_epochs"], row["trouble"]) == (
            best["epoch"],
            len(log),
            "",
        )
        assert row["seconds"] == pytest.approx(log["seconds"].sum())


def test_the_files_say_what_the_table_says_and_how_it_came_about(
    swept: tuple[Path, pd.DataFrame],
) -> None:
    out, table = swept
    pd.testing.assert_frame_equal(read(out), table, check_dtype=False)
    meta = json.loads(
        (out / "sweep.json").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    settings = meta["settings"]
    assert settings["vary"] == VARY
    assert settings["recipe"]["model"] == {"arch": "resnet10", "width": 2}
    assert (settings["attack"], settings["eps"], settings["level"]) == ("pgd-1", 0.15, 0.95)
    assert settings["data"]["test"] == digits().test.fingerprint()
    assert meta["images"] == {"train": 48, "val": 24, "test": 20}
    assert meta["versions"]["torch"] == torch.__version__
    assert meta["hardware"]["device"] == "cpu"
    assert set(meta["results"]) == set(table["file"])


def test_a_part_of_the_images_is_used_the_same_for_all(
    untrained: list[Any], tmp_path: Path
) -> None:
    run(tmp_path, seeds=(3, 4), images=24, test_images=8, vary={"beta": [1]})
    expected = digits().limited(24, 0).train.fingerprint()
    assert [data.train.fingerprint() for _, data in untrained] == [expected] * 2
    assert json.loads((tmp_path / "sweep.json").read_text())["images"] == {
        "train": 24,
        "val": 24,
        "test": 8,
    }


def test_two_settings_can_take_the_same_value(untrained: list[Any], tmp_path: Path) -> None:
    table = run(tmp_path, vary={"gates.beta+attack.beta_atk": [0.5, 3]})
    assert [(recipe.gates.beta, recipe.attack.beta_atk) for recipe, _ in untrained] == [
        (0.5, 0.5),
        (3, 3),
    ]
    assert table["variant"].tolist() == ["beta 0.5", "beta 3"]


def test_the_test_has_a_radius_of_its_own(undrawn: None, tmp_path: Path) -> None:
    table = run(tmp_path, test_eps=0.0, vary={"k": [1]})
    assert table["robust"].tolist() == table["natural"].tolist()


# ---------------------------------------------------------------- the ablations by name


@pytest.mark.parametrize(
    ("name", "what", "expected"),
    [
        ("imgf", lambda recipe: recipe.gates.options["imgf"], ["softmax", "sigmoid", "softplus"]),
        ("top-k", lambda recipe: recipe.gates.options["k"], [1, 2, 3]),
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
                ("layer4.1",),
                ("layer4.0", "layer4.1"),
                ("layer3.1", "layer4.0", "layer4.1"),
                ("layer3.0", "layer3.1", "layer4.0", "layer4.1"),
            ],
        ),
    ],
)
def test_the_papers_ablations_have_names(
    name: str,
    what: Callable[[Recipe], Any],
    expected: list[Any],
    untrained: list[Any],
    tmp_path: Path,
) -> None:
    """The networks are built before any is trained, so the layers exist."""
    table = run(tmp_path, arch="resnet18", vary=None, ablation=name)
    assert [what(recipe) for recipe, _ in untrained] == expected
    assert table["variant"].is_unique


def test_the_command_line_knows_every_ablation() -> None:
    assert tuple(ABLATIONS) == parser._ABLATIONS


def test_an_ablation_and_a_free_setting_are_combined(untrained: list[Any], tmp_path: Path) -> None:
    table = run(tmp_path, ablation="top-k", vary={"gates.probes": [["linear"], ["two-layer"]]})
    assert table["variant"].tolist() == [
        f"k {k}, probes {probe}" for k in (1, 2, 3) for probe in ("linear", "two-layer")
    ]
    assert table["file"].iloc[1] == "k-1_probes-two-layer-s0.pt"


@pytest.mark.parametrize(
    ("vary", "names"),
    [
        ({"averaging.kind": ["none", "ema"]}, ["averaging none", "averaging ema"]),
        ({"averaging.start": [0.25], "attack.start": [True, 1e-3]}, None),
        ({"attack.eps": ["8/255", "4/255"]}, ["eps 8/255", "eps 4/255"]),
        ({"optimizer.lr": [1e-5, 1e5]}, ["lr 1e-05", "lr 100000"]),
        ({"gates.layers": [[], ["layer3.0"]]}, ["layers []", "layers layer3.0"]),
    ],
)
def test_variants_have_names_that_tell_them_apart_and_do_for_files(
    vary: dict[str, Any], names: list[str] | None, untrained: list[Any], tmp_path: Path
) -> None:
    table = run(tmp_path, vary=vary)
    expected = names or [
        "averaging.start 0.25, attack.start true",
        "averaging.start 0.25, attack.start 0.001",
    ]
    assert table["variant"].tolist() == expected
    assert table["file"].is_unique
    assert table["file"].str.fullmatch(r"[A-Za-z0-9.+_-]+").all()


def test_files_of_long_names_are_told_apart(untrained: list[Any], tmp_path: Path) -> None:
    alike = {
        name: [0.5]
        for name in ("momentum", "decay", "averaging.start", "trade_off", "smoothing", "beta_atk")
    }
    table = run(
        tmp_path,
        vary={
            **alike,
            "gates.layers": [["layer1.0", "layer2.0"]],
            "scaled": [True],
            "beta": [1, 2],
        },
    )
    assert table["file"].is_unique
    assert table["file"].str.len().max() < 140


# ---------------------------------------------------------------- going on


def test_a_complete_sweep_is_used_again(
    swept: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, table = swept
    before = contents(out)
    monkeypatch.setattr(module, "compare", lambda *_, **__: pytest.fail("attacked again"))
    again = run(out, seeds=(0, 1))
    pd.testing.assert_frame_equal(again, table)
    assert contents(out) == before


def test_an_interrupted_sweep_goes_on_to_the_same_end(
    swept: tuple[Path, pd.DataFrame], undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the first network is attacked, and then before the second; one has lost its checkpoint since."""
    _, table = swept
    calls, test = [], module.compare

    def stopped(models: Any, *args: Any, **options: Any) -> Any:
        calls.append(models)
        if len(calls) in (1, 3):
            raise KeyboardInterrupt
        return test(models, *args, **options)

    monkeypatch.setattr(module, "compare", stopped)
    for complete in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
        assert len(pd.read_csv(tmp_path / "sweep.csv")) == complete
    (tmp_path / "imgf-softmax-s0.pt").unlink()  # trained and attacked again
    (tmp_path / "imgf-softmax-s0.pt.csv").unlink()
    again = run(tmp_path)
    pd.testing.assert_frame_equal(
        timeless(again), timeless(table)[table["seed"] == 0].reset_index(drop=True)
    )


def test_seeds_can_be_added(undrawn: None, tmp_path: Path) -> None:
    first = run(tmp_path, vary={"k": [1]})
    written = (tmp_path / "k-1-s0.pt").stat().st_mtime_ns
    both = run(tmp_path, vary={"k": [1]}, seeds=(0, 1, 0))
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
    changes: dict[str, Any], named: str, swept: tuple[Path, pd.DataFrame]
) -> None:
    out, _ = swept
    before = contents(out)
    with mistake("a sweep of other settings", f"({named})", "--out"):
        run(out, **changes)
    assert contents(out) == before


def signed(settings: Any, results: Any) -> str:
    meta = {"settings": settings, "results": results}
    return json.dumps(meta | {"digest": _digest(meta)})


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
    swept: tuple[Path, pd.DataFrame], undrawn: None, tmp_path: Path
) -> None:
    out, table = swept
    for file in ("imgf-softmax-s0.pt", "imgf-sigmoid-s0.pt"):
        (tmp_path / file).write_bytes((out / file).read_bytes())
    before = contents(tmp_path)
    again = run(tmp_path)
    pd.testing.assert_frame_equal(again, table[table["seed"] == 0].reset_index(drop=True))
    assert before.items() <= contents(tmp_path).items()


# ---------------------------------------------------------------- what cannot be trained, and mistakes


def test_a_network_that_cannot_be_trained_does_not_stop_the_others(tmp_path: Path) -> None:
    table = run(tmp_path, vary={"optimizer.lr": [1e6, 0.1]})
    assert "no longer a number" in table["trouble"][0]
    assert table.loc[0, ["natural", "robust", "val_robust", "best_epoch"]].isna().all()
    assert table["trouble"][1] == ""
    assert 0 <= table["robust"][1] <= 1
    assert (tmp_path / "sweep.png").exists()
    pd.testing.assert_frame_equal(read(tmp_path), table, check_dtype=False)
    json.loads(
        (tmp_path / "sweep.json").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )


def test_too_little_memory_for_one_does_not_stop_the_others(
    undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = module.train

    def short(recipe: Recipe, *args: Any, **options: Any) -> Any:
        if recipe.gates.options["imgf"] == "softmax":
            raise torch.OutOfMemoryError
        return train(recipe, *args, **options)

    monkeypatch.setattr(module, "train", short)
    assert run(tmp_path)["trouble"].tolist() == ["There is not enough memory for it.", ""]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vary": None}, "Nothing varies: name an ablation (imgf, top-k, probes, beta, layers)"),
        ({"ablation": "imfg"}, "There is no ablation 'imfg': choose from"),
        ({"ablation": "imgf"}, "The ablation imgf varies gates.options.imgf itself"),
        ({"vary": {"k": []}}, "k varies over a list of values, as in [1, 2], not over []."),
        (
            {"vary": {"imgf": "softmax"}},
            "imgf varies over a list of values, as in [1, 2], not over 'softmax'.",
        ),
        ({"vary": {"imfg": ["softmax"]}}, "A recipe has no setting 'imfg'."),
        ({"vary": {"imgf": ["softmax", "softmx"]}}, "not 'softmx'"),
        ({"vary": {"k": [1, 5]}}, "A gate cannot choose k = 5 of 4 logits"),
        ({"vary": {"k": [1, 1]}}, "'k 1' and 'k 1' are the same training"),
        (
            {"vary": {"imgf": ["relu"], "gates.options.imgf": ["softmax", "sigmoid"]}},
            "are one setting",
        ),
        ({"vary": {"k": [1, 2], "gates.options.k": [3]}}, "are one setting"),
        ({"recipe": "at"}, "are the same training: vary something else. The recipe has no gates."),
        ({"vary": {"gates.layers": [["layer4.0"], ["layer5.0"]]}}, "'layer5.0'. Did you mean"),
        ({"vary": {"width": [2, 0]}}, "width"),
        ({"vary": {"arch": ["resnet10", "resnet11"]}}, "There is no architecture 'resnet11'"),
        ({"recipe": "cisf"}, "'cisf'"),
        ({"epochs": 0}, "epochs"),
        ({"attack": "pdg-20"}, "There is no attack 'pdg-20'"),
        ({"seeds": ()}, "A sweep needs at least one seed."),
        ({"seeds": (0, -1)}, "A seed lies between 0"),
        ({"images": 2}, "2 images"),
        ({"test_images": 0}, "A test needs at least one image, not 0."),
        ({"test_images": 1000}, "1000 images"),
        ({"logs": ["tensorbord"]}, "There is no log 'tensorbord'"),
        (
            {"data": Dataset("tested", digits().classes, digits().test)},
            "tested has no training images",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(
    changes: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("trained"))
    with mistake(words):
        run(tmp_path / "out", **changes)
    assert contents(tmp_path) == {}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with mistake("out", "is a file"):
        run(tmp_path / "out")


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
    assert values_of(text) == values


TINY = [
    "--arch",
    "resnet10",
    "--width",
    "2",
    "--epochs",
    "1",
    "--batch-size",
    "16",
    "--device",
    "cpu",
]


def main(*words: str | Path) -> int:
    """Run the command line in this process; give its exit status."""
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as stop:  # argparse's
        return int(stop.code or 0)


def test_the_command_prints_a_table(
    undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_npz(tmp_path), tmp_path / "out"
    words = [
        "--vary",
        "optimizer.lr=0.1,1e6",
        "--set",
        "attack.steps=1",
        "--attack",
        "fgsm",
        "--seeds",
        "5",
        "--out",
        out,
    ]
    assert main("sweep", "--data", data, *TINY, *words) == 2
    said = capsys.readouterr()
    heading, complete, failed, _, files = said.out.splitlines()
    assert heading.split()[:3] == ["variant", "seed", "natural"]
    table = pd.read_csv(out / "sweep.csv")
    shares = [f"{share:.1%}" for share in table.loc[0, ["natural", "attacked", "robust"]]]
    assert complete.split()[:6] == ["lr", "0.1", "5", *shares]
    assert failed.split() == ["lr", "1e+06", "5", *"-----"]
    assert str(out / "sweep.csv") in files
    assert "1/2: lr 0.1, seed 5" in said.err
    assert "1 of 2 networks have no result; lr-1e+06-s5.pt: The" in said.err.splitlines()[-1]
    assert json.loads((out / "sweep.json").read_text())["command"].startswith(
        "channelscope sweep --data"
    )


def test_quiet_prints_the_table_alone(
    undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--vary",
        "gates.layers=[layer3.0,layer4.0]",
        "--set",
        "attack.steps=1",
        "--attack",
        "fgsm",
        "-q",
    ]
    assert (
        main("sweep", "--data", write_npz(tmp_path), *TINY, *words, "--out", tmp_path / "out") == 0
    )
    said = capsys.readouterr()
    assert said.err == ""
    assert "layers layer3.0+layer4.0" in said.out


def test_ctrl_c_tells_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", stop)
    words = ["--set", "attack.steps=1", "--out", tmp_path / "out"]
    assert main("sweep", "imgf", "--data", write_npz(tmp_path), *TINY, *words) == 130
    assert "Run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Nothing varies"),
        (["imfg"], "invalid choice: 'imfg'"),
        (
            ["--vary", "gates.beta"],
            "'gates.beta' sets nothing: write NAME=VALUE, as in --vary gates.beta=1,2.",
        ),
        (["--vary", "k=1", "k=2"], "k varies twice: give all of its values at once, as in k=1,2."),
        (["imgf", "--method", "at", "--recipe", "digits-resnet18-cifs"], "not allowed with"),
        (
            ["imgf", "--recipe", "digits-resnet18-sifs"],
            "There is no recipe 'digits-resnet18-sifs'. Did you mean",
        ),
        (["imgf", "--seeds", "-1"], "'-1' is not a whole number"),
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


# ---------------------------------------------------------------- the figure


def synthetic(
    variants: Sequence[str], seeds: int, failed: Sequence[str] = ()
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Make a table and a record as a sweep does."""
    rng, rows = np.random.default_rng(0), []
    for variant in variants:
        for seed in range(seeds):
            row: dict[str, Any] = {
                "variant": variant,
                "seed": seed,
                "trouble": "The loss is no longer a number.",
            }
            if variant not in failed:
                for name, level in (("natural", 0.8), ("robust", 0.5)):
                    value = level + 0.05 * rng.normal()
                    row |= {
                        name: value,
                        f"{name}_low": value - 0.02,
                        f"{name}_high": value + 0.01,
                        "trouble": "",
                    }
            rows.append(row)
    columns = [
        "variant",
        "seed",
        *(f"{n}{e}" for n in ("natural", "robust") for e in ("", "_low", "_high")),
        "trouble",
    ]
    settings = {"attack": "pgd-20", "eps": 8 / 255, "level": 0.95}
    meta = {"title": "cifs on cifar10, by imgf", "images": {"test": 10_000}, "settings": settings}
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[2:-1], float)), meta


HARD = {
    "one network": synthetic(["imgf softmax"], 1),
    "none": synthetic(["imgf softmax", "imgf relu"], 2, failed=["imgf softmax", "imgf relu"]),
    "many variants with long names": synthetic(
        [
            f"beta {b}, layers layer3.0+layer3.1+layer4.0+layer4.1, k {k}"
            for b in range(8)
            for k in range(4)
        ],
        1,
    ),
    "many seeds": synthetic(["imgf softmax", "imgf $x_1$"], 12),
}


def words(figure: Figure) -> list[str]:
    return [
        text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()
    ]


def test_the_figure_draws_every_network_with_its_interval_and_the_mean_of_the_seeds() -> None:
    variants = ["imgf softmax", "imgf sigmoid", "imgf relu"]
    table, meta = synthetic(variants, 3, failed=["imgf relu"])
    figure = plots.sweep(table, meta)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == variants
    for ax, (column, colour) in zip(
        figure.axes, (("natural", "natural"), ("robust", "adversarial")), strict=True
    ):
        for place, (variant, bars) in enumerate(zip(variants, ax.containers, strict=False)):
            rows = table[table["variant"] == variant]
            dots, _, (reach,) = bars
            assert to_hex(dots.get_color()) == COLOURS[colour].lower()
            np.testing.assert_allclose(dots.get_xdata(), 100 * rows[column])
            assert (np.abs(dots.get_ydata() - place) < 0.5).all()
            drawn = np.array([segment[:, 0] for segment in reach.get_segments()])
            np.testing.assert_allclose(drawn, 100 * rows[[f"{column}_low", f"{column}_high"]])
            (mean,) = [
                line for line in ax.lines if list(line.get_ydata()) == [place - 0.42, place + 0.42]
            ]
            np.testing.assert_allclose(mean.get_xdata(), 100 * rows[column].mean())
        assert [text.get_text() for text in ax.texts] == ["no result"]


def test_the_figure_explains_itself() -> None:
    text = "\n".join(words(plots.sweep(*synthetic(["imgf softmax", "imgf sigmoid"], 2))))
    for said in (
        "cifs on cifar10, by imgf",
        "natural images",
        "worst case",
        "accuracy (%)",
        "10000 test images",
        "PGD-20, ε = 8/255",
        "95% interval",
        "mean of the seeds",
    ):
        assert said in text
    assert "mean" not in "".join(words(plots.sweep(*synthetic(["imgf softmax"], 1))))


@pytest.fixture(scope="module", params=HARD.values(), ids=HARD.keys())
def hard(request: pytest.FixtureRequest) -> Figure:
    return plots.sweep(*request.param)


def test_the_figure_is_one_column_wide_readable_and_unclipped(hard: Figure) -> None:
    assert hard.get_figwidth() == 3.25
    shown = [text for text in hard.findobj(Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in shown) >= 6.5
    canvas = FigureCanvasAgg(hard)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())
    for border in (drawn[:2], drawn[-2:], drawn[:, :2], drawn[:, -2:]):
        assert (border == 255).all()


def test_names_in_the_figure_do_not_overlap(hard: Figure) -> None:
    labels = [
        *hard.axes[0].get_yticklabels(),
        *(ax.xaxis.label for ax in hard.axes),
        *(ax.title for ax in hard.axes),
    ]
    boxes = [
        part.get_window_extent().padded(-1) for part in (*labels, hard._suptitle, hard.legends[0])
    ]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_a_figure_of_very_many_variants_is_no_larger_than_a_picture_can_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 200 * sweeps._HIGHEST < 2**16
    monkeypatch.setattr(sweeps, "_HIGHEST", 4)
    assert plots.sweep(*synthetic([f"k {k}" for k in range(30)], 1)).get_figheight() == 4


def test_the_figure_is_drawn_again_from_the_files_the_same_to_the_byte(
    swept: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    out, _ = swept
    figure = plots.sweep(
        pd.read_csv(out / "sweep.csv"), json.loads((out / "sweep.json").read_text())
    )
    for ending in ("pdf", "png"):
        again = plots.save(figure, tmp_path / f"sweep.{ending}")
        assert again.read_bytes() == (out / f"sweep.{ending}").read_bytes()
