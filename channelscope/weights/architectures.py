"""Architectures that are not ours: of torchvision and timm, of the user's own code, and others.

``External`` is to these what ``networks.Architecture`` is to ours: what it takes to build a network
again. A name is ``torchvision:NAME``, ``timm:NAME``, ``FILE.py:NAME`` or ``package.module:NAME`` of
a class or function, or one of ``BUILDERS``. Code of the user's own runs only where the user names
it: never because a checkpoint does.
"""

import ast
import importlib
import importlib.util
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from channelscope.errors import UserError, join_first, suggest
from channelscope.networks import Normalised, check_statistics

Value = bool | int | float | str | tuple[int, ...]
LIBRARIES = ("torchvision", "timm")
# What networks of libraries, and of builders here, are built with when a checkpoint says so.
_PLAIN_ARGS = {
    *("num_classes", "in_chans", "img_size", "aux_logits", "transform_input", "drop_rate"),
    *("blocks", "width", "bottleneck", "final_norm", "channels", "layers", "projected"),
}


_MOST_LISTED = 8  # classes and functions of a file that a sentence names


class MisfitError(UserError):
    """An architecture that the user named is not that of the file; it may be that of another."""


@dataclass(frozen=True, kw_only=True)
class External:
    """What it takes to build a network of another program's again.

    Args:
        arch: the builder's name.
        classes: number of logits.
        args: further arguments of the builder, by name.
        mean, std: of each input channel, or one number for all, for a normalisation before the
            network; empty for none.
    """

    arch: str
    classes: int
    args: Mapping[str, Value] = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        texts = isinstance(self.arch, str) and isinstance(self.args, Mapping)
        texts = texts and all(isinstance(name, str) for name in self.args)
        if not texts or type(self.classes) is not int or not 0 <= self.classes <= 1_000_000:
            raise UserError(f"arch: {self.arch!r} of {self.classes!r} classes is no architecture.")
        if self.mean or self.std:
            check_statistics(self.mean, self.std, "normalise")

    def check_plain(self) -> None:
        """Refuse arguments of a builder of ours or of a library that a file should not have.

        Others might name files to read, or networks without end.

        Raises:
            ValueError: for an unknown argument, or a number or text beyond reason.
        """
        for name, value in self.args.items():
            numbers = value if isinstance(value, tuple) else (value,)
            if name not in _PLAIN_ARGS or len(numbers) > 8 or len(str(value)) > 4000:
                raise ValueError(f"an argument {name}")
            if any(isinstance(number, int) and not 0 <= number <= 10_000 for number in numbers):
                raise ValueError(f"an argument {name} beyond reason")

    @property
    def is_code(self) -> bool:
        """Whether the builder is code of the user's own."""
        return ":" in self.arch and self.arch.partition(":")[0] not in LIBRARIES

    def build(self) -> nn.Module:
        """Build the network with fresh weights, without its normalisation, in eval mode.

        Raises:
            UserError: for a builder that does not exist or fails, or is no longer installed.
        """
        builder = find_builder(self.arch)
        args = dict(self.args)
        if not self.is_code:
            args = {"num_classes": self.classes} | args
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
                network = builder(**args)
        except Exception as error:
            told = ", ".join(f"{name}={value}" for name, value in args.items()) or "no arguments"
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise UserError(
                f"arch: {self.arch} cannot be built with {told} ({type(error).__name__}: "
                f"{reason}): name its arguments with --arch-args NAME=VALUE."
            ) from error
        if not isinstance(network, nn.Module):
            raise UserError(
                f"arch: {self.arch} returns a {type(network).__name__}, not a torch.nn.Module: "
                "name a class or a function that builds the network."
            )
        return network.eval()

    def build_shapes(self) -> dict[str, Tensor]:
        """Return the names, shapes and types of the network's tensors, without memory for most.

        Raises:
            UserError: as ``build`` does.
        """
        if not self.is_code:  # code of the user's own may look at its numbers
            with suppress(UserError), _Empty():
                return self.build().state_dict()
        return self.build().state_dict()

    def build_with(self, state: Mapping[str, Tensor]) -> nn.Module:
        """Build the network with weights, and its normalisation before it, in eval mode.

        Args:
            state: the weights, by the names in the network without its normalisation.

        Raises:
            UserError: as ``build`` does, and for weights that do not fit.
        """
        network = self._load_quickly(state) or self._load(self.build(), state, assign=False)
        if self.mean:
            network = Normalised(network, self.mean, self.std)
        return network.eval()

    def _load_quickly(self, state: Mapping[str, Tensor]) -> nn.Module | None:
        """Load the weights into a network that was never initialised; None where that fails."""
        if self.is_code:
            return None
        try:
            with _Empty():
                network = self.build()
        except UserError:
            return None
        self._load(network, state, assign=True)
        tensors = (*network.parameters(), *network.buffers())
        return None if any(tensor.is_meta for tensor in tensors) else network

    def _load(self, network: nn.Module, state: Mapping[str, Tensor], assign: bool) -> nn.Module:
        complete = OrderedDict(state)
        # Some modules ask which version of theirs wrote the tensors, which files often leave out.
        complete._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
        try:
            network.load_state_dict(complete, assign=assign)
        except RuntimeError as error:
            raise UserError(
                f"arch: the weights do not fit {self.arch}, perhaps of another version: install "
                "the version that they were saved with, or convert them again."
            ) from error
        return network


