"""Networks by name: of libraries, of one's own code; written as checkpoints and read again."""

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

import channelscope as cs
from channelscope.cli import main as run
from channelscope.cli.models import parse_name
from channelscope.gates import FeatureSelector, LinearProbe, Selective, TwoLayerProbe
from channelscope.gates.fsr import FeatureRecalibrator
from channelscope.weights import Checkpoint, read_network
from channelscope.weights.loading import describe_network, parse_args
from helpers import networks
from helpers.expect import contents, mistake

CODE = """
import torch
from torch import nn
from parts import Head

class Net(nn.Module):
    def __init__(self, width=4, classes=5):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1))
        self.net = nn.Sequential(nn.Conv2d(3, width, 3), nn.Softplus(), nn.AdaptiveAvgPool2d(1))
        self.head = Head(width, classes)

    def forward(self, x):
        return self.head(self.net(x).flatten(1)) + self.mean

def make(**options):
    return Net(**options)

def number():
    return 3

def broken():
    raise RuntimeError("no GPU")
"""
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
LARGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(6))


def logits(network: nn.Module, x: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        return network(x)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's code, which is where he works."""
    (tmp_path / "mynets.py").write_text(CODE)
    (tmp_path / "parts.py").write_text("from torch.nn import Linear as Head\n")
    (tmp_path / "wrong.py").write_text("import nothing_of_this_name\n")
    monkeypatch.chdir(tmp_path)
    for name in ("mynets", "parts"):  # of another folder
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def own(folder: Path, width: int = 4) -> nn.Module:
    namespace: dict[str, Any] = {}
    exec(CODE.replace("from parts import Head", "Head = nn.Linear"), namespace)
    network: nn.Module = namespace["Net"](width).eval()
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, "t.ckpt"
    )
    return network


@pytest.mark.parametrize(
    "arch", ["mynets.py:Net", "mynets.py:make", "mynets:Net", "./mynets.py:Net"]
)
def test_code_of_the_users_own(arch: str, folder: Path) -> None:
    network = own(folder)
    assert torch.equal(logits(cs.load("t.ckpt", arch)), logits(network))


def test_arguments_of_code(folder: Path) -> None:
    network = own(folder, width=7)
    assert torch.equal(
        logits(cs.load("t.ckpt", "mynets.py:Net", arch_args={"width": 7})), logits(network)
    )
    with mistake("mynets.py:Net does not fit t.ckpt", "net.0.weight is (7, 3, 3, 3) in the file"):
        cs.load("t.ckpt", "mynets.py:Net")


def test_the_classes_of_code_are_those_of_its_own_last_layer(folder: Path) -> None:
    """A file of safetensors has its tensors by the alphabet, the last layer anywhere."""
    state = own(folder).state_dict()
    save_file({key: state[key].contiguous() for key in state}, folder / "t.safetensors")
    checkpoint = read_network("t.safetensors", "mynets.py:Net")
    assert checkpoint.architecture.classes == list(state.values())[-1].shape[0]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "convnext_tiny", "squeezenet1_1"])
def test_networks_of_a_library_in_alphabetical_order(name: str, tmp_path: Path) -> None:
    network = models.get_model(name, num_classes=7).eval()
    path = tmp_path / "t.safetensors"
    save_file({key: item.contiguous() for key, item in network.state_dict().items()}, path)
    found = cs.load(path, f"torchvision:{name}")
    assert torch.equal(logits(found, LARGE), logits(network, LARGE))


@pytest.mark.parametrize("arch", [None, "torchvision:mnasnet0_5"])
def test_a_network_that_asks_for_the_version_of_its_weights(
    arch: str | None, tmp_path: Path
) -> None:
    network = models.mnasnet0_5(num_classes=7).eval()
    torch.save(dict(network.state_dict()), tmp_path / "t.pth")  # the version is not in a dict
    found = cs.load(tmp_path / "t.pth", arch)
    assert torch.equal(logits(found, LARGE), logits(network, LARGE))


