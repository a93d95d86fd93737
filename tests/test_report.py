"""The page: what it says, that it needs nothing else, and that it refuses damaged figures."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import channelscope as cs
from channelscope.analyses.base import ANALYSES, VERDICTS, ChannelTable
from channelscope.analyses.claims import CLAIMS
from channelscope.errors import UserError
from channelscope.report import write_report
from channelscope.report.sentences import name_page
from channelscope.result import Result
from helpers.networks import images, plain
from helpers.pages import Page, add_figures
from helpers.studies import make_result, replace_tables, synthetic_study

CASES = (
    ("C1", "supported", 0.31),
    ("C2", "not supported", -0.04),
    ("C3", "inconclusive", 0.12),
    ("C4", "supported", 0.047),
    ("C5", "not judged", 0.02),
)
TABLES = {name: table for analysis in ANALYSES.values() for name, table in analysis.tables.items()}


def make_verdicts() -> pd.DataFrame:
    """Return a verdict of each claim for two pairs of models."""
    return VERDICTS.frame(
        {
            "claim": claim,
            "models": f"{model} - nat",
            "layer": "layer4",
            "verdict": verdict,
            "estimate": estimate,
            "low": estimate - 0.06,
            "high": estimate + 0.06,
            "p": 0.01,
            "n": 90,
            "seeds": 1,
            "least": 0.02,
            "statement": f"The difference of {model} - nat was measured on the same images.",
            "change": f"More images of {model}.",
        }
        for claim, verdict, estimate in CASES
        for model in ("at", "cifs")
    )


def make_rows(name: str, *rows: tuple[object, ...]) -> pd.DataFrame:
    """Return a table of these rows, their columns in order."""
    columns = TABLES[name].columns
    return TABLES[name].frame(dict(zip(columns, row, strict=True)) for row in rows)


RESULT = replace_tables(
    make_result(
        synthetic_study(classes=("bird", "cat", "dog"), layers=("layer3", "layer4"), channels=6)
    ),
    verdicts=make_verdicts(),
)


def read_text(result: Result, folder: Path) -> str:
    """Write the page, and return its visible text."""
    return Page(write_report(result, folder)).text


# ---------------------------------------------------------------- what the page says


def test_page_has_its_parts_in_order(tmp_path: Path) -> None:
    add_figures(tmp_path, relevance=True, training=True, later=False)
    path = write_report(RESULT, tmp_path)
    assert path == tmp_path / "report.html"
    parts = ["nat, at, cifs on cifar10", "At a glance", "Claims", "Channels", "Accuracy"]
    parts += ["More evidence", "Words", "How it was made"]  # the contents
    parts += ["cifs", "NR mass", "Channel magnitudes", "3 networks on 90 images of cifar10"]
    parts += ["Claims", *CLAIMS, "Damage", "Channels through which"]
    parts += ["Accuracy by attack and class", "Worst case by class", "More evidence"]
    parts += ["About training.", "About later.", "Alignment at layer layer3"]
    parts += ["Alignment at layer layer4", "Words", "How it was made", "channelscope 0.1.0"]
    parts += ["are in meta.json beside this page"]
    page, place = Page(path), 0
    for part in parts:
        place = page.text.index(part, place) + len(part)


def test_attacks_eps_level_and_words_are_said_once(tmp_path: Path) -> None:
    add_figures(tmp_path, relevance=True, training=True, later=False)
    listing = tmp_path / "figures" / "captions.json"
    shared = " Adversarial images: PGD-20, ε = 8/255. Robust accuracy: worst case over PGD-20."
    entries = json.loads(listing.read_text())
    listing.write_text(json.dumps([e | {"caption": f"It rises.{shared}"} for e in entries]))
    text = read_text(RESULT, tmp_path)
    assert "adversarial images: PGD-20, ε = 8/255; worst case per image over PGD-20;" in text
    assert text.count("Adversarial images: PGD-20") == text.count("Robust accuracy: worst") == 0
    assert text.count("It rises.") == 3
    assert text.count("ab" * 32) == 1  # the images', in the settings


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("imagefolder:/home/me/cifar10-jpeg", "cifar10-jpeg"),
        ("imagefolder:C:\\images\\cats\\", "cats"),
        ("/data/mine.npz", "mine.npz"),
        ("digits", "digits"),
    ],
)
def test_no_folder_is_in_the_title(name: str, shown: str, tmp_path: Path) -> None:
    result = replace(RESULT, meta=RESULT.meta | {"data": RESULT.meta["data"] | {"name": name}})
    text = read_text(result, tmp_path)
    assert f"nat, at, cifs on {shown} " in text
    assert text.count(name) == 1 if name != shown else True  # in the settings


def test_the_title_of_many_networks_is_short() -> None:
    models: dict[str, object] = {f"net{index}": {} for index in range(12)}
    result = replace(RESULT, meta=RESULT.meta | {"models": models})
    assert name_page(result) == "net0, net1, net2, net3, net4, 7 others on cifar10"


def test_findings_name_a_network_that_follows_a_wrong_label(tmp_path: Path) -> None:
    shares = {"accuracy": 0.5, "follows_untold": 0.2}
    rows = [
        (model, "", "natural", measure, share, share - 0.02, share + 0.02)
        for model, wrong in (("at", 0.21), ("cifs", 0.91))
        for measure, share in {**shares, "follows_wrong": wrong}.items()
    ]
    text = read_text(replace_tables(RESULT, leakage=make_rows("leakage", *rows)), tmp_path)
    assert "cifs relies on the labels" in text
    assert "it answers that label on 91.0 % [89.0, 93.0] of the natural images" in text
    assert "its accuracy is 50.0 % [48.0, 52.0]" in text
    assert "at relies on the labels" not in text


def test_verdicts_have_claim_badge_estimate_interval_and_statement(tmp_path: Path) -> None:
    page = Page(write_report(RESULT, tmp_path))
    badges = [
        str(span["class"])
        for span in page.attributes("span")
        if str(span.get("class")).startswith("badge")
    ]
    verdicts = [f"badge {verdict.replace(' ', '-')}" for verdict in RESULT.verdicts["verdict"]]
    assert badges == verdicts
    assert all(words in page.text for words in CLAIMS.values())
    assert "supported at − nat, layer4 0.310 [0.250, 0.370]" in page.text
    assert "not supported cifs − nat, layer4 −4.0 [−10.0, 2.0] points" in page.text
    for row in RESULT.verdicts.itertuples():
        assert f"{row.statement} {row.change}" in page.text


def test_robustness_has_natural_first_worst_last_and_every_class(tmp_path: Path) -> None:
    rows = [
        (model, attack, name, share, share - 0.05, share + 0.05, 9)
        for attack, share in (("worst", 0.2), ("pgd-20", 0.3), ("natural", 0.9))
        for name in ("dog", "all", "cat")
        for model in ("nat", "at", "cifs")
    ]
    text = read_text(replace_tables(RESULT, robustness=make_rows("robustness", *rows)), tmp_path)
    table = text[text.index("attack nat at cifs") : text.index("Worst case by class")]
    attacks = re.findall("natural images|pgd-20|worst case", table)
    assert attacks == ["natural images", "pgd-20", "worst case"]
    assert "90.0 % [85.0, 95.0] 90.0 % [85.0, 95.0] 90.0 % [85.0, 95.0]" in table
    by_class = text[text.index("class nat at cifs") :]
    assert by_class.index("cat 20.0 %") < by_class.index("dog 20.0 %")


def test_alignment_has_every_measure_of_every_layer(tmp_path: Path) -> None:
    table = RESULT.alignment.query("not (model == 'nat' and layer == 'layer3')")
    result = replace_tables(RESULT, alignment=table.replace({"layer": {"layer4": "last"}}))
    text = read_text(result, tmp_path)
    first, second = (text.index(f"Alignment at layer {layer}") for layer in ("layer3", "last"))
    row = table.query("model == 'at' and measure == 'cosine_centred' and layer == 'layer3'")
    row = row[row["class"] == "all"].iloc[0]
    words = "cosine of natural and adversarial magnitude, less their means over classes"
    shown = f"{words} – {row['value']:.3f} [{row['low']:.3f},"
    assert shown in text[first:second]
    assert text[second:].count("across classes") == 1


@pytest.mark.parametrize(("share", "is_marked"), [(0.04, False), (0.06, True)])
def test_rank_correlations_that_rest_on_dead_channels_are_marked(
    share: float, is_marked: bool, tmp_path: Path
) -> None:
    table = RESULT.alignment.copy()
    of_at = (table["model"] == "at") & (table["layer"] == "layer4")
    table.loc[of_at & (table["measure"] == "dead_channels"), "value"] = share
    others = ~of_at & (table["measure"] == "dead_channels")
    table.loc[others, "value"] = 0.0
    text = read_text(replace_tables(RESULT, alignment=table), tmp_path)
    other, deepest = text.split("Alignment at layer layer4")
    row = table[of_at & (table["class"] == "all")].set_index("measure")["value"]
    for measure in ("spearman", "relevance_spearman_natural", "relevance_spearman_adversarial"):
        shown = f"{row[measure]:z.3f}{'†' * is_marked} [".replace("-", "−")
        assert shown in deepest
    assert deepest.count("†") == (4 if is_marked else 0)  # three, and the note
    assert ("†: rests on dead channels" in deepest) == is_marked
    assert "†" not in other


def test_page_is_the_same_whenever_and_however_the_result_was_made(tmp_path: Path) -> None:
    how = {"created": "later", "command": "another", "batch_size": 7}
    hardware = [{"device": "cpu", "processes": count} for count in (1, 2)]
    results = [
        replace(RESULT, meta=RESULT.meta | {"hardware": hardware[0]}),
        replace(RESULT, meta=RESULT.meta | how | {"hardware": hardware[1]}),
    ]
    pages = {write_report(result, tmp_path).read_bytes() for result in results}
    assert len(pages) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_all_settings_are_listed(tmp_path: Path) -> None:
    text = read_text(RESULT, tmp_path)
    for words in (
        "ab" * 32,
        "seed 0",
        "replicates 40",
        "versions channelscope: 0.1.0",
        "eps 8/255",
        "method: at; arch: resnet18; width: 16; layers: layer3, layer4; penultimate: layer4; "
        "gates: none; compute: epochs: 12;",
    ):
        assert words in text


def test_missing_numbers_are_dashes_and_missing_verdicts_a_sentence(tmp_path: Path) -> None:
    result = make_result(synthetic_study(("only",), ("a", "b"), channels=1, epochs=0))
    nothing = {"estimate": np.nan, "low": np.nan, "high": np.nan, "models": "", "layer": ""}
    verdicts = make_verdicts().assign(**nothing)
    text = read_text(replace_tables(result, verdicts=verdicts), tmp_path)
    assert "1 network on 60 images" in text
    assert "only withstands every attack tried on" in text
    assert "supported – What was measured" in text
    unknown = result.robustness.assign(accuracy=np.nan, low=np.nan, high=np.nan)
    result = replace_tables(result, verdicts=verdicts.iloc[:0], robustness=unknown)
    text = read_text(result, tmp_path)
    assert "What was measured" not in text
    assert "worst case over all attacks –" in text


def test_some_analyses_alone_have_a_page_without_the_other_sections(tmp_path: Path) -> None:
    study = synthetic_study(("nat", "at"), ("a", "b"), channels=3)
    page = Page(write_report(make_result(study, "activations", "confusion"), tmp_path))
    assert [section["id"] for section in page.attributes("details") if "id" in section] == [
        "network",
        "words",
        "provenance",
    ]
    assert "alignment" not in page.text[: page.text.index("2 networks on")]


# ---------------------------------------------------------------- figures


def test_pictures_are_inside_with_captions_and_alternative_texts(tmp_path: Path) -> None:
    add_figures(tmp_path, relevance=True, later=False)
    folder = tmp_path / "figures"
    drawing = '<svg width="234.5pt" height="99pt"></svg>'
    (folder / "later.svg").write_text(drawing)
    (folder / "relevance.svg").write_text(drawing + " " * 300_000)  # too large for the page
    for name in ("later.pdf", "later.csv", "relevance.csv"):
        (folder / name).touch()
    page = Page(write_report(RESULT, tmp_path))
    images = page.attributes("img")
    texts = ["relevance: relevance rises.", "later: later rises."]
    assert [image["alt"] for image in images] == texts
    for image, name in zip(images, ("relevance.png", "later.svg"), strict=True):
        kind, content = str(image["src"]).split(",")
        assert kind == f"data:image/{name[-3:].replace('svg', 'svg+xml')};base64"
        assert base64.b64decode(content) == (folder / name).read_bytes()
    assert [(image["width"], image["height"]) for image in images] == [("2", "2"), ("234", "99")]
    assert "About relevance. More & more. CSV Close" in page.text
    assert "About later. More & more. PDF CSV Close" in page.text
    links = {link["href"] for link in page.attributes("a")}
    assert {"figures/later.pdf", "figures/later.csv", "figures/relevance.csv"} <= links


def test_claims_show_a_main_figure_that_bears_on_them_and_link_the_others(tmp_path: Path) -> None:
    add_figures(tmp_path, relevance=True, training=True, later=False)
    source = Page(write_report(RESULT, tmp_path)).source
    card = source[source.index('id="c1"') : source.index('id="c2"')]
    assert '<figure id="figure-relevance">' in card
    assert '<a href="#figure-training">training</a>' in card
    assert "figure-later" not in card
    assert "<figure" not in source[source.index('id="c2"') : source.index('id="c3"')]


def test_page_without_figures_says_so(tmp_path: Path) -> None:
    assert "No figures have been drawn" in read_text(RESULT, tmp_path / "new" / "folder")


@pytest.mark.parametrize(
    "listing",
    [
        "not json",
        '{"name": "relevance"}',
        '[{"name": "relevance"}]',
        "3",
        {"name": "absent"},
        {"name": "../relevance"},
        {"name": 3},
        {"caption": 3},
        {"section": "none"},
        {"claims": [3]},
    ],
)
def test_damaged_figures_are_refused_and_the_old_page_stays(
    tmp_path: Path, listing: str | dict[str, object]
) -> None:
    add_figures(tmp_path, relevance=True)
    (tmp_path / "relevance.png").touch()
    write_report(RESULT, tmp_path)
    before = (tmp_path / "report.html").read_bytes()
    captions = tmp_path / "figures" / "captions.json"
    if isinstance(listing, dict):
        (entry,) = json.loads(captions.read_text())
        listing = json.dumps([entry | listing])
    captions.write_text(listing)
    with pytest.raises(UserError, match="incomplete or damaged; draw them again"):
        write_report(RESULT, tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before


# ---------------------------------------------------------------- HTML


def test_page_needs_nothing_else(tmp_path: Path) -> None:
    add_figures(tmp_path, relevance=True)
    page = Page(write_report(RESULT, tmp_path))
    assert {tag for tag, _ in page.tags} & {"link", "iframe", "object", "base", "form"} == set()
    for _, attributes in page.tags:
        assert not attributes.keys() & {"srcset", "style", "onload", "onerror"}
        assert str(attributes.get("src", "data:")).startswith("data:")
        assert re.fullmatch(r"#.*|figures/[\w.-]+|\w+\.csv", str(attributes.get("href", "#")))
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub('base64,[^"]*', "", page.source))


def test_policy_allows_the_pages_own_style_and_script_alone(tmp_path: Path) -> None:
    page = Page(write_report(RESULT, tmp_path))
    policy = page.attributes("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    rules = dict(rule.split(" ", 1) for rule in str(policy["content"]).split("; "))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    assert rules.pop("img-src") == "data:"
    for tag in ("style", "script"):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", page.source, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert rules.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert not rules


def test_links_lead_to_parts_of_the_page_and_ids_are_unique(tmp_path: Path) -> None:
    add_figures(tmp_path, relevance=True, later=False)
    page = Page(write_report(RESULT, tmp_path))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(link["href"]) for link in page.attributes("a")]
    assert {link[1:] for link in links if link.startswith("#")} <= {*ids}
    labels = [section.get("aria-labelledby") for section in page.attributes("section")]
    assert {label for label in labels if label} <= {*ids}


def test_tables_have_captions_scopes_and_numbers_to_sort_by(tmp_path: Path) -> None:
    unknown = RESULT.robustness["accuracy"].where(RESULT.robustness["class"] != "bird")
    result = replace_tables(RESULT, robustness=RESULT.robustness.assign(accuracy=unknown))
    page = Page(write_report(result, tmp_path))
    assert page.source.count("<caption>") == len(page.attributes("table"))
    assert {head["scope"] for head in page.attributes("th")} == {"col", "row"}
    values = [cell["data-value"] for cell in page.attributes("td") if "data-value" in cell]
    worst = result.select("robustness", attack="worst", model="at", **{"class": "cat"})
    assert repr(worst["accuracy"].item()) in values
    assert "" in values
    assert {len(page.attributes(tag)) for tag in ("h1", "main", "nav")} == {1}


# ---------------------------------------------------------------- the further tables


def make_small() -> Result:
    """Return two models of a channel relevant for class a, and one relevant against it."""
    study = synthetic_study(("at", "cifs"), ("a", "b"), channels=2)
    result = make_result(study, "activations", "alignment", "robustness")
    # By model: count, change, silenced, awakened, p, q of the two channels, for class a.
    flow = {
        "at": [(9, -1.0, 0.5, 0.0, 0.001, 0.002), (9, 0.1, 0.0, 0.25, 0.5, 0.5)],
        "cifs": [(9, -0.1, 0.1, 0.0, 0.9, 0.9), (9, 2.0, 0.0, 1.0, 0.0, 0.0)],
    }
    table = TABLES["flow"]
    groups = {}
    for model, channels in flow.items():
        columns = np.array(channels, float).T
        # Class b has no images.
        groups[model, "layer4"] = {
            name: np.stack([column, np.full(2, np.nan)])
            for name, column in zip(table.numbers, columns, strict=True)
        }
    activations = result.tables["activations"]
    signed = {
        group: {**columns, "relevance": np.array([[1.0, -1.0]] * 2)}
        for group, columns in activations.groups.items()
    }
    decay = [
        ("at", "layer4", "eps", "cosine_centred", 8 / 255, 0.5, 0.4, 0.6),
        ("cifs", "layer4", "eps", "cosine_centred", 8 / 255, 0.7, 0.6, 0.8),
        ("at", "", "step", "robust_accuracy", 5, 0.25, 0.2, 0.3),
        ("at", "layer4", "eps", "cosine_centred", 2 / 255, 0.9, 0.8, 1.0),
        ("at", "early", "eps", "cosine_centred", 2 / 255, 0.1, 0.1, 0.1),
    ]
    leakage = [
        ("cifs", "", "natural", "follows_wrong", 0.75, 0.7, 0.8),
        ("cifs", "layer4", "adversarial", "chance", 0.1, 0.1, 0.1),
    ]
    differences = [
        ("cifs", "at", "layer4", "layer4", "all", "cosine_centred", -0.25, -0.5, 0.0, 0.01, 0.04),
        ("cifs", "at", "", "", "all", "robust_accuracy", 0.02, -0.1, 0.1, 0.5, 0.6),
        ("cifs", "at", "", "", "a", "cosine_centred", 9, 9, 9, 0, 0),
    ]
    answers = [("at", "adversarial", "a", "a", 3), ("at", "adversarial", "a", "b", 1)]
    answers += [("cifs", "adversarial", "a", "a", 4), ("cifs", "adversarial", "a", "b", 0)]
    return replace_tables(
        result,
        activations=replace(activations, groups=signed),
        flow=ChannelTable(table.words, table.numbers, ("a", "b"), groups),
        confusion=make_rows("confusion", *answers),
        decay=make_rows("decay", *decay),
        leakage=make_rows("leakage", *leakage),
        spread=make_rows("spread", ("cifs", "layer4", "natural", "all", 0.4, 0.3, 0.5)),
        differences=make_rows("differences", *differences),
        matching=make_rows("matching", ("at", "layer4", "cifs", "layer3", 0.875, 0.8, 0.9)),
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a small result."""
    return Page(write_report(make_small(), tmp_path_factory.mktemp("small")))


