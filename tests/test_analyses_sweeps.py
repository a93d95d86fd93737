"""The figure of a sweep: every network with its interval, and the mean of the seeds."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from channelscope.analyses.sweeps import describe_sweep, draw_sweep, sweep_data
from channelscope.figures.paper import COLOURS
from channelscope.result import Result
from helpers.figures import join_texts, rows_of

COLUMNS = {"natural": "natural", "robust": "adversarial"}  # and the data whose colour they have


def make_result(variants: Sequence[str], seeds: int, failed: Sequence[str] = ()) -> Result:
    """Return a sweep of which some variants have no result."""
    rng = np.random.default_rng(0)
    rows = []
    for variant in variants:
        for seed in range(seeds):
            row = {"variant": variant, "seed": seed, "trouble": "It diverged."}
            if variant not in failed:
                row["trouble"] = ""
                for name in COLUMNS:
                    value = 0.3 + 0.4 * rng.random()
                    row |= {name: value, f"{name}_low": value - 0.02, f"{name}_high": value + 0.01}
            rows.append(row)
    numbers = [f"{name}{end}" for name in COLUMNS for end in ("", "_low", "_high")]
    table = pd.DataFrame(rows, columns=["variant", "seed", *numbers, "trouble"])
    settings = {"attack": "pgd-20", "eps": 8 / 255, "level": 0.95}
    meta = {"title": "cifs on cifar10, by imgf", "images": {"test": 10_000}, "settings": settings}
    table = table.astype(dict.fromkeys(numbers, float))
    means = table.groupby("variant", sort=False)[[*COLUMNS]].mean()
    for name in COLUMNS:
        means[f"{name}_low"] = means[name] - 0.1
        means[f"{name}_high"] = means[name] + 0.2
    tables = {"sweep": table, "variants": means.reset_index()}
    return Result("sweep", tables, {}, meta)


LONG = [
    f"beta {beta}, layers layer3.0+layer3.1+layer4.0+layer4.1, k {k}"
    for beta in range(8)
    for k in range(4)
]
HARD = {
    "one network": make_result(["imgf softmax"], 1),
    "none": make_result(["imgf softmax", "imgf relu"], 2, failed=["imgf softmax", "imgf relu"]),
    "many variants with long names": make_result(LONG, 1),
    "many seeds": make_result(["imgf softmax", "imgf $x_1$"], 12),
}


def test_every_network_is_drawn_with_its_interval_and_the_mean_of_the_seeds() -> None:
    variants = ["imgf softmax", "imgf sigmoid", "imgf relu"]
    result = make_result(variants, 3, failed=["imgf relu"])
    figure = draw_sweep(result)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == variants
    for ax, (column, data) in zip(figure.axes, COLUMNS.items(), strict=True):
        for place, bars in enumerate(ax.containers):
            rows = rows_of(result.sweep, variant=variants[place])
            dots, _, (reach,) = bars
            assert to_hex(dots.get_color()) == COLOURS[data].lower()
            np.testing.assert_allclose(dots.get_xdata(), 100 * rows[column])
            assert (np.abs(dots.get_ydata() - place) < 0.5).all()
            drawn = np.array([segment[:, 0] for segment in reach.get_segments()])
            np.testing.assert_allclose(drawn, 100 * rows[[f"{column}_low", f"{column}_high"]])
            ends = [place - 0.42, place + 0.42]
            (mean,) = [line for line in ax.lines if list(line.get_ydata()) == ends]
            np.testing.assert_allclose(mean.get_xdata(), 100 * rows[column].mean())
            bands = [part for part in ax.collections if isinstance(part, PolyCollection)]
            band = bands[place].get_datalim(ax.transData)
            means = rows_of(result.variants, variant=variants[place]).iloc[0]
            ends = 100 * means[[f"{column}_low", f"{column}_high"]].astype(float)
            np.testing.assert_allclose(band.intervalx, ends)
        assert len(ax.containers) == 2
        assert [text.get_text() for text in ax.texts] == ["no result"]


def test_the_figure_explains_itself() -> None:
    text = join_texts(draw_sweep(make_result(["imgf softmax", "imgf sigmoid"], 2)))
    for words in (
        "cifs on cifar10, by imgf",
        "natural images",
        "worst case",
        "accuracy (%)",
        "10000 test images",
        "PGD-20, ε = 8/255",
        "95% interval",
        "mean of the seeds",
        "interval of the mean",
    ):
        assert words in text
    assert "mean" not in join_texts(draw_sweep(make_result(["imgf softmax"], 1)))


@pytest.fixture(scope="module", params=HARD.values(), ids=HARD.keys())
def hard(request: pytest.FixtureRequest) -> Figure:
    return draw_sweep(request.param)


def test_the_figure_is_one_column_wide_readable_and_unclipped(hard: Figure) -> None:
    assert hard.get_figwidth() == 3.25
    texts = [text for text in hard.findobj(Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) >= 6.5
    canvas = FigureCanvasAgg(hard)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())
    for border in (drawn[:2], drawn[-2:], drawn[:, :2], drawn[:, -2:]):
        assert (border == 255).all()


def test_names_in_the_figure_do_not_overlap(hard: Figure) -> None:
    labels = [*hard.axes[0].get_yticklabels()]
    labels += [label for ax in hard.axes for label in (ax.xaxis.label, ax.title)]
    parts = (*labels, hard._suptitle, hard.legends[0])
    boxes = [part.get_window_extent().padded(-1) for part in parts]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_a_figure_of_very_many_variants_is_no_larger_than_a_picture_can_be() -> None:
    figure = draw_sweep(make_result([f"k {k}" for k in range(300)], 1))
    assert 200 * figure.get_figheight() < 2**16


def test_the_alternative_text_has_the_mean_of_the_seeds() -> None:
    result = make_result(["imgf softmax", "imgf relu"], 2, failed=["imgf relu"])
    mean = rows_of(result.sweep, variant="imgf softmax")[[*COLUMNS]].mean()
    assert describe_sweep(sweep_data(result)) == (
        f"imgf softmax: {100 * mean['natural']:.1f} % natural, {100 * mean['robust']:.1f} % in the "
        "worst case; imgf relu: – natural, – in the worst case."
    )
