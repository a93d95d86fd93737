"""The page in a real browser: it asks for nothing, sorts, enlarges, fits a phone and paper."""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from channelscope.report import write_report
from helpers.browser import PROGRAM, Tab, browsing
from helpers.pages import add_figures
from helpers.studies import make_result, synthetic_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here"),
]
LONG = "a-model-with-a-name-that-no-phone-has-room-for-in-one-line"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    add_figures(folder, relevance=True, training=True, later=False)
    study = synthetic_study(("nat", "at", LONG), gates=("layer4.0",), empty=("bird",), channels=6)
    return write_report(make_result(study), folder)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browsing(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab, page: Path) -> Tab:
    browser.open(page)
    return browser


def test_nothing_fails_and_nothing_is_asked_of_anybody(tab: Tab, page: Path) -> None:
    assert tab.complaints() == []
    assert {address for address in tab.requests() if not address.startswith("data:image/")} == {
        page.as_uri()
    }


def test_a_script_that_is_not_the_pages_own_does_not_run(
    tab: Tab, page: Path, tmp_path: Path
) -> None:
    bad = "<script>document.title = 'taken'</script><img src='https://example.org/x.png'>"
    spoilt = tmp_path / "report.html"
    spoilt.write_text(page.read_text("utf-8").replace("<footer>", f"<footer>{bad}"), "utf-8")
    tab.open(spoilt)
    assert tab.run("document.title") != "taken"
    assert len(tab.complaints()) >= 2
    assert not [
        address
        for address in tab.requests()
        if "example.org" in address and not _blocked(tab, address)
    ]


def _blocked(tab: Tab, address: str) -> bool:
    ids = {
        e["params"]["requestId"]
        for e in tab.events
        if e["params"].get("request", {}).get("url") == address
    }
    failed = [e["params"] for e in tab.events if e["method"] == "Network.loadingFailed"]
    return ids <= {params["requestId"] for params in failed if params.get("blockedReason") == "csp"}


@pytest.mark.parametrize("width", [320, 1200])
def test_no_width_makes_the_page_scroll_sideways(browser: Tab, page: Path, width: int) -> None:
    browser.open(page, width)
    browser.run("for (const details of document.querySelectorAll('details')) details.open = true")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    inside = "(part) => part.getBoundingClientRect().right <= innerWidth"
    assert browser.run(
        f"[...document.querySelectorAll('p, h1, h2, figure, nav, .table')].every({inside})"
    )


COLUMN = (
    "[...document.querySelector('.sortable').tBodies[0].rows].map((row) => row.cells[%d].innerText)"
)
HEAD = "document.querySelector('.sortable').tHead.rows[0].cells[%d]"


def test_tables_sort_by_a_click_and_say_so(tab: Tab) -> None:
    before = tab.run(COLUMN % 1)
    numbers = [float(str(text).split()[0]) for text in before]
    assert numbers != sorted(numbers)
    for order in ("ascending", "descending"):
        tab.run((HEAD % 1) + ".querySelector('button').click()")
        assert tab.run((HEAD % 1) + ".getAttribute('aria-sort')") == order
        sorted_now = [float(str(text).split()[0]) for text in tab.run(COLUMN % 1)]
        assert sorted_now == sorted(numbers, reverse=order == "descending")
    tab.run((HEAD % 0) + ".querySelector('button').click()")
    assert tab.run((HEAD % 1) + ".hasAttribute('aria-sort')") is False
    assert tab.run(COLUMN % 0) == sorted(tab.run(COLUMN % 0))


def test_what_is_missing_is_last_whichever_way_a_table_is_sorted(tab: Tab) -> None:
    tab.run("document.querySelector('#robustness').open = true")
    table = "document.querySelector('#robustness details .sortable')"
    tab.run(table + ".closest('details').open = true")
    for _ in range(2):
        tab.run(table + ".tHead.rows[0].cells[1].querySelector('button').click()")
        rows = tab.run(f"[...{table}.tBodies[0].rows].map((row) => row.cells[0].innerText)")
        assert rows[-1] == "bird"


def test_tables_sort_by_keyboard(tab: Tab) -> None:
    tab.run((HEAD % 2) + ".querySelector('button').focus()")
    tab.press("Enter", 13, "\r")
    assert tab.run((HEAD % 2) + ".getAttribute('aria-sort')") == "ascending"


def fixed(tab: Tab) -> bool:
    return bool(
        tab.run(
            "getComputedStyle(document.querySelector('#figure-relevance')).position === 'fixed'"
        )
    )


def test_a_figure_enlarges_by_click_or_enter_and_closes_by_link_or_escape(tab: Tab) -> None:
    width = "document.querySelector('#figure-relevance img').getBoundingClientRect().width"
    small = tab.run(width)
    for opened, closed in (("click", "click"), ("Enter", "Escape")):
        if opened == "click":
            tab.run("document.querySelector('#figure-relevance .enlarge').click()")
        else:
            tab.run("document.querySelector('#figure-relevance .enlarge').focus()")
            tab.press("Enter", 13, "\r")
        tab.wait(lambda: fixed(tab))
        assert tab.run(width) > 2 * small
        assert (
            tab.run("getComputedStyle(document.querySelector('#figure-relevance .close')).display")
            == "block"
        )
        if closed == "click":
            tab.run("document.querySelector('#figure-relevance .close').click()")
        else:
            tab.press("Escape", 27)
        tab.wait(lambda: not fixed(tab))


