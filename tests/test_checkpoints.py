"""Network files: what is written comes back, nothing is run, and no broken file is a crash."""

import os
import pickle
import random
import stat
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from channelscope import cli
from channelscope.errors import UserError
from channelscope.gates import Selective
from channelscope.networks import Architecture
from channelscope.weights import (
    GATE_LOG,
    LOG,
    Checkpoint,
    Gate,
    build,
    check_history,
    load,
    log_columns,
)
from channelscope.weights.tensors import load_tensors, save_tensors
from helpers import networks
from helpers.expect import (
    Hostile,
    contents,
    mistake,
    randomness_untouched,
    refusal_allowed,
    same_state,
)
from helpers.runs import METHODS, trained

pytestmark = pytest.mark.usefixtures("unchecked")


def architecture(arch: str = "resnet10", classes: int = 3, channels: int = 1) -> Architecture:
    return Architecture(
        arch=arch, width=2, classes=classes, mean=(0.3,) * channels, std=(0.2,) * channels
    )


GATES = {
    "plain": (),
    "cifs": (
        Gate(
            layer="layer4.0", channels=16, options={"probe": "two-layer", "hidden": 6, "beta": 3.0}
        ),
        Gate(layer="layer4.1", channels=16),
    ),
    "cas": (
        Gate(layer="layer4", channels=16, options={"k": 1, "imgf": "identity", "detach": False}),
    ),
    "fsr": (Gate(layer="layer4", channels=16, kind="fsr", options={"hidden": 3, "tau": 0.5}),),
    "eas": (Gate(layer="layer4.0", channels=16, kind="eas", options={"height": 1, "width": 1}),),
    "kap": (
        Gate(layer="conv1", channels=2, kind="kap"),
        Gate(
            layer="layer3.0.shortcut.0", channels=8, kind="kap", options={"pool": 5, "noise": 0.1}
        ),
    ),
    "other masks": (
        Gate(layer="layer2", channels=4, options={"imgf": "sigmoid"}),
        Gate(layer="layer1.0", channels=2, options={"imgf": "relu"}),
    ),
}


