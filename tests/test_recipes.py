"""Recipes: what ships with the package, settings, overriding, the user's own files, gates."""

import math
import os
import shutil
import tomllib
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from channelscope import recipes
from channelscope.cli.parser import make_parser
from channelscope.data import Dataset, MemorySplit
from channelscope.objectives import MART, TRADES, CrossEntropy, Joint
from channelscope.recipes import ABLATIONS, METHODS, SETTINGS
from channelscope.training import Recipe
from channelscope.training.job import Job
from channelscope.training.recipes import catalogue, find_recipe, parse_value, summary
from channelscope.training.settings import Attack, Schedule
from channelscope.weights import Gate, build
from helpers.expect import mistake
from helpers.runs import tiny_job

SHIPPED = Path(recipes.__file__).parent
NAMES = sorted(catalogue())
UNGATED = ("standard", "at", "at-warm", "trades", "mart", "fat", "wat", "hbar")
GATED = [method for method in METHODS if method not in UNGATED]


named = cache(Recipe.named)


def changed(name: str = "cifar10-resnet18-cifs", **changes: Any) -> Recipe:
    return named(name).override(**changes)


# ---------------------------------------------------------------- what ships with the package


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_can_be_read_and_written_and_read_again(name: str, tmp_path: Path) -> None:
    recipe = Recipe.named(name)
    assert recipe.method in METHODS
    assert name.removesuffix("-fast").endswith(f"-{recipe.method}")
    assert Recipe.from_values(recipe.values()) == recipe
    assert Recipe.from_values(tomllib.loads(recipe.toml())) == recipe
    (tmp_path / "mine.toml").write_text(recipe.toml())
    assert Recipe.named(str(tmp_path / "mine.toml")) == recipe


def test_every_setting_is_there_with_every_method_once() -> None:
    names = {f"{setting}-{method}" for setting in SETTINGS for method in METHODS}
    names -= {"fashion-mnist-resnet10-eas"}
    names -= {f"cifar10-vgg16-{method}" for method in ("eas", "fsr", "kap", "hbar")}
    quick = ("digits", *(f"cifar10-resnet18-{name}" for name in ("small", "w16", "w32", "overfit")))
    assert set(NAMES) == names | {f"{name}-fast" for name in names if not name.startswith(quick)}


