"""The page: what it says, that it needs nothing else, and that nothing in the data can break out of its text."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from channelscope.claims import CLAIMS
from channelscope.comparison.frames import COLUMNS, Comparison, tidy
from channelscope.errors import UserError
from channelscope.report import write_report
from comparisons import synthetic

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; fails where tags are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & {*self.open}:
            self.pieces.append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def entry(name: str, main: bool = True, caption: str | None = None) -> dict[str, object]:
    """What the list of figures says of one."""
    words = {"caption": caption or f"About {name}. More & more.", "alt_text": f"{name} rises."}
    return {"name": name, **words, "section": "claims", "claims": ["c1"], "main": main}


def add_figures(folder: Path, **main: bool) -> None:
    """Tiny pictures and their list, as drawing leaves them."""
    (folder / "figures").mkdir(parents=True)
    for shade, name in enumerate(main):
        Image.new("RGB", (2, 2), (shade, 0, 0)).save(folder / "figures" / f"{name}.png")
    listed = [entry(name, shown) for name, shown in main.items()]
    (folder / "figures" / "captions.json").write_text(json.dumps(listed))


def test_the_page_names_the_file_that_lies_there(tmp_path: Path) -> None:
    add_figures(tmp_path, relevance=True, training=True)
    (tmp_path / "figures" / "training.svg").write_text("<svg/>")
    page = Page(write_report(synthetic(), tmp_path))
    assert "About relevance. More & more. figures/relevance.png" in page.text
    assert "About training. More & more. figures/training.svg" in page.text


def test_page_has_its_parts_in_order(tmp_path: Path) -> None:
    add_figures(tmp_path, relevance=True, training=True, later=False)
    path = write_report(synthetic(), tmp_path)
    assert path == tmp_path / "report.html"
    page = Page(path)
    parts = [
        "nat, at, cifs on cifar10",
        "3 models were compared",
        *(
            "What was found",
            "Verdicts",
            "Robustness",
            "Evidence for the claims",
            "How it was made",
        ),  # the contents
        "What was found",
        "keeps the most accuracy",
        "Verdicts",
        *CLAIMS,
        "Robustness",
        "Worst case by class",
    ]
    parts += [
        "Evidence for the claims",
        "About relevance.",
        "About training.",
        "Further figures",
        "About later.",
    ]
    parts += [
        "Alignment at layer layer4",
        "How it was made",
        "torch 2.9.0",
        "are in meta.json beside this page",
    ]
    place = 0
    for part in parts:
        place = page.text.index(part, place)


def test_summary_says_models_data_attack_best_and_verdicts(tmp_path: Path) -> None:
    comparison = synthetic()
    robustness = comparison.robustness
    worst = robustness[(robustness["attack"] == "worst") & (robustness["class"] == "all")]
    best = worst.loc[worst["accuracy"].idxmax()]
    text = Page(write_report(comparison, tmp_path)).text
    assert "3 models were compared (nat, at, cifs) on 1,000 images of cifar10, 10 classes" in text
    assert "pgd-20 with ε = 8/255" in text
    assert f"{best['model']} keeps the most accuracy: {100 * best['accuracy']:.1f} %" in text
    assert (
        "supported C1 Adversarial training brings the activations of attacked images closer" in text
    )
    assert "of natural ones (at − nat; cifs − nat)." in text
    assert "not supported C2 Channels that speak against the class take no larger share" in text
    assert "inconclusive C3 It cannot be told here whether the classes" in text


def test_summary_says_which_network_follows_a_wrong_label(tmp_path: Path) -> None:
    comparison = synthetic(("at", "cifs"), ("a", "b"), gates=("layer4",), whole=True)
    shares = {"accuracy": 0.5, "accuracy_true": 0.9, "accuracy_wrong": 0.1, "follows_untold": 0.2}
    frame = comparison.leakage
    value = frame["measure"].map(shares).fillna((frame["model"] == "cifs") * 0.7 + 0.21)
    leakage = frame.assign(value=value, low=value - 0.02, high=value + 0.02)
    text = Page(write_report(replace(comparison, leakage=leakage), tmp_path)).text
    assert "cifs reads the label in its gates" in text
    assert "it answers that class for 91.0 % [89.0, 93.0] of the natural images" in text
    assert "it is right on 50.0 % [48.0, 52.0]" in text
    assert "at reads the label" not in text


def test_verdicts_have_claim_badge_estimate_interval_and_statement(tmp_path: Path) -> None:
    comparison = synthetic()
    page = Page(write_report(comparison, tmp_path))
    badges = [a["class"] for a in page.attributes("span") if (a["class"] or "").startswith("badge")]
    assert badges[4:] == [
        f"badge {verdict.replace(' ', '-')}" for verdict in comparison.verdicts["verdict"]
    ]
    assert all(words in page.text for words in CLAIMS.values())
    assert "not supported cifs - nat, layer4 −0.040 [−0.100, 0.020]" in page.text
    assert comparison.verdicts["statement"][0] in page.text


def test_robustness_has_natural_first_worst_last_and_every_class(tmp_path: Path) -> None:
    comparison = synthetic(empty=("bird",))
    shuffled = comparison.robustness.sort_values("attack", ascending=False, ignore_index=True)
    text = Page(write_report(replace(comparison, robustness=shuffled), tmp_path)).text
    table = text[text.index("attack nat at cifs") : text.index("Worst case by class")]
    assert re.findall("natural images|pgd-20|worst case", table) == [
        "natural images",
        "pgd-20",
        "worst case",
    ]
    assert "95.0 % [90.0, 100.0] 84.0 % [79.0, 89.0] 82.0 % [77.0, 87.0]" in table
    assert "bird – – – cat" in text


def test_alignment_has_every_measure_of_every_layer(tmp_path: Path) -> None:
    comparison = synthetic(layers=("layer3", "layer4"))
    deep = comparison.alignment.query("not (model == 'nat' and layer == 'layer3')")
    comparison = replace(comparison, alignment=deep.replace({"layer": {"layer4": "last"}}))
    text = Page(write_report(comparison, tmp_path)).text
    first, second = (text.index(f"Alignment at layer {layer}") for layer in ("layer3", "last"))
    row = comparison.alignment.query("model == 'at' and measure == 'cosine' and layer == 'layer3'")
    row = row[row["class"] == "all"].iloc[0]
    assert (
        f"cosine of natural and adversarial magnitude – {row['value']:.3f} [{row['low']:.3f},"
        in text[first:second]
    )
    assert text[second:].count("across classes") == 1


def test_page_is_the_same_whenever_and_however_the_result_is_found(tmp_path: Path) -> None:
    one, other = synthetic(), synthetic()
    changes = {
        "created": "later",
        "command": "another",
        "batch_size": 7,
        "hardware": {"device": "cpu", "processes": 2},
    }
    one.meta.update({"hardware": {"device": "cpu", "processes": 1}})
    other.meta.update(changes)
    pages = [
        write_report(found, tmp_path / name).read_bytes()
        for name, found in (("a", one), ("b", other))
    ]
    assert pages[0] == pages[1]


def test_settings_are_all_told(tmp_path: Path) -> None:
    text = Page(write_report(synthetic(), tmp_path)).text
    for word in (
        "ab" * 32,
        "seed 0",
        "replicates 200",
        "torch: 2.9.0",
        "eps 8/255",
        "nat: method: nat; arch: resnet18; width: 16; layers: layer4; gates: none; versions: torch: 2.9.0",
    ):
        assert word in text


def test_pictures_are_inside_with_captions_and_alternative_texts(tmp_path: Path) -> None:
    add_figures(tmp_path, relevance=True, later=False)
    page = Page(write_report(synthetic(), tmp_path))
    images = page.attributes("img")
    assert [image["alt"] for image in images] == [
        "relevance: relevance rises.",
        "later: later rises.",
    ]
    for image, name in zip(images, ("relevance", "later"), strict=True):
        kind, content = str(image["src"]).split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content) == (tmp_path / "figures" / f"{name}.png").read_bytes()
    assert "About relevance. More & more. figures/relevance.png" in page.text


def test_page_needs_nothing_else(tmp_path: Path) -> None:
    add_figures(tmp_path, relevance=True)
    page = Page(write_report(synthetic(), tmp_path))
    assert {tag for tag, _ in page.tags} & {"link", "iframe", "object", "base", "form"} == set()
    for _, attributes in page.tags:
        assert not attributes.keys() & {"srcset", "style", "onload", "onerror"}
        assert str(attributes.get("src", "data:")).startswith("data:")
        assert str(attributes.get("href", "#")).startswith("#")
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub('base64,[^"]*', "", page.source))


def test_policy_allows_the_pages_own_style_and_script_alone(tmp_path: Path) -> None:
    page = Page(write_report(synthetic(), tmp_path))
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


def test_links_lead_to_parts_of_the_page_and_names_are_there_once(tmp_path: Path) -> None:
    add_figures(tmp_path, relevance=True, later=False)
    page = Page(write_report(synthetic(), tmp_path))
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    assert {str(link["href"])[1:] for link in page.attributes("a")} <= {*names}
    assert {attributes["aria-labelledby"] for attributes in page.attributes("section")} <= {*names}


def test_verdicts_link_the_main_figures_that_bear_on_them(tmp_path: Path) -> None:
    add_figures(tmp_path, relevance=True, later=False)
    source = Page(write_report(synthetic(), tmp_path)).source
    card = source[source.index('id="c1"') : source.index('id="c2"')]
    assert '<a href="#figure-relevance">relevance</a>' in card
    assert "figure-later" not in card
    assert "Evidence" not in source[source.index('id="c2"') : source.index('id="c3"')]


def test_tables_have_captions_scopes_and_numbers_to_sort_by(tmp_path: Path) -> None:
    comparison = synthetic(empty=("bird",))
    page = Page(write_report(comparison, tmp_path))
    assert page.source.count("<caption>") == len(page.attributes("table"))
    assert {head["scope"] for head in page.attributes("th")} == {"col", "row"}
    values = [cell["data-value"] for cell in page.attributes("td") if "data-value" in cell]
    worst = comparison.robustness.query("attack == 'worst' and model == 'at' and `class` == 'cat'")[
        "accuracy"
    ].item()
    assert repr(worst) in values
    assert "" in values
    assert (
        len(page.attributes("h1"))
        == len(page.attributes("main"))
        == len(page.attributes("nav"))
        == 1
    )


def test_nothing_in_the_data_breaks_out_of_its_text(tmp_path: Path) -> None:
    evil = "</style><script>alert('1')</script>\"><img src=x onerror=alert(2)>&amp;{{ 7*7 }}"
    comparison = synthetic((evil, "at"), (evil, "b"), (evil,), channels=2)
    verdicts = comparison.verdicts.assign(statement=evil, models=evil, layer=evil, verdict=evil)
    robustness = comparison.robustness.replace({"attack": {"pgd-20": evil}})
    comparison = replace(comparison, verdicts=verdicts, robustness=robustness)
    comparison.meta.update({"command": evil, "attack": evil, "created": evil, evil: evil})
    comparison.meta["data"] |= {"name": evil, "fingerprint": evil}
    add_figures(tmp_path, relevance=True)
    listing = tmp_path / "figures" / "captions.json"
    listing.write_text(json.dumps([entry("relevance", caption=evil) | {"alt_text": evil}]))
    page = Page(write_report(comparison, tmp_path))
    assert len(page.attributes("script")) == len(page.attributes("img")) == 1
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.text.count(" ".join(evil.split())) > 20


def test_page_without_figures_says_so(tmp_path: Path) -> None:
    assert (
        "No figures have been drawn"
        in Page(write_report(synthetic(), tmp_path / "new" / "folder")).text
    )


@pytest.mark.parametrize(
    "listing",
    [
        "not json",
        '{"name": "relevance"}',
        '[{"name": "relevance"}]',
        '[{"name": "absent", "caption": "", "main": true}]',
        '[{"name": "../relevance", "caption": "", "main": true}]',
        '[{"name": 3, "caption": "", "main": true}]',
        '[{"name": "relevance", "caption": 3, "main": true}]',
        "3",
    ],
)
def test_damaged_figures_are_told_and_the_old_page_stays(tmp_path: Path, listing: str) -> None:
    add_figures(tmp_path, relevance=True)
    (tmp_path / "relevance.png").touch()
    write_report(synthetic(), tmp_path)
    before = (tmp_path / "report.html").read_bytes()
    (tmp_path / "figures" / "captions.json").write_text(listing)
    with pytest.raises(UserError, match="incomplete or damaged; draw them again"):
        write_report(synthetic(), tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before


def test_the_same_comparison_gives_the_same_bytes_and_leaves_nothing_beside(tmp_path: Path) -> None:
    first = write_report(synthetic(), tmp_path).read_bytes()
    assert write_report(synthetic(), tmp_path).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_missing_numbers_and_missing_verdicts_are_dashes_and_a_sentence(tmp_path: Path) -> None:
    comparison = synthetic(("only",), ("a", "b"), channels=1, epochs=0)
    unknown = comparison.verdicts.assign(
        estimate=np.nan, low=np.nan, high=np.nan, models="", layer=""
    )
    text = Page(write_report(replace(comparison, verdicts=unknown), tmp_path)).text
    assert "1 model was measured (only)" in text
    assert "In the worst case over all attacks only keeps " in text
    assert "supported – The difference" in text
    robustness = comparison.robustness.assign(accuracy=np.nan, low=np.nan, high=np.nan)
    text = Page(
        write_report(
            replace(comparison, verdicts=unknown.iloc[:0], robustness=robustness), tmp_path
        )
    ).text
    assert "No claim was judged." in text
    assert "worst case over all attacks –" in text


# ------------------------------------------------------------------------- the tables of flow, answers, gates, pairs


def rows_of(name: str, *rows: tuple[object, ...]) -> pd.DataFrame:
    return tidy(name, [dict(zip(sum(COLUMNS[name], ()), row, strict=True)) for row in rows])


def small() -> Comparison:
    """Two models of one channel that speaks for class a, and one that speaks against it."""
    made = synthetic(("at", "cifs"), ("a", "b"), channels=2)
    signs = made.activations["channel"].map({0: 1.0, 1: -1.0})
    flow = [
        ("at", "layer4", "a", 0, 9, -1.0, 0.5, 0.0, 0.001, 0.002),
        ("at", "layer4", "a", 1, 9, 0.1, 0.0, 0.25, 0.5, 0.5),
    ]
    flow += [
        ("cifs", "layer4", "a", 0, 9, -0.1, 0.1, 0.0, 0.9, 0.9),
        ("cifs", "layer4", "a", 1, 9, 2.0, 0.0, 1.0, 0.0, 0.0),
    ]
    answers = [
        ("at", "adversarial", "a", "a", 3),
        ("at", "adversarial", "a", "b", 1),
        ("cifs", "adversarial", "a", "a", 4),
    ]
    decay = [
        ("at", "layer4", "eps", "cosine", 8 / 255, 0.5, 0.4, 0.6),
        ("cifs", "layer4", "eps", "cosine", 8 / 255, 0.7, 0.6, 0.8),
    ]
    decay += [
        ("at", "", "step", "robust_accuracy", 5, 0.25, 0.2, 0.3),
        ("at", "layer4", "eps", "cosine", 2 / 255, 0.9, 0.8, 1.0),
        ("at", "early", "eps", "cosine", 2 / 255, 0.1, 0.1, 0.1),
    ]
    leakage = [
        ("cifs", "", "natural", "accuracy", 0.5, 0.4, 0.6),
        ("cifs", "", "natural", "follows_wrong", 0.75, 0.7, 0.8),
    ]
    leakage += [("cifs", "", "natural", "follows_untold", 0.1, 0.05, 0.2)]
    leakage += [("cifs", "layer4", "adversarial", "chance", 0.1, 0.1, 0.1)]
    differences = [
        ("cifs", "at", "layer4", "layer4", "all", "cosine", -0.25, -0.5, 0.0, 0.01, 0.04)
    ]
    differences += [
        ("cifs", "at", "", "", "all", "robust_accuracy", 0.02, -0.1, 0.1, 0.5, 0.6),
        ("cifs", "at", "", "", "a", "cosine", 9, 9, 9, 0, 0),
    ]
    return replace(
        made,
        activations=made.activations.assign(relevance=signs),
        flow=rows_of("flow", *flow),
        confusion=rows_of("confusion", *answers),
        decay=rows_of("decay", *decay),
        leakage=rows_of("leakage", *leakage),
        spread=rows_of("spread", ("cifs", "layer4", "natural", "all", 0.4, 0.3, 0.5)),
        differences=rows_of("differences", *differences),
        matching=rows_of("matching", ("at", "layer4", "cifs", "layer3", 0.875, 0.8, 0.9)),
    )


def test_channels_that_an_attack_silences_and_awakens_are_told_by_what_they_speak_for(
    tmp_path: Path,
) -> None:
    text = Page(write_report(small(), tmp_path)).text
    assert "at, layer4 50.0 % 25.0 % 50.0 % 0.0 % cifs, layer4 10.0 % 100.0 % 0.0 % 50.0 %" in text


def test_the_wrong_answer_given_most_often_is_told_with_its_share(tmp_path: Path) -> None:
    text = Page(write_report(small(), tmp_path)).text
    assert "class at cifs a b 25.0 % – b – –" in text[text.rindex("Wrong answer given") :]


def test_decay_is_by_strength_at_the_last_layer(tmp_path: Path) -> None:
    text = Page(write_report(small(), tmp_path)).text
    wanted = (
        "eps at cifs 2/255 0.900 [0.800, 1.000] – 8/255 0.500 [0.400, 0.600] 0.700 [0.600, 0.800]"
    )
    assert wanted in text
    assert "Accuracy under this attack, by attack's step" in text
    assert "attack's step at cifs 5 25.0 % [20.0, 30.0] –" in text


def test_gates_say_what_they_let_know(tmp_path: Path) -> None:
    text = Page(write_report(small(), tmp_path)).text
    assert "measure cifs effective channels, layer4, natural images 40.0 % [30.0, 50.0]" in text
    assert (
        "answers the wrong class that its gates are told, natural images 75.0 % [70.0, 80.0]"
        in text
    )
    assert "share of the most frequent class, layer4, adversarial images 10.0 %" in text


def test_differences_between_models_have_their_corrected_significance(tmp_path: Path) -> None:
    page = Page(write_report(small(), tmp_path))
    pair = (
        "cifs − at, cosine of natural and adversarial magnitude, layer4 −0.250 [−0.500, 0.000] 0.04"
    )
    assert f"{pair} cifs − at, robust accuracy, worst case 2.0 % [−10.0, 10.0] 0.6" in page.text
    assert '<tr class="strong"><th scope="row">cifs − at, cosine' in page.source
    assert '<tr><th scope="row">cifs − at, robust accuracy' in page.source
    assert "9.000" not in page.text
    assert "cifs − at 2 of 3 2 of 2 0 of 0 0 of 0 0 of 1" in page.text
    assert "at layer4 – cifs layer3 0.875 [0.800, 0.900]" in page.text


def test_what_was_not_measured_has_no_section(tmp_path: Path) -> None:
    bare = replace(
        synthetic(), **{name: tidy(name, []) for name in ("flow", "confusion", "differences")}
    )
    page = Page(write_report(bare, tmp_path))
    assert [a["id"] for a in page.attributes("section")] == [
        "found",
        "verdicts",
        "robustness",
        "claims",
        "made",
    ]