def test_a_folder_of_hugging_face_that_names_its_network(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet10t", num_classes=6).eval()
    state = {key: item.contiguous() for key, item in network.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "resnet10t", "num_classes": 6}')
    assert torch.equal(logits(cs.load(tmp_path), LARGE), logits(network, LARGE))


def test_a_checkpoint_runs_no_code_that_is_not_named(folder: Path) -> None:
    network = own(folder)
    cs.convert("t.ckpt", "ours.pt", "mynets.py:Net", normalise="half", method="at")
    half = logits(network, (IMAGES - 0.5) / 0.5)
    assert torch.equal(logits(cs.load("ours.pt", "mynets.py:Net")), half)
    assert read_network("ours.pt", "mynets.py:make").method == "at"
    Path("mynets.py").write_text("open('mark', 'w')")
    with mistake("ours.pt needs code of your own", "type ours.pt@mynets.py:Net, or name it"):
        cs.load("ours.pt")
    assert not Path("mark").exists()


WRONG = {
    "none.py:Net": "there is no file none.py",
    "mynets.py:Nett": "has no function or class 'Nett'. Did you mean 'Net'",
    "mynets.py:number": "returns a int, not a torch.nn.Module",
    "mynets.py:broken": "cannot be built with no arguments (RuntimeError: no GPU)",
    "wrong.py:Net": "cannot be imported (ModuleNotFoundError: No module named 'nothing_of",
    "no.such.module:Net": "no.such.module cannot be imported",
    "torchvision:resnet19": "torchvision has no classifier 'resnet19'. Did you mean 'resnet1",
    "timm:resnet19": "timm has no network 'resnet19'",
    "torchvision:resnet18": "does not fit t.ckpt: the file lacks conv1.weight",
    "resnet18": "t.ckpt holds a network that is not recognised",
    "mynets.py": "type mynets.py:Net (it defines Net, make, number, broken)",
    "mynets.py:": "type mynets.py:Net (it defines Net, make, number, broken)",
    "none.py": "there is no file none.py",
    "FOLDER.py": "there is no file FOLDER.py",
    ":": "cannot be imported",
}


@pytest.mark.parametrize("arch", WRONG)
def test_wrong_names_are_answered(arch: str, folder: Path) -> None:
    own(folder)
    with mistake(WRONG[arch]):
        cs.load("t.ckpt", arch)


FILES = {
    "class Net: pass\ndef make(): pass": "type nets.py:NAME (it defines Net, make)",
    "class Net(nn.Module): pass": "type nets.py:Net (it defines Net)",
    "def make(): pass\nclass _Base(torch.nn.Module): pass\nclass Net(_Base): pass": (
        "type nets.py:Net (it defines Net, make)"
    ),
    "def make(): pass\nclass Net(Module): pass": "type nets.py:Net (it defines Net, make)",
    "class A(nn.Module): pass\nclass B(nn.Module): pass": ("type nets.py:NAME (it defines A, B)"),
    "class A(nn.Module): pass\nclass B(nn.Module):\n def f(self): super(B, self).g(A())": (
        "type nets.py:B (it defines B, A)"
    ),
    "class A(nn.Sequential): pass\nclass B(str): pass": "type nets.py:A (it defines A, B)",
    "class A(x[0](1)): pass": "type nets.py:NAME (it defines A)",
    "\n".join(f"def f{i}(): pass" for i in range(12)): "f6, f7 and 4 more)",
    "x = 1": "nets.py defines no class or function",
    "": "nets.py defines no class or function",
    "def f(:": "nets.py cannot be read as Python",
    "x = '\0'": "nets.py cannot be read as Python",
    "(" * 1000: "nets.py cannot be read as Python",
}


@pytest.mark.parametrize("code", FILES)
def test_a_file_of_code_without_a_name_is_answered_with_its_names(code: str, folder: Path) -> None:
    """It is read, not run."""
    own(folder)
    Path("nets.py").write_text(f"open('mark', 'w')\n{code}")
    with mistake(FILES[code]):
        cs.load("t.ckpt", "nets.py")
    assert not Path("mark").exists()


def test_a_checkpoint_of_code_names_its_file_too(folder: Path) -> None:
    own(folder)
    cs.convert("t.ckpt", "ours.pt", "mynets.py:Net")
    with mistake("type mynets.py:Net (it defines"):
        cs.load("ours.pt", "mynets.py")


def test_converting_code_ends_with_what_to_type(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own(folder)
    assert run(["convert", "t.ckpt", "my own.pt", "--arch", "mynets.py:Net"]) == 0
    typed = shlex.split(capsys.readouterr().out.splitlines()[-1].partition("--models ")[2])
    assert typed == ["my own.pt@mynets.py:Net"]
    name = parse_name(typed[0])
    assert read_network(name.path, name.arch).architecture.classes == 5
    torch.save(networks.resnet("resnet10").state_dict(), "t.pt")
    assert run(["convert", "t.pt", "ours.pt"]) == 0
    assert "@" not in capsys.readouterr().out


def test_a_normalisation_is_told_with_whose_it_is(folder: Path) -> None:
    own(folder)
    named = describe_network(read_network("t.ckpt", "mynets.py:Net", normalise="half"))
    assert named.endswith("normalised as named: mean 0.5 and standard deviation 0.5")
    torch.save(networks.resnet("resnet10", channels=3).state_dict(), "t.pt")
    for normalise in (None, "0.4;0.3"):
        told = describe_network(read_network("t.pt", normalise=normalise))
        assert "normalised by the file's own mean 0.4, 0.4, 0.4 and standard" in told
    assert "normalised" not in describe_network(read_network("t.ckpt", "mynets.py:Net"))


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (("ema",), "read from model (ema holds another"),
        (("net", "ema"), "read from net (model, ema hold others"),
        ((), ""),
    ],
)
def test_of_several_networks_in_a_file_it_is_told_which_is_read(
    others: tuple[str, ...], words: str, folder: Path
) -> None:
    """An average has other numbers, of steps, and perhaps other prefixes; training has none."""
    state = networks.resnet("resnet10").state_dict()
    average = {f"module.{key}": value for key, value in state.items()}
    average["n_averaged"] = torch.tensor(3)
    content = {"model": state, "optimizer": {"state": {}, "lr": 0.1}} | dict.fromkeys(
        others, average
    )
    torch.save(content, "t.pt")
    described = describe_network(read_network("t.pt"))
    assert words in described
    assert bool(words) == ("read from" in described)