def test_a_new_method_is_one_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its name and its help are read from the file; basic methods come first."""
    shutil.copytree(SHIPPED, tmp_path, dirs_exist_ok=True)
    text = 'summary = "A longer AT"\nextends = ["at"]\n[schedule]\nepochs = 200\n'
    (tmp_path / "methods" / "long-at.toml").write_text(text)
    monkeypatch.setattr(recipes, "_FOLDER", tmp_path)
    methods = recipes._list_methods()
    assert methods == METHODS | {"long-at": "A longer AT"}
    assert list(methods)[:5] == ["at", "fat", "mart", "standard", "trades"]


def test_a_damaged_method_does_not_keep_commands_from_running(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(SHIPPED, tmp_path, dirs_exist_ok=True)
    (tmp_path / "methods" / "at.toml").write_text("[")
    monkeypatch.setattr(recipes, "_FOLDER", tmp_path)
    assert recipes._list_methods() == METHODS | {"at": ""}


def test_the_command_line_knows_all_methods_and_ablations(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for method in METHODS:
        assert make_parser().parse_args(["train", "--method", method]).method == method
    for ablation in ABLATIONS:
        assert make_parser().parse_args(["sweep", ablation]).ablation == ablation
    with pytest.raises(SystemExit):
        make_parser().parse_args(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(text in said for text in METHODS.values())


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_file_says_what_it_is(method: str) -> None:
    said = summary(f"digits-resnet18-{method}")
    assert said == METHODS[method]
    assert 5 < len(said) < 100
    assert said[0].isupper()
    assert not said.endswith(".")
    assert summary(f"cifar10-resnet18-{method}-fast") == said


CIFAR: dict[str, Any] = {
    "model": {"arch": "resnet18"},
    "optimizer": {
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 2e-4,
        "batch_size": 128,
        "nesterov": False,
    },
    "schedule": {"shape": "steps", "epochs": 120, "patience": 0},
    "data": {"crop": 4, "flip": True},
    "attack": {"eps": 8 / 255, "step": 2 / 255, "steps": 10, "start": True, "tau": []},
    "loss": {"kind": "adversarial", "smoothing": 0.0},
    "engine": {"precision": "fp32"},
    "averaging": {"kind": "none"},
}
CIFS: dict[str, Any] = {
    "gates": {
        "kind": "cifs",
        "beta": 2.0,
        "scaled": True,
        "probes": ["two-layer", "linear"],
        "layers": [],
    }
    | {"options": {"k": 2, "imgf": "softmax"}},
    "attack": {"beta_atk": 2.0},
}
CAS: dict[str, Any] = {
    "gates": {
        "kind": "cifs",
        "beta": 2.0,
        "probes": ["linear"],
        "options": {"k": 1, "imgf": "identity"},
    }
}
FAST: dict[str, Any] = {
    "schedule": {"shape": "one-cycle", "epochs": 30, "milestones": []},
    "engine": {"precision": "bf16"},
}
WIDE = {"gates": CIFS["gates"] | {"options": {"k": 2, "imgf": "softmax", "hidden": 240}}}
PUBLISHED: dict[str, list[dict[str, Any]]] = {
    "cifar10-resnet18-at": [CIFAR, {"gates": {"kind": "none"}}],
    "cifar10-resnet18-standard": [
        CIFAR | {"loss": {"kind": "natural"}},
        {"gates": {"kind": "none"}},
    ],
    "cifar10-resnet18-cifs": [CIFAR, CIFS],
    "cifar10-resnet18-cas": [CIFAR, CAS],
    "cifar10-resnet18-standard-cifs": [CIFAR | {"loss": {"kind": "natural"}}, CIFS],
    "cifar10-wrn-28-10-cifs": [CIFAR | {"model": {"arch": "wrn-28-10"}}, WIDE],
    "cifar10-wrn-28-10-trades-cifs": [WIDE],
    "cifar10-wrn-28-10-cas-fast": [FAST | {"model": {"arch": "wrn-28-10"}}, CAS],
    "cifar10-vgg16-cas": [CIFAR | {"model": {"arch": "vgg16"}}, CAS],
    "svhn-resnet18-cifs": [
        CIFAR
        | {
            "data": {"crop": 4, "flip": True},
            "optimizer": {"lr": 0.01, "weight_decay": 5e-4, "momentum": 0.9},
        },
        CIFS,
    ],
    "fashion-mnist-resnet10-cas": [
        CIFAR | {"model": {"arch": "resnet10"}, "data": {"crop": 0, "flip": False}},
        CAS,
    ],
    "cifar10-resnet18-cifs-fast": [CIFAR | FAST, CIFS, {"optimizer": {"lr": 0.1}}],
    "cifar10-resnet18-cifs-published": [
        CIFAR | {"model": {"arch": "resnet18", "normalise": "none"}},
        CIFS,
        {"before": {"loss": {"kind": "natural"}}},
        {"before": {"schedule": {"shape": "flat", "epochs": 49, "milestones": []}}},
    ],
    "cifar10-resnet18-cifs-published-fast": [
        CIFAR | FAST,
        {"before": {"schedule": {"shape": "flat", "epochs": 12, "milestones": []}}},
    ],
    "cifar10-resnet18-trades": [
        {
            "loss": {"kind": "trades", "trade_off": 6.0},
            "attack": {"start": 0.001, "tau": []},
            "gates": {"kind": "none"},
        }
    ],
    "cifar10-resnet18-mart": [
        {
            "loss": {"kind": "mart", "trade_off": 5.0},
            "attack": {"start": 0.001, "tau": []},
            "gates": {"kind": "none"},
        }
    ],
    "cifar10-resnet18-fat": [
        {"loss": {"kind": "adversarial"}, "attack": {"start": True, "tau": [0, 1, 2]}}
    ],
    "cifar10-resnet18-trades-cifs": [{"loss": {"kind": "trades", "trade_off": 6.0}}, CIFS],
    "cifar10-resnet18-wat": [
        {"loss": {"kind": "trades", "trade_off": 6.0, "eta": 0.1}, "attack": {"start": 0.001}}
    ],
    "cifar10-resnet18-hbar": [
        CIFAR | {"hbar": {"of_images": 0.0005, "of_labels": 0.005, "sigma": 5.0}}
    ],
    "cifar10-resnet18-anf-at": [CIFAR | {"model": {"arch": "anf-resnet18"}}],
    "cifar10-resnet18-wat-cifs": [{"loss": {"kind": "trades", "eta": 0.1}}, CIFS],
    "cifar10-resnet18-mart-cas": [{"loss": {"kind": "mart", "trade_off": 5.0}}, CAS],
    "cifar10-resnet18-fat-cifs": [{"attack": {"tau": [0, 1, 2]}}, CIFS],
    "cifar10-resnet18-fsr": [
        CIFAR
        | {"gates": {"kind": "fsr", "beta": 1.0, "scaled": False, "layers": ["layer4|features"]}},
        {"attack": {"beta_atk": 0.0}},
    ],
    "cifar10-resnet18-eas": [
        CIFAR | {"gates": {"kind": "eas", "beta": 0.01, "scaled": False}},
        {"attack": {"beta_atk": 0.01}},
    ],
    "cifar10-resnet18-kap": [
        CIFAR | {"loss": {"kind": "natural"}, "gates": {"kind": "kap", "options": {"pool": 3}}}
    ],
    "digits-resnet18-at": [
        {"model": {"arch": "resnet18", "width": 8}, "data": {"crop": 0, "flip": False}}
    ],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_have_the_published_values(name: str) -> None:
    values = Recipe.named(name).values()
    for sections in PUBLISHED[name]:
        for section, wanted in sections.items():
            assert {key: values[section][key] for key in wanted} == wanted, section


@pytest.mark.parametrize(
    "name", ["cifar10-resnet18-at", "svhn-resnet18-trades", "cifar10-wrn-28-10-cifs"]
)
def test_the_papers_learning_rate_falls_at_epochs_75_and_90(name: str) -> None:
    recipe = Recipe.named(name)
    rates = [recipe.lr_at(epoch) for epoch in range(recipe.schedule.epochs)]
    lr = recipe.optimizer.lr
    assert rates == pytest.approx([lr] * 75 + [lr / 10] * 15 + [lr / 100] * 30)
    assert recipe.lr_at(74.999) == lr


def test_fat_grows_bolder_at_epochs_50_and_90() -> None:
    """As in the authors' code: their epochs, counted from 1, up to 50 and up to 90."""
    recipe = Recipe.named("cifar10-resnet18-fat")
    assert [recipe.attack.tau_at(epoch, 120) for epoch in range(120)] == [0] * 50 + [1] * 40 + [
        2
    ] * 30
    assert Recipe.named("cifar10-resnet18-at").attack.tau_at(0, 120) is None


