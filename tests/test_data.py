"""Data: sources are read as written, mistakes get a sentence, samples and batches are exact."""

import hashlib
import os
import pickle
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from inspect import unwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from channelscope.data import (
    NAMES,
    Dataset,
    LazySplit,
    MemorySplit,
    as_dataset,
    augment,
    block_size,
    images,
    iterate_blocks,
    load,
    sample_stratified,
    splits,
)
from channelscope.data.folders import read_folder
from channelscope.data.images import ImageFiles
from channelscope.data.sampling import hold_out
from helpers.pictures import (
    another_size,
    broken_link,
    bytes_images,
    cut_off,
    empty_file,
    generator,
    mistake,
    not_an_image,
    sixteen_bits,
    write_folder,
    write_image,
)

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**63 - 1)
class_labels = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(torch.tensor)


def some_split(
    n: int = 10, classes: int = 3, size: tuple[int, ...] = (3, 4, 5), seed: int = 0
) -> MemorySplit:
    return MemorySplit(bytes_images(n, *size, seed=seed), torch.arange(n) % classes)


def same(a: MemorySplit, b: MemorySplit) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


# ---------------------------------------------------------------- Split


@quick
@given(n=st.integers(0, 40), size=st.integers(1, 50))
def test_batches_cover_every_image_once_and_in_order(n: int, size: int) -> None:
    split = MemorySplit(bytes_images(n, 1, 2, 2), torch.arange(n))
    batches = list(split.batches(size))
    assert [len(labels) for _, labels in batches[:-1]] == [size] * (len(batches) - 1)
    assert [k for _, labels in batches for k in labels.tolist()] == list(range(n))
    assert all(torch.equal(images, split.images[labels] / 255) for images, labels in batches)
    assert all(images.dtype == torch.float32 for images, _ in batches)


@quick
@given(indices=st.lists(st.integers(0, 9), max_size=30), size=st.integers(1, 7))
def test_batches_and_subset_follow_the_indices(indices: list[int], size: int) -> None:
    split, order = some_split(), torch.tensor(indices, dtype=torch.int64)
    subset = split.subset(order)
    assert torch.equal(subset.images, split.images[order])
    batches = list(split.batches(size, indices=order))
    assert torch.equal(
        torch.cat([labels for _, labels in batches] or [subset.labels]), subset.labels
    )
    assert torch.equal(
        torch.cat([images for images, _ in batches] or [subset.images / 255]), subset.images / 255
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_float_images_come_in_batches_as_float32(dtype: torch.dtype) -> None:
    images = torch.rand(3, 1, 2, 2, generator=generator()).to(dtype)
    [(batch, _)] = MemorySplit(images, torch.arange(3)).batches(5, torch.device("cpu"))
    assert batch.dtype == torch.float32
    assert torch.equal(batch, images.float())


def test_batches_share_no_memory_with_the_split() -> None:
    split = MemorySplit(torch.ones(2, 1, 2, 2), torch.arange(2))
    next(split.batches(2))[0].zero_()
    assert split.images.min() == 1


def test_fingerprint_knows_pixels_labels_shape_and_type() -> None:
    split = some_split()
    other_pixel = split.images.clone()
    other_pixel[9, 2, 3, 4] ^= 1
    different = [
        MemorySplit(other_pixel, split.labels),
        MemorySplit(split.images, split.labels.flip(0)),
        MemorySplit(split.images.transpose(2, 3), split.labels),
        MemorySplit(split.images.reshape(10, 3, 5, 4), split.labels),
        MemorySplit(split.images / 255, split.labels),
    ]
    prints = {each.fingerprint() for each in [split, *different]}
    assert len(prints) == 6
    assert all(len(bytes.fromhex(each)) == 32 for each in prints)
    laid_out_otherwise = split.images.contiguous(memory_format=torch.channels_last)
    assert (
        MemorySplit(laid_out_otherwise, split.labels.clone()).fingerprint() == split.fingerprint()
    )


def test_a_split_says_what_it_holds() -> None:
    assert repr(some_split()) == "MemorySplit(10 images of 3 x 4 x 5, uint8)"
    assert len(some_split(7)) == 7
    assert some_split().image_shape == (3, 4, 5)


def test_what_is_on_the_device_already_is_not_copied() -> None:
    split = some_split()
    assert split.to("cpu") is split
    assert split.to(torch.device("cpu")) is split


GOOD = torch.zeros(2, 1, 4, 4)


def with_pixel(value: float) -> Tensor:
    images = GOOD.clone()
    images[1, 0, 3, 3] = value
    return images


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (GOOD[0], torch.zeros(1).long(), "shape (n, c, h, w)"),
        (torch.zeros(2, 1, 0, 4), torch.zeros(2).long(), "no empty side"),
        (GOOD.long(), torch.zeros(2).long(), "uint8, or float"),
        (GOOD.bool(), torch.zeros(2).long(), "uint8, or float"),
        (with_pixel(float("nan")), torch.zeros(2).long(), "NaN"),
        (with_pixel(float("inf")), torch.zeros(2).long(), "span [0, inf]"),
        (with_pixel(255), torch.zeros(2).long(), "divide by 255"),
        (with_pixel(-0.01), torch.zeros(2).long(), "normalisation"),
        (GOOD, torch.zeros(3).long(), "shape (2,)"),
        (GOOD, torch.zeros(2, 1).long(), "shape (2,)"),
        (GOOD, torch.zeros(2), "int64"),
        (GOOD, torch.tensor([0, -1]), "smallest is -1"),
        (GOOD, torch.zeros(2, dtype=torch.int64, device="meta"), "move them to one"),
    ],
)
def test_a_split_refuses(images: Tensor, labels: Tensor, words: str) -> None:
    if (
        labels.device.type == "meta"
    ):  # stands in for a second device; its values cannot be looked at
        labels = torch.zeros(0, dtype=torch.int64, device="meta")
        images = images[:0]
    with mistake(words):
        MemorySplit(images, labels)


@pytest.mark.parametrize("indices", [[-1], [0, 10], [10]])
def test_indices_that_are_not_there(indices: list[int]) -> None:
    with mistake("between 0 and 9"):
        some_split().subset(torch.tensor(indices))
    with mistake("between 0 and 9"):
        some_split().batches(2, indices=torch.tensor(indices))


def test_indices_that_are_a_mask() -> None:
    with mistake("mask.nonzero()"):
        unwrap(MemorySplit.subset)(some_split(), torch.ones(10, dtype=torch.bool))


def test_a_batch_of_no_images() -> None:
    with mistake("at least 1"):
        some_split().batches(0)


# ---------------------------------------------------------------- on a GPU, without one


