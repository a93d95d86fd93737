"""Image folders as people have them: names of parts, classes with folders within, what is said."""

from pathlib import Path

import pytest

from channelscope.data import load
from helpers.expect import mistake
from helpers.pictures import write_folder, write_image


def write_part(folder: Path, classes: str = "ant bee", inner: str = "", count: int = 2) -> None:
    for name in classes.split():
        for index in range(count):
            write_image(folder / name / inner / f"{index}.png", seed=index)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_where_there_is_no_test_part_validation_is_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_part(tmp_path / "train", count=10)
    write_part(tmp_path / name)
    dataset = load(f"imagefolder:{tmp_path}")
    assert list(dataset.parts) == ["train", "val", "test"]
    assert len(dataset.test) == 4
    assert dataset.val is not None
    assert len(dataset.val) == 2
    assert said(capsys) == [f"{tmp_path} has no test part with classes: {name} is the test part."]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_beside_a_test_part_it_is_the_validation_part(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path)
    write_part(tmp_path / name, "ant bee cow", count=1)
    dataset = load(f"imagefolder:{tmp_path}")
    assert dataset.val is not None
    assert (len(dataset.val), len(dataset.test)) == (3, 12)
    assert said(capsys) == []


def test_two_names_of_one_part_are_refused(tmp_path: Path) -> None:
    write_part(tmp_path / "val")
    write_part(tmp_path / "valid")
    with mistake("has both val and valid: move or remove one"):
        load(f"imagefolder:{tmp_path}")


def test_images_may_lie_in_a_folder_of_the_class(tmp_path: Path) -> None:
    write_part(tmp_path / "train", inner="images")
    write_part(tmp_path / "test")
    dataset = load(f"imagefolder:{tmp_path}", validation=0)
    assert dataset.classes == ("ant", "bee")
    assert dataset.train is not None
    assert dataset.train.load().labels.tolist() == [0, 0, 1, 1]


def test_tiny_imagenet_is_read_as_it_comes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_part(tmp_path / "train", "n01 n02", "images")
    (tmp_path / "train" / "n01" / "n01_boxes.txt").write_text("0.png\t0\t0\t6\t6\n")
    lines = []
    for index in range(3):
        write_image(tmp_path / "val" / "images" / f"val_{index}.png", seed=index)
        lines.append(f"val_{index}.png\tn0{1 + index % 2}\t0\t0\t62\t62\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    write_image(tmp_path / "test" / "images" / "test_0.png")
    dataset = load(f"imagefolder:{tmp_path}", validation=0)
    assert dataset.classes == ("n01", "n02")
    assert dataset.test.load().labels.tolist() == [0, 1, 0]
    assert said(capsys) == [f"{tmp_path} has no test part with classes: val is the test part."]
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines[:2]))
    with mistake("does not name a class of the training images for val_2.png"):
        load(f"imagefolder:{tmp_path}")
    (tmp_path / "val" / "val_annotations.txt").write_bytes(b"\xff\xfe\x00")
    with mistake("val_annotations.txt cannot be read"):
        load(f"imagefolder:{tmp_path}")


def test_a_class_may_be_called_as_a_part_and_have_a_folder_of_images(tmp_path: Path) -> None:
    write_part(tmp_path, "bus train val", inner="images")
    assert load(f"imagefolder:{tmp_path}").classes == ("bus", "train", "val")


def test_a_class_in_one_part_only_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path)
    write_part(tmp_path / "train", "dog")
    assert load(f"imagefolder:{tmp_path}").classes == ("ant", "bee", "cow", "dog")
    assert said(capsys) == [
        f"{tmp_path}: 1 class has training images and none in test (dog): add some, or do not "
        "expect results for them."
    ]
    write_part(tmp_path / "train", "elk fox gnu")
    load(f"imagefolder:{tmp_path}")
    assert "4 classes have training images and none in test (dog, elk, fox, ...)" in said(capsys)[0]


def test_files_that_may_be_meant_as_images_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path)
    for name in ("0.heic", "1.HEIC", "2.avif", "notes.txt", "Thumbs.db", ".hidden.heic"):
        (tmp_path / "test" / "bee" / name).write_bytes(b"0")
    load(f"imagefolder:{tmp_path}")
    (line,) = said(capsys)
    assert "3 files are left out" in line
    assert "(2 .heic, 1 .avif): convert them to .png" in line


@pytest.mark.parametrize("names", ["猫 犬", "кошка собака", "قطة كلب", "แมว หมา", "बिल्ली कुत्ता"])
def test_class_names_of_any_script_are_kept(names: str, tmp_path: Path) -> None:
    write_part(tmp_path, names)
    assert load(f"imagefolder:{tmp_path}").classes == tuple(sorted(names.split()))
