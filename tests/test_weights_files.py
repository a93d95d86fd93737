"""Files of weights from anywhere: what is in them is found, nothing in them is run."""

import argparse
import collections
import io
import json
import pathlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from channelscope.errors import UserError
from channelscope.weights.files import Weights, read_weights
from helpers.expect import Hostile, contents, mistake, same_state


def net(width: int = 5) -> nn.Sequential:
    conv = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


def training() -> dict[str, Any]:
    """What programs save beside weights."""
    network = net()
    optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimiser, [2, 4])
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    optimiser.step()
    steps.step()
    return {"optimizer": optimiser.state_dict(), "scheduler": steps.state_dict(), "epoch": 7}


def inner(weights: Weights) -> dict[str, Tensor]:
    return dict(weights.states[-1].tensors)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


@pytest.fixture
def state() -> dict[str, Tensor]:
    return net().state_dict()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "theirs.pth.tar"


ENTRIES = ("state_dict", "net", "model", "model_state_dict", "model_state", "ema", "ema.model")


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_weights_among_others(entry: str, old: bool, state: dict[str, Tensor], path: Path) -> None:
    content: Any = state
    for name in reversed(entry.split(".")):
        content = {name: content}
    content |= training() | {"acc": 93.1}
    assert isinstance(content["scheduler"]["milestones"], collections.Counter)
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    weights = read_weights(path)
    assert weights.entry == entry
    assert same_state(inner(weights), state)


def test_a_list_of_one_network_is_that_network(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"acc": torch.tensor(630), "state_dict": [state]}, path)
    weights = read_weights(path)
    assert same_state(inner(weights), state)
    assert weights.entry == "state_dict[0]"


def test_a_list_of_several_networks_is_told(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"err": 0.5, "state_dict": [state, state, None]}, path)
    words = ("holds a list of 3 values under state_dict, of which 2 are networks", "save the state")
    with mistake(*words):
        read_weights(path)
    torch.save([state, state], path)
    with mistake("holds a list of 2 values, of which 2 are networks", "save the state_dict of one"):
        read_weights(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "net.", "module.model.", ""])
def test_prefixes_of_wrappers_are_taken_off(
    prefix: str, state: dict[str, Tensor], path: Path
) -> None:
    torch.save(prefixed(state, prefix), path)
    weights = read_weights(path)
    assert same_state(dict(weights.states[0].tensors), prefixed(state, prefix))
    assert same_state(inner(weights), state)
    assert len(weights.states) == 1 + prefix.count(".")


def test_an_average_of_torch_is_the_network_in_it(path: Path) -> None:
    average = torch.optim.swa_utils.AveragedModel(nn.DataParallel(net()))
    torch.save({"ema": average.state_dict()}, path)
    assert "n_averaged" in average.state_dict()
    assert same_state(inner(read_weights(path)), average.module.module.state_dict())


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (("0.mean", "0.std"), "1."),
        (("mu", "sigma"), "model."),
        (("module.normalize.mean", "module.normalize.std"), "module.net."),
        (("_mean", "_std"), ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(3,), (1, 3, 1, 1)], ids=str)
def test_buffers_outside_the_network_are_its_normalisation(
    names: tuple[str, str],
    prefix: str,
    shape: tuple[int, ...],
    state: dict[str, Tensor],
    path: Path,
) -> None:
    statistics = {
        names[0]: torch.tensor([0.5, 0.25, 0.125]).view(shape),
        names[1]: torch.tensor([0.25, 0.5, 1.0]).view(shape),
    }
    torch.save(statistics | prefixed(state, prefix), path)
    weights = read_weights(path)
    assert same_state(inner(weights), state)
    last = weights.states[-1]
    assert (last.mean, last.std) == ((0.5, 0.25, 0.125), (0.25, 0.5, 1.0))
    assert weights.states[0].mean is None