def test_flow_is_of_channels_relevant_for_the_class_and_against_it(small: Page) -> None:
    rows = "at, layer4 50.0 % 25.0 % 25.0 % 0.0 % cifs, layer4 10.0 % 100.0 % 0.0 % 25.0 %"
    assert rows in small.text


def test_the_most_frequent_wrong_answer_has_its_share(small: Page) -> None:
    caption = "Most frequent wrong answer under attack"
    assert "class at cifs a b 25.0 % – b – –" in small.text[small.text.rindex(caption) :]


def test_decay_is_by_strength_at_the_last_layer(small: Page) -> None:
    rows = (
        "eps at cifs 2/255 0.900 [0.800, 1.000] – 8/255 0.500 [0.400, 0.600] 0.700 [0.600, 0.800]"
    )
    assert rows in small.text
    assert "Accuracy under this attack, by attack's step" in small.text
    assert "attack's step at cifs 5 25.0 % [20.0, 30.0] –" in small.text


def test_gates_have_their_shares(small: Page) -> None:
    spread = "measure cifs effective channels, layer4, natural images 40.0 % [30.0, 50.0]"
    assert spread in small.text
    follows = "answers the wrong label that its gates are given, natural images 75.0 % [70.0, 80.0]"
    assert follows in small.text
    assert "share of the most frequent class, layer4, adversarial images 10.0 %" in small.text