def test_a_data_set_has_a_recipe_of_its_own() -> None:
    assert Recipe.suited_to("digits", "cas") == Recipe.named("digits-resnet18-cas")
    assert Recipe.suited_to("svhn") == Recipe.named("svhn-resnet18-at")
    assert Recipe.suited_to("fashion-mnist", "mart") == Recipe.named("fashion-mnist-resnet10-mart")
    for other in ("cifar10", "imagefolder:pictures", "tensors"):
        assert Recipe.suited_to(other, "cifs") == Recipe.named("cifar10-resnet18-cifs")


@pytest.mark.parametrize(
    "name", ["", "cifar10", "cifar10-resnet18", "cifar10-resnet18-CIFS", "digits-resnet18-at-fast"]
)
def test_a_recipe_that_is_none(name: str) -> None:
    with mistake(f"no recipe {name!r}", "channelscope recipes"):
        Recipe.named(name)


def test_a_recipe_is_found_by_its_method_or_its_name() -> None:
    recipe = named("svhn-resnet18-cas")
    assert find_recipe("cas", "svhn") == recipe
    assert find_recipe("svhn-resnet18-cas", "digits") == recipe
    assert find_recipe(recipe, "digits") is recipe
    with mistake("no recipe 'cisf'", "Did you mean 'cifs'", "at, fat, mart, standard, trades"):
        find_recipe("cisf", "digits")


# ---------------------------------------------------------------- schedules


def factors(schedule: Schedule, n: int = 400) -> list[float]:
    return [schedule.factor(schedule.epochs * i / n) for i in range(n + 1)]


shares = st.lists(st.floats(0, 1), max_size=4).map(tuple)


@given(st.sampled_from(["steps", "one-cycle", "cosine", "flat"]), st.integers(1, 500), shares)
def test_a_schedule_stays_between_nothing_and_the_whole(
    shape: str, epochs: int, milestones: tuple[float, ...]
) -> None:
    values = factors(Schedule(shape=shape, epochs=epochs, milestones=milestones))
    assert min(values) >= 0
    assert max(values) <= 1
    if shape in ("one-cycle", "cosine"):  # no jumps
        assert max(abs(a - b) for a, b in pairwise(values)) < 0.01


@given(st.integers(1, 500), shares)
def test_steps_are_down_by_a_tenth_each(epochs: int, milestones: tuple[float, ...]) -> None:
    schedule = Schedule(shape="steps", epochs=epochs, milestones=milestones)
    falls = [round(share * epochs) for share in milestones]
    for epoch in range(epochs):
        wanted = 0.1 ** sum(epoch >= fall for fall in falls)
        assert schedule.factor(epoch) == schedule.factor(epoch + 0.999) == pytest.approx(wanted)


def test_one_cycle_goes_up_for_two_fifths_and_then_down() -> None:
    schedule = Schedule(shape="one-cycle", epochs=30)
    values = [schedule.factor(epoch) for epoch in (0, 6, 12, 21, 30)]
    assert values == pytest.approx([0, 0.5, 1, 0.5, 0])
    half = factors(schedule)
    assert half[:161] == sorted(half[:161])
    assert half[160:] == sorted(half[160:], reverse=True)


def test_a_cosine_falls_to_nothing() -> None:
    values = factors(Schedule(shape="cosine", epochs=7))
    assert values == pytest.approx([(1 + math.cos(math.pi * i / 400)) / 2 for i in range(401)])
    assert (values[0], values[-1]) == (1, 0)
    assert factors(Schedule(shape="flat", epochs=7)) == [1] * 401