class Operations(TorchDispatchMode):
    """Counts torch's operations, and keeps the shapes of what travels to a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.travels: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        result = func(*args, **(kwargs or {}))
        inputs = [value for value in args if isinstance(value, Tensor)]
        if isinstance(result, Tensor) and any(each.device != result.device for each in inputs):
            assert inputs[0].device.type == "cpu"  # and nothing comes back
            self.travels.append(tuple(result.shape))
        return result


def test_only_indices_and_draws_travel_to_images_on_a_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        splits, "_check_labels", lambda *_: None
    )  # looks at the values, which are not there
    # Torch's fake tensors have a device and no values: whatever would wait for a value is an error.
    with FakeTensorMode():
        try:
            torch.zeros(1).to("cuda")
        except RuntimeError:
            pytest.skip("this version of torch fakes no GPU where there is none")
    with FakeTensorMode(allow_non_fake_inputs=True), Operations() as done:
        split = some_split(10).to("cuda")
        assert done.travels == [(10, 3, 4, 5), (10,)]
        assert split.to("cuda") is split
        batches = list(split.batches(4, "cuda"))
        assert done.travels[2:] == [(10,)]
        augmented = [augment(images, generator(), crop=1) for images, _ in batches]
        assert done.travels[3:] == [(4, 3), (4, 3), (2, 3)]
    assert {value.device for batch in batches for value in batch} == {torch.device("cuda:0")}
    assert {images.device for images in augmented} == {torch.device("cuda:0")}


def operations(n: int, of: int) -> int:
    split, order = some_split(of), torch.arange(n)
    with Operations() as done:
        [(images, _)] = split.batches(n, indices=order)
        augment(images, generator(), crop=1)
    return done.count


def test_a_batch_takes_as_many_operations_as_any_other() -> None:
    assert operations(1, of=1) == operations(300, of=300) == operations(2, of=3000) < 50


# ---------------------------------------------------------------- Dataset


def test_a_dataset_knows_its_images() -> None:
    dataset = Dataset("mine", ("a", "b", "c"), some_split(), train=some_split(20))
    assert (dataset.channels, dataset.image_size) == (3, (4, 5))
    assert list(dataset.parts) == ["train", "test"]
    assert dataset.require_train() is dataset.train


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"test": some_split(0)}, "mine has no test images"),
        ({"train": some_split(0)}, "mine has no train images"),
        ({"classes": ("a", "b")}, "go up to 2, but there are only 2 classes"),
        ({"val": some_split(4, classes=4)}, "val labels of mine go up to 3"),
        ({"classes": ("a", "b", "a")}, "'a' comes 2 times"),
        ({"classes": ()}, "0 classes"),
        ({"train": some_split(size=(1, 4, 5))}, "train images of mine are (1, 4, 5)"),
        ({"val": some_split(size=(3, 5, 4))}, "val images of mine are (3, 5, 4)"),
    ],
)
def test_a_dataset_refuses(arguments: dict[str, Any], words: str) -> None:
    with mistake(words):
        Dataset(**{"name": "mine", "classes": ("a", "b", "c"), "test": some_split(), **arguments})


def test_training_needs_images_of_every_class() -> None:
    with mistake("no training images: choose"):
        Dataset("mine", ("a", "b", "c"), some_split()).require_train()
    with mistake("Class 'b' of mine has no training images"):
        Dataset(
            "mine", ("a", "b"), some_split(classes=1), train=some_split(classes=1)
        ).require_train()


@quick
@given(n=st.integers(3, 30), seed=seeds)
def test_a_limited_dataset_keeps_the_shares_of_the_classes(n: int, seed: int) -> None:
    whole = Dataset("mine", ("a", "b", "c"), some_split(4), train=some_split(30), val=some_split(5))
    limited = whole.limited(n, seed)
    assert whole.train is not None
    assert same(
        limited.require_train(), whole.train.subset(sample_stratified(whole.train.labels, n, seed))
    )
    counts = limited.require_train().labels.bincount(minlength=3)
    assert counts.max() - counts.min() <= 1
    assert limited.test is whole.test
    assert limited.val is whole.val
    assert (limited.name, limited.classes) == (whole.name, whole.classes)


def test_a_dataset_limited_to_everything_is_everything() -> None:
    whole = Dataset("mine", ("a", "b", "c"), some_split(4), train=some_split(30))
    assert same(whole.limited(30, 5).require_train(), whole.require_train())


@pytest.mark.parametrize(
    ("train", "n", "words"),
    [
        (
            some_split(30),
            2,
            "cannot be cut to 2 images: ask for a number from 3, one of each class, to 30",
        ),
        (some_split(30), 31, "cannot be cut to 31 images"),
        (some_split(30), -1, "cannot be cut to -1 images"),
        (
            MemorySplit(bytes_images(30, 3, 4, 5), torch.tensor([0] * 28 + [1, 2])),
            5,
            "none would be of class 'b'",
        ),
        (some_split(30, classes=2), 5, "Class 'c' of mine has no training images"),
        (None, 5, "no training images"),
    ],
)
def test_a_dataset_cannot_be_limited(train: MemorySplit | None, n: int, words: str) -> None:
    with mistake(words):
        Dataset("mine", ("a", "b", "c"), some_split(), train=train).limited(n, 0)


# ---------------------------------------------------------------- stratified, hold_out


def naive_stratified_counts(labels: Tensor, n: int) -> list[int]:
    """Webster's method: the next image goes to the class with the largest size / (have + 1/2)."""
    sizes = labels.bincount().tolist()
    taken = [0] * len(sizes)
    for _ in range(n):
        claims = [
            size / (have + 0.5) if have < size else -1
            for size, have in zip(sizes, taken, strict=True)
        ]
        taken[claims.index(max(claims))] += 1
    return taken


@quick
@given(labels=class_labels, share=st.floats(0, 1), seed=seeds)
def test_stratified_keeps_the_shares(labels: Tensor, share: float, seed: int) -> None:
    n = round(share * len(labels))
    chosen = sample_stratified(labels, n, seed)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == n
    counts = labels[chosen].bincount(minlength=int(labels.max()) + 1).tolist()
    assert counts == naive_stratified_counts(labels, n)


@quick
@given(per_class=st.integers(1, 12), classes=st.integers(1, 6), data=st.data(), seed=seeds)
def test_stratified_is_even_among_even_classes(
    per_class: int, classes: int, data: st.DataObject, seed: int
) -> None:
    labels = torch.arange(classes).repeat(per_class)
    n = data.draw(st.integers(0, len(labels)))
    counts = labels[sample_stratified(labels, n, seed)].bincount(minlength=classes)
    assert counts.max() - counts.min() <= 1


@quick
@given(labels=class_labels, seed=seeds)
def test_smaller_samples_are_part_of_larger_ones(labels: Tensor, seed: int) -> None:
    samples = [set(sample_stratified(labels, n, seed).tolist()) for n in range(len(labels) + 1)]
    assert all(small < large for small, large in pairwise(samples))


def test_stratified_chooses_by_its_seed_and_touches_no_other() -> None:
    labels = torch.arange(100) % 10
    state = torch.get_rng_state()
    assert torch.equal(
        sample_stratified(labels, 30, 1), sample_stratified(labels, 30, generator(1))
    )
    assert not torch.equal(sample_stratified(labels, 30, 1), sample_stratified(labels, 30, 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_every_image_is_as_likely() -> None:
    labels = torch.tensor([0] * 10 + [1] * 20)
    source = generator(0)
    chosen = torch.cat([sample_stratified(labels, 6, source) for _ in range(2000)])
    frequency = chosen.bincount(minlength=30) / 2000
    assert (frequency - 0.2).abs().max() < 0.05  # five standard deviations and more


@pytest.mark.parametrize("n", [-1, 11])
def test_more_images_than_there_are(n: int) -> None:
    with mistake("from 0 to 10"):
        sample_stratified(torch.arange(10), n)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_out_of_range(seed: int) -> None:
    with mistake("seed"):
        sample_stratified(torch.arange(10), 5, seed)


@quick
@given(
    labels=class_labels.filter(lambda labels: len(labels) > 2),
    share=st.floats(0.01, 0.6),
    seed=seeds,
)
def test_held_out_and_kept_are_disjoint_and_cover_all(
    labels: Tensor, share: float, seed: int
) -> None:
    kept, held = hold_out(labels, share, seed)
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(labels)))
    assert len(held) == max(1, round(share * len(labels)))
    again = hold_out(labels, share, seed)
    assert torch.equal(kept, again[0])
    assert torch.equal(held, again[1])


# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize(
    ("side", "size"),
    [(8, 512), (16, 512), (17, 256), (28, 128), (32, 128), (33, 64), (64, 32), (96, 16), (224, 16)],
)
def test_blocks_of_large_images_have_fewer(side: int, size: int) -> None:
    assert block_size(some_split(1, size=(1, side, side))) == size


@given(
    st.lists(st.integers(1, 9), max_size=5), st.integers(1, 40), st.randoms(use_true_random=False)
)
def test_blocks_are_the_same_however_many_images_are_read(
    sizes: list[int], batch_size: int, chance: Any
) -> None:
    images, order = some_split(50), list(range(50))
    chance.shuffle(order)
    blocks = torch.tensor(order)[: sum(sizes)].split(sizes)
    visited = list(iterate_blocks(images, blocks if sizes else (), batch_size, torch.device("cpu")))
    assert [rows.tolist() for rows, _, _ in visited] == [
        rows.tolist() for rows in (blocks if sizes else ())
    ]
    for rows, x, y in visited:
        assert torch.equal(x, images.images[rows] / 255)
        assert torch.equal(y, images.labels[rows])
        assert x.untyped_storage().nbytes() == x.nbytes


