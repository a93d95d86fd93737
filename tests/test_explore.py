"""The explorer: what it draws, what its controls do, what it says of silenced channels."""

import base64
import html
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import channelscope as cs
from channelscope.explorer import StaticExplorer, tables
from channelscope.explorer.page import ACROSS, Sheet
from channelscope.result import Result
from helpers.browser import PROGRAM, Tab, browsing
from helpers.studies import make_result, replace_tables, synthetic_study

pytestmark = pytest.mark.slow

in_a_browser = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")


def colours(n: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of one colour each, and labels."""
    values = torch.rand(n, 3, 1, 1, generator=torch.Generator().manual_seed(3)) * 0.8 + 0.1
    return values.expand(n, 3, 4, 4).mul(255).round().div(255), torch.arange(n) % 2


def mean_colour() -> nn.Sequential:
    """A network whose channel j is the mean of colour j, of which only the first two matter."""
    net = nn.Sequential(
        nn.Conv2d(3, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3).view(3, 3, 1, 1))
        net[3].weight.copy_(torch.tensor([[1.0, -2.0, 0.0], [-1.0, 2.0, 0.0]]))
        net[3].bias.copy_(torch.tensor([0.25, -0.25]))
    return net


@pytest.fixture(scope="module")
def compared() -> Result:
    models = {"colour": mean_colour(), "other": mean_colour()}
    layers = {"colour": ["0"], "other": ["1", "0"]}
    return cs.compare(
        models, colours(), layers=layers, attack="fgsm", attacks="fgsm", eps=0.1, progress=False
    )


RESULT = make_result(synthetic_study(), "activations", "excitation")


def order_of(chart: str) -> list[int]:
    return [
        int(channel)
        for channel in re.findall(r'<div class="column[^>]*aria-label="channel (\d+)"', chart)
    ]


SORTED = {
    "natural magnitude": lambda n, a, g: -n,
    "adversarial magnitude": lambda n, a, g: -a,
    "relevance": lambda n, a, g: g,
    "change": lambda n, a, g: -abs(a - n),
    "channel number": lambda n, a, g: np.arange(len(n)),
}


@pytest.mark.parametrize("order", tables.ORDERS)
def test_channels_are_sorted_as_asked(order):
    where = {"model": "at", "layer": "layer4", "class": "cat"}
    rows = tables.list_channels(RESULT, "at", "layer4", "cat", order)
    before, after = (
        RESULT.select("activations", data=data, **where) for data in ("natural", "adversarial")
    )
    natural, adversarial = before["magnitude"].to_numpy(), after["magnitude"].to_numpy()
    relevance = before["relevance"].to_numpy()
    expected = np.argsort(SORTED[order](natural, adversarial, relevance), kind="stable")
    np.testing.assert_array_equal(rows["channel"], expected)
    np.testing.assert_array_equal(rows["natural"], natural[expected])
    np.testing.assert_array_equal(rows["change"], (adversarial - natural)[expected])
    shares = after["frequency"].to_numpy()
    np.testing.assert_array_equal(rows["frequency_adversarial"], shares[expected])
    explorer = cs.explore(RESULT, model="at", class_name="cat", order=order)
    assert order_of(explorer._repr_html_()) == expected.tolist()


def test_bars_and_lines_are_as_high_as_the_magnitudes():
    rows = tables.list_channels(RESULT, "cifs", "layer4", "dog", "channel number")
    explorer = cs.explore(RESULT, model="cifs", class_name="dog", order="channel number")
    chart = explorer.chart.value
    high = rows[["natural", "adversarial"]].to_numpy().max()
    bars = re.findall(r'class="bar" style="bottom:0.00%;height:([\d.]+)%"', chart)
    lines = re.findall(r'class="line" style="bottom:([\d.]+)%"', chart)
    np.testing.assert_allclose(np.array(bars, float), 100 * rows["natural"] / high, atol=0.01)
    np.testing.assert_allclose(np.array(lines, float), 100 * rows["adversarial"] / high, atol=0.01)
    style = r'class="relevance-bar[^"]*" style="(top|bottom):50.00%;height:([\d.]+)%"'
    sides = re.findall(style, chart)
    signed = [float(height) * (1 if side == "bottom" else -1) for side, height in sides]
    np.testing.assert_allclose(
        signed, 50 * rows["relevance"] / rows["relevance"].abs().max(), atol=0.01
    )


def test_magnitudes_below_zero_hang_from_it():
    activations = RESULT.tables["activations"]
    lower = {
        group: columns | {"magnitude": columns["magnitude"] - 0.5}
        for group, columns in activations.groups.items()
    }
    result = replace_tables(RESULT, activations=replace(activations, groups=lower))
    chart = cs.explore(result, order="channel number").chart.value
    rows = tables.list_channels(result, "nat", "layer4", "airplane", "channel number")
    values = rows[["natural", "adversarial"]].to_numpy()
    low, high = values.min(), values.max()
    bars = np.array(
        re.findall(r'class="bar" style="bottom:([\d.]+)%;height:([\d.]+)%"', chart), float
    )
    np.testing.assert_allclose(
        bars[:, 0], 100 * (np.minimum(rows["natural"], 0) - low) / (max(high, 0) - low), atol=0.01
    )


def test_a_class_without_images_has_a_chart_without_bars():
    study = synthetic_study(("nat",), ("bird", "cat"), empty=("cat",), channels=3)
    explorer = cs.explore(make_result(study, "activations"), class_name="cat")
    assert 'class="bar" style="display:none"' in explorer.chart.value
    assert 'class="bar" style="bottom' not in explorer.chart.value


def test_what_excites_a_channel_most_is_shown(compared):
    x, y = colours()
    most = x[:, 1].mean((1, 2)).argsort(descending=True)[:4].tolist()
    chart = cs.explore(compared, order="channel number").chart.value
    card = chart[chart.index('aria-label="channel 1"') : chart.index('aria-label="channel 2"')]
    shown = [
        re.search(r"image (\d+), class (\d): ", title)
        for title in re.findall(r'title="([^"]*)"', card)
    ]
    assert [(int(match[1]), int(match[2])) for match in shown[:4]] == [
        (image, int(y[image])) for image in most
    ]
    assert card.count('class="tile pictured"') == 8


def test_each_tile_is_its_picture(compared):
    wanted = {("natural", int(image)) for image in compared.arrays["thumbnails/natural/images"]}
    sheet = Sheet.of(compared, "colour", wanted)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet.picture))))
    width, height = sheet.tile
    for image, picture in zip(
        compared.arrays["thumbnails/natural/images"],
        compared.arrays["thumbnails/natural"],
        strict=True,
    ):
        left, top = sheet.find("natural", int(image))
        column, row = left // width, top // height
        np.testing.assert_array_equal(
            pixels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4], picture.transpose(1, 2, 0)
        )
    assert sheet.size == (ACROSS * width, -(-len(wanted) // ACROSS) * height)


def test_without_pictures_the_images_are_named(compared):
    bare = replace(compared, arrays={"labels": compared.arrays["labels"]})
    chart = cs.explore(bare).chart.value
    assert "pictured" not in chart
    assert chart.count("(no picture kept)") > 0


def test_the_controls_choose_the_chart(compared):
    explorer = cs.explore(compared)
    controls = explorer.controls
    assert "colour, 0: its 3 channels" in explorer.chart.value
    controls["model"].value = "other"
    assert controls["layer"].options == ("1", "0")
    assert "other, 0: its 3 channels" in explorer.chart.value  # the layer of that name is there too
    controls["layer"].value = "1"
    controls["class_name"].value = "1"
    controls["order"].value = "natural magnitude"
    assert (
        "other, 1: its 3 channels on images of <i>class 1</i></b>, sorted by natural magnitude"
        in explorer.chart.value
    )
    assert (
        order_of(explorer.chart.value)
        == tables.list_channels(compared, "other", "1", "1", "natural magnitude")[
            "channel"
        ].tolist()
    )
    assert explorer._repr_html_().startswith(explorer.style.value)
    controls["model"].value = "colour"
    assert (controls["layer"].value, explorer.layer) == ("0", "0")


def test_the_channel_chosen_is_described_and_stays_chosen(compared):
    explorer = cs.explore(compared)
    explorer.controls["channel"].value = 2
    for order in ("channel number", "natural magnitude"):
        explorer.controls["order"].value = order
        assert re.search(
            r'class="below"><div class="card"><p><b>Channel 2</b>', explorer.chart.value
        )


def test_the_estimate_of_silencing_is_exact_at_the_penultimate_layer(compared):
    x, y = colours()
    net, silenced = mean_colour(), [0, 2]
    with torch.no_grad():
        before = net(x)
        net[3].weight[:, silenced] = 0
        change = (net(x) - before)[y == 1, 1].mean()
    rows = tables.list_channels(compared, "colour", "0", "1", "relevance")
    assert tables.estimate_shift(rows, silenced)["natural"] == pytest.approx(
        float(change), abs=1e-6
    )
    explorer = cs.explore(compared, model="colour", layer="0")
    explorer.controls["silenced"].value = (0, 2)
    assert "exactly" in explorer.silencing.value


def test_the_estimate_says_where_it_is_of_first_order():
    study = synthetic_study(("nat",), ("bird", "cat"), ("layer3", "layer4"), channels=8)
    result = make_result(study, "activations")
    explorer = cs.explore(result, layer="layer3")
    explorer.controls["silenced"].value = (3, 5)
    rows = tables.list_channels(result, "nat", "layer3", "bird", "channel number")
    expected = -(rows["relevance"] * rows["adversarial"])[[3, 5]].sum()
    assert f"{expected:.3g}".replace("-", "−") in explorer.silencing.value
    assert "first order" in explorer.silencing.value
    assert "Run on" not in explorer.silencing.value


def test_the_slider_silences_from_the_left(compared):
    explorer = cs.explore(compared)
    explorer.controls["first"].value = 2
    assert list(explorer.controls["silenced"].value) == order_of(explorer.chart.value)[:2]
    assert explorer.chart.value.count("column silenced") == 2
    assert "2 of 3 channels of 0 silenced" in explorer.silencing.value
    assert "exactly" in explorer.silencing.value
    explorer.controls["none"].click()
    assert explorer.controls["silenced"].value == ()
    assert explorer.controls["first"].value == 0
    assert "Nothing is silenced" in explorer.silencing.value


def test_something_is_described_from_the_start(compared):
    assert cs.explore(compared).controls["channel"].label == "the first"


def test_networks_are_run_with_the_channels_restored(compared):
    x, _ = colours()
    net = mean_colour()
    explorer = cs.explore(compared, models={"colour": net}, data=colours())
    explorer.controls["restored"].value = (0, 1, 2)
    said = re.sub("<[^>]*>", "", explorer.silencing.value)
    kept = compared.arrays["thumbnails/adversarial/0/images"]
    labels = torch.from_numpy(compared.arrays["labels"][kept])
    natural = float((net(x[kept]).argmax(1) == labels).float().mean())  # all channels are back
    assert f"→ {100 * natural:.1f} %" in said.partition("adversarial images of all")[2]
    rows = tables.list_channels(compared, "colour", "0", explorer.class_name, "relevance")
    shift = tables.estimate_shift(rows, [], [0, 1])
    part = rows[rows["channel"].isin([0, 1])]
    expected = (part["relevance"] * (part["natural"] - part["adversarial"])).sum()
    assert shift == {"natural": 0, "adversarial": pytest.approx(expected)}
    explorer.controls["none"].click()
    assert explorer.controls["restored"].value == ()


def test_data_is_read_by_the_comparisons_name_for_it(compared, monkeypatch):
    known = replace(compared, meta=compared.meta | {"data": compared.meta["data"]})
    monkeypatch.setattr(
        "channelscope.explorer.live.as_dataset", lambda data: cs.as_dataset(colours())
    )
    explorer = cs.explore(known, models={"colour": mean_colour()})
    explorer.controls["first"].value = 1
    assert "Run on 24" in re.sub("<[^>]*>", "", explorer.silencing.value)


def test_channels_stay_silenced_in_another_order_and_not_in_another_layer(compared):
    explorer = cs.explore(compared, model="other")
    explorer.controls["silenced"].value = (1,)
    explorer.controls["order"].value = "channel number"
    explorer.controls["class_name"].value = "1"
    assert explorer.controls["silenced"].value == (1,)
    explorer.controls["layer"].value = "1"
    assert explorer.controls["silenced"].value == ()


def test_networks_are_run_with_the_channels_silenced(compared):
    x, y = colours()
    net = mean_colour().train()
    explorer = cs.explore(compared, models={"colour": net}, data=colours())
    explorer.controls["silenced"].value = (1,)
    silent = mean_colour()
    silent[3].weight.data[:, 1] = 0
    pictures = torch.from_numpy(compared.arrays["thumbnails/adversarial/0"]) / 255
    labels = y[torch.from_numpy(compared.arrays["thumbnails/adversarial/0/images"])]
    for data, images, classes in (("natural", x, y), ("adversarial", pictures, labels)):
        shares = [
            float((model(images).argmax(1) == classes).float().mean())
            for model in (mean_colour(), silent)
        ]
        before, after = (f"{100 * share:.1f} %" for share in shares)
        said = re.sub("<[^>]*>", "", explorer.silencing.value)
        assert re.search(f"Run on {len(classes)} {data} images.*accuracy {before} → {after}", said)
    assert net.training
    explorer.controls["model"].value = "other"  # whose network is not there
    explorer.controls["silenced"].value = (1,)
    assert "Run on" not in explorer.silencing.value


def test_adversarial_pictures_of_another_size_are_not_run(compared):
    pictures = ("thumbnails/natural", "thumbnails/adversarial/0")
    small = replace(
        compared,
        arrays=compared.arrays | {name: compared.arrays[name][..., :2, :2] for name in pictures},
    )
    explorer = cs.explore(small, models={"colour": mean_colour()}, data=colours())
    explorer.controls["first"].value = 1
    said = re.sub("<[^>]*>", "", explorer.silencing.value)
    assert "Run on 24 natural" in said
    assert "adversarial images of all" not in said


def test_names_from_files_are_escaped():
    name, label = "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'
    study = synthetic_study((label,), ("cat", name), ("<b>layer</b>",), empty=("cat",), channels=3)
    explorer = cs.explore(make_result(study, "activations", "excitation"), class_name=name)
    explorer.controls["first"].value = 3
    for page in (explorer._repr_html_(), explorer.chart.value, explorer.silencing.value):
        assert "<script" not in page
        assert "<img" not in page
        assert "<b>layer" not in page
        assert html.escape("<b>layer</b>") in page


def test_readers_without_a_kernel_get_the_chart(compared):
    explorer = cs.explore(compared)
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/html"] == explorer._repr_html_()
    assert (
        bundle["text/plain"]
        == "Explorer(model='colour', layer='0', class_name='0', order='relevance')"
    )
    assert "<script" not in bundle["text/html"]
    assert "http" not in bundle["text/html"]  # nothing is fetched


def test_without_ipywidgets_the_chart_is_static(compared, monkeypatch):
    expected = cs.explore(
        compared, model="other", layer="1", class_name="1", order="change"
    )._repr_html_()
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.delitem(sys.modules, "channelscope.explorer.widgets")
    static = cs.explore(compared, model="other", layer="1", class_name="1", order="change")
    assert type(static) is StaticExplorer
    assert static._repr_html_() == expected
    assert (
        order_of(expected)
        == tables.list_channels(compared, "other", "1", "1", "change")["channel"].tolist()
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "colours"}, "no model 'colours'.*'colour'"),
        ({"layer": "9"}, "no layer '9'.*It has 0"),
        ({"class_name": "cat"}, "no class 'cat'.*It has 0, 1"),
        ({"order": "size"}, "no order 'size'"),
        ({"models": {"colour": mean_colour()}}, "cannot be read by that name: pass data"),
        ({"data": "digits"}, "pass models"),
        (
            {"models": {"mine": mean_colour()}, "data": colours()},
            "no model 'mine' in this comparison",
        ),
        (
            {"models": {"colour": mean_colour()}, "data": "digits"},
            "other classes than the comparison",
        ),
        (
            {
                "models": {"colour": nn.Sequential(*mean_colour()[:3], nn.Linear(3, 2))},
                "data": colours(),
            },
            "other weights",
        ),
    ],
)
def test_mistakes_are_answered_by_a_sentence(compared, options, words):
    with pytest.raises(cs.UserError, match=words):
        cs.explore(compared, **options)


def test_what_is_no_comparison_is_refused(compared, unchecked):
    with pytest.raises(cs.UserError, match=r"load a saved one with cs\.Result\.load"):
        cs.explore("comparison")
    with pytest.raises(cs.UserError, match="with its activations"):
        cs.explore(replace(compared, tables={"robustness": compared.robustness}))
    with pytest.raises(cs.UserError, match="by their labels"):
        cs.explore(compared, models=["at.pt"], data="digits")


@pytest.fixture(scope="module")
def tab(compared: Result, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """A browser that shows the chart of a page without a kernel."""
    folder = tmp_path_factory.mktemp("explorer")
    page = folder / "page.html"
    chart = cs.explore(compared, order="channel number")._repr_html_()
    page.write_text(f"<!DOCTYPE html><meta charset=utf-8>{chart}")
    with browsing(folder / "profile") as tab:
        tab.open(page)
        yield tab


OPEN = (
    "[...document.querySelectorAll('.column .card')]"
    ".filter(card => card.checkVisibility()).map(card => card.innerText)"
)


def middle_of(tab: Tab, selector: str) -> dict[str, float]:
    box = f"document.querySelector('{selector}').getBoundingClientRect()"
    x, y = tab.run(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box})")
    return {"x": x, "y": y}


@in_a_browser
def test_pointing_at_a_channel_opens_its_card(tab):
    assert tab.run(OPEN) == []
    tab.send(
        "Input.dispatchMouseEvent",
        type="mouseMoved",
        **middle_of(tab, '.column[aria-label="channel 1"] .magnitudes'),
    )
    (card,) = tab.run(OPEN)
    assert card.startswith("Channel 1:")
    tab.send("Input.dispatchMouseEvent", type="mouseMoved", **middle_of(tab, ".below .card"))
    assert tab.run(OPEN) == [card]  # it lies there now: the mouse may go to its images
    tab.send("Input.dispatchMouseEvent", type="mouseMoved", x=0, y=0)
    assert tab.run(OPEN) == []


@in_a_browser
def test_the_tabulator_key_goes_through_the_channels(tab):
    tab.send("Input.dispatchMouseEvent", type="mouseMoved", x=0, y=0)
    for channel in range(3):
        tab.press("Tab", 9)
        (card,) = tab.run(OPEN)
        assert card.startswith(f"Channel {channel}:")


@in_a_browser
def test_every_tile_shows_its_part_of_the_sheet_and_nothing_is_fetched(tab):
    shown = tab.run(
        "[...document.querySelectorAll('.tile')]"
        ".map(tile => getComputedStyle(tile).backgroundImage.slice(0, 20))"
    )
    assert shown
    assert {picture[:9] for picture in shown} == {'url("data'}
    assert not [url for url in tab.requests() if not url.startswith(("file:", "data:"))]
    assert not tab.complaints()
