"""Images read as they are needed: no others, the same as in memory, and processes that end."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from inspect import unwrap
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageFile
from torch import Tensor

from channelscope.data import (
    Dataset,
    ImageFiles,
    LazySplit,
    MemorySplit,
    Split,
    folders,
    load,
    sample_stratified,
    streams,
)
from channelscope.errors import UserError
from helpers.pictures import (
    another_size,
    broken_link,
    cut_off,
    empty_file,
    generator,
    mistake,
    not_an_image,
    sixteen_bits,
    write_folder,
    write_image,
)

# Torch warns where there are fewer processors than the two processes that these tests ask for.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes"),
]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make several chunks of a batch of these tests' few images."""
    monkeypatch.setattr(streams, "CHUNK", 2)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    assert active_children() == []


def streamed(
    folder: Path, part: str = "test", workers: int = 2, image_size: int | None = None
) -> LazySplit:
    images = load(f"imagefolder:{folder}", stream=True, image_size=image_size).parts[part]
    assert isinstance(images, LazySplit)
    return replace(images, workers=workers)


def in_memory(folder: Path, image_size: int | None = None) -> Dataset:
    return load(f"imagefolder:{folder}", stream=False, image_size=image_size).load()


def file_of(images: LazySplit, index: int) -> Path:
    assert isinstance(images.reader, ImageFiles)
    return images.reader.folder / images.reader.files[int(images.rows[index])]


def mixed(root: Path) -> Path:
    """Coloured images of several sizes, the first and the last of them grey."""
    write_folder(root)
    for name in ("train/ant/0.png", "test/cow/9.png"):
        write_image(root / name, "L", size=(12, 8), seed=3)
    write_image(root / "test" / "bee" / "9.png", "P", size=(7, 9), seed=4)
    return root