# ---------------------------------------------------------------- augment


def every_crop(image: Tensor, crop: int, flip: bool) -> list[Tensor]:
    """All that may become of one image, by slicing."""
    _, height, width = image.shape
    padded = torch.zeros(image.shape[0], height + 2 * crop, width + 2 * crop)
    padded[:, crop : crop + height, crop : crop + width] = image
    shifts = [(dy, dx) for dy in range(2 * crop + 1) for dx in range(2 * crop + 1)]
    crops = [padded[:, dy : dy + height, dx : dx + width] for dy, dx in shifts]
    return crops + [each.flip(2) for each in crops] * flip


@quick
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    crop=st.integers(0, 3),
    flip=st.booleans(),
    seed=seeds,
)
def test_augment_gives_a_crop_of_each_image(
    shape: tuple[int, ...], crop: int, flip: bool, seed: int
) -> None:
    images = torch.rand(shape, generator=generator(seed))
    augmented = augment(images, generator(seed), crop, flip)
    assert augmented.shape == images.shape
    assert all(
        any(torch.equal(result, each) for each in every_crop(image, crop, flip))
        for image, result in zip(images, augmented, strict=True)
    )
    assert torch.equal(augmented, augment(images, generator(seed), crop, flip))


def test_augment_makes_every_shift_and_both_sides_alike_often() -> None:
    image = torch.rand(1, 3, 3, generator=generator())
    augmented = augment(image.expand(18_000, -1, -1, -1), generator(1), crop=1, flip=True)
    counts = [
        int((augmented == each).flatten(1).all(1).sum()) for each in every_crop(image, 1, True)
    ]
    assert sum(counts) == 18_000
    assert 850 < min(counts) <= max(counts) < 1150  # 1000 each, five standard deviations


def test_augment_draws_for_each_image_and_leaves_its_input() -> None:
    images = torch.rand(1, 3, 8, 8, generator=generator()).repeat(8, 1, 1, 1)
    before = images.clone()
    augmented = augment(images, generator(3), crop=4, flip=True)
    assert len({each.numpy().tobytes() for each in augmented}) > 4
    assert torch.equal(images, before)
    assert torch.equal(augment(images, generator(), crop=0, flip=False), images)


def naive_augment(images: Tensor, source: torch.Generator, crop: int) -> Tensor:
    """Draw all shifts downwards, then all to the side, then who is mirrored; slice one by one."""
    shifts = 2 * crop + 1
    down, right = (torch.randint(shifts, (len(images),), generator=source) for _ in range(2))
    mirrored = torch.randint(2, (len(images),), generator=source)
    crops = [every_crop(image, crop, flip=True) for image in images]
    chosen = (mirrored * shifts**2 + down * shifts + right).tolist()
    return torch.stack([each[index] for each, index in zip(crops, chosen, strict=True)])


@quick
@given(n=st.integers(1, 5), crop=st.integers(0, 3), seed=seeds)
def test_augment_draws_in_an_order_that_later_versions_keep(n: int, crop: int, seed: int) -> None:
    images = torch.rand(n, 2, 4, 5, generator=generator(seed))
    assert torch.equal(
        augment(images, generator(seed), crop), naive_augment(images, generator(seed), crop)
    )


@quick
@given(n=st.integers(0, 8), cut=st.integers(0, 8), flip=st.booleans(), seed=seeds)
def test_parts_of_a_batch_are_augmented_as_in_the_whole(
    n: int, cut: int, flip: bool, seed: int
) -> None:
    images, sources = (
        torch.rand(n, 1, 4, 5, generator=generator(seed)),
        [generator(seed) for _ in range(3)],
    )
    expected = augment(images, sources[0], 2, flip)
    parts = images[:cut], images[cut:]
    augmented = [
        augment(part, source, 2, flip, whole=n, first=first)
        for part, source, first in zip(parts, sources[1:], (0, min(cut, n)), strict=True)
    ]
    assert torch.equal(torch.cat(augmented), expected)
    assert all(torch.equal(source.get_state(), sources[0].get_state()) for source in sources)


def test_augment_refuses_a_negative_crop() -> None:
    with mistake("0 pixels or more"):
        augment(torch.zeros(1, 1, 4, 4), generator(), crop=-1)


# ---------------------------------------------------------------- load: names, digits


def test_digits_are_always_divided_alike() -> None:
    digits = load("digits")
    assert digits.classes == tuple("0123456789")
    assert {part: len(split) for part, split in digits.parts.items()} == {
        "train": 1078,
        "val": 360,
        "test": 359,
    }
    assert (digits.channels, digits.image_size) == (1, (8, 8))
    assert digits.test.images.unique().tolist() == [round(value * 255 / 16) for value in range(17)]
    for split in digits.parts.values():
        counts = split.labels.bincount(minlength=10)
        assert counts.max() - counts.min() <= 6  # as in the whole: 174 to 183
    again = load("digits", seed=7, validation=0.5)
    assert all(same(again.parts[part], split) for part, split in digits.parts.items())
    everything = np.concatenate(
        [split.images.flatten(1).numpy() for split in digits.parts.values()]
    )
    assert len(np.unique(everything, axis=0)) == 1797  # no image is in two parts


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar", "Did you mean 'cifar10'"),
        ("", ", ".join(NAMES)),
        ("imagefolder", "imagefolder:DIR"),
        ("imagefolder:", "imagefolder:DIR"),
        ("npz:", "npz:FILE"),
        ("digits:8", "There is no dataset 'digits:8'"),
        ("mine.npz", "write npz:mine.npz"),
        ("/", "write imagefolder:/"),
        ("imagefolder:/no/such", "There is no folder /no/such"),
        ("imagefolder:/dev/null", "There is no folder /dev/null"),
        ("npz:/no/such.npz", "There is no file /no/such.npz"),
        ("npz:/", "There is no file /:"),
    ],
)
def test_names_that_are_none(name: str, words: str) -> None:
    with mistake(words):
        load(name)


@pytest.mark.parametrize("validation", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none(validation: float) -> None:
    with mistake("at least 0 and below 1"):
        load("digits", validation=validation)


def test_an_image_size_that_is_none() -> None:
    with mistake("image size must be from 1"):
        load("digits", image_size=0)


def test_any_dataset_can_be_scaled() -> None:
    assert load("digits", image_size=8).image_size == (8, 8)
    scaled = load("digits", image_size=12)
    assert all(split.images.shape[1:] == (1, 12, 12) for split in scaled.parts.values())
    assert scaled.test.images.dtype == torch.uint8


# ---------------------------------------------------------------- load: imagefolder


def test_an_image_folder(tmp_path: Path) -> None:
    dataset = load(f"imagefolder:{write_folder(tmp_path)}", validation=0.25).load()
    assert dataset.classes == ("ant", "bee", "cow")
    assert {part: len(split) for part, split in dataset.parts.items()} == {
        "train": 9,
        "val": 3,
        "test": 12,
    }
    assert dataset.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert dataset.train is not None
    assert dataset.val is not None
    assert dataset.train.labels.bincount().tolist() == [3, 3, 3]
    files = torchvision.datasets.ImageFolder(
        tmp_path / "test", torchvision.transforms.PILToTensor()
    )
    assert torch.equal(dataset.test.images, torch.stack([image for image, _ in files]))
    files = torchvision.datasets.ImageFolder(
        tmp_path / "train", torchvision.transforms.PILToTensor()
    )
    rest, held = hold_out(torch.tensor(files.targets), 0.25, 0)
    everything = MemorySplit(
        torch.stack([image for image, _ in files]), torch.tensor(files.targets)
    )
    assert same(dataset.train, everything.subset(rest))
    assert same(dataset.val, everything.subset(held))


def test_the_validation_part_is_chosen_by_the_seed(tmp_path: Path) -> None:
    name = f"imagefolder:{write_folder(tmp_path, per_class=10)}"
    first, again, other = (load(name, seed=seed).load() for seed in (0, 0, 1))
    assert first.val is not None
    assert again.val is not None
    assert other.val is not None
    assert same(first.val, again.val)
    assert not same(first.val, other.val)
    assert same(first.test, other.test)
    assert load(name, validation=0.0).val is None


def test_an_image_folder_with_its_own_validation_part(tmp_path: Path) -> None:
    write_folder(tmp_path)
    pixels = write_image(tmp_path / "val" / "bee" / "0.png", seed=9)
    val = load(f"imagefolder:{tmp_path}").load().val
    assert val is not None
    assert val.labels.tolist() == [1]
    assert torch.equal(val.images[0], torch.tensor(pixels).permute(2, 0, 1))


def test_a_single_folder_is_the_test_part(tmp_path: Path) -> None:
    dataset = load(f"imagefolder:{write_folder(tmp_path) / 'test'}")
    assert list(dataset.parts) == ["test"]
    assert len(dataset.test) == 12
    assert dataset.classes == ("ant", "bee", "cow")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "test", "train"):
        write_image(tmp_path / name / "0.png")
    assert load(f"imagefolder:{tmp_path}").classes == ("bus", "test", "train")