@given(st.integers(1, 300), st.lists(st.floats(0, 1), max_size=3).map(sorted))
def test_tau_takes_its_values_one_after_the_other(epochs: int, milestones: list[float]) -> None:
    tau = tuple(range(len(milestones) + 1))
    attack = Attack(eps=0.1, steps=2, step=0.1, tau=tau, tau_milestones=tuple(milestones))
    values = [attack.tau_at(epoch, epochs) for epoch in range(epochs)]
    assert values == sorted(values)
    assert values == [
        sum(epoch >= round(share * epochs) for share in milestones) for epoch in range(epochs)
    ]


# ---------------------------------------------------------------- overriding


@pytest.mark.parametrize("name", ["optimizer.lr", "optimizer_lr", "lr"])
def test_a_setting_goes_by_its_whole_name_or_its_last_word(name: str) -> None:
    assert changed(**{name: 0.03}).optimizer.lr == 0.03
    assert changed(**{name: None}) == changed()


@pytest.mark.parametrize("name", ["gates.options.k", "gates_options_k", "gates.k", "gates_k", "k"])
def test_a_gates_option_need_not_be_called_so(name: str) -> None:
    assert changed(**{name: 3}).gates.options == {"k": 3, "imgf": "softmax"}


def test_options_are_named_in_full_where_others_end_alike() -> None:
    sharp = changed(**{"gates.options.beta": 7.0})
    assert (sharp.gates.beta, sharp.gates.options["beta"]) == (2.0, 7.0)
    assert changed(**{"gates.beta": 3.0}).gates.beta == 3.0
    again = sharp.override(**{"gates.beta": 3.0, "gates.options.beta": 4.0})
    assert (again.gates.beta, again.gates.options["beta"]) == (3.0, 4.0)
    with mistake("'beta' may be gates.beta or gates.options.beta"):
        sharp.override(beta=1.0)


def test_settings_that_a_recipe_leaves_out_can_be_set() -> None:
    assert changed(width=12).model.width == 12
    assert changed(**{"gates.options": {"k": 1}}).gates.options == {"k": 1}
    assert changed(
        "cifar10-resnet18-at", **{"gates.kind": "cifs", "gates.options.k": 3}
    ).gates.options == {"k": 3}
    assert changed(milestones=[0.5], layers=["layer3.*", "layer4.1"]).gates.layers == (
        "layer3.*",
        "layer4.1",
    )


def test_a_new_eps_takes_the_step_along() -> None:
    assert changed(eps=4 / 255).attack.step == pytest.approx(1 / 255)
    assert changed(eps="16/255").attack.step == pytest.approx(4 / 255)
    assert changed(eps=4 / 255, attack_step=0.5).attack.step == 0.5
    assert changed(step=0.5).attack.step == 0.5
    assert changed(eps=0).override(eps=0.1).attack.step == 0
    assert changed(eps=None, width=None) == changed()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kind", ["'kind' may be loss.kind or gates.kind or averaging.kind"]),
        ("start", ["attack.start or averaging.start"]),
        ("learning_rate", ["no setting 'learning_rate'", "channelscope recipes"]),
        ("optimizer.lrr", ["Did you mean 'optimizer.lr'"]),
        ("epoch", ["Did you mean 'epochs'"]),
        ("optimizer", ["no setting 'optimizer'"]),
        ("gates.hidden", ["no setting 'gates.hidden'"]),
        ("method", ["no setting 'method'"]),
        ("self", ["no setting 'self'"]),
        ("", ["no setting ''"]),
    ],
)
def test_names_that_say_too_little(name: str, words: list[str]) -> None:
    with mistake(*words):
        changed(**{name: 1})


WRONG: list[tuple[str, Any, str]] = [
    ("lr", "fast", "a number such as 0.1 or 8/255"),
    ("lr", True, "a number"),
    ("lr", [0.1], "a number"),
    ("lr", "1/0", "a number"),
    ("lr", 0, "between 1e-12 and 1e+06"),
    ("lr", "inf", "between"),
    ("lr", 10**400, "a number"),
    ("lr", "9e99999999", "between"),
    ("eps", 8, "between 0 and 1"),
    ("momentum", 1.5, "between 0 and 1"),
    ("epochs", 1.5, "a whole number"),
    ("epochs", "20", "a whole number"),
    ("epochs", True, "a whole number"),
    ("epochs", 10**9, "a whole number from 1 to 1,000,000"),
    ("epochs", 10**5000, "a number of thousands of digits"),
    ("batch_size", 1, "a whole number from 2"),
    ("accumulate", 0, "a whole number from 1"),
    ("flip", 1, "true or false"),
    ("flip", "yes", "true or false"),
    ("arch", 18, "a word"),
    ("shape", "step", "Did you mean 'steps'"),
    ("precision", "fp8", "fp32, bf16, fp16, fp64"),
    ("precision", 10**5000, "fp32, bf16, fp16, fp64"),
    ("loss.kind", "at", "natural, adversarial, trades, mart"),
    ("milestones", 0.5, "a list"),
    ("milestones", [0.5, 2], "between 0 and 1"),
    ("milestones", "0.5", "a list"),
    ("layers", "layer4", "a list"),
    ("layers", [4], "a word"),
    ("probes", ["three-layer"], "linear, two-layer"),
    ("attack.start", "here", "a number"),
    ("attack.start", -1, "between"),
    ("tau", [-1], "a whole number"),
    ("tau", [0, 1], "one number more"),
    ("options", [1], "numbers, words"),
    ("options", {"k": [[2]]}, "numbers, words"),
    ("width", "9" * 10_000, "a whole number"),
]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    WRONG,
    ids=lambda value: str(value)[:20] if isinstance(value, str) else "",
)
def test_values_of_the_wrong_kind(name: str, value: Any, words: str) -> None:
    with mistake(words):
        changed(**{name: value})


