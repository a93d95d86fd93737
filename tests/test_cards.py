"""Cards of channels: those through which classes lose most, with their images."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from channelscope.report.cards import list_cards
from channelscope.result import Result
from helpers.studies import make_result, synthetic_study


def make_pictured() -> Result:
    """Return a result that keeps pictures: each natural one of one shade, its number."""
    study = synthetic_study(("nat", "at"), ("bird", "cat"), layers=("layer3", "layer4"), count=5)
    shades = np.arange(10, dtype=np.uint8).reshape(-1, 1, 1, 1)
    pictures = np.tile(shades, (1, 3, 8, 4))
    kinds = ("0/natural", "1/natural", "0/adversarial", "1/adversarial")
    study.arrays |= {f"pictures/{kind}": pictures for kind in kinds}
    return make_result(study)


RESULT = make_pictured()


def test_cards_are_of_the_channel_against_and_the_one_for_a_class_that_cost_most() -> None:
    cards = list_cards(RESULT)
    assert [card["model"] for card in cards] == ["nat", "nat", "at", "at"]
    assert {card["layer"] for card in cards} == {"layer4"}
    assert [card["sign"] for card in cards] == ["NR", "PR"] * 2
    for card in cards:
        relevance, natural, adversarial = (
            RESULT.array("activations", quantity, card["model"], data, "layer4")
            for quantity, data in (
                ("relevance", "natural"),
                ("magnitude", "natural"),
                ("magnitude", "adversarial"),
            )
        )
        losses = relevance * (natural - adversarial)
        signed = relevance < 0 if card["sign"] == "NR" else relevance > 0
        most = losses[signed].max()
        k, channel = np.argwhere(signed & (losses == most))[0]
        assert card["channel"] == channel
        assert card["class_name"] == ("bird", "cat")[k]
        assert card["loss"] == f"{most:.2f}"


def test_cards_have_the_pictures_of_the_images_that_excite_the_channel_most() -> None:
    card = list_cards(RESULT)[-1]
    rows = RESULT.select("excitation", model="at", layer="layer4", data="natural")
    rows = rows[rows["channel"] == card["channel"]].sort_values("rank")
    pictures = card["pictures"]["natural"]
    assert len(pictures) == len(rows) == 4
    for entry, image in zip(pictures, rows["image"], strict=True):
        picture = entry["picture"]
        assert (picture["width"], picture["height"]) == (22, 44)
        with Image.open(io.BytesIO(base64.b64decode(picture["content"]))) as shown:
            assert np.unique(np.asarray(shown)).tolist() == [image]
        assert f"image {image:.0f}, " in entry["words"]


def test_cards_of_channels_that_were_visualised_show_what_drives_them() -> None:
    card = list_cards(RESULT)[-1]
    views = {
        f"views/1/1/{name}": np.full((2, 3, 4, 4), shade, np.uint8)
        for name, shade in (("noise", 10), ("start", 20), ("driven", 30))
    }
    views["views/1/1/channels"] = np.array([99, card["channel"]])
    views["views/1/1/activations"] = np.arange(8.0).reshape(2, 4)
    result = replace(RESULT, arrays=RESULT.arrays | views)
    *others, last = (card["views"] for card in list_cards(result))
    assert not any(others)
    for entry, shade, value in zip(last, (10, 20, 30), ("4.00", "5.00", "6.00"), strict=True):
        assert value in entry["words"]
        with Image.open(io.BytesIO(base64.b64decode(entry["picture"]["content"]))) as shown:
            assert np.unique(np.asarray(shown)).tolist() == [shade]
    assert not list_cards(RESULT)[-1]["views"]


@pytest.mark.parametrize("names", [("activations",), ("robustness",)])
def test_without_pictures_or_channels_there_is_what_is_left(names: tuple[str, ...]) -> None:
    study = synthetic_study(("at",), ("bird", "cat"), channels=3)
    cards = list_cards(make_result(study, *names))
    assert [card["pictures"] for card in cards] == [{"natural": [], "adversarial": []}] * len(cards)
    assert bool(cards) == ("activations" in names)