def test_a_class_may_be_absent_in_a_part(tmp_path: Path) -> None:
    write_folder(tmp_path)
    write_image(tmp_path / "train" / "dog" / "0.png")
    dataset = load(f"imagefolder:{tmp_path}", validation=0)
    assert dataset.classes == ("ant", "bee", "cow", "dog")
    assert dataset.test.labels.bincount(minlength=4).tolist() == [4, 4, 4, 0]
    assert len(dataset.require_train()) == 13


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_class_folder_without_images_says_what_it_has(tmp_path: Path, part: str) -> None:
    (folder := write_folder(tmp_path) / part / "bee" / "more").mkdir()
    for file in folder.parent.glob("*.png"):
        file.unlink()
    with mistake(f"{part}/bee has no images, no files: put .bmp"):
        load(f"imagefolder:{tmp_path}")
    for name in ("0.heic", "1.heic", "list.npy"):
        (folder.parent / name).write_bytes(b"0")
    with mistake(f"{part}/bee has no images, only .heic, .npy: put .bmp"):
        load(f"imagefolder:{tmp_path}")


def test_grey_stays_grey_only_where_all_are_grey(tmp_path: Path) -> None:
    write_folder(tmp_path, mode="L")
    grey = load(f"imagefolder:{tmp_path}").load()
    assert grey.channels == 1
    pixels = write_image(tmp_path / "train" / "bee" / "9.png", seed=9)
    mixed = load(f"imagefolder:{tmp_path}", validation=0.0).load()
    assert torch.equal(mixed.test.images, grey.test.images.expand(-1, 3, -1, -1))
    assert mixed.train is not None
    assert torch.equal(mixed.train.images[8], torch.tensor(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_other_modes_are_read_as_their_colours(tmp_path: Path, mode: str) -> None:
    write_image(tmp_path / "a" / "0.png")
    pixels = write_image(tmp_path / "a" / "1.png", mode, seed=3)
    images = load(f"imagefolder:{tmp_path}").load().test.images
    assert torch.equal(images[1], torch.tensor(pixels).permute(2, 0, 1))


def test_links_are_followed_and_other_files_left_alone(tmp_path: Path) -> None:
    real, linked = write_folder(tmp_path / "real") / "test", tmp_path / "linked"
    linked.mkdir()
    (linked / "ant").symlink_to(real / "ant")
    (linked / "bee").mkdir()
    (linked / "bee" / "x.PNG").symlink_to(real / "bee" / "0.png")
    (linked / "bee" / "notes.txt").write_text("not an image")
    (linked / "bee" / ".0.png").write_text("a system's leftover")
    (linked / "bee" / "more.png").mkdir()
    (linked / ".cache").mkdir()
    (linked / "README.md").write_text("not a class")
    dataset = load(f"imagefolder:{linked}")
    assert dataset.classes == ("ant", "bee")
    assert dataset.test.labels.tolist() == [0, 0, 0, 0, 1]


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_image(tmp_path / "mine" / "a" / "0.png")
    assert len(load("imagefolder:~/mine").test) == 1


def test_many_files_keep_their_order(tmp_path: Path) -> None:
    values = list(range(150))
    (tmp_path / "a").mkdir()
    for value in values:
        Image.new("L", (2, 2), value).save(tmp_path / "a" / f"{value:03}.png")
    assert load(f"imagefolder:{tmp_path}").load().test.images[:, 0, 0, 0].tolist() == values


@pytest.mark.parametrize("size", [(20, 12), (12, 20), (8, 8), (7, 9)])
def test_images_are_scaled_and_cropped_as_torchvision_does(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    write_image(tmp_path / "a" / "0.png", size=(8, 8))
    pixels = write_image(tmp_path / "a" / "1.png", size=size, seed=1)
    images = load(f"imagefolder:{tmp_path}", image_size=8).load().test.images
    steps = torchvision.transforms.Compose(
        [torchvision.transforms.Resize(8), torchvision.transforms.CenterCrop(8)]
    )
    expected = torch.tensor(np.array(steps(Image.fromarray(pixels)))).permute(2, 0, 1)
    assert images.shape == (2, 3, 8, 8)
    assert (images[1].int() - expected.int()).abs().max() <= 1


def empty(root: Path) -> None:
    pass


def loose_files(root: Path) -> None:
    write_image(root / "0.png")


def no_images(root: Path) -> None:
    (root / "ant").mkdir()


def no_test(root: Path) -> None:
    (root / "test" / "ant").rename(root / "train" / "gnu")
    for name in ("bee", "cow"):
        for file in (root / "test" / name).iterdir():
            file.unlink()
        (root / "test" / name).rmdir()


def no_test_images(root: Path) -> None:
    for file in (root / "test").glob("*/*"):
        file.unlink()


def another_class(root: Path) -> None:
    (root / "test" / "gnu").mkdir()


def one_image_to_train(root: Path) -> None:
    for name in ("bee", "cow"):
        for part in ("train", "test"):
            shutil.rmtree(root / part / name)
    for index in (1, 2, 3):
        (root / "train" / "ant" / f"{index}.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (empty, "has no class folders"),
        (loose_files, "has no class folders"),
        (no_images, "has no images"),
        (no_test, "has train but no test"),
        (no_test_images, "test/ant has no images, no files"),
        (another_class, "test/gnu is a class that the training images do not have"),
        (another_size, "--image-size"),
        (not_an_image, "train/cow/0.png cannot be read"),
        (empty_file, "train/cow/0.png cannot be read"),
        (cut_off, "train/cow/0.png cannot be read"),
        (broken_link, "train/cow/9.png cannot be read"),
        (sixteen_bits, "train/cow/9.png: Images of more than 8 bits"),
        (one_image_to_train, "too few to hold out"),
    ],
)
def test_an_image_folder_refuses(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    if spoil not in (empty, loose_files, no_images):
        write_folder(tmp_path)
    spoil(tmp_path)
    with mistake(words):
        load(f"imagefolder:{tmp_path}").load()


def test_what_is_no_picture_of_a_listed_kind_is_refused(tmp_path: Path) -> None:
    """Pipes would be waited for, devices never end, PostScript runs, and much white packs small."""
    (place := tmp_path / "cat").mkdir()
    zeros, path = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        place / "a.png",
    )
    made: dict[str, Callable[[], object]] = {
        "no ordinary file": lambda: os.mkfifo(path),
        "is no ordinary": lambda: path.symlink_to("/dev/zero"),
        "cannot be read": lambda: path.write_bytes(zeros),
        "6000 x 6000 is too large": lambda: Image.new("L", (6000, 6000)).save(path),
    }
    for words, make in made.items():
        make()
        for stream in (False, True):
            with mistake(words):
                load(f"imagefolder:{tmp_path}", stream=stream)
        path.unlink()


def test_no_room_is_made_for_more_than_an_image_file_holds(tmp_path: Path) -> None:
    """A part of a file may be said to have a gigabyte."""
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") - 4] = 0x40
    path.write_bytes(content)
    tracemalloc.start()
    assert images.decode_image(path).shape == (1, 9, 9)  # PIL does not mind
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_standard_files_that_no_one_published_are_refused(tmp_path: Path) -> None:
    (raw := tmp_path / "MNIST" / "raw").mkdir(parents=True)
    os.mkfifo(raw / "train-images-idx3-ubyte")
    with mistake("no ordinary file"):
        load("mnist", root=tmp_path)
    (raw / "train-images-idx3-ubyte").unlink()
    (raw / "train-images-idx3-ubyte").touch()
    os.truncate(raw / "train-images-idx3-ubyte", 2**40)
    with mistake("it has more than"):
        load("mnist", root=tmp_path)
    (tmp_path / "MNIST" / "processed").mkdir()
    with mistake("processed was written by an old torchvision"):
        load("mnist", root=tmp_path)


def test_an_npz_file_that_unpacks_to_much_more_is_refused(tmp_path: Path) -> None:
    images = np.zeros((130, 1024, 1024), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", test_images=images, test_labels=np.zeros(130, int))
    with mistake("unpack to 130 MB"):
        load(f"npz:{tmp_path / 'a.npz'}")


def test_labels_of_an_npz_file_are_counted_before_they_are_copied(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz",
        test_images=np.zeros((2, 4, 4), np.uint8),
        test_labels=np.zeros(9, np.int8),
    )
    with mistake("shape (2,), one per image, not (9,)"):
        load(f"npz:{tmp_path / 'a.npz'}")


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with mistake(f"Cannot read the folder {tmp_path}"):
        read_folder("mine", tmp_path)


def test_an_image_that_would_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a" / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with mistake("decompression bomb"):
        load(f"imagefolder:{tmp_path}")


def test_more_images_than_memory(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "0.png")
    split = load(f"imagefolder:{tmp_path}", stream=False).test
    assert isinstance(split, LazySplit)
    assert isinstance(split.reader, ImageFiles)
    whole = replace(split, reader=replace(split.reader, shape=(3, 2**22, 2**22)))
    with mistake("1 images of this size need 49152 GiB: pass --stream or a smaller --image-size"):
        whole.load()


# ---------------------------------------------------------------- load: npz


def npz_arrays(dtype: type = np.uint8, channels: int | None = 3) -> dict[str, np.ndarray[Any, Any]]:
    source, size = np.random.default_rng(0), (5, 4) if channels is None else (5, 4, channels)
    arrays = {}
    for part, n in (("train", 20), ("val", 6), ("test", 10)):
        pixels = source.integers(256, size=(n, *size), dtype=np.uint8)
        arrays[f"{part}_images"] = pixels if dtype == np.uint8 else (pixels / 255).astype(dtype)
        arrays[f"{part}_labels"] = np.arange(n) % 3
    return arrays


def write_npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "mine.npz", **arrays)
    return f"npz:{folder / 'mine.npz'}"


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, np.dtype(">f4")])
def test_an_npz_file(tmp_path: Path, dtype: type, channels: int | None) -> None:
    arrays = npz_arrays(dtype, channels)
    dataset = load(write_npz(tmp_path, **arrays))
    assert dataset.classes == ("0", "1", "2")
    for part, split in dataset.parts.items():
        stored = arrays[f"{part}_images"].reshape(-1, 5, 4, channels or 1)
        assert np.array_equal(
            split.images.permute(0, 2, 3, 1).numpy(), stored.astype(split.images.numpy().dtype)
        )
        assert split.images.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
        assert split.labels.tolist() == arrays[f"{part}_labels"].tolist()