_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.randn)


class _Empty(TorchFunctionMode):
    """Give new tensors, as which parameters and buffers begin, neither memory nor numbers.

    Within ``torch.device("meta")`` some networks cannot be built, that compute their widths with
    tensors.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _FACTORIES:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def find_builder(arch: str) -> Callable[..., Any]:
    """Return the function or class that builds an architecture.

    Raises:
        UserError: where there is none of the name.
    """
    library, colon, name = arch.rpartition(":")
    if names_only_file(arch):
        raise _ask_for_name(arch.removesuffix(":"))
    if not colon:
        if arch in BUILDERS:
            return BUILDERS[arch]
        raise UserError(
            f"arch: there is no architecture {arch!r}: write torchvision:NAME, timm:NAME, "
            f"FILE.py:NAME or package.module:NAME.{suggest(arch, BUILDERS)}"
        )
    if library == "torchvision":
        return _find_torchvision(name)
    if library == "timm":
        return _find_timm(name)
    if library == "robustbench":
        return _find_robustbench()
    return _find_code(library, name, arch)


def _find_torchvision(name: str) -> Callable[..., Any]:
    from torchvision import models

    names = models.list_models(models)
    if name not in names:
        raise UserError(f"arch: torchvision has no classifier {name!r}.{suggest(name, names)}")
    # Two of them draw their weights in minutes unless told not to.
    slow = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}

    def build(**args: Any) -> Any:
        return models.get_model(name, weights=None, **(slow | args))

    return build


def _find_timm(name: str) -> Callable[..., Any]:
    try:
        import timm
    except ImportError as error:
        raise UserError("arch: timm is not installed: pip install timm.") from error
    if not timm.is_model(name):
        raise UserError(f"arch: timm has no network {name!r}.{suggest(name, timm.list_models())}")

    def build(**args: Any) -> Any:
        return timm.create_model(name, pretrained=False, **args)

    return build


def _find_robustbench() -> Callable[..., Any]:
    try:
        from robustbench.utils import load_model
    except ImportError as error:
        raise UserError(
            "arch: robustbench is not installed: see github.com/RobustBench/robustbench."
        ) from error
    return load_model


def _find_code(place: str, name: str, arch: str) -> Callable[..., Any]:
    """Import the user's own module, and return its function or class."""
    folder = Path(place).parent if place.endswith(".py") else Path()
    if place.endswith(".py") and not Path(place).is_file():
        raise UserError(f"arch: there is no file {place}: check the path in {arch}.")
    try:
        with _import_from(folder.resolve()):
            module = (
                _import_file(place) if place.endswith(".py") else importlib.import_module(place)
            )
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(
            f"arch: {place} cannot be imported ({type(error).__name__}: {reason}): check {arch}."
        ) from error
    builder = getattr(module, name, None)
    if not callable(builder):
        names = [key for key, value in vars(module).items() if callable(value)]
        raise UserError(
            f"arch: {place} has no function or class {name!r}.{suggest(name, names)} Write "
            f"{place}:NAME."
        )
    return builder