def test_arguments_need_an_architecture(folder: Path) -> None:
    own(folder)
    with mistake("arch_args: there is no architecture that they are for"):
        cs.load("t.ckpt", arch_args={"width": 2})
    with mistake("cannot be built with wide=2", "--arch-args"):
        cs.load("t.ckpt", "mynets.py:Net", arch_args={"wide": 2})


def test_a_name_that_is_not_what_is_recognised(tmp_path: Path) -> None:
    torch.save(networks.resnet("resnet10").state_dict(), tmp_path / "t.pt")
    assert read_network(tmp_path / "t.pt", "resnet10").architecture.arch == "resnet10"
    with mistake("is recognised as resnet10", "not as resnet18: name resnet10"):
        read_network(tmp_path / "t.pt", "resnet18")


def test_words_are_read_as_values() -> None:
    words = {
        "a": "1e-3",
        "b": "False",
        "c": "(2, 2)",
        "d": "gelu",
        "e": "{1: 2}",
        "f": "__import__",
    }
    values = {"a": 0.001, "b": False, "c": (2, 2), "d": "gelu", "e": "{1: 2}", "f": "__import__"}
    assert parse_args(words) == values


# ---------------------------------------------------------------- published weights


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet26"])
def test_published_weights_are_fetched_only_if_asked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with mistake(f"{name} without a file means its published weights", "--download"):
        cs.load(name)
    assert not contents(tmp_path)


def test_published_weights_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = models.get_model("squeezenet1_1", weights=None).eval()
    place = tmp_path / "hub" / "checkpoints"
    place.mkdir(parents=True)
    torch.save(network.state_dict(), place / "squeezenet1_1-b8a52dc0.pth")
    checkpoint = read_network("torchvision:squeezenet1_1")
    x = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normal = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(logits(checkpoint.build(), x), logits(network, normal))


# ---------------------------------------------------------------- to files of ours, and back


def gated() -> dict[str, nn.Module]:
    def cnn() -> nn.Module:
        return networks.resnet("resnet10").eval()

    width = cnn().linear.in_features
    classes = cnn().linear.out_features
    linear, two = LinearProbe(width, classes), TwoLayerProbe(width, classes, 3, 2.0)
    return {
        "plain": cnn(),
        "WideResNet": networks.resnet("wrn-10-1").eval(),
        "CAS": Selective(cnn(), {"layer4": FeatureSelector(linear, k=1, imgf="identity")}),
        "CIFS": Selective(cnn(), {"layer4.0": FeatureSelector(two, imgf="sigmoid")}),
        "CIFS, budget": Selective(
            cnn(), {"layer4": FeatureSelector(linear, temperature=3, budget="channels")}
        ),
        "FSR": Selective(cnn(), {"layer4": FeatureRecalibrator(width, classes, hidden=2)}),
    }


@pytest.mark.parametrize("kind", gated())
def test_a_network_is_saved_and_read_again(kind: str, tmp_path: Path) -> None:
    network = networks.randomise_batchnorm(gated()[kind]).eval()
    cs.save(network, tmp_path / "net.pt", method="at")
    checkpoint = Checkpoint.read(tmp_path / "net.pt")
    x = torch.rand(2, checkpoint.image[0], 8, 8)
    assert torch.equal(logits(checkpoint.build(), x), logits(network, x))
    assert checkpoint.method == "at"


def test_a_network_of_a_library_is_saved_and_read_again(tmp_path: Path) -> None:
    from torchvision import models

    network = cs.normalised(models.squeezenet1_1(num_classes=4).eval(), (0.5,) * 3, (0.2,) * 3)
    cs.save(network, tmp_path / "net.pt")
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(logits(cs.load(tmp_path / "net.pt"), x), logits(network, x))
    shown = describe_network(Checkpoint.read(tmp_path / "net.pt"))
    assert shown.startswith("torchvision squeezenet1_1, 4 classes, normalised by mean 0.5")