def test_an_npz_file_without_validation_or_training(tmp_path: Path) -> None:
    arrays = {key: value for key, value in npz_arrays().items() if not key.startswith("val")}
    dataset = load(write_npz(tmp_path, **arrays), validation=0.2, seed=5)
    assert {part: len(split) for part, split in dataset.parts.items()} == {
        "train": 16,
        "val": 4,
        "test": 10,
    }
    arrays = {key: value for key, value in arrays.items() if not key.startswith("train")}
    assert list(load(write_npz(tmp_path, **arrays)).parts) == ["test"]


def test_an_npz_file_names_classes_and_may_have_columns_of_small_labels(tmp_path: Path) -> None:
    arrays = npz_arrays()
    arrays["test_labels"] = arrays["test_labels"].astype(np.uint8)[:, None]
    dataset = load(
        write_npz(tmp_path, **arrays, classes=np.array(["ant", "bee", "cow", "dog"])), image_size=4
    )
    assert dataset.classes == ("ant", "bee", "cow", "dog")
    assert dataset.test.labels.tolist() == [k % 3 for k in range(10)]
    assert dataset.image_size == (4, 4)


def test_float_images_stay_in_range_when_scaled(tmp_path: Path) -> None:
    ones = np.ones((2, 9, 7), np.float32)
    dataset = load(write_npz(tmp_path, test_images=ones, test_labels=np.arange(2)), image_size=5)
    assert dataset.test.images.min() > 0.999
    assert dataset.test.images.max() <= 1