def test_a_fraction_of_endless_digits_is_nothing() -> None:
    assert changed(eps="1/" + "9" * 5000).attack.eps == 0


def test_tau_milestones_grow() -> None:
    with mistake("grow"):
        changed(tau=[0, 1, 2], tau_milestones=[0.8, 0.4])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("3", 3),
        ("true", True),
        ("[0.5, 0.75]", [0.5, 0.75]),
        ('"3"', "3"),
        ("8/255", "8/255"),
        ("softmax", "softmax"),
        ("layer4.*", "layer4.*"),
        ("{k = 3}", {"k": 3}),
        ("", ""),
        ("[" * 5000, "[" * 5000),
        ("9" * 5000, "9" * 5000),
    ],
    ids=lambda value: str(value)[:12],
)
def test_values_are_read_as_toml_has_them(text: str, value: Any) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


words = st.text(
    st.characters(codec="ascii", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=12
)
numbers = st.floats(0, 1) | st.integers(0, 1)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "optimizer.lr": st.floats(1e-12, 1e6),
            "optimizer.batch_size": st.integers(2, 10**6),
            "optimizer.nesterov": st.booleans(),
            "schedule.milestones": st.lists(numbers, max_size=3),
            "model.width": st.integers(1, 1024),
            "attack.start": st.just(True) | st.floats(0, 1),
            "gates.layers": st.lists(words, max_size=3),
            "gates.options": st.dictionaries(st.text(max_size=5), words | numbers | st.booleans()),
            "attack.eps": numbers,
        },
    )
)
@example(
    {
        "gates.layers": ["\n\x00\x7f\u202e鳥\U0001f426"],
        "gates.options": {"": 1, "a.b": 2, "[\n": "\x10"},
    }
)
@example(
    {"gates.layers": ['a"b\\', "'"], "optimizer.lr": 1e-12, "gates.options": {"a": float("inf")}}
)
def test_what_is_written_is_what_is_read(changes: dict[str, Any]) -> None:
    recipe = changed(**changes)
    assert Recipe.from_values(tomllib.loads(recipe.toml())) == recipe
    assert Recipe.from_values(recipe.values()) == recipe


# ---------------------------------------------------------------- files of the user's own


def own(folder: Path, text: str | bytes) -> str:
    file = folder / "mine.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(file)


def test_a_file_changes_the_recipe_that_it_extends(tmp_path: Path) -> None:
    text = (
        'extends = "svhn-resnet18-cifs-fast"\n[optimizer]\nlr = "1/100"\n[gates.options]\nk = 1\n'
    )
    recipe = Recipe.named(own(tmp_path, text))
    assert recipe == changed("svhn-resnet18-cifs-fast", lr=0.01, **{"gates.k": 1})
    assert recipe.method == "cifs"


def test_of_several_that_are_extended_the_later_wins(tmp_path: Path) -> None:
    text = 'extends = ["cifar10-resnet18-cifs", "digits-resnet18-mart"]\nmethod = "mart-cifs"\n'
    assert Recipe.named(own(tmp_path, text)) == named("digits-resnet18-mart-cifs")
    turned = 'extends = ["digits-resnet18-mart", "svhn-resnet18-cas"]'
    wanted = {"width": 8, "attack.start": 0.001, "trade_off": 5.0}
    assert Recipe.named(own(tmp_path, turned)) == changed("svhn-resnet18-cas", **wanted)


def test_a_file_without_a_method_is_a_way_of_its_own(tmp_path: Path) -> None:
    text = Recipe.named("digits-resnet18-at").toml().replace('method = "at"', "")
    recipe = Recipe.named(own(tmp_path, text))
    assert recipe.method is None
    assert "method" not in recipe.values()
    assert Recipe.from_values(recipe.values()) == recipe