def names_only_file(arch: str) -> bool:
    """Tell whether an architecture is a file of code, with nothing in it named."""
    return arch.removesuffix(":").endswith(".py")


def _ask_for_name(place: str) -> UserError:
    """Return the sentence that lists what a file defines, which is read and not run."""
    if not Path(place).is_file():
        return UserError(f"arch: there is no file {place}: check the path.")
    try:
        body = ast.parse(Path(place).read_bytes()).body
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return UserError(f"arch: {place} cannot be read as Python ({error}): check the file.")
    names = [
        item.name
        for item in body
        if isinstance(item, ast.ClassDef | ast.FunctionDef) and not item.name.startswith("_")
    ]
    if not names:
        return UserError(
            f"arch: {place} defines no class or function: name the file that defines the network, "
            "as FILE.py:NAME."
        )
    networks = _list_networks(body)
    likeliest = networks[0] if len(networks) == 1 else None
    if likeliest in names:
        names = [likeliest, *(name for name in names if name != likeliest)]
    example = f"{place}:{likeliest}" if likeliest in names else f"{place}:NAME"
    return UserError(
        f"arch: {place} is a file of code, in which the network has a name: type {example} (it "
        f"defines {join_first(names, _MOST_LISTED)})."
    )


def _list_networks(body: Sequence[ast.stmt]) -> list[str]:
    """List the classes that extend torch's Module and are no part of another class of the file."""
    networks: list[str] = []
    parts: set[str] = set()
    for item in body:
        if isinstance(item, ast.ClassDef):
            bases = [ast.unparse(base).rpartition(".")[2] for base in item.bases]
            if any(base.endswith("Module") or base in ("Sequential", *networks) for base in bases):
                networks.append(item.name)
            used = {node.id for node in ast.walk(item) if isinstance(node, ast.Name)}
            parts |= used - {item.name}  # its own name stands in super()
    return [name for name in networks if name not in parts]