class Hostile:
    """Runs a command when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("test_images", None, "has no test_images, only train_images"),
        ("test_labels", None, "has no test_labels"),
        ("train_labels", None, "has no train_labels"),
        ("val_images", None, "has no val_images"),
        ("test_images", np.zeros((10, 5)), "(n, h, w, c)"),
        ("test_images", np.zeros((10, 3, 5, 4)), "(n, h, w, c)"),
        ("test_images", np.zeros((10, 5, 4, 3, 1)), "(n, h, w, c)"),
        ("test_images", np.float32(0), "(n, h, w, c)"),
        ("test_images", np.zeros((10, 5, 4, 3), int), "uint8, or float in [0, 1], not int64"),
        ("test_images", np.zeros((10, 5, 4, 3), complex), "not complex128"),
        ("test_images", np.full((10, 5, 4, 3), "a"), "not <U1"),
        ("test_images", np.zeros((10, 5, 4, 3), [("a", "u1")]), "uint8, or float"),
        ("test_images", np.full((10, 5, 4, 3), 2.0), "test part: Pixels must lie in [0, 1]"),
        ("test_images", np.full((10, 5, 4, 3), 1e300), "span [inf, inf]"),
        ("test_images", np.full((10, 5, 4, 3), np.nan), "NaN"),
        ("test_images", np.zeros((0, 5, 4, 3)), "test part: Labels must have the shape (0,)"),
        ("test_images", np.zeros((10, 0, 4, 3)), "no empty side"),
        ("test_images", np.zeros((10, 5, 5, 3)), "give them one size"),
        ("test_images", np.zeros((10, 5, 4)), "give them one size"),
        ("val_images", np.zeros((7, 5, 4, 3)), "val part: Labels must have the shape (7,)"),
        ("test_labels", np.zeros((10, 3), int), "shape (10,)"),
        ("test_labels", np.zeros(10), "test part: Labels must be int64, not torch.float64"),
        ("test_labels", np.zeros(10, bool), "int64, not torch.bool"),
        ("test_labels", np.arange(10) - 1, "smallest is -1"),
        ("test_labels", np.full(10, 2**64 - 1, np.uint64), "smallest is -1"),
        ("test_labels", np.full(10, 10**12), "A label is 1000000000000"),
        ("classes", np.array(["a", "b"]), "only 2 classes"),
        ("classes", np.array(["a", "b", "b"]), "'b' comes 2 times"),
        ("classes", np.array([b"a", b"b", b"c"]), "a list of names"),
        ("classes", np.array("abc"), "a list of names"),
    ],
)
def test_an_npz_file_refuses(tmp_path: Path, key: str, value: Any, words: str) -> None:
    arrays = {k: v for k, v in {**npz_arrays(), key: value}.items() if v is not None}
    with mistake(words):
        load(write_npz(tmp_path, **arrays))


def test_nothing_in_an_npz_file_is_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for key in ("test_images", "test_labels", "classes"):
        name = write_npz(
            tmp_path, **{**npz_arrays(), key: np.array([Hostile(marker)], dtype=object)}
        )
        with mistake(f"{key} in"):
            load(name)
    (tmp_path / "mine.npz").write_bytes(pickle.dumps(Hostile(marker)))
    with mistake("cannot be read as an .npz file"):
        load(f"npz:{tmp_path / 'mine.npz'}")
    assert not marker.exists()


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    import zipfile

    file = tmp_path / "mine.npz"
    write_npz(tmp_path, **npz_arrays())
    whole = file.read_bytes()
    for content in (b"", b"PK\x03\x04", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with mistake("cannot be read as an .npz file"):
            load(f"npz:{file}")
    middle = whole.index(b"test_images.npy") + 400
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with mistake("test_images in"):
        load(f"npz:{file}")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("test_images", b"not an array")
        archive.writestr("test_labels", b"not an array")
    with mistake("it is no array"):
        load(f"npz:{file}")
    with file.open("wb") as opened:
        np.save(opened, np.zeros(3))
    with mistake("holds a single array"):
        load(f"npz:{file}")


# ---------------------------------------------------------------- load: torchvision


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def raw_images(n: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return bytes_images(n, 3, 32, 32, seed=seed).numpy(), np.arange(n) % 10


def write_cifar10(root: Path) -> dict[str, MemorySplit]:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    batches = []
    for index, file in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        images, labels = raw_images(20, index)
        (folder / file).write_bytes(
            pickle.dumps({"data": images.reshape(20, 3072), "labels": labels.tolist()})
        )
        batches.append(MemorySplit(torch.from_numpy(images), torch.from_numpy(labels)))
    (folder / "batches.meta").write_bytes(
        pickle.dumps({"label_names": [f"class {k}" for k in range(10)]})
    )
    train = MemorySplit(
        torch.cat([b.images for b in batches[:5]]), torch.cat([b.labels for b in batches[:5]])
    )
    return {"train": train, "test": batches[5]}


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, MemorySplit]:
    """A small CIFAR-10 in tmp_path, whose checksums torchvision takes for the published ones."""
    splits, kind = write_cifar10(tmp_path), torchvision.datasets.CIFAR10
    folder = tmp_path / kind.base_folder
    for files in ("train_list", "test_list"):
        monkeypatch.setattr(
            kind, files, [[file, md5(folder / file)] for file, _ in getattr(kind, files)]
        )
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(folder / "batches.meta")})
    return splits


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, MemorySplit]:
    splits = {}
    sums = dict(torchvision.datasets.SVHN.split_list)
    for seed, part in enumerate(("train", "test")):
        images, labels = raw_images(20, seed)
        file = root / f"{part}_32x32.mat"
        savemat(
            file,
            {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)[:, None]},
        )
        sums[part] = ["", file.name, md5(file)]
        splits[part] = MemorySplit(torch.from_numpy(images), torch.from_numpy(labels))
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", sums)
    return splits


def write_mnist(folder: Path) -> dict[str, MemorySplit]:
    folder.mkdir(parents=True)
    splits = {}
    for seed, (part, file) in enumerate((("train", "train"), ("test", "t10k"))):
        images, labels = (
            bytes_images(20, 28, 28, seed=seed).numpy(),
            (np.arange(20) % 10).astype(np.uint8),
        )
        (folder / f"{file}-images-idx3-ubyte").write_bytes(
            struct.pack(">4I", 2051, 20, 28, 28) + images.tobytes()
        )
        (folder / f"{file}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2I", 2049, 20) + labels.tobytes()
        )
        splits[part] = MemorySplit(
            torch.from_numpy(images)[:, None], torch.from_numpy(labels).long()
        )
    return splits


def holds(dataset: Dataset, stored: dict[str, MemorySplit]) -> None:
    """Train and val together are what was stored as train, test is what was stored as test."""
    assert dataset.train is not None
    assert dataset.val is not None
    assert same(dataset.test, stored["test"])
    kept, held = hold_out(stored["train"].labels, 0.1, 0)
    assert same(dataset.train, stored["train"].subset(kept))
    assert same(dataset.val, stored["train"].subset(held))


def test_cifar10(tmp_path: Path, cifar10: dict[str, MemorySplit]) -> None:
    dataset = load("cifar10", root=tmp_path)
    assert dataset.classes[9] == "class 9"
    assert dataset.test.labels.tolist() == list(range(10)) * 2
    holds(dataset, cifar10)


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = write_svhn(tmp_path, monkeypatch)
    dataset = load("svhn", root=tmp_path)
    assert dataset.classes == tuple("0123456789")
    holds(dataset, stored)


@pytest.mark.parametrize(
    ("name", "folder", "first"), [("mnist", "MNIST", "0"), ("fashion-mnist", "FashionMNIST", "T")]
)
def test_mnist_and_fashion_mnist(tmp_path: Path, name: str, folder: str, first: str) -> None:
    stored = write_mnist(tmp_path / folder / "raw")
    dataset = load(name, root=tmp_path)
    assert dataset.classes[0][0] == first
    assert len(dataset.classes) == 10
    holds(dataset, stored)


@pytest.mark.parametrize("name", ["cifar10", "svhn", "mnist", "fashion-mnist"])
def test_absent_files_are_asked_for(tmp_path: Path, name: str) -> None:
    with mistake(f"{tmp_path}"):
        load(name, root=tmp_path)
    with mistake("pass --download"):
        load(name, root=tmp_path / "none")


def test_only_the_published_cifar10_is_unpickled(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    marker = tmp_path / "marker"
    for file in (tmp_path / "cifar-10-batches-py").iterdir():
        file.write_bytes(pickle.dumps(Hostile(marker)))
    with mistake("incomplete or damaged"):
        load("cifar10", root=tmp_path)
    assert not marker.exists()


def test_damaged_files_are_named(tmp_path: Path, cifar10: dict[str, MemorySplit]) -> None:
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    with mistake("cifar-10-batches-py is incomplete or damaged"):
        load("cifar10", root=tmp_path)
    (tmp_path / "train_32x32.mat").write_text("damaged")
    with mistake("train_32x32.mat is incomplete or damaged"):
        load("svhn", root=tmp_path)
    write_mnist(tmp_path / "MNIST" / "raw")
    for content in (b"", b"damaged", struct.pack(">4I", 2051, 20, 28, 28) + b"cut off"):
        (tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(content)
        with mistake("MNIST/raw is incomplete or damaged"):
            load("mnist", root=tmp_path)


def test_a_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("no network:\nnone at all")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", refuse)
    with mistake("cannot be fetched (no network: none at all)"):
        load("cifar10", root=tmp_path, download=True)


# ---------------------------------------------------------------- as_dataset: pairs


def test_names_and_datasets_pass() -> None:
    digits = as_dataset("digits")
    assert digits.image_size == (8, 8)
    assert as_dataset(digits) is digits
    assert as_dataset(lambda: digits) is digits


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_a_pair_of_tensors(dtype: torch.dtype) -> None:
    images = torch.rand(4, 3, 5, 5, generator=generator(), requires_grad=True)
    dataset = as_dataset((images, torch.tensor([0, 2, 1, 0]).to(dtype)))
    assert dataset.classes == ("0", "1", "2")
    assert list(dataset.parts) == ["test"]
    assert torch.equal(memory(dataset).images, images)
    assert not memory(dataset).images.requires_grad


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_a_pair_of_arrays(dtype: type) -> None:
    split = some_split()
    images = (split.images.numpy() / (1 if dtype == np.uint8 else 255)).astype(dtype)
    expected = torch.from_numpy(images)
    expected = MemorySplit(expected if dtype == np.uint8 else expected.float(), split.labels)
    for labels in (split.labels.numpy(), split.labels.numpy().astype(np.uint8), split.labels):
        assert same(memory(as_dataset((images, labels))), expected)
    assert same(memory(as_dataset((images.transpose(0, 2, 3, 1), split.labels.tolist()))), expected)
    images.flags.writeable = False
    assert same(memory(as_dataset((images, split.labels.numpy()))), expected)


@pytest.mark.parametrize(
    ("shape", "image_shape"),
    [
        ((7, 8, 9), (1, 8, 9)),
        ((7, 8, 3), (1, 8, 3)),
        ((7, 8, 9, 1), (1, 8, 9)),
        ((7, 1, 8, 9), (1, 8, 9)),
        ((7, 8, 9, 3), (3, 8, 9)),
        ((7, 3, 8, 3), (3, 8, 3)),
        ((7, 4, 8, 9), (4, 8, 9)),
    ],
)
def test_channels_are_found(shape: tuple[int, ...], image_shape: tuple[int, ...]) -> None:
    images, labels = bytes_images(*shape), torch.arange(7)
    for pair in ((images, labels), (images.numpy(), labels.numpy())):
        dataset = as_dataset(pair)
        assert dataset.test.image_shape == image_shape
        items = list(zip(*pair, strict=True))
        assert same(memory(as_dataset(items)), memory(dataset))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ((GOOD,), "not (Tensor)"),
        ((GOOD, GOOD, GOOD), "not (Tensor, Tensor, Tensor)"),
        (([GOOD], [0]), "not (list, list)"),
        ((GOOD[0, 0], [0, 1]), "shape (n, c, h, w)"),
        ((GOOD.long().numpy(), [0, 1]), "uint8, or float in [0, 1], not int64"),
        ((GOOD.long(), [0, 1]), "uint8, or float in [0, 1], not torch.int64"),
        ((GOOD.numpy().astype(object), [0, 1]), "uint8, or float in [0, 1], not object"),
        ((GOOD.numpy().astype("U"), [0, 1]), "uint8, or float in [0, 1], not <U32"),
        ((GOOD.numpy() * 2 - 1, [0, 1]), "images in [-1, 1] are (x + 1) / 2"),
        ((GOOD.numpy() + 255, [0, 1]), "divide by 255"),
        ((GOOD.numpy() + 1.001, [0, 1]), "clip them"),
        ((GOOD, torch.zeros(2)), "int64, not torch.float32"),
        ((GOOD, [0.0, 1.0]), "int64, not torch.float64"),
        ((GOOD, torch.zeros(2).bool()), "int64, not torch.bool"),
        ((GOOD, ["cat", "dog"]), "int64, one per image"),
        ((GOOD, None), "int64, one per image"),
        ((GOOD, 3), "shape (2,)"),
        ((torch.zeros(0, 1, 4, 4), torch.zeros(0).long()), "no test images"),
        (GOOD, "cannot be taken from Tensor"),
        (GOOD.numpy(), "cannot be taken from ndarray"),
        ({"train": 1}, "cannot be taken from dict"),
        (b"digits", "cannot be taken from bytes"),
        (None, "cannot be taken from NoneType"),
    ],
)
def test_what_is_no_source(source: Any, words: str) -> None:
    with mistake(words):
        as_dataset(source)


# ---------------------------------------------------------------- as_dataset: items


class Items(torch.utils.data.Dataset[Any]):
    """A torch dataset of some items, which counts the items that are read."""

    def __init__(self, *items: Any, **attributes: Any) -> None:
        self.items = items
        self.read: list[int] = []
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return self.items[index]


class Stream(torch.utils.data.IterableDataset[Any]):
    """A torch dataset without length."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def pairs(split: MemorySplit) -> list[Any]:
    return list(zip(split.images, split.labels.tolist(), strict=True))