WHOLE = Recipe.named("cifar10-resnet18-cifs").toml()
EXTENDED = 'extends = "cifar10-resnet18-cifs"\n'
HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "does not set model"),
    "half": (WHOLE[: WHOLE.index("[loss]")], "does not set loss"),
    "a setting left out": (
        WHOLE.replace("batch_size = 128", ""),
        "does not set optimizer.batch_size",
    ),
    "no TOML": ("lr: 0.1", "no TOML file"),
    "not UTF-8": (b'\xff\xfe = "x"', "no TOML file"),
    "binary": (bytes(range(256)), "no TOML file"),
    "deep lists": ("a = " + "[" * 100_000, "no TOML file"),
    "deep tables": (f"[{'a.' * 5000}a]", "nested too deep"),
    "a deep section": (f"{EXTENDED}[gates.{'a.' * 5000}a]", "nested too deep"),
    "deep options": (f"{EXTENDED}[gates.options.{'a.' * 5000}a]", "nested too deep"),
    "a deep method": (f"{EXTENDED}[method.{'a.' * 5000}a]", "nested too deep"),
    "a long number": (WHOLE.replace("epochs = 120", f"epochs = {'9' * 5000}"), "no TOML file"),
    "a long hexadecimal": (
        WHOLE.replace("epochs = 120", f"epochs = 0x{'f' * 5000}"),
        "thousands of digits",
    ),
    "a long exponent": (WHOLE.replace("lr = 0.1", 'lr = "1e999999999"'), "between"),
    "infinity": (WHOLE.replace("lr = 0.1", "lr = 1e9999"), "between"),
    "no number": (WHOLE.replace("lr = 0.1", "lr = nan"), "between"),
    "a date": (WHOLE.replace("lr = 0.1", "lr = 2021-07-18"), "a number"),
    "a long word": (WHOLE.replace('"steps"', f'"{"x" * 100_000}"'), "more than 64 KB"),
    "an unknown section": (f"{EXTENDED}[optimiser]\nlr = 1", "Did you mean 'optimizer'"),
    "a section that is none": (f"gates = 3\n{EXTENDED}", "gates is a section"),
    "a method that is none": (f'method = "mine"\n{EXTENDED}', "method is one of at, fat"),
    "a method of sections": (f"{EXTENDED}[method]\nname = 3", "method must be a word"),
    "a number for a method": (f"method = 3\n{EXTENDED}", "method must be a word"),
    "extending a number": ("extends = 3", "none"),
    "extending deeply": (f"[extends.{'a.' * 5000}a]", "nested too deep"),
    "extending a list": ('extends = [["cifar10-resnet18-at"]]', "none"),
    "extending an unknown recipe": (
        'extends = "cifar10-resnet18-bt"',
        "Did you mean 'cifar10-resnet18-at'",
    ),
    "extending itself": ('extends = "mine.toml"', "none"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_is_no_recipe(case: str, tmp_path: Path) -> None:
    text, words = HOSTILE[case]
    with mistake(words):
        Recipe.named(own(tmp_path, text))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    for name, words in {
        "folder": "no ordinary file",
        "none": "No such file",
        "x" * 300: "too long",
        "a\0b": "null",
    }.items():
        with mistake(words):
            Recipe.named(str(tmp_path / f"{name}.toml"))


# ---------------------------------------------------------------- from a recipe to gates


def job(recipe: str, size: int = 32, channels: int = 3, **changes: Any) -> Job:
    """Describe a run on images of a size, which nobody looks at."""
    images = torch.randint(256, (10, channels, size, size), dtype=torch.uint8)
    part = MemorySplit(images, torch.arange(10))
    return Job(
        changed(recipe, **changes),
        Dataset("noise", tuple("0123456789"), part, part, part),
        Path("net.pt"),
        0,
    )


SIZES = {"digits-resnet18": (8, 1), "fashion-mnist-resnet10": (28, 1)}
KINDS = (
    "at",
    "cifs",
    "cas",
    "fsr",
    "eas",
    "kap",
)  # the other methods' gates are those of CIFS and of CAS


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.endswith(tuple(f"-{kind}" for kind in KINDS))]
)
def test_every_recipes_gates_fit_its_network(name: str) -> None:
    setting, method = max(
        (setting, name.removeprefix(f"{setting}-")) for setting in SETTINGS if setting in name
    )
    if method not in KINDS:
        assert named(name).gates == named(f"{setting}-{method.partition('-')[2]}").gates
        return
    described = job(name, *SIZES.get(setting, (32, 3)), width=2)
    architecture, gates = described.architecture, described.gates
    assert bool(gates) == (method in GATED)
    with torch.device("meta"):
        logits = build(architecture, gates).eval()(
            torch.empty(2, described.data.channels, *described.data.image_size)
        )
    assert logits.shape == (2, 10)


def layers(gates: tuple[Gate, ...]) -> list[str]:
    return [gate.layer for gate in gates]