def fresh(arch: str = "resnet18", gates: tuple[Gate, ...] = (), channels: int = 1) -> Checkpoint:
    known = architecture(arch, channels=channels)
    network = networks.randomise_batchnorm(build(known, gates))
    return Checkpoint(
        architecture=known,
        gates=gates,
        state=network.state_dict(),
        image=(channels, 8, 8),
        class_names=("a", "b", "<c>"),
        method="at",
        meta={
            "history": [dict.fromkeys(log_columns(gates), 1)],
            "none": None,
            "deep": {"values": [1, 2.5, "x"]},
        },
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    fresh().save(tmp_path / "net.pt")
    return tmp_path / "net.pt"


def refuses(path: Path, *words: str) -> None:
    """Expect a refusal in one sentence that names the file, without a warning or new files."""
    before = contents(path.parent)
    with warnings.catch_warnings(record=True) as warned, mistake(str(path), *words):
        warnings.simplefilter("always")
        load(path)
    assert not warned
    assert contents(path.parent) == before


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_comes_back_as_it_was(gates: str, channels: int, tmp_path: Path) -> None:
    saved = fresh(gates=GATES[gates], channels=channels)
    saved.save(tmp_path / "net.pt")
    found = Checkpoint.read(tmp_path / "net.pt")
    assert same_state(dict(found.state), dict(saved.state))
    assert replace(found, state={}) == replace(saved, state={})
    x = torch.rand(4, channels, 8, 8)
    before, after = saved.build(), load(tmp_path / "net.pt")
    assert torch.equal(before(x), after(x))
    if isinstance(before, Selective) and isinstance(after, Selective):
        one, other = before.probed(x), after.probed(x)
        assert same_state(one.probes, other.probes)
        assert same_state(one.masks, other.masks)
        assert [settings(gate) for gate in before.gates.values()] == [
            settings(gate) for gate in after.gates.values()
        ]


def settings(gate: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(gate).items()
        if isinstance(value, int | float | str | tuple)
    }


@pytest.mark.parametrize(
    "arch", ["resnet10", "resnet18", "resnet34", "resnet50", "wrn-10-1", "wrn-16-2"]
)
def test_every_architecture_comes_back(arch: str, tmp_path: Path) -> None:
    saved = fresh(arch)
    saved.save(tmp_path / "net.pt")
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(load(tmp_path / "net.pt")(x), saved.build()(x))


@pytest.mark.parametrize("method", METHODS)
def test_trained_networks_come_back(method: str, tmp_path: Path) -> None:
    found = Checkpoint.read(trained(method))
    found.save(tmp_path / "again.pt")
    again = Checkpoint.read(tmp_path / "again.pt")
    assert same_state(dict(found.state), dict(again.state))
    assert replace(found, state={}) == replace(again, state={})


def test_a_loaded_network_is_in_eval_mode_and_can_be_trained(path: Path) -> None:
    network = load(path)
    assert not any(module.training for module in network.modules())
    network.train()(torch.rand(4, 1, 8, 8)).sum().backward()
    assert all(
        parameter.requires_grad and parameter.grad is not None for parameter in network.parameters()
    )


def test_a_network_keeps_its_weights_when_its_file_changes(path: Path) -> None:
    network = load(path)
    x = torch.rand(2, 1, 8, 8)
    before = network(x)
    fresh().save(path)
    assert torch.equal(network(x), before)


def test_weights_that_ask_for_gradients_are_saved_without(tmp_path: Path) -> None:
    network = build(architecture(), ())
    state = network.state_dict(keep_vars=True)
    Checkpoint(architecture=architecture(), state=state, image=(1, 8, 8)).save(tmp_path / "net.pt")
    assert not any(
        tensor.requires_grad for tensor in Checkpoint.read(tmp_path / "net.pt").state.values()
    )


@pytest.mark.parametrize("gates", ["plain", "cifs"])
def test_reading_does_not_touch_global_randomness(gates: str, tmp_path: Path) -> None:
    fresh(gates=GATES[gates]).save(tmp_path / "net.pt")
    with randomness_untouched():
        load(tmp_path / "net.pt")


def test_nothing_is_needed_but_torch_to_read_the_file(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    assert content["channelscope"] == 2
    assert content["architecture"] == asdict(architecture("resnet18"))
    assert same_state(content["state"], dict(Checkpoint.read(path).state))


# ---------------------------------------------------------------- whole or not at all


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"]
)
@pytest.mark.parametrize("exists", [False, True], ids=["new", "over an earlier file"])
@pytest.mark.parametrize(
    "step", [(os, "fsync"), (Path, "replace"), (Path, "touch")], ids=lambda step: step[1]
)
def test_a_failure_while_writing_leaves_what_was_there(
    step: tuple[Any, str],
    error: BaseException,
    exists: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "net.pt"
    if exists:
        fresh().save(path)
    before = contents(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(*step, fail)
    with pytest.raises(UserError if isinstance(error, Exception) else KeyboardInterrupt) as caught:
        fresh().save(path)
    assert contents(tmp_path) == before
    if isinstance(error, Exception):
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_is_as_readable_as_any_other(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    fresh().save(tmp_path / "a" / "b" / "net.pt")
    assert sorted(contents(tmp_path)) == ["a", "a/b", "a/b/net.pt"]


def test_a_place_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with mistake(str(tmp_path / "file" / "net.pt")):
        fresh().save(tmp_path / "file" / "net.pt")
    (tmp_path / "folder").mkdir()
    with mistake(str(tmp_path / "folder")):
        fresh().save(tmp_path / "folder")
    assert sorted(contents(tmp_path)) == ["file", "folder"]


# ---------------------------------------------------------------- hostile files


HOSTILE: dict[str, Callable[[Hostile, Path], Any]] = {
    "alone": lambda hostile, path: torch.save(hostile, path),
    "in the meta data": lambda hostile, path: torch.save(
        {**torch.load(path), "meta": {"x": hostile}}, path
    ),
    "in the state": lambda hostile, path: torch.save(
        {**torch.load(path), "state": {"x": hostile}}, path
    ),
    "in the old format": lambda hostile, path: torch.save(
        {**torch.load(path), "meta": hostile}, path, _use_new_zipfile_serialization=False
    ),
    "a bare pickle": lambda hostile, path: path.write_bytes(pickle.dumps(hostile)),
    "a bare pickle of protocol 0": lambda hostile, path: path.write_bytes(pickle.dumps(hostile, 0)),
    "among numbers": lambda hostile, path: path.write_bytes(
        pickle.dumps({"channelscope": 2, "meta": [hostile]})
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_in_a_file_is_run(kind: str, path: Path) -> None:
    mark = path.with_name("mark")
    HOSTILE[kind](Hostile(mark), path)
    refuses(path, "never run")
    assert not mark.exists()


def packed(path: Path) -> None:
    """Pack a file's members, as no network's are."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
        archive.writestr("archive/data/x", bytes(2**22))


def folded() -> list[Any]:
    """A value of few parts, each in the next twice: written out it has 2**90 of them."""
    value: list[Any] = ["x"]
    for _ in range(90):
        value = [value, value]
    return value


def call(name: str, size: bytes) -> bytes:
    """A pickle that calls a function which torch deems harmless, with a size."""
    return b"\x80\x02c" + name.encode() + b"\n(" + size + b"tR."


TOO_MUCH: dict[str, Callable[[Path], object]] = {
    "a value within itself": lambda path: torch.save(
        {**torch.load(path), "meta": {"x": folded()}}, path
    ),
    "a version within itself": lambda path: torch.save(
        {**torch.load(path), "channelscope": folded()}, path
    ),
    "a view of one number": lambda path: torch.save(
        {"state_dict": {"x": torch.ones(1).expand(2**20, 2**20)}}, path
    ),
    "one tensor many times": lambda path: torch.save(
        dict(enumerate(torch.ones(2**16).expand(99, -1))), path
    ),
    "a sparse tensor": lambda path: torch.save({"x": torch.ones(2, 2).to_sparse()}, path),
    "a long number": lambda path: torch.save({**torch.load(path), "meta": {"x": 10**5000}}, path),
    "half a letter": lambda path: torch.save(
        {**torch.load(path), "class_names": ["\ud800"] * 10}, path
    ),
    "many bytes": lambda path: path.write_bytes(call("builtins\nbytearray", b"J\xff\xff\xff\x7f")),
    "many numbers": lambda path: path.write_bytes(call("torch\nTensor", b"J\xff\xff\xff\x7f")),
    "a large storage": lambda path: path.write_bytes(
        call("torch.storage\nUntypedStorage", b"J\xff\xff\xff\x7f")
    ),
    "a set": lambda path: torch.save({**torch.load(path), "meta": {"x": {1, 2}}}, path),
    "a type": lambda path: torch.save({**torch.load(path), "meta": {"x": torch.float32}}, path),
    "a text without end": lambda path: path.write_bytes(b"\x80\x02X\xff\xff\xff\x7fx."),
    "operations without end": lambda path: path.write_bytes(b"\x80\x02" + b"N0" * 600_000 + b"N."),
    "members that are packed": packed,
}


@pytest.mark.parametrize("attribute", [0x10, 0x30])
def test_tensors_that_are_said_to_be_folders_are_refused(attribute: int, path: Path) -> None:
    """For these torch gives memory as it lies: a flipped bit would change what a network is."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if "/data/" in name]
    at = content.rindex(names[0].encode())  # in the archive's directory, which comes last
    assert content[at - 46 : at - 42] == b"PK\1\2"
    content[at - 8] = attribute
    path.write_bytes(content)
    with mistake("damaged"):
        Checkpoint.read(path)


@pytest.mark.parametrize("kind", TOO_MUCH)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_what_takes_more_than_the_file_holds_is_refused(kind: str, path: Path) -> None:
    TOO_MUCH[kind](path)
    with mistake(str(path)):
        Checkpoint.read(path)
    assert path.stat().st_size < 2**24  # the test's own file is no bomb


def test_the_hostile_file_would_do_harm_elsewhere(tmp_path: Path) -> None:
    """The test above would not notice a hostile object that does nothing: this one does."""
    torch.save(Hostile(tmp_path / "mark"), tmp_path / "net.pt")
    torch.load(tmp_path / "net.pt", weights_only=False)
    assert (tmp_path / "mark").exists()


# ---------------------------------------------------------------- broken files


def whole_network(path: Path) -> None:
    torch.save(networks.plain(), path)


def compiled(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "mine")


def nested(path: Path) -> None:
    path.write_bytes(b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".")


BROKEN: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("weights\n"),
    "zeros": lambda path: path.write_bytes(bytes(10_000)),
    "a picture": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "a zip of something else": archive,
    "a pickle of numbers": lambda path: path.write_bytes(pickle.dumps([1, 2, 3])),
    "a deep pickle": nested,
    "a state": lambda path: torch.save(networks.plain().state_dict(), path),
    "a state in the old format": lambda path: torch.save(
        networks.plain().state_dict(), path, _use_new_zipfile_serialization=False
    ),
    "a whole network": whole_network,
    "a compiled network": compiled,
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
    "a list": lambda path: torch.save([1, 2], path),
    "a number": lambda path: torch.save(1, path),
    "nothing": lambda path: torch.save(None, path),
    "an empty dict": lambda path: torch.save({}, path),
    "an ordered dict": lambda path: torch.save(OrderedDict(a=torch.zeros(1)), path),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_foreign_file_is_refused(kind: str, path: Path) -> None:
    BROKEN[kind](path)
    refuses(path)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_a_file_cut_short_is_refused(share: float, path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refuses(path, "damaged")


def test_a_file_with_a_flipped_bit_is_refused_or_read_right(path: Path) -> None:
    whole, state = path.read_bytes(), dict(Checkpoint.read(path).state)
    chance, wrong = random.Random(0), []
    for _ in range(60):
        place, bit = chance.randrange(len(whole)), chance.randrange(8)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        with refusal_allowed():
            found = dict(Checkpoint.read(path).state)
            wrong += [] if same_state(found, state) else [place]
    assert not wrong, "flipped bits that changed weights without notice"


def test_a_file_that_is_missing_or_a_folder(tmp_path: Path) -> None:
    with mistake(str(tmp_path / "net.pt"), "no file"):
        load(tmp_path / "net.pt")
    with mistake(f"{tmp_path} is a folder"):
        load(tmp_path)


# ---------------------------------------------------------------- fields


WHOLE: dict[str, Any] = {
    "probe": "two-layer",
    "hidden": 6,
    "beta": 5.0,
    "k": 2,
    "imgf": "softmax",
    "detach": True,
}
SMALL = (Gate(layer="layer3.0", channels=8, options=WHOLE), Gate(layer="layer4.0", channels=16))


def change(path: Path, keys: tuple[str | int, ...], value: Any) -> None:
    """Write a value into a field of a checkpoint's content."""
    content = load_tensors(path)
    holder = content
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = value
    save_tensors(content, path)


FIELDS: list[tuple[str | int, ...]] = [
    ("channelscope",),
    *(
        (name,)
        for name in ("architecture", "gates", "state", "image", "class_names", "method", "meta")
    ),
    *(("architecture", name) for name in ("arch", "width", "classes", "mean", "std")),
    *(("gates", 0, name) for name in ("layer", "channels", "kind", "options")),
    *(
        ("gates", 0, "options", name)
        for name in ("probe", "hidden", "beta", "k", "imgf", "detach", "more")
    ),
    ("state", "cnn.conv1.weight"),
    ("state", "cnn.normalise.std"),
    ("state", "selectors.layer3/0.probe.hidden.weight"),
]
VALUES: dict[str, Any] = {
    "none": None,
    "true": True,
    "negative": -1,
    "zero": 0,
    "huge": 10**12,
    "nan": float("nan"),
    "text": "layer4",
    "list": [],
    "numbers": [1, 10**6, -3],
    "texts": ["a", "b", "c"],
    "dict": {"a": 1},
    "tensor": torch.zeros(2),
}


@pytest.mark.parametrize("keys", FIELDS, ids=lambda keys: ".".join(map(str, keys)))
def test_a_field_of_any_type_is_refused_or_does_no_harm(
    keys: tuple[str | int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a field holds: the file is refused in a sentence, or its layers can be listed."""
    path, faults = tmp_path / "net.pt", []
    fresh("resnet10", SMALL).save(path)
    whole = path.read_bytes()
    for name, value in VALUES.items():
        path.write_bytes(whole)
        change(path, keys, value)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            status = cli.main(["layers", str(path)])
        said = capsys.readouterr().err
        if status not in (0, 2) or len(said.splitlines()) != status // 2 or warned:
            faults.append((name, status, said))
    assert not faults


def of_kind(kind: str, **options: Any) -> dict[str, Any]:
    """Describe a gate as a file does."""
    return {"layer": "layer4.0", "channels": 16, "kind": kind, "options": options}


WRONG: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "another version": (("channelscope",), 1),
    "a version that is a tensor": (("channelscope",), torch.ones(2)),
    "too few class names": (("class_names",), ["a", "b"]),
    "too many class names": (("class_names",), ["a", "b", "c", "d"]),
    "class names that are a number": (("class_names",), 3),
    "class names that are one text": (("class_names",), "abc"),
    "an unknown architecture": (("architecture", "arch"), "resnet19"),
    "another architecture": (("architecture", "arch"), "resnet34"),
    "another width": (("architecture", "width"), 3),
    "another number of classes": (("architecture", "classes"), 4),
    "no mean": (("architecture", "mean"), []),
    "a std of zero": (("architecture", "std"), [0.0]),
    "an unknown setting": (("architecture", "depth"), 3),
    "an unknown field": (("more",), 3),
    "an unknown layer": (("gates", 0, "layer"), "layer9"),
    "another layer": (("gates", 0, "layer"), "layer3.0"),
    "two gates of one layer": (("gates", 0, "layer"), "layer4.1"),
    "other channels": (("gates", 0, "channels"), 8),
    "channels beyond reason": (("gates", 0, "channels"), 10**9),
    "an unknown kind of gate": (("gates", 0, "kind"), "magic"),
    "a field of a gate that is none": (("gates", 0, "k"), 2),
    "options that are a list": (("gates", 0, "options"), ["k"]),
    "an unknown option": (("gates", 0, "options", "depth"), 2),
    "an option that is a number": (("gates", 0, "options", 3), 2),
    "an option of another type": (("gates", 0, "options", "k"), 2.0),
    "an option that is true where a number is": (("gates", 0, "options", "k"), True),
    "an option that is a number where true or false is": (("gates", 0, "options", "detach"), 1),
    "an unknown mask": (("gates", 0, "options", "imgf"), "tanh"),
    "an unknown probe": (("gates", 0, "options", "probe"), "cubic"),
    "a gate that chooses nothing": (("gates", 0, "options", "k"), 0),
    "a gate that chooses more than there are": (("gates", 0, "options", "k"), 4),
    "a sharpness that is no number": (("gates", 0, "options", "beta"), float("nan")),
    "a probe beyond reason": (("gates", 0, "options", "hidden"), 10**9),
    "a gate of another kind": (("gates", 0, "kind"), "fsr"),
    "a gate of CIFS with an option of FSR": (("gates", 0, "options", "tau"), 0.1),
    "a gate of FSR with a temperature of zero": (("gates", 0), of_kind("fsr", tau=0.0)),
    "a gate of FSR beyond reason": (("gates", 0), of_kind("fsr", hidden=10**12)),
    "a gate of EAS beyond reason": (("gates", 0), of_kind("eas", height=10**12)),
    "a gate of EAS of no height": (("gates", 0), of_kind("eas", height=0)),
    "a gate of KAP over an even number": (("gates", 0), of_kind("kap", pool=4)),
    "a gate of KAP beyond reason": (("gates", 0), of_kind("kap", pool=10**12 + 1)),
    "a gate of KAP of endless noise": (("gates", 0), of_kind("kap", noise=float("inf"))),
    "a gate of KAP whose noise is a text": (("gates", 0), of_kind("kap", noise="1")),
    "no image": (("image",), None),
    "an image of two sizes": (("image",), [1, 8]),
    "an image of no pixels": (("image",), [1, 0, 8]),
    "an image of negative size": (("image",), [1, -8, 8]),
    "an image of other channels": (("image",), [3, 8, 8]),
    "an image beyond reason": (("image",), [1, 10**9, 10**9]),
    "a method that is none": (("method",), "magic"),
    "a method that is a number": (("method",), 3),
    "meta data that are a list": (("meta",), []),
    "a log without the gates": (("meta", "history"), [dict.fromkeys(LOG, 1)]),
    "a log without one of a gate's columns": (
        ("meta", "history"),
        [
            dict.fromkeys(log_columns(GATES["cifs"]), 1),
            dict.fromkeys(log_columns(GATES["cifs"])[:-1], 1),
        ],
    ),
    "a log of other gates": (("meta", "history"), [dict.fromkeys(log_columns(GATES["cas"]), 1)]),
    "weights of another shape": (("state", "cnn.conv1.weight"), torch.zeros(2, 1, 3, 4)),
    "weights that are a list": (("state", "cnn.conv1.weight"), [0.0]),
    "weights too many": (("state", "cnn.conv9.weight"), torch.zeros(2)),
    "weights that are whole numbers": (
        ("state", "cnn.conv1.weight"),
        torch.zeros(2, 1, 3, 3, dtype=torch.int64),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_field_is_refused(case: str, tmp_path: Path) -> None:
    fresh(gates=GATES["cifs"]).save(tmp_path / "net.pt")
    change(tmp_path / "net.pt", *WRONG[case])
    refuses(tmp_path / "net.pt")


def test_a_gate_without_weights_is_there_once(tmp_path: Path) -> None:
    fresh(gates=(pool := Gate(layer="conv1", channels=2, kind="kap"),)).save(tmp_path / "net.pt")
    change(tmp_path / "net.pt", ("gates",), [asdict(pool)] * 2)
    refuses(tmp_path / "net.pt", "damaged")


def test_a_log_has_columns_for_each_gate_of_cifs() -> None:
    assert log_columns(()) == log_columns(GATES["fsr"]) == log_columns(GATES["kap"]) == list(LOG)
    of_gates = [f"{layer}.{name}" for layer in ("layer4.0", "layer4.1") for name in GATE_LOG]
    assert log_columns(GATES["cifs"]) == [*LOG, *of_gates]
    assert log_columns((), ("cat", "dog")) == [*LOG, "cat.class_weight", "dog.class_weight"]


@pytest.mark.parametrize("gates", GATES)
def test_a_log_is_checked_column_by_column(gates: str) -> None:
    columns = log_columns(GATES[gates])
    whole = dict.fromkeys(columns, 1)
    assert check_history([whole, whole], columns) == [whole, whole]
    assert check_history([], columns) == []
    spoilt = [{name: 1 for name in columns if name != missing} for missing in columns]
    for row in (*spoilt, whole | {"layer9.probe_natural": 1}, {}):
        with pytest.raises(ValueError, match="not a training log"):
            check_history([whole, row], columns)


def test_a_mistaken_gate_is_answered_with_what_there_is() -> None:
    with mistake("no gate 'cfis': choose from ", "cifs", "fsr", "eas", "kap"):
        Gate(layer="layer4", channels=16, kind="cfis")
    with mistake("of kind eas has no option 'depth': choose from height, width"):
        Gate(layer="layer4", channels=16, kind="eas", options={"depth": 4})
    with mistake(
        "imgf of a gate of kind cifs is one of softmax, softmax-abs, sigmoid", "not 'tanh'"
    ):
        Gate(layer="layer4", channels=16, options={"imgf": "tanh"})
    with mistake("The option tau of a gate of kind fsr is a number, not True"):
        Gate(layer="layer4", channels=16, kind="fsr", options={"tau": True})
    with mistake("A gated layer has between 1 and 1,048,576 channels, not 0"):
        Gate(layer="layer4", channels=0)


def test_a_whole_number_will_do_for_a_number() -> None:
    assert Gate(layer="layer4", channels=16, kind="fsr", options={"tau": 1}).build(3).tau == 1


@pytest.mark.parametrize("field", ["channelscope", "architecture", "gates", "state", "image"])
def test_a_missing_field_is_refused(field: str, path: Path) -> None:
    save_tensors({name: value for name, value in load_tensors(path).items() if name != field}, path)
    with mistake(str(path)):
        Checkpoint.read(path)


@pytest.mark.parametrize(
    "name", ["conv1.weight", "bn1.running_var", "normalise.mean", "linear.bias"]
)
def test_a_missing_weight_is_refused(name: str, path: Path) -> None:
    content = load_tensors(path)
    del content["state"][name]
    save_tensors(content, path)
    refuses(path, "damaged")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["conv1.weight", "bn1.running_mean", "linear.bias"])
def test_weights_that_are_no_finite_numbers_are_refused(
    name: str, number: float, path: Path
) -> None:
    content = load_tensors(path)
    content["state"][name].flatten()[0] = number
    save_tensors(content, path)
    refuses(path, "finite")


def test_class_names_may_be_unknown(tmp_path: Path) -> None:
    replace(fresh(), class_names=None, method=None).save(tmp_path / "net.pt")
    assert Checkpoint.read(tmp_path / "net.pt").class_names is None