def memory(dataset: Dataset) -> MemorySplit:
    split = dataset.test.load()
    assert isinstance(split, MemorySplit)
    return split


def test_datasets_of_tensors() -> None:
    split = some_split()
    numbers = list(zip(split.images.numpy(), split.labels.numpy(), strict=True))
    sources = {
        "TensorDataset": torch.utils.data.TensorDataset(split.images, split.labels),
        "Items": Items(*numbers),
        "Stream": Stream(*pairs(split)),
        "list": pairs(split),
        "generator": (pair for pair in pairs(split)),
    }
    for name, source in sources.items():
        dataset = as_dataset(source)
        assert same(memory(dataset), split)
        assert dataset.classes == ("0", "1", "2")
        assert dataset.name == name


def test_a_torch_dataset_of_pil_images(tmp_path: Path) -> None:
    write_folder(tmp_path)
    dataset = as_dataset(torchvision.datasets.ImageFolder(tmp_path / "test"))
    folder = load(f"imagefolder:{tmp_path}")
    assert dataset.name == "ImageFolder"
    assert same(memory(dataset), memory(folder))
    assert dataset.classes == folder.classes
    grey = Image.new("L", (4, 4), 7)
    assert as_dataset([(grey, 0)]).channels == 1
    assert torch.equal(
        memory(as_dataset(Items((grey, 0), (grey.convert("RGB"), 1)))).images,
        torch.full((2, 3, 4, 4), 7, dtype=torch.uint8),
    )


@pytest.mark.parametrize("keys", [{}, {"image_key": "img", "label_key": "fine_label"}])
def test_items_may_be_dictionaries(keys: dict[str, str]) -> None:
    image, label = keys.values() or ("image", "label")
    split = some_split()
    items = [{image: x, label: y, "id": 3} for x, y in pairs(split)]
    for source in (items, Items(*items), Stream(*items)):
        assert same(memory(as_dataset(source, **keys)), split)
    with mistake("Item 0 of list has no 'scan', only "):
        as_dataset(items, image_key="scan")
    loader = torch.utils.data.DataLoader(Stream(*items), batch_size=4)
    assert same(memory(as_dataset(loader, **keys)), split)


class HuggingFace:
    """What a data set of Hugging Face's gives: columns, items and features."""

    column_names = ("img", "fine_label")

    def __init__(self, split: MemorySplit) -> None:
        names = type("ClassLabel", (), {"names": ["ant", "bee", "cow"]})()
        self.split, self.features = split, {"img": None, "fine_label": names}
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: int | str) -> Any:
        if key == "fine_label":
            return self.split.labels.tolist()
        assert isinstance(key, int)
        self.read.append(key)
        image = Image.fromarray(self.split.images[key].permute(1, 2, 0).numpy())
        return {"img": image, "fine_label": int(self.split.labels[key])}


def test_columns_and_features() -> None:
    source = HuggingFace(split := some_split())
    dataset = as_dataset(source, image_key="img", label_key="fine_label")
    assert source.read == [0]
    assert dataset.classes == ("ant", "bee", "cow")
    assert same(memory(dataset), split)


def labelled(split: MemorySplit, kind: str) -> Items:
    """Items whose labels are known by themselves."""
    labels = split.labels.tolist()
    known: Any = {
        "targets": labels,
        "labels": np.array(labels, np.uint8),
        "samples": [("a.png", label) for label in labels],
    }[kind]
    return Items(*pairs(split), classes=["ant", "bee", "cow"], **{kind: known})