def test_differences_between_models_have_their_corrected_significance(small: Page) -> None:
    cosine = "cosine of natural and adversarial magnitude, less their means over classes"
    pair = f"cifs − at, {cosine}, layer4 −0.250 [−0.500, 0.000] 0.04"
    assert f"{pair} cifs − at, robust accuracy, worst case 2.0 % [−10.0, 10.0] 0.6" in small.text
    assert '<tr class="strong"><th scope="row">cifs − at, cosine' in small.source
    assert '<tr><th scope="row">cifs − at, robust accuracy' in small.source
    assert "9.000" not in small.text
    assert "cifs − at 2 of 3 2 of 2 0 of 0 0 of 0 0 of 1" in small.text
    assert "at layer4 – cifs layer3 0.875 [0.800, 0.900]" in small.text


# ---------------------------------------------------------------- results of other kinds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("question", "options", "words"),
    [
        (cs.evaluate, {"attacks": ["fgsm"], "checks": 0}, "net withstands every attack tried on"),
        (cs.intervene, {"attack": "fgsm", "fractions": [0.5], "random": 1}, "are ranked best by"),
        (cs.damage, {"attack": "pgd-3", "scorers": ()}, "Half of the attack's damage passes"),
        (cs.relevance, {"scorers": ["weights", "gradient"]}, "Which channels speak for a class"),
    ],
)
def test_every_result_is_saved_with_a_page_that_begins_with_its_answer(
    question: Callable[..., Result],
    options: dict[str, object],
    words: str,
    tmp_path: Path,
) -> None:
    x, _ = images(24)
    network = plain().eval()
    with torch.no_grad():  # all classes are answered, and every answer is right
        network[-1].bias -= network(x).mean(0)
        y = network(x).argmax(1)
    if question is not cs.relevance:
        options = options | {"eps": 0.05}
    result = question({"net": network}, (x, y), replicates=20, progress=False, **options)
    page = Page(result.save(tmp_path / "out", progress=False) / "report.html")
    assert words in page.text[: page.text.index("1 network on 24 images")]
    pictures = [str(image["src"]) for image in page.attributes("img")]
    assert len(pictures) == len([*(tmp_path / "out" / "figures").glob("*.csv")])
    for name, table in result.tables.items():
        if not isinstance(table, ChannelTable) and len(table) and name != "verdicts":
            assert f"{name}.csv" in page.text


@pytest.mark.parametrize("trained", [True, False])
def test_a_sweep_has_a_page_that_names_no_winner(trained: bool, tmp_path: Path) -> None:
    ends = ("", "_low", "_high")
    numbers = {f"{name}{end}": 0.4 for name in ("natural", "robust") for end in ends}
    variants = [
        {"variant": f"imgf {imgf}", "seeds": 2 * trained, **numbers, "robust": robust}
        for imgf, robust in (("softmax", 0.3), ("relu", 0.35))
    ]
    table = pd.DataFrame(variants)
    if not trained:
        table = table.assign(**dict.fromkeys(numbers, np.nan))
    meta = {
        "title": "cifs on digits, by imgf",
        "models": {"imgf softmax": {}, "imgf relu": {}},
        "data": {"name": "digits", "images": 360, "classes": ["0", "1"]},
    }
    text = read_text(Result("sweep", {"variants": table}, {}, meta), tmp_path)
    assert "cifs on digits, by imgf" in text
    assert "2 variants on 360 images of digits" in text
    assert ("imgf relu has the highest worst-case accuracy, 35.0 %" in text) == trained
    assert ("No network has been trained and measured." in text) == (not trained)
    assert "most robust" not in text
