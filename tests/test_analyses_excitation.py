"""Excitation: the images are those that sorting gives, and the pictures are theirs."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy import ndarray

from channelscope.analyses.excitation import check_excitation, compute_excitation, rank_images
from channelscope.figures.paper import COLOURS
from channelscope.statistics.channels import top_images
from helpers.figures import rows_of
from helpers.studies import KeptStudy, make_result, synthetic_study

# Few values, so that there are ties.
ACTIVATIONS = arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.integers(1, 5)),
    elements=st.sampled_from([-1, 0, 2]),
)


def make_study(pixels: tuple[int, ...] = (1, 2, 2), n: int = 7) -> KeptStudy:
    """Return a study of two models with pictures (n, *pixels), each of one colour: its number."""
    study = synthetic_study(("nat", "at"), ("bird", "cat"), channels=3, count=n)
    arrays: dict[str, ndarray] = {}
    images = np.arange(2 * n, dtype=np.uint8).reshape(-1, 1, 1, 1)
    for index, data in ((0, "natural"), (1, "natural"), (0, "adversarial"), (1, "adversarial")):
        first = 100 * (data == "adversarial") + 50 * index * (data == "adversarial")
        arrays[f"pictures/{index}/{data}"] = np.tile(images + np.uint8(first), (1, *pixels))
    return replace(study, arrays={**study.arrays, **arrays})


STUDY = make_study()
RESULT = make_result(STUDY, "excitation")


@given(ACTIVATIONS, st.integers(1, 5))
def test_the_images_are_those_that_sorting_gives(activations: ndarray, keep: int) -> None:
    order = np.argsort(-activations, axis=0, kind="stable")[:keep]
    np.testing.assert_array_equal(top_images(activations, keep), order.T)


def test_the_table_has_the_four_largest_activations_of_each_channel() -> None:
    for model in STUDY.models:
        for data in COLOURS:
            activations = STUDY.activations(model, "layer4", data)
            rows = rows_of(RESULT.excitation, model=model, layer="layer4", data=data)
            assert rows["rank"].tolist() == [1, 2, 3, 4] * 3
            assert rows["channel"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
            wanted = np.sort(activations, axis=0)[::-1][:4].T
            np.testing.assert_array_equal(rows["activation"].to_numpy().reshape(3, 4), wanted)
            images, channels = rows["image"], rows["channel"]
            np.testing.assert_array_equal(activations[images, channels], rows["activation"])


def test_fewer_images_than_four_are_all_kept() -> None:
    study = synthetic_study(("at",), ("bird",), channels=3, count=2)
    assert set(make_result(study, "excitation").excitation["rank"]) == {1, 2}


def test_images_are_listed_by_their_best_rank() -> None:
    first, other = np.array([[2, 1], [0, 2]]), np.array([[1, 0]])
    assert rank_images([first, other]) == [0, 1, 2]
    assert rank_images([first]) == [0, 2, 1]
    assert rank_images([]) == []


def test_pictures_are_those_of_the_images_of_all_models_or_of_each() -> None:
    every = set[int]()
    for index, model in enumerate(STUDY.models):
        images = set(rows_of(RESULT.excitation, model=model)["image"])
        for data in COLOURS:
            images |= set(RESULT.arrays[f"references/{index}/0/{data}"].ravel())
        assert set(RESULT.arrays[f"thumbnails/adversarial/{index}/images"]) == images
        every |= images
    assert set(RESULT.arrays["thumbnails/natural/images"]) == every
    for name, first in (("natural", 0), ("adversarial/0", 100), ("adversarial/1", 150)):
        pictures = RESULT.arrays[f"thumbnails/{name}"]
        assert pictures.dtype == np.uint8
        shown = pictures[:, 0, 0, 0] - first
        np.testing.assert_array_equal(shown, RESULT.arrays[f"thumbnails/{name}/images"])


def test_of_large_pictures_the_first_ranks_are_kept() -> None:
    study = make_study(pixels=(3, 1024, 500))  # each of 1.5 MB
    results = compute_excitation(study)
    images = results["thumbnails/natural/images"]
    assert len(images) == len(results["thumbnails/natural"]) == 2
    first = set(rows_of(RESULT.excitation, rank=1)["image"])
    for index, data in product(range(2), COLOURS):
        first |= set(RESULT.arrays[f"references/{index}/0/{data}"][:, 0])
    assert images.tolist() == sorted(first)[:2]


def test_without_pictures_there_is_the_table_alone() -> None:
    results = compute_excitation(synthetic_study(("at",), ("bird", "cat")))
    assert not [name for name in results if name.startswith("thumbnails/")]


def test_references_are_the_images_that_contribute_most_to_their_class() -> None:
    for index, model in enumerate(STUDY.models):
        for data in COLOURS:
            contributions = STUDY.activations(model, "layer4", data)
            contributions = contributions * STUDY.relevance(model, "layer4")
            expected = np.argsort(-contributions, axis=0, kind="stable")[:4].T
            np.testing.assert_array_equal(RESULT.arrays[f"references/{index}/0/{data}"], expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": 0.5}, "images are not counted"),
        ({"image": -1}, "images are not counted"),
        ({"image": 14}, "images are not counted"),
        ({"channel": np.nan}, "channels in excitation are not counted"),
    ],
)
def test_images_and_channels_that_are_none_are_refused(changes: dict[str, Any], words: str) -> None:
    check_excitation(RESULT)
    changed = RESULT.excitation.assign(**changes)
    with pytest.raises(ValueError, match=words):
        check_excitation(replace(RESULT, tables={**RESULT.tables, "excitation": changed}))


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("thumbnails/natural", np.zeros((3, 1, 2, 2)), "holds no pictures"),
        ("thumbnails/natural", np.zeros((1, 1, 2, 2), np.uint8), "holds no pictures"),
        ("thumbnails/natural", "wide", "larger pictures than are kept"),
        ("thumbnails/adversarial/0/images", np.zeros(1, int), "holds no pictures"),
        ("labels", np.full(14, 2), "labels in arrays.npz are not counted"),
        ("labels", np.full(14, -1), "labels in arrays.npz are not counted"),
    ],
)
def test_pictures_that_are_none_are_refused(name: str, array: ndarray | str, words: str) -> None:
    if isinstance(array, str):  # a small file may hold some of gigabytes of zeros
        array = np.zeros((len(RESULT.arrays[f"{name}/images"]), 1, 2, 65), np.uint8)
    with pytest.raises(ValueError, match=words):
        check_excitation(replace(RESULT, arrays={**RESULT.arrays, name: array}))


def test_pictures_of_two_sizes_are_refused() -> None:
    images = RESULT.arrays["thumbnails/natural/images"]
    other = {"thumbnails/natural": np.zeros((len(images), 1, 3, 3), np.uint8)}
    with pytest.raises(ValueError, match="do not belong together"):
        check_excitation(replace(RESULT, arrays={**RESULT.arrays, **other}))