def equal(ours: Iterator[tuple[Tensor, Tensor]], theirs: Iterator[tuple[Tensor, Tensor]]) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    return all(
        torch.equal(x, other_x) and torch.equal(y, other_y) for (x, y), (other_x, other_y) in pairs
    )


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the files that PIL has decoded, in this process."""
    names: set[str] = set()
    decode = ImageFile.ImageFile.load

    def load(image: ImageFile.ImageFile) -> Any:
        if image.fp is not None:
            names.add(str(image.fp.name))
        return decode(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    return names


# ---------------------------------------------------------------- only what is needed


@pytest.mark.parametrize("image_size", [None, 4])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_only_the_images_asked_for_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: set[str], mode: str, image_size: int
) -> None:
    monkeypatch.setattr(streams, "CHUNK", 32)
    dataset = load(f"imagefolder:{write_folder(tmp_path, 20, mode)}", image_size=image_size)
    assert len(dataset.test) == 60
    assert dataset.test.labels.bincount().tolist() == [20, 20, 20]
    sample = dataset.test.sample(20, seed=1)
    assert torch.equal(
        sample.labels, dataset.test.labels[sample_stratified(dataset.test.labels, 20, 1)]
    )
    assert len(sample.fingerprint()) == 64
    assert decoded == set()
    assert isinstance(sample, LazySplit)
    chosen = {str(file_of(sample, index)) for index in range(20)}
    assert sum(len(y) for _, y in sample.batches(8)) == 20
    assert decoded == chosen
    assert len(chosen) == 20
    decoded.clear()
    loaded = sample.load()
    assert decoded == chosen
    decoded.clear()
    assert equal(loaded.batches(8), loaded.batches(8))
    assert loaded.load() is loaded
    assert decoded == set()


def test_only_the_parts_that_are_used_are_decoded(tmp_path: Path, decoded: set[str]) -> None:
    dataset = load(f"imagefolder:{write_folder(tmp_path)}", validation=0.25)
    loaded = dataset.load("test")
    assert {Path(name).parts[-3] for name in decoded} == {"test"}
    assert len(decoded) == 12
    assert loaded.train is dataset.train
    assert isinstance(loaded.test, MemorySplit)
    assert kinds(dataset.load()) == {MemorySplit}
    assert len(decoded) == 24


def test_few_images_start_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = streamed(write_folder(tmp_path))
    monkeypatch.setattr(streams, "CHUNK", 12)
    passing = images.batches(2)
    next(passing)
    assert active_children() == []


# ---------------------------------------------------------------- the same images


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("image_size", [None, 4, 8])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_streamed_images_are_those_in_memory(
    tmp_path: Path, mode: str, image_size: int | None, workers: int
) -> None:
    name = f"imagefolder:{write_folder(tmp_path, mode=mode)}"
    ours, theirs = (
        load(name, image_size=image_size, stream=stream, validation=0.25).load()
        for stream in (True, False)
    )
    assert kinds(theirs) == {MemorySplit}
    assert ours.classes == theirs.classes
    assert (ours.channels, ours.image_size) == (theirs.channels, theirs.image_size)
    assert list(ours.parts) == list(theirs.parts) == ["train", "val", "test"]
    for part, images in ours.parts.items():
        assert isinstance(images, LazySplit)
        images, other = replace(images, workers=workers), theirs.parts[part]
        assert images.fingerprint() == other.fingerprint()
        assert len(images) == len(other)
        assert images.image_shape == other.image_shape
        assert torch.equal(images.labels, other.labels)
        order = torch.randperm(len(images), generator=generator())
        assert equal(images.batches(5), other.batches(5))
        assert equal(images.batches(3, indices=order), other.batches(3, indices=order))


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_images_of_all_sizes_and_modes_are_those_in_memory(
    tmp_path: Path, workers: int
) -> None:
    images = streamed(mixed(tmp_path), workers=workers, image_size=6)
    expected = in_memory(tmp_path, image_size=6).test
    assert images.image_shape == expected.image_shape == (3, 6, 6)
    assert equal(images.batches(100), expected.batches(100))


@pytest.mark.parametrize("indices", [[], [7], [11, 0, 3, 3, 3, 0, 5]])
@pytest.mark.parametrize("size", [1, 2, 3, 10**12])
def test_batches_follow_the_indices(tmp_path: Path, size: int, indices: list[int]) -> None:
    images, order = streamed(write_folder(tmp_path)), torch.tensor(indices, dtype=torch.int64)
    expected = in_memory(tmp_path).test
    assert equal(
        images.batches(size, indices=order), expected.batches(size, torch.device("cpu"), order)
    )
    assert [len(y) for _, y in images.batches(size, indices=order)] == [
        min(size, len(indices) - start) for start in range(0, len(indices), size)
    ]


def test_batches_are_float_and_share_no_memory_with_the_labels(tmp_path: Path) -> None:
    images = streamed(write_folder(tmp_path), workers=0)
    x, y = next(images.batches(3))
    assert x.dtype == torch.float32
    y.fill_(7)
    assert images.labels.max() == 2


def test_batches_come_to_the_device(tmp_path: Path) -> None:
    images = streamed(write_folder(tmp_path), workers=0)
    for x, y in images.batches(5, "meta"):  # stands in for a GPU
        assert (x.device.type, y.device.type, x.shape[1:], x.dtype) == (
            "meta",
            "meta",
            (3, 5, 6),
            torch.float32,
        )


def test_passes_leave_the_global_generator_alone(tmp_path: Path) -> None:
    images, state = streamed(write_folder(tmp_path)), torch.get_rng_state()
    assert len(list(images.batches(4))) == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_a_subset_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = streamed(write_folder(tmp_path))
    expected = in_memory(tmp_path).test
    with monkeypatch.context() as blind:
        blind.setattr(Image, "open", None)
        subset = images.subset(torch.tensor([9, 2, 2, 0]))
    assert len(subset) == 4
    assert subset.labels.tolist() == [2, 0, 0, 0]
    expected = expected.subset(torch.tensor([9, 2, 2, 0]))
    assert equal(subset.batches(3), expected.batches(3))
    assert subset.fingerprint() == expected.fingerprint()


def test_what_is_streamed_says_so(tmp_path: Path) -> None:
    images = streamed(write_folder(tmp_path))
    assert repr(images) == f"LazySplit(12 images of 3 x 5 x 6, in {tmp_path})"
    assert images.to("cpu") is images


def test_a_streamed_dataset_can_be_limited(tmp_path: Path) -> None:
    name = f"imagefolder:{write_folder(tmp_path)}"
    ours, theirs = (
        load(name, stream=stream, validation=0.25).limited(5, seed=3).load()
        for stream in (True, False)
    )
    assert equal(ours.require_train().batches(5), theirs.require_train().batches(5))


def test_streamed_and_other_parts_make_a_dataset(tmp_path: Path) -> None:
    images = streamed(write_folder(tmp_path))
    loaded = in_memory(tmp_path)
    assert Dataset("mine", loaded.classes, images, train=loaded.train).image_size == (5, 6)
    with mistake("test images (3, 5, 6): give them one size"):
        Dataset("mine", loaded.classes, images, train=streamed(tmp_path, image_size=5))


def test_a_fingerprint_is_of_contents_and_labels_wherever_the_files_are(tmp_path: Path) -> None:
    images = streamed(write_folder(tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two" / "test" / "ant" / "0.png").rename(tmp_path / "two/test/ant/00.png")
    other = streamed(tmp_path / "two", workers=0)
    assert other.fingerprint() == images.fingerprint()
    different = [
        images.subset(torch.arange(11)),
        images.subset(torch.arange(12).flip(0)),
        replace(images, labels=images.labels.flip(0)),
        streamed(tmp_path / "two", "train"),
        streamed(tmp_path / "two", image_size=5),
    ]
    prints = {each.fingerprint() for each in [images, *different]}
    with file_of(images, 4).open("ab") as file:
        file.write(b"0")
    assert len(prints | {images.fingerprint()}) == 7
    assert (
        images.subset(torch.arange(4)).fingerprint() == other.subset(torch.arange(4)).fingerprint()
    )
    assert all(len(bytes.fromhex(each)) == 32 for each in prints)


@pytest.mark.parametrize("workers", [0, 2])
def test_names_may_be_of_any_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    pixels = write_image(tmp_path / "a class" / os.fsdecode(b"\xff\xe9t\xc3\xa9 1.png"))
    monkeypatch.chdir(tmp_path)
    images = streamed(Path(), workers=workers)
    assert len(images.fingerprint()) == 64
    [(x, _)] = images.batches(2)
    assert torch.equal(x[0] * 255, torch.tensor(pixels).permute(2, 0, 1).float())


# ---------------------------------------------------------------- when


def kinds(dataset: Dataset) -> set[type[Split]]:
    return {type(part) for part in dataset.parts.values()}


@pytest.mark.parametrize(
    ("memory", "kind"), [(2 * 12 * 3 * 5 * 6, MemorySplit), (2 * 12 * 3 * 5 * 6 - 1, LazySplit)]
)
def test_parts_that_would_take_half_of_the_memory_stay_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int, kind: type[Split]
) -> None:
    name = f"imagefolder:{write_folder(tmp_path)}"
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": memory, "SC_PAGE_SIZE": 1}.get)
    assert kinds(load(name, validation=0).load()) == {kind}
    assert kinds(load(name, stream=True).load()) == {LazySplit}
    assert kinds(load(name, stream=False).load()) == {MemorySplit}
    assert kinds(load(name, image_size=2).load()) == {MemorySplit}
    assert isinstance(load(name).test.sample(11).load(), MemorySplit)


def test_only_folders_are_streamed() -> None:
    with mistake("Only image folders are streamed, and 'digits' is none"):
        load("digits", stream=True)
    assert kinds(load("digits", stream=False)) == {MemorySplit}


@pytest.mark.parametrize(("processes", "workers"), [("1", 6), ("2", 3), ("8", 1)])
def test_the_processes_of_a_machine_share_its_processors(
    monkeypatch: pytest.MonkeyPatch, processes: str, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert streams.count_workers() == workers


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "spoil",
    [another_size, not_an_image, empty_file, cut_off, broken_link, sixteen_bits],
    ids=lambda each: each.__name__,
)
def test_a_bad_file_is_named_in_the_words_of_reading_into_memory(
    tmp_path: Path, spoil: Callable[[Path], None], workers: int
) -> None:
    spoil(write_folder(tmp_path))
    with pytest.raises(UserError) as expected:
        in_memory(tmp_path)
    images = streamed(tmp_path, "test" if spoil is another_size else "train", workers)
    with pytest.raises(UserError) as caught:
        list(images.batches(3))
    assert active_children() == []  # also while the error is being looked at
    assert str(caught.value) == str(expected.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_before_a_bad_file_are_given(tmp_path: Path, workers: int) -> None:
    not_an_image(write_folder(tmp_path))
    images = load(f"imagefolder:{tmp_path}", stream=True, validation=0.0).train
    assert isinstance(images, LazySplit)
    passing = replace(images, workers=workers).batches(4)
    assert [next(passing)[1].tolist() for _ in range(2)] == [[0] * 4, [1] * 4]
    with mistake("train/cow/0.png cannot be read"):
        next(passing)


def test_a_first_file_that_is_damaged_is_found_on_loading(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "train" / "ant" / "0.png").write_text("not an image")
    with mistake("train/ant/0.png cannot be read"):
        load(f"imagefolder:{tmp_path}", stream=True, validation=0.0)


def test_what_is_no_image_file_any_more_has_no_fingerprint(tmp_path: Path) -> None:
    images = streamed(write_folder(tmp_path))
    file_of(images, 5).unlink()
    with mistake(f"{file_of(images, 5)} cannot be read (No such file or directory)"):
        images.fingerprint()
    os.mkfifo(file_of(images, 5))
    with mistake("is no ordinary file"):
        images.fingerprint()
    file_of(images, 5).unlink()
    file_of(images, 5).touch()
    os.truncate(file_of(images, 5), 2**40)
    with mistake("it has more than 256 MB"):
        images.fingerprint()


@pytest.mark.parametrize("workers", [0, 2])
def test_one_coloured_image_among_the_grey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    write_folder(tmp_path, mode="L")
    write_image(tmp_path / "test" / "bee" / "1.png")
    assert streamed(tmp_path).image_shape == (3, 5, 6)  # all of so few are looked at
    monkeypatch.setattr(folders, "GLANCES", 2)
    images = streamed(tmp_path, workers=workers)
    assert images.image_shape == (1, 5, 6)
    with mistake("test/bee/1.png has colours, and the images looked at before are grey"):
        list(images.batches(4))
    assert in_memory(tmp_path).channels == 3  # all are looked at


@pytest.mark.parametrize("indices", [[-1], [0, 12]])
def test_indices_that_are_not_there(tmp_path: Path, indices: list[int]) -> None:
    images = streamed(write_folder(tmp_path))
    with mistake("between 0 and 11, for there are 12"):
        images.subset(torch.tensor(indices))
    with mistake("between 0 and 11, for there are 12"):
        images.batches(2, indices=torch.tensor(indices))
    with mistake("mask.nonzero()"):
        unwrap(LazySplit.subset)(images, torch.ones(12, dtype=torch.bool))


def test_a_batch_of_no_images(tmp_path: Path) -> None:
    with mistake("at least 1"):
        streamed(write_folder(tmp_path)).batches(0)


@pytest.mark.parametrize(("labels", "words"), [([0], "shape (2,)"), ([0, -1], "smallest is -1")])
def test_labels_that_do_not_fit(labels: list[int], words: str) -> None:
    with mistake(words):
        LazySplit(ImageFiles(Path(), ("a", "b"), (3, 4, 4)), torch.tensor(labels), torch.arange(2))


# ---------------------------------------------------------------- processes


def test_processes_live_as_long_as_their_pass(tmp_path: Path) -> None:
    images = streamed(write_folder(tmp_path))
    passing = images.batches(2)
    assert active_children() == []
    next(passing)
    processes = {process.pid for process in active_children()}
    assert len(processes) == 2
    next(passing)
    assert {process.pid for process in active_children()} == processes
    del passing
    assert active_children() == []


def test_no_more_processes_start_than_have_something_to_do(tmp_path: Path) -> None:
    passing = streamed(write_folder(tmp_path), workers=4).batches(
        3, indices=torch.tensor([5, 3, 1])
    )
    next(passing)
    assert len(active_children()) == 2
    del passing


def test_ctrl_c_does_not_reach_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return read(*arguments)

    images, read = streamed(write_folder(tmp_path)), ImageFiles.read
    monkeypatch.setattr(ImageFiles, "read", interrupted)
    assert [len(y) for _, y in images.batches(5)] == [5, 5, 2]
    assert capfd.readouterr().err == ""
    assert (
        signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    )  # this process can still be interrupted


LONG_PASS = """
import signal
import time
import torch
from channelscope.data import load

# Whatever this process was started from may ignore them.
for sent in (signal.SIGINT, signal.SIGTERM):
    signal.signal(sent, signal.default_int_handler)
images = load("imagefolder:{folder}", stream=True).test
try:
    for number, _ in enumerate(images.batches(4, indices=torch.arange(12).repeat(5_000))):
        if number == 3:
            print("running", flush=True)
            time.sleep(60)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_what_a_terminal_or_torchrun_sends_to_all_processes_ends_a_pass_quietly(
    tmp_path: Path, sent: signal.Signals
) -> None:
    command = [sys.executable, "-c", LONG_PASS.format(folder=write_folder(tmp_path))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "running\n"
        os.killpg(process.pid, sent)
        output, errors = process.communicate()
    assert (process.returncode, output, errors) == (0, "stopped\n", "")