@pytest.mark.parametrize("kind", ["targets", "labels", "samples"])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_only_the_images_asked_for_are_read(kind: str, depth: int) -> None:
    source = labelled(split := some_split(12), kind)
    data, indices = source, torch.arange(12)
    for order in ([11, 0, 5, 3, 4, 8], [5, 1, 0])[:depth]:
        data, indices = torch.utils.data.Subset(data, order), indices[order]
    dataset = as_dataset(data)
    assert dataset.classes == ("ant", "bee", "cow")
    assert source.read == [int(indices[0])]  # for the shape of all
    assert dataset.name == "Items"
    chosen = torch.tensor([2, 0])
    assert torch.equal(dataset.test.labels, split.labels[indices])
    sample = dataset.test.subset(chosen)
    assert len(source.read) == 1
    expected = split.subset(indices[chosen])
    assert same(sample.load(), expected)  # type: ignore[arg-type]
    assert source.read[1:] == indices[chosen].tolist()
    for ours, theirs in zip(sample.batches(2), expected.batches(2), strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert sample.fingerprint() == sample.load().fingerprint() == expected.fingerprint()
    assert repr(sample) == "LazySplit(2 images of 3 x 4 x 5, in Items)"


def test_labels_that_items_do_not_have() -> None:
    items = pairs(some_split(4))
    dataset = as_dataset(Items(*items, targets=[0, 1, 2, 2]))
    with mistake("Item 3 of Items has the label 0, and its list of labels says 2"):
        dataset.test.load()


@pytest.mark.parametrize(
    "attributes",
    [
        {"targets": [0, 1]},
        {"targets": ["a", "b", "c", "a"]},
        {"labels": lambda: 3},
        {"samples": ["a.png"] * 4},
        {"targets": [2, 1, 0, 2], "target_transform": lambda label: 2 - label},
    ],
)
def test_what_is_no_list_of_labels_is_passed_over(attributes: dict[str, Any]) -> None:
    split = some_split(4)
    source = Items(*pairs(split), **attributes)
    assert same(memory(as_dataset(source)), split)
    assert source.read == [0, 1, 2, 3]


def test_class_names_that_are_no_names_are_passed_over() -> None:
    items = Items((torch.zeros(1, 4, 4), 1), classes=[("tench", "Tinca tinca"), ("goldfish",)])
    assert as_dataset(items).classes == ("0", "1")  # ImageNet's are such


IMAGE = torch.zeros(1, 4, 4)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([], "Items is empty"),
        ([IMAGE], "Item 0 of Items is not a pair"),
        ([(IMAGE, 0, 0)], "Item 0 of Items is not a pair"),
        ([(IMAGE, 0), ("a.png", 0)], "Image 1 is a str"),
        ([(IMAGE[None], 0)], "Image 0 has the shape (1, 1, 4, 4)"),
        ([(IMAGE, 0), (torch.zeros(1, 5, 4), 0)], "Image 1 is torch.float32 (1, 5, 4)"),
        ([(IMAGE, 0), (IMAGE.byte(), 0)], "bring them to one type and size"),
        ([(IMAGE, 0.5)], "Label 0 is not a whole number"),
        ([(IMAGE, "cat")], "Label 0 is not a whole number"),
        ([(IMAGE, torch.tensor([1, 2]))], "Label 0 is not a whole number"),
        ([(IMAGE - 1, 0)], "normalisation"),
        ([(IMAGE / 0, 0)], "NaN"),
        ([(IMAGE.long(), 0)], "uint8, or float"),
        ([(Image.new("F", (4, 4)), 0)], "more than 8 bits"),
    ],
)
def test_a_torch_dataset_refuses(items: list[Any], words: str, known: bool) -> None:
    with mistake(words):
        memory(as_dataset(Items(*items, **({"targets": [0] * len(items)} if known else {}))))


@pytest.mark.parametrize(("label", "words"), [(-1, "smallest is -1"), (2**62, "from 0")])
@pytest.mark.parametrize("known", [False, True])
def test_labels_of_a_torch_dataset_are_checked(label: int, words: str, known: bool) -> None:
    with mistake(words):
        as_dataset(Items((IMAGE, label), **({"targets": [label]} if known else {})))


def test_sources_without_length() -> None:
    class Endless(torch.utils.data.Dataset[Any]):
        def __getitem__(self, index: int) -> Any:
            return IMAGE, 0

    with mistake("Endless has no length: define __len__"):
        as_dataset(Endless())
    with mistake("Stream is empty"):
        as_dataset(Stream())


def test_a_progress_bar_is_shown_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, bool]] = []

    bars: list[tuple[str, bool]] = shown

    def bar(items: Iterable[Any], description: str, *_: int, shown: bool, **__: Any) -> Any:
        bars.append((description, shown))
        return items

    for module in ("sources", "splits"):
        monkeypatch.setattr(f"channelscope.data.{module}.open_bar", bar)
    folder = as_dataset(f"imagefolder:{write_folder(tmp_path)}", progress=True)
    as_dataset(labelled(some_split(), "targets"), progress=True)
    assert shown == []  # nothing is read
    for progress in (False, True):
        as_dataset(pairs(some_split()), progress=progress)
        folder.test.load(progress)
        folder.load("train", "val", progress=progress)
        assert shown == [("reading images", progress)] * 4
        shown.clear()


# ---------------------------------------------------------------- as_dataset: loaders


def test_a_loader_that_goes_through_its_dataset_is_that_dataset() -> None:
    source = labelled(split := some_split(), "targets")
    subset = torch.utils.data.Subset(source, range(2, 10))
    dataset = as_dataset(torch.utils.data.DataLoader(subset, batch_size=3))
    assert source.read == [2]
    assert dataset.classes == ("ant", "bee", "cow")
    assert same(memory(dataset), split.subset(torch.arange(2, 10)))


def flip(items: list[Any]) -> Any:
    images, labels = torch.utils.data.default_collate(items)
    return images.flip(-1), labels


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shuffle": True}, "by its RandomSampler"),
        ({"sampler": torch.utils.data.SubsetRandomSampler(range(4))}, "by its SubsetRandomSampler"),
        ({"drop_last": True}, None),
        ({"collate_fn": flip}, None),
        ({"batch_size": None}, None),
        ({"batch_sampler": [[3, 1], [2]], "batch_size": 1}, None),
    ],
)
def test_other_loaders_are_taken_in_their_order(options: dict[str, Any], words: str | None) -> None:
    source = labelled(some_split(), "targets")
    loader = torch.utils.data.DataLoader(source, **{"batch_size": 4, **options})
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match=words) if words else nullcontext():
        dataset = as_dataset(loader)
    assert torch.equal(torch.get_rng_state(), state)
    assert (dataset.name, dataset.classes) == ("Items", ("ant", "bee", "cow"))
    batches = list(loader) if options.get("batch_size", 4) else [([x], [y]) for x, y in loader]
    images = torch.cat([torch.stack(list(x)) for x, _ in batches])
    assert torch.equal(memory(dataset).images, images)
    assert memory(dataset).labels.tolist() == [int(label) for _, y in batches for label in y]


def test_a_loader_of_a_stream() -> None:
    split = some_split()
    loader = torch.utils.data.DataLoader(Stream(*pairs(split)), batch_size=3)
    assert same(memory(as_dataset(loader)), split)
    with mistake("Batch 0 of the DataLoader is not a pair"):
        as_dataset(torch.utils.data.DataLoader(Stream(*split.images), batch_size=3))


# ---------------------------------------------------------------- real images


def test_real_images() -> None:
    folder = os.environ.get("CHANNELSCOPE_DATA")
    if not folder:
        pytest.skip("CHANNELSCOPE_DATA names no image folder")
    parts = [
        path for path in (Path(folder), Path(folder) / "cifar10-jpeg") if (path / "test").is_dir()
    ]
    dataset = load(f"imagefolder:{parts[0] / 'test'}").load()
    assert len(dataset.classes) == 10
    assert isinstance(dataset.test, MemorySplit)
    assert dataset.test.images.shape == (10_000, 3, 32, 32)
    assert dataset.test.labels.bincount().tolist() == [1000] * 10
    files = sorted((parts[0] / "test" / dataset.classes[3]).iterdir())
    with Image.open(files[17]) as image:
        assert np.array_equal(np.array(image), dataset.test.images[3017].permute(1, 2, 0).numpy())
    streamed = load(f"imagefolder:{parts[0] / 'test'}", stream=True).test
    order = torch.randperm(10_000, generator=generator())[:500]
    for ours, theirs in zip(
        streamed.batches(128, indices=order), dataset.test.batches(128, indices=order), strict=True
    ):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