def test_statistics_in_bytes_become_those_of_images_in_0_1(path: Path) -> None:
    torch.save(
        {"mean": torch.tensor([127.5]), "std": torch.tensor([51.0]), "w": torch.ones(2)}, path
    )
    last = read_weights(path).states[-1]
    assert (last.mean, last.std) == (pytest.approx((0.5,)), pytest.approx((0.2,)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_half_precision_becomes_single(
    dtype: torch.dtype, state: dict[str, Tensor], path: Path
) -> None:
    torch.save({key: tensor.to(dtype) for key, tensor in state.items()}, path)
    types = {tensor.dtype for tensor in inner(read_weights(path)).values()}
    assert types == {torch.float64 if dtype is torch.float64 else torch.float32}


def test_settings_beside_weights_do_not_matter(state: dict[str, Tensor], path: Path) -> None:
    others = {
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("out")),
        "best": np.float64(0.93),
        "torch": torch.__version__,
        "kinds": {1, 2},
        "raw": b"bytes",
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "rng": torch.get_rng_state(),
        "none": None,
    }
    torch.save({"net": state} | others, path)
    assert same_state(inner(read_weights(path)), state)


def test_a_file_of_lightning(state: dict[str, Tensor], path: Path) -> None:
    content = {
        "epoch": 3,
        "global_step": 77,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": prefixed(state, "model."),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [training()["optimizer"]],
        "lr_schedulers": [training()["scheduler"]],
        "hyper_parameters": {"lr": 0.1},
    }
    torch.save(content, path)
    assert same_state(inner(read_weights(path)), state)


# ---------------------------------------------------------------- safetensors, Hugging Face


@pytest.mark.parametrize("name", ["net.safetensors", "net.bin"])
def test_safetensors(name: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / name)
    assert same_state(inner(read_weights(tmp_path / name)), state)


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("shards", [False, True])
def test_a_folder_of_hugging_face(
    kind: str, shards: bool, state: dict[str, Tensor], tmp_path: Path
) -> None:
    write = save_file if kind.endswith("tensors") else torch.save
    if shards:
        stem, _, ending = kind.partition(".")
        places = {key: f"{stem}-{number % 2}.{ending}" for number, key in enumerate(state)}
        for name in set(places.values()):
            write({key: state[key] for key in state if places[key] == name}, tmp_path / name)
        index = {"metadata": {}, "weight_map": places}
        (tmp_path / f"{kind}.index.json").write_text(json.dumps(index))
    else:
        write(state, tmp_path / kind)
    config = {
        "architecture": "resnet26",
        "num_classes": 4,
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = read_weights(tmp_path)
    assert same_state(inner(weights), state)
    assert weights.arch == "timm:resnet26"
    assert (weights.mean, weights.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("place", ["../net.bin", "/etc/passwd", 3, None])
def test_an_index_names_files_of_its_folder_only(place: Any, tmp_path: Path) -> None:
    index = {"weight_map": {"x": place}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with mistake("index.json", "names no files of the folder"):
        read_weights(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1", '{"a": ' * 2000, "\xff"])
def test_settings_that_cannot_be_read(text: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with mistake("config.json", "cannot be read"):
        read_weights(tmp_path)


# ---------------------------------------------------------------- no weights


def script(path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"net/{name}", b"\x80\x02}.")
    path.write_bytes(buffer.getvalue())


def exported(path: Path) -> None:
    images = (torch.rand(1, 3, 8, 8),)
    torch.export.save(torch.export.export(net().eval(), images), path)


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")


def cut(path: Path) -> None:
    torch.save(net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-400])


def spoil(path: Path) -> None:
    save_file(net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-4])


NO_WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "TorchScript": (script, "is a TorchScript file"),
    "torch.export": (exported, "is a file of torch.export"),
    "a whole network": (
        lambda path: torch.save(net(), path),
        "an object of Python (torch.nn.modules.container.Sequential)",
    ),
    "another archive": (archive, "an archive without a network that torch saved"),
    "gzip": (lambda path: path.write_bytes(b"\x1f\x8b" + bytes(99)), "unpack it first"),
    "a web page": (lambda path: path.write_bytes(b"<!DOCTYPE html><html>"), "a web page"),
    "Git LFS": (
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
    "NumPy": (lambda path: np.save(path.open("wb"), np.ones(3)), "an array of NumPy"),
    "HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n" + bytes(99)), "HDF5"),
    "no state": (lambda path: torch.save({"epoch": 3, "lr": 0.1}, path), "but epoch, lr"),
    "nothing": (lambda path: torch.save({}, path), "holds no weights"),
    "a tensor": (lambda path: torch.save(torch.ones(3), path), "holds a Tensor"),
    "a list": (lambda path: torch.save([1], path), "holds a list"),
    "two networks": (
        lambda path: torch.save({"G": {"w": torch.ones(2)}, "D": {"w": torch.ones(2)}}, path),
        "several networks (G, D)",
    ),
    "NaN": (lambda path: torch.save({"w": torch.tensor([float("nan")])}, path), "not finite"),
    "quantised": (
        lambda path: torch.save(
            {"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, path
        ),
        "quantised, sparse",
    ),
    "sparse": (lambda path: torch.save({"w": torch.ones(2).to_sparse()}, path), "sparse"),
}
DAMAGED: dict[str, Callable[[Path], object]] = {
    "cut short": cut,
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(1000)),
    "words": lambda path: path.write_bytes(b"weights, honestly"),
    "a word that a pickle could begin with": lambda path: path.write_bytes(b"hello"),
    "safetensors cut short": spoil,
    "safetensors with a long header": lambda path: path.write_bytes(
        (10**7).to_bytes(8, "little") + b"{}"
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_intact_files_are_told_what_they_are(kind: str, path: Path) -> None:
    write, words = NO_WEIGHTS[kind]
    write(path)
    with pytest.raises(UserError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert str(path) in message
    assert words in message
    assert "damaged" not in message


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_refused(kind: str, path: Path) -> None:
    DAMAGED[kind](path)
    with mistake(str(path), "it is damaged, or"):
        read_weights(path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("entry", ["args", "net"])
def test_nothing_in_a_file_is_run(entry: str, old: bool, protocol: int, path: Path) -> None:
    content = {"state_dict": net().state_dict()} | {entry: Hostile(path.with_name("mark"))}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not old)
    before = contents(path.parent)
    with mistake("never run", "torch.save(network.state_dict()"):
        read_weights(path)
    assert contents(path.parent) == before


def test_what_a_setting_names_is_not_imported(path: Path) -> None:
    """A namespace that is called with something hostile stays an empty object."""
    path.write_bytes(b"\x80\x02cargparse\nNamespace\ncposix\nsystem\n\x85R.")
    with mistake("never run"):
        read_weights(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with mistake("There is no file"):
        read_weights(tmp_path / "none.pt")
    with mistake("is a folder: name the network file in it"):
        read_weights(tmp_path)


def test_wrappers_without_end_are_not_taken_off(state: dict[str, Tensor], path: Path) -> None:
    torch.save(prefixed(state, "module." * 3), path)
    assert same_state(inner(read_weights(path)), state)
    torch.save(prefixed(state, "module." * 5000), path)
    assert len(read_weights(path).states) < 20


def test_more_tensors_than_networks_have_are_refused(path: Path) -> None:
    save_file({f"layer{index}.weight": torch.zeros(1) for index in range(20_001)}, path)
    with mistake("cannot be read as a safetensors file"):
        read_weights(path)