def test_a_network_that_computes_something_else_is_not_saved(tmp_path: Path) -> None:
    class Scaled(type(networks.resnet("resnet10"))):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    network = networks.resnet("resnet10").eval()
    network.__class__ = Scaled
    with mistake("a Scaled computes other logits than resnet10"):
        cs.save(network, tmp_path / "net.pt")
    with mistake("no method 'adversarial'"):
        cs.save(network, tmp_path / "net.pt", method="adversarial")
    assert not contents(tmp_path)


# ---------------------------------------------------------------- the command line


def test_the_commands_take_all_of_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own(folder, width=6)
    assert run(["layers", "t.ckpt@mynets.py:Net", "--arch-args", "width=6"]) == 0
    assert "net.0" in capsys.readouterr().out
    argv = ["convert", "t.ckpt", "o.pt", "--arch", "mynets.py:Net", "--arch-args", "width=6"]
    assert run([*argv, "--normalise", "0.5;0.25"]) == 0
    assert "mynets.py:Net, 5 classes, normalised as named: mean 0.5" in capsys.readouterr().out
    assert run(["layers", "o.pt", "--arch", "mynets.py:Net", "--arch-args", "width=6"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("layers t.ckpt", "not recognised"),
        ("layers t.ckpt@mynets.py:Nett", "Did you mean 'Net'"),
        ("layers t.ckpt --arch-args width", "--arch-args: 'width' sets nothing"),
        ("layers t.ckpt@mynets.py:Net --normalise 3", "write MEAN;STD"),
        ("convert t.ckpt o.pt --arch mynets.py:Net --arch-args width=9", "does not fit"),
        ("compare --models a=t.ckpt a=t.ckpt", "the same label"),
        ("evaluate --models none.pth@torchvision:resnet18", "no file none.pth"),
        ("evaluate --models torchvision:resnet19", "Did you mean"),
        ("layers t.ckpt@torchvision:nonsense", "no classifier 'nonsense'.\n"),
        ("evaluate --models robustbench:Standard", "robustbench"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(
    words: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own(folder)
    before = contents(folder)
    assert run(words.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert {name for name in contents(folder) if "pycache" not in name} == set(before)


# ---------------------------------------------------------------- hostile checkpoints

HOSTILE: dict[str, dict[str, Any]] = {
    "a file to read": {"arch": "timm:resnet26", "args": {"checkpoint_path": "evil.pth"}},
    "weights to fetch": {"arch": "torchvision:resnet18", "args": {"weights": "DEFAULT"}},
    "an address": {"arch": "timm:resnet26", "args": {"pretrained_cfg": "hf-hub:evil/net"}},
    "blocks without end": {"arch": "preact-resnet", "args": {"blocks": (10**9,)}},
    "a longer network": {"arch": "thin-resnet", "args": {"blocks": (9999, 1, 1)}},
    "a width without end": {"arch": "preact-resnet", "args": {"width": 10**9}},
    "many blocks": {"arch": "preact-resnet", "args": {"blocks": (9999, 9999)}},
    "a chain without end": {"arch": "chain", "args": {"layers": "relu, " * 10**5}},
    "a large chain": {"arch": "chain", "args": {"layers": "bn 999999999999, linear 3 10 1"}},
    "a chain of code": {"arch": "chain", "args": {"layers": "os.mkdir mark"}},
    "code": {"arch": "mynets.py:Net", "args": {}},
    "a module": {"arch": "os:getcwd", "args": {}},
    "a module to run": {"arch": "antigravity:fly", "args": {}},
    "no name": {"arch": 3, "args": {}},
    "no arguments": {"arch": "torchvision:resnet18", "args": 3},
    "many classes": {"arch": "torchvision:resnet18", "classes": 10**12, "args": {}},
    "classes in words": {"arch": "torchvision:resnet18", "classes": "ten", "args": {}},
    "an unknown network": {"arch": "torchvision:resnet19", "args": {}},
    "other statistics": {"arch": "torchvision:resnet18", "args": {}, "mean": (0.0,), "std": (0.0,)},
    "a text for a number": {"arch": "preact-resnet", "args": {"width": "wide"}},
    "more fields": {"arch": "preact-resnet", "args": {}, "builder": "eval"},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_checkpoint_is_one_sentence(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mynets.py").write_text("open('mark', 'w')")
    content = {
        "channelscope": 2,
        "architecture": {"classes": 10, "mean": (), "std": ()} | HOSTILE[case],
        "gates": [],
        "state": {"conv1.weight": torch.ones(2, 3, 3, 3)},
        "image": (3, 32, 32),
        "class_names": None,
        "method": None,
        "meta": {},
    }
    torch.save(content, "hostile.pt")
    before = contents(folder)
    assert run(["layers", "hostile.pt"]) == 2
    error = capsys.readouterr().err
    assert "hostile.pt" in error or "arch: " in error
    assert error.count("\n") == 1
    assert contents(folder) == before