@contextmanager
def _import_from(folder: Path) -> Iterator[None]:
    """Let modules of a folder be imported inside the context, as when it is worked in."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _import_file(place: str) -> Any:
    path = Path(place).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError("no module")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses and others look their module up
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- pre-activation ResNets


class PreActBlock(nn.Module):
    """Pre-activation block: BatchNorm and ReLU before each convolution, and before the shortcut.

    Two 3x3 convolutions; of a bottleneck 1x1, 3x3 and 1x1, with four times more channels out than
    inside. He et al., ECCV 2016 (arXiv 1603.05027).
    """

    def __init__(self, channels_in: int, planes: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = 4 * planes if bottleneck else planes
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        strides = (1, stride, 1) if bottleneck else (stride, 1)
        widths = (channels_in, *[planes] * (len(kernels) - 1), out)
        for index, (kernel, step) in enumerate(zip(kernels, strides, strict=True)):
            width = widths[index]
            conv = nn.Conv2d(width, widths[index + 1], kernel, step, kernel // 2, bias=False)
            self.add_module(f"bn{index + 1}", nn.BatchNorm2d(width))
            self.add_module(f"conv{index + 1}", conv)
        self.depth = len(kernels)
        if stride != 1 or channels_in != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, out, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        skip, z = x, x
        for index in range(1, self.depth + 1):
            z = F.relu(self.get_submodule(f"bn{index}")(z))
            if index == 1 and "shortcut" in self._modules:
                skip = self.shortcut(z)
            z = self.get_submodule(f"conv{index}")(z)
        return z + skip


class PreActResNet(nn.Module):
    """Pre-activation ResNet for small images: a 3x3 stem, stages of 1, 2, 4, 8 times the width.

    Args:
        num_classes: number of logits.
        blocks: of each stage.
        width: planes of the first stage.
        bottleneck: blocks of three convolutions.
        final_norm: a last BatchNorm and ReLU, which pytorch-cifar leaves out and AWP has.
        channels: of the images.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        blocks: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        bottleneck: bool = False,
        final_norm: bool = False,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if not 1 <= len(blocks) <= 8 or not all(1 <= count <= 200 for count in blocks):
            raise UserError(f"blocks: {blocks!r} are no numbers of blocks: name 1 to 8 stages.")
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        out = width
        for stage, count in enumerate(blocks):
            planes, layers = width * 2**stage, []
            for index in range(count):
                stride = 2 if index == 0 and stage else 1
                layers.append(PreActBlock(out, planes, stride, bottleneck))
                out = 4 * planes if bottleneck else planes
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.stages = len(blocks)
        if final_norm:
            self.bn = nn.BatchNorm2d(out)
        self.linear = nn.Linear(out, num_classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        z = self.conv1(x)
        for stage in range(1, self.stages + 1):
            z = self.get_submodule(f"layer{stage}")(z)
        if "bn" in self._modules:
            z = F.relu(self.bn(z))
        return self.linear(z.mean((2, 3)))


# ---------------------------------------------------------------- ResNet-20 and its kind


class ThinBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a convolution or has no weights.

    A shortcut without weights leaves out every other pixel, and puts channels of zeros on both
    sides: option A of He et al.
    """

    def __init__(self, channels_in: int, planes: int, stride: int, projected: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: nn.Module = nn.Identity()
        self.stride, self.zeros = stride, planes - channels_in
        if projected and (stride != 1 or self.zeros):
            conv = nn.Conv2d(channels_in, planes, 1, stride, bias=False)
            self.shortcut, self.zeros = nn.Sequential(conv, nn.BatchNorm2d(planes)), 0
            self.stride = 1

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.bn1(self.conv1(x)))
        skip = self.shortcut(x)[:, :, :: self.stride, :: self.stride]
        half = self.zeros // 2
        skip = F.pad(skip, (0, 0, 0, 0, half, self.zeros - half)) if self.zeros else skip
        return F.relu(self.bn2(self.conv2(z)) + skip)


class ThinResNet(nn.Module):
    """ResNet-20, 32, 44, 56, 110 for small images: stages of 1, 2, 4 times a width of 16.

    He et al., CVPR 2016 (arXiv 1512.03385), section 4.2.

    Args:
        num_classes: number of logits.
        blocks: of each stage.
        width: planes of the first stage.
        projected: whether shortcuts to other numbers of channels are 1x1 convolutions with
            BatchNorm; else they have no weights.
        channels: of the images.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        blocks: Sequence[int] = (3, 3, 3),
        width: int = 16,
        projected: bool = False,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if len(blocks) != 3 or not all(1 <= count <= 400 for count in blocks):
            raise UserError(f"blocks: {blocks!r} are no numbers of blocks: name them for 3 stages.")
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        out = width
        for stage, count in enumerate(blocks):
            planes, layers = width * 2**stage, []
            for index in range(count):
                stride = 2 if index == 0 and stage else 1
                layers.append(ThinBlock(out, planes, stride, projected))
                out = planes
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(out, num_classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        z = F.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            z = self.get_submodule(f"layer{stage}")(z)
        return self.linear(z.mean((2, 3)))


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "preact-resnet": PreActResNet,
    "thin-resnet": ThinResNet,
}
"""The architectures of others that are built here, by name."""