def test_evidence_of_a_claim_shows_the_figure_though_it_is_folded(tab: Tab) -> None:
    tab.run("document.querySelector('#c1 details').open = true")
    tab.run("document.querySelector('#c1 .evidence a').click()")
    figure = "document.querySelector('#figure-training')"
    tab.wait(lambda: bool(tab.run(f"getComputedStyle({figure}).position === 'fixed'")))
    assert tab.run(f"{figure}.getBoundingClientRect().height > innerHeight / 2")


BUTTON = "[...document.querySelectorAll('nav button')].find((b) => b.textContent === '%s')"


def test_the_theme_changes_at_a_click_and_paper_is_white(tab: Tab) -> None:
    colours = "['background', 'color'].map((name) => getComputedStyle(document.body)[name])"
    light = tab.run(colours)
    tab.run(BUTTON % "Theme" + ".click()")
    dark = tab.run(colours)
    assert all(before != after for before, after in zip(light, dark, strict=True))
    tab.send("Emulation.setEmulatedMedia", media="print")
    try:
        assert tab.run(colours)[1] == light[1]
        assert "255, 255, 255" in tab.run(colours)[0]
    finally:
        tab.send("Emulation.setEmulatedMedia", media="")
    tab.run(BUTTON % "Theme" + ".click()")
    assert tab.run(colours) == light


def test_it_follows_the_readers_theme(tab: Tab) -> None:
    colour = "getComputedStyle(document.body).color"
    light = tab.run(colour)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    tab.send("Emulation.setEmulatedMedia", features=dark)
    try:
        assert tab.run(colour) != light
    finally:
        tab.send("Emulation.setEmulatedMedia", features=[])


def test_all_unfolds_and_folds_at_a_click_and_the_contents_stay_in_sight(tab: Tab) -> None:
    folded = "document.querySelectorAll('details:not([open])').length"
    all_parts = tab.run("document.querySelectorAll('details').length")
    assert tab.run(folded) == all_parts
    tab.run(BUTTON % "Unfold" + ".click()")
    assert tab.run(folded) == 0
    tab.run("window.scrollTo({top: 3000, behavior: 'instant'})")
    assert tab.run("document.querySelector('nav').getBoundingClientRect().top") == 0
    tab.run(BUTTON % "Fold" + ".click()")
    assert tab.run(folded) == all_parts
    tab.run("document.querySelector('nav a[href=\"#words\"]').click()")
    tab.wait(lambda: bool(tab.run("document.querySelector('#words').open")))


def test_a_screen_reader_finds_its_way(tab: Tab) -> None:
    tab.send("Accessibility.enable")
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    tab.send("Accessibility.disable")
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    ]
    roles = [role for role, _ in named]
    for landmark in ("banner", "main", "navigation", "contentinfo"):
        assert roles.count(landmark) == 1
    headings = [
        node
        for node in nodes
        if node.get("role", {}).get("value") == "heading" and not node["ignored"]
    ]
    levels = [
        {p["name"]: p["value"]["value"] for p in node["properties"]}["level"] for node in headings
    ]
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert all(
        name for role, name in named if role in ("image", "table", "region", "link", "button")
    )
    assert ("image", "relevance: relevance rises.") in named


def test_it_is_whole_without_its_script(tab: Tab, page: Path) -> None:
    tab.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(page)
        tree = json.dumps(tab.send("DOMSnapshot.captureSnapshot", computedStyles=[])["strings"])
        for words in ("NR mass", "worst case over all attacks", "relevance rises."):
            assert words in tree
    finally:
        tab.send("Emulation.setScriptExecutionDisabled", value=False)


def count_pages(pdf: bytes) -> int:
    assert pdf.startswith(b"%PDF")
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


def test_it_is_six_screens_and_six_pages_at_most_unless_unfolded(browser: Tab, page: Path) -> None:
    browser.open(page, 1440, 900)
    assert browser.run("document.documentElement.scrollHeight") <= 6 * 900
    assert browser.run("document.querySelector('.profiles').getBoundingClientRect().bottom") <= 900
    folded = count_pages(browser.printed())
    assert folded <= 6
    browser.run(BUTTON % "Unfold" + ".click()")
    assert count_pages(browser.printed()) > folded


def test_paper_holds_the_tables_of_six_models_with_long_names(browser: Tab, tmp_path: Path) -> None:
    names = [f"{LONG}-{index}".replace("-", "_" if index % 2 else "-") for index in range(6)]
    study = synthetic_study(names, channels=6)
    page = write_report(make_result(study, "alignment", "robustness", "differences"), tmp_path)
    browser.open(page, width=718)  # A4 less Chromium's margins
    browser.send("Emulation.setEmulatedMedia", media="print")
    try:
        browser.run(
            "for (const details of document.querySelectorAll('details')) details.open = true"
        )
        fits = "(table) => table.scrollWidth <= table.clientWidth"
        assert browser.run(f"[...document.querySelectorAll('.table')].every({fits})")
    finally:
        browser.send("Emulation.setEmulatedMedia", media="")
