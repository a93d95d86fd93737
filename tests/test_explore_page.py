"""The explorer's page in a real browser: what clicks do; its arithmetic is the network's."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import channelscope as cs
from channelscope.attacks import PGD
from channelscope.explorer.still import make_data
from helpers.browser import PROGRAM, Tab, browsing
from helpers.networks import images, plain
from helpers.planted import Shift
from helpers.studies import make_result, synthetic_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here"),
]
LAYER = "relu2"
ATTACK = Shift(0.4)


def drawn() -> tuple[Tensor, Tensor]:
    x, y = images(40)
    return 0.5 * x, y


@pytest.fixture(scope="module")
def nets() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    first, second = plain(), plain()
    x, _ = drawn()
    with torch.no_grad():  # so that they answer with several classes
        for net in (first, second):
            net.linear.bias -= net(x).mean(0)
    return {"first": first, "second": second}


@pytest.fixture(scope="module")
def labelled(nets: dict[str, nn.Module]) -> tuple[Tensor, Tensor]:
    """Images labelled by what the first network answers, some of them otherwise."""
    x, y = drawn()
    with torch.no_grad():
        answers = nets["first"](x).argmax(1)
    answers[:4] = y[:4]
    return x, answers


@pytest.fixture(scope="module")
def result(nets: dict[str, nn.Module], labelled: tuple[Tensor, Tensor]) -> cs.Result:
    compared = cs.compare(
        nets, labelled, layers=[LAYER, "relu1"], attack=ATTACK, attacks=ATTACK, progress=False
    )
    ball = PGD(eps=0.1, steps=2, random_start=False)
    views = cs.visualise(nets, LAYER, [0, 1], labelled, steps=2, attack=ball)
    return views.add_to(compared)


@pytest.fixture(scope="module")
def page(result: cs.Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explorer") / "page.html"
    explorer = cs.explore(result, model="first", layer=LAYER, order="channel number")
    return explorer.save(path)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browsing(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab, page: Path) -> Tab:
    browser.open(page)
    browser.run("find('clear').click()")
    return browser


def choose(tab: Tab, control: str, value: str | int) -> None:
    """Set a control as a user does."""
    tab.run(
        f"find('{control}').value = {json.dumps(str(value))};"
        f"find('{control}').dispatchEvent(new Event('input', {{bubbles: true}}))"
    )


def click(tab: Tab, mode: str, *channels: int, model: int = 0) -> None:
    tab.run(f"document.querySelector('[name=mode][value={mode}]').click()")
    for channel in channels:
        bar = f"""document.querySelector('[data-model="{model}"][data-channel="{channel}"]')"""
        tab.run(f"{bar}.dispatchEvent(new MouseEvent('click', {{bubbles: true}}))")


def order_of(tab: Tab, model: int = 0) -> list[int]:
    bars = f"""[...document.querySelectorAll('.bar-group[data-model="{model}"]')]"""
    return [int(channel) for channel in tab.run(f"{bars}.map((bar) => bar.dataset.channel)")]


def percent(correct: Tensor) -> str:
    return f"{100 * float(correct.float().mean()):.1f} %"


def said(tab: Tab, selector: str) -> str:
    return str(tab.run(f"document.querySelector('{selector}').innerText"))


def test_silenced_and_restored_channels_answer_as_the_network_does(tab, nets, labelled):
    x, y = labelled
    net, attacked = nets["first"], x + 0.4
    with torch.no_grad(), cs.capture(net, LAYER) as natural:
        right = net(x).argmax(1) == y
        features = natural[LAYER].clone()
        broken = right & (net(attacked).argmax(1) != y)
    assert broken.sum() > 4
    click(tab, "silence", 2)
    click(tab, "restore", 0, 5, 6, 7)
    restored, silenced = cs.patched(net, {LAYER: ([0, 5, 6, 7], features)}), {LAYER: [2]}
    with torch.no_grad(), cs.ablated(net, silenced):
        expected_natural = net(x).argmax(1) == y
        with restored:
            expected = net(attacked).argmax(1) == y
    assert said(tab, "[data-accuracy=natural]") == percent(expected_natural)
    assert said(tab, "[data-accuracy=adversarial]") == percent(expected)
    assert said(tab, "[data-repaired]") == str(int((expected & broken).sum()))
    click(tab, "silence", 2)  # once more: no longer silenced
    click(tab, "restore", 1, 2, 3, 4)
    assert said(tab, "[data-repaired]") == str(int(broken.sum()))  # all are restored
    assert "exactly" in said(tab, "#effect")


def test_below_the_penultimate_layer_the_estimate_says_so(tab):
    choose(tab, "layer", 1)
    click(tab, "restore", 0)
    assert "first order" in said(tab, "#effect")
    assert tab.run("document.querySelector('[data-accuracy]')") is None
    choose(tab, "layer", 0)
    assert "Nothing is silenced" in said(tab, "#effect")


def test_channels_sort_as_asked(tab, result):
    names = result.meta["data"]["classes"]
    for order in ("relevance", "natural magnitude", "adversarial magnitude", "change"):
        choose(tab, "order", order)
        choose(tab, "class", 1)
        rows = cs.explorer.tables.list_channels(result, "first", LAYER, names[1], order)
        assert order_of(tab) == rows["channel"].tolist()


def test_many_channels_are_restored_at_once(tab):
    click(tab, "restore")
    tab.run("find('count').value = 3; find('many').click()")
    assert tab.run("plain().restored") == [0, 1, 2]


def test_two_channels_are_pinned_and_the_other_networks_follow(tab, result):
    choose(tab, "other", 1)
    click(tab, "pin", 3, 6, 4)
    cards = tab.run(
        "[...document.querySelectorAll('.card')].map((c) => [c.dataset.of, c.dataset.card])"
    )
    rows = result.matched
    rows = rows[(rows["layer"] == LAYER) & (rows["other_layer"] == LAYER)]
    partner = dict(zip(rows["channel"].astype(int), rows["other_channel"].astype(int), strict=True))
    expected = [["0", "6"], ["1", str(partner[6])], ["0", "4"], ["1", str(partner[4])]]
    assert cards == expected
    assert order_of(tab, 1) == [partner[channel] for channel in order_of(tab)]
    choose(tab, "other", -1)


def test_a_picture_enlarges_beside_its_adversarial_one_and_where_the_channel_fires(tab):
    click(tab, "pin", 0)
    tab.run("document.querySelector('.card .tile').click()")
    tab.wait(lambda: tab.run("find('large').open"))
    captions = "[...document.querySelectorAll('#large figcaption')].map((c) => c.innerText)"
    shown = " ".join(tab.run(captions))
    for word in ("natural", "adversarial", "where channel 0 fires", "times 8"):
        assert word in shown
    box = "document.querySelector('#large canvas').getBoundingClientRect().width"
    assert tab.run(box) >= 200
    tab.run("find('close').click()")
    assert not tab.run("find('large').open")


def test_images_that_drive_a_channel_are_shown_where_they_are_kept(tab):
    click(tab, "pin", 1)
    assert "images that drive it" in said(tab, "#cards")
    click(tab, "pin", 1, 5)
    assert "images that drive it" not in said(tab, "#cards")


def test_the_selection_is_code_an_address_and_files(tab, page):
    click(tab, "silence", 2)
    click(tab, "restore", 5)
    code = tab.run("makeCode()")
    assert f'cs.patched(net, {{"{LAYER}": ([5], natural["{LAYER}"])}})' in code
    assert f'cs.ablated(net, {{"{LAYER}": [2]}})' in code
    compile(code, "code", "exec")
    table = tab.run("makeTable()").splitlines()
    assert len(table) == 9
    assert table[3].endswith("true,false")
    tab.run("window.before = true; window.location.reload()")
    tab.wait(lambda: tab.run("!window.before && document.readyState === 'complete'"))
    assert tab.run("[plain().silenced, plain().restored]") == [[2], [5]]
    assert (
        tab.run(
            "new DOMParser().parseFromString(new XMLSerializer()"
            ".serializeToString(document.querySelector('#charts svg')), 'image/svg+xml')"
            ".querySelectorAll('[data-channel]').length"
        )
        == 8
    )


@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_fetches_nothing_and_does_not_complain(browser, page, width):
    browser.open(page, width)
    browser.run("document.querySelector('.card .tile').click()")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    sent = {url for url in browser.requests() if not url.startswith(("data:", "blob:"))}
    assert {url.partition("#")[0] for url in sent} == {page.as_uri()}
    assert browser.complaints() == []


def test_names_from_files_are_text(browser, tmp_path):
    label, name = "</script><script>document.title='taken'</script>", "<img src=x onerror=alert(1)>"
    study = synthetic_study((label, "at"), ("cat", name), channels=3, swept=True)
    result = make_result(study, "activations", "excitation", "samples")
    browser.open(cs.explore(result, class_name=name).save(tmp_path / "page.html"))
    assert browser.run("document.title") != "taken"
    assert browser.run("document.querySelectorAll('body img').length") == 0
    assert label in browser.run("document.querySelector('#charts').innerText")
    choose(browser, "strength", 0)
    assert "eps-0.01" in browser.run("document.querySelector('#charts').innerText")


def test_without_what_later_versions_keep_there_is_the_chart():
    study = synthetic_study(("nat",), ("cat", "dog"), channels=3, empty=("dog",))
    data = make_data(make_result(study, "activations"))
    assert data["models"][0]["samples"] is None
    assert data["pictures"] == {}
    json.dumps(data, allow_nan=False)