@pytest.mark.parametrize(
    ("arch", "places", "probes"),
    [
        ("resnet10", ["layer3.0", "layer4.0"], ["two-layer", "linear"]),
        ("resnet18", ["layer4.0", "layer4.1"], ["two-layer", "linear"]),
        ("resnet50", ["layer4.1", "layer4.2"], ["two-layer", "linear"]),
        ("wrn-28-10", ["layer3.3.conv1:input", "features"], ["two-layer", "linear"]),
        ("vgg16", ["layer5.0", "layer5.1", "layer5.2"], ["two-layer", "two-layer", "linear"]),
    ],
)
def test_by_default_gates_stand_where_their_authors_have_them(
    arch: str, places: list[str], probes: list[str]
) -> None:
    gates = job("cifar10-resnet18-cifs", arch=arch, width=2).gates
    assert layers(gates) == places
    assert [gate.options["probe"] for gate in gates] == probes


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["layer4.1"], ["layer4.1"]),
        (["layer4.1", "layer3.0"], ["layer3.0", "layer4.1"]),
        (["layer4.*"], [
            *("layer4.0", "layer4.0.conv1", "layer4.0.bn1", "layer4.0.conv2", "layer4.0.bn2"),
            *("layer4.0.shortcut", "layer4.0.shortcut.0", "layer4.0.shortcut.1", "layer4.1"),
            *("layer4.1.conv1", "layer4.1.bn1", "layer4.1.conv2", "layer4.1.bn2"),
            "layer4.1.shortcut",
        ]),
        (["layer[12]"], ["layer1", "layer2"]),
        (["layer?.1", "layer4.1"], ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
        (["features|layer4"], ["layer4"]),
        (["layer4|layer3"], ["layer4"]),
        (["nothing|layer2*0|layer3", "layer1"], ["layer1", "layer2.0", "layer2.0.shortcut.0"]),
        (["layer2", "layer2:input", "layer1"], ["layer1", "layer2:input", "layer2"]),
        (["layer[34].1.conv?:input"], [
            *("layer3.1.conv1:input", "layer3.1.conv2:input"),
            *("layer4.1.conv1:input", "layer4.1.conv2:input"),
        ]),
        (["linear:input|layer4"], ["linear:input"]),
        (["bn1@0", "conv1@0:input"], ["conv1@0:input", "bn1@0"]),
    ],
    ids=str,
)  # fmt: skip
def test_gated_layers_go_by_name_pattern_and_alternatives(
    patterns: list[str], expected: list[str]
) -> None:
    changes = {"layers": patterns, "probes": ["linear"]}
    assert layers(job("cifar10-resnet18-cifs", width=2, **changes).gates) == expected


@pytest.mark.parametrize(
    ("probes", "wanted"),
    [
        ([], [None, None, None]),
        (["linear"], ["linear"] * 3),
        (["two-layer", "linear"], ["two-layer", "two-layer", "linear"]),
        (["linear", "two-layer", "two-layer"], ["linear", "two-layer", "two-layer"]),
    ],
)
def test_probes_are_counted_from_the_last_layer_back(
    probes: list[str], wanted: list[str | None]
) -> None:
    gates = job(
        "cifar10-resnet18-cifs", width=2, layers=["layer2", "layer3", "layer4"], probes=probes
    ).gates
    assert [gate.options.get("probe") for gate in gates] == wanted
    assert [gate.channels for gate in gates] == [4, 8, 16]


@pytest.mark.parametrize(
    ("k", "wanted"), [(3, [3, 3, 3]), ([2, 1], [2, 2, 1]), ((1, 3, 2), [1, 3, 2]), ([4], [4] * 3)]
)
def test_an_option_may_have_a_value_for_each_gate(
    k: Any, wanted: list[int], tmp_path: Path
) -> None:
    described = job(
        "cifar10-resnet18-cifs", width=2, layers=["layer2", "layer3", "layer4"], **{"gates.k": k}
    )
    assert [gate.options["k"] for gate in described.gates] == wanted
    (tmp_path / "mine.toml").write_text(described.recipe.toml())
    assert Recipe.named(str(tmp_path / "mine.toml")) == described.recipe


@pytest.mark.parametrize(
    ("arch", "size", "shape"),
    [("resnet18", 32, (4, 4)), ("wrn-16-2", 12, (3, 3)), ("resnet10", 8, (1, 1))],
)
def test_elements_are_scaled_at_the_size_of_the_layers_features(
    arch: str, size: int, shape: tuple[int, int]
) -> None:
    (gate,) = job("cifar10-resnet18-eas", size, arch=arch, width=2).gates
    assert gate.layer == ("layer3.0" if arch.startswith("wrn") else "layer4.0")
    assert (gate.options["height"], gate.options["width"]) == shape


def test_elements_of_uneven_images_are_scaled() -> None:
    part = MemorySplit(torch.zeros(2, 1, 16, 24, dtype=torch.uint8), torch.arange(2))
    data = Dataset("uneven", ("a", "b"), part, part, part)
    (gate,) = tiny_job("at", Path("net.pt"), data=data, gates_kind="eas", layers=["layer3.0"]).gates
    assert (gate.options["height"], gate.options["width"]) == (4, 6)


@pytest.mark.parametrize(("arch", "count"), [("resnet18", 20), ("resnet10", 12), ("wrn-28-10", 28)])
def test_kernels_are_averaged_after_every_convolution(arch: str, count: int) -> None:
    described = job("cifar10-resnet18-kap", arch=arch, width=2)
    network = described.architecture.build()
    convolutions = [
        name for name, part in network.named_modules() if isinstance(part, torch.nn.Conv2d)
    ]
    assert layers(described.gates) == convolutions
    assert len(convolutions) == count
    assert all(gate.options == {"pool": 3} for gate in described.gates)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"gates.kind": "cif"},
            ["no gates 'cif'", "choose from none, cifs", "Did you mean 'cifs'"],
        ),
        ({"layers": ["layer5"]}, ["called 'layer5'", "Did you mean 'layer"]),
        ({"layers": ["layer4.1", ""]}, ["called ''"]),
        ({"layers": ["features|layer5"]}, ["called 'features|layer5'"]),
        ({"gates.k": 11}, ["k = 11 of 10"]),
        ({"gates.options.heat": 3}, ["no option 'heat'"]),
        ({"gates.options.scale": 3}, ["softmax takes no scale"]),
        ({"gates.options.k": []}, ["gates.k is an empty list: name a value"]),
        ({"gates.options.k": [[1], 2]}, ["lists of these"]),
        (
            {"gates.k": [1, 2, 3]},
            ["gates.k has 3 values, 1, 2, 3, and only 2 gated: layer4.0, lay"],
        ),
        ({"layers": ["layer4"]}, ["gates.probe has 2 values, two-layer, linear, and only 1 gated"]),
        ({"gates.options.k": 1.5}, ["a whole number"]),
        ({"gates.options.imgf": "softmin"}, ["softmax"]),
        ({"gates.kind": "fsr", "options": {}}, ["kind fsr has no option 'probe'"]),
        ({"gates.kind": "eas", "options": {}}, ["kind eas has no option 'probe'"]),
    ],
    ids=str,
)
def test_gates_that_cannot_be(changes: dict[str, Any], words: list[str]) -> None:
    with mistake(*words):
        _ = job("cifar10-resnet18-cifs", width=2, **changes).gates


# ---------------------------------------------------------------- from a recipe to loss and attack


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("standard", CrossEntropy()),
        ("at", CrossEntropy()),
        ("cifs", CrossEntropy(beta=2, beta_atk=2)),
        ("trades", TRADES(trade_off=6)),
        ("mart-cas", MART(trade_off=5, beta=2, beta_atk=2)),
        ("fsr", CrossEntropy(beta=1, beta_atk=0, scaled=False)),
        ("eas", CrossEntropy(beta=0.01, beta_atk=0.01, scaled=False)),
        ("kap", CrossEntropy()),
    ],
)
def test_a_method_has_its_loss(method: str, wanted: Any) -> None:
    described = job(f"cifar10-resnet18-{method}")
    assert described.loss == wanted
    assert described.adversarial == (method not in ("standard", "kap"))
    smooth = job(f"cifar10-resnet18-{method}", smoothing=0.1, **{"attack.beta_atk": 7.0}).loss
    assert smooth.smoothing == 0.1
    assert smooth.beta_atk == (7 if method in GATED else 2)


def test_the_training_attack_starts_near_and_the_validation_attack_anywhere() -> None:
    described = job("cifar10-resnet18-fat-cifs")
    attack = described.attack_at(60)
    assert (attack.eps, attack.step, attack.steps) == (8 / 255, 2 / 255, 10)
    assert (attack.random_start, attack.early_stop) == (True, 1)
    assert job("cifar10-resnet18-trades-cifs").attack_at(60).random_start == 0.001
    assert [described.attack_at(epoch).early_stop for epoch in (0, 49, 50, 89, 90)] == [
        0,
        0,
        1,
        1,
        2,
    ]
    last = described.validation_attack
    assert (last.random_start, last.early_stop, last.steps, last.objective) == (
        True,
        None,
        10,
        Joint(2),
    )
    plain = job("cifar10-resnet18-at")
    assert (plain.attack_at(0).random_start, plain.attack_at(0).early_stop) == (True, None)


def test_a_pipe_is_no_recipe(tmp_path: Path) -> None:
    """It would be waited for."""
    os.mkfifo(tmp_path / "pipe.toml")
    with mistake("pipe.toml", "no ordinary file"):
        Recipe.named(str(tmp_path / "pipe.toml"))


def test_a_recipe_of_endless_depth_is_refused(tmp_path: Path) -> None:
    """Dotted names nest without brackets, and so without the parser's limit."""
    (tmp_path / "deep.toml").write_text("a" + ".a" * 5000 + " = 1")
    with mistake("deep.toml", "nested too deep"):
        Recipe.named(str(tmp_path / "deep.toml"))
